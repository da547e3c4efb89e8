"""Making the demo world's files: what comes out loads and works together, and a finished stage is not made again."""

from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("tokenizers")

from make_demo import stages, train_tokenizer
from make_demo.stages import Steps, train_all

from hgr.core import file
from hgr.demo import assets
from hgr.demo.classifier import load_classifier
from hgr.hosts.diffusers.demo import load_demo_pipeline
from hgr.hosts.diffusers.pipeline import SafeCFG

SHORT = Steps(vae=1, vae_full=1, vae_decoder=1, text=1, unet=1, classifier=1, hgr=1, pictures=8, probe=8)
TRAINERS = ("train_tokenizer", "train_vae", "train_text_encoder", "train_unet", "refine_decoder")


@pytest.mark.slow
def test_what_is_made_loads_and_a_finished_stage_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.classifier, "accuracy", lambda *_, **__: [])
    monkeypatch.setattr(stages, "PAIRS", 150)
    # most CPUs only emulate bfloat16: a step takes them ten times as long
    monkeypatch.setattr(torch, "autocast", lambda *_: nullcontext())
    learn = train_tokenizer.train_tokenizer
    monkeypatch.setattr(stages, "train_tokenizer", lambda path, seed: learn(path, seed=seed, captions=1000))
    work, output = tmp_path / "work", tmp_path / "out"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "train_classifier", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_all(work, steps=SHORT, output=output)
    assert not output.exists()
    for name in TRAINERS:
        monkeypatch.setattr(stages, name, None)  # would be called only to make a finished stage again
    train_all(work, steps=SHORT, output=output)

    assert not any(str(tmp_path) in path.read_text() for path in output.rglob("*.json")), "a path of this machine"
    hgr = file.load(output / assets.HGR_FILE.name)
    assert hgr.ids == ["skull", "dagger", "splatter", "bomb", "nightmare"] and hgr.training["seed"] == 0
    load_classifier(output / assets.CLASSIFIER.name)
    monkeypatch.setattr(assets, "MODEL", output / "model")
    monkeypatch.setattr(assets, "TOKENIZER", output / "model" / "tokenizer" / "tokenizer.json")
    picture = SafeCFG(load_demo_pipeline(), hgr)("a skull", num_inference_steps=1).images[0]
    assert picture.size == (128, 128)
