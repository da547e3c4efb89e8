"""Whether a run may show what is on the negative side of guidance. Under a policy both sides are redirected then."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from .guidance import is_followed, shows_negative

# What may turn guidance round: functions and wrappers around it, and patches that mix both sides in attention.
_AROUND_CFG = {
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
}
_WRAPPERS = (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH)
_HOST = [Path(comfy.samplers.__file__).parents[1] / folder for folder in ("comfy", "comfy_extras")]


def is_turned(guider: Any, sampler: Any, sigmas: Tensor) -> bool:
    """Wherever it is not plain that the picture is pushed away from the negative side, in each step of the run."""
    options = guider.model_options
    inner = options.get("transformer_options", {})
    return (
        shows_negative(guider)
        or bool(_AROUND_CFG & options.keys())
        or bool(inner.get("patches", {}).get("attn1_output_patch"))
        or any(get_all_wrappers(kind, inner) for kind in _WRAPPERS)
        or _is_a_packs(guider)
        or _weighs_below_0(guider)
        or _comes_and_goes(guider)
        or _goes_back(sigmas)
        or _mixes_sides(sampler)
        or any(map(_is_inverted, models_of(guider)))
    )


def models_of(guider: Any) -> list[comfy.model_patcher.ModelPatcher]:
    """All models of a guider; some have two."""
    return [each for each in vars(guider).values() if isinstance(each, comfy.model_patcher.ModelPatcher)]


def _is_a_packs(guider: Any) -> bool:
    """Whether guidance itself is another pack's: in a guider, or in the place of the host's functions by now."""
    own = [getattr(comfy.samplers, name) for name in ("sampling_function", "cfg_function", "calc_cond_batch")]
    return not all(map(_is_hosts, (type(guider).predict_noise, *own)))


def _is_hosts(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and any(Path(code.co_filename).is_relative_to(folder) for folder in _HOST)


def _weighs_below_0(guider: Any) -> bool:
    """The host checks the range of what is typed, not of what is linked. Perpendicular negative's neutral point counts
    1 - cfg + cfg * neg_scale beside the prompt: above 0 for a scale above 1."""
    weights = [value for value in vars(guider).values() if isinstance(value, int | float)]
    for entry in (entry for each in guider.conds.values() for entry in each):
        weights += [entry.get("strength", 1.0), entry.get("mask_strength", 1.0)]
        if (mask := entry.get("mask")) is not None:
            weights.append(mask.min().item())
    return min(weights) < 0 or getattr(guider, "neg_scale", 0.0) > 1


def _comes_and_goes(guider: Any) -> bool:
    """Samplers of several steps' memory continue a change: what one step pushes away from and the next does not, they
    move towards."""
    return any(
        entry.get("start_percent", 0.0) > 0 or entry.get("end_percent", 1.0) < 1
        for role, each in guider.conds.items()
        if not is_followed(role)
        for entry in each
    )


def _goes_back(sigmas: Tensor) -> bool:
    """To more noise: such a step moves away from what guidance moves towards."""
    return not bool((sigmas.diff() <= 0).all() and (sigmas >= 0).all())


def _mixes_sides(sampler: Any) -> bool:
    """CFG++ and its kind take the negative side by itself, with weights of their own: in large steps above 0."""
    function = inspect.unwrap(getattr(sampler, "sampler_function", sampler))
    if "cfg_pp" in getattr(function, "__name__", ""):
        return True
    code = getattr(function, "__code__", None)  # one that has a switch for it is called by one with that name
    return (
        code is not None and "set_model_options_post_cfg_function" in code.co_names and "cfg_pp" not in code.co_varnames
    )


def _is_inverted(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether the graph has the model's predictions read with the other sign, as noise where they are the picture."""
    if (patched := model.object_patches.get("model_sampling")) is None:
        return False
    own = model.object_patches_backup.get("model_sampling", model.model.model_sampling)
    try:
        return _sign(patched) != _sign(own)
    except Exception:  # another pack's, and nobody knows
        return True


def _sign(model_sampling: Any) -> float:
    one = torch.full((1, 1, 1, 1), 0.5)
    return model_sampling.calculate_denoised(one.flatten(), one, torch.zeros_like(one)).sign().item()
