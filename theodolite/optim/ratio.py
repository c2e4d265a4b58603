"""A direction that makes one function small for the size of another: where a bound of their ratio is put to the test."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from theodolite.optim.lbfgs import minimize


def least_ratio(
    above: Callable[[tuple[Tensor, ...]], Tensor],
    below: Callable[[tuple[Tensor, ...]], Tensor],
    point: tuple[Tensor, ...],
    max_iterations: int = 8,
) -> tuple[Tensor, ...]:
    """Return a point with a smaller ``above / ||below||``, by a few steps of descent.

    Parameters
    ----------
    above, below : callable
        Differentiable functions of the tensors: a positive number, and a tensor of any shape.
    point : tuple of Tensor
        Where to start; returned as it is where a tensor is not of floating point.
    max_iterations : int
    """

    def objective(here: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
        leaves = tuple(p.requires_grad_() for p in here)
        with torch.enable_grad():
            ratio = above(leaves).log() - below(leaves).norm().log()
            return float(ratio.detach()), torch.autograd.grad(ratio, leaves)

    if not all(p.is_floating_point() for p in point):
        return point
    return minimize(objective, point, max_iterations=max_iterations)[0]
