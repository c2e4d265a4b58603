"""Matrix factorization: polars, certificates, and optima of closed form or by a convex solver."""

import math
import subprocess
import sys
import time
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from theodolite.atoms.matrix import MatrixAtom
from theodolite.core.params import Params, count, select
from theodolite.core.problem import Problem
from theodolite.losses import (
    CrossEntropyLoss,
    LogisticLoss,
    MaskedLoss,
    MaskedSquaredLoss,
    PoissonLoss,
    SquaredLoss,
)
from theodolite.reference import gauges
from theodolite.testing import check_atom

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [("l2", "l2"), ("l2", "l1"), ("l1", "l2"), ("l1", "l1"), ("linf", "l1"), ("l1", "linf")]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights_of(kind: str, shape: tuple[int, int], seed: int) -> tuple[Tensor | None, Tensor | None]:
    """None, diagonals or matrices, well conditioned, with signs."""
    rng = np.random.default_rng(seed)
    if kind == "none":
        return None, None
    if kind == "diagonal":
        left, right = (
            torch.from_numpy(rng.choice([-1.0, 1.0], s) * np.exp(rng.normal(size=s))) for s in shape
        )
        return left, right
    left, right = (torch.from_numpy(rng.normal(size=(s, s)) + 3.0 * np.eye(s)) for s in shape)
    return left, right


def completion(n: int) -> tuple[MaskedSquaredLoss, float]:
    """The completion problem of a known optimum, and its lambda."""
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(n, 5)) @ rng.normal(size=(5, n)) / math.sqrt(5)
    mask = rng.random((n, n)) < 0.2
    Y = low_rank + 0.5 * rng.normal(size=(n, n))
    i, j = np.nonzero(mask)
    return MaskedSquaredLoss(i, j, torch.from_numpy(Y[i, j]), (n, n)), math.sqrt(0.2 * n)


def descended(problem: Problem, params: Params, tol: float) -> Params:
    deadline = time.monotonic() + 100.0
    return problem.atom.descend(problem, params, tol=tol, deadline=deadline, progress=lambda _: None)


# ------------------------------------------------------------------------------------- polar


@pytest.mark.parametrize("kind", ["none", "diagonal", "matrix"])
@pytest.mark.parametrize("norms", PAIRS)
@pytest.mark.parametrize("sparse", [False, True])
def test_polar_is_that_of_the_enumeration(norms: tuple[str, str], kind: str, sparse: bool) -> None:
    for seed, shape in enumerate([(5, 7), (6, 4), (1, 5), (5, 1), (1, 1)]):
        Q = gaussian(*shape, seed=seed)
        if sparse:
            Q = Q * (gaussian(*shape, seed=seed + 50) > 0.5)
        weights = weights_of(kind, shape, seed)
        atom = MatrixAtom(shape, norms, weights)
        left, right = (None if D is None else D.numpy() for D in weights)
        truth = gauges.polar(Q.numpy(), norms, (left, right))
        value = atom.polar(Q.to_sparse_coo() if sparse else Q)
        assert value.low <= truth * (1 + 1e-12)
        assert truth * (1 - 1e-12) <= value.high <= truth * (1 + 1e-9)
        assert value.low >= truth * (1 - 1e-9)
        assert value.confidence == 1.0
        first = select(value.witness, slice(0, 1))
        assert float(atom.theta(first)) == pytest.approx(1.0, abs=1e-12)
        assert float((Q * atom.phi(first)).sum()) >= value.low - 1e-15 * abs(value.low)


@given(st.integers(0, 2**31), st.sampled_from(PAIRS), st.sampled_from(["none", "diagonal", "matrix"]))
@settings(max_examples=100)
def test_search_and_ascent_never_beat_the_upper_end(seed: int, norms: tuple[str, str], kind: str) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 8)), int(rng.integers(1, 8)))
    Q = torch.from_numpy(rng.normal(size=shape) * 10.0 ** rng.integers(-150, 150))
    weights = weights_of(kind, shape, seed)
    atom = MatrixAtom(shape, norms, weights)
    high = atom.polar(Q, seed=seed % 1000).high
    cheap = atom.polar(Q, budget=0.0).high
    assert high <= cheap * (1 + 1e-10)
    params = atom.init(100, seed=seed)
    for _ in range(
        8
    ):  # alternating maximization, in the variables of the plain norms, for l2; random otherwise
        values = torch.einsum("ij,ri,rj->r", Q, *params) / atom.theta(params)
        assert float(values.abs().max()) <= high
        U, V = params
        U, V = atom.left.apply(V @ atom.right.solve(torch.eye(shape[1]).double()) @ Q.T), V
        params = atom.normalized((atom.left.solve(U), V + 0.3 * V.norm() * torch.randn_like(V)))


def test_ascent_reaches_the_spectral_norm_and_stops_there() -> None:
    Q = gaussian(9, 6)
    v = gaussian(6, seed=1)
    for _ in range(2000):
        v = torch.nn.functional.normalize(Q.T @ (Q @ v), dim=0)
    attained = float((Q @ v).norm())
    value = MatrixAtom((9, 6)).polar(Q)
    assert attained * (1 - 1e-12) <= value.high <= attained * (1 + 1e-9)


@pytest.mark.parametrize("norms", PAIRS)
def test_polar_of_special_matrices(norms: tuple[str, str]) -> None:
    column = torch.ones(10, 1, dtype=torch.float64)
    row = torch.arange(1.0, 11.0, dtype=torch.float64)[None]
    for Q in (
        column @ row,
        torch.eye(10).double(),
        torch.ones(10, 10).double(),
        1e-250 * column @ row,
        1e200 * row,
    ):
        truth = gauges.polar(Q.numpy() / float(Q.max()), norms) * float(Q.max())
        value = MatrixAtom(tuple(Q.shape), norms).polar(Q)
        assert value.low <= value.high
        assert value.high == pytest.approx(truth, rel=1e-9)
        assert value.low == pytest.approx(truth, rel=1e-9)
    zero = MatrixAtom((10, 10), norms).polar(torch.zeros(10, 10).double())
    assert (zero.low, zero.high) == (0.0, 0.0)
    assert count(zero.witness) == 1


def test_witnesses_are_directions_above_the_target() -> None:
    U, V = (torch.linalg.qr(gaussian(30, 30, seed=s)).Q for s in (1, 2))
    Q = U @ torch.diag(torch.cat([torch.arange(20.0, 14.0, -1.0), torch.ones(24)]).double()) @ V.T
    value = MatrixAtom((30, 30)).polar(Q, target=15.5)
    assert count(value.witness) == 5
    assert ((value.witness[0] @ Q) * value.witness[1]).sum(1).tolist() == pytest.approx([20, 19, 18, 17, 16])
    assert count(MatrixAtom((30, 30)).polar(Q, target=30.0).witness) == 1


def test_large_matrices_use_the_split_proof() -> None:
    rng = np.random.default_rng(0)
    n, m, size = 1100, 1500, 10000
    place = rng.choice(n * m, size, replace=False)
    rows, cols = torch.from_numpy(place // m), torch.from_numpy(place % m)
    Q = torch.sparse_coo_tensor(
        torch.stack([rows, cols]), gaussian(size), (n, m), check_invariants=False
    ).coalesce()
    atom = MatrixAtom((n, m))
    value = atom.polar(Q, seed=3, delta=1e-6)
    truth = float(torch.linalg.matrix_norm(Q.to_dense(), 2))
    assert 1.0 - 1e-6 <= value.confidence < 1.0
    assert value.low <= truth <= value.high <= 1.05 * truth
    assert value.low >= 0.98 * truth
    proof = atom.polar(Q, target=1.001 * truth)  # only the costly proof shows this
    assert truth <= proof.high <= 1.001 * truth


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="NP-hard"):
        MatrixAtom((3, 4), ("l2", "linf"))
    with pytest.raises(ValueError, match="NP-hard"):
        MatrixAtom((3, 4), ("linf", "linf"))
    with pytest.raises(ValueError, match="norms: expected two of l1, l2, linf"):
        MatrixAtom((3, 4), ("l2", "l3"))
    with pytest.raises(ValueError, match="shape: expected two integers >= 1"):
        MatrixAtom((3, 0))
    with pytest.raises(ValueError, match=r"weights\[0\]: expected invertible weights, got the entry 0.0"):
        MatrixAtom((2, 3), weights=(torch.tensor([1.0, 0.0]), None))
    with pytest.raises(
        ValueError, match=r"weights\[1\]: expected invertible weights, got a matrix that is singular"
    ):
        MatrixAtom((3, 2), weights=(None, torch.ones(2, 2)))
    with pytest.raises(ValueError, match=r"weights\[1\]: expected a real diagonal of shape \(2,\)"):
        MatrixAtom((3, 2), weights=(None, torch.ones(3)))
    with pytest.raises(ValueError, match=r"weights\[0\]: expected finite weights"):
        MatrixAtom((3, 2), weights=(torch.tensor([1.0, math.nan, 1.0]), None))
    with pytest.raises(ValueError, match="Q: expected finite entries, got nan"):
        MatrixAtom((2, 2)).polar(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"Q: expected shape \(2, 2\)"):
        MatrixAtom((2, 2)).polar(torch.ones(2, 3))
    with pytest.raises(ValueError, match="X: expected None"):
        MatrixAtom((2, 2)).phi(MatrixAtom((2, 2)).init(1), torch.ones(2, 2))


# ------------------------------------------------------------------------------- phi and theta


@pytest.mark.parametrize(
    ("norms", "kind"),
    [
        *((norms, "none") for norms in PAIRS),
        (PAIRS[0], "diagonal"),
        (PAIRS[0], "matrix"),
        (PAIRS[4], "matrix"),
    ],
)
def test_it_is_an_atom(norms: tuple[str, str], kind: str) -> None:
    weights = weights_of(kind, (5, 4), 8)
    plain = tuple(None if D is None else D.numpy() for D in weights)
    atom = MatrixAtom((5, 4), norms, weights)
    check_atom(
        atom, searches=50, trials=3, reference=lambda Q: gauges.polar(Q.numpy(), norms, (plain[0], plain[1]))
    )


@pytest.mark.parametrize("kind", ["none", "diagonal", "matrix"])
@pytest.mark.parametrize("norms", PAIRS)
def test_the_pieces_agree(norms: tuple[str, str], kind: str) -> None:
    shape = (6, 8)
    atom = MatrixAtom(shape, norms, weights_of(kind, shape, 5))
    params = tuple(p * (1.0 + torch.arange(5.0).double())[:, None] for p in atom.init(5, seed=2))
    loss = MaskedSquaredLoss([0, 5, 2, 2], [7, 1, 3, 0], torch.zeros(4).double(), shape)
    support = loss.support
    whole = atom.phi(params)
    assert torch.allclose(
        atom.predict(params, support), whole[support.rows, support.cols], rtol=1e-13, atol=1e-14
    )
    assert torch.allclose(atom.each(params).sum(0), whole.reshape(-1))
    assert torch.allclose(atom.each(params, support).sum(0), atom.predict(params, support))
    theta = atom.theta(params)
    assert torch.allclose(theta, torch.arange(1.0, 6.0).double() ** 2)
    assert bool((atom.penalty(params) >= theta * (1 - 1e-12)).all())
    one = select(params, slice(0, 1))
    assert bool((atom.phi(one).norm(dim=1) <= theta[0] * atom.row_bounds() * (1 + 1e-12)).all())
    assert bool((atom.predict(one, support).abs() <= theta[0] * atom.row_bounds(support) * (1 + 1e-12)).all())
    merged = atom.merge(tuple(torch.cat([p, 2.0 * p, p]) for p in params))
    assert count(merged) < 15
    assert torch.allclose(atom.phi(merged), 6.0 * whole, rtol=1e-11, atol=1e-11)
    assert float(atom.theta(merged).sum()) <= 6.0 * float(theta.sum()) * (1 + 1e-12)
    assert count(atom.merge(atom.init(0))) == 0


@pytest.mark.parametrize("density", [0.6, 0.002])
def test_predictions_on_a_support_in_any_order(density: float) -> None:
    n, m, r = 300, 200, 7
    rng = np.random.default_rng(0)
    place = rng.permutation(rng.choice(n * m, int(density * n * m), replace=False))
    loss = MaskedSquaredLoss(place // m, place % m, torch.zeros(len(place)).double(), (n, m))
    atom = MatrixAtom((n, m))
    params = tuple(p.requires_grad_() for p in atom.init(r))
    Z = atom.predict(params, loss.support)
    assert torch.allclose(Z, atom.phi(params)[loss.support.rows, loss.support.cols], atol=1e-14)
    grads = torch.autograd.grad(Z.square().sum(), params)
    dense = torch.autograd.grad(atom.phi(params)[loss.support.rows, loss.support.cols].square().sum(), params)
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(grads, dense, strict=True))


# ----------------------------------------------------------------------------------- optimum


def test_squared_loss_gives_singular_value_thresholding() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        Y = rng.normal(size=rng.integers(1, 25, size=2)) * 10.0 ** rng.integers(-3, 4)
        lam = float(rng.uniform(0.02, 1.1)) * float(np.linalg.norm(Y, 2))
        _, optimum = gauges.thresholded(Y, lam)
        solution = Problem(SquaredLoss(torch.from_numpy(Y)), MatrixAtom(Y.shape), lam).solve(tol=1e-10)
        certificate = solution.certificate
        assert certificate.verdict == "closed"
        assert certificate.objective == pytest.approx(optimum, rel=1e-9)
        assert certificate.dual_bound <= optimum * (1 + 1e-15)


@given(st.integers(0, 2**31))
@settings(max_examples=60)
def test_the_gap_bounds_the_distance_to_the_optimum(seed: int) -> None:
    """The objective is strongly convex: 1/2 ||Z - Z*||^2 <= P - D at any point."""
    rng = np.random.default_rng(seed)
    Y = rng.normal(size=rng.integers(1, 12, size=2))
    lam = float(rng.uniform(0.05, 1.0)) * float(np.linalg.norm(Y, 2))
    atom = MatrixAtom(Y.shape)
    problem = Problem(SquaredLoss(torch.from_numpy(Y)), atom, lam)
    r = int(rng.integers(0, 4))
    params = atom.scale(atom.init(r, seed=seed), torch.from_numpy(rng.exponential(size=r)))
    certificate = problem.certify(params)
    Z, optimum = gauges.thresholded(Y, lam)
    distance = 0.5 * float(np.square(problem.predictions(params).numpy() - Z).sum())
    assert distance <= (certificate.objective - certificate.dual_bound) * (1 + 1e-12)
    assert certificate.dual_bound <= optimum * (1 + 1e-14) <= certificate.objective * (1 + 1e-13)


def convex_gauge(Z: cp.Expression, norms: tuple[str, str]) -> cp.Expression:
    if norms == ("l2", "l2"):
        return cp.normNuc(Z)
    columns, norm = (Z, norms[0]) if norms[1] == "l1" else (Z.T, norms[1])
    return cp.sum(cp.norm(columns, {"l1": 1, "l2": 2, "linf": "inf"}[norm], axis=0))


@pytest.mark.parametrize("kind", ["none", "diagonal", "matrix"])
@pytest.mark.parametrize("norms", PAIRS)
def test_optimum_of_a_convex_solver(norms: tuple[str, str], kind: str) -> None:
    for seed, masked in [(0, False), (1, True)]:
        rng = np.random.default_rng(seed)
        n, m = (6, 5) if seed else (4, 7)
        Y = rng.normal(size=(n, m))
        mask = rng.random((n, m)) < 0.6 if masked else np.ones((n, m), bool)
        i, j = np.nonzero(mask)
        weights = weights_of(kind, (n, m), seed)
        atom = MatrixAtom((n, m), norms, weights)
        target = torch.from_numpy(Y)
        loss = MaskedSquaredLoss(i, j, target[i, j], (n, m)) if masked else SquaredLoss(target)
        lam = 0.3 * Problem(loss, atom, 1.0).lambda_max().high
        Du, Dv = (
            np.eye(s) if D is None else np.diag(D.numpy()) if D.ndim == 1 else D.numpy()
            for D, s in zip(weights, (n, m), strict=True)
        )
        Z = cp.Variable((n, m))
        fit = 0.5 * cp.sum_squares(cp.multiply(mask.astype(float), Y - Z))
        program = cp.Problem(cp.Minimize(fit + lam * convex_gauge(Du @ Z @ Dv.T, norms)))
        optimum = program.solve(solver=cp.CLARABEL)
        assert program.status == "optimal"
        certificate = Problem(loss, atom, lam).solve(tol=1e-8).certificate
        assert certificate.verdict == "closed"
        assert certificate.objective == pytest.approx(optimum, rel=1e-6)
        assert certificate.dual_bound <= optimum * (1 + 1e-7)


def test_a_loss_without_a_global_curvature_converges() -> None:
    rng = np.random.default_rng(0)
    n = 12
    i, j = np.nonzero(rng.random((n, n)) < 0.7)
    labels = torch.from_numpy(rng.choice([-1.0, 1.0], (len(i), 1)))
    problem = Problem(MaskedLoss(LogisticLoss(labels), i, j, (n, n)), MatrixAtom((n, n)), 1.0)
    certificate = problem.solve(tol=1e-7).certificate
    assert certificate.verdict == "closed"
    Z = cp.Variable((n, n))
    y = labels.numpy()[:, 0]
    fit = sum(cp.logistic(-y[k] * Z[i[k], j[k]]) for k in range(len(i)))
    optimum = cp.Problem(cp.Minimize(fit + cp.normNuc(Z))).solve(solver=cp.CLARABEL)
    assert certificate.objective == pytest.approx(optimum, rel=1e-6)


@pytest.mark.parametrize("norms", [("l2", "l2"), ("l1", "linf")])
@pytest.mark.parametrize("name", ["poisson", "identity", "cross-entropy"])
def test_losses_of_unbounded_curvature_and_bounded_domain(name: str, norms: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    y = 1.0 + rng.poisson(3, size=(12, 8))
    losses = {
        "poisson": PoissonLoss(y),
        "identity": PoissonLoss(y, link="identity", offset=1.0),
        "cross-entropy": CrossEntropyLoss(torch.from_numpy(rng.integers(0, 8, 12)), 8),
    }
    atom = MatrixAtom((12, 8), norms)
    lam = 0.3 * Problem(losses[name], atom, 1.0).lambda_max().high
    certificate = Problem(losses[name], atom, lam).solve(tol=1e-6).certificate
    assert certificate.verdict == "closed"
    assert certificate.units > 0


@pytest.mark.parametrize("norms", PAIRS)
def test_special_targets(norms: tuple[str, str]) -> None:
    ramp = torch.arange(10.0)
    column = gaussian(10, 1)
    for Y in (torch.zeros(10, 10), ramp[:, None] * ramp, column.expand(10, 10), column, column.T, column[:1]):
        certificate = (
            Problem(SquaredLoss(Y), MatrixAtom(tuple(Y.shape), norms), 0.1).solve(tol=1e-9).certificate
        )
        assert certificate.verdict == "closed"
        assert (certificate.units == 0) == (not bool(Y.any()))


@pytest.mark.parametrize("norms", PAIRS)
def test_at_lambda_max_the_zero_model_is_optimal(norms: tuple[str, str]) -> None:
    loss, atom = SquaredLoss(gaussian(6, 4)), MatrixAtom((6, 4), norms)
    top = Problem(loss, atom, 1.0).lambda_max()
    zero = Problem(loss, atom, top.high * (1.0 + 1e-12)).solve(tol=1e-9)
    assert (zero.certificate.gap, zero.certificate.units) == (0.0, 0)
    below = Problem(loss, atom, 0.99 * top.low).solve(tol=1e-9)
    assert below.certificate.units > 0


# -------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(("n", "optimum"), [(100, 832.652807), (300, 6221.057795)])
def test_completion_reaches_the_known_optimum(n: int, optimum: float) -> None:
    loss, lam = completion(n)
    solution = Problem(loss, MatrixAtom((n, n)), lam).solve(tol=1e-6)
    certificate = solution.certificate
    assert certificate.verdict == "closed"
    assert certificate.objective == pytest.approx(optimum, rel=1e-6)
    assert certificate.dual_bound <= optimum + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("n", "optimum"), [(1000, 52776.63045), (3000, 377842.9174)])
def test_large_completion_reaches_the_known_optimum(n: int, optimum: float) -> None:
    loss, lam = completion(n)
    certificate = Problem(loss, MatrixAtom((n, n)), lam).solve(tol=1e-6).certificate
    assert certificate.verdict == "closed"
    assert certificate.objective == pytest.approx(optimum, rel=1e-6)
    assert certificate.dual_bound <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["none", "diagonal", "matrix"])
def test_the_factored_and_the_dense_iteration_agree(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, lam = completion(60)
    atom = MatrixAtom((60, 60), weights=weights_of(kind, (60, 60), 1))
    lam = 0.2 * Problem(loss, atom, 1.0).lambda_max().high
    problem = Problem(loss, atom, lam)
    dense = problem.objective(descended(problem, atom.init(2, seed=3), 1e-8))
    monkeypatch.setattr("theodolite.atoms.matrix_descent._TINY", 0)
    factored = descended(problem, atom.init(2, seed=3), 1e-7)
    assert problem.objective(factored) == pytest.approx(dense, rel=3e-7)


def test_a_dense_matrix_too_large_to_decompose_has_the_factored_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("theodolite.atoms.matrix_descent._TINY", 0)
    monkeypatch.setattr("theodolite.atoms.matrix_descent._SVD", 0)
    Y = gaussian(60, 40)
    _, optimum = gauges.thresholded(Y.numpy(), 9.0)
    certificate = Problem(SquaredLoss(Y), MatrixAtom((60, 40)), 9.0).solve(tol=1e-7).certificate
    assert certificate.verdict == "closed"
    assert certificate.objective == pytest.approx(optimum, rel=1e-7)


def test_descent_stops_at_its_deadline_and_reports_what_it_has() -> None:
    loss, lam = completion(300)
    problem = Problem(loss, MatrixAtom((300, 300)), lam)
    start = problem.atom.init(1, seed=0)
    stopped = problem.atom.descend(
        problem, start, tol=1e-9, deadline=time.monotonic(), progress=lambda _: None
    )
    assert problem.objective(stopped) <= problem.objective(start)
    seen: list[Params] = []
    problem.atom.descend(problem, start, tol=1e-2, deadline=math.inf, progress=seen.append)
    assert seen
    assert problem.objective(seen[-1]) < problem.objective(start)


def test_completion_never_forms_the_matrix() -> None:
    """20,000 x 20,000 entries would take 3.2 GB; 200,000 of them are observed, with 500 MB to spare."""
    code = """
import pathlib, resource
import numpy as np, torch
import theodolite.core.solve
from theodolite.atoms.matrix import MatrixAtom
from theodolite.core.problem import Problem
from theodolite.losses import MaskedSquaredLoss
torch.set_num_threads(1)
n, rng = 20_000, np.random.default_rng(0)
place = rng.permutation(np.unique(rng.integers(0, n * n, 200_000)))
i, j = place // n, place % n
U, V = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
values = (U[i] * V[j]).sum(1) + 0.1 * rng.normal(size=len(i))
loss = MaskedSquaredLoss(i, j, torch.from_numpy(values), (n, n))
Problem(loss, MatrixAtom((n, n)), 20.0).solve(tol=1e-2, max_rounds=0)  # what is loaded late is loaded now
pages = pathlib.Path("/proc/self/statm")
held = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 2**31
resource.setrlimit(resource.RLIMIT_AS, (held + 500 * 2**20, resource.RLIM_INFINITY))
try:
    torch.ones(n, n, dtype=torch.float64)
except RuntimeError:
    print("capped")
solution = Problem(loss, MatrixAtom((n, n)), 20.0).solve(tol=1e-2)
print(solution.certificate.verdict, solution.certificate.units)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    capped, verdict, units = done.stdout.split()
    assert (capped, verdict) == ("capped", "closed")
    assert int(units) > 0
