"""Judges pictures before a node that ends a graph saves or shows them, whatever they come from."""

from __future__ import annotations

import functools
import logging
from typing import Any

import comfy.sd
import execution
import folder_paths
import latent_preview
from comfy_api.latest import InputImpl, Types
from comfy_execution.utils import CurrentNodeContext
from torch import Tensor

from ...core.json_text import json_text
from ...core.policy import PolicyError
from ...core.progress import SILENT
from ...detection.censor import censor
from .audit import Audit
from .demo import load_demo_model
from .detection import detect
from .files import BUNDLED
from .in_force import InForce

log = logging.getLogger("safecfg")


def judge_what_is_shown(found: InForce, audit: Audit) -> None:
    """From now on, until the server ends, every output node gets judged pictures. Nor are there previews while
    sampling, which nobody could judge in time, unless pictures are only flagged."""
    output, judge = execution.get_output_data, _Judge(found, audit)

    @functools.wraps(output)
    async def judged_output(prompt_id: str, unique_id: str, obj: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        if getattr(obj, "OUTPUT_NODE", False):
            with CurrentNodeContext(prompt_id, unique_id):
                inputs = {name: [judge(value) for value in values] for name, values in inputs.items()}
        return await output(prompt_id, unique_id, obj, inputs, **kwargs)

    execution.get_output_data = judged_output
    if judge.action != "flag":
        latent_preview.get_previewer = lambda *_, **__: None


class _Judge:
    def __init__(self, found: InForce, audit: Audit):
        assert found.policy and found.policy.judge and found.judge
        self.policy, self.hgr, self.audit = found.policy, found.judge, audit
        self.action, self.checkpoint = found.policy.pictures, found.policy.judge.checkpoint

    @functools.cached_property
    def model(self) -> tuple[Any, Any]:
        """MODEL and VAE of the checkpoint, loaded when the first picture comes."""
        if self.checkpoint == BUNDLED:
            model, _, vae = load_demo_model()
        else:
            path = folder_paths.get_full_path_or_raise("checkpoints", self.checkpoint)
            model, _, vae, *_ = comfy.sd.load_checkpoint_guess_config(path, output_clip=False)
        return model, vae

    def __call__(self, value: Any) -> Any:
        """What a node may have of a value: the same object if it holds no picture, or none in which a concept is."""
        if isinstance(value, Tensor) and value.is_floating_point():
            if value.dim() == 4 and value.shape[-1] in (1, 3, 4):
                return self._pictures(value)
            if value.dim() == 3:  # a mask can be a picture's colour
                pictures = value[..., None]
                found = self._pictures(pictures)
                return value if found is pictures else found[..., 0]
        if isinstance(value, dict) and "samples" in value:
            raise PolicyError("SafeCFG policy: pictures are judged on this server, so latents are not saved.")
        video: Any = value
        if hasattr(video, "get_components"):
            parts = video.get_components()
            found = self._pictures(parts.images)
            if found is not parts.images:
                made = Types.VideoComponents(images=found, audio=parts.audio, frame_rate=parts.frame_rate)
                return InputImpl.VideoFromComponents(made)
        return value

    def _pictures(self, pictures: Tensor) -> Tensor:
        model, vae = self.model
        known = {id: strength for id, strength in self.policy.concepts.items() if id in self.hgr.ids}
        report = detect(
            self.hgr, json_text(known), self.policy.sensitivity, image=pictures, model=model, vae=vae, progress=SILENT
        )
        if not report["flagged"]:
            return pictures
        flags = [item["flagged"] for item in report["items"]]
        concepts = sorted({id for item in report["items"] for id, each in item["concepts"].items() if each["flagged"]})
        decision = {"flag": "picture flagged", "blur": "picture blurred", "blank": "picture blanked"}[self.action]
        log.warning("SafeCFG policy: %s (%s), %d of %d.", decision, ", ".join(concepts), sum(flags), len(flags))
        self.audit.record(decision, concepts)
        return pictures if self.action == "flag" else censor(pictures, flags, self.action)[0]
