"""A console in another encoding, such as Windows' cp1252: commands write their files, then say what it can show."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from cli_kit import ENVIRONMENT

from hgr.cli.inputs import items_from_folder

SKULL = "☠ 骨"  # in no character set of Windows' western consoles
_MAIN = "import json, sys; from hgr import cli; sys.exit(max(map(cli.main, json.loads(sys.argv[1]))))"


def run(folder, *words: str) -> tuple[int, str, str]:
    """Python in a console in cp1252: exit code, stdout, stderr."""
    console = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=os.environ | ENVIRONMENT | console, capture_output=True
    )
    return done.returncode, done.stdout.decode("cp1252"), done.stderr.decode("cp1252")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / SKULL
    made.mkdir()
    (made / "pairs.csv").write_text(
        "harmful,clean,concept,label\n" + "".join(f"{SKULL} {i},ball {i},c,{SKULL}\n" for i in range(30)), "utf-8"
    )
    (made / "prompts.txt").write_text(f"{SKULL}\na skull on a beach\n", "utf-8")
    return made


def test_the_module_writes_pairs_and_shows_what_the_console_cannot_as_escapes(folder):
    code, out, err = run(folder, "-m", "hgr", "pairs", "--file", "pairs.csv", "--output", f"{SKULL}.csv")
    assert (code, err) == (0, "") and (folder / f"{SKULL}.csv").read_text("utf-8").count(SKULL) == 60
    assert "\\u2620 \\u9aa8 (c): 30 pairs" in out and out.rstrip().endswith("\\u2620 \\u9aa8.csv")


def test_an_error_is_shown_too(folder):
    for option in (["--file", f"{SKULL}.csv"], ["--concepts", SKULL], ["--own", "\u202e"]):
        code, out, err = run(folder, "-m", "hgr", "pairs", *option)
        assert code == 2 and out == "" and err.startswith("hgr: ") and err.count("\n") == 1
        assert "\\u" in err


@pytest.mark.slow
def test_the_commands_that_run_a_model_write_their_files(folder):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from hgr.core import file
    from hgr.demo import assets

    hgr = file.load(assets.HGR_FILE)
    concepts = [dataclasses.replace(c, label=SKULL, description=SKULL) for c in hgr.concepts]
    file.save(
        dataclasses.replace(hgr, concepts=concepts, training=hgr.training | {SKULL: SKULL}),
        folder / f"{SKULL}.safetensors",
    )
    source = ["--hgr", f"{SKULL}.safetensors"]
    commands = [
        ["info", f"{SKULL}.safetensors"],
        ["detect", *source, "--prompts", "prompts.txt", "--output", f"{SKULL}.csv"],
        ["detect", *source, "--prompts", "prompts.txt", "--output", f"{SKULL}.json", "--concepts", f'{{"{SKULL}": 0}}'],
        ["eval", *source, "--demo", "--limit", "60", "--pictures", "0", "--output", f"{SKULL} eval.json"],
        ["sample", *source, "--prompt", SKULL, "--steps", "1", "--output", f"{SKULL}.png"],
    ]
    code, out, err = run(folder, "-c", _MAIN, json.dumps(commands))
    assert code == 0, err
    written = {path.suffix for path in folder.iterdir() if path.name.startswith(SKULL)}
    assert written == {".safetensors", ".csv", ".json", ".png"} and (folder / f"{SKULL} eval.json").exists()
    assert SKULL in (folder / f"{SKULL}.csv").read_text("utf-8")
    assert out.count("\\u2620 \\u9aa8") > 8 and "does not know \\u2620 \\u9aa8; ignored" in err
    assert "Traceback" not in err and "Logging error" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file name is Unicode")
def test_a_picture_whose_name_is_no_unicode_has_a_name_that_can_be_written(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"), "wb"):
        (item,) = items_from_folder(tmp_path)
    assert item.name == "caf\\xe9.png" and item.image.exists() and json.loads(item.key)[0] == item.name
