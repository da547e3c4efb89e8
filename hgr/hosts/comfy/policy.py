"""The choke point of a policy: every guider's `sample`, which every sampler of the host passes.

What is put there is what SafeCFG (Model) puts on a model (`guidance.Patch`), for each run anew, as the innermost of its
wrappers: it reads the conditionings that are really sampled with, whatever a graph or a pack has done to them before.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import comfy.hooks
import comfy.model_patcher
import comfy.samplers
import folder_paths
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ...core.excerpt import excerpt
from ...core.fingerprint import fingerprint
from ...core.hgr import HGR, Concept
from ...core.policy import ALLOW, REFUSE, Policy, PolicyError
from . import runs
from .audit import Audit
from .guard import MARK, guard
from .guidance import Patch, is_followed, scale_of
from .in_force import InForce, in_force
from .prompts import prompt_in, replaced_attention, unread_patches, unread_text
from .turned import is_turned, models_of

log = logging.getLogger("safecfg")
# The least CFG scale at which mode "dynamic" is used: what stays of the harmful prompt has the weight 1 beside w - 1 of
# the safe one, so a graph could weaken it with a low scale.
_DYNAMIC_FROM = 5.0
# Where a conditioning keeps pictures that act as prompts, and pictures that a run starts from or follows.
_IP_ADAPTER = (
    "unclip_conditioning",
    "clip_vision_output",
    "clip_vision_outputs",
    "clip_vision_output_ref",
    "clip_vision_output_pose",
)
_PICTURES = (
    "concat_latent_image",
    "concat_image",
    "reference_latents",
    "ref_latent",
    "reference_motion",
    "vace_frames",
    "control_video",
    "context_latents",
    "time_dim_concat",
    "time_dim_replace",
    "pose_video_latent",
    "face_video_pixels",
)
_GIVEN = ("latent_image", "sampler", "sigmas")  # after the noise
_WORDS = {
    "lora": "a LoRA, a merge or another change of the model's weights acts in this run",
    "ip_adapter": "a picture acts as a prompt in this run, or a pack replaces cross-attention (as IP-Adapter does)",
    "image_to_image": "this run starts from a picture, or has no text that SafeCFG could read",
}


def install() -> InForce | None:
    """Put the policy in force, if this server has one. Without one, nothing of the host is touched."""
    found = in_force()
    if found is None:
        return None
    choke = _Choke(found, Audit(found.policy.audit if found.policy else "off", Path(folder_paths.get_user_directory())))
    sample = comfy.samplers.CFGGuider.sample

    @functools.wraps(sample)
    def guarded_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        with choke.around(self):
            return sample(self, *args, **kwargs)

    comfy.samplers.CFGGuider.sample = guarded_sample
    guard(choke.stranger)
    if found.policy and found.policy.pictures != "off":
        try:
            from .shown_pictures import judge_what_is_shown

            judge_what_is_shown(found, choke.audit)
        except Exception as error:  # whatever it is: what was to be judged must not be shown unjudged
            found.policy, found.fault = None, f"pictures cannot be judged in this ComfyUI ({excerpt(error)})."
    if found.policy is None:
        log.error("SafeCFG POLICY: %s Nothing is sampled until it is mended and ComfyUI started again.", found.fault)
    else:
        log.info("SafeCFG policy in force, with %s.", ", ".join(found.hgrs))
    return found


class _Choke:
    def __init__(self, found: InForce, audit: Audit):
        self.found, self.audit, self.told = found, audit, False

    @contextmanager
    def around(self, guider: Any) -> Iterator[None]:
        """A guider's run under the policy."""
        self._notice_change()
        if (policy := self.found.policy) is None:
            self.refuse(f"its file is broken, so nothing is sampled. {self.found.fault}")
        before = guider.model_options
        options = comfy.model_patcher.create_model_options_clone(before)
        wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
        # the first of all, so that it can order the others
        wrappers[WrappersMP.OUTER_SAMPLE] = {MARK: [_Run(self, policy)]} | wrappers.get(WrappersMP.OUTER_SAMPLE, {})
        guider.model_options = options
        try:
            yield
        finally:
            guider.model_options = before

    def stranger(self) -> NoReturn:
        self.refuse(
            f"its file is broken, so nothing is sampled. {self.found.fault}"
            if self.found.fault
            else "this node samples by itself, past ComfyUI's guiders, so SafeCFG cannot see what it is asked for."
        )

    def refuse(self, why: str) -> NoReturn:
        self.audit.record("refused", why=why)
        raise PolicyError(f"SafeCFG policy: {why} This server's operator decides about this.")

    def _notice_change(self) -> None:
        if not self.told and self.found.changed:
            self.told = True
            log.warning("SafeCFG policy: its file has changed. The new one counts once ComfyUI is started again.")


@dataclass(frozen=True)
class _Run:
    """The wrapper around one run: all others act first, then the policy's."""

    choke: _Choke
    policy: Policy

    def __call__(self, executor: WrapperExecutor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = [each for each in executor.wrappers if isinstance(each, Patch)]
        others = [each for each in executor.wrappers if not isinstance(each, (Patch, _Run))]

        def last(executor: WrapperExecutor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            guider: Any = executor.class_obj
            given = dict(zip(_GIVEN, args, strict=False)) | kwargs
            patches = self._patches(guider, given, own)
            # the guider's options are this run's own copy
            guider.model_options.setdefault("transformer_options", {})[MARK] = True
            return _chain(executor, patches).execute(noise, *args, **kwargs)

        return _chain(executor, [*others, last]).execute(noise, *args, **kwargs)

    def _patches(self, guider: Any, given: dict[str, Any], own: list[Patch]) -> list[Patch]:
        """What rewrites the conditionings: what is left of the graph's own SafeCFG, then the policy's. Raises
        PolicyError for a run that the policy does not allow. given: what the run is called with."""
        entries = [entry for each in guider.conds.values() for entry in each]
        every = is_turned(guider, given["sampler"], given["sigmas"])
        read = [
            prompt_in(entry["cross_attn"], entry, True)
            for role, each in guider.conds.items()
            for entry in each
            if (every or is_followed(role)) and entry.get("cross_attn") is not None
        ]
        if self.policy.pictures == "off":
            for kind in _beside_text(guider, entries, given.get("latent_image"), has_text=bool(read)):
                if kind not in self.policy.unjudged:
                    self.choke.refuse(f'{_WORDS[kind]}, and pictures are not judged here ("{kind}").')
        notes = [*unread_patches(guider.model_options), *(note for entry in entries for note in unread_text(entry))]
        if notes and self.policy.unread_text == REFUSE:
            self.choke.refuse(notes[0])
        if not read:
            self.choke.audit.record("no text")
            return []
        try:
            hgr = self.choke.found.fit(read)
        except PolicyError as error:
            if self.policy.no_hgr == ALLOW:
                log.warning("SafeCFG policy: sampled without it, as the policy allows: %s", error)
                self.choke.audit.record("allowed without an HGR")
                return own
            self.choke.refuse(str(error))
        asked = not every and all(each.mode == "dynamic" for each in (self.policy, *own))
        mode = "dynamic" if asked and _DYNAMIC_FROM <= scale_of(guider) < math.inf else "redirect"
        strengths = self.policy.strengths(hgr.ids)
        mine = _PolicyPatch(hgr, strengths, mode, 0.0, 1.0, None, self.choke, self.policy.unread_text == REFUSE, every)
        return combined(mine, own)


@dataclass(frozen=True)
class _PolicyPatch(Patch):
    """strict: whether text that SafeCFG cannot see ends the run. every: whether both sides are redirected."""

    choke: Any = field(default=None, compare=False)
    strict: bool = True
    every: bool = False

    def turned(self, guider: Any) -> bool:
        return self.every

    def unread(self, model_options: dict[str, Any]) -> list[str]:
        return unread_patches(model_options)  # of attention that is replaced, "ip_adapter" decides

    def _report(self, gates: list[list[float]], notes: list[str]) -> None:
        super()._report(gates, notes)
        if notes and self.strict:
            self.choke.refuse(notes[0])
        pairs = list(zip(self.hgr.concepts, self.strengths, strict=True))
        fired = {c.id for row in gates for (c, s), gate in zip(pairs, row, strict=True) if s and gate >= c.threshold}
        self.choke.audit.record("redirected" if fired else "clean", sorted(fired))


def combined(mine: Patch, own: Sequence[Patch]) -> list[Patch]:
    """What a run passes, the policy's patch last. The graph's may ask for more and never act on the same concept twice:
    of each concept that the policy has, the higher strength and, from the same HGR, the lower threshold count for the
    whole run; what the graph asks for besides, acts before."""
    strengths, concepts = list(mine.strengths), list(mine.hgr.concepts)
    rest: list[Patch] = []
    for patch in own:
        asked = {c.id: (c, s) for c, s in zip(patch.hgr.concepts, patch.strengths, strict=True) if s and not c.muted}
        same = bool(asked) and fingerprint(patch.hgr.network) == fingerprint(mine.hgr.network)
        for k, concept in enumerate(concepts):
            if concept.id in asked and strengths[k]:
                theirs, strength = asked.pop(concept.id)
                strengths[k] = max(strengths[k], strength)
                concepts[k] = _lower(concept, theirs) if same else concept
        if asked:
            left = [s if c.id in asked else 0.0 for c, s in zip(patch.hgr.concepts, patch.strengths, strict=True)]
            rest.append(replace(patch, hgr=patch.hgr.only(asked), strengths=left))
        else:
            runs.report(patch.node_id)
    node_id = next((patch.node_id for patch in own), None)
    hgr: HGR = replace(mine.hgr, concepts=concepts)
    return [*rest, replace(mine, hgr=hgr, strengths=strengths, node_id=node_id)]


def _lower(mine: Concept, theirs: Concept) -> Concept:
    if (mine.scale, mine.bias) != (theirs.scale, theirs.bias):
        return mine
    return replace(mine, threshold=min(mine.threshold, theirs.threshold))


def _beside_text(guider: Any, entries: list[dict[str, Any]], latent: Tensor | None, *, has_text: bool) -> list[str]:
    """Those of `BESIDE_TEXT` that act on a run."""
    found = []
    models = models_of(guider)
    hooks = [hook for entry in entries if entry.get("hooks") for hook in entry["hooks"].hooks]
    changed = any(model.patches or getattr(model, "injections", None) for model in models)
    if changed or any(isinstance(hook, comfy.hooks.WeightHook) for hook in hooks):
        found.append("lora")
    replaced = replaced_attention(guider.model_options)
    if replaced or any(entry.get(key) is not None for entry in entries for key in _IP_ADAPTER):
        found.append("ip_adapter")
    given = any(entry.get(key) is not None for entry in entries for key in _PICTURES)
    given = given or (latent is not None and bool(latent.any()))
    if not has_text or (given and runs.takes_pictures()):
        found.append("image_to_image")
    return found


def _chain(executor: WrapperExecutor, wrappers: list[Any]) -> WrapperExecutor:
    return WrapperExecutor.new_class_executor(executor.original, executor.class_obj, wrappers)
