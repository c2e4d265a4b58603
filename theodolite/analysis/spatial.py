"""Where the positions of an image are in each value of a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.graph import Graph, Node

BATCH = -1  # the axis of samples, beside the spatial axes 0, 1, ...
FREE = 1000  # axes from here on are neither: channels or heads that share a dimension with positions
NO_ORDER = "mixes positions that are in no regular order"
Label = (
    tuple[int, ...] | None
)  # axes that a tensor dimension runs over, row-major; None for what is none such


@dataclass(frozen=True)
class Layout:
    """Where the spatial axes of a value are.

    Attributes
    ----------
    labels : tuple of Label
        For each dimension of the tensor the axes that it runs over; () if it holds no
        positions; None if positions stand there in no regular order.
    grid : dict of int to int
        Size of each axis, without circular padding.
    stride : dict of int to Fraction
        Input pixels from one position to the next.
    period : dict of int to int
        Shifts of which structure could prove equivariance: multiples of this many pixels.
    """

    labels: tuple[Label, ...]
    grid: dict[int, int]
    stride: dict[int, Fraction]
    period: dict[int, int]

    def stretched(self, axis: int, size: int, factor: Fraction) -> Layout:
        """Return the layout with ``size`` positions, ``factor`` times as far apart, along one axis."""
        stride = self.stride[axis] * factor
        period = self.period[axis]
        while (period / stride).denominator != 1:
            period += self.period[axis]
        return replace(
            self,
            grid={**self.grid, axis: size},
            stride={**self.stride, axis: stride},
            period={**self.period, axis: period},
        )

    def has(self, axis: int) -> bool:
        """Return whether some dimension runs over the axis alone or with others."""
        return any(label is not None and axis in label for label in self.labels)


@dataclass
class Step:
    """What translations do to one operation.

    Attributes
    ----------
    layout : Layout, tuple of Layout, or None
        Of the result; None when unknown.
    fault : str
        Why the operation does not commute with the shifts, "" if it is shown that it does.
    """

    layout: Any
    fault: str = ""


@dataclass
class Trace:
    """What a graph computed on two samples.

    Attributes
    ----------
    shapes : dict of Node to tuple of int
        Shape of the result, of the first if there are several.
    sizes : dict of Node to object
        Results that are no tensors.
    single : set of Node
        Operations whose result is one tensor of floating numbers.
    """

    shapes: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    sizes: dict[Node, Any] = field(default_factory=dict)
    single: set[Node] = field(default_factory=set)


def record(graph: Graph, x: Tensor) -> Trace:
    """Run the graph on two samples and keep shapes and sizes."""
    found = Trace()

    def observe(node: Node, value: Any) -> None:
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if isinstance(first, Tensor):
            found.shapes[node] = tuple(first.shape)
            if first is value and value.is_floating_point():
                found.single.add(node)
        else:
            found.sizes[node] = value

    pair = x[:1].repeat_interleave(2, 0)
    for node in graph.nodes:
        if node.op == "input":
            found.shapes[node] = tuple(pair.shape)
        elif node.is_leaf:
            found.shapes[node] = tuple(graph.value_of(node).shape)
    with torch.no_grad():
        graph.run(pair, observe=observe)
    return found


def padded(trace: Trace, node: Node, layout: Layout) -> bool:
    """Return whether some dimension holds circular padding beside the positions of its axis."""
    sizes = zip(layout.labels, trace.shapes[node], strict=True)
    return any(
        label not in (None, (), (BATCH,)) and math.prod(layout.grid[a] for a in label) != size
        for label, size in sizes
    )


def merged(layouts: Sequence[Layout]) -> tuple[Layout, str]:
    """Return common grid, stride and period of several layouts (labels of the first), or what is wrong."""
    result, fault = layouts[0], ""
    for other in layouts[1:]:
        for axis, stride in other.stride.items():
            if result.has(axis) and other.has(axis) and result.stride[axis] != stride:
                fault = "combines layers of different strides"
            if not result.has(axis):
                result = replace(
                    result,
                    grid={**result.grid, axis: other.grid[axis]},
                    stride={**result.stride, axis: stride},
                )
            period = math.lcm(result.period[axis], other.period[axis])
            result = replace(result, period={**result.period, axis: period})
    return result, fault


def each(item: Any, d: int) -> list[Any]:
    """Return one number an axis, as ATen repeats a single one."""
    if isinstance(item, (int, str)):
        return [item] * d
    return list(item) if len(item) == d else list(item) * d


def only(layouts: dict[Node, Layout]) -> Layout:
    """Return the layout of the first argument that depends on the data, mostly the only one."""
    return next(iter(layouts.values()))
