r"""Convex losses of the predictions, with their duals.

A certificate of optimality needs from a loss :math:`\ell(Z)` its value, its gradient
and its *dual value* :math:`d(Q) = -\ell^*(-Q)`: for every ``Z`` and every ``Q``

.. math:: \ell(Z) \ge d(Q) - \langle Q, Z\rangle \qquad\text{(Fenchel-Young)},

with equality at :math:`Q = -\nabla\ell(Z)`.  A dual point is usually sought on the ray
:math:`Q = tR`, :math:`R = -\nabla\ell(Z)`.  Everything is computed in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

# a point this close to the domain of the dual counts as its nearest point there
_DOMAIN_TOLERANCE = 1e-11


def accurate_sum(matrix: Tensor) -> float:
    """Return the sum of an (n, k) matrix, whose rounding error grows with k but not with n."""
    return math.fsum(matrix.sum(1).tolist())


class Loss(ABC):
    """A convex, twice differentiable loss that is a sum over rows.

    A subclass sets ``shape`` and ``scale`` and writes the abstract methods; the rest follows.

    Attributes
    ----------
    shape : tuple of int
        Shape (n, k) of the predictions.
    scale : float
        Factor in front of the sum over rows: 1/n for a mean.
    """

    shape: tuple[int, int]
    scale: float

    @abstractmethod
    def value(self, Z: Tensor) -> float:
        """Return the loss of predictions of shape (n, k)."""

    @abstractmethod
    def gradient(self, Z: Tensor) -> Tensor:
        """Return the gradient with respect to the predictions, shape (n, k), float64."""

    @abstractmethod
    def dual(self, Q: Tensor) -> float:
        """Return -l*(-Q) for Q of shape (n, k); -inf outside its domain."""

    @abstractmethod
    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return the ends of the interval of t >= 0 on which ``t * R`` is used as a dual point."""

    @abstractmethod
    def curvature(self, Z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the Hessian at Z as a function of (n, k), and its mean diagonal in each row, shape (n,)."""

    @abstractmethod
    def center(self, Q: Tensor) -> Tensor:
        """Return a point of the dual's domain near Q whose columns sum to zero (for a free bias)."""

    @abstractmethod
    def rows(self, index: slice | Tensor) -> Loss:
        """Return the same loss, with the same scale, on some of its rows."""

    @abstractmethod
    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return what float64 rounding errors are relative to.

        Returns
        -------
        primal, dual : float
            Sums of the sizes of the terms in ``value(Z)`` and ``dual(Q)``.
        rows : Tensor, shape (n,)
            Size of each row that the rounding of Q, and its repair to a point of the
            domain, is relative to.
        """

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize ``dual(t R) - linear t - quadratic t^2 / 2``, concave in t.

        Parameters
        ----------
        R : Tensor, shape (n, k)
            Direction of the ray.
        upper : float
            No t above it is tried (lambda over an upper bound of the polar, say).
        linear, quadratic : float
            Further terms of the dual objective.

        Returns
        -------
        t, maximum : float
            Any t is a valid dual point, so that a search serves as well as a formula.
        """
        top = min(upper, self.t_range(R)[1])

        def objective(t: float) -> float:
            return self.dual(t * R) - linear * t - 0.5 * quadratic * t * t

        found = minimize_scalar(
            lambda t: -objective(t), bounds=(0.0, top), method="bounded", options={"xatol": 1e-5 * top}
        )
        candidates = [(objective(t), t) for t in {0.0, float(found.x), top}]
        value, t = max(candidates)
        return t, value

    def _check(self, tensor: Tensor, name: str) -> Tensor:
        if tuple(tensor.shape) != self.shape:
            raise ValueError(f"{name}: expected shape {self.shape}, got {tuple(tensor.shape)}")
        return tensor.double()


def _check_scale(scale: float) -> float:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: expected a finite number > 0, got {scale}")
    return float(scale)


class SquaredLoss(Loss):
    r"""Squared error ``scale * 1/2 ||Y - Z||_F^2``.

    Its dual value is :math:`\langle Q, Y\rangle - \|Q\|_F^2 / (2\,\text{scale})`, for every Q.

    Parameters
    ----------
    Y : Tensor, shape (n, k)
        Targets.
    scale : float
        2/(n k) makes it the mean over samples and outputs (``torch.nn.MSELoss``).

    Raises
    ------
    ValueError
        If ``Y`` is not a matrix or ``scale`` is not positive.
    """

    def __init__(self, Y: Tensor, scale: float = 1.0) -> None:
        if Y.ndim != 2:
            raise ValueError(f"Y: expected shape (n, k), got {tuple(Y.shape)}")
        self.Y = Y.double()
        self.scale = _check_scale(scale)
        self.shape = (Y.shape[0], Y.shape[1])

    def value(self, Z: Tensor) -> float:
        """Return scale/2 ||Y - Z||_F^2."""
        return 0.5 * self.scale * accurate_sum((self.Y - self._check(Z, "Z")).square())

    def gradient(self, Z: Tensor) -> Tensor:
        """Return scale (Z - Y)."""
        return self.scale * (self._check(Z, "Z") - self.Y)

    def dual(self, Q: Tensor) -> float:
        """Return <Q, Y> - ||Q||_F^2 / (2 scale)."""
        Q = self._check(Q, "Q")
        return accurate_sum(Q * self.Y) - accurate_sum(Q.square()) / (2 * self.scale)

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return (0, inf): every Q is in the domain, so t may exceed 1."""
        return 0.0, math.inf

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize along the ray in closed form."""
        R = self._check(R, "R")
        slope = accurate_sum(R * self.Y) - linear
        bend = accurate_sum(R.square()) / self.scale + quadratic
        t = 0.0 if bend == 0.0 else min(max(slope / bend, 0.0), upper)
        return t, slope * t - 0.5 * bend * t * t

    def curvature(self, Z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return multiplication by ``scale``."""
        return lambda V: self.scale * V, torch.full((self.shape[0],), self.scale, dtype=torch.float64)

    def center(self, Q: Tensor) -> Tensor:
        """Return Q less the mean of each column."""
        return Q - Q.mean(0)

    def rows(self, index: slice | Tensor) -> SquaredLoss:
        """Return the loss on some rows."""
        return SquaredLoss(self.Y[index], self.scale)

    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return the sizes that rounding is relative to."""
        primal = self.scale * float((self.Y.abs() + Z.abs()).square().sum())
        dual = float((Q * self.Y).abs().sum()) + float(Q.square().sum()) / (2 * self.scale)
        return primal, dual, Q.norm(dim=1)


class CrossEntropyLoss(Loss):
    r"""Cross-entropy of softmax outputs, ``scale * sum_i (logsumexp(z_i) - z_{i, y_i})``, in nats.

    Its dual value is scale times the sum of the entropies of the rows of
    :math:`p = e_y - Q/\text{scale}`, which must lie in the simplex.

    Parameters
    ----------
    y : Tensor, shape (n,)
        Class numbers.
    n_classes : int
        Number k of classes.
    scale : float
        1/n makes it the mean (``torch.nn.CrossEntropyLoss``).

    Raises
    ------
    ValueError
        If a class number is outside 0 .. n_classes - 1 or ``scale`` is not positive.
    """

    def __init__(self, y: Tensor, n_classes: int, scale: float = 1.0) -> None:
        if y.ndim != 1 or y.is_floating_point():
            raise ValueError(
                f"y: expected class numbers of shape (n,), got {y.dtype} of shape {tuple(y.shape)}"
            )
        if len(y) and (int(y.min()) < 0 or int(y.max()) >= n_classes):
            raise ValueError(
                f"y: expected class numbers 0 to {n_classes - 1}, got {int(y.min())} to {int(y.max())}"
            )
        self.y = y.long()
        self.scale = _check_scale(scale)
        self.shape = (len(y), n_classes)

    def value(self, Z: Tensor) -> float:
        """Return scale times the sum of the cross-entropies."""
        return self.scale * math.fsum(F.cross_entropy(self._check(Z, "Z"), self.y, reduction="none").tolist())

    def gradient(self, Z: Tensor) -> Tensor:
        """Return scale (softmax(Z) - e_y)."""
        return self._subtract_targets(torch.softmax(self._check(Z, "Z"), 1)).mul_(self.scale)

    def dual(self, Q: Tensor) -> float:
        """Return scale times the sum of the entropies of ``e_y - Q/scale``; -inf outside the simplex."""
        p = self._probabilities(self._check(Q, "Q"))
        outside = float(p.min(1).values.min()) < -_DOMAIN_TOLERANCE if p.numel() else False
        if outside or bool(((p.sum(1) - 1.0).abs() > _DOMAIN_TOLERANCE * (1 + self.shape[1])).any()):
            return -math.inf
        return self.scale * accurate_sum(torch.special.entr(p.clamp_(0.0, 1.0)))  # entr(0) = 0

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return (0, t) with the largest t <= 1 for which ``t R`` is in the domain.

        It is 1 at every residual; and 0 when the rows of R do not sum to zero.
        """
        R = self._check(R, "R") / self.scale
        if bool((R.sum(1).abs() > _DOMAIN_TOLERANCE * (1 + self.shape[1])).any()):
            return 0.0, 0.0
        others = R.scatter(1, self.y[:, None], 0.0)
        if others.numel() and float(others.max()) > _DOMAIN_TOLERANCE:
            return 0.0, 0.0  # p would be negative for every t > 0
        largest = float(R.gather(1, self.y[:, None]).max()) if R.numel() else 0.0
        return 0.0, 1.0 if largest <= 1.0 else 1.0 / largest

    def curvature(self, Z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return multiplication by scale (diag(p) - p p^T) in each row."""
        p = torch.softmax(self._check(Z, "Z"), 1)

        def product(V: Tensor) -> Tensor:
            weighted = p * V
            return (weighted - p * weighted.sum(1, keepdim=True)).mul_(self.scale)

        return product, (1.0 - p.square().sum(1)).clamp_(min=0.0) * (self.scale / self.shape[1])

    def center(self, Q: Tensor) -> Tensor:
        """Return a dual point whose columns sum to zero, in the simplex by construction.

        With m the mean of the rows p_i and f the class frequencies, the rows
        (1 - s) p_i + (f - (1 - s) m) have mean f, and the smallest s for which they are
        certainly nonnegative is max_k (1 - f_k / m_k).
        """
        p = self._probabilities(Q.double()).clamp_(min=0.0)
        frequency = torch.bincount(self.y, minlength=self.shape[1]).double() / max(len(self.y), 1)
        p[:, frequency == 0.0] = 0.0  # an absent class must have no probability at all
        empty = p.sum(1) == 0.0
        p[empty] = frequency
        p /= p.sum(1, keepdim=True)
        mean = p.mean(0)
        excess = torch.where(
            mean > frequency, 1.0 - frequency / mean.clamp(min=1e-300), torch.zeros_like(mean)
        )
        keep = 1.0 - float(excess.max())
        p = (keep * p + (frequency - keep * mean).clamp(min=0.0)).clamp_(min=0.0)
        return self._subtract_targets(p).mul_(-self.scale)

    def rows(self, index: slice | Tensor) -> CrossEntropyLoss:
        """Return the loss on some rows."""
        return CrossEntropyLoss(self.y[index], self.shape[1], self.scale)

    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return the sizes that rounding is relative to."""
        n, k = self.shape
        primal = self.scale * (2.0 * float(Z.abs().amax(1).sum()) + n * (1.0 + math.log(k)))
        # |d/dp (p ln p)| stays below 40 for p above 1e-17, the rounding of 1 - (sum of the others)
        dual = abs(self.dual(Q)) + 40.0 * n * self.scale
        return primal, dual, torch.full((n,), 2.0 * self.scale, dtype=torch.float64)

    def _probabilities(self, Q: Tensor) -> Tensor:
        return self._subtract_targets(Q / self.scale).neg_()

    def _subtract_targets(self, p: Tensor) -> Tensor:
        """Subtract e_y from each row, in place."""
        return p.scatter_add_(1, self.y[:, None], torch.full((len(p), 1), -1.0, dtype=p.dtype))
