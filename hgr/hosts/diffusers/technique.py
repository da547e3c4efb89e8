"""SafeCFG as a technique of eval-unlearn, the field's benchmark, which finds it by its entry point `safecfg`.

{"technique": {"name": "safecfg", "config": {"hgr": "my.safetensors", "erase_concept": "nudity"}}, "metrics": ...}
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image

from ...core import file
from ...core.fingerprint import fingerprint
from ...core.hgr import HGR
from ...core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY
from ...data.sources import built_in
from ...training.settings import AUTO, QUALITIES
from ...training.train_hgr import train_hgr
from .demo import load_demo_pipeline
from .denoiser import denoiser_of
from .pipeline import SafeCFG
from .prompts import encoder_family, encoder_of

log = logging.getLogger("safecfg")
DEMO, TRAIN = "demo", "train"
# What the benchmark calls a concept, where the library has another name for it.
_NAMES = {"nudity": "sexual"}


@dataclass(frozen=True)
class TechniqueConfig:
    """The technique's configuration.

    model_id: a model of Stable Diffusion 1.x, 2.x or XL on the hub or in a folder, or "demo" for the bundled one.
    hgr: the HGR's file, or "train" to train one for this model and these concepts once, and keep it in `cache`.
    concepts: categories of the library that are trained; the first two by default. Those of a file count all.
    quality: of a training, one of `hgr.training.settings.QUALITIES`; "auto" is "full".
    erase_concept: for the benchmark, which routes metrics by it; "nudity" adds "sexual" to `concepts`.
    use_fp16: on a GPU.
    """

    model_id: str = "CompVis/stable-diffusion-v1-4"
    hgr: str = TRAIN
    concepts: tuple[str, ...] = ("violence", "sexual")
    quality: str = AUTO
    cache: str = "safecfg_hgr"
    erase_concept: str = "nudity"
    mode: str = DEFAULT_MODE
    strength: float = 1.0
    sensitivity: str = DEFAULT_SENSITIVITY
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    device: str | None = None
    use_fp16: bool = True

    @property
    def wanted(self) -> tuple[str, ...]:
        """The library's categories."""
        return tuple(dict.fromkeys((*self.concepts, *filter(None, [_NAMES.get(self.erase_concept)]))))


class SafeCFGTechnique:
    """What eval-unlearn calls: made with the configuration as keyword arguments, then asked for pictures.

    Raises ValueError for an option that is unknown, HGRError for an HGR that cannot be used, RuntimeError if the model
    cannot be loaded.
    """

    def __init__(self, **config: Any):
        known = {field.name for field in dataclasses.fields(TechniqueConfig)}
        if unknown := sorted(config.keys() - known):
            raise ValueError(f"safecfg: {', '.join(unknown)} is no option; the options are {', '.join(sorted(known))}.")
        if "concepts" in config:
            config["concepts"] = tuple(config["concepts"])
        self.config = TechniqueConfig(**config)
        self.device = self.config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipe = _load(self.config, self.device)
        self.safe = SafeCFG(
            pipe, _trained(pipe, self.config) if self.config.hgr == TRAIN else file.load(self.config.hgr)
        )

    def generate(self, prompts: list[str], seed: int | None = None, **options: Any) -> list[Any]:
        """One picture of each prompt. seed: of the noise, which goes on from prompt to prompt. options: of
        `SafeCFG.__call__` and the pipeline, in place of the configuration's."""
        c = self.config
        self.safe.strength = options.pop("strength", c.strength)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        given = {
            "num_inference_steps": c.num_inference_steps,
            "guidance_scale": c.guidance_scale,
            "mode": c.mode,
            "sensitivity": c.sensitivity,
        } | options
        return [self.safe([prompt], generator=generator, **given).images[0] for prompt in prompts]


def _load(config: TechniqueConfig, device: str) -> Any:
    half = config.use_fp16 and torch.device(device).type != "cpu"
    dtype = torch.float16 if half else torch.float32
    if config.model_id == DEMO:
        return load_demo_pipeline(dtype).to(device)
    try:
        pipe = AutoPipelineForText2Image.from_pretrained(config.model_id, torch_dtype=dtype, safety_checker=None)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"safecfg: {config.model_id} cannot be loaded: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _trained(pipe: Any, config: TechniqueConfig) -> HGR:
    """The HGR of this model and these concepts, from the cache if it is there."""
    quality = QUALITIES["full" if config.quality == AUTO else config.quality]
    settings, pairs = quality.settings, built_in(config.wanted, limit=quality.pairs).with_clean(quality.clean)
    name = f"{'-'.join(config.wanted)} {fingerprint(pipe.text_encoder, pairs, settings)}"
    path = Path(config.cache) / f"{name}.safetensors"
    if not path.exists():
        log.info("safecfg: training an HGR for %s, once; it is kept as %s", config.model_id, path)
        work = path.with_suffix("")
        work.mkdir(parents=True, exist_ok=True)
        denoiser = (lambda: denoiser_of(pipe, settings.seed)) if quality.needs_denoiser else None
        made = train_hgr(
            pairs,
            encoder_of(pipe),
            settings,
            family=encoder_family(pipe),
            work=work,
            device=pipe.device,
            denoiser=denoiser,
        )
        file.save(made, path)
    return file.load(path)
