"""`python -m hgr train` and `eval`: on one process and two, interrupted and resumed, on every family of models, and how
they fail."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import hgr
from hgr import cli
from hgr.cli.bars import Bars
from hgr.core import file
from hgr.data import sources as pairs
from hgr.training import train_hgr as training
from hgr.training.loop import Loop

QUICK = [
    "--steps",
    "6",
    "--batch",
    "8",
    "--width",
    "32",
    "--depth",
    "1",
    "--pictures",
    "8",
    "--false-positive-rate",
    "0.1",
]
DEMO = ["--demo", "--limit", "50", *QUICK]


def train(folder: Path, *options: object, name: str = "out") -> tuple[int, Path]:
    output = folder / f"{name}.safetensors"
    return cli.main(["train", "--work", str(folder / "work"), "--output", str(output), *map(str, options)]), output


def when(monkeypatch, name: str, done: int, act) -> None:
    """Call `act` when the bar of this name reaches `done`."""
    show = Bars.show

    def shown(self, *args):
        show(self, *args)
        if args[:2] == (name, done):
            act()

    monkeypatch.setattr(Bars, "show", shown)


def contents(path: Path) -> tuple[dict, dict]:
    """Tensors and metadata; safetensors writes the latter in any order."""
    with safe_open(path, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118 (not a dict)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


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
    demo = pairs.demo_world(50)
    path = tmp_path_factory.mktemp("pairs") / "few.csv"
    pairs.write(dataclasses.replace(demo, topics=demo.topics[:1], pairs=demo.of("skull"), clean=demo.clean[:50]), path)
    return path


def test_the_defaults_shown_are_the_trainers_own():
    assert cli.train.SETTINGS == dataclasses.asdict(training.Settings())
    assert cli.train.LOSSES == tuple(training.LOSSES)


def test_a_training_leaves_a_sound_file_its_report_and_no_checkpoint(whole, capsys):
    folder, output = whole
    made = file.load(output)
    assert made.ids == ["skull", "dagger", "splatter", "bomb"] and made.training["batch"] == 8
    assert cli.main(["info", str(output)]) == 0
    assert sorted(path.name for path in (folder / "work").iterdir()) == ["logs", "training.json"]


def test_the_logs_can_be_read_by_tensorboard(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(whole[0] / "work" / "logs"))
    events.Reload()
    loss, rate = events.Scalars("loss"), events.Scalars("lr")
    assert [e.step for e in loss] == [e.step for e in rate] == [1, 2, 3, 4, 5, 6]
    assert rate[0].value == pytest.approx(1.5e-3) and rate[-1].value < rate[1].value
    recall = file.load(whole[1]).training["metrics"]["concepts"]["bomb"]["recall"]
    assert events.Scalars("held_out/bomb/recall")[0].value == pytest.approx(recall)
    assert "report/text_summary" in events.Tags()["tensors"]


def test_a_training_with_enough_pictures_makes_a_probe_and_says_how_good_it_is(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgr.probe.MIN_PICTURES", 2)
    monkeypatch.setattr("hgr.hosts.diffusers.training._STEPS", 2)
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
    from hgr.hosts.diffusers import denoiser as host

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    painted, made = [], host.denoiser
    monkeypatch.setattr(
        host,
        "denoiser",
        lambda pipe, seed: dataclasses.replace(
            found := made(pipe, seed), paint=lambda *more: painted.append(pipe) or found.paint(*more)
        ),
    )
    options = ["--file", few, *QUICK, "--model"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "_layers", interrupted)
        for _ in range(2):
            assert train(tmp_path, *options, models / "sd2")[0] == 130
    assert len(painted) == 1, "an interrupted training paints them once"
    assert train(tmp_path, *options, models / "sdxl")[0] == 0
    assert len(painted) == 2


def test_two_processes_give_what_one_gives_with_the_double_batch(whole, tmp_path):
    output = tmp_path / "two.safetensors"
    # with --cpu, accelerate starts several processes by MPI only
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command = [
        sys.executable,
        "-m",
        *launcher,
        "-m",
        "hgr",
        "train",
        *DEMO,
        "--batch",
        "4",
        "--device",
        "cpu",
        "--work",
        tmp_path / "work",
        "--output",
        output,
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(hgr.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("clean prompts in which a concept fires") == 1, "the main process alone prints"
    one, two = load_file(whole[1]), load_file(output)
    apart = {key: (one[key].float() - two[key].float()).abs().max().item() for key in one}
    # one rounding of float16 at most; other batches are 1e-2 apart
    assert one.keys() == two.keys() and max(apart.values()) < 1e-3, apart
    assert len(list((tmp_path / "work" / "logs").iterdir())) == 1
    assert file.load(output).training["batch"] == 8


def test_an_interrupted_training_goes_on_to_the_same_file(whole, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)  # some shells have what runs in the background ignore it
    with monkeypatch.context() as patch:
        when(patch, "steps", 3, interrupt)
        code, output = train(tmp_path, *DEMO)
    checkpoint = tmp_path / "work" / "hgr.checkpoint.safetensors"
    assert code == 130 and checkpoint.exists() and not output.exists()
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"hgr: interrupted; {checkpoint} is kept, the same command goes on from there."
    )
    assert signal.getsignal(signal.SIGINT) is before

    code, _ = train(tmp_path, *DEMO, "--steps", "7")
    assert code == 2 and checkpoint.exists()
    assert "steps 6, now 7" in capsys.readouterr().err

    steps = []
    monkeypatch.setattr(Bars, "show", lambda self, name, done, *_: steps.append((name, done)))
    code, output = train(tmp_path, *DEMO)
    assert code == 0 and [done for name, done in steps if name == "steps"] == [4, 5, 6]
    (tensors, metadata), (resumed, resumed_metadata) = contents(whole[1]), contents(output)
    assert metadata == resumed_metadata and all(
        torch.equal(tensors[key], resumed[key]) for key in tensors.keys() | resumed.keys()
    )
    assert not checkpoint.exists()


def test_an_interruption_before_the_first_step_leaves_nothing(few, tmp_path, monkeypatch, capsys):
    when(monkeypatch, "prompts", 2, interrupt)
    code, output = train(tmp_path, "--file", few, *QUICK)
    assert (
        code == 130
        and not output.exists()
        and [path.name for path in (tmp_path / "work").iterdir()] == ["training.json"]
    )
    assert "before the first step" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_one_sentence_and_the_checkpoint_stays(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgr.loop.CHECKPOINT_SECONDS", 0.0)
    code, output = train(tmp_path, "--file", few, *QUICK, "--losses", "text", "--lr", "1e30")
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and not output.exists() and (tmp_path / "work" / "hgr.checkpoint.safetensors").exists()
    assert last.startswith("hgr: the loss is ") and last.endswith(
        "Try a lower learning rate. That needs another --work, too."
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

    with pytest.raises(ValueError, match="not there for every process"):
        Loop("x", module, 9, 0.1, tmp_path, 0, reduce=at_step_4)

    before = module.weight.clone()
    loop = Loop(
        "x", module, 9, 0.1, tmp_path, 0, reduce=lambda tensors: tensors[0].mul_(torch.nan if len(tensors) > 1 else 1)
    )
    with pytest.raises(FloatingPointError, match="at step 0"):
        loop.run(lambda rng, generator: module(torch.ones(1, 3)).square().sum())
    assert torch.equal(module.weight, before)


def test_a_configuration_file_gives_what_the_command_line_does_not(few, tmp_path, monkeypatch, capsys):
    asked = {}

    def stop(pairs, encode, family, settings, work, *_):
        asked.update(dataclasses.asdict(settings), work=work, family=family)
        raise ValueError("seen")

    monkeypatch.setattr(training, "train", stop)
    config = tmp_path / "my.json"
    config.write_text(
        json.dumps(
            {
                "file": str(few),
                "false-positive-rate": 0.1,
                "losses": "text",
                "steps": 9,
                "lr": 0.01,
                "demo": False,
                "latents": None,
                "work": str(tmp_path / "elsewhere"),
                "output": str(tmp_path / "x.safetensors"),
            }
        )
    )
    assert cli.main(["train", "--config", str(config), "--steps", "4"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "hgr: seen"
    assert asked | {"steps": 4, "lr": 0.01, "losses": "text", "false_positive_rate": 0.1, "batch": 32} == asked
    assert asked["work"] == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"stepz": 3}', '"stepz" is unknown; there are model, output'),
        ('{"steps": "many"}', "argument --steps: invalid int value: 'many'"),
        ('{"losses": "pixels"}', "argument --losses: invalid choice"),
        ('{"steps": true}', '"steps" is true, but must be a number'),
        ('{"demo": 1}', '"demo" is 1, but must be true or false'),
        ('{"config": "other.json"}', '"config" is unknown'),
        ("[1]", "must be a JSON object"),
        ("{", "not sound JSON"),
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
        (["--model", "."], "holds no model_index.json"),
        (["--device", "abacus"], "--device abacus"),
        (["--output", "x.bin"], "ends in .safetensors"),
        (["--output", __file__[:-3] + ".safetensors", "--config", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--latents", "nowhere.safetensors"], "no such file"),
        (["--latents", "nowhere.safetensors", "--losses", "text"], "look at no pictures"),
        (["--pictures", "0"], "pictures is 0"),
        (["--pictures", "2"], "pictures is 2"),
        (["--batch", "0"], "batch is 0"),
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
    assert "is there already" in capsys.readouterr().err and (tmp_path / "out.safetensors").read_text() == "mine"
    assert train(tmp_path, name="other")[0] == 2
    assert "no concept is chosen" in capsys.readouterr().err
    assert cli.main(["train", "--demo"]) == 2
    assert "--output FILE.safetensors" in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders in diffusers' layout by family."""
    import tiny

    from hgr.hosts.diffusers.demo import load_demo_pipeline

    demo = load_demo_pipeline()
    folder = tmp_path_factory.mktemp("models")
    for name in ("sdxl", "sd2"):
        getattr(tiny, name)(demo).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("losses", ["attention", "attention and score"])
@pytest.mark.parametrize("family", ["sdxl", "sd2"])
def test_an_hgr_for_each_family_guides_its_model(models, few, family, losses, tmp_path):
    from hgr.hosts.diffusers.loading import load_pipeline
    from hgr.hosts.diffusers.pipeline import SafeCFG

    code, output = train(
        tmp_path, "--model", models / family, "--file", few, *QUICK, "--steps", "3", "--losses", losses
    )
    assert code == 0
    safe = SafeCFG(load_pipeline(models / family, torch.device("cpu")), output)
    assert safe.hgr.network.pooled_dim == (32 if family == "sdxl" else 0) and safe.hgr.training["losses"] == losses
    # three steps teach the gates nothing: they are opened by hand
    safe.hgr.concepts[:] = [dataclasses.replace(concept, scale=0.0, bias=5.0) for concept in safe.hgr.concepts]
    plain, guided = (
        safe(
            "a skull",
            strength=strength,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
        for strength in (0.0, 1.0)
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


def test_the_users_own_pictures_are_what_the_denoiser_looks_at(models, few, tmp_path, monkeypatch, capsys):
    from hgr.hosts.diffusers import denoiser as host

    latents = torch.randn(3, 4, 8, 8)
    save_file({"latents": latents}, tmp_path / "mine.safetensors")
    save_file({"latents": latents[:, :3].contiguous()}, tmp_path / "rgb.safetensors")
    save_file({"pictures": latents}, tmp_path / "other.safetensors")
    made, seen, painted = host.denoiser, [], []

    def watched(*given):
        found = made(*given)
        return dataclasses.replace(
            found,
            at=lambda z, *more: seen.append(z) or found.at(z, *more),
            paint=lambda *more: painted.append(1) or found.paint(*more),
        )

    monkeypatch.setattr(host, "denoiser", watched)
    for name, why in (("rgb", "3 channels, the model's 4"), ("other", 'a tensor "latents"')):
        assert (
            train(
                tmp_path,
                "--model",
                models / "sd2",
                "--file",
                few,
                *QUICK,
                "--latents",
                tmp_path / f"{name}.safetensors",
            )[0]
            == 2
        )
        assert why in capsys.readouterr().err
    options = ["--model", models / "sd2", "--file", few, *QUICK, "--latents", tmp_path / "mine.safetensors"]
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
        json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]})
    )
    with pytest.raises(ValueError, match="FluxPipeline; only Stable Diffusion"):
        load_pipeline(tmp_path / "half", torch.device("cpu"))


def test_eval_reports_on_the_bundled_model(tmp_path, capsys):
    output = tmp_path / "new" / "report.json"
    assert (
        cli.main(["eval", "--demo", "--limit", "60", "--pictures", "2", "--steps", "3", "--output", str(output)]) == 0
    )
    out = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert list(report["concepts"]) == ["skull", "dagger", "splatter", "bomb"] and not report["not_evaluated"]
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
    assert cli.main(["eval", "--file", str(more), "--pictures", "0", "--output", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["concepts"]) == ["skull"] and "pictures" not in report
    assert report["not_evaluated"] == ["dagger", "splatter", "bomb"] and report["not_in_this_hgr"] == ["ghost"]
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
    assert cli.main(["eval", "--file", str(few), *options]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1


def test_eval_refuses_pairs_and_files_that_say_nothing_about_each_other(few, whole, models, tmp_path, capsys):
    ghosts = tmp_path / "ghosts.csv"
    ghosts.write_text("harmful,clean,concept\n" + "\n".join(f"a {n} ghost,a {n} boat,ghost" for n in range(30)))
    assert cli.main(["eval", "--file", str(ghosts)]) == 2
    assert "has held-out pairs here" in capsys.readouterr().err
    anonymous = tmp_path / "anonymous.safetensors"
    file.save(dataclasses.replace(file.load(whole[1]), training={}), anonymous)
    assert cli.main(["eval", "--file", str(few), "--hgr", str(anonymous)]) == 2
    assert "does not say by which one seed" in capsys.readouterr().err
    assert (
        cli.main(
            ["eval", "--model", str(models / "sd2"), "--file", str(few), "--hgr", str(whole[1]), "--pictures", "0"]
        )
        == 2
    )
    assert "was made for CLIPTextModel (128)" in capsys.readouterr().err


def test_a_launcher_that_started_one_process_where_several_were_asked_for_is_noticed(monkeypatch, caplog):
    from hgr.cli.processes import launched

    assert launched() == 1 and not caplog.text
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert launched() == 1 and "started one process" in caplog.text
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == 2
