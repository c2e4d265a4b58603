r"""Path norms: the sum over all paths of the product of the weights on them.

:math:`\phi_q = (\sum_{\text{paths}} \prod_e |w_e|^q)^{1/q}` over the paths from any input
coordinate (and, for biases, from a constant 1) to any output, in one pass over the graph
with every weight w replaced by :math:`|w|^q` on the all-ones input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from theodolite.analysis import pooling
from theodolite.analysis.graph import Graph, Node, trace
from theodolite.analysis.linear_layers import (
    BATCH_NORM,
    Constants,
    batch_norm_line,
    is_copy,
    linear_layers,
)
from theodolite.analysis.operator_norms import is_rearrangement, size_of
from theodolite.value import Value

_POSITIVE = frozenset({"relu", "abs"})
_JOINS = frozenset({"cat", "stack", "concat"})
_COPYING = frozenset("expand repeat expand_as tile broadcast_to repeat_interleave".split())
_ORDER_PRESERVING = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax"})


class NotReLU(ValueError):  # noqa: N818  (an outcome, not an error)
    """Raised when the network has no path norm; names the layer."""

    def __init__(self, reason: str, node: Node) -> None:
        super().__init__(reason)
        self.node = node


@dataclass(frozen=True)
class PathSum:
    """A path norm to the power q.

    Attributes
    ----------
    total : float
        The sum over all paths; inf when it exceeds float64.
    q : float
    folded : tuple of str
        Batch normalizations that became edges.
    stripped : str
        A final softmax that was left out, "" for none.
    """

    total: float
    q: float
    folded: tuple[str, ...]
    stripped: str

    @property
    def norm(self) -> float:
        """The path norm itself."""
        return float(self.total ** (1.0 / self.q))


def path_norm(model: nn.Module, x: Tensor, q: float = 2.0, bias: Literal["edge", "drop"] = "edge") -> Value:
    """Return the path norm of a ReLU network of any shape.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; it is not changed.
    x : Tensor, shape (n, ...)
        Example inputs, used for their shape and dtype alone.
    q : float
        Exponent, at least 1.
    bias : {"edge", "drop"}
        Whether a bias counts as an edge from a constant 1, or not at all.

    Returns
    -------
    Value
        Exact; a lower bound when the sum exceeds float64.

    Raises
    ------
    ValueError
        If the model could not be traced, or an operation is not of a ReLU network
        (:class:`NotReLU`, which names the layer).

    References
    ----------
    Neyshabur, Tomioka and Srebro, COLT 2015; Gonon et al., ICLR 2024, for biases, skip
    connections and pooling.
    """
    if not q >= 1.0:
        raise ValueError(f"q: expected a number >= 1, got {q!r}")
    if bias not in ("edge", "drop"):
        raise ValueError(f"bias: expected 'edge' or 'drop', got {bias!r}")
    return path_value(path_sum(trace(model, x), q, bias))


def path_value(result: PathSum) -> Value:
    """Return a path sum as a value."""
    if math.isinf(result.total):
        largest = torch.finfo(torch.float64).max ** (1.0 / result.q)
        return Value.bound(largest, None, note="the sum over paths exceeds float64")
    return Value.exact(result.norm)


@torch.no_grad()
def path_sum(graph: Graph, q: float = 2.0, bias: Literal["edge", "drop"] = "edge") -> PathSum:
    """Return the sum over paths of a traced graph; see :func:`path_norm`.

    Raises
    ------
    ValueError
        If the graph was not traced.
    NotReLU
        If an operation is not of a ReLU network.
    """
    if graph.output is None:
        raise ValueError(f"graph: expected a traced graph; tracing failed: {graph.reason}")
    paths = _Paths(graph, q, bias)
    output, stripped = graph.output, ""
    while output.op in _ORDER_PRESERVING or (stripped and is_copy(output)):
        output, stripped = output.args[0], output.layer or output.op
    for node in graph.nodes:
        if node in paths.constants.data:
            paths.visit(node)
        if node is output:
            break
        paths.release(node, output)
    if output not in paths.mass:
        raise NotReLU("the output does not depend on the input", output)
    # two identical samples were traced; one of them counts
    total = float(paths.mass[output].sum()) / 2.0
    return PathSum(total, q, tuple(paths.folded), stripped)


class _Paths:
    """For each node, the sum over the paths that end at each of its units."""

    def __init__(self, graph: Graph, q: float, bias: str) -> None:
        self.q = q
        self.keep_bias = bias == "edge"
        self.constants = Constants(graph)
        self.layers = {layer.node: layer for layer in linear_layers(graph, self.constants)}
        self.skipped = {layer.node.args[0] for layer in self.layers.values() if layer.folded}
        self.mass: dict[Node, Any] = {}
        self.folded: list[str] = []
        self.readers: dict[Node, int] = {}
        for node in graph.nodes:
            for source in node.inputs:
                self.readers[source] = self.readers.get(source, 0) + 1

    def visit(self, node: Node) -> None:
        if node.op == "input":
            self.mass[node] = torch.ones(node.shape or (), dtype=torch.float64)
        elif node in self.layers:
            layer = self.layers[node]
            if layer.folded:
                self.folded.append(layer.folded)
            source, weight = self.mass[layer.source], self.weigh(layer.weight)
            self.mass[node] = layer.apply(source, weight, self.shift(layer.bias))
        elif node not in self.skipped:
            self.mass[node] = self.combine(node)

    def release(self, node: Node, output: Node) -> None:
        """Forget the masses that no later node reads."""
        if node in self.skipped:
            return
        finished = [node]
        if node in self.layers and self.layers[node].folded:
            finished.append(node.args[0])  # its own reading was put off until its normalization
        for reader in finished:
            for source in reader.inputs:
                self.readers[source] -= 1
                if self.readers[source] == 0 and source is not output:
                    self.mass.pop(source, None)

    def weigh(self, weights: Tensor) -> Tensor:
        return weights.abs() ** self.q

    def shift(self, bias: Tensor | None) -> Tensor | None:
        return self.weigh(bias) if bias is not None and self.keep_bias else None

    def term(self, item: Any) -> Any:
        """Return the mass of a summand; a constant is an edge from the constant 1."""
        if self.constants.depends(item):
            return self.mass[item]
        value = self.constants.tensor(item)
        return self.weigh(value) if self.keep_bias else torch.zeros_like(value)

    def combine(self, node: Node) -> Any:
        op, q = node.op, self.q
        source = self.constants.data_inputs(node)[0]
        mass = self.mass[source]
        if op in _POSITIVE or self._is_leaky(node):
            return mass
        if is_copy(node) or (op == "getitem" and source.op in pooling.MAX_POOLS and node.args[1] == 0):
            return mass  # of a maximum and its place, only the maximum has a mass
        if is_rearrangement(node) or op in _COPYING:
            return self.replay(node)
        if op in ("add", "sub", "rsub"):
            alpha = abs(float(node.argument(2, "alpha", 1))) ** q
            first, second = self.term(node.args[0]), self.term(node.args[1])
            return alpha * first + second if op == "rsub" else first + alpha * second
        if op in ("maximum", "minimum"):
            return self.term(node.args[0]) + self.term(node.args[1])
        if op in _JOINS:
            return self.replay(node)
        if op == "neg":
            return mass
        if op in ("mul", "div"):
            return self.scaled(node)
        if op == BATCH_NORM:
            scale, shift = batch_norm_line(node, self.constants)
            shape = (1, -1, *(1 for _ in range(mass.ndim - 2)))
            self.folded.append(node.layer or node.name)
            shifted = self.weigh(scale).reshape(shape) * mass
            return shifted + self.weigh(shift).reshape(shape) if self.keep_bias else shifted
        if op in pooling.MAX_POOLS or op in pooling.AVERAGE_POOLS:
            # a maximum is replaced by the sum over its window; averages have weights
            windows = pooling.pool_windows(node)
            for axis, along in enumerate(windows):
                mass = along.apply(mass, axis - len(windows), q)
            return mass
        if op in pooling.PADS:
            return self.padded(node)
        if op in ("mean", "sum", "amax", "amin"):
            merged = size_of(source) / size_of(node)
            total = self.reduced(node, mass)
            return total / merged**q if op == "mean" else total
        if op in ("max", "min") and len(node.args) > 1 and isinstance(node.args[1], int):
            return (mass.sum(node.args[1], keepdim=bool(node.argument(2, "keepdim", False))),)
        raise NotReLU(f"{node.where}: the operation '{op}' is not that of a ReLU network", node)

    def _is_leaky(self, node: Node) -> bool:
        if node.op == "leaky_relu":
            return abs(float(node.argument(1, "negative_slope", 0.01))) <= 1.0
        if node.op == "prelu" and not self.constants.depends(node.args[1]):
            return float(self.constants.tensor(node.args[1]).abs().max()) <= 1.0
        return False

    def replay(self, node: Node) -> Any:
        """Run a rearrangement on the masses."""

        def fill(item: Any) -> Any:
            if isinstance(item, (tuple, list)):
                return type(item)(fill(part) for part in item)
            if isinstance(item, Node) and self._is_real(item):
                term = self.term(item)
                # a copy that was skipped may have stood for this; several results stay as they are
                return term.contiguous() if isinstance(term, Tensor) else term
            return self.constants.value(item)

        assert node.function is not None
        function: Callable[..., Any] = node.function
        return function(*(fill(a) for a in node.args), **{k: fill(v) for k, v in node.kwargs.items()})

    def _is_real(self, item: Node) -> bool:
        if self.constants.depends(item):
            return True
        value = self.constants.value(item)
        return isinstance(value, Tensor) and value.is_floating_point()

    def scaled(self, node: Node) -> Tensor:
        first, second = node.args[:2]
        if self.constants.depends(first) and self.constants.depends(second):
            raise NotReLU(f"{node.where}: a product of two quantities that depend on the input", node)
        if node.op == "div":
            if self.constants.depends(second) or node.kwargs.get("rounding_mode"):
                raise NotReLU(f"{node.where}: the operation 'div' is not that of a ReLU network", node)
            return self.mass[first] * self.weigh(1.0 / self.constants.tensor(second))
        data, other = (first, second) if self.constants.depends(first) else (second, first)
        return self.mass[data] * self.weigh(self.constants.tensor(other))

    def padded(self, node: Node) -> Tensor:
        mass = self.mass[node.args[0]]
        mode = node.argument(2, "mode", "constant") if node.op == "pad" else node.op
        if mode not in ("constant", "constant_pad_nd"):
            return self.replay(node)
        fill = node.argument(3 if node.op == "pad" else 2, "value", 0.0) or 0.0
        edge = abs(float(fill)) ** self.q if self.keep_bias else 0.0
        return torch.nn.functional.pad(mass, [int(v) for v in node.args[1]], value=edge)

    def reduced(self, node: Node, mass: Tensor) -> Tensor:
        dims = node.argument(1, "dim", None)
        if dims is None or dims == []:
            dims = list(range(mass.ndim))
        return mass.sum(dims, keepdim=bool(node.argument(2, "keepdim", False)))
