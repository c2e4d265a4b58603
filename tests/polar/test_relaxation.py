"""Upper bounds for any number of inputs: known answers, validity against ascent, rounding."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from theodolite.polar import relaxation, shor
from theodolite.polar.ascent import relu_ascent
from theodolite.polar.relaxation import harmonic_bound, relaxation_bound, shor_bound
from theodolite.polar.rows import same_direction

X4 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
Q4 = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64)


@pytest.mark.parametrize(("degree", "answer"), [(6, 2.4424), (20, 2.4404)])
def test_known_answers_of_the_harmonic_bound(degree: int, answer: float) -> None:
    plain = harmonic_bound(X4, Q4, degree, envelope=False)
    assert plain.upper == pytest.approx(answer, abs=1e-3)
    better = harmonic_bound(X4, Q4, degree)
    assert 5.0**0.5 <= better.upper <= plain.upper * (1 + 1e-6)


def test_known_answer_of_the_shor_bound() -> None:
    assert shor_bound(X4, Q4).upper == pytest.approx(8.0**0.5, rel=1e-4)


@pytest.mark.parametrize(("n", "d", "K"), [(12, 3, 2), (15, 4, 1)])
def test_shor_bound_reaches_the_semidefinite_optimum(n: int, d: int, K: int) -> None:
    """Its dual: max of sum_i sqrt(Q_i' W11 Q_i  x_i' W22 x_i) + <Q'X, W12> over density matrices W."""
    generator = torch.Generator().manual_seed(n)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    Q = torch.randn(n, K, generator=generator, dtype=torch.float64)
    W = cp.Variable((K + d, K + d), PSD=True)
    x, q = X.numpy(), Q.numpy()
    terms = [cp.geo_mean(cp.vstack([q[i] @ W[:K, :K] @ q[i], x[i] @ W[K:, K:] @ x[i]])) for i in range(n)]
    problem = cp.Problem(cp.Maximize(sum(terms) + cp.trace(x.T @ q @ W[:K, K:])), [cp.trace(W) == 1])
    problem.solve(solver=cp.CLARABEL)
    bound = shor_bound(X, Q).upper
    assert problem.value <= bound * (1 + 1e-7)
    assert bound <= problem.value * (1 + 1e-3)


def case(seed: int) -> tuple[Tensor, Tensor]:
    """Return a small problem, one of: normal, heavy-tailed, sparse, repeated rows, rank-deficient, positive."""
    generator = torch.Generator().manual_seed(seed)
    n, d, K = (int(torch.randint(1, k, (1,), generator=generator)) for k in (40, 9, 5))
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    Q = torch.randn(n, K, generator=generator, dtype=torch.float64)
    kind = seed % 6
    if kind == 1:
        X = X / torch.rand(n, 1, generator=generator, dtype=torch.float64) ** 2
        Q = Q / torch.rand(n, 1, generator=generator, dtype=torch.float64)
    elif kind == 2:
        X = X * (torch.rand(n, d, generator=generator) < 0.3)
        Q = Q * (torch.rand(n, K, generator=generator) < 0.5)
    elif kind == 3:
        X = X.round()[torch.randint(n, (n,), generator=generator)]
        X = X * torch.randint(1, 4, (n, 1), generator=generator)
    elif kind == 4:
        X = X[:, :1] @ X[:1] + (X[:, 1:2] @ X[1:2] if n > 1 and d > 1 else 0.0)
    elif kind == 5:
        X = X.abs()
        Q = Q * torch.logspace(-6, 3, n, dtype=torch.float64)[:, None]
    return X, Q


def blocks(Q: Tensor, cells: Tensor) -> Tensor:
    """Return Q with a block of columns for each cell."""
    dense = torch.zeros(len(Q), int(cells.max()) + 1, Q.shape[1]).double()
    dense[torch.arange(len(Q)), cells] = Q
    return dense.flatten(1)


def test_dominate_ascent_in_60_random_cases() -> None:
    tight = 0
    for seed in range(60):
        X, Q = case(seed)
        generator = torch.Generator().manual_seed(seed)
        cells = torch.randint(1 + seed // 6 % 4, (len(X),), generator=generator)
        best = float(relu_ascent(X, blocks(Q, cells), n_starts=24, seed=seed, max_steps=25)[1].max())
        shor = shor_bound(X, Q, cells).upper
        degree, envelope = 1 + seed % 9, seed % 2 == 0
        harmonic = harmonic_bound(X, Q, degree, cells=cells, envelope=envelope, joint=seed % 3 > 0).upper
        assert best <= shor * (1 + 1e-15), seed
        assert best <= harmonic * (1 + 1e-15), seed
        tight += min(shor, harmonic) < 1.5 * best
    assert tight > 12  # the bounds are not idle


@pytest.mark.parametrize("seed", range(4))
def test_cells_are_a_block_of_columns_each(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(80, 4, generator=generator).double()
    Q = torch.randn(80, 2, generator=generator).double()
    cells = 10 * torch.randint(3, (80,), generator=generator)  # any numbers
    dense = blocks(Q, cells)
    shor = shor_bound(X, Q, cells, merge=False).upper
    assert shor == pytest.approx(shor_bound(X, dense, merge=False).upper, rel=1e-3)
    whole = harmonic_bound(X, Q, 6, cells=cells).upper
    assert whole <= harmonic_bound(X, dense, 6).upper * (1 + 1e-3)
    least = relaxation_bound(X, Q, cells, degree=6)
    assert least.upper <= min(shor, whole) * (1 + 1e-6)
    order = torch.randperm(80, generator=generator)
    again = relaxation_bound(X[order], Q[order], cells[order] - 7, degree=6)
    assert again.upper == pytest.approx(least.upper, rel=1e-3)
    monkeypatch.setattr(relaxation, "_COLUMNS", 1)  # too many cells: one bound for each
    apart = harmonic_bound(X, Q, 6, cells=cells).upper
    parts = [harmonic_bound(X[cells == c], Q[cells == c], 6).upper for c in (0, 10, 20)]
    assert apart == pytest.approx(sum(x * x for x in parts) ** 0.5, rel=1e-9)
    monkeypatch.setattr("theodolite.polar.shor._SIDE", 1)
    assert shor_bound(X, Q, cells).note.startswith("upper end: sum of")


def test_crude_bound_adds_cells_in_squares() -> None:
    X, Q = torch.ones(4, 1).double(), torch.ones(4, 1).double()
    cells = torch.arange(4)
    assert relaxation_bound(X, Q, cells, budget=0.0).upper == pytest.approx(2.0, rel=1e-12)
    assert relaxation_bound(X, Q, cells).upper == pytest.approx(2.0, rel=1e-9)
    with pytest.raises(ValueError, match="cells: expected 4 integers"):
        relaxation_bound(X, Q, cells[:3])
    with pytest.raises(ValueError, match="cells: expected 4 integers"):
        relaxation_bound(X, Q, cells.double())


def test_one_row_is_exact_and_awkward_scales_cancel() -> None:
    """F = |Q| |x| for one row; rows of scales 1e-150 to 1e150 whose products are moderate."""
    x, q = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[2.0]]).double()
    for bound in (relaxation_bound, shor_bound, harmonic_bound):
        assert bound(x, q).upper >= 10.0 * (1 - 1e-15)
    assert relaxation_bound(x, q).upper == pytest.approx(10.0, rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    X, Q = torch.randn(30, 3, generator=generator).double(), torch.randn(30, 2, generator=generator).double()
    scale = 10.0 ** torch.randint(-150, 151, (30, 1), generator=generator).double()
    for bound in (shor_bound, harmonic_bound):
        plain = bound(X, Q).upper
        assert bound(X * scale, Q / scale).upper == pytest.approx(plain, rel=1e-3)


def test_least_of_all_and_its_note() -> None:
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    Q = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    value = relaxation_bound(X, Q, degree=8)
    assert value.kind == "bound"
    assert value.upper <= min(shor_bound(X, Q).upper, harmonic_bound(X, Q, 8).upper) * (1 + 1e-9)
    assert "harmonic bound of degree 8" in value.note
    crude = relaxation_bound(X, Q, budget=0.0)
    assert crude.upper == pytest.approx(float((X.norm(dim=1) * Q.norm(dim=1)).sum()), rel=1e-12)
    assert "sum of |Q_i| |x_i|" in crude.note
    hurried = relaxation_bound(X, Q, budget=0.05)
    assert 0.99 * value.upper <= hurried.upper <= crude.upper
    zero = relaxation_bound(X, torch.zeros_like(Q))
    assert zero.upper == 0.0
    assert relaxation_bound(X[:, :0], Q).upper == 0.0
    one = torch.tensor([[2.0]], dtype=torch.float64)
    assert relaxation_bound(one, 3.0 * one).upper == pytest.approx(12.0, rel=1e-9)
    with pytest.raises(ValueError, match="Q: expected 60 rows"):
        relaxation_bound(X, Q[1:])
    with pytest.raises(ValueError, match="degree: expected at least 0"):
        harmonic_bound(X, Q, -1)
    with pytest.raises(ValueError, match="X: expected a finite float64 matrix"):
        shor_bound(X.float(), Q)


def test_bounds_scale_and_do_not_depend_on_splitting_rows() -> None:
    X, Q = case(0)
    for bound in (shor_bound, lambda A, B: harmonic_bound(A, B, 6)):
        whole = bound(X, Q).upper
        assert bound(1e6 * X, 1e-3 * Q).upper == pytest.approx(1e3 * whole, rel=1e-6)
        split = bound(torch.cat([X, 0.5 * X]), torch.cat([0.4 * Q, 1.2 * Q])).upper
        assert split == pytest.approx(whole, rel=1e-6)
        cancelled = bound(torch.cat([X, 3.0 * X]), torch.cat([3.0 * Q, -Q])).upper
        assert cancelled <= 1e-12 * whole


def test_a_time_limit_lowers_the_degree() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3000, 4, generator=generator, dtype=torch.float64)
    Q = torch.randn(3000, 2, generator=generator, dtype=torch.float64)
    value = harmonic_bound(X, Q, budget=1e-3)
    assert "degree 2" in value.note or "degree 1" in value.note
    assert float(relu_ascent(X, Q, n_starts=8, max_steps=10)[1].max()) <= value.upper


def test_rows_that_cancel_leave_nothing_but_rounding() -> None:
    X = torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]], dtype=torch.float64)
    Q = torch.tensor([[2.0], [-1.0], [0.0]], dtype=torch.float64)
    for bound in (relaxation_bound, shor_bound, harmonic_bound):
        assert 0.0 <= bound(X, Q).high < 1e-12


def test_large_data_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shortcut that little time calls for leaves a bound; more time never loosens it much."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(600, 6, dtype=torch.float64, generator=g)
    Q = torch.randn(600, 3, dtype=torch.float64, generator=g) / X.norm(dim=1, keepdim=True)
    attained = float(relu_ascent(X, Q, n_starts=8, max_steps=30)[1].max())
    whole = relaxation_bound(X, Q).upper
    for module in (relaxation, shor):
        monkeypatch.setattr(module, "_CHEAP", 0)
    monkeypatch.setattr(shor, "seconds_of_gram", lambda *parts: 0.1)
    monkeypatch.setattr(relaxation, "seconds_of_squares", lambda rows: 0.1)
    monkeypatch.setattr(shor, "_MANY", 200)
    monkeypatch.setattr(shor, "_SAMPLE", 100)
    seen = {}
    for seconds in (0.0, 0.01, 1.0, 30.0):
        found = relaxation_bound(X, Q, budget=seconds)
        assert attained <= found.upper
        seen[seconds] = found
    assert seen[0.0].note.startswith("upper end: sum of")
    assert "harmonic bound of degree 1" in seen[0.01].note
    assert seen[0.01].upper < seen[0.0].upper
    assert seen[30.0].upper <= min(1.1 * whole, seen[1.0].upper)
    assert seen[1.0].upper < seen[0.0].upper
    assert shor_bound(X, Q, budget=0.01).note.startswith("upper end: sum of")
    assert attained <= shor_bound(X, Q, budget=1.0).upper <= seen[0.0].upper
    thorough, many = shor_bound(X, Q, budget=60.0).upper, torch.arange(600) % 7
    monkeypatch.undo()
    assert thorough == pytest.approx(shor_bound(X, Q).upper, rel=0.01)
    split = shor_bound(X, Q, many).upper
    for module, name, value in ((shor, "_CHEAP", 0), (shor, "_MANY", 200), (shor, "_SAMPLE", 100)):
        monkeypatch.setattr(module, name, value)
    assert shor_bound(X, Q, many).upper == pytest.approx(split, rel=0.02)  # sampled, in float32


def test_rows_of_one_direction_are_found_among_many() -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(300, 5, dtype=torch.float64, generator=g)
    order = torch.randperm(900, generator=g)
    many = torch.cat([X, 2.0 * X, -X])[order]
    cells = torch.zeros(900, dtype=torch.int64)
    groups = same_direction(many, many.norm(dim=1), cells)
    assert int(groups.max()) + 1 == len(groups.unique()) == 600
    which = torch.empty_like(groups)
    which[order] = groups
    assert torch.equal(which[:300], which[300:600])
    assert not set(which[:300].tolist()) & set(which[600:].tolist())
    cells[order >= 300] = 1  # the copies are in another cell
    assert len(same_direction(many, many.norm(dim=1), cells).unique()) == 900
