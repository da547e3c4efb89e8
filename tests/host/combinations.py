"""What a graph can have around SafeCFG: the host's own nodes, and the smallest stand-ins for what other packs do.

Each combination draws two pictures: `draw(kit, model, prompt)` gives latents, where `model` is SafeCFG's or the plain
one and `prompt` a CONDITIONING, harmful or clean. Imported by tests only, since it imports the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from torch import Tensor

SHAPE = (2, 4, 16, 16)
STEPS = 10
OWN: dict[str, Callable] = {}
STAND_INS: dict[str, Callable] = {}


def own(name: str) -> Callable:
    return lambda draw: OWN.setdefault(name, draw)


def stand_in(name: str) -> Callable:
    return lambda draw: STAND_INS.setdefault(name, draw)


def ksampler(kit, model, prompt, negative=None, **more) -> Tensor:
    return kit.sample(model, prompt, negative, steps=STEPS, shape=SHAPE, **more)


def guided(kit, model, guider) -> Tensor:
    """Latents, as SamplerCustomAdvanced makes them."""
    latent = torch.zeros(SHAPE)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(comfy.sample.prepare_noise(latent, 3), latent, sampler, sigmas, disable_pbar=True, seed=3)


# The host's samplers and guiders


@own("KSampler")
def _(kit, model, prompt):
    return ksampler(kit, model, prompt)


for _name in ("dpmpp_2m", "dpmpp_2m_cfg_pp", "uni_pc", "lcm", "heun", "ddim"):
    OWN[f"KSampler, {_name}"] = lambda kit, model, prompt, name=_name: ksampler(kit, model, prompt, sampler=name)


@own("KSampler (Advanced), in two parts")
def _(kit, model, prompt):
    latent = torch.zeros(SHAPE)
    noise = comfy.sample.prepare_noise(latent, 3)
    run = [model, noise, STEPS, 7.5, "euler", "normal", prompt, kit.negative]
    half = comfy.sample.sample(*run, latent, last_step=STEPS // 2, disable_pbar=True, seed=3)
    run[1] = torch.zeros(SHAPE)
    return comfy.sample.sample(
        *run, half, start_step=STEPS // 2, disable_noise=True, force_full_denoise=True, disable_pbar=True, seed=3
    )


@own("CFGGuider")
def _(kit, model, prompt):
    from comfy_extras.nodes_custom_sampler import CFGGuider

    return guided(kit, model, CFGGuider.execute(model, prompt, kit.negative, 7.5).args[0])


@own("DualCFGGuider")
def _(kit, model, prompt):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    guider = DualCFGGuider.execute(model, prompt, kit.clean, kit.negative, 5.0, 3.0, "regular")
    return guided(kit, model, guider.args[0])


@own("PerpNegGuider")
def _(kit, model, prompt):
    from comfy_extras.nodes_perpneg import PerpNegGuider

    return guided(kit, model, PerpNegGuider.execute(model, prompt, kit.negative, kit.negative, 7.5, 1.0).args[0])


@own("DualModelGuider, model_negative plain")
def _(kit, model, prompt):
    from comfy_extras.nodes_custom_sampler import DualModelGuider

    guider = DualModelGuider.execute(model, prompt, 7.5, model_negative=kit.model, negative=kit.negative)
    return guided(kit, model, guider.args[0])


# Conditionings


@own("Conditioning (Combine)")
def _(kit, model, prompt):
    return ksampler(kit, model, prompt + kit.negative)


@own("Conditioning (Set Area)")
def _(kit, model, prompt):
    import nodes

    return ksampler(kit, model, kit.negative + nodes.ConditioningSetArea().append(prompt, 128, 112, 0, 0, 1.0)[0])


@own("Conditioning (Set Mask)")
def _(kit, model, prompt):
    import nodes

    mask = torch.zeros(1, 128, 128)
    mask[:, :, :80] = 1
    append = nodes.ConditioningSetMask().append
    return ksampler(
        kit, model, append(prompt, mask, "default", 1.0)[0] + append(kit.clean, 1 - mask, "default", 1.0)[0]
    )


@own("ConditioningSetTimestepRange")
def _(kit, model, prompt):
    import nodes

    part = nodes.ConditioningSetTimestepRange().set_range
    return ksampler(kit, model, part(prompt, 0.0, 0.5)[0] + part(prompt, 0.5, 1.0)[0])


@own("Conditioning (Concat)")
def _(kit, model, prompt):
    import nodes

    return ksampler(kit, model, nodes.ConditioningConcat().concat(prompt, kit.encode("a green tree"))[0])


@own("ConditioningZeroOut as negative")
def _(kit, model, prompt):
    import nodes

    return ksampler(kit, model, prompt, nodes.ConditioningZeroOut().zero_out(kit.negative)[0])


@own("Cond Set Props with a hooked LoRA")
def _(kit, model, prompt):
    hooks = comfy.hooks.create_hook_lora(lora=kit.random_lora(), strength_model=0.1, strength_clip=0.0)
    return ksampler(kit, model, comfy.hooks.set_hooks_for_conditioning(prompt, hooks))


@own("Apply ControlNet")
def _(kit, model, prompt):
    control = {"control": kit.make_control(), "control_apply_to_uncond": True}
    return ksampler(kit, model, [[features, extra | control] for features, extra in prompt])


# Patches of the model


def _patched(name: str, module: str, node: str, *args: Any, **kwargs: Any) -> None:
    def draw(kit, model, prompt):
        found = getattr(__import__(f"comfy_extras.{module}", fromlist=[node]), node)
        patch = getattr(found, "execute", None) or found().patch
        return ksampler(kit, patch(model, *args, **kwargs)[0], prompt)

    OWN[name] = draw


_patched("Perturbed-Attention Guidance", "nodes_pag", "PerturbedAttentionGuidance", 1.0)
_patched("Normalized Attention Guidance", "nodes_nag", "NAGuidance", 3.0, 0.5, 2.5)
_patched("FreeU V2", "nodes_freelunch", "FreeU_V2", 1.1, 1.1, 0.95, 0.95)
_patched("HyperTile", "nodes_hypertile", "HyperTile", 128, 2, 0, False)
_patched("Token merging", "nodes_tomesd", "TomePatchModel", 0.2)
_patched(
    "UNet cross-attention multiply", "nodes_attention_multiply", "UNetCrossAttentionMultiply", 1.05, 1.05, 1.0, 1.0
)
_patched("Rescale CFG", "nodes_model_advanced", "RescaleCFG", 0.5)
_patched("Mahiro", "nodes_mahiro", "Mahiro")
_patched("Tangential damping CFG", "nodes_tcfg", "TCFG")
_patched("Adaptive projected guidance", "nodes_apg", "APG", 1.0, 15.0, 0.0)
_patched("FreSca", "nodes_fresca", "FreSca", 1.0, 1.1, 5)
_patched("CFG-Zero star", "nodes_cfg", "CFGZeroStar")
_patched("Differential Diffusion", "nodes_differential_diffusion", "DifferentialDiffusion")
_patched("EasyCache", "nodes_easycache", "EasyCacheNode", 0.05, 0.15, 0.95, False)


@own("Load LoRA")
def _(kit, model, prompt):
    return ksampler(kit, comfy.sd.load_lora_for_models(model, None, kit.random_lora(), 0.1, 0.0)[0], prompt)


@own("ModelMergeSimple, SafeCFG on model1")
def _(kit, model, prompt):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    return ksampler(kit, ModelMergeSimple().merge(model, kit.model, 0.5)[0], prompt)


@own("VAE Encode (for Inpainting)")
def _(kit, model, prompt):
    latent, mask = torch.zeros(SHAPE), torch.zeros(1, 1, 128, 128)
    mask[..., :, 16:] = 1
    return comfy.sample.sample(
        model, comfy.sample.prepare_noise(latent, 3), STEPS, 7.5, "euler", "normal", prompt, kit.negative, latent,
        noise_mask=mask, disable_pbar=True, seed=3,
    )  # fmt: skip


# What other packs do


def couple(prompt: list, *, tokens: bool = False) -> tuple[Callable, Callable]:
    """An attention couple: patches for cross-attention that bring a prompt's features from their own closure.

    tokens: whether they stand behind the run's tokens; else in a row of their own, and the outputs are averaged.
    """
    foreign = prompt[0][0]

    def enter(n: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        sides = extra["cond_or_uncond"]
        extra["couple"] = sides
        queries, keys = [], []
        for side, q, k in zip(sides, n.chunk(len(sides)), key.chunk(len(sides)), strict=True):
            mine = foreign.to(k).expand(len(k), -1, -1)
            if tokens:
                queries, keys = [*queries, q], [*keys, torch.cat([k, k if side else mine], 1)]
            else:
                queries, keys = [*queries, q, *([] if side else [q])], [*keys, k, *([] if side else [mine])]
        return torch.cat(queries), torch.cat(keys), torch.cat(keys)

    def leave(n: Tensor, extra: dict[str, Any]) -> Tensor:
        if tokens:
            return n
        sides, made = extra["cond_or_uncond"], []
        rows = list(n.chunk(sum(1 if side else 2 for side in sides)))
        for side in sides:
            first = rows.pop(0)
            made.append(first if side else 0.3 * first + 0.7 * rows.pop(0))
        return torch.cat(made)

    return enter, leave


def _couple(**kind: bool) -> Callable:
    def draw(kit, model, prompt):
        enter, leave = couple(prompt, **kind)
        coupled = model.clone()
        coupled.set_model_attn2_patch(enter)
        coupled.set_model_attn2_output_patch(leave)
        return ksampler(kit, coupled, kit.negative)  # whose own words would outvote a couple

    return draw


stand_in("attention couple, a row for each region")(_couple())
stand_in("attention couple, tokens behind the prompt's")(_couple(tokens=True))


@stand_in("attention couple, from a hook on the conditioning")
def _(kit, model, prompt):
    enter, leave = couple(prompt)
    patches = {"patches": {"attn2_patch": [enter], "attn2_output_patch": [leave]}}
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.TransformerOptionsHook(transformers_dict=patches))
    return ksampler(kit, model, comfy.hooks.set_hooks_for_conditioning(kit.negative, hooks))


@stand_in("cross-attention patch that keeps the prompt (DenseDiffusion)")
def _(kit, model, prompt):
    patched = model.clone()
    patched.set_model_attn2_patch(lambda n, key, value, extra: (n * 1.02, key, value))
    return ksampler(kit, patched, prompt)


@stand_in("cross-attention replaced (IP-Adapter)")
def _(kit, model, prompt):
    from comfy.ldm.modules.attention import optimized_attention

    patched = model.clone()
    for block in range(12):
        for place in ("input", "output"):
            patched.set_model_attn2_replace(
                lambda q, k, v, extra: optimized_attention(q, k, v, extra["n_heads"]), place, block
            )
    patched.set_model_attn2_replace(lambda q, k, v, extra: optimized_attention(q, k, v, extra["n_heads"]), "middle", 0)
    return ksampler(kit, patched, prompt)


@stand_in("denoiser called in a wrapper of its own")
def _(kit, model, prompt):
    patched = model.clone()
    patched.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    return ksampler(kit, patched, prompt)


@stand_in("a guider with roles of its own (source_negative)")
def _(kit, model, prompt):
    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            sides = [self.conds["source_negative"], self.conds["source_positive"]]
            away, follow = comfy.samplers.calc_cond_batch(self.inner_model, sides, x, timestep, model_options or {})
            return away + 7.5 * (follow - away)

    guider = Guider(model)
    guider.inner_set_conds({"source_positive": prompt, "source_negative": kit.negative})
    return guided(kit, model, guider)


@stand_in("regional sampler, a sampling run for each step")
def _(kit, model, prompt):
    latent = torch.zeros(SHAPE)
    noise = comfy.sample.prepare_noise(latent, 3)
    for step in range(STEPS):
        given = noise if step == 0 else torch.zeros(SHAPE)
        latent = comfy.sample.sample(
            model, given, STEPS, 7.5, "euler", "normal", prompt, kit.negative, latent,
            start_step=step, last_step=step + 1, disable_noise=step > 0, disable_pbar=True, seed=3,
        )  # fmt: skip
    return latent
