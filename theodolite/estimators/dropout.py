"""The global optimum of matrix factorization, or of a linear network, trained with dropout: one SVD."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from theodolite.analysis.dropout_certificate import RANK_TOLERANCE, certify_dropout
from theodolite.analysis.equalization import equalized_factors
from theodolite.analysis.squared_norms import squared_nuclear_prox
from theodolite.estimators.base import check_integer, check_number, check_scale
from theodolite.nn.dropout import kappa, theta_for_width


def _takes_inputs(model: DropoutFactorization) -> bool:
    if not hasattr(model, "input_weights_"):
        raise AttributeError("predict: expected a model that was fitted with inputs, got one without")
    return True


class DropoutFactorization(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Factorize a matrix as training with dropout of its hidden units would at best, and prove it.

    Minimizes the expected squared error, a sum, never an average, over factors of `width` columns,

    .. math:: \mathbb E\,\|X-\tfrac1\theta H\operatorname{diag}(\xi)C\|_F^2
        =\|X-HC\|_F^2+\kappa\sum_k\|h_k\|^2\|c_k\|^2,\qquad\kappa=\frac{1-\theta}\theta=\frac p{1-p},

    where each unit is kept with probability :math:`\theta=1-p`.  With `inputs` Z, :math:`H=ZV`: a linear
    network with dropout of its hidden layer.  The optimum is :math:`\|X-M\|_F^2+\frac\kappa r\|M\|_*^2` at its best,
    M of rank at most r: singular values less a threshold that depends on the data; all units are equally strong there.

    Parameters
    ----------
    width : int, optional
        Number r of hidden units; by default the smaller side of the matrix (of inputs and outputs).
    p : float, optional
        Probability of dropping a unit, in [0, 1), as in ``torch.nn.Dropout``; 0.5 if `theta_bar` is not given.
    theta_bar : float, optional
        Retention in (0, 1], in place of `p`.
    adapt_width : bool
        Whether `theta_bar` is the retention at width one, from which that at `width` follows: then the
        penalty of M is :math:`(1-\bar\theta)/\bar\theta\,\|M\|_*^2` at every width.  Otherwise it is the
        retention at every width, and a wider layer is regularized less.
    center : bool
        Whether the columns' means are subtracted first, of the matrix and of the inputs: a bias of the
        outputs, which is not dropped.

    Attributes
    ----------
    row_factors_ : ndarray, shape (n, width)
        H, at the optimum.
    components_ : ndarray, shape (width, d)
        C; :math:`\|h_k\|=\|c_k\|`, the same for all k.
    input_weights_ : ndarray, shape (n_inputs, width)
        V, of the fits with inputs.
    mean_, input_mean_ : ndarray
        What was subtracted.
    width_, rank_ : int
        Hidden units, and the rank of M.
    p_ : float
        Probability of dropping a unit at this width.
    threshold_ : float
        What was taken off the singular values.
    certificate_ : DropoutCertificate
        What is proved, rounding enclosed.
    objective_, dual_bound_, gap_ : float
        Attained objective, proved lower bound of every objective at this width, and their relative gap.

    Notes
    -----
    With missing entries the penalty is another one, and there is no closed form: NaN is refused.

    References
    ----------
    Cavazza, Morerio, Haeffele, Lane, Murino and Vidal, arXiv 1710.05092; Mianjy, Arora and Vidal,
    arXiv 1806.09777.

    Examples
    --------
    >>> import numpy as np
    >>> from theodolite.estimators import DropoutFactorization
    >>> model = DropoutFactorization(width=4, p=2 / 3).fit(np.diag([3.0, 2.0, 1.0]))
    >>> model.rank_, round(model.objective_, 6), round(model.threshold_, 6)
    (2, 7.25, 1.25)
    """

    def __init__(
        self,
        width: int | None = None,
        p: float | None = None,
        theta_bar: float | None = None,
        adapt_width: bool = True,
        center: bool = False,
    ) -> None:
        self.width = width
        self.p = p
        self.theta_bar = theta_bar
        self.adapt_width = adapt_width
        self.center = center

    def fit(self, X: Any, y: Any = None, *, inputs: Any = None) -> DropoutFactorization:
        """Compute the optimum.

        Parameters
        ----------
        X : array, shape (n, d)
            The matrix that is factorized, without missing entries; with inputs, their targets.
        y
            Ignored.
        inputs : array, shape (n, n_inputs), optional
            Of the linear network; X itself for an autoencoder.

        Raises
        ------
        ValueError
            If something is missing, not finite or out of range.
        """
        X = validate_data(self, X, dtype=np.float64)
        check_scale(X, "X")
        Z = None if inputs is None else check_array(inputs, dtype=np.float64, input_name="inputs")
        if Z is not None:
            check_scale(Z, "inputs")
            if len(Z) != len(X):
                raise ValueError(f"inputs: expected {len(X)} rows, one for each of X, got {len(Z)}")
        self.width_ = min(X.shape if Z is None else (X.shape[1], Z.shape[1]))
        if self.width is not None:
            self.width_ = check_integer(self.width, "width", low=1)
        self.p_ = self._rate()
        self.mean_ = X.mean(0) if self.center else np.zeros(X.shape[1])
        Y = torch.from_numpy(np.ascontiguousarray((X - self.mean_).T))
        if hasattr(self, "input_weights_"):  # of an earlier fit
            del self.input_weights_
        if Z is None:
            hidden, certificate = self._factorize(Y, None)
        else:
            self.input_mean_ = Z.mean(0) if self.center else np.zeros(Z.shape[1])
            W = torch.from_numpy(np.ascontiguousarray((Z - self.input_mean_).T))
            hidden, certificate = self._factorize(Y, W)
        self.row_factors_ = hidden.numpy()
        self.certificate_ = certificate
        self.objective_, self.dual_bound_ = certificate.objective, certificate.dual_bound
        self.gap_ = certificate.gap
        return self

    def _rate(self) -> float:
        """Return the probability of dropping a unit at this width."""
        if self.theta_bar is None:
            p = 0.5 if self.p is None else check_number(self.p, "p", low=0.0)
            kappa(p)
            return p
        if self.p is not None:
            raise ValueError(f"p, theta_bar: expected at most one of them, got {self.p} and {self.theta_bar}")
        theta = check_number(self.theta_bar, "theta_bar", low=0.0)
        return 1.0 - theta_for_width(theta, self.width_ if self.adapt_width else 1)

    def _factorize(self, Y: torch.Tensor, Z: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        """Set the factors of Y (d, n), given inputs (n_inputs, n); return H and the certificate."""
        parts = None if Z is None else _decomposed(Z)
        inside = Y if parts is None else Y @ parts[2].T
        solution = squared_nuclear_prox(inside, kappa(self.p_) / self.width_, self.width_)
        self.rank_, self.threshold_ = solution.rank, solution.threshold
        U, H = equalized_factors(solution, self.width_)
        self.components_ = U.T.contiguous().numpy()
        V = H
        if Z is not None and parts is not None:
            V = (parts[0] / parts[1]) @ H
            self.input_weights_ = V.numpy()
            H = Z.T @ V
        return H, certify_dropout(U, V, Y, self.p_, inputs=Z)

    def transform(self, X: Any) -> NDArray[np.float64]:
        r"""Return the best hidden units of given rows: :math:`\min_h\|x-hC\|^2+\kappa\sum_kh_k^2\|c_k\|^2`.

        For the training data of a fit without inputs they are `row_factors_`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        gram = self.components_ @ self.components_.T
        gram[np.diag_indices_from(gram)] *= 1.0 + kappa(self.p_)
        right = self.components_ @ (X - self.mean_).T
        return np.linalg.lstsq(gram, right, rcond=None)[0].T

    def inverse_transform(self, X: Any) -> NDArray[np.float64]:
        """Return the rows that given hidden units make, all of them kept."""
        check_is_fitted(self)
        X = check_array(X, dtype=np.float64, input_name="X")
        if X.shape[1] != self.width_:
            raise ValueError(f"X: expected shape (n, {self.width_}), got {X.shape}")
        return np.asarray(X @ self.components_ + self.mean_)

    @available_if(_takes_inputs)
    def predict(self, inputs: Any) -> NDArray[np.float64]:
        """Return what a network that was fitted with inputs gives for others, all units kept."""
        Z = check_array(inputs, dtype=np.float64, input_name="inputs")
        if Z.shape[1] != len(self.input_weights_):
            raise ValueError(f"inputs: expected {len(self.input_weights_)} columns, got {Z.shape[1]}")
        return np.asarray((Z - self.input_mean_) @ self.input_weights_ @ self.components_ + self.mean_)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def _decomposed(Z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the singular value decomposition of inputs (n_inputs, n), without the directions of rounding."""
    left, sizes, right = torch.linalg.svd(Z, full_matrices=False)
    rank = int((sizes > RANK_TOLERANCE * sizes[:1]).sum())
    return left[:, :rank], sizes[:rank], right[:rank]
