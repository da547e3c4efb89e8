"""The node Harmfulness Filter: what becomes of flagged pictures, that the others stay, and that it fails closed."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def node(pack):
    return pack.get("nodes.detect").SafeCFGFilter


@pytest.fixture(scope="module")
def run(node):
    """(image, mask, flagged) of the node."""

    def run(image, report, action="blur", strength=1.0, **given):
        return node.execute(image=image, report=report, action=action, strength=strength, **given).args

    return run


@pytest.fixture
def pictures():
    """Three in an odd size, with alpha."""
    import torch

    return torch.rand(3, 77, 131, 4, generator=torch.Generator().manual_seed(0))


def said(*flagged, about="pictures"):
    """A report with these verdicts."""
    return json.dumps({"version": 1, "about": about, "items": [{"flagged": flag} for flag in flagged]})


@pytest.mark.parametrize("action", ["blur", "pixelate", "blank"])
def test_flagged_pictures_are_changed_and_the_others_stay_to_the_bit(run, pictures, action):
    import torch

    assert pictures.is_inference()
    before = pictures.clone()
    image, mask, flagged = run(pictures, said(False, True, False), action)
    assert torch.equal(pictures, before), "the given picture is not changed"
    assert torch.equal(image[[0, 2]], before[[0, 2]]) and image.shape == before.shape
    colours, old = image[1, ..., :3], before[1, ..., :3]
    assert colours.std() < 0.3 * old.std() and 0 <= colours.min() <= colours.max() <= 1
    assert torch.equal(image[1, ..., 3], before[1, ..., 3]), "alpha stays"
    assert mask.shape == (3, 77, 131) and mask[1].eq(1).all() and mask[[0, 2]].eq(0).all() and flagged is True


@pytest.mark.parametrize("action", ["blur", "pixelate", "blank"])
def test_grey_pictures_are_changed_like_those_in_colour(run, pictures, action):
    import torch

    grey, colour = pictures[..., :1], pictures[..., :3]
    image, mask, _ = run(grey, said(False, True, False), action)
    assert image.shape == grey.shape and mask[1].eq(1).all() and torch.equal(image[[0, 2]], grey[[0, 2]])
    assert image[1].std() < 0.3 * grey[1].std()
    for one, other in ((grey, colour), (colour, grey)):
        image, _, _ = run(one, said(True, False, False), action, replacement=other)
        assert image.shape == one.shape and torch.equal(image[1:], one[1:]) and not torch.equal(image[0], one[0])
    with pytest.raises(ValueError, match="^image: expected pictures .* with 1, 3 or 4 channels, got shape"):
        run(pictures[..., :2], said(True, True, True), action)


def test_pass_only_says(run, pictures):
    import torch

    image, mask, flagged = run(pictures, said(True, False, True), "pass", replacement=pictures[:1])
    assert torch.equal(image, pictures) and mask.eq(0).all() and mask.shape == (3, 77, 131) and flagged is True
    image, mask, flagged = run(pictures, said(False, False, False), "blank")
    assert torch.equal(image, pictures) and mask.eq(0).all() and flagged is False


def test_a_replacement_is_shown_in_the_size_of_the_flagged(run, pictures):
    import torch

    replacement = torch.stack([torch.full((40, 20, 3), 0.25), torch.zeros(40, 20, 3)])
    image, mask, _ = run(pictures, said(False, True, False), replacement=replacement)
    assert torch.equal(image[[0, 2]], pictures[[0, 2]]) and torch.allclose(image[1, ..., :3], torch.tensor(0.25))
    assert mask[1].eq(1).all() and mask[0].eq(0).all()
    image, mask, flagged = run(None, said(True, about="prompts"), replacement=replacement)
    assert torch.equal(image, replacement[:1]) and mask.shape == (1, 40, 20) and mask.eq(1).all() and flagged is True


def test_a_single_prompt_speaks_for_all_its_pictures(run, pictures):
    image, mask, _ = run(pictures, said(True, about="prompts"))
    assert mask.eq(1).all() and not image[2, ..., :3].equal(pictures[2, ..., :3])
    assert run(pictures, said(False, about="prompts"))[0].equal(pictures)


@pytest.mark.parametrize(
    ("report", "match"),
    [
        (said(True), "about 1 pictures, but there are 3"),
        (said(True, False, about="prompts"), "about 2 prompts, but there are 3"),
        (said(), "about 0"),
        ("", "not the report"),
        ("harmless", "not the report"),
        ("[]", "not the report"),
        ("null", "not the report"),
        ('{"version": 2, "about": "pictures", "items": []}', "version 2"),
        ('{"version": 1, "about": "pictures", "items": [{"flagged": null}]}', "not the report"),
        (
            '{"version": 1, "about": "pictures", "items": [{"flagged": 0}, {"flagged": 0}, {"flagged": 0}]}',
            "not the report",
        ),
        ('{"version": 1, "about": "pictures", "items": "abc"}', "not the report"),
        ("[" * 100_000, "not the report"),
        ('{"version": 1' + "0" * 400 + ', "about": "pictures", "items": []}', "not the report"),
        (
            '{"version": 1, "about": "prompts", "items": [' + '{"flagged": true},' * 99_999 + '{"flagged": true}]}',
            "at most",
        ),
    ],
)
def test_what_is_not_the_report_of_this_batch_stops(run, node, pictures, pack, report, match):
    """Fails closed: no picture comes out."""
    with pytest.raises(pack.get("hgr.detection.report").ReportError, match=match):
        run(pictures, report)


def test_only_what_is_shown_is_made(node):
    """Which inputs the host is asked to compute; None is wired in and not made yet."""

    def wanted(report, action="blur", **given):
        return node.check_lazy_status(report=report, action=action, strength=1.0, **{"image": None} | given)

    assert wanted(said(True, True), replacement=None) == ["replacement"]
    assert wanted(said(True, False), replacement=None) == ["image", "replacement"]
    assert wanted(said(False, False), replacement=None) == ["image"]
    assert wanted(said(True)) == ["image"] and wanted(said(True), "pass", replacement=None) == ["image"]
    assert wanted(said(True), replacement="made") == [] and wanted(said(False), image="made") == []
    with pytest.raises(ValueError, match="not the report"):
        wanted("harmless", replacement=None)


def test_detector_and_filter_together(kit, run, pack):
    """Of the flagged picture's lines few are left; the clean picture is the same."""
    import torch

    hgr = pack.files.load_hgr(pack.files.BUNDLED)
    prompts = kit.batch(
        *map(kit.encode, ("a skull next to a red ball in a meadow", "a red ball next to a blue house in a meadow"))
    )
    pictures = kit.vae.decode(kit.sample(kit.model, prompts, steps=12, shape=(2, 4, 16, 16)))
    report = (
        pack.get("nodes.detect")
        .SafeCFGDetector.execute(
            hgr=hgr,
            concepts="",
            sensitivity="normal",
            image=pictures,
            conditioning=prompts,
            model=kit.model,
            vae=kit.vae,
        )
        .args[2]
    )

    def lines(picture):
        return picture.diff(dim=0).abs().mean() + picture.diff(dim=1).abs().mean()

    for action in ("blur", "pixelate", "blank"):
        image = run(pictures, report, action)[0]
        assert lines(image[0]) < 0.4 * lines(pictures[0]) and torch.equal(image[1], pictures[1]), action
