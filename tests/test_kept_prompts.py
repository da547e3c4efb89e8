"""What a finished training leaves to the next one: only what is new is encoded, and the folder does not grow."""

from __future__ import annotations

import os
import time

import pytest
import torch

from hgr.core.prompt import Prompt
from hgr.training import kept_prompts as module
from hgr.training.encoded_prompts import EncodedPrompts
from hgr.training.kept_prompts import kept_prompts
from hgr.training.work_files import KEPT_DAYS, features_file


class Encoder:
    """Counts the prompts that it encodes."""

    def __init__(self, shift: float = 0.0):
        self.shift, self.count = shift, 0

    def __call__(self, texts):
        self.count += len(texts)
        return [Prompt(torch.full((1, 4, 3), len(text) + self.shift), None, None) for text in texts]


@pytest.fixture
def train(tmp_path):
    def train(texts, name="a", encoder=None, fail=False):
        """A training's prompts; the number that was encoded for them."""
        encoder, work = encoder or Encoder(), tmp_path / name
        work.mkdir(exist_ok=True)
        with kept_prompts(tmp_path / "shelf", f"encoder {encoder.shift}", work):
            before = encoder.count
            encoded = EncodedPrompts(texts, encoder, features_file(work, 0))
            assert torch.equal(encoded(texts).features[:, 0, 0], torch.tensor([len(t) + encoder.shift for t in texts]))
            encoded.close()
            if fail:
                raise KeyboardInterrupt
        return encoder.count - before - 3  # which tell encoders apart

    return train


def test_the_next_training_encodes_only_what_is_new(train, tmp_path):
    first, more = [f"{i} one" for i in range(64)], [f"{i} three" for i in range(32)]
    assert (train(first), train([*first, *more], "b"), train([*more, *first], "c")) == (64, 32, 0)
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["encoder 0.0.bin"]
    assert train(first, "d", Encoder(shift=1.0)) == 64, "another encoder has its own"
    assert train(first, "e") == 0


def test_an_interrupted_training_has_it_alone_and_the_longer_one_stays(train, tmp_path):
    first, second = [f"{i} one" for i in range(64)], ["another"]
    train(first)
    with pytest.raises(KeyboardInterrupt):
        train(first, "stopped", fail=True)
    assert not list((tmp_path / "shelf").iterdir())
    assert train(second, "b") == 1
    assert train(first, "stopped") == 0, "it resumes from its own"
    assert train(second, "c") == 1 and train(first, "d") == 0


def test_old_ones_go_and_all_together_stay_below_the_limit(train, tmp_path, monkeypatch):
    shelf, now = tmp_path / "shelf", time.time()
    shelf.mkdir()
    for name, size, days in (("new", 500, 1), ("large", 600, 2), ("small", 300, 3), ("old", 9, KEPT_DAYS + 1)):
        (shelf / f"{name}.bin").write_bytes(b"\0" * size)
        os.utime(shelf / f"{name}.bin", (now - days * 86_400,) * 2)
    monkeypatch.setattr(module, "LIMIT", 1000)
    train(["one"])
    assert {path.stem for path in shelf.iterdir()} == {"encoder 0.0", "new", "small"}


def test_a_folder_that_cannot_be_written_only_costs_time(train, tmp_path):
    (tmp_path / "shelf").write_text("in the way")
    assert (train(["one"]), train(["one"], "b")) == (1, 1)
