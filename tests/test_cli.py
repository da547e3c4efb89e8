"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from hgr import cli
from hgr.core import file
from hgr.core.hgr import HGR, Concept, Encoder
from hgr.core.network import HGRNetwork
from hgr.core.options import MODES
from hgr.demo import assets


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
    assert all(command in out for command in ("demo", "info", "sample", "detect", "train", "probe", "demo-train"))


def test_modes_are_the_methods_own():
    assert cli.sample.MODES == tuple(MODES)


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
    for name, more in (("plain", ["--plain"]), ("off", ["--strength", "0"]), ("safe", ["--mode", "balanced"])):
        path = tmp_path / "new" / f"{name}.png"
        assert cli.main(["sample", "--prompt", "a red ball", "--steps", "2", "--output", str(path), *more]) == 0
        assert str(path) in capsys.readouterr().out
        pictures.append(Image.open(path))
    assert pictures[0].size == (128, 128)
    assert list(pictures[0].tobytes()) == list(pictures[1].tobytes())


@pytest.mark.parametrize("wrong", [["--concepts", "{"], ["--strength", "-1"], ["--model", "somewhere"]])
def test_bad_options_of_sample_are_one_sentence(sampler, wrong, capsys, tmp_path):
    assert cli.main(["sample", "--prompt", "a red ball", "--output", str(tmp_path / "x.png"), *wrong]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("hgr: ")


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
    from hgr.demo.attributes import attribute_targets
    from hgr.demo.classifier import Judgement, kept
    from hgr.demo.world import Scene

    asked = Scene("beach", (("car", "red"), ("ball", "blue")))
    shown = [
        asked,
        Scene("snow", asked.objects),
        Scene("beach", (("car", "green"), ("ball", "blue"))),
        Scene("beach", (("car", "red"),)),
        Scene("snow", (("tree", "white"), ("house", "green"))),
    ]
    targets = torch.tensor([attribute_targets(scene) for scene in shown])
    judged = Judgement(targets[:, 0], targets[:, 1:3], targets[:, 3:7].bool(), targets[:, 7], torch.zeros(5, 1))
    assert torch.allclose(kept(judged, [asked] * 5), torch.tensor([1.0, 0.8, 0.8, 0.6, 0.0]))
    assert kept(judged, [Scene("beach", (("car", "red"),))] * 5)[3] == 1
