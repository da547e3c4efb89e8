"""The small parts that everything stands on: prompts, fingerprints, files written whole, progress."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import hgr
from hgr.core.atomic import WriteError, creating, replacing, stale_parts, write_bytes, write_text
from hgr.core.fingerprint import fingerprint
from hgr.core.progress import SILENT, Estimate, Progress, Tally, in_words
from hgr.core.prompt import Prompt
from hgr.core.tensor_file import save_tensors


def python(*lines: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout


def test_the_package_names_its_four_parts_and_loads_torch_only_for_them():
    out = python(
        "import sys, hgr",
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors', 'diffusers', 'transformers'}",
        "print(hgr.__version__, hgr.__all__, sorted(heavy & set(sys.modules)))",
        "from hgr import HGR, HGRError, load, save",
        "print(HGR.__module__, HGRError.__module__, load.__module__, save.__module__, 'torch' in sys.modules)",
    )
    assert out.splitlines() == [
        f"{hgr.__version__} {hgr.__all__} []",
        "hgr.core.hgr hgr.core.errors hgr.core.file hgr.core.file True",
    ]
    with pytest.raises(AttributeError, match="no attribute 'Redirector'"):
        hgr.Redirector  # noqa: B018


# --- prompts ----------------------------------------------------------------------------------------------------------


def three(pooled: bool = True, mask: bool = True) -> Prompt:
    """Three prompts of four tokens."""
    return Prompt(
        torch.arange(24.0).reshape(3, 4, 2),
        torch.arange(9.0).reshape(3, 3) if pooled else None,
        (torch.arange(12).reshape(3, 4) % 3 > 0) if mask else None,
    )


def test_what_a_prompt_lacks_stays_away_whatever_is_done_to_it():
    bare = three(pooled=False, mask=False)
    for made in (bare.map(torch.neg), bare.to("cpu"), bare.rows(slice(2)), bare.rows(slice(1)).expand(4)):
        assert made.pooled is None and made.mask is None
    assert torch.equal(bare.map(torch.neg).features, -bare.features)
    assert [(part.pooled, part.mask) for part in bare.split([1, 2])] == [(None, None)] * 2


def test_rows_of_a_prompt_are_taken_from_all_its_tensors():
    prompt = three()
    for index in (torch.tensor([2, 0]), slice(0, 3, 2), torch.tensor([True, False, True])):
        for found, whole in zip(prompt.rows(index), prompt, strict=True):
            assert torch.equal(found, whole[index])


def test_one_row_is_expanded_without_a_copy_and_a_batch_of_that_size_stays():
    prompt = three()
    one = prompt.rows(slice(1))
    for wide, single in zip(one.expand(5), one, strict=True):
        assert wide.shape == (5, *single.shape[1:]) and (wide == single).all()
        assert wide.data_ptr() == single.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(prompt.expand(3), prompt, strict=True))
    with pytest.raises(RuntimeError):
        prompt.expand(2)


def test_parts_of_a_prompt_are_the_whole():
    prompt = three()
    parts = prompt.split([2, 0, 1])
    assert [len(part.features) for part in parts] == [2, 0, 1]
    for i, whole in enumerate(prompt):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole)
    for sizes in ([2], [2, 2], []):
        with pytest.raises(ValueError, match="cannot be split"):
            prompt.split(sizes)


def test_a_prompt_is_moved_whole():
    assert all(x.device.type == "meta" for x in three().to("meta"))


# --- fingerprints -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    steps: int = 3


def test_a_fingerprint_is_the_same_for_the_same_and_differs_in_every_part(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abd")
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    parts = (Settings(), ["a"], torch.tensor([1.0, 2.0]), one, layer)
    found = fingerprint(*parts)
    assert found == fingerprint(*parts) and len(found) == 16 and int(found, 16) >= 0
    other = nn.Linear(3, 2)
    changed = (Settings(4), ["b"], torch.tensor([1.0, 2.5]), two, other)
    for i, part in enumerate(changed):
        assert fingerprint(*parts[:i], part, *parts[i + 1 :]) != found
    assert len({fingerprint("ab", "c"), fingerprint("a", "bc"), fingerprint("abc")}) == 3
    assert fingerprint(torch.zeros(2, 3)) != fingerprint(torch.zeros(3, 2)), "the same values in another shape"


def test_a_fingerprint_goes_by_a_files_content_and_not_by_its_name(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"abc")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    with pytest.raises(OSError, match="three"):
        fingerprint(tmp_path / "three")


def test_a_fingerprint_does_not_depend_on_the_process_or_on_the_precision_that_holds_the_values():
    code = "from hgr.core.fingerprint import fingerprint; print(fingerprint({'a': 1.5}, ('b', None), 'c'))"
    assert python(code).strip() == fingerprint({"a": 1.5}, ("b", None), "c")
    x = torch.tensor([0.5, -2.0])
    assert fingerprint(x) == fingerprint(x.half()) == fingerprint(x.bfloat16())


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_at_the_end_and_not_before(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one\n")
    with replacing(path) as part:
        part.write_text("two\n")
        assert path.read_text() == "one\n" and part.parent == path.parent, "a rename works on one disk only"
    assert path.read_text() == "two\n" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [False, True])
def test_an_error_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path, error, written):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as part:
        if written:
            part.write_text("ne")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space left"), replacing(path) as part:
        part.symlink_to("/dev/full")
        part.write_text("new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.ENAMETOOLONG, "a shorter name"),
        (errno.EIO, "check that the disk"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_sentence_with_folder_and_remedy(tmp_path, monkeypatch, code, remedy):
    """Still an OSError with the system's own code and words, for those who handle it."""

    def refuse(*_):
        raise OSError(code, os.strerror(code), "safecfg.part")

    monkeypatch.setattr("hgr.core.atomic.os.replace", refuse)
    with pytest.raises(OSError) as error:
        write_text(tmp_path / "a.txt", "new")
    text = str(error.value)
    assert text.startswith(f"a.txt cannot be written to {tmp_path} (") and remedy in text and text.endswith(".")
    assert error.value.errno == code and error.value.strerror == os.strerror(code)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_named_and_no_name_that_is_taken(tmp_path):
    """For a saver that counts upward while a name is taken, this would never end."""
    (tmp_path / "folder").write_text("a file")
    for path in (tmp_path / "folder" / "a", tmp_path / "folder" / "deeper" / "a"):
        with pytest.raises(WriteError, match="choose another folder"):
            write_bytes(path, b"new", new=True)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_two_writers_of_a_new_file_one_gets_the_name_and_the_other_is_told(tmp_path, monkeypatch, links):
    """30 files: none is lost, none is replaced, and none is a mixture."""
    if not links:  # as on a memory stick

        def refuse(*_):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr("hgr.core.atomic.os.link", refuse)
    both = threading.Barrier(2, timeout=60)

    def write(who):
        told = []
        for number in range(30):
            both.wait()
            try:
                write_bytes(tmp_path / f"{number}", who * 100_000, new=True)
                told.append((number, who, True))
            except FileExistsError:
                told.append((number, who, False))
        return told

    with ThreadPoolExecutor(2) as pool:
        told = [one for each in list(pool.map(write, (b"a", b"b"))) for one in each]
    winners = {number: who for number, who, won in told if won}
    assert len(told) == 60 and sorted(winners) == list(range(30)) == sorted(
        number for number, _, won in told if not won
    )
    assert all((tmp_path / f"{number}").read_bytes() == who * 100_000 for number, who in winners.items())
    assert len(list(tmp_path.iterdir())) == 30


def test_of_two_writers_of_one_file_neither_writes_into_the_others(tmp_path):
    """Each has a temporary name of its own; the file is one of the two, whole."""
    path = tmp_path / "a"
    with replacing(path) as one, replacing(path) as two:
        one.write_bytes(b"one")
        two.write_bytes(b"two")
        assert one != two and one.read_bytes() == b"one"
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_a_new_file_that_fails_leaves_nothing_and_its_name_free(tmp_path, monkeypatch):
    with pytest.raises(ValueError), creating(tmp_path / "a") as part:
        part.write_text("half")
        raise ValueError
    monkeypatch.setattr("hgr.core.atomic.os.link", refused := lambda *_: (_ for _ in ()).throw(OSError(1, "no")))
    monkeypatch.setattr("hgr.core.atomic.os.replace", refused)
    with pytest.raises(WriteError):
        write_bytes(tmp_path / "a", b"new", new=True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_found_and_nothing_else(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from hgr.core.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as part: part.write_text('half'); os._exit(9)"
    )
    long = "é" * 120 + ".txt"  # 244 bytes: no room for an ending
    for name in ("a.txt", long):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=False)
    left = sorted(tmp_path.iterdir())
    assert len(left) == 2 and stale_parts(tmp_path) == [], "what is new may still be written"
    (tmp_path / "download.part").write_text("another program's")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert stale_parts(tmp_path) == left and stale_parts(tmp_path / "absent") == []


def test_text_is_utf_8_with_plain_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "café\nsnow\n")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xc3\xa9\nsnow\n"


def test_a_tensor_file_is_whole_and_can_be_read_by_everyone(tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "a.safetensors"
    transposed = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    save_tensors({"x": transposed}, path, {"made": "here"})
    assert torch.equal(load_file(path)["x"], transposed)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


# --- progress ---------------------------------------------------------------------------------------------------------


def test_silence_says_nothing_and_a_tally_counts_what_several_functions_did():
    assert SILENT.text(1, 2) is SILENT.picture(1, 2) is SILENT.step(1, 0.5) is None
    seen = []

    class Count(Progress):
        def picture(self, *at):
            seen.append(at)

    tally = Tally(Count(), 5)
    for count in (2, 0, 3):
        tally.add(count)
    assert seen == [(2, 5), (2, 5), (5, 5)]


def test_what_is_left_is_told_in_words_from_the_speed_of_this_run(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hgr.core.progress.time.monotonic", lambda: now[0])
    estimate, said = Estimate(), []
    for seconds, done in ((0, 6000), (1, 6100), (9, 7000), (10, 12000), (0, 0), (40, 2000)):
        now[0] += seconds
        said.append(estimate.left(done, 12000))
    # 6,000 were there already; then another count begins
    assert said == ["", "", "about 1 minute left", "", "", "about 3 minutes left"]
    told = {49: "less than a minute", 60: "about 1 minute", 130: "about 2 minutes", 5300: "about 88 minutes"}
    assert {seconds: in_words(seconds) for seconds in told} == told and in_words(7300) == "about 2 hours"


def test_a_phase_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        SILENT.phase("painting 16 pictures")
    assert caplog.messages == ["painting 16 pictures"]
