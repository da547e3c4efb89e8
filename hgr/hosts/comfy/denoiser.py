"""The host's denoiser as training and detection use it, under the host's memory management."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import torch
from torch import Tensor

from ...core.denoiser import Denoiser, Predict
from ...core.fingerprint import fingerprint
from .conditionings import Entry, PromptEncoder, alike, stacked
from .guard import MARK
from .guidance import KEY

_STEPS, _CFG = 12, 5.0  # of sampling; fine detail does not matter, as the pictures are used under noise
_MOST = 8  # pictures at once; more are hardly faster
_ENCODED = 64  # prompts that are encoded before their pictures are painted


def denoiser_of(
    model: comfy.model_patcher.ModelPatcher,
    size: torch.Size,
    clip: comfy.sd.CLIP | None = None,
    *,
    seed: int = 0,
    gradients: bool = False,
) -> Denoiser:
    """The host's denoiser, which predicts noise, or the velocity of a flow.

    size: of its latents, (1, C, H, W) or with a time axis.
    clip, seed: for painting pictures.
    gradients: whether gradients must pass through it.
    """
    model = model.clone()
    model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY)
    # Packs that replace cross-attention as a whole would hide the layers.
    model.model_options["transformer_options"].pop("patches_replace", None)
    if gradients:
        model = _differentiable(model)
    base, device = model.model, model.load_device

    def at(latents: Tensor, percent: Tensor, noise: Tensor) -> Predict:
        comfy.model_management.throw_exception_if_processing_interrupted()
        comfy.model_management.load_models_gpu(
            [model], memory_required=2 * base.memory_required([2 * len(latents), *latents.shape[1:]])
        )
        noise = noise.to(device)
        sigma = torch.tensor([float(base.model_sampling.percent_to_sigma(p)) for p in percent.tolist()], device=device)
        scale = sigma.reshape(-1, *(1,) * (noise.dim() - 1))
        truth = base.process_latent_in(latents.to(device))
        noisy = base.model_sampling.noise_scaling(scale, noise, truth)

        def denoise(features: Tensor, pooled: Tensor | None) -> Tensor:
            # MARK: no picture comes of these evaluations, so a policy lets them be
            options = model.model_options["transformer_options"]
            options = options | {"optimized_attention_override": _attention, MARK: True}
            denoised = base.apply_model(
                noisy, sigma, transformer_options=options, **_conds(base, noisy, features, pooled=pooled)
            )
            # the host's models return the denoised latent
            return (denoised.float() - truth) / scale.clamp(min=1e-4)

        def error(features: Tensor, pooled: Tensor | None) -> Tensor:
            features, pooled = features.to(device), None if pooled is None else pooled.to(device)
            if torch.is_grad_enabled():
                return denoise(features, pooled)
            with torch.inference_mode():
                result = denoise(features, pooled)
            return result.clone()

        return error

    batch = _batch(model, size)

    def sample(positive: list[Entry], negative: list[Entry], first: int) -> Tensor:
        """A batch of pictures, of which the first is number `first`; each has a seed of its own."""
        count = len(positive)
        with torch.inference_mode():
            empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(size))
            drawn: Any = [comfy.sample.prepare_noise(empty, seed + first + i) for i in range(count)]
            noise = torch.cat(drawn)
            found = comfy.sample.sample(
                model,
                noise,
                _STEPS,
                _CFG,
                "euler",
                "normal",
                stacked(positive),
                negative,
                torch.zeros_like(noise),
                callback=lambda *_: comfy.model_management.throw_exception_if_processing_interrupted(),
                disable_pbar=True,
                seed=seed + first,
            )
        return found.float().cpu().clone()

    def paint(prompts: list[str], first: int) -> Iterator[Tensor]:
        if clip is None:
            raise ValueError("painting pictures from prompts needs clip.")
        encode = PromptEncoder(clip)
        for start in range(first, len(prompts), _ENCODED):
            # on a small card the text encoder and the denoiser push each other out of memory
            positive, negative = encode(prompts[start : start + _ENCODED]), encode([""])
            for part in alike(positive, batch):
                yield sample(part, negative, start)
                start += len(part)

    return Denoiser(base.diffusion_model, at, paint, batch)


def model_fingerprint(model: comfy.model_patcher.ModelPatcher) -> str:
    """The fingerprint of a model's weights, its LoRAs and their strengths included."""
    comfy.model_management.load_models_gpu([model])  # until then they may hold another clone's LoRAs
    # some models are patched only when they are used
    return fingerprint(model.model, sorted((key, [each[0] for each in all]) for key, all in model.patches.items()))


def _batch(model: comfy.model_patcher.ModelPatcher, size: torch.Size) -> int:
    """How many pictures of this size fit into free memory beside the model's weights, at most `_MOST`."""
    free: Any = comfy.model_management.get_free_memory(model.load_device)
    free -= max(0, model.model_size() - model.loaded_size())
    return max(1, min(_MOST, int(0.5 * free / model.model.memory_required([1, *size[1:]]))))


def _conds(base: Any, noisy: Tensor, features: Tensor, *, pooled: Tensor | None) -> dict[str, Any]:
    """The denoiser's arguments, made as the host's sampling makes them from a CONDITIONING."""
    size = {"width": noisy.shape[-1] * 8, "height": noisy.shape[-2] * 8}
    made = base.extra_conds(
        **size,
        prompt_type="positive",
        cross_attn=features,
        pooled_output=pooled,
        noise=noisy,
        device=noisy.device,
        latent_image=torch.zeros_like(noisy),
        denoise_mask=None,
        seed=0,
    )
    return {key: value.process_cond(batch_size=len(noisy), area=None).cond for key, value in made.items()}


def _attention(chosen: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's attention instead of the host's choice, because not every kernel has a gradient."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def _differentiable(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone that gradients can pass. Nodes load weights in inference mode, and autograd cannot save such tensors."""
    clone = model.clone()
    for name, module in clone.model.named_modules():
        if hasattr(module, "weight_function"):  # the host's own layers
            for key in (f"{name}.{part}" for part in ("weight", "bias") if getattr(module, part, None) is not None):
                if key not in clone.weight_wrapper_patches:
                    clone.add_weight_wrapper(key, torch.clone)
        else:
            for key, x in module.named_parameters(recurse=False):
                if x.is_inference():
                    setattr(module, key, torch.nn.Parameter(x.clone(), requires_grad=False))
    return clone
