"""Safe fine-tuning inside ComfyUI: the host's own LoRA on its denoiser, under its memory management."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import latent_preview
import torch
from comfy.weight_adapter import adapter_maps
from comfy_extras import nodes_train
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.fingerprint import fingerprint
from ...core.hgr import HGR, MAX_TOKENS
from ...core.options import concept_strengths
from ...training import lora_file as lora
from ...training.encoded_prompts import encoder_fingerprint
from ...training.finite import check_finite
from ...training.pictures import paint
from ...training.settings import LORA_STAGE, LoRASettings
from ...training.train_lora import Adapted, Lessons, check_lessons, train_lora
from .chart import image
from .denoiser import denoiser_of, model_fingerprint
from .latents import given_pictures, picture_size
from .progress import NodeProgress, TrainingProgress, gradients
from .prompts import encoder_of
from .work_folder import work_folder

_SHOWN = 4  # prompts shown before and after, at most; most of them are harmful
_PREFIX = "diffusion_model."


def finetune_model(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    hgr: HGR,
    *,
    prompts: list[str],
    concepts: str,
    settings: LoRASettings,
    checkpointing: bool,
    vae: comfy.sd.VAE | None = None,
    latents: dict[str, Any] | None = None,
) -> tuple[dict[str, Tensor], comfy.model_patcher.ModelPatcher, Tensor, Tensor]:
    """Fine-tune a MODEL with an HGR as its teacher. Returns the LoRA as the host's Save LoRA takes it, the model with
    it, the loss chart, and some pictures before and after, (1, H, W, 3) each. An interrupted fine-tuning resumes from
    its last step when the same one is run again.

    prompts: harmful and clean ones mixed.
    checkpointing: whether to use less memory and more time.
    vae: for the pictures before and after; without it they are the host's rough previews.
    latents: a LATENT of pictures of these prompts; an empty one sets the size of the pictures that the model makes.

    Raises ValueError and HGRError as `hgr.training.train_lora` does, and what `work_folder` does.
    """
    strengths = concept_strengths(concepts, hgr.ids)
    pictures, size = given_pictures(latents), picture_size(latents)
    check_lessons(settings, prompts, hgr, latents=pictures)
    encode = encoder_of(clip)
    made_for = fingerprint(encoder_fingerprint(encode, MAX_TOKENS), model_fingerprint(model), tuple(size), pictures)
    identity = fingerprint(hgr.network, hgr.concepts, made_for, settings, prompts, strengths)
    progress, device = TrainingProgress("Safe fine-tuning", settings.steps), comfy.model_management.get_torch_device()
    with work_folder("finetuning", identity, LORA_STAGE) as work:
        hgr.network.to(device)
        try:
            with gradients(), _copies(model), _checkpointing(model) if checkpointing else nullcontext():
                adapted, lessons = train_lora(
                    hgr,
                    prompts,
                    settings,
                    encode=encode,
                    adapt=lambda: adapt(model, size, clip, settings=settings),
                    strengths=strengths,
                    work=work,
                    made_for=made_for,
                    latents=pictures,
                    device=device,
                    progress=progress,
                )
        finally:
            hgr.network.cpu()
        adapters: Any = adapted.adapters
        weights = adapters.state_dict_of(model)
        check_finite("the LoRA's weights in half precision", weights.values())
        tuned: Any = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)[0]
        shown = _compare(model, tuned, clip, vae=vae, lessons=lessons, size=size, seed=settings.seed)
    progress.end()
    return weights, tuned, image(progress.chart()), shown


class Adapters(nn.Module):
    """The host's LoRA for each adapted layer. on: whether they are active."""

    def __init__(self, model: comfy.model_patcher.ModelPatcher, rank: int, device: torch.device):
        super().__init__()
        self.on = True
        self.names = [
            name
            for name, layer in model.model.named_modules()
            if hasattr(layer, "weight_function") and isinstance(layer, nn.Linear) and lora.is_adapted(name)
        ]
        if not self.names:
            raise ValueError(
                f"{type(model.model).__name__} has no transformer blocks that SafeCFG knows: it cannot be fine-tuned."
            )
        kind: Any = adapter_maps["LoRA"]
        layers = dict(model.model.named_modules())
        self.layers = nn.ModuleList(
            kind.create_train(torch.empty(layers[name].weight.shape), rank=rank, alpha=float(rank)).to(device)
            for name in self.names
        )

    def patch(self, model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
        """A clone with these adapters."""
        clone = model.clone()
        for name, layer in zip(self.names, self.layers, strict=True):
            clone.add_weight_wrapper(
                f"{name}.weight", lambda weight, layer=layer: layer(weight) if self.on else weight.clone()
            )
        return clone

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True

    def state_dict_of(self, model: comfy.model_patcher.ModelPatcher) -> dict[str, Tensor]:
        """The tensors of a LoRA file: a UNet's layers under names that diffusers knows too, others under the host's."""
        names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config) if _is_unet(model) else {}
        known = {ours: theirs for theirs, ours in names.items()}
        found = {}
        layers: list[Any] = list(self.layers)
        for name, layer in zip(self.names, layers, strict=True):
            theirs = known.get(f"{name.removeprefix(_PREFIX)}.weight")
            key = name if theirs is None else lora.unet_name(theirs.removesuffix(".weight"))
            found |= lora.lora_tensors(key, layer.lora_up.weight, layer.lora_down.weight, alpha=layer.alpha.item())
        return found


def adapt(
    model: comfy.model_patcher.ModelPatcher, size: torch.Size, clip: comfy.sd.CLIP, *, settings: LoRASettings
) -> Adapted:
    """The model's denoiser with a LoRA, whose initial weights follow torch's own seed."""
    adapters = Adapters(model, settings.rank, model.load_device)
    patched = adapters.patch(model)
    if model.model_dtype() == torch.float16:  # too coarse for the gradients of small differences
        patched.set_model_compute_dtype(
            torch.bfloat16 if comfy.model_management.should_use_bf16(model.load_device) else torch.float32
        )
    return Adapted(denoiser_of(patched, size, clip, seed=settings.seed, gradients=True), adapters, adapters.off)


@contextmanager
def _copies(model: comfy.model_patcher.ModelPatcher) -> Iterator[None]:
    """Gives norms copies of their inputs, because Flux and others change these in place although the gradient needs
    them. UNets do not."""
    norms = (
        []
        if _is_unet(model)
        else [layer for layer in model.model.modules() if isinstance(layer, (nn.LayerNorm, nn.RMSNorm))]
    )
    hooks = [norm.register_forward_pre_hook(lambda layer, given: (given[0].clone(), *given[1:])) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_unet(model: comfy.model_patcher.ModelPatcher) -> bool:
    return "num_res_blocks" in model.model.model_config.unet_config


@contextmanager
def _checkpointing(model: comfy.model_patcher.ModelPatcher) -> Iterator[None]:
    """Gradient checkpointing of the blocks into which the host's own LoRA training divides a model."""
    blocks = nodes_train.find_all_highest_child_module_with_forward(model.model.diffusion_model)
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own method is back


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # copies, because some blocks change their inputs in place, and the second forward needs those of the first
    def run(args: tuple, kwargs: dict[str, Any]) -> Any:
        return forward(*map(_copy, args), **{name: _copy(x) for name, x in kwargs.items()})

    return checkpoint(run, args, kwargs, use_reentrant=False)


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _compare(
    model: comfy.model_patcher.ModelPatcher,
    tuned: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    *,
    vae: comfy.sd.VAE | None,
    lessons: Lessons,
    size: torch.Size,
    seed: int,
) -> Tensor:
    """(1, H, W, 3): pictures of a few prompts, above without the LoRA, below with it; the most harmful prompts first
    and a clean one last."""
    ranked = list(
        dict.fromkeys(text for _, text in sorted(zip(lessons.harm.tolist(), lessons.texts, strict=True), reverse=True))
    )
    texts = [*ranked[: _SHOWN - 1], *ranked[-1:]][: len(ranked)]
    rows = [
        paint(denoiser_of(one, size, clip, seed=seed), texts, None, progress=NodeProgress()) for one in (model, tuned)
    ]
    return torch.cat([torch.cat([_decode(model, vae, latent[None]) for latent in row], 2) for row in rows], 1)


def _decode(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE | None, latent: Tensor) -> Tensor:
    """(1, H, W, 3): one picture; without a VAE, as the host previews it while sampling."""
    if vae is not None:
        picture = vae.decode(latent)
        return picture.reshape(-1, *picture.shape[-3:])[:1].float().cpu()
    form = model.model.latent_format
    if form.latent_rgb_factors is None:
        return torch.zeros(1, 64, 64, 3)
    rough = latent_preview.Latent2RGBPreviewer(
        form.latent_rgb_factors, form.latent_rgb_factors_bias, getattr(form, "latent_rgb_factors_reshape", None)
    )
    seen = rough.decode_latent_to_preview(form.process_in(latent))
    return image(seen.resize((seen.width * 8, seen.height * 8), Image.Resampling.NEAREST))
