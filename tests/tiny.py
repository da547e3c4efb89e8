"""Families of models with random weights, small enough for tests, around the demo model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hgr.core import file
from hgr.core.hgr import HGR, Concept
from hgr.core.network import HGRNetwork
from hgr.hosts.diffusers.prompts import encoder_of
from hgr.training.encoded_prompts import describe_encoder


def _text(tokens, width: int, **more) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens.model_max_length,
        projection_dim=width,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        **more,
    )


_UNET = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_head_dim=(2, 4),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)


def sdxl(demo: StableDiffusionPipeline) -> StableDiffusionXLPipeline:
    """Two text encoders, 32 channels each, and a pooled output."""
    torch.manual_seed(0)
    config = _text(demo.tokenizer, 32)
    unet = UNet2DConditionModel(
        **_UNET,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    made = StableDiffusionXLPipeline(
        vae=demo.vae,
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=demo.tokenizer,
        tokenizer_2=demo.tokenizer,
        unet=unet,
        scheduler=demo.scheduler,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def sd2(demo: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """What sets SD 2.x apart: linear projections in the denoiser, which predicts v, and another activation in the text
    encoder."""
    torch.manual_seed(0)
    made = StableDiffusionPipeline(
        vae=demo.vae,
        text_encoder=CLIPTextModel(_text(demo.tokenizer, 48, hidden_act="gelu")),
        tokenizer=demo.tokenizer,
        unet=UNet2DConditionModel(**_UNET, cross_attention_dim=48, use_linear_projection=True),
        scheduler=DDIMScheduler.from_config(demo.scheduler.config, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def _transformer(kind: str, demo: StableDiffusionPipeline, **parts) -> diffusers.DiffusionPipeline:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    made = getattr(diffusers, kind)(**{"tokenizer": demo.tokenizer, "scheduler": scheduler} | parts)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    made.set_progress_bar_config(disable=True)
    return made


def _autoencoder(channels: int = 4) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        shift_factor=0.0,
    )


def _t5(demo: StableDiffusionPipeline, kind: str = "T5") -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(demo.tokenizer), d_model=32, d_ff=64, d_kv=16, num_heads=2, num_layers=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def sd3(demo: StableDiffusionPipeline) -> diffusers.StableDiffusion3Pipeline:
    """Three text encoders, and the negative prompt in one batch with the positive one."""
    torch.manual_seed(0)
    config = _text(demo.tokenizer, 16)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=16,
    )
    return _transformer(
        "StableDiffusion3Pipeline",
        demo,
        transformer=transformer,
        vae=_autoencoder(16),
        text_encoder=CLIPTextModelWithProjection(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        text_encoder_3=_t5(demo),
        tokenizer_2=demo.tokenizer,
        tokenizer_3=demo.tokenizer,
    )


def flux(demo: StableDiffusionPipeline) -> diffusers.FluxPipeline:
    """Guidance is an input of the denoiser, unless a call asks for a negative prompt."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return _transformer(
        "FluxPipeline",
        demo,
        transformer=transformer,
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text(demo.tokenizer, 16)),
        text_encoder_2=_t5(demo),
        tokenizer_2=demo.tokenizer,
    )


def qwen(demo: StableDiffusionPipeline) -> diffusers.QwenImagePipeline:
    """Prompts of different lengths with a mask, and the negative one evaluated apart."""
    torch.manual_seed(0)
    text = dict(
        vocab_size=len(demo.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_scaling={"mrope_section": [2, 2, 4], "rope_type": "default", "type": "default"},
    )
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return _transformer(
        "QwenImagePipeline",
        demo,
        transformer=transformer,
        vae=None,
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
    )


def pixart(demo: StableDiffusionPipeline) -> diffusers.PixArtSigmaPipeline:
    """Prompts with a mask, and the denoiser predicts a variance beside the noise."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        use_additional_conditions=False,
    )
    return _transformer(
        "PixArtSigmaPipeline",
        demo,
        transformer=transformer,
        vae=_autoencoder(),
        text_encoder=_t5(demo),
        scheduler=demo.scheduler,
    )


def sana(demo: StableDiffusionPipeline) -> diffusers.SanaPipeline:
    """A language model reads the prompt behind an instruction."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=len(demo.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
    )
    return _transformer(
        "SanaPipeline", demo, transformer=transformer, vae=None, text_encoder=transformers.Gemma2Model(config)
    )


def wan(demo: StableDiffusionPipeline) -> diffusers.WanPipeline:
    """Videos, padded prompts without a mask, and two denoisers, each for its part of the steps (Wan 2.2)."""
    torch.manual_seed(0)

    def transformer() -> diffusers.WanTransformer3DModel:
        return diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        )

    return _transformer(
        "WanPipeline",
        demo,
        transformer=transformer(),
        transformer_2=transformer(),
        vae=diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1),
        text_encoder=_t5(demo, "UMT5"),
        boundary_ratio=0.6,
    )


def save(pipe: diffusers.DiffusionPipeline, folder: Path, name: str) -> None:
    """Write a model as the folder `name`, and beside it an untrained HGR with one concept that is in every prompt but
    the empty one, and one that is in none."""
    pipe.save_pretrained(folder / name)
    known = describe_encoder(encoder_of(pipe), name)
    torch.manual_seed(0)
    pooled = 0 if known.empty_pooled is None else len(known.empty_pooled)
    network = HGRNetwork(known.empty.shape[1], pooled, 2, width=32, depth=1)
    torch.nn.init.normal_(network.move_out.weight, std=0.5)
    concepts = [Concept("off", "Off", scale=0.0, bias=-20.0), Concept("on", "On", scale=0.0, bias=3.0)]
    file.save(HGR(network, concepts, known), folder / f"{name}.safetensors")
