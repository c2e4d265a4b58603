"""Molecules: features forget position and rotation, folds leave out what they predict, and claims can fail."""

import numpy as np
import pytest

from theodolite.experiments import datasets
from theodolite.experiments import molecules as ours


def water(turn=None) -> datasets.Molecule:
    places = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    return datasets.Molecule("H2O", ["O", "H", "H"], places if turn is None else places @ turn.T, 219.4)


def test_densities_hold_the_charges():
    charges = ours.density(water())
    assert charges.shape == (3, ours.SIDE, ours.SIDE, ours.SIDE)
    assert charges.sum((1, 2, 3)).tolist() == pytest.approx([10.0, 8.0, 2.0], rel=1e-4)


def test_features_forget_where_and_how_a_molecule_lies():
    turn = ours.rotation(np.random.default_rng(1))
    assert np.allclose(turn @ turn.T, np.eye(3))
    assert np.linalg.det(turn) == pytest.approx(1.0)
    still, moved = ours.invariants([ours.density(water()), ours.density(water(turn))])
    assert still.shape == (3, 1 + 6 * 4, 4)
    assert 0.0 < np.linalg.norm(moved - still) / np.linalg.norm(still) < 0.02
    assert np.allclose(ours.invariants([ours.density(water(), turn)])[0], moved, rtol=1e-4)
    assert ours.grid_defect(ours.density(water())) < 5e-6


def test_each_molecule_is_predicted_by_others():
    generator = np.random.default_rng(0)
    X, weights = generator.standard_normal((40, 3)), np.array([1.0, -2.0, 3.0])
    y = X @ weights + 5.0
    assert np.allclose(ours.cross_validated(X, y), y, atol=1e-5)
    changed = y.copy()
    changed[7] += 1000.0
    moved = ours.cross_validated(X, changed)[:, 7] - y[7]
    assert np.abs(moved).max() < 500.0  # not told of its own change
    mean = ours.cross_validated(np.zeros((40, 1)), y)
    for train, test in ours.folds(40, 0):
        assert np.allclose(mean[0, test], y[train].mean())
    features = ours.feature_sets([water()] * 3, np.ones((3, 3, 25, 4)))
    assert [table.shape[1] for table in features.values()] == [1, 14, 156, 300, 314]
    assert features["counts"][0].sum() == 3


def test_claims_fail_where_figures_do():
    def around(value: float) -> dict[str, float]:
        return {"mean": value, "low": value - 1.0, "high": value + 1.0}

    errors = {"mean": around(250.0), "counts": around(33.0), "order 1": around(22.0)}
    good = {
        "errors": errors,
        "differences": {"a": around(11.0), "b": around(-0.5), "c": around(-2.0)},
        "grid_defect": 1e-7,
        "turned_defect": {"mean": 0.002, "low": 0.001, "high": 0.003},
        "turned_energies": around(2.0),
    }
    assert all(claim.holds for claim in ours.claims(good))
    bad = {
        "errors": errors | {"counts": around(240.0)},
        "differences": {"a": around(0.0), "b": around(5.0), "c": around(5.0)},
        "grid_defect": 1e-3,
        "turned_defect": {"mean": 0.05, "low": 0.04, "high": 0.06},
        "turned_energies": around(40.0),
    }
    assert not any(claim.holds for claim in ours.claims(bad))


def test_the_figure_draws():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    numbers = {
        "energies": [1.0, 2.0],
        "predicted": {name: [1.5, 1.5] for name in ours.SETS},
        "errors": {name: {"mean": 2.0, "low": 1.0, "high": 3.0} for name in ours.SETS},
    }
    ours.Molecules().plot(figure, numbers)
    assert len(figure.axes) == 2
