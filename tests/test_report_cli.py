"""`python -m hgr report`: what it draws, writes, resumes and says."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

pytest.importorskip("diffusers")

import torch
from cli_kit import CLEAN, HARMFUL, command, kept, when
from PIL import Image

from hgr.detection import sheet

SHOWN = ("--steps", 3, "--per-concept", 0, "--output", "card")


@pytest.fixture
def report(loaded_once, tmp_path, monkeypatch):
    """Runs the command in a folder with prompts; returns its exit code and the report that it wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text(f"{CLEAN}\n{HARMFUL}\n")

    def run(*more):
        code = command("report", "--prompts", "mine.txt", *SHOWN, *more)
        path = tmp_path / "card/report.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def files(tmp_path):
    return sorted(path.relative_to(tmp_path / "card").as_posix() for path in (tmp_path / "card").rglob("*.*"))


def test_sheet_report_and_table(report, tmp_path, capsys, demo_pipe):
    code, found = report("--seed", 5)
    assert code == 0 and files(tmp_path) == ["report.json", "sheet-1.png"]
    assert not (tmp_path / "card/unfinished").exists()
    clean, harmful = found["prompts"]
    assert (clean["prompt"], clean["fired"]) == (CLEAN, []) and harmful["fired"] == ["skull"]
    assert clean["methods"]["SafeCFG"]["identical"] == [True] and clean["methods"]["negative prompt"]["moved"][0] > 0
    assert harmful["methods"]["SafeCFG"]["moved"][0] > 0.01
    assert all(about["evaluations"] == 2 for about in found["summary"]["methods"].values())
    assert found["judge"] and found["size"] == [4, 16, 16] and found["sampling"]["seed"] == 5
    assert Image.open(tmp_path / "card/sheet-1.png").width > 3 * 128
    out = capsys.readouterr().out
    assert "a concept fires in 1 of 2 prompts" in out and "in card: report.json, sheet-1.png" in out
    assert f"[nothing fires] {CLEAN}" in out


def test_its_pictures_are_those_of_the_pipeline(report, demo_pipe):
    """The second prompt's noise is that of the second seed."""
    from hgr.demo.assets import HGR_FILE
    from hgr.hosts.diffusers.pipeline import SafeCFG

    def sample(call):
        generator = torch.Generator().manual_seed(8)
        return call([HARMFUL], guidance_scale=7.5, num_inference_steps=3, generator=generator, output_type="latent")

    plain, safe = (sample(call).images.float() for call in (demo_pipe, SafeCFG(demo_pipe, HGR_FILE)))
    _, found = report("--seed", 7)
    moved = found["prompts"][1]["methods"]["SafeCFG"]["moved"][0]
    assert moved == pytest.approx(((safe - plain).abs().mean() / plain.std()).item(), rel=1e-4)


def test_an_interrupted_card_resumes_unless_it_is_another(report, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        when(patched, "pictures", 4)
        assert report()[0] == 130
    (work,) = (tmp_path / "card/unfinished/card").iterdir()
    assert capsys.readouterr().err.splitlines()[-1] == kept(work.relative_to(tmp_path))
    names = sorted(path.name for path in work.iterdir())
    assert len(names) == 4 and not (tmp_path / "card/report.json").exists()
    painted = count_painted(monkeypatch)
    assert report("--seed", 3)[0] == 0 and len(painted) == 6
    assert sorted(path.name for path in work.iterdir()) == names
    del painted[:]
    assert report()[0] == 0 and len(painted) == 2
    assert not (tmp_path / "card/unfinished").exists()


def count_painted(monkeypatch):
    from hgr.hosts.diffusers import report_card as host

    painted, sample = [], host.sample_counted

    def counted(*given, **more):
        painted.append(given[2])
        return sample(*given, **more)

    monkeypatch.setattr(host, "sample_counted", counted)
    return painted


@pytest.fixture
def nudenet(monkeypatch):
    """A stand-in for the package, which sees what `nudenet.sees` says and keeps what it was given."""
    module = ModuleType("nudenet")
    module.sees, module.given = [], []

    class NudeDetector:
        def detect(self, picture):
            module.given.append(picture)
            return module.sees[len(module.given) - 1] if len(module.given) <= len(module.sees) else []

    module.NudeDetector = NudeDetector
    monkeypatch.setitem(sys.modules, "nudenet", module)
    return module


def test_another_judge_on_the_command_line(report, nudenet, capsys):
    def seen(name, score):
        return {"class": name, "score": score, "box": [0, 0, 1, 1]}

    nudenet.sees = [
        [],
        [],
        [],
        [seen("FACE_FEMALE", 0.9), seen("BUTTOCKS_EXPOSED", 0.6)],
        [seen("BUTTOCKS_EXPOSED", 0.4), seen("FEET_EXPOSED", 0.9)],
    ]
    code, found = report("--judge", "nudenet")
    methods = found["prompts"][1]["methods"]
    assert code == 0 and found["outside"] == "NudeNet (nudity only)"
    assert [methods[name]["outside"] for name in methods] == [[True], [False], [False]]
    assert "by NudeNet (nudity only) 100%" in capsys.readouterr().out
    assert len(nudenet.given) == 6 and all(each.shape == (128, 128, 3) for each in nudenet.given)


def test_a_judge_gets_blue_first_as_from_a_file(nudenet):
    import numpy as np

    from hgr.cli.judges import load_judge

    _, says = load_judge("nudenet")
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[..., 0] = 255
    assert says(picture) is False and nudenet.given[0][0, 0].tolist() == [0, 0, 255]


def test_the_real_judge_if_it_is_installed():
    pytest.importorskip("nudenet")
    import numpy as np

    from hgr.cli.judges import load_judge

    assert load_judge("nudenet")[1](np.full((64, 48, 3), 128, np.uint8)) is False


def test_a_judge_that_is_not_installed_is_one_sentence_before_any_picture(report, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    assert report("--judge", "nudenet")[0] == 2
    assert 'hgr: nudenet is not installed; this command needs it: pip install -e ".[judge]"' in capsys.readouterr().err
    assert not list((tmp_path / "card").rglob("*.*"))


def test_blur_is_on_unless_told_otherwise(report, tmp_path, monkeypatch):
    said, draw = [], sheet.draw_card
    monkeypatch.setattr(sheet, "draw_card", lambda *given, blur: said.append(blur) or draw(*given, blur=blur))
    assert report()[0] == report("--no-blur")[0] == 0 and said == [True, False]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--pictures", 0], "--pictures is 0; it must be a number from 1 to 1000."),
        (["--width", 100], "divisible by 8"),
        (["--concepts", "{"], "not valid JSON"),
        (["--prompts", "mine.md"], "not a .txt or .csv file"),
        (["--output", "mine.txt"], "report.json cannot be written"),
    ],
)
def test_bad_options_are_one_sentence(report, capsys, tmp_path, options, why):
    assert report(*options)[0] == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("hgr: ") and why in err
    assert not (tmp_path / "card/report.json").exists()


def test_no_prompts_at_all_is_one_sentence(loaded_once, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("report", *SHOWN) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "hgr: there are no prompts: give --prompts FILE, or raise --per-concept."
    )
