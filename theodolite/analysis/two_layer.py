"""Two-layer networks, pooled convolutional and deeper linear ones, found in a computation graph.

A network f(x) = U act(W x + b) + c is a sum over its hidden units,
f(x) = sum_i u_i act(w_i . x + b_i) + c.  Read from behind: a linear layer, an activation
that is positively homogeneous, a linear layer, and below it nothing that is trained.  So is a
linear layer behind the average pooling of ReLU of a convolution, its filters being the units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.head import NoHead, find_head

Activation = Literal["linear", "relu", "leaky_relu", "gated", "conv"]

# in evaluation mode dropout is the identity
_SAME = frozenset("alias clone contiguous detach dropout native_dropout lift_fresh_copy".split())
_RESHAPES = frozenset("flatten reshape squeeze unsqueeze view _unsafe_view".split())
_NORMALIZATIONS = ("batch_norm", "layer_norm", "group_norm", "instance_norm")


class NotTwoLayer(ValueError):  # noqa: N818  (an outcome: the network is of another family)
    """The network is not of a family that can be certified; the text says why."""


@dataclass(frozen=True)
class Convolution:
    """How a convolution, and the average pooling behind it, walk over the images: heights and widths.

    Attributes
    ----------
    stride, padding : pair of int
        Of the convolution; what is padded is zero.
    pool, pool_stride : pair of int
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    pool: tuple[int, int]
    pool_stride: tuple[int, int]


@dataclass(frozen=True, eq=False)
class TwoLayer:
    """A two-layer network, a pooled convolutional one, or a deeper linear one.

    Attributes
    ----------
    activation : {"linear", "relu", "leaky_relu", "gated", "conv"}
        "conv" for ReLU of a convolution, pooled.
    inputs : Node
        What the first trained layer reads, shape (n, d), or (n, channels, height, width) for a convolution; no
        trained parameter acts on it.
    gate : Node or None
        For "gated", the fixed factor of the hidden layer, shape (n, r).
    weights : tuple of str
        Names of the weights from the first layer to the last, (r, d) and (k, r) when there are two.
    hidden_bias, output_bias : str
        Names of the biases of the first and the last layer, "" where there is none.
    convolution : Convolution or None
        For "conv".
    negative_slope : float
        Of "leaky_relu".
    """

    activation: Activation
    inputs: Node
    gate: Node | None
    weights: tuple[str, ...]
    hidden_bias: str
    output_bias: str
    convolution: Convolution | None = None
    negative_slope: float = 0.0

    @property
    def depth(self) -> int:
        """Number of weight layers."""
        return len(self.weights)


def find_two_layer(graph: Graph, trained: set[int]) -> TwoLayer:
    """Read a network as a sum of hidden units.

    Parameters
    ----------
    graph : Graph
        A traced graph in evaluation mode.
    trained : set of int
        ``id`` of the parameters that are trained; the others are constants.

    Returns
    -------
    TwoLayer

    Raises
    ------
    NotTwoLayer
        If the network is of another form; the text is one sentence that says why.
    """
    return _Reader(graph, trained).read()


class _Reader:
    def __init__(self, graph: Graph, trained: set[int]) -> None:
        self.graph, self.trained = graph, trained
        self.moving: set[Node] = set()
        for node in graph.nodes:
            if self._is_trained(node) or any(source in self.moving for source in node.inputs):
                self.moving.add(node)

    def _is_trained(self, node: Node) -> bool:
        return node.op == "parameter" and id(self.graph.value_of(node)) in self.trained

    def read(self) -> TwoLayer:
        """Follow the output backward."""
        try:
            head = find_head(self.graph)
        except NoHead as outcome:
            raise NotTwoLayer(str(outcome)) from None
        for node in self.graph.operations:
            if any(name in node.op for name in _NORMALIZATIONS) and node.args[0] in self.moving:
                raise NotTwoLayer(
                    f"{node.where} normalizes: weights below it can shrink without any change of the function, "
                    "so that no bound of the polar exists"
                )
        output = next(n for n in self.graph.consumers(self._leaf(head.weight)) if n.op == "linear")
        _, output_bias = self._parameters(output)
        below = self._skip(head.features)
        if below not in self.moving:
            raise NotTwoLayer(f"{head.where} is the only trained layer: OPT004 certifies a last layer alone")
        if convolutional := self._convolutional(below, output):
            return convolutional
        activation, hidden, gate = self._activation(below)
        chain, node = [output], hidden
        while True:
            _, bias = self._parameters(node)
            chain.append(node)
            source = self._skip(node.args[0])
            if source not in self.moving:
                break
            if activation != "linear" or source.op != "linear":
                raise NotTwoLayer(
                    f"it is deeper than two layers: {node.where} reads {source.where}, which is trained too"
                )
            if bias:
                raise NotTwoLayer(f"{node.where} has a bias in the middle of a chain of linear layers")
            node = source
        if len(node.args[0].shape or ()) != 2:
            raise NotTwoLayer(f"{node.where} is applied at several places of one sample")
        weights = tuple(self._parameters(n)[0] for n in reversed(chain))
        slope = self._slope(below) if activation == "leaky_relu" else 0.0
        return TwoLayer(activation, node.args[0], gate, weights, bias, output_bias, None, slope)

    def _slope(self, node: Node) -> float:
        slope = node.argument(1, "negative_slope", 0.01)
        if not isinstance(slope, (int, float)) or not abs(slope) <= 1.0:
            raise NotTwoLayer(f"the negative slope of {node.where} is not a number in [-1, 1]")
        return float(slope)

    def _convolutional(self, below: Node, output: Node) -> TwoLayer | None:
        """Return the network if the last layer reads flattened, pooled ReLU of a convolution; None if it does not."""
        source = self._unflattened(below)
        pool = _pooling(source)
        active = source if pool is None else self._skip(source.args[0])
        layer = self._skip(active.args[0]) if active.op == "relu" else active
        if active.op != "relu" or layer.op != "conv2d":
            return None
        stride, padding = _pair(layer.argument(3, "stride", 1)), layer.argument(4, "padding", 0)
        kernel = layer.args[1].shape[2:]
        if isinstance(padding, str):  # "same", which has no stride; "valid" is traced as none
            if any(size % 2 == 0 for size in kernel):
                raise NotTwoLayer(f"{layer.where} pads one side more than the other")
            padding = [size // 2 for size in kernel]
        if _pair(layer.argument(5, "dilation", 1)) != (1, 1) or layer.argument(6, "groups", 1) != 1:
            raise NotTwoLayer(f"{layer.where} is dilated or in groups")
        if layer.args[0] in self.moving:
            raise NotTwoLayer(
                f"it is deeper than two layers: {layer.where} reads {layer.args[0].where}, which is trained too"
            )
        weight, bias = self._parameters(layer)
        weights, output_bias = (weight, self._parameters(output)[0]), self._parameters(output)[1]
        size, step = pool or ((1, 1), (1, 1))
        geometry = Convolution(stride, _pair(padding), size, step)
        return TwoLayer("conv", layer.args[0], None, weights, bias, output_bias, geometry)

    def _unflattened(self, below: Node) -> Node:
        """Return the (n, channels, height, width) that is flattened to what the last layer reads."""
        while below.op in _SAME or below.op in _RESHAPES:
            source = below.args[0]
            flat, whole = below.shape or (), source.shape or ()
            if flat[1:] != whole[1:] and flat[1:] != (math.prod(whole[1:]),):
                break
            below = source
        return below

    def _activation(self, below: Node) -> tuple[Activation, Node, Node | None]:
        """Return the activation, the layer that it acts on, and the gate."""
        if below.op == "linear":
            return "linear", below, None
        if below.op in ("relu", "leaky_relu"):
            hidden = self._skip(below.args[0])
            activation: Activation = "relu" if below.op == "relu" else "leaky_relu"
            gate = None
        elif (
            below.op == "mul" and len(below.inputs) == 2 and sum(n in self.moving for n in below.inputs) == 1
        ):
            first, second = below.inputs
            moving, gate = (first, second) if first in self.moving else (second, first)
            hidden, activation = self._skip(moving), "gated"
            if gate.shape != below.shape or hidden.shape != below.shape:
                raise NotTwoLayer(f"the factor in {below.where} is not one gate for each hidden unit")
        else:
            raise NotTwoLayer(
                f"'{below.op}' in {below.where} is neither the identity, nor ReLU, nor a product with fixed gates"
            )
        if hidden.op != "linear":
            raise NotTwoLayer(
                f"the activation acts on '{hidden.op}' in {hidden.where}, not on a linear layer"
            )
        return activation, hidden, gate

    def _skip(self, node: Node) -> Node:
        """Return the node that this one repeats."""
        while node.op in _SAME or (node.op in _RESHAPES and node.shape == node.args[0].shape):
            node = node.args[0]
        return node

    def _leaf(self, name: str) -> Node:
        return next(n for n in self.graph.nodes if n.target == name)

    def _parameters(self, node: Node) -> tuple[str, str]:
        """Return the names of a layer's weight and bias, both trained and its own."""
        names = []
        for leaf, name in ((node.args[1], "weight"), (node.argument(2, "bias"), "bias")):
            if leaf is None:
                names.append("")
                continue
            if leaf.op != "parameter":
                raise NotTwoLayer(
                    f"the {name} of {node.where} is not a parameter: it is computed ({leaf.op})"
                )
            if leaf not in self.moving:
                raise NotTwoLayer(f"the {name} of {node.where} is frozen: all of both layers must be trained")
            if self.graph.consumers(leaf) != [node]:
                raise NotTwoLayer(f"the {name} of {node.where} is used more than once")
            names.append(leaf.target)
        return names[0], names[1]


def _pooling(node: Node) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return size and stride of an average pooling without padding, or None for what is none."""
    source = node.args[0].shape if node.inputs else None
    if source is None or len(source) != 4:
        return None
    height, width = source[2:]
    if node.op == "avg_pool2d":
        size = _pair(node.args[1])
        stride = _pair(node.argument(2, "stride", ()) or size)
        plain = (
            _pair(node.argument(3, "padding", 0)) == (0, 0) and node.argument(6, "divisor_override") is None
        )
        return (size, stride) if plain and not node.argument(4, "ceil_mode", False) else None
    if node.op == "adaptive_avg_pool2d":
        rows, columns = _pair(node.args[1])
        size = height // rows, width // columns
        return (size, size) if (height % rows, width % columns) == (0, 0) else None
    if node.op == "mean" and sorted(d % 4 for d in node.args[1] or ()) == [2, 3]:
        return (height, width), (height, width)
    return None


def _pair(value: Any) -> tuple[int, int]:
    """Return a height and a width from one or two integers."""
    parts = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return int(parts[0]), int(parts[-1])
