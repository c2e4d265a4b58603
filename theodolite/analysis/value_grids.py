"""Values of a graph with their positions apart: one dimension for each spatial axis."""

from __future__ import annotations

from torch import Tensor

from theodolite.analysis.equivariance import is_comparable
from theodolite.analysis.graph import Graph
from theodolite.analysis.spatial import Layout
from theodolite.analysis.translation_action import Action


def apart(value: Tensor, layout: Layout) -> tuple[Tensor, dict[int, int]] | None:
    """Return a value with one dimension for each of its axes, and these dimensions by axis.

    None where an axis runs along several dimensions (the positions of queries and of keys).
    """
    shape: list[int] = []
    dims: dict[int, int] = {}
    for d, label in enumerate(layout.labels):
        if not label or d == 0:
            shape.append(value.shape[d])
            continue
        for axis in label:
            if axis in dims:
                return None
            dims[axis] = len(shape)
            shape.append(layout.grid[axis] if len(label) > 1 else value.shape[d])
    return value.reshape(shape), dims


def acts_on_output(graph: Graph, action: Action) -> bool | None:
    """Return whether positions reach the output: True if along all axes, False if none, None if unknown."""
    step = action.steps.get(graph.output) if graph.output is not None else None
    if step is None or graph.output is None or not is_comparable(step.layout, graph.output.shape or ()):
        return None
    left = [step.layout.has(a) for a in range(len(action.dims))]
    return None if any(left) and not all(left) else all(left)


def output_grid(graph: Graph, action: Action, output: Tensor) -> Tensor | None:
    """Return the output with its positions last, shape (n, c) and the sizes, or None if it has not all axes.

    Parameters
    ----------
    graph : Graph
        That of the action.
    action : Action
        How translations act.
    output : Tensor, shape (n, ...)
        Of the graph.
    """
    step = action.steps.get(graph.output) if graph.output is not None else None
    axes = range(len(action.dims))
    if step is None or not is_comparable(step.layout, tuple(output.shape)):
        return None
    found = apart(output, step.layout)
    if found is None or any(a not in found[1] for a in axes):
        return None
    grid, dims = found
    grid = grid.movedim([dims[a] for a in axes], list(range(grid.ndim - len(axes), grid.ndim)))
    return grid.reshape(len(output), -1, *grid.shape[grid.ndim - len(axes) :])
