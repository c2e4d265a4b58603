"""Activation regions along a segment by dense sampling and bisection."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def regions_by_sampling(
    model: nn.Module, x0: Tensor, x1: Tensor, *, samples: int = 4001, resolution: float = 1e-9
) -> tuple[list[float], list[float]]:
    """Return where activation patterns and where slopes change along a segment.

    Patterns are read off the modules (ReLU, LeakyReLU, PReLU, Hardtanh, ReLU6, max-pools);
    a change between neighboring samples is located by bisection, and a change that is
    undone between two samples is missed.

    Parameters
    ----------
    model : nn.Module
        Maps (n, ...) to (n, k); it is copied and run in float64.
    x0, x1 : Tensor, shape (...)
        Ends of the segment.
    samples : int
        Points of the first grid.
    resolution : float
        Length, relative to the segment, at which bisection stops.

    Returns
    -------
    cells, kinks : list of float
        Parameters t in (0, 1) at which the pattern, and at which the slope, changes.
    """
    model = copy.deepcopy(model).double().eval()
    x0, x1 = x0.double(), x1.double()
    grid = torch.linspace(0.0, 1.0, samples, dtype=torch.float64).tolist()
    # irrational offsets keep the samples off breakpoints at round numbers
    grid = [grid[0], *(t + 3.14159e-6 for t in grid[1:-1]), grid[-1]]
    cells = _changes(lambda t: _patterns(model, x0, x1, t), grid, resolution)
    edges = [0.0, *cells, 1.0]
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(edges)])
    slopes = _slopes(model, x0, x1, middles.double())
    differ = (slopes[1:] - slopes[:-1]).abs().amax(1) > 1e-9 * slopes.abs().max()
    return cells, [t for t, kink in zip(cells, differ.tolist(), strict=True) if kink]


def _changes(label: Callable[[Tensor], list[bytes]], grid: list[float], resolution: float) -> list[float]:
    points = dict(zip(grid, label(torch.tensor(grid, dtype=torch.float64)), strict=True))
    pending = [(a, b) for a, b in itertools.pairwise(grid) if points[a] != points[b]]
    found = []
    while pending:
        middles = [(a + b) / 2 for a, b in pending]
        points.update(zip(middles, label(torch.tensor(middles, dtype=torch.float64)), strict=True))
        halves = [half for (a, b), m in zip(pending, middles, strict=True) for half in ((a, m), (m, b))]
        changed = [(a, b) for a, b in halves if points[a] != points[b]]
        found += [(a + b) / 2 for a, b in changed if b - a < resolution]
        pending = [(a, b) for a, b in changed if b - a >= resolution]
    return sorted(found)


def _patterns(model: nn.Module, x0: Tensor, x1: Tensor, t: Tensor) -> list[bytes]:
    parts: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        value = inputs[0]
        if isinstance(module, nn.Hardtanh):
            parts.append((value > module.min_val).int() + (value > module.max_val).int())
        elif isinstance(module, nn.MaxPool2d):
            arguments = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            parts.append(F.max_pool2d(value, *arguments, return_indices=True)[1])
        elif isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.PReLU)):
            parts.append((value > 0).int())

    handles = [m.register_forward_hook(record) for m in model.modules()]
    with torch.no_grad():
        model(_points(x0, x1, t))
    for handle in handles:
        handle.remove()
    rows = torch.cat([part.flatten(1).to(torch.int64) for part in parts], 1)
    return [row.numpy().tobytes() for row in rows]


def _points(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    weight = t.view(-1, *[1] * x0.ndim)
    return (1 - weight) * x0 + weight * x1


def _slopes(model: nn.Module, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    x = _points(x0, x1, t).requires_grad_()
    output = model(x).flatten(1)
    columns = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in output.unbind(1)]
    return torch.stack([(gradient * (x1 - x0)).flatten(1).sum(1) for gradient in columns], 1)
