"""The HGR file: what is written is read back, and everything unsound is refused with the file's name and the fault."""

import dataclasses
import json
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
    ],
)
def test_unsound_files_are_named_with_their_fault(path, change, message):
    rewrite(path, **change)
    with pytest.raises(HGRError, match=message) as error:
        file.load(path)
    assert "good.safetensors" in str(error.value)


@pytest.mark.parametrize("threshold", [0, 1, "high", None])
def test_a_threshold_outside_its_range_is_refused(path, threshold):
    with safe_open(path, "pt") as source:
        concepts = json.loads(source.metadata()["concepts"])
    concepts[0]["threshold"] = threshold
    rewrite(path, {"concepts": json.dumps(concepts)})
    with pytest.raises(HGRError, match="metadata is not valid"):
        file.load(path)


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
