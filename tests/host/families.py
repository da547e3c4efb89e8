"""Small models with random weights of the host's other families, in the host's own classes. Imported by fixtures only.

Everything is the host's: denoiser, text encoders, tokenizers, and so the layout of what a prompt becomes. Only the
sizes are ours. Widths and depths are cut through the host's configurations. Where a tokenizer needs a file of its model
(SentencePiece), a small one
is trained on the spot. Two things of the encoders are cut otherwise: T5's vocabulary where the width cannot be
(`_Fold`), and the part of Qwen 2.5 VL that looks at pictures.

| family | features (1, T, D)                                   | pooled | attention mask |
|--------|------------------------------------------------------|--------|----------------|
| sd1    | chunks of 77                                         | unused | -              |
| sd2    | chunks of 77                                         | unused | -              |
| sdxl   | chunks of 77, two encoders side by side              | yes    | -              |
| sd3    | 77 of CLIP, filled up with zeros to T5's width; then T5's, at least 77 | yes | - |
| flux   | T5's, at least 256                                   | yes    | -              |
| wan    | UMT5's, at least 512, zeros behind the prompt        | None   | -              |
| qwen   | the prompt's tokens behind a template that is cut off | None  | - (dropped where all are tokens) |
| lumina | the prompt's tokens                                  | None   | yes            |
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.lumina2
import comfy.text_encoders.qwen_image
import comfy.text_encoders.qwen_vl
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import sentencepiece
import torch
from torch import Tensor, nn

# what the trained tokenizers know as words; other text becomes parts of these, letters and bytes
WORDS = (
    "a photo of red blue green ball house cat dog bomb knife on the table in meadow garden next to with under old "
    "small large wooden bright picture painting street child holding"
)
_VOCABULARY = 400  # of these and of folded tokenizers; 256 are bytes


@dataclass
class Family:
    """A model with its text encoder. latent: an empty one of a size that it can sample. chunk, fixed_start, pooled_dim:
    as an HGR's file says of this encoder."""

    model: comfy.model_patcher.ModelPatcher
    clip: comfy.sd.CLIP
    latent: Tensor
    chunk: int = 0
    fixed_start: bool = False
    pooled_dim: int = 0

    def noise(self, seed: int = 3) -> Tensor:
        return comfy.sample.prepare_noise(self.latent, seed)

    def encode(self, text: str) -> list:
        """A CONDITIONING, as CLIPTextEncode makes it."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(self, model: Any, positive: list, negative: list, cfg: float = 4.0, steps: int = 2) -> Tensor:
        """Latents, as KSampler makes them."""
        return comfy.sample.sample(
            model,
            self.noise(),
            steps,
            cfg,
            "euler",
            "simple",
            positive,
            negative,
            self.latent,
            disable_pbar=True,
            seed=3,
        )


def _fill(module: nn.Module, seed: int) -> None:
    """Weights for layers that the host leaves empty until a file fills them."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
        elif name.endswith("bias"):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
        else:
            weight.fill_(1.0)  # of a norm


def _model(
    kind: type[comfy.supported_models_base.BASE],
    config: dict[str, Any],
    seed: int = 1,
    state: dict[str, Tensor] | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """state: weights from which the host tells a model's kind."""
    model_config = kind(config)
    model_config.unet_config |= config  # also over what the family sets for its own sizes
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model(state or {}, "")
    _fill(model.diffusion_model, seed)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _clip(
    tokenizer: type, encoder: type, seed: int = 2, words: bytes | None = None, **configs: dict[str, Any]
) -> comfy.sd.CLIP:
    """configs: what changes in the encoders' configurations, by the host's name of each. words: a SentencePiece
    model."""
    options = {f"{name}_model_config": config for name, config in configs.items()}
    clip = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(tokenizer, encoder),
        model_options=options,
        tokenizer_data={"spiece_model": words},
    )
    _fill(clip.cond_stage_model, seed)
    return clip


def _pieces(**special: int) -> bytes:
    """A SentencePiece model of `_VOCABULARY` pieces. special: the ids of pad, eos, bos and unk; -1 for none."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.split() * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=_VOCABULARY,
        byte_fallback=True,
        minloglevel=2,
        **{f"{name}_id": number for name, number in special.items()},
    )
    return model.getvalue()


def _tiny_clip(width: int) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 2}


def _tiny_t5(width: int, vocabulary: int) -> dict[str, Any]:
    return {"d_model": width, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1, "vocab_size": vocabulary}


def _tiny_llm(width: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": vocabulary,
    }


def _unet(context: int, pooled: int | None = None, linear: bool = False) -> dict[str, Any]:
    return {
        "image_size": 32,
        "use_checkpoint": False,
        "use_spatial_transformer": True,
        "legacy": False,
        "adm_in_channels": pooled,
        "num_classes": None if pooled is None else "sequential",
        "use_linear_in_transformer": linear,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "in_channels": 4,
        "out_channels": 4,
        "context_dim": context,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "num_heads": 2,
        "num_head_channels": -1,
    }


class _Fold:
    """T5's tokenizer with its words folded into fewer ids; the first ones (padding, end) stay."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids = self.tokenizer(text)["input_ids"]
        return {"input_ids": [i if i < 3 else 3 + i % (_VOCABULARY - 3) for i in ids]}


def sd1() -> Family:
    """SD 1.x."""
    clip = _clip(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel, clip_l=_tiny_clip(48))
    return Family(
        _model(comfy.supported_models.SD15, _unet(48)), clip, torch.zeros(1, 4, 8, 8), chunk=77, fixed_start=True
    )


def sd2() -> Family:
    """SD 2.x that predicts v, which the host tells from the spread of one bias."""
    encoder = comfy.text_encoders.sd2_clip
    clip = _clip(encoder.SD2Tokenizer, encoder.SD2ClipModel, clip_h=_tiny_clip(64))
    sign = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])}
    model = _model(comfy.supported_models.SD20, _unet(64, linear=True), state=sign)
    return Family(model, clip, torch.zeros(1, 4, 8, 8), chunk=77, fixed_start=True)


def sdxl() -> Family:
    """SDXL: the denoiser also gets the pooled output, beside six sizes of 256 each."""
    encoder = comfy.sdxl_clip
    clip = _clip(encoder.SDXLTokenizer, encoder.SDXLClipModel, clip_l=_tiny_clip(32), clip_g=_tiny_clip(64))
    model = _model(comfy.supported_models.SDXL, _unet(96, 64 + 6 * 256, linear=True))
    return Family(model, clip, torch.zeros(1, 4, 8, 8), chunk=77, fixed_start=True, pooled_dim=64)


def sd3() -> Family:
    """SD 3 with all three encoders. The host fills CLIP's features up to T5-XXL's width, so that this one cannot be
    cut."""
    encoder, width = comfy.text_encoders.sd3_clip, 4096
    clip = _clip(
        encoder.SD3Tokenizer,
        encoder.sd3_clip(),
        clip_l=_tiny_clip(32),
        clip_g=_tiny_clip(64),
        t5xxl=_tiny_t5(width, _VOCABULARY),
    )
    clip.tokenizer.t5xxl.tokenizer = _Fold(clip.tokenizer.t5xxl.tokenizer)
    embed = {"target": "torch.nn.Linear", "params": {"in_features": width, "out_features": 128}}
    model = _model(
        comfy.supported_models.SD3,
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 96,
            "context_embedder_config": embed,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [],
        },
    )
    return Family(model, clip, torch.zeros(1, 16, 8, 8), fixed_start=True, pooled_dim=96)


def flux() -> Family:
    """Flux dev: a sequence of T5's, and CLIP's pooled output."""
    encoder = comfy.text_encoders.flux
    clip = _clip(encoder.FluxTokenizer, encoder.flux_clip(), clip_l=_tiny_clip(32), t5xxl=_tiny_t5(64, _VOCABULARY))
    clip.tokenizer.t5xxl.tokenizer = _Fold(clip.tokenizer.t5xxl.tokenizer)
    model = _model(
        comfy.supported_models.Flux,
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": 32,
            "context_in_dim": 64,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [8, 12, 12],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
    )
    return Family(model, clip, torch.zeros(1, 16, 8, 8), pooled_dim=32)


def wan() -> Family:
    """Wan 2.1, text to video: latents of two frames."""
    encoder = comfy.text_encoders.wan
    clip = _clip(
        encoder.WanT5Tokenizer,
        encoder.te(),
        words=_pieces(pad=0, eos=1, unk=2, bos=-1),
        umt5xxl=_tiny_t5(64, _VOCABULARY),
    )
    model = _model(
        comfy.supported_models.WAN21_T2V,
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 64,
            "ffn_dim": 64,
            "num_heads": 2,
            "num_layers": 1,
            "text_dim": 64,
            "in_dim": 16,
            "out_dim": 16,
            "freq_dim": 64,
            "patch_size": (1, 2, 2),
            "qk_norm": True,
            "cross_attn_norm": True,
        },
    )
    return Family(model, clip, torch.zeros(1, 16, 2, 8, 8))


def qwen() -> Family:
    """Qwen-Image. The features begin behind the template, with the prompt's own first token."""
    encoder = comfy.text_encoders.qwen_image
    with mock.patch.object(comfy.text_encoders.qwen_vl, "Qwen2VLVisionTransformer", lambda **_: nn.Identity()):
        clip = _clip(encoder.QwenImageTokenizer, encoder.te(), qwen25_7b=_tiny_llm(64, 152064))
    model = _model(
        comfy.supported_models.QwenImage,
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 64,
            "axes_dims_rope": (8, 12, 12),
        },
    )
    return Family(model, clip, torch.zeros(1, 16, 1, 8, 8))


def lumina() -> Family:
    """Lumina 2: Gemma's features from the layer before the last, behind a start token that is the same for every
    prompt."""
    encoder = comfy.text_encoders.lumina2
    clip = _clip(
        encoder.LuminaTokenizer,
        encoder.te(),
        words=_pieces(pad=0, eos=1, bos=2, unk=3),
        gemma2_2b=_tiny_llm(64, _VOCABULARY),
    )
    model = _model(
        comfy.supported_models.Lumina2,
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 64,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 1,
            "multiple_of": 32,
            "ffn_dim_multiplier": 1.0,
            "qk_norm": True,
            "cap_feat_dim": 64,
            "axes_dims": [8, 12, 12],
            "axes_lens": [300, 512, 512],
        },
    )
    return Family(model, clip, torch.zeros(1, 16, 8, 8), fixed_start=True)


FAMILIES: dict[str, Callable[[], Family]] = {f.__name__: f for f in (sd1, sd2, sdxl, sd3, flux, wan, qwen, lumina)}
