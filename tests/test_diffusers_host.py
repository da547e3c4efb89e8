"""SafeCFG through diffusers' own pipelines: what must be equal bit for bit, and what must move."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from helpers import first_prediction

from hgr.core.hgr import HGR, Concept, Encoder, HGRError
from hgr.core.network import HGRNetwork
from hgr.core.options import MODES
from hgr.core.prompt import Prompt
from hgr.hosts.diffusers.demo import load_demo_pipeline
from hgr.hosts.diffusers.pipeline import SafeCFG
from hgr.hosts.diffusers.prompts import encode

CLEAN, HARMFUL = "a red ball in a meadow", "a red ball and a skull in a meadow"
STEPS = 4


def make_hgr(prompts: Prompt, empty: Prompt, ids: tuple[str, ...] = ("skull", "bomb")) -> HGR:
    """An untrained HGR whose calibration makes every gate open for the first prompt and closed for the second."""
    torch.manual_seed(0)
    width, pooled = prompts.features.shape[-1], 0 if prompts.pooled is None else prompts.pooled.shape[-1]
    network = HGRNetwork(width, pooled, len(ids), width=32, depth=1).requires_grad_(False)
    torch.nn.init.normal_(network.move_out.weight, std=0.3)
    if pooled:
        torch.nn.init.normal_(network.pooled_out.weight, std=0.3)
    logits = network.gate_logits(network.encode(*prompts))
    concepts = []
    for name, (opened, closed) in zip(ids, logits.T.tolist(), strict=True):
        scale = 20 / (opened - closed)
        concepts.append(Concept(name, name.capitalize(), scale=scale, bias=-scale * (opened + closed) / 2))
    encoder = Encoder("test", 0, True, empty.features[0])
    return HGR(network.eval(), concepts, encoder)


@pytest.fixture(scope="module")
def pipe(demo_pipe):
    return demo_pipe


@pytest.fixture(scope="module")
def safe(pipe):
    return SafeCFG(pipe, make_hgr(encode(pipe, [HARMFUL, CLEAN]), encode(pipe, [""])))


def sample(call, prompt, **options):
    options = {"num_inference_steps": STEPS, "output_type": "latent", **options}
    return call(prompt, generator=torch.Generator().manual_seed(1), **options).images


def test_demo_pipeline_makes_pictures(pipe):
    images = sample(pipe, [CLEAN], output_type="pil")
    assert images[0].size == (128, 128)
    assert load_demo_pipeline(torch.float16).unet.dtype == torch.float16


def test_gates_tell_the_prompts_apart(safe):
    gates = safe.gates([HARMFUL, CLEAN])
    assert gates.shape == (2, 2)
    assert (gates[0] > 0.99).all() and (gates[1] < 0.01).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copies", [1, 2])
def test_clean_prompts_are_bit_identical_and_harmful_ones_move(pipe, safe, mode, copies):
    prompts = [CLEAN, HARMFUL]
    plain = sample(pipe, prompts, num_images_per_prompt=copies)
    guided = sample(safe, prompts, mode=mode, num_images_per_prompt=copies)
    assert torch.equal(plain[:copies], guided[:copies])
    assert not torch.isclose(plain[copies:], guided[copies:]).flatten(1).all(1).any()


def test_a_clean_prompt_given_as_text_with_a_negative_one(pipe, safe):
    options = {"negative_prompt": "a blue box", "guidance_scale": 4.0}
    assert torch.equal(sample(pipe, CLEAN, **options), sample(safe, CLEAN, **options))


def test_prompt_embeds_are_redirected_too(pipe, safe):
    features = encode(pipe, [HARMFUL]).features
    options = {"prompt_embeds": features, "negative_prompt_embeds": encode(pipe, [""]).features}
    assert torch.equal(sample(safe, HARMFUL), sample(safe, None, **options))


def test_off_is_plain_cfg(pipe, safe):
    plain = sample(pipe, HARMFUL)
    assert torch.equal(plain, sample(SafeCFG(pipe, safe.hgr, strength=0.0), HARMFUL))
    assert torch.equal(plain, sample(safe, HARMFUL, concepts={"skull": 0, "bomb": 0}))


def test_concepts_as_mapping_and_as_json_are_the_same(safe):
    by_mapping, by_text = ({"skull": 0, "bomb": 0.5}, '{"skull": 0, "bomb": 0.5}')
    toggled = sample(safe, HARMFUL, concepts=by_mapping)
    assert torch.equal(toggled, sample(safe, HARMFUL, concepts=by_text))
    assert not torch.allclose(toggled, sample(safe, HARMFUL))


def test_a_toggle_leaves_the_other_concepts_displacement(safe):
    """With one concept off the features are those of an HGR without it."""
    only = dataclasses.replace(safe.hgr.concepts[0], bias=-100.0, scale=0.0)
    without = HGR(safe.hgr.network, [only, safe.hgr.concepts[1]], safe.hgr.encoder)
    assert torch.equal(sample(safe, HARMFUL, concepts={"skull": 0}), sample(SafeCFG(safe.pipe, without), HARMFUL))


def test_sensitivity_decides_what_counts_as_present(pipe, safe):
    """The levels are set about the gate of the prompt, so that it is present from "normal" on."""
    gate = safe.gates([HARMFUL])[0, 0].item()
    levels = (gate + 0.9 * (1 - gate), gate + 0.5 * (1 - gate), 0.9 * gate, 0.8 * gate, 0.7 * gate)
    concepts = [dataclasses.replace(c, threshold=levels[2], levels=levels) for c in safe.hgr.concepts]
    chosen = SafeCFG(pipe, dataclasses.replace(safe.hgr, concepts=concepts))
    plain = sample(pipe, HARMFUL)
    for sensitivity in ("lowest", "low"):
        assert torch.equal(sample(chosen, HARMFUL, sensitivity=sensitivity), plain)
    normal = sample(chosen, HARMFUL)
    assert torch.equal(normal, sample(chosen, HARMFUL, sensitivity="normal")) and not torch.equal(normal, plain)
    assert not torch.equal(sample(chosen, HARMFUL, sensitivity="highest"), plain)
    assert [c.threshold for c in chosen.hgr.concepts] == [levels[2]] * 2, "the HGR itself stays"
    with pytest.raises(HGRError, match="has no thresholds for a sensitivity other than"):
        safe(HARMFUL, sensitivity="low")


def test_modes_differ(safe):
    results = [sample(safe, HARMFUL, mode=mode) for mode in MODES]
    assert not any(torch.allclose(a, b) for a, b in zip(results, results[1:], strict=False))


def features_by_step(pipe, call, prompt, **options) -> list[torch.Tensor]:
    seen = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda _, a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True
    )
    try:
        sample(call, prompt, **options)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    "start, end, expected",
    [
        (0.0, 1.0, [True, True, True, True]),
        (0.25, 0.75, [False, True, True, False]),
        (0.5, 1.0, [False, False, True, True]),
        (0.0, 0.3, [True, True, False, False]),
    ],
)
@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_the_window_bounds_the_steps(pipe, safe, start, end, expected, scale):
    options = {"guidance_scale": scale, "num_images_per_prompt": 2}
    plain = features_by_step(pipe, pipe, [HARMFUL, CLEAN], **options, num_inference_steps=1)[0]
    guided = features_by_step(pipe, safe, [HARMFUL, CLEAN], **options, start_percent=start, end_percent=end)
    assert [not torch.equal(plain, features) for features in guided] == expected
    assert all(features.shape == plain.shape for features in guided)


def test_without_guidance_redirect_acts_and_dynamic_warns(pipe, safe, caplog):
    plain = sample(pipe, HARMFUL, guidance_scale=1.0)
    assert not torch.allclose(plain, sample(safe, HARMFUL, guidance_scale=1.0))
    assert torch.equal(plain, sample(safe, HARMFUL, guidance_scale=1.0, mode="dynamic"))
    assert "no effect" in caplog.text


def test_a_former_mode_says_what_it_now_does(safe, caplog):
    assert torch.equal(sample(safe, HARMFUL, mode="balanced"), sample(safe, HARMFUL, mode="dynamic"))
    assert 'it now does what "dynamic" does' in caplog.text


def rows_by_step(pipe, call, prompt, **options) -> list[int]:
    """How many samples the denoiser evaluates in every step."""
    found: dict[float, int] = {}

    def count(_, args):
        found[float(args[1])] = found.get(float(args[1]), 0) + len(args[0])

    hook = pipe.unet.register_forward_pre_hook(count)
    try:
        sample(call, prompt, **options)
    finally:
        hook.remove()
    return list(found.values())


def test_the_denoiser_is_evaluated_as_often_as_with_plain_cfg_and_once_more_for_what_dynamic_mixes(pipe, safe):
    assert rows_by_step(pipe, pipe, HARMFUL) == rows_by_step(pipe, safe, HARMFUL) == [2] * STEPS
    dynamic = {"mode": "dynamic"}
    assert rows_by_step(pipe, safe, HARMFUL, **dynamic) == [3] * STEPS
    assert rows_by_step(pipe, safe, CLEAN, **dynamic) == [2] * STEPS
    assert rows_by_step(pipe, safe, HARMFUL, guidance_scale=1.0, **dynamic) == [1] * STEPS
    copies = {"num_images_per_prompt": 2}
    assert rows_by_step(pipe, safe, [HARMFUL, CLEAN], **dynamic, **copies) == [10] * STEPS  # 4 pictures, 2 harmful
    assert rows_by_step(pipe, safe, HARMFUL, **dynamic, start_percent=0.25, end_percent=0.75) == [2, 3, 3, 2]


def guided_prediction(pipe, call, prompt, **options):
    return first_prediction(pipe, lambda: sample(call, prompt, **options, num_inference_steps=1))


@pytest.mark.parametrize("scale", [1.5, 4.0, 7.5])
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("model", ["pipe", "xl"])
def test_dynamic_is_cfg_with_the_unconditional_prediction_adjusted(request, model, scale, strength):
    """eps_u' = eps_u + h (eps(c) - eps(c_safe)), from runs of the pipeline's own; h is the strength here, in the first
    of the prompts."""
    pipe = request.getfixturevalue(model)
    hgr = make_hgr(encode(pipe, [HARMFUL, CLEAN]), encode(pipe, [""]))
    safe = SafeCFG(pipe, hgr, strength=strength)

    def first(call, **more):
        return guided_prediction(pipe, call, [HARMFUL, CLEAN], guidance_scale=scale, **more)

    plain, redirected = first(pipe), first(safe)
    dynamic = first(safe, mode="dynamic")
    # plain is u + w (c - u), redirected u + w (c_safe - u): their difference is w (c - c_safe)
    harm = torch.tensor([strength, 0.0]).reshape(2, 1, 1, 1)
    assert torch.allclose(dynamic, plain - (scale - 1) * harm * (plain - redirected) / scale, atol=1e-4)
    assert torch.equal(dynamic[1], plain[1]) and not torch.allclose(dynamic[0], plain[0], atol=1e-3)


def test_dynamic_with_guidance_rescale(pipe, safe):
    options = {"mode": "dynamic", "guidance_rescale": 0.7}
    prompts = [CLEAN, HARMFUL]
    rescaled = sample(safe, prompts, **options)
    assert torch.equal(rescaled[0], sample(pipe, prompts, guidance_rescale=0.7)[0])
    assert not torch.allclose(rescaled[1], sample(safe, prompts, mode="dynamic")[1])


def test_of_dynamic_nothing_is_left_behind_also_after_an_error(pipe, safe):
    plain, hooks = sample(pipe, HARMFUL), dict(pipe.unet._forward_hooks)
    sample(safe, HARMFUL, mode="dynamic")

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(safe, HARMFUL, mode="dynamic", callback_on_step_end=interrupt)
    assert dict(pipe.unet._forward_hooks) == hooks and torch.equal(sample(pipe, HARMFUL), plain)


def test_dynamic_with_a_controlnet(pipe):
    """It is evaluated once, with the prompt as written."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    parts = {key: value for key, value in pipe.components.items() if key != "image_encoder"}
    controlled = StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False)
    controlled.set_progress_bar_config(disable=True)
    guided = SafeCFG(controlled, make_hgr(encode(pipe, [HARMFUL, CLEAN]), encode(pipe, [""])))
    seen = []
    control.register_forward_pre_hook(lambda _, a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True)
    options = {"image": torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))}
    prompts = [CLEAN, HARMFUL]
    plain = sample(controlled, prompts, **options)
    before = seen[0]
    made = {mode: sample(guided, prompts, mode=mode, **options) for mode in MODES}
    assert len(seen) == 3 * STEPS and all(torch.equal(each, before) for each in seen[2 * STEPS :])
    for picture in made.values():
        assert torch.equal(picture[0], plain[0]) and not torch.allclose(picture[1], plain[1])
    assert not torch.allclose(made["redirect"][1], made["dynamic"][1])
    assert rows_by_step(controlled, guided, prompts, mode="dynamic", **options) == [5] * STEPS


def test_a_pipeline_with_rows_of_another_kind_is_an_error(pipe):
    """Perturbed-attention guidance evaluates a third row for every picture."""
    from diffusers import StableDiffusionPAGPipeline

    own = copy.deepcopy(pipe.unet)  # it would be left with that pipeline's attention
    perturbed = StableDiffusionPAGPipeline(**pipe.components | {"unet": own}, requires_safety_checker=False)
    perturbed.set_progress_bar_config(disable=True)
    safe = SafeCFG(perturbed, make_hgr(encode(pipe, [HARMFUL, CLEAN]), encode(pipe, [""])))
    with pytest.raises(ValueError, match='mode "dynamic" needs a pipeline .* use mode "redirect"'):
        sample(safe, HARMFUL, mode="dynamic", num_images_per_prompt=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "other"},
        {"concepts": "{"},
        {"start_percent": 0.5, "end_percent": 0.5},
        {"end_percent": 1.5},
        {"sensitivity": "any"},
    ],
)
def test_bad_arguments_are_errors(safe, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        safe(CLEAN, **wrong)


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_strength_out_of_range_is_an_error(pipe, safe, wrong):
    with pytest.raises(ValueError, match="strength"):
        SafeCFG(pipe, safe.hgr, strength=wrong)


def test_a_strength_in_a_call_is_the_pipelines_and_this_one_has_none(safe):
    with pytest.raises(TypeError, match=r"takes no strength; SafeCFG's is given to SafeCFG\(pipe, hgr\)"):
        safe(CLEAN, strength=0.5)


def test_another_encoder_and_another_pipeline_are_errors(pipe, safe):
    encoder = dataclasses.replace(safe.hgr.encoder, empty=-safe.hgr.encoder.empty)
    with pytest.raises(HGRError, match="another text encoder"):
        SafeCFG(pipe, HGR(safe.hgr.network, safe.hgr.concepts, encoder))(CLEAN)
    from diffusers import DDPMPipeline

    with pytest.raises(TypeError, match="object: SafeCFG serves"):
        SafeCFG(object(), safe.hgr)
    with pytest.raises(TypeError, match="DDPMPipeline: SafeCFG serves"):
        SafeCFG(DDPMPipeline(pipe.unet, pipe.scheduler), safe.hgr)


@pytest.fixture(scope="module")
def xl(pipe):
    import tiny

    return tiny.sdxl(pipe)


def test_sdxl_with_its_pooled_vector(xl):
    safe = SafeCFG(xl, make_hgr(encode(xl, [HARMFUL, CLEAN]), encode(xl, [""])))
    assert safe.hgr.network.pooled_dim == 32
    prompts = [CLEAN, HARMFUL]
    plain = sample(xl, prompts, num_images_per_prompt=2)
    for mode in MODES:
        assert rows_by_step(xl, safe, prompts, mode=mode) == [4 + (mode == "dynamic")] * STEPS
        for window in ({}, {"end_percent": 0.5}, {"start_percent": 0.5}):
            guided = sample(safe, prompts, mode=mode, num_images_per_prompt=2, **window)
            assert torch.equal(plain[:2], guided[:2])
            assert not torch.allclose(plain[2:], guided[2:])
