"""Matrices with a factor of signs."""

import pytest
import torch
from torch import Tensor

from theodolite.atoms import SignMatrixAtom
from theodolite.core.problem import Problem
from theodolite.losses import HuberLoss, LogisticLoss, MaskedLoss, MaskedSquaredLoss, SquaredLoss
from theodolite.reference.gauges import polar
from theodolite.testing import check_atom

PAIRS = [("l2", "linf"), ("linf", "l2"), ("linf", "linf")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked(Y: Tensor, seed: int = 0) -> MaskedSquaredLoss:
    rows, cols = (normal(*Y.shape, seed=seed + 99) > 0.0).nonzero().T
    return MaskedSquaredLoss(rows, cols, Y[rows, cols], Y.shape)


@pytest.mark.parametrize("norms", PAIRS)
@pytest.mark.parametrize("shape", [(5, 4), (3, 6)])
def test_the_polar_is_that_of_the_enumeration(norms, shape):
    check_atom(
        SignMatrixAtom(shape, norms), trials=1, searches=50, reference=lambda Q: polar(Q.numpy(), norms)
    )


@pytest.mark.parametrize("norms", PAIRS)
@pytest.mark.parametrize(
    "loss", [SquaredLoss, masked, lambda Y: HuberLoss(Y, 0.5), lambda Y: LogisticLoss(Y.sign())]
)
def test_problems_of_few_columns_close(norms, loss):
    Y = normal(7, 6, seed=3)
    atom = SignMatrixAtom((7, 6), norms)
    top = Problem(loss(Y), atom, 1.0).lambda_max().high
    for factor in (0.1, 0.6):
        certificate = Problem(loss(Y), atom, factor * top).solve(tol=1e-6, budget=20).certificate
        assert certificate.verdict == "closed", factor
        assert certificate.gap <= 1e-6


def test_one_column_is_a_vector_with_its_norm():
    # |s| = 1: the gauge is the l2 norm of the column, whose shrinkage is in closed form
    y = normal(9, 1)
    lam = 0.4 * float(y.norm())
    solution = Problem(SquaredLoss(y), SignMatrixAtom((9, 1)), lam).solve(tol=1e-9)
    assert solution.certificate.objective == pytest.approx(
        0.5 * lam**2 + lam * 0.6 * float(y.norm()), rel=1e-9
    )


def test_planted_codes_are_found():
    U, S = normal(40, 3), normal(12, 3, seed=1).sign()
    Y = U @ S.T + 0.05 * normal(40, 12, seed=2)
    problem = Problem(SquaredLoss(Y), SignMatrixAtom((40, 12)), 8.0)
    solution = problem.solve(tol=1e-6)
    assert solution.certificate.verdict == "closed"
    V = solution.params[1]
    found = V / V.abs().amax(1, keepdim=True)
    assert bool(((found @ S).abs() > 12 - 1e-9).any(0).all())  # each code, up to its sign


def test_many_columns_are_bracketed():
    Y = normal(40, 3) @ normal(3, 45, seed=1).sign() + 0.3 * normal(40, 45, seed=2)
    for norms, width in (("l2", "linf"), 0.1), (("linf", "linf"), 0.4):
        atom = SignMatrixAtom((40, 45), norms)
        problem = Problem(SquaredLoss(Y), atom, 0.2 * Problem(SquaredLoss(Y), atom, 1.0).lambda_max().high)
        certificate = problem.solve(tol=1e-3, budget=5, max_rounds=3).certificate
        assert 0.0 < certificate.dual_bound <= certificate.objective
        assert certificate.gap <= width


def test_nothing_of_the_full_shape_is_formed_on_a_support():
    # 10^5 x 10^5 entries would not fit
    rows, cols = torch.arange(200) * 500, torch.arange(200) * 499
    loss = MaskedLoss(LogisticLoss(normal(200, 1).sign()), rows, cols, (100_000, 100_000))
    atom = SignMatrixAtom((100_000, 100_000))
    params = atom.init(2)
    assert atom.predict(params, loss.support).shape == (200,)
    value = Problem(loss, atom, 1.0).lambda_max(budget=0.0)
    # entries of +-1/2 in distinct rows and columns
    assert value.low <= 0.5 * 200**0.5 <= value.high * (1 + 1e-12)
    assert value.high == pytest.approx(0.5 * 200**0.5, rel=1e-9)


def test_merge_adds_up_parallel_codes():
    atom, (U, V) = SignMatrixAtom((5, 4)), SignMatrixAtom((5, 4)).init(2)
    doubled = torch.cat([U, -3.0 * U]), torch.cat([V, 0.5 * V])
    merged = atom.merge(doubled)
    assert len(merged[0]) == 2
    torch.testing.assert_close(atom.phi(merged), atom.phi(doubled))
    assert float(atom.theta(merged).sum()) < float(atom.theta(doubled).sum())


def test_a_start_without_signs_reaches_the_same_optimum():
    problem = Problem(SquaredLoss(normal(6, 4)), SignMatrixAtom((6, 4)), 0.5)
    plain, warm = problem.solve(tol=1e-8), problem.solve(tol=1e-8, init=problem.atom.init(3, seed=4))
    assert warm.certificate.verdict == "closed"
    assert warm.certificate.objective == pytest.approx(plain.certificate.objective, rel=2e-8)


@pytest.mark.parametrize(
    ("shape", "norms", "message"),
    [
        ((0, 3), ("l2", "linf"), r"shape: expected two integers >= 1, got \(0, 3\)"),
        ((2, 3), ("l2", "l2"), "norms: expected one of .*linf.*, got"),
        ((2, 3), ("l1", "linf"), "norms: expected one of"),
    ],
)
def test_arguments(shape, norms, message):
    with pytest.raises(ValueError, match=message):
        SignMatrixAtom(shape, norms)


def test_dual_points_are_checked():
    atom = SignMatrixAtom((2, 3))
    with pytest.raises(ValueError, match=r"Q: expected shape \(2, 3\), got \(3, 2\)"):
        atom.polar(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="Q: expected finite entries, got nan"):
        atom.polar(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="X: expected None"):
        atom.phi(atom.init(1), torch.zeros(2, 2))
