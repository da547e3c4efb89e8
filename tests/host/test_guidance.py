"""SafeCFG in sampling: exactly off where it is off, on where it is on, at the host's own price."""

from __future__ import annotations

import dataclasses
import logging

import pytest

MODES = ["redirect", "dynamic"]


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_off_is_off(kit, hgr, mode):
    """Strength 0, every concept 0, the one concept found 0, a clean prompt: the host's latents bit for bit."""
    import torch

    plain = kit.sample(kit.model, kit.harmful)
    for settings in ({"strength": 0.0}, {"concepts": '{"skull": 0, "dagger": 0}'}, {"concepts": '{"skull": 0}'}):
        assert torch.equal(kit.sample(kit.patch(hgr, mode=mode, **settings), kit.harmful), plain)
    clean = kit.sample(kit.model, kit.clean)
    assert torch.equal(kit.sample(kit.patch(hgr, mode=mode), kit.clean), clean)
    assert torch.equal(kit.sample(kit.patch(hgr, mode=mode, start_percent=0.3, end_percent=0.7), kit.clean), clean)


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_on_is_on(kit, hgr, mode):
    """A prompt in which a concept is found gives another picture, further away with more strength."""
    plain = kit.sample(kit.model, kit.harmful)
    weak, strong = (kit.sample(kit.patch(hgr, mode=mode, strength=s), kit.harmful) - plain for s in (0.5, 1.0))
    assert 0.01 < weak.abs().mean() < strong.abs().mean()


@pytest.mark.parametrize("mode", MODES)
def test_clean_prompts_reach_the_sampler_as_the_same_objects(kit, hgr, pack, mode):
    """Not equal tensors: the very entries, so that nothing downstream can tell that SafeCFG is there."""
    from host_kit import rewritten

    positive, negative = ([{"cross_attn": c[0][0], "strength": 1.0}] for c in (kit.clean, kit.negative))
    conds = {"positive": positive, "negative": negative}
    for role, entries in rewritten(pack, hgr, conds, mode=mode).items():
        assert [id(e) for e in entries] == [id(e) for e in conds[role]]


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_in_a_batch_the_clean_sample_stays(kit, hgr, mode):
    """Bit for bit, wherever the host itself computes a sample regardless of its neighbours."""
    import torch

    both, shape = kit.batch(kit.clean, kit.harmful), (2, 4, 16, 16)
    plain, safe = kit.sample(kit.model, both, shape=shape), kit.sample(kit.patch(hgr, mode=mode), both, shape=shape)
    assert not torch.allclose(safe[1], plain[1], atol=0.01)
    if not torch.equal(plain[0], kit.sample(kit.model, kit.batch(kit.clean, kit.clean), shape=shape)[0]):
        pytest.skip("this host's samples depend on their neighbours")
    assert torch.equal(safe[0], plain[0])


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_guider_is_the_hosts_own_with_safety(kit, hgr, pack, mode):
    """SafeCFG Guider: CFG Guider's latents on a clean prompt, SafeCFG (Model)'s on a harmful one."""
    import comfy.sample
    import comfy.samplers
    import torch

    latent = torch.zeros(1, 4, 16, 16)
    noise, sampler = comfy.sample.prepare_noise(latent, 3), comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(kit.model.get_model_object("model_sampling"), "normal", 4)

    def run(guider):
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=3)

    def guider(positive):
        settings = {"strength": 1.0, "mode": mode, "concepts": "", "start_percent": 0.0, "end_percent": 1.0}
        given = {"model": kit.model, "positive": positive, "negative": kit.negative, "cfg": 7.5, "hgr": hgr}
        return pack.guide.SafeCFGGuider.execute(**given, **settings).args[0]

    plain = comfy.samplers.CFGGuider(kit.model)
    plain.set_conds(kit.clean, kit.negative)
    plain.set_cfg(7.5)
    assert torch.equal(run(guider(kit.clean)), run(plain))
    safe = guider(kit.harmful)
    assert torch.equal(run(safe), kit.sample(kit.patch(hgr, mode=mode), kit.harmful))
    for role, given in (
        ("positive", kit.harmful),
        ("negative", kit.negative),
    ):  # rewritten for the run, not for the guider
        assert safe.original_conds[role][0]["cross_attn"] is given[0][0]


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_evaluations_a_step(kit, hgr, mode):
    """The denoiser sees as many samples as in plain CFG, and one at cfg 1. `dynamic` adds one for the safe prompt where
    something fires."""
    extra = mode == "dynamic"
    for prompt, cfg, samples in (
        (kit.harmful, 7.5, 2 + extra),
        (kit.clean, 7.5, 2),
        (kit.harmful, 1.0, 1),
        (kit.harmful + kit.clean, 7.5, 3 + extra),
    ):
        model, calls = kit.counted(kit.patch(hgr, mode=mode))
        kit.sample(model, prompt, cfg=cfg, steps=5)
        assert sum(n for _, n in calls) == 5 * samples


@pytest.mark.oldest
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("cfg", [1.5, 4.0, 7.5])
def test_dynamic_mixes_the_predictions_as_the_formula_says(kit, hgr, pack, cfg, strength):
    """m eps(c) + (1 - m) eps(c_safe) in place of eps(c), and the negative side as it was. h is the strength here."""
    import torch
    from host_kit import safe_features

    safe = [[safe_features(pack, hgr, kit.harmful[0][0], strength), kit.harmful[0][1]]]
    plain, negative = kit.first_step(kit.model, kit.harmful, cfg=cfg)
    redirected, _ = kit.first_step(kit.model, safe, cfg=cfg)
    mixed, same = kit.first_step(kit.patch(hgr, mode="dynamic", strength=strength), kit.harmful, cfg=cfg)
    m = 1 - strength * (cfg - 1) / cfg
    assert torch.allclose(mixed, m * plain + (1 - m) * redirected, atol=1e-4)
    assert torch.equal(same, negative) and not torch.allclose(mixed, redirected, atol=1e-2)


@pytest.mark.oldest
def test_in_a_batch_each_sample_is_mixed_for_itself(kit, hgr, pack):
    import torch
    from host_kit import safe_features

    shape = {"shape": (4, 4, 16, 16)}  # the host repeats the prompts
    both = kit.batch(kit.clean, kit.harmful)
    plain, _ = kit.first_step(kit.model, both, **shape)
    redirected, _ = kit.first_step(kit.model, [[safe_features(pack, hgr, both[0][0]), both[0][1]]], **shape)
    mixed, _ = kit.first_step(kit.patch(hgr, mode="dynamic"), both, **shape)
    m = torch.tensor([1, 1 / 7.5, 1, 1 / 7.5]).reshape(4, 1, 1, 1)
    assert torch.allclose(mixed, m * plain + (1 - m) * redirected, atol=1e-4)
    assert torch.equal(mixed[::2], plain[::2])


@pytest.mark.oldest
def test_cfg_1(kit, hgr, caplog):
    """`redirect` works there; `dynamic` cannot, and says so once."""
    import torch

    plain = kit.sample(kit.model, kit.harmful, cfg=1.0)
    assert (kit.sample(kit.patch(hgr, mode="redirect"), kit.harmful, cfg=1.0) - plain).abs().mean() > 0.01
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "safecfg"):
        assert torch.equal(kit.sample(kit.patch(hgr, mode="dynamic"), kit.harmful, cfg=1.0), plain)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert 'mode "dynamic"' in caplog.text and "no effect at cfg 1" in caplog.text and '"redirect"' in caplog.text


@pytest.mark.oldest
def test_workflows_that_name_a_former_mode_load_and_say_what_they_now_do(kit, hgr, pack, caplog):
    import torch

    for node in (pack.guide.SafeCFGModel, pack.guide.SafeCFGGuider):
        (mode,) = (each for each in node.define_schema().inputs if each.id == "mode")
        assert mode.options == ["redirect", "dynamic"]
        assert node.validate_inputs("balanced") is True and node.validate_inputs(None) is True
        assert node.validate_inputs("other") == '"other" is unknown; choose one of redirect, dynamic.'
    former = kit.patch(hgr, mode="balanced")
    assert 'mode "balanced" no longer exists: it now does what "dynamic" does.' in caplog.text
    assert torch.equal(kit.sample(former, kit.harmful), kit.sample(kit.patch(hgr, mode="dynamic"), kit.harmful))


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("sampler", "mode"),
    [
        ("euler", "dynamic"),
        ("dpmpp_2m", "redirect"),
        ("euler_cfg_pp", "redirect"),
        ("euler_cfg_pp", "dynamic"),
        ("uni_pc", "dynamic"),
    ],
)
def test_samplers(kit, hgr, sampler, mode):
    import torch

    safe = kit.patch(hgr, mode=mode)
    assert torch.equal(kit.sample(safe, kit.clean, sampler=sampler), kit.sample(kit.model, kit.clean, sampler=sampler))
    moved = kit.sample(safe, kit.harmful, sampler=sampler)
    assert moved.isfinite().all()
    assert (moved - kit.sample(kit.model, kit.harmful, sampler=sampler)).abs().mean() > 0.01


@pytest.mark.parametrize("shape", [(1, 4, 12, 20), (3, 4, 16, 16)])
@pytest.mark.parametrize("mode", MODES)
def test_shapes(kit, hgr, shape, mode):
    import torch

    safe = kit.patch(hgr, mode=mode)
    assert torch.equal(kit.sample(safe, kit.clean, shape=shape), kit.sample(kit.model, kit.clean, shape=shape))
    moved = kit.sample(safe, kit.harmful, shape=shape)
    assert moved.shape == shape
    assert (moved - kit.sample(kit.model, kit.harmful, shape=shape)).abs().flatten(1).mean(1).min() > 0.01


def test_rescale_cfg_before_and_after(kit, hgr):
    """Other packs' CFG hooks still run, in either order."""
    import torch
    from comfy_extras.nodes_model_advanced import RescaleCFG

    (rescaled,) = RescaleCFG().patch(kit.model, 0.7)
    (after,) = RescaleCFG().patch(kit.patch(hgr), 0.7)
    before = kit.patch(hgr, rescaled)
    assert torch.equal(kit.sample(before, kit.clean), kit.sample(rescaled, kit.clean))
    moved = kit.sample(before, kit.harmful)
    assert torch.equal(kit.sample(after, kit.harmful), moved)
    assert not torch.allclose(moved, kit.sample(rescaled, kit.harmful), atol=0.01)
    assert not torch.allclose(moved, kit.sample(kit.patch(hgr), kit.harmful), atol=0.01)


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_window(kit, hgr, mode):
    """A part of sampling: neither all nor nothing, at the price of a whole step, also where one meets the boundary."""
    import torch

    runs = {}
    for window in ((0.0, 1.0), (0.3, 0.7), (0.0, 0.5), (0.5, 1.0)):
        model, calls = kit.counted(kit.patch(hgr, mode=mode, start_percent=window[0], end_percent=window[1]))
        runs[window] = kit.sample(
            model, kit.harmful, steps=11
        )  # steps at 0, .1, ... of sampling: both boundaries are met
        per_step = {sigma: sum(n for s, n in calls if s == sigma) for sigma, _ in calls}
        inside = sum(window[0] * 10 <= i < window[1] * 10 or (window[1] == 1 and i == 10) for i in range(11))
        costs = [2] * 11 if mode == "redirect" else [2] * (11 - inside) + [3] * inside
        assert sorted(per_step.values()) == costs
    pictures = [kit.sample(kit.model, kit.harmful, steps=11), *runs.values()]
    for i, one in enumerate(pictures):
        assert not any(torch.allclose(one, other, atol=0.01) for other in pictures[:i])


def test_window_is_safe_from_its_start_and_before_its_end(kit, hgr):
    """Step by step: the denoiser gets the safe features in [start, end) and the prompt's own outside."""
    import torch

    seen = []

    def watch(apply, args):
        rows = args["c"]["c_crossattn"]
        seen.append(any(torch.equal(row, kit.harmful[0][0][0]) for row in rows))
        return apply(args["input"], args["timestep"], **args["c"])

    model = kit.patch(hgr, start_percent=0.3, end_percent=0.7)
    model.set_model_unet_function_wrapper(watch)
    kit.sample(model, kit.harmful, steps=11)
    assert seen == [True] * 3 + [False] * 4 + [True] * 4


def test_empty_window_is_an_error(kit, hgr):
    with pytest.raises(ValueError, match=r"start_percent \(0.7\) must be below end_percent \(0.3\)"):
        kit.patch(hgr, start_percent=0.7, end_percent=0.3)


@pytest.mark.oldest
def test_sensitivity_decides_what_counts_as_present(kit, hgr, pack):
    """The gates, of .7, lie between the thresholds of "low" and "normal"."""
    import torch

    levels = (0.9, 0.8, 0.5, 0.4, 0.3)
    concepts = [dataclasses.replace(c, scale=0.0, bias=0.85, threshold=0.5, levels=levels) for c in hgr.concepts]
    graded = dataclasses.replace(hgr, concepts=concepts)
    plain = kit.sample(kit.model, kit.harmful)
    names = ("low", "normal", "highest")
    found = {name: kit.sample(kit.patch(graded, sensitivity=name), kit.harmful) for name in names}
    assert torch.equal(found["low"], plain)
    assert torch.equal(found["normal"], kit.sample(kit.patch(graded), kit.harmful))
    assert not torch.equal(found["normal"], plain) and not torch.equal(found["highest"], plain)
    with pytest.raises(pack.guidance.HGRError, match="has no thresholds for a sensitivity other than"):
        kit.patch(hgr, sensitivity="high")


def test_workflows_from_before_sensitivity_still_run(pack):
    for node in (pack.guide.SafeCFGModel, pack.guide.SafeCFGGuider):
        inputs = node.define_schema().inputs
        assert inputs[-1].id == "sensitivity" and inputs[-1].optional, "appended, so that saved values stay in place"


@pytest.mark.oldest
def test_nothing_is_left_behind(kit, hgr):
    """The model that was given, clones of the patched one, and a run after an interrupted one."""
    import comfy.model_management
    import torch

    plain = kit.sample(kit.model, kit.harmful)
    safe = kit.patch(hgr)
    moved = kit.sample(safe, kit.harmful)
    assert torch.equal(kit.sample(kit.model, kit.harmful), plain)
    clone = safe.clone()
    assert torch.equal(kit.sample(clone, kit.harmful), moved)
    clone.remove_wrappers_with_key("outer_sample", "safecfg")
    assert torch.equal(kit.sample(clone, kit.harmful), plain)
    assert torch.equal(kit.sample(safe, kit.harmful), moved)

    def interrupt(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        kit.sample(safe, kit.harmful, callback=interrupt)
    assert torch.equal(kit.sample(kit.model, kit.harmful), plain)
    assert torch.equal(kit.sample(safe, kit.harmful), moved)


def test_given_conditionings_are_not_changed(kit, hgr):
    """The host caches a node's output: it must be the same after sampling."""
    import torch

    positive, negative = kit.encode("a red ball next to a blue house in a meadow with a skull above"), kit.encode("")
    before = [c[0][0].clone() for c in (positive, negative)]
    kit.sample(kit.patch(hgr, mode="dynamic", start_percent=0.2), positive, negative)
    for conditioning, features in zip((positive, negative), before, strict=True):
        assert torch.equal(conditioning[0][0], features) and set(conditioning[0][1]) == {"pooled_output"}


@pytest.mark.parametrize("mode", MODES)
def test_two_hgrs_stack(kit, hgr, mode):
    """The second redirects what the first left; one that finds nothing changes nothing."""
    import torch

    def patch(hgr, model=None):
        return kit.patch(hgr, model, mode=mode)

    moved = kit.sample(patch(hgr), kit.harmful)
    closed = kit.make_hgr(closed=True)
    assert torch.equal(kit.sample(patch(closed, patch(hgr)), kit.harmful), moved)
    assert torch.equal(kit.sample(patch(hgr, patch(closed)), kit.harmful), moved)
    both = kit.sample(patch(hgr, patch(hgr)), kit.harmful)
    assert both.isfinite().all() and not torch.allclose(both, kit.sample(kit.model, kit.harmful), atol=0.01)


@pytest.mark.oldest
def test_two_equal_nodes_do_not_share_an_output(pack):
    """The host keeps one output for equal nodes, which would show what fired on one of them, maybe the wrong one."""
    for node in (pack.guide.SafeCFGModel, pack.guide.SafeCFGGuider):
        assert node.define_schema().not_idempotent is True


def test_two_hundred_runs_with_two_hgrs_leave_nothing_and_do_not_mix(kit, hgr):
    """Each run gives what its own HGR gave before, and no tensor stays."""
    import gc

    import torch

    def tensors():
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    hgrs = {"open": hgr, "closed": kit.make_hgr(closed=True)}
    wanted = {name: kit.sample(kit.patch(each), kit.harmful, steps=1) for name, each in hgrs.items()}
    assert not torch.equal(*wanted.values())
    before = tensors()
    for i in range(200):
        name = ("open", "closed", "closed")[i % 3]
        assert torch.equal(kit.sample(kit.patch(hgrs[name]), kit.harmful, steps=1), wanted[name]), i
    assert tensors() <= before
