"""Structured matrix factorization for images, spectra and video, with a certified gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from theodolite.atoms.structured import FactorNorm, StructuredAtom
from theodolite.core.problem import Problem
from theodolite.estimators.base import Callback, CertifiedEstimator, check_number
from theodolite.losses.base import Loss
from theodolite.losses.masked import MaskedSquaredLoss
from theodolite.losses.squared import SquaredLoss

__all__ = ["FactorNorm", "StructuredFactorization"]


class StructuredFactorization(ClassNamePrefixFeaturesOutMixin, TransformerMixin, CertifiedEstimator):
    r"""Factors of a matrix that are sparse, piecewise constant or nonnegative, as one asks.

    Minimizes over any number r of pairs

    .. math:: \tfrac12\sum_{\text{observed}}(X_{ij}-(WH)_{ij})^2 + \alpha\sum_{i=1}^r\|w_i\|_{rows}\|h_i\|_{columns},

    a sum that is never averaged, with norms :math:`l_2\|\cdot\|_2+l_1\|\cdot\|_1+\mathit{tv}\|D\cdot\|_1`.
    The number of pairs comes out of the problem.

    The problem is not convex and its polar is NP-hard in general, so that the gap need not close: what is
    proved is that no factorization, of any rank, has an objective below ``dual_bound_``.

    Parameters
    ----------
    alpha : float
        Regularization.
    rows : FactorNorm, optional
        Norm of a column of W, n_samples values: for a hyperspectral image whose rows are pixels,
        ``FactorNorm(l2=1.0, l1=0.02, tv=0.05, grid=(height, width), nonnegative=True)``.  Euclidean by default.
    columns : FactorNorm, optional
        Norm of a component, n_features values; for a video whose rows are frames the image is here.
    tol : float
        Relative gap to stop at.
    max_rank : int, optional
        Most pairs to keep.
    budget : float, optional
        Seconds.
    verbose : bool
        Print one line a round.
    device : str or torch.device, optional
        Where to compute.
    random_state : int, RandomState or None
        Of random starts.

    Attributes
    ----------
    components_ : ndarray, shape (rank, n_features)
        Rows h_i of norm 1 in the norm of `columns`, those of the largest penalty first.
    codes_ : ndarray, shape (n_samples, rank)
        W; ``codes_ @ components_`` is the fit, with missing entries filled in.
    certificate_, objective_, dual_bound_, gap_, rank_, history_, interrupted_
        See :class:`~theodolite.estimators.base.CertifiedEstimator`.  The dual bound is the better one of
        the residual's and of the convex relaxation's.
    n_features_in_ : int

    Notes
    -----
    ``transform`` gives each row the codes of least squared error on its observed entries, nonnegative if
    `rows` says so, and the shortest where there are several; it does not shrink, and does not look at
    neighboring rows.  ``codes_`` are those of the fit, which do.

    References
    ----------
    Haeffele and Vidal, arXiv 1708.07850.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.outer([0.0, 0.0, 3.0, 3.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    >>> model = StructuredFactorization(alpha=0.5, rows=FactorNorm(l2=1.0, tv=0.1, nonnegative=True)).fit(X)
    >>> model.rank_, model.gap_ < 1e-3
    (1, True)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        rows: FactorNorm | None = None,
        columns: FactorNorm | None = None,
        tol: float = 1e-3,
        max_rank: int | None = None,
        budget: float | None = None,
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.rows = rows
        self.columns = columns
        self.tol = tol
        self.max_rank = max_rank
        self.budget = budget
        self.verbose = verbose
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, callback: Callback | None = None) -> StructuredFactorization:
        """Fit the factors.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            NaN marks a missing entry.
        y : None
            Ignored.
        callback : function(Round) -> bool, optional
            Called after each round with what is known; returning True stops.

        Raises
        ------
        ValueError
            If X has no observed entry or infinite ones, or a parameter is out of range.
        TypeError
            If a parameter is of another type.
        """
        data = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan")
        alpha = check_number(self.alpha, "alpha", low=0.0, strict=True)
        self._check_shared()
        for name in ("rows", "columns"):
            norm = getattr(self, name)
            if norm is not None and not isinstance(norm, FactorNorm):
                raise TypeError(f"{name}: expected a FactorNorm or None, got {type(norm).__name__}")
        observed, n, m = torch.from_numpy(np.array(data)), int(data.shape[0]), int(data.shape[1])
        missing = bool(torch.isnan(observed).any())
        loss: Loss = MaskedSquaredLoss.from_dense(observed) if missing else SquaredLoss(observed)
        problem = Problem(loss, StructuredAtom((n, m), self.rows, self.columns), alpha)
        params = self._solve(problem, callback=callback).params
        atom: StructuredAtom = problem.atom  # type: ignore[assignment]
        order = torch.argsort(atom.theta(params), descending=True)
        U, V = atom.effective(params)
        length = atom.right(V).clamp(min=1e-300)[:, None]
        self.codes_ = (U * length)[order].T.contiguous().numpy()
        self.components_ = (V / length)[order].contiguous().numpy()
        self._n_features_out = len(self.components_)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the codes of rows: those of least squared error, given the components.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            NaN marks a missing entry; a row of none but missing ones gets zeros.

        Returns
        -------
        ndarray, shape (n_rows, rank)
        """
        check_is_fitted(self)
        data = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        seen, H = ~np.isnan(data), self.components_
        codes = np.zeros((len(data), len(H)))
        if not len(H):
            return codes
        if self.rows is not None and self.rows.nonnegative:
            for code, x, here in zip(codes, data, seen, strict=True):
                if here.any():
                    code[:] = nnls(H[:, here].T, x[here])[0]
            return codes
        patterns, index = np.unique(seen, axis=0, return_inverse=True)
        for k, here in enumerate(patterns):
            if here.any():
                of_pattern = index.reshape(-1) == k
                codes[of_pattern] = data[np.ix_(of_pattern, here)] @ np.linalg.pinv(H[:, here])
        return codes

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return ``X @ components_`` for codes of shape (n_rows, rank)."""
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float64, ensure_min_features=0)
        if codes.shape[1] != len(self.components_):
            raise ValueError(f"X: expected {len(self.components_)} codes a row, got {codes.shape[1]}")
        return codes @ self.components_

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the mean squared error of ``inverse_transform(transform(X))`` on the observed entries."""
        codes = self.transform(X)
        data = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        seen = ~np.isnan(data)
        if not seen.any():
            raise ValueError("X: expected at least one observed entry, got none")
        return -float(np.square((data - self.inverse_transform(codes))[seen]).mean())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
