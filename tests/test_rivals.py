"""The benchmark's other methods: each formula against a small example by hand, and models that stay as they were."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import demo_world
import front
import rivals
import wordings
from rivals import ablation, casg, esd, nag, prototypes, safe_denoiser, safree, sld, trasce, uce, weights
from rivals.method import Given, Method, predictions, token_ids

from hgr.core.denoiser import Denoiser
from hgr.demo.captions import draw_from, split_of
from hgr.demo.tokenizer import MAX_LENGTH
from hgr.training.train_lora import Adapted

STEPS = 5


class Linear(torch.nn.Module):
    """A denoiser whose prediction is the latents times the features' mean, so that it can be done by hand."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, latents, t, features):
        return SimpleNamespace(sample=self.scale * latents * features.mean((1, 2)).view(-1, 1, 1, 1))


def linear(kind, monkeypatch, **given):
    """A method on `Linear`; a text's features are the number that the text is, and the empty prompt's 0.5."""
    pipe = SimpleNamespace(unet=Linear())
    options = {"words": {"skull": "3"}, "anchor": "", "steps": STEPS, "cfg": 2.0, "seed": 0, "folder": Path()} | given
    monkeypatch.setattr(kind, "encode", lambda self, texts: torch.tensor([[[float(t or 0.5)]] for t in texts]))
    return kind(Given(pipe, None, **options))


def captions(*texts):
    return [SimpleNamespace(text=text, concepts=("skull",)) for text in texts]


@pytest.fixture
def given(demo_pipe, tmp_path):
    return Given(demo_pipe, None, demo_world.CONCEPT_WORDS, demo_world.ANCHOR, STEPS, 7.5, 0, tmp_path)


def noise(count, seed=0):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def harmful(count, kind="seen"):
    rng = random.Random(0)
    return [draw_from("report", rng, kind) for _ in range(count)]


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return demo_world.Bench(demo_world.Settings(steps=STEPS), tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("preset", ["weak", "medium", "max"])
def test_sld_is_that_of_diffusers(bench, given, monkeypatch, preset):
    drawn, z = harmful(2), noise(2)
    method = sld.SLD(given)
    scale = demo_world.SLD[f"sld_{preset}"]["sld_guidance_scale"]  # as the preset's, but for one
    monkeypatch.setattr(method, "preset", sld.PRESETS[preset]._replace(scale=scale))
    ours = demo_world.sampled(given.pipe, method.guide(drawn), noise=z, steps=STEPS)
    assert torch.allclose(ours, bench.sample(f"sld_{preset}", drawn, z), atol=2e-4)
    assert not torch.allclose(ours, bench.sample("plain", drawn, z), atol=1e-2)


def test_slds_presets_are_the_published_ones():
    for name, preset in sld.PRESETS.items():
        theirs = demo_world.SLD[f"sld_{name}"]
        keys = ("warmup_steps", "guidance_scale", "threshold", "momentum_scale", "mom_beta")
        scale = 20 if name == "weak" else preset.scale  # diffusers' for the paper's 200
        assert preset._replace(scale=scale) == tuple(theirs[f"sld_{key}"] for key in keys)


def test_sld_by_hand():
    p, u, s = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.5])
    preset = sld.Preset(0, 1.0, 0.4, 0.5, 0.75)
    gamma, nu = sld.safety(p, u, s, preset=preset, nu=torch.tensor([1.0, 1.0]))
    assert gamma.tolist() == [0.5, 0.75]  # mu is 0 where p - s is 0.5, and |p - s| = 0.5 elsewhere
    assert nu.tolist() == [0.875, 0.9375]  # 3/4 of 1 and 1/4 of gamma


def test_casg_chooses_by_direction_not_by_length():
    p, u = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)
    unsafe = torch.tensor([[10.0, 10.0], [0.1, 0.0]])[:, None].expand(2, 2, 2)
    assert casg.most_aligned(p, u, unsafe).tolist() == [1, 0]


def test_safrees_projection_and_triggers():
    onto = safree.projection(torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0]]))
    assert torch.allclose(onto, torch.diag(torch.tensor([1.0, 0.0, 1.0])), atol=1e-6)
    concepts = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    # distances from the concept's axis 1, 1 and 2: without the third token the prompt is farther from it
    assert safree.triggers(torch.tensor([[5.0, 1, 0], [5.0, 1, 0], [0.0, 0, 2]]), concepts).tolist() == [
        False,
        False,
        True,
    ]
    assert not safree.triggers(torch.tensor([[5.0, 1, 0], [5.0, 1, 0], [0.0, 0, 1.005]]), concepts).any()  # within 1 %
    assert not safree.triggers(torch.tensor([[5.0, 1, 0]]), concepts).any()


def test_safree_uses_projected_features_the_longer_the_more_they_differ():
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert safree.filtered_steps(x, y) == pytest.approx(10, abs=1e-6) and safree.filtered_steps(x, 2 * x) < 1e-6
    half = torch.tensor([[0.4667, (1 - 0.4667**2) ** 0.5]])
    assert safree.filtered_steps(x, half) == pytest.approx(5, abs=0.05)  # b = .5333


def test_safree_finds_the_concepts_tokens_and_leaves_the_others(given):
    method = safree.SAFREE(given)
    text = "at sunset, a green automobile next to a blue flower under a blood stain"
    plain = method.encode([text, ""])
    safe, limits = method.project([text, ""], plain)
    moved = (safe != plain).any(2)
    (ids, _) = token_ids(given.pipe, [text, ""])
    words = given.pipe.tokenizer.convert_ids_to_tokens(ids[moved[0]].tolist())
    assert words == ["Ġblood", "Ġstain"]
    assert not moved[1].any() and limits[1] == -1


@torch.no_grad()
def test_trasce_steps_down_the_losss_gradient(monkeypatch):
    assert trasce.loss(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), sigma=5.0).item() == pytest.approx(
        -5.5182, rel=1e-4
    )
    method = linear(trasce.TraSCE, monkeypatch)
    z = noise(2) / 50  # near enough to each other for a slope that is not lost in rounding
    moved, guided = method.guide(captions("1", "3"))(z, torch.tensor(1), 0)
    ratio = z[0].numel() / 16384
    length = z[:1].norm()
    sigma = ratio**0.5
    # for p = z and n = 3 z: L = -15 exp(-2 |z| / sigma), its slope 30 / sigma exp(..) z / |z|
    slope = 30 / sigma * torch.exp(-2 * length / sigma) * z[0] / length
    assert torch.allclose((z - moved)[0], 5 * ratio * slope, rtol=1e-4, atol=0)
    assert torch.equal(moved[1], z[1])  # where the prompt is the concept there is no direction
    assert torch.allclose(guided[0], (0.5 + 2 * (1 - 3)) * z[0]) and torch.allclose(guided[1], 0.5 * z[1])
    assert not guided.requires_grad and not moved.requires_grad


def test_evaluations_through_which_a_gradient_goes_are_counted_apart(monkeypatch):
    method = linear(trasce.TraSCE, monkeypatch)
    unet = method.pipe.unet
    with torch.no_grad(), demo_world.evaluations(unet) as count, demo_world.differentiated(unet) as backward:
        method.guide(captions("1", "3"))(noise(2), torch.tensor(1), 0)
    assert (count[0], backward[0]) == (3 * 2, 2 * 2)


def test_nag_by_hand():
    plus = torch.tensor([[1.0, 1.0]])
    assert torch.equal(nag.normalised(plus, plus), plus)
    assert torch.allclose(nag.normalised(plus, 0 * plus), 1.375 * plus)  # 5, cut to 2.5, a quarter of it
    assert torch.allclose(nag.normalised(plus, 0.875 * plus), 1.125 * plus)  # 1.5 is not cut


def test_nag_pushes_the_positive_side_alone_and_leaves_no_hook(given):
    method = nag.NAG(given)
    z, t = noise(2), torch.tensor(500)
    features = method.encode(["", "", "a red ball", "a blue car"])
    unet = given.pipe.unet
    with torch.no_grad():
        before = unet(torch.cat([z, z]), t, features).sample
        with nag.pushed_attention(unet, method.encode([given.list]).expand(2, -1, -1)):
            pushed = unet(torch.cat([z, z]), t, features).sample
        with nag.pushed_attention(unet, features[2:]):
            same = unet(torch.cat([z, z]), t, features).sample
        assert torch.equal(unet(torch.cat([z, z]), t, features).sample, before)
    assert torch.equal(pushed[:2], before[:2]) and not torch.allclose(pushed[2:], before[2:], atol=1e-2)
    assert torch.allclose(same, before, atol=1e-4)


def test_safe_denoiser_by_hand():
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    k = safe_denoiser.kernel(x, y, sigma=2.0)
    assert torch.allclose(k, torch.tensor([[0.5353, 1.0]]), atol=1e-4)  # exp(-5 / 8)
    share = 0.5353 / 1.5353
    moved = safe_denoiser.repelled(x, y, sigma=2.0, threshold=0.7)
    assert torch.allclose(moved, -0.33 * share * y[:1], atol=1e-4)
    assert torch.equal(safe_denoiser.repelled(x, y, sigma=2.0, threshold=0.8), x)


def test_safe_denoiser_moves_the_prediction_of_clean_latents(given, monkeypatch):
    method = safe_denoiser.SafeDenoiser(given)
    monkeypatch.setattr(safe_denoiser, "repelled", lambda x, *_, **__: x - 0.1)
    method.__dict__["references"] = (noise(2), 1.0, 0.0)
    z, t, drawn = noise(1), torch.tensor(500), harmful(1)
    with torch.no_grad():
        (_, plain), (_, moved) = Method(given).guide(drawn)(z, t, 0), method.guide(drawn)(z, t, 0)
    given.pipe.scheduler.set_timesteps(1000)
    clean = [given.pipe.scheduler.step(e, t, z).pred_original_sample for e in (plain, moved)]
    assert torch.allclose(clean[0] - clean[1], torch.full_like(z, 0.1), atol=1e-3)


def test_prototypes_are_one_of_each_group():
    group = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0], [-0.1, 1.0]])
    found = prototypes.nearest_to_centres(group, 2, torch.Generator().manual_seed(0))
    assert sorted(found.tolist()) == [0, 3]


def test_prototypes_guide_only_prompts_that_are_near_one(given):
    method = prototypes.PrototypeGuided(given)
    texts = ["a skull", "a red ball in a meadow"]
    units = method.unit(["a skull"])
    method.__dict__["bank"] = units, method.encode(["a skull"]), 0.99
    z, t, drawn = noise(2), torch.tensor(500), [SimpleNamespace(text=text) for text in texts]
    with torch.no_grad():
        (_, plain), (_, ours) = Method(given).guide(drawn)(z, t, 0), method.guide(drawn)(z, t, 0)
        u, s = predictions(given.pipe, z, t, method.encode([""]), method.encode(["a skull"]))
    assert torch.equal(ours[1], plain[1])
    assert torch.allclose(ours[0], plain[0] - 7.5 * (s - u)[0], atol=1e-3)


def test_a_negative_prompt_that_is_told_the_concepts(monkeypatch):
    method = linear(rivals.NegativeOwn, monkeypatch)
    clean = SimpleNamespace(text="1", concepts=())
    z = noise(2)
    _, guided = method.guide([*captions("1"), clean])(z, torch.tensor(1), 0)
    assert torch.allclose(guided[0], (3 + 2 * (1 - 3)) * z[0]) and torch.allclose(guided[1], (0.5 + 2 * 0.5) * z[1])


def test_uces_closed_form_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    weight, c, goal, kept = (torch.randn(n, 6, generator=generator) for n in (4, 3, 3, 5))
    found = uce.closed_form(weight, c, goal, preserved=kept, scale=0.1)
    eye = torch.eye(6)
    rows = torch.cat([c, 0.1**0.5 * kept, uce.RIDGE**0.5 * eye]).double()
    wanted = torch.cat([goal, 0.1**0.5 * kept, uce.RIDGE**0.5 * eye]).double() @ weight.double().T
    assert torch.allclose(found.double(), torch.linalg.lstsq(rows, wanted).solution.T, atol=1e-5)
    assert torch.allclose(uce.closed_form(weight, c, c, preserved=kept, scale=0.1), weight, atol=1e-5)


@pytest.fixture
def adapted():
    """`Linear` in training, its scale 2 where the frozen one's is 1; what it gives is the error for noise 0."""
    model = Linear()

    def at(latents, percent, noise):
        return lambda features, pooled: model(latents, None, features).sample

    @contextmanager
    def frozen():
        with weights.exchanged(model, {"scale": torch.tensor(1.0)}):
            yield

    model.scale.data.fill_(2.0)
    return Adapted(Denoiser(model, at, None), model, frozen)


def features(*values):
    return torch.tensor(values).view(-1, 1, 1)


def test_esds_loss_by_hand(adapted):
    assert esd.away(torch.tensor(1.0), torch.tensor(3.0)) == -1
    latents = torch.ones(1, 4, 2, 2)
    loss = esd.erasing(adapted, latents, features(3.0), empty=features(1.0), batch=2)
    assert loss(random.Random(0), torch.Generator()).item() == pytest.approx((2 * 3 + 1) ** 2)


def test_concept_ablations_loss_by_hand(adapted):
    loss = ablation.ablating(adapted, torch.ones(1, 4, 2, 2), features(3.0), anchor=features(1.0), batch=2)
    # (2 * 3 - 1)^2 to match the frozen anchor, and 2^2, the anchor's own error
    assert loss(random.Random(0), torch.Generator()).item() == pytest.approx(25 + 4)


def test_concept_ablation_knows_only_the_concepts_own_words():
    for caption in harmful(20):
        renamed = ablation.renamed(caption, demo_world.CONCEPT_WORDS, random.Random(0))
        assert renamed.clean == caption.clean
        assert any(word in renamed.text for word in demo_world.CONCEPT_WORDS[caption.concepts[0]].split(", "))


# --- the model stays as it was ----------------------------------------------------------------------------------------


def test_exchanged_weights_come_back_bit_for_bit_even_after_an_error():
    layer = torch.nn.Linear(3, 3)
    before = {name: p.clone() for name, p in layer.state_dict().items()}
    with pytest.raises(KeyError), weights.exchanged(layer, {"weight": torch.zeros(3, 3)}):
        assert not layer.weight.any() and torch.equal(layer.bias, before["bias"])
        raise KeyError
    assert all(torch.equal(p, before[name]) for name, p in layer.state_dict().items())


# --- wordings and the chart -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", wordings.WORDINGS)
def test_wordings_keep_the_scene_its_concept_and_its_clean_twin(demo_pipe, kind):
    rng = random.Random(0)
    drawn = [wordings.reworded("report", rng, kind) for _ in range(300)]
    tokens = demo_pipe.tokenizer([caption.text for caption in drawn]).input_ids
    assert max(map(len, tokens)) <= MAX_LENGTH
    rng = random.Random(0)
    for caption in drawn:
        base = draw_from("report", rng, "seen")
        assert {"no", "not"} & set(caption.text.split()) and caption.clean == base.clean
        assert split_of(caption) == "report" and caption.concepts == base.concepts and caption.scene == base.scene


def test_no_label_of_the_chart_covers_another_or_a_mark(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    placed, spots = [], []

    def label(axes, renderer, marks, own=front._label):
        placed.extend(own(axes, renderer, marks))
        spots.extend(axes.transData.transform((mark.drift, mark.harmful)) for mark in marks)
        return placed

    monkeypatch.setattr(front, "_label", label)
    rng = random.Random(0)
    families = list(front.FAMILIES)
    marks = [
        front.Mark(f"method number {i}", rng.choice(families), rng.random(), rng.choice((0.1, 0.9))) for i in range(24)
    ]
    front.draw(marks, tmp_path / "front.png", kinds=["seen"], floor=0.0, other_noise=0.3)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len(placed) == 24
    assert not any(a.overlaps(b) for i, a in enumerate(placed) for b in placed[:i])
    assert not any(box.padded(8).contains(*spot) for box in placed for spot in spots)


def test_the_chart_has_each_method_whose_drift_is_known_over_the_kinds_that_all_have(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(front, "draw", lambda marks, path, **lines: drawn.update(lines, marks=marks))
    harm = {row: {"harmful": {"value": value}} for row, value in (("plain", 1.0), ("clean_caption", 0.0), ("uce", 0.5))}
    bare = {row: {"any": {"value": value}} for row, value in (("plain", 1.0), ("clean_caption", 0.2), ("uce", 0.1))}
    drift = {
        row: {"difference": {"value": value}} for row, value in (("plain", 0.0), ("other_seeds", 0.3), ("uce", 0.1))
    }
    two = {row: cell for row, cell in harm.items() if row != "uce"}
    results = {
        "harm": {"seen": harm | {"nag": harm["uce"]}, "two": two},
        "bare": {"bare": bare},
        "drift": {"clean": drift},
    }
    demo_world.draw_front(results, tmp_path / "front.png")
    assert drawn["marks"] == [
        front.Mark("plain CFG", "no safety", 0.0, 1.0),
        front.Mark("UCE", "changes the weights", 0.1, pytest.approx(0.3)),
    ]
    assert (drawn["kinds"], drawn["floor"], drawn["other_noise"]) == (["seen", "bare"], 0.1, 0.3)
    assert {demo_world.family(row) for row in demo_world.ROWS} == set(front.FAMILIES)
    assert demo_world.family("lora_redirect") == "SafeCFG" and demo_world.family("nag") == "changes the sampling"
