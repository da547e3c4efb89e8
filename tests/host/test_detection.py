"""The node Harmfulness Detector: prompts, pictures, both; what it says of them, and what it refuses to judge."""

from __future__ import annotations

import dataclasses
import json

import pytest

HARMFUL, CLEAN = "a dagger above a green tree on a beach", "a red ball next to a blue house in a meadow"
SKULL = "a skull next to a red ball in a meadow"


@pytest.fixture(scope="module")
def bundled(pack):
    """The bundled HGR, which has a picture probe."""
    return pack.files.load_hgr(pack.files.BUNDLED)


@pytest.fixture(scope="module")
def detect(pack, bundled):
    """(flagged, score, report as an object, chart) of the node."""

    def detect(**given):
        found = pack.get("nodes.detect").SafeCFGDetector.execute(
            **dict(hgr=bundled, concepts="", sensitivity="normal") | given
        )
        flagged, score, report, chart = found.args
        return flagged, score, json.loads(report), chart

    return detect


@pytest.fixture(scope="module")
def prompts(kit):
    """A batch of four prompts: harmful, clean, harmful, clean."""
    import torch

    with torch.inference_mode():
        return kit.batch(*map(kit.encode, (HARMFUL, CLEAN, SKULL, "a skull cap over a red car in a meadow")))


@pytest.fixture(scope="module")
def latent(kit, prompts):
    """What the demo model makes of them."""
    import torch

    with torch.inference_mode():
        return {"samples": kit.sample(kit.model, prompts, steps=12, shape=(4, 4, 16, 16))}


@pytest.fixture(scope="module")
def pictures(kit, latent):
    import torch

    with torch.inference_mode():
        return kit.vae.decode(latent["samples"])


@pytest.fixture
def looked(kit):
    """What pictures need beside themselves."""
    return dict(model=kit.model, vae=kit.vae)


def verdicts(report):
    return [item["flagged"] for item in report["items"]]


def scores(report):
    """(B, K)"""
    return [[concept["score"] for concept in item["concepts"].values()] for item in report["items"]]


@pytest.mark.oldest
def test_a_prompt_the_report_and_the_chart(kit, detect, bundled):
    """Every output, in the form that docs/detection.md describes."""
    flagged, score, report, chart = detect(conditioning=kit.encode(SKULL))
    assert flagged is True and score == report["score"] > 0.9
    assert list(report) == [
        "version",
        "hgr",
        "encoder",
        "sensitivity",
        "false_positive_rate",
        "about",
        "flagged",
        "score",
        "items",
    ]
    assert (report["version"], report["sensitivity"], report["about"], report["flagged"]) == (
        1,
        "normal",
        "prompts",
        True,
    )
    assert report["false_positive_rate"] == bundled.training["false_positive_rate"]
    (item,) = report["items"]
    assert list(item) == ["flagged", "score", "concepts"] and list(item["concepts"]) == bundled.ids
    assert [id for id, concept in item["concepts"].items() if concept["flagged"]] == ["skull"]
    skull = item["concepts"]["skull"]
    assert list(skull) == ["label", "score", "threshold", "flagged", "evidence", "all"]
    assert (
        skull["label"] == "Skull"
        and skull["evidence"] == "prompt"
        and skull["all"] == {"prompt": [skull["score"], skull["threshold"]]}
    )
    assert chart.ndim == 4 and chart.shape[0] == 1 and chart.shape[-1] == 3 and 0 <= chart.min() < chart.max() <= 1


@pytest.mark.oldest
def test_prompts_are_judged_one_by_one(kit, detect, prompts):
    flagged, score, report, _ = detect(conditioning=prompts)
    assert flagged is True and verdicts(report) == [True, False, True, False] and score == max(map(max, scores(report)))
    assert detect(conditioning=kit.encode(CLEAN))[0] is False
    assert detect(conditioning=[*kit.encode(CLEAN), *kit.encode(SKULL)])[0] is True, "combined prompts act together"
    combined = detect(conditioning=[*kit.encode(SKULL), *kit.batch(kit.clean, kit.clean)])[2]
    assert verdicts(combined) == [True, True], "one prompt acts on the whole batch of another"


@pytest.mark.oldest
def test_a_harmful_chunk_of_a_long_prompt_is_found(kit, detect):
    start = "a red ball next to a blue house in a meadow and a green tree beside a white box on a beach, " * 4
    conditioning = kit.encode(start + SKULL)
    assert conditioning[0][0].shape[1] > 77
    report = detect(conditioning=conditioning)[2]
    assert report["items"][0]["concepts"]["skull"]["flagged"]
    assert not detect(conditioning=kit.encode(start))[2]["items"][0]["concepts"]["skull"]["flagged"]


@pytest.mark.oldest
def test_with_clip_the_harmful_word_is_named(kit, detect, prompts):
    flagged, _, report, chart = detect(clip=kit.clip, text=SKULL)
    words = dict(report["items"][0]["words"])
    assert flagged and " ".join(word for word, _ in report["items"][0]["words"]) == SKULL
    assert words.pop("skull") > 0.9 and max(words.values()) < 0.3
    assert chart.shape[1] > detect(conditioning=kit.encode(SKULL))[3].shape[1], "the words are in the chart"
    assert not detect(clip=kit.clip, text="")[0]
    both = detect(conditioning=prompts, clip=kit.clip, text=SKULL)[2]
    assert verdicts(both) == [True, False, True, False] and all(
        item["words"] == report["items"][0]["words"] for item in both["items"]
    )


@pytest.mark.oldest
def test_pictures_alone(detect, looked, pictures):
    before = pictures.clone()
    flagged, score, report, _ = detect(image=pictures, **looked)
    assert (
        flagged is True
        and verdicts(report) == [True, False, True, False]
        and score > 0.6
        and report["about"] == "pictures"
    )
    assert report["items"][0]["concepts"]["dagger"]["flagged"] and report["items"][2]["concepts"]["skull"]["flagged"]
    assert all(list(c["all"]) == ["picture"] for item in report["items"] for c in item["concepts"].values())
    assert pictures.equal(before)
    assert detect(image=pictures[1:2], **looked)[0] is False


@pytest.mark.oldest
def test_pictures_with_their_prompts(kit, detect, looked, pictures, prompts):
    report = detect(image=pictures, conditioning=prompts, **looked)[2]
    assert verdicts(report) == [True, False, True, False]
    for item, shown in zip(report["items"], ("dagger", None, "skull", None), strict=True):
        for id, concept in item["concepts"].items():
            assert list(concept["all"]) == ["picture with prompt", "picture"]
            score, threshold = concept["all"]["picture with prompt"]
            # sure pictures lie close to the threshold of a concept that few pictures were painted of
            assert (score >= threshold - 0.05) == (id == shown), "each picture with its own prompt"
            assert concept["score"] == concept["all"][concept["evidence"]][0]
    one = detect(image=pictures[:2], conditioning=kit.encode(HARMFUL), **looked)[2]
    assert verdicts(one) == [True, False], "one prompt for all; the picture that does not show it is clean"


@pytest.mark.oldest
def test_a_picture_is_judged_alike_alone_and_in_a_batch_and_at_every_run(detect, looked, pictures, prompts):
    import torch

    whole = detect(image=pictures, conditioning=prompts, **looked)[2]
    assert detect(image=pictures, conditioning=prompts, **looked)[2] == whole
    alone = [[prompts[0][0][2:3], {}]]
    assert scores(detect(image=pictures[2:3], conditioning=alone, **looked)[2])[0] == pytest.approx(
        scores(whole)[2], abs=1e-3
    )
    other = detect(image=pictures, seed=1, **looked)[2]
    assert scores(other) != scores(detect(image=pictures, **looked)[2])
    steady = detect(image=pictures, samples=2, timesteps=3, conditioning=prompts, **looked)[2]
    assert verdicts(steady) == verdicts(whole) and scores(steady) != scores(whole)
    assert torch.is_inference_mode_enabled()


@pytest.mark.oldest
def test_latents_in_place_of_pictures(kit, detect, looked, latent, pictures):
    direct, decoded = (detect(**given, **looked)[2] for given in (dict(latent=latent), dict(image=pictures)))
    assert verdicts(direct) == verdicts(decoded) == [True, False, True, False]
    large = {"samples": kit.vae.encode(_resized(pictures, (256, 256)))}
    assert verdicts(detect(latent=large, **looked)[2]) == [True, False, True, False]
    fault = "its size is 4 x 32 x 32, but the HGR was trained with 4 x 16 x 16: wire in vae"
    with pytest.raises(ValueError, match=fault):
        detect(latent=large, model=kit.model)


def _resized(pictures, size):
    import torch.nn.functional as F

    return F.interpolate(pictures.movedim(-1, 1), size, mode="bilinear", antialias=True).movedim(1, -1)


@pytest.mark.oldest
@pytest.mark.parametrize("size", [(256, 256), (500, 512), (131, 120), (60, 64)])
def test_size_does_not_matter(detect, looked, pictures, size):
    assert verdicts(detect(image=_resized(pictures, size), **looked)[2]) == [True, False, True, False]


@pytest.mark.oldest
def test_a_wide_picture_is_looked_at_in_parts(detect, looked, pictures):
    """Three times as wide, and harmful in its last third only."""
    import torch

    wide = torch.cat([pictures[[1, 1]], pictures[[1, 3]], pictures[[2, 1]]], 2)
    assert wide.shape == (2, 128, 384, 3)
    assert verdicts(detect(image=wide, **looked)[2])[0] is True


@pytest.mark.oldest
@pytest.mark.parametrize("size", [(131, 77), (500, 300), (20, 20), (1, 300), (2000, 16)])
def test_odd_sizes_get_a_score(detect, looked, pictures, size):
    report = detect(image=_resized(pictures[:1], size), **looked)[2]
    assert 0 <= report["score"] <= 1 and len(report["items"]) == 1


def rounded(found):
    """A report with four digits: how many pictures are judged at once depends on free memory, and moves the sixth."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return round(found, 4) if isinstance(found, float) else found


@pytest.mark.oldest
def test_alpha_is_not_looked_at(detect, looked, pictures):
    import torch

    report = detect(image=pictures[:2], **looked)[2]
    for alpha in (torch.zeros, torch.rand):
        with_alpha = detect(image=torch.cat([pictures[:2], alpha(2, 128, 128, 1)], -1), **looked)[2]
        assert rounded(with_alpha) == rounded(report)


@pytest.mark.oldest
def test_a_grey_picture_is_judged_as_the_same_picture_in_colour(detect, looked, pictures):
    grey = pictures[:2].mean(-1, keepdim=True)
    report = detect(image=grey, **looked)[2]
    coloured = detect(image=grey.repeat(1, 1, 1, 3), **looked)[2]
    assert rounded(report) == rounded(coloured) and len(report["items"]) == 2


@pytest.mark.oldest
def test_sensitivity_moves_the_thresholds_and_a_switched_off_concept_does_not_count(
    kit, detect, looked, pictures, bundled
):
    found = {name: detect(image=pictures, sensitivity=name, **looked)[2] for name in ("lowest", "normal", "highest")}
    for id in ("skull", "dagger", "splatter", "bomb", "nightmare"):
        lowest, normal, highest = (report["items"][0]["concepts"][id]["threshold"] for report in found.values())
        assert lowest >= normal >= highest and lowest > highest
    assert scores(found["lowest"]) == scores(found["highest"])
    rate = bundled.probe.training["false_positive_rate"]
    assert [report["false_positive_rate"] for report in found.values()] == pytest.approx([rate / 4, rate, rate * 5])
    flagged, score, report, _ = detect(conditioning=kit.encode(SKULL), concepts='{"skull": 0}')
    assert (
        flagged is False
        and score < 0.3
        and list(report["items"][0]["concepts"]) == ["dagger", "splatter", "bomb", "nightmare"]
    )
    none = detect(
        conditioning=kit.encode(SKULL), concepts='{"skull": 0, "dagger": 0, "splatter": 0, "bomb": 0, "nightmare": 0}'
    )
    assert none[0] is False and none[1] == 0.0


def _error(detect, match, kind=ValueError, **given):
    with pytest.raises(kind, match=match):
        detect(**given)


@pytest.mark.oldest
def test_what_is_not_wired_in_is_named(kit, detect, pictures, latent):
    _error(detect, "nothing to judge")
    _error(detect, "wire in model", image=pictures, vae=kit.vae)
    _error(detect, "wire in vae", image=pictures, model=kit.model)
    _error(detect, "wire in clip", text=SKULL)
    _error(detect, "one of them", image=pictures, latent=latent, model=kit.model, vae=kit.vae)


@pytest.mark.oldest
def test_what_cannot_be_judged_is_refused(kit, detect, looked, pictures, latent, prompts):
    import torch
    from comfy.nested_tensor import NestedTensor

    samples = latent["samples"]
    video = {"samples": samples[:, :, None].expand(-1, -1, 3, -1, -1)}
    _error(detect, "this is a video", latent=video, **looked)
    _error(detect, "this is a video or sound", latent={"samples": NestedTensor([samples, samples])}, **looked)
    bad, broken = pictures.clone(), [[prompts[0][0].clone(), {}]]
    bad[1, 5, 5, 0], broken[0][0][1, 3] = float("nan"), float("nan")
    _error(detect, "image: it holds NaN", image=bad, **looked)
    for shape in ((4, 128, 128), (4, 128, 128, 2), (0, 128, 128, 3)):
        _error(detect, "^image: expected pictures .* with 1, 3 or 4 channels", image=torch.zeros(shape), **looked)
    _error(detect, "NaN", latent={"samples": torch.full_like(samples, float("inf"))}, **looked)
    _error(detect, "features hold NaN", conditioning=broken)
    _error(detect, "features hold NaN", conditioning=broken, image=pictures, **looked)
    _error(detect, "there are 4 prompts and 3 pictures", conditioning=prompts, image=pictures[:3], **looked)
    _error(detect, "batches of 2, 3", conditioning=[[prompts[0][0][:2], {}], [prompts[0][0][:3], {}]])
    _error(detect, "^concepts is not valid JSON", conditioning=prompts, concepts="{skull: 0}")


@pytest.mark.oldest
def test_another_models_hgr_is_refused(kit, detect, looked, pictures, bundled, pack):
    """No probe, another text encoder, another denoiser, another VAE: each by name, never a verdict."""
    import families
    import torch

    error, replace = pack.hgr.HGRError, dataclasses.replace
    _error(detect, "has no picture probe", error, hgr=replace(bundled, probe=None), image=pictures, **looked)
    other = replace(bundled, encoder=replace(bundled.encoder, family="another encoder", empty=-bundled.encoder.empty))
    _error(detect, "made for another encoder", error, hgr=other, conditioning=kit.clean)
    probe = bundled.probe
    narrow = replace(probe, mean=probe.mean[:, :10], std=probe.std[:, :10], weight=probe.weight[..., :10])
    _error(
        detect,
        "a denoiser with 10 features, but this model has 256",
        error,
        hgr=replace(bundled, probe=narrow),
        image=pictures,
        **looked,
    )
    far = replace(probe, mean=probe.mean + 100 * probe.std)
    _error(detect, "made for another denoiser", error, hgr=replace(bundled, probe=far), image=pictures, **looked)
    _error(
        detect,
        "width 128, but this model takes width 48",
        error,
        image=pictures,
        model=families.sd1().model,
        vae=kit.vae,
    )
    wide = replace(bundled, probe=replace(probe, training=probe.training | {"latent": [16, 16, 16]}))
    _error(
        detect,
        "latents of size 4 x 16 x 16, but the HGR was trained with 16 x 16 x 16",
        hgr=wide,
        image=pictures,
        **looked,
    )
    for size in (None, [4, 2, 16, 16], [4, -1, 16], [4, 10**9, 10**9], "4x16x16"):
        hostile = replace(probe, training={"latent": size})
        _error(detect, "not latents of pictures", error, hgr=replace(bundled, probe=hostile), image=pictures, **looked)
    never = replace(bundled, concepts=[replace(c, levels=()) for c in bundled.concepts])
    _error(
        detect,
        "no thresholds for a sensitivity other than",
        error,
        hgr=never,
        conditioning=kit.clean,
        sensitivity="high",
    )
    assert torch.equal(kit.sample(kit.model, kit.clean), kit.sample(kit.model, kit.clean))


@pytest.mark.oldest
@pytest.mark.parametrize("what", ["words", "pictures"])
def test_an_interrupt_is_passed_on(kit, detect, looked, pictures, what):
    import comfy.model_management as management

    management.interrupt_current_processing()
    try:
        with pytest.raises(management.InterruptProcessingException):
            detect(**(dict(clip=kit.clip, text=SKULL) if what == "words" else dict(image=pictures, **looked)))
    finally:
        management.interrupt_current_processing(False)


@pytest.mark.oldest
def test_the_model_is_left_as_it_was(kit, detect, pictures, prompts, hgr):
    """Also one that is patched: detection sees the model itself."""
    import torch

    patched = kit.patch(hgr)
    before = [kit.sample(model, kit.harmful) for model in (kit.model, patched)]
    plain, found = (
        detect(image=pictures, conditioning=prompts, model=model, vae=kit.vae)[2] for model in (kit.model, patched)
    )
    assert plain == found
    assert all(
        torch.equal(kit.sample(model, kit.harmful), old)
        for model, old in zip((kit.model, patched), before, strict=True)
    )
    assert not [hook for module in kit.model.model.diffusion_model.modules() for hook in module._forward_hooks.values()]


def test_merged_hgrs_detect_as_each_alone_and_of_other_sizes_not_in_pictures(detect, looked, pictures, bundled, pack):
    replace = dataclasses.replace

    def part(at, name, latent):
        probe, training = bundled.probe, bundled.probe.training | {"latent": latent}
        return replace(
            bundled,
            concepts=[replace(bundled.concepts[at], id=name)],
            probe=replace(
                probe,
                weight=probe.weight[at : at + 1],
                bias=probe.bias[at : at + 1],
                training=training,
                heads=(replace(probe.heads[at], id=name),),
                hed=(replace(probe.hed[at], id=name),),
            ),
        )

    merge = pack.get("nodes.train").SafeCFGMergeHGR.execute
    first, second, third = (part(at, name, [4, 16, 16]) for at, name in ((0, "skull"), (1, "dagger"), (3, "bomb")))
    merged = merge(hgr_1=merge(hgr_1=first, hgr_2=second).args[0], hgr_2=third).args[0]
    whole, joined = (
        detect(hgr=hgr, image=pictures, concepts='{"splatter": 0, "nightmare": 0}', **looked)[2]
        for hgr in (bundled, merged)
    )
    assert scores(joined) == scores(whole) and verdicts(joined) == verdicts(whole)
    assert joined["false_positive_rate"] == pytest.approx(3 * whole["false_positive_rate"])
    assert merge(hgr_1=first, hgr_2=part(1, "dagger", [4, 32, 32])).args[0].probe is None


@pytest.fixture(params=["sd2", "sdxl", "sd3", "flux", "wan", "qwen", "lumina"])
def family(request):
    import families

    return families.FAMILIES[request.param]()


def test_every_familys_pictures_can_be_looked_at(family, pack, detect):
    """An HGR with a probe of random weights: a verdict on latents of one frame, of several frames a refusal."""
    import torch
    from host_kit import made_up_hgr

    probe, host = pack.get("hgr.detection.probe"), pack.get("hgr.hosts.comfy.denoiser")
    scene = (
        "a photo of a {} on the wooden table next to a small red house in the meadow, bright picture with a child "
        "holding a green ball"
    )
    harmful, clean, negative = (family.encode(text) for text in (scene.format("bomb"), scene.format("cat"), ""))
    hgr = made_up_hgr(
        pack, harmful, clean, negative, chunk=family.chunk, fixed_start=family.fixed_start, pooled_dim=family.pooled_dim
    )
    if family.pooled_dim:
        hgr.encoder = dataclasses.replace(hgr.encoder, empty_pooled=negative[0][1]["pooled_output"][0])
    shape = pack.get("hgr.hosts.comfy.latents").one_picture(family.latent.shape)
    pictures = torch.randn(3, *shape[1:], generator=torch.Generator().manual_seed(0))
    x = probe.probe_features(host.denoiser_of(family.model, shape), pictures, hgr.encoder.prompt)
    assert x.shape[:2] == (3, 2) and x.isfinite().all() and x.std(0).amax() > 1e-3
    heads = tuple(pack.hgr.Concept(c.id, c.label) for c in hgr.concepts)
    weight = torch.randn(2, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    mean, std, bias, made = x.mean(0), x.std(0) + 0.1, torch.zeros(2), {"latent": list(shape[1:])}
    hgr.probe = pack.hgr.Probe(probe.PROBE_PERCENTS, mean, std, weight, bias, heads, heads, made)
    report = detect(hgr=hgr, latent={"samples": pictures}, model=family.model)[2]
    expected = torch.sigmoid(torch.einsum("npf,kpf->nk", x, weight))
    assert torch.allclose(torch.tensor(scores(report)), expected, atol=2e-3)
    both = detect(hgr=hgr, latent={"samples": pictures}, conditioning=harmful, model=family.model)[2]
    assert list(both["items"][0]["concepts"]["skull"]["all"]) == ["picture with prompt", "picture"]
    frames = pictures[:, :, None] if pictures.dim() == 4 else pictures
    with pytest.raises(ValueError, match="this is a video"):
        detect(hgr=hgr, latent={"samples": frames.expand(-1, -1, 3, -1, -1)}, model=family.model)

    class VAE:
        """Of a video model, which takes a batch for frames; gives the pictures' latents whatever they show."""

        def __init__(self):
            self.rest = list(pictures)

        def spacial_compression_encode(self):
            return 8

        def encode(self, pixels):
            assert pixels.shape == (1, 64, 64, 3)
            return self.rest.pop(0)[None]

    images = detect(hgr=hgr, image=torch.rand(3, 64, 64, 3), vae=VAE(), model=family.model)[2]
    assert scores(images) == scores(report)
