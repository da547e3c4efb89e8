"""Rankings and calibration, against cases that can be counted by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import torch

from hgr.training.calibration import platt
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


# --- scikit-learn -----------------------------------------------------------------------------------------------------


def scored(seed: int, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N,), many of them tied, and labels (N,) that they say something about."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(count, generator=generator) * 4).round() / 2
    labels = torch.rand(count, generator=generator) < (0.7 * logits - 0.5).sigmoid()
    return logits, labels.float()


@pytest.mark.parametrize("seed", range(5))
def test_the_area_under_the_curve_is_scikit_learns(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, labels = scored(seed)
    assert len(logits.unique()) < len(logits) / 5, "ties"
    ours = auroc(logits[labels == 1], logits[labels == 0])
    assert ours == pytest.approx(sklearn.roc_auc_score(labels.numpy(), logits.numpy()), abs=1e-12)


@pytest.mark.parametrize("bins", [10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_scikit_learns_curve(seed, bins):
    sklearn = pytest.importorskip("sklearn.calibration")
    logits, labels = scored(seed)
    said = logits.double().sigmoid()
    seen, stated = sklearn.calibration_curve(labels.numpy(), said.numpy(), n_bins=bins, strategy="uniform")
    counts = torch.histc(said, bins, 0, 1)
    counts = counts[counts > 0]  # the curve leaves empty bins out
    gaps = torch.from_numpy(seen - stated).abs()
    assert len(counts) == len(gaps)
    expected = (gaps * counts).sum().item() / len(said)
    assert expected > 0.01
    assert expected_calibration_error(said, labels, bins) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["ties", "apart", "few harmful", "one class"])
def test_platt_scaling_is_scikit_learns_regression_on_his_smoothed_targets(kind):
    sklearn = pytest.importorskip("sklearn.linear_model")
    logits, labels = scored(9)
    if kind == "apart":
        labels = (logits > 0).float()
    elif kind == "few harmful":
        labels = labels * (torch.arange(len(labels)) % 20 == 0)
    elif kind == "one class":
        labels = torch.ones(len(labels))
    harmful, clean = labels.sum().item(), (1 - labels).sum().item()
    smooth = torch.where(labels == 1, (harmful + 1) / (harmful + 2), 1 / (clean + 2)).double()
    # a target between the classes is one sample of each, weighted
    x, y = torch.cat([logits, logits])[:, None].numpy(), torch.cat([torch.ones(400), torch.zeros(400)]).numpy()
    model = sklearn.LogisticRegression(C=math.inf, tol=1e-10, max_iter=10_000)
    model.fit(x, y, sample_weight=torch.cat([smooth, 1 - smooth]).numpy())
    scale, bias = platt(logits, labels)
    assert (scale, bias) == pytest.approx((model.coef_.item(), model.intercept_.item()), abs=2e-3)


def test_platt_scaling_gives_the_probabilities_of_scikit_learns_own_calibration():
    calibration = pytest.importorskip("sklearn.calibration")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.frozen import FrozenEstimator

    class Scores(ClassifierMixin, BaseEstimator):
        """A classifier whose decision is the logit that it is given."""

        def fit(self, x, y):
            self.classes_ = np.array([0, 1])
            return self

        def decision_function(self, x):
            return x[:, 0]

        def predict(self, x):
            return x[:, 0] > 0

    logits, labels = scored(4)
    x, y = logits[:, None].double().numpy(), labels.numpy()
    model = calibration.CalibratedClassifierCV(FrozenEstimator(Scores().fit(x, y)), method="sigmoid", ensemble=False)
    theirs = torch.from_numpy(model.fit(x, y).predict_proba(x)[:, 1])
    scale, bias = platt(logits, labels)
    torch.testing.assert_close((scale * logits.double() + bias).sigmoid(), theirs, atol=1e-3, rtol=0)
