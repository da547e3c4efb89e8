"""ComfyUI as host: SafeCFG on a MODEL, HGR files by name, and the bundled demo model as ordinary ComfyUI objects.

The one file of the pack that knows ComfyUI's internals. Works from ComfyUI 0.8.0 on.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from tokenizers import Tokenizer

from .. import file
from ..demo import assets
from ..guidance import MODES, concept_strengths
from ..redirector import HGR
from ..safecfg import Prompt, Redirection, redirect

log = logging.getLogger("safecfg")

Conds = dict[str, list[dict[str, Any]]]  # a guider's conditionings: entries by role ("positive", "negative", ...)

# --- SafeCFG on a model ------------------------------------------------------------------------------------------------

_KEY = "safecfg"
# Roles that are not a prompt to follow. Of these, the mode's unconditional scale moves _NEGATIVE alone: where a guider
# knows both (perpendicular negative), the other is the neutral point that both directions are measured from.
_NEGATIVE, _NEUTRAL = "negative", "empty_negative_prompt"
# Window boundaries lie this much before the widget's round value. The host's ranges include both ends, so a boundary
# that meets a step's sigma (common with round numbers of steps) would run both pieces in that step.
_HAIR = 1e-5


def patch_model(model: comfy.model_patcher.ModelPatcher, hgr: HGR, strength: float, mode: str, concepts: str,
                start_percent: float, end_percent: float) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that samples with SafeCFG, whatever sampler node or guider it is given to.

    strength: of all concepts, 0 (off) to 2. mode: of `hgr.guidance.MODES`. concepts: JSON of strengths by concept id.
    start_percent, end_percent: the part of sampling in [0, 1] in which guidance is safe; the start belongs to it.

    Raises ValueError for bad `concepts` or an empty window. Sampling raises HGRError for another encoder's features.
    """
    strengths = [strength * s for s in concept_strengths(concepts, hgr.ids)]
    if start_percent >= end_percent:
        raise ValueError(f"start_percent ({start_percent}) must be below end_percent ({end_percent}); "
                         "to switch SafeCFG off, set strength to 0.")
    patched = model.clone()
    if any(strengths):
        patch = _Patch(hgr, strengths, mode, *(p if p in (0, 1) else p - _HAIR for p in (start_percent, end_percent)))
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, patch)
    return patched


def make_guider(model: comfy.model_patcher.ModelPatcher, positive: list, negative: list, cfg: float) -> comfy.samplers.CFGGuider:
    """The host's own CFG guider."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


@dataclass(frozen=True)
class _Patch:
    """Wrapper around a sampling run that rewrites the guider's conditionings for this run alone.

    At that point the host has copied them for the run and not yet encoded them for the denoiser, so that areas, masks,
    hooks and ControlNets still lie beside the features. start, end: the window, as the host's percent.
    """

    hgr: HGR
    strengths: list[float]
    mode: str
    start: float
    end: float

    def __call__(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        guider = executor.class_obj
        # only the host's own guider: others keep their scales elsewhere, or as lists
        if MODES[self.mode][0] == 0 and type(guider) is comfy.samplers.CFGGuider and math.isclose(guider.cfg, 1.0):
            log.warning("mode \"%s\" acts through the negative prompt, which cfg 1 leaves out: it has no effect in this run. "
                        "Use \"redirect\".", self.mode)
        guider.conds = self.rewrite(guider.conds)
        return executor(*args, **kwargs)

    def rewrite(self, conds: Conds) -> Conds:
        """The conditionings to sample with. Nothing given is changed; entries that are not moved are the given ones."""
        slots = [(role, i) for role, entries in conds.items() for i, entry in enumerate(entries)
                 if entry.get("cross_attn") is not None]
        positive = [slot for slot in slots if slot[0] not in (_NEGATIVE, _NEUTRAL)]
        negative = [slot for slot in slots if slot[0] == _NEGATIVE]

        def prompts(slots: list[tuple[str, int]]) -> list[Prompt]:
            return [self._prompt(conds[role][i]) for role, i in slots]

        result = redirect(self.hgr, prompts(positive), prompts(negative), self.strengths, self.mode)
        self._report(result)
        moved = dict(zip(positive + negative, result.positive + result.negative, strict=True))
        return {role: [piece for i, entry in enumerate(entries) for piece in self._pieces(entry, moved.get((role, i)))]
                for role, entries in conds.items()}

    def _prompt(self, entry: dict[str, Any]) -> Prompt:
        features, mask = entry["cross_attn"], entry.get("attention_mask")
        if mask is not None and mask.shape != features.shape[:2]:
            mask = None  # some models keep something else than a mask of tokens under this name
        return Prompt(features, entry.get("pooled_output") if self.hgr.network.pooled_dim else None, mask)

    def _pieces(self, entry: dict[str, Any], prompt: Prompt | None) -> list[dict[str, Any]]:
        """The entry itself where nothing moved; else the safe entry inside the window and the entry before and after."""
        if prompt is None:
            return [entry]
        safe = entry | {"cross_attn": prompt.features} | ({} if prompt.pooled is None else {"pooled_output": prompt.pooled})
        if all(safe[key] is entry[key] for key in ("cross_attn", "pooled_output") if key in entry):
            return [entry]
        low, high = entry.get("start_percent", 0.0), entry.get("end_percent", 1.0)
        # The safe piece comes first: where the host adds an entry of its own for the other side, it copies the first.
        spans = [(safe, max(low, self.start), min(high, self.end)),
                 (entry, low, min(high, self.start)), (entry, max(low, self.end), high)]
        return [piece | ({"start_percent": a} if a > 0 else {}) | ({"end_percent": b} if b < 1 else {})
                for piece, a, b in spans if a < b]

    def _report(self, result: Redirection) -> None:
        """Say in the log what is being redirected: a changed picture must not be a riddle."""
        if any(fired.any() for fired in result.fired):
            gates = torch.cat([g.cpu() for g in result.gates]).amax(0).tolist()
            found = [f"{c.id} ({gate:.2f})" for c, gate, s in zip(self.hgr.concepts, gates, self.strengths, strict=True)
                     if s and gate >= c.threshold]
            log.info("SafeCFG, %s: %s", self.mode, ", ".join(found))


# --- HGR files ---------------------------------------------------------------------------------------------------------

BUNDLED = "safecfg_demo (bundled)"
_FOLDER = "hgr"


def register_folder() -> None:
    """Make `models/hgr` known to the host, beside folders of that name from its extra paths; .safetensors only."""
    folder_paths.add_model_folder_path(_FOLDER, os.path.join(folder_paths.models_dir, _FOLDER))
    folder_paths.folder_names_and_paths[_FOLDER] = (folder_paths.get_folder_paths(_FOLDER), {".safetensors"})


def hgr_names() -> list[str]:
    """HGR files that a user can choose: their own, then the bundled one."""
    return [*folder_paths.get_filename_list(_FOLDER), BUNDLED]


def hgr_path(name: str) -> Path | None:
    """Where the file of that name lies; None if there is none. Names that lead out of the folder have none."""
    if name == BUNDLED:
        return assets.HGR_FILE if assets.HGR_FILE.is_file() else None
    path = folder_paths.get_full_path(_FOLDER, name) if name in folder_paths.get_filename_list(_FOLDER) else None
    return None if path is None else Path(path)


def load_hgr(name: str) -> HGR:
    """Load an HGR by the name shown. Raises FileNotFoundError, and HGRError for a file that cannot be used."""
    path = hgr_path(name)
    if path is None:
        raise FileNotFoundError(f"HGR \"{name}\" is not in models/{_FOLDER}.")
    return file.load(path)


register_folder()

# --- the demo model ----------------------------------------------------------------------------------------------------


def load_demo_model() -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """The bundled tiny model of the SD 1.5 family as the host's MODEL, CLIP and VAE; the host places them and picks dtypes."""
    return _demo_unet(), _demo_clip(), _demo_vae()


def _read(part: str, weights: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of one folder of the diffusers layout."""
    folder = assets.MODEL / part
    tensors = comfy.utils.load_torch_file(str(folder / weights), safe_load=True)
    return json.loads((folder / "config.json").read_text()), tensors


def _demo_unet() -> comfy.model_patcher.ModelPatcher:
    config, weights = _read("unet", "diffusion_pytorch_model.safetensors")
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    depth = [int("CrossAttn" in kind) for kind in config["down_block_types"]]
    model_config = comfy.supported_models.SD15({
        "image_size": 32, "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None,
        "use_linear_in_transformer": False, "use_temporal_attention": False, "use_temporal_resblock": False,
        "in_channels": config["in_channels"], "out_channels": config["out_channels"],
        "context_dim": config["cross_attention_dim"], "model_channels": channels[0],
        "channel_mult": [c // channels[0] for c in channels], "num_res_blocks": [layers] * len(channels),
        "transformer_depth": [d for d in depth for _ in range(layers)],
        "transformer_depth_output": [d for d in depth for _ in range(layers + 1)], "transformer_depth_middle": 1,
    })
    model_config.unet_config["num_heads"] = config["attention_head_dim"]  # diffusers' name for the number of heads
    names = comfy.utils.unet_to_diffusers(model_config.unet_config)
    state = {names[key]: value for key, value in weights.items()}

    management = comfy.model_management
    device, offload = management.get_torch_device(), management.unet_offload_device()
    dtypes = model_config.supported_inference_dtypes
    dtype = management.unet_dtype(device, comfy.utils.calculate_parameters(state), dtypes)
    model_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes))
    model = model_config.get_model(state, "").to(offload)
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _demo_clip() -> comfy.sd.CLIP:
    config, weights = _read("text_encoder", "model.safetensors")
    prefix = "text_model."  # left out by transformers from version 5 on
    weights = {key if key.startswith(prefix) else prefix + key: value for key, value in weights.items()}
    # The host's module has a projection, of which SD 1.x makes no use.
    weights["text_projection.weight"] = torch.eye(config["hidden_size"], dtype=torch.float16)
    target = comfy.supported_models_base.ClipTarget(_DemoTokenizer, _DemoClip)
    target.params = {"config": config}
    return comfy.sd.CLIP(target, parameters=comfy.utils.calculate_parameters(weights), state_dict=[weights])


def _demo_vae() -> comfy.sd.VAE:
    config, weights = _read("vae", "diffusion_pytorch_model.safetensors")
    channels = config["block_out_channels"]
    ddconfig = {"double_z": True, "z_channels": config["latent_channels"], "resolution": config["sample_size"],
                "in_channels": config["in_channels"], "out_ch": config["out_channels"], "ch": channels[0],
                "ch_mult": [c // channels[0] for c in channels], "num_res_blocks": config["layers_per_block"],
                "attn_resolutions": [], "dropout": 0.0}
    return comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}})


class _DemoTransformer(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text transformer with a vocabulary of the configured size; the host's has a fixed one."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype, device: torch.device, operations: Any):
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device))


class _DemoEncoder(comfy.sd1_clip.SDClipModel):
    """The host's wrapper of a text transformer, with this one's length, vocabulary and special tokens."""

    def __init__(self, config: dict[str, Any], device: Any, dtype: torch.dtype, model_options: dict[str, Any]):
        tokens = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
        super().__init__(device=device, dtype=dtype, max_length=config["max_position_embeddings"], textmodel_json_config=config,
                         special_tokens=tokens, model_class=_DemoTransformer, return_projected_pooled=False,
                         model_options=model_options)


class _DemoClip(comfy.sd1_clip.SD1ClipModel):
    """SD 1.x's encoder under SD 1.x's name, so that LoRA keys for it fit."""

    # On hosts that load weights dynamically: stay an ordinary patcher. Others need a file to reload from for LoRA hooks.
    disable_offload = True

    def __init__(self, config: dict[str, Any], device: Any, dtype: torch.dtype, model_options: dict[str, Any]):
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=_DemoEncoder, config=config)


class _Vocabulary:
    """The bundled tokenizer file with what the host asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, path: str) -> _Vocabulary:
        return cls(Tokenizer.from_file(path))

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.tokenizer.encode(text).ids}

    def get_vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


class _DemoWords(comfy.sd1_clip.SDTokenizer):
    """Prompt weights, chunks and padding are the host's. No embeddings folder: none fits this encoder's width."""

    def __init__(self, embedding_directory: Any, tokenizer_data: dict[str, Any]):
        config = json.loads((assets.TOKENIZER.parent / "tokenizer_config.json").read_text())
        super().__init__(tokenizer_path=str(assets.TOKENIZER), max_length=config["model_max_length"], tokenizer_class=_Vocabulary,
                         tokenizer_data=tokenizer_data)


class _DemoTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """SD 1.x's one encoder, with the demo's words."""

    def __init__(self, embedding_directory: Any, tokenizer_data: dict[str, Any]):
        super().__init__(embedding_directory, tokenizer_data, tokenizer=_DemoWords)
