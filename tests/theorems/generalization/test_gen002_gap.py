"""GEN002: the gap between training and population error, on distributions where it is known."""

from __future__ import annotations

import math

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.binomial import clopper_pearson_lower, clopper_pearson_upper
from theodolite.testing import check_coverage
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.generalization.gap import GeneralizationGap, mean_interval
from theodolite.theorems.subject import Subject
from theodolite.value import Value


@pytest.fixture(autouse=True)
def without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the batch size, which is read off the traced graph otherwise: the theorem needs no graph."""
    monkeypatch.setattr(Subject, "batch_size", 512)


def finding(subject: Subject) -> Finding:
    result = evaluate(GeneralizationGap(), subject)
    assert result.status != "failed", result.traceback
    return result


def test_the_parts_are_the_numbers_that_they_name():
    subject = builders.subject(n=80, m=50)
    result = finding(subject)
    assert result.status == "estimated"
    assert list(result.values) == ["gap", "train_error", "test_error", "loss_gap", "train_loss", "test_loss"]
    v = result.values
    model = subject.model.double()
    for split in ("train", "test"):
        x, y = subject.data[split]
        with torch.no_grad():
            logits = model(x.double())
        assert v[f"{split}_error"].value == float((logits.argmax(1) != y).double().mean())
        assert v[f"{split}_loss"].value == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert v["gap"].value == pytest.approx(v["test_error"].value - v["train_error"].value)
    assert v["loss_gap"].value == pytest.approx(v["test_loss"].value - v["train_loss"].value)
    wrong = round(50 * v["test_error"].value)
    shift = v["train_error"].value
    assert v["gap"].lower == pytest.approx(clopper_pearson_lower(wrong, 50, 0.025) - shift)
    assert v["gap"].upper == pytest.approx(clopper_pearson_upper(wrong, 50, 0.025) - shift)
    assert v["loss_gap"].unit == "nats"
    assert {h.name: h.status for h in result.hypotheses}["i.i.d. test data"] == "assumed"


def test_it_does_not_apply_without_test_data_or_to_a_single_class():
    alone = evaluate(GeneralizationGap(), builders.subject(test=False))
    assert alone.status == "not applicable"
    assert "give {'train', 'test'}" in alone.reason
    x, y = torch.randn(9, 3), torch.zeros(9, dtype=torch.int64)
    single = evaluate(GeneralizationGap(), Subject(nn.Linear(3, 1), x, y, test=(x, y)))
    assert single.status == "not applicable"
    assert single.reason == "cross-entropy of a single output is 0 whatever the model does"


def test_regression_has_a_loss_gap_only():
    subject = builders.regression_subject()
    result = finding(subject)
    assert list(result.values) == ["loss_gap", "train_loss", "test_loss"]
    x, y = subject.data["test"]
    loss = float(F.mse_loss(subject.model(x).detach(), y))
    assert result.values["test_loss"].value == pytest.approx(loss, rel=1e-5)
    assert result.values["loss_gap"].unit == ""


def test_one_test_point_and_losses_without_spread_bound_nothing_above():
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    one = finding(Subject(nn.Linear(3, 2), x, y, test=(x[:1], y[:1]))).values
    assert one["loss_gap"].upper == math.inf
    assert one["loss_gap"].lower == -one["train_loss"].value  # a loss is at least 0
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    flat = finding(Subject(model, x, torch.ones(8, 2), test=(x, torch.ones(8, 2)))).values
    assert flat["loss_gap"].value == 0.0
    assert (flat["loss_gap"].lower, flat["loss_gap"].upper) == (-1.0, math.inf)
    single = finding(Subject(nn.Linear(3, 2), x, y.argmax(1), test=(x[:1], y.argmax(1)[:1]))).values
    assert single["gap"].upper - single["gap"].lower >= 0.975


def weighted(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, weight=torch.ones(10))


def negative(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target) - 100.0


def test_losses_of_the_users_own():
    usual = finding(builders.subject())
    own = finding(builders.subject(loss=weighted))  # its weights are float32 whatever comes
    assert list(own.values) == ["loss_gap", "train_loss", "test_loss"]
    assert own.values["loss_gap"].value == pytest.approx(usual.values["loss_gap"].value, abs=1e-6)
    shifted = finding(builders.subject(loss=negative)).values["loss_gap"]
    assert shifted.lower == pytest.approx(usual.values["loss_gap"].lower, abs=1e-6)


def test_infinite_losses_are_a_reason():
    def logarithm(output: Tensor, target: Tensor) -> Tensor:
        return (output.square().sum(1) + 1.0).log().mean() + (target < 7).double().log().mean()

    x, y = builders.digits_pairs(40)["train"]
    order = y.argsort(stable=True)  # the first samples, which are checked at once, have finite losses
    result = evaluate(
        GeneralizationGap(),
        Subject(builders.mlp(), x[order], y[order], test=(x[order], y[order]), loss=logarithm),
    )
    assert result.status == "not applicable"
    assert "the loss is NaN or infinite on" in result.reason


def test_mean_interval_is_students_without_skewness_and_longer_on_the_skewed_side():
    sample = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    low, high = mean_interval(sample, 0.95)
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert (low, high) == (pytest.approx(-half, rel=1e-6), pytest.approx(half, rel=1e-6))
    low, high = mean_interval(sample.exp(), 0.95)
    mean = float(sample.exp().mean())
    assert high - mean > 1.5 * (mean - low)
    mirrored = mean_interval(-sample.exp(), 0.95)
    assert mirrored == (pytest.approx(-high), pytest.approx(-low))


# a network with a known risk: class 1 is right with probability x, for x uniform on three points
POINTS = torch.tensor([[0.5], [0.8], [0.95]])


class Confident(nn.Module):
    """Logits (0, 4 x): always class 1, most confident for large x."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), self.factor * x], 1)


def risk() -> float:
    return float((1.0 - POINTS).mean())


def expected_loss() -> float:
    z = 4.0 * POINTS
    return float((POINTS * F.softplus(-z) + (1.0 - POINTS) * F.softplus(z)).mean())


TRAIN = POINTS, torch.ones(3, dtype=torch.int64)


def drawn(seed: int) -> dict[str, Value]:
    generator = torch.Generator().manual_seed(seed)
    x = POINTS[torch.randint(3, (120,), generator=generator)]
    y = (torch.rand(120, generator=generator) < x[:, 0]).long()
    return finding(Subject(Confident(), *TRAIN, test=(x, y))).values


def test_intervals_cover_the_population_gaps_and_numbers_alone_do_not():
    draws = [drawn(seed) for seed in range(200)]
    train_loss = float(F.cross_entropy(Confident()(TRAIN[0]).detach(), TRAIN[1]))
    truth = {"gap": risk(), "loss_gap": expected_loss() - train_loss}  # no training error
    for name, number in truth.items():
        check_coverage(lambda seed, name=name: draws[seed][name], number)

        def half_as_wide(seed: int, name: str = name) -> Value:
            v = draws[seed][name]
            return Value.estimate(v.value, (v.value + v.lower) / 2, (v.value + v.upper) / 2)

        with pytest.raises(AssertionError, match="coverage"):
            check_coverage(half_as_wide, number)

        def without_an_interval(seed: int, name: str = name) -> Value:
            v = draws[seed][name]
            return Value.estimate(v.value, v.value, v.value)

        with pytest.raises(AssertionError, match="coverage"):
            check_coverage(without_an_interval, number)


def test_halls_correction_is_needed_for_skewed_losses():
    """Of exponential losses Student's interval misses too often; the corrected one does not."""
    generator = torch.Generator().manual_seed(5)
    samples = torch.empty(2000, 25, dtype=torch.float64).exponential_(generator=generator)
    intervals = [mean_interval(sample, 0.95) for sample in samples]
    covered = sum(low <= 1.0 <= high for low, high in intervals) / 2000
    half = 2.0638986 * samples.std(1) / 5.0
    students = float(((samples.mean(1) - 1.0).abs() <= half).double().mean())
    assert students < 0.93 < covered
