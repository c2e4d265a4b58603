r"""Conic combinations of given predictions: their best weights, and fewer of them with the same sum.

Rows :math:`F_j` are the predictions of single subnetworks and :math:`c_j \ge 0` their weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from theodolite.losses.base import Loss, SampleLoss
from theodolite.optim.lbfgs import minimize

_NEWTON_STEPS = 50
_DEPENDENT = 1e-13  # ratio of singular values below which rows count as linearly dependent


def best_weights(loss: Loss, F: Tensor, costs: Tensor, start: Tensor) -> Tensor:
    r"""Minimize :math:`\ell(\sum_j c_jF_j) + \langle\text{costs}, c\rangle` over c >= 0, a convex problem.

    Parameters
    ----------
    loss : Loss
    F : Tensor, shape (r, size)
        Flattened predictions, float64.
    costs, start : Tensor, shape (r,)
        Price of a unit of weight, >= 0, and the weights to start from.

    Returns
    -------
    Tensor, shape (r,)
        Weights whose objective is at most that of ``start``.
    """
    unit = 1.0 / F.norm(dim=1).clamp(min=1e-300)  # rows of one length: better conditioned
    F, costs = F * unit[:, None], costs * unit

    def objective(point: tuple[Tensor, ...]) -> tuple[float, list[Tensor]]:
        (c,) = point
        Z = (c @ F).view(loss.prediction_shape)
        return loss.value(Z) + float(costs @ c), [F @ loss.gradient(Z).reshape(-1) + costs]

    (weights,), _ = minimize(
        objective, (start / unit,), nonnegative=True, ftol=1e-14, gtol=1e-14, max_iterations=2000, memory=50
    )
    if isinstance(loss, SampleLoss):
        weights = _newton(loss, F, costs, weights)
    return weights * unit


def _newton(loss: SampleLoss, F: Tensor, costs: Tensor, c: Tensor) -> Tensor:
    """Make the positive weights stationary far below what differences of objectives can show."""

    def slope(c: Tensor) -> Tensor:
        return F @ loss.gradient((c @ F).view(loss.shape)).reshape(-1) + costs

    def error(c: Tensor) -> float:
        g = slope(c)
        return float(torch.where(c > 0.0, g.abs(), (-g).clamp(min=0.0)).max())

    for _ in range(_NEWTON_STEPS):
        active, g = c > 0.0, slope(c)
        if not bool(active.any()):
            return c
        A = F[active]
        product, _ = loss.curvature((c @ F).view(loss.shape))
        H = A @ torch.stack([product(row.view(loss.shape)).reshape(-1) for row in A]).T
        if not bool(torch.isfinite(H).all()):  # at the edge of the loss's domain
            return c
        step = torch.linalg.lstsq(H.cpu(), -g[active, None].cpu(), driver="gelsd").solution.squeeze(1).to(c)
        shrinks = step < 0.0
        room = (-c[active][shrinks] / step[shrinks]).min() if bool(shrinks.any()) else step.new_tensor(1.0)
        trial = c.clone()
        trial[active] = (c[active] + min(float(room), 1.0) * step).clamp(min=0.0)
        if float(room) < 1.0:  # the first weight to reach zero leaves
            blocking = active.nonzero().squeeze(1)[shrinks][(-c[active][shrinks] / step[shrinks]).argmin()]
            trial[blocking] = 0.0
        elif not error(trial) < 0.5 * error(c):
            return c
        c = trial
    return c


def sparsest_weights(F: Tensor, costs: Tensor) -> Tensor:
    r"""Return weights w >= 0 with the same sum of predictions, no larger cost, and independent support.

    Caratheodory's argument: while some :math:`\sum_j\beta_jF_j = 0` with
    :math:`\langle\text{costs},\beta\rangle\ge0`, scaling row j by :math:`1-s\beta_j` up to the
    first zero keeps the sum and does not raise the cost.

    Parameters
    ----------
    F : Tensor, shape (r, size)
        Rows that count with weight 1, float64.
    costs : Tensor, shape (r,)

    Returns
    -------
    Tensor, shape (r,)
        ``w @ F`` equals ``F.sum(0)`` up to rounding.
    """
    w = torch.ones(len(F), dtype=torch.float64, device=F.device)
    length = F.norm(dim=1).clamp(min=1e-300)
    unit = F / length[:, None]  # lengths must not hide a dependence
    while True:
        kept = w.nonzero().squeeze(1)
        if len(kept) < 2:
            return w
        vectors, values, _ = torch.linalg.svd(unit[kept], full_matrices=len(kept) > F.shape[1])
        if len(values) == len(kept) and float(values[-1]) > _DEPENDENT * float(values[0]):
            return w
        beta = vectors[:, -1] / (length[kept] * w[kept])
        if float(beta @ (costs[kept] * w[kept])) < 0.0 or float(beta.max()) <= 0.0:
            beta = -beta
        factor = 1.0 - beta / beta.max()
        factor[beta.argmax()] = 0.0
        w[kept] *= factor.clamp(min=0.0)
