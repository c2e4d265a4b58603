"""Two-layer, convolutional and other parallel networks that certify how far from optimal their fit can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn

from theodolite.estimators.base import (
    Callback,
    check_choice,
    check_scale,
)
from theodolite.estimators.net_targets import of_classes, of_numbers
from theodolite.estimators.parallel_base import ParallelNet
from theodolite.losses import CrossEntropyLoss, SampleLoss


class ParallelNetRegressor(RegressorMixin, ParallelNet):
    r"""Regression by a sum of subnetworks, with a proved bound on how much better any such network could be.

    Minimizes, over any number r of subnetworks,

    .. math:: \frac1n\sum_{i=1}^n\tfrac12\|y_i-f(x_i)\|^2+\alpha\sum_{j=1}^r\theta(W_j),
              \qquad f(x)=\sum_{j=1}^r\phi(x;W_j),

    theta being the product of the Euclidean (Frobenius) norms of a subnetwork's layers.  For two layers this
    has the same minimum as weight decay, :math:`\frac\alpha2` times the sum of all squared weights.  Nothing is
    standardized or centered: put a `StandardScaler` in front where the features' units differ.

    Parameters
    ----------
    subnetwork : {"relu", "leaky_relu", "gated", "linear", "conv"}, nn.Module or function() -> nn.Module
        A hidden unit with its output weights: relu(w . x) u, leaky or not; a linear unit behind a fixed random
        half-space; a linear unit (theta then sums to the nuclear norm); a filter with ReLU, average pooling and
        output weights for each pooling cell (:class:`theodolite.atoms.ConvReLUAtom`).  Or any module that is
        positively homogeneous in its parameters (:class:`theodolite.atoms.ModuleAtom`), whose copies run side by side.
    alpha : float or "cv"
        Factor of the regularizer, > 0.  "cv" chooses it by cross-validation, of the mean loss of held-out
        samples, along a path from the largest to the smallest, each fit started from the last and certified;
        the path ends after two alphas that are no better.
    tol : float
        Relative gap to stop at.  ReLU units in more than about five dimensions seldom get there: the gap that
        is proved is always reported.
    budget : float, optional
        Seconds for each fit.
    bias : bool, optional
        Whether hidden units have a bias; it counts as one more weight in theta.  By default all but filters have
        one; modules bring their own.
    fit_intercept : bool
        Whether the outputs have a bias b; its decay :math:`\frac\alpha2\|b\|^2` is part of the objective.
    negative_slope : float
        Of "leaky_relu", in [-1, 1].
    n_gates : int
        Number of random half-spaces, for "gated".
    image_shape : tuple of int, optional
        For "conv", if X is flat: (height, width) or (channels, height, width).
    kernel_size, stride, pool, basis, n_components
        For "conv", as in :class:`theodolite.atoms.ConvReLUAtom`; the basis "pca" is that of all images.
    alphas : int or sequence of float
        The path of "cv", or the number of its values: evenly spaced in the logarithm below the smallest alpha
        for which the zero network is optimal, down to 1 % of it.
    cv : int or splitter
        Number of folds, drawn by ``random_state``, or a scikit-learn splitter.
    verbose, device, random_state
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    Attributes
    ----------
    n_units_ : int
        Number r of subnetworks.
    alpha_ : float
        As used.
    module_ : nn.Module
        The network, in float64.
    input_shape_ : tuple of int
        Shape of a sample.
    cv_results_ : dict of ndarray
        For alpha="cv": "alpha", "mean_test_loss" and "std_test_loss" of shape (n_tried,); "test_loss", "gap" and
        "units" of shape (n_tried, n_folds).
    best_index_ : int
        Place of ``alpha_`` there.
    certificate_, objective_, dual_bound_, gap_, rank_, history_, interrupted_
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    References
    ----------
    Haeffele and Vidal, arXiv 1506.07540; Pilanci and Ergen, ICML 2020 (arXiv 2002.10553).

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(60, 2))
    >>> net = ParallelNetRegressor(alpha=0.01).fit(X, np.abs(X[:, 0]) - X[:, 1])
    >>> net.gap_ <= 0.01
    True
    """

    def fit(self, X: Any, y: Any, *, callback: Callback | None = None) -> ParallelNetRegressor:
        """Fit the network; Ctrl-C ends it with the best so far and a valid certificate.

        Parameters
        ----------
        X : array-like, shape (n, d), or (n, ...) for images and modules
        y : array-like, shape (n,) or (n, k)
        callback : function(Round) -> bool, optional
            Called after each round of each fit; returning True stops it.
        """
        self._check()
        X, y = self._validated(X, y, multi_output=True, y_numeric=True)
        check_scale(X, "X")
        check_scale(y, "y")
        self._one_column = y.ndim == 1
        self._fit(torch.tensor(X), of_numbers(y), callback)
        return self

    @classmethod
    def from_torch(
        cls,
        model: nn.Module,
        X: Any,
        y: Any,
        weight_decay: float,
        *,
        tol: float = 1e-2,
        budget: float | None = None,
        random_state: Any = None,
    ) -> ParallelNetRegressor:
        r"""Certify a network that was trained elsewhere: how much better any network of its family could be.

        Its training objective, of which ``objective_``, ``dual_bound_``, ``gap_`` and ``certificate_`` are, is
        `torch.nn.MSELoss` (the mean over samples and outputs, without the half) plus
        :math:`\frac w2\|\text{all trained parameters}\|^2`, the coupled decay of `torch.optim.SGD`.  With k outputs
        that is 2/k times this estimator's own objective, with alpha = w k / 2.

        Parameters
        ----------
        model : nn.Module
            A linear layer, the identity, (leaky) ReLU or fixed gates, and a linear layer; a convolution, ReLU,
            average pooling and a linear layer; or a chain of linear layers.
            Biases of both layers are part of the decay.  It is copied, in evaluation mode.
        X : array-like, shape (n, ...)
            The training inputs, as the model takes them.
        y : array-like, shape (n,) or (n, k)
        weight_decay : float
            w > 0.
        tol, budget, random_state
            As for a fit; nothing is trained.

        Returns
        -------
        ParallelNetRegressor
            Fitted: it predicts as the model does.  ``network_gap_`` says what balancing the two layers of each unit,
            and one more unit, take off the objective.

        Raises
        ------
        ValueError
            If the network is of another family: one sentence that says why; or an argument is out of range.
        """
        model_ = cls(tol=tol, budget=budget, random_state=random_state)
        values = np.asarray(y, dtype=np.float64)
        targets = of_numbers(values)

        def loss_of(k: int) -> tuple[SampleLoss, None]:
            if targets.n_outputs != k:
                raise ValueError(
                    f"y: expected {k} columns, as many as the model has outputs, got {targets.n_outputs}"
                )
            return targets.loss().rescaled(2.0 / (len(targets) * k)), None

        model_._one_column = values.ndim == 1
        model_._adopt(model, X, loss_of, weight_decay, lambda k: 0.5 * k)
        return model_

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return predictions in the shape that y had, (n,) or (n, k)."""
        outputs = self._outputs(X).numpy()
        return outputs[:, 0] if self._one_column else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class ParallelNetClassifier(ClassifierMixin, ParallelNet):
    r"""Classification by a sum of subnetworks, with a proved bound on how much better any such network could be.

    Minimizes the mean loss plus :math:`\alpha\sum_j\theta(W_j)` over any number of subnetworks, as
    :class:`ParallelNetRegressor` does.  The loss of a sample is

    - for "log_loss" and two classes :math:`\ln(1+e^{-yf(x)})`, y = -1 or 1, f of one output; for more classes
      the cross-entropy of the softmax of as many outputs;
    - for "squared_error" :math:`\tfrac12\|y-f(x)\|^2`, y = -1 or 1 for two classes and one-hot less the
      frequencies of the classes for more.

    Parameters
    ----------
    subnetwork, alpha, tol, budget
        See :class:`ParallelNetRegressor`.
    loss : {"log_loss", "squared_error"}
    bias, fit_intercept, negative_slope, n_gates, image_shape, kernel_size, stride, pool, basis, n_components, alphas, cv
        See :class:`ParallelNetRegressor`; folds keep the frequencies of the classes.
    verbose, device, random_state
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    n_units_, alpha_, module_, input_shape_, cv_results_, best_index_
        See :class:`ParallelNetRegressor`.
    certificate_, objective_, dual_bound_, gap_, rank_, history_, interrupted_
        See :class:`~theodolite.estimators.CertifiedEstimator`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(80, 2))
    >>> net = ParallelNetClassifier(alpha=0.02).fit(X, X[:, 0] * X[:, 1] > 0)
    >>> net.gap_ <= 0.01, net.score(X, X[:, 0] * X[:, 1] > 0) > 0.9
    (True, True)
    """

    def __init__(
        self,
        subnetwork: str | nn.Module | Callable[[], nn.Module] = "relu",
        alpha: float | str = 1e-3,
        tol: float = 1e-2,
        budget: float | None = None,
        loss: str = "log_loss",
        bias: bool | None = None,
        fit_intercept: bool = False,
        negative_slope: float = 0.01,
        n_gates: int = 50,
        image_shape: tuple[int, ...] | None = None,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        pool: int | tuple[int, int] = 2,
        basis: Any = None,
        n_components: int = 5,
        alphas: int | Sequence[float] = 10,
        cv: Any = 5,
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            subnetwork=subnetwork,
            alpha=alpha,
            tol=tol,
            budget=budget,
            bias=bias,
            fit_intercept=fit_intercept,
            negative_slope=negative_slope,
            n_gates=n_gates,
            image_shape=image_shape,
            kernel_size=kernel_size,
            stride=stride,
            pool=pool,
            basis=basis,
            n_components=n_components,
            alphas=alphas,
            cv=cv,
            verbose=verbose,
            device=device,
            random_state=random_state,
        )
        self.loss = loss

    def fit(self, X: Any, y: Any, *, callback: Callback | None = None) -> ParallelNetClassifier:
        """Fit the network; Ctrl-C ends it with the best so far and a valid certificate.

        Parameters
        ----------
        X : array-like, shape (n, d), or (n, ...) for images and modules
        y : array-like, shape (n,)
            Labels of at least two classes.
        callback : function(Round) -> bool, optional
            Called after each round of each fit; returning True stops it.
        """
        self._check()
        check_choice(self.loss, "loss", ("log_loss", "squared_error"))
        X, y = self._validated(X, y)
        check_classification_targets(y)
        check_scale(X, "X")
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y: expected labels of at least two classes, got one class: {self.classes_.tolist()[0]!r}"
            )
        targets = of_classes(numbers, len(self.classes_), self.loss)
        self._fit(torch.tensor(X), targets, callback)
        return self

    @classmethod
    def from_torch(
        cls,
        model: nn.Module,
        X: Any,
        y: Any,
        weight_decay: float,
        *,
        tol: float = 1e-2,
        budget: float | None = None,
        random_state: Any = None,
    ) -> ParallelNetClassifier:
        r"""Certify a network that was trained elsewhere: how much better any network of its family could be.

        Its training objective, of which ``objective_``, ``dual_bound_``, ``gap_`` and ``certificate_`` are, is the
        mean cross-entropy of its outputs (`torch.nn.CrossEntropyLoss`; for one output `torch.nn.BCEWithLogitsLoss`)
        plus :math:`\frac w2\|\text{all trained parameters}\|^2`, the coupled decay of `torch.optim.SGD`.

        Parameters
        ----------
        model, X, weight_decay, tol, budget, random_state
            See :meth:`ParallelNetRegressor.from_torch`.
        y : array-like of int, shape (n,)
            Class numbers.

        Returns
        -------
        ParallelNetClassifier
            Fitted: it predicts as the model does.
        """
        model_ = cls(tol=tol, budget=budget, random_state=random_state)
        numbers = np.asarray(y)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iub":
            raise ValueError(
                f"y: expected class numbers of shape (n,), got {numbers.dtype} of shape {numbers.shape}"
            )

        def loss_of(k: int) -> tuple[SampleLoss, Tensor | None]:
            classes = max(k, 2)
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
                raise ValueError(
                    f"y: expected class numbers 0 to {classes - 1}, got {numbers.min()} to {numbers.max()}"
                )
            model_.classes_ = np.arange(classes)
            if k > 1:
                return CrossEntropyLoss(numbers.astype(np.int64), k, 1.0 / len(numbers)), None
            targets = of_classes(numbers.astype(np.int64), 2, "log_loss")
            return targets.loss(), targets.mix

        model_._adopt(model, X, loss_of, weight_decay, lambda k: 1.0)
        return model_

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return scores, (n,) for two classes, where a positive one is the second's, otherwise (n, classes)."""
        outputs = self._outputs(X).numpy()
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most likely labels, shape (n,)."""
        best = self._outputs(X).argmax(1).numpy()
        found: NDArray[Any] = self.classes_[best]
        return found

    @available_if(lambda self: self.loss == "log_loss" or _refuse_probabilities())
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return probabilities, shape (n, classes); for "log_loss" only."""
        return torch.softmax(self._outputs(X), 1).numpy()


def _refuse_probabilities() -> bool:
    raise AttributeError(
        "predict_proba: expected loss='log_loss'; scores of squared errors are no probabilities"
    )
