"""Training in ComfyUI: every loss, off the host's inference mode and back, interrupted and resumed; saved, listed,
merged, used."""

from __future__ import annotations

import pytest

SETTINGS = dict(losses="text", steps=20, batch_size=8, learning_rate=1e-3, seed=0, false_positive_rate=5.0, pictures=8)


@pytest.fixture(scope="module")
def nodes(pack):
    return pack.get("nodes.train")


@pytest.fixture(scope="module")
def pairs(pack):
    """The demo world's pairs, as few as a training may have."""
    return pack.get("hgr.data.sources").demo_world(60)


@pytest.fixture
def run(kit, nodes, pairs):
    """The node Train HGR on the demo model."""
    import torch

    def run(model=None, **changes):
        given = (
            dict(clip=kit.clip, pairs=pairs, model=model, latents={"samples": torch.zeros(1, 4, 16, 16)})
            | SETTINGS
            | changes
        )
        return nodes.SafeCFGTrainHGR.execute(**given).args

    return run


def weights(hgr):
    return list(hgr.network.state_dict().values())


@pytest.mark.slow
@pytest.mark.oldest
@pytest.mark.parametrize(("losses", "steps"), [("text", 40), ("attention", 20), ("attention and score", 4)])
def test_the_node_trains_and_leaves_the_model_as_it_was(kit, run, losses, steps):
    import torch

    before = kit.sample(kit.model, kit.harmful)
    hgr, chart, report = run(kit.model, losses=losses, steps=steps)
    assert hgr.ids == ["skull", "dagger", "splatter", "bomb", "nightmare"] and hgr.training["losses"] == losses
    assert chart.ndim == 4 and chart.shape[0] == 1 and chart.shape[-1] == 3 and 0 <= chart.min() < chart.max() <= 1
    assert "Skull" in report and "clean prompts" in report
    assert (
        hgr.probe is None and "no picture probe" in report
    )  # 8 pictures are too few: the training goes on and says so
    assert torch.equal(kit.sample(kit.model, kit.harmful), before)
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.equal(kit.sample(kit.patch(hgr, strength=0.0), kit.harmful), before)
    kit.sample(kit.patch(hgr), kit.harmful)


@pytest.fixture(scope="module")
def trained(kit, nodes, pack):
    """(HGR, report) of a training long enough to tell skulls, in prompts and in pictures."""
    import torch

    pairs = pack.get("hgr.data.pairs")
    world = pack.get("hgr.data.sources").demo_world(200)
    skulls = pairs.Pairs(world.topics[:1], tuple(pair for pair in world.pairs if pair.concept == "skull"), world.clean)
    with torch.inference_mode():
        hgr, _, report = nodes.SafeCFGTrainHGR.execute(
            **SETTINGS
            | dict(
                clip=kit.clip,
                pairs=skulls,
                model=kit.model,
                latents={"samples": torch.zeros(1, 4, 16, 16)},
                steps=200,
                pictures=40,
            )
        ).args
    return hgr, report


@pytest.mark.slow
def test_a_trained_hgr_finds_the_harmful_prompt_and_changes_its_picture_alone(kit, trained):
    import torch

    patched = kit.patch(trained[0])
    assert torch.equal(kit.sample(patched, kit.clean), kit.sample(kit.model, kit.clean))
    assert not torch.equal(kit.sample(patched, kit.harmful), kit.sample(kit.model, kit.harmful))


@pytest.mark.slow
def test_a_trained_hgr_sees_the_harmful_picture_and_keeps_that_in_its_file(kit, trained, pack):
    import json

    import torch

    hgr, report = trained
    assert hgr.probe.training["pictures"] == 40 and "picture probe, from 40 pictures" in report
    loaded = pack.files.load_hgr(pack.files.save_hgr(hgr, "probed"))
    pictures = {"samples": torch.cat([kit.sample(kit.model, prompt, steps=12) for prompt in (kit.harmful, kit.clean)])}

    def scores(hgr):
        found = (
            pack.get("nodes.detect")
            .SafeCFGDetector.execute(hgr=hgr, concepts="", sensitivity="normal", latent=pictures, model=kit.model)
            .args[2]
        )
        return [item["score"] for item in json.loads(found)["items"]]

    assert scores(hgr)[0] > 2 * scores(hgr)[1] and scores(loaded) == pytest.approx(scores(hgr), abs=1e-4)


def test_pictures_of_a_video_are_single_frames_and_no_pictures_give_no_probe(run, pack):
    import torch

    one_picture = pack.get("hgr.hosts.comfy.latents").one_picture
    assert one_picture(torch.Size((2, 16, 9, 8, 6))) == (1, 16, 1, 8, 6)
    assert one_picture(torch.Size((2, 4, 8, 6))) == (1, 4, 8, 6)
    hgr, _, report = run(None, pictures=0)
    assert hgr.probe is None and "no picture probe" in report


def test_a_patched_model_paints_what_the_plain_one_paints(kit, hgr, pack):
    """An HGR and its probe learn from harmful pictures, also where SafeCFG is wired in before Train HGR."""
    import torch
    from host_kit import HARMFUL

    host = pack.get("hgr.hosts.comfy.denoiser")
    plain, patched = (
        next(host.denoiser_of(model, torch.Size((1, 4, 16, 16)), kit.clip).paint([HARMFUL], 0))
        for model in (kit.model, kit.patch(hgr))
    )
    assert torch.equal(plain, patched)


def test_the_score_gradient_is_the_denoisers_own(kit, pack):
    """Against finite differences, through the host's own forward."""
    import torch

    host = pack.get("hgr.hosts.comfy.denoiser")
    with torch.inference_mode(False), torch.enable_grad():
        found = host.denoiser_of(kit.model, torch.Size((1, 4, 16, 16)), gradients=True)
        x = kit.harmful[0][0].clone().requires_grad_()
        generator = torch.Generator().manual_seed(0)
        predict = found.draw(torch.randn(1, 4, 16, 16, generator=generator), 1, generator)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        loss = lambda features: predict(features, None).square().mean()  # noqa: E731
        (slope,) = torch.autograd.grad(loss(x), x)
        with torch.no_grad():
            h = 1e-2
            numeric = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
        assert (slope * direction).sum().item() == pytest.approx(numeric.item(), rel=0.05, abs=1e-6)


def test_recorded_layers_hold_a_loras_weights(kit, pack):
    import comfy.sd
    import torch

    host, attention = pack.get("hgr.hosts.comfy.denoiser"), pack.get("hgr.training.attention")
    with_lora, _ = comfy.sd.load_lora_for_models(kit.model, None, kit.random_lora(), 1.0, 0.0)
    recorded = []
    for model in (kit.model, with_lora):
        with torch.inference_mode(False), torch.no_grad():
            found = host.denoiser_of(model, torch.Size((1, 4, 16, 16)))
            features = kit.harmful[0][0].clone()
            layers = attention.record(
                attention.cross_attention(found.module),
                lambda found=found, features=features: found.draw(
                    torch.zeros(1, 4, 16, 16), 1, torch.Generator().manual_seed(0)
                )(features, None),
                queries=8,
                generator=torch.Generator().manual_seed(0),
            )
        recorded.append(layers[0].key)
    lora, change = kit.random_lora(), recorded[1] - recorded[0]
    changes = [
        (lora[key] @ lora[key.replace("lora_up", "lora_down")]).T
        for key in lora
        if key.endswith("attn2_to_k.lora_up.weight")
    ]
    assert any(each.shape == change.shape and torch.allclose(each, change, atol=1e-4) for each in changes)


@pytest.mark.slow
@pytest.mark.oldest
def test_an_interrupted_training_goes_on_and_ends_as_an_uninterrupted_one(kit, run, pack, monkeypatch, interrupt_at):
    import comfy.model_management as management
    import torch

    whole = run(steps=24, seed=5)[0]
    core = pack.get("hgr.training.loop")
    monkeypatch.setattr(core, "CHECKPOINT_SECONDS", 0.0)
    seen = interrupt_at(9)
    with pytest.raises(management.InterruptProcessingException):
        run(steps=24, seed=5)
    resumed = run(steps=24, seed=5)[0]
    assert seen[9] == 10, "it began anew"
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


@pytest.mark.oldest
def test_a_training_is_not_resumed_with_another_text_encoder(kit, run, home, interrupt_at):
    import comfy.model_management as management
    import torch

    others = set(home.glob("training/*"))
    seen = interrupt_at(3)
    with pytest.raises(management.InterruptProcessingException):
        run(seed=11)
    tuned = kit.clip.clone()
    key = next(name for name in tuned.patcher.model_state_dict() if name.endswith("mlp.fc1.weight"))
    tuned.add_patches({key: (torch.ones_like(tuned.patcher.model_state_dict()[key]),)}, 0.1)
    run(clip=tuned, seed=11)
    skipped = kit.clip.clone()  # the same weights
    skipped.clip_layer(-2)
    run(clip=skipped, seed=11)
    run(seed=11)
    assert seen[3] == 1 and seen[23] == 1 and seen[43] == 4, (
        "the plain encoder's training is still there, and is resumed"
    )
    assert set(home.glob("training/*")) <= others


@pytest.fixture
def home(pack):
    """Where the trainings' folders are."""
    from pathlib import Path

    import folder_paths

    return Path(folder_paths.get_system_user_directory("safecfg"))


@pytest.mark.slow
@pytest.mark.oldest
def test_the_same_training_twice_at_once_is_refused_and_the_first_ends_as_alone(run, pack, home, monkeypatch):
    """As two ComfyUIs with one user folder would run it. Ctrl-C and SIGTERM stay the host's."""
    import signal

    import torch

    alone = run(seed=6)[0]
    progress, handlers, said = pack.get("hgr.hosts.comfy.progress").TrainingProgress, [], []
    step, before = progress.step, [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]

    def twice(self, done, loss):
        step(self, done, loss)
        if done == 7 and not said:
            with pytest.raises(ValueError, match="the same is already running in .*: wait until it has") as caught:
                run(seed=6)
            said.append(str(caught.value))
            handlers.extend([signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)])

    monkeypatch.setattr(progress, "step", twice)
    first = run(seed=6)[0]
    assert len(said) == 1 and str(home / "training") in said[0] and handlers == before
    assert all(torch.equal(a, b) for a, b in zip(weights(alone), weights(first), strict=True))
    assert not list(home.glob("training/*"))


@pytest.mark.slow
def test_what_interrupted_trainings_left_goes_when_nobody_can_or_will_resume_it(run, pack, home, caplog):
    import logging
    import os
    import time

    import torch
    from safetensors.torch import save_file

    files = pack.get("hgr.training.work_files")
    now, checkpoint = time.time(), "hgr.checkpoint.safetensors"
    old = now - (files.KEPT_DAYS + 1) * 86_400

    def leave(folder, name, size, modified):
        path = home / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(size)}, path)
        os.utime(path, (modified, modified))
        return path

    gone = [
        leave("training/killed", "features-0.bin", 500_000, now),
        leave("training/killed", f"{checkpoint}.safecfg-0123456789abcdef.part", 500_000, now),
        leave("training/old", checkpoint, 9, old),
        leave("finetuning/old", "lora.checkpoint.safetensors", 9, old),
        leave("finetuning/old", "pictures-0.safetensors", 9, old),
        leave("training/damaged", checkpoint, 9, now),
    ]
    gone[-1].write_bytes(gone[-1].read_bytes()[:-1])
    kept = [leave("training/new", checkpoint, 9, now), leave("training/running", checkpoint, 9, old)]
    with caplog.at_level(logging.INFO), files.hold(files.lock_file(home / "training/running"), ""):
        run(seed=7)
    assert not any(path.parent.exists() for path in gone) and all(path.exists() for path in kept)
    assert f"removed 4.0 MB that interrupted runs left in {home}" in caplog.text
    for path in kept:
        path.unlink()
        path.parent.rmdir()


@pytest.mark.slow
@pytest.mark.oldest
def test_another_training_of_the_encoder_encodes_only_what_is_new_and_learns_the_same(run, pack, home, monkeypatch):
    import shutil

    import torch

    progress, said = pack.get("hgr.hosts.comfy.progress").TrainingProgress, []
    monkeypatch.setattr(progress, "phase", lambda self, name: said.append(name))
    run(seed=12)
    assert [path.suffix for path in (home / "prompts").iterdir()] == [".bin"] and not list(home.glob("training/*"))
    first = next(name for name in said if name.startswith("encoding"))
    del said[:]
    with_kept = run(seed=12, steps=21)[0]
    assert not any(name.startswith("encoding") for name in said)
    shutil.rmtree(home / "prompts")
    alone = run(seed=12, steps=21)[0]
    assert first in said
    assert all(torch.equal(a, b) for a, b in zip(weights(alone), weights(with_kept), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(losses="attention", model=None), "need the model"),
        (dict(false_positive_rate=0.1), "cannot be measured"),
        (dict(learning_rate=1e6, steps=60), "loss is"),
    ],
)
def test_a_training_that_cannot_succeed_says_why(run, changes, message):
    with pytest.raises((ValueError, FloatingPointError), match=message):
        run(**changes)


def test_a_model_without_cross_attention_is_told_to_use_text(run):
    import families

    with pytest.raises(ValueError, match='choose the losses "text"'):
        run(families.FAMILIES["flux"]().model, losses="attention")


@pytest.mark.slow
@pytest.mark.oldest
def test_what_is_saved_is_listed_and_loaded_and_a_name_is_never_lost(kit, run, nodes, pack, monkeypatch):
    import torch

    hgr, *_ = run()
    said = [nodes.SafeCFGSaveHGR.execute(hgr=hgr, name="mine").ui.as_dict()["text"][0] for _ in range(2)]
    assert said == ["Saved as models/hgr/mine.safetensors", "Saved as models/hgr/mine_2.safetensors"]
    assert {"mine.safetensors", "mine_2.safetensors"} <= set(pack.files.hgr_names())
    loaded = pack.loader.SafeCFGHGRLoader.execute(hgr_name="mine.safetensors").args[0]
    assert loaded.concepts == hgr.concepts and loaded.training == hgr.training
    assert torch.allclose(loaded.read(kit.harmful[0][0]).gates, hgr.read(kit.harmful[0][0]).gates, atol=2e-3)
    for bad in ("../x", "a/b", "", ".hidden", "x" * 101, "a\0"):
        assert nodes.SafeCFGSaveHGR.validate_inputs(bad) is not True
        with pytest.raises(ValueError, match="file name"):
            pack.files.save_hgr(hgr, bad)


def test_merged_hgrs_act_together_and_a_clash_names_both(kit, hgr, nodes, pack):
    import dataclasses

    import torch

    other = dataclasses.replace(
        hgr, concepts=[dataclasses.replace(c, id=f"other_{c.id}") for c in hgr.concepts], name="second"
    )
    merged = nodes.SafeCFGMergeHGR.execute(hgr_1=hgr, hgr_2=other, hgr_3=None).args[0]
    assert merged.ids == [*hgr.ids, *other.ids]
    alone = kit.patch(merged, concepts='{"other_skull": 0}')
    assert torch.equal(kit.sample(alone, kit.harmful), kit.sample(kit.patch(hgr), kit.harmful))
    assert not torch.equal(kit.sample(kit.patch(merged), kit.harmful), kit.sample(kit.patch(hgr), kit.harmful))
    with pytest.raises(pack.hgr.HGRError, match="this HGR and again"):
        nodes.SafeCFGMergeHGR.execute(hgr_1=hgr, hgr_2=dataclasses.replace(hgr, name="again"))


@pytest.fixture(params=["sd1", "sd2", "sdxl", "sd3", "flux", "wan", "qwen", "lumina"])
def family(request, pack):
    import families

    return families.FAMILIES[request.param]()


@pytest.mark.slow
def test_every_family_trains_saves_loads_and_guides(family, nodes, pack):
    """Concept "bomb" against "ball" on text alone; the family's model is then guided, and left alone at strength 0."""
    import torch

    core = pack.get("hgr.data.pairs")
    things = [
        f"{size} {colour}"
        for size in ("small", "large", "old", "bright")
        for colour in ("red", "blue", "green", "wooden")
    ]
    prompts = [
        f"{thing} {noun} {place}"
        for thing in things
        for noun in ("house", "cat")
        for place in ("in the meadow", "on the street")
    ]
    pairs = core.Pairs(
        (core.Topic("bomb", "Bomb"),),
        tuple(
            core.Pair("bomb", f"a bomb next to a {prompt}", f"a ball next to a {prompt}", prompt) for prompt in prompts
        ),
        tuple(f"a picture of a {prompt}" for prompt in prompts),
    )
    trained = nodes.SafeCFGTrainHGR.execute(
        **SETTINGS | dict(clip=family.clip, pairs=pairs, false_positive_rate=20.0)
    ).args[0]
    assert trained.network.pooled_dim == family.pooled_dim
    assert (trained.encoder.chunk, trained.encoder.fixed_start) == (family.chunk, family.fixed_start)
    hgr = pack.files.load_hgr(pack.files.save_hgr(trained, "family"))
    # a training of seconds moves features, but its gates are not to be relied on: open them
    hgr.concepts = [pack.hgr.Concept("bomb", "Bomb", scale=0.0, bias=9.0)]
    harmful, negative = (family.encode(text) for text in ("a photo of a bomb next to a red cat", ""))

    def sample(strength):
        patched = pack.guide.SafeCFGModel.execute(
            model=family.model,
            hgr=hgr,
            strength=strength,
            mode="redirect",
            concepts="",
            start_percent=0.0,
            end_percent=1.0,
        ).args[0]
        return family.sample(patched, harmful, negative)

    plain = family.sample(family.model, harmful, negative)
    assert torch.equal(sample(0.0), plain)
    assert not torch.equal(sample(1.0), plain)


# --- many at once -----------------------------------------------------------------------------------------------------

TEXTS = [
    "a red house",
    "a (red:1.3) house next to a cat",
    "",
    "a photo of a dog on the table, painting",
    "a bright street",
    "a small wooden ball with a child " * 12,  # more than a section
    "old garden next to the meadow",
    "a green cat",
]
# Calls for TEXTS and again for TEXTS: four more, in which it is measured once whether prompts can be joined, and the
# long prompt has one of its own. With one call for each prompt there are 16.
CALLS = {name: 4 + 2 + 2 for name in ("sd1", "sd2", "sdxl", "flux")}


def alone(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]


@pytest.mark.slow
@pytest.mark.oldest
def test_prompts_are_encoded_together_where_that_gives_the_same(family, pack, request, monkeypatch):
    import torch

    encode, calls = pack.get("hgr.hosts.comfy.conditionings").PromptEncoder(family.clip), []
    scheduled = family.clip.encode_from_tokens_scheduled
    monkeypatch.setattr(
        family.clip, "encode_from_tokens_scheduled", lambda tokens: calls.append(tokens) or scheduled(tokens)
    )
    found = encode(TEXTS) + encode(TEXTS)
    count, name = len(calls), request.node.callspec.params["family"]
    assert count == CALLS.get(name, count) and count <= 2 * len(TEXTS) + 1
    for text, (features, extra) in zip(TEXTS * 2, found, strict=True):
        expected, beside = alone(family.clip, text)
        assert features.shape == expected.shape and extra.keys() == beside.keys()
        for x, y in ((features, expected), (extra["pooled_output"], beside["pooled_output"])):
            if isinstance(y, torch.Tensor):
                assert (x - y).abs().max() <= 1e-5 * y.abs().max(), text


def test_prompts_of_sd15_are_the_same_bits_together(kit, pack):
    import torch

    encode = pack.get("hgr.hosts.comfy.conditionings").PromptEncoder(kit.clip)
    found = encode(TEXTS)
    assert encode.together
    assert all(torch.equal(x, alone(kit.clip, text)[0]) for text, (x, _) in zip(TEXTS, found, strict=True))


def test_an_encoder_that_mixes_sections_gets_one_prompt_at_a_time(kit, pack, monkeypatch):
    import torch

    scheduled, calls = kit.clip.encode_from_tokens_scheduled, []

    def mixing(tokens):
        calls.append(tokens)
        features, extra = scheduled(tokens)[0]
        return [(features + (0.01 if calls[-1]["l"][1:] else 0), extra)]

    monkeypatch.setattr(kit.clip, "encode_from_tokens_scheduled", mixing)
    texts = [text for text in TEXTS if len(text) < 100]
    encode = pack.get("hgr.hosts.comfy.conditionings").PromptEncoder(kit.clip)
    found = encode(texts) + encode(texts)
    assert encode.together is False and len(calls) == 1 + 2 * len(texts)
    monkeypatch.undo()
    assert all(torch.equal(x, alone(kit.clip, text)[0]) for text, (x, _) in zip(texts * 2, found, strict=True))


@pytest.mark.slow
@pytest.mark.oldest
def test_pictures_are_painted_in_batches_each_as_alone_and_from_prompts_encoded_before(kit, pack, monkeypatch):
    import comfy.sample
    import torch

    host, events = pack.get("hgr.hosts.comfy.denoiser"), []
    sample, encode = comfy.sample.sample, kit.clip.encode_from_tokens_scheduled

    def sampling(model, noise, *given, **more):
        events.append(len(noise))
        return sample(model, noise, *given, **more)

    monkeypatch.setattr(comfy.sample, "sample", sampling)
    monkeypatch.setattr(
        kit.clip, "encode_from_tokens_scheduled", lambda tokens: events.append("encoded") or encode(tokens)
    )
    paint = host.denoiser_of(kit.model, torch.Size((1, 4, 16, 16)), kit.clip, seed=3).paint
    together = torch.cat(list(paint(TEXTS, 0)))
    counts = [each for each in events if each != "encoded"]
    assert counts == [5, 1, 2] and events[-3:] == counts, "one prompt is longer than the others"
    for i in range(len(TEXTS)):
        one = next(paint(TEXTS[: i + 1], i))
        assert one.shape[0] == 1 and (one[0] - together[i]).abs().max() < 1e-3 * together.abs().max()
    assert torch.equal(torch.cat(list(paint(TEXTS, 6))), together[6:])


@pytest.mark.slow
def test_every_family_paints_a_batch_as_one_after_the_other(family, pack):
    import torch

    host = pack.get("hgr.hosts.comfy.denoiser")
    size = torch.Size((1, *family.latent.shape[1:]))
    paint = host.denoiser_of(family.model, size, family.clip, seed=3).paint
    texts = ["a red house", "a green cat", "a blue dog"]
    together = torch.cat(list(paint(texts, 0)))
    alone = torch.cat([next(paint(texts[: i + 1], i)) for i in range(3)])
    assert together.shape == alone.shape and (together - alone).abs().max() <= 1e-3 * alone.abs().max()


@pytest.mark.slow
@pytest.mark.oldest
@pytest.mark.parametrize(("phase", "left"), [("text", {"features-0.bin"}), ("picture", {"pictures-0.safetensors"})])
def test_an_interruption_before_the_steps_keeps_what_is_done(run, kit, pack, home, monkeypatch, phase, left):
    import shutil

    import comfy.model_management as management
    import torch

    given = dict(model=kit.model, losses="attention", steps=6, seed=8, pictures=16)
    whole = run(**given)[0]
    shutil.rmtree(home / "prompts")
    others = set(home.glob("training/*"))  # of trainings that other tests stopped
    progress, seen = pack.get("hgr.hosts.comfy.progress").TrainingProgress, []
    method = getattr(progress, phase)

    def interrupted(self, done, total):
        seen.append((done, total))
        if done == total // 2:
            management.interrupt_current_processing()
        method(self, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(progress, phase, interrupted)
        with pytest.raises(management.InterruptProcessingException):
            run(**given)
    (work,) = set(home.glob("training/*")) - others
    assert {path.name for path in work.iterdir()} == left | {"features-0.bin"}
    half, total = seen[-1]
    del seen[:]
    monkeypatch.setattr(progress, phase, lambda self, *at: seen.append(at) or method(self, *at))
    resumed = run(**given)[0]
    first = seen[0][0]
    assert first == (half + 1 if phase == "text" else half) and all(at[1] == total for at in seen[:2])
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert not work.exists(), "nothing is left of a training that ended"


@pytest.mark.oldest
def test_the_node_and_the_log_say_what_is_done_and_how_long_it_takes(run, kit, pack, monkeypatch, caplog):
    import logging
    import re
    from types import SimpleNamespace

    runs, progress = pack.get("hgr.hosts.comfy.runs"), pack.get("hgr.hosts.comfy.progress")
    graph = SimpleNamespace(get_node=lambda _: {"inputs": {}}, get_display_node_id=lambda _: "7")
    here, shown = SimpleNamespace(graph=graph, prompt_id="x", said=set(), found={}), []
    monkeypatch.setattr(runs, "_current", lambda: here)
    monkeypatch.setattr(runs, "get_executing_context", lambda: SimpleNamespace(node_id="7"))
    monkeypatch.setattr(runs.editor, "show_text", lambda *told: shown.append(told))
    monkeypatch.setattr(runs.editor, "show_fired", lambda *_, **__: None)
    monkeypatch.setattr(progress, "_TEXT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    monkeypatch.setattr(pack.get("hgr.core.progress"), "_FIRST", 0.0)
    runs.note(["a note that stays"])
    with caplog.at_level(logging.INFO):
        run(kit.model, losses="attention", steps=20, seed=9)
    assert {node for node, _ in shown} == {"7"} and all(text.endswith("a note that stays") for _, text in shown)
    lines = [text.splitlines()[0] for _, text in shown]
    for what in (r"encoding [\d,]+ prompts", "painting 8 pictures", "training 20 steps"):
        assert any(re.fullmatch(what, line) for line in lines) and any(re.fullmatch(what, m) for m in caplog.messages)
        counted = rf"{what}: [\d,]+ of [\d,]+, (less than a minute|about \d+ \w+) left"
        assert what.startswith("painting") or any(re.fullmatch(counted, line) for line in lines)
        assert what.startswith("painting") or any(re.fullmatch(counted, line) for line in caplog.messages)
    assert lines[-1] == "HGR training: done in less than a minute"
