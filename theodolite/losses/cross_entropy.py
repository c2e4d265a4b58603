"""Cross-entropy of softmax outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.linalg.lanczos import UNIT_ROUNDOFF
from theodolite.losses.base import DOMAIN_TOLERANCE, SampleLoss, accurate_sum, check_positive
from theodolite.losses.inputs import integers


class CrossEntropyLoss(SampleLoss):
    r"""Cross-entropy of softmax outputs, ``scale * sum_i (logsumexp(z_i) - z_{i, y_i})``, in nats.

    Its dual value is scale times the sum of the entropies of the rows of
    :math:`p = e_y - Q/\text{scale}`, which must lie in the simplex.

    Parameters
    ----------
    y : array-like of int, shape (n,)
        Class numbers.
    n_classes : int
        Number k of classes.
    scale : float
        1/n makes it the mean (``torch.nn.CrossEntropyLoss``).

    Raises
    ------
    ValueError
        If there is no sample, a class number is outside 0 .. n_classes - 1 or ``scale`` is not positive.
    """

    def __init__(self, y: Any, n_classes: int, scale: float = 1.0) -> None:
        self.y = integers(y, "y", "class numbers")
        if not len(self.y):
            raise ValueError("y: expected at least one class number, got none")
        low, high = int(self.y.min()), int(self.y.max())
        if low < 0 or high >= n_classes:
            raise ValueError(f"y: expected class numbers 0 to {n_classes - 1}, got {low} to {high}")
        self.scale = check_positive(scale, "scale")
        self.shape = (len(self.y), n_classes)

    def zeros(self) -> Tensor:
        """Return zero predictions."""
        return torch.zeros(self.shape, dtype=torch.float64, device=self.y.device)

    def value(self, Z: Tensor) -> float:
        """Return scale times the sum of the cross-entropies."""
        return self.scale * math.fsum(F.cross_entropy(self._check(Z, "Z"), self.y, reduction="none").tolist())

    def gradient(self, Z: Tensor) -> Tensor:
        """Return scale (softmax(Z) - e_y)."""
        return self._subtract_targets(torch.softmax(self._check(Z, "Z"), 1)).mul_(self.scale)

    def dual(self, Q: Tensor) -> float:
        """Return scale times the sum of the entropies of ``e_y - Q/scale``; -inf outside the simplex."""
        p = self._probabilities(self._check(Q, "Q"))
        outside = not float(p.min()) >= -DOMAIN_TOLERANCE  # or NaN
        if outside or bool(((p.sum(1) - 1.0).abs() > DOMAIN_TOLERANCE * (1 + self.shape[1])).any()):
            return -math.inf
        return self.scale * accurate_sum(torch.special.entr(p.clamp_(0.0, 1.0)))  # entr(0) = 0

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return (0, t) with the largest t <= 1 for which ``t R`` is in the domain.

        It is 1 at every residual; and 0 when the rows of R do not sum to zero.
        """
        R = self._check(R, "R") / self.scale
        if bool((R.sum(1).abs() > DOMAIN_TOLERANCE * (1 + self.shape[1])).any()):
            return 0.0, 0.0
        others = R.scatter(1, self.y[:, None], 0.0)
        if float(others.max()) > DOMAIN_TOLERANCE:
            return 0.0, 0.0  # p would be negative for every t > 0
        largest = float(R.gather(1, self.y[:, None]).max())
        return 0.0, 1.0 if largest <= 1.0 else 1.0 / largest

    def smoothness(self, Z: Tensor) -> float:
        """Return scale / 2, the largest eigenvalue that diag(p) - p p^T can have."""
        return 0.5 * self.scale

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
        p = self._probabilities(self._check(Q, "Q")).clamp_(min=0.0)
        frequency = torch.bincount(self.y, minlength=self.shape[1]).double() / len(self.y)
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
        Z, Q = self._check(Z, "Z"), self._check(Q, "Q")
        n, k = self.shape
        primal = self.scale * (2.0 * float(Z.abs().amax(1).sum()) + n * (1.0 + math.log(k)))
        # a point that the tolerance admits may be further from the simplex than rounding explains
        p = self._probabilities(Q)
        excess = ((p.sum(1) - 1.0).abs() - 2.0 * p.clamp(max=0.0).sum(1)) / UNIT_ROUNDOFF
        excess = torch.where(excess > 2.0 * k + 8.0, excess, 0.0)
        # |d/dp (p ln p)| stays below 40 for p above 1e-17, the rounding of 1 - (sum of the others)
        dual = abs(self.dual(Q)) + 40.0 * self.scale * float(excess.clamp(min=1.0).sum())
        return primal, dual, self.scale * excess.clamp(min=2.0)

    def _probabilities(self, Q: Tensor) -> Tensor:
        return self._subtract_targets(Q / self.scale).neg_()

    def _subtract_targets(self, p: Tensor) -> Tensor:
        """Subtract e_y from each row, in place."""
        return p.scatter_add_(1, self.y[:, None], torch.full_like(p[:, :1], -1.0))
