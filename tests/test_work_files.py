"""A training's folder: one training at a time, whatever happened to the one before, and nothing in it for ever."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest
import torch
from safetensors.torch import save_file

from hgr.core.atomic import WriteError
from hgr.training import work_files
from hgr.training.prompt_store import MAGIC
from hgr.training.work_files import KEPT_DAYS, AlreadyRunning, hold, lock_file, sweep


def taken(path) -> bool:
    try:
        with hold(path, "taken"):
            return False
    except AlreadyRunning as error:
        assert str(error) == "taken"
        return True


def test_only_what_can_be_resumed_is_kept_and_for_days(tmp_path):
    now = time.time()
    files = {"hgr.checkpoint.safetensors": now, "pictures-0.safetensors": now - (KEPT_DAYS - 1) * 86_400}
    files |= {"lora.checkpoint.safetensors": now - (KEPT_DAYS + 1) * 86_400}
    for name, modified in files.items():
        save_file({"x": torch.zeros(9)}, tmp_path / name)
        os.utime(tmp_path / name, (modified, modified))
    size = (tmp_path / "lora.checkpoint.safetensors").stat().st_size
    (tmp_path / "pictures-1.safetensors").write_bytes((tmp_path / "pictures-0.safetensors").read_bytes()[:-1])
    (tmp_path / "pictures-2.safetensors").write_bytes(b"")
    (tmp_path / "pictures-0.safetensors.safecfg-0123456789abcdef.part").write_bytes(b"\0" * 1000)
    own = [tmp_path / "lora.checkpoint.safetensors"]
    assert sweep(tmp_path, resumed=own) == size - 1 + 1000
    assert {path.name for path in tmp_path.iterdir()} == files.keys()
    assert sweep(tmp_path) == size and not own[0].exists()
    assert sweep(tmp_path) == 0 and len(list(tmp_path.iterdir())) == 2


def test_encoded_prompts_of_other_trainings_are_kept_for_two_days(tmp_path):
    now = time.time()
    for name, days in {"features-0.bin": 1, "features-1.bin": 3}.items():
        (tmp_path / name).write_bytes(MAGIC + b"0" * 16)
        os.utime(tmp_path / name, (now - days * 86_400,) * 2)
    (tmp_path / "features-2.bin").write_bytes(b"something else")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["features-0.bin"]


def test_one_holds_a_folder_and_then_another_and_nothing_is_left(tmp_path):
    work = tmp_path / "new" / "work"
    for _ in range(2):
        with hold(lock_file(work), ""):
            assert taken(lock_file(work)) and not taken(lock_file(work, 1)), "the processes of a training have one each"
        assert not taken(lock_file(work)) and not list(work.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_the_lock_dies_with_its_process(tmp_path):
    path = lock_file(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with hold(path, ""):
            os.write(writing, b"held")
            signal.pause()
    held = os.read(reading, 4) == b"held" and taken(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert held and path.exists() and not taken(path)


def test_a_lock_file_that_its_holder_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    path, lock, calls = lock_file(tmp_path), work_files._lock, []

    def late(file):
        calls.append(file)
        if len(calls) == 1:  # it was opened, and then the one who held it was done
            path.unlink()
        lock(file)

    monkeypatch.setattr(work_files, "_lock", late)
    with hold(path, ""):
        assert len(calls) == 2 and path.exists() and taken(path)


def test_a_drive_without_locks_is_said_and_can_be_trained_on(tmp_path, monkeypatch, caplog):
    def none(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(work_files, "_lock", none)
    with hold(lock_file(tmp_path), ""):
        assert "cannot be locked (No locks available): do not use it twice at once" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "work").write_text("in the way")
    with (
        pytest.raises(WriteError, match="training-0.lock cannot be written to .*work"),
        hold(lock_file(tmp_path / "work"), ""),
    ):
        pass
