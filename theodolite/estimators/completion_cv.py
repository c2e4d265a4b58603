"""Completions along a path of alpha, each started from the last, and the choice of one by held-out entries."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import KFold, check_cv

from theodolite.core.params import Params
from theodolite.estimators.base import Callback, check_factor, check_integer, check_number
from theodolite.estimators.completion import MatrixCompletion
from theodolite.estimators.completion_inputs import Entries
from theodolite.estimators.completion_model import SHARED, CompletionModel


def completion_path(
    X: Any,
    alphas: Sequence[float] | None = None,
    *,
    n_alphas: int = 10,
    eps: float = 0.01,
    callback: Callback | None = None,
    **parameters: Any,
) -> list[MatrixCompletion]:
    """Return fitted completions from the largest alpha to the smallest, each started from the last.

    Parameters
    ----------
    X : matrix or table
        As in :meth:`MatrixCompletion.fit`.
    alphas : sequence of float, optional
        By default ``n_alphas`` of them, evenly spaced in the logarithm below the smallest one for
        which the zero matrix is optimal, down to ``eps`` times that.
    n_alphas, eps : int, float
        Of that grid.
    callback : function(Round) -> bool, optional
        Called after each round of each fit.
    **parameters
        Of :class:`MatrixCompletion`.

    Returns
    -------
    list of MatrixCompletion
        After Ctrl-C those so far, the last with ``interrupted_``.
    """
    model = MatrixCompletion(**parameters)
    model._check()
    entries = model._entries(X, reset=True)
    path: list[MatrixCompletion] = []
    start: Params | None = None
    for alpha in _grid(model, entries, alphas, n_alphas, eps).tolist():
        fitted = _fitted(MatrixCompletion(**parameters), entries, alpha, start, callback)
        start = fitted._params()
        path.append(fitted)
        if fitted.interrupted_:
            break
    return path


class MatrixCompletionCV(CompletionModel):
    """Matrix completion whose alpha is chosen by cross-validation over the observed entries.

    For each alpha, from the largest on, every fold's fit starts from the fold's last one, and the
    alpha with the least mean loss on held-out entries is fitted to all entries.  The path ends after
    ``patience`` alphas in a row that are no better than the best before them: smaller ones overfit
    still more and take longest.  Every fit is certified to ``tol``, as in :class:`MatrixCompletion`.

    Parameters
    ----------
    alphas : sequence of float, optional
        As in :func:`completion_path`.
    n_alphas, eps : int, float
        As in :func:`completion_path`.
    cv : int or splitter
        Number of folds of the entries, drawn by ``random_state``, or a scikit-learn splitter.
    patience : int, optional
        After how many alphas without improvement the path ends; None goes on to its end.
    tol, max_rank, budget, bias, bias_alpha, loss, delta, user, item, rating, duplicates, verbose, device
        As in :class:`MatrixCompletion`; ``budget`` is for each fit.
    random_state : int, RandomState or None
        Of folds and random starts; None is 0.

    Attributes
    ----------
    alpha_, best_alpha_ : float
        The alpha chosen.
    best_index_ : int
        Its place in ``cv_results_``.
    best_loss_ : float
        Its mean loss of a held-out entry.
    cv_results_ : dict of ndarray
        Of the alphas that were tried: "alpha", "mean_test_loss" and "std_test_loss" of shape
        (n_tried,); "test_loss", "gap" and "rank" of shape (n_tried, n_folds); "mean_test_rmse" for
        squared and Huber loss.
    interrupted_ : bool
        Whether Ctrl-C ended it: then the best of the alphas that were complete.

    All others are those of :class:`MatrixCompletion` with the alpha chosen.
    """

    def __init__(
        self,
        alphas: Sequence[float] | None = None,
        n_alphas: int = 10,
        eps: float = 0.01,
        cv: Any = 5,
        tol: float = 1e-4,
        max_rank: int | None = None,
        budget: float | None = None,
        bias: bool | str = False,
        bias_alpha: float = 1.0,
        loss: str = "squared",
        delta: float = 1.0,
        user: Hashable = "user",
        item: Hashable = "item",
        rating: Hashable = "rating",
        duplicates: str = "error",
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
        patience: int | None = 2,
    ) -> None:
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.eps = eps
        self.cv = cv
        self.tol = tol
        self.max_rank = max_rank
        self.budget = budget
        self.bias = bias
        self.bias_alpha = bias_alpha
        self.loss = loss
        self.delta = delta
        self.user = user
        self.item = item
        self.rating = rating
        self.duplicates = duplicates
        self.verbose = verbose
        self.device = device
        self.random_state = random_state
        self.patience = patience

    def fit(self, X: Any, y: Any = None, *, callback: Callback | None = None) -> MatrixCompletionCV:
        """Choose alpha and fit all observed entries; Ctrl-C ends it with the best so far.

        Parameters
        ----------
        X : sparse matrix or array, array-like with NaN, or table
            As in :meth:`MatrixCompletion.fit`.
        y : None
            Ignored.
        callback : function(Round) -> bool, optional
            Called after each round of each fit.
        """
        self._check()
        if self.patience is not None:
            check_integer(self.patience, "patience", low=1)
        entries = self._entries(X, reset=True)
        alphas = _grid(self, entries, self.alphas, self.n_alphas, self.eps)
        folds = self._folds(entries)
        starts: list[Params | None] = [None] * len(folds)
        table: list[list[tuple[float, float, float, int]]] = []
        best, interrupted = self._blank(), False
        _fitted(best, entries, alphas[0], None, callback)
        try:
            for alpha in [] if best.interrupted_ else alphas.tolist():
                line = []
                for k, (train, test) in enumerate(folds):
                    model = _fitted(self._blank(), entries.take(train), alpha, starts[k], callback)
                    if model.interrupted_:
                        raise KeyboardInterrupt
                    starts[k], held = model._params(), entries.take(test)
                    errors = held.values - model._linear(held.rows, held.cols)
                    line.append((model._mean_loss(held), float((errors**2).mean()), model.gap_, model.rank_))
                means = [float(np.mean([one[0] for one in row])) for row in (*table, line)]
                if len(table) > 0 and means[-1] < min(means[:-1]):
                    better = _fitted(self._blank(), entries, alpha, best._params(), callback)
                    if better.interrupted_:
                        raise KeyboardInterrupt
                    best = better
                table.append(line)
                if self.patience is not None and len(means) - 1 - int(np.argmin(means)) >= self.patience:
                    break
        except KeyboardInterrupt:
            interrupted = True
        for name, value in vars(best).items():
            if name.endswith("_") or name in ("_row_ids", "_col_ids"):
                setattr(self, name, value)
        self.interrupted_ = interrupted or best.interrupted_
        self._keep_results(alphas[: len(table)], np.array(table).reshape(len(table), len(folds), 4))
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit, and return the factors of the rows (see :meth:`transform`)."""
        return self.fit(X, y, **fit_params)._own_factors()

    def _keep_results(self, alphas: NDArray[np.float64], table: NDArray[np.float64]) -> None:
        losses = table[:, :, 0]
        self.cv_results_ = {
            "alpha": alphas,
            "mean_test_loss": losses.mean(1),
            "std_test_loss": losses.std(1),
            "test_loss": losses,
            "gap": table[:, :, 2],
            "rank": table[:, :, 3].astype(np.int64),
        }
        if self.loss in ("squared", "huber"):
            self.cv_results_["mean_test_rmse"] = np.sqrt(table[:, :, 1]).mean(1)
        self.best_alpha_ = self.alpha_
        self.best_index_ = int(np.argmin(losses.mean(1))) if len(alphas) else 0
        self.best_loss_ = float(losses[self.best_index_].mean()) if len(alphas) else float("nan")

    def _blank(self) -> MatrixCompletion:
        """Return a completion with the same parameters and nothing fitted."""
        return MatrixCompletion(**{name: getattr(self, name) for name in SHARED if hasattr(self, name)})

    def _folds(self, entries: Entries) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        seed = 0 if self.random_state is None else self.random_state
        if hasattr(self.cv, "split") or np.iterable(self.cv):
            splitter = check_cv(self.cv)
        else:
            folds, most = check_integer(self.cv, "cv", low=2), len(entries.values)
            if folds > most:
                raise ValueError(
                    f"cv: expected at most as many folds as observed entries, {most}, got {folds}"
                )
            splitter = KFold(folds, shuffle=True, random_state=seed)
        pairs = splitter.split(np.zeros(len(entries.values)))
        return [(np.sort(train), np.sort(test)) for train, test in pairs]


def _fitted(
    model: MatrixCompletion, entries: Entries, alpha: float, start: Params | None, callback: Callback | None
) -> MatrixCompletion:
    """Return the model, fitted to given entries."""
    model.alpha = model.alpha_ = float(alpha)
    model.n_features_in_ = entries.shape[1]
    model._fit_entries(entries, start, callback)
    return model


def _grid(
    model: CompletionModel, entries: Entries, alphas: Sequence[float] | None, n_alphas: int, eps: float
) -> NDArray[np.float64]:
    """Return the alphas, largest first."""
    if alphas is not None:
        given = [check_factor(alpha, "alphas") for alpha in np.ravel(alphas).tolist()]
        if not given:
            raise ValueError("alphas: expected at least one number > 0, got none")
        return np.array(sorted(set(given), reverse=True))
    check_integer(n_alphas, "n_alphas", low=1)
    if not check_number(eps, "eps", low=0.0, strict=True) < 1.0:
        raise ValueError(f"eps: expected a number between 0 and 1, got {eps}")
    model._center(entries)
    top = model._problem(entries, 1.0).lambda_max().high
    # residuals that are all zero leave nothing to choose
    return np.geomspace(top if top > 0.0 else 1.0, eps * (top if top > 0.0 else 1.0), n_alphas + 1)[1:]
