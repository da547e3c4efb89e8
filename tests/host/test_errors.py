"""What cannot work fails with a sentence that says why; nothing is silently without effect."""

from __future__ import annotations

import dataclasses
import json
import logging
import struct

import pytest


@pytest.fixture()
def folder(pack, hgr, tmp_path):
    """A folder of HGR files that the host knows beside models/hgr, with one good file in it."""
    import folder_paths

    pack.file.save(hgr, tmp_path / "good.safetensors")
    paths = folder_paths.folder_names_and_paths["hgr"][0]
    paths.append(str(tmp_path))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    paths.remove(str(tmp_path))
    folder_paths.filename_list_cache.clear()


def _load(pack, name):
    return pack.loader.SafeCFGHGRLoader.execute(name).args[0]


def _write(path, metadata):
    """A safetensors file with this metadata and no tensor."""
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.oldest
def test_wrong_width(kit, hgr):
    """An HGR of another width stops the run and names both sides."""
    narrow = dataclasses.replace(hgr, network=type(hgr.network)(64, 0, 2, width=32, depth=1))
    with pytest.raises(ValueError, match="width 64.*shape \\(1, 77, 128\\)"):
        kit.sample(kit.patch(narrow), kit.clean)


@pytest.mark.oldest
def test_other_encoder(kit, hgr):
    """The right width, another encoder: told by the fingerprint, also for prompts in which nothing would fire."""
    other = dataclasses.replace(
        hgr, encoder=dataclasses.replace(hgr.encoder, family="another encoder", empty=-hgr.encoder.empty)
    )
    with pytest.raises(ValueError, match="made for another encoder"):
        kit.sample(kit.patch(other), kit.clean)


def test_after_an_error_the_model_works(kit, hgr):
    import torch

    plain = kit.sample(kit.model, kit.harmful)
    other = dataclasses.replace(hgr, encoder=dataclasses.replace(hgr.encoder, empty=-hgr.encoder.empty))
    with pytest.raises(ValueError):
        kit.sample(kit.patch(other), kit.harmful)
    assert torch.equal(kit.sample(kit.model, kit.harmful), plain)


@pytest.mark.oldest
@pytest.mark.parametrize("concepts", ["{skull: 1}", "[1]", '{"skull": 3}', '{"skull": "on"}', '{"skull": NaN}'])
def test_bad_concepts(kit, hgr, concepts):
    """Told when the node runs, before any sampling."""
    with pytest.raises(ValueError, match="^concepts(:| is) "):
        kit.patch(hgr, concepts=concepts)


@pytest.mark.oldest
def test_unknown_concept_is_one_warning(kit, hgr, caplog):
    import torch

    with caplog.at_level(logging.WARNING, "safecfg"):
        model = kit.patch(hgr, concepts='{"skull": 1, "dragon": 1}')
        assert torch.equal(kit.sample(model, kit.harmful), kit.sample(kit.patch(hgr), kit.harmful))
    assert len(caplog.records) == 1 and "dragon" in caplog.text and "skull, dagger" in caplog.text


@pytest.mark.oldest
def test_loader_finds_files_by_name(pack, kit, hgr, folder):
    """Those of the host's folders and the bundled one; the loaded one samples as the saved one does."""
    import torch

    *own, last = pack.files.hgr_names()  # other tests may have saved some in models/hgr
    assert own.count("good.safetensors") == 1 and last == pack.files.BUNDLED
    loaded = _load(pack, "good.safetensors")
    assert loaded.ids == hgr.ids
    from host_kit import safe_features

    torch.testing.assert_close(
        safe_features(pack, loaded, kit.harmful[0][0]), safe_features(pack, hgr, kit.harmful[0][0]), atol=0.05, rtol=0
    )
    assert _load(pack, pack.files.BUNDLED).network.text_dim == 128


@pytest.mark.parametrize("name", ["absent.safetensors", "../good.safetensors", "/etc/hostname", "good.txt", ""])
def test_loader_takes_names_only(pack, folder, name):
    """No path of the client's reaches the disk; the answer comes before the graph runs."""
    (folder / "good.txt").write_text("not listed")
    loader = pack.loader.SafeCFGHGRLoader
    assert loader.validate_inputs(name) == f'HGR "{name}" is not in models/hgr.'
    with pytest.raises(FileNotFoundError):
        loader.execute(name)


def test_loader_sees_that_a_file_changed(pack, folder, hgr):
    loader = pack.loader.SafeCFGHGRLoader
    before = loader.fingerprint_inputs("good.safetensors")
    assert loader.fingerprint_inputs("good.safetensors") == before
    pack.file.save(dataclasses.replace(hgr, training={"steps": 1}), folder / "good.safetensors")
    assert loader.fingerprint_inputs("good.safetensors") != before


@pytest.mark.oldest
def test_damaged_files(pack, folder):
    """Cut short, another format, another version, no metadata: each is named with its fault."""
    good = (folder / "good.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(good[:-100])
    (folder / "stub.safetensors").write_bytes(good[:5])
    (folder / "noise.safetensors").write_bytes(bytes(range(256)) * 8)
    _write(folder / "lora.safetensors", {"format": "pt"})
    _write(folder / "future.safetensors", {"format": "hgr", "format_version": "99"})
    _write(folder / "bare.safetensors", {"format": "hgr", "format_version": "3"})
    faults = {
        "short": "damaged",
        "stub": "not an HGR file",
        "noise": "not an HGR file",
        "lora": "not an HGR file",
        "future": "version '99' is unknown",
        "bare": "the metadata lacks",
    }
    for name, fault in faults.items():
        with pytest.raises(pack.hgr.HGRError, match=f"^{name}.safetensors: .*{fault}"):
            _load(pack, f"{name}.safetensors")
