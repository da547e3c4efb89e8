"""ComfyUI's CONDITIONING and CLIP as the HGR reads them."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
from torch import Tensor

from ...core.hgr import HGR
from ...core.prompt import Encode, Prompt
from . import runs
from .conditionings import PromptEncoder

# Where a conditioning keeps text features of one encoder, each beside the pooled output of the same prompt: the prompt,
# the one that ControlNets read instead, and the one of a pose video.
FEATURES = {
    "cross_attn": "pooled_output",
    "cross_attn_controlnet": "pooled_output_controlnet",
    "cross_attn_pose": "pooled_output_pose",
}
# Where else the host's models read a prompt. No HGR reads these.
_TEXT_BESIDE = {
    "conditioning_llama3": "Llama 3",
    "conditioning_mt5xl": "mT5-XL",
    "conditioning_byt5small": "ByT5, the words to be written in the picture",
    "conditioning_lyrics": "the lyrics",
    "t5xxl_ids": "T5's tokens",
    "text_input_ids": "the model's own tokens",
    "reference_latents_text_embeds": "the text beside reference pictures",
    "gligen": "GLIGEN's boxes",
    "RegContext": "another pack's regional conditioning",  # RES4LYF's
}
# The same for patches that packs put on a model.
_TEXT_PATCHES = {"regional_conditioning": "Another pack's regional conditioning"}


def unread_patches(model_options: dict[str, Any]) -> list[str]:
    """A note on each patch of the model that holds text."""
    patches = model_options.get("transformer_options", {}).get("patches", {})
    return [
        f"{what} ({key}) holds text: SafeCFG does not see it."
        for key, what in _TEXT_PATCHES.items()
        if patches.get(key)
    ]


def replaced_attention(model_options: dict[str, Any]) -> list[str]:
    """A note on packs that replace cross-attention: such a function may bring anything."""
    replaced = model_options.get("transformer_options", {}).get("patches_replace", {})
    return [_REPLACED] if replaced.get("attn2") else []


def unread_text(extra: dict[str, Any]) -> list[str]:
    """A note on each place beside the text features where this entry of a CONDITIONING holds text."""
    return [unread_note(what, key) for key, what in _TEXT_BESIDE.items() if extra.get(key) is not None]


_REPLACED = "Another pack replaces cross-attention (attn2): SafeCFG does not see text or pictures that it brings there."
UNREAD_PATCH = (
    "Another pack's patch of cross-attention (attn2_patch) brings features that this HGR's encoder did not make: "
    "SafeCFG does not see what they say."
)


def unread_note(what: str, key: str) -> str:
    return f"This model also reads the prompt through {what} ({key}): SafeCFG does not see that part."


def encoder_family(clip: comfy.sd.CLIP) -> str:
    """The text encoder's name, for people."""
    return type(clip.cond_stage_model).__name__.strip("_").removesuffix("_").removesuffix("Model")


def encoder_of(clip: comfy.sd.CLIP) -> Encode:
    """The host's text encoder, for several prompts at once where that makes no difference. What it makes beside the
    text features is not read, and the node says so."""
    entries, with_pooled, said = PromptEncoder(clip), _uses_pooled(clip), set()

    def encode(texts: list[str]) -> list[Prompt]:
        made = entries(texts)
        notes = [note for _, extra in made for note in unread_text(extra) if note not in said]
        runs.note(list(dict.fromkeys(notes)))
        said.update(notes)
        return [prompt_in(features, extra, with_pooled) for features, extra in made]

    return encode


def prompt_of(hgr: HGR, features: Tensor, extra: dict[str, Any], *, key: str = "cross_attn") -> Prompt:
    """An entry of a CONDITIONING as the HGR reads it. key: where its features were, one of `FEATURES`."""
    if key != "cross_attn":
        return Prompt(features, extra.get(FEATURES[key]) if hgr.network.pooled_dim else None)
    return prompt_in(features, extra, hgr.network.pooled_dim > 0)


def prompt_in(features: Tensor, extra: dict[str, Any], with_pooled: bool) -> Prompt:
    """The prompt of an entry of a CONDITIONING, with the pooled output or without."""
    mask = extra.get("attention_mask")
    if mask is not None and mask.shape != features.shape[:2]:
        mask = None  # some models use this name for something other than a token mask
    return Prompt(features, extra.get("pooled_output") if with_pooled else None, mask)


def _uses_pooled(clip: comfy.sd.CLIP) -> bool:
    """Whether the model uses the pooled output. That of single encoders is unused, except for these two."""
    exceptions = (comfy.sdxl_clip.SDXLRefinerClipModel, comfy.sdxl_clip.StableCascadeClipModel)
    return isinstance(clip.cond_stage_model, exceptions) or not isinstance(
        clip.cond_stage_model, comfy.sd1_clip.SD1ClipModel
    )
