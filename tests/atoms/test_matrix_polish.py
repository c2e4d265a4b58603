"""Newton's method on the factors of a completed matrix."""

import numpy as np
import pytest
import torch

from theodolite.atoms import MatrixAtom
from theodolite.atoms.matrix_low_rank import LowRank
from theodolite.atoms.matrix_polish import Factored, polish
from theodolite.core.problem import Problem
from theodolite.linalg.pattern import Pattern
from theodolite.linalg.subspace import leading_triplets
from theodolite.losses import LogisticLoss, MaskedLoss, PoissonLoss, SquaredLoss

N, M = 60, 45


def problem(name: str) -> Problem:
    rng = np.random.default_rng(0)
    low = rng.normal(size=(N, 3)) @ rng.normal(size=(3, M)) / np.sqrt(3)
    rows, cols = (rng.random((N, M)) < 0.4).nonzero()
    seen = low[rows, cols]
    targets = {
        "squared": SquaredLoss(torch.from_numpy(seen + 0.1 * rng.normal(size=len(seen)))[:, None], 2.0),
        "logistic": LogisticLoss(torch.from_numpy(np.sign(seen + 0.3 * rng.normal(size=len(seen))))[:, None]),
        "poisson": PoissonLoss(torch.from_numpy(rng.poisson(np.exp(seen)).astype(float))[:, None]),
    }
    lam = {"squared": 6.0, "logistic": 2.5, "poisson": 8.0}[name]
    return Problem(MaskedLoss(targets[name], rows, cols, (N, M)), MatrixAtom((N, M)), lam)


@pytest.mark.parametrize("name", ["squared", "logistic", "poisson"])
def test_from_near_the_optimum_it_gets_there_in_a_few_steps(name: str) -> None:
    given = problem(name)
    loss, atom = given.loss, given.atom
    assert isinstance(atom, MatrixAtom)
    assert isinstance(loss, MaskedLoss)
    U, V = given.solve(tol=1e-9).params
    factored = Factored(loss, Pattern(loss.support.rows, loss.support.cols, (N, M)), given.lam)
    generator = torch.Generator().manual_seed(0)
    exact, start = (
        tuple(x.T + size * torch.randn(x.T.shape, dtype=torch.float64, generator=generator) for x in (U, V))
        for size in (0.0, 1e-3)
    )
    G = factored.slope(start)[2]
    whole = torch.zeros(N, M).double()
    whole[loss.support.rows, loss.support.cols] = G
    left, s, right = leading_triplets(lambda X: whole @ X, lambda Y: whole.T @ Y, V.T, passes=3)
    rank = len(U)
    beyond = left[:, rank:], s[rank:], -right[:, rank:]
    first = _size(factored.slope(start)[0])
    A, B = polish(factored, start, beyond, 1e-7, lambda: True)
    assert _size(factored.slope((A, B))[0]) <= 1e-6 * first
    assert torch.allclose(A @ B.T, exact[0] @ exact[1].T, atol=1e-4)
    assert given.objective((A.T, B.T)) <= given.objective(tuple(x.T for x in start))


def test_without_time_nothing_moves() -> None:
    given = problem("squared")
    U, V = given.atom.init(2)
    loss = given.loss
    factored = Factored(loss, Pattern(loss.support.rows, loss.support.cols, (N, M)), given.lam)
    none = torch.zeros(N, 0).double(), torch.zeros(0).double(), torch.zeros(M, 0).double()
    A, B = polish(factored, (U.T, V.T), none, 1e-3, lambda: False)
    assert torch.equal(A, U.T)
    assert torch.equal(B, V.T)


def test_far_from_the_optimum_the_gradient_never_grows() -> None:
    given = problem("logistic")
    loss = given.loss
    factored = Factored(loss, Pattern(loss.support.rows, loss.support.cols, (N, M)), given.lam)
    none = torch.zeros(N, 0).double(), torch.zeros(0).double(), torch.zeros(M, 0).double()
    for seed in range(10):
        U, V = (5.0 * x for x in given.atom.init(4, seed))
        before = _size(factored.slope((U.T, V.T))[0])
        after = _size(factored.slope(polish(factored, (U.T, V.T), none, 1e-3, lambda: True))[0])
        assert after <= before


@pytest.mark.parametrize("name", ["squared", "logistic", "poisson"])
def test_single_precision_is_only_a_way_of_searching(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(name)
    exact = given.solve(tol=1e-8).certificate
    monkeypatch.setattr("theodolite.atoms.matrix_descent._TINY", 0)
    monkeypatch.setattr("theodolite.atoms.matrix_low_rank._COARSE", 0)
    found = given.solve(tol=1e-8)
    assert found.certificate.gap <= 1e-8
    assert found.certificate.objective == pytest.approx(exact.objective, rel=3e-8)
    start = LowRank(given.atom, given, found.params, lambda _: None)
    assert start.coarse


def _size(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(sum(x.square().sum() for x in pair)) ** 0.5
