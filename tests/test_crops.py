"""What a probe sees of a picture: always its own size, and every corner of a picture of another shape."""

import pytest
import torch

from hgr.detection.crops import crops


def test_a_picture_of_the_trained_size_is_seen_as_it_is():
    picture = torch.rand(1, 3, 64, 48)
    (seen,) = crops(picture, 64, 48)
    assert seen is picture


@pytest.mark.parametrize("size", [(128, 96), (32, 24), (70, 48), (64, 52), (1, 1)])
def test_one_of_about_that_shape_is_seen_once(size):
    (seen,) = crops(torch.rand(1, 3, *size), 64, 48) if size != (1, 1) else crops(torch.rand(1, 3, 1, 1), 48, 48)
    assert 0 <= seen.min() <= seen.max() <= 1


@pytest.mark.parametrize(
    ("size", "parts"), [((64, 96), 2), ((96, 64), 2), ((64, 192), 3), ((640, 1920), 3), ((9, 4000), 8), ((64, 76), 2)]
)
def test_one_of_another_shape_is_seen_in_parts_too(size, parts):
    seen = crops(torch.rand(1, 3, *size), 64, 64)
    assert len(seen) == 1 + parts and all(view.shape == (1, 3, 64, 64) for view in seen)


def test_the_parts_reach_every_corner():
    picture = torch.arange(64 * 150.0).reshape(1, 1, 64, 150) / (64 * 150)
    _, *parts = crops(picture, 64, 64)
    assert set(torch.cat(parts).flatten().tolist()) == set(picture.flatten().tolist())
