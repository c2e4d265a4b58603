r"""Second-order descent for two-layer ReLU and leaky ReLU networks, which first-order descent leaves stuck at kinks.

Fix for each unit the direction :math:`v_j` of its output weights and the set :math:`D_j` of the
samples on which it is active.  With :math:`z_j = \|u_j\| w_j` the training problem becomes convex,

.. math:: \min_z\ \ell\Big(\sum_jD_jXz_jv_j^\top\Big)+\lambda\sum_j\|z_j\|_2
          \quad\text{subject to}\quad(2D_j-I)Xz_j\ge0,

and is solved by a barrier method (Pilanci and Ergen, ICML 2020, arXiv 2002.10553, solve it over
all patterns at once).  Patterns are added where one more unit helps, found by ascent, and around
units that end on a kink, which may want to be cut in two there; then the problem is solved again.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from theodolite.losses.base import Loss, SampleLoss
from theodolite.polar.ascent import relu_ascent
from theodolite.polar.leaky import leaky_rows

# multiplications of a Newton step, and entries of its largest array, beyond which there is no polish
_WORK, _ENTRIES = 2.5e8, 2e7
# a row within this fraction of ||x|| ||w|| counts as lying on the kink
_KINK = 1e-6
_COARSE = 1e-4  # relative gap of the first convex problems, whose cells are not the last ones yet
_ROUNDS = 30
_STARTS = 48  # of the search for directions that help
_DRAWS = 8  # of cells around a unit on kinks
_COORDINATES = 400  # of the units that a round aims to work on


class Barrier:
    """Group lasso with cones, ``min loss(sum_j A_j z_j) + lam sum_j |z_j|`` over ``C_j z_j >= 0``, by one mu.

    Each norm is replaced by the partial minimum over tau of ``lam tau - mu log(tau^2 - |z|^2)``,
    which is smooth and, as a partial minimum, self-concordant like the rest.

    Parameters
    ----------
    loss : SampleLoss
    lam : float
    columns : Tensor, shape (J, m, n, K)
        The prediction of each coordinate of each group: the maps A_j.
    cones : Tensor, shape (J, c, m)
        Normals of the cones, of unit length.
    """

    def __init__(self, loss: SampleLoss, lam: float, columns: Tensor, cones: Tensor) -> None:
        self.loss, self.lam, self.columns, self.cones = loss, lam, columns, cones
        self.terms = len(cones) * (2 + cones.shape[1])

    def predict(self, z: Tensor) -> Tensor:
        """Return the predictions, shape (n, K)."""
        return torch.einsum("jmnk,jm->nk", self.columns, z)

    def objective(self, z: Tensor) -> float:
        """Return loss + lam sum |z|."""
        return self.loss.value(self.predict(z)) + self.lam * float(z.norm(dim=1).sum())

    def value(self, z: Tensor, mu: float) -> float:
        """Return the barrier function, inf outside the cones."""
        slack = torch.einsum("jcm,jm->jc", self.cones, z)
        if bool((slack <= 0.0).any()):
            return math.inf
        tau = self._tau(z, mu)[0]
        smooth = self.lam * tau - mu * (2.0 * mu * tau / self.lam).log()
        return self.loss.value(self.predict(z)) + float(smooth.sum()) - mu * float(slack.log().sum())

    def _tau(self, z: Tensor, mu: float) -> tuple[Tensor, Tensor]:
        root = (mu * mu + self.lam**2 * z.square().sum(1)).sqrt()
        return (mu + root) / self.lam, root

    def derivatives(self, z: Tensor, mu: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradient (J m,), Hessian (J m, J m) and the gradient's derivative in mu (J m,)."""
        J, m = z.shape
        Z = self.predict(z)
        columns = self.columns.flatten(0, 1)
        gradient = torch.einsum("ank,nk->a", columns, self.loss.gradient(Z))
        images = torch.func.vmap(self.loss.curvature(Z)[0])(columns)
        hessian = columns.flatten(1) @ images.flatten(1).T
        # the norms
        tau, root = self._tau(z, mu)
        slope = self.lam / tau
        gradient = gradient + (slope[:, None] * z).flatten()
        bend = (self.lam / (root * tau))[:, None, None] * z[:, :, None] * z[:, None, :]
        blocks = slope[:, None, None] * (torch.eye(m, dtype=z.dtype) - bend)
        drift = -((1.0 + mu / root) / tau.square())[:, None] * z
        # the cones
        inverse = 1.0 / torch.einsum("jcm,jm->jc", self.cones, z)
        push = torch.einsum("jcm,jc->jm", self.cones, inverse)
        gradient = gradient - mu * push.flatten()
        weighted = self.cones * inverse[..., None]
        blocks = blocks + mu * weighted.transpose(1, 2) @ weighted
        hessian.view(J, m, J, m).diagonal(dim1=0, dim2=2).add_(blocks.permute(1, 2, 0))
        return gradient, hessian, (drift - push).flatten()


def minimize(barrier: Barrier, start: Tensor, *, tol: float, deadline: float) -> Tensor:
    """Follow the central path from `start`, inside the cones, to a relative gap of about `tol`."""
    z = start
    mu = max(barrier.objective(z), 1e-300) / barrier.terms
    last = tol * mu
    while True:
        z = _center(barrier, z, mu, final=mu <= last, deadline=deadline)
        if mu <= last or time.monotonic() > deadline:
            return z
        step = max(0.1 * mu, last)
        z = _follow(barrier, z, mu, step)
        mu = step


def _center(barrier: Barrier, z: Tensor, mu: float, *, final: bool, deadline: float) -> Tensor:
    """Minimize the barrier function by Newton steps with backtracking."""
    here = barrier.value(z, mu)
    for _ in range(50):
        gradient, hessian, _ = barrier.derivatives(z, mu)
        direction = _newton(hessian, -gradient).view_as(z)
        decrement = -float(gradient @ direction.flatten())
        if decrement <= (1e-8 if final else 1e-2) * mu or time.monotonic() > deadline:
            break
        size = 1.0
        while size > 1e-10:
            there = barrier.value(z + size * direction, mu)
            if there <= here - 0.1 * size * decrement:
                break
            size *= 0.5
        else:  # rounding hides any further decrease
            break
        z, here = z + size * direction, there
    return z


def _follow(barrier: Barrier, z: Tensor, mu: float, new: float) -> Tensor:
    """Return a point along the tangent of the central path, the farthest of some that lower the next barrier."""
    _, hessian, drift = barrier.derivatives(z, mu)
    tangent = _newton(hessian, -drift).view_as(z) * (new - mu)
    here = barrier.value(z, new)
    for size in (1.0, 0.9, 0.6, 0.3):
        if barrier.value(z + size * tangent, new) < here:
            return z + size * tangent
    return z


def _newton(hessian: Tensor, right: Tensor) -> Tensor:
    """Solve hessian x = right; a multiple of the diagonal is added until the Cholesky factorization completes."""
    scale = hessian.diagonal().sqrt()
    scaled = hessian / scale[:, None] / scale
    ridge = torch.eye(len(right), dtype=right.dtype)
    for power in range(-15, 1, 3):
        factor, info = torch.linalg.cholesky_ex(scaled + 10.0**power * ridge)
        if int(info) == 0:
            break
    return torch.cholesky_solve((right / scale)[:, None], factor)[:, 0] / scale


def polish(
    loss: Loss,
    X: Tensor,
    lam: float,
    W: Tensor,
    U: Tensor,
    *,
    slope: float = 0.0,
    tol: float = 1e-10,
    deadline: float = math.inf,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return units with a lower objective ``loss(relu(X W') U) + lam sum_j |w_j| |u_j|``.

    Parameters
    ----------
    loss : Loss
        With one that is no `SampleLoss` the units come back as they are; so do those of a problem
        whose Newton steps would be too large.
    X : Tensor, shape (n, d)
        Like all tensors here, on the CPU.
    lam : float
    W, U : Tensor, shapes (r, d) and (r, K)
    slope : float
        Of the activation below 0, where D_j then has it in place of 0.
    tol : float
        Relative gap to which each convex problem is solved.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    seed : int
        Of the search for directions and of the perturbations that find the cells around a kink.

    Returns
    -------
    W, U : Tensor
        With |w_j| = |u_j|; as many units as are needed.
    """

    def objective(W: Tensor, U: Tensor) -> float:
        return loss.value(leaky_relu(X @ W.T, slope) @ U) + lam * float((W.norm(dim=1) * U.norm(dim=1)).sum())

    if not isinstance(loss, SampleLoss):
        return W, U
    best, generator, accuracy = objective(W, U), torch.Generator().manual_seed(seed), max(_COARSE, tol)
    for _ in range(_ROUNDS):
        if time.monotonic() > deadline:
            break
        size = W.norm(dim=1) * U.norm(dim=1)
        W, U = W[size > 0], U[size > 0]
        most = max(4, _COORDINATES // max(X.shape[1], U.shape[1]) - len(W))
        number = int(torch.randint(2**31, (), generator=generator))
        fresh = fresh_units(loss, X, lam, W, U, most=most, seed=number, slope=slope)
        W1, U1 = (torch.cat(parts) for parts in zip((W, U), fresh, strict=True))
        if not len(W1):
            break
        inside, outputs, start = _cells(X, W1, U1, generator)
        unknowns, entries = len(inside) * max(X.shape[1], U.shape[1]), len(X) * U.shape[1]
        if unknowns**2 * (entries + unknowns / 3) > _WORK or unknowns * entries > _ENTRIES:
            break
        z = _hidden_step(loss, X, lam, inside, outputs, start, slope, tol=accuracy, deadline=deadline)
        W1, U1 = _balanced(z, outputs)
        if U.shape[1] > 1:
            W1, U1 = _output_step(loss, X, lam, W1, U1, slope, tol=accuracy, deadline=deadline)
        size = W1.norm(dim=1) * U1.norm(dim=1)  # the barrier leaves a little of units that tend to zero
        kept = size > max(1e-7, 1e-2 * accuracy) * size.max()
        W1, U1 = W1[kept], U1[kept]
        value = objective(W1, U1)
        gain = best - value
        if gain > 0.0:
            W, U, best = W1, U1, value
        # alternation between the layers gains little by little
        if gain <= accuracy * abs(best) * (1.0 if U.shape[1] == 1 else 100.0):
            if accuracy <= tol:
                break
            accuracy = max(1e-3 * accuracy, tol)
    return W, U


def fresh_units(
    loss: Loss, X: Tensor, lam: float, W: Tensor, U: Tensor, *, most: int, seed: int, slope: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return small units to add, in directions in which one more helps, active on different samples.

    They are found by ascent of |R' relu(X w)| above lam, R the residual; there may be none.  ``slope`` is that of
    a leaky relu below 0.
    """
    Z = leaky_relu(X @ W.T, slope) @ U
    R = -loss.gradient(Z)
    directions, values = relu_ascent(*leaky_rows(X, R, slope), W, n_starts=_STARTS, seed=seed)
    order = values.argsort(descending=True)
    order = order[values[order] > lam * (1.0 + 1e-9)]
    seen: dict[bytes, int] = {}
    for i in order.tolist():
        seen.setdefault((X @ directions[i] > 0).numpy().tobytes(), i)
    chosen = list(seen.values())[:most]
    directions, values = directions[chosen], values[chosen]
    hidden = leaky_relu(directions @ X.T, slope)
    outputs = torch.nn.functional.normalize(hidden @ R)
    step = (values - lam) / (loss.smoothness(Z) * hidden.square().sum(1) * max(len(chosen), 1))
    return _balanced(step[:, None] * directions, outputs)


def _cells(X: Tensor, W: Tensor, U: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit vectors inside the cells around the units, their output directions, and a start.

    A unit away from all kinks has one cell; around one on kinks several cells are sampled.
    Cells of one pattern and one output direction are merged.
    """
    norms = X.norm(dim=1)
    rows = X[norms > 0] / norms[norms > 0, None]
    size, directions = (W.norm(dim=1) * U.norm(dim=1)), torch.nn.functional.normalize(W)
    outputs = torch.nn.functional.normalize(U)
    found: dict[tuple[bytes, bytes], tuple[Tensor, Tensor]] = {}
    for w, v, theta in zip(directions, outputs, size.tolist(), strict=True):
        margins = (rows @ w).abs()
        tight = margins <= _KINK
        reach = float(margins[~tight].min()) if bool((~tight).any()) else 1.0
        draws = [torch.zeros_like(w)]
        if bool(tight.any()):
            noise = torch.randn(_DRAWS, len(w), generator=generator, dtype=w.dtype)
            draws = list(0.5 * reach * torch.nn.functional.normalize(noise))
        for draw in draws:
            inside = torch.nn.functional.normalize(w + draw, dim=0)
            key = (rows @ inside > 0).numpy().tobytes(), v.numpy().round(10).tobytes()
            share = theta / len(draws) * inside
            old = found.get(key)
            found[key] = (share, v) if old is None else (old[0] + share, v)
    start = torch.stack([z for z, _ in found.values()])
    return torch.nn.functional.normalize(start), torch.stack([v for _, v in found.values()]), start


def _hidden_step(
    loss: SampleLoss,
    X: Tensor,
    lam: float,
    inside: Tensor,
    outputs: Tensor,
    start: Tensor,
    slope: float,
    **stop: float,
) -> Tensor:
    """Return the best z (J, d) of the cells."""
    norms = X.norm(dim=1)
    rows = X[norms > 0] / norms[norms > 0, None]
    active = torch.where(inside @ X.T > 0, 1.0, slope).double()
    sign = torch.where(inside @ rows.T > 0, 1.0, -1.0).to(X)
    columns = torch.einsum("jn,nm,jk->jmnk", active, X, outputs)
    return minimize(Barrier(loss, lam, columns, sign[:, :, None] * rows), start, **stop)


def _output_step(
    loss: SampleLoss, X: Tensor, lam: float, W: Tensor, U: Tensor, slope: float, **stop: float
) -> tuple[Tensor, Tensor]:
    """Return the units with the best output weights for their hidden directions."""
    directions = torch.nn.functional.normalize(W)
    hidden = leaky_relu(directions @ X.T, slope)
    columns = torch.einsum("jn,mk->jmnk", hidden, torch.eye(U.shape[1], dtype=U.dtype))
    barrier = Barrier(loss, lam, columns, U.new_zeros(len(U), 0, U.shape[1]))
    start = W.norm(dim=1, keepdim=True) * U
    u = minimize(barrier, start, **stop)
    U, W = _balanced(u, directions)
    return W, U


def _balanced(first: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Share the length of the first factor between both."""
    root = first.norm(dim=1, keepdim=True).sqrt()
    return first / root.clamp(min=1e-300), root * directions
