"""Safe fine-tuning without labels: a LoRA that makes the model itself safe, with the HGR as its teacher.

    L = || eps_lora(z_t, c) - h eps(z_t, c_safe) - (1 - h) eps(z_t, c) ||^2

eps is the frozen model, z_t a noisy picture, and h in [0, 1] how harmful the HGR finds the example; there are no
labels. That harmfulness detected by HGR is enough for fine-tuning is the paper's third finding (arXiv 2412.16039); the
formula is this project's own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.denoiser import Denoiser, Predict
from ..core.fingerprint import fingerprint
from ..core.hgr import HGR, HGRError, calibrated
from ..core.progress import SILENT, Progress
from ..core.prompt import Encode, Prompt
from ..core.redirect import shift_prompt
from ..detection.hed import hed_picture
from ..detection.judge import probe_of
from .encoded_prompts import EncodedPrompts
from .loop import Loop, Processes
from .pictures import paint
from .settings import LORA_STAGE, LoRASettings
from .work_files import features_file, pictures_file

log = logging.getLogger("safecfg")

_EMPTY = 0.1  # share of examples shown with the empty prompt, whose predictions must stay the same, for CFG
_BATCH = 64  # prompts that the HGR reads at once
_UNIT_DRAWS = 4  # batches on which the loss's unit is measured


@dataclass(frozen=True)
class Adapted:
    """A denoiser with a LoRA.

    adapters: the module to train.
    frozen: a context in which the denoiser runs without the LoRA, so the teacher needs no copy of the weights.
    """

    denoiser: Denoiser
    adapters: nn.Module
    frozen: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Lessons:
    """Examples: latents (N, ...) of pictures, their prompts, and harm (N,) in [0, 1], how harmful each is."""

    latents: Tensor
    texts: list[str]
    harm: Tensor


class Teacher:
    """An HGR with the prompts to fine-tune on. strengths: of its concepts, multiplied by the global strength; a concept
    at 0 is left alone."""

    def __init__(
        self, hgr: HGR, encoded: EncodedPrompts, strengths: list[float], *, device: torch.device | str = "cpu"
    ):
        self.hgr, self.encoded, self.device = hgr, encoded, device
        self.strengths = torch.tensor(strengths)

    def gates(self, texts: list[str]) -> Tensor:
        """(B, K) on the CPU: the probability of each concept that is on and fires in the prompt; 0 for the others."""
        gates = self.hgr.read(*self.encoded(texts, self.device)).prompt_gates.cpu()
        return gates * (gates >= self.hgr.thresholds.cpu()) * (self.strengths > 0)

    def prompts(self, texts: list[str]) -> tuple[Prompt, Prompt]:
        """The prompts as they are, and redirected away from the concepts that are on and fire."""
        plain = self.encoded(texts, self.device)
        delta = self.hgr.displacement(self.hgr.read(*plain), self.strengths)
        return plain, shift_prompt(plain, delta)


def check_lessons(settings: LoRASettings, texts: list[str], hgr: HGR, *, latents: Tensor | None) -> None:
    """Raise ValueError for settings out of range and for prompts that cannot be used, HGRError for an HGR without the
    picture probe that the evidence needs."""
    settings.check()
    if not texts:
        raise ValueError("there are no prompts to learn from: give some, one per line, harmful and clean ones mixed.")
    if latents is not None and len(texts) not in (1, len(latents)):
        raise ValueError(
            f"there are {len(latents)} pictures and {len(texts)} prompts: "
            "give one prompt for each picture, or one for all."
        )
    if settings.evidence != "prompt" and hgr.probe is None:
        raise HGRError(
            f'{hgr.name} has no picture probe, so it cannot say how harmful pictures are: choose "prompt" as evidence, '
            "or an HGR that was trained with the model."
        )


def train_lora(
    hgr: HGR,
    texts: list[str],
    settings: LoRASettings,
    *,
    encode: Encode,
    adapt: Callable[[], Adapted],
    strengths: list[float],
    work: Path,
    made_for: str = "",
    latents: Tensor | None = None,
    device: torch.device | str = "cpu",
    processes: Processes = Processes(),
    progress: Progress = SILENT,
) -> tuple[Adapted, Lessons]:
    """Fine-tune a model with the HGR as its teacher, or resume an interrupted fine-tuning from `work`. Returns the
    trained LoRA and the examples. The caller writes the LoRA and then calls `work_files.discard`.

    texts: prompts, harmful and clean ones mixed.
    adapt: called once, after all prompts are encoded.
    strengths: see `Teacher`.
    made_for: the fingerprint of the model and the user's pictures; a fine-tuning with others is not resumed.
    latents (N, ...): the user's pictures of the prompts; without them the model makes `settings.pictures`.
    progress: may stop the fine-tuning by raising.

    Raises what `check_lessons` does; ValueError if the HGR finds no prompt harmful, FloatingPointError if the loss or
    the LoRA is not finite.
    """
    check_lessons(settings, texts, hgr, latents=latents)
    canvas = pictures_file(work, processes.rank)
    with closing(
        EncodedPrompts(
            [*texts, ""], encode, features_file(work, processes.rank), limit=hgr.encoder.part, progress=progress
        )
    ) as encoded:
        teacher = Teacher(hgr, encoded, strengths, device=device)
        if not any(teacher.gates(texts[at : at + _BATCH]).any() for at in range(0, len(texts), _BATCH)):
            raise ValueError(
                f"{hgr.name} finds none of the {len(texts)} prompts harmful, so there is nothing to learn: add prompts "
                "that the model should not follow, and check which concepts are on."
            )
        torch.manual_seed(settings.seed)
        adapted = adapt()
        if latents is None:
            texts = _cycled(texts, settings.pictures, settings.seed)
        elif len(texts) == 1:
            texts = texts * len(latents)
        with adapted.frozen():
            if latents is None:
                latents = paint(adapted.denoiser, texts, canvas, made_for=made_for, progress=progress)
            harm = harm_of(
                teacher,
                adapted.denoiser,
                latents,
                texts=texts,
                evidence=settings.evidence,
                seed=settings.seed,
                progress=progress,
            )
        lessons = Lessons(latents, texts, harm)
        fit_lora(
            teacher,
            adapted,
            lessons,
            settings=settings,
            work=work,
            made_for=made_for,
            processes=processes,
            progress=progress,
        )
        return adapted, lessons


@torch.no_grad()
def harm_of(
    teacher: Teacher,
    denoiser: Denoiser,
    latents: Tensor,
    *,
    texts: list[str],
    evidence: str,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Tensor:
    """(N,) in [0, 1]: how harmful pictures with their prompts are, as the highest calibrated probability of a concept
    that is on and fires in the prompt.

    evidence: "prompt" for its gates, "picture" for the picture's directed HED (`hgr.detection.hed`), "both" for the
    mean of the two.
    """
    found = []
    progress.phase(f"judging {len(texts):,} pictures")
    for rows in torch.arange(len(texts)).split(denoiser.batch):
        part = [texts[i] for i in rows.tolist()]
        gates = harm = teacher.gates(part)
        if evidence != "prompt":
            prompt = teacher.encoded(part, teacher.device)
            hed = hed_picture(teacher.hgr, denoiser, latents[rows], prompt=prompt, seed=seed).per_concept
            harm = calibrated(hed, probe_of(teacher.hgr).hed) * (gates > 0)
            harm = harm if evidence == "picture" else (harm + gates) / 2
        found.append(harm.amax(1))
        progress.picture(int(rows[-1]) + 1, len(texts))
    return torch.cat(found)


def fit_lora(
    teacher: Teacher,
    adapted: Adapted,
    lessons: Lessons,
    *,
    settings: LoRASettings,
    work: Path,
    made_for: str = "",
    processes: Processes = Processes(),
    progress: Progress = SILENT,
) -> None:
    """Train the LoRA on lessons. The loss is 1 if a harmful example is unchanged, and 0 if it matches the teacher."""
    harmful, clean = (found.nonzero().flatten().tolist() for found in (lessons.harm > 0, lessons.harm == 0))
    if not harmful:
        raise ValueError(
            f"none of the {len(lessons.texts)} pictures has a prompt that is harmful to {teacher.hgr.name}: "
            "add more harmful prompts, or make more pictures."
        )
    if not clean:
        log.warning(
            "every prompt is harmful to %s: without clean ones among them, clean pictures may change too.",
            teacher.hgr.name,
        )
    mine = slice(processes.rank, None, processes.count)

    def draw(rng: random.Random, generator: torch.Generator) -> tuple[Predict, Prompt, Prompt, Tensor]:
        """A batch, half of it harmful even if there are few harmful examples."""
        rows = [rng.choice(harmful if i % 2 or not clean else clean) for i in range(settings.batch_size)]
        empty = [rng.random() < _EMPTY for _ in rows]
        clear = lessons.latents[rows]
        percent = torch.rand(len(rows), generator=generator).clamp(0.01, 0.99)
        noise = torch.randn(clear.shape, generator=generator)
        texts = ["" if e else lessons.texts[row] for row, e in zip(rows[mine], empty[mine], strict=True)]
        plain, safe = teacher.prompts(texts)
        harm = lessons.harm[rows[mine]] * ~torch.tensor(empty[mine])
        return adapted.denoiser.at(clear[mine], percent[mine], noise[mine]), plain, safe, harm

    def loss(rng: random.Random, generator: torch.Generator) -> Tensor:
        predict, plain, safe, harm = draw(rng, generator)
        with torch.no_grad(), adapted.frozen():
            goal = lesson(predict, plain, safe, harm=harm)
        return (predict(*plain[:2]) - goal).square().mean() / unit

    unit = _unit(adapted, draw, processes, seed=settings.seed)
    depends = fingerprint(
        teacher.hgr.network, teacher.hgr.concepts, settings, lessons.texts, teacher.strengths, made_for
    )
    loop = Loop(
        LORA_STAGE,
        adapted.adapters,
        work,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        average=0.99,
        made_for=depends,
        processes=processes,
        progress=progress,
    )
    loop.run(loss)


def lesson(predict: Predict, plain: Prompt, safe: Prompt, *, harm: Tensor) -> Tensor:
    """The target prediction, `h eps(z_t, c_safe) + (1 - h) eps(z_t, c)`. harm (B,): h, on the CPU."""

    def pick(chosen: Tensor, other: Tensor) -> Tensor:
        return torch.where((harm > 0).to(chosen.device).view(-1, *(1,) * (chosen.dim() - 1)), chosen, other)

    pooled = None if safe.pooled is None or plain.pooled is None else pick(safe.pooled, plain.pooled)
    goal = predict(pick(safe.features, plain.features), pooled)
    if not ((harm > 0) & (harm < 1)).any():
        return goal
    h = torch.where(harm > 0, harm, 1.0).to(goal).view(-1, *(1,) * (goal.dim() - 1))
    return h * goal + (1 - h) * predict(*plain[:2])


@torch.no_grad()
def _unit(
    adapted: Adapted,
    draw: Callable[[random.Random, torch.Generator], tuple[Predict, Prompt, Prompt, Tensor]],
    processes: Processes,
    *,
    seed: int,
) -> float:
    """The mean squared distance of the safe prediction from the plain one, over harmful examples."""
    total = torch.zeros(2, dtype=torch.double)
    with adapted.frozen():
        for i in range(_UNIT_DRAWS):
            predict, plain, safe, harm = draw(random.Random(f"{seed}/unit/{i}"), torch.Generator().manual_seed(i))
            if (harm > 0).any():
                apart = (predict(*safe[:2]) - predict(*plain[:2]))[harm > 0].square().mean().cpu()
                total += torch.tensor([apart, 1.0])
    if processes.reduce:
        processes.reduce([total])
    return (total[0] / total[1]).item() if total[1] and total[0] else 1.0


def _cycled(texts: list[str], count: int, seed: int) -> list[str]:
    """`count` prompts: a random choice, or all of them repeatedly."""
    texts = random.Random(f"{seed}/pictures").sample(texts, len(texts))
    return [texts[i % len(texts)] for i in range(count)]
