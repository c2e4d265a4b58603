"""GEN001: the test-set bound, on distributions whose risk is known."""

from __future__ import annotations

import builders
import pytest
import torch
from torch import Tensor, nn

from theodolite.analysis.binomial import bernoulli_kl, clopper_pearson_lower, clopper_pearson_upper
from theodolite.testing import check_coverage
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.generalization.held_out_bound import DELTA, HeldOutBound
from theodolite.theorems.subject import Subject
from theodolite.value import Value


@pytest.fixture(autouse=True)
def without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the batch size, which is read off the traced graph otherwise: the theorem needs no graph."""
    monkeypatch.setattr(Subject, "batch_size", 512)


def sign_net() -> nn.Module:
    """Class 1 where x > 0."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0]]))
    return model


def labels(m: int, wrong: int) -> tuple[Tensor, Tensor]:
    """Positive inputs of class 1, the first ``wrong`` of them labelled 0."""
    y = torch.ones(m, dtype=torch.int64)
    y[:wrong] = 0
    return torch.linspace(0.1, 1.0, m)[:, None], y


def finding(m: int, wrong: int, **options) -> Finding:
    result = evaluate(HeldOutBound(), Subject(sign_net(), *labels(3, 1), test=labels(m, wrong), **options))
    assert result.status != "failed", result.traceback
    return result


@pytest.mark.parametrize(
    ("k", "m", "delta", "upper"),
    [(20, 400, 0.035, 0.0741098), (0, 400, 0.05, 0.00746136), (25, 1000, 0.05, 0.0347425)],
)
def test_clopper_pearson_known_answers(k, m, delta, upper):
    assert clopper_pearson_upper(k, m, delta) == pytest.approx(upper, rel=1e-5)
    assert clopper_pearson_lower(m - k, m, delta) == pytest.approx(1.0 - upper, rel=1e-5)
    assert m * bernoulli_kl(k / m, clopper_pearson_upper(k, m, delta)) <= -torch.tensor(delta).log()


@pytest.mark.parametrize(
    ("m", "wrong", "upper"),
    [(400, 0, 1.0 - 0.05 ** (1 / 400)), (1000, 25, 0.0347425), (5, 5, 1.0), (1, 0, 0.95), (1, 1, 1.0)],
)
def test_known_answers_through_the_theorem(m, wrong, upper):
    result = finding(m, wrong)
    bound, error = result.values["error_upper"], result.values["test_error"]
    assert bound.upper == pytest.approx(upper, rel=1e-5)
    assert bound.lower is None
    assert bound.confidence == 1.0 - DELTA
    assert bound.witness == {"errors": wrong, "points": m}
    assert error.value == wrong / m
    assert error.kind == "exact"


def test_it_is_conditional_on_iid_data_and_never_certified():
    result = finding(50, 3)
    assert result.status == "conditional"
    statuses = {h.name: h.status for h in result.hypotheses}
    assert statuses == {
        "classification": "proved",
        "test split": "proved",
        "i.i.d. test data": "assumed",
    }
    assert finding(50, 0).status == finding(50, 50).status == "conditional"


def test_training_data_alone_bound_nothing():
    result = evaluate(HeldOutBound(), builders.subject(test=False))
    assert result.status == "not applicable"
    assert result.values == {}
    assert result.reason == "only (X, y) was given, which counts as training data; give {'train', 'test'}"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.regression_subject, "the loss is mse with"),
        (lambda: builders.subject(loss=nn.functional.nll_loss), "the loss is nll_loss with 10 outputs"),
    ],
)
def test_without_classes_it_does_not_apply(build, reason):
    result = evaluate(HeldOutBound(), build())
    assert result.status == "not applicable"
    assert result.reason.startswith(reason)


def test_a_single_output_has_no_classes():
    x, y = torch.randn(20, 3), torch.zeros(20, dtype=torch.int64)
    result = evaluate(HeldOutBound(), Subject(nn.Linear(3, 1), x, y, test=(x, y)))
    assert result.status == "not applicable"
    assert result.reason.startswith("the loss is cross_entropy with")


def test_a_tie_is_an_error():
    x = torch.zeros(10, 1)
    for label in (0, 1):
        y = torch.full((10,), label)
        result = evaluate(HeldOutBound(), Subject(sign_net(), x, y, test=(x, y)))
        assert result.values["test_error"].value == 1.0


def test_outputs_that_are_no_numbers_are_not_right():
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(x), x.exp() * (x - 200.0).exp()], 1)

    x, y = torch.tensor([[1.0], [2.0], [3.0], [500.0]]), torch.zeros(4, dtype=torch.int64)
    result = evaluate(HeldOutBound(), Subject(Overflowing(), x[:3], y[:3], test=(x, y)))
    assert result.status == "not applicable"
    assert (
        result.reason == "the model's outputs are NaN or infinite on 1 of 4 test samples, first on sample 3"
    )


def test_the_training_data_and_the_batches_do_not_matter(monkeypatch):
    few = finding(70, 9)
    monkeypatch.setattr(Subject, "batch_size", 4)
    again = evaluate(HeldOutBound(), Subject(sign_net(), *labels(30, 30), test=labels(70, 9)))
    assert {k: v.to_dict() for k, v in few.values.items()} == {
        k: v.to_dict() for k, v in again.values.items()
    }


def test_advice_speaks_of_the_size_of_the_test_set():
    assert "more test points" in finding(20, 1).advice
    assert finding(1000, 200).advice == ""


RISK = 0.1


def drawn(seed: int) -> Finding:
    """A finding from 40 independent draws, one in ten of which is labelled against the network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(40, 1, generator=generator) + 0.1
    y = (torch.rand(40, generator=generator) >= RISK).long()
    return evaluate(HeldOutBound(), Subject(sign_net(), x[:2], y[:2], test=(x, y)))


def test_the_bound_covers_the_risk_and_the_test_error_alone_does_not():
    findings = [drawn(seed) for seed in range(200)]
    assert check_coverage(lambda seed: findings[seed].values["error_upper"], RISK) >= 0.95

    def without_the_confidence_term(seed: int) -> Value:
        error = findings[seed].values["test_error"].value
        return Value.bound(upper=error, confidence=1.0 - DELTA)

    with pytest.raises(AssertionError, match="coverage"):
        check_coverage(without_the_confidence_term, RISK)
