"""One call of a diffusers pipeline with safe guidance. The only file that knows diffusers' samplers.

The pipeline encodes and samples as it always does. For the time of the call its `encode_prompt` gives the safe prompt.
What depends on the step, hooks on the denoiser do: the window, and the mixed predictions of mode "dynamic".
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ...core.guidance import kept_share
from ...core.prompt import Prompt
from ...core.redirect import Redirection
from .prompts import read, rewritten

log = logging.getLogger("safecfg")
_DENOISERS = ("unet", "transformer", "transformer_2")


def cfg_option(pipe: Any) -> str:
    """The name of the classifier-free guidance scale in the pipeline's call. Flux and Qwen-Image call another one
    `guidance_scale`, which a distilled denoiser takes as its input."""
    return "true_cfg_scale" if "true_cfg_scale" in inspect.signature(pipe.__call__).parameters else "guidance_scale"


class SafeSampling:
    """What happens in one call.

    prompt: the features as the denoiser gets them, and other: the safe ones in mode "dynamic", in "redirect" those as
    written; both with one row per picture, known once the pipeline has encoded the prompt.
    moved (M,): the rows of the pictures in which a concept fires. harm (M,): of these.
    guided: whether there is a negative prompt.
    step: how many steps are done; found: whether the denoiser has got the prompt in this one.
    """

    prompt: Prompt | None = None
    other: Prompt
    moved = torch.empty(0, dtype=torch.long)
    harm: Tensor
    guided = False
    step = 0
    found = False
    busy = False  # with our own evaluation

    def __init__(
        self,
        pipe: Any,
        redirect: Callable[[Prompt], Redirection],
        *,
        mode: str,
        window: tuple[float, float],
        options: Mapping[str, Any],
    ):
        self.pipe, self.redirect, self.mode, self.window, self.options = pipe, redirect, mode, window, options
        self.encode, self.next = pipe.encode_prompt, pipe.scheduler.step
        self.places = WeakIdKeyDictionary()  # so that features are compared once, and not in every step

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block in which to call the pipeline. Afterwards nothing of it is left, also on an error."""
        with ExitStack() as stack:
            stack.enter_context(_replaced(self.pipe, "encode_prompt", self._encode_prompt))
            if self.mode == "dynamic" or self.window != (0, 1):
                stack.enter_context(_replaced(self.pipe.scheduler, "step", self._step))
                for handle in self._hooks():
                    stack.callback(handle.remove)
            yield
        if self.prompt is None:
            raise ValueError(f"{type(self.pipe).__name__} does not use its encode_prompt: SafeCFG read no prompt.")

    def _hooks(self) -> Iterator[Any]:
        if self.mode != "dynamic":  # ControlNets read the prompt too
            for part in self.pipe.components.values():
                if isinstance(part, nn.Module):
                    yield part.register_forward_pre_hook(self._exchange, with_kwargs=True, prepend=True)
            return
        name = cfg_option(self.pipe)
        scale = self.options.get(name, inspect.signature(self.pipe.__call__).parameters[name].default)
        for name in _DENOISERS:
            if (part := getattr(self.pipe, name, None)) is not None:
                own = self.options.get("guidance_scale_2") if name == "transformer_2" else None  # Wan 2.2
                yield part.register_forward_hook(partial(self._mix, own or scale), with_kwargs=True)

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        encoded = self.encode(*args, **kwargs)
        if self.prompt is not None:  # Flux and Qwen-Image encode the negative prompt after the positive one
            self.guided = True
            return encoded
        written, self.guided = read(self.pipe, encoded, kwargs.get("num_images_per_prompt", 1))
        found = self.redirect(written)
        (self.moved,) = (found.harm > 0).nonzero(as_tuple=True)
        self.harm = found.harm[self.moved]
        if self.mode == "dynamic":
            self.prompt, self.other = written, found.safe
            return encoded
        self.prompt, self.other = found.safe, written
        return rewritten(self.pipe, encoded, found.safe)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        """The scheduler's step, after the evaluations of the denoiser."""
        if len(self.moved) and not self.found:
            raise ValueError(
                f"{type(self.pipe).__name__} does not give its denoiser the text features that it encoded, or a "
                'callback changes them: use mode "redirect" without start_percent and end_percent.'
            )
        if self.mode == "dynamic" and not self.guided and not self.step:
            log.warning('mode "dynamic" acts on the negative side, so it has no effect without one: use "redirect".')
        self.found = False
        self.step += 1
        return self.next(*args, **kwargs)

    def _inside(self) -> bool:
        count = getattr(self.pipe, "num_timesteps", None) or len(self.pipe.scheduler.timesteps)
        return self.window[0] <= self.step / count < self.window[1]

    def _find(self, kwargs: dict[str, Any]) -> list[int]:
        """The rows of a call's text features at which the prompt's begin."""
        given = kwargs.get("encoder_hidden_states")
        if self.busy or self.prompt is None or not len(self.moved) or not isinstance(given, Tensor):
            return []
        if given not in self.places:
            own = self.prompt.features.to(given)
            starts = range(0, len(given), len(own))
            self.places[given] = [at for at in starts if torch.equal(given[at : at + len(own)], own)]
        self.found |= bool(self.places[given])
        return self.places[given]

    def _exchange(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Outside the window of mode "redirect", the denoiser gets the prompt as written."""
        starts = self._find(kwargs)
        if not starts or self._inside():
            return None
        written = self.other.rows(self.moved)
        for start in starts:
            kwargs = _with_prompt(kwargs, start + self.moved, written)
        return args, kwargs

    def _mix(
        self, scale: float, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor]
    ) -> tuple[Tensor] | None:
        """In the window of mode "dynamic", the denoiser predicts `m eps(c) + (1 - m) eps(c_safe)` for the prompts c
        (`hgr.core.guidance.kept_share`). Pictures with m = 1 are not evaluated again and keep their prediction bit for
        bit. What a ControlNet added stays: it read the prompts as written."""
        starts = self._find(kwargs)
        if not starts or not self.guided or scale <= 1 or not self._inside():
            return None
        (predicted,) = output
        pictures = len(self.prompt.features) if self.prompt else 0
        if len(predicted) > 2 * pictures:
            raise ValueError(
                'mode "dynamic" needs a pipeline that evaluates every picture with the negative prompt and with the '
                f'positive one, {2 * pictures} rows here, but this one evaluates {len(predicted)}: use mode "redirect".'
            )
        rows = (starts[-1] + self.moved).to(predicted.device)  # the positive prompt stands after the negative one
        args, kwargs = _rows(args, rows, len(predicted)), _rows(kwargs, rows, len(predicted))
        kwargs = _with_prompt(kwargs, slice(None), self.other.rows(self.moved))
        self.busy = True
        try:
            (safe,) = denoiser(*args, **kwargs)
        finally:
            self.busy = False
        kept = kept_share(self.harm, scale).to(predicted).reshape(-1, *(1,) * (predicted.ndim - 1))
        result = predicted.clone()
        result[rows] = kept * predicted[rows] + (1 - kept) * safe
        return (result,)


@contextmanager
def _replaced(owner: object, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Within this block, this one object has another method."""
    before = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)


def _with_prompt(kwargs: dict[str, Any], rows: Tensor | slice, prompt: Prompt) -> dict[str, Any]:
    """A denoiser's arguments with this prompt in some of its rows."""

    def put(given: Tensor, new: Tensor) -> Tensor:
        changed = given.clone()
        changed[rows if isinstance(rows, slice) else rows.to(given.device)] = new.to(given)
        return changed

    changed = kwargs | {"encoder_hidden_states": put(kwargs["encoder_hidden_states"], prompt.features)}
    if prompt.pooled is not None:
        if "pooled_projections" in kwargs:
            changed["pooled_projections"] = put(kwargs["pooled_projections"], prompt.pooled)
        else:
            added = kwargs["added_cond_kwargs"]
            changed["added_cond_kwargs"] = added | {"text_embeds": put(added["text_embeds"], prompt.pooled)}
    return changed


def _rows(given: Any, rows: Tensor, count: int) -> Any:
    """Arguments of a call for some of its `count` rows; what has no such rows stays."""
    if isinstance(given, Tensor):
        return given[rows] if given.ndim and len(given) == count else given
    if isinstance(given, dict):
        return {key: _rows(value, rows, count) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return type(given)(_rows(value, rows, count) for value in given)
    return given
