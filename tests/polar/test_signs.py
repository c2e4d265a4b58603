"""The largest norm of Qs over signs: brackets that contain the truth, exact where signs are few."""

import itertools
import math
from fractions import Fraction
from operator import mul

import pytest
import torch
from torch import Tensor

from theodolite.polar import signs
from theodolite.polar.signs import SignMatrix, best_signs, sign_maximum

ORDER = {"l2": 2.0, "l1": 1.0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(Q: Tensor, norm: str) -> float:
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=Q.shape[1])), dtype=torch.float64)
    return float(torch.linalg.vector_norm(every @ Q.T, ORDER[norm], dim=1).max())


def sparse(Q: Tensor) -> Tensor:
    return Q.to_sparse_coo().coalesce()


@pytest.fixture
def no_enumeration(monkeypatch):
    monkeypatch.setattr(signs, "_ENUMERATED", 0.0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 12), (12, 6), (20, 11)])
@pytest.mark.parametrize("form", [torch.Tensor.clone, sparse])
def test_few_columns_are_exact(norm, shape, form):
    Q = normal(*shape, seed=sum(shape))
    value = sign_maximum(form(Q), norm)
    assert value.low <= truth(Q, norm) * (1 + 1e-15)
    assert value.high >= truth(Q, norm) * (1 - 1e-15)
    assert value.high <= value.low * (1 + 1e-11)
    assert "all sign vectors" in value.note
    found = torch.linalg.vector_norm(Q @ value.witness[0], ORDER[norm])
    assert float(found) == pytest.approx(truth(Q, norm), rel=1e-14)


@pytest.mark.usefixtures("no_enumeration")
@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("form", [torch.Tensor.clone, sparse])
def test_the_relaxation_encloses_the_truth_within_its_factor(norm, form):
    factor = {"l2": math.sqrt(math.pi / 2), "l1": 1.783}[norm]
    ratios = []
    for seed in range(12):
        Q = normal(8 + seed, 10, seed=seed) * (normal(1, 10, seed=seed + 50) > -1.0)
        exact, value = truth(Q, norm), sign_maximum(form(Q), norm)
        assert value.low <= exact * (1 + 1e-14)
        assert exact * (1 - 1e-14) <= value.high <= factor * exact * 1.0001
        ratios.append(value.high / exact)
        assert value.low >= exact * (1 - 1e-9)  # the search finds the best signs of so few
    assert max(ratios) > 1.0 + 1e-4  # somewhere it is not tight: the enumeration is not consulted


@pytest.mark.usefixtures("no_enumeration")
def test_the_relaxation_is_at_its_dual_optimum():
    # the factor Y attains the dual value, which no diagonal gets below
    A = SignMatrix(normal(30, 40), "l2")
    R, P, Y = signs._relaxed(A, 0, math.inf)
    upper, _ = signs._proved(A, R, P, 1e-9, 0)
    assert upper == pytest.approx(float((A.Q @ Y).norm()), rel=1e-4)
    assert upper < signs._proved(A, torch.ones(40, dtype=torch.float64), None, 1e-9, 0)[0]


def test_known_answers():
    # Hadamard: |Hs|^2 = 4 |s|^2 for every s; the identity: sqrt(m), and m in l1; ones: all signs alike
    H = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    one = torch.ones(3, 5, dtype=torch.float64)
    for Q, norm, answer in [
        (H, "l2", 4.0),
        (H, "l1", 8.0),
        (torch.eye(9, dtype=torch.float64), "l2", 3.0),
        (torch.eye(9, dtype=torch.float64), "l1", 9.0),
        (one, "l2", 5 * math.sqrt(3)),
        (one, "l1", 15.0),
    ]:
        value = sign_maximum(Q, norm)
        assert value.low <= answer * (1 + 1e-15)
        assert value.high >= answer
        assert value.high == pytest.approx(answer, rel=1e-12)


@pytest.mark.usefixtures("no_enumeration")
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_relaxation_is_exact_for_orthogonal_columns(norm):
    value = sign_maximum(3.0 * torch.eye(30, dtype=torch.float64), norm)
    assert value.high == pytest.approx(3.0 * math.sqrt(30) if norm == "l2" else 90.0, rel=1e-5)
    assert value.high >= value.low >= (1 - 1e-12) * (3.0 * math.sqrt(30) if norm == "l2" else 90.0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-290, 1e-150, 1.0, 1e150, 1e300])
@pytest.mark.parametrize("m", [6, 40])
def test_any_scale(norm, scale, m):
    Q = normal(5, m)
    plain, scaled = sign_maximum(Q, norm), sign_maximum(scale * Q, norm, target=scale)
    assert scaled.low <= scaled.high
    assert scaled.low <= scale * plain.high * (1 + 1e-9)
    assert scale * plain.low <= scaled.high * (1 + 1e-9)
    assert math.isfinite(scaled.high)


def test_zero_columns_and_rows_cost_nothing():
    Q = normal(30, 60)
    Q[:, ::3], Q[::4] = 0.0, 0.0
    kept = Q[Q.any(1)][:, Q.any(0)]
    for norm in ORDER:
        assert sign_maximum(Q, norm).high == pytest.approx(sign_maximum(kept, norm).high, rel=1e-4)
    zero = sign_maximum(torch.zeros(3, 4, dtype=torch.float64))
    assert (zero.low, zero.high) == (0.0, 0.0)


def test_no_flip_improves_what_the_search_returns():
    for seed in range(5):
        Q = normal(20, 30, seed=seed)
        S, values = best_signs(SignMatrix(Q, "l2"), seed=seed)
        assert bool((values[:-1] >= values[1:]).all())
        assert len(torch.unique(S, dim=0)) == len(S)
        for j in range(30):
            flipped = S.clone()
            flipped[:, j] *= -1.0
            assert bool(((flipped @ Q.T).norm(dim=1) <= values * (1 + 1e-9)).all())


def test_dense_and_sparse_agree_and_the_cheapest_bound_is_one():
    Q = normal(60, 50) * (normal(60, 50, seed=1) > 1.0)
    for norm in ORDER:
        dense, thin = sign_maximum(Q, norm), sign_maximum(sparse(Q), norm)
        assert thin.high == pytest.approx(dense.high, rel=1e-4)
        cheap = sign_maximum(Q, norm, budget=0.0)
        assert cheap.high >= dense.high * (1 - 1e-9)
        assert 0.0 < cheap.low <= dense.high
        best = dense.low
        assert sign_maximum(Q, norm, target=2.0 * best).high <= 2.0 * best
        assert sign_maximum(Q, norm, target=0.5 * best).low > 0.5 * best


@pytest.mark.parametrize("enumerated", [0.0, 2.0**25])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_ends_enclose_the_truth_in_exact_arithmetic(monkeypatch, norm, enumerated):
    monkeypatch.setattr(signs, "_ENUMERATED", enumerated)
    power = 2 if norm == "l2" else 1
    for seed in range(12):
        n, m = 1 + seed % 4, 1 + seed % 5
        sizes = 10.0 ** torch.randint(-8, 8, (n, m), generator=torch.Generator().manual_seed(seed))
        Q = normal(n, m, seed=seed) * (sizes if seed % 2 else 1.0)
        rows = [[Fraction(x) for x in row] for row in Q.tolist()]
        exact = max(
            sum(abs(sum(map(mul, row, s))) ** power for row in rows)
            for s in itertools.product((1, -1), repeat=m)
        )
        for budget in (None, 0.0):
            value = sign_maximum(Q, norm, budget=budget)
            assert Fraction(value.low) ** power <= exact <= Fraction(value.high) ** power
