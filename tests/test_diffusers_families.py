"""SafeCFG on diffusers' pipelines with a transformer, and on those that start from a picture."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting
from helpers import first_prediction

from hgr.core.hgr import HGR, Concept, Encoder
from hgr.core.network import HGRNetwork
from hgr.core.options import MODES
from hgr.hosts.diffusers.pipeline import SafeCFG
from hgr.hosts.diffusers.prompts import encode, room

CLEAN, HARMFUL = "a red ball in a meadow", "a red ball and a skull in a meadow"
STEPS = 4
# Each family's options of a call, with classifier-free guidance.
FAMILIES = {
    "sd3": dict(height=32, width=32, guidance_scale=4.0),
    "flux": dict(height=32, width=32, true_cfg_scale=4.0, negative_prompt=""),
    "qwen": dict(height=64, width=64, true_cfg_scale=4.0, negative_prompt=""),
    "pixart": dict(height=32, width=32, guidance_scale=4.0, use_resolution_binning=False),
    "sana": dict(height=128, width=128, guidance_scale=4.0, use_resolution_binning=False),
    "wan": dict(height=64, width=64, num_frames=5, guidance_scale=4.0),
}
APART = {"flux", "qwen", "wan"}  # evaluate the negative prompt in a call of its own


def known_hgr(pipe) -> HGR:
    """An untrained HGR whose only gate is open for `HARMFUL` and closed for `CLEAN`."""
    empty = encode(pipe, [""])
    pooled = 0 if empty.pooled is None else empty.pooled.shape[-1]
    for seed in range(100):
        torch.manual_seed(seed)
        network = HGRNetwork(empty.features.shape[-1], pooled, 1, width=32, depth=1).requires_grad_(False).eval()
        torch.nn.init.normal_(network.move_out.weight, std=0.3)
        if pooled:
            torch.nn.init.normal_(network.pooled_out.weight, std=0.3)
        hgr = HGR(network, [Concept("skull", "Skull")], Encoder("test", 0, False, empty.features[0]))
        opened, closed = (hgr.read(*encode(pipe, [text])).prompt_gates.logit().item() for text in (HARMFUL, CLEAN))
        if opened > closed + 1e-3:
            scale = 20 / (opened - closed)
            hgr.concepts = [Concept("skull", "Skull", scale=scale, bias=-scale * (opened + closed) / 2)]
            return hgr
    raise AssertionError("no network tells the prompts apart")


@pytest.fixture(scope="module")
def families(demo_pipe):
    """Each family's pipeline and its HGR, made when they are asked for."""
    made = {}

    def family(name):
        if name not in made:
            pipe = demo_pipe if name == "sd" else getattr(tiny, name)(demo_pipe)
            made[name] = pipe, known_hgr(pipe)
        return made[name]

    return family


@pytest.fixture(params=FAMILIES)
def family(request, families):
    """Its name, its pipeline and its HGR."""
    return request.param, *families(request.param)


def sample(call, prompts, name="", **options):
    options = dict(num_inference_steps=STEPS, output_type="latent", **FAMILIES.get(name, {}) | options)
    if isinstance(negative := options.get("negative_prompt"), str) and isinstance(prompts, list):
        options["negative_prompt"] = [negative] * len(prompts)
    made = call(prompts, generator=torch.Generator().manual_seed(1), **options)
    return made.frames if hasattr(made, "frames") else made.images


def rows(pipe, call, prompts, name="", **options) -> int:
    """How many samples the denoisers evaluate in all steps together."""
    count = 0

    def add(_, args, kwargs):
        nonlocal count
        count += len(kwargs["encoder_hidden_states"])

    denoisers = [getattr(pipe, part, None) for part in ("unet", "transformer", "transformer_2")]
    hooks = [part.register_forward_pre_hook(add, with_kwargs=True) for part in denoisers if part is not None]
    try:
        sample(call, prompts, name, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return count


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)])
def test_in_a_batch_clean_prompts_are_bit_identical_and_harmful_ones_move(family, mode, window):
    name, pipe, hgr = family
    prompts = [CLEAN, HARMFUL]
    copies = {"num_videos_per_prompt" if name == "wan" else "num_images_per_prompt": 2}
    plain = sample(pipe, prompts, name, **copies)
    options = dict(mode=mode, start_percent=window[0], end_percent=window[1])
    guided = sample(SafeCFG(pipe, hgr), prompts, name, **copies, **options)
    half = len(plain) // 2
    assert torch.equal(plain[:half], guided[:half])
    assert not torch.isclose(plain[half:], guided[half:]).flatten(1).all(1).any()


def test_a_clean_prompt_alone_and_a_strength_of_0_are_plain(family):
    name, pipe, hgr = family
    for mode in MODES:
        assert torch.equal(sample(pipe, CLEAN, name), sample(SafeCFG(pipe, hgr), CLEAN, name, mode=mode))
        off = SafeCFG(pipe, hgr, strength=0.0)
        assert torch.equal(sample(pipe, HARMFUL, name), sample(off, HARMFUL, name, mode=mode))


def test_the_denoiser_is_evaluated_once_more_only_for_what_dynamic_mixes(family, caplog):
    name, pipe, hgr = family
    safe = SafeCFG(pipe, hgr)
    assert rows(pipe, pipe, [HARMFUL, CLEAN], name) == rows(pipe, safe, [HARMFUL, CLEAN], name) == 4 * STEPS
    assert rows(pipe, safe, [HARMFUL, CLEAN], name, mode="dynamic") == 5 * STEPS
    assert rows(pipe, safe, CLEAN, name, mode="dynamic") == 2 * STEPS
    half = {"mode": "dynamic", "start_percent": 0.25, "end_percent": 0.75}
    assert rows(pipe, safe, HARMFUL, name, **half) == 2 * STEPS + STEPS // 2
    assert "no effect" not in caplog.text


def prediction(pipe, call, name, **options):
    return first_prediction(pipe, lambda: sample(call, [HARMFUL, CLEAN], name, **options))


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen"])  # which rescales its prediction
def test_dynamic_is_cfg_with_the_unconditional_prediction_adjusted(families, name, strength):
    """eps_u' = eps_u + h (eps(c) - eps(c_safe)), from runs of the pipeline's own; h is the strength here."""
    pipe, hgr = families(name)
    safe = SafeCFG(pipe, hgr, strength=strength)
    plain, redirected = prediction(pipe, pipe, name), prediction(pipe, safe, name)
    dynamic = prediction(pipe, safe, name, mode="dynamic")
    # plain is u + w (c - u), redirected u + w (c_safe - u): their difference is w (c - c_safe)
    expected = plain - (4.0 - 1) / 4.0 * strength * (plain - redirected)
    assert torch.allclose(dynamic[0], expected[0], atol=1e-4) and not torch.allclose(dynamic[0], plain[0], atol=1e-3)
    assert torch.equal(dynamic[1], plain[1])


def test_wans_second_denoiser_is_mixed_by_its_own_guidance_scale(families):
    pipe, hgr = families("wan")
    safe = SafeCFG(pipe, hgr)
    pipe.register_to_config(boundary_ratio=2.0)  # all steps are the second's
    try:
        options = {"guidance_scale_2": 2.0}
        plain, redirected = (prediction(pipe, call, "wan", **options) for call in (pipe, safe))
        dynamic = prediction(pipe, safe, "wan", mode="dynamic", **options)
    finally:
        pipe.register_to_config(boundary_ratio=0.6)
    assert torch.allclose(dynamic[0], ((plain + redirected) / 2)[0], atol=1e-4)


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_without_a_negative_prompt_redirect_acts_and_dynamic_warns(families, name, caplog):
    pipe, hgr = families(name)
    safe, distilled = SafeCFG(pipe, hgr), {"negative_prompt": None}
    plain = sample(pipe, HARMFUL, name, **distilled)
    assert not torch.allclose(plain, sample(safe, HARMFUL, name, **distilled))
    assert rows(pipe, safe, HARMFUL, name, **distilled) == STEPS and "no effect" not in caplog.text
    assert torch.equal(plain, sample(safe, HARMFUL, name, mode="dynamic", **distilled))
    assert "no effect" in caplog.text


def test_nothing_is_left_behind_also_after_an_error(family):
    name, pipe, hgr = family

    def hooks():
        modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for part in modules for m in part.modules()]

    before, step = hooks(), pipe.scheduler.step

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for options in ({"mode": "dynamic"}, {"start_percent": 0.5}):
        pipe.scheduler.step = interrupt
        with pytest.raises(KeyboardInterrupt):
            sample(SafeCFG(pipe, hgr), HARMFUL, name, **options)
        assert pipe.scheduler.step is interrupt
        del pipe.scheduler.step
    assert hooks() == before and pipe.scheduler.step == step and "encode_prompt" not in vars(pipe)


def test_features_that_a_callback_changes_are_an_error_and_not_silence(families):
    pipe, hgr = families("sd3")

    def other(_, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] + 1}

    options = {"callback_on_step_end": other, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with pytest.raises(ValueError, match='or a callback changes them: use mode "redirect"'):
        sample(SafeCFG(pipe, hgr), HARMFUL, "sd3", mode="dynamic", **options)


def test_a_long_prompt_is_judged_in_parts_that_the_pipeline_reads(families, monkeypatch):
    pipe, _ = families("pixart")
    assert room(pipe) == 75
    monkeypatch.setattr(pipe.tokenizer, "model_max_length", 10**30)  # T5's names no limit of its own
    assert room(pipe) == 298


def test_a_pipeline_whose_encoder_reads_pictures_too_is_an_error(families):
    from diffusers import QwenImageEditPipeline

    pipe, hgr = families("qwen")
    with pytest.raises(TypeError, match="QwenImageEditPipeline: SafeCFG serves"):
        SafeCFG(QwenImageEditPipeline(**pipe.components, processor=None), hgr)


@pytest.mark.parametrize("task", [AutoPipelineForImage2Image, AutoPipelineForInpainting])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_pipelines_that_start_from_a_picture_keep_their_own_strength(families, name, task):
    pipe, hgr = families(name)
    pipe = task.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    side = 32 if name in ("sd3", "flux") else 128
    noise = torch.Generator().manual_seed(0)
    options = {"image": torch.rand(2, 3, side, side, generator=noise), "strength": 0.5}
    if task is AutoPipelineForInpainting:
        options["mask_image"] = (torch.rand(2, 1, side, side, generator=noise) > 0.5).float()
    options |= {key: FAMILIES[name][key] for key in ("height", "width") if name in FAMILIES}
    if name == "flux":
        options |= {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]}
    prompts, safe = [CLEAN, HARMFUL], SafeCFG(pipe, hgr)
    plain = sample(pipe, prompts, **options)
    assert torch.equal(plain, sample(SafeCFG(pipe, hgr, strength=0.0), prompts, **options))
    for more in ({}, {"start_percent": 0.5}, {"mode": "dynamic"}):
        guided = sample(safe, prompts, **options, **more)
        assert torch.equal(plain[0], guided[0]) and not torch.allclose(plain[1], guided[1])
    steps = STEPS // 2
    assert rows(pipe, safe, prompts, **options) == 4 * steps
    assert rows(pipe, safe, prompts, **options, mode="dynamic") == 5 * steps
    options["strength"] = 1.0
    assert not torch.allclose(plain, sample(pipe, prompts, **options))
