"""Primal and dual values of a loss with their float64 rounding errors enclosed."""

from __future__ import annotations

import math

from torch import Tensor

from theodolite.linalg.lanczos import UNIT_ROUNDOFF, gamma
from theodolite.losses.base import Loss


def value_error(loss: Loss, Z: Tensor, R: Tensor, shift: Tensor) -> float:
    """Bound how far ``loss.value(Z)`` is from the loss of the exact predictions.

    Parameters
    ----------
    loss : Loss
    Z, R : Tensor
        Computed predictions and the residual -gradient(Z).
    shift : Tensor, shape (n,) or (size,)
        Bound of the distance of each row of Z (entry, on a support) from the exact one.

    Returns
    -------
    float
        Rounding in the value, plus first order (twice, for the rounding of R) and second order in the shift.
    """
    size, _, _ = loss.magnitudes(Z, R)
    error, square = gamma(_terms(R)) * size + 2.0 * float(_sizes(R) @ shift), float(shift @ shift)
    return (
        error + loss.smoothness(Z) * square if square else error
    )  # an infinite smoothness may meet no shift


def repair_polar(loss: Loss, Z: Tensor, R: Tensor, row_bounds: Tensor) -> float:
    """Bound the polar of what rounding, and the repair to a point of the dual's domain, add to R.

    ``row_bounds`` are the atom's: row i of a perturbation e adds at most ``row_bounds[i] * ||e_i||``.
    """
    _, _, rows = loss.magnitudes(Z, R)
    return gamma(_terms(R)) * float(rows @ row_bounds)


def ray_bound(loss: Loss, Z: Tensor, R: Tensor, lam: float, upper: float, repair: float) -> float:
    """Return the best dual value among t R whose polar is at most lam, rounded down.

    Parameters
    ----------
    loss : Loss
    Z, R : Tensor
        Predictions and residual.
    lam : float
    upper : float
        Proved upper bound of the polar of R.
    repair : float
        What :func:`repair_polar` returned.
    """
    t = lam / (upper + repair) if upper + repair > 0.0 else math.inf
    if t < 1.0:  # the repair does not shrink with t
        t = max((lam - repair) / upper, 0.0) if upper > 0.0 else 1.0
    t, dual = loss.best_t(R, upper=t * (1.0 - 4.0 * UNIT_ROUNDOFF))
    _, size, _ = loss.magnitudes(Z, t * R)
    return dual - gamma(_terms(R)) * size


def _sizes(R: Tensor) -> Tensor:
    return R.norm(dim=1) if R.ndim == 2 else R.abs()


def _terms(R: Tensor) -> int:
    """Length of the sums within a row of the loss, and of the few operations around them."""
    return 2 * (R.shape[1] if R.ndim == 2 else 1) + 32
