"""Judging: what the evidence of several prompts, crops and pictures becomes, and which HGRs cannot judge pictures."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import WIDTH, prompt, small_hgr
from torch import nn

from hgr.core.denoiser import Denoiser
from hgr.core.hgr import Concept, HGRError, Probe, calibrated
from hgr.core.progress import Progress
from hgr.core.prompt import Prompt
from hgr.detection.hed import hed_picture
from hgr.detection.judge import highest, judge_pictures, judge_prompts, probe_of, trained_size
from hgr.detection.probe import probe_features, probe_logits
from hgr.detection.report import BOTH, PICTURE, PROMPT

SIZE = (3, 4, 5)


class Toy(nn.Module):
    """Predicts latents (B, *SIZE) that are linear in the prompt's mean features; its middle block sees the noisy
    ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.draw, self.middle_block = nn.Linear(WIDTH, 60), nn.Conv2d(3, 4, 1)
        self.requires_grad_(False)

    def forward(self, noisy, features):
        self.middle_block(noisy)
        return self.draw(features.mean(1)).unflatten(1, SIZE)


@pytest.fixture
def denoiser():
    """Two at a time, so that three pictures are two batches."""
    model = Toy()

    def at(latents, percent, noise):
        place = percent[:, None, None, None]
        return lambda features, pooled: model(place * latents + (1 - place) * noise, features) - latents

    return Denoiser(model, at, None, batch=2)


@pytest.fixture
def hgr():
    """Its first concept is in every prompt."""
    torch.manual_seed(1)
    probe = Probe(
        (0.3, 0.7),
        torch.zeros(2, 8),
        torch.ones(2, 8),
        torch.randn(2, 2, 8),
        torch.randn(2),
        (Concept("c0", "A", scale=2.0, bias=0.3), Concept("c1", "B", scale=0.5, bias=-1.0)),
        (Concept("c0", "A", scale=3.0, bias=-0.5), Concept("c1", "B", scale=3.0, bias=-0.5)),
        {"latent": list(SIZE)},
    )
    return dataclasses.replace(small_hgr(), probe=probe, name="mine")


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, *SIZE, generator=torch.Generator().manual_seed(2))


def test_the_highest_score_of_prompts_that_act_together_counts_and_one_row_is_for_all():
    one, two = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.5, 0.2], [0.0, 0.95]])
    assert torch.equal(highest([one, two]), torch.tensor([[0.5, 0.9], [0.1, 0.95]]))
    assert torch.equal(highest([two]), two)
    with pytest.raises(ValueError, match="batches of 2, 3: they must have the same size"):
        highest([two, torch.zeros(3, 2)])


def test_prompts_are_judged_by_their_gates(hgr):
    found = judge_prompts(hgr, [Prompt(prompt(2)), Prompt(prompt(seed=5))])
    gates = [hgr.read(x).prompt_gates for x in (prompt(2), prompt(seed=5))]
    assert found.kind == PROMPT and found.concepts is hgr.concepts
    assert torch.equal(found.scores, torch.maximum(gates[0], gates[1].expand(2, -1)))


def test_a_picture_gets_the_highest_score_of_its_crops(hgr, denoiser):
    crops, done = latents(3, 4), []

    class Count(Progress):
        def picture(self, *at):
            done.append(at)

    (found,) = judge_pictures(hgr, denoiser, crops, seed=7, samples=2, progress=Count())
    assert found.kind == PICTURE and found.concepts == hgr.probe.heads and found.scores.shape == (3, 2)
    for i, own in enumerate(crops):
        x = probe_features(denoiser, own, hgr.encoder.prompt, percents=hgr.probe.percents, samples=2, seed=7)
        alone = calibrated(probe_logits(hgr.probe, x), hgr.probe.heads)
        torch.testing.assert_close(found.scores[i], alone.amax(0), msg="other pictures must change nothing")
    assert done[-1] == (12, 12) and [n for n, _ in done] == sorted(n for n, _ in done)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_picture_with_its_prompt_is_judged_by_both_and_one_prompt_is_for_all(hgr, denoiser, rows):
    crops, text = latents(3, 2), prompt(rows)
    both, alone = judge_pictures(hgr, denoiser, crops, prompts=[Prompt(text)], percents=(0.2, 0.6), seed=3)
    assert (both.kind, alone.kind) == (BOTH, PICTURE) and both.concepts == hgr.probe.hed
    for i in range(3):
        own = Prompt(text[i % rows][None])
        hed = hed_picture(hgr, denoiser, crops[i, :1], prompt=own, percents=(0.2, 0.6), seed=3).per_concept
        torch.testing.assert_close(both.scores[i], calibrated(hed, hgr.probe.hed)[0])
    assert torch.equal(alone.scores, judge_pictures(hgr, denoiser, crops, seed=3)[0].scores)


def test_prompts_that_act_together_count_each_and_another_number_of_them_is_an_error(hgr, denoiser):
    crops, first, second = latents(3, 1), Prompt(prompt(3)), Prompt(prompt(seed=5))
    together = judge_pictures(hgr, denoiser, crops, prompts=[first, second])[0].scores
    each = [judge_pictures(hgr, denoiser, crops, prompts=[one])[0].scores for one in (first, second)]
    torch.testing.assert_close(together, torch.maximum(*each))
    with pytest.raises(ValueError, match="there are 1, 2 prompts and 3 pictures: give one prompt for all"):
        judge_pictures(hgr, denoiser, crops, prompts=[second, Prompt(prompt(2))])


def test_an_hgr_without_a_probe_cannot_judge_pictures(hgr, denoiser):
    bare = dataclasses.replace(hgr, probe=None)
    for ask in (probe_of, trained_size, lambda hgr: judge_pictures(hgr, denoiser, latents(1, 1))):
        with pytest.raises(HGRError, match="mine has no picture probe, so it can only judge prompts"):
            ask(bare)
    assert probe_of(hgr) is hgr.probe


def test_the_trained_size_is_that_of_pictures_or_an_error(hgr):
    def sized(size):
        return dataclasses.replace(hgr, probe=dataclasses.replace(hgr.probe, training={"latent": size}))

    assert trained_size(hgr) == SIZE and trained_size(sized([16, 1, 60, 104])) == (16, 1, 60, 104)
    for wrong in (None, "4x64x64", [4, 64], [4, 0, 8], [4, 64.0, 64], [4, 64, 1025], [16, 5, 60, 104], [1] * 5):
        with pytest.raises(
            HGRError, match="mine's picture probe was made for latents of size .*not latents of pictures"
        ):
            trained_size(sized(wrong))
