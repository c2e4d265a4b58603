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

    def zeros(self) -> Tensor:
        """Return zero predictions."""
        return self.loss.zeros()

    def bias(self, Z: Tensor) -> Tensor:
        """Return the best bias, shape (k,), by Newton's method.

        The objective is mu-strongly convex in the bias, so that it is within
        ||gradient||^2 / (2 mu) of its least value: the iteration ends where that is below the
        rounding of the value itself.

        Raises
        ------
        ArithmeticError
            If it does not end.
        """
        Z = self._check(Z, "Z")
        b = torch.zeros(self.shape[1], dtype=torch.float64, device=Z.device)
        value = self.at(Z, b)
        for _ in range(_STEPS):
            gradient = self.loss.gradient(Z + b).sum(0) + self.decay * b
            if float(gradient.square().sum()) / (2.0 * self.decay) <= UNIT_ROUNDOFF * abs(value):
                return b
            step = torch.linalg.solve(self._curvature(Z + b), gradient)
            slope, length = float(gradient @ step), 1.0
            while (tried := self.at(Z, b - length * step)) > value - 1e-4 * length * slope and length > 1e-6:
                length /= 2.0
            b, value = b - length * step, tried
        raise ArithmeticError(f"bias: Newton's method did not end within {_STEPS} steps")

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
        return primal + self.decay * float(b.square().sum()), dual + self._bend(Q), rows
