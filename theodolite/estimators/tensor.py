"""Factorization and completion of a tensor, with a certificate of global optimality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from theodolite.atoms.tensor import TensorAtom
from theodolite.atoms.tensor_contractions import products
from theodolite.core.problem import Problem
from theodolite.estimators.base import Callback, CertifiedEstimator, check_factor, check_scale
from theodolite.estimators.fold_in import fold_in
from theodolite.losses import Loss, MaskedSquaredLoss, SquaredLoss

_MOST = 2e8  # entries of a tensor that is formed


class TensorFactorization(TransformerMixin, CertifiedEstimator):
    r"""Factorize or complete a tensor of order 3 or more, and prove how far from optimal the fit can be.

    Minimizes

    .. math:: \tfrac12\sum_{\text{observed}}\Big(X-\sum_{j=1}^r w_j\,a^1_j\otimes\dots\otimes a^d_j\Big)^2
              +\alpha\sum_{j=1}^r w_j,\qquad \|a^k_j\|_2=1,\ w_j\ge0,

    a sum, never an average, over factors and their number r: least squares with the nuclear norm of a
    tensor.  The problem is NP-hard in general.  ``gap_`` says what is proved; on real data it usually closes.

    Parameters
    ----------
    alpha : float
        Factor of the sum of weights, > 0.
    tol : float
        Relative gap to stop at.
    max_rank : int, optional
        Largest r; the gap is still to the optimum of any r.
    budget : float, optional
        Seconds for the solver.
    verbose, device, random_state
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    Attributes
    ----------
    factors_ : list of ndarray, shapes (n_k, rank)
        Unit columns.
    weights_ : ndarray, shape (rank,)
        Positive, descending.
    shape_ : tuple of int
        Shape of the training data.
    certificate_, objective_, dual_bound_, gap_, rank_, history_, interrupted_
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    References
    ----------
    Haeffele and Vidal, arXiv 1506.07540.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.zeros((3, 3, 3))
    >>> X[0, 0, 0], X[1, 1, 1], X[2, 2, 2] = 3.0, 2.0, 0.5
    >>> model = TensorFactorization(alpha=1.0).fit(X)
    >>> model.weights_.round(6).tolist(), round(model.objective_, 6)
    ([2.0, 1.0], 4.125)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        tol: float = 1e-4,
        max_rank: int | None = None,
        budget: float | None = None,
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.tol = tol
        self.max_rank = max_rank
        self.budget = budget
        self.verbose = verbose
        self.device = device
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any = None, *, mask: Any = None, callback: Callback | None = None
    ) -> TensorFactorization:
        """Fit the observed entries of a tensor.

        Parameters
        ----------
        X : array-like, shape (n_1, ..., n_d), or sparse COO tensor of torch
            NaN marks a missing entry.  Of a sparse tensor the stored entries are observed, each once; it is
            never made dense unless it is small.
        y : None
            Ignored.
        mask : array-like of bool, shape of X, optional
            True where X is observed; entries elsewhere do not matter, whatever they are.
        callback : function(Round) -> bool, optional
            Called after each round of the solver; returning True stops.

        Raises
        ------
        ValueError
            If X has fewer than three modes, an observed entry that is infinite, none that is observed, an
            entry stored twice, or a parameter is out of range.
        """
        alpha = check_factor(self.alpha, "alpha")
        observed = _read(X, mask)
        check_scale(observed.values.numpy(), "X")
        atom = TensorAtom(observed.shape)
        params = self._solve(Problem(observed.loss(atom), atom, alpha), callback=callback).params
        self.shape_ = observed.shape
        theta = atom.theta(params)
        order = theta.argsort(descending=True)
        self.weights_: NDArray[np.float64] = theta[order].numpy()
        self.factors_: list[NDArray[np.float64]] = [
            np.ascontiguousarray((p[order] / p[order].norm(dim=1, keepdim=True)).T.numpy()) for p in params
        ]
        return self

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> NDArray[np.float64]:
        """Fit, and return the coordinates of the slices of X along the first mode, as fitted."""
        self.fit(X, y, **options)
        return self.factors_[0] * np.sqrt(self.weights_)

    def reconstruct(self) -> NDArray[np.float64]:
        """Return the fitted tensor, shape ``shape_``.

        Raises
        ------
        ValueError
            If it has more than 200 million entries.
        """
        check_is_fitted(self)
        return self.inverse_transform(self.factors_[0] * np.sqrt(self.weights_))

    def predict(self, index: Any) -> NDArray[np.float64]:
        """Return fitted entries.

        Parameters
        ----------
        index : array-like of int, shape (size, d), or tuple of d vectors
            As ``numpy.argwhere`` or ``numpy.nonzero`` give them; an entry may be asked for twice.

        Returns
        -------
        ndarray, shape (size,)
        """
        check_is_fitted(self)
        atom = TensorAtom(self.shape_)
        rows, cols = atom.matrix_index(index)
        places = atom.tensor_index(rows, cols).numpy()
        found = np.zeros(len(rows))
        for j, weight in enumerate(self.weights_):
            found += weight * math.prod(F[i, j] for F, i in zip(self.factors_, places, strict=True))
        return found

    def transform(self, X: Any, *, mask: Any = None) -> NDArray[np.float64]:
        r"""Return coordinates of slices, new ones too, given the factors of all modes but the first.

        Ridge regression of the observed entries of each slice on the columns
        :math:`\sqrt{w_j}\,a^2_j\otimes\dots\otimes a^d_j` with penalty :math:`\tfrac\alpha2\|\cdot\|^2`.  Of the
        training data at the optimum these are :math:`\sqrt{w_j}\,a^1_j`.

        Parameters
        ----------
        X : tensor, shape (m, n_2, ..., n_d)
            As in :meth:`fit`; a slice without observed entries gets zeros.
        mask : array-like of bool, shape of X, optional
            True where X is observed.

        Returns
        -------
        ndarray, shape (m, rank)
        """
        check_is_fitted(self)
        observed = _read(X, mask, needed=0)
        if observed.shape[1:] != self.shape_[1:]:
            wanted = ("m", *self.shape_[1:])
            raise ValueError(f"X: expected shape {wanted}, got {observed.shape}".replace("'", ""))
        if not len(observed.values):
            return np.zeros((observed.shape[0], self.rank_))
        starts = np.searchsorted(observed.index[0].numpy(), np.arange(observed.shape[0] + 1))
        cols = TensorAtom(observed.shape).matrix_index(tuple(observed.index))[1].numpy()
        loss, zeros = SquaredLoss(observed.values[:, None]), np.zeros(len(cols))
        return fold_in(loss, starts, cols, zeros, self._features(), np.full(self.rank_, float(self.alpha)))

    def inverse_transform(self, X: Any) -> NDArray[np.float64]:
        """Return the slices of given coordinates, shape (m, n_2, ..., n_d)."""
        check_is_fitted(self)
        rows = np.asarray(X, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.rank_:
            raise ValueError(f"X: expected shape (m, {self.rank_}), got {rows.shape}")
        shape = (len(rows), *self.shape_[1:])
        if math.prod(shape) > _MOST:
            raise ValueError(
                f"X: expected a tensor of at most {_MOST:.0e} entries, got shape {shape}; use predict for some"
            )
        return np.asarray((rows @ self._features().T).reshape(shape))

    def score(self, X: Any, y: Any = None, *, mask: Any = None) -> float:
        """Return R^2 of the fitted tensor on the observed entries of X, held-out ones, say; 1 is best.

        Parameters
        ----------
        X : tensor of shape ``shape_``
            As in :meth:`fit`.
        y : None
            Ignored.
        mask : array-like of bool, shape of X, optional
            True where X is observed.
        """
        check_is_fitted(self)
        observed = _read(X, mask)
        if observed.shape != self.shape_:
            raise ValueError(f"X: expected shape {self.shape_}, got {observed.shape}")
        values = observed.values.numpy()
        error = float(np.square(values - self.predict(tuple(observed.index))).sum())
        spread = float(np.square(values - values.mean()).sum())
        return 1.0 - error / spread if spread > 0.0 else float(error == 0.0)

    def _features(self) -> NDArray[np.float64]:
        """Return the regressors of a slice, shape (n_2 ... n_d, rank)."""
        rest = [torch.from_numpy(np.ascontiguousarray(F.T)) for F in self.factors_[1:]]
        return np.asarray(products(rest).T.numpy() * np.sqrt(self.weights_))


@dataclass(frozen=True)
class _Observed:
    """Observed entries in row-major order: indices (d, size), values (size,)."""

    index: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, ...]

    def loss(self, atom: TensorAtom) -> Loss:
        """Return half the sum of squared errors."""
        if len(self.values) == math.prod(self.shape):
            return SquaredLoss(self.values.reshape(atom.shape))
        rows, cols = atom.matrix_index(tuple(self.index))
        return MaskedSquaredLoss(rows, cols, self.values, atom.shape)


def _read(X: Any, mask: Any, needed: int = 1) -> _Observed:
    """Return the observed entries of a tensor, or refuse it."""
    if isinstance(X, torch.Tensor) and X.is_sparse:
        return _read_sparse(X, mask)
    given = X.detach().cpu().numpy() if isinstance(X, torch.Tensor) else np.asarray(X)
    if given.dtype.kind not in "biuf":
        raise ValueError(f"X: expected real numbers, got dtype {given.dtype}")
    _check_shape(given.shape)
    whole = torch.from_numpy(np.array(given, dtype=np.float64, order="C"))
    seen = ~torch.isnan(whole)
    if mask is not None:
        wanted = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
        if wanted.shape != given.shape or wanted.dtype != np.bool_:
            expected = f"booleans of the shape of X, {given.shape}"
            raise ValueError(f"mask: expected {expected}, got {wanted.dtype} of shape {wanted.shape}")
        seen &= torch.from_numpy(wanted)
    index = seen.nonzero().T
    values = whole[seen]
    if len(values) < needed:
        raise ValueError("X: expected at least one observed entry, got none")
    _check_finite(index, values)
    return _Observed(index, values, tuple(given.shape))


def _read_sparse(X: torch.Tensor, mask: Any) -> _Observed:
    if mask is not None:
        raise ValueError("mask: expected None for a sparse X, whose stored entries are the observed ones")
    _check_shape(tuple(X.shape))
    if X.dense_dim():
        raise ValueError(f"X: expected all {X.ndim} modes sparse, got {X.dense_dim()} dense ones")
    X = X.detach().cpu()
    index, values = X._indices(), X._values().double()
    if len(X.coalesce()._values()) != len(values):
        raise ValueError(f"X: expected each entry stored once, got {len(values)} with repetitions")
    if not len(values):
        raise ValueError("X: expected at least one observed entry, got none")
    order = np.lexsort(index.flip(0).numpy())
    index, values = index[:, order], values[order]
    _check_finite(index, values)
    return _Observed(index, values, tuple(X.shape))


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) < 3 or 0 in shape:
        hint = "; MatrixCompletion and LowRankFactorization are for matrices" if len(shape) == 2 else ""
        raise ValueError(f"X: expected a nonempty tensor with three modes or more, got shape {shape}{hint}")


def _check_finite(index: torch.Tensor, values: torch.Tensor) -> None:
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        place = tuple(index[:, int(bad[0])].tolist())
        raise ValueError(
            f"X: expected finite numbers, or NaN where missing, got {float(values[bad[0]])} at {place}"
        )
