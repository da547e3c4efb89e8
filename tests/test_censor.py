"""Flagged pictures become unrecognisable, the others stay the same tensor, in every size."""

import pytest
import torch

from hgr.detection.censor import ACTIONS, censor, substitute

SIZES = [(1, 1), (3, 200), (77, 131), (64, 64)]


def pictures(size, channels=3, count=2):
    return torch.rand(count, *size, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_in_every_size(action, size):
    given = pictures(size, 4)
    before = given.clone()
    found, mask = censor(given, [False, True], action)
    assert torch.equal(given, before) and found.shape == given.shape and mask.shape == (2, *size)
    assert torch.equal(found[0], before[0]) and torch.equal(found[..., 3], before[..., 3])
    assert mask[0].eq(0).all() and mask[1].eq(action != "pass").all() and found.isfinite().all()


def test_nothing_flagged_is_the_given_tensor():
    given = pictures((8, 8))
    none = [False, False]
    for found, mask in (
        censor(given, none, "blur"),
        censor(given, [True, True], "pass"),
        substitute(given, none, given),
    ):
        assert found is given and mask.eq(0).all()


@pytest.mark.parametrize("action", ["blur", "pixelate"])
def test_more_strength_leaves_less(action):
    given = pictures((128, 128))
    spread = [censor(given, [True, True], action, strength=strength)[0].std().item() for strength in (0.1, 0.5, 1.0)]
    assert spread[0] > spread[1] > spread[2]
    flat = torch.full((1, 40, 60, 3), 0.3)
    assert torch.allclose(censor(flat, [True], action)[0], flat, atol=1e-5), "colours stay on the whole"


def test_blank_tells_nothing_and_an_unknown_action_is_an_error():
    assert censor(pictures((9, 9)), [True, True], "blank")[0].unique().tolist() == [0.5]
    with pytest.raises(ValueError, match="blur, pixelate, blank, pass"):
        censor(pictures((9, 9)), [True, True], "smudge")


def test_half_precision_stays():
    found, mask = censor(pictures((16, 16)).half(), [True, False], "blur")
    assert found.dtype == mask.dtype == torch.float16


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("other", [(1, 1), (50, 20), (20, 300)])
def test_a_replacement_covers_the_picture(size, other):
    given, replacement = pictures(size, 4), torch.full((2, *other, 4), 0.25)
    found, mask = substitute(given, [True, False], replacement)
    assert torch.allclose(found[0, ..., :3], torch.tensor(0.25), atol=1e-4) and torch.equal(
        found[0, ..., 3], given[0, ..., 3]
    )
    assert torch.equal(found[1], given[1]) and mask[0].eq(1).all() and mask[1].eq(0).all()


def test_a_replacement_of_the_same_size_is_shown_as_it_is_and_a_wide_one_by_its_middle():
    given, replacement = pictures((8, 8)), pictures((8, 8), count=1) / 2
    assert torch.equal(substitute(given, [True, True], replacement)[0][1], replacement[0])
    wide = torch.zeros(1, 8, 24, 3)
    wide[:, :, 8:16] = 1
    assert substitute(given, [True, True], wide)[0].eq(1).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("action", [*ACTIONS[:3], "replace"])
def test_grey_pictures_and_masks_as_pictures_work_like_colours(action, channels):
    given, wanted = pictures((24, 40), channels), ("blur", "pixelate", "blank")
    replacement = pictures((10, 10), 3, 1)
    found, mask = (
        censor(given, [True, False], action) if action in wanted else substitute(given, [True, False], replacement)
    )
    assert found.shape == given.shape and torch.equal(found[1], given[1]) and mask[0].eq(1).all()
    if channels == 1 and action in wanted:
        colour, _ = censor(given.expand(-1, -1, -1, 3), [True, False], action)
        torch.testing.assert_close(found[0].expand(-1, -1, 3), colour[0])
    for other in (1, 3, 4):  # a grey replacement of pictures in colour, and the other way round
        shown = substitute(given, [True, False], torch.full((1, 5, 5, other), 0.25))[0][0, ..., :3]
        assert torch.allclose(shown, torch.tensor(0.25))


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 2), (2, 8, 8, 5), (2, 0, 8, 3)])
def test_what_is_no_picture_is_one_sentence(shape):
    given, fine = torch.zeros(shape), pictures((8, 8))
    why = r"^(image|replacement): expected pictures .*, got shape \((2|1), "
    with pytest.raises(ValueError, match=why):
        censor(given, [True, True], "blur")
    with pytest.raises(ValueError, match=why):
        substitute(given, [True, True], fine)
    with pytest.raises(ValueError, match=why):
        substitute(fine, [True, True], given)
