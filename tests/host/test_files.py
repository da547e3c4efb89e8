"""Files by their names: which names can be saved, where the file goes, and what a name from a client reaches."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.oldest


@pytest.fixture()
def hgr_folders(pack):
    """The host's list of hgr folders, which a test may change."""
    import folder_paths

    paths = folder_paths.folder_names_and_paths["hgr"][0]
    before = paths[:]
    folder_paths.filename_list_cache.clear()
    yield paths
    paths[:] = before
    folder_paths.filename_list_cache.clear()


@pytest.fixture()
def extra(hgr_folders, tmp_path):
    """An hgr folder of the user's extra paths that comes before models/hgr."""
    hgr_folders.insert(0, str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


@pytest.mark.parametrize(
    "name", ["mine", "Träume 2.1", "my-hgr_v2.safetensors", "字" * 60, "COMRADE", "con_1", "a. "], ids=ascii
)
def test_a_name_for_every_system_is_taken(pack, hgr, extra, name):
    assert pack.files.name_fault(name) is None
    saved = pack.files.save_hgr(hgr, name)
    assert (extra / saved).is_file() and saved.count(".safetensors") == 1 and len(saved.encode()) <= 216
    assert pack.files.load_hgr(saved).ids == hgr.ids
    assert [p.name for p in extra.iterdir()] == [saved], "no temporary file stays"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "Windows keeps it") for name in ("CON", "nul", "Com1", "LPT¹", "con.safetensors", "AUX.v2", "prn .x")),
        ("字" * 100, "300 bytes; at most 200"),
        ("x" * 101, "1 to 100 letters"),
        *((name, "1 to 100 letters") for name in ("../x", "a/b", "a\\b", "..\\x", "C:x", "", ".x", " x", "a\0", "a\n")),
        *((name, "1 to 100 letters") for name in ("a:stream", "x" * 5000, "\ud800", "a*", "-x")),
    ],
    ids=lambda given: ascii(given)[:20],
)
def test_a_name_that_some_system_does_not_take_is_refused_before_anything_is_written(pack, hgr, extra, name, why):
    from importlib import import_module

    node = import_module(f"{pack.root.__name__}.nodes.train").SafeCFGSaveHGR
    said = node.validate_inputs(name)
    assert isinstance(said, str) and "cannot be a file name" in said and why in said and len(said) < 250
    said.encode()
    with pytest.raises(ValueError, match="cannot be a file name"):
        pack.files.save_hgr(hgr, name)
    assert not extra.exists()


def test_save_hgr_says_the_folder_that_it_saved_to(pack, hgr, hgr_folders, tmp_path):
    from importlib import import_module

    node = import_module(f"{pack.root.__name__}.nodes.train").SafeCFGSaveHGR

    def said() -> str:
        return node.execute(hgr=hgr, name="where").ui.as_dict()["text"][0]

    assert said() == "Saved as models/hgr/where.safetensors"
    hgr_folders.insert(0, str(tmp_path / "extra"))
    assert said() == f"Saved as {(tmp_path / 'extra' / 'where.safetensors').as_posix()}"
    Path(hgr_folders[-1], "where.safetensors").unlink()


def test_30_files_by_two_savers_of_one_name_are_30_files(pack, hgr, extra):
    saved = [[], []]

    def save(who: int) -> None:
        for _ in range(15):
            saved[who].append(pack.files.save_hgr(hgr, "same"))

    threads = [threading.Thread(target=save, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {"same.safetensors", *(f"same_{n}.safetensors" for n in range(2, 31))}
    assert {*saved[0], *saved[1]} == names == {p.name for p in extra.iterdir()}


def test_what_a_killed_saver_left_long_ago_is_removed(pack, hgr, extra):
    extra.mkdir()
    left, others = extra / "old.safetensors.safecfg-0123456789abcdef.part", extra / "download.part"
    for path in (left, others):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    pack.files.save_hgr(hgr, "mine")
    assert sorted(p.name for p in extra.iterdir()) == ["download.part", "mine.safetensors"]


def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(pack, hgr, extra):
    extra.write_text("a file, where the folder should be")
    with pytest.raises(OSError, match=f"^mine.safetensors cannot be written to {extra} .*choose another folder"):
        pack.files.save_hgr(hgr, "mine")


def test_a_name_with_the_separators_of_another_system_finds_the_file(pack, hgr, extra):
    """A graph that was made on Windows names files in folders with a backslash."""
    pack.file.save(hgr, extra / "styles" / "mine.safetensors")
    for name in ("styles/mine.safetensors", "styles\\mine.safetensors"):
        assert pack.loader.SafeCFGHGRLoader.validate_inputs(name) is True
        loaded = pack.files.load_hgr(name)
        assert loaded.ids == hgr.ids and loaded.name == name, "errors call it as the user does"
    for name in ("styles\\..\\styles\\mine.safetensors", "..\\elsewhere\\styles\\mine.safetensors", "", "\\", 5, None):
        assert pack.files.hgr_path(name) is None


def test_a_file_that_goes_meanwhile_is_named_without_its_folder(pack, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        pack.files.stamp_of(tmp_path / "gone.safetensors")
    assert "gone.safetensors" in str(error.value) and str(tmp_path) not in str(error.value)
