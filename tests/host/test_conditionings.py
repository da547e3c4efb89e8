"""Every shape a conditioning takes in the host: it runs, it is redirected, and clean parts stay bit for bit."""

from __future__ import annotations

import pytest

MODES = ["redirect", "dynamic"]


def _combined(kit, nodes, c):
    return nodes.ConditioningCombine().combine(c, kit.clean)[0]


def _area(kit, nodes, c):
    return kit.clean + nodes.ConditioningSetArea().append(c, 64, 64, 64, 0, 1.0)[0]


def _area_percentage(kit, nodes, c):
    return kit.clean + nodes.ConditioningSetAreaPercentage().append(c, 0.5, 0.5, 0.5, 0.5, 1.0)[0]


def _mask(kit, nodes, c):
    import torch

    mask, append = torch.zeros(1, 128, 128), nodes.ConditioningSetMask().append
    mask[:, :, :64] = 1
    return append(c, mask, "default", 1.0)[0] + append(kit.clean, 1 - mask, "default", 1.0)[0]


def _mask_bounds(kit, nodes, c):
    import torch

    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    return kit.clean + nodes.ConditioningSetMask().append(c, mask, "mask bounds", 1.0)[0]


def _range(kit, nodes, c):
    set_range = nodes.ConditioningSetTimestepRange().set_range
    return set_range(c, 0.0, 0.6)[0] + set_range(kit.clean, 0.6, 1.0)[0]


def _long(kit, nodes, c):
    return nodes.ConditioningConcat().concat(c, kit.clean)[0]


def _hooked(kit, nodes, c):
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora=kit.random_lora(), strength_model=1.0, strength_clip=0.0)
    return comfy.hooks.set_hooks_for_conditioning(c, hooks)


def _scheduled_hook(kit, nodes, c):
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora=kit.random_lora(), strength_model=1.0, strength_clip=0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.2, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    return comfy.hooks.set_hooks_for_conditioning(c, hooks)


def _controlled(kit, nodes, c):
    """As the old node Apply ControlNet leaves it: on the positive side, to be copied to the negative one by the
    host."""
    return [
        [features, {**extra, "control": kit.make_control(), "control_apply_to_uncond": True}] for features, extra in c
    ]


def _weak(kit, nodes, c):
    """Weights of its own, of an area and of a mask, and one that overlaps with another entry."""
    import torch

    area, mask = nodes.ConditioningSetArea().append, torch.full((1, 128, 128), 0.6)
    masked = nodes.ConditioningSetMask().append(c, mask, "default", 0.5)[0]
    return kit.clean + area(c, 64, 64, 0, 0, 0.7)[0] + area(c, 96, 64, 32, 64, 1.3)[0] + masked


SHAPES = [
    _combined,
    _weak,
    _area,
    _area_percentage,
    _mask,
    _mask_bounds,
    _range,
    _long,
    _hooked,
    _scheduled_hook,
    _controlled,
]


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("mode", "window"), [("redirect", (0.0, 1.0)), ("dynamic", (0.0, 1.0)), ("dynamic", (0.3, 0.7))]
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda f: f.__name__[1:])
def test_conditioning(kit, hgr, shape, mode, window):
    import torch

    import nodes

    safe = kit.patch(hgr, mode=mode, start_percent=window[0], end_percent=window[1])
    harmful, clean = shape(kit, nodes, kit.harmful), shape(kit, nodes, kit.clean)
    assert torch.equal(kit.sample(safe, clean), kit.sample(kit.model, clean))
    model, calls = kit.counted(safe)
    moved, plain = kit.sample(model, harmful), kit.sample(kit.model, harmful)
    assert moved.isfinite().all()
    assert (moved - plain).abs().mean() > 0.005
    assert len({sigma for sigma, _ in calls}) == 4


@pytest.mark.oldest
@pytest.mark.parametrize("shape", SHAPES, ids=lambda f: f.__name__[1:])
def test_dynamic_mixes_within_what_lies_beside_the_features(kit, hgr, pack, shape):
    """In areas and masks, with weights, hooks and ControlNets, in schedules and beside other entries: the positive
    prediction is the mixture of the two that the host makes with the prompt and with the safe one. The negative one is
    the host's, also where it copies areas and ControlNets to that side."""
    import torch
    from host_kit import safe_features

    import nodes

    negative = kit.negative + kit.encode("a ship")
    safe = [[safe_features(pack, hgr, kit.harmful[0][0]), kit.harmful[0][1]]]
    plain, redirected = (kit.first_step(kit.model, shape(kit, nodes, c), negative) for c in (kit.harmful, safe))
    mixed = kit.first_step(kit.patch(hgr, mode="dynamic"), shape(kit, nodes, kit.harmful), negative)
    m = 1 / 7.5
    assert not torch.allclose(plain[0], redirected[0], atol=1e-2)
    assert torch.allclose(mixed[0], m * plain[0] + (1 - m) * redirected[0], atol=1e-4)
    assert torch.equal(mixed[1], plain[1])


@pytest.mark.oldest
def test_a_controlnet_is_evaluated_for_each_piece(kit, hgr):
    """As often as the denoiser, so with the text of each."""
    control = kit.make_control()
    prompt = [[features, {**extra, "control": control}] for features, extra in kit.harmful]
    kit.sample(kit.patch(hgr, mode="dynamic"), prompt, steps=3)
    assert control.rows == [1, 1] * 3  # the two pieces of the positive side; the negative side has no ControlNet


@pytest.mark.oldest
def test_a_default_entry_is_redirected_in_dynamic_too(kit, hgr):
    """Cond Set Default Combine: the host leaves its weight out."""
    import comfy.hooks
    import torch

    import nodes

    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    (left,) = nodes.ConditioningSetMask().append(kit.clean, mask, "default", 1.0)
    prompt = comfy.hooks.set_default_conds_and_combine([left], [kit.harmful])[0]
    made = [kit.sample(kit.patch(hgr, mode=mode), prompt) for mode in MODES]
    assert torch.equal(*made) and not torch.allclose(made[0], kit.sample(kit.model, prompt), atol=1e-2)
    plain, same = (kit.sample(m, prompt, cfg=1.0) for m in (kit.model, kit.patch(hgr, mode="dynamic")))
    assert torch.equal(same, plain), "no effect at cfg 1"


def test_pieces_can_be_told_apart_by_the_hosts_caches(kit, hgr, pack):
    """EasyCache keeps what it knows of an entry under its uuid."""
    from comfy_extras.nodes_easycache import EasyCacheNode
    from host_kit import rewritten

    entry = {"cross_attn": kit.harmful[0][0], "uuid": 1}
    plain, safe = rewritten(pack, hgr, {"positive": [entry]}, mode="dynamic")["positive"]
    assert plain["uuid"] == 1 != safe["uuid"]
    cached = EasyCacheNode.execute(kit.patch(hgr, mode="dynamic"), 0.5, 0.0, 1.0, False).args[0]
    model, calls = kit.counted(cached)
    assert kit.sample(model, kit.harmful, steps=8).isfinite().all()
    assert [n for _, n in calls] == [2, 1] * 8


@pytest.mark.parametrize("shape", [_hooked, _controlled], ids=["hooked", "controlled"])
def test_what_lies_beside_the_features_still_acts(kit, hgr, shape):
    """With redirection too, a hooked LoRA and a ControlNet change the picture."""
    import nodes

    safe = kit.patch(hgr)
    assert (kit.sample(safe, shape(kit, nodes, kit.harmful)) - kit.sample(safe, kit.harmful)).abs().mean() > 0.01


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_positive_and_negative_of_different_length(kit, hgr, mode):
    import torch

    import nodes

    safe, long = kit.patch(hgr, mode=mode), _long(kit, nodes, kit.clean)
    for positive, negative in ((_long(kit, nodes, kit.harmful), kit.negative), (kit.harmful, long)):
        moved = kit.sample(safe, positive, negative)
        assert (moved - kit.sample(kit.model, positive, negative)).abs().mean() > 0.01
    assert torch.equal(kit.sample(safe, kit.clean, long), kit.sample(kit.model, kit.clean, long))


def test_batch_of_prompts_in_a_larger_batch(kit, hgr):
    """The host repeats prompts over a batch; `dynamic` repeats the weights likewise."""
    import torch

    both, shape = kit.batch(kit.clean, kit.harmful), (4, 4, 16, 16)
    plain, safe = (
        kit.sample(kit.model, both, shape=shape),
        kit.sample(kit.patch(hgr, mode="dynamic"), both, shape=shape),
    )
    assert [torch.equal(a, b) for a, b in zip(plain, safe, strict=True)] == [True, False, True, False]


def test_other_guiders(kit, hgr):
    """Perpendicular negative and dual CFG: every prompt to follow is redirected, the neutral one is not. Where `cfg` is
    not the guider's scale, or a list, `dynamic` takes the safest mixture, which is `redirect` for a harmful prompt."""
    import comfy.sample
    import comfy.samplers
    import torch
    from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider
    from comfy_extras.nodes_perpneg import PerpNegGuider

    latent = torch.zeros(1, 4, 16, 16)
    noise, sampler = comfy.sample.prepare_noise(latent, 3), comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(kit.model.get_model_object("model_sampling"), "normal", 4)

    def listed(model, positive):
        """A guider of another pack."""
        made = BasicGuider.execute(model, positive).args[0]
        made.cfg = [7.0, 1.0]
        made.predict_noise = lambda x, timestep, model_options={}, seed=None: comfy.samplers.sampling_function(
            made.inner_model, x, timestep, None, made.conds["positive"], 1.0, model_options, seed
        )
        return made

    makers = [
        (False, lambda m, c: PerpNegGuider.execute(m, c, kit.negative, kit.negative, 7.5, 1.0).args[0]),
        (True, lambda m, c: DualCFGGuider.execute(m, kit.clean, c, kit.negative, 7.5, 3.0, "regular").args[0]),
        (True, lambda m, c: BasicGuider.execute(m, c).args[0]),
        (True, listed),
    ]
    for unknown, make in makers:

        def run(model, positive, make=make):
            return make(model, positive).sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=3)

        plain, moved = run(kit.model, kit.harmful), {}
        for mode in MODES:
            safe = kit.patch(hgr, mode=mode)
            assert torch.equal(run(safe, kit.clean), run(kit.model, kit.clean))
            moved[mode] = run(safe, kit.harmful)
            assert (moved[mode] - plain).abs().mean() > 0.01
        assert torch.equal(*moved.values()) == unknown


def test_entries_without_features_are_left_alone(kit, hgr, pack):
    from host_kit import rewritten

    entry = {"model_conds": {}}
    conds = {"positive": [entry, {"cross_attn": kit.harmful[0][0]}], "negative": [{"cross_attn": None}]}
    made = rewritten(pack, hgr, conds)
    assert made["positive"][0] is entry and made["negative"][0] is conds["negative"][0]
    assert made["positive"][1] is not conds["positive"][1]


# Guiders of other packs name their conditionings as they like: (what is followed, what is not).
ROLES = {
    ("positive", "negative"),
    ("source", "source_negative"),
    ("target_positive", "target_negative"),
    ("yt_inv", "yt_inv_negative"),
}


@pytest.mark.parametrize(("follow", "away"), sorted(ROLES))
@pytest.mark.parametrize("mode", MODES)
def test_a_role_with_negative_in_its_name_is_a_negative(kit, hgr, pack, follow, away, mode):
    """A harmful negative must stay harmful: cleaned, it would push away from less."""
    from host_kit import rewritten

    conds = {role: [{"cross_attn": kit.harmful[0][0]}] for role in (follow, away)}
    made = rewritten(pack, hgr, conds, mode=mode)
    assert {role for role in conds if made[role][0] is not conds[role][0]} == {follow}


@pytest.mark.parametrize("where", ["alone", "combined", "second"])
def test_a_zeroed_conditioning_is_no_prompt(kit, hgr, where):
    """ConditioningZeroOut as a positive passes as it is, and a harmful prompt beside it is redirected."""
    import comfy.samplers
    import torch
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    from nodes import ConditioningCombine, ConditioningZeroOut

    (zeroed,) = ConditioningZeroOut().zero_out(kit.harmful)
    if where == "second":
        latent = torch.zeros(1, 4, 16, 16)
        noise, sampler = comfy.sample.prepare_noise(latent, 3), comfy.samplers.sampler_object("euler")
        sigmas = comfy.samplers.calculate_sigmas(kit.model.get_model_object("model_sampling"), "normal", 4)

        def run(model, positive):
            guider = DualCFGGuider.execute(model, positive, zeroed, kit.negative, 7.5, 3.0, "regular").args[0]
            return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=3)

        positive, clean = kit.harmful, kit.clean
    else:
        run = kit.sample
        positive, clean = zeroed, zeroed
        if where == "combined":
            (positive,), (clean,) = (ConditioningCombine().combine(c, zeroed) for c in (kit.harmful, kit.clean))
    assert torch.equal(run(kit.patch(hgr), clean), run(kit.model, clean))
    if where != "alone":
        assert (run(kit.patch(hgr), positive) - run(kit.model, positive)).abs().mean() > 0.005


def test_the_text_that_a_controlnet_reads_is_moved_too(kit, hgr, pack):
    """CLIP Text Encode Controlnet keeps it beside the prompt's features; the same encoder made it."""
    import torch
    from host_kit import rewritten, safe_features

    def entries(features, mode):
        entry = {"cross_attn": kit.clean[0][0], "cross_attn_controlnet": features}
        return rewritten(pack, hgr, {"positive": [entry]}, mode=mode)["positive"]

    (moved,), (same,) = entries(kit.harmful[0][0], "redirect"), entries(kit.clean[0][0], "redirect")
    assert [each["strength"] for each in entries(kit.harmful[0][0], "dynamic")] == pytest.approx([1 / 7.5, 1 - 1 / 7.5])
    assert moved["cross_attn"] is kit.clean[0][0] and same["cross_attn_controlnet"] is kit.clean[0][0]
    assert torch.equal(moved["cross_attn_controlnet"], safe_features(pack, hgr, kit.harmful[0][0]))


def test_text_that_it_cannot_read_is_named_once(kit, hgr, caplog):
    """What stands beside the text features, whatever encoder made it, and a ControlNet's text of another encoder."""
    import torch

    numbers = torch.zeros(1)
    beside = {"conditioning_llama3": numbers, "t5xxl_ids": numbers, "cross_attn_controlnet": torch.ones(1, 3, 8)}
    beside["RegContext"] = object()  # RES4LYF's regions
    conditioning = [[kit.clean[0][0], kit.clean[0][1] | beside]] * 2
    patched = kit.patch(hgr)
    patched.set_model_patch(lambda *args: None, "regional_conditioning")
    patched.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    kit.sample(patched, conditioning)
    for key in beside:
        assert caplog.text.count(f"({key}): SafeCFG does not see that part.") == 1
    assert caplog.text.count("(regional_conditioning) holds text: SafeCFG does not see it.") == 1
    assert caplog.text.count("Another pack replaces cross-attention (attn2)") == 1


def test_the_detector_and_a_training_name_what_they_do_not_read(kit, hgr, pack, caplog, monkeypatch):
    import torch

    detect = pack.get("hgr.hosts.comfy.detection").detect
    detect(hgr, "", "normal", conditioning=[[kit.clean[0][0], {"conditioning_mt5xl": torch.zeros(1)}]])
    assert caplog.text.count("mT5-XL (conditioning_mt5xl): SafeCFG does not see that part.") == 1

    def scheduled(self, tokens):
        return [[kit.clean[0][0], {"conditioning_byt5small": torch.zeros(1)}]]

    monkeypatch.setattr(type(kit.clip), "encode_from_tokens_scheduled", scheduled)
    pack.get("hgr.hosts.comfy.prompts").encoder_of(kit.clip)(["a", "b"])
    assert caplog.text.count("(conditioning_byt5small): SafeCFG does not see that part.") == 1
