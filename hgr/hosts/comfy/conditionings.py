"""Many prompts at once: encoded in few calls of a CLIP, and put into one CONDITIONING for a batch of pictures."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor

log = logging.getLogger("safecfg")

_MOST = 16  # prompts in a call; more are hardly faster
_MEASURED = 4  # prompts that are encoded in both ways, to compare
_TOLERANCE = 1e-3  # of the largest value: about what half precision, in which features are kept, rounds

Entry = tuple[Tensor, dict[str, Any]]  # of a CONDITIONING: features (1, T, D) and the rest


class PromptEncoder:
    """The host's text encoder for many prompts.

    The host encodes all sections of a long prompt in one batch, and prompts one after the other. So several prompts of
    one section each, and of the same length, are given to it as the sections of one. Not every encoder keeps sections
    apart: whether this one does is measured on the first such prompts. If it does not, and for all other prompts, there
    is a call for each, as the host's own nodes do it.
    """

    def __init__(self, clip: comfy.sd.CLIP):
        self.clip = clip
        self.together: bool | None = None  # None until it is measured

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[Entry]:
        tokens = [self.clip.tokenize(text) for text in texts]
        groups: dict[tuple, list[int]] = {}
        for i, each in enumerate(tokens):
            groups.setdefault(_lengths(each) or (i,), []).append(i)
        found = {}
        for rows in groups.values():
            for start in range(0, len(rows), _MOST):
                part = rows[start : start + _MOST]
                found |= zip(part, self._encode([tokens[i] for i in part]), strict=True)
        return [found[i] for i in range(len(texts))]

    def _encode(self, tokens: list[dict[str, Any]]) -> list[Entry]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        joined = None if len(tokens) == 1 or self.together is False else self._joined(tokens)
        if joined and self.together:
            return joined
        if joined is None or self.together is False:
            return [self._alone(each) for each in tokens]
        alone = [self._alone(each) for each in tokens[:_MEASURED]]
        self.together = all(map(_near, joined, alone))
        log.debug("prompts are encoded %s", "together" if self.together else "one by one")
        return joined if self.together else alone + [self._alone(each) for each in tokens[_MEASURED:]]

    def _alone(self, tokens: dict[str, Any]) -> Entry:
        features, extra = self.clip.encode_from_tokens_scheduled(tokens)[0]
        return features, extra

    def _joined(self, tokens: list[dict[str, Any]]) -> list[Entry]:
        """Prompts of one section each, encoded as the sections of one prompt."""
        count, pooled = len(tokens), []
        with ExitStack() as hooks:
            for part in self.clip.cond_stage_model.modules():
                if isinstance(part, comfy.sd1_clip.SDClipModel):
                    # the host passes on the first section's pooled output only
                    keep = lambda _, __, result: pooled.append(result[1])  # noqa: E731
                    hooks.callback(part.register_forward_hook(keep).remove)
            features, extra = self._alone({name: [each[name][0] for each in tokens] for name in tokens[0]})
        parts: dict[str, list] = {}
        for name, value in extra.items():
            if name == "pooled_output" and value is not None:
                value = next((x[:count].to(value) for x in pooled if _starts_with(x, value)), value)
                parts[name] = list(value.split(1)) if len(value) == count else [None] * count
            elif isinstance(value, Tensor) and value.shape == features.shape[:2]:
                parts[name] = list(value.chunk(count, 1))
            else:
                parts[name] = [value] * count
        return [
            (x, {name: values[i] for name, values in parts.items()}) for i, x in enumerate(features.chunk(count, 1))
        ]


def stacked(entries: list[Entry]) -> list[Entry]:
    """A CONDITIONING for a batch of pictures, one prompt each; the entries are alike."""
    (_, extra), count = entries[0], len(entries)
    joined = {
        name: torch.cat([each[1][name] for each in entries]) if isinstance(value, Tensor) and count > 1 else value
        for name, value in extra.items()
    }
    return [(torch.cat([features for features, _ in entries]), joined)]


def alike(entries: list[Entry], most: int) -> list[list[Entry]]:
    """The entries in their order, in parts of up to `most` that can be `stacked`."""
    parts: list[list[Entry]] = []
    for entry in entries:
        if parts and len(parts[-1]) < most and _can_join(parts[-1][0], entry):
            parts[-1].append(entry)
        else:
            parts.append([entry])
    return parts


def _can_join(one: Entry, two: Entry) -> bool:
    if one[0].shape != two[0].shape or one[1].keys() != two[1].keys():
        return False
    for x, y in ((one[1][name], two[1][name]) for name in one[1]):
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            if x.shape != y.shape or x.shape[:1] != (1,):
                return False
        elif isinstance(x, Tensor) or isinstance(y, Tensor) or x != y:
            return False
    return True


def _lengths(tokens: dict[str, Any]) -> tuple | None:
    """The length of each encoder's section, if there is one of each."""
    if not all(isinstance(sections, list) and len(sections) == 1 for sections in tokens.values()):
        return None
    return tuple((name, len(sections[0])) for name, sections in tokens.items())


def _starts_with(x: Tensor | None, first: Tensor) -> bool:
    return x is not None and x[:1].shape == first.shape and torch.equal(x[:1].to(first), first)


def _near(one: Entry, two: Entry) -> bool:
    """Whether two entries are the same for all purposes of training."""
    if one[1].keys() != two[1].keys():
        return False
    return all(map(_same, (one[0], *one[1].values()), (two[0], *(two[1][name] for name in one[1]))))


def _same(x: Any, y: Any) -> bool:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return type(x) is type(y) and not isinstance(x, Tensor | list | tuple | dict) and x == y
    if x.shape != y.shape:
        return False
    return bool((x.float() - y.float()).abs().max() <= _TOLERANCE * y.float().abs().max())
