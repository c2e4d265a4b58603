"""Matrix completion with a certificate of global optimality."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import torch

from theodolite.estimators.base import Callback, check_factor
from theodolite.estimators.completion_model import CompletionModel


class MatrixCompletion(CompletionModel):
    r"""Complete a matrix by one of low rank, and prove how far from optimal the fit can be.

    Minimizes, over matrices Z of any rank (and biases, if there are any),

    .. math:: \sum_{(i,j)\ \text{observed}} f(r_{ij};\ \mu + b_i + c_j + Z_{ij}) + \alpha\|Z\|_*
       + \tfrac\beta2\left(\|b\|^2+\|c\|^2\right),

    a sum, never an average.  f is :math:`\tfrac12(r-z)^2` for the squared loss, and
    :math:`\|Z\|_*` the nuclear norm, the least :math:`\tfrac12(\|U\|_F^2+\|V\|_F^2)` over
    :math:`Z=UV^\top`.  ``certificate_`` bounds how much better *any* Z and biases could be.

    Parameters
    ----------
    alpha : float
        Factor of the nuclear norm, > 0.
    tol : float
        Relative gap ``(objective - dual_bound) / |objective|`` to stop at.
    max_rank : int, optional
        Most columns of U and V.  If the optimum has more, the largest are kept and descended from
        at that rank; the gap is then still to the optimum of any rank.
    budget : float, optional
        Seconds for the solver.
    bias : {False, "penalized", "centered"}
        - False: none, and :math:`\mu=0`.
        - "penalized": :math:`\mu` is the mean (the log of the mean for counts, 0 for signs), and b and
          c are part of the convex problem, with :math:`\beta` = ``bias_alpha``.
        - "centered": :math:`\mu`, then c as the means of the columns' remainders, then b as those of
          the rows', each shrunken as if ``bias_alpha`` zeros were among them, are subtracted first,
          and the certificate is of the problem that remains.  Squared and Huber loss only.
    bias_alpha : float
        :math:`\beta`, > 0 for penalized biases, or the shrinkage, >= 0.
    loss : {"squared", "huber", "logistic", "poisson"}
        "huber": :math:`f=\tfrac12(r-z)^2` up to a distance of ``delta``, linear beyond.
        "logistic": :math:`\ln(1+e^{-rz})` for entries -1 and 1, or 0 and 1.  "poisson":
        :math:`e^z-rz` for counts.
    delta : float
        Of the Huber loss.
    user, item, rating : hashable
        Names of the columns of a table: rows' ids, columns' ids, entries.
    duplicates : {"error", "mean", "last"}
        What an entry given twice means.
    warm_start : bool
        Whether a further fit starts from the last one.
    verbose : bool
        Print one line a round.
    device : str or torch.device, optional
        Where to compute.
    random_state : int, RandomState or None
        Of random starts; None is 0.

    Attributes
    ----------
    certificate_, objective_, dual_bound_, gap_, history_, interrupted_
        See :class:`~theodolite.estimators.CertifiedEstimator`.
    rank_ : int
        Columns of the factors.
    row_factors_, col_factors_ : ndarray, shapes (n, rank) and (m, rank)
        U and V, balanced: orthogonal columns, of equal lengths in both.
    mean_ : float
    row_bias_, col_bias_ : ndarray, shapes (n,) and (m,)
        :math:`\mu`, b and c, zero without biases.
    row_ids_, col_ids_ : ndarray or None
        Ids of rows and columns of a table, sorted where they can be.
    n_features_in_ : int
        Number of columns m.

    Examples
    --------
    >>> import numpy as np
    >>> from theodolite.estimators import MatrixCompletion
    >>> nan = np.nan
    >>> R = np.array([[4.0, 2.0, nan, 6.0], [2.0, nan, 1.0, 3.0], [nan, 4.0, 4.0, 12.0]])
    >>> model = MatrixCompletion(alpha=0.1, tol=1e-6).fit(R)
    >>> model.certificate_.verdict, model.gap_ <= 1e-6
    ('closed', True)
    >>> model.predict([0, 2], [2, 0]).round(1)
    array([2. , 7.4])
    """

    def __init__(
        self,
        alpha: float = 1.0,
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
        warm_start: bool = False,
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
    ) -> None:
        self.alpha = alpha
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
        self.warm_start = warm_start
        self.verbose = verbose
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        init: CompletionModel | None = None,
        callback: Callback | None = None,
    ) -> MatrixCompletion:
        """Fit the observed entries; Ctrl-C ends it with the best so far and a valid certificate.

        Parameters
        ----------
        X : sparse matrix or array, array-like with NaN, or table; shape (n, m)
            Stored entries of a sparse matrix are observed, zeros too.  In an array NaN is missing.
            A table (a frame of pandas, say) has a row for each entry and the columns ``user``,
            ``item`` and ``rating``; its ids may be any hashables.
        y : None
            Ignored.
        init : MatrixCompletion, optional
            A fitted model to start from: rows and columns are matched by their ids.
        callback : function(Round) -> bool, optional
            Called after each round with what is known; returning True stops.

        Returns
        -------
        MatrixCompletion

        Raises
        ------
        ValueError
            If an entry is not finite or given twice, none is observed, or a parameter is out of range.
        """
        self._check()
        alpha = check_factor(self.alpha, "alpha")
        if init is None and self.warm_start and self.__sklearn_is_fitted__():
            init = self
        if init is not None and not (isinstance(init, CompletionModel) and init.__sklearn_is_fitted__()):
            raise TypeError(f"init: expected a fitted MatrixCompletion, got {init!r}")
        entries = self._entries(X, reset=True)
        start = None if init is None else init._params_for(entries)
        self.alpha_ = alpha
        self._fit_entries(entries, start, callback)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit, and return the factors of the rows (see :meth:`transform`); arguments as in :meth:`fit`."""
        return self.fit(X, y, **fit_params)._own_factors()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MatrixCompletion:
        """Return a saved model, fitted; ``fit(X, init=model)`` goes on where it stopped.

        The certificate is that of the file: :meth:`certify` proves it anew, given the data.

        Raises
        ------
        ValueError
            If the file is no saved model, or its parts do not fit together.
        """
        model = cls()
        model._restore(path)
        return model
