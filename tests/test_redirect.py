"""SafeCFG on prompts: harmfulness, batches, lengths, pooled vectors, and the wrong encoder."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import CHUNK, WIDTH, prompt, small_hgr

from hgr.core.hgr import MAX_TOKENS, HGRError
from hgr.core.prompt import Prompt
from hgr.core.redirect import redirect


def test_a_clean_prompt_and_an_idle_strength_give_the_same_objects():
    c = Prompt(prompt(2))
    closed = redirect(small_hgr((-20.0, -20.0)), c, strengths=[1.0, 1.0])
    assert closed.safe.features is c.features and closed.harm.tolist() == [0, 0]
    idle = redirect(small_hgr(), c, strengths=[0.0, 0.0])
    assert idle.safe is c and idle.harm.tolist() == [0, 0] and idle.gates.shape == (2, 2)


def test_the_safe_prompt_is_the_prompt_plus_its_displacement():
    hgr, c = small_hgr(), prompt()
    delta = hgr.displacement(hgr.read(c), torch.ones(2))[0]
    assert delta.abs().max() > 0.1
    assert torch.allclose(redirect(hgr, Prompt(c), strengths=[1.0, 1.0]).safe.features, c + delta)


def test_harm_is_the_largest_strength_of_a_concept_that_fires():
    """Times its activation, which is 1/2 at the threshold of .5 and 1 for certain gates."""
    at = math.log(0.55 / 0.45)  # a gate of .55
    hgr = small_hgr((20.0, at, -20.0))
    for concept in hgr.concepts:
        object.__setattr__(concept, "scale", 0.0)

    def harm(*strengths):
        return round(redirect(hgr, Prompt(prompt()), strengths=list(strengths)).harm.item(), 4)

    assert harm(1.0, 1.0, 1.0) == 1 and harm(2.0, 0.0, 0.0) == 1
    assert harm(0.3, 0.0, 0.0) == 0.3
    assert harm(0.0, 1.0, 1.0) == 0.6 and harm(0.5, 1.0, 0.0) == 0.6
    assert harm(0.0, 0.0, 1.0) == 0


def test_strength_scales_the_displacement_and_a_concept_switched_off_does_nothing():
    hgr, c = small_hgr((20.0, 20.0)), prompt()

    def moved(*strengths):
        return redirect(hgr, Prompt(c), strengths=list(strengths)).safe.features - c

    assert torch.allclose(moved(2.0, 0.0), 2 * moved(1.0, 0.0), atol=1e-5)
    assert torch.allclose(moved(1.0, 1.0), moved(1.0, 0.0) + moved(0.0, 1.0), atol=1e-5)
    assert not torch.allclose(moved(1.0, 0.0), moved(0.0, 1.0), atol=1e-2)


def split_hgr(features):
    """An HGR whose one gate is open for the first sample (or chunk) and closed for the second."""
    hgr = small_hgr((0.0,))
    logits = hgr.network.gate_logits(hgr.network.encode(features)).flatten()
    scale = 60 / (logits[0] - logits[1]).item()
    concept = hgr.concepts[0]
    bias = -scale * logits.mean().item()
    hgr.concepts[0] = type(concept)(concept.id, concept.label, "", 0.5, scale, bias)
    return hgr


def test_in_a_batch_only_the_harmful_sample_moves():
    c = prompt(2)
    result = redirect(split_hgr(c), Prompt(c), strengths=[1.0])
    assert (result.harm > 0).tolist() == [True, False]
    assert torch.equal(result.safe.features[1], c[1]) and not torch.equal(result.safe.features[0], c[0])


def test_one_long_sequence_is_read_in_parts_of_the_length_that_was_trained_on():
    """Encoders that fill up to 256 or 512 tokens: a gate that opens on the first part must not drown in padding."""
    hgr = replace(small_hgr((20.0, -20.0)), encoder=replace(small_hgr().encoder, chunk=0, fixed_start=False))
    features = torch.randn(2, 2 * MAX_TOKENS + 10, WIDTH, generator=torch.Generator().manual_seed(0))
    reading = hgr.read(features)
    delta, _ = hgr.displacement(reading, torch.ones(2))
    parts = [hgr.read(part) for part in features.split(MAX_TOKENS, 1)]
    assert reading.gates.shape == (2, 3, 2) and reading.length == features.shape[1]
    assert torch.allclose(reading.gates, torch.cat([part.gates for part in parts], 1), atol=1e-5)
    assert torch.allclose(delta, torch.cat([hgr.displacement(part, torch.ones(2))[0] for part in parts], 1), atol=1e-4)


def test_a_part_that_is_padding_alone_counts_as_clean():
    hgr = replace(small_hgr((20.0,)), encoder=replace(small_hgr().encoder, chunk=0, fixed_start=False))
    features = torch.randn(1, 2 * MAX_TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(2 * MAX_TOKENS)[None] < 20
    reading = hgr.read(features, mask=mask)
    delta, _ = hgr.displacement(reading, torch.ones(1))
    assert reading.gates[0, 0, 0] > 0.9 and reading.gates[0, 1, 0] == 0
    assert delta[:, :20].any() and not delta[:, 20:].any()
    with pytest.raises(HGRError, match="no token at all"):
        hgr.read(features, mask=torch.zeros_like(mask))


def test_padding_says_nothing_about_the_encoder():
    """Zeros behind a prompt may be far from an encoder's features."""
    hgr = replace(small_hgr((20.0,)), encoder=replace(small_hgr().encoder, chunk=0, fixed_start=False))
    hgr.network.mean.fill_(8.0)
    features = 8 + torch.randn(1, 20, WIDTH, generator=torch.Generator().manual_seed(0))
    features[:, 5:] = 0
    assert hgr.read(features, mask=torch.arange(20)[None] < 5).gates.item() > 0.9
    with pytest.raises(HGRError, match="another text encoder"):
        hgr.read(features)


def test_in_a_long_prompt_only_the_harmful_chunk_moves():
    c = prompt(chunks=2)
    hgr = split_hgr(c.reshape(2, CHUNK, WIDTH))
    moved = redirect(hgr, Prompt(c), strengths=[1.0])
    assert torch.equal(moved.safe.features[:, CHUNK:], c[:, CHUNK:])
    assert not torch.equal(moved.safe.features[:, :CHUNK], c[:, :CHUNK])
    assert moved.harm.item() == pytest.approx(1.0)


def test_pooled_vectors_move_too():
    hgr, c = small_hgr(pooled_dim=8), prompt()
    pooled = torch.randn(1, 8)
    assert not torch.equal(redirect(hgr, Prompt(c, pooled), strengths=[1.0, 1.0]).safe.pooled, pooled)


@pytest.mark.parametrize("features", [torch.randn(1, CHUNK, WIDTH + 1), -prompt(), prompt() * torch.nan])
def test_another_encoder_is_an_error_and_never_a_silent_no_op(features):
    with pytest.raises(HGRError):
        redirect(small_hgr(), Prompt(features), strengths=[1.0, 1.0])
    if not features.isnan().any():
        with pytest.raises(HGRError, match="a test encoder"):
            redirect(small_hgr(), Prompt(features), strengths=[1.0, 1.0])


def test_an_encoder_without_a_fixed_start_is_told_by_its_statistics():
    hgr = small_hgr(fixed_start=False)
    redirect(hgr, Prompt(-prompt()), strengths=[1.0, 1.0])
    with pytest.raises(HGRError, match="another text encoder"):
        redirect(hgr, Prompt(100 * prompt()), strengths=[1.0, 1.0])


def test_a_prompt_of_nothing_but_padding_is_an_error_and_does_not_pass_as_clean():
    mask = torch.zeros(1, CHUNK, dtype=torch.bool)
    with pytest.raises(HGRError, match="NaN"):
        redirect(small_hgr(), Prompt(prompt(), None, mask), strengths=[1.0, 1.0])


def test_a_missing_pooled_output_is_an_error():
    with pytest.raises(HGRError, match="pooled"):
        redirect(small_hgr(pooled_dim=8), Prompt(prompt()), strengths=[1.0, 1.0])


@pytest.mark.parametrize("fixed_start", [True, False])
def test_a_row_of_zeros_is_no_prompt(fixed_start):
    """ComfyUI's ConditioningZeroOut makes it. The row passes as it is, and the others are read."""
    hgr, c = small_hgr((20.0, 20.0), fixed_start=fixed_start), prompt(3)
    c[1] = 0
    result = redirect(hgr, Prompt(c), strengths=[1.0, 1.0])
    assert (result.harm > 0).tolist() == [True, False, True] and result.gates[1].tolist() == [0, 0]
    assert torch.equal(result.safe.features[1], c[1])
    zeros = Prompt(torch.zeros(1, 6, WIDTH))
    assert redirect(hgr, zeros, strengths=[1.0, 1.0]).safe.features is zeros.features


def test_an_average_with_another_prompt_is_named_as_a_cause():
    c = prompt()
    with pytest.raises(HGRError, match="was averaged with another one"):
        small_hgr().read(c * torch.linspace(0.1, 0.2, CHUNK)[:, None])


def test_the_token_that_every_prompt_starts_with_does_not_move():
    """A second SafeCFG node knows the encoder by it."""
    hgr = small_hgr((20.0,))
    torch.nn.init.normal_(hgr.network.move_out.bias)
    x = torch.randn(2, 2 * CHUNK, WIDTH)
    x[:, 0] = x[:, CHUNK] = hgr.encoder.first
    delta, _ = hgr.displacement(hgr.read(x), torch.ones(1))
    assert (delta[:, 1:CHUNK] != 0).any(-1).all() and not delta[:, [0, CHUNK]].any()
    hgr.displacement(hgr.read(x[:, :1]), torch.ones(1))  # nothing but that token is no damage of the file
    hgr = replace(hgr, encoder=replace(hgr.encoder, fixed_start=False))
    assert (hgr.displacement(hgr.read(x), torch.ones(1))[0][:, 0] != 0).any()


def test_in_an_encoder_without_chunks_later_parts_start_with_words():
    hgr = small_hgr((20.0,))
    hgr = replace(hgr, encoder=replace(hgr.encoder, chunk=0))
    torch.nn.init.normal_(hgr.network.move_out.bias)
    x = torch.randn(2, 2 * MAX_TOKENS, WIDTH)
    x[:, 0] = hgr.encoder.first
    delta, _ = hgr.displacement(hgr.read(x), torch.ones(1))
    assert (delta[:, 1:] != 0).any(-1).all() and not delta[:, 0].any()
