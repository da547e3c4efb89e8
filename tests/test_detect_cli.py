"""`python -m hgr detect` and `probe`: what they find, what happens to pictures that cannot be read, interruptions, two
processes."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from cli_kit import CLEAN, HARMFUL, command, kept, launch_two, watch_bar, when
from helpers import small_hgr
from PIL import Image

from hgr.cli.detect_results import PartialResults
from hgr.core import file
from hgr.core.hgr import HGR, Concept, Probe
from hgr.core.network import HGRNetwork
from hgr.core.options import SENSITIVITIES
from hgr.data.pair_file import write_pairs
from hgr.data.sources import demo_world
from hgr.demo import assets
from hgr.hosts.diffusers import denoiser as host
from hgr.hosts.diffusers import picture_file
from hgr.hosts.diffusers.detection import Detector
from hgr.hosts.diffusers.pipeline import SafeCFG
from hgr.hosts.diffusers.prompts import encoder_of
from hgr.training.encoded_prompts import describe_encoder

pytestmark = pytest.mark.usefixtures("loaded_once")


def run(folder: Path, *options: object, output: str = "out.csv") -> tuple[int, Path]:
    path = folder / output
    return command("detect", "--output", path, *options), path


def table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV by item."""
    with open(path, encoding="utf-8", newline="") as opened:
        return {row["item"]: row for row in csv.DictReader(opened)}


def items(path: Path) -> dict[str, dict]:
    return {row["item"]: row for row in json.loads(path.read_text("utf-8"))}


@pytest.fixture(scope="module")
def painted(demo_pipe, tmp_path_factory):
    """Pictures that the bundled model made of a clean and of a harmful prompt."""
    folder = tmp_path_factory.mktemp("painted")
    for name, prompt in (("clean.png", CLEAN), ("harmful.png", HARMFUL)):
        generator = torch.Generator().manual_seed(0)
        demo_pipe(prompt, num_inference_steps=12, generator=generator).images[0].save(folder / name)
    return folder


@pytest.fixture
def pictures(painted, tmp_path):
    return shutil.copytree(painted, tmp_path / "pictures")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(f"{CLEAN}\n\n  {HARMFUL}\na dagger and a bomb by a lake\n")
    return path


def test_prompts_get_the_gates_as_scores_and_a_summary(demo_pipe, prompts, tmp_path, capsys):
    code, output = run(tmp_path, "--prompts", prompts)
    found = table(output)
    safe = SafeCFG(demo_pipe, assets.HGR_FILE)
    assert code == 0 and list(found) == [CLEAN, HARMFUL, "a dagger and a bomb by a lake"]
    for text, gates in zip(found, safe.gates(list(found)).tolist(), strict=True):
        row = found[text]
        assert [float(row[id]) for id in safe.hgr.ids] == pytest.approx(gates, abs=1e-5)
        assert float(row["score"]) == pytest.approx(max(gates), abs=1e-5)
        assert (
            row["flagged"] == ("false" if text == CLEAN else "true")
            and row["evidence"] == "prompt"
            and not row["error"]
        )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counts = {c.id: sum(float(row[c.id]) >= c.threshold for row in found.values()) for c in safe.hgr.concepts}
    expected = {"flagged": 2} | counts
    assert lines[: len(expected)] == [[name, str(count), "of", "3"] for name, count in expected.items()]
    assert counts["dagger"] == counts["bomb"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "prompts.txt"], (
        "the working file must not stay"
    )


def test_a_prompt_is_read_to_its_end(tmp_path):
    long = ", ".join(["a red ball on a beach"] * 25)
    (tmp_path / "long.txt").write_text(f"{long}\n{long} with a skull\n")
    flags = [row["flagged"] for row in table(run(tmp_path, "--prompts", tmp_path / "long.txt")[1]).values()]
    assert flags == ["false", "true"]


def test_pictures_alone_are_judged_whatever_their_size(pictures, tmp_path):
    (pictures / "more").mkdir()
    Image.open(pictures / "harmful.png").convert("RGBA").resize((300, 280)).save(pictures / "more" / "large.WEBP")
    Image.open(pictures / "clean.png").resize((90, 110)).save(pictures / "more" / "small.jpg")
    (pictures / "notes.txt").write_text("no picture")
    code, output = run(tmp_path, "--images", pictures)
    found = table(output)
    assert code == 0 and {name: row["flagged"] for name, row in found.items()} == {
        "clean.png": "false",
        "harmful.png": "true",
        "more/large.WEBP": "true",
        "more/small.jpg": "false",
    }
    assert all(row["evidence"] == "picture" for row in found.values())
    assert float(found["harmful.png"]["skull"]) > 0.9 and float(found["clean.png"]["skull"]) < 0.1


def test_a_part_of_a_wide_picture_is_enough(pictures, tmp_path):
    wide = Image.new("RGB", (128 * 3, 128))
    for i, name in enumerate(("clean", "clean", "harmful")):
        wide.paste(Image.open(pictures / f"{name}.png"), (128 * i, 0))
    wide.save(pictures / "wide.png")
    assert table(run(tmp_path, "--images", pictures)[1])["wide.png"]["flagged"] == "true"


def test_pictures_with_their_prompts_are_judged_by_both(pictures, tmp_path):
    listed = tmp_path / "listed.csv"
    listed.write_text(
        f"Image,prompt,note\npictures/harmful.png,{HARMFUL},x\n,{HARMFUL},\npictures/harmful.png,{CLEAN},\n"
        f"pictures/clean.png,,\n",
        "utf-8-sig",
    )
    code, output = run(tmp_path, "--prompts", listed, output="out.json")
    both, prompt, lied, alone = json.loads(output.read_text())
    assert code == 0 and [row["item"] for row in (both, prompt, lied, alone)] == [
        "pictures/harmful.png",
        HARMFUL,
        "pictures/harmful.png",
        "pictures/clean.png",
    ]
    kinds = [set(row["concepts"]["skull"]["all"]) for row in (both, prompt, lied, alone)]
    assert kinds == [{"picture with prompt", "picture"}, {"prompt"}, {"picture with prompt", "picture"}, {"picture"}]
    assert [row["flagged"] for row in (both, prompt, lied, alone)] == [True, True, True, False]
    hed = [row["concepts"]["skull"]["all"]["picture with prompt"][0] for row in (both, lied)]
    assert hed[0] > 0.3 and hed[1] < 0.1, "the caption says nothing of a skull; the picture does"
    assert both["concepts"]["bomb"]["label"] == "Bomb" and both["error"] is None


def test_what_cannot_be_read_is_named_and_flagged_and_the_rest_is_judged(pictures, tmp_path, capsys, caplog):
    whole = (pictures / "clean.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "text.jpg").write_text("hello")
    (pictures / "empty.webp").write_bytes(b"")
    frames = [Image.open(pictures / name) for name in ("clean.png", "harmful.png")]
    frames[0].save(pictures / "moving.webp", save_all=True, append_images=frames[1:])
    Image.new("I;16", (64, 64), 30_000).save(pictures / "deep.png")
    listed = tmp_path / "listed.csv"
    bad = ["cut.png", "text.jpg", "empty.webp", "moving.webp", "deep.png", "missing.png"]
    listed.write_text("prompt,image\n" + "".join(f",pictures/{name}\n" for name in (*bad, "clean.png")))
    code, output = run(tmp_path, "--prompts", listed)
    found = table(output)
    assert code == 1 and found["pictures/clean.png"]["flagged"] == "false" and not found["pictures/clean.png"]["error"]
    for name in bad:
        row = found[f"pictures/{name}"]
        assert row["flagged"] == "true" and row["error"] and not row["score"] and not row["skull"]
        assert f"pictures/{name}: {row['error']}" in caplog.text
    out = capsys.readouterr().out
    assert re.search(r"^flagged +6 of 7$", out, re.MULTILINE) and re.search(r"^errors +6 of 7", out, re.MULTILINE)
    assert (
        "not a PNG, JPEG or WebP" in found["pictures/text.jpg"]["error"]
        and "No such file" in found["pictures/missing.png"]["error"]
    )
    assert (
        "animation of 2" in found["pictures/moving.webp"]["error"] and "truncated" in found["pictures/cut.png"]["error"]
    )
    assert list(tmp_path.glob("*.part*")) == []


def test_a_model_that_gives_nan_flags_the_picture(pictures, tmp_path, monkeypatch):
    read = picture_file.read_picture
    monkeypatch.setattr(
        picture_file, "read_picture", lambda path: read(path) * (torch.nan if path.name == "clean.png" else 1)
    )
    code, output = run(tmp_path, "--images", pictures)
    found = table(output)
    assert code == 1 and found["clean.png"]["flagged"] == "true" and "NaN" in found["clean.png"]["error"]
    assert not found["harmful.png"]["error"]


def test_an_interrupted_detection_goes_on_to_the_same_output(prompts, tmp_path, monkeypatch, capsys):
    _, whole = run(tmp_path, "--prompts", prompts, output="whole.csv")
    with monkeypatch.context() as patch:
        when(patch, "items", 2)
        code, output = run(tmp_path, "--prompts", prompts)
    work = tmp_path / "out.csv.part.jsonl"
    assert code == 130 and not output.exists() and len(work.read_text().splitlines()) == 3
    assert capsys.readouterr().err.splitlines()[-1] == kept(work)

    for options, why in (
        (["--seed", "1"], "seed 0, now 1"),
        (["--concepts", '{"skull": 0}'], "now ['dagger', 'splatter', 'bomb', 'nightmare']"),
    ):
        assert run(tmp_path, "--prompts", prompts, *options)[0] == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert why in err and "remove it" in err and work.exists()

    with open(work, "a") as opened:
        opened.write('["cut short by a ki')
    shown = watch_bar(monkeypatch, "items")
    code, output = run(tmp_path, "--prompts", prompts)
    assert code == 0 and shown == [(1, 1)] and output.read_bytes() == whole.read_bytes() and not work.exists()


def test_going_on_looks_again_at_what_could_not_be_read_and_at_what_has_changed(pictures, tmp_path, monkeypatch):
    read, other = picture_file.read_picture, pictures / "other.png"

    def away(path):
        if path.name == "clean.png":
            raise picture_file.PictureError("the network is away")
        return read(path)

    shutil.copy(pictures / "clean.png", other)
    (pictures / "harmful.png").rename(pictures / "z.png")
    with monkeypatch.context() as patch:
        when(patch, "items", 2)
        patch.setattr(picture_file, "read_picture", away)
        assert run(tmp_path, "--images", pictures)[0] == 130
    kept = other.stat()
    other.write_bytes((pictures / "z.png").read_bytes())
    os.utime(other, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
    code, output = run(tmp_path, "--images", pictures)
    assert code == 0 and {name: row["flagged"] for name, row in table(output).items()} == {
        "clean.png": "false",
        "other.png": "true",
        "z.png": "true",
    }


@pytest.mark.slow
def test_two_processes_give_what_one_gives(pictures, tmp_path):
    listed = tmp_path / "listed.csv"
    listed.write_text(
        f"prompt,image\n{CLEAN},pictures/harmful.png\n{HARMFUL},\n,pictures/missing.png\n{CLEAN},\n{HARMFUL},\n"
    )
    code, one = run(tmp_path, "--prompts", listed, output="one.csv")
    two = tmp_path / "two.csv"
    done = launch_two(tmp_path, "detect", "--prompts", listed, "--output", two)
    assert code == done.returncode == 1, done.stderr
    assert done.stderr.count("missing.png: cannot be read") == 1, "each item is looked at by one of them"
    assert done.stdout.count("flagged ") == 1
    alone, together = (list(csv.reader(path.open(newline=""))) for path in (one, two))
    for ours, theirs in zip(alone, together, strict=True):
        for a, b in zip(ours, theirs, strict=True):  # another number of threads rounds otherwise
            assert a == b or float(a) == pytest.approx(float(b), abs=2e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["listed.csv", "one.csv", "pictures", "two.csv"]


def test_what_several_processes_have_found_is_gathered(tmp_path):
    work = PartialResults(tmp_path / "out.csv", {"seed": 0})
    work.gather({"a": {"error": None}})
    for rank, key in ((0, "b"), (1, "c"), (12, "d")):
        with work.adding(rank) as keep:
            keep(key, {"error": None})
    assert sorted(work.rows()) == ["a", "b", "c", "d"]
    work.gather({key: row for key, row in work.rows().items() if key != "b"})
    assert sorted(work.rows()) == ["a", "c", "d"] and [path.name for path in tmp_path.iterdir()] == [
        "out.csv.part.jsonl"
    ]
    with pytest.raises(ValueError, match="seed 0, now 5"):
        PartialResults(tmp_path / "out.csv", {"seed": 5}).rows()
    assert PartialResults(tmp_path / "other.csv", {"seed": 5}).rows() == {}
    for text in ("my own notes\nof today\n", "[" * 10**5 + "\n\n", '{"seed": 0}\n["a", 3]\n', "{}\ncaf\udce9\n"):
        work.path().write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match="damaged, or not a working file of a detection: remove it"):
            work.rows()


def test_settings_that_differ_are_named_in_short(tmp_path):
    PartialResults(tmp_path / "out.csv", {"model": "a" * 5000, "seed": 0}).gather({"a": {"error": None}})
    with pytest.raises(ValueError, match="model 'a+…a+', now 'b'") as error:
        PartialResults(tmp_path / "out.csv", {"model": "b", "seed": 0}).rows()
    assert "seed" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))


def test_concepts_that_are_off_do_not_count_and_sensitivity_moves_the_thresholds(prompts, tmp_path):
    _, output = run(tmp_path, "--prompts", prompts, "--concepts", '{"skull": 0}')
    assert table(output)[HARMFUL]["flagged"] == "false" and "skull" not in table(output)[HARMFUL]
    limits = {}
    for sensitivity in SENSITIVITIES:
        _, output = run(tmp_path, "--prompts", prompts, "--sensitivity", sensitivity, output="out.json")
        limits[sensitivity] = items(output)[HARMFUL]["concepts"]["skull"]["threshold"]
    levels = file.load(assets.HGR_FILE).concepts[0].levels
    assert list(limits.values()) == pytest.approx(levels, abs=1e-6)


def test_a_model_with_a_pooled_output_judges_pictures(demo_pipe, pictures):
    import tiny

    pipe = tiny.sdxl(demo_pipe)
    network = HGRNetwork(64, 32, 1, width=32, depth=1).requires_grad_(False)
    torch.nn.init.normal_(network.move_out.weight)
    known = (Concept("skull", "Skull", scale=0.0, bias=5.0),)  # its gate is always open
    probe = Probe(
        (0.5,),
        torch.zeros(1, 128),
        torch.ones(1, 128),
        torch.zeros(1, 1, 128),
        torch.zeros(1),
        known,
        (Concept("skull", "Skull"),),
        {"latent": [4, 8, 8]},
    )
    made = HGR(network, list(known), describe_encoder(encoder_of(pipe), "test"), probe=probe)
    sizes, colours = [], []
    hook = pipe.vae.encoder.register_forward_pre_hook(lambda module, given: colours.extend(given[0].aminmax()))
    pipe.unet.register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape)))
    report = Detector(pipe, made)(HARMFUL, picture_file.read_picture(pictures / "harmful.png"))
    hook.remove()
    scores = report["items"][0]["concepts"]["skull"]["all"]
    assert scores["picture"][0] == pytest.approx(torch.tensor(5.0).sigmoid().item(), abs=1e-6)
    assert 0 < scores["picture with prompt"][0] < 1 and scores["picture with prompt"][0] != 0.5
    assert set(sizes) == {(1, 4, 8, 8)}, "the size that the probe was trained at"
    assert -1 <= colours[0] < -0.5 and 0.5 < colours[1] <= 1, "the range that autoencoders know"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--prompts", "p.json"], "not a .txt or .csv file"),
        (["--prompts", "blank.txt"], "blank.txt: contains no prompts"),
        (["--prompts", "latin.txt"], "latin.txt, line 1: not UTF-8"),
        (["--prompts", "other.csv"], 'the header must name the column "prompt" once; it may also name image'),
        (["--prompts", "comma.csv"], "comma.csv, line 3: has 2 cells, but the header has 1"),
        (["--prompts", "neither.csv"], "neither.csv, line 2: has neither"),
        (["--prompts", "quote.csv"], "not valid CSV"),
        (["--images", "nowhere"], "no such folder"),
        (["--images", "bare"], "contains no pictures"),
        (["--prompts", "p.txt", "--output", "x.txt"], "ends in .csv or .json"),
        (["--prompts", "good.csv", "--output", "good.csv"], "this is the file of the prompts"),
        (["--prompts", "p.txt", "--model", "somewhere"], "give --hgr FILE"),
        (["--prompts", "p.txt", "--hgr", "nowhere.safetensors"], "nowhere.safetensors: cannot be read"),
        (["--prompts", "p.txt", "--hgr", "foreign.safetensors"], "foreign.safetensors was made for a test encoder"),
        (
            ["--prompts", "p.txt", "--hgr", "old.safetensors", "--sensitivity", "low"],
            "has no thresholds for a sensitivity other than",
        ),
        (["--prompts", "p.txt", "--samples", "0"], "--samples is 0"),
        (["--prompts", "p.txt", "--device", "abacus"], "--device abacus"),
        (["--prompts", "p.txt", "--concepts", "{"], "concepts is not valid JSON"),
        (["--images", "one", "--hgr", "text.safetensors"], "text.safetensors has no picture probe"),
        (["--images", "one", "--hgr", "sized.safetensors"], "made for latents of size [4, 0, 8]"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(options, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {
        "p.txt": "a\n",
        "p.json": "[]",
        "blank.txt": "\n \n",
        "other.csv": "text\nx\n",
        "comma.csv": "prompt\na ball\na ball, red\n",
        "neither.csv": "prompt,image,note\n , ,x\n",
        "quote.csv": 'prompt\n"a ball\n',
        "good.csv": "prompt\na ball\n",
    }
    for name, text in files.items():
        Path(name).write_text(text)
    Path("latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    for name in ("bare", "one"):
        Path(name).mkdir()
    Path("one/x.png").write_bytes(b"")
    made = file.load(assets.HGR_FILE)
    file.save(dataclasses.replace(made, probe=None), "text.safetensors")
    file.save(
        dataclasses.replace(made, probe=dataclasses.replace(made.probe, training={"latent": [4, 0, 8]})),
        "sized.safetensors",
    )
    file.save(
        dataclasses.replace(made, concepts=[dataclasses.replace(c, levels=()) for c in made.concepts]),
        "old.safetensors",
    )
    file.save(small_hgr(), "foreign.safetensors")
    before = sorted(Path().iterdir())
    assert command("detect", "--output", "out.csv", *options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert why in lines[-1] and lines[-1].startswith("hgr: ")
    assert sorted(Path().iterdir()) == before and Path("good.csv").read_text() == files["good.csv"]


# --- the probe --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Probes from few and careless pictures."""
    monkeypatch.setattr("hgr.training.train_probe.MIN_SHOWN", 2)
    monkeypatch.setattr("hgr.hosts.diffusers.denoiser._STEPS", 2)


@pytest.fixture
def text_only(tmp_path):
    """The bundled HGR without its probe, and with weights that half precision cannot hold."""
    made = dataclasses.replace(file.load(assets.HGR_FILE), probe=None)
    made.network.move_out.weight += 1e-7
    file.save(made, tmp_path / "text.safetensors", torch.float32)
    return tmp_path / "text.safetensors"


def probe(source: Path, *options: object, output: str = "with_probe.safetensors") -> tuple[int, Path]:
    path = source.with_name(output)
    return command("probe", "--hgr", source, "--output", path, *options), path


@pytest.mark.slow
def test_a_probe_is_added_and_nothing_else_changes(quick, text_only, pictures, tmp_path, capsys):
    code, output = probe(text_only, "--demo", "--limit", 60, "--pictures", 16)
    out = capsys.readouterr().out
    assert code == 0 and str(output) in out and "Skull: " in out and "AUROC" in out
    before, after = load_file(text_only), load_file(output)
    assert {key for key in after if key not in before} == {f"probe.{key}" for key in ("mean", "std", "weight", "bias")}
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())
    with safe_open(text_only, "pt") as old, safe_open(output, "pt") as new:
        before = {key: value for key, value in old.metadata().items() if key != "digest"}  # of the whole content
        assert before.items() <= new.metadata().items()
    made = file.load(output).probe.training
    assert (
        made["pictures"] == 16 and made["false_positive_rate"] == file.load(text_only).training["false_positive_rate"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pictures",
        "text.safetensors",
        "with_probe.safetensors",
    ]
    assert command("info", output) == 0
    assert "trained on 16 pictures" in capsys.readouterr().out
    code, found = run(tmp_path, "--images", pictures, "--hgr", output)
    assert not any(row["error"] for row in table(found).values())


def test_an_interrupted_probe_keeps_its_pictures_but_not_for_another_model(quick, text_only, tmp_path, monkeypatch):
    painted, made = [], host.denoiser_of
    monkeypatch.setattr(
        host,
        "denoiser_of",
        lambda *given: dataclasses.replace(
            found := made(*given), paint=lambda *more: painted.append(1) or found.paint(*more)
        ),
    )

    def stop(*_, **__):
        raise KeyboardInterrupt

    options = ["--demo", "--limit", 60, "--pictures", 16]
    with monkeypatch.context() as patch:
        patch.setattr("hgr.training.train_probe.train_probe", stop)
        for more in ([], [], ["--model", assets.MODEL]):
            assert probe(text_only, *options, *more)[0] == 130
    assert len(painted) == 2
    bundled = file.load(assets.HGR_FILE).probe
    monkeypatch.setattr("hgr.training.train_probe.train_probe", lambda *_, **__: bundled)
    assert probe(text_only, *options)[0] == 0 and len(painted) == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--demo", "--output", "x.bin"], "must end in .safetensors"),
        (["--demo", "--output", "text.safetensors"], "already exists"),
        (["--demo", "--pictures", "2"], "--pictures is 2"),
        (
            ["--demo", "--false-positive-rate", "70"],
            "false_positive_rate is 70.0 %; it must be 0.1 or more and below 50",
        ),
        (["--file", "skulls.csv"], "no pairs of dagger, splatter, bomb, nightmare"),
        ([], "no concept is chosen"),
        (["--demo", "--hgr", "nowhere.safetensors"], "cannot be read"),
        (["--demo", "--hgr", "anonymous.safetensors"], "give --false-positive-rate"),
        (["--demo", "--limit", "60", "--pictures", "8"], "Give more --pictures"),
        (["--demo", "--limit", "60", "--model", "sd2"], "was made for the SafeCFG demo model"),
    ],
)
def test_a_probe_that_cannot_be_made_is_one_sentence_and_no_file(
    options, why, text_only, quick, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    demo = demo_world(50)
    write_pairs(dataclasses.replace(demo, topics=demo.topics[:1], pairs=demo.of("skull")), Path("skulls.csv"))
    file.save(dataclasses.replace(file.load(text_only), training={}), "anonymous.safetensors")
    before = sorted(path for path in Path().iterdir())
    options = [models / each if each == "sd2" else each for each in options]
    assert command("probe", "--hgr", "text.safetensors", "--output", "new.safetensors", *options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hgr: ") and why in last
    assert sorted(Path().iterdir()) == before
