"""Training an HGR inside ComfyUI: its text encoder and its denoiser, with its memory management in charge."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...attention import cross_attention
from ...features import Encode
from ...pairs import Pairs
from ...redirector import HGR
from ...safecfg import Prompt
from ...training import LOSSES, Denoiser, Settings, check, identity, train
from .chart import draw_loss, image
from .guidance import KEY

_STEPS, _CFG = 12, 5.0  # of sampling; the pictures are looked at through noise
_PREVIEW_SECONDS = 1.0


def train_hgr(clip: comfy.sd.CLIP, pairs: Pairs, settings: Settings, model: comfy.model_patcher.ModelPatcher | None,
              latents: dict[str, Any] | None) -> tuple[HGR, Tensor]:
    """Train an HGR for a CLIP and, unless the losses are "text", for a MODEL. Returns it with the loss chart (1, H, W, 3).

    latents: a LATENT of pictures to look at; an empty one gives the size in which the model makes its own.
    What is interrupted goes on from its last step when the same training is run again.

    Raises PairsError and ValueError as `hgr.training.train`, before anything is encoded.
    """
    weights = LOSSES.get(settings.losses)
    if weights and (weights.attention or weights.score) and model is not None:
        cross_attention(model.model.diffusion_model)
    check(pairs, settings)
    name = family(clip)
    work = Path(folder_paths.get_system_user_directory("safecfg"), "training", identity(pairs, name, settings))
    progress = _Progress(settings.steps)
    # Nodes run in inference mode, whose tensors no gradient can pass.
    with torch.inference_mode(False), torch.enable_grad():
        hgr = train(pairs, encoder(clip), name, settings, work, comfy.model_management.get_torch_device(),
                    None if model is None else lambda prompts: denoiser(model, clip, prompts, settings, latents),
                    on_text=progress.text, on_step=progress.step)
    shutil.rmtree(work, ignore_errors=True)
    return hgr, image(draw_loss(progress.losses, settings.steps))


def family(clip: comfy.sd.CLIP) -> str:
    """A name of the text encoder, for people."""
    return type(clip.cond_stage_model).__name__.strip("_").removesuffix("_").removesuffix("Model")


def encoder(clip: comfy.sd.CLIP) -> Encode:
    """The host's text encoder, a prompt at a time, as its own Text Encode nodes call it."""
    with_pooled = _uses_pooled(clip)

    def encode(text: str) -> Prompt:
        features, extra = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
        mask = extra.get("attention_mask")
        if mask is not None and mask.shape != features.shape[:2]:
            mask = None  # some models keep something else than a mask of tokens under this name
        return Prompt(features, extra.get("pooled_output") if with_pooled else None, mask)

    def rows(texts: list[str]) -> list[Prompt]:
        with torch.inference_mode():
            return [encode(text) for text in texts]

    return rows


def _uses_pooled(clip: comfy.sd.CLIP) -> bool:
    """Whether the model gets the pooled output: encoders of one sequence give one that nothing reads, but for those here."""
    kinds = [comfy.sdxl_clip.SDXLRefinerClipModel, comfy.sdxl_clip.StableCascadeClipModel]
    return isinstance(clip.cond_stage_model, tuple(kinds)) or not isinstance(clip.cond_stage_model, comfy.sd1_clip.SD1ClipModel)


def denoiser(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, prompts: list[str], settings: Settings,
             latents: dict[str, Any] | None) -> Denoiser:
    """The host's denoiser on given pictures or on those that it makes for `prompts`. Its predictions are of the denoised."""
    model = model.clone()
    model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY)
    # Packs that replace cross-attention as a whole would hide the layers.
    model.model_options["transformer_options"].pop("patches_replace", None)
    with torch.inference_mode():
        pictures = _pictures(model, clip, prompts, settings, latents)
    if LOSSES[settings.losses].score:
        model = _differentiable(model)
    base, device = model.model, model.load_device

    def predict(count: int, generator: torch.Generator) -> Callable[[Tensor, Tensor | None], Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        comfy.model_management.load_models_gpu([model], memory_required=2 * base.memory_required([2 * count, *pictures.shape[1:]]))
        clean = pictures[torch.randint(len(pictures), (count,), generator=generator)].to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        percent = torch.rand(count, generator=generator).clamp(0.01, 0.99).tolist()
        sigma = torch.tensor([float(base.model_sampling.percent_to_sigma(p)) for p in percent], device=device)
        scale = sigma.reshape(-1, *(1,) * (clean.dim() - 1))
        noisy = base.model_sampling.noise_scaling(scale, noise, base.process_latent_in(clean))

        def denoise(features: Tensor, pooled: Tensor | None) -> Tensor:
            options = model.model_options["transformer_options"] | {"optimized_attention_override": _attention}
            return base.apply_model(noisy, sigma, transformer_options=options, **_conds(base, noisy, features, pooled)).float()

        def at(features: Tensor, pooled: Tensor | None) -> Tensor:
            features, pooled = features.to(device), None if pooled is None else pooled.to(device)
            if torch.is_grad_enabled():
                return denoise(features, pooled)
            with torch.inference_mode():
                result = denoise(features, pooled)
            return result.clone()

        return at

    return Denoiser(base.diffusion_model, predict)


def _pictures(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, prompts: list[str], settings: Settings,
              latents: dict[str, Any] | None) -> Tensor:
    """Latents (N, C, H, W), or with a time axis, as the user's nodes hold them."""
    given = torch.zeros(1, 4, 64, 64) if latents is None else latents["samples"]
    if given.is_nested:
        raise ValueError("latents: pictures with sound cannot be used here; give pictures or an empty latent.")
    if given.any():
        return given.float().cpu()
    empty = comfy.sample.fix_empty_latent_channels(model, given[:1])
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    made = []
    for i, prompt in enumerate(prompts):
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        noise = comfy.sample.prepare_noise(empty, settings.seed + i)
        made.append(comfy.sample.sample(model, noise, _STEPS, _CFG, "euler", "normal", positive, negative, empty,
                                        disable_pbar=True, seed=settings.seed + i))
    return torch.cat(made).float().cpu()


def _conds(base: Any, noisy: Tensor, features: Tensor, pooled: Tensor | None) -> dict[str, Any]:
    """What the denoiser takes, as the host's sampling makes it of a CONDITIONING."""
    size = {"width": noisy.shape[-1] * 8, "height": noisy.shape[-2] * 8}
    made = base.extra_conds(**size, prompt_type="positive", cross_attn=features, pooled_output=pooled, noise=noisy, device=noisy.device,
                            latent_image=torch.zeros_like(noisy), denoise_mask=None, seed=0)
    return {key: value.process_cond(batch_size=len(noisy), area=None).cond for key, value in made.items()}


def _attention(chosen: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's attention, whatever the host has chosen: not every kernel has a gradient."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def _differentiable(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone through which gradients pass: nodes load weights in inference mode, and no gradient may save such a tensor."""
    clone = model.clone()
    for name, module in clone.model.named_modules():
        if hasattr(module, "weight_function"):  # the host's own layers
            for part in ("weight", "bias"):
                if getattr(module, part, None) is not None:
                    clone.add_weight_wrapper(f"{name}.{part}", torch.clone)
    return clone


class _Progress:
    """The node's progress bar, its preview and the interrupt button."""

    def __init__(self, steps: int):
        self.steps, self.losses, self.shown = steps, [], 0.0
        self.bar = comfy.utils.ProgressBar(steps)

    def text(self, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, total)

    def step(self, done: int, loss: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.losses.append((done, loss))
        preview = None
        if time.monotonic() - self.shown > _PREVIEW_SECONDS:
            self.shown = time.monotonic()
            preview = ("PNG", draw_loss(self.losses, self.steps), None)
        self.bar.update_absolute(done, self.steps, preview)
