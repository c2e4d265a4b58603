"""What one forward pass costs, so that an analysis can choose how much of it to do.

Choices that rest on a count of operations, not on a clock, give the same numbers
on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.graph import Graph, Node

ROWS = 3  # neither the one that a squeeze drops nor the two that graphs are traced with


@dataclass(frozen=True)
class Cost:
    """Cost of a forward pass of one sample.

    Attributes
    ----------
    flops : dict of Node to float
        Multiplications and additions of each operation.
    shapes : dict of Node to tuple of int
        Shape of what each node returns (of the first, if several) for a batch of three.
    """

    flops: dict[Node, float]
    shapes: dict[Node, tuple[int, ...]]

    @property
    def total(self) -> float:
        """Multiplications and additions of the whole pass."""
        return sum(self.flops.values())

    @property
    def widest(self) -> int:
        """Entries of the largest intermediate result for one sample."""
        return max((self.numel(node) for node in self.flops), default=1)

    def numel(self, node: Node) -> int:
        """Entries of what a node that depends on the data returns for one sample."""
        return math.prod(self.shapes[node]) // ROWS


def forward_cost(graph: Graph, x: Tensor) -> Cost:
    """Count the operations of a forward pass by running it on three copies of one sample.

    Parameters
    ----------
    graph : Graph
        A traced graph.
    x : Tensor, shape (n, ...)
        Inputs, of which the first is used.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError
        If the graph accepts no other batch size than the one that it was traced with.
    """
    shapes: dict[Node, tuple[int, ...]] = {}
    flops: dict[Node, float] = {}
    batch = x[:1].repeat_interleave(ROWS, 0)

    def observe(node: Node, result: Any) -> None:
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if isinstance(first, Tensor):
            shapes[node] = tuple(first.shape)
            flops[node] = _flops(node, shapes) / ROWS

    for node in graph.nodes:
        if node.op == "input":
            shapes[node] = tuple(batch.shape)
        elif node.is_leaf:
            shapes[node] = tuple(graph.value_of(node).shape)
    with torch.no_grad():
        try:
            output = graph.run(batch, observe=observe)
        except RuntimeError as error:
            raise ValueError(f"graph: expected one with a free batch size, got: {error}") from error
    if len(output) != ROWS:
        raise ValueError(
            f"graph: expected one with a free batch size, got {len(output)} outputs for {ROWS} inputs"
        )
    return Cost(flops, shapes)


def _flops(node: Node, shapes: dict[Node, tuple[int, ...]]) -> float:
    size = math.prod(shapes[node])
    sizes = [shapes[s] for s in node.inputs if s in shapes]
    if node.op.startswith("conv_transpose"):
        return 2.0 * math.prod(sizes[0]) * math.prod(sizes[1][1:])
    if node.op.startswith("conv"):
        return 2.0 * size * math.prod(sizes[1][1:])
    if node.op in ("linear", "matmul", "mm", "bmm", "mv"):
        return 2.0 * size * sizes[0][-1]
    if node.op in ("addmm", "baddbmm"):
        return 2.0 * size * sizes[1][-1]
    if node.op == "scaled_dot_product_attention":
        return 4.0 * math.prod(sizes[0]) * sizes[1][-2]
    if node.op in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        weights = sum(math.prod(shapes[s]) for s in node.inputs if s.op == "parameter")
        return 2.0 * weights * max(sizes[0][:-1])
    return float(size)
