"""An operator's policy in the host's own classes: what every sampling run passes, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.oldest


@pytest.fixture
def police(pack, hgr, monkeypatch, tmp_path):
    """Puts a policy in force for one test, with the made-up HGR. Gives what is in force."""
    import comfy.model_base
    import comfy.samplers

    policy, in_force = pack.get("hgr.hosts.comfy.policy"), pack.get("hgr.hosts.comfy.in_force")
    parse = pack.get("hgr.core.policy").parse_policy

    def put(hgrs: Any = None, **settings: Any) -> Any:
        for owner, name in touched(comfy):
            monkeypatch.setattr(owner, name, getattr(owner, name))  # as it was, at the end of the test
        found = in_force.InForce(tmp_path / "safecfg_policy.json", None, parse(json.dumps(settings)))
        found.hgrs = {each.name: each for each in (hgrs or [hgr])}
        monkeypatch.setattr(policy, "in_force", lambda: found)
        monkeypatch.setattr(policy.folder_paths, "get_user_directory", lambda: str(tmp_path))
        policy.install()
        return found

    return put


def touched(comfy):
    """All of the host that a policy touches."""
    return (
        (comfy.samplers.CFGGuider, "sample"),
        (comfy.model_base.BaseModel, "__init__"),
        (comfy.model_base.BaseModel, "apply_model"),
    )


def test_a_graph_without_safecfg_is_sampled_as_with_it(kit, hgr, police):
    plain, safe = kit.sample(kit.model, kit.harmful), kit.sample(kit.patch(hgr), kit.harmful)
    assert not plain.equal(safe)
    police()
    assert kit.sample(kit.model, kit.harmful).equal(safe)


def test_a_clean_prompt_is_sampled_bit_for_bit_as_without_a_policy(kit, hgr, police):
    plain = kit.sample(kit.model, kit.clean)
    police()
    assert kit.sample(kit.model, kit.clean).equal(plain)


def test_in_a_batch_the_clean_samples_stay_the_same(kit, police):
    both, shape = kit.batch(kit.clean, kit.harmful), (2, 4, 16, 16)
    plain = kit.sample(kit.model, both, shape=shape)
    police()
    found = kit.sample(kit.model, both, shape=shape)
    assert found[0].equal(plain[0]) and not found[1].equal(plain[1])


@pytest.mark.parametrize(
    "asked",
    [
        {"strength": 0.0},
        {"strength": 0.3},
        {"concepts": '{"skull": 0}'},
        {"start_percent": 0.5},
        {"end_percent": 0.1},
        {"mode": "dynamic"},
        {},
    ],
    ids=str,
)
def test_a_graphs_own_safecfg_cannot_ask_for_less_and_does_not_act_twice(kit, hgr, police, asked):
    safe = kit.sample(kit.patch(hgr), kit.harmful)
    police()
    assert kit.sample(kit.patch(hgr, **asked), kit.harmful).equal(safe)


def test_a_graphs_own_safecfg_may_ask_for_more(kit, hgr, police):
    more = kit.sample(kit.patch(hgr, strength=1.7), kit.harmful)
    police(strength=0.5)
    assert kit.sample(kit.patch(hgr, strength=1.7), kit.harmful).equal(more)


def test_what_the_graph_asks_for_besides_acts_too(kit, pack, hgr, police):
    """The policy leaves skull to the graph; the graph's own HGR has it."""
    safe = kit.sample(kit.patch(hgr), kit.harmful)
    plain = kit.sample(kit.model, kit.harmful)
    police(concepts={"skull": 0})
    assert kit.sample(kit.model, kit.harmful).equal(plain)
    assert kit.sample(kit.patch(hgr), kit.harmful).equal(safe)


def test_a_harmful_prompt_on_the_negative_side_is_no_way_round(kit, hgr, police):
    """At cfg 0 the picture is that of the negative prompt alone."""
    plain = kit.sample(kit.model, kit.clean, kit.harmful, cfg=0.0)
    safe = kit.sample(kit.patch(hgr), kit.harmful, kit.negative, cfg=1.0)
    police()
    found = kit.sample(kit.model, kit.clean, kit.harmful, cfg=0.0)
    assert not found.equal(plain) and (found - safe).abs().max() < 1e-4


def test_a_node_that_does_cfg_itself_is_no_way_round(kit, hgr, police):
    """The first picture of a batch gets the scale 0 from it: the negative prompt alone."""
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    def draw(model):
        patched = VideoLinearCFGGuidance().patch(model, 0.0)[0]
        return kit.sample(patched, kit.clean, kit.harmful, shape=(2, 4, 16, 16))[:1]

    plain, safe = draw(kit.model), kit.sample(kit.patch(hgr), kit.harmful, kit.negative, cfg=1.0, shape=(2, 4, 16, 16))
    police()
    found = draw(kit.model)
    assert not found.equal(plain) and (found - safe[:1]).abs().max() < 1e-4


def _with_cfg_override(model):
    host = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(host, "CFGOverride"):
        pytest.skip("this ComfyUI has no CFG Override")
    return host.CFGOverride.execute(model, 0.0, 0.0, 1.0).args[0]


def _with_fresca(model):
    from comfy_extras.nodes_fresca import FreSca

    return FreSca.execute(model, 0.0, 0.0, 20).args[0]


@pytest.mark.parametrize("patched", [_with_cfg_override, _with_fresca])
def test_nodes_that_turn_guidance_round_are_no_way_round(kit, hgr, police, patched):
    """With these settings both show the negative prompt at every cfg."""
    model = patched(kit.model)
    plain = kit.sample(model, kit.clean, kit.harmful)
    assert (plain - kit.sample(kit.model, kit.harmful, kit.harmful)).abs().max() < 1e-3, "the way is there"
    safe = kit.sample(kit.patch(hgr), kit.harmful, kit.negative, cfg=1.0)
    police()
    found = kit.sample(model, kit.clean, kit.harmful)
    assert (found - safe).abs().max() < 1e-3


def _scales_by_step(host, model):
    """As in KJNodes."""

    class Guider(host.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            sides = self.conds["negative"], self.conds["positive"]
            return host.sampling_function(self.inner_model, x, timestep, *sides, self.cfg[0], model_options, seed)

    guider = Guider(model)
    guider.set_cfg([0.0] * 4)
    return guider


def _scale_of_its_own(host, model):
    class Guider(host.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            sides = self.conds["negative"], self.conds["positive"]
            return host.sampling_function(self.inner_model, x, timestep, *sides, 0.0, model_options, seed)

    guider = Guider(model)
    guider.set_cfg(7.5)
    return guider


def _functions_replaced_for_a_run(host, model):
    """As in AnimateDiff-Evolved."""
    whole = host.sampling_function

    def guide(model, x, timestep, uncond, cond, cond_scale, *args, **kwargs):
        return whole(model, x, timestep, uncond, cond, 0.0, *args, **kwargs)

    def wrapper(executor, *args, **kwargs):
        host.sampling_function = guide
        try:
            return executor(*args, **kwargs)
        finally:
            host.sampling_function = whole

    model = model.clone()
    model.add_wrapper_with_key("outer_sample", "other", wrapper)
    guider = host.CFGGuider(model)
    guider.set_cfg(7.5)
    return guider


@pytest.mark.parametrize("make", [_scales_by_step, _scale_of_its_own, _functions_replaced_for_a_run])
def test_a_packs_own_guidance_is_no_way_round(kit, hgr, police, make):
    """With these the picture is that of the negative prompt alone."""
    import comfy.sample
    import comfy.samplers as host
    import torch

    def draw(model):
        guider, latent = make(host, model), torch.zeros(1, 4, 16, 16)
        guider.set_conds(kit.clean, kit.harmful)
        sigmas = host.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
        noise = comfy.sample.prepare_noise(latent, 3)
        return guider.sample(noise, latent, host.sampler_object("euler"), sigmas, disable_pbar=True, seed=3)

    plain, safe = draw(kit.model), kit.sample(kit.patch(hgr), kit.harmful, kit.negative, cfg=1.0)
    assert (plain - kit.sample(kit.model, kit.harmful, cfg=1.0)).abs().max() < 1e-3, "the way is there"
    police()
    assert (draw(kit.model) - safe).abs().max() < 1e-3


def test_a_weight_below_0_is_no_way_round(kit, hgr, police):
    """The host checks the range of what is typed and not of what is linked: such an entry pulls where it should
    push."""
    turned = [[x, extra | {"strength": -0.5}] for x, extra in kit.harmful]
    plain = kit.sample(kit.model, kit.clean, kit.clean + turned, cfg=1.5)
    assert kit.sample(kit.model, kit.clean, kit.clean + turned, cfg=1.5).equal(plain)
    police()
    assert not kit.sample(kit.model, kit.clean, kit.clean + turned, cfg=1.5).equal(plain)


def _run(kit, model, sampler, sigmas, negative, guider=None):
    """A run of its own sigmas at cfg 4, from noise."""
    import comfy.samplers
    import torch

    if guider is None:
        guider = kit.pack.guidance.make_guider(model, kit.clean, negative, cfg=4.0)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    sampler = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas), disable_pbar=True, seed=3)


def _to_more_noise(kit, negative):
    """Such steps move away from what guidance moves towards."""
    return _run(kit, kit.model, "euler", [2.0, 1.0, 2.0], negative)


def _comes_and_goes(kit, negative):
    """A sampler that remembers continues the change between its steps."""
    import node_helpers

    window = {"start_percent": 0.0, "end_percent": 0.3}
    negative = node_helpers.conditioning_set_values(negative, window) + kit.negative
    return _run(kit, kit.model, "lms", [14.0, 13.0, 6.0, 2.0], negative)


def _another_sign(kit, negative):
    """The denoiser's noise is taken for the picture."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return _run(kit, ModelSamplingDiscrete().patch(kit.model, "x0", False)[0], "euler", [2.0, 1.0, 0.5], negative)


def _cfg_pp(kit, negative):
    return _run(kit, kit.model, "res_multistep_cfg_pp", [14.0, 3.0, 0.5, 0.1], negative)


def _perpendicular(kit, negative):
    """The neutral point has the weight cfg * (neg_scale - 1) + 1 beside the prompt."""
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(kit.model)
    guider.set_conds(kit.clean, kit.negative, negative)
    guider.set_cfg(2.0, 3.0)
    return _run(kit, kit.model, "euler", [2.0, 1.0, 0.5], None, guider)


@pytest.mark.parametrize("draw", [_to_more_noise, _comes_and_goes, _another_sign, _cfg_pp, _perpendicular])
def test_a_run_that_turns_guidance_round_by_other_means_is_no_way_round(kit, pack, hgr, police, draw):
    """What is drawn with the harmful prompt on the negative side is what is drawn with its redirected one."""
    from host_kit import safe_features

    safe = [[safe_features(pack, hgr, features), extra] for features, extra in kit.harmful]
    plain, wanted = draw(kit, kit.harmful), draw(kit, safe)
    police()
    found = draw(kit, kit.harmful)
    assert not found.equal(plain) and (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_what_pushes_away_from_the_negative_side_is_as_ever(kit, pack, police):
    """Ordinary samplers, and a model's own sampling with another shift."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model = ModelSamplingDiscrete().patch(kit.model, "v_prediction", True)[0]
    draws = [(kit.model, "euler"), (kit.model, "dpmpp_2m"), (kit.model, "heunpp2"), (model, "euler")]
    plain = [kit.sample(model, kit.clean, kit.harmful, sampler=sampler) for model, sampler in draws]
    police()
    found = [kit.sample(model, kit.clean, kit.harmful, sampler=sampler) for model, sampler in draws]
    assert all(a.equal(b) for a, b in zip(found, plain, strict=True))


def test_samplers_that_mix_the_sides_themselves_are_known(pack):
    import comfy.samplers
    from comfy_extras.nodes_advanced_samplers import SamplerEulerCFGpp

    mixes = pack.get("hgr.hosts.comfy.turned")._mixes_sides
    names = comfy.samplers.KSampler.SAMPLERS
    found = {name for name in names if mixes(comfy.samplers.sampler_object(name))}
    assert found == {name for name in names if "cfg_pp" in name} and found
    assert all(mixes(SamplerEulerCFGpp.execute(version).args[0]) for version in ("regular", "alternative"))


def test_a_lora_that_bypasses_the_weights_is_one_too(kit, police):
    from comfy.patcher_extension import PatcherInjection

    model = kit.model.clone()
    model.set_injections("bypass_lora", [PatcherInjection(inject=lambda _: None, eject=lambda _: None)])
    police()
    with pytest.raises(ValueError, match="LoRA"):
        kit.sample(model, kit.clean)


@pytest.mark.parametrize("group", ["OWN", "STAND_INS"])
def test_everything_that_samples_passes_the_policy(kit, hgr, police, group, monkeypatch):
    """The host's samplers, guiders, conditionings and patches, and what other packs do (`combinations`): with the plain
    model bit for bit as without a policy with SafeCFG's."""
    import combinations
    import comfy_extras.nodes_custom_sampler as host

    monkeypatch.setattr(combinations, "STEPS", 2)
    draws = dict(getattr(combinations, group))
    if not hasattr(host, "DualModelGuider"):
        draws.pop("DualModelGuider, model_negative plain", None)
    wanted, missing = {}, []
    for name, draw in draws.items():
        try:
            wanted[name] = [draw(kit, kit.patch(hgr), prompt) for prompt in (kit.harmful, kit.clean)]
        except (ImportError, AttributeError) as error:  # a node that this ComfyUI does not have
            missing.append(f"{name}: {error}")
    assert len(missing) < 4, missing
    police(unjudged=["lora", "ip_adapter", "image_to_image"])
    found = {name: [draws[name](kit, kit.model, prompt) for prompt in (kit.harmful, kit.clean)] for name in wanted}
    wrong = [name for name in wanted if not all(a.equal(b) for a, b in zip(found[name], wanted[name], strict=True))]
    assert not wrong


def _lora(kit, model):
    import comfy.sd

    return kit.sample(comfy.sd.load_lora_for_models(model, None, kit.random_lora(), 0.1, 0.0)[0], kit.clean)


def _hooked_lora(kit, model):
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora=kit.random_lora(), strength_model=0.1, strength_clip=0.0)
    return kit.sample(model, comfy.hooks.set_hooks_for_conditioning(kit.clean, hooks))


def _adapter(kit, model):
    model = model.clone()
    model.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    return kit.sample(model, kit.clean)


def _picture(kit, model):
    import comfy.sample
    import torch

    latent = torch.ones(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(
        model, noise, 2, 7.5, "euler", "normal", kit.clean, kit.negative, latent, denoise=0.5, disable_pbar=True, seed=3
    )


@pytest.mark.parametrize(
    ("draw", "kind"),
    [(_lora, "lora"), (_hooked_lora, "lora"), (_adapter, "ip_adapter"), (_picture, "image_to_image")],
    ids=["LoRA", "hooked LoRA", "IP-Adapter", "start picture"],
)
def test_what_no_text_says_needs_leave(kit, police, draw, kind):
    police(unjudged=[each for each in ("lora", "ip_adapter", "image_to_image") if each != kind])
    with pytest.raises(ValueError, match=f'SafeCFG policy: .*pictures are not judged here \\("{kind}"\\)'):
        draw(kit, kit.model)


@pytest.mark.parametrize("draw", [_lora, _hooked_lora, _picture], ids=["LoRA", "hooked LoRA", "start picture"])
def test_what_is_allowed_is_sampled_as_ever(kit, police, draw):
    plain = draw(kit, kit.model)
    police(unjudged=["lora", "image_to_image"])
    assert draw(kit, kit.model).equal(plain)


def _of_another_encoder(pack) -> tuple[Any, Any]:
    """An HGR, and the features of a prompt that it reads."""
    import torch
    from host_kit import made_up_hgr

    prompts = [[[torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(i)), {}]] for i in range(3)]
    return made_up_hgr(pack, *prompts, name="other.safetensors", chunk=77, fixed_start=False), prompts[0][0][0]


def test_a_model_that_no_hgr_reads_is_refused_or_allowed_as_the_policy_says(kit, pack, police, caplog):
    other, _ = _of_another_encoder(pack)
    plain = kit.sample(kit.model, kit.harmful)
    police([other])
    with pytest.raises(
        ValueError, match="no HGR of this server fits the text encoder .*other.safetensors was made for"
    ):
        kit.sample(kit.model, kit.harmful)
    police([other], no_hgr="allow")
    assert kit.sample(kit.model, kit.harmful).equal(plain) and "as the policy allows" in caplog.text


def test_of_several_hgrs_the_one_that_fits_is_used(kit, hgr, pack, police):
    """As with two models at once."""
    other, prompt = _of_another_encoder(pack)
    safe = kit.sample(kit.patch(hgr), kit.harmful)
    found = police([other, hgr])
    assert kit.sample(kit.model, kit.harmful).equal(safe)
    assert found.fit([pack.get("hgr.core.prompt").Prompt(prompt)]).name == "other.safetensors"


def test_text_that_cannot_be_seen_is_refused_or_allowed_as_the_policy_says(kit, police, caplog):
    import torch

    beside = [[kit.clean[0][0], kit.clean[0][1] | {"conditioning_llama3": torch.zeros(1)}]]
    police()
    with pytest.raises(ValueError, match="SafeCFG policy: This model also reads the prompt through Llama 3"):
        kit.sample(kit.model, beside)
    foreign = kit.model.clone()
    foreign.set_model_attn2_patch(lambda n, key, value, extra: (n, key * 3, value * 3))
    with pytest.raises(ValueError, match="SafeCFG policy: Another pack's patch of cross-attention"):
        kit.sample(foreign, kit.clean)
    police(unread_text="allow")
    kit.sample(kit.model, beside)
    assert "Llama 3" in caplog.text


def test_dynamic_is_used_only_where_a_graph_cannot_weaken_it(kit, hgr, police):
    def pictures(model, **more):
        return [kit.sample(model, kit.harmful, cfg=cfg, **more) for cfg in (7.5, 1.5)]

    dynamic, redirect = (pictures(kit.patch(hgr, mode=mode)) for mode in ("dynamic", "redirect"))
    police(mode="dynamic")
    high, low = pictures(kit.model)
    assert high.equal(dynamic[0]) and low.equal(redirect[1])
    assert kit.sample(kit.patch(hgr), kit.harmful).equal(redirect[0])  # the graph asks for more


def _by_the_models_own_method(model, x, sigma, context):
    model.model.apply_model(x, sigma, c_crossattn=context)


def _by_the_network(model, x, sigma, context):
    model.model.diffusion_model(x, sigma, context=context)


def _by_the_hosts_function(model, x, sigma, context):
    import comfy.samplers

    entry = {"model_conds": {}, "uuid": 0}
    comfy.samplers.calc_cond_batch(model.model, [[entry]], x, sigma, model.model_options)


@pytest.mark.parametrize("way", [_by_the_models_own_method, _by_the_network, _by_the_hosts_function])
def test_a_pack_that_samples_by_itself_is_refused(kit, pack, police, way):
    import comfy.model_management
    import torch

    police()
    model, _, _ = pack.get("hgr.hosts.comfy.demo").load_demo_model()
    comfy.model_management.load_models_gpu([model])
    model.model.current_patcher = model
    with pytest.raises(ValueError, match="SafeCFG policy: this node samples by itself"):
        way(model, torch.zeros(1, 4, 16, 16), torch.ones(1), kit.harmful[0][0])
    kit.sample(model, kit.clean)  # what is not by itself


def test_a_guider_that_goes_round_the_hosts_is_refused(kit, police):
    import comfy.samplers
    import torch

    class Guider(comfy.samplers.CFGGuider):
        def sample(self, noise, latent, sampler, sigmas, **more):
            self.conds = {key: [each.copy() for each in entries] for key, entries in self.original_conds.items()}
            return self.outer_sample(noise, latent, sampler, sigmas, seed=0)

    police()
    guider = Guider(kit.model)
    guider.set_conds(kit.harmful, kit.negative)
    sigmas = comfy.samplers.calculate_sigmas(kit.model.get_model_object("model_sampling"), "normal", 2)
    with pytest.raises(ValueError, match="SafeCFG policy: this node samples by itself"):
        guider.sample(
            torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16), comfy.samplers.sampler_object("euler"), sigmas
        )


def test_a_broken_policy_stops_all_sampling(kit, police, caplog):
    found = police()
    found.policy, found.fault = None, "safecfg_policy.json: it is not valid JSON."
    with pytest.raises(ValueError, match="SafeCFG policy: its file is broken, so nothing is sampled. .*not valid JSON"):
        kit.sample(kit.model, kit.clean)


def test_a_policy_that_changes_counts_from_the_next_start_and_says_so_once(kit, police, caplog):
    plain = kit.sample(kit.model, kit.harmful)
    found = police()
    found.path.write_text('{"concepts": {"skull": 0}}')
    assert not kit.sample(kit.model, kit.harmful).equal(plain)
    kit.sample(kit.model, kit.clean)
    assert found.changed and caplog.text.count("once ComfyUI is started again") == 1


def test_no_more_of_the_denoiser_is_evaluated_than_with_safecfg(kit, hgr, police):
    """The cost of a run is that of SafeCFG (Model): the same evaluations, and one reading of the prompt."""
    model, calls = kit.counted(kit.model)
    safe, safe_calls = kit.counted(kit.patch(hgr))
    kit.sample(safe, kit.harmful)
    police()
    kit.sample(model, kit.harmful)
    assert calls == safe_calls


def test_the_audit_log_says_what_was_decided_and_no_text(kit, police, tmp_path):
    police(audit="on")
    kit.sample(kit.model, kit.harmful)
    kit.sample(kit.model, kit.clean)
    with pytest.raises(ValueError):
        _lora(kit, kit.model)
    lines = [json.loads(line) for line in (tmp_path / "safecfg_audit.jsonl").read_text().splitlines()]
    assert [(line["decision"], line["concepts"]) for line in lines] == [
        ("redirected", ["skull"]),
        ("clean", []),
        ("refused", []),
    ]
    assert {"time", "prompt_id", "node", "decision", "concepts"} == lines[0].keys()
    assert "LoRA" in lines[2]["why"]


def test_without_audit_nothing_is_written(kit, police, tmp_path):
    police()
    kit.sample(kit.model, kit.harmful)
    assert not (tmp_path / "safecfg_audit.jsonl").exists()


def test_graphs_cannot_make_an_hgr_the_operators(pack, police, monkeypatch):
    found = police()
    in_force = pack.get("hgr.hosts.comfy.in_force")
    monkeypatch.setattr(in_force, "in_force", lambda: found)
    with pytest.raises(ValueError, match="graphs may not save one"):
        in_force.check_saving()
    found.policy = pack.get("hgr.core.policy").parse_policy('{"hgr": ["x.safetensors"]}')
    in_force.check_saving()


HOST = ("comfy", "comfy_extras", "comfy_execution", "execution", "latent_preview", "nodes")


def _callables() -> dict[str, Any]:
    """All functions and classes of the host, with the classes' attributes."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in (
            "comfy",
            "comfy_extras",
            "comfy_execution",
            "execution",
            "latent_preview",
            "nodes",
        ):
            for key, value in vars(module).items():
                if callable(value):
                    found[f"{name}.{key}"] = value
                if isinstance(value, type):
                    found |= {f"{name}.{key}.{each}": inner for each, inner in vars(value).items()}
    return found


def test_without_a_policy_file_nothing_of_the_host_is_touched(pack, kit, monkeypatch):
    import aiohttp.web

    routes = aiohttp.web.RouteTableDef()
    fake = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(routes=routes)))
    monkeypatch.setitem(sys.modules, "server", fake)
    before = _callables()
    extension = asyncio.run(pack.root.comfy_entrypoint())
    after = _callables()
    assert extension.active and len(before) > 1000
    assert not [name for name, value in before.items() if after[name] is not value]
    assert {route.path for route in routes} == {"/safecfg/hgr/{name:.+}", "/safecfg/policy"}


@pytest.fixture
def read(pack, monkeypatch, tmp_path):
    """What comes of a policy file with this text."""

    def read(text: str | bytes) -> Any:
        path = tmp_path / "mine.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setenv("SAFECFG_POLICY", str(path))
        return pack.get("hgr.hosts.comfy.in_force").in_force.__wrapped__()

    return read


def test_a_policy_file_and_its_hgrs_are_read(read, pack):
    found = read('{"concepts": {"skull": 1.5}, "hgr": ["safecfg_demo (bundled)"], "sensitivity": "high"}')
    assert not found.fault and found.policy.concepts == {"skull": 1.5}
    assert list(found.hgrs) == [pack.files.BUNDLED]
    about = found.about()
    assert about["policy"]["hgr"] == [pack.files.BUNDLED] and "/" not in json.dumps(about)


def test_of_files_with_the_same_concepts_the_better_one_counts(read, pack, hgr, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "hgr", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for name, quality in (("a", "draft"), ("b", "full"), ("c", "quick")):
        pack.files.save_hgr(dataclasses.replace(hgr, training={"quality": quality}), name)
    assert [name[0] for name in read("{}").hgrs] == ["b", "c", "a", "s"], "the bundled one is last"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"\xff\xfe", "not UTF-8"),
        ("{", "not valid JSON"),
        ('{"strength": 0}', "strength is 0"),
        ('{"hgr": ["gone.safetensors"]}', '"gone.safetensors" is not in models/hgr'),
        ('{"hgr": ["../x.safetensors"]}', "is not in models/hgr"),
        ('{"hgr": ["safecfg_demo (bundled)"], "concepts": {"sexual": 1}}', "does not have the concepts sexual"),
        ('{"pictures": "blur", "judge": {"checkpoint": "gone.ckpt", "hgr": "x"}}', "is not in models/checkpoints"),
        (
            '{"pictures": "blur", "judge": {"checkpoint": "safecfg_demo (bundled)", "hgr": "gone"}}',
            '"gone" is not in models/hgr',
        ),
    ],
)
def test_every_mistake_of_a_policy_file_has_its_sentence(read, text, fault):
    found = read(text)
    assert found.policy is None and found.fault.startswith("mine.json: ") and fault in found.fault


def test_a_policy_file_that_is_named_must_be_there(pack, monkeypatch, tmp_path):
    monkeypatch.setenv("SAFECFG_POLICY", str(tmp_path / "gone.json"))
    found = pack.get("hgr.hosts.comfy.in_force").in_force.__wrapped__()
    assert found.policy is None and "gone.json: it cannot be read" in found.fault


@pytest.mark.parametrize("module", ["hgr.hosts.comfy.policy", "hgr.hosts.comfy.editor", "nodes.extension"])
def test_what_fails_at_the_start_leaves_no_server_unpoliced(pack, police, kit, monkeypatch, tmp_path, module):
    """As if one of the pack's modules could not be imported."""
    import comfy.model_base
    import comfy.samplers

    plain = kit.sample(kit.model, kit.harmful)
    police()  # so that the host is as it was at the end of the test
    for owner, name in touched(comfy):
        monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    monkeypatch.setattr(pack.get("hgr.hosts.comfy.editor"), "add_route", lambda: True)
    room, _, file = module.rpartition(".")
    monkeypatch.delattr(pack.get(room), file, raising=False)
    name = pack.root.__name__
    monkeypatch.setitem(sys.modules, f"{name}.{module}", None)
    with pytest.raises(ImportError):
        asyncio.run(pack.root.comfy_entrypoint())
    if module == "nodes.extension":  # by then the policy is in force
        assert not kit.sample(kit.model, kit.harmful).equal(plain)
        return
    assert kit.sample(kit.model, kit.harmful).equal(plain), "without a policy nothing is touched"
    (tmp_path / "safecfg_policy.json").write_text("{}")
    with pytest.raises(ImportError):
        asyncio.run(pack.root.comfy_entrypoint())
    for draw in (lambda: kit.sample(kit.model, kit.clean), lambda: comfy.model_base.BaseModel(None)):
        with pytest.raises(ValueError, match=r"SafeCFG policy: it could not be put in force .\w+Error., so nothing"):
            draw()


@pytest.fixture
def judge(pack, kit, tmp_path):
    """The judge of pictures, with the demo model."""

    def make(action: str) -> Any:
        judge = {"checkpoint": pack.files.BUNDLED, "hgr": pack.files.BUNDLED}
        parse = pack.get("hgr.core.policy").parse_policy
        policy = parse(json.dumps({"pictures": action, "judge": judge}))
        found = pack.get("hgr.hosts.comfy.in_force").InForce(tmp_path / "p", None, policy)
        found.judge = pack.files.load_hgr(pack.files.BUNDLED)
        audit = pack.get("hgr.hosts.comfy.audit").Audit("on", tmp_path)
        return pack.get("hgr.hosts.comfy.shown_pictures")._Judge(found, audit)

    return make


def test_pictures_are_judged_before_they_are_shown(kit, judge, tmp_path):
    prompts = kit.batch(*map(kit.encode, ("a skull next to a red ball in a meadow", "a red ball in a meadow")))
    pictures = kit.vae.decode(kit.sample(kit.model, prompts, steps=12, shape=(2, 4, 16, 16)))
    blank = judge("blank")
    found = blank(pictures)
    assert found[0].std() == 0 and found[1].equal(pictures[1])
    assert blank(pictures[1:]).shape == pictures[1:].shape and blank(pictures[1:]).equal(pictures[1:])
    assert blank("text") == "text" and blank(3) == 3
    with pytest.raises(ValueError, match="latents are not saved"):
        blank({"samples": pictures})
    assert judge("flag")(pictures) is pictures
    lines = [json.loads(line) for line in (tmp_path / "safecfg_audit.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in lines] == ["picture blanked", "picture flagged"]
    assert all("skull" in line["concepts"] for line in lines)


def test_only_output_nodes_get_judged_pictures(pack, monkeypatch, tmp_path):
    import execution
    import latent_preview

    shown = pack.get("hgr.hosts.comfy.shown_pictures")

    async def output(prompt_id, unique_id, obj, inputs, **more):
        return inputs

    monkeypatch.setattr(execution, "get_output_data", output)
    monkeypatch.setattr(latent_preview, "get_previewer", latent_preview.get_previewer)
    monkeypatch.setattr(shown, "_Judge", lambda *_: _Judging())
    shown.judge_what_is_shown(None, None)

    def given(**about):
        return asyncio.run(execution.get_output_data("p", "1", SimpleNamespace(**about), {"images": ["x"]}))

    assert given(OUTPUT_NODE=True) == {"images": ["judged x"]} and given() == {"images": ["x"]}
    assert latent_preview.get_previewer("cpu", None) is None


class _Judging:
    action = "blur"

    def __call__(self, value):
        return f"judged {value}"
