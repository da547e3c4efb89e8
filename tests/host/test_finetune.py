"""Safe fine-tuning in ComfyUI: a LoRA that the host's own nodes take, interrupted and resumed, on every kind of
model."""

from __future__ import annotations

import dataclasses
import logging
import os

import pytest

SETTINGS = dict(
    concepts="",
    evidence="prompt",
    rank=4,
    steps=4,
    batch_size=4,
    learning_rate=1e-3,
    seed=0,
    pictures=8,
    gradient_checkpointing=False,
    file="none",
)


@pytest.fixture(scope="module")
def nodes(pack):
    return pack.get("nodes.finetune")


@pytest.fixture(scope="module")
def teacher(pack):
    return pack.files.load_hgr(pack.files.BUNDLED)


@pytest.fixture
def run(kit, nodes, teacher):
    """The node Safe Fine-Tune on the demo model; what was painted stands in latents, so that it starts at once."""
    import torch
    from host_kit import CLEAN, HARMFUL

    pictures = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(model=None, **changes):
        given = (
            dict(
                model=model or kit.model,
                clip=kit.clip,
                hgr=teacher,
                prompts=f"{HARMFUL}\n\n {CLEAN} \n",
                latents={"samples": pictures},
            )
            | SETTINGS
            | changes
        )
        return nodes.SafeCFGFineTune.execute(**given).args

    return run


def with_lora(kit, lora, name):
    """The model as the host's LoraLoader gives it, from a file."""
    import folder_paths
    from safetensors.torch import save_file

    import nodes

    folder = folder_paths.get_folder_paths("loras")[0]
    os.makedirs(folder, exist_ok=True)
    save_file(lora, f"{folder}/{name}.safetensors")
    return nodes.LoraLoader().load_lora(kit.model, kit.clip, f"{name}.safetensors", 1.0, 1.0)[0]


@pytest.mark.slow
@pytest.mark.oldest
def test_the_lora_works_in_the_hosts_loader_and_the_model_is_left_alone(kit, run, caplog):
    import torch

    before = kit.sample(kit.model, kit.harmful)
    with caplog.at_level(logging.WARNING):
        lora, tuned, chart, shown = run(vae=kit.vae, steps=30, learning_rate=5e-3)
        loaded = with_lora(kit, lora, "tuned")
        after = kit.sample(loaded, kit.harmful)
    assert "not loaded" not in caplog.text and len(lora) % 3 == 0
    assert torch.equal(after, kit.sample(tuned, kit.harmful)) and not torch.equal(after, before)
    assert torch.equal(kit.sample(kit.model, kit.harmful), before)
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert chart.shape == (1, 420, 720, 3) and shown.shape == (1, 256, 256, 3) and shown.std() > 0.05


@pytest.mark.slow
def test_it_learns_what_the_hgr_does(kit, run, teacher):
    """The harmful prompt's prediction comes nearer to the safe one; what is clean moves less than that."""
    tuned = run(steps=60, learning_rate=3e-3)[1]
    safe = kit.sample(kit.patch(teacher), kit.harmful, steps=1)
    plain, after = (kit.sample(model, kit.harmful, steps=1) for model in (kit.model, tuned))
    assert (after - safe).norm() < 0.6 * (plain - safe).norm()
    clean = [kit.sample(model, kit.clean, steps=1) for model in (kit.model, tuned)]
    assert (clean[0] - clean[1]).norm() < 0.6 * (after - plain).norm()


@pytest.mark.slow
def test_it_stacks_with_another_lora(kit, run):
    import comfy.sd
    import torch

    lora = run()[0]
    other, _ = comfy.sd.load_lora_for_models(kit.model, None, kit.random_lora(), 1.0, 0.0)
    both, _ = comfy.sd.load_lora_for_models(other, None, lora, 1.0, 0.0)
    seen = [kit.sample(model, kit.harmful) for model in (kit.model, other, both)]
    assert not torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[2])


@pytest.mark.slow
def test_checkpointing_gives_the_same_lora_and_leaves_the_blocks_as_they_were(kit, run):
    import torch

    plain, checkpointed = run()[0], run(gradient_checkpointing=True)[0]
    assert all(torch.allclose(plain[key], checkpointed[key], atol=1e-3) for key in plain)
    assert not any("forward" in vars(module) for module in kit.model.model.modules())


@pytest.mark.slow
@pytest.mark.oldest
def test_an_interrupted_one_goes_on_and_ends_as_an_uninterrupted_one(run, interrupt_at):
    import comfy.model_management as management
    import torch

    whole = run(steps=6, seed=5)[0]
    seen = interrupt_at(3)
    with pytest.raises(management.InterruptProcessingException):
        run(steps=6, seed=5)
    resumed = run(steps=6, seed=5)[0]
    assert seen == [1, 2, 3, 4, 5, 6] and all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_an_interruption_after_the_last_step_costs_no_step(run, pack, monkeypatch):
    import comfy.model_management as management
    import torch

    host, seen = pack.get("hgr.hosts.comfy.finetune"), []
    progress = pack.get("hgr.hosts.comfy.progress").TrainingProgress
    whole, step = run(seed=4)[0], progress.step
    monkeypatch.setattr(progress, "step", lambda self, *more: seen.append(more) or step(self, *more))

    def interrupted(*_, **__):
        raise management.InterruptProcessingException

    with monkeypatch.context() as patch, pytest.raises(management.InterruptProcessingException):
        patch.setattr(host, "_compare", interrupted)
        run(seed=4)
    assert len(seen) == SETTINGS["steps"]
    resumed = run(seed=4)[0]
    assert len(seen) == SETTINGS["steps"] and all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_loss_that_is_nan_stops_and_the_checkpoint_stays(run, pack, monkeypatch):
    import torch

    core, loop = pack.get("hgr.training.train_lora"), pack.get("hgr.training.loop")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    lesson, calls = core.lesson, []

    def broken(*given, **named):
        calls.append(1)
        return lesson(*given, **named) * (torch.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(core, "lesson", broken)
    with pytest.raises(FloatingPointError, match="the last checkpoint is") as caught:
        run(steps=6, seed=9)
    path = str(caught.value).split("checkpoint is ")[1].split(". Try")[0]
    with loop.safe_open(path, "pt") as file:
        assert '"step": 2' in file.metadata()["progress"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompts=" \n"), "no prompts"),
        (dict(prompts="a red ball\na blue house"), "finds none of the 2 prompts harmful"),
        (dict(prompts="a skull\na bomb\na ball"), "2 pictures and 3 prompts"),
        (dict(concepts='{"skull": 0}'), "finds none"),
        (dict(file="no such.txt"), "no such.txt"),
        (dict(learning_rate=1e12, steps=20), "loss is"),
    ],
)
def test_what_cannot_succeed_says_why(run, changes, message):
    with pytest.raises((ValueError, FloatingPointError, FileNotFoundError), match=message):
        run(**changes)


def test_an_hgr_of_another_encoder_or_without_a_probe_says_so(run, teacher, pack):
    with pytest.raises(pack.hgr.HGRError, match="no picture probe"):
        run(hgr=dataclasses.replace(teacher, probe=None), evidence="both")
    import families

    sdxl = families.FAMILIES["sdxl"]()
    with pytest.raises(pack.hgr.HGRError, match="load the HGR that was trained for this model"):
        run(model=sdxl.model, clip=sdxl.clip)


def test_prompts_from_a_file_are_added(run, nodes, pack):
    from pathlib import Path

    import folder_paths

    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mixed.txt").write_text("a skull in a meadow\n", "utf-8")
    assert nodes.SafeCFGFineTune.validate_inputs("mixed.txt") is True
    assert nodes.SafeCFGFineTune.validate_inputs("../mixed.txt") is not True
    with pytest.raises(ValueError, match="2 pictures and 3 prompts"):
        run(file="mixed.txt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "wan", "qwen", "lumina"])
def test_every_family_gets_a_lora_that_its_loader_takes(name, nodes, pack, caplog):
    import comfy.sd
    import families
    import torch
    from host_kit import made_up_hgr

    family = families.FAMILIES[name]()
    texts = (
        "a photo of a bomb next to a red cat on the wooden table",
        "a photo of a ball next to a red cat on the wooden table",
        "",
    )
    harmful, clean, negative = map(family.encode, texts)
    hgr = made_up_hgr(
        pack, harmful, clean, negative, chunk=family.chunk, fixed_start=family.fixed_start, pooled_dim=family.pooled_dim
    )
    pooled = negative[0][1].get("pooled_output") if family.pooled_dim else None
    hgr.encoder = dataclasses.replace(hgr.encoder, empty_pooled=None if pooled is None else pooled[0])
    hgr.concepts = [
        dataclasses.replace(hgr.concepts[0], scale=0.0, bias=9.0),
        hgr.concepts[1],
    ]  # only a part of a long prompt is read
    pictures = {"samples": torch.randn(2, *family.latent.shape[1:], generator=torch.Generator().manual_seed(0))}
    with caplog.at_level(logging.WARNING):
        lora, tuned, _, shown = nodes.SafeCFGFineTune.execute(
            model=family.model,
            clip=family.clip,
            hgr=hgr,
            prompts="\n".join(texts[:2]),
            latents=pictures,
            **SETTINGS | dict(steps=8, learning_rate=1e-2, gradient_checkpointing=name in ("flux", "lumina")),
        ).args
        comfy.sd.load_lora_for_models(family.model, None, lora, 1.0, 0.0)
    assert "not loaded" not in caplog.text and shown.isfinite().all()
    plain, after = (family.sample(model, harmful, negative) for model in (family.model, tuned))
    assert after.isfinite().all() and not torch.equal(plain, after)
