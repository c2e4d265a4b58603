"""A cut to fewer units: each family descends from there in its own way, and keeps to the number and to the seconds."""

import time
from functools import cache

import pytest
import torch

from theodolite.atoms import MatrixAtom, StructuredAtom, TensorAtom
from theodolite.core import descend
from theodolite.core.params import count, select
from theodolite.core.problem import Problem
from theodolite.core.solve import Solution
from theodolite.estimators import FactorNorm
from theodolite.estimators.base import restrict
from theodolite.losses import SquaredLoss


def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    rectangle = torch.zeros(12, 3, dtype=torch.float64)
    rectangle[2:6, 0], rectangle[5:11, 1], rectangle[8:, 2] = 2.0, -1.5, 1.0
    noise = 0.1 * torch.randn(12, 12, generator=generator, dtype=torch.float64)
    return rectangle @ torch.randn(3, 12, generator=generator, dtype=torch.float64) + noise


ATOMS = {
    "matrix": MatrixAtom((12, 12)),
    "tensor": TensorAtom((12, 4, 3)),
    "structured": StructuredAtom((12, 12), FactorNorm(l1=0.3, tv=0.4), FactorNorm()),
}


@cache
def solved(name: str) -> tuple[Problem, Solution]:
    problem = Problem(SquaredLoss(data().reshape(ATOMS[name].shape)), ATOMS[name], 0.5)
    return problem, problem.solve(tol=1e-3, max_rounds=3)


@pytest.mark.parametrize("budget", [None, 1.0])
@pytest.mark.parametrize("name", ATOMS)
def test_a_cut_is_descended_from_at_its_number_of_units(name, budget):
    atom, (problem, whole) = ATOMS[name], solved(name)
    assert count(whole.params) > 2
    cut = restrict(problem, whole, 2, tol=1e-4, budget=budget, seed=0)
    assert count(cut.params) == cut.certificate.units == 2
    assert cut.certificate.dual_bound >= whole.certificate.dual_bound
    assert (
        whole.certificate.objective
        < cut.certificate.objective
        == pytest.approx(problem.objective(cut.params))
    )
    assert cut.certificate.gap > whole.certificate.gap
    largest = atom.theta(whole.params).argsort(descending=True)[:2]
    options = {"tol": 1e-4, "deadline": time.monotonic() + 5.0, "progress": lambda params: None}
    plain = descend.descend(problem, select(whole.params, largest), **options)
    assert problem.objective(cut.params) <= problem.objective(plain) * (1 + 1e-4)
    if name == "structured":  # exact zeros, which L-BFGS does not give
        assert float((cut.params[0] == 0.0).double().mean()) > 0.1
