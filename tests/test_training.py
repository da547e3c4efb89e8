"""Losses, calibration and the loop: training learns, an interruption changes nothing, a NaN loses nothing."""

import random
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from disk import small_files
from helpers import prompt, safe_features
from torch import nn

from hgr.core.atomic import WriteError
from hgr.core.denoiser import Denoiser
from hgr.core.hgr import Concept, HGRError
from hgr.core.progress import Progress
from hgr.core.prompt import Prompt
from hgr.data.examples import Examples
from hgr.data.pairs import Pair, Pairs, Topic
from hgr.data.textfile import DataError
from hgr.training import train_hgr as training
from hgr.training import train_probe as probing
from hgr.training.attention import cross_attention, record
from hgr.training.calibration import calibrate, platt, thresholds
from hgr.training.encoded_prompts import EncodedPrompts
from hgr.training.hgr_report import hgr_report
from hgr.training.loop import Loop, Processes
from hgr.training.losses import attention_distances, attention_loss, score_loss
from hgr.training.pictures import paint
from hgr.training.settings import HGR_STAGE, HGRSettings, check_pairs
from hgr.training.train_hgr import train_hgr
from hgr.training.work_files import resumable


def line(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def new_loop(stage, module, work, **more):
    return Loop(stage, module, work, steps=20, learning_rate=0.1, seed=0, **more)


class Steps(Progress):
    """Notes the steps that are done and their losses, and interrupts after one of them."""

    def __init__(self, stop_at=None):
        self.stop_at, self.done, self.losses = stop_at, [], []

    def step(self, done, loss):
        self.done.append(done)
        self.losses.append(loss)
        if done == self.stop_at:
            raise KeyboardInterrupt


def squares(module):
    return lambda rng, generator: module(torch.randn(8, 3, generator=generator)).sub(rng.random()).square().mean()


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    whole = line()
    new_loop("a", whole, tmp_path).run(squares(whole))
    half = line()
    first = new_loop("b", half, tmp_path)
    first.stage = "a"  # the same random numbers
    calls = squares(half)

    def interrupted(rng, generator):
        if first.step == 9:
            raise KeyboardInterrupt
        return calls(rng, generator)

    with pytest.raises(KeyboardInterrupt):
        first.run(interrupted)
    resumed = line(seed=5)
    second = new_loop("b", resumed, tmp_path)
    second.stage = "a"
    assert second.step == 9
    second.run(squares(resumed))
    assert torch.equal(whole.weight, resumed.weight)


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("hgr.training.loop.CHECKPOINT_SECONDS", 0.0)
    module = line()
    loop = new_loop("x", module, tmp_path)
    good = squares(module)
    with pytest.raises(FloatingPointError, match="step 7"):
        loop.run(lambda rng, generator: good(rng, generator) * (torch.nan if loop.step == 7 else 1))
    resumed = line()
    assert new_loop("x", resumed, tmp_path).step == 7
    assert torch.equal(resumed.weight, module.weight) and resumed.weight.isfinite().all()


def test_platt_calibrates_and_the_threshold_holds_its_rate():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, generator=generator) * 2
    labels = (torch.rand(20_000, generator=generator) < (0.5 * logits - 1).sigmoid()).float()
    scale, bias = platt(logits, labels)
    assert abs(scale - 0.5) < 0.05 and abs(bias + 1) < 0.1
    gates = torch.rand(10_000, generator=generator)
    for overlap in (1.0, 0.0):  # two concepts that fire on the same clean prompts, and two that do not
        both = torch.stack([gates, gates * overlap + gates.roll(1) * (1 - overlap)], 1)
        fired = (both >= torch.tensor(thresholds(both, 0.1))).any(1)
        assert abs(fired.float().mean() - 0.1) < 0.01
    assert thresholds(torch.zeros(10, 1), 0.01) == [0.3], "classes that are apart"
    assert 0.999 < thresholds(torch.ones(10, 1), 0.01)[0] < 1, "as high as the rate needs"
    with pytest.raises(ValueError, match="false-positive"):
        thresholds(gates[:, None], 0)


def test_the_stated_rate_holds_on_new_clean_prompts_though_few_were_seen():
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(60):
        # six concepts that fire on different prompts, of which some are noisier
        seen, new = (
            torch.sigmoid(torch.randn(n, 6, generator=generator) * torch.arange(1, 7) / 3) for n in (200, 4000)
        )
        rates.append((new >= torch.tensor(thresholds(seen, 0.02))).any(1).float().mean())
    assert 0.01 < torch.stack(rates).mean() < 0.022
    strict = [thresholds(seen, rate)[5] for rate in (0.02, 0.004, 0.002, 0.001)]
    assert strict == sorted(strict) and strict[-1] > strict[1], (
        "a rate that 200 prompts cannot show must still be stricter"
    )


def test_a_concept_with_a_long_tail_does_not_silence_the_others():
    generator = torch.Generator().manual_seed(0)
    tails = torch.randn(2000, 3, generator=generator)
    tails[:, 0] = tails[:, 0] + torch.where(torch.rand(2000, generator=generator) < 0.03, 12.0, 0.0)
    limits = torch.logit(torch.tensor(thresholds(torch.sigmoid(tails), 0.01)))
    fired = (tails >= limits).float().mean(0)
    assert limits[0] > 9 and limits[1:].max() < 4, "the others find what lies above their own clean prompts"
    assert fired.sum() <= 0.012


def test_each_sensitivity_is_stricter_than_the_next_also_where_classes_are_apart():
    scores, labels = (
        torch.tensor([[9.0], [8.0], [-9.0], [-8.0]] * 60),
        torch.tensor([[True], [True], [False], [False]] * 60),
    )
    (concept,) = calibrate(
        [Concept("a", "A")], scores, labels, judged=torch.ones_like(labels), clean=scores[~labels[:, 0]], rate=0.01
    )
    assert (
        list(concept.levels) == sorted(set(concept.levels), reverse=True)
        and concept.levels[2] == concept.threshold == 0.3
    )


def test_a_checkpoint_of_another_training_is_not_resumed(tmp_path):
    module = line()
    loop = new_loop("x", module, tmp_path, made_for="one", progress=Steps(stop_at=3))
    with pytest.raises(KeyboardInterrupt):
        loop.run(squares(module))
    assert new_loop("x", line(), tmp_path, made_for="one").step == 3
    with pytest.raises(ValueError, match="other settings"):
        new_loop("x", line(), tmp_path, made_for="two")
    loop.path.write_bytes(loop.path.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        new_loop("x", line(), tmp_path, made_for="one")


class Attention(nn.Module):
    """The shape that diffusers' and ComfyUI's cross-attention share."""

    def __init__(self):
        super().__init__()
        self.heads = 2
        self.to_q, self.to_k, self.to_v = (nn.Linear(n, 8, bias=False) for n in (8, 16, 16))
        self.to_out = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, hidden_states, context):
        q, k, v = (
            x.unflatten(-1, (2, 4)).transpose(1, 2)
            for x in (self.to_q(hidden_states), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn1, self.attn2 = Attention(), Attention()
        self.middle_block = nn.Sequential(self.attn1, self.attn2)

    def forward(self, z, context):
        return self.attn2(z, context)


def test_a_recorded_layer_is_the_denoisers_own():
    unet, z, context = Unet(), torch.randn(1, 5, 8), prompt(1)
    modules = cross_attention(unet)
    assert modules == [unet.attn2]
    generator = torch.Generator().manual_seed(0)
    (layer,) = record(modules, lambda: unet(z, torch.randn(1, 6, 16)), queries=99, generator=generator)
    torch.testing.assert_close(layer(context).sort(1).values, unet(z, context).sort(1).values)
    with pytest.raises(ValueError, match='choose the losses "text"'):
        cross_attention(nn.Linear(2, 2))


def test_attention_and_score_losses_are_shares_of_the_original_distance():
    torch.manual_seed(0)
    unet = Unet()
    generator = torch.Generator().manual_seed(0)
    layers = record(
        [unet.attn2], lambda: unet(torch.randn(3, 5, 8), torch.randn(3, 6, 16)), queries=7, generator=generator
    )
    assert layers[0].queries.shape == (7, 8)
    harmful, clean = prompt(2), prompt(2, seed=5)
    distances = attention_distances(layers, harmful, clean)
    predict = lambda f: f.square().sum(1)  # noqa: E731
    for loss in (
        lambda s: attention_loss(layers, s, clean, distances=distances),
        lambda s: score_loss(predict(s), predict(clean), predict(harmful)),
    ):
        assert loss(clean).item() == 0
        assert loss(harmful).item() == pytest.approx(1, abs=0.5)


# --- a toy text encoder: a word is a vector, the first token is fixed, the last one knows all words -------------------

CONCEPTS = {"bomb": "ball", "skull": "apple"}
THINGS = [
    f"{a} {b}"
    for a in ("red", "old", "big", "tiny", "wet", "fine", "odd", "flat")
    for b in ("house", "tree", "car", "lamp", "cat", "boat", "hat")
]


@cache
def word(text, width=16):
    return torch.randn(width, generator=torch.Generator().manual_seed(sum(map(ord, text)) * 7 + len(text)))


def toy_encode(texts, pooled=False, varied=False):
    prompts = []
    for text in texts:
        words = text.replace(",", "").split()[:19]
        tokens = [torch.ones(16), *map(word, words)]
        if not varied:
            tokens += [torch.full((16,), -1.0) + sum(map(word, words), torch.zeros(16))] * (20 - len(tokens))
        x = torch.stack(tokens)[None]
        prompts.append(Prompt(x, x.mean(1) if pooled else None))
    return prompts


def toy_pairs(count=56):
    topics = tuple(Topic(name, name.title()) for name in CONCEPTS)
    pairs = tuple(
        Pair(name, f"{thing} and {name}", f"{thing} and {twin}", f"{name}{i}")
        for name, twin in CONCEPTS.items()
        for i, thing in enumerate(THINGS[:count])
    )
    return Pairs(topics, pairs, tuple(f"{a} by {b}" for a in THINGS for b in THINGS[::8]))


TOY = HGRSettings(
    steps=500, batch_size=16, learning_rate=4e-3, losses="text", false_positive_rate=5.0, width=32, depth=1, pictures=8
)


def train_toy(work, settings=TOY, *, pairs=None, encode=toy_encode, **more):
    return train_hgr(toy_pairs() if pairs is None else pairs, encode, settings, family="a toy", work=work, **more)


@pytest.mark.parametrize("kind", ["plain", "pooled", "varied"])
def test_training_finds_the_concepts_moves_their_features_and_leaves_the_rest(tmp_path, kind):
    options = dict(pooled=kind == "pooled", varied=kind == "varied")
    encode = lambda texts: toy_encode(texts, **options)  # noqa: E731
    steps = Steps()
    hgr = train_toy(tmp_path, encode=encode, progress=steps)
    assert steps.done == list(range(1, TOY.steps + 1))
    assert sorted(tmp_path.iterdir()) == sorted(resumable(tmp_path, HGR_STAGE)), "only what it is resumed from"
    assert (
        hgr.ids == ["bomb", "skull"]
        and hgr.encoder.family == "a toy"
        and hgr.network.pooled_dim == (16 if kind == "pooled" else 0)
    )
    harmful, clean, both, skull_only = (
        encode([text])[0]
        for text in (
            "huge dog and bomb",
            "huge dog and ball",
            "huge dog and bomb, huge dog and skull",
            "huge dog and ball, huge dog and skull",
        )
    )
    found = lambda p: (hgr.read(*p).prompt_gates[0] >= hgr.thresholds).tolist()  # noqa: E731
    bomb, skull = hgr.read(*harmful).prompt_gates[0].tolist()
    assert bomb > 10 * skull
    assert found(harmful)[0] and found(clean) == [False, False] and found(both) == [True, True]
    safe = safe_features(hgr, *harmful[:2])
    assert (safe - clean.features).square().sum() < 0.4 * (harmful.features - clean.features).square().sum()
    assert safe_features(hgr, *clean[:2]) is clean.features
    alone = safe_features(hgr, *both[:2], strengths=torch.tensor([1.0, 0.0]))
    assert (alone - skull_only.features).square().sum() < 0.6 * (both.features - skull_only.features).square().sum()
    metrics = hgr.training["metrics"]
    assert (
        metrics["concepts"]["bomb"]["auroc_twins"] > 0.98
        and metrics["concepts"]["bomb"]["auroc_others"] > 0.8
        and metrics["flagged_clean"] <= 0.05
        and "against other concepts 1.0000" in hgr_report(hgr)
    )


def toy_denoiser():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = Unet().requires_grad_(False)

    def at(latents, percent, noise):
        place = percent[:, None, None]
        return lambda features, pooled: unet(place * latents + (1 - place) * noise, features) - noise

    noise = torch.Generator()

    def paint(prompts, first):
        if not first:
            noise.manual_seed(0)
        for at in range(first, len(prompts), 2):
            drawn = [word(text, 40).view(5, 8) for text in prompts[at : at + 2]]
            yield torch.stack([x + torch.randn(5, 8, generator=noise) / 10 for x in drawn])

    return Denoiser(unet, at, paint, noise=noise)


@pytest.mark.parametrize("losses", ["attention", "attention and score"])
def test_the_denoiser_losses_lower_what_they_measure(tmp_path, losses):
    steps = Steps()
    train_toy(tmp_path, replace(TOY, losses=losses, steps=60), denoiser=toy_denoiser, progress=steps)
    assert sum(steps.losses[-10:]) < 0.5 * sum(steps.losses[:10])


def test_the_same_seed_gives_the_same_hgr_also_through_an_interruption(tmp_path):
    settings = replace(TOY, steps=12)
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "a", settings, progress=Steps(stop_at=7))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["features-0.bin", "hgr.checkpoint.safetensors"]
    steps = Steps()
    a = train_toy(tmp_path / "a", settings, progress=steps)
    b = train_toy(tmp_path / "b", settings)
    assert steps.done[0] == 8
    assert_equal(a, b)


def assert_equal(a, b):
    weights = zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)
    assert all(torch.equal(x, y) for x, y in weights) and a.concepts == b.concepts and a.training == b.training


class Interrupted(Progress):
    """Interrupts at the nth call of a kind."""

    def __init__(self, kind, n):
        self.kind, self.left = kind, n

    def _count(self, kind):
        self.left -= kind == self.kind
        if not self.left:
            raise KeyboardInterrupt

    def text(self, done, total):
        self._count("text")

    def picture(self, done, total):
        self._count("picture")

    def step(self, done, loss):
        self._count("step")


def test_every_phase_has_its_name_and_its_count(tmp_path, monkeypatch):
    monkeypatch.setattr("hgr.training.train_probe.MIN_SHOWN", 1)

    class Phases(Interrupted):
        def __init__(self, kind="", n=-1):
            super().__init__(kind, n)
            self.names = []

        def phase(self, name):
            self.names.append(name)

    settings = replace(TOY, losses="attention", steps=6, pictures=16)
    first, second = Phases("step", 2), Phases()
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, settings, denoiser=toy_denoiser, progress=first)
    train_toy(tmp_path, settings, denoiser=toy_denoiser, progress=second)
    encoding, painting, recording, training = first.names
    assert re.fullmatch(r"encoding \d{3} prompts", encoding) and painting == "painting 16 pictures"
    assert training == "training 6 steps" and re.fullmatch(r"calibrating on \d+ held-out prompts", second.names[2])
    assert recording == "recording the model's attention in 24 passes"
    probe = "evaluating 16 pictures twice for the picture probe"
    assert second.names == [recording, "training 4 steps; 2 are done already", second.names[2], probe]
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "b", settings, denoiser=toy_denoiser, progress=Interrupted("text", 9))
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "b", settings, denoiser=toy_denoiser, progress=(third := Phases("picture", 3)))
    count = int(encoding.split()[1].replace(",", "")) - 9
    assert third.names == [f"encoding {count:,} prompts; 9 are encoded already", painting]
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "b", settings, denoiser=toy_denoiser, progress=(fourth := Phases("step", 1)))
    assert fourth.names[0] == "painting 12 pictures; 4 are painted already"


@pytest.mark.slow
def test_thirty_interruptions_at_random_change_nothing(tmp_path, monkeypatch):
    """While it encodes, while it paints, in the steps, and while it fits the probe."""
    monkeypatch.setattr("hgr.training.train_probe.MIN_SHOWN", 1)
    settings, pairs = replace(TOY, steps=64, pictures=16), toy_pairs(50)
    train = lambda work, **more: train_toy(work, settings, pairs=pairs, denoiser=toy_denoiser, **more)  # noqa: E731
    rng = random.Random(0)
    points = [("text", rng.randint(1, 30)) for _ in range(9)]
    points += [("picture", rng.randint(1, 2)) for _ in range(5)]  # of nine: at first none are painted, then two more
    points += [("step", rng.randint(1, 3)) for _ in range(15)]
    points += [("picture", 2)]  # the pictures are painted: these are the probe's
    for point in points:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", progress=Interrupted(*point))
    whole, parts = train(tmp_path / "whole"), train(tmp_path / "parts", progress=Steps(stop_at=1))
    assert_equal(whole, parts)
    assert torch.equal(whole.probe.weight, parts.probe.weight) and whole.probe.heads == parts.probe.heads


def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_the_training_ends_as_it_would(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("hgr.training.loop.CHECKPOINT_SECONDS", 0.0)
    whole, full = line(), line()
    new_loop("whole", whole, tmp_path / "whole").run(squares(whole))
    loop = new_loop("full", full, tmp_path / "full")
    loop.stage = "whole"  # the same random numbers
    with small_files(200):
        loop.run(squares(full))
    assert torch.equal(whole.weight, full.weight) and not list((tmp_path / "full").iterdir())
    assert "no checkpoint at step 1," in caplog.text and f"cannot be written to {tmp_path / 'full'} (" in caplog.text


def test_pictures_that_cannot_be_kept_are_a_warning(tmp_path, caplog):
    with small_files(200):
        latents = paint(toy_denoiser(), ["a", "b"], tmp_path / "pictures-0.safetensors")
    assert latents.shape == (2, 5, 8) and "the pictures are not kept" in caplog.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("step", "rank"), [(19, 0), (20, 0), (20, 1)])
def test_weights_that_are_not_finite_are_said_and_the_last_good_checkpoint_stays(step, rank, tmp_path, monkeypatch):
    """A loss can be finite where its gradient is not: after the last step, no loss would tell."""
    monkeypatch.setattr("hgr.training.loop.CHECKPOINT_SECONDS", 0.0 if step < 20 else 1e9)
    module = line()
    processes = Processes(rank, 2, lambda tensors: None) if rank else Processes()
    loop = new_loop("x", module, tmp_path, processes=processes)
    calls = squares(module)

    def loss(rng, generator):
        value = calls(rng, generator)
        if loop.step == step - 1:
            value.register_hook(lambda gradient: gradient * torch.inf)
        return value

    with pytest.raises(FloatingPointError, match=f"the weights after step {step} are not finite"):
        loop.run(loss)
    found = line(seed=3)
    assert new_loop("x", found, tmp_path).step == (18 if step == 19 else 0) and found.weight.isfinite().all()


@pytest.mark.parametrize("fault", ["weights", "thresholds", "probe"])
def test_a_training_that_ends_with_what_is_not_finite_says_so(fault, tmp_path, monkeypatch):
    monkeypatch.setattr("hgr.training.train_probe.MIN_SHOWN", 0)
    if fault == "weights":  # finite, and too large for any sum of them
        run = Loop.run
        monkeypatch.setattr(
            Loop, "run", lambda self, loss: (run(self, loss), [p.data.fill_(3e38) for p in self.parameters])
        )
    if fault == "thresholds":
        monkeypatch.setattr(training, "calibrate", lambda known, *_, **__: [replace(c, bias=1e39) for c in known])
    if fault == "probe":
        monkeypatch.setattr(
            probing, "fit_heads", lambda x, *_: (torch.full((x.shape[1], 2), torch.nan), torch.zeros(2))
        )
    what = {"weights": "the gates of held-out prompts", "probe": "the picture probe's weights"}.get(fault, "the thresh")
    with pytest.raises(FloatingPointError, match=f"{what}.* are not finite, so nothing is written"):
        train_toy(tmp_path, replace(TOY, steps=2, pictures=16), denoiser=toy_denoiser)


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        (toy_pairs(20), {}, r"\"bomb\" has 20 pairs; it needs at least 50"),
        (toy_pairs(), dict(false_positive_rate=0.1), "it needs 6667"),
        (toy_pairs(), dict(losses="pixels"), "unknown"),
        (toy_pairs(), dict(losses="attention"), "need the model"),
        (toy_pairs(), dict(learning_rate=0.0), "learning_rate is 0.0; it must be a number above 0"),
        (
            toy_pairs(),
            dict(false_positive_rate=50.0),
            "false_positive_rate is 50.0 %; it must be 0.1 or more and below 50",
        ),
        (toy_pairs(), dict(batch_size=0), "batch_size is 0; it must be 1 or more"),
        (toy_pairs(), dict(steps=0), "steps"),
        (Pairs((), ()), {}, "no concepts"),
    ],
)
def test_a_training_that_cannot_succeed_is_refused_with_its_reason(tmp_path, pairs, settings, message):
    with pytest.raises(ValueError, match=message):
        train_toy(tmp_path, replace(TOY, **settings), pairs=pairs)


def test_broken_features_stop_the_training_and_a_full_disk_does_and_keeps_what_is_encoded(tmp_path):
    def broken(texts):
        return [Prompt(torch.full((1, 4, 16), torch.nan)) for _ in texts]

    with pytest.raises(HGRError, match="NaN"):
        EncodedPrompts(["a"], broken, tmp_path / "features-0.bin")
    assert not list(tmp_path.iterdir())

    with small_files(10_000), pytest.raises(WriteError) as caught:
        train_toy(tmp_path)
    assert str(caught.value).startswith(f"the encoded prompts cannot be written to {tmp_path} (")
    (kept,) = resumable(tmp_path, HGR_STAGE)
    assert 9_000 < kept.stat().st_size <= 10_000


def test_examples_take_away_what_they_say():
    pairs = Pairs(
        (Topic("a", "A"), Topic("b", "B")),
        (
            Pair("a", "x a b", "x b", "g"),
            Pair("b", "x a b", "x a", "g"),
            Pair("a", "x a", "x", "g"),
            Pair("b", "x b", "x", "g"),
        ),
        ("y",),
    )
    examples = Examples(pairs, 0)
    seen = set()
    for i in range(300):
        e = examples.draw(random.Random(i))
        assert set(e.text.split()) - set(e.target.split()) == set(e.removed) and e.labels == set(e.text.split()) - {"x"}
        seen.add((e.text, e.target))
    assert seen == {("x a b", "x b"), ("x a b", "x a"), ("x a b", "x"), ("x a", "x"), ("x b", "x")}
    with pytest.raises(DataError):
        check_pairs(pairs, HGRSettings())
