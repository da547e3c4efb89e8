"""The HGR file: what is written is read back, and everything unsound is refused with the file's name and the fault."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import prompt, safe_features, small_hgr
from safetensors import safe_open
from safetensors.torch import save_file

from hgr.core import file
from hgr.core.hgr import HGRError
from hgr.core.merge import merge_hgrs


@pytest.fixture
def path(tmp_path):
    file.save(small_hgr(), tmp_path / "good.safetensors", torch.float32)
    return tmp_path / "good.safetensors"


def rewrite(path, metadata=None, tensors=None, drop=()):
    with safe_open(path, "pt") as source:
        kept = {key: source.get_tensor(key) for key in source.keys()} | (tensors or {})  # noqa: SIM118
        meta = {k: v for k, v in (source.metadata() | (metadata or {})).items() if k not in drop}
    save_file({k: v for k, v in kept.items() if v is not None}, path, meta)


def test_round_trip(path):
    saved, loaded = small_hgr(), file.load(path)
    assert loaded.concepts == saved.concepts and loaded.training == saved.training
    assert loaded.encoder.family == "a test encoder" and loaded.name == "good.safetensors"
    a, b = (safe_features(h, prompt()) for h in (saved, loaded))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(metadata={"format": "lora"}), "not an HGR file"),
        (dict(metadata={"format_version": "9"}), "version '9' is unknown"),
        (dict(metadata={"format_version": "1"}), "of an older SafeCFG, whose network was another one: train it again"),
        (dict(metadata={"format_version": "2"}), "of an older SafeCFG, whose network was another one: train it again"),
        (dict(drop=("concepts",)), 'lacks "concepts"'),
        (dict(metadata={"concepts": "[{"}), "metadata is not valid"),
        (dict(metadata={"concepts": "[]"}), "1 to 1024"),
        (dict(metadata={"concepts": "[" * 100_000}), "metadata is not valid"),
        (dict(metadata={"text_dim": "1e99"}), "text_dim"),
        (dict(metadata={"text_dim": "17"}), "should have shape"),
        (dict(metadata={"network": json.dumps([{"concepts": 2, "width": 24, "depth": 9999, "heads": 4}])}), "depth"),
        (
            dict(metadata={"network": json.dumps([{"concepts": 1, "width": 24, "depth": 1, "heads": 4}])}),
            "add up to the number of concepts",
        ),
        (dict(metadata={"network": "[]"}), "1 to 64 networks"),
        (dict(tensors={"network.0.mean": torch.zeros(3)}), "network.0.mean"),
        (dict(tensors={"network.0.mean": None}), "network.0.mean"),
        (dict(tensors={"extra": torch.zeros(3)}), "extra"),
        (dict(tensors={"network.0.mean": torch.full((16,), torch.nan)}), "NaN"),
        (dict(tensors={"network.0.mean": torch.zeros(16, dtype=torch.int64)}), "I64"),
        (dict(tensors={"network.0.std": torch.zeros(16)}), "zero"),
        (dict(tensors={"empty.features": torch.zeros(2, 16)}), "zero"),
        (dict(metadata={"encoder": json.dumps({"family": "x", "chunk": 6, "fixed_start": "no"})}), "fixed_start"),
        (dict(metadata={"encoder": json.dumps({"family": "x" * 1001, "chunk": 6, "fixed_start": 1})}), "1000 letters"),
        (
            dict(metadata={"network": json.dumps([{"concepts": 1, "width": 8, "depth": 64, "heads": 1}] * 64)}),
            "depths add up to 4096; at most 256",
        ),
        (dict(metadata={"text_dim": "9" * 5000}), "5000 digits"),
        (dict(metadata={"training": '{"a": 1, "a": 2}'}), '"a" is there twice'),
        (dict(metadata={"training": '{"a": ' * 20 + "1" + "}" * 20}), "16 deep"),
        (dict(metadata={"training": '{"a": "\\ud800"}'}), "surrogate"),
        (dict(metadata={"training": '{"merged": 3}'}), "training.merged must be a list"),
        (dict(metadata={"training": '{"merged": [3]}'}), "training.merged must be a list"),
        (dict(metadata={"training": '{"merged": []}'}), "training.merged must be a list"),
        (dict(metadata={"training": '{"merged": [{"false_positive_rate": 1e30}]}'}), "false_positive_rate"),
        (dict(metadata={"training": '{"false_positive_rate": 1' + "0" * 400 + "}"}), "401 digits"),
        (dict(metadata={"training": '{"seed": [1]}'}), "seed"),
        (dict(metadata={"training": '{"pictures": "many"}'}), "pictures"),
        (dict(tensors={"empty.features": torch.full((2, 16), 1e30)}), "too large"),
        (dict(metadata={"digest": "0123456789abcdef"}), "does not match its digest"),
        (dict(tensors={"network.0.gate_out.bias": torch.tensor([-9.0, -9.0])}), "does not match its digest"),
    ],
)
def test_unsound_files_are_named_with_their_fault(path, change, message):
    rewrite(path, **change)
    with pytest.raises(HGRError, match=message) as error:
        file.load(path)
    assert "good.safetensors" in str(error.value)


def with_concept(path, **fields):
    """Change fields of the file's first concept, in the text of its metadata."""
    with safe_open(path, "pt") as source:
        concepts = json.loads(source.metadata()["concepts"])
    text = json.dumps([concepts[0] | {key: f"<{key}>" for key in fields}, *concepts[1:]])
    for key, value in fields.items():
        text = text.replace(f'"<{key}>"', value)
    rewrite(path, {"concepts": text}, drop=("digest",))


@pytest.mark.parametrize(
    "fields",
    [
        *(dict(threshold=text) for text in ("0", "1", '"high"', "null", "true", "0.99999999", "1e-60", "NaN")),
        *(dict(scale=text) for text in ("1e39", "NaN", "1e400", "9" * 39, '"1"')),
        *(dict(bias=text) for text in ("-1e39", "Infinity", "1" + "0" * 400)),
        *(dict(levels=text) for text in ("[0.5]", "[0.9, 0.8, 0.7, 0.99999999, 0.3]", "7")),
        *(dict(id=text) for text in (f'"{"x" * 201}"', '""', "3", '"\\ud800"')),
        dict(label=f'"{"x" * 201}"'),
        dict(more="1"),
    ],
    ids=lambda fields: ",".join(f"{key}={value[:20]}" for key, value in fields.items()),
)
def test_a_concept_is_refused_for_what_a_float32_or_a_message_cannot_hold(path, fields):
    with_concept(path, **fields)
    for read in (file.load, file.describe):
        with pytest.raises(HGRError, match=r"^good\.safetensors: the metadata is not valid") as error:
            read(path)
        assert len(str(error.value)) < 400


def test_a_whole_number_is_read_as_the_number_that_it_is(path):
    with_concept(path, scale="1" + "0" * 30, bias="1")
    loaded = file.load(path)
    assert loaded.concepts[0].scale == 1e30 and loaded.read(prompt()).gates.isfinite().all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"x" * 50 + data[58:],
        lambda data: b"PK\x03\x04" + data,
    ],
)
def test_damaged_files_are_refused(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(HGRError, match="good.safetensors"):
        file.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(HGRError, match="none.safetensors"):
        file.load(tmp_path / "none.safetensors")


def test_a_failed_save_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(path, data):
        path.touch()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        file.save(small_hgr(), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# --- a file is read once, and whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [lambda p: os.truncate(p, 16), lambda p: p.write_bytes(b"\xff" * p.stat().st_size)])
def test_what_happens_to_a_file_does_not_reach_an_hgr_that_was_loaded(path, harm):
    """The tensors of this file are float32, as in memory: a view of the file would die or change with it."""
    loaded, before = file.load(path), small_hgr()
    harm(path)
    assert torch.equal(safe_features(loaded, prompt()), safe_features(before, prompt()))
    assert torch.equal(loaded.encoder.empty, before.encoder.empty)


WRITER = """
import sys
path, *contents = sys.argv[1:]
contents = [open(name, "rb").read() for name in contents]
turn = 0
while True:
    turn += 1
    data = contents[-1 if turn % 32 == 0 else turn % 2]
    with open(path, "wb" if turn % 32 == 0 else "r+b", buffering=0) as target:
        for at in range(0, len(data), 4096):
            target.write(data[at : at + 4096])
        target.truncate()
    if turn == 32:
        print("begun", flush=True)
"""


def test_every_reading_beside_a_writer_is_one_of_the_files_or_an_error_without_a_folder(tmp_path):
    """The worst writer: in place, in pieces, with two files of one layout and one of another."""
    path, sources, networks = tmp_path / "shared.safetensors", [], []
    for seed, biases in ((0, (20.0, -20.0)), (1, (20.0, -20.0)), (2, (20.0,) * 6)):
        file.save(small_hgr(biases, seed=seed), path, torch.float32)
        sources.append(path.with_name(f"{seed}.bin"))
        sources[-1].write_bytes(path.read_bytes())
        networks.append({key: value.tolist() for key, value in file.load(path).network.state_dict().items()})
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, *sources], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "begun\n"
    try:
        for _ in range(150):
            try:
                found = file.load(path).network.state_dict()
                assert {key: value.tolist() for key, value in found.items()} in networks, "a mixture"
            except HGRError as error:
                assert str(error).startswith("shared.safetensors: ") and str(tmp_path) not in str(error)
            try:
                assert len(file.describe(path)["concepts"]) in (2, 6)
            except HGRError as error:
                assert str(error).startswith("shared.safetensors: ") and str(tmp_path) not in str(error)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.communicate()


def test_a_file_that_is_half_rewritten_is_an_error(tmp_path):
    """What a reader sees of a writer in place, at every page. Both files are sound and have one layout."""
    path, contents = tmp_path / "half.safetensors", []
    for seed in (0, 1):
        file.save(small_hgr(seed=seed), path, torch.float32)
        contents.append(path.read_bytes())
    old, new = contents
    assert len(old) == len(new)
    halves = [new[:at] + old[at:] for at in range(4096, len(new), 4096)]
    for half in set(halves) - set(contents):  # a last page may be the same in both
        path.write_bytes(half)
        with pytest.raises(HGRError, match=r"^half\.safetensors: "):
            file.load(path)
    path.write_bytes(old)
    assert torch.equal(file.load(path).network.anchors, small_hgr(seed=0).network.anchors)


def test_a_pipe_is_not_waited_for(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(HGRError, match=r"^pipe\.safetensors: cannot be read"):
        file.load(tmp_path / "pipe.safetensors")


# --- what is saved can be loaded --------------------------------------------------------------------------------------


def test_a_file_that_says_no_digest_is_loaded(path):
    rewrite(path, drop=("digest",))
    assert file.load(path).ids == ["c0", "c1"]


def test_a_digest_whose_name_is_damaged_is_not_taken_for_none(path):
    with safe_open(path, "pt") as source:
        digest = source.metadata()["digest"]
    rewrite(path, {"dieest": digest}, drop=("digest",))
    with pytest.raises(HGRError, match="digest is missing or its name is damaged"):
        file.load(path)


def test_the_digest_is_of_the_content_and_not_of_its_place_in_the_file(path):
    before = file.load(path)
    rewrite(path, {"more": "of another program"})  # other tools write the same tensors in another order
    assert torch.equal(safe_features(file.load(path), prompt()), safe_features(before, prompt()))


def test_what_is_written_is_strict_json(path):
    made = small_hgr()
    made.training = {"metrics": {"auroc": float("nan"), "loss": [float("inf"), 1.0]}}
    file.save(made, path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    with safe_open(path, "pt") as source:
        for key in ("concepts", "encoder", "network", "training"):
            json.loads(source.metadata()[key], parse_constant=refuse)
    assert file.load(path).training == {"metrics": {"auroc": None, "loss": [None, 1.0]}}


def overflowing():
    made = small_hgr()
    made.network.into.weight[0, 0] = 1e5
    return made


def first_concept(**fields):
    made = small_hgr()
    made.concepts[0] = dataclasses.replace(made.concepts[0], **fields)
    return made


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (overflowing, "in float16: .*into.weight.* NaN or infinity"),
        (lambda: first_concept(threshold=1.0), "threshold"),
        (lambda: first_concept(threshold=0.999999999), "threshold"),
        (lambda: first_concept(scale=float("nan")), "scale and bias"),
        (lambda: first_concept(id="c1"), "same id"),
        (lambda: first_concept(label="x" * 500), "label"),
        (lambda: dataclasses.replace(small_hgr(), training={"path": Path("x")}), "JSON"),
        (lambda: many(65), "1 to 64 networks"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(path, make, why):
    before = path.read_bytes()
    with pytest.raises(HGRError, match=rf"^good\.safetensors is not saved .*{why}"):
        file.save(make(), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def many(count):
    parts = [renamed(small_hgr((20.0,)), f"{i}/") for i in range(count)]
    return merge_hgrs(parts)


def test_64_merged_hgrs_are_saved_and_loaded(path):
    file.save(many(64), path)
    assert len(file.load(path).concepts) == 64


def test_a_new_file_never_replaces_one(path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        file.save(small_hgr(seed=5), path, new=True)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    file.save(small_hgr(seed=5), path.with_name("new.safetensors"), new=True)
    assert torch.equal(file.load(path.with_name("new.safetensors")).network.mean, small_hgr(seed=5).network.mean)


# --- merging ----------------------------------------------------------------------------------------------------------


def test_a_merged_hgr_does_what_each_part_does_alone(tmp_path):
    a, b = small_hgr(), small_hgr((-20.0, 20.0), seed=3)
    b.concepts = [dataclasses.replace(c, id="d" + c.id) for c in b.concepts]
    file.save(merge_hgrs([a, b]), tmp_path / "both.safetensors", torch.float32)
    both = file.load(tmp_path / "both.safetensors")
    assert both.ids == ["c0", "c1", "dc0", "dc1"]
    x = prompt(2)
    assert torch.equal(both.read(x).gates, torch.cat([a.read(x).gates, b.read(x).gates], -1))
    assert torch.allclose(safe_features(both, x) - x, (safe_features(a, x) - x) + (safe_features(b, x) - x), atol=1e-5)
    only_a = safe_features(both, x, strengths=torch.tensor([1.0, 1, 0, 0]))
    assert torch.equal(only_a, safe_features(a, x))
    assert merge_hgrs([both, renamed(a, "e")]).ids[-1] == "ec1"  # a union can be merged again


def renamed(hgr, prefix):
    hgr.concepts = [dataclasses.replace(c, id=prefix + c.id) for c in hgr.concepts]
    return hgr


def test_hgrs_that_cannot_be_merged_are_named_both():
    a, b = small_hgr(), small_hgr()
    a.name, b.name = "one.safetensors", "two.safetensors"
    with pytest.raises(HGRError, match=r"one\.safetensors and two\.safetensors have the concept \"c0\""):
        merge_hgrs([a, b])
    renamed(b, "x")
    b.encoder = dataclasses.replace(b.encoder, empty=-b.encoder.empty, family="another")
    with pytest.raises(HGRError, match=r"one\.safetensors was made for a test encoder, two\.safetensors for another"):
        merge_hgrs([a, b])
