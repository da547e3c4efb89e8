"""Trainings on the command line that are killed, run twice at once, or have no disk: what a user then finds."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from cli_kit import ENVIRONMENT, command, contents, kept, watch_bar, when
from disk import small_files
from kill_kit import PHASES

from hgr.core import file
from hgr.core.atomic import WriteError
from hgr.data.pair_file import write_pairs
from hgr.data.sources import demo_world
from hgr.demo import assets
from hgr.training.work_files import KEPT_DAYS

HERE = Path(__file__).parent
QUICK = ["--steps", 6, "--batch-size", 8, "--width", 32, "--depth", 1, "--false-positive-rate", 10, "--losses", "text"]


def assert_equal(one: Path, two: Path) -> None:
    (ours, about), (theirs, other) = contents(one), contents(two)
    assert about == other and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder in which `kill_kit` has trained."""
    if not hasattr(os, "fork"):
        pytest.skip("Windows has no fork")
    home = tmp_path_factory.mktemp("killed")
    words = [sys.executable, str(HERE / "kill_kit.py"), str(home)]
    done = subprocess.run(words, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.slow
@pytest.mark.parametrize(("what", "phase"), [(what, phase) for what in PHASES for phase in PHASES[what]])
def test_what_is_killed_goes_on_where_it_can_and_ends_as_if_it_had_not_been(killed, what, phase):
    found = json.loads((killed / "found.json").read_text())[f"{what} {phase}"]
    assert found["killed"] == -signal.SIGKILL and found["code"] == 0
    folder = killed / what / phase
    assert_equal(folder / "out.safetensors", killed / what / "whole" / "out.safetensors")
    events = json.loads((folder / "events.json").read_text())
    painted, first = ["pictures", 0] in events, next((done for name, done in events if name == "steps"), None)
    assert painted == (phase in ("encoding", "painting"))
    if what != "probe":
        assert first == {"a step": 4, "a checkpoint": 3, "the probe": None, "the result": None}.get(phase, 1)
        assert names(folder / "work") == ["logs", "training.json"]
    assert names(folder) == ["events.json", "out.safetensors", *(["work"] if what != "probe" else [])]
    parts = [name for name in found["left"] if name.endswith(".part")]
    assert bool(parts) == (phase == "a checkpoint"), "killed as it wrote, and removed by the next run"
    if what != "probe":
        assert "features-0.bin" in found["left"]
        encoded = [done for name, done in events if name == "prompts"]
        assert encoded[:1] == ([6] if phase == "encoding" else []), "what is encoded is kept"


# --- twice at once ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    demo = demo_world(50)
    path = tmp_path_factory.mktemp("pairs") / "few.csv"
    skulls = type(demo)(demo.topics[:1], demo.of("skull"), demo.clean[:50])
    write_pairs(skulls, path)
    return path


def run(few: Path, folder: Path, *options: object, name: str = "out") -> tuple[int, Path]:
    output = folder / f"{name}.safetensors"
    return command("train", "--file", few, *QUICK, "--work", folder / "work", "--output", output, *options), output


@pytest.fixture(scope="module")
def alone(few, demo_pipe, tmp_path_factory):
    """The file of a training that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgr.hosts.diffusers.loading.load_demo_pipeline", lambda *_: demo_pipe)
        code, output = run(few, tmp_path_factory.mktemp("alone"))
    assert code == 0
    return output


@pytest.fixture
def train(few, loaded_once):
    return partial(run, few)


def last(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["--steps", 9]], ids=["the same", "another"])
def test_a_second_training_in_the_folder_of_one_that_runs_is_refused_and_the_first_ends_as_alone(
    train, alone, options, tmp_path, monkeypatch, capsys
):
    codes, said, begun = [], [], []

    def second():
        if not begun:  # it comes here itself, where it is not refused
            begun.append(True)
            codes.append(train(tmp_path, *options, name="second")[0])
            said.append(last(capsys))

    when(monkeypatch, "steps", 3, second)
    code, output = train(tmp_path)
    assert codes == [2] and code == 0 and not (tmp_path / "second.safetensors").exists()
    assert said == [
        f"hgr: a training is already running in --work {tmp_path / 'work'}: wait until it ends, or choose another "
        "--work."
    ]
    assert_equal(alone, output)


def test_a_second_probe_of_one_name_is_refused(few, tmp_path, monkeypatch, capsys, loaded_once):
    monkeypatch.setattr("hgr.hosts.diffusers.denoiser._STEPS", 1)
    words = ["--hgr", assets.HGR_FILE, "--demo", "--limit", 50, "--pictures", 8, "--output", tmp_path / "x.safetensors"]
    codes, begun = [], []

    def second():
        if not begun:
            begun.append(True)
            codes.append(command("probe", *words))

    when(monkeypatch, "pictures", 8, second)
    command("probe", *words)
    assert codes == [2] and "x.safetensors is being made by another process" in capsys.readouterr().err


# --- what is left -----------------------------------------------------------------------------------------------------


def test_what_nobody_can_resume_is_removed_and_what_is_the_users_stays(train, tmp_path, caplog):
    work = tmp_path / "work"
    work.mkdir()
    old = time.time() - (KEPT_DAYS + 1) * 86_400
    for name in ("mine.safetensors", "pictures-2026.old.safetensors", "features-mine.bin", "lora.checkpoint.txt"):
        (work / name).write_text("the user's")
        os.utime(work / name, (old, old))
    save_file({"latents": torch.zeros(3)}, work / "lora.checkpoint.safetensors")
    save_file({"latents": torch.zeros(3)}, work / "pictures-1.safetensors")
    os.utime(work / "pictures-1.safetensors", (old, old))
    (work / "pictures-3.safetensors").write_bytes((work / "pictures-1.safetensors").read_bytes()[:-4])
    (work / "hgr.checkpoint.safetensors.safecfg-0123456789abcdef.part").write_bytes(b"\0" * 1_000_000)
    (work / "features-0.bin").write_bytes(b"\0" * 1_000_000)
    (work / "training.json").write_text('{"steps": 7}')
    before = names(work)
    with caplog.at_level(logging.INFO):
        assert train(tmp_path)[0] == 0
    gone = set(before) - set(names(work))
    assert gone == {
        "pictures-1.safetensors",
        "pictures-3.safetensors",
        "hgr.checkpoint.safetensors.safecfg-0123456789abcdef.part",
        "features-0.bin",
    }, "a LoRA's checkpoint of today can be resumed"
    assert f"removed 2.0 MB that interrupted runs left in {work}" in caplog.text


def test_an_old_checkpoint_is_resumed_by_its_own_training_and_no_hindrance_to_another(
    train, tmp_path, monkeypatch, capsys
):
    def interrupted(folder):
        with monkeypatch.context() as patch:
            when(patch, "steps", 3)
            assert train(folder)[0] == 130
        checkpoint = folder / "work" / "hgr.checkpoint.safetensors"
        old = checkpoint.stat().st_mtime - (KEPT_DAYS + 1) * 86_400
        os.utime(checkpoint, (old, old))

    for folder in (tmp_path / "own", tmp_path / "other"):
        interrupted(folder)
    steps = watch_bar(monkeypatch, "steps")
    assert train(tmp_path / "own")[0] == 0 and steps[0] == (4, 6)
    del steps[:]
    assert train(tmp_path / "other", "--steps", 5)[0] == 0 and steps[0] == (1, 5)


# --- stopped from outside, and without a disk -------------------------------------------------------------------------


def test_sigterm_leaves_a_checkpoint_as_ctrl_c_does(train, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        when(patch, "steps", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(tmp_path)[0] == 130
    assert last(capsys) == kept(tmp_path / "work" / "hgr.checkpoint.safetensors")
    assert signal.getsignal(signal.SIGTERM) is before
    steps = watch_bar(monkeypatch, "steps")
    assert train(tmp_path)[0] == 0 and steps == [(4, 6), (5, 6), (6, 6)]


def full(*_, **__):
    raise WriteError(Path("/disk/x.safetensors"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_a_disk_that_is_full_at_the_end_is_one_sentence_and_costs_no_training(
    train, alone, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(file, "save", full)
        assert train(tmp_path)[0] == 2
    assert last(capsys) == (
        "hgr: x.safetensors cannot be written to /disk (No space left on device): free some disk space there, then try "
        "again."
    )
    steps = watch_bar(monkeypatch, "steps")
    code, output = train(tmp_path)
    assert code == 0 and not steps and names(tmp_path / "work") == ["logs", "training.json"]
    assert_equal(alone, output)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_disk_that_is_full_before_the_end_costs_checkpoint_and_logs_and_not_the_training(
    train, alone, tmp_path, monkeypatch, caplog
):
    """Really full: no file of the training grows beyond a size in its steps."""
    monkeypatch.setattr("hgr.training.loop.CHECKPOINT_SECONDS", 0.0)
    limits = []

    def fills():
        limits.append(small_files(10))
        limits[0].__enter__()

    when(monkeypatch, "steps", 2, fills)
    when(monkeypatch, "steps", 5, lambda: limits[0].__exit__(None, None, None))
    code, output = train(tmp_path)
    assert code == 0 and "hgr: there is no checkpoint at step 3" in caplog.text
    assert_equal(alone, output)


def test_a_disk_that_is_full_while_it_encodes_is_one_sentence(train, tmp_path, capsys, monkeypatch):
    limit = small_files(50_000)
    when(monkeypatch, "prompts", 2, limit.__enter__)
    try:
        code, output = train(tmp_path)
    finally:
        limit.__exit__(None, None, None)
    assert code == 2 and not output.exists() and names(tmp_path / "work") == ["features-0.bin", "training.json"]
    assert last(capsys).startswith(f"hgr: the encoded prompts cannot be written to {tmp_path / 'work'} (")


def test_a_work_folder_that_cannot_be_made_is_one_sentence(train, tmp_path, capsys):
    (tmp_path / "work").write_text("in the way")
    assert train(tmp_path)[0] == 2
    assert f"cannot be written to {tmp_path / 'work'} (" in (said := last(capsys)) and "choose another folder" in said


def test_an_interruption_without_a_disk_says_what_is_kept(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgr.training.loop.save_tensors", full)
    when(monkeypatch, "steps", 3)
    assert train(tmp_path)[0] == 130
    features = tmp_path / "work" / "features-0.bin"
    said = f"hgr: interrupted without a checkpoint; {features} is kept. Run the same command again to resume."
    assert last(capsys) == said


def test_a_lora_that_its_file_cannot_hold_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgr.hosts.diffusers.denoiser._STEPS", 2)
    monkeypatch.setattr(
        "hgr.hosts.diffusers.finetune.lora_state_dict", lambda _: {"x": torch.tensor([1e6]).to(torch.float16)}
    )
    (tmp_path / "p.txt").write_text("a ball\na skull\n")
    words = ["--steps", 2, "--batch-size", 2, "--rank", 2, "--pictures", 8, "--evidence", "prompt"]
    words += ["--prompts", tmp_path / "p.txt", "--work", tmp_path / "work", "--output", tmp_path / "out.safetensors"]
    assert command("finetune", *words) == 2 and not (tmp_path / "out.safetensors").exists()
    assert "the LoRA's weights in half precision are not finite, so nothing is written" in last(capsys)
