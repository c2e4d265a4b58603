"""From observed entries to the problem that a completion solves, and its solution kept."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from theodolite.atoms.matrix import MatrixAtom
from theodolite.core.params import Params
from theodolite.core.problem import Problem
from theodolite.estimators.base import (
    Callback,
    CertifiedEstimator,
    check_choice,
    check_factor,
    check_number,
    check_scale,
)
from theodolite.estimators.completion_inputs import DUPLICATES, Entries, Ids, is_table, read
from theodolite.losses import (
    HuberLoss,
    LogisticLoss,
    Loss,
    MaskedLoss,
    PoissonLoss,
    SampleLoss,
    SquaredLoss,
)
from theodolite.losses.row_column_biased import RowColumnBiasedLoss

LOSSES = ("squared", "huber", "logistic", "poisson")
BIASES = (False, "penalized", "centered")


class CompletionProblem(CertifiedEstimator):
    """What a completion solves, for an ``alpha_`` that is known.

    Subclasses have the parameters of :class:`~theodolite.estimators.MatrixCompletion`.
    """

    loss: str
    delta: float
    bias: bool | str
    bias_alpha: float
    max_rank: int | None
    user: Hashable
    item: Hashable
    rating: Hashable
    duplicates: str
    alpha_: float

    def _check(self) -> None:
        """Refuse values of parameters that are none."""
        self._check_shared()
        check_choice(self.loss, "loss", LOSSES)
        check_choice(self.bias, "bias", BIASES)
        check_choice(self.duplicates, "duplicates", DUPLICATES)
        check_factor(self.delta, "delta")
        if self.bias == "penalized":
            check_factor(self.bias_alpha, "bias_alpha")
        check_number(self.bias_alpha, "bias_alpha", low=0.0)
        if self.bias == "centered" and self.loss not in ("squared", "huber"):
            raise ValueError(f"bias: expected False or 'penalized' with loss={self.loss!r}, got 'centered'")

    def _entries(self, X: Any, *, reset: bool, new_rows: bool = False) -> Entries:
        """Return observed entries: in fit (`reset`) with ids of their own, later with those of fit.

        Rows that are new may be without entries.
        """
        columns = (self.user, self.item, self.rating)
        if is_table(X):
            if not reset and self.col_ids_ is None:
                raise ValueError("X: expected a matrix, as in fit, got a table")
            entries = read(
                X,
                columns=columns,
                duplicates=self.duplicates,
                row_ids=None if reset or new_rows else self._row_ids,
                col_ids=None if reset else self._col_ids,
            )
            if reset:
                check_scale(entries.values, f"X[{self.rating!r}]")
                self.n_features_in_ = entries.shape[1]
            return entries
        if not reset and self.col_ids_ is not None:
            raise ValueError(f"X: expected a table, as in fit, got {type(X).__name__}")
        if isinstance(X, np.ma.MaskedArray):
            X = np.ma.filled(X.astype(np.float64), np.nan)
        X = validate_data(
            self, X, reset=reset, accept_sparse=True, ensure_all_finite=False, dtype=np.float64, copy=False
        )
        entries = read(X, columns=columns, duplicates=self.duplicates, allow_empty=new_rows)
        if reset:
            check_scale(entries.values, "X")
        if not reset and not new_rows and entries.shape[0] != len(self.row_factors_):
            raise ValueError(f"X: expected {len(self.row_factors_)} rows, as in fit, got {entries.shape[0]}")
        return entries

    def _sample_loss(self, values: NDArray[np.float64], offset: float | NDArray[np.float64]) -> SampleLoss:
        """Return the loss of the column of observed entries, an offset being added to its predictions."""
        if self.loss == "squared":
            return SquaredLoss((values - offset)[:, None])
        if self.loss == "huber":
            return HuberLoss(values - offset, self.delta)
        if self.loss == "poisson":
            if (values < 0).any():
                raise ValueError(f"X: expected counts >= 0 for loss='poisson', got {values[values < 0][0]:g}")
            return PoissonLoss(values, offset=offset)
        return LogisticLoss(self._signs(values))

    def _signs(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return -1 and 1 for -1 and 1, or 0 and 1."""
        wrong = ~np.isin(values, (-1.0, 0.0, 1.0))
        if wrong.any() or ((values == -1.0).any() and (values == 0.0).any()):
            got = f"{values[wrong][0]:g}" if wrong.any() else "-1 and 0"
            raise ValueError(f"X: expected entries -1 and 1, or 0 and 1, for loss='logistic', got {got}")
        return np.where(values == 1.0, 1.0, -1.0)

    def _center(self, entries: Entries) -> None:
        """Set the mean and the biases that are fixed before the solver begins."""
        n, m = entries.shape
        self.mean_, self.row_bias_, self.col_bias_ = 0.0, np.zeros(n), np.zeros(m)
        if not self.bias or self.loss == "logistic":
            return
        mean = float(entries.values.mean())
        if self.loss == "poisson":
            self.mean_ = float(np.log(mean)) if mean > 0.0 else 0.0
            return
        self.mean_ = mean
        if self.bias == "centered":
            centered = entries.values - mean
            self.col_bias_ = self._shrunken(centered, entries.cols, m)
            self.row_bias_ = self._shrunken(centered - self.col_bias_[entries.cols], entries.rows, n)

    def _shrunken(
        self, values: NDArray[np.float64], groups: NDArray[np.int64], size: int
    ) -> NDArray[np.float64]:
        """Return the mean of each group, shrunken to zero as if it had bias_alpha more entries there."""
        totals, counts = np.bincount(groups, values, size), np.bincount(groups, minlength=size)
        return np.divide(totals, counts + self.bias_alpha, out=np.zeros(size), where=counts > 0)

    def _problem(self, entries: Entries, alpha: float) -> Problem:
        """Return the problem that the certificate is about."""
        offset: float | NDArray[np.float64] = self.mean_
        if self.bias == "centered":
            offset = self.mean_ + self.row_bias_[entries.rows] + self.col_bias_[entries.cols]
        inner = MaskedLoss(
            self._sample_loss(entries.values, offset), entries.rows, entries.cols, entries.shape
        )
        loss: Loss = RowColumnBiasedLoss(inner, self.bias_alpha) if self.bias == "penalized" else inner
        return Problem(loss, MatrixAtom(entries.shape), alpha)

    def _fit_entries(self, entries: Entries, init: Params | None, callback: Callback | None) -> None:
        """Solve for given entries and keep what predictions need."""
        self._center(entries)
        problem = self._problem(entries, self.alpha_)
        solution = self._solve(problem, init, callback=callback)
        try:
            self._keep_model(problem, solution.params, entries)
        except KeyboardInterrupt:  # what was found is not thrown away
            self.interrupted_ = True
            self._keep_model(problem, solution.params, entries)

    def _keep_model(self, problem: Problem, params: Params, entries: Entries) -> None:
        U, V = params
        self.row_factors_, self.col_factors_ = U.T.contiguous().numpy(), V.T.contiguous().numpy()
        if isinstance(problem.loss, RowColumnBiasedLoss):
            b, c = problem.loss.biases(problem.predictions(params))
            self.row_bias_, self.col_bias_ = b.numpy(), c.numpy()
        self._keep_ids(entries.row_ids, entries.col_ids)

    def _keep_ids(self, row_ids: Ids | None, col_ids: Ids | None) -> None:
        self._row_ids, self._col_ids = row_ids, col_ids
        self.row_ids_ = None if row_ids is None else row_ids.names
        self.col_ids_ = None if col_ids is None else col_ids.names

    def _params(self) -> Params:
        return torch.from_numpy(self.row_factors_.T.copy()), torch.from_numpy(self.col_factors_.T.copy())

    def _params_for(self, entries: Entries) -> Params:
        """Return the factors for the rows and columns of other data, zero where they were not seen."""
        found = []
        for what, factors, old, new, size in (
            ("rows", self.row_factors_, self._row_ids, entries.row_ids, entries.shape[0]),
            ("columns", self.col_factors_, self._col_ids, entries.col_ids, entries.shape[1]),
        ):
            if (old is None) != (new is None) or (old is None and len(factors) != size):
                kind = "ids" if old is not None else f"{len(factors)} {what}"
                raise ValueError(f"init: expected a model with the same kind of {what}, got one with {kind}")
            if old is not None and new is not None:
                place = old.encode(new.names)
                factors = np.where((place >= 0)[:, None], factors[place], 0.0)
            found.append(torch.from_numpy(factors.T.copy()))
        return MatrixAtom(entries.shape).merge((found[0], found[1]))
