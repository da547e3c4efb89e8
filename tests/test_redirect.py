"""SafeCFG on prompts: modes, batches, lengths, pooled vectors, and the wrong encoder."""

from dataclasses import replace

import pytest
import torch
from helpers import CHUNK, WIDTH, prompt, small_hgr

from hgr.core.hgr import MAX_TOKENS, HGRError
from hgr.core.prompt import Prompt
from hgr.core.redirect import redirect


def test_a_clean_prompt_and_an_idle_strength_give_the_same_objects():
    positive, negative = [Prompt(prompt(2))], [Prompt(prompt())]
    closed = redirect(small_hgr((-20.0, -20.0)), positive, negative, strengths=[1.0, 1.0], mode="balanced")
    assert closed.positive[0].features is positive[0].features and closed.negative[0] is negative[0]
    idle = redirect(small_hgr(), positive, negative, strengths=[0.0, 0.0], mode="balanced")
    assert idle.positive is positive and idle.negative is negative


@pytest.mark.parametrize(("mode", "a", "b"), [("redirect", 1, 0), ("dynamic", 0, 1), ("balanced", 0.5, 1)])
def test_modes_move_each_side_by_their_scale(mode, a, b):
    hgr, c, u = small_hgr(), prompt(), prompt(seed=2)
    delta = hgr.displacement(hgr.read(c), torch.ones(2))[0]
    result = redirect(hgr, [Prompt(c)], [Prompt(u)], strengths=[1.0, 1.0], mode=mode)
    assert delta.abs().max() > 0.1
    assert torch.allclose(result.positive[0].features, c + a * delta)
    assert torch.allclose(result.negative[0].features, u - b * delta)


def test_strength_scales_the_displacement_and_a_concept_switched_off_does_nothing():
    hgr, c = small_hgr((20.0, 20.0)), prompt()

    def moved(*strengths):
        return redirect(hgr, [Prompt(c)], [], strengths=list(strengths), mode="redirect").positive[0].features - c

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
    c, u = prompt(2), prompt(seed=3)
    result = redirect(split_hgr(c), [Prompt(c)], [Prompt(u)], strengths=[1.0], mode="balanced")
    assert result.fired[0].tolist() == [True, False]
    assert torch.equal(result.positive[0].features[1], c[1]) and not torch.equal(result.positive[0].features[0], c[0])
    assert result.negative[0].features.shape == c.shape
    assert torch.equal(result.negative[0].features[1], u[0]) and not torch.equal(result.negative[0].features[0], u[0])


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


def test_in_a_long_prompt_only_the_harmful_chunk_moves():
    c = prompt(chunks=2)
    hgr = split_hgr(c.reshape(2, CHUNK, WIDTH))
    moved = redirect(hgr, [Prompt(c)], [Prompt(prompt(seed=4))], strengths=[1.0], mode="balanced")
    assert torch.equal(moved.positive[0].features[:, CHUNK:], c[:, CHUNK:])
    assert not torch.equal(moved.positive[0].features[:, :CHUNK], c[:, :CHUNK])
    assert moved.negative[0].features.shape[1] == CHUNK


def test_pooled_vectors_move_too():
    hgr, c = small_hgr(pooled_dim=8), prompt()
    pooled = torch.randn(1, 8)
    result = redirect(hgr, [Prompt(c, pooled)], [Prompt(prompt(), pooled)], strengths=[1.0, 1.0], mode="balanced")
    assert not torch.equal(result.positive[0].pooled, pooled) and not torch.equal(result.negative[0].pooled, pooled)


@pytest.mark.parametrize("features", [torch.randn(1, CHUNK, WIDTH + 1), -prompt(), prompt() * torch.nan])
def test_another_encoder_is_an_error_and_never_a_silent_no_op(features):
    with pytest.raises(HGRError):
        redirect(small_hgr(), [Prompt(features)], [], strengths=[1.0, 1.0], mode="redirect")
    if not features.isnan().any():
        with pytest.raises(HGRError, match="a test encoder"):
            redirect(small_hgr(), [Prompt(features)], [], strengths=[1.0, 1.0], mode="redirect")


def test_an_encoder_without_a_fixed_start_is_told_by_its_statistics():
    hgr = small_hgr(fixed_start=False)
    redirect(hgr, [Prompt(-prompt())], [], strengths=[1.0, 1.0], mode="redirect")
    with pytest.raises(HGRError, match="another text encoder"):
        redirect(hgr, [Prompt(100 * prompt())], [], strengths=[1.0, 1.0], mode="redirect")


def test_a_prompt_of_nothing_but_padding_is_an_error_and_does_not_pass_as_clean():
    mask = torch.zeros(1, CHUNK, dtype=torch.bool)
    with pytest.raises(HGRError, match="NaN"):
        redirect(small_hgr(), [Prompt(prompt(), None, mask)], [], strengths=[1.0, 1.0], mode="redirect")


def test_a_missing_pooled_output_is_an_error():
    with pytest.raises(HGRError, match="pooled"):
        redirect(small_hgr(pooled_dim=8), [Prompt(prompt())], [], strengths=[1.0, 1.0], mode="redirect")


def test_prompts_of_different_batch_sizes_share_one_negative():
    hgr, two, three = small_hgr(), prompt(2), prompt(3, seed=6)
    negative = (
        redirect(hgr, [Prompt(two), Prompt(three)], [Prompt(prompt())], strengths=[1.0, 1.0], mode="dynamic")
        .negative[0]
        .features
    )
    delta = [hgr.displacement(hgr.read(c), torch.ones(2))[0] for c in (two, three)]
    assert negative.shape[0] == 6  # however often the host repeats each of them, a sample's rows belong together
    for i in range(6):
        assert torch.allclose(negative[i], (prompt() - (delta[0][i % 2] + delta[1][i % 3]) / 2)[0], atol=1e-6)


@pytest.mark.parametrize("fixed_start", [True, False])
def test_a_row_of_zeros_is_no_prompt(fixed_start):
    """ComfyUI's ConditioningZeroOut makes it. The row passes as it is, and the others are read."""
    hgr, c = small_hgr((20.0, 20.0), fixed_start=fixed_start), prompt(3)
    c[1] = 0
    result = redirect(hgr, [Prompt(c)], [], strengths=[1.0, 1.0], mode="redirect")
    assert result.fired[0].tolist() == [True, False, True] and result.gates[0][1].tolist() == [0, 0]
    assert torch.equal(result.positive[0].features[1], c[1])
    zeros = Prompt(torch.zeros(1, 6, WIDTH))
    assert redirect(hgr, [zeros], [], strengths=[1.0, 1.0], mode="redirect").positive[0].features is zeros.features


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
