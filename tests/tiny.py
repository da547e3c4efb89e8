"""Stable Diffusion's families with random weights, small enough for tests, around the demo model's tokenizer and
autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
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


def save(pipe: StableDiffusionPipeline, folder: Path, name: str) -> None:
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
