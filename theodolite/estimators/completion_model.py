"""What a fitted completion offers: predictions, new rows, scores, its certificate on given data, and a file."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, xlogy
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from theodolite.core.certificate import Certificate
from theodolite.estimators import saving
from theodolite.estimators.base import check_choice, check_number
from theodolite.estimators.completion_inputs import Entries, Ids, column, is_table, refuse_unknown
from theodolite.estimators.completion_problem import CompletionProblem
from theodolite.estimators.fold_in import fold_in

_CHUNK = 1 << 22  # numbers gathered at once
_MOST = 200_000_000  # entries of a matrix that is returned whole
# parameters that all completions have, and what is saved of a fit
SHARED = tuple(
    "tol max_rank budget bias bias_alpha loss delta user item rating duplicates warm_start verbose device "
    "random_state".split()
)
_ARRAYS = ("row_factors", "col_factors", "row_bias", "col_bias")


class CompletionModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, CompletionProblem):
    """A matrix completed by a low-rank one; the base of those that differ in how alpha is found.

    Subclasses set ``alpha_`` and call ``_fit_entries``.
    """

    def predict(self, rows: Any, cols: Any = None, *, unknown: str = "error", raw: bool = False) -> Any:
        """Return predicted entries.

        Parameters
        ----------
        rows : array-like, table or matrix
            With ``cols``: ids of rows as in fit (indices, if fit was given a matrix).  Alone: a table
            with the columns of rows' and columns' ids; or a matrix of *other* rows, each of which is
            predicted as a whole from its own observed entries (see :meth:`transform`).
        cols : array-like, optional
            Ids of columns, as many as rows (either may be one id).
        unknown : {"error", "mean"}
            What to do with ids that fit has not seen: with "mean" they get the mean and the bias that
            is known.
        raw : bool
            Return the natural parameter: the log odds, or the log rate.  Otherwise
            ``loss="logistic"`` gives the probability of 1 and ``loss="poisson"`` the rate.

        Returns
        -------
        ndarray, shape (size,), or (n, m) for a matrix
        """
        check_is_fitted(self)
        check_choice(unknown, "unknown", ("error", "mean"))
        if cols is None:
            if not is_table(rows):
                found = self.inverse_transform(self.transform(rows), raw=True)
                return found if raw else self._response(found)
            rows, cols = column(rows, self.user), column(rows, self.item)
        i = self._encode(rows, self._row_ids, len(self.row_factors_), "rows", unknown)
        j = self._encode(cols, self._col_ids, len(self.col_factors_), "cols", unknown)
        if i.shape != j.shape and 1 not in (len(i), len(j)):
            raise ValueError(f"cols: expected as many as rows, {len(i)}, got {len(j)}")
        i, j = np.broadcast_arrays(i, j)
        predicted = self._linear(i, j)
        return predicted if raw else self._response(predicted)

    def _encode(self, given: Any, ids: Ids | None, size: int, name: str, unknown: str) -> NDArray[np.int64]:
        """Return indices of ids, -1 for unknown ones."""
        if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
            given = [given]
        if ids is not None:
            codes = ids.encode(given)
        else:
            codes = np.asarray(given)
            if codes.ndim != 1 or codes.dtype.kind not in "iu":
                raise ValueError(
                    f"{name}: expected a vector of indices, got {codes.dtype} of shape {codes.shape}"
                )
            codes = np.where((codes >= 0) & (codes < size), codes, -1).astype(np.int64)
        if unknown == "error":
            refuse_unknown(codes, given, name)
        return codes

    def _linear(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return natural parameters at indices; -1 adds nothing."""
        predicted = np.full(len(i), self.mean_)
        step = max(1, _CHUNK // max(1, self.row_factors_.shape[1]))
        for first in range(0, len(i), step):
            here = slice(first, first + step)
            r, c = i[here], j[here]
            known = (r >= 0) & (c >= 0)
            products = np.einsum("ij,ij->i", self.row_factors_[r], self.col_factors_[c])
            predicted[here] += np.where(known, products, 0.0)
            predicted[here] += np.where(r >= 0, self.row_bias_[r], 0.0)
            predicted[here] += np.where(c >= 0, self.col_bias_[c], 0.0)
        return predicted

    def _response(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean that belongs to a natural parameter."""
        if self.loss == "logistic":
            return np.asarray(expit(predicted))
        return np.exp(predicted) if self.loss == "poisson" else predicted

    def complete(self) -> NDArray[np.float64]:
        """Return all predictions, shape (n, m).

        Raises
        ------
        ValueError
            If they are more than 200 million.
        """
        check_is_fitted(self)
        n, m = len(self.row_factors_), len(self.col_factors_)
        _refuse_large(n, m)
        whole = self.row_factors_ @ self.col_factors_.T
        return self._response(whole + (self.mean_ + self.row_bias_[:, None] + self.col_bias_))

    def transform(self, X: Any) -> Any:
        r"""Return the factors of new rows, given those of the columns.

        Row x minimizes :math:`\sum_j f(\mu+c_j+b+V_jx) + \tfrac\alpha2\|x\|^2 + \tfrac\beta2b^2` over
        its observed entries, with the loss f of the fit: ridge regression on the columns' factors for
        squared errors.  The rows of the training data have the same equation at the optimum, so that
        ``fit_transform`` agrees with it as far as the gap is closed.

        Parameters
        ----------
        X : matrix, shape (k, m), or table
            New rows, in the form of the training data; columns of a table must be known.

        Returns
        -------
        ndarray, shape (k, rank), or (k, rank + 1) with biases of rows last
            For a table a frame of pandas, with the ids of the rows as index.
        """
        check_is_fitted(self)
        entries = self._entries(X, reset=False, new_rows=True)
        n, (rows, cols) = entries.shape[0], (entries.rows, entries.cols)
        offsets, bias = self.mean_ + self.col_bias_[cols], np.zeros(n)
        if self.bias == "centered":
            bias = self._shrunken(entries.values - offsets, rows, n)
            offsets = offsets + bias[rows]
        features, penalties = self.col_factors_, np.full(self.rank_, self.alpha_)
        if self.bias == "penalized":
            features = np.column_stack([features, np.ones(len(features))])
            penalties = np.append(penalties, self.bias_alpha)
        starts = np.searchsorted(rows, np.arange(n + 1))
        factors = np.zeros((n, len(penalties)))
        if len(rows):
            loss = self._sample_loss(entries.values, 0.0)
            factors = fold_in(loss, starts, cols, offsets, features, penalties)
        if self.bias == "centered":
            factors = np.column_stack([factors, bias])
        return _framed(factors, entries.row_ids)

    def inverse_transform(self, X: Any, *, raw: bool = False) -> NDArray[np.float64]:
        """Return the predictions that belong to factors of rows, shape (k, m).

        Parameters
        ----------
        X : array-like, shape (k, rank), or (k, rank + 1) with biases
            What :meth:`transform` returned.
        raw : bool
            As in :meth:`predict`.
        """
        check_is_fitted(self)
        factors = np.asarray(X, dtype=np.float64)
        if factors.ndim != 2 or factors.shape[1] != self._n_features_out:
            raise ValueError(f"X: expected shape (k, {self._n_features_out}), got {factors.shape}")
        _refuse_large(len(factors), len(self.col_factors_))
        whole = factors[:, : self.rank_] @ self.col_factors_.T + (self.mean_ + self.col_bias_)
        if self.bias:
            whole += factors[:, self.rank_ :]
        return whole if raw else self._response(whole)

    def _own_factors(self) -> Any:
        """Return what fit_transform returns."""
        factors = self.row_factors_
        if self.bias:
            factors = np.column_stack([factors, self.row_bias_])
        return _framed(factors.copy(), self._row_ids)

    @property
    def _n_features_out(self) -> int:
        return self.rank_ + bool(self.bias)

    def score(self, X: Any, y: Any = None) -> float:
        """Return how well entries of known rows and columns are predicted; 1 is best.

        R^2 (as of scikit-learn's regressors) for ``loss="squared"`` and ``"huber"``, accuracy for
        ``"logistic"``, the explained share of the deviance for ``"poisson"``.

        Parameters
        ----------
        X : matrix of the shape of the training data, or table
            Held-out entries.
        y : None
            Ignored.
        """
        check_is_fitted(self)
        entries = self._entries(X, reset=False)
        values, predicted = entries.values, self._linear(entries.rows, entries.cols)
        if self.loss == "logistic":
            return float(np.mean((predicted > 0.0) == (self._signs(values) > 0.0)))
        if self.loss == "poisson":
            mean = values.mean()
            ours = values * predicted - np.exp(predicted)
            best, none = xlogy(values, values) - values, xlogy(values, mean) - mean
            return _share(float((best - ours).sum()), float((best - none).sum()))
        return _share(float(((values - predicted) ** 2).sum()), float(((values - values.mean()) ** 2).sum()))

    def held_out_loss(self, X: Any) -> float:
        """Return the mean of the model's loss over entries of known rows and columns."""
        check_is_fitted(self)
        return self._mean_loss(self._entries(X, reset=False))

    def _mean_loss(self, entries: Entries) -> float:
        predicted = self._linear(entries.rows, entries.cols)[:, None]
        return self._sample_loss(entries.values, 0.0).value(torch.from_numpy(predicted)) / len(entries.values)

    def certify(self, X: Any, *, tol: float = 1e-4, budget: float | None = None) -> Certificate:
        """Return what is proved about these factors on given training data, say those of a loaded model.

        Parameters
        ----------
        X : matrix or table
            The training data; the mean (and centered biases) are computed from them anew.
        tol, budget : float
            As in :meth:`theodolite.core.problem.Problem.certify`.
        """
        check_is_fitted(self)
        entries = self._entries(X, reset=False)
        scratch = copy.copy(self)
        scratch._center(entries)
        return scratch._problem(entries, self.alpha_).certify(self._params(), tol=tol, budget=budget)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model with its parameters, ids, certificate and log into one .npz file, at once.

        Nothing in it is pickled.  A file that is there is replaced when the new one is complete.

        Raises
        ------
        TypeError
            If an id is neither a string nor a number, or ``random_state`` or a column's name is no
            plain value.
        """
        check_is_fitted(self)
        parameters: dict[str, Any] = {}
        for name in (name for name in SHARED if hasattr(self, name)):
            value = getattr(self, name)
            value = str(value) if isinstance(value, torch.device) else value
            value = value.item() if isinstance(value, np.generic) else value
            if value is not None and type(value) not in (str, int, float, bool):
                raise TypeError(
                    f"{name}: expected a string, a number or None in order to save it, got {value!r}"
                )
            parameters[name] = value
        header = {
            "kind": "MatrixCompletion",
            "parameters": parameters | {"alpha": float(self.alpha_)},
            "mean": self.mean_,
            "interrupted": self.interrupted_,
            "row_ids": saving.pack_ids(self._row_ids, "row_ids_"),
            "col_ids": saving.pack_ids(self._col_ids, "col_ids_"),
            **saving.pack_certificate(self.certificate_, self.history_),
        }
        arrays = {name: getattr(self, f"{name}_") for name in _ARRAYS}
        saving.write(path, header, arrays)

    def _restore(self, path: str | os.PathLike[str]) -> None:
        """Set what fit would have set, from a file."""
        header, arrays = saving.read(path, "MatrixCompletion")
        try:
            ids = [None if header[k] is None else Ids(header[k]) for k in ("row_ids", "col_ids")]
            certificate, history = saving.unpack_certificate(header)
            mean, interrupted = check_number(header["mean"], "mean"), bool(header["interrupted"])
            self.set_params(**header["parameters"])
            self._check()
            self.alpha_ = float(header["parameters"]["alpha"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path: expected a saved model, got {os.fspath(path)!r} ({error!r})") from error
        n, m = (arrays[k].shape[0] if k in arrays and arrays[k].ndim else 0 for k in ("row_bias", "col_bias"))
        sizes = {"row_factors": (n, certificate.units), "col_factors": (m, certificate.units)}
        for name, shape in (sizes | {"row_bias": (n,), "col_bias": (m,)}).items():
            setattr(self, f"{name}_", saving.expect(arrays, name, shape, path))
        for name, found, size in (("row_ids", ids[0], n), ("col_ids", ids[1], m)):
            if found is not None and (len(found) != size or len(set(found.names.tolist())) != size):
                got = f"{len(found)}, {len(set(found.names.tolist()))} of them different"
                raise ValueError(
                    f"path: expected {size} different ids as {name!r} in {os.fspath(path)!r}, got {got}"
                )
        self.mean_, self.n_features_in_ = mean, m
        self._keep(certificate, history, interrupted)
        self._keep_ids(ids[0], ids[1])

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "certificate_") and hasattr(self, "row_factors_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.allow_nan = True
        return tags


def _share(left: float, total: float) -> float:
    """Return 1 - left / total; without variation 1 for a perfect prediction, else 0, as scikit-learn does."""
    return 1.0 - left / total if total > 0.0 else float(left <= 0.0)


def _refuse_large(n: int, m: int) -> None:
    if n * m > _MOST:
        raise ValueError(
            f"expected at most {_MOST:,} entries at once, got {n:,} x {m:,}; predict some of them"
        )


def _framed(factors: NDArray[np.float64], ids: Ids | None) -> Any:
    """Return factors as a frame where their rows have ids."""
    if ids is None:
        return factors
    import pandas as pd

    index = pd.Index(ids.names.tolist(), tupleize_cols=False)
    return pd.DataFrame(factors, index=index)
