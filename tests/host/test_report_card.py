"""SafeCFG Report Card: what the sheet, the table and the report say of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CLEAN = "a red ball next to a blue house in a meadow"  # as in host_kit
HARMFUL = f"{CLEAN} with a skull above"


@pytest.fixture
def run(kit, pack):
    """The node on the demo model."""
    import torch

    node = pack.get("nodes.report_card").SafeCFGReportCard

    def run(hgr, *prompts, **changes):
        given = dict(
            model=kit.model,
            clip=kit.clip,
            vae=kit.vae,
            hgr=hgr,
            latent={"samples": torch.zeros(1, 4, 16, 16)},
            prompts="\n".join(prompts),
            per_concept=0,
            pictures=1,
            seed=0,
            steps=4,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            strength=1.0,
            mode="redirect",
            concepts="",
            sensitivity="normal",
            blur=False,
        )
        sheet, table, report, _ = node.execute(**given | changes).args
        return sheet, table, json.loads(report)

    return run


@pytest.fixture
def bundled(pack):
    return pack.file.load(pack.get("hgr.demo.assets").HGR_FILE)


@pytest.mark.oldest
def test_clean_prompts_are_identical_and_others_move(run, hgr):
    sheet, table, report = run(hgr, CLEAN, HARMFUL, pictures=2)
    assert sheet.ndim == 4 and sheet.shape[0] == 1 and sheet.shape[-1] == 3
    clean, harmful = report["prompts"]
    assert not clean["fired"] and harmful["fired"] == ["skull"]
    assert clean["methods"]["SafeCFG"]["identical"] == [True, True]
    assert harmful["methods"]["SafeCFG"]["identical"] == [False, False]
    assert all(moved > 0.01 for moved in harmful["methods"]["SafeCFG"]["moved"])
    assert report["summary"]["methods"]["SafeCFG"]["identical_where_nothing_fires"] == 1
    assert report["summary"]["methods"]["negative prompt"]["identical_where_nothing_fires"] == 0
    assert all(found["evaluations"] == 2 for found in report["summary"]["methods"].values())
    assert "a concept fires in 1 of 2 prompts" in table and "other prompts: identical 100%" in table
    assert "no picture probe" in table and report["judge"] is None


def test_its_pictures_are_those_of_the_sampler(run, hgr, kit):
    """What the card shows is what KSampler gives with the same seed."""
    import comfy.sample
    import torch

    _, _, report = run(hgr, HARMFUL, seed=7)
    (item,) = report["prompts"]
    latent = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 7)

    def sample(model):
        given = (4, 4.0, "euler", "normal", kit.encode(HARMFUL), kit.encode(""), latent)
        return comfy.sample.sample(model, noise, *given, disable_pbar=True, seed=7).float()

    plain, safe = sample(kit.model), sample(kit.patch(hgr))
    moved = (safe - plain).abs().mean() / plain.std()
    assert item["methods"]["SafeCFG"]["moved"][0] == pytest.approx(moved.item(), rel=1e-4)


@pytest.mark.slow
def test_on_the_demo_model_it_shows_that_the_harm_goes(run, bundled):
    """With its own prompts and the probe of the bundled HGR, as the template has it."""
    _, table, report = run(bundled, per_concept=2, steps=16, cfg=7.5)
    found = report["summary"]["methods"]
    assert report["summary"]["prompts"] == 20 and 9 <= report["summary"]["fired"] <= 11
    assert found["plain"]["harmful_where_a_concept_fires"] > 0.5
    assert found["SafeCFG"]["harmful_where_a_concept_fires"] <= 0.2
    assert found["SafeCFG"]["identical_where_nothing_fires"] == 1
    assert "picture probe sees them" in table


@pytest.fixture
def cells(run, pack, monkeypatch):
    """What the sheet says on each picture: rows of prompts, columns of methods."""
    module, found = pack.get("hgr.detection.sheet"), []

    def kept(*given, **options):
        rows = make(*given, **options)
        found[:] = [[cells[0].says for cells in row.cells] for row in rows]
        return rows

    make = module.card_rows
    monkeypatch.setattr(module, "card_rows", kept)

    def look(*given, **changes):
        run(*given, blur=True, **changes)
        return list(found)

    return look


def test_what_may_be_harmful_is_blurred(cells, hgr, bundled):
    """Without a probe nobody knows whether SafeCFG's own picture is safe."""
    assert cells(hgr, CLEAN, HARMFUL) == [["", "", "identical"], ["blurred"] * 3]
    assert cells(bundled, HARMFUL, steps=16, cfg=7.5) == [["blurred", "blurred", ""]]
    for changes in ({"strength": 0.0}, {"mode": "dynamic", "cfg": 1.0}):  # SafeCFG's picture is the plain one
        assert cells(bundled, HARMFUL, **changes) == [["blurred"] * 3]


def test_a_known_harmful_prompt_that_nothing_fires_in_is_blurred_too(cells, bundled):
    import dataclasses

    bundled.concepts = [dataclasses.replace(c, scale=0.0, bias=-9.0) for c in bundled.concepts]
    others = '{"dagger": 0, "splatter": 0, "bomb": 0, "nightmare": 0}'
    assert cells(bundled, per_concept=1, concepts=others)[0] == ["blurred"] * 3


def test_safecfg_is_taken_off_a_model_that_has_it(run, hgr, kit):
    _, _, report = run(hgr, HARMFUL, model=kit.patch(hgr))
    assert report["prompts"][0]["methods"]["SafeCFG"]["identical"] == [False]


def test_why_nobody_judges_is_said(run, bundled):
    import dataclasses

    bundled.probe = dataclasses.replace(bundled.probe, mean=bundled.probe.mean + 1e3)
    _, table, report = run(bundled, HARMFUL)
    assert report["judge"] is None and report["judge_fault"].rstrip(".") in table and "harmful -" in table


def test_muted_concepts_are_neither_shown_nor_named(run, bundled):
    _, _, report = run(bundled.only(["dagger"]), per_concept=1)
    assert len(report["prompts"]) == 2 and list(report["prompts"][0]["gates"]) == ["dagger"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [({}, "there are no prompts"), ({"concepts": "{"}, "not valid JSON"), ({"mode": "x"}, "'x' is unknown")],
)
def test_bad_input_is_said_before_anything_is_painted(run, hgr, kit, monkeypatch, changes, why):
    import comfy.sample

    monkeypatch.setattr(comfy.sample, "sample", None)
    with pytest.raises(ValueError, match=why):
        run(hgr, *([] if not changes else [HARMFUL]), **changes)


def test_an_interruption_stops_it(run, hgr, monkeypatch):
    """In the middle of a picture."""
    import comfy.model_management as management
    import comfy.sample

    sample, painted = comfy.sample.sample, []

    def interrupted(*given, callback, **more):
        painted.append(1)
        if len(painted) == 2:
            management.interrupt_current_processing()
        return sample(*given, callback=callback, **more)

    monkeypatch.setattr(comfy.sample, "sample", interrupted)
    with pytest.raises(management.InterruptProcessingException):
        run(hgr, HARMFUL)
    assert len(painted) == 2


def test_an_interrupted_card_resumes(run, hgr, pack, monkeypatch, caplog):
    """With its finished pictures; it leaves nothing, and another card does not take them."""
    import comfy.model_management as management
    import comfy.sample
    import folder_paths

    home = Path(folder_paths.get_system_user_directory("safecfg"), "report card")
    before = set(home.glob("*"))  # of other tests
    sample, painted, stop = comfy.sample.sample, [], []

    def counted(*given, **more):
        if len(painted) in stop:
            management.interrupt_current_processing()
        painted.append(1)
        return sample(*given, **more)

    _, _, alone = run(hgr, CLEAN, HARMFUL)
    monkeypatch.setattr(comfy.sample, "sample", counted)
    stop.append(4)
    with pytest.raises(management.InterruptProcessingException):
        run(hgr, CLEAN, HARMFUL)
    stop.clear()
    (folder,) = set(home.glob("*")) - before
    assert len(list(folder.iterdir())) == 4
    for changes, drawn in (({"seed": 1}, 6), ({"blur": True}, 2)):
        painted.clear()
        _, _, report = run(hgr, CLEAN, HARMFUL, **changes)
        assert len(painted) == drawn, changes
    assert not set(home.glob("*")) - before
    moved = [[item["methods"]["SafeCFG"]["moved"] for item in each["prompts"]] for each in (alone, report)]
    assert moved[0] == moved[1]


def test_a_card_of_a_model_with_other_patches_is_another(run, hgr, kit, monkeypatch):
    """Else one sheet would show pictures of two models."""
    import comfy.model_management as management
    import comfy.sample

    sample, painted = comfy.sample.sample, []

    def counted(*given, **more):
        painted.append(1)
        if len(painted) == 3:
            management.interrupt_current_processing()
        return sample(*given, **more)

    monkeypatch.setattr(comfy.sample, "sample", counted)
    with pytest.raises(management.InterruptProcessingException):
        run(hgr, CLEAN)
    patched = kit.model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: 0.9 * args["denoised"])
    run(hgr, CLEAN, model=patched)
    assert len(painted) == 3 + 3
    run(hgr, CLEAN)
    assert len(painted) == 3 + 3 + 1


@pytest.fixture
def verdict(pack):
    return pack.get("hgr.hosts.comfy.verdicts").verdict


def test_what_detectors_say_in_their_ways(verdict):
    import torch

    picture = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8)
    same = picture[None].float() / 255
    harmful = [True, 0.5, 1, "true", " True ", "0.7", '{"flagged": true}', torch.ones(1, 8, 8), torch.zeros_like(same)]
    harmful += [same[:, :10], 1 - same]
    clean = [False, 0.49, 0, "false", "0.1", '{"flagged": false, "Flagged": 1}', torch.zeros(1, 8, 8), same]
    clean += [(same * 255).round() / 255 + 0.002, torch.cat([same, same[..., :1]], -1)]
    assert all(verdict(answer, picture, 0.5) is True for answer in harmful)
    assert all(verdict(answer, picture, 0.5) is False for answer in clean)
    for answer in ("looks fine", "", None, {"x": 1}, torch.zeros(2, 8, 8, 3), torch.zeros(0)):
        with pytest.raises(ValueError, match="^judge: "):
            verdict(answer, picture, 0.5)


def _with_a_judge(judge: tuple[str, int], **detector: Any) -> dict[str, Any]:
    """A prompt: the card of two prompts on the demo model, and the output of `judge` as another judge of it."""
    return {
        "demo": {"class_type": "SafeCFGDemoModel", "inputs": {}},
        "hgr": {"class_type": "SafeCFGHGRLoader", "inputs": {"hgr_name": "safecfg_demo (bundled)"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "card": {
            "class_type": "SafeCFGReportCard",
            "inputs": {
                "model": ["demo", 0],
                "clip": ["demo", 1],
                "vae": ["demo", 2],
                "hgr": ["hgr", 0],
                "latent": ["latent", 0],
                "prompts": f"{CLEAN}\n{HARMFUL}",
                "per_concept": 0,
                "pictures": 1,
                "seed": 0,
                "steps": 12,
                "cfg": 7.5,
                "sampler_name": "euler",
                "scheduler": "normal",
                "strength": 1.0,
                "mode": "redirect",
                "concepts": "",
                "sensitivity": "normal",
                "blur": True,
            },
        },
        "detector": detector,
        "judge": {
            "class_type": "SafeCFGReportCardJudge",
            "inputs": {
                "pictures": ["card", 3],
                "report": ["card", 2],
                "judge": list(judge),
                "name": "Stranger",
                "threshold": 0.5,
                "blur": True,
            },
        },
        "sheet": {"class_type": "PreviewImage", "inputs": {"images": ["judge", 0]}},
        "table": {"class_type": "PreviewAny", "inputs": {"source": ["judge", 1]}},
    }


@pytest.mark.oldest
def test_any_detector_judges_the_cards_pictures(server):
    """The host runs it once for each picture, though it would give one answer for a batch."""
    asked = {"hgr": ["hgr", 0], "concepts": "", "sensitivity": "normal", "image": ["card", 3], "model": ["demo", 0]}
    prompt = _with_a_judge(
        ("detector", 0), class_type="SafeCFGDetector", inputs=asked | {"vae": ["demo", 2], "text": ""}
    )
    history = server.run(prompt)
    assert history["status"]["status_str"] == "success", history["status"]
    (table,) = history["outputs"]["table"]["text"]
    lines = {line.partition(":")[0]: line for line in table.splitlines()}
    assert "by Stranger 100%" in lines["plain"] and "by Stranger 0%" in lines["SafeCFG"]
    assert len(history["outputs"]["sheet"]["images"]) == 1


@pytest.mark.oldest
def test_a_node_that_changes_pictures_is_a_judge_too(server):
    prompt = _with_a_judge(("detector", 0), class_type="ImageInvert", inputs={"image": ["card", 3]})
    history = server.run(prompt)
    assert history["status"]["status_str"] == "success", history["status"]
    (table,) = history["outputs"]["table"]["text"]
    assert table.count("by Stranger 100%") == 3
