"""Rankings and calibration error, against cases that can be counted by hand."""

import math

import pytest
import torch

from hgr.training.metrics import auroc, expected_calibration_error, false_positives_at


def test_rankings():
    assert auroc(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])) == 0.875  # one tie of four pairs
    assert math.isnan(auroc(torch.tensor([]), torch.tensor([1.0])))
    assert false_positives_at(0.5, torch.tensor([3.0, 1.0]), torch.tensor([2.0, 3.0, 4.0, 1.0])) == 0.5


def test_calibration_error_is_the_gap_between_what_is_said_and_what_is_seen():
    said = torch.tensor([0.9] * 10 + [0.1] * 30)
    seen = torch.tensor([1.0] * 9 + [0.0] + [1.0] * 3 + [0.0] * 27)
    assert expected_calibration_error(said, seen) == pytest.approx(0, abs=1e-7)
    assert expected_calibration_error(said, torch.zeros(40)) == pytest.approx((0.9 * 10 + 0.1 * 30) / 40)
    assert expected_calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])) == 0
