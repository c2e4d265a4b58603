"""LAN001: Ritz bounds of the Hessian's spectrum, against dense Hessians of tiny networks."""

from __future__ import annotations

import math

import builders
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from torch import Tensor, nn

from theodolite.reference.hessian import dense_hessian, objective_of
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.landscape.hessian_top import HessianTop
from theodolite.theorems.subject import Subject


def finding(subject: Subject) -> Finding:
    result = evaluate(HessianTop(), subject)
    assert result.status != "failed", result.traceback
    return result


def spectrum(subject: Subject) -> Tensor:
    """Return all eigenvalues, ascending, of the training objective's Hessian."""
    model = subject.model.double()
    loss = F.cross_entropy if subject.loss_name == "cross_entropy" else F.mse_loss
    y = subject.y.double() if subject.y.is_floating_point() else subject.y
    value, point = objective_of(model, subject.x.double(), y, loss, subject.weight_decay or 0.0)
    return torch.linalg.eigvalsh(dense_hessian(value, point))


def classes(*widths: int, bias: bool = False, seed: int = 0, **options) -> Subject:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(25, widths[0], generator=generator)
    y = torch.randint(widths[-1], (25,), generator=generator)
    return Subject(builders.mlp(*widths, bias=bias, seed=seed).double(), x, y, **options)


def check_against(v: dict, eigenvalues: Tensor) -> None:  # type: ignore[type-arg]
    scale = float(eigenvalues.abs().max())
    slack = 1e-9 * scale
    assert v["top_eigenvalue"].lower <= float(eigenvalues[-1]) + slack
    assert v["smallest_eigenvalue"].upper >= float(eigenvalues[0]) - slack
    near = v["eigenvalue_near_top"]
    assert bool(((eigenvalues >= near.lower - slack) & (eigenvalues <= near.upper + slack)).any())
    if "second_eigenvalue" in v:
        assert v["second_eigenvalue"].lower <= float(eigenvalues[-2]) + slack
    if "stable_step_size" in v:
        assert v["stable_step_size"].upper >= 2.0 / float(eigenvalues[-1]) * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("widths", [(3, 2), (3, 3, 2), (2, 2, 2, 3)])
def test_with_as_many_steps_as_parameters_the_ends_are_exact(widths, seed):
    subject = classes(*widths, bias=bool(seed % 2), seed=seed, weight_decay=0.01 * seed)
    size = sum(p.numel() for p in subject.parameters.values())
    assert size <= 30
    result = finding(subject)
    assert result.status == "certified"
    v, eigenvalues = result.values, spectrum(subject)
    check_against(v, eigenvalues)
    assert v["top_eigenvalue"].lower == pytest.approx(float(eigenvalues[-1]), rel=1e-8)
    assert v["smallest_eigenvalue"].upper == pytest.approx(float(eigenvalues[0]), abs=1e-8)
    assert v["stable_step_size"].upper == pytest.approx(2.0 / float(eigenvalues[-1]), rel=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_with_fewer_steps_the_ends_are_bounds_from_inside(seed):
    subject = classes(5, 8, 6, 4, bias=True, seed=seed)
    assert sum(p.numel() for p in subject.parameters.values()) > 100
    v, eigenvalues = finding(subject).values, spectrum(subject)
    check_against(v, eigenvalues)
    assert v["top_eigenvalue"].upper is None
    assert v["smallest_eigenvalue"].lower is None
    assert v["top_eigenvalue"].lower > 0.99 * float(eigenvalues[-1])
    assert "weight decay was not given and counts as 0" in v["top_eigenvalue"].note
    assert "on all 25 training samples, 30 Lanczos steps" in v["top_eigenvalue"].note


def test_least_squares_has_a_known_hessian():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 3, generator=generator), torch.randn(30, 2, generator=generator)
    subject = Subject(nn.Linear(3, 2, bias=False).double(), x, y, weight_decay=0.5)
    v = finding(subject).values
    # mean over samples and outputs: 2 / (30 * 2) X'X + 0.5 I, each eigenvalue twice
    truth = torch.linalg.eigvalsh(x.double().T @ x.double()) / 30 + 0.5
    assert v["top_eigenvalue"].lower == pytest.approx(float(truth[-1]), rel=1e-10)
    assert v["smallest_eigenvalue"].upper == pytest.approx(float(truth[0]), rel=1e-10)
    # one start sees a double eigenvalue once: the second Ritz value is the next one, still a bound
    assert v["second_eigenvalue"].lower <= float(truth[-1])
    assert v["eigenvalue_near_top"].upper - v["eigenvalue_near_top"].lower < 1e-9


def test_gradient_descent_diverges_above_the_stable_step_and_not_below():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0], [2.0]])
    subject = Subject(nn.Linear(2, 1, bias=False).double(), x, y, weight_decay=0.1)
    step = finding(subject).values["stable_step_size"].upper
    assert step == pytest.approx(2.0 / 9.1, rel=1e-10)
    for factor, grows in ((0.98, False), (1.02, True)):
        weight = subject.model.weight.detach().clone().requires_grad_()
        losses = []
        for _ in range(300):
            loss = F.mse_loss(x.double() @ weight.T, y.double()) + 0.05 * weight.square().sum()
            losses.append(float(loss.detach()))
            (slope,) = torch.autograd.grad(loss, weight)
            weight = (weight - factor * step * slope).detach().requires_grad_()
        assert (losses[-1] > losses[0]) == grows


def test_a_single_parameter_and_a_loss_that_is_linear():
    x, y = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    v = finding(Subject(nn.Linear(1, 1, bias=False), x, y)).values
    assert list(v) == ["top_eigenvalue", "eigenvalue_near_top", "smallest_eigenvalue", "stable_step_size"]
    assert v["top_eigenvalue"].lower == pytest.approx(8.0, rel=1e-6)

    def mean_output(output: Tensor, target: Tensor) -> Tensor:
        return output.mean() + 0.0 * target.mean()

    flat = finding(Subject(nn.Linear(3, 1).double(), torch.randn(5, 3), torch.randn(5, 1), loss=mean_output))
    assert flat.values["top_eigenvalue"].lower == 0.0
    assert "stable_step_size" not in flat.values
    assert flat.advice == ""


def test_one_output_class_has_no_curvature_but_that_of_the_decay():
    x, y = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    v = finding(Subject(nn.Linear(3, 1).double(), x, y, weight_decay=0.25)).values
    assert v["top_eigenvalue"].lower == pytest.approx(0.25, rel=1e-9)
    assert v["smallest_eigenvalue"].upper == pytest.approx(0.25, rel=1e-9)


def test_frozen_parameters_are_not_moved():
    subject = Subject(nets.frozen_net, *builders.digits_pairs(20)["train"], weight_decay=0.1)
    free = Subject(nets.make_net(), *builders.digits_pairs(20)["train"], weight_decay=0.1)
    assert finding(subject).values["top_eigenvalue"].lower < finding(free).values["top_eigenvalue"].lower


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.bare_subject, "the model has 0 parameters"),
        (
            lambda: builders.subject(nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))),
            "needs second derivatives of the loss: autograd's are not symmetric",
        ),
    ],
)
def test_where_there_are_no_second_derivatives(build, reason):
    result = finding(build())
    assert result.status == "not applicable"
    assert reason in result.reason


def test_the_batches_do_not_matter(monkeypatch):
    first = finding(classes(4, 5, 3, bias=True)).values["top_eigenvalue"].lower
    monkeypatch.setattr(Subject, "batch_size", 7)
    monkeypatch.setattr("theodolite.theorems.curvature.GRAPH_BYTES", 1000)
    again = finding(classes(4, 5, 3, bias=True)).values["top_eigenvalue"].lower
    assert again == pytest.approx(first, rel=1e-9)
    assert math.isfinite(again)
