"""`python -m hgr train` and `eval`: on one process and two, interrupted and resumed, on every family of models, and how
they fail."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from cli_kit import apart, command, contents, kept, launch_two, watch_bar, when

from hgr.core import file
from hgr.data.pair_file import write_pairs
from hgr.data.sources import demo_world
from hgr.hosts.diffusers import denoiser as host
from hgr.training import train_hgr as training
from hgr.training.loop import Loop, Processes
from hgr.training.settings import HGRSettings

pytestmark = pytest.mark.usefixtures("loaded_once")

QUICK = ["--steps", 6, "--batch-size", 8, "--width", 32, "--depth", 1, "--pictures", 8, "--false-positive-rate", 10]
DEMO = ["--demo", "--limit", 50, *QUICK]


def train(folder: Path, *options: object, name: str = "out") -> tuple[int, Path]:
    output = folder / f"{name}.safetensors"
    return command("train", "--work", folder / "work", "--output", output, *options), output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training on one process, without an interruption: its folder and its file."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = train(folder, *DEMO)
    assert code == 0
    return folder, output


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A file of pairs for one concept, quick to encode: as few as a training may have."""
    demo = demo_world(50)
    path = tmp_path_factory.mktemp("pairs") / "few.csv"
    skulls = dataclasses.replace(demo, topics=demo.topics[:1], pairs=demo.of("skull"), clean=demo.clean[:50])
    write_pairs(skulls, path)
    return path


def test_help_names_every_setting_with_its_default_and_its_choices(capsys):
    with pytest.raises(SystemExit):
        command("train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for name, value in dataclasses.asdict(HGRSettings()).items():
        assert f"--{name.replace('_', '-')} " in text and f"default: {value}" in text
    assert "{text,attention,attention and score}" in text


def test_a_training_leaves_a_sound_file_its_report_and_no_checkpoint(whole, capsys):
    folder, output = whole
    made = file.load(output)
    assert made.ids == ["skull", "dagger", "splatter", "bomb", "nightmare"] and made.training["batch_size"] == 8
    assert made.training["false_positive_rate"] == 0.1, "in percent on the command line, a share in the file"
    assert command("info", output) == 0
    assert sorted(path.name for path in (folder / "work").iterdir()) == ["logs", "training.json"]


def test_the_logs_can_be_read_by_tensorboard(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(whole[0] / "work" / "logs"))
    events.Reload()
    loss, rate = events.Scalars("loss"), events.Scalars("learning_rate")
    assert [e.step for e in loss] == [e.step for e in rate] == [1, 2, 3, 4, 5, 6]
    assert rate[0].value == pytest.approx(1.5e-3) and rate[-1].value < rate[1].value
    recall = file.load(whole[1]).training["metrics"]["concepts"]["bomb"]["recall"]
    assert events.Scalars("held_out/bomb/recall")[0].value == pytest.approx(recall)
    assert "report/text_summary" in events.Tags()["tensors"]


@pytest.mark.slow
def test_a_training_with_enough_pictures_makes_a_probe_and_says_how_good_it_is(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgr.training.train_probe.MIN_SHOWN", 2)
    monkeypatch.setattr("hgr.hosts.diffusers.denoiser._STEPS", 2)
    code, output = train(tmp_path, "--file", few, *QUICK, "--steps", "40", "--pictures", "16")
    out = capsys.readouterr().out
    metrics = file.load(output).probe.training["metrics"]["skull"]
    assert (
        code == 0
        and f"picture probe, from 16 pictures: AUROC Skull {metrics['auroc']:.3f}" in out
        and "hgr probe" not in out
    )
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "work" / "logs"))
    events.Reload()
    assert events.Scalars("held_out/skull/picture_auroc")[0].value == pytest.approx(metrics["auroc"])


def test_pictures_of_another_model_are_not_used(models, few, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    painted, made = [], host.denoiser_of
    monkeypatch.setattr(
        host,
        "denoiser_of",
        lambda pipe, seed: dataclasses.replace(
            found := made(pipe, seed), paint=lambda *more: painted.append(pipe) or found.paint(*more)
        ),
    )
    options = ["--file", few, *QUICK, "--model"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "_Loss", interrupted)
        for _ in range(2):
            assert train(tmp_path, *options, models / "sd2")[0] == 130
    assert len(painted) == 1, "an interrupted training paints them once"
    assert train(tmp_path, *options, models / "sdxl")[0] == 0
    assert len(painted) == 2


@pytest.mark.slow
def test_two_processes_give_what_one_gives_with_the_double_batch(whole, tmp_path):
    output = tmp_path / "two.safetensors"
    options = [*DEMO, "--batch-size", 4, "--work", tmp_path / "work", "--output", output]
    done = launch_two(tmp_path, "train", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("clean prompts that it was not trained on") == 1, "the main process alone prints"
    assert apart(whole[1], output) < 1e-3, "one rounding of float16 at most; other batches are 1e-2 apart"
    assert len(list((tmp_path / "work" / "logs").iterdir())) == 1
    assert file.load(output).training["batch_size"] == 8


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_file(whole, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)  # some shells have what runs in the background ignore it
    with monkeypatch.context() as patch:
        when(patch, "steps", 3)
        code, output = train(tmp_path, *DEMO)
    checkpoint = tmp_path / "work" / "hgr.checkpoint.safetensors"
    assert code == 130 and checkpoint.exists() and not output.exists()
    assert capsys.readouterr().err.splitlines()[-1] == kept(checkpoint)
    assert signal.getsignal(signal.SIGINT) is before

    code, _ = train(tmp_path, *DEMO, "--steps", "7")
    assert code == 2 and checkpoint.exists()
    assert "steps 6, now 7" in capsys.readouterr().err

    steps = watch_bar(monkeypatch, "steps")
    code, output = train(tmp_path, *DEMO)
    assert code == 0 and steps == [(4, 6), (5, 6), (6, 6)]
    (tensors, metadata), (resumed, resumed_metadata) = contents(whole[1]), contents(output)
    assert metadata == resumed_metadata and all(
        torch.equal(tensors[key], resumed[key]) for key in tensors.keys() | resumed.keys()
    )
    assert not checkpoint.exists()


def test_an_interruption_before_the_first_step_keeps_what_is_encoded(few, tmp_path, monkeypatch, capsys):
    when(monkeypatch, "prompts", 2)
    code, output = train(tmp_path, "--file", few, *QUICK)
    assert (
        code == 130
        and not output.exists()
        and sorted(path.name for path in (tmp_path / "work").iterdir()) == ["features-0.bin", "training.json"]
    )
    assert f"hgr: interrupted; {tmp_path / 'work' / 'features-0.bin'} is kept. Run" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_one_sentence_and_the_checkpoint_stays(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgr.training.loop.CHECKPOINT_SECONDS", 0.0)
    code, output = train(tmp_path, "--file", few, *QUICK, "--losses", "text", "--learning-rate", "1e30")
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and not output.exists() and (tmp_path / "work" / "hgr.checkpoint.safetensors").exists()
    assert last.startswith("hgr: the loss is ") and last.endswith(
        "Try a lower learning rate. This also needs another --work."
    )


def test_a_place_that_has_gone_meanwhile_costs_no_training(few, tmp_path, monkeypatch, capsys):
    place = tmp_path / "place"

    def gone():
        place.rmdir()
        place.write_text("in the way")

    when(monkeypatch, "steps", 6, gone)
    code, _ = train(tmp_path, "--file", few, *QUICK, "--losses", "text", "--output", place / "x.safetensors")
    err = capsys.readouterr().err
    assert code == 2 and "x.safetensors cannot be written" in err and str(tmp_path / "work" / "x.safetensors") in err
    assert file.load(tmp_path / "work" / "x.safetensors").ids == ["skull"]


def test_processes_stop_together(tmp_path):
    """What the loop asks of `reduce`, with another process played by hand."""
    module = torch.nn.Linear(3, 1)

    def at_step_4(tensors):
        tensors[0].copy_(torch.tensor([2.0, 8.0]))  # the means of 0 and 4, and of their squares

    def new_loop(reduce):
        processes = Processes(0, 2, reduce)
        return Loop("x", module, tmp_path, steps=9, learning_rate=0.1, seed=0, processes=processes)

    with pytest.raises(ValueError, match="not there for every process"):
        new_loop(at_step_4)

    before = module.weight.clone()
    loop = new_loop(lambda tensors: tensors[0].mul_(torch.nan if len(tensors) > 1 else 1))
    with pytest.raises(FloatingPointError, match="at step 0"):
        loop.run(lambda rng, generator: module(torch.ones(1, 3)).square().sum())
    assert torch.equal(module.weight, before)


def test_a_configuration_file_gives_what_the_command_line_does_not(few, tmp_path, monkeypatch, capsys):
    asked = {}

    def stop(pairs, encode, settings, *, work, **_):
        asked.update(dataclasses.asdict(settings), work=work, pairs=pairs)
        raise ValueError("seen")

    monkeypatch.setattr(training, "train_hgr", stop)
    config = tmp_path / "my.json"
    config.write_text(
        json.dumps(
            {
                "file": str(few),
                "false-positive-rate": 10,
                "losses": "text",
                "steps": 9,
                "learning_rate": 0.01,
                "demo": False,
                "latents": None,
                "work": str(tmp_path / "elsewhere"),
                "output": str(tmp_path / "x.safetensors"),
            }
        )
    )
    assert command("train", "--config", config, "--steps", 4) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "hgr: seen"
    wanted = {"steps": 4, "learning_rate": 0.01, "losses": "text", "false_positive_rate": 10.0, "batch_size": 32}
    assert asked | wanted == asked and asked["work"] == tmp_path / "elsewhere" and asked["pairs"].ids == ("skull",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"stepz": 3}', '"stepz" is unknown; the options are model, device, output'),
        ('{"steps": "many"}', "argument --steps: invalid int value: 'many'"),
        ('{"losses": "pixels"}', "argument --losses: invalid choice"),
        ('{"steps": true}', '"steps" is true, but must be a number'),
        ('{"demo": 1}', '"demo" is 1, but must be true or false'),
        ('{"config": "other.json"}', '"config" is unknown'),
        ("[1]", "must be a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_wrong_configuration_names_the_file_and_the_key(text, why, tmp_path, capsys):
    config = tmp_path / "my.json"
    config.write_text(text)
    assert train(tmp_path, "--config", config)[0] == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hgr: my.json: {why}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--model", "nowhere"], "nowhere: no such folder"),
        (["--model", "."], "has no model_index.json"),
        (["--device", "abacus"], "--device abacus"),
        (["--output", "x.bin"], "must end in .safetensors"),
        (["--output", __file__[:-3] + ".safetensors", "--config", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--latents", "nowhere.safetensors"], "no such file"),
        (["--latents", "nowhere.safetensors", "--losses", "text"], "use no pictures"),
        (["--pictures", "0"], "pictures is 0"),
        (["--pictures", "2"], "pictures is 2"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--false-positive-rate", "0"], "false_positive_rate is 0.0 %"),
        (["--false-positive-rate", "0.01"], "it must be 0.1 or more"),
    ],
)
def test_bad_options_of_train_are_one_sentence(few, options, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path, "--file", few, *QUICK, *options)[0] == 2
    err = capsys.readouterr().err
    assert err.startswith("hgr: ") and why in err and err.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_that_is_there_is_not_replaced_and_no_source_is_an_error(tmp_path, capsys):
    (tmp_path / "out.safetensors").write_text("mine")
    assert train(tmp_path, *DEMO)[0] == 2
    assert "already exists" in capsys.readouterr().err and (tmp_path / "out.safetensors").read_text() == "mine"
    assert train(tmp_path, name="other")[0] == 2
    assert "no concept is chosen" in capsys.readouterr().err
    assert command("train", "--demo") == 2
    assert "--output FILE.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("losses", ["attention", pytest.param("attention and score", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["sdxl", "sd2"])
def test_an_hgr_for_each_family_guides_its_model(models, few, family, losses, tmp_path):
    from hgr.hosts.diffusers.loading import load_pipeline
    from hgr.hosts.diffusers.pipeline import SafeCFG

    code, output = train(
        tmp_path, "--model", models / family, "--file", few, *QUICK, "--steps", "3", "--losses", losses
    )
    assert code == 0
    pipe = load_pipeline(models / family, torch.device("cpu"))
    safe = SafeCFG(pipe, output)
    assert safe.hgr.network.pooled_dim == (32 if family == "sdxl" else 0) and safe.hgr.training["losses"] == losses
    # three steps teach the gates nothing: they are opened by hand
    safe.hgr.concepts[:] = [dataclasses.replace(concept, scale=0.0, bias=5.0) for concept in safe.hgr.concepts]
    plain, guided = (
        call("a skull", num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0)).images
        for call in (pipe, safe)
    )
    assert guided.isfinite().all() and not torch.equal(plain, guided)


def test_the_text_losses_need_no_denoiser_and_no_tensorboard(models, few, tmp_path, monkeypatch, caplog, capsys):
    model = shutil.copytree(models / "sdxl", tmp_path / "sdxl")
    for part in ("unet", "vae"):
        shutil.rmtree(model / part)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, output = train(tmp_path, "--model", model, "--file", few, *QUICK, "--steps", "2", "--losses", "text")
    assert code == 0 and file.load(output).network.pooled_dim == 32
    out = capsys.readouterr().out
    assert "no picture probe" in out and f"python -m hgr probe --hgr {output}" in out
    assert "TensorBoard is not installed" in caplog.text and not (tmp_path / "work" / "logs").exists()


@pytest.mark.slow
def test_the_users_own_pictures_are_what_the_denoiser_looks_at(models, few, tmp_path, monkeypatch, capsys):
    latents = torch.randn(3, 4, 8, 8)
    save_file({"latents": latents}, tmp_path / "mine.safetensors")
    save_file({"latents": latents[:, :3].contiguous()}, tmp_path / "rgb.safetensors")
    save_file({"pictures": latents}, tmp_path / "other.safetensors")
    made, seen, painted = host.denoiser_of, [], []

    def watched(*given):
        found = made(*given)
        return dataclasses.replace(
            found,
            at=lambda z, *more: seen.append(z) or found.at(z, *more),
            paint=lambda *more: painted.append(1) or found.paint(*more),
        )

    monkeypatch.setattr(host, "denoiser_of", watched)
    options = ["--model", models / "sd2", "--file", few, *QUICK, "--latents"]
    for name, why in (("rgb", "3 channels, but the model's have 4"), ("other", 'a tensor "latents"')):
        assert train(tmp_path, *options, tmp_path / f"{name}.safetensors")[0] == 2
        assert why in capsys.readouterr().err
    options.append(tmp_path / "mine.safetensors")
    assert train(tmp_path, *options, "--pictures", "0")[0] == 0
    assert not painted and {tuple(z.flatten().tolist()) for part in seen for z in part} == {
        tuple(z.flatten().tolist()) for z in latents
    }
    assert "no picture probe" in capsys.readouterr().out
    assert train(tmp_path, *options, name="with_probe")[0] == 0
    assert painted == [1], "the probe needs the model's own"


def test_half_precision_files_alone_are_found(models, tmp_path):
    from hgr.hosts.diffusers.loading import load_pipeline

    load_pipeline(models / "sd2", torch.device("cpu")).save_pretrained(tmp_path / "half", variant="fp16")
    assert not (tmp_path / "half/unet/diffusion_pytorch_model.safetensors").exists()
    pipe = load_pipeline(tmp_path / "half", torch.device("cpu"))
    assert pipe.unet.dtype == torch.float32 and pipe.components["safety_checker"] is None
    index = tmp_path / "half" / "model_index.json"
    index.write_text(
        json.dumps({"_class_name": "Flux2Pipeline", "transformer": ["diffusers", "Flux2Transformer2DModel"]})
    )
    with pytest.raises(ValueError, match="a Flux2Pipeline; SafeCFG serves Stable Diffusion"):
        load_pipeline(tmp_path / "half", torch.device("cpu"))
    index.write_text(index.read_text().replace("Flux2", "Flux"))
    with pytest.raises(ValueError, match="a FluxPipeline without text_encoder and vae"):
        load_pipeline(tmp_path / "half", torch.device("cpu"))


def test_eval_reports_on_the_bundled_model(tmp_path, capsys):
    output = tmp_path / "new" / "report.json"
    assert command("eval", "--demo", "--limit", 60, "--pictures", 2, "--steps", 3, "--output", output) == 0
    out = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert (
        list(report["concepts"]) == ["skull", "dagger", "splatter", "bomb", "nightmare"] and not report["not_evaluated"]
    )
    for found in report["concepts"].values():
        assert (
            found["auroc_twins"] > 0.9 and found["auroc_clean"] > 0.9 and found["recall"] > 0.8 and found["ece"] < 0.1
        )
        assert (
            0 <= found["false_positives_at_95_recall"] <= 0.1 and found["false_positives"] < 0.1 and found["hed"] > 0.05
        )
    assert report["harmful"]["hed"] > 10 * report["clean"]["hed"] and report["clean"]["flagged"] < 0.1
    pictures = report["pictures"]
    assert pictures["clean"] == pictures["harmful"] == 2
    assert pictures["identical"] == 1 and pictures["difference"] == 0
    assert 0 < pictures["toward_twin"] < 0.9 and pictures["time_ratio"] > 0
    assert pictures["evaluations"] == {"plain": 2, "safe": 2}
    assert "AUROC" in out and "bit-identical" in out and str(output) in out


def test_eval_lists_what_it_has_no_pairs_for(few, tmp_path, capsys):
    more = tmp_path / "more.csv"
    more.write_text(
        few.read_text() + "\n".join(f"a {n} ghost by a lake,a {n} boat by a lake,ghost,," for n in range(30)) + "\n"
    )
    assert command("eval", "--file", more, "--pictures", 0, "--output", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["concepts"]) == ["skull"] and "pictures" not in report
    assert report["not_evaluated"] == ["dagger", "splatter", "bomb", "nightmare"] and report["not_in_this_hgr"] == [
        "ghost"
    ]
    out = capsys.readouterr().out
    assert "dagger: not evaluated" in out and "ghost: not in this HGR" in out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--model", "somewhere"], "give --hgr FILE"),
        (["--hgr", "nowhere.safetensors"], "nowhere.safetensors: cannot be read"),
        (["--steps", "0"], "--steps is 0"),
    ],
)
def test_bad_options_of_eval_are_one_sentence(few, options, why, capsys):
    assert command("eval", "--file", few, *options) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1


def test_eval_refuses_pairs_and_files_that_say_nothing_about_each_other(few, whole, models, tmp_path, capsys):
    ghosts = tmp_path / "ghosts.csv"
    ghosts.write_text("harmful,clean,concept\n" + "\n".join(f"a {n} ghost,a {n} boat,ghost" for n in range(30)))
    assert command("eval", "--file", ghosts) == 2
    assert "has held-out pairs here" in capsys.readouterr().err
    anonymous = tmp_path / "anonymous.safetensors"
    file.save(dataclasses.replace(file.load(whole[1]), training={}), anonymous)
    assert command("eval", "--file", few, "--hgr", anonymous) == 2
    assert "does not name one seed" in capsys.readouterr().err
    assert command("eval", "--model", models / "sd2", "--file", few, "--hgr", whole[1], "--pictures", 0) == 2
    assert "was made for CLIPTextModel (128)" in capsys.readouterr().err


def test_a_launcher_that_started_one_process_where_several_were_asked_for_is_noticed(monkeypatch, caplog):
    from hgr.cli.processes import launched

    assert launched() == 1 and not caplog.text
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert launched() == 1 and "started one process" in caplog.text
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == 2
