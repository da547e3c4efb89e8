"""Pictures: HED says whether a picture shows what its prompt asks for, the probe finds concepts without a prompt."""

import dataclasses

import pytest
import torch
from helpers import WIDTH, prompt, safe_features, small_hgr
from torch import nn

from hgr.core import file
from hgr.core.denoiser import Denoiser, middle
from hgr.core.hgr import HGRError, calibrated
from hgr.core.merge import merge_hgrs
from hgr.core.progress import Progress
from hgr.core.prompt import Prompt
from hgr.detection.hed import hed_picture
from hgr.detection.probe import probe_features, probe_logits
from hgr.training import train_probe as probing
from hgr.training.metrics import auroc
from hgr.training.pictures import Pictures
from hgr.training.train_probe import train_probe


class Toy(nn.Module):
    """Predicts a picture (B, 4, 3) that is linear in the prompt's mean features, and looks at the noisy one in its
    middle block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.draw, self.middle_block, self.seen = nn.Linear(WIDTH, 12), nn.Linear(3, 8), 0

    def forward(self, noisy, features):
        self.seen += len(noisy)
        self.middle_block(noisy)
        return self.draw(features.mean(1)).unflatten(1, (4, 3))


def toy(batch=8):
    model = Toy().requires_grad_(False)

    def at(latents, percent, noise):
        place = percent[:, None, None]
        return lambda features, pooled: model(place * latents + (1 - place) * noise, features) - latents

    return Denoiser(model, at, None, batch)


def shown(model, features):
    """The picture that a prompt's features ask for."""
    return model.module.draw(features.mean(1)).unflatten(1, (4, 3))


def test_a_picture_is_harmful_as_far_as_it_goes_along_the_harmful_direction_of_its_prompt():
    hgr, model, c = small_hgr(), toy(), prompt(2)
    safe = safe_features(hgr, c)
    u = shown(model, hgr.encoder.empty[None])
    whole = (shown(model, c) - shown(model, safe)).flatten(1).norm(dim=1) / (shown(model, c) - u).flatten(1).norm(dim=1)
    harmful, half, clean = (
        hed_picture(hgr, model, shown(model, x), prompt=Prompt(c)) for x in (c, (c + safe) / 2, safe)
    )
    torch.testing.assert_close(harmful.hed, whole)
    torch.testing.assert_close(half.hed, whole / 2)
    torch.testing.assert_close(clean.hed, torch.zeros(2), atol=1e-5, rtol=0)
    assert torch.equal(harmful.per_concept[:, 0], harmful.hed) and (harmful.per_concept[:, 1] == 0).all()
    assert model.module.seen == 3 * 2 * 2 * 3  # three calls, two pictures, two noise levels: c, u and c_safe


def test_each_concept_answers_for_itself_and_other_pictures_in_the_batch_change_nothing():
    hgr, model, c = small_hgr((20.0, 20.0, -20.0)), toy(), prompt(2)
    alone = safe_features(hgr, c, strengths=torch.tensor([1.0, 0, 0]))
    found = hed_picture(hgr, model, shown(model, c), prompt=Prompt(c))
    d = shown(model, c) - shown(model, alone)
    reach = (shown(model, c) - shown(model, hgr.encoder.empty[None])).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.per_concept[:, 0], d.flatten(1).norm(dim=1) / reach)
    assert (found.per_concept[:, 1] > 0).all() and (found.per_concept[:, 2] == 0).all()
    single = hed_picture(hgr, model, shown(model, c[1:]), prompt=Prompt(c[1:]))
    torch.testing.assert_close(single.per_concept, found.per_concept[1:])


def test_a_clean_prompt_costs_no_evaluation():
    hgr, model, c = small_hgr((-20.0, -20.0)), toy(), prompt(3)
    assert (hed_picture(hgr, model, shown(model, c), prompt=Prompt(c)).hed == 0).all() and model.module.seen == 0


# --- the probe --------------------------------------------------------------------------------------------------------


def made(count=160, noise=0.3, seed=0):
    """An HGR whose gate 0 opens for some prompts, pictures that show a concept where it does, and prompts by number."""
    hgr = small_hgr((0.0, 20.0))
    generator = torch.Generator().manual_seed(seed)
    harmful = torch.arange(count) % 2 == 0
    hgr.read = lambda *given: Reading(given[0])
    pictures = noise * torch.randn(count, 4, 3, generator=generator)
    pictures[harmful] += torch.tensor([2.0, -1.0, 1.0])
    x = prompt(count)
    x[:, 1, 0] = harmful.float()
    return hgr, pictures, lambda rows: Prompt(x[rows]), harmful


class Reading:
    def __init__(self, x):
        self.gates = torch.stack([x[:, 1, 0] * 0.9, x[:, 1, 0] * 0.9], -1)[:, None]
        self.prompt_gates = self.gates[:, 0]


@pytest.fixture
def probed(monkeypatch):
    hgr, pictures, prompts, _ = made()
    hgr.displacement = lambda reading, strengths: (torch.zeros(len(reading.gates), 6, WIDTH) + strengths.sum(), None)
    twins = {i: i + 1 for i in range(0, len(pictures), 2)}
    done = []

    class Count(Progress):
        def picture(self, *at):
            done.append(at)

    shown = Pictures(pictures, [""] * len(pictures), twins)
    hgr.probe = train_probe(hgr, toy(), shown, prompts=prompts, rate=0.05, progress=Count())
    assert done[-1] == (320, 320) and [n for n, _ in done] == sorted(n for n, _ in done)
    return hgr


def test_a_probe_learns_from_the_gates_alone_and_finds_the_concept_in_new_pictures(probed):
    _, new, _, harmful = made(seed=1)
    model = toy()
    x = probe_features(model, new, probed.encoder.prompt, percents=probed.probe.percents)
    assert model.module.seen == 2 * len(new)
    found = probe_logits(probed.probe, x)
    assert auroc(found[harmful, 0], found[~harmful, 0]) > 0.99
    head = probed.probe.heads[0]
    flagged = calibrated(found, probed.probe.heads)[:, 0] >= head.threshold
    assert flagged[harmful].float().mean() > 0.9 and flagged[~harmful].float().mean() < 0.1
    assert list(head.levels) == sorted(head.levels, reverse=True) and head.threshold in head.levels
    assert probed.probe.training["metrics"]["c0"]["auroc"] > 0.99
    torch.testing.assert_close(probe_features(toy(3), new[:5], probed.encoder.prompt), x[:5])


def test_a_probe_is_kept_in_the_file_and_merged(probed, tmp_path):
    del probed.read, probed.displacement
    file.save(probed, tmp_path / "a.safetensors")
    loaded = file.load(tmp_path / "a.safetensors")
    for name in ("mean", "std", "weight", "bias"):
        assert torch.equal(getattr(loaded.probe, name), getattr(probed.probe, name))
    assert loaded.probe.heads == probed.probe.heads and loaded.probe.hed == probed.probe.hed
    assert loaded.probe.training["pictures"] == 160 and loaded.probe.percents == probed.probe.percents
    heads, hed, concepts = (
        [dataclasses.replace(c, id="x" + c.id) for c in part]
        for part in (loaded.probe.heads, loaded.probe.hed, loaded.concepts)
    )
    other = dataclasses.replace(
        loaded, concepts=concepts, probe=dataclasses.replace(loaded.probe, heads=tuple(heads), hed=tuple(hed))
    )
    both = merge_hgrs([loaded, other])
    file.save(both, tmp_path / "both.safetensors")
    x = torch.randn(3, *loaded.probe.mean.shape) * loaded.probe.std + loaded.probe.mean
    assert torch.allclose(
        probe_logits(file.load(tmp_path / "both.safetensors").probe, x), probe_logits(loaded.probe, x).repeat(1, 2)
    )
    other.probe = None
    assert merge_hgrs([loaded, other]).probe is None


def test_another_denoiser_and_nan_are_refused_and_too_few_pictures_give_no_probe(probed, caplog):
    with pytest.raises(HGRError, match="this model has 6"):
        probe_logits(probed.probe, torch.zeros(1, 2, 6))
    with pytest.raises(HGRError, match="another denoiser"):
        probe_logits(probed.probe, probed.probe.mean[None] + 100)
    with pytest.raises(HGRError, match="NaN"):
        probe_logits(probed.probe, torch.full((1, 2, 16), torch.nan))
    hgr, pictures, prompts, _ = made(10)
    hgr.displacement = probed.displacement
    assert train_probe(hgr, toy(), Pictures(pictures, [], {}), prompts=prompts, rate=0.05) is None
    assert '5 have prompts with "c0", but 8 are needed' in caplog.text


def test_the_middle_of_a_transformer_is_its_middle_block_and_a_model_without_blocks_is_refused():
    transformer = nn.Module()
    transformer.few, transformer.layers = (
        nn.ModuleList([nn.Identity()] * 2),
        nn.ModuleList([nn.Linear(1, 1) for _ in range(5)]),
    )
    assert middle(transformer) is transformer.layers[2]
    with pytest.raises(ValueError, match="no middle block"):
        middle(nn.Linear(2, 2))


def test_pictures_that_do_not_show_what_their_prompts_say_do_not_set_the_threshold(monkeypatch):
    """One picture in five lacks what its prompt has, and one in twenty of the others shows it unasked."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400)[:, None] % 2 == 0
    shown = labels ^ (torch.rand(400, 1, generator=generator) < torch.where(labels, 0.2, 0.05))
    logits = torch.randn(400, 1, generator=generator) + torch.where(shown, 4.0, -4.0)
    doubt = probing.doubtful(logits, labels)
    wrong = shown != labels
    assert not (doubt & ~wrong).any() and (doubt & wrong).sum() > 0.85 * wrong.sum()
    sure = torch.where(labels, 6.0, -6.0) + 0.1 * torch.randn(400, 1, generator=generator)
    assert not probing.doubtful(sure, labels).any()
