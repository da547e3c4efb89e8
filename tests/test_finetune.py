"""Safe fine-tuning on tensors small enough to follow: what is taught, what is not, how harmful is judged, and
resuming."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest
import torch
from helpers import CHUNK, WIDTH
from torch import nn

from hgr.core.denoiser import Denoiser
from hgr.core.hgr import HGR, Concept, Encoder, Probe, calibrated
from hgr.core.network import HGRNetwork
from hgr.core.progress import Progress
from hgr.core.prompt import Prompt
from hgr.detection.hed import hed_picture
from hgr.training.encoded_prompts import EncodedPrompts
from hgr.training.loop import Processes
from hgr.training.settings import EVIDENCE, LORA_STAGE, LoRASettings
from hgr.training.train_lora import Adapted, Lessons, Teacher, fit_lora, harm_of, lesson, train_lora
from hgr.training.work_files import discard

CLEAN, FIRST, SECOND = [f"clean {i}" for i in range(4)], "c0 by a lake", "c1 by a lake"
SETTINGS = LoRASettings(steps=60, batch_size=8, learning_rate=2e-2, rank=8, pictures=12, evidence="prompt")


def features_of(text: str) -> torch.Tensor:
    """(1, T, D): the first token is everyone's; the second says which concepts are in the text; the rest is the text's
    own."""
    x = torch.randn(1, CHUNK, WIDTH, generator=torch.Generator().manual_seed(sum(text.encode())))
    x[:, 0] = 1
    x[0, 1, :2] = torch.tensor([2.0 if f"c{k}" in text else -20.0 for k in range(2)])
    return x


def encode(texts: list[str]) -> list[Prompt]:
    return [Prompt(features_of(text)) for text in texts]


class Network(HGRNetwork):
    """Its gates are those that `features_of` writes down."""

    def encode(self, features, pooled=None, mask=None):
        self.written = features[:, 1, :2]
        return super().encode(features, pooled, mask)

    def gate_logits(self, encoding):
        return self.written


@pytest.fixture
def hgr():
    torch.manual_seed(0)
    network = Network(WIDTH, 0, 2, width=24, depth=1)
    nn.init.normal_(network.move_out.weight)
    concepts = [Concept(f"c{k}", f"Concept {k}") for k in range(2)]
    hed = tuple(Concept(c.id, c.label, scale=3.0, bias=-0.5) for c in concepts)
    probe = Probe((0.5,), torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(2, 1, 1), torch.zeros(2), hed, hed)
    return HGR(
        network.eval().requires_grad_(False),
        concepts,
        Encoder("a test encoder", CHUNK, True, features_of("")[0]),
        probe=probe,
    )


class Layer(nn.Module):
    """One linear layer with a LoRA."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(4, CHUNK * WIDTH, generator=torch.Generator().manual_seed(0)) / 10)
        self.down, self.up, self.on = (
            nn.Parameter(torch.randn(8, CHUNK * WIDTH) / 10),
            nn.Parameter(torch.zeros(4, 8)),
            True,
        )

    def forward(self, features):
        return features.flatten(1) @ (self.weight + self.on * self.up @ self.down).T


@contextmanager
def off(layer):
    layer.on = False
    try:
        yield
    finally:
        layer.on = True


def adapted(seen: list | None = None) -> Adapted:
    """A denoiser of one layer; what it is asked to look at goes into `seen`."""
    layer = Layer()

    def at(latents, percent, noise):
        if seen is not None:
            seen.append(latents)
        return lambda features, pooled: layer(features) + latents + 0.1 * noise

    return Adapted(
        Denoiser(layer, at, lambda texts, first: iter([torch.zeros(len(texts) - first, 4)]), batch=5),
        layer,
        lambda: off(layer),
    )


def fine_tune(hgr, texts, work, *, strengths=(1.0, 1.0), **more):
    return train_lora(hgr, texts, SETTINGS, encode=encode, adapt=adapted, strengths=list(strengths), work=work, **more)


@pytest.fixture
def teacher(hgr, tmp_path):
    """Makes a teacher with these strengths."""
    features = EncodedPrompts([*CLEAN, FIRST, SECOND, f"{FIRST}, c1", ""], encode, tmp_path / "features-0.bin")
    yield lambda *strengths: Teacher(hgr, features, list(strengths or (1.0, 1.0)), device="cpu")
    features.close()


def test_a_lesson_blends_by_h_and_a_clean_row_is_the_plain_prediction_itself():
    generator = torch.Generator().manual_seed(0)
    plain, safe = (
        Prompt(torch.randn(3, 5, 4, generator=generator), torch.randn(3, 2, generator=generator)) for _ in range(2)
    )

    def predict(features, pooled):
        return features.mean(1).view(-1, 2, 2) + pooled.sum(1).view(-1, 1, 1)

    goal = lesson(predict, plain, safe, harm=torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(goal[0], predict(*plain[:2])[0]) and torch.equal(goal[1], predict(*safe[:2])[1])
    torch.testing.assert_close(goal[2], 0.25 * predict(*safe[:2])[2] + 0.75 * predict(*plain[:2])[2])
    assert torch.equal(lesson(predict, plain, safe, harm=torch.zeros(3)), predict(*plain[:2]))


def test_a_lesson_without_doubt_costs_one_prediction():
    calls = []
    prompt = Prompt(torch.randn(2, 5, 4))
    for h, count in (([0.0, 1.0], 1), ([0.0, 0.5], 2)):
        calls.clear()
        lesson(lambda features, pooled: calls.append(1) or features.mean(1), prompt, prompt, harm=torch.tensor(h))
        assert len(calls) == count


def test_a_concept_that_is_off_is_neither_judged_nor_redirected(teacher):
    part = teacher(1.0, 0.0)
    gates = part.gates([FIRST, SECOND, f"{FIRST}, c1", CLEAN[0]])
    present = torch.tensor(2.0).sigmoid()
    assert torch.equal(gates > 0, torch.tensor([[True, False], [False, False], [True, False], [False, False]]))
    assert gates[0, 0] == pytest.approx(present.item())
    plain, safe = part.prompts([FIRST, SECOND, CLEAN[0]])
    moved = (plain.features != safe.features).flatten(1).any(1)
    assert moved.tolist() == [True, False, False]
    half, whole = (teacher(strength, 0.0).prompts([FIRST])[1].features - plain.features[:1] for strength in (0.5, 1.0))
    torch.testing.assert_close(half, whole / 2)


def test_h_is_what_the_chosen_evidence_says_and_zero_for_clean_prompts(hgr, teacher):
    texts = [CLEAN[0], FIRST, SECOND, f"{FIRST}, c1", CLEAN[1], CLEAN[2], FIRST]
    latents, model = torch.randn(len(texts), 4, generator=torch.Generator().manual_seed(3)), adapted()
    done = []

    class Pictures(Progress):
        def picture(self, *at):
            done.append(at)

    found = {
        evidence: harm_of(teacher(), model.denoiser, latents, texts=texts, evidence=evidence, progress=Pictures())
        for evidence in EVIDENCE
    }
    gates = teacher().gates(texts)
    hed = hed_picture(
        hgr, model.denoiser, latents, prompt=Prompt(torch.cat([features_of(text) for text in texts]))
    ).per_concept
    picture = calibrated(hed, hgr.probe.hed) * (gates > 0)
    assert torch.equal(found["prompt"], gates.amax(1))
    # one after the other, in batches of five: as all at once
    torch.testing.assert_close(found["picture"], picture.amax(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found["both"], ((picture + gates) / 2).amax(1), atol=1e-3, rtol=0)
    for harm in found.values():
        assert (harm[[0, 4, 5]] == 0).all() and (harm[[1, 2, 3, 6]] > 0).all() and (harm <= 1).all()
    assert done == [(5, 7), (7, 7)] * 3


def test_half_of_what_is_drawn_is_harmful_however_rare_that_is(teacher, tmp_path):
    texts, seen = [FIRST, *CLEAN * 3], []
    lessons = Lessons(torch.arange(13.0)[:, None].expand(13, 4), texts, torch.tensor([1.0] + [0.0] * 12))
    fit_lora(teacher(), adapted(seen), lessons, settings=LoRASettings(steps=5, batch_size=6), work=tmp_path)
    assert len(seen) >= 5
    assert all((latents[:, 0] == 0).sum() == 3 for latents in seen)


def test_two_processes_share_each_batch(teacher, tmp_path):
    lessons = Lessons(torch.arange(5.0)[:, None].expand(5, 4), [FIRST, *CLEAN], torch.tensor([1.0, 0, 0, 0, 0]))
    drawn = []
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        seen = []
        reduce = (lambda tensors: None) if count > 1 else None
        fit_lora(
            teacher(),
            adapted(seen),
            lessons,
            settings=LoRASettings(steps=3, batch_size=6),
            work=tmp_path / str(rank + count),
            processes=Processes(rank, count, reduce),
        )
        drawn.append(seen[-3:])
    for whole, *parts in zip(*drawn, strict=True):
        assert torch.equal(whole[0::2], parts[0]) and torch.equal(whole[1::2], parts[1])


def test_a_harmful_prompt_is_pulled_to_the_safe_prediction_and_the_others_stay(teacher, hgr, tmp_path):
    made, lessons = fine_tune(hgr, [FIRST, *CLEAN], tmp_path / "work")
    assert len(lessons.texts) == 12 and set(lessons.texts) == {FIRST, *CLEAN}
    layer = made.adapters
    plain, safe = teacher().prompts([FIRST, "", *CLEAN])
    with torch.no_grad():
        now = layer(plain.features)
        with made.frozen():
            before, goal = layer(plain.features), layer(safe.features)
    h = torch.tensor(2.0).sigmoid()
    reach = (goal - before)[0].norm()
    assert (now[0] - (h * goal + (1 - h) * before)[0]).norm() < 0.1 * reach
    assert (now - before)[1:].norm(dim=1).max() < 0.1 * reach
    discard(tmp_path / "work", LORA_STAGE)
    assert list((tmp_path / "work").iterdir()) == [], "checkpoint and pictures stay until then, and nothing else"


def test_a_concept_that_is_off_stays_what_it_is(teacher, hgr, tmp_path):
    made, _ = fine_tune(hgr, [FIRST, SECOND, *CLEAN], tmp_path / "work", strengths=(0.0, 1.0))
    plain, safe = teacher().prompts([FIRST, SECOND])
    with torch.no_grad():
        now = made.adapters(plain.features)
        with made.frozen():
            before, goal = made.adapters(plain.features), made.adapters(safe.features)
    moved = (now - before).norm(dim=1) / (goal - before).norm(dim=1)
    assert moved[0] < 0.1 and moved[1] > 0.7


def test_a_resumed_fine_tuning_gives_the_same_weights_and_another_one_is_refused(hgr, tmp_path):
    def run(work, stop=None, texts=(FIRST, *CLEAN), **more):
        class Stop(Progress):
            def step(self, done, loss):
                if done == stop:
                    raise KeyboardInterrupt

        made, _ = fine_tune(hgr, list(texts), tmp_path / work, progress=Stop(), **more)
        return made.adapters

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop=7)
    for changed in ({"made_for": "another model"}, {"texts": (FIRST, *CLEAN[1:])}):
        with pytest.raises(ValueError, match="other settings, prompts"):
            run("parts", **changed)
    resumed = run("parts")
    assert torch.equal(whole.up, resumed.up) and torch.equal(whole.down, resumed.down) and whole.up.any()


def test_thirty_interruptions_at_random_change_nothing(hgr, tmp_path):
    """While it encodes, while it paints, while it judges, and in the steps."""

    class Stop(Progress):
        def __init__(self, kind, n):
            self.kind, self.left = kind, n

        def count(self, kind):
            self.left -= kind == self.kind
            if not self.left:
                raise KeyboardInterrupt

        def text(self, done, total):
            self.count("text")

        def picture(self, done, total):
            self.count("picture")

        def step(self, done, loss):
            self.count("step")

    rng, texts = random.Random(0), [FIRST, *CLEAN]
    points = [("text", 1), ("text", 2), ("picture", 1), ("picture", 2)]
    points += [rng.choice([("picture", rng.randint(1, 3)), ("step", rng.randint(1, 4))]) for _ in range(26)]
    for point in points:
        with pytest.raises(KeyboardInterrupt):
            fine_tune(hgr, texts, tmp_path / "parts", progress=Stop(*point))
    whole, parts = (fine_tune(hgr, texts, tmp_path / name)[0].adapters for name in ("whole", "parts"))
    assert torch.equal(whole.up, parts.up) and torch.equal(whole.down, parts.down) and whole.up.any()


def test_what_cannot_teach_anything_is_refused(hgr, teacher, tmp_path):
    def run(texts, strengths=(1.0, 1.0), **more):
        fine_tune(hgr, texts, tmp_path / "work", strengths=strengths, **more)

    with pytest.raises(ValueError, match="none of the 4 prompts harmful"):
        run(CLEAN)
    with pytest.raises(ValueError, match="none of the 5 prompts harmful"):
        run([FIRST, *CLEAN], (0.0, 1.0))
    with pytest.raises(ValueError, match="there are 3 pictures and 2 prompts"):
        run([FIRST, CLEAN[0]], latents=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="none of the 4 pictures has a prompt that is harmful"):
        clean = Lessons(torch.zeros(4, 4), CLEAN, torch.zeros(4))
        fit_lora(teacher(), adapted(), clean, settings=SETTINGS, work=tmp_path)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["features-0.bin"]


def test_a_diffusers_denoiser_without_its_lora_is_the_original_bit_for_bit():
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from hgr.hosts.diffusers import finetune as host
    from hgr.hosts.diffusers.demo import load_demo_pipeline

    pipe = load_demo_pipeline()
    given = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        before = pipe.unet(*given).sample
        made = host.adapt(pipe, 4)
        assert torch.equal(pipe.unet(*given).sample, before), "a new LoRA changes nothing"
        for name, parameter in made.adapters.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        assert not torch.equal(pipe.unet(*given).sample, before)
        with made.frozen():
            assert torch.equal(pipe.unet(*given).sample, before)
        assert not torch.equal(pipe.unet(*given).sample, before)
