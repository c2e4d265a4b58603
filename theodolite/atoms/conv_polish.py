r"""The best output weights of given hidden units, a group lasso that is convex.

.. math:: \min_U\ \ell\Big(\sum_jH_jU_j\Big)+\lambda\sum_j\|U_j\|_F,

H_j (n, C) what unit j shows of each sample in C cells.  At its solution :math:`\langle R,Z\rangle=\lambda\Theta`, and
no rescaling of any unit helps.  For the squared loss
:math:`\|U_j\|=\min_{\eta\ge0}\frac12(\|U_j\|^2/\eta_j+\eta_j)` leaves, with U eliminated, a smooth convex
problem in one number for each unit, solved by Newton steps; another loss is majorized by squared ones.
"""

from __future__ import annotations

import math
import time

import torch
from scipy.optimize import nnls
from torch import Tensor

from theodolite.atoms.proximal import initial_curvature
from theodolite.losses.base import Loss
from theodolite.losses.squared import SquaredLoss

MOST = 3_000
"""Units times cells beyond which Newton steps take too long."""
_STEPS = 60
_EXACT = 1e-13


class Squares:
    r"""Group lasso with a squared loss, :math:`\frac12\langle U,GU\rangle-\langle B,U\rangle+\lambda\sum_j\|U_j\|_F`.

    Parameters
    ----------
    G : Tensor, shape (r C, r C)
        Gram matrix of the hidden units, times the loss's scale.
    r : int
    lam : float
    """

    def __init__(self, G: Tensor, r: int, lam: float) -> None:
        self.G, self.r, self.C, self.lam = G, r, len(G) // max(r, 1), lam

    def solve(self, B: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Return U (r C, K) and its groups' norms eta (r,), for B (r C, K), from a start eta >= 0."""
        value, U, pull, factor = self._at(B, eta)
        for _ in range(_STEPS):
            norms = pull.reshape(self.r, -1).norm(dim=1)
            slope = 0.5 * (self.lam - norms.square() / self.lam)
            stuck = (eta == 0.0) & (slope >= 0.0)
            error = torch.where(
                eta > 0.0, (norms / self.lam - 1.0).abs(), (norms / self.lam - 1.0).clamp(min=0.0)
            )
            if bool(stuck.all()) or float(error.max()) <= _EXACT:
                break
            step = _model_minimum(self._curvature(pull, factor, eta), slope, eta) - eta
            expected, size = float(slope @ step), 1.0
            while size > 1e-10:
                there = eta + size * step
                trial = self._at(B, there)
                if trial[0] <= value + 1e-4 * size * expected + 1e-15 * abs(value):
                    break
                size *= 0.3
            else:
                break
            eta, (value, U, pull, factor) = there, trial
        return U, U.reshape(self.r, -1).norm(dim=1)

    def _at(self, B: Tensor, eta: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        """Return the objective, the best U, B - G U, and the factor of lam + D^1/2 G D^1/2, D = diag(eta)."""
        root = eta.sqrt().repeat_interleave(self.C)[:, None]
        A = root * self.G * root.T
        A.diagonal().add_(self.lam)
        factor, info = torch.linalg.cholesky_ex(A)
        while int(info):  # lam is less than the rounding of the rest
            A.diagonal().add_(1e-15 * A.diagonal().max())
            factor, info = torch.linalg.cholesky_ex(A)
        U = root * torch.cholesky_solve(root * B, factor)
        value = 0.5 * self.lam * float(eta.sum()) - 0.5 * float((B * U).sum())
        return value, U, B - self.G @ U, factor

    def _curvature(self, pull: Tensor, factor: Tensor, eta: Tensor) -> Tensor:
        """Return the Hessian in eta, (r, r)."""
        root = eta.sqrt().repeat_interleave(self.C)[:, None]
        half = torch.linalg.solve_triangular(factor, root * self.G, upper=False)
        S = (self.G - half.T @ half).view(self.r, self.C, self.r, self.C)
        pull = pull.reshape(self.r, self.C, -1)
        images = torch.einsum("jakb,kbm->jakm", S, pull)
        return torch.einsum("jam,jakm->jk", pull, images) / self.lam**2


def _model_minimum(H: Tensor, g: Tensor, eta: Tensor) -> Tensor:
    """Minimize the model (x - eta)' H (x - eta) / 2 + g' (x - eta) over x >= 0.

    A little is added to the diagonal of H >= 0 until its factorization completes.
    """
    scale = H.diagonal().clamp(min=1e-300).rsqrt()
    scaled = scale[:, None] * H * scale
    identity = torch.eye(len(g), dtype=g.dtype, device=g.device)
    for power in range(-14, 1):
        factor, info = torch.linalg.cholesky_ex(scaled + 10.0**power * identity)
        if int(info) == 0:
            break
    right = factor.T @ (eta / scale)[:, None] - torch.linalg.solve_triangular(
        factor, (scale * g)[:, None], upper=False
    )
    found, _ = nnls(factor.T.cpu().numpy(), right[:, 0].cpu().numpy(), maxiter=50 * len(g))
    return scale * torch.from_numpy(found).to(g)


def best_outputs(
    loss: Loss,
    H: Tensor,
    lam: float,
    U: Tensor,
    *,
    tol: float = 1e-10,
    deadline: float = math.inf,
    most: int = 300,
) -> Tensor:
    """Return output weights with a smaller ``loss(H U) + lam sum_j |U_j|``, the best ones up to a tolerance.

    Parameters
    ----------
    loss : Loss
        Without a support.
    H : Tensor, shape (n, r, C)
        What the units show, for unit weights w.
    lam : float
    U : Tensor, shape (r, C, K)
        Where to start.
    tol : float
        Relative gain of a step at which to stop, for a loss other than the squared one.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    most : int
        Steps.

    Returns
    -------
    Tensor, shape (r, C, K)
        Exact zeros for units that are of no use.
    """
    n, r, C = H.shape
    if not 0 < r * C <= MOST:
        return U
    flat, K = H.reshape(n, r * C), U.shape[2]
    G = flat.T @ flat
    here = U.reshape(r * C, K)

    def objective(V: Tensor, seen: Tensor) -> float:
        return loss.value(seen) + lam * float(V.reshape(r, -1).norm(dim=1).sum())

    Z = flat @ here
    best, before = objective(here, Z), here
    eta = here.reshape(r, -1).norm(dim=1)
    if type(loss) is SquaredLoss:
        found, _ = Squares(loss.scale * G, r, lam).solve(loss.scale * (flat.T @ loss.Y), eta)
        return (found if objective(found, flat @ found) <= best else here).reshape(r, C, K)
    curvature, momentum, quiet = initial_curvature(loss, Z), 1.0, 0
    point, seen = here, Z
    for _ in range(most):
        slope, start = loss.gradient(seen), loss.value(seen)
        if not math.isfinite(start):  # extrapolated out of the domain
            point, seen, momentum = here, Z, 1.0
            continue
        pull = flat.T @ slope
        while True:
            squares = Squares(curvature * G, r, lam)
            fresh, eta = squares.solve(curvature * (G @ point) - pull, eta)
            now = flat @ fresh
            change = now - seen
            model = start + float((slope * change).sum()) + 0.5 * curvature * float(change.square().sum())
            if loss.value(now) <= model + 1e-14 * abs(model) or curvature > 1e200:
                break
            curvature *= 2.0
        value = objective(fresh, now)
        gain = best - value
        quiet = quiet + 1 if gain <= tol * abs(best) else 0
        if gain < 0.0 and momentum > 1.0:
            point, seen, momentum = here, Z, 1.0
            continue
        if gain >= 0.0:
            before, here, Z, best = here, fresh, now, value
        if quiet >= 3 or gain < 0.0 or time.monotonic() > deadline:
            break
        following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum * momentum))
        point = here + (momentum - 1.0) / following * (here - before)
        seen, momentum = flat @ point, following
    return here.reshape(r, C, K)
