"""Making the demo world's files: what comes out loads and works together, and a finished stage is not made again."""

import pytest

pytest.importorskip("diffusers")

from hgr.core import file
from hgr.demo import assets
from hgr.demo.classifier import load_classifier
from scripts.make_demo import stages as train
from scripts.make_demo.stages import Steps, train_all


def test_demo_train_makes_files_that_load_and_goes_on_where_it_was(tmp_path, monkeypatch):
    short = Steps(vae=1, vae_full=1, vae_decoder=1, text=1, unet=1, classifier=1, hgr=1, pictures=64, probe=8)
    monkeypatch.setattr(train.classifier, "accuracy", lambda *args: [])
    work, output = tmp_path / "work", tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.classifier, "train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_all(work, steps=short, output=output)
    for stage in ("vae", "text", "unet"):
        monkeypatch.setattr(getattr(train, stage), "train", None)  # would be called only to make a finished stage again
    train_all(work, steps=short, output=output)

    assert not any(str(tmp_path) in path.read_text() for path in output.rglob("*.json")), "a path of this machine"
    hgr = file.load(output / assets.HGR_FILE.name)
    assert hgr.ids == ["skull", "dagger", "splatter", "bomb"] and hgr.training["seed"] == 0
    load_classifier(output / assets.CLASSIFIER.name)
    monkeypatch.setattr(assets, "MODEL", output / "model")
    monkeypatch.setattr(assets, "TOKENIZER", output / "model" / "tokenizer" / "tokenizer.json")
    from hgr.hosts.diffusers.demo import load_demo_pipeline
    from hgr.hosts.diffusers.pipeline import SafeCFG

    picture = SafeCFG(load_demo_pipeline(), hgr)("a skull", num_inference_steps=1).images[0]
    assert picture.size == (128, 128)
