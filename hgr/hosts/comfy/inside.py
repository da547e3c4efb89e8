"""Text features that a pack brings into cross-attention itself, as attention couples do: no conditioning holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import comfy.model_patcher
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor

from ...core.hgr import HGR
from ...core.in_step import InStep

_PATCH = "attn2_patch"
_ARGUMENTS = ("x", "timesteps", "context", "y", "control", "transformer_options")  # of the UNet, in order
_UNCOND = 1  # in the host's "cond_or_uncond"


class Inside:
    """A DIFFUSION_MODEL wrapper for one sampling run: the last `attn2_patch` of all moves what those before it brought.

    Without such patches it does nothing, and where they give back the context that they got, neither.

    strengths: of each concept, multiplied by the global one.
    percents: the window of sampling, start and end.
    away: the run's text features (B, T, D) that are not to be followed, so must not be moved.
    sides_known: whether the host's index 1 is the negative side, as in its own guider.
    """

    def __init__(
        self,
        hgr: HGR,
        strengths: list[float],
        *,
        model: comfy.model_patcher.ModelPatcher,
        percents: tuple[float, float],
        away: Sequence[Tensor],
        sides_known: bool,
    ):
        self.hgr, self.strengths, self.away, self.sides_known = hgr, strengths, away, sides_known
        self.sampling: Any = model.get_model_object("model_sampling")
        self.percents = percents
        self.by_device: dict[torch.device, InStep] = {}

    def __call__(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
        # other models' patches of this name look different, and none is known that brings text
        if isinstance(executor.class_obj, UNetModel):
            given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs  # other packs' wrappers may pass them by name
            context, options = given.get("context"), given.get("transformer_options") or {}
            patches = options.get("patches", {})
            if context is not None and patches.get(_PATCH) and context.shape[-1] == self.hgr.network.text_dim:
                mine = patches | {_PATCH: [*patches[_PATCH], self._patch(context, options)]}
                changed = options | {"patches": mine}
                if "transformer_options" in kwargs:
                    kwargs = kwargs | {"transformer_options": changed}
                else:
                    args = (*args[:5], changed, *args[6:])
        return executor(*args, **kwargs)

    def found(self) -> tuple[list[float], bool]:
        """After the run: the highest gate of each concept, empty where nothing was read, and whether there were
        features that this HGR cannot read."""
        steps = [step for step in self.by_device.values() if step.seen]
        gates = torch.stack([step.highest.cpu() for step in steps]).amax(0).tolist() if steps else []
        return gates, any(bool(step.unread) for step in steps)

    @cached_property
    def _window(self) -> list[float]:
        """The highest and the lowest sigma."""
        return [float(self.sampling.percent_to_sigma(percent)) for percent in self.percents]

    def _patch(self, context: Tensor, options: dict[str, Any]) -> Callable:
        """The patch for one evaluation of the denoiser. context: (B, T, D), its conditionings."""
        if context.device not in self.by_device:
            self.by_device[context.device] = InStep(self.hgr, self.strengths, context.device)
        in_step = self.by_device[context.device]
        active: Tensor | bool = True
        if (sigmas := options.get("sigmas")) is not None:
            high, low = self._window
            active = (sigmas.amax() <= high) & (sigmas.amax() >= low)
        known: dict[int, Tensor] = {}

        def move(*several: Tensor) -> tuple[Tensor, ...]:
            """Tensors of one shape, read together."""
            length = several[0].shape[1]
            if length not in known:
                given = [context, *(each.to(context) for each in self.away)]
                known[length] = torch.cat([in_step.marks(in_step.cut(each, length)) for each in given])
            sides = options.get("cond_or_uncond", []) if self.sides_known else []
            movable = _movable(several[0], context, sides) & active
            moved = in_step.move(torch.cat(several), known[length], movable.repeat(len(several)))
            return moved.chunk(len(several))

        def patch(n: Tensor, key: Tensor, value: Tensor | None, _: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
            # some layers look at something else than the prompt, such as the other frames
            if key is None or key.shape[-1] != context.shape[-1]:
                return n, key, value
            if value is None or value is key:
                key = value = key if key is context else move(key)[0]
            elif key is not context and value is not context and value.shape == key.shape:
                key, value = move(key, value)
            else:
                key, value = (x if x is context else move(x)[0] for x in (key, value))
            return n, key, value

        return patch


def _movable(x: Tensor, context: Tensor, sides: list[int]) -> Tensor:
    """(B,) bool: rows to follow. Where a patch changed their number, nobody knows which these are: all of them."""
    rows = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if len(x) == len(context) and sides and not len(x) % len(sides):
        for side, part in zip(sides, rows.chunk(len(sides)), strict=True):
            if side == _UNCOND:
                part.fill_(False)
    return rows
