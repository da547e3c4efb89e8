"""Refuses evaluations of a denoiser that no sampling run of the policy makes: a pack samples by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import comfy.model_base
from torch import nn

MARK = "safecfg_policy"  # in transformer options: whose evaluation it is, the policy knows


def guard(refuse: Callable[[], None]) -> None:
    """From now on, until the server ends, `refuse` is called before each evaluation without the mark; it raises.

    Seen are the host's own way to a denoiser, also to one that a pack has put in the place of the model's, and calls
    of the network itself.
    """
    base = comfy.model_base.BaseModel
    build, evaluate = base.__init__, base.apply_model

    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not any(isinstance(each, dict) and MARK in each for each in (*args, *kwargs.values())):
            refuse()

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check(args, kwargs)

    @functools.wraps(build)
    def guarded_build(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if (network := getattr(self, "diffusion_model", None)) is not None:
            network.register_forward_pre_hook(before, with_kwargs=True)

    @functools.wraps(evaluate)
    def guarded_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        return evaluate(self, *args, **kwargs)

    base.__init__, base.apply_model = guarded_build, guarded_evaluate
