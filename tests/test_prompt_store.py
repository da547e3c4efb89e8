"""Encoded prompts on disk: what is kept is what was encoded, whatever happened to the process, the file or the disk."""

import pytest
import torch
from disk import small_files
from test_training import Interrupted, assert_equal, toy_denoiser, toy_encode, toy_pairs, train_toy

from hgr.core.atomic import WriteError
from hgr.core.prompt import Prompt
from hgr.training.encoded_prompts import EncodedPrompts
from hgr.training.prompt_store import MAGIC, PromptStore, is_store
from hgr.training.settings import HGRSettings
from hgr.training.work_files import features_file, resumable

KEY = "0123456789abcdef"
SMALL = HGRSettings(steps=4, batch_size=8, losses="text", false_positive_rate=5.0, width=32, depth=1, pictures=0)


def prompt(tokens, *, pooled=False, mask=False):
    generator = torch.Generator().manual_seed(tokens)
    return Prompt(
        torch.randn(1, tokens, 3, generator=generator).half(),
        torch.randn(1, 5, generator=generator) if pooled else None,
        torch.rand(1, tokens, generator=generator) < 0.5 if mask else None,
    )


PROMPTS = {
    "a": prompt(2),
    "with all": prompt(5, pooled=True, mask=True),
    "🐉\ud800": prompt(1, mask=True),
    "d": prompt(4, pooled=True),
}


def filled(path):
    store = PromptStore(path, KEY)
    for text, each in PROMPTS.items():
        store.add(text, each)
    store.close()
    return path


def assert_held(store, texts):
    halves = store.features()
    for text in texts:
        row, (x, pooled, mask) = store[text], PROMPTS[text]
        assert torch.equal(halves[row.start :][: x.numel()].view(row.shape), x[0])
        assert (row.pooled is None) == (pooled is None) and (row.mask is None) == (mask is None)
        assert pooled is None or torch.equal(row.pooled, pooled[0])
        assert mask is None or torch.equal(row.mask, mask[0])


def test_after_a_kill_at_any_byte_all_whole_prompts_are_there_and_the_rest_can_be_added(tmp_path):
    whole = filled(tmp_path / "whole.bin").read_bytes()
    found = []
    for size in range(len(whole) + 1):
        path = tmp_path / "cut.bin"
        path.write_bytes(whole[:size])
        store = PromptStore(path, KEY)
        left = [text for text in PROMPTS if text in store]
        found.append(len(left))
        assert left == list(PROMPTS)[: len(left)], "those that were written first"
        for text, each in PROMPTS.items():
            if text not in store:
                store.add(text, each)
        assert_held(store, PROMPTS)
        assert path.read_bytes() == whole
    assert found == sorted(found) and set(found) == {0, 1, 2, 3, 4} and found[-2] == 3


def test_what_is_damaged_is_cut_off_and_what_is_foreign_is_replaced(tmp_path):
    whole = filled(tmp_path / "x.bin").read_bytes()
    for at in range(len(whole)):
        path = tmp_path / "damaged.bin"
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        store = PromptStore(path, KEY)
        assert len(store.rows) < 4, "a wrong byte is found wherever it is"
        if store.rows:
            assert_held(store, list(PROMPTS)[: len(store.rows)])
    for tail in (b"\0", b"half a record", b"\xff" * 999):
        path.write_bytes(whole + tail)
        assert_held(PromptStore(path, KEY), PROMPTS)
        assert path.read_bytes() == whole
    for content in (
        b"",
        b"\0" * 5000,
        b"\x80\x04pickled",
        MAGIC + b"another encoder!" + whole[32:],
        whole[:40] + b"\xff" * 40,
    ):
        path = tmp_path / "foreign.bin"
        path.write_bytes(content)
        store = PromptStore(path, KEY)
        assert not store.rows
        store.add("a", PROMPTS["a"])
        assert_held(store, ["a"])
        assert is_store(path) and len(PromptStore(path, KEY).rows) == 1 and not PromptStore(path, KEY[::-1]).rows


def test_a_full_disk_keeps_what_was_there(tmp_path):
    path = filled(tmp_path / "x.bin")
    size = path.stat().st_size
    store = PromptStore(path, KEY)
    with small_files(size + 50), pytest.raises(WriteError, match="the encoded prompts cannot be written to"):
        store.add("long", prompt(40))
    assert path.stat().st_size == size
    store.add("long", prompt(40))
    assert len(PromptStore(path, KEY).rows) == 5


class Counting:
    """An encoder that counts its calls and the texts in them."""

    def __init__(self, encode=toy_encode):
        self.encode, self.calls, self.texts = encode, 0, []

    def __call__(self, texts):
        self.calls += 1
        self.texts += texts
        return self.encode(texts)


TEXTS = [f"a house number {i}" for i in range(100)]


def test_an_encoder_is_called_once_for_32_prompts_and_never_twice_for_one(tmp_path):
    encode = Counting()
    with torch.no_grad():
        EncodedPrompts(TEXTS + TEXTS[::-1], encode, tmp_path / "x.bin").close()
        first = encode.calls
        assert first == 4 + 3 and [text for text in encode.texts[3:]] == TEXTS, "three tell whose prompts these are"
        EncodedPrompts(TEXTS[::-1], encode, tmp_path / "x.bin").close()
    assert encode.calls == first + 3


def test_a_batch_that_is_half_there_is_encoded_as_it_was(tmp_path):
    """Encoders round by the batch; an interruption must change no bit."""

    def rounding(texts):
        return [Prompt(each.features + len(texts)) for each in toy_encode(texts)]

    whole = EncodedPrompts(TEXTS, rounding, tmp_path / "whole.bin")
    for n in (5, 40):
        with pytest.raises(KeyboardInterrupt):
            EncodedPrompts(TEXTS, rounding, tmp_path / "parts.bin", progress=Interrupted("text", n))
    parts = EncodedPrompts(TEXTS, rounding, tmp_path / "parts.bin")
    assert torch.equal(whole(TEXTS).features, parts(TEXTS).features)
    assert (tmp_path / "whole.bin").read_bytes() == (tmp_path / "parts.bin").read_bytes()


@pytest.mark.parametrize("kind", ["another encoder", "another limit"])
def test_prompts_of_another_encoder_or_length_are_not_used(tmp_path, kind):
    EncodedPrompts(TEXTS, toy_encode, tmp_path / "x.bin").close()
    other, limit = toy_encode, 20
    if kind == "another encoder":
        other = lambda texts: [Prompt(each.features * 1.001) for each in toy_encode(texts)]  # noqa: E731
    else:
        limit = 7
    found = EncodedPrompts(TEXTS, other, tmp_path / "x.bin", limit=limit)
    expected = torch.cat([each.features for each in other(TEXTS)])[:, :limit].half().float()
    assert torch.equal(found(TEXTS).features, expected)


@pytest.mark.parametrize("where", ["text", "step"])
def test_an_interrupted_training_encodes_only_what_is_missing_and_ends_as_a_whole_one(tmp_path, where):
    whole = train_toy(tmp_path / "whole", SMALL)
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "parts", SMALL, progress=Interrupted(where, 2))
    kept = [path.name for path in resumable(tmp_path / "parts", "hgr")]
    assert kept == ["features-0.bin"] if where == "text" else ["hgr.checkpoint.safetensors", "features-0.bin"]
    encode = Counting()
    assert_equal(whole, train_toy(tmp_path / "parts", SMALL, encode=encode))
    assert len(encode.texts) <= 6 if where == "step" else len(encode.texts) > 100
    assert is_store(features_file(tmp_path / "parts", 0)), "until its result is written"


def test_what_other_trainings_encoded_beside_changes_nothing(tmp_path):
    """A longer prompt or a mask of another training must not change the form of this one's batches."""
    path = features_file(tmp_path, 0)
    alone = EncodedPrompts(TEXTS, toy_encode, tmp_path / "alone.bin")(TEXTS)

    def masked(texts):
        found = toy_encode(texts)
        return [
            Prompt(torch.cat([x, x], 1), None, torch.arange(40)[None] < 3) if text.startswith("long") else Prompt(x)
            for text, (x, *_) in zip(texts, found, strict=True)
        ]

    EncodedPrompts(["long one", *TEXTS], masked, path).close()
    beside = EncodedPrompts(TEXTS, masked, path)(TEXTS)
    assert torch.equal(alone.features, beside.features) and beside.mask is None


def test_pictures_and_prompts_are_resumed_together(tmp_path):
    settings = HGRSettings(**{**SMALL.__dict__, "losses": "attention", "pictures": 8})
    more = dict(pairs=toy_pairs(50), denoiser=toy_denoiser)
    whole = train_toy(tmp_path / "whole", settings, **more)
    for where in ("text", "picture", "step"):
        with pytest.raises(KeyboardInterrupt):
            train_toy(tmp_path / "parts", settings, progress=Interrupted(where, 2), **more)
    assert_equal(whole, train_toy(tmp_path / "parts", settings, **more))
