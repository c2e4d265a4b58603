"""INF001: bounds of H(Y|X) and I(f(X);Y), on distributions where both are known."""

from __future__ import annotations

import math

import builders
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from torch import Tensor, nn

from theodolite.analysis.concentration import empirical_bernstein, entropy_lower_bound, plug_in_entropy
from theodolite.testing import check_coverage
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.information.cross_entropy import (
    DELTA,
    CrossEntropy,
    conditional_entropy_upper,
    mixed_log_loss,
    mixture_floor,
)
from theodolite.theorems.subject import Subject
from theodolite.value import Value

INFORMATION = 0.244473  # of Y = +-1, equally likely, and Z | Y ~ N(0.8 Y, 1)
REMAINING = math.log(2.0) - INFORMATION  # H(Y|Z)


@pytest.fixture(autouse=True)
def without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the batch size, which is read off the traced graph otherwise: the theorem needs no graph."""
    monkeypatch.setattr(Subject, "batch_size", 512)


def finding(subject: Subject) -> Finding:
    result = evaluate(CrossEntropy(), subject)
    assert result.status != "failed", result.traceback
    return result


class Posterior(nn.Module):
    """The true posterior of the Gaussian pair, as logits: log p(1|z) - log p(0|z) = 1.6 z."""

    def __init__(self, slope: float = 1.6) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(z), self.slope * z], 1)


def pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    return torch.randn(n, 1, generator=generator) + 0.8 * (2.0 * y[:, None] - 1.0), y


def gaussian_subject(n: int, seed: int, slope: float = 1.6) -> Subject:
    return Subject(Posterior(slope), *pairs(4, 10_000), test=pairs(n, seed))


def test_the_known_information_is_right():
    def integrand(z: float) -> float:
        densities = [math.exp(-0.5 * (z - s) ** 2) / math.sqrt(2 * math.pi) for s in (-0.8, 0.8)]
        mean = 0.5 * sum(densities)
        return 0.5 * sum(d * math.log(d / mean) for d in densities)

    assert quad(integrand, -9.0, 9.0)[0] == pytest.approx(INFORMATION, abs=1e-6)


@pytest.mark.parametrize(("n", "expected"), [(1000, 0.158), (5000, 0.216), (50000, 0.238)])
def test_known_answers_with_the_true_posterior(n, expected):
    """H(Y) known, floor 0.01, 95 %: the notes' means of the lower bound of I."""
    bounds = []
    for seed in range(12):
        z, y = pairs(n, seed)
        losses = mixed_log_loss(Posterior()(z).detach(), y, 0.01)
        bounds.append(math.log(2.0) - conditional_entropy_upper(losses, 0.01, DELTA, 2))
    assert np.mean(bounds) == pytest.approx(expected, abs=max(0.006, 0.4 / math.sqrt(n)))
    assert max(bounds) <= INFORMATION


def test_values_kinds_and_status():
    subject = builders.subject(n=80, m=60)
    result = finding(subject)
    assert result.status == "conditional"
    assert {h.name: h.status for h in result.hypotheses} == {
        "classification": "proved",
        "test split": "proved",
        "i.i.d. test data": "assumed",
    }
    v = result.values
    assert {name: value.kind for name, value in v.items()} == {
        "conditional_entropy": "bound",
        "information": "bound",
        "label_entropy": "bound",
        "test_cross_entropy": "exact",
        "train_cross_entropy": "exact",
        "test_label_entropy": "exact",
    }
    assert all(value.unit == "nats" for value in v.values())
    assert v["conditional_entropy"].lower is None
    assert v["information"].upper is None
    with torch.no_grad():
        loss = float(F.cross_entropy(subject.model(subject.data["test"][0]), subject.data["test"][1]))
    assert v["test_cross_entropy"].value == pytest.approx(loss, rel=1e-5)
    # 60 digits and an untrained network prove nothing: the bounds are the trivial ones
    assert v["conditional_entropy"].upper == math.log(10)
    assert v["information"].lower == 0.0
    assert v["label_entropy"].lower < v["test_label_entropy"].value <= v["label_entropy"].upper


def test_the_stated_confidences_leave_five_percent_in_all():
    v = finding(builders.subject()).values
    assert v["conditional_entropy"].confidence == v["label_entropy"].confidence == 0.975
    assert v["information"].confidence == pytest.approx(0.95)


def test_mixing_bounds_the_loss_and_is_a_predictor():
    logits = 50.0 * torch.randn(200, 5, dtype=torch.float64)
    floor = 0.003
    losses = torch.stack([mixed_log_loss(logits, torch.full((200,), c), floor) for c in range(5)], 1)
    assert torch.allclose((-losses).exp().sum(1), torch.ones(200, dtype=torch.float64))
    assert float(losses.max()) <= -math.log(floor) + 1e-12
    assert float(losses.min()) >= -math.log(1.0 - 4 * floor) - 1e-12
    assert 0.0 < mixture_floor(2, 3, 0.025) <= 0.5 / 3
    assert mixture_floor(10**6, 10, 0.025) < 1e-5


def test_bernstein_by_hand():
    values = np.array([0.0, 1.0, 0.5, 0.5])
    log_term = math.log(2 / 0.05)
    expected = math.sqrt(2 * (0.5 / 3) * log_term / 4) + 7 * log_term / (3 * 3)
    assert empirical_bernstein(values, 1.0, 0.05) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least two draws"):
        empirical_bernstein([1.0], 1.0, 0.05)
    with pytest.raises(ValueError, match="width: expected"):
        empirical_bernstein([0.0, 3.0], 1.0, 0.05)


def test_training_data_alone_regression_and_single_points():
    alone = evaluate(CrossEntropy(), builders.subject(test=False))
    assert alone.status == "not applicable"
    assert "which counts as training data" in alone.reason
    assert evaluate(CrossEntropy(), builders.regression_subject()).status == "not applicable"
    one = evaluate(CrossEntropy(), builders.subject(m=1))
    assert (one.status, one.reason) == (
        "not applicable",
        "a confidence bound needs at least two test samples",
    )
    assert finding(builders.subject(m=2)).status == "conditional"


def test_absurdly_confident_wrong_outputs_keep_the_bounds_finite():
    result = finding(gaussian_subject(200, 0, slope=-1e4))
    assert result.values["test_cross_entropy"].value > 1000.0
    assert result.values["conditional_entropy"].upper == math.log(2.0)
    assert result.values["information"].lower == 0.0
    assert "calibrate" in result.advice


def test_a_good_predictor_gets_no_advice_and_proves_information():
    result = finding(gaussian_subject(20_000, 1))
    assert result.advice == ""
    assert 0.15 < result.values["information"].lower < INFORMATION
    assert REMAINING < result.values["conditional_entropy"].upper < 0.55


def test_the_bounds_hold_together_at_their_rate_and_fail_without_confidence_terms():
    n, draws = 400, [finding(gaussian_subject(400, seed)).values for seed in range(200)]
    truths = {"conditional_entropy": REMAINING, "information": INFORMATION, "label_entropy": math.log(2.0)}
    for name, truth in truths.items():
        check_coverage(lambda seed, name=name: draws[seed][name], truth)
    together = sum(all(v[name].low <= t <= v[name].high for name, t in truths.items()) for v in draws) / 200
    assert together >= 0.95

    floor = mixture_floor(n, 2, DELTA / 2)

    def mean_loss(seed: int) -> float:
        z, y = pairs(n, seed)
        return float(mixed_log_loss(Posterior()(z).detach(), y, floor).mean())

    def conditional_entropy(seed: int) -> Value:
        return Value.bound(upper=mean_loss(seed), confidence=1.0 - DELTA / 2)

    def information(seed: int) -> Value:
        v = draws[seed]
        difference = v["test_label_entropy"].value - v["test_cross_entropy"].value
        return Value.bound(lower=difference, confidence=1.0 - DELTA)

    for draw, truth in ((conditional_entropy, REMAINING), (information, INFORMATION)):
        with pytest.raises(AssertionError, match="coverage"):
            check_coverage(draw, truth)


@pytest.mark.parametrize("p", [[0.5, 0.5], [0.9, 0.1], [0.25] * 4, [0.7, 0.2, 0.1, 0.0], [0.01] * 10 + [0.9]])
def test_the_entropy_bound_covers_and_the_plug_in_does_not(p):
    truth = -sum(q * math.log(q) for q in p if q)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(60, p, size=400)
    below = np.mean([entropy_lower_bound(c, 0.05) <= truth for c in counts])
    assert below >= 0.95
    plug_in = np.mean([plug_in_entropy(c) <= truth for c in counts])
    # of a uniform distribution the plug-in entropy is never above; of others it often is
    assert plug_in < 0.95 or len(set(p)) == 1


def test_a_label_that_never_varies():
    x, y = torch.randn(500, 2), torch.zeros(500, dtype=torch.int64)
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([30.0, 0.0]))
    v = finding(Subject(model, x, y, test=(x, y))).values
    assert v["test_label_entropy"].value == 0.0
    assert v["label_entropy"].lower >= 0.0
    assert v["conditional_entropy"].upper < 0.15
