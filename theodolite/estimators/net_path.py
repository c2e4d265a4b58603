"""The choice of alpha for a parallel network by cross-validation along a path of certified fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedKFold, check_cv
from torch import Tensor

from theodolite.core.atom import Atom
from theodolite.core.params import Params
from theodolite.core.problem import Problem
from theodolite.core.solve import Solution
from theodolite.estimators.base import check_factor, check_integer
from theodolite.estimators.net_targets import Targets
from theodolite.estimators.subnetworks import Subnetworks
from theodolite.losses.biased import BiasedLoss

Fit = Callable[[Atom, "NDArray[np.int64] | None", float, "Params | None"], "tuple[Problem, Solution]"]

_LEAST = 0.01  # of the largest alpha of a path
_PATIENCE = 2


@dataclass(frozen=True)
class Choice:
    """An alpha, where to start the fit to all samples, and what was tried.

    Attributes
    ----------
    alpha : float
    start : Params or None
        Subnetworks of a fold.
    best : int
        Place of alpha in the results.
    results : dict of ndarray
        See :class:`theodolite.estimators.ParallelNetRegressor`.
    interrupted : bool
    """

    alpha: float
    start: Params | None
    best: int
    results: dict[str, NDArray[Any]]
    interrupted: bool


def choose_alpha(
    fit: Fit,
    kind: Subnetworks,
    X: Tensor,
    targets: Targets,
    *,
    alphas: int | Sequence[float],
    cv: Any,
    seed: int,
) -> Choice:
    """Return the alpha with the least mean loss of held-out samples.

    Parameters
    ----------
    fit : function(atom, rows, alpha, start) -> Problem, Solution
        Solves the problem on some rows of the targets.
    kind : Subnetworks
    X : Tensor, shape (n, ...)
    targets : Targets
    alphas, cv
        See :class:`theodolite.estimators.ParallelNetRegressor`.
    seed : int
        Of the folds.
    """
    folds = _folds(cv, targets, seed)
    path = _path(alphas, kind.atom(X, targets.n_outputs), targets)
    atoms = [kind.atom(X[torch.as_tensor(train)], targets.n_outputs) for train, _ in folds]
    starts: list[Params | None] = [None] * len(folds)
    table: list[list[tuple[float, float, int]]] = []
    start, interrupted = None, False
    try:
        for alpha in path:
            line = []
            for k, (train, test) in enumerate(folds):
                problem, solution = fit(atoms[k], train, alpha, starts[k])
                if solution.interrupted:
                    raise KeyboardInterrupt
                params = tuple(p.detach().cpu() for p in solution.params)
                loss = _held_out(kind, atoms[k], problem, params, X, targets, test)
                starts[k] = params
                line.append((loss, solution.certificate.gap, solution.certificate.units))
            table.append(line)
            means = [float(np.mean([entry[0] for entry in row])) for row in table]
            if int(np.argmin(means)) == len(means) - 1:
                start = starts[0]
            elif len(means) - 1 - int(np.argmin(means)) >= _PATIENCE:
                break
    except KeyboardInterrupt:
        interrupted = True
    losses, gaps, units = (
        np.array(table, dtype=np.float64).reshape(len(table), len(folds), 3).transpose(2, 0, 1)
    )
    best = int(np.argmin(losses.mean(1))) if len(table) else 0
    results = {
        "alpha": np.array(path[: len(table)]),
        "mean_test_loss": losses.mean(1),
        "std_test_loss": losses.std(1),
        "test_loss": losses,
        "gap": gaps,
        "units": units.astype(np.int64),
    }
    return Choice(path[best], start, best, results, interrupted)


def _held_out(
    kind: Subnetworks,
    atom: Atom,
    problem: Problem,
    params: Params,
    X: Tensor,
    targets: Targets,
    test: NDArray[np.int64],
) -> float:
    """Return the mean loss of samples that a fit did not see."""
    with torch.no_grad():
        Z = kind.outputs(atom, params, X[torch.as_tensor(test)])
        if isinstance(problem.loss, BiasedLoss):
            Z = Z + problem.loss.bias(problem.predictions(params))
    return targets.loss(test).value(Z)


def _path(alphas: int | Sequence[float], atom: Atom, targets: Targets) -> list[float]:
    """Return the alphas, largest first."""
    if isinstance(alphas, (int, np.integer)) and not isinstance(alphas, bool):
        number, loss = check_integer(alphas, "alphas", low=1), targets.loss()
        # the lower end is attained, and found without the work of an upper one
        top = atom.polar(-loss.gradient(loss.zeros()), target=0.0).low
        top = top if top > 0.0 else 1.0  # there is nothing to fit, and nothing to choose
        return [float(alpha) for alpha in np.geomspace(top, _LEAST * top, number + 1)[1:]]
    given = [check_factor(alpha, "alphas") for alpha in np.ravel(np.asarray(alphas)).tolist()]
    if not given:
        raise ValueError("alphas: expected at least one number > 0, got none")
    return sorted(set(given), reverse=True)


def _folds(cv: Any, targets: Targets, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return pairs of rows, to fit and to test on."""
    classes = targets.classes
    if hasattr(cv, "split") or np.iterable(cv):
        splitter = check_cv(cv)
    else:
        folds = check_integer(cv, "cv", low=2)
        if folds > len(targets):
            raise ValueError(f"cv: expected at most as many folds as samples, {len(targets)}, got {folds}")
        kind = KFold if classes is None else StratifiedKFold
        splitter = kind(folds, shuffle=True, random_state=seed)
    pairs = splitter.split(np.zeros(len(targets)), classes)
    return [(np.asarray(train), np.asarray(test)) for train, test in pairs]
