"""A search whose boxes are dealt to workers ends where one worker's does, and is valid at any moment."""

from __future__ import annotations

import joblib
import pytest
import torch
from torch import Tensor

from theodolite.polar import shared_search
from theodolite.polar.branch_and_bound import BranchAndBound, branch_and_bound


def problem(n: int, d: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X, Q = (torch.randn(n, m, generator=generator, dtype=torch.float64) for m in (d, k))
    return X, Q, torch.randint(3, (n,), generator=generator)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(shared_search, "_ALONE", 0.05)
    monkeypatch.setattr(shared_search, "_ROUND", 0.2)


def test_workers_close_what_one_closes():
    X, Q, cells = problem(150, 4, 3)
    alone = branch_and_bound(X, Q, cells=cells, tol=1e-3)
    steps = []
    with joblib.parallel_config("threading", n_jobs=2):
        shared = branch_and_bound(X, Q, cells=cells, tol=1e-3, callback=steps.append)
    assert shared.high <= shared.low * (1.0 + 1.1e-3)
    assert max(alone.low, shared.low) <= min(alone.high, shared.high)
    assert len(steps) > 1
    assert [s.boxes for s in steps] == sorted(s.boxes for s in steps)


def test_processes_agree_with_threads():
    X, Q, cells = problem(120, 4, 2, seed=3)
    with joblib.parallel_config("loky", n_jobs=2):
        found = branch_and_bound(X, Q, cells=cells, tol=1e-3)
    assert found.high <= found.low * (1.0 + 1.1e-3)
    values = torch.relu(X @ found.witness[0])[:, None] * Q
    parts = torch.stack([values[cells == c].sum(0) for c in range(3)])
    assert found.low <= float(parts.norm()) * (1.0 + 1e-12) <= found.high * (1.0 + 1e-12)


def test_what_is_dealt_is_collected():
    X, Q, cells = problem(200, 5, 3, seed=1)
    search = BranchAndBound(X, Q, cells)
    search.run(budget=0.2)
    before, upper = search.open, search.upper
    states = search.deal(3)
    sizes = [sum(len(rows) for rows in state["boxes"]) for state in states]
    assert sum(sizes) == before
    assert max(sizes) - min(sizes) <= 5
    search.collect(states, 0.0)
    assert (search.open, search.upper) == (before, upper)
    mixed = torch.cat([rows[:, 0] for rows in states[0]["boxes"]]).max()
    assert float(mixed) == pytest.approx(upper, rel=0.2)  # each part has some of the largest


def test_an_interrupted_round_proves_no_less(monkeypatch):
    X, Q, cells = problem(200, 5, 3, seed=2)
    search = BranchAndBound(X, Q, cells)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shared_search, "_searched", interrupted)
    with joblib.parallel_config("threading", n_jobs=2), pytest.raises(KeyboardInterrupt):
        shared_search.run_shared(search, budget=5.0)
    assert search.open > 0
    search.run(budget=0.2)
    W = torch.nn.functional.normalize(torch.randn(2000, 5, dtype=torch.float64))
    assert float(search.plain.values(W).flatten(1).norm(dim=1).max()) <= search.upper


def test_memory_and_callbacks_end_it():
    X, Q, cells = problem(300, 6, 3, seed=4)
    steps = []
    with joblib.parallel_config("threading", n_jobs=2):
        search = BranchAndBound(X, Q, cells, max_open=2000)
        shared_search.run_shared(search, tol=1e-9)
        assert search.open > 3000
        search = BranchAndBound(X, Q, cells)
        shared_search.run_shared(search, tol=1e-9, callback=lambda s: steps.append(s) or len(steps) == 2)
    assert len(steps) == 2


def test_a_search_goes_on_in_other_axes():
    """On another machine the principal axes may have other signs: boxes stay in those that they were made in."""
    X, Q, cells = problem(150, 4, 3)
    search = BranchAndBound(X, Q, cells)
    search.run(budget=0.2)
    other = BranchAndBound(X, Q, cells)
    other._turn(-other.axes.flip(1))
    other.load_state_dict(search.state_dict())
    other.run(tol=1e-3)
    search.run(tol=1e-3)
    assert max(other.lower, search.lower) <= min(other.upper, search.upper)
    assert torch.equal(other.axes, search.axes)
