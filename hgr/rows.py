"""Files of prompt pairs, CSV or JSONL, as checked rows. Errors name the file and the line."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_BYTES = 64 * 2**20
MAX_TEXT = 2000
MAX_NAME = 100
SUFFIXES = (".csv", ".jsonl")


class PairsError(ValueError):
    """Pairs that cannot be used, in one sentence; of a file, it names the file and the line."""


class Row(NamedTuple):
    """A pair; or, with empty `harmful` and `concept`, a clean prompt. label and group may be empty: they are optional columns."""

    harmful: str
    clean: str
    concept: str
    label: str = ""
    group: str = ""


_NEEDED = Row._fields[:3]


def read(path: Path) -> Iterator[tuple[int, Row]]:
    """(line, row) of a file. Line breaks and double spaces inside a prompt become one space."""
    if path.suffix.lower() not in SUFFIXES:
        raise PairsError(f"{path.name}: not a .csv or .jsonl file.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PairsError(f"{path.name}: larger than {MAX_BYTES // 2**20} MB.")
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put first
    except OSError as error:
        raise PairsError(f"{path.name}: cannot be read ({error.strerror}).") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _bad(path, data.count(b"\n", 0, error.start) + 1, "not UTF-8 text; save the file as UTF-8.") from None
    if "\0" in text:
        raise _bad(path, text.count("\n", 0, text.index("\0")) + 1, "holds a NUL character; this is no text file, or it is UTF-16.")
    for line, cells in (_csv if path.suffix.lower() == ".csv" else _jsonl)(path, text):
        yield line, _checked(path, line, cells)


def write(rows: Iterable[Row], path: Path) -> None:
    """Write a CSV under a temporary name, then rename it: a full disk or a kill loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Row._fields, *rows])
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _bad(path: Path, line: int, why: str) -> PairsError:
    return PairsError(f"{path.name}, line {line}: {why}")


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # where the row starts; a quoted prompt may go over several lines
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise _bad(path, line, f"not sound CSV ({error}).") from None
        if not cells:
            continue
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            for name in _NEEDED:
                if header.count(name) != 1:
                    raise _bad(path, line, f"the header must name the columns {', '.join(_NEEDED)}, with commas between and each once.")
            continue
        if len(cells) != len(header):
            raise _bad(path, line, f"has {len(cells)} cells, but the header has {len(header)}; put a prompt that holds commas in quotes.")
        yield line, dict(zip(header, cells, strict=True))
    if header is None:
        raise _bad(path, 1, f"the file is empty; it must start with a header that names the columns {', '.join(_NEEDED)}.")


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip():
            continue
        try:
            cells = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise _bad(path, line, f"not sound JSON ({error}).") from None
        if not isinstance(cells, dict):
            raise _bad(path, line, "must be a JSON object such as {\"harmful\": \"...\", \"clean\": \"...\", \"concept\": \"...\"}.")
        yield line, cells


def _checked(path: Path, line: int, cells: dict[str, Any]) -> Row:
    """The row, or a PairsError: a pair has all three texts, a clean prompt has `clean` alone."""
    for name in Row._fields:
        if not isinstance(cells.get(name) or "", str):
            raise _bad(path, line, f"\"{name}\" must be a text.")
    row = Row(*(" ".join((cells.get(name) or "").split()) for name in Row._fields))
    for name, text in row._asdict().items():
        most = MAX_TEXT if name in ("harmful", "clean", "group") else MAX_NAME
        if len(text) > most:
            raise _bad(path, line, f"\"{name}\" has {len(text)} characters; at most {most} are allowed.")
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):  # JSON's escapes can bring them in
            raise _bad(path, line, f"\"{name}\" holds a character that no text has (NUL, or half of a pair).")
    for name in ("clean",) if not row.harmful and not row.concept else _NEEDED:
        if not getattr(row, name):
            raise _bad(path, line, f"\"{name}\" is missing or empty; a pair needs {', '.join(_NEEDED)}, a clean prompt only \"clean\".")
    if row.harmful == row.clean:
        raise _bad(path, line, "\"harmful\" and \"clean\" are the same text.")
    return row
