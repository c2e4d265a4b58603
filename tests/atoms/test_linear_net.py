"""Deep linear networks: polars with their rounding, closed-form optima, convex solvers."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from theodolite.atoms.linear_net import LinearNetAtom
from theodolite.core.params import count, select
from theodolite.core.problem import Problem
from theodolite.losses import MaskedSquaredLoss, SquaredLoss
from theodolite.reference import gauges
from theodolite.testing import check_atom


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(n, d, seed=seed)).Q


def gauge_of(norm: str, G: Tensor) -> tuple[float, float]:
    """Largest singular value and nuclear norm, in the order (polar, dual of the polar)."""
    s = np.linalg.svd(G.numpy(), compute_uv=False)
    return (s[0], s.sum()) if norm == "fro" else (s.sum(), s[0])


@pytest.mark.parametrize(("depth", "width"), [(2, 1), (2, 3), (3, 2), (4, 5)])
def test_it_is_an_atom(depth: int, width: int) -> None:
    X = gaussian(6, 4)
    check_atom(
        LinearNetAtom(X, 3, depth, width),
        searches=50,
        trials=2,
        reference=lambda Q: gauge_of("fro", X.T @ Q)[0],
    )


@pytest.mark.parametrize(("depth", "width"), [(2, None), (3, 4)])
def test_it_is_an_atom_with_operator_norms(depth: int, width: int | None) -> None:
    X = gaussian(6, 4)
    atom = LinearNetAtom(X, 3, depth, width, norm="op")
    check_atom(atom, searches=10, trials=2, reference=lambda Q: gauge_of("op", X.T @ Q)[0])


@pytest.mark.parametrize("norm", ["fro", "op"])
@pytest.mark.parametrize("sparse", [False, True])
def test_polar_is_closed_form(norm: str, sparse: bool) -> None:
    for seed, (n, d, k) in enumerate([(7, 4, 3), (5, 1, 4), (9, 3, 1), (1, 4, 2), (6, 5, 5)]):
        X, Q = gaussian(n, d, seed=seed), gaussian(n, k, seed=seed + 9)
        if sparse:
            Q = Q * (Q > 0.3)
        truth = gauge_of(norm, X.T @ Q)[0]
        atom = LinearNetAtom(X, k, 3, norm=norm)
        value = atom.polar(Q.to_sparse_coo() if sparse else Q)
        assert truth * (1 - 1e-9) <= value.low <= truth * (1 + 1e-13)
        assert truth * (1 - 1e-13) <= value.high <= truth * (1 + 1e-9)
        first = select(value.witness, slice(0, 1))
        assert float(atom.theta(first)) == pytest.approx(1.0, abs=1e-12)
        assert float((atom.phi(first) * Q).sum()) >= value.low


@pytest.mark.parametrize("norm", ["fro", "op"])
def test_the_upper_end_encloses_rounding_of_the_product(norm: str) -> None:
    """X^T Q cancels: its exact value, in extended precision, is near the size of the errors."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        X = rng.normal(size=(400, 3))
        Q = rng.normal(size=(400, 2)) * 10.0 ** rng.integers(0, 6, (400, 1))
        Q -= X @ np.linalg.lstsq(X, Q, rcond=None)[0]
        exact = X.T.astype(np.longdouble) @ Q.astype(np.longdouble)
        truth = gauge_of(norm, torch.from_numpy(exact.astype(np.float64)))[0]
        value = LinearNetAtom(torch.from_numpy(X), 2, 2, norm=norm).polar(torch.from_numpy(Q))
        assert value.low <= truth <= value.high


@given(st.integers(0, 2**31), st.integers(2, 5), st.sampled_from(["fro", "op"]))
@settings(max_examples=80)
def test_random_networks_never_beat_the_bounds(seed: int, depth: int, norm: str) -> None:
    rng = np.random.default_rng(seed)
    n, d, k = (int(x) for x in rng.integers(1, 7, size=3))
    width = int(rng.integers(1, 5)) + (0 if norm == "fro" else min(d, k))
    X, Y = (torch.from_numpy(rng.normal(size=(n, size))) for size in (d, k))
    atom = LinearNetAtom(X, k, depth, width, norm=norm)
    params = atom.init(100, seed=seed)
    values = atom.each(params) @ Y.reshape(-1)
    assert float(values.abs().max()) <= atom.polar(Y).high * (1 + 1e-12)
    problem = Problem(SquaredLoss(Y), atom, 0.5)
    bound = problem.certify(select(params, slice(0, 3))).dual_bound
    for i in range(10, 60, 2):
        some = atom.scale(select(params, slice(i, i + 2)), torch.from_numpy(rng.exponential(size=2)))
        assert bound <= problem.objective(some)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_every_random_start_reaches_the_closed_form(depth: int) -> None:
    """X with orthonormal columns: the optimum thresholds the singular values of X^T Y."""
    X, Y = orthonormal(12, 5), gaussian(12, 4, seed=1)
    G = X.T @ Y
    lam = 0.3 * float(torch.linalg.matrix_norm(G, 2))
    best, inside = gauges.thresholded(G.numpy(), lam)
    optimum = inside + 0.5 * float((Y - X @ G).square().sum())
    atom = LinearNetAtom(X, 4, depth)
    problem = Problem(SquaredLoss(Y), atom, lam)
    for seed in range(20):
        solution = problem.solve(tol=1e-7, init=atom.init(1 + seed % 4, seed=seed), seed=seed)
        assert solution.certificate.verdict == "closed"
        assert solution.certificate.objective == pytest.approx(optimum, rel=1e-7)
        assert solution.certificate.dual_bound <= optimum * (1 + 1e-14)
        assert np.allclose(atom.matrix(solution.params).numpy(), best, atol=1e-3)


def test_layers_of_the_start_are_descended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = orthonormal(12, 5), gaussian(12, 4, seed=1)
    atom = LinearNetAtom(X, 4, 2)
    problem = Problem(SquaredLoss(Y), atom, 0.5)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the layers' own descent reaches this tolerance")

    monkeypatch.setattr("theodolite.atoms.linear_net.minimize", refuse)
    start = atom.init(3, seed=2)
    found = atom.descend(problem, start, tol=1e-2, deadline=math.inf, progress=lambda _: None)
    assert count(found) == 3
    assert problem.certify(found, tol=1e-2).verdict == "closed"


@pytest.mark.parametrize("norm", ["fro", "op"])
@pytest.mark.parametrize("masked", [False, True])
def test_optimum_of_a_convex_solver(norm: str, masked: bool) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        n, d, k = 10, 4, 3
        X, Y = rng.normal(size=(n, d)), rng.normal(size=(n, k))
        mask = rng.random((n, k)) < 0.6 if masked else np.ones((n, k), bool)
        i, j = np.nonzero(mask)
        loss = (
            MaskedSquaredLoss(i, j, torch.from_numpy(Y[i, j]), (n, k))
            if masked
            else SquaredLoss(torch.from_numpy(Y))
        )
        atom = LinearNetAtom(torch.from_numpy(X), k, 3, norm=norm)
        lam = 0.3 * Problem(loss, atom, 1.0).lambda_max().high
        M = cp.Variable((d, k))
        gauge = cp.normNuc(M) if norm == "fro" else cp.sigma_max(M)
        fit = 0.5 * cp.sum_squares(cp.multiply(mask.astype(float), Y - X @ M))
        optimum = cp.Problem(cp.Minimize(fit + lam * gauge)).solve(solver=cp.CLARABEL)
        certificate = Problem(loss, atom, lam).solve(tol=1e-8).certificate
        assert certificate.verdict == "closed"
        assert certificate.objective == pytest.approx(optimum, rel=1e-6)
        assert certificate.dual_bound <= optimum * (1 + 1e-7)


@pytest.mark.parametrize("norm", ["fro", "op"])
def test_networks_of_a_matrix(norm: str) -> None:
    for depth, width in [(2, None), (3, 5), (5, None)]:
        atom = LinearNetAtom(gaussian(6, 4), 3, depth, width, norm=norm)
        M = gaussian(4, 1) @ gaussian(1, 3, seed=1) + 0.1 * gaussian(4, 1, seed=2) @ gaussian(1, 3, seed=3)
        params = atom.from_matrix(M)
        assert torch.allclose(atom.matrix(params), M, atol=1e-13)
        assert float(atom.theta(params).sum()) == pytest.approx(gauge_of(norm, M)[1])
        assert torch.allclose(atom.penalty(params), atom.theta(params))
        merged = atom.merge(tuple(torch.cat([p, p]) for p in params))
        assert count(merged) == count(params)
        assert torch.allclose(atom.matrix(merged), 2.0 * M, atol=1e-13)
    assert count(atom.from_matrix(torch.zeros(4, 3).double())) == 0
    wide = atom.init(1)
    assert count(atom.merge(wide)) == 1


def test_other_inputs_and_supports() -> None:
    atom = LinearNetAtom(gaussian(6, 4), 3, 3)
    params = atom.init(2)
    loss = MaskedSquaredLoss([0, 5, 2], [2, 1, 0], torch.zeros(3).double(), (6, 3))
    rows, cols = loss.support.rows, loss.support.cols
    assert torch.allclose(atom.predict(params, loss.support), atom.phi(params)[rows, cols])
    assert atom.phi(params, gaussian(9, 4)).shape == (9, 3)
    assert torch.allclose(atom.phi(params, atom.X), atom.phi(params))
    assert torch.equal(atom.row_bounds(loss.support), atom.row_bounds()[rows])


def test_bad_input_is_refused() -> None:
    X = gaussian(4, 3)
    with pytest.raises(ValueError, match="depth: expected at least 2 layers, got 1"):
        LinearNetAtom(X, 2, 1)
    with pytest.raises(ValueError, match="norm: expected 'fro' or 'op', got 'max'"):
        LinearNetAtom(X, 2, 2, norm="max")
    with pytest.raises(ValueError, match="widths: expected at least 2 for norm='op', got 1"):
        LinearNetAtom(X, 2, 2, 1, norm="op")
    with pytest.raises(ValueError, match="widths: expected at least 1 for norm='fro', got 0"):
        LinearNetAtom(X, 2, 2, 0)
    with pytest.raises(ValueError, match="n_outputs"):
        LinearNetAtom(X, 0, 2)
    with pytest.raises(ValueError, match="X: expected"):
        LinearNetAtom(X * math.nan, 2, 2)
    with pytest.raises(ValueError, match="X: expected"):
        LinearNetAtom(X[:0], 2, 2)
    with pytest.raises(ValueError, match=r"Q: expected shape \(4, 2\)"):
        LinearNetAtom(X, 2, 2).polar(gaussian(4, 3))
    with pytest.raises(ValueError, match="Q: expected finite entries"):
        LinearNetAtom(X, 2, 2).polar(torch.full((4, 2), math.inf))
