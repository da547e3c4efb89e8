"""Losses, calibration and the loop: training learns, an interruption changes nothing, a NaN loses nothing."""

import pytest
import torch
from helpers import prompt, small_hgr
from torch import nn

from hgr.attention import attend, query_bank
from hgr.calibration import platt, threshold
from hgr.loop import Loop
from hgr.losses import attention_loss, score_loss
from hgr.network import HGRNetwork
from hgr.training import Batch, Weights, calibrate, step_loss


def line(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def squares(module):
    return lambda rng, generator: module(torch.randn(8, 3, generator=generator)).sub(rng.random()).square().mean()


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    whole = line()
    Loop("a", whole, 20, 0.1, tmp_path, 0).run(squares(whole))
    half = line()
    first = Loop("b", half, 20, 0.1, tmp_path, 0)
    first.stage = "a"  # the same random numbers
    calls = squares(half)

    def interrupted(rng, generator):
        if first.step == 9:
            raise KeyboardInterrupt
        return calls(rng, generator)

    with pytest.raises(KeyboardInterrupt):
        first.run(interrupted)
    first.checkpoint()
    resumed = line(seed=5)
    second = Loop("b", resumed, 20, 0.1, tmp_path, 0)
    second.stage = "a"
    assert second.step == 9
    second.run(squares(resumed))
    assert torch.equal(whole.weight, resumed.weight)


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("hgr.loop.CHECKPOINT_SECONDS", 0.0)
    module = line()
    loop = Loop("x", module, 20, 0.1, tmp_path, 0)
    good = squares(module)
    with pytest.raises(FloatingPointError, match="step 7"):
        loop.run(lambda rng, generator: good(rng, generator) * (torch.nan if loop.step == 7 else 1))
    resumed = line()
    assert Loop("x", resumed, 20, 0.1, tmp_path, 0).step == 7
    assert torch.equal(resumed.weight, module.weight) and resumed.weight.isfinite().all()


def test_platt_calibrates_and_the_threshold_holds_its_rate():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, generator=generator) * 2
    labels = (torch.rand(20_000, generator=generator) < (0.5 * logits - 1).sigmoid()).float()
    scale, bias = platt(logits, labels)
    assert abs(scale - 0.5) < 0.05 and abs(bias + 1) < 0.1
    gates = torch.rand(10_000, generator=generator)
    assert abs((gates >= threshold(gates, 0.1)).float().mean() - 0.1) < 0.01
    assert threshold(torch.zeros(10), 0.01) == 0.3 and threshold(torch.ones(10), 0.01) == 0.95
    with pytest.raises(ValueError, match="false-positive"):
        threshold(gates, 0)


class Attention(nn.Module):
    """The shape that diffusers' and ComfyUI's cross-attention share."""

    def __init__(self):
        super().__init__()
        self.heads = 2
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 8), nn.Linear(16, 8), nn.Linear(16, 8)
        self.to_out = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, hidden_states, context):
        return torch.stack([attend(self, self.to_q(h), context[i:i + 1])[0] for i, h in enumerate(hidden_states)])


def test_attention_and_score_losses_are_shares_of_the_original_distance():
    layer = Attention()
    bank = query_bank([layer], lambda: layer(hidden_states=torch.randn(3, 5, 8), context=torch.randn(3, 6, 16)), 7,
                      torch.Generator().manual_seed(0))
    assert bank[0].shape == (7, 8)
    harmful, clean = prompt(2), prompt(2, seed=5)
    for loss in (lambda s: attention_loss([lambda f: attend(layer, bank[0], f)], s, clean, harmful),
                 lambda s: score_loss(lambda f: f.square().sum(1), s, clean, harmful)):
        assert loss(clean).item() == 0
        assert abs(loss(harmful).item() - 1) < 1e-5


def test_training_opens_gates_moves_features_to_the_clean_ones_and_calibrates(tmp_path):
    """A toy encoder: concept k adds a fixed vector to the tokens after the first."""
    torch.manual_seed(0)
    marks = torch.randn(2, 16) * 3
    hgr = small_hgr((0.0, 0.0))
    hgr.network = HGRNetwork(16, 0, 2, width=24, depth=1)

    def batch(generator, size=32):
        base = torch.randn(size, 6, 16, generator=generator)
        base[:, 0] = 1
        labels = torch.rand(size, 2, generator=generator) < 0.5
        labels[~labels.any(1), 0] = True
        removed = labels & (torch.rand(size, 2, generator=generator) < 0.7)
        after = torch.ones(6, 1)
        after[0] = 0

        def with_marks(flags):
            return base + (flags.float() @ marks)[:, None] * after

        return Batch(with_marks(labels), labels, with_marks(labels & ~removed), removed, base)

    loop = Loop("hgr", hgr.network, 300, 3e-3, tmp_path, 0, average=0.9)
    loop.run(lambda rng, generator: step_loss(hgr.network, batch(generator), Weights(text=1, attention=0)))
    hgr.network.requires_grad_(False)
    fresh = batch(torch.Generator().manual_seed(99), 400)
    calibrated = calibrate(hgr, fresh.harmful, fresh.labels, fresh.clean, 0.01)
    reading = calibrated.read(fresh.harmful)
    fired = reading.prompt_gates >= calibrated.thresholds
    assert (fired == fresh.labels).float().mean() > 0.97
    false = (calibrated.read(fresh.clean).prompt_gates >= calibrated.thresholds).float().mean()
    assert false <= 0.02
    safe = calibrated.redirect(fresh.harmful)
    assert (safe - fresh.clean).square().mean() < 0.1 * (fresh.harmful - fresh.clean).square().mean()
