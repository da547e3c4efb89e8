"""Reads text and CSV files that users wrote; all readers of such files use it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.excerpt import excerpt

INVALID = re.compile("[\0\ud800-\udfff]")  # NUL and halves of surrogate pairs: no encoder takes them
MAX_BYTES = 64 * 2**20
_SEPARATORS = ",;\t"  # Excel writes a semicolon where the comma is the decimal sign


class DataError(ValueError):
    """Prompts or pairs that cannot be used, in one sentence, which names the file and the line if there is one."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises DataError, naming the file, if it is too large, cannot be read or is not text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{excerpt(path.name)}: larger than {MAX_BYTES // 2**20} MB.")
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{excerpt(path.name)}: cannot be read ({error.strerror}).") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise bad_line(path, line, "not UTF-8 text; save the file as UTF-8.") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise bad_line(path, line, "contains a NUL character; this is not a text file, or it is UTF-16.")
    return text


def csv_header(path: Path) -> list[str]:
    """The names of a CSV file's columns in lower case; none if the file is empty. Raises DataError as `csv_rows`."""
    return next(([cell.strip().lower() for cell in cells] for _, cells in _rows(path)), [])


def csv_rows(
    path: Path, *, needed: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV file with a header; a row's line is the one it starts on.

    Commas, semicolons or tabs separate the cells, whichever the header has most. Rows without any text are left out.

    needed, optional: column names in lower case. The header must name each needed column once and no optional one
    twice; other columns are kept. Raises DataError, naming the file and the line, for anything else.
    """
    header: list[str] | None = None
    for line, cells in _rows(path):
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            for name in needed:
                if header.count(name) != 1:
                    raise bad_line(path, line, f"the header must name {_columns(needed, optional)}.")
            for name in optional:
                if header.count(name) > 1:
                    raise bad_line(path, line, f'the header names the column "{name}" more than once.')
        elif len(cells) != len(header):
            raise bad_line(
                path,
                line,
                f"has {len(cells)} cells, but the header has {len(header)}; "
                "put a prompt that contains commas in quotes.",
            )
        else:
            yield line, dict(zip(header, cells, strict=True))
    if header is None:
        raise bad_line(
            path, 1, f"the file is empty; it must start with a header that names the columns {', '.join(needed)}."
        )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the rows of a CSV file that hold any text."""
    text = read_text(path)
    first = next((line for line in text.split("\n") if line.strip(_SEPARATORS + " \r")), "")
    separator = max(_SEPARATORS, key=first.count)
    # people write a space before a quoted cell
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator, skipinitialspace=True)
    while True:
        line = reader.line_num + 1  # a quoted cell may span several lines
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise bad_line(path, line, f"not valid CSV ({error}).") from None
        if any(cell.strip() for cell in cells):  # Excel writes rows of empty cells
            yield line, cells


def _columns(needed: Sequence[str], optional: Sequence[str]) -> str:
    """What a header must name, for people."""
    once = f"each of these columns once, separated by commas: {', '.join(needed)}"
    if len(needed) == 1:
        once = f'the column "{needed[0]}" once'
    return once + (f"; it may also name {', '.join(optional)}" if optional else "")


def bad_line(path: Path, line: int, why: str) -> DataError:
    """The error for one line of a file."""
    return DataError(f"{excerpt(path.name)}, line {line}: {why}")
