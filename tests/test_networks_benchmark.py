"""The benchmark of networks: its data, its peers and its judgments, at tiny sizes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from theodolite.atoms import ReLUAtom
from theodolite.core.problem import Problem
from theodolite.losses import SquaredLoss

Importer = Callable[[str], ModuleType]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Importer:
    """Import a module of the folder benchmarks, which is not installed."""
    pytest.importorskip("cvxpy")
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from importlib import import_module

    return lambda name: import_module(f"benchmarks.{name}")


def options(**changes) -> Namespace:
    usual = {
        "budget": "1",
        "tol": "1e-2",
        "device": "cpu",
        "seed": 0,
        "seeds": 2,
        "n": 20,
        "gates": 2,
        "verbose": 0,
        "jobs": 1,
    }
    usual |= {"restarts": 8, "dimensions": 2, "width": 4, "steps": 60}
    usual |= {"share": "0.1", "lambda_budget": "0.2", "images": 60}
    return Namespace(**usual | changes)


def test_breast_cancer_is_scaled_as_its_case_says(benchmark: Importer) -> None:
    table = benchmark("network_data").breast_cancer()
    assert table.X.shape == (569, 31)
    assert np.linalg.norm(table.X, axis=0) == pytest.approx(1.0)
    assert table.X[:, -1] == pytest.approx(569**-0.5)
    assert set(table.y) == {-1.0, 1.0}
    rng = np.random.default_rng(0)
    W, U = rng.normal(size=(3, 31)), rng.normal(size=(3, 1))
    problem = Problem(SquaredLoss(table.y[:, None], 1 / 569), ReLUAtom(table.X, 1), 0.1)
    found = benchmark("peers.scnn").objective(table, 0.1, W, U)
    assert found == pytest.approx(problem.objective((torch.tensor(W), torch.tensor(U))), rel=1e-12)


def test_medians_over_seeds_and_the_exact_optimum(benchmark: Importer, capsys) -> None:
    networks = benchmark("networks")
    result = networks.fully_connected(2, options())
    assert len(result["runs"]) == 2
    assert 0.0 <= result["error"] <= 1e-2
    exact = networks.exact(2, options(tol="1e-5", budget="none"))
    assert exact["contains"]
    assert exact["optimum"] == pytest.approx(4.154844, rel=1e-5)


def test_restarts_do_not_beat_a_bound_and_come_near_the_fit(benchmark: Importer, monkeypatch, capsys) -> None:
    networks = benchmark("networks")
    few = {name: networks.data.TABLES[name] for name in ("wine", "diabetes")}

    def absent() -> None:
        raise networks.data.MissingData("not installed; run: pip install it")

    monkeypatch.setattr(networks.data, "TABLES", few | {"absent": absent})
    result = networks.random_restarts(options(steps=400))
    assert result["skipped"] == {"absent": "not installed; run: pip install it"}
    assert result["below"] == 0
    assert result["restarts"] == 2 * 3
    assert 1.0 <= result["least_ratio"] < 1.1


def test_a_convolution_is_certified_with_its_accuracies(benchmark: Importer) -> None:
    result = benchmark("networks").convolution("digits-2x2", options())
    assert result["images"] == [60, 8, 8]
    low, high = result["lambda_max"]
    assert result["lambda"] == pytest.approx(0.1 * low)
    assert low <= high
    assert 0.0 <= result["error"] <= 1.0
    assert 0.2 < result["held_out_accuracy"] <= 1.0
    assert result["accuracy"] > 0.5


def test_images_are_averaged_down(benchmark: Importer) -> None:
    images = np.arange(2 * 4 * 4, dtype=float).reshape(2, 4, 4)
    found = benchmark("network_data")._pooled(images, 2)
    assert found[0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
