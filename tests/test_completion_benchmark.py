"""The benchmark of completion: its matrices, its peers, and how it judges them."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

Importer = Callable[[str], ModuleType]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Importer:
    """Import a module of the folder benchmarks, which is not installed."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from importlib import import_module

    return lambda name: import_module(f"benchmarks.{name}")


def test_blocks_of_rows_draw_what_one_draw_would(benchmark: Importer) -> None:
    entries = benchmark("entries").synthetic(70, block=16)
    rng = np.random.default_rng(0)
    L = rng.standard_normal((70, 5)) @ rng.standard_normal((5, 70)) / math.sqrt(5)
    mask = rng.random((70, 70)) < 0.2
    Y = L + 0.5 * rng.standard_normal((70, 70))
    rows, cols = mask.nonzero()
    assert np.array_equal(entries.rows, rows)
    assert np.array_equal(entries.cols, cols)
    assert entries.values == pytest.approx(Y[mask], rel=1e-12)


def test_power_law_has_as_many_distinct_entries_as_announced_and_popular_rows(benchmark: Importer) -> None:
    entries = benchmark("entries").power_law(40)
    n, m = entries.shape
    assert (n, m, len(entries.values)) == (3450, 675, 500_000)
    assert entries.rows.dtype == entries.cols.dtype == np.int32
    assert len(np.unique(entries.rows.astype(np.int64) * m + entries.cols)) == 500_000
    assert entries.values.var() == pytest.approx(1.25, rel=0.05)  # signal 1, noise 0.25
    for index, size, total in ((entries.rows, n, m), (entries.cols, m, n)):
        counts = np.bincount(index, minlength=size)
        assert counts.max() <= total
        assert counts.max() > 3 * np.median(counts) > 0


@pytest.mark.skipif(find_spec("recbole") is None, reason="recbole's ratings are not installed")
def test_biases_of_users_and_items_are_shrunk_means(benchmark: Importer) -> None:
    entries = benchmark("entries").movielens()
    assert entries.shape == (943, 1682)
    assert len(entries.values) == 90_000
    assert len(entries.test[0]) == 10_000
    ratings = entries.values + entries.bias(entries.rows, entries.cols)
    assert set(np.round(ratings, 9)) == {1.0, 2.0, 3.0, 4.0, 5.0}
    sums = np.bincount(entries.rows, entries.values, entries.shape[0])
    assert sums == pytest.approx(4.0 * (entries.row_bias - ratings.mean()), abs=1e-6)


def test_a_comparison_finds_the_known_optimum_and_judges_by_a_bound(benchmark: Importer) -> None:
    pytest.importorskip("cvxpy")
    options = Namespace(device="cpu", peers="full-svd,scs", threads=1, runs=1, limit=10)
    result = benchmark("completion").compare("synthetic-100-1e-3", options)
    assert 0.0 <= result["error"] <= 1e-3
    assert 0.0 <= result["known_error"] <= 1e-3
    assert result["peers"]["scs"]["reached"]
    assert 0.0 <= result["peers"]["scs"]["error"] < 2e-4  # the bound is ten times as tight as the tolerance
    full_svd = result["peers"]["full-svd"]
    assert full_svd["reached"]
    assert 1e-5 < full_svd["error"] <= 1e-3  # it stops as soon as it may
    assert result["fastest_peer"] in ("full-svd", "scs")
    assert result["ratio"] == pytest.approx(result["peer"] / result["ours"], abs=0.01)


def test_the_search_of_softimpute_makes_the_steps_of_one_call(benchmark: Importer) -> None:
    peers = benchmark("peers.soft_impute")
    if why := peers.missing():
        pytest.skip(why)
    entries = benchmark("entries").synthetic(100)
    target = 832.652807 / (1.0 - 1e-3)
    with peers.SoftImpute(entries, threads=1) as peer:
        found = peer.search(13, target, limit=60.0)
        again = peer.run(13, found.steps)
        early = peer.run(13, found.steps - 1 - found.steps // 10)
    assert np.array_equal(found.U, again.U)
    assert np.array_equal(found.V, again.V)
    values = [entries.objective(fit.U, fit.V, fit.nuclear_norm) for fit in (found, early)]
    assert 832.6528 < values[0] <= target < values[1]
    assert entries.problem().objective(_params(found.U, found.V)) == pytest.approx(values[0], rel=1e-9)


def test_a_contender_may_measure_itself(benchmark: Importer) -> None:
    timing = benchmark("timing")
    own = iter([timing.Elapsed(3.0), timing.Elapsed(1.0), timing.Elapsed(2.0)])
    seconds = timing.alternate({"own": lambda: next(own), "ours": lambda: None}, runs=3, warm_up=False)
    assert seconds["own"] == 2.0
    assert 0.0 <= seconds["ours"] < 1.0


def _params(U: np.ndarray, V: np.ndarray) -> tuple:
    import torch

    used = np.abs(U).max(axis=0) > 0  # softImpute keeps a singular value of zero
    return tuple(torch.from_numpy(np.ascontiguousarray(factor[:, used].T)) for factor in (U, V))
