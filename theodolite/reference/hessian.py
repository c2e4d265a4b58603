"""Dense Hessians: by differentiating twice entry by entry, and by differences of values alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn


def objective_of(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    weight_decay: float = 0.0,
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return mean loss + w/2 ||parameters||^2 as a function of the flat parameters, and these (size,)."""
    named = {name: p.detach() for name, p in model.named_parameters()}

    def value(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        point = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        output = torch.func.functional_call(model, point, (x,))
        return loss(output, y) + 0.5 * weight_decay * flat.square().sum()

    return value, torch.cat([p.reshape(-1) for p in named.values()])


def dense_hessian(value: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Return the matrix of second derivatives at a point (size,), row by row."""
    return torch.autograd.functional.hessian(value, point)


def difference_hessian(value: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-4) -> Tensor:
    """Return the matrix of second differences at a point (size,), from values of the function alone."""
    size = len(point)
    steps = step * torch.eye(size, dtype=point.dtype)
    result = torch.zeros(size, size, dtype=point.dtype)
    for i, j in itertools.product(range(size), repeat=2):
        corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        total = sum(a * b * float(value(point + a * steps[i] + b * steps[j])) for a, b in corners)
        result[i, j] = total / (4.0 * step**2)
    return result
