"""What SafeCFG does on the user's own model: `hgr.detection.card` with the host's sampling."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from torch import Tensor

from ...core.denoiser import evaluations
from ...core.fingerprint import fingerprint
from ...core.hgr import HGR, MAX_TOKENS
from ...core.progress import SILENT
from ...data.textfile import DataError
from ...detection.card import NEGATIVE, PLAIN, SAFE, Painted, make_card, negative_words
from ...detection.pictures import colours
from ...training.encoded_prompts import encoder_fingerprint
from .denoiser import model_fingerprint
from .detection import detect
from .guidance import KEY, patch_model
from .latents import picture_size
from .progress import NodeProgress
from .prompts import encoder_of, prompt_of
from .work_folder import work_folder

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
_ABOUT_SIZE = ("downscale_ratio_spacial",)  # what newer hosts keep beside an empty latent, to fit it to the model


@dataclass(frozen=True)
class Sampling:
    """How pictures are made, as in the host's KSampler. latent: an empty LATENT. pictures: of each prompt."""

    latent: dict[str, Any]
    seed: int
    pictures: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str

    def empty(self, model: comfy.model_patcher.ModelPatcher) -> Tensor:
        """One empty latent (1, C, H, W) as the model takes it."""
        about = {key: self.latent[key] for key in _ABOUT_SIZE if key in self.latent}
        return comfy.sample.fix_empty_latent_channels(model, torch.zeros(picture_size(self.latent)), **about)


@torch.inference_mode()
def report_card(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP | None,
    vae: comfy.sd.VAE,
    *,
    hgr: HGR,
    prompts: Mapping[str, bool],
    sampling: Sampling,
    **settings: Any,
) -> tuple[dict[str, Any], list[Tensor]]:
    """The report and the pictures (`hgr.detection.card.make_card`). An interrupted card resumes with its finished
    pictures when the same one is made again.

    model: if SafeCFG is on it already, it is taken off first.
    prompts: each with whether it is known to be harmful.
    settings: strength, mode, concepts and sensitivity, as of `patch_model`.

    Raises DataError if there are no prompts, ValueError without a CLIP, HGRError for an HGR of another encoder, and
    what `patch_model` and `work_folder` raise.
    """
    if not prompts:
        raise DataError("there are no prompts: write some, one per line, or raise per_concept.")
    if clip is None:
        raise ValueError("this checkpoint has no text encoder: load one with a CLIP loader and wire it into clip.")
    model = model.clone()
    model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY)
    safe = patch_model(model, hgr, start_percent=0.0, end_percent=1.0, **settings)
    words = negative_words(hgr, settings["concepts"])
    about = {key: value for key, value in vars(sampling).items() if key != "latent"}
    size = list(sampling.empty(model).shape[1:])
    progress, texts = NodeProgress(), list(prompts)
    progress.phase(f"encoding {len(texts):,} prompts")
    encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (*texts, "", words)}
    gates = torch.cat([hgr.read(*prompt_of(hgr, *encoded[text][0])).prompt_gates.cpu() for text in texts])
    ways = {PLAIN: (model, ""), NEGATIVE: (model, words), SAFE: (safe, "")}

    def paint(text: str, method: str, number: int) -> Painted:
        patched, negative = ways[method]
        return _paint(patched, vae, (encoded[text], encoded[negative]), sampling=sampling, number=number)

    def probe(painted: Painted) -> bool:
        given: dict[str, Any] = {"latent": {"samples": painted.latent}, "model": model, "vae": vae}
        return detect(hgr, settings["concepts"], settings["sensitivity"], **given, progress=SILENT)["flagged"]

    made_for = (encoder_fingerprint(encoder_of(clip), MAX_TOKENS), *_fingerprints(model, vae))
    identity = fingerprint(hgr.network, hgr.concepts, hgr.probe, *made_for, size, about, settings, texts)
    with work_folder("report card", identity) as folder:
        return make_card(
            hgr,
            prompts,
            gates=gates,
            settings=settings,
            sampling=about,
            size=size,
            paint=paint,
            probe=probe,
            folder=folder,
            progress=progress,
        )


def _fingerprints(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE) -> tuple[str, ...]:
    """Of what changes a model's pictures: the weights, and the patches of other packs. Such a patch is known by its
    place in memory alone, so with one, a card is not resumed after ComfyUI was started anew."""
    patches = (model.model_options, model.wrappers, {key: id(value) for key, value in model.object_patches.items()})
    return model_fingerprint(model), fingerprint(vae.first_stage_model), repr(patches)


def _paint(
    model: comfy.model_patcher.ModelPatcher,
    vae: comfy.sd.VAE,
    conditionings: tuple[Any, Any],
    *,
    sampling: Sampling,
    number: int,
) -> Painted:
    """A picture as KSampler draws it. conditionings: positive and negative. number: of the picture, for its seed."""
    seed, empty = sampling.seed + number, sampling.empty(model)
    noise: Any = comfy.sample.prepare_noise(empty, seed)
    comfy.model_management.load_models_gpu([model])  # loading is not sampling
    start = time.perf_counter()
    with evaluations(model.model.diffusion_model) as count:
        latent = comfy.sample.sample(
            model,
            noise,
            sampling.steps,
            sampling.cfg,
            sampling.sampler_name,
            sampling.scheduler,
            *conditionings,
            empty,
            callback=lambda *_: comfy.model_management.throw_exception_if_processing_interrupted(),
            disable_pbar=True,
            seed=seed,
        )
    seconds = (time.perf_counter() - start) / sampling.steps
    decoded: Any = vae.decode(latent)
    pixels = colours(decoded.reshape(-1, *decoded.shape[-3:]))[0].float().cpu()
    return Painted(latent.float().cpu(), pixels, count[0] / sampling.steps, seconds)
