"""Text features that a pack brings into cross-attention itself (`hgr.hosts.comfy.inside`)."""

from __future__ import annotations

import pytest


@pytest.fixture
def coupled(kit):
    """The model with an attention couple of a CONDITIONING, over a clean prompt. kinds: of `combinations.couple`."""
    from combinations import couple

    def make(model, prompt, **kinds):
        enter, leave = couple(prompt, **kinds)
        model = model.clone()
        model.set_model_attn2_patch(enter)
        model.set_model_attn2_output_patch(leave)
        return model

    return make


@pytest.fixture
def in_step(pack):
    return pack.get("hgr.core.in_step").InStep


def _closed(*args):
    raise AssertionError("nothing foreign is there to be read")


def test_without_such_a_pack_nothing_is_read(kit, hgr, in_step, monkeypatch):
    monkeypatch.setattr(in_step, "__init__", _closed)
    kit.sample(kit.patch(hgr), kit.harmful)


def test_a_patch_that_keeps_the_prompt_costs_nothing(kit, hgr, in_step, monkeypatch):
    monkeypatch.setattr(in_step, "move", _closed)
    patched = kit.patch(hgr)
    patched.set_model_attn2_patch(lambda n, key, value, extra: (n * 1.1, key, value))
    kit.sample(patched, kit.harmful)


@pytest.mark.parametrize("tokens", [False, True])
def test_what_a_couple_brings_is_moved_as_a_conditioning_is(kit, hgr, pack, coupled, tokens, caplog):
    """As if the couple had been given the safe features; said once, whatever the number of steps and layers."""
    import torch
    from host_kit import safe_features

    caplog.set_level("INFO")
    moved = kit.sample(coupled(kit.patch(hgr), kit.harmful, tokens=tokens), kit.clean)
    assert caplog.text.count("SafeCFG, redirect: skull") == 1
    safe = [[safe_features(pack, hgr, kit.harmful[0][0]), kit.harmful[0][1]]]
    wanted = kit.sample(coupled(kit.model, safe, tokens=tokens), kit.clean)
    plain = kit.sample(coupled(kit.model, kit.harmful, tokens=tokens), kit.clean)
    assert torch.allclose(moved, wanted, atol=1e-4) and not torch.allclose(moved, plain, atol=1e-2)


def test_the_window_holds_inside_too(kit, hgr, coupled):
    import torch

    def steps(model):
        made = []
        model = coupled(model, kit.harmful)
        kit.sample(model, kit.clean, steps=8, callback=lambda step, denoised, x, total: made.append(denoised.clone()))
        return made

    late, plain = steps(kit.patch(hgr, start_percent=0.6)), steps(kit.model)
    same = [torch.equal(a, b) for a, b in zip(late, plain, strict=True)]
    assert 0 < sum(same) < 8 and same == sorted(same, reverse=True)


def test_a_negative_that_a_patch_brings_stays_harmful(kit, hgr):
    """Cleaned, it would push away from less."""
    import torch

    def bring(n, key, value, extra):
        sides = extra["cond_or_uncond"]
        rows = [kit.harmful[0][0].to(k) if side else k for side, k in zip(sides, key.chunk(len(sides)), strict=True)]
        return n, torch.cat(rows), torch.cat(rows)

    def run(model):
        model = model.clone()
        model.set_model_attn2_patch(bring)
        return kit.sample(model, kit.clean)

    assert torch.equal(run(kit.patch(hgr)), run(kit.model))


def test_features_that_it_cannot_read_stay_and_are_named(kit, hgr, caplog):
    """As a hypernetwork makes them."""
    import torch

    def run(model):
        model = model.clone()
        model.set_model_attn2_patch(lambda n, key, value, extra: (n, key * 3, value * 3))
        return kit.sample(model, kit.clean)

    assert torch.equal(run(kit.patch(hgr)), run(kit.model))
    assert caplog.text.count("SafeCFG does not see what they say") == 1


def test_nothing_in_a_step_waits_for_the_device(kit, hgr, in_step):
    """No number leaves a tensor, and no shape depends on one."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    waiting = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.name() not in waiting, function.name()
            return function(*args, **(kwargs or {}))

    reader = in_step(hgr, [1.0, 1.0], torch.device("cpu"))
    features = torch.cat([kit.harmful[0][0], kit.clean[0][0], torch.zeros_like(kit.clean[0][0])])
    known = reader.marks(reader.cut(kit.negative[0][0], features.shape[1]))
    with NoWaiting():
        moved = reader.move(features, known, torch.ones(3, dtype=torch.bool))
    assert [torch.equal(a, b) for a, b in zip(moved, features, strict=True)] == [False, True, True]
    assert reader.highest[0] > 0.9 and not reader.unread


def test_a_harmful_tail_of_any_length_is_read(kit, hgr):
    """Behind the prompt's own tokens, however many: parts are chunks, and the last one may be short."""
    import torch

    def run(model, prompt):
        def bring(n, key, value, extra):
            sides, tail = extra["cond_or_uncond"], prompt[0][0][:, :40]
            rows = [
                torch.cat([k, (kit.negative[0][0][:, :40] if side else tail).to(k)], 1)
                for side, k in zip(sides, key.chunk(len(sides)), strict=True)
            ]
            return n, torch.cat(rows), None

        model = model.clone()
        model.set_model_attn2_patch(bring)
        return kit.sample(model, kit.clean)

    assert (run(kit.patch(hgr), kit.harmful) - run(kit.model, kit.harmful)).abs().mean() > 0.01


def test_with_a_guider_of_other_sides_every_row_is_followed(kit, hgr):
    """DualCFGGuider's index 1 is a prompt to follow, not the negative."""
    import comfy.sample
    import comfy.samplers
    import torch
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    latent = torch.zeros(1, 4, 16, 16)
    sigmas = comfy.samplers.calculate_sigmas(kit.model.get_model_object("model_sampling"), "normal", 4)

    def run(model):
        def bring(n, key, value, extra):
            sides = extra["cond_or_uncond"]
            rows = [
                kit.harmful[0][0].to(k) if side == 1 else k
                for side, k in zip(sides, key.chunk(len(sides)), strict=True)
            ]
            return n, torch.cat(rows), torch.cat(rows)

        model = model.clone()
        model.set_model_attn2_patch(bring)
        guider = DualCFGGuider.execute(model, kit.clean, kit.clean, kit.negative, 5.0, 3.0, "regular").args[0]
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(comfy.sample.prepare_noise(latent, 3), latent, sampler, sigmas, disable_pbar=True, seed=3)

    assert (run(kit.patch(hgr)) - run(kit.model)).abs().mean() > 0.01


def test_wrappers_of_other_packs_get_the_call_as_the_host_makes_it(kit, hgr, coupled):
    """One that comes after ours and reads its arguments by place."""
    import comfy.patcher_extension as extension
    import torch

    places = []

    def late(executor, *args, **kwargs):
        places.append((len(args), "attn2_patch" in args[5]["patches"]))
        return executor(*args, **kwargs)

    def outer(executor, *args, **kwargs):
        options = executor.class_obj.model_options
        extension.add_wrapper_with_key(
            extension.WrappersMP.DIFFUSION_MODEL, "late", late, options, is_model_options=True
        )
        return executor(*args, **kwargs)

    model = coupled(kit.patch(hgr), kit.harmful)
    wanted = kit.sample(model, kit.clean)
    model.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, "late", outer)
    assert torch.equal(kit.sample(model, kit.clean), wanted)
    assert set(places) == {(6, True)}
