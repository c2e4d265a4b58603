"""Structured factorization: known polars, adversaries, descent, and the bound of the convex relaxation."""

import math
import time

import pytest
import torch

from theodolite.atoms import MatrixAtom, StructuredAtom
from theodolite.atoms.structured_relaxation import relaxed_bound
from theodolite.core.descend import descend as default_descend
from theodolite.core.params import join
from theodolite.core.problem import Problem
from theodolite.losses import HuberLoss, MaskedSquaredLoss, SquaredLoss
from theodolite.polar.factor_norm import FactorNorm
from theodolite.testing import check_atom

SIGNS = FactorNorm(nonnegative=True)
SUM = FactorNorm(l2=0.0, l1=1.0)
IMAGE = FactorNorm(l1=0.05, tv=0.1, grid=(6, 5))
IMAGE_SIGNS = FactorNorm(l1=0.05, tv=0.1, grid=(6, 5), nonnegative=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(m=8, noise=0.2):
    """Two rectangles on a 6 x 5 image, each with a bump as its spectrum, and noise."""
    maps = torch.zeros(2, 6, 5, dtype=torch.float64)
    maps[0, :3, :3], maps[1, 2:, 3:] = 1.0, 2.0
    x = torch.linspace(0.0, 1.0, m, dtype=torch.float64)
    spectra = torch.stack([torch.exp(-(((x - c) / 0.2) ** 2)) for c in (0.3, 0.8)])
    return maps.reshape(2, 30).T @ spectra + noise * normal(30, m)


def sparse(Q, mask):
    return torch.where(mask, Q, 0.0).to_sparse_coo()


@pytest.mark.parametrize(
    ("left", "right", "truth"),
    [
        (FactorNorm(l2=2.0), FactorNorm(l2=0.5), lambda Q: torch.linalg.svdvals(Q)[0]),
        (SUM, SUM, lambda Q: Q.abs().max()),
        (FactorNorm(), SUM, lambda Q: Q.norm(dim=0).max()),
        (SUM, FactorNorm(), lambda Q: Q.norm(dim=1).max()),
        (FactorNorm(l2=0.0, l1=1.0, nonnegative=True), SUM, lambda Q: Q.abs().max()),
        (FactorNorm(l2=0.0, l1=1.0, nonnegative=True),) * 2 + (lambda Q: Q.max(),),
    ],
    ids=["l2 l2", "l1 l1", "l2 l1", "l1 l2", "one sign", "two signs"],
)
def test_polars_with_a_closed_form(left, right, truth):
    Q = normal(7, 5)
    value = StructuredAtom((7, 5), left, right).polar(Q)
    exact = float(truth(Q))
    assert value.low <= exact * (1 + 1e-12)
    assert value.high >= exact * (1 - 1e-12)
    assert value.low == pytest.approx(exact, rel=1e-6)
    assert value.high == pytest.approx(exact, rel=2e-3)
    sparse_value = StructuredAtom((7, 5), left, right).polar(sparse(Q, Q.abs() > 0.5))
    assert sparse_value.high == pytest.approx(float(truth(torch.where(Q.abs() > 0.5, Q, 0.0))), rel=2e-3)


def test_nonnegative_matrices_and_factors_have_the_singular_value():
    Q = normal(8, 6).abs()
    sigma = float(torch.linalg.svdvals(Q)[0])
    value = StructuredAtom((8, 6), SIGNS, SIGNS).polar(Q)
    assert value.low == pytest.approx(sigma, rel=1e-6)
    assert value.high == pytest.approx(sigma, rel=1e-3)
    value = StructuredAtom((8, 6), SIGNS, SIGNS).polar(-Q)
    assert value.low == 0.0
    assert value.high <= 1e-12
    assert StructuredAtom((8, 6), SIGNS).polar(-Q).low == pytest.approx(sigma, rel=1e-6)  # v = -|v|


@pytest.mark.parametrize("left", [FactorNorm(l1=0.4), FactorNorm(l2=0.3, l1=0.2, tv=0.5), SIGNS])
@pytest.mark.parametrize("right", [FactorNorm(), FactorNorm(l1=0.3, nonnegative=True)])
def test_brute_force_lies_within_the_bracket(left, right):
    angle = torch.arange(20000, dtype=torch.float64) * (2 * math.pi / 20000)
    U = left.effective(torch.stack([angle.cos(), angle.sin()], 1))
    U = U[U.any(1)]
    U = U / left(U)[:, None]
    for seed in range(6):
        Q = normal(2, 4, seed=seed)
        V, _ = right.maximizers(U @ Q)
        truth = float(((U @ Q) * V).sum(1).max())
        value = StructuredAtom((2, 4), left, right).polar(Q, seed=seed)
        assert value.low <= value.high
        assert value.high >= truth * (1 - 1e-12)
        assert value.low >= truth * (1 - 1e-6)  # on two rows the ascent finds the maximum
        assert value.high <= 1.15 * truth


@pytest.mark.parametrize(("left", "right"), [(FactorNorm(l1=0.2), SIGNS), (SIGNS, FactorNorm(l1=0.3))])
def test_hundreds_of_matrices_and_starts_do_not_beat_the_upper_end(left, right):
    atom = StructuredAtom((5, 4), left, right)
    for seed in range(80):
        Q = normal(5, 4, seed=seed) + (seed % 3) * normal(5, 1, seed=seed + 1) @ normal(1, 4, seed=seed + 2)
        value = atom.polar(Q, budget=0.0 if seed % 2 else 0.02, seed=seed)
        V = right.effective(normal(60, 4, seed=seed + 3))
        for _ in range(8):
            U, _ = left.maximizers((Q @ V.T).T, iterations=5)
            V, _ = right.maximizers(U @ Q, iterations=5)
        assert float(((U @ Q) * V).sum(1).max()) <= value.high
        assert value.low <= value.high


def test_the_family_keeps_the_protocol():
    check_atom(
        StructuredAtom((4, 3), FactorNorm(l2=0.5, tv=0.3), FactorNorm(nonnegative=True)),
        trials=0,
    )


def test_extreme_sizes_do_not_overflow():
    Q, atom = normal(5, 4), StructuredAtom((5, 4), FactorNorm(l1=0.2))
    one = atom.polar(Q)
    for exponent in (-600, 600):
        value = atom.polar(Q * 2.0**exponent)
        assert value.low == pytest.approx(one.low * 2.0**exponent, rel=1e-9)
        assert value.high == pytest.approx(one.high * 2.0**exponent, rel=1e-2)


def test_equal_factors_are_merged():
    atom = StructuredAtom((6, 5), FactorNorm(l1=0.3), FactorNorm(l1=0.2))
    U, V = atom.init(3)
    twice = join((U, V), (2.0 * U, normal(3, 5, seed=1)), (normal(3, 6, seed=2), 0.5 * V))
    merged = atom.merge(twice)
    assert len(merged[0]) == 6
    assert torch.allclose(atom.phi(merged), atom.phi(twice))
    assert float(atom.theta(merged).sum()) <= float(atom.theta(twice).sum())


@pytest.mark.parametrize(("left", "right"), [(FactorNorm(), FactorNorm()), (SUM, FactorNorm())])
def test_known_families_have_the_same_optimum(left, right):
    Y = normal(8, 6)
    names = tuple("l2" if norm.l2 else "l1" for norm in (left, right))
    same = Problem(SquaredLoss(Y), MatrixAtom((8, 6), norms=names), 1.0).solve(tol=1e-6)
    problem = Problem(SquaredLoss(Y), StructuredAtom((8, 6), left, right), 1.0)
    solution = problem.solve(tol=1e-4, budget=10.0)
    truth = same.certificate.objective
    assert truth * (1 - 1e-6) <= solution.certificate.objective <= truth * (1 + 1e-3)
    assert truth * (1 - 5e-3) <= relaxed_bound(problem) <= truth * (1 + 1e-9)  # here nothing is relaxed


@pytest.mark.parametrize("left", [IMAGE, IMAGE_SIGNS], ids=["free", "nonnegative"])
def test_descent_goes_below_that_on_all_parameters(left):
    problem = Problem(SquaredLoss(planted()), StructuredAtom((30, 8), left, FactorNorm()), 0.5)
    start = tuple(0.3 * p for p in problem.atom.init(4, seed=1))
    options = {"tol": 1e-4, "deadline": time.monotonic() + 60.0, "progress": lambda params: None}
    ours = problem.atom.descend(problem, start, **options)
    default = default_descend(problem, start, **options)
    assert problem.objective(ours) <= problem.objective(default) * (1 + 1e-4)
    U, _ = problem.atom.effective(ours)
    assert float((U.abs() < 1e-12).double().mean()) > 0.1  # exact zeros, which no smooth method gives


def losses():
    Y = planted()
    seen = torch.rand(30, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    rows, cols = seen.nonzero(as_tuple=True)
    return {
        "squared": SquaredLoss(Y),
        "masked": MaskedSquaredLoss(rows, cols, Y[rows, cols], (30, 8)),
        "Huber": HuberLoss(Y, 0.5),
    }


@pytest.mark.parametrize("name", ["squared", "masked", "Huber"])
def test_both_dual_bounds_hold_and_the_relaxed_one_is_close(name):
    problem = Problem(losses()[name], StructuredAtom((30, 8), IMAGE_SIGNS, SIGNS), 0.6)
    solution = problem.solve(tol=1e-2, budget=1.5)
    bound, objective = relaxed_bound(problem), solution.certificate.objective
    assert bound <= objective
    assert solution.certificate.dual_bound <= objective
    assert bound >= 0.8 * objective
    better = [
        problem.atom.scale(solution.params, torch.full((len(solution.params[0]),), s)) for s in (0.9, 1.1)
    ]
    assert min(problem.objective(p) for p in better) >= bound


def test_zero_is_optimal_from_lambda_max_on():
    atom = StructuredAtom((30, 8), IMAGE_SIGNS)
    loss = SquaredLoss(planted())
    top = Problem(loss, atom, 1.0).lambda_max().high
    assert Problem(loss, atom, 1.001 * top).solve(tol=1e-4).certificate.gap <= 1e-4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StructuredAtom((3, 0)), ValueError, "shape: expected two integers"),
        (lambda: StructuredAtom((3, 2), FactorNorm(grid=(2, 2))), ValueError, "left: expected a grid of 3"),
        (lambda: StructuredAtom((3, 2), right="l2"), TypeError, "right: expected a FactorNorm"),
        (lambda: StructuredAtom((3, 2)).polar(torch.ones(2, 3)), ValueError, "Q: expected shape"),
        (
            lambda: StructuredAtom((1, 2)).polar(torch.tensor([[1.0, math.inf]])),
            ValueError,
            "Q: expected finite",
        ),
        (
            lambda: StructuredAtom((3, 2)).phi(StructuredAtom((3, 2)).init(1), normal(3, 2)),
            ValueError,
            "X: expected",
        ),
    ],
)
def test_other_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_relaxation_enters_the_certificate_and_is_gone_on_with():
    atom = StructuredAtom((30, 8), IMAGE_SIGNS, SIGNS)
    problem = Problem(SquaredLoss(planted()), atom, 0.6)
    params = atom.init(0)
    options = {"tol": 1e-3, "seed": 0, "delta": 1e-9}
    assert atom.dual_bound(problem, params, budget=0.0, **options) is None  # nothing is known yet
    alone = problem.certify(params, budget=0.0).dual_bound
    early = atom.dual_bound(problem, params, budget=0.01, **options).low
    late = atom.dual_bound(problem, params, budget=None, **options).low
    assert early <= late == pytest.approx(relaxed_bound(problem, tol=1e-4), rel=1e-2)
    assert atom.dual_bound(problem, params, budget=0.0, **options).low == late
    assert alone < late == problem.certify(params, budget=0.0).dual_bound
    solution = problem.solve(tol=1e-3, budget=0.5)
    assert solution.certificate.dual_bound >= late
    assert solution.history[0].dual_bound >= late
    assert solution.certificate.verdict != "closed" or solution.certificate.gap <= 1e-3
    other = Problem(problem.loss, atom, 2.0)
    assert atom.dual_bound(other, params, budget=0.0, **options) is None
    assert other.certify(params).dual_bound <= other.objective(params)


def test_euclidean_norms_need_no_relaxation():
    atom = StructuredAtom((30, 8))
    problem = Problem(SquaredLoss(planted()), atom, 0.6)
    assert atom.dual_bound(problem, atom.init(0), tol=1e-3, budget=None, seed=0, delta=1e-9) is None
