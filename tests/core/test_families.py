"""Every family through the core: on a device of one's choice (CUDA too, where there is one), and at lambda_max."""

from __future__ import annotations

import pytest
import torch

from theodolite.atoms import GatedReLUAtom, LinearNetAtom, MatrixAtom, QuadraticAtom, ReLUAtom
from theodolite.core.problem import Problem
from theodolite.losses import (
    CrossEntropyLoss,
    HuberLoss,
    LogisticLoss,
    MaskedSquaredLoss,
    PoissonLoss,
    SquaredLoss,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(40, 3), normal(40, 4, seed=1)
KEPT = (normal(40, 4, seed=2) > 0.3).nonzero()
ATOMS = {
    "matrix": MatrixAtom((40, 4)),
    "columns": MatrixAtom((40, 4), norms=("l2", "l1")),
    "linear net": LinearNetAtom(X, 4, depth=3),
    "one relu": ReLUAtom(X, 1),
    "gated": GatedReLUAtom(X, 4, normal(5, 3, seed=3)),
    "quadratic": QuadraticAtom(X, 4),
}
LOSSES = {
    "squared": SquaredLoss(Y),
    "one output": SquaredLoss(Y[:, :1]),
    "masked": MaskedSquaredLoss(KEPT[:, 0], KEPT[:, 1], Y[KEPT[:, 0], KEPT[:, 1]], (40, 4)),
    "logistic": LogisticLoss(Y.sign()),
    "cross-entropy": CrossEntropyLoss(Y.argmax(1), 4),
    "huber": HuberLoss(Y),
    "poisson": PoissonLoss(Y.abs().round()),
}
CASES = [(a, "squared") for a in ATOMS if a != "one relu"]
CASES += [("matrix", name) for name in LOSSES if name not in ("squared", "one output")]


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("atom", "loss"), [*CASES, ("one relu", "one output")])
def test_a_device_finds_what_the_default_finds(atom, loss, device):
    here = Problem(LOSSES[loss], ATOMS[atom], 1.0)
    problem = Problem(LOSSES[loss], ATOMS[atom], 0.3 * here.lambda_max().high)
    plain, there = problem.solve(tol=1e-3, budget=3), problem.solve(tol=1e-3, budget=3, device=device)
    assert all(p.device.type == device for p in there.params)
    slack = 1e-9 * plain.certificate.objective
    assert there.certificate.dual_bound <= plain.certificate.objective + slack
    assert plain.certificate.dual_bound <= there.certificate.objective + slack
    again = problem.certify(tuple(p.cpu() for p in there.params), budget=0)
    assert again.objective == pytest.approx(there.certificate.objective, rel=1e-9)


@pytest.mark.parametrize("atom", ATOMS)
@pytest.mark.parametrize("factor", [1.0 + 1e-9, 1.5])
def test_the_zero_model_is_optimal_from_lambda_max_on(atom, factor):
    loss = LOSSES["one output" if atom == "one relu" else "squared"]
    top = Problem(loss, ATOMS[atom], 1.0).lambda_max().high
    certificate = Problem(loss, ATOMS[atom], factor * top).solve().certificate
    assert (certificate.verdict, certificate.gap, certificate.units) == ("closed", 0.0, 0)
