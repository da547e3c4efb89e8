"""Text and CSV files that people wrote: what is read, and how each fault is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hgr.data.prompt_file import prompt_lines, read_prompts
from hgr.data.textfile import MAX_BYTES, DataError, csv_rows, read_text


def rows(path: Path, text: str, needed=("prompt",), optional=("image",)) -> list[tuple[int, dict[str, str]]]:
    path.write_text(text, "utf-8", newline="")
    return list(csv_rows(path, needed=needed, optional=optional))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.csv"


def test_text_is_read_with_or_without_a_byte_order_mark(path):
    for start in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(start + "café\r\n".encode())
        assert read_text(path) == "café\r\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a\nb\ncaf\xe9", "mine.csv, line 3: not UTF-8 text"),
        (b"\xff\xfea\0", "mine.csv, line 1: not UTF-8 text"),
        (b"a\nb\0", "mine.csv, line 2: contains a NUL character"),
    ],
)
def test_what_is_not_text_is_named_with_its_line(path, content, why):
    path.write_bytes(content)
    with pytest.raises(DataError, match=why) as error:
        read_text(path)
    assert str(path.parent) not in str(error.value)


def test_a_file_that_is_missing_or_too_large_is_named_and_not_read(path, monkeypatch):
    with pytest.raises(DataError, match=r"^mine.csv: cannot be read \(No such file"):
        read_text(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_text(path.parent)
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read before its size was looked at"))
    with pytest.raises(DataError, match="^mine.csv: larger than 64 MB"):
        read_text(path)


def test_rows_have_the_line_that_they_start_on_and_unknown_columns_are_kept(path):
    found = rows(path, '\n Prompt ,IMAGE,note\na,b.png,x\n\n"two\nlines, with a comma",,\n"say ""hi""",,y\n')
    assert found == [
        (3, {"prompt": "a", "image": "b.png", "note": "x"}),
        (5, {"prompt": "two\nlines, with a comma", "image": "", "note": ""}),
        (7, {"prompt": 'say "hi"', "image": "", "note": "y"}),
    ]
    assert rows(path, "prompt\r\na\r\n") == [(2, {"prompt": "a"})], "an optional column may be missing"


@pytest.mark.parametrize(
    "text",
    [
        'prompt, image\n"a, b", "c; d.png"\n',
        'prompt;image\n"a, b";"c; d.png"\n',
        'prompt; image\na, b; "c; d.png"\n',
        "prompt\timage\na, b\tc; d.png\n",
        'note,prompt,image\r\n,"a, b", "c; d.png"\r\n',
        '\ufeff;;\r\n"image";"prompt";"note"\r\n"c; d.png";a, b;\r\n',
    ],
)
def test_cells_are_read_as_excel_and_people_write_them(path, text):
    (found,) = [row for _, row in rows(path, text)]
    assert (found["prompt"], found["image"]) == ("a, b", "c; d.png")


def test_rows_of_empty_cells_are_left_out_and_the_others_keep_their_line(path):
    found = rows(path, ",,\nprompt,image,\n,,\na,,\n, ,\t\n\n,b.png,\n,,\n")
    assert [(line, row["prompt"], row["image"]) for line, row in found] == [(4, "a", ""), (7, "", "b.png")]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "the file is empty; it must start with a header that names the columns prompt, clean"),
        ("prompt\na\n", 1, "must name each of these columns once, separated by commas: prompt, clean"),
        ("prompt clean\na b\n", 1, "must name each of these columns once"),
        ("prompt;clean\na;b;c\n", 2, "has 3 cells, but the header has 2"),
        ("prompt,clean,Prompt\na,b,c\n", 1, "must name each of these columns once"),
        ("prompt,clean,image,image\na,b,c,d\n", 1, 'the header names the column "image" more than once'),
        ("prompt,clean\na,b\na, with a comma,b\n", 3, "has 3 cells, but the header has 2; put a prompt"),
        ("prompt,clean\na\n", 2, "has 1 cells, but the header has 2"),
        ('prompt,clean\na,b\n"a,b\nc,d\n', 3, "not valid CSV"),
        (",,\n\n , ,\t\n", 1, "the file is empty"),
        ("prompt,clean\n" + "a" * 200_000 + ",b\n", 2, "not valid CSV"),
    ],
)
def test_a_fault_in_a_csv_is_named_with_its_line(path, text, line, why):
    with pytest.raises(DataError) as error:
        rows(path, text, needed=("prompt", "clean"))
    assert str(error.value).startswith(f"mine.csv, line {line}: ") and why in str(error.value)


def test_prompts_are_lines_without_the_empty_ones(tmp_path):
    assert prompt_lines("a\n\n  b c \r\n\u2028d\n") == ["a", "b c", "d"]
    path = tmp_path / "mine.txt"
    path.write_text("a\n \nb", "utf-8")
    assert read_prompts(path) == ["a", "b"]
    path.write_text(" \n")
    with pytest.raises(DataError, match="^mine.txt: contains no prompts"):
        read_prompts(path)


def test_reading_loads_nothing_heavy():
    code = (
        "import sys, hgr.data.textfile, hgr.data.prompt_file, hgr.data.pair_file, hgr.data.examples;"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
