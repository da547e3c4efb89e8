"""`python -m hgr finetune`: the LoRA that it writes, on every family of models; interrupted and resumed; two processes;
how it fails."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from cli_kit import CLEAN, HARMFUL, apart, command, contents, interrupt, kept, launch_two, watch_bar, when
from helpers import small_hgr

from hgr.core import file
from hgr.demo import assets
from hgr.hosts.diffusers import finetune as host
from hgr.hosts.diffusers.demo import load_demo_pipeline
from hgr.hosts.diffusers.loading import load_pipeline
from hgr.hosts.diffusers.prompts import encode
from hgr.training import train_lora as training
from hgr.training.settings import LoRASettings

QUICK = ["--steps", 6, "--batch-size", 4, "--rank", 4, "--pictures", 8]


def run(folder: Path, *options: object, name: str = "out") -> tuple[int, Path]:
    output = folder / f"{name}.safetensors"
    return command("finetune", "--work", folder / "work", "--output", output, *QUICK, *options), output


@torch.no_grad()
def predicted(pipe, text: str = HARMFUL) -> torch.Tensor:
    """The denoiser's prediction for one fixed noisy picture."""
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = encode(pipe, [text])
    added = {}
    if plain.pooled is not None:
        added = {"added_cond_kwargs": {"text_embeds": plain.pooled, "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]])}}
    return pipe.unet(z, torch.tensor([500]), plain.features, **added).sample


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "mixed.txt"
    path.write_text(f"{CLEAN}\n\n  {HARMFUL}\na dagger and a bomb by a lake\na house in the snow\n")
    return path


@pytest.fixture(scope="module")
def whole(prompts, tmp_path_factory):
    """A fine-tuning on one process, without an interruption: its folder, its file, and the model that it trained."""
    folder, trained, made = tmp_path_factory.mktemp("whole"), [], host.adapt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "adapt", lambda pipe, *more: trained.append(pipe) or made(pipe, *more))
        code, output = run(folder, "--prompts", prompts)
    assert code == 0
    return folder, output, trained[0]


@pytest.fixture
def careless(monkeypatch):
    """The model makes its pictures in few steps, for tests that do not ask what they show."""
    monkeypatch.setattr("hgr.hosts.diffusers.denoiser._STEPS", 2)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_makes_a_fresh_pipeline_predict_what_the_trained_one_does(whole):
    folder, output, trained = whole
    fresh = load_demo_pipeline()
    before = predicted(fresh)
    fresh.load_lora_weights(output)
    after, wanted = predicted(fresh), predicted(trained)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(
        after, wanted, atol=1e-2 * (after - before).abs().max().item(), rtol=0
    )  # the file is in float16
    fresh.unload_lora_weights()
    assert torch.equal(predicted(fresh), before)
    assert sorted(path.name for path in (folder / "work").iterdir()) == ["logs", "training.json"]


def test_it_stacks_with_another_lora(whole, tmp_path):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(1)
    painter = load_demo_pipeline()
    painter.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    painter.save_lora_weights(tmp_path, convert_state_dict_to_diffusers(get_peft_model_state_dict(painter.unet)))
    pipe = load_demo_pipeline()
    pipe.load_lora_weights(whole[1], adapter_name="safe")
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    found = {}
    for names in (["safe"], ["style"], ["safe", "style"]):
        pipe.set_adapters(names)
        found[len(found)] = predicted(pipe)
    safe, style, both = found.values()
    assert not torch.allclose(safe, style, atol=1e-3)
    assert not torch.allclose(both, safe, atol=1e-3) and not torch.allclose(both, style, atol=1e-3)
    pipe.set_adapters(["safe"])
    assert torch.equal(predicted(pipe), safe)


def test_the_file_says_how_it_was_made_and_names_no_folder_of_the_machine(whole):
    tensors, metadata = contents(whole[1])
    made = json.loads(metadata["safecfg"])
    assert (
        metadata["format"] == "pt" and made["hgr"] == assets.HGR_FILE.name and made["steps"] == 6 and made["rank"] == 4
    )
    assert made["concepts"] == {"skull": 1.0, "dagger": 1.0, "splatter": 1.0, "bomb": 1.0, "nightmare": 1.0}
    assert made["examples"] == 8 and made["harmful"] == 4 and "peft" in made["versions"]
    assert str(whole[0]) not in json.dumps(metadata)
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert {x.dtype for key, x in tensors.items() if "weight" in key} == {torch.float16}


def test_the_report_says_what_it_learned_from_and_how_to_use_the_file(careless, prompts, tmp_path, capsys):
    code, output = run(tmp_path, "--prompts", prompts, "--evidence", "prompt")
    lines = capsys.readouterr().out.splitlines()
    assert (
        code == 0
        and lines[0].startswith("examples  8, harmful by the HGR: 4, with a mean h of ")
        and lines[1].startswith("loss  ")
    )
    assert any("models/loras" in line for line in lines) and any(
        f'load_lora_weights("{output}")' in line for line in lines
    )
    assert lines[-1] == str(output)


def test_the_logs_can_be_read_by_tensorboard(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(whole[0] / "work" / "logs"))
    events.Reload()
    for name in ("loss", "learning_rate"):
        assert [e.step for e in events.Scalars(name)] == [1, 2, 3, 4, 5, 6]
    assert "report/text_summary" in events.Tags()["tensors"]


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sdxl", "sd2"])
def test_a_lora_for_each_family_loads_into_its_model(careless, models, family, prompts, tmp_path, monkeypatch, caplog):
    trained, made = [], host.adapt
    monkeypatch.setattr(host, "adapt", lambda pipe, *more: trained.append(pipe) or made(pipe, *more))
    options = ["--model", models / family, "--hgr", models / f"{family}.safetensors", "--evidence", "prompt"]
    code, output = run(tmp_path, *options, "--prompts", prompts)
    assert code == 0 and "every prompt is harmful" in caplog.text
    pipe = load_pipeline(models / family, torch.device("cpu"))
    before = predicted(pipe)
    pipe.load_lora_weights(output)
    after = predicted(pipe)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, predicted(trained[0]), atol=1e-2 * (after - before).abs().max().item(), rtol=0)


def test_a_model_in_half_precision_can_be_trained(careless, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    pipe = load_demo_pipeline(torch.float16)
    adapted = host.adapt(pipe, 4)
    with adapted.frozen():
        (painted,) = adapted.denoiser.paint([CLEAN], 0)
    assert painted.isfinite().all() and pipe.unet.dtype == torch.bfloat16
    assert {p.dtype for p in adapted.adapters.parameters() if p.requires_grad} == {torch.float32}


# --- what it learns from ----------------------------------------------------------------------------------------------


def watch_lessons(monkeypatch) -> list[training.Lessons]:
    """The lessons that fine-tunings learn from, as they come."""
    seen, fit_lora = [], training.fit_lora
    monkeypatch.setattr(
        training,
        "fit_lora",
        lambda teacher, adapted, lessons, **more: seen.append(lessons) or fit_lora(teacher, adapted, lessons, **more),
    )
    return seen


@pytest.mark.slow
def test_the_users_own_latents_are_what_it_learns_from(prompts, tmp_path, monkeypatch):
    latents, seen = torch.randn(4, 4, 16, 16), watch_lessons(monkeypatch)
    save_file({"latents": latents}, tmp_path / "mine.safetensors")
    code, _ = run(tmp_path, "--prompts", prompts, "--latents", tmp_path / "mine.safetensors")
    assert code == 0 and torch.equal(seen[0].latents, latents)
    assert seen[0].texts == [CLEAN, HARMFUL, "a dagger and a bomb by a lake", "a house in the snow"]


@pytest.mark.slow
def test_pictures_with_their_prompts_are_scaled_and_cut_to_the_models_size(demo_pipe, tmp_path, monkeypatch):
    from PIL import Image

    wide = Image.new("RGB", (512, 256), "black")
    wide.paste("white", (128, 0, 384, 256))  # what is left of it when cut
    wide.save(tmp_path / "wide.png")
    Image.new("RGBA", (100, 128), (51, 51, 51)).save(tmp_path / "small.webp", lossless=True)
    listed = tmp_path / "listed.csv"
    listed.write_text(f"prompt,image\n{CLEAN},wide.png\n{HARMFUL},small.webp\n")
    seen = watch_lessons(monkeypatch)
    assert run(tmp_path, "--prompts", listed)[0] == 0
    latents = seen[0].latents
    assert latents.shape == (2, 4, 16, 16) and seen[0].texts == [CLEAN, HARMFUL]
    vae = demo_pipe.vae
    with torch.no_grad():
        white, dark = (
            vae.encode(torch.full((1, 3, 128, 128), colour)).latent_dist.mode() * vae.config.scaling_factor
            for colour in (1.0, -0.6)
        )
    torch.testing.assert_close(latents[1:], dark, atol=1e-2, rtol=0)
    # the margins blur a little when scaled
    torch.testing.assert_close(latents[:1, :, 4:-4, 4:-4], white[..., 4:-4, 4:-4], atol=5e-2, rtol=0)


def test_a_concept_that_is_off_is_not_taught_and_strength_is(prompts, tmp_path, monkeypatch):
    asked = {}

    def stop(hgr, texts, settings, *, strengths, work, **more):
        asked.update(texts=texts, strengths=strengths, settings=settings, work=work)
        raise ValueError("seen")

    monkeypatch.setattr(training, "train_lora", stop)
    config = tmp_path / "my.json"
    config.write_text(
        json.dumps(
            {
                "concepts": {"skull": 0},
                "strength": 0.5,
                "steps": 9,
                "prompts": str(prompts),
                "output": str(tmp_path / "x.safetensors"),
                "work": str(tmp_path / "elsewhere"),
                "evidence": "prompt",
            }
        )
    )
    assert command("finetune", "--config", config, "--steps", 4) == 2
    assert asked["strengths"] == [0, 0.5, 0.5, 0.5, 0.5] and asked["work"] == tmp_path / "elsewhere"
    assert asked["settings"] == LoRASettings(steps=4, evidence="prompt")
    assert asked["texts"] == [CLEAN, HARMFUL, "a dagger and a bomb by a lake", "a house in the snow"]


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_fine_tuning_goes_on_to_the_same_file(whole, prompts, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        when(patch, "steps", 3)
        code, output = run(tmp_path, "--prompts", prompts)
    checkpoint = tmp_path / "work" / "lora.checkpoint.safetensors"
    assert code == 130 and checkpoint.exists() and not output.exists()
    assert capsys.readouterr().err.splitlines()[-1] == kept(checkpoint)

    others = tmp_path / "others.txt"
    others.write_text(f"{CLEAN}\n{HARMFUL}\n")
    another = file.load(assets.HGR_FILE)
    another.network.move_out.weight += 1e-3
    file.save(another, tmp_path / assets.HGR_FILE.name)
    same_name = tmp_path / assets.HGR_FILE.name
    for options, why in (
        (["--prompts", others], "prompts 'mixed.txt ("),
        (["--prompts", prompts, "--learning-rate", "0.5"], f"learning_rate {LoRASettings().learning_rate}, now 0.5"),
        (["--prompts", prompts, "--hgr", same_name], f"hgr '{same_name.name} ("),
        (["--prompts", prompts, "--concepts", '{"skull": 0}'], "strengths {'skull': 1.0"),
    ):
        assert run(tmp_path, *options)[0] == 2 and checkpoint.exists()
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"other settings ({why}" in last and "; " not in last, "what differs, and nothing else"

    steps, painted, made = watch_bar(monkeypatch, "steps"), [], host.adapt
    monkeypatch.setattr(
        host,
        "adapt",
        lambda *given: dataclasses.replace(
            found := made(*given),
            denoiser=dataclasses.replace(
                found.denoiser, paint=lambda *more: painted.append(1) or found.denoiser.paint(*more)
            ),
        ),
    )
    code, output = run(tmp_path, "--prompts", prompts)
    assert code == 0 and steps == [(4, 6), (5, 6), (6, 6)] and not painted and not checkpoint.exists()
    assert "from step 3 on" in capsys.readouterr().out
    (tensors, metadata), (resumed, resumed_metadata) = contents(whole[1]), contents(output)
    assert metadata == resumed_metadata and all(
        torch.equal(tensors[key], resumed[key]) for key in tensors.keys() | resumed.keys()
    )


def test_an_interruption_while_it_judges_keeps_the_pictures(careless, prompts, tmp_path, monkeypatch, capsys):
    harm_of = training.harm_of

    def interrupted(*given, **more):
        interrupt()
        return harm_of(*given, **more)

    monkeypatch.setattr(training, "harm_of", interrupted)
    code, output = run(tmp_path, "--prompts", prompts)
    assert code == 130 and not output.exists()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "features-0.bin",
        "pictures-0.safetensors",
        "training.json",
    ]
    assert "pictures-0.safetensors is kept" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_what_one_gives_with_the_double_batch(whole, prompts, tmp_path):
    output = tmp_path / "two.safetensors"
    options = [*QUICK, "--batch-size", 2, "--prompts", prompts, "--work", tmp_path / "work", "--output", output]
    done = launch_two(tmp_path, "finetune", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("harmful by the HGR") == 1, "the main process alone prints"
    assert apart(whole[1], output) < 1e-3
    assert len(list((tmp_path / "work" / "logs").iterdir())) == 1


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_one_sentence_and_the_checkpoint_stays(
    careless, prompts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("hgr.training.loop.CHECKPOINT_SECONDS", 0.0)
    code, output = run(tmp_path, "--prompts", prompts, "--evidence", "prompt", "--learning-rate", "1e30")
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and not output.exists() and (tmp_path / "work" / "lora.checkpoint.safetensors").exists()
    assert last.startswith("hgr: the loss is ") and last.endswith(
        "Try a lower learning rate. This also needs another --work."
    )


def test_a_full_gpu_is_one_sentence_with_advice(careless, prompts, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "fit_lora", full)
    assert run(tmp_path, "--prompts", prompts, "--evidence", "prompt")[0] == 2
    assert (
        "the GPU's memory is full: try a smaller --batch-size, then a smaller --rank"
        in capsys.readouterr().err.splitlines()[-1]
    )


@pytest.mark.slow
def test_a_place_that_has_gone_meanwhile_costs_no_training(careless, prompts, tmp_path, monkeypatch, capsys):
    place = tmp_path / "place"

    def gone():
        place.rmdir()
        place.write_text("in the way")

    when(monkeypatch, "steps", 6, gone)
    code, _ = run(tmp_path, "--prompts", prompts, "--evidence", "prompt", "--output", place / "x.safetensors")
    err = capsys.readouterr().err
    assert code == 2 and "x.safetensors cannot be written" in err and "the LoRA is in" in err
    assert "safecfg" in contents(tmp_path / "work" / "x.safetensors")[1]


def test_a_lora_that_is_there_is_not_replaced(prompts, tmp_path, capsys):
    (tmp_path / "out.safetensors").write_text("mine")
    assert run(tmp_path, "--prompts", prompts)[0] == 2
    assert "already exists" in capsys.readouterr().err and (tmp_path / "out.safetensors").read_text() == "mine"


def test_without_peft_the_extra_that_brings_it_is_named(prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "hgr.hosts.diffusers.finetune", raising=False)
    monkeypatch.delattr(sys.modules["hgr.hosts.diffusers"], "finetune", raising=False)
    assert run(tmp_path, "--prompts", prompts)[0] == 2
    assert 'peft is not installed; this command needs it: pip install -e ".[train]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "say what to learn from: --prompts FILE"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--prompts", "blank.txt"], "blank.txt: contains no prompts"),
        (["--prompts", "clean.txt"], "finds none of the 2 prompts harmful"),
        (["--prompts", "p.txt", "--output", "x.bin"], "the name of the LoRA must end in .safetensors"),
        (["--prompts", "p.txt", "--model", "somewhere"], "give --hgr FILE"),
        (
            ["--prompts", "p.txt", "--model", "somewhere", "--hgr", "text.safetensors", "--evidence", "prompt"],
            "somewhere: no such folder",
        ),
        (["--prompts", "p.txt", "--hgr", "nowhere.safetensors"], "nowhere.safetensors: cannot be read"),
        (["--prompts", "p.txt", "--hgr", "cut.safetensors"], "cut.safetensors: damaged"),
        (
            ["--prompts", "p.txt", "--hgr", "foreign.safetensors", "--evidence", "prompt"],
            "foreign.safetensors was made for a test encoder",
        ),
        (["--prompts", "p.txt", "--hgr", "text.safetensors"], "text.safetensors has no picture probe"),
        (["--prompts", "p.txt", "--concepts", "{"], "concepts is not valid JSON"),
        (
            ["--prompts", "p.txt", "--concepts", '{"skull": 0, "dagger": 0, "splatter": 0, "bomb": 0, "nightmare": 0}'],
            "all are at 0",
        ),
        (["--prompts", "p.txt", "--concepts", '{"skull": 0}'], "finds none of the 2 prompts harmful"),
        (["--prompts", "p.txt", "--strength", "0"], "--strength is 0.0; it must be above 0"),
        (["--prompts", "p.txt", "--rank", "0"], "rank is 0; it must be 1 or more"),
        (["--prompts", "p.txt", "--learning-rate", "0"], "learning_rate is 0.0; it must be a number above 0"),
        (["--prompts", "p.txt", "--device", "abacus"], "--device abacus"),
        (["--prompts", "p.txt", "--latents", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--prompts", "p.txt", "--latents", "three.safetensors"], "there are 3 pictures and 2 prompts"),
        (["--prompts", "p.txt", "--latents", "rgb.safetensors"], "3 channels, but the model's have 4"),
        (["--prompts", "some.csv"], 'some.csv: "a skull" has no picture'),
        (["--prompts", "bare.csv"], 'bare.csv: "x.png" has no prompt'),
        (["--prompts", "both.csv", "--latents", "three.safetensors"], "give only one of them"),
        (["--prompts", "both.csv"], "x.png: damaged, or not a PNG, JPEG or WebP file"),
        (["--config", "wrong.json"], 'wrong.json: "stepz" is unknown'),
        (["--config", "object.json"], 'object.json: "steps" is {}, but must be'),
    ],
)
def test_bad_options_are_one_sentence_and_no_file(options, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {
        "p.txt": "a ball\na skull\n",
        "blank.txt": "\n \n",
        "clean.txt": "a ball\na red house\n",
        "x.png": "",
        "some.csv": "prompt,image\na ball,x.png\na skull,\n",
        "bare.csv": "prompt,image\na ball,x.png\n,x.png\n",
        "both.csv": "prompt,image\na ball,x.png\na skull,x.png\n",
        "wrong.json": '{"stepz": 3}',
        "object.json": '{"steps": {}}',
    }
    for name, text in files.items():
        Path(name).write_text(text)
    file.save(dataclasses.replace(file.load(assets.HGR_FILE), probe=None), "text.safetensors")
    file.save(small_hgr(), "foreign.safetensors")
    Path("cut.safetensors").write_bytes(assets.HGR_FILE.read_bytes()[:-100])
    save_file({"latents": torch.randn(3, 4, 8, 8)}, "three.safetensors")
    save_file({"latents": torch.randn(2, 3, 8, 8)}, "rgb.safetensors")
    assert command("finetune", "--output", "out.safetensors", "--work", "work", *QUICK, *options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hgr: ") and why in last
    assert not Path("out.safetensors").exists()


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        command("finetune", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for name, value in dataclasses.asdict(LoRASettings()).items():
        assert f"--{name.replace('_', '-')} " in text and f"default: {value}" in text
    assert "{prompt,picture,both}" in text
