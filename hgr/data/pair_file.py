"""Files of prompt pairs, CSV or JSONL."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..core.atomic import replacing
from ..core.excerpt import excerpt
from .pairs import MAX_NAME, MAX_TEXT, Pair, Pairs, Topic, merge_pairs, topic_of
from .public_sets import public_rows
from .textfile import INVALID, DataError, bad_line, csv_rows, read_text

SUFFIXES = (".csv", ".jsonl")
_BLOCK = 10  # neighbouring rows of a file that form one group


class _Row(NamedTuple):
    """A pair; or, with empty `harmful` and `concept`, a clean prompt. label and group are optional and may be empty."""

    harmful: str
    clean: str
    concept: str
    label: str = ""
    group: str = ""


_NEEDED, _OPTIONAL = _Row._fields[:3], _Row._fields[3:]


def read_pairs(path: str | Path) -> Pairs:
    """Pairs from a CSV file (its header has harmful, clean, concept) or a JSONL file (objects with these keys); or from
    the CSV file of a public set (`hgr.data.public_sets`).

    Rows with only `clean` are clean prompts; `label` and `group` are optional. Without `group`, neighbouring rows of a
    concept form one, as they often share a term. Line breaks and double spaces in a prompt become one space.

    Raises DataError, naming the file and the line, for anything wrong.
    """
    path = Path(path)
    topics: dict[str, Topic] = {}
    pairs: list[Pair] = []
    clean: list[str] = []
    count: Counter[str] = Counter()
    for line, row in _rows(path):
        if not row.concept:
            clean.append(row.clean)
            continue
        known = topics.setdefault(row.concept, topic_of(row.concept, row.label))
        if row.label not in ("", known.label):
            raise bad_line(
                path,
                line,
                f'concept "{excerpt(row.concept)}" has the label "{excerpt(row.label)}" here, but '
                f'"{excerpt(known.label)}" above.',
            )
        group = row.group or f"{row.concept}, rows from {count[row.concept] // _BLOCK * _BLOCK}"
        count[row.concept] += 1
        pairs.append(Pair(row.concept, row.harmful, row.clean, group))
    if not pairs and not clean:
        raise DataError(f"{excerpt(path.name)}: contains no rows.")
    return merge_pairs(Pairs(tuple(topics.values()), tuple(pairs), tuple(clean)))


def write_pairs(pairs: Pairs, path: str | Path) -> None:
    """Write a CSV file for `read_pairs`, without the topics' descriptions and words."""
    labels = {topic.id: topic.label for topic in pairs.topics}
    rows = [_Row(p.harmful, p.clean, p.concept, labels[p.concept], p.group) for p in pairs.pairs]
    rows += [_Row("", text, "") for text in pairs.clean]
    with replacing(Path(path)) as part, open(part, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_Row._fields, *rows])


def _rows(path: Path) -> Iterator[tuple[int, _Row]]:
    """(line, checked row) of a file."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{excerpt(path.name)}: not a .csv or .jsonl file.")
    rows = (public_rows(path) or csv_rows(path, needed=_NEEDED, optional=_OPTIONAL)) if suffix == ".csv" else None
    for line, cells in rows or _json_rows(path):
        yield line, _checked(path, line, cells)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, source in enumerate(read_text(path).split("\n"), 1):
        if not source.strip():
            continue
        try:
            cells = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise bad_line(path, line, f"not valid JSON ({error}).") from None
        if not isinstance(cells, dict):
            raise bad_line(
                path, line, 'must be a JSON object such as {"harmful": "...", "clean": "...", "concept": "..."}.'
            )
        yield line, cells


def _checked(path: Path, line: int, cells: dict[str, Any]) -> _Row:
    """The checked row. Raises DataError unless a pair has all three texts, or a clean prompt only `clean`."""
    for name in _Row._fields:
        if not isinstance(cells.get(name) or "", str):
            raise bad_line(path, line, f'"{name}" must be a string.')
    row = _Row(*(" ".join((cells.get(name) or "").split()) for name in _Row._fields))
    for name, text in row._asdict().items():
        most = MAX_TEXT if name in ("harmful", "clean", "group") else MAX_NAME
        if len(text) > most:
            raise bad_line(path, line, f'"{name}" has {len(text)} characters; at most {most} are allowed.')
        if INVALID.search(text):  # JSON's escapes can bring it in
            raise bad_line(path, line, f'"{name}" contains an invalid character (NUL or half of a surrogate pair).')
    for name in ("clean",) if not row.harmful and not row.concept else _NEEDED:
        if not getattr(row, name):
            needs = f'a pair needs {", ".join(_NEEDED)}, a clean prompt only "clean".'
            raise bad_line(path, line, f'"{name}" is missing or empty; {needs}')
    if row.harmful == row.clean:
        raise bad_line(path, line, '"harmful" and "clean" are the same text.')
    return row
