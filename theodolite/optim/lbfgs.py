"""L-BFGS over tensors (scipy's L-BFGS-B), with a deadline and the best point kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize as scipy_minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

Tensors = tuple[Tensor, ...]


class _Ended(Exception):  # noqa: N818  (no error: the best point so far is returned)
    pass


def minimize(
    function: Callable[[Tensors], tuple[float, Sequence[Tensor]]],
    start: Tensors,
    *,
    nonnegative: bool = False,
    ftol: float = 1e-12,
    gtol: float = 1e-12,
    max_iterations: int = 1000,
    memory: int = 30,
    deadline: float = math.inf,
    progress: Callable[[Tensors], None] | None = None,
) -> tuple[Tensors, float]:
    """Minimize a function of several tensors.

    Parameters
    ----------
    function : function(tensors) -> (value, gradients)
        Gradients in the shapes of the tensors.  An infinite value marks a point outside the domain.
    start : tuple of Tensor
        Float64, on any one device; the tensors that ``function`` gets lie there too.
    nonnegative : bool
        Whether all entries are constrained to be >= 0.
    ftol, gtol : float
        Stop when a step's relative gain, or the projected gradient's largest entry, is below.
    max_iterations, memory : int
        Steps, and how many of them the Hessian's approximation remembers.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    progress : function(tensors), optional
        Called after each iteration with the best point so far.

    Returns
    -------
    tensors, value
        The best point evaluated, never worse than the start; the start and inf when it is outside the domain.
    """
    sizes, shapes = [p.numel() for p in start], [p.shape for p in start]
    best: tuple[Tensors, float] = (start, math.inf)

    def objective(x: Any) -> tuple[float, Any]:
        nonlocal best
        if time.monotonic() > deadline and best[1] < math.inf:
            raise _Ended
        flat = torch.from_numpy(x.copy()).to(start[0].device)
        point = tuple(part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))
        value, gradients = function(point)
        if not math.isfinite(value) and math.isinf(best[1]):
            raise _Ended  # the start itself is outside the domain
        if not math.isfinite(value):  # a wall that leads the line search back to the best point
            away = x - np.concatenate([p.reshape(-1).cpu().numpy() for p in best[0]])
            height = 10.0 * (1.0 + abs(best[1]))
            return best[1] + height, 2.0 * height * away / float(away @ away)
        if value < best[1]:
            best = point, value
        return value, torch.cat([g.detach().reshape(-1) for g in gradients]).cpu().numpy()

    x = torch.cat([p.detach().reshape(-1).double() for p in start]).cpu().numpy()
    # its dozens of tiny BLAS calls an iteration lose a factor of three and more to idle threads
    with suppress(_Ended), threadpool_limits(limits=1, user_api="blas"):
        scipy_minimize(
            objective,
            x,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, None)] * len(x) if nonnegative else None,
            callback=None if progress is None else lambda _: progress(best[0]),
            options={
                "maxiter": max_iterations,
                "maxfun": 10 * max_iterations,
                "maxcor": memory,
                "ftol": ftol,
                "gtol": gtol,
            },
        )
    return tuple(p.detach() for p in best[0]), best[1]
