"""A detection's results: in working files while it runs, then in its output."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.atomic import write_text
from ..core.excerpt import excerpt
from .outputs import changes

Row = dict[str, Any]  # an item of `hgr.detection.report` with its name as "item", and "error", a string or None


def failed(name: str, why: str) -> Row:
    """The row of an item that could not be judged; it is flagged, because it may be harmful."""
    return {"item": name, "flagged": True, "score": None, "concepts": {}, "error": why}


class PartialResults:
    """The working files of a detection, next to its output: OUTPUT.part.jsonl, and OUTPUT.part-1.jsonl and so on for
    further processes. The first line is `run`, every other line a [key, row].

    run: what the rows depend on.
    """

    def __init__(self, output: Path, run: dict[str, Any]):
        self.output, self.run = output, run

    def path(self, rank: int = 0) -> Path:
        return self.output.with_name(f"{self.output.name}.part{f'-{rank}' if rank else ''}.jsonl")

    def rows(self) -> dict[str, Row]:
        """The rows of all processes by key. Raises ValueError, naming what differs, for rows of another run."""
        rows = {}
        for path in self._files():
            try:
                first, *lines = path.read_text("utf-8").split("\n")
                lines = lines[:-1]  # a kill may have truncated the last one
                if not lines:
                    continue
                before, found = dict(json.loads(first)), dict(map(json.loads, lines))
                if not all(isinstance(row, dict) and "error" in row for row in found.values()):
                    raise ValueError("a row that is no result")
            except (ValueError, TypeError, RecursionError):
                raise ValueError(f"{path}: damaged, or not a working file of a detection: remove it.") from None
            if different := changes(before, self.run):
                raise ValueError(
                    f"{path} is from an unfinished detection with other settings ({different}): give those again, "
                    "choose another --output, or remove it."
                )
            rows |= found
        return rows

    def gather(self, rows: dict[str, Row]) -> None:
        """Keep only these rows, in one file."""
        write_text(
            self.path(), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (self.run, *rows.items()))
        )
        for path in self._files():
            if path != self.path():
                path.unlink()

    @contextmanager
    def adding(self, rank: int) -> Iterator[Callable[[str, Row], None]]:
        """Yields a function that adds a row to a process's file at once."""
        with open(self.path(rank), "a" if rank == 0 else "w", encoding="utf-8", newline="\n") as file:

            def add(line: Any) -> None:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()

            if rank:
                add(self.run)
            yield lambda key, row: add([key, row])

    def remove(self) -> None:
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        name = re.compile(re.escape(self.output.name) + r"\.part(-\d+)?\.jsonl")
        return (
            sorted(path for path in self.output.parent.iterdir() if name.fullmatch(path.name))
            if self.output.parent.is_dir()
            else []
        )


def write_results(path: Path, rows: list[Row], ids: list[str]) -> None:
    """Write the output: the rows as a JSON list, or as CSV with a column for the score of each concept in `ids`."""
    if path.suffix.lower() == ".json":
        return write_text(
            path, "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows) + "\n]\n"
        )
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["item", "flagged", "score", *ids, "evidence", "error"])
    for row in rows:
        concepts = row["concepts"]
        highest = max(concepts.values(), key=lambda found: found["score"], default={"evidence": None})
        scores = [concepts[id]["score"] if concepts else None for id in ids]
        table.writerow(
            [row["item"], str(row["flagged"]).lower(), row["score"], *scores, highest["evidence"], row["error"]]
        )
    write_text(path, text.getvalue())


def summary(rows: list[Row], ids: list[str]) -> list[tuple[str, str]]:
    """How many items are flagged, in total and by concept, for people."""

    def count(flags: Iterator[bool]) -> str:
        return f"{sum(flags)} of {len(rows)}"

    lines = [("flagged", count(row["flagged"] for row in rows))]
    lines += [
        (excerpt(id), count(bool(row["concepts"]) and row["concepts"][id]["flagged"] for row in rows)) for id in ids
    ]
    if any(row["error"] for row in rows):
        lines.append(
            ("errors", count(bool(row["error"]) for row in rows) + ", could not be judged and count as flagged")
        )
    return lines
