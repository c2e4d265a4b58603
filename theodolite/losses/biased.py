r"""A loss whose predictions get a bias that is penalized by its squared norm.

A bias of the last layer is the same for all samples and no subnetwork's: with a decay of
:math:`\mu/2\|b\|^2` it is minimized over, which leaves a convex loss of the predictions,

.. math:: \ell_\mu(Z) = \min_b\ \ell(Z + \mathbf 1 b^\top) + \tfrac\mu2\|b\|^2,
   \qquad d_\mu(Q) = d(Q) - \tfrac1{2\mu}\|\mathbf 1^\top Q\|^2 .

Proof of the dual: :math:`\ell(Z + \mathbf 1b^\top) \ge d(Q) - \langle Q, Z\rangle - b^\top Q^\top\mathbf 1`,
and :math:`\tfrac\mu2\|b\|^2 - b^\top Q^\top\mathbf 1 \ge -\|Q^\top\mathbf 1\|^2/(2\mu)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from theodolite.linalg.lanczos import UNIT_ROUNDOFF, gamma
from theodolite.losses.base import Loss, SampleLoss

_STEPS = 100


class BiasedLoss(Loss):
    """The least loss over a bias of the outputs, with a decay of that bias.

    Parameters
    ----------
    loss : SampleLoss
        Of the predictions with their bias.
    decay : float
        mu > 0.

    Raises
    ------
    ValueError
        If ``decay`` is not a finite positive number.
    """

    def __init__(self, loss: SampleLoss, decay: float) -> None:
        if not (math.isfinite(decay) and decay > 0):
            raise ValueError(f"decay: expected a finite number > 0, got {decay}")
        self.loss, self.decay = loss, float(decay)
        self.shape, self.scale = loss.shape, loss.scale
        # the last predictions with their best bias, and where to start for the next
        self._known: tuple[Tensor, int, Tensor] | None = None
        self._start: tuple[Tensor, Tensor] | None = None

    def zeros(self) -> Tensor:
        """Return zero predictions."""
        return self.loss.zeros()

    def to(self, device: torch.device | str) -> BiasedLoss:
        """Return the same loss with its targets on a device."""
        return BiasedLoss(self.loss.to(device), self.decay)

    def rescaled(self, scale: float) -> BiasedLoss:
        """Return the same loss with another factor in front, of its decay too."""
        return BiasedLoss(self.loss.rescaled(scale), self.decay * scale / self.scale)

    def bias(self, Z: Tensor) -> Tensor:
        """Return the best bias, shape (k,), by Newton's method.

        The objective is mu-strongly convex in the bias, so that it is within
        ||gradient||^2 / (2 mu) of its least value: the iteration goes on until that is below the
        rounding of the value itself and the gradient falls no further.  With a tiny decay rounding
        may end it before; what is left is part of :meth:`magnitudes`.
        """
        Z = self._check(Z, "Z")
        if self._known is not None and self._known[0] is Z and self._known[1] == Z._version:
            return self._known[2]
        b, hessian = self._start or (Z.new_zeros(self.shape[1]), self._curvature(Z))
        gradient, value = self._slope(Z, b), self.at(Z, b)
        best, least, last = b, gradient.norm(), math.inf
        for _ in range(_STEPS):
            if gradient.norm() < least:
                best, least = b, gradient.norm()
            if self._ends(gradient, value):
                value = self.at(Z, b)
                if self._ends(gradient, value) and gradient.norm() >= 0.2 * last:
                    break  # as near as rounding lets it
            last = float(gradient.norm())
            tried = b - _solved(hessian, gradient)
            slope = self._slope(Z, tried)
            if float(slope.norm()) <= 0.2 * float(
                gradient.norm()
            ):  # an older Hessian serves as long as it helps
                b, gradient = tried, slope
                continue
            hessian, value = self._curvature(Z + b), self.at(Z, b)
            step, length = _solved(hessian, gradient), 1.0
            descent = 1e-4 * float(gradient @ step)
            while self.at(Z, b - length * step) > value - length * descent and length > 1e-6:
                length /= 2.0
            b = b - length * step
            gradient = self._slope(Z, b)
        self._known, self._start = (Z, Z._version, best), (best, hessian)
        return best

    def _slope(self, Z: Tensor, b: Tensor) -> Tensor:
        """Return the gradient in the bias."""
        return self.loss.gradient(Z + b).sum(0) + self.decay * b

    def _ends(self, gradient: Tensor, value: float) -> bool:
        return float(gradient.square().sum()) <= 2.0 * self.decay * UNIT_ROUNDOFF * abs(value)

    def at(self, Z: Tensor, b: Tensor) -> float:
        """Return the loss with a given bias and its decay."""
        return self.loss.value(Z + b) + 0.5 * self.decay * float(b.square().sum())

    def _curvature(self, Z: Tensor) -> Tensor:
        """Return the Hessian in the bias, shape (k, k)."""
        product, _ = self.loss.curvature(Z)
        unit = torch.eye(self.shape[1], dtype=torch.float64, device=Z.device)
        columns = [product(row.expand(self.shape)).sum(0) for row in unit]
        return torch.stack(columns, 1) + self.decay * unit

    def value(self, Z: Tensor) -> float:
        """Return the loss with the best bias."""
        return self.at(Z, self.bias(Z))

    def gradient(self, Z: Tensor) -> Tensor:
        """Return the loss' gradient at the best bias (the envelope theorem)."""
        return self.loss.gradient(Z + self.bias(Z))

    def dual(self, Q: Tensor) -> float:
        """Return d(Q) - ||1^T Q||^2 / (2 mu), the sums' rounding enclosed."""
        return self.loss.dual(Q) - 0.5 * self._bend(Q)

    def _bend(self, Q: Tensor) -> float:
        sums = Q.sum(0).abs() + gamma(len(Q)) * Q.abs().sum(0)
        return float(sums.square().sum()) / self.decay

    def t_range(self, R: Tensor) -> tuple[float, float]:
        """Return the range of the loss without bias."""
        return self.loss.t_range(R)

    def best_t(
        self, R: Tensor, *, upper: float = math.inf, linear: float = 0.0, quadratic: float = 0.0
    ) -> tuple[float, float]:
        """Maximize along the ray as the loss without bias does, with one more quadratic term."""
        return self.loss.best_t(R, upper=upper, linear=linear, quadratic=quadratic + self._bend(R))

    def smoothness(self, Z: Tensor) -> float:
        """Return the smoothness without bias at the best one: a minimum over some variables is no more curved.

        It holds near Z as that of the loss does, a bias moving by no more than the predictions.
        """
        return self.loss.smoothness(Z + self.bias(Z))

    def magnitudes(self, Z: Tensor, Q: Tensor) -> tuple[float, float, Tensor]:
        """Return the sizes that rounding is relative to."""
        b = self.bias(Z)
        primal, dual, rows = self.loss.magnitudes(Z + b, Q)
        # how far the value, and the residual's rows, are from those of the very best bias
        distance = float(self._slope(Z, b).norm()) / self.decay
        primal += self.decay * (float(b.square().sum()) + 0.5 * distance**2 / UNIT_ROUNDOFF)
        rows = rows + self.loss.smoothness(Z + b) * distance / UNIT_ROUNDOFF
        return primal, dual + self._bend(Q), rows


def _solved(hessian: Tensor, gradient: Tensor) -> Tensor:
    """Return the Newton step, of least norm where rounding leaves the Hessian singular."""
    step = torch.linalg.lstsq(hessian.cpu(), gradient.cpu()[:, None], driver="gelsd").solution
    return step.squeeze(1).to(gradient.device)
