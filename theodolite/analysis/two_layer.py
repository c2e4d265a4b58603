"""Two-layer networks, and deeper linear ones, found in a computation graph.

A network f(x) = U act(W x + b) + c is a sum over its hidden units,
f(x) = sum_i u_i act(w_i . x + b_i) + c.  Read from behind: a linear layer, an activation
that is positively homogeneous, a linear layer, and below it nothing that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.head import NoHead, find_head

Activation = Literal["linear", "relu", "gated"]

# in evaluation mode dropout is the identity
_SAME = frozenset("alias clone contiguous detach dropout native_dropout lift_fresh_copy".split())
_RESHAPES = frozenset("flatten reshape squeeze unsqueeze view _unsafe_view".split())
_NORMALIZATIONS = ("batch_norm", "layer_norm", "group_norm", "instance_norm")


class NotTwoLayer(ValueError):  # noqa: N818  (an outcome: the network is of another family)
    """The network is not of a family that can be certified; the text says why."""


@dataclass(frozen=True, eq=False)
class TwoLayer:
    """A two-layer network, or a deeper linear one.

    Attributes
    ----------
    activation : {"linear", "relu", "gated"}
    inputs : Node
        What the first trained layer reads, shape (n, d); no trained parameter acts on it.
    gate : Node or None
        For "gated", the fixed factor of the hidden layer, shape (n, r).
    weights : tuple of str
        Names of the weights from the first layer to the last, (r, d) and (k, r) when there are two.
    hidden_bias, output_bias : str
        Names of the biases of the first and the last layer, "" where there is none.
    """

    activation: Activation
    inputs: Node
    gate: Node | None
    weights: tuple[str, ...]
    hidden_bias: str
    output_bias: str

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
        return TwoLayer(activation, node.args[0], gate, weights, bias, output_bias)

    def _activation(self, below: Node) -> tuple[Activation, Node, Node | None]:
        """Return the activation, the layer that it acts on, and the gate."""
        if below.op == "linear":
            return "linear", below, None
        if below.op == "relu":
            hidden = self._skip(below.args[0])
            activation: Activation = "relu"
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
