"""Mode "dynamic" in a diffusers pipeline: mixes the denoiser's prediction for a harmful prompt with the safe one's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.prompt import Prompt


@contextmanager
def mixed(pipe: DiffusionPipeline, safe: Prompt, share: Tensor, *, window: tuple[float, float]) -> Iterator[None]:
    """Within this block, the pipeline's denoiser predicts `m eps(c) + (1 - m) eps(c_safe)` for the prompts c of a call
    with classifier-free guidance (`hgr.core.guidance.kept_share`). Afterwards nothing of it is left, also on an error.

    safe: the safe prompts. share (B,): m of each; both with one row for every picture. Pictures with 1 are not
    evaluated again and keep their prediction bit for bit; the others cost a third evaluation per step.
    window: the part of the steps in which to mix; it includes step i of n if `start <= i / n < end`.
    """
    hook = _Mixing(pipe, safe, share, window=window)
    handle = hook.unet.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Mixing:
    """A forward hook of the denoiser. step: how many evaluations the pipeline has asked for."""

    def __init__(self, pipe: Any, safe: Prompt, share: Tensor, *, window: tuple[float, float]):
        self.pipe, self.unet, self.window = pipe, pipe.unet, window
        device = self.unet.device
        (chosen,) = (share < 1).nonzero(as_tuple=True)
        self.safe = safe.rows(chosen).to(device)
        self.kept, self.rows = share[chosen].to(device), (len(share) + chosen).to(device)  # after the negative rows
        self.count = 2 * len(share)
        self.step = 0
        self.busy = False  # with our own evaluation

    def __call__(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor]
    ) -> tuple[Tensor] | None:
        if self.busy:
            return None
        percent = self.step / self.pipe.num_timesteps
        self.step += 1
        if not self.window[0] <= percent < self.window[1]:
            return None
        (predicted,) = output
        if len(predicted) != self.count:
            raise ValueError(
                'mode "dynamic" needs a pipeline that evaluates every picture with the negative prompt and with the '
                f'positive one, {self.count} rows here, but this one evaluates {len(predicted)}: use mode "redirect".'
            )
        kept = self.kept.to(predicted).reshape(-1, *(1,) * (predicted.ndim - 1))
        result = predicted.clone()
        result[self.rows] = kept * predicted[self.rows] + (1 - kept) * self._evaluate(args, kwargs)
        return (result,)

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The denoiser's prediction for the harmful rows of a call, with safe prompts. What a ControlNet added to these
        rows stays: it read the prompts as written."""
        args, kwargs = _rows(args, self.rows, self.count), _rows(kwargs, self.rows, self.count)
        kwargs["encoder_hidden_states"] = self.safe.features.to(kwargs["encoder_hidden_states"])
        if self.safe.pooled is not None:
            added = kwargs["added_cond_kwargs"]
            kwargs["added_cond_kwargs"] = added | {"text_embeds": self.safe.pooled.to(added["text_embeds"])}
        self.busy = True
        try:
            return self.unet(*args, **kwargs)[0]
        finally:
            self.busy = False


def _rows(given: Any, rows: Tensor, count: int) -> Any:
    """Arguments of a call for some of its `count` rows; what has no such rows stays."""
    if isinstance(given, Tensor):
        return given[rows] if given.ndim and len(given) == count else given
    if isinstance(given, dict):
        return {key: _rows(value, rows, count) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return type(given)(_rows(value, rows, count) for value in given)
    return given
