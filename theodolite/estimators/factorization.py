"""Low-rank and robust factorizations of a matrix, each with a certificate of global optimality."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from theodolite.atoms.matrix import MatrixAtom
from theodolite.core.params import Params
from theodolite.core.problem import Problem
from theodolite.estimators.base import Callback, CertifiedEstimator, check_factor, check_scale
from theodolite.estimators.completion_inputs import read
from theodolite.estimators.fold_in import fold_in
from theodolite.losses import HuberLoss, Loss, MaskedLoss, SquaredLoss

_SVD = 2000  # up to this min(n, d) the closed form is where the solver starts
_NOISE_ROUNDS = 6
_LOOSE = 1e-2  # tolerance of the fits that the noise is estimated with


class _Factorization(ClassNamePrefixFeaturesOutMixin, TransformerMixin, CertifiedEstimator):
    """What both have in common: factors of rows, and of columns as ``components_``."""

    def _keep_factors(self, params: Params) -> None:
        U, V = params
        self.row_factors_, self.components_ = U.T.contiguous().numpy(), V.numpy()

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _product(self, factors: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        factors = np.asarray(factors, dtype=np.float64)
        if factors.ndim != 2 or factors.shape[1] != len(self.components_):
            raise ValueError(f"X: expected shape (n, {len(self.components_)}), got {factors.shape}")
        return np.asarray(factors @ self.components_)


class LowRankFactorization(_Factorization):
    r"""Factorize a matrix with the nuclear norm, and prove how far from optimal the fit can be.

    Minimizes :math:`\tfrac12\|X-\mathbf 1\mu^\top-UV^\top\|_F^2+\alpha\|UV^\top\|_*`, a sum, never an
    average, over factors of any number of columns; :math:`\mu` is zero, or the mean of each column.
    The closed form, singular values less alpha, is where the solver starts.

    Parameters
    ----------
    alpha : float
        Factor of the nuclear norm, > 0: what is taken off every singular value.
    tol : float
        Relative gap to stop at.
    max_rank : int, optional
        Most columns of U and V; the gap is still to the optimum of any rank.
    budget : float, optional
        Seconds for the solver.
    center : bool
        Whether the columns' means are subtracted first.
    verbose, device, random_state
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    Attributes
    ----------
    row_factors_ : ndarray, shape (n, rank)
        U.
    components_ : ndarray, shape (rank, d)
        V^T; U and V are balanced, with orthogonal columns of equal lengths.
    mean_ : ndarray, shape (d,)
    certificate_, objective_, dual_bound_, gap_, rank_, history_, interrupted_
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    Examples
    --------
    >>> import numpy as np
    >>> from theodolite.estimators import LowRankFactorization
    >>> model = LowRankFactorization(alpha=1.0).fit(np.diag([3.0, 2.0, 0.5]))
    >>> model.rank_, round(model.objective_, 6)
    (2, 4.125)
    """

    def __init__(
        self,
        alpha: float = 1.0,
        tol: float = 1e-4,
        max_rank: int | None = None,
        budget: float | None = None,
        center: bool = False,
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.tol = tol
        self.max_rank = max_rank
        self.budget = budget
        self.center = center
        self.verbose = verbose
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, callback: Callback | None = None) -> LowRankFactorization:
        """Fit a dense matrix without missing entries, shape (n, d); arguments as in `MatrixCompletion.fit`."""
        alpha = check_factor(self.alpha, "alpha")
        X = validate_data(self, X, dtype=np.float64)
        check_scale(X, "X")
        self.mean_ = X.mean(0) if self.center else np.zeros(X.shape[1])
        Y = torch.from_numpy(np.ascontiguousarray(X - self.mean_))
        problem = Problem(SquaredLoss(Y), MatrixAtom((Y.shape[0], Y.shape[1])), alpha)
        start = _thresholded(Y, alpha) if min(Y.shape) <= _SVD else None
        self._keep_factors(self._solve(problem, start, callback=callback).params)
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        r"""Return factors of rows, the ridge regression :math:`(X-\mu)V(V^\top V+\alpha I)^{-1}`.

        At the optimum U is that of the training data.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        gram = self.components_ @ self.components_.T + self.alpha * np.eye(self.rank_)
        return np.linalg.solve(gram, self.components_ @ (X - self.mean_).T).T

    def inverse_transform(self, X: Any) -> NDArray[np.float64]:
        """Return the matrix of given factors of rows."""
        return self._product(X) + self.mean_


def _thresholded(Y: torch.Tensor, alpha: float) -> Params:
    """Return the optimum in closed form: singular values less alpha."""
    U, s, Vt = torch.linalg.svd(Y, full_matrices=False)
    rank = int((s > alpha).sum())
    root = (s[:rank] - alpha).sqrt()[:, None]
    return U[:, :rank].T * root, Vt[:rank] * root


class RobustPCA(_Factorization):
    r"""Split a matrix into one of low rank, a sparse one and noise, and prove how far from optimal that is.

    Minimizes, over the observed entries, a sum, never an average,

    .. math:: \tfrac12\|X-L-S\|_F^2+\alpha\|L\|_*+\mu\|S\|_1 .

    For a given L the best S is :math:`s=\operatorname{sign}(x-l)\max(|x-l|-\mu,0)`, entry by entry, and
    what it leaves is :math:`\tfrac12(x-l)^2` where :math:`|x-l|\le\mu` (S is zero) and
    :math:`\tfrac12\mu^2+\mu(|x-l|-\mu)=\mu|x-l|-\tfrac12\mu^2` beyond: Huber's loss with
    :math:`\delta=\mu`.  Hence the problem is the Huber loss of L plus :math:`\alpha\|L\|_*`, exactly,
    with the same value, and its certificate is that of the joint problem.

    Parameters
    ----------
    alpha : float, optional
        Factor of the nuclear norm.  By default :math:`\mu\sqrt{\rho\max(n,d)}`, or if mu is not given
        either :math:`\sigma\sqrt\rho(\sqrt n+\sqrt d)`, the size of the largest singular value of the
        noise alone; :math:`\rho` is the share of observed entries.
    mu : float, optional
        Factor of the l1 norm, by default :math:`\alpha/\sqrt{\rho\max(n,d)}`.
    noise : float, optional
        Standard deviation sigma of the dense noise, used if neither alpha nor mu is given.  By default
        1.4826 times the median size of a residual, of fits repeated until that changes little.
    tol : float
        Relative gap to stop at.
    max_rank : int, optional
        Most columns of the factors of L; the gap is still to the optimum of any rank.
    budget : float, optional
        Seconds for the solver, and for the fits that estimate the noise.
    verbose, device, random_state
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    Attributes
    ----------
    low_rank_, sparse_ : ndarray, shape (n, d)
        L, also where entries are missing, and S, zero there.
    row_factors_, components_ : ndarray, shapes (n, rank) and (rank, d)
        Balanced factors of L.
    alpha_, mu_, noise_ : float
        As used; ``noise_`` is NaN where it was not needed.
    certificate_, objective_, dual_bound_, gap_, rank_, history_, interrupted_
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    References
    ----------
    Candes, Li, Ma and Wright, Robust principal component analysis?, J. ACM 58 (2011), for
    mu / alpha; Zhou, Li, Wright, Candes and Ma, Stable principal component pursuit, ISIT 2010.
    """

    def __init__(
        self,
        alpha: float | None = None,
        mu: float | None = None,
        noise: float | None = None,
        tol: float = 1e-4,
        max_rank: int | None = None,
        budget: float | None = None,
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
        self.mu = mu
        self.noise = noise
        self.tol = tol
        self.max_rank = max_rank
        self.budget = budget
        self.verbose = verbose
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, callback: Callback | None = None) -> RobustPCA:
        """Fit a dense matrix, shape (n, d), with NaN for missing entries; arguments as in `MatrixCompletion.fit`."""
        self._check_shared()
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan")
        seen = ~np.isnan(X)
        if not seen.any():
            raise ValueError(f"X: expected at least one observed entry, got none in shape {X.shape}")
        check_scale(X, "X")
        start, interrupted = self._choose(X, seen)
        problem = _robust(X, seen, self.alpha_, self.mu_)
        # an interrupt while the noise was estimated leaves what there is, certified
        solution = self._solve(problem, start, callback=(lambda _: True) if interrupted else callback)
        self.interrupted_ = interrupted or solution.interrupted
        self._keep_factors(solution.params)
        self.low_rank_ = self.row_factors_ @ self.components_
        rest = np.where(seen, X - self.low_rank_, 0.0)
        self.sparse_ = rest - np.clip(rest, -self.mu_, self.mu_)
        return self

    def _choose(self, X: NDArray[np.float64], seen: NDArray[np.bool_]) -> tuple[Params | None, bool]:
        """Set alpha_, mu_ and noise_.

        Returns factors to start from, if the noise had to be estimated, and whether that was interrupted.
        """
        share, (n, d) = float(seen.mean()), X.shape
        ratio = float(np.sqrt(share * max(n, d)))
        given = {
            name: None if value is None else check_factor(value, name)
            for name, value in (("alpha", self.alpha), ("mu", self.mu), ("noise", self.noise))
        }
        alpha, mu, noise = given["alpha"], given["mu"], given["noise"]
        start, interrupted, self.noise_ = None, False, float("nan")
        if alpha is None and mu is None:
            size = float(np.sqrt(share) * (np.sqrt(n) + np.sqrt(d)))
            if noise is None:
                noise, start, interrupted = self._estimate(X, seen, size, ratio)
            self.noise_, alpha = noise, noise * size
        self.alpha_ = mu * ratio if alpha is None and mu is not None else float(alpha or 0.0)
        self.mu_ = self.alpha_ / ratio if mu is None else mu
        return start, interrupted

    def _estimate(
        self, X: NDArray[np.float64], seen: NDArray[np.bool_], size: float, ratio: float
    ) -> tuple[float, Params, bool]:
        """Return the noise: the median size of residuals, of loose fits, until it settles; their factors."""
        observed = X[seen]
        least = 1e-3 * float(np.sqrt(np.mean(observed**2))) or 1.0
        noise = max(1.4826 * float(np.median(np.abs(observed - np.median(observed)))), least)
        params = MatrixAtom(X.shape).init(0)
        for _ in range(_NOISE_ROUNDS):
            problem = _robust(X, seen, noise * size, noise * size / ratio)
            solution = problem.solve(_LOOSE, self.budget, self.device, init=params)
            params, last = tuple(p.cpu() for p in solution.params), noise
            rest = (X - (params[0].T @ params[1]).numpy())[seen]
            noise = min(max(1.4826 * float(np.median(np.abs(rest))), least), last)
            if solution.interrupted or noise > 0.8 * last:
                break
        return noise, params, solution.interrupted

    def transform(self, X: Any) -> NDArray[np.float64]:
        r"""Return factors of new rows, given the components: the rows of the joint problem.

        Row u minimizes Huber's loss of the observed entries plus :math:`\tfrac\alpha2\|u\|^2`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        entries = read(X, columns=(), allow_empty=True)
        if not len(entries.values):
            return np.zeros((len(X), self.rank_))
        starts = np.searchsorted(entries.rows, np.arange(len(X) + 1))
        return fold_in(
            HuberLoss(entries.values, self.mu_),
            starts,
            entries.cols,
            np.zeros(len(entries.values)),
            np.ascontiguousarray(self.components_.T),
            np.full(self.rank_, self.alpha_),
        )

    def inverse_transform(self, X: Any) -> NDArray[np.float64]:
        """Return the low-rank matrix of given factors of rows."""
        return self._product(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _robust(X: NDArray[np.float64], seen: NDArray[np.bool_], alpha: float, mu: float) -> Problem:
    """Return the joint problem, its sparse part minimized over."""
    shape = (X.shape[0], X.shape[1])
    loss: Loss
    if seen.all():
        loss = HuberLoss(X, mu)
    else:
        rows, cols = np.nonzero(seen)
        loss = MaskedLoss(HuberLoss(X[rows, cols], mu), rows, cols, shape)
    return Problem(loss, MatrixAtom(shape), alpha)
