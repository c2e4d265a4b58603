"""Branch and bound for the ReLU polar: equal to what enumeration finds, valid whenever it stops."""

import math
from itertools import pairwise

import pytest
import torch

from theodolite.polar import box_search as module
from theodolite.polar.arrangement import arrangement_polar
from theodolite.polar.ascent import relu_ascent
from theodolite.polar.branch_and_bound import BranchAndBound, branch_and_bound


def problem(n, d, K=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, k, dtype=torch.float64, generator=generator) for k in (d, K))


def value(X, Q, cells, W):
    out = []
    for w in W:
        hidden = (X @ w).relu()[:, None] * Q
        sums = torch.zeros(int(cells.max()) + 1, Q.shape[1], dtype=Q.dtype).index_add_(0, cells, hidden)
        out.append(float(sums.norm() / w.norm()))
    return out


@pytest.fixture(params=["few rows", "many rows"])
def both_ways(request, monkeypatch):
    if request.param == "many rows":
        monkeypatch.setattr(module, "_MANY", 0)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 1), (3, 2), (30, 2), (25, 3), (14, 4)])
def test_one_output_equals_enumeration(n, d):
    for seed in range(3):
        X, Q = problem(n, d, seed=seed)
        exact = arrangement_polar(X, Q)
        found = branch_and_bound(X, Q, tol=1e-5)
        assert found.low <= exact.high * (1 + 1e-12)
        assert found.high >= exact.low * (1 - 1e-12)
        assert found.high <= exact.high * (1 + 2e-5) + 1e-9
        attained = float((Q.T @ (X @ found.witness[0]).relu()).norm() / found.witness[0].norm())
        assert attained >= found.low


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("d", "K"), [(2, 3), (3, 2), (4, 5)])
def test_several_outputs_lie_within_the_bound_of_the_patterns(d, K):
    X, Q = problem(24, d, K)
    other = arrangement_polar(X, Q)
    found = branch_and_bound(X, Q, tol=1e-3, starts=other.witness)
    assert found.high >= other.low * (1 - 1e-9)
    assert found.low <= other.high * (1 + 1e-9)
    assert found.high <= found.low * (1 + 1.1e-3)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("d", [2, 3, 4])
def test_cells(d):
    X, Q = problem(40, d, 2, seed=d)
    cells = torch.arange(40) % 4
    found = branch_and_bound(X, Q, cells=cells, tol=2e-3)
    wide = torch.zeros(40, 4, 2, dtype=torch.float64)
    wide[torch.arange(40), cells] = Q
    W, values = relu_ascent(X, wide.flatten(1), n_starts=64)
    assert float(values[0]) <= found.high
    assert found.low == pytest.approx(float(values[0]), rel=1e-3)
    assert found.high <= found.low * (1 + 2.1e-3)
    assert value(X, Q, cells, found.witness[:1])[0] >= found.low
    # cells may come in any order, with gaps in their numbers
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    again = branch_and_bound(X[order], Q[order], cells=3 * cells[order] + 5, tol=2e-3, starts=W[:1])
    assert again.high <= found.high * (1 + 4e-3)


def test_known_answer():
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]).double()
    Q = torch.tensor([[1.0], [-1.0], [2.0]]).double()
    found = branch_and_bound(X, Q, tol=1e-8)
    assert found.low <= math.sqrt(5.0) * (1 + 1e-14)
    assert math.sqrt(5.0) * (1 - 1e-14) <= found.high <= math.sqrt(5.0) * (1 + 1e-7)


@pytest.mark.usefixtures("both_ways")
def test_whenever_it_stops_the_bound_holds():
    X, Q = problem(60, 4, 2, seed=5)
    best = float(relu_ascent(X, Q, n_starts=200)[1][0])
    seen = []

    def stop(count):
        return lambda step: seen.append(step.upper) or len(seen) > count

    uppers = []
    for count in (0, 1, 2, 4, 8, 16):
        seen.clear()
        found = branch_and_bound(X, Q, callback=stop(count))
        uppers.append(found.high)
        assert found.high >= best * (1 - 1e-12)
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(seen))  # it only falls
    assert uppers[-1] < 0.7 * uppers[0]
    assert branch_and_bound(X, Q, budget=0.0).high >= best


def test_target_from_either_side():
    X, Q = problem(50, 3, seed=2)
    exact = arrangement_polar(X, Q)
    shown = branch_and_bound(X, Q, target=1.1 * exact.high)
    assert shown.high <= 1.1 * exact.high
    refuted = branch_and_bound(X, Q, target=0.9 * exact.low, starts=exact.witness)
    assert refuted.low > 0.9 * exact.low
    assert refuted.high >= exact.low


@pytest.mark.parametrize("scale", [(1e-170, 1e160), (1e150, 1e120), (1e-200, 1e-90)])
def test_scales(scale):
    X, Q = problem(20, 3)
    plain = branch_and_bound(X, Q, tol=1e-4)
    found = branch_and_bound(scale[0] * X, scale[1] * Q, tol=1e-4)
    assert found.high / scale[0] / scale[1] == pytest.approx(plain.high, rel=2e-4)


def test_rows_that_add_nothing_and_rows_twice():
    X, Q = problem(20, 3, 2)
    plain = branch_and_bound(X, Q, tol=1e-4)
    zeros = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    more = branch_and_bound(
        torch.cat([zeros[0], X, X[:5], X[:4]]), torch.cat([Q[:4], Q, Q[:5], zeros[1]]), tol=1e-4
    )
    twice = Q.clone()
    twice[:5] *= 2.0
    same = branch_and_bound(X, twice, tol=1e-4)
    assert more.high == pytest.approx(same.high, rel=3e-4)
    assert plain.high < same.high
    nothing = branch_and_bound(*zeros)
    assert (nothing.low, nothing.high) == (0.0, 0.0)


def test_it_goes_on_where_it_stopped():
    X, Q = problem(80, 4, seed=7)
    whole = BranchAndBound(X, Q)
    whole.run(tol=1e-3)
    first = BranchAndBound(X, Q)
    first.run(tol=1e-3, callback=lambda step: step.boxes > 1500)
    assert first.upper > whole.upper
    second = BranchAndBound(X, Q)
    second.load_state_dict(first.state_dict())
    assert (second.upper, second.open, second.boxes) == (first.upper, first.open, first.boxes)
    second.run(tol=1e-3)
    assert second.upper <= second.lower * (1 + 1.1e-3)
    assert second.boxes == whole.boxes
    other = BranchAndBound(X[:, :3], Q)
    with pytest.raises(ValueError, match="state: expected boxes of 3 coordinates, got 4"):
        other.load_state_dict(first.state_dict())


def test_memory_is_bounded():
    X, Q = problem(200, 5, 2, seed=1)
    search = BranchAndBound(X, Q, max_open=2000)
    search.run(tol=1e-9, budget=2.0)
    assert search.open <= 2000 * 1.5 + 4 * 512
    assert search.upper >= float(relu_ascent(X, Q)[1][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": torch.ones(3, 2)}, "X: expected a finite float64 matrix, got torch.float32"),
        ({"Q": torch.full((3, 1), math.nan).double()}, "Q: expected a finite float64 matrix"),
        ({"Q": torch.ones(2, 1).double()}, "expected 3 rows, as X has, got 2"),
        ({"cells": torch.zeros(2).long()}, "cells: expected 3 integers"),
        ({"X": torch.ones(3, 13).double()}, "X: expected at most 12 columns, got 13"),
    ],
)
def test_input_that_is_refused(change, message):
    good = {"X": torch.ones(3, 2).double(), "Q": torch.ones(3, 1).double(), "cells": None}
    with pytest.raises(ValueError, match=message):
        branch_and_bound(**(good | change))


def test_where_it_will_not_close_boxes_are_asked_for_less_first(monkeypatch):
    X, Q = problem(400, 8, 3, seed=2)

    def searched() -> BranchAndBound:
        search = BranchAndBound(X, Q)
        search.offer(relu_ascent(X, Q)[0])
        search.run(tol=1e-4, callback=lambda step: step.boxes >= 10_000)
        return search

    staged = searched()
    monkeypatch.setattr(module, "_DIRECT", 12)
    direct = searched()
    assert staged.lower <= staged.upper < 0.8 * direct.upper
