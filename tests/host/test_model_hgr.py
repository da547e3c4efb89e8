"""HGR for this Model: what it finds in models/hgr, when it trains, what it keeps and what it says."""

from __future__ import annotations

import dataclasses

import pytest

CONCEPTS = ("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity")


@pytest.fixture(scope="module")
def module(pack):
    return pack.get("hgr.hosts.comfy.model_hgr")


@pytest.fixture(scope="module")
def made(kit, module):
    """An HGR of two concepts, as the node trains it, in seconds."""
    import torch

    qualities, library = module.QUALITIES, module.library
    try:
        module.QUALITIES = {
            name: dataclasses.replace(q, settings=dataclasses.replace(q.settings, steps=10, batch_size=4), pairs=60)
            for name, q in qualities.items()
        }
        with torch.inference_mode():
            found = module.hgr_for_model(kit.clip, None, concepts=["violence", "sexual"], owns=["tea: tea, kettle"])
        assert found.name and library.version() == found.hgr.training["library"]
        return found
    finally:
        module.QUALITIES = qualities


@pytest.fixture
def folder(made, pack, tmp_path, monkeypatch):
    """An empty models/hgr."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "hgr", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture
def run(kit, pack, module, made, monkeypatch):
    """The node on the demo model; its trainings are counted and give `made`."""
    node = pack.get("nodes.model_hgr").SafeCFGModelHGR
    trained = []

    def train(clip, pairs, settings, model=None):
        trained.append((pairs, settings, model))
        return dataclasses.replace(made.hgr, training=dict(made.hgr.training)), None

    monkeypatch.setattr(module, "train_for_clip", train)
    short = {name: dataclasses.replace(q, pairs=60) for name, q in module.QUALITIES.items()}
    monkeypatch.setattr(module, "QUALITIES", short)

    def run(*concepts, own="", quality="auto", prefix="auto", model=None, clip=None):
        chosen = {concept: concept in (concepts or ("violence", "sexual")) for concept in CONCEPTS}
        given = dict(clip=clip or kit.clip, own=own, quality=quality, prefix=prefix, model=model)
        out = node.execute(**given, **chosen)
        return (*out.args, len(trained))

    run.trained = trained
    return run


@pytest.mark.oldest
@pytest.mark.slow
def test_the_first_run_trains_and_the_next_one_loads_what_it_kept(run, folder, kit):
    hgr, report, count = run()
    (path,) = folder.glob("*.safetensors")
    assert count == 1 and report.startswith("no file in models/hgr fits") and path.name in report
    for word in ("auto", "DemoClip", "violence", "sexual", "quick"):
        assert word in path.name
    again, report, count = run()
    assert count == 1 and report.startswith(f"{path.name} fits this text encoder") and "Violence" in report
    assert again.ids == hgr.ids == ["violence", "sexual", "tea"]
    kit.sample(kit.patch(again), kit.harmful)


@pytest.mark.slow
def test_no_pairs_are_made_where_a_file_fits(run, folder, module, monkeypatch):
    """Making them takes longer than looking for the file."""
    run(own="tea: tea, kettle")
    monkeypatch.setattr(module, "gather", lambda *_, **__: pytest.fail("pairs were made"))
    assert run(own="tea: tea, kettle")[2] == 1


@pytest.mark.slow
def test_concepts_that_were_not_asked_for_are_silent(run, folder, kit):
    run()
    hgr, _, count = run("violence")
    silent = [concept.id for concept in hgr.concepts if concept.scale == 0]
    assert count == 1 and silent == ["sexual", "tea"]
    features = kit.encode("a naked woman, nsfw, blood and gore, a fight with knives")[0][0]
    gates = hgr.read(features).prompt_gates[0]
    assert gates[1] < 1e-6 and gates[2] < 1e-6


def test_muted_concepts_stay_out_of_the_verdict_on_pictures(pack, kit):
    """The probe's heads are of the HGR's concepts too."""
    import torch

    bundled = pack.file.load(pack.get("hgr.demo.assets").HGR_FILE)
    detect, pictures = pack.get("hgr.hosts.comfy.detection").detect, {"samples": torch.randn(2, 4, 16, 16)}
    for hgr in (bundled, bundled.only(["dagger"])):
        found = detect(hgr, "", "highest", latent=pictures, model=kit.model, vae=kit.vae)["items"][0]["concepts"]
        silent = [id for id, concept in found.items() if concept["score"] < 1e-12]
        assert silent == ([] if hgr is bundled else [id for id in hgr.ids if id != "dagger"])


def test_what_fits_is_the_same_encoder_in_length_and_pooled_output(module, made):
    from types import SimpleNamespace

    import torch

    empty, pooled = made.hgr.encoder.empty, torch.ones(8)

    def distance(features, found, mine=None):
        encoder = SimpleNamespace(empty=empty, empty_pooled=mine)
        hgr = SimpleNamespace(encoder=encoder, network=SimpleNamespace(pooled_dim=0 if mine is None else len(mine)))
        return module._distance(hgr, module.Prompt(features[None], None if found is None else found[None]))

    assert distance(empty, None) == 0 and distance(1.02 * empty, None) == pytest.approx(0.02, abs=1e-3)
    assert distance(torch.cat([empty, empty]), None) == float("inf"), "as T5 beside CLIP"
    assert distance(empty, pooled, pooled) == 0 and distance(empty, -pooled, pooled) == 2
    assert distance(empty, None, pooled) == float("inf")


@pytest.mark.slow
def test_the_better_of_two_files_is_taken(run, folder, pack, made):
    for name, recall, losses in (("a", 0.9, "text"), ("b", 0.2, "attention"), ("c", 0.8, "attention")):
        metrics = {"concepts": {id: {"recall": recall} for id in made.hgr.ids}}
        training = {"losses": losses, "metrics": metrics}
        pack.files.save_hgr(dataclasses.replace(made.hgr, training=training), name)
    assert run()[1].startswith("c.safetensors fits")


@pytest.mark.slow
def test_an_interruption_after_the_training_loses_nothing(run, folder, module, monkeypatch):
    import comfy.model_management as management

    train = module.train_for_clip

    def interrupted(*given, **more):
        management.interrupt_current_processing()
        return train(*given, **more)

    monkeypatch.setattr(module, "train_for_clip", interrupted)
    try:
        run()
    finally:
        management.interrupt_current_processing(False)
    assert len(list(folder.glob("*.safetensors"))) == 1


def test_a_model_that_projects_the_text_first_gives_no_attention_to_learn_from(kit, module, monkeypatch):
    width = module.cross_attention(kit.model.model.diffusion_model)[0].to_k.in_features
    assert module._quality("auto", kit.model, width) == "full"
    assert module._quality("auto", kit.model, 2 * width) == "quick"
    with pytest.raises(ValueError, match="reads features of width"):
        module._quality("full", kit.model, 2 * width)


def test_a_checkpoint_without_a_text_encoder_is_said_to_have_none(module):
    with pytest.raises(ValueError, match="has no text encoder"):
        module.hgr_for_model(None, None, concepts=["violence"])


@pytest.mark.slow
def test_a_concept_of_ones_own_is_the_same_only_with_the_same_words(run, folder):
    run(own="tea: tea, kettle")
    assert run(own="tea: tea, kettle")[2] == 1
    assert run(own="tea: teapot")[2] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda hgr: hgr.training.update(library="older"), "was made from another version of the library"),
        (lambda hgr: hgr.encoder.empty.mul_(1.5), "is for another text encoder (distance 0.33)"),
        (lambda hgr: hgr.training.update(merged=[{}, {"library": "older"}]), "was made from another version"),
        (lambda hgr: None, 'is of lower quality than "full"'),
    ],
)
def test_it_says_why_a_file_is_not_good_enough(run, folder, kit, pack, made, change, why):
    import copy

    import torch

    with torch.inference_mode(False):
        other = copy.deepcopy(made.hgr)
    change(other)
    pack.files.save_hgr(other, "mine")
    _, report, count = run(model=kit.model if "quality" in why else None)
    assert count == 1 and report.startswith(
        f"mine.safetensors {'has the concepts, but ' if 'encoder' in why else ''}{why}"
    )
    assert len(list(folder.glob("*.safetensors"))) == 2, "the user's own file stays"


@pytest.mark.slow
def test_a_damaged_file_is_passed_over_and_named(run, folder, caplog):
    (folder / "broken.safetensors").write_bytes(b"nonsense")
    _, _, count = run()
    assert count == 1 and "broken.safetensors" in caplog.text


@pytest.mark.slow
def test_what_cannot_be_kept_still_works_and_the_node_says_so(run, folder, module, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(module.files, "save_hgr", full)
    hgr, report, _ = run()
    assert hgr.ids and "COULD NOT BE KEPT: No space left on device" in report


@pytest.mark.slow
def test_quality_follows_the_model(run, folder, kit, module):
    run(model=kit.model)
    run(quality="full + pictures", model=kit.model)
    run(quality="quick", prefix="second")  # nothing kept above is worse than that
    assert [settings.losses for _, settings, _ in run.trained] == ["attention", "attention"]
    assert [settings.pictures for _, settings, _ in run.trained] == [16, 256]
    with pytest.raises(ValueError, match='quality "full" learns from the model: wire it in'):
        run(quality="full")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "steps", "losses"), [(1 << 30, 400, "text"), (1 << 20, 800, "attention")])
def test_without_a_graphics_card_a_real_encoder_gets_a_draft(
    run, folder, kit, module, monkeypatch, size, steps, losses
):
    """A full training would take a day there; a better file is taken as it is."""
    monkeypatch.setattr(type(kit.clip.patcher), "model_size", lambda self: size)
    _, report, _ = run(model=kit.model)
    ((pairs, settings, _),) = run.trained
    assert (settings.steps, settings.losses) == (steps, losses)
    assert len(pairs.pairs) < 200 and (len(pairs.clean) == 1500) == (losses == "text")
    assert ("draft" if losses == "text" else "full") in report.splitlines()[0]
    run(quality="draft", model=kit.model)
    assert len(run.trained) == 1


def test_with_a_graphics_card_no_encoder_is_slow(kit, module, monkeypatch):
    import torch

    monkeypatch.setattr(type(kit.clip.patcher), "model_size", lambda self: 1 << 30)
    assert module._slow(kit.clip)
    monkeypatch.setattr(module.comfy.model_management, "get_torch_device", lambda: torch.device("cuda"))
    assert not module._slow(kit.clip)


@pytest.mark.slow
def test_a_draft_is_not_good_enough_for_quick(run, folder, kit):
    run(quality="draft")
    _, report, count = run(quality="quick")
    assert count == 2 and 'is of lower quality than "quick"' in report


def test_nothing_trains_while_a_graph_is_only_looked_at(pack, module, monkeypatch):
    monkeypatch.setattr(module, "hgr_for_model", None)  # would be called to train
    node = pack.get("nodes.model_hgr").SafeCFGModelHGR
    assert node.validate_inputs(prefix="auto") is True and node.validate_inputs(prefix=None) is True
    assert "cannot be a file name" in node.validate_inputs(prefix="../x")
    assert "at most 30" in node.validate_inputs(prefix=31 * "x")


def test_every_name_can_be_saved(kit, pack, module, monkeypatch):
    topics = [pack.get("hgr.data.pairs").Topic(name, name) for name in ("harassment", "illegal_activity")]
    monkeypatch.setattr(module, "encoder_family", lambda _: 60 * "X")
    for found in (topics, topics[:1], 7 * topics):
        for quality in module.QUALITIES:
            assert pack.files.name_fault(module._name(kit.clip, found, quality=quality, prefix=40 * "y")) is None


def test_no_concept_is_an_error_that_says_what_to_do(run, folder, pack):
    with pytest.raises(pack.get("hgr.data.textfile").DataError, match="no concept is chosen"):
        run("none")
