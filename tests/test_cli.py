"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

import hgr
from hgr import cli
from hgr.core import file
from hgr.core.hgr import HGR, Concept, Encoder
from hgr.core.network import HGRNetwork
from hgr.core.options import DEFAULT_MODE, DEFAULT_SENSITIVITY, MODES, SENSITIVITIES
from hgr.demo import assets

COMMANDS = ("demo", "info", "sample", "detect", "report", "pairs", "train", "probe", "finetune", "eval", "policy")
HEAVY = {"torch", "numpy", "PIL", "safetensors", "diffusers", "transformers", "tqdm", "accelerate"}


@pytest.fixture
def hgr_file(tmp_path):
    concepts = [Concept("skull", "Skulls", "heads without skin", 0.25, 2.0, -1.5), Concept("bomb", "Bombs")]
    encoder = Encoder("a test encoder", 77, True, torch.ones(2, 16))
    path = tmp_path / "mine.safetensors"
    file.save(
        HGR(HGRNetwork(16, 0, 2, width=32, depth=1), concepts, encoder, {"steps": 12, "losses": {"gate": 0.25}}), path
    )
    return path


def python(*lines: str) -> str:
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy():
    out = python(
        "import sys",
        "from hgr import cli",
        "try: cli.main(['--help'])",
        "except SystemExit: pass",
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors', 'diffusers', 'transformers'} & set(sys.modules)",
        "assert not heavy, heavy",
    )
    assert all(f"    {command} " in out for command in COMMANDS) and "demo-train" not in out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["finetune", "--help"]])
def test_the_module_itself_starts_without_torch(arguments):
    """`python -X importtime` names on stderr every module that is imported."""
    run = [sys.executable, "-X", "importtime", "-m", "hgr", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "hgr" in loaded and not loaded & HEAVY
    assert done.stdout.startswith("usage: python -m hgr") or done.stdout == f"{hgr.__version__}\n"


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"info", "pairs", "policy"}))
def test_every_command_that_runs_a_model_can_be_told_where(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert "--device" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"info", "pairs", "policy"}))
def test_a_device_that_is_not_there_is_one_sentence(name, hgr_file, tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a ball\na skull\n")
    options = {
        "sample": ["--prompt", "a ball"],
        "detect": ["--prompts", "p.txt", "--output", "x.csv"],
        "train": ["--demo", "--limit", "60", "--false-positive-rate", "10", "--output", "x.safetensors"],
        "probe": ["--demo", "--limit", "60", "--hgr", str(assets.HGR_FILE), "--output", "x.safetensors"],
        "finetune": ["--prompts", "p.txt", "--output", "x.safetensors"],
        "eval": ["--demo", "--limit", "60"],
        "report": ["--output", "."],
        "demo": [],
    }[name]
    assert cli.main([name, *options, "--device", "abacus"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hgr: --device abacus: ") and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors", "p.txt"]


@pytest.mark.parametrize(
    ("name", "options", "defaults"),
    [
        ("sample", {"--mode": MODES}, [DEFAULT_MODE]),
        ("eval", {"--mode": MODES}, [DEFAULT_MODE]),
        ("report", {"--mode": MODES, "--sensitivity": tuple(SENSITIVITIES)}, [DEFAULT_MODE, DEFAULT_SENSITIVITY]),
        ("detect", {"--sensitivity": tuple(SENSITIVITIES)}, [DEFAULT_SENSITIVITY]),
    ],
)
def test_choices_are_the_methods_own(name, options, defaults, capsys):
    commands = cli._parser()._subparsers._group_actions[0].choices
    known = {option: action for action in commands[name]._actions for option in action.option_strings}
    assert {option: known[option].choices for option in options} == options
    assert [known[option].default for option in options] == defaults


def test_info_shows_concepts_encoder_and_training(hgr_file, capsys):
    assert cli.main(["info", str(hgr_file)]) == 0
    out = capsys.readouterr().out
    for text in (
        "mine.safetensors",
        "a test encoder",
        "features 16",
        "Skulls",
        "heads without skin",
        "0.250",
        "-1.50",
        "training.losses.gate",
        "12",
        "probe     none",
    ):
        assert text in out


def test_info_says_in_two_lines_how_good_the_probe_is(capsys):
    assert cli.main(["info", str(assets.HGR_FILE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("probe"))
    made = file.load(assets.HGR_FILE).probe.training
    assert f"trained on {made['pictures']} pictures" in lines[at]
    assert f"skull {made['metrics']['skull']['auroc']:.3f}, dagger" in lines[at + 1] and not lines[at + 2]


def test_info_does_not_let_a_file_steer_the_terminal(tmp_path, capsys):
    steering = "\x1b]0;owned\x07\r\nsecond line\u202e"
    made = file.load(assets.HGR_FILE)
    concepts = [dataclasses.replace(concept, label=steering, description=steering * 20) for concept in made.concepts]
    probe = dataclasses.replace(made.probe, training={"pictures": 7, "metrics": {steering: {}}})
    encoder = dataclasses.replace(made.encoder, family=steering)
    changed = dataclasses.replace(made, concepts=concepts, probe=probe, encoder=encoder, training={steering: steering})
    file.save(changed, tmp_path / "x.safetensors")
    assert cli.main(["info", str(tmp_path / "x.safetensors")]) == 0
    out = capsys.readouterr().out
    assert (
        out.replace("\n", "").isprintable() and "second line" in out and "AUROC on held-out pictures: not known" in out
    )
    assert not any(line.startswith("second line") for line in out.splitlines())


def test_info_on_a_damaged_file_is_one_sentence_and_code_2(hgr_file, capsys):
    hgr_file.write_bytes(hgr_file.read_bytes()[:-100])
    for path in (hgr_file, hgr_file.with_name("missing.safetensors")):
        assert cli.main(["info", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"hgr: {path.name}: ") and err.count("\n") == 1


def test_a_missing_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "hgr.hosts.diffusers", raising=False)
    assert cli.main(["sample", "--prompt", "a red ball"]) == 2
    assert 'pip install -e ".[diffusers]"' in capsys.readouterr().err


@pytest.fixture
def sampler():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")


def test_sample_writes_a_picture(sampler, tmp_path, capsys):
    from PIL import Image

    pictures = []
    safe = ["--mode", "dynamic", "--sensitivity", "high"]
    for name, more in (("plain", ["--plain"]), ("off", ["--strength", "0"]), ("safe", safe)):
        path = tmp_path / "new" / f"{name}.png"
        assert cli.main(["sample", "--prompt", "a red ball", "--steps", "2", "--output", str(path), *more]) == 0
        assert str(path) in capsys.readouterr().out
        pictures.append(Image.open(path))
    assert pictures[0].size == (128, 128)
    assert list(pictures[0].tobytes()) == list(pictures[1].tobytes())


def test_sample_takes_a_download_of_the_half_precision_files_alone(sampler, models, tmp_path, monkeypatch, capsys):
    """Loading such a folder without saying so fails; every command goes through one loader, which sees it."""
    from hgr.hosts.diffusers.loading import load_pipeline

    pipe, model = load_pipeline(models / "sd2", torch.device("cpu")), tmp_path / "half"
    pipe.save_pretrained(model, variant="fp16")
    assert {path.suffixes[-2] for path in model.rglob("*.safetensors")} == {".fp16"}
    monkeypatch.chdir(tmp_path)
    options = ["--prompt", "a red ball", "--model", str(model), "--steps", "1"]
    assert cli.main(["sample", *options, "--plain", "--output", "plain.png"]) == 0
    assert cli.main(["sample", *options, "--hgr", str(models / "sd2.safetensors"), "--output", "safe.png"]) == 0
    out = capsys.readouterr().out
    assert "on " in out and "present" in out
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "safe.png").read_bytes()


@pytest.mark.parametrize("wrong", [["--concepts", "{"], ["--strength", "-1"], ["--model", "somewhere"]])
def test_bad_options_of_sample_are_one_sentence(sampler, wrong, capsys, tmp_path):
    assert cli.main(["sample", "--prompt", "a red ball", "--output", str(tmp_path / "x.png"), *wrong]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("hgr: ")


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([LONG], "invalid choice"),
        (["pairs", LONG], "unrecognized arguments"),
        (["pairs", "--limit", "9" * 5000], "invalid int value"),
        (["pairs", "--concepts", "hate", "--limit", 100_001], "at most 100000"),
        (["pairs", "--concepts", "hate\nand\x1b[31m", LONG], "is not a built-in concept"),
        (["pairs", "--style", LONG], "cannot be the name of a style"),
        (["pairs", "--own", f"mine: {LONG}"], 'cannot be a word for "mine"'),
        (["pairs", "--own", "caf\udce9"], "cannot be the name of a concept"),
        (["pairs", "--file", f"{LONG}.csv"], "cannot be read (File name too long)"),
        (["pairs", "--concepts", "hate", "--limit", 5, "--output", f"{LONG}.csv"], "File name too long"),
        (["info", LONG], "cannot be read"),
        (["sample", "--prompt", "a", "--mode", LONG], "invalid choice"),
        (["sample", "--prompt", "caf\udce9"], "this is not UTF-8 text"),
        (["sample", "--prompt", "a", "--negative", "caf\udce9"], "--negative"),
        (["sample", "--prompt", "a", "--cfg", "nan"], "--cfg is nan; it must be a number of 0 or more"),
        (["sample", "--prompt", "a", "--cfg", "inf"], "--cfg is inf"),
        (["sample", "--prompt", "a", "--strength", "nan"], "--strength is nan"),
        (["sample", "--prompt", "a", "--steps", 0], "--steps is 0; it must be a number from 1 to 1000"),
        (["sample", "--prompt", "a", "--seed", 2**70], "--seed is 1180591620717411303424"),
        (["sample", "--prompt", "a", "--output", "x.tiff"], "must end in .png, .jpg, .jpeg, .webp"),
        (["sample", "--prompt", "a", "--output", "folder.png"], "this is a folder"),
        (["sample", "--prompt", "a", "--output", f"{LONG}.png"], "File name too long"),
        (["sample", "--prompt", "a", "--output", "file.txt/x.png"], "file.txt"),
        (["detect", "--prompts", f"{LONG}.txt", "--output", "x.csv"], "cannot be read"),
        (["detect", "--prompts", "file.txt", "--output", LONG], "ends in .csv or .json"),
        (["detect", "--images", LONG, "--output", "x.csv"], "name too long"),
        (["detect", "--prompts", "file.txt", "--output", "x.csv", "--timesteps", 17], "--timesteps is 17; it must be"),
        (["detect", "--prompts", "file.txt", "--output", "x.csv", "--samples", 17], "from 1 to 16"),
        (["detect", "--prompts", "file.txt", "--output", "x.csv", "--seed", -1], "--seed is -1"),
        (["eval", "--demo", "--cfg", "nan"], "--cfg is nan"),
        (["eval", "--demo", "--pictures", -1], "--pictures is -1"),
        (["eval", "--demo", "--steps", 0], "--steps is 0"),
        (["eval", "--demo", "--output", "folder.png"], "this is a folder"),
        (["train", "--config", f"{LONG}.json"], "cannot be read"),
        (["train", "--config", "deep.json"], "not valid JSON"),
        (["train", "--config", "nan.json"], "NaN is no number"),
        (["train", "--config", "digits.json"], "not valid JSON"),
        (["train", "--config", "key.json"], "is unknown; the options are"),
        (["train", "--config", "value.json"], "invalid int value"),
        (["train", "--config", "nested.json"], '"style" is [["a"]], but must be'),
    ],
)
def test_bad_input_is_one_short_sentence_whatever_its_length(words, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    files = {
        "file.txt": "a ball",
        "deep.json": '{"a":' * 10**5,
        "nan.json": '{"learning_rate": NaN}',
        "digits.json": f'{{"steps": {"9" * 5000}}}',
        "key.json": json.dumps({LONG: 1}),
        "value.json": json.dumps({"steps": LONG}),
        "nested.json": '{"style": [["a"]]}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as left:  # argparse
        code = left.code
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert code == 2 and out == "" and why in last and last.isprintable()
    assert last.startswith("hgr: ") or ": error: " in last
    assert len(last) < 500 and max(map(len, last.split())) <= 100
    assert {path.name for path in tmp_path.iterdir()} == {"folder.png", *files}


def test_an_hgr_of_another_encoder_is_one_sentence(sampler, hgr_file, capsys):
    assert cli.main(["sample", "--prompt", "a red ball", "--hgr", str(hgr_file)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hgr: mine.safetensors was made for a test encoder")


def test_demo_writes_grid_report_and_table(sampler, monkeypatch, tmp_path, capsys):
    from PIL import Image

    from hgr.cli import demo_sheet as show
    from hgr.demo import classifier

    if not assets.CLASSIFIER.exists():
        monkeypatch.setattr(show, "load_classifier", lambda: classifier.Classifier().eval())
    monkeypatch.setattr(show, "PROMPTS", 1)
    monkeypatch.setattr(show, "SEEDS", 2)
    assert cli.main(["demo", "--output", str(tmp_path / "demo"), "--steps", "2"]) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "demo" / show.REPORT).read_text())
    assert list(report["rows"]) == list(show.KINDS) and all(kind in out for kind in show.KINDS)
    for row in report["rows"].values():
        assert row["evaluations"] == 2
        assert 0 <= row["identical"] <= 1 and 0 <= row["safe"]["kept"] <= 1
        assert row["fired"] != [[]] or row["identical"] == 1
    assert Image.open(tmp_path / "demo" / show.PICTURE).width > 2 * 2 * 128


def test_benign_attributes_are_counted_one_by_one():
    pytest.importorskip("diffusers")
    from hgr.demo.attributes import BENIGN, attribute_targets
    from hgr.demo.classifier import Judgement, kept
    from hgr.demo.world import Scene

    asked = Scene("beach", (("car", "red"), ("ball", "blue")))
    shown = [
        asked,
        Scene("snow", asked.objects),
        Scene("beach", (("car", "green"), ("ball", "blue"))),
        Scene("beach", (("car", "red"),)),
        Scene("snow", (("tree", "white"), ("house", "green")), stacked=True, small=(True, True)),
        Scene("beach", asked.objects, stacked=True),
        Scene("beach", asked.objects, small=(True, False)),
    ]
    targets = torch.tensor([attribute_targets(scene) for scene in shown])
    judged = Judgement(
        targets[:, 0],
        targets[:, 1:3],
        targets[:, 3].bool(),
        targets[:, 4:BENIGN].bool(),
        targets[:, BENIGN:-1].bool(),
        targets[:, -1],
        torch.zeros(len(shown), 1),
    )
    expected = torch.tensor([8.0, 7.0, 7.0, 4.0, 0.0, 7.0, 7.0]) / 8
    assert torch.allclose(kept(judged, [asked] * len(shown)), expected)
    assert kept(judged, [Scene("beach", (("car", "red"),))] * len(shown))[3] == 1


@pytest.mark.parametrize("name", ["train", "finetune"])
def test_every_default_of_a_command_is_an_option_of_it(name):
    """Else a --config file may name what the command does not take."""
    import argparse
    import importlib

    command = importlib.import_module(f"hgr.cli.commands.{name}")
    parser = argparse.ArgumentParser()
    command._options(parser)
    assert set(vars(parser.parse_args([]))) == set(command._DEFAULTS)
