"""The mathematics: what fires, what moves, and what stays the very same tensor."""

import math

import pytest
import torch
from helpers import prompt, small_hgr

from hgr.core.errors import HGRError
from hgr.core.guidance import LAMBDA, kept_share, ramp, shift
from hgr.core.options import MODES, concept_strengths, known_mode


def test_ramp_is_hard_below_the_threshold_and_full_from_halfway_up():
    gates = torch.tensor([0.0, 0.599, 0.6, 0.7, 0.8, 1.0])
    assert torch.allclose(ramp(gates, torch.tensor(0.6)), torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0]))
    assert torch.equal(ramp(gates, torch.tensor(0.0)), gates), "without a threshold"


def test_shift_returns_the_same_tensor_when_nothing_moves_and_touches_only_moved_samples():
    features = torch.randn(3, 5, 4)
    before = features.clone()
    assert shift(features, torch.zeros(3, 5, 4)) is features
    delta = torch.zeros(3, 5, 4)
    delta[1] = 1
    assert shift(features, 0.0 * delta) is features
    moved = shift(features, 2.0 * delta)
    assert torch.equal(moved[[0, 2]], before[[0, 2]])
    assert torch.equal(moved[1], before[1] + 2)
    assert torch.equal(features, before), "the input was changed in place"


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 1e5), (torch.float16, 40_000.0), (torch.float32, torch.inf)]
)
def test_features_that_their_type_cannot_hold_are_an_error_and_no_picture_of_nan(dtype, value):
    """The displacement may be finite, and its cast or the sum not."""
    features, delta = torch.full((2, 3, 4), 40_000.0, dtype=dtype), torch.zeros(2, 3, 4)
    delta[1, 0, 0] = value
    with pytest.raises(HGRError, match=f"do not fit {str(dtype).removeprefix('torch.')}: lower the strength"):
        shift(features, delta)


@pytest.mark.parametrize("pooled", [0, 8])
def test_a_displacement_that_overflows_is_an_error(pooled):
    """Finite weights whose gates are finite, as in a damaged file."""
    hgr = small_hgr((20.0,), pooled)
    (hgr.network.pooled_out if pooled else hgr.network.move_out).weight.fill_(1e38)
    hgr.network.move_in.bias.fill_(1e3)
    reading = hgr.read(prompt(), torch.ones(1, pooled) if pooled else None)
    assert reading.gates.isfinite().all()
    with pytest.raises(HGRError, match="this HGR moves this prompt's text features to NaN or infinity"):
        hgr.displacement(reading, torch.ones(1))


def test_a_gate_that_opens_for_nothing_is_an_error_and_no_silence():
    """An untrained or damaged network whose displacement is zero: the harmful prompt would pass untouched."""
    hgr = small_hgr((20.0, -20.0))
    hgr.network.move_out.weight.zero_()
    with pytest.raises(HGRError, match="this HGR finds a concept in this prompt but moves nothing"):
        hgr.displacement(hgr.read(prompt()), torch.ones(2))
    off, _ = hgr.displacement(hgr.read(prompt()), torch.tensor([0.0, 1.0]))
    assert not off.any(), "what is switched off or below its threshold may well do nothing"


@pytest.mark.parametrize("cfg", [1.5, 4.0, 7.5, 30.0])
def test_the_mixture_is_cfg_with_the_unconditional_score_adjusted(cfg):
    """As Dynamic Safe Guidance writes it."""
    u, c, safe = torch.randn(3, 5, dtype=torch.float64)
    for h in (0.0, 0.3, 1.0):
        adjusted = u + LAMBDA * h * (c - safe)
        wanted = adjusted + cfg * (c - adjusted)
        m = kept_share(torch.tensor(h, dtype=torch.float64), cfg)
        assert torch.allclose(u + cfg * (m * c + (1 - m) * safe - u), wanted)


def test_the_prompt_keeps_its_share_where_it_is_clean_or_nothing_is_unconditional():
    harm = torch.tensor([0.0, 0.5, 1.0])
    for cfg in (0.0, 0.5, 1.0):
        assert kept_share(harm, cfg).tolist() == [1, 1, 1]
    assert kept_share(harm, 4.0).tolist() == [1, 0.625, 0.25]
    assert kept_share(harm, math.inf).tolist() == [1, 0.5, 0]


def test_former_modes_say_what_they_are_now(caplog):
    assert [known_mode(mode) for mode in MODES] == list(MODES) and not caplog.records
    assert known_mode("balanced") == "dynamic"
    assert 'mode "balanced" no longer exists: it now does what "dynamic" does.' in caplog.text
    with pytest.raises(ValueError, match="mode: 'other' is unknown; it must be one of redirect, dynamic"):
        known_mode("other")


def test_concept_strengths_default_to_one_and_unknown_ids_warn(caplog):
    assert concept_strengths("", ["a", "b"]) == [1.0, 1.0]
    assert concept_strengths('{"a": 0, "b": 1.5}', ["a", "b"]) == [0.0, 1.5]
    assert concept_strengths('{"a": false}', ["a", "b"]) == [0.0, 1.0]
    with caplog.at_level("WARNING", "safecfg"):
        assert concept_strengths('{"c": 0}', ["a"]) == [1.0]
    assert len(caplog.records) == 1 and "c" in caplog.text


@pytest.mark.parametrize(
    "text", ["{", "[1]", "3", '{"a": 2.5}', '{"a": -1}', '{"a": "on"}', '{"a": NaN}', '{"a": null}']
)
def test_unusable_concepts_are_an_error(text):
    with pytest.raises(ValueError, match="concepts"):
        concept_strengths(text, ["a"])
