r"""Descent for pooled convolutions: convex steps over all output weights, and filters that climb.

With the filters' directions fixed, the best output weights solve a convex problem
(:mod:`theodolite.atoms.conv_polish`), after which :math:`F(w_j)=\lambda` for each unit that is left, F the function
whose maximum over unit w is the polar.  From each w_j, and from elsewhere, F is ascended; the maxima join the
filters, and the convex step says which of old and new ones stay.  At its end nothing near the units, and nothing
else that was found, exceeds lambda.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from theodolite.atoms.conv_polish import MOST, best_outputs
from theodolite.atoms.conv_rows import Rows
from theodolite.atoms.proximal import GOAL, estimated_gap
from theodolite.losses.base import Loss
from theodolite.polar.ascent import climb, distinct, relu_values, unit_rows

_ROUNDS = 60
_WIDE = 256  # random directions of a search of the whole sphere,
_FINALISTS = 8  # and how many of them ascend
_NEAR = 16  # perturbed directions around a unit
_ROWS = 60_000  # beyond which there are fewer of both
_STEPS = 60  # of an ascent from a unit
_APART = 1e-7  # directions closer than this are one
_PATIENCE = 3  # rounds that gain next to nothing

Hidden = Callable[[Tensor], Tensor]


def descend_pooled(
    loss: Loss,
    lam: float,
    rows: Rows,
    hidden: Hidden,
    W: Tensor,
    U: Tensor,
    *,
    tol: float,
    deadline: float,
    progress: Callable[[Tensor, Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Return units with a lower objective ``loss(sum_j H_j U_j) + lam sum_j |w_j| |U_j|``.

    Parameters
    ----------
    loss : Loss
        Without a support.
    lam : float
    rows : Rows
        Of the polar, on the CPU.
    hidden : function(W) -> Tensor of shape (n, r, C)
        What filters of shape (r, d) show.
    W, U : Tensor, shapes (r, d) and (r, C, K)
        Where to start; there may be no units.
    tol : float
        Relative gap to aim at.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    progress : function(W, U)
        Called after each round.

    Returns
    -------
    W, U : Tensor
        W of unit rows.
    """
    C, room = U.shape[1], MOST // U.shape[1]
    W, U = unit_rows(W), U * W.norm(dim=1)[:, None, None]
    if len(W) > room // 2:  # the largest
        largest = U.flatten(1).norm(dim=1).argsort(descending=True)[: room // 2]
        W, U = W[largest], U[largest]
    best, quiet, wide = math.inf, 0, True
    for n_round in range(_ROUNDS):
        H = hidden(W)
        U = best_outputs(loss, H, lam, U, tol=1e-3 * tol, deadline=deadline)
        theta = U.flatten(1).norm(dim=1)
        kept = theta > 0.0
        W, U, H = W[kept], U[kept], H[:, kept]
        Z = H.flatten(1) @ U.flatten(0, 1)
        R, objective = -loss.gradient(Z), loss.value(Z) + lam * float(theta.sum())
        progress(W, U)
        if time.monotonic() > deadline:
            break
        V = rows.weights(R.cpu())
        n_random = _WIDE if wide else 0
        found, values = search(
            rows.X, V, rows.cells, W.cpu(), n_random=n_random, seed=n_round, deadline=deadline
        )
        if not len(found):
            break
        values = values * 2.0**rows.exponent
        gap = estimated_gap(loss, lam, objective, R, float(values.max()))
        small = gap <= GOAL * tol
        if small and wide:
            break
        quiet = quiet + 1 if best - objective <= 1e-3 * max(tol, gap) * abs(objective) else 0
        if quiet > _PATIENCE:
            break
        best = min(best, objective)
        # what is near the units settles first; then the whole sphere is searched again
        wide = small or n_round % 5 == 4
        found = found[values > lam * (1.0 + 1e-12)]
        if len(W):
            far = torch.cdist(found, W.cpu(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            found = found[far > _APART]
        found = found[: max(room - len(W), 0)].to(W)
        if not len(found):
            if wide:
                continue
            break
        W = torch.cat([W, found])
        U = torch.cat([U, U.new_zeros(len(found), C, U.shape[2])])
    return W, U


def search(
    X: Tensor,
    V: Tensor,
    cells: Tensor,
    W: Tensor,
    *,
    n_random: int,
    seed: int,
    deadline: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Return local maxima of F near given directions and elsewhere, best first, and the values of F.

    Samples of the rows would mislead: their terms cancel to a hundredth of their size and less.  So starts are
    compared on all rows, and only the best ascend.

    Parameters
    ----------
    X : Tensor, shape (m, d)
    V : Tensor, shape (m, K)
        Weights of the rows.
    cells : Tensor of int64, shape (m,)
        Nondecreasing.
    W : Tensor, shape (r, d)
        Unit directions, all of which ascend, as does for each the best of some perturbed ones.
    n_random : int
        Random directions, of which the best few ascend.
    seed : int
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    """
    generator = torch.Generator().manual_seed(seed)
    d = X.shape[1]
    fields = []

    def ascend(starts: Tensor, reach: float) -> None:
        found = climb(X, V, starts, cells=cells, deadline=deadline, max_steps=_STEPS, tol=1e-13, reach=reach)
        fields.append(found)

    share = min(1.0, _ROWS / max(len(X), 1))
    if len(W) and len(X):
        number = max(2, int(share * _NEAR))
        near = unit_rows(torch.cat([_perturbed(X, V, w, number, generator) for w in W]))
        values = relu_values(X, V, near, cells).view(len(W), -1)
        near = near.view(len(W), -1, d)[torch.arange(len(W)), values.argmax(1)]
        ascend(torch.cat([W, near]), 0.05)
    if n_random and len(X):
        n_random = max(2, int(share * n_random))
        random = torch.randn(n_random, d, generator=generator, dtype=V.dtype)
        picked = torch.randint(len(X), (n_random // 2,), generator=generator)
        random[: n_random // 2] = X[picked] * torch.sign(random[: n_random // 2, :1])
        random = unit_rows(random)
        values = relu_values(X, V, random, cells)
        ascend(distinct(random, values, most=_FINALISTS, angle=0.1), 0.3)
    if not fields:
        return W, W.new_zeros(len(W))
    W, values = (torch.cat(parts) for parts in zip(*fields, strict=True))
    W = distinct(W, values, most=len(W), fraction=0.0, angle=_APART)
    return W, relu_values(X, V, W, cells)


def _perturbed(X: Tensor, V: Tensor, w: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return some directions around a unit w, some of them on the kinks that w lies on.

    A maximum often lies where x . w = 0 for rows x of much weight, and so do better ones nearby.
    """
    heights = X @ w
    tight = heights.abs() <= 1e-3 * torch.linalg.vector_norm(X, dim=1)
    x, v = X[tight], torch.linalg.vector_norm(V[tight], dim=1)
    axes = torch.linalg.eigh((v[:, None] * x).T @ x).eigenvectors  # those across heavy kinks last
    d = len(w)
    noise = torch.randn(number, d, generator=generator, dtype=w.dtype)
    free = torch.randint(1, d + 1, (number, 1), generator=generator)
    noise = (noise * (torch.arange(d) < free)) @ axes.T
    size = 10.0 ** (-2.5 + 2.0 * torch.rand(number, 1, generator=generator, dtype=w.dtype))
    return w + size * unit_rows(noise)
