"""The bundled demo model as ordinary ComfyUI objects."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch

from ...demo import assets
from ...demo.tokenizer import MAX_LENGTH, load_tokenizer


def load_demo_model() -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """The bundled tiny model of the SD 1.5 family as MODEL, CLIP and VAE. The host picks their devices and dtypes."""
    return _demo_unet(), _demo_clip(), _demo_vae()


def _read(part: str, weights: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and weights in one folder of the diffusers layout."""
    folder = assets.MODEL / part
    tensors: Any = comfy.utils.load_torch_file(str(folder / weights), safe_load=True)
    return json.loads((folder / "config.json").read_text("utf-8")), tensors


def _demo_unet() -> comfy.model_patcher.ModelPatcher:
    config, weights = _read("unet", "diffusion_pytorch_model.safetensors")
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    depth = [int("CrossAttn" in kind) for kind in config["down_block_types"]]
    model_config = comfy.supported_models.SD15(
        {
            "image_size": 32,
            "use_checkpoint": False,
            "use_spatial_transformer": True,
            "legacy": False,
            "adm_in_channels": None,
            "use_linear_in_transformer": False,
            "use_temporal_attention": False,
            "use_temporal_resblock": False,
            "in_channels": config["in_channels"],
            "out_channels": config["out_channels"],
            "context_dim": config["cross_attention_dim"],
            "model_channels": channels[0],
            "channel_mult": [c // channels[0] for c in channels],
            "num_res_blocks": [layers] * len(channels),
            "transformer_depth": [d for d in depth for _ in range(layers)],
            "transformer_depth_output": [d for d in depth for _ in range(layers + 1)],
            "transformer_depth_middle": 1,
        }
    )
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
    prefix = "text_model."  # transformers 5 and later leave it out
    weights = {key if key.startswith(prefix) else prefix + key: value for key, value in weights.items()}
    # The host's module has a projection, which SD 1.x does not use.
    weights["text_projection.weight"] = torch.eye(config["hidden_size"], dtype=torch.float16)
    target = comfy.supported_models_base.ClipTarget(_DemoTokenizer, _DemoClip)
    target.params = {"config": config}
    return comfy.sd.CLIP(target, parameters=comfy.utils.calculate_parameters(weights), state_dict=[weights])


def _demo_vae() -> comfy.sd.VAE:
    config, weights = _read("vae", "diffusion_pytorch_model.safetensors")
    channels = config["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}})


class _DemoTransformer(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text transformer with a vocabulary of the configured size; the host's own is fixed."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype, device: torch.device, operations: Any):
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        )


class _DemoEncoder(comfy.sd1_clip.SDClipModel):
    """The host's wrapper of a text transformer, with the demo's length, vocabulary and special tokens."""

    def __init__(self, config: dict[str, Any], device: Any, dtype: torch.dtype, model_options: dict[str, Any]):
        tokens = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            special_tokens=tokens,
            model_class=_DemoTransformer,
            return_projected_pooled=False,
            model_options=model_options,
        )


class _DemoClip(comfy.sd1_clip.SD1ClipModel):
    """SD 1.x's encoder under SD 1.x's name, so that LoRA keys for it fit."""

    # On hosts that load weights dynamically, stay an ordinary patcher: for LoRA hooks, a dynamic one needs a file.
    disable_offload = True

    def __init__(self, config: dict[str, Any], device: Any, dtype: torch.dtype, model_options: dict[str, Any]):
        kind: Any = _DemoEncoder
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=kind, config=config)


class _DemoWords(comfy.sd1_clip.SDTokenizer):
    """Prompt weights, chunks and padding are the host's. No embeddings folder: none fits this encoder's width."""

    def __init__(self, embedding_directory: Any, tokenizer_data: dict[str, Any]):
        # a tokenizer of the kind that prompt packs know from the host's own
        vocabulary: Any = SimpleNamespace(from_pretrained=lambda path: load_tokenizer(Path(path)))
        super().__init__(
            tokenizer_path=str(assets.TOKENIZER),
            max_length=MAX_LENGTH,
            tokenizer_class=vocabulary,
            tokenizer_data=tokenizer_data,
        )


class _DemoTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """SD 1.x's one encoder, with the demo's words."""

    def __init__(self, embedding_directory: Any, tokenizer_data: dict[str, Any]):
        super().__init__(embedding_directory, tokenizer_data, tokenizer=_DemoWords)
