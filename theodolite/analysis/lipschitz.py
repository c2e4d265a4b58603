r"""Upper bounds of a network's Lipschitz constant, by composition over its graph.

Every node gets a bound of the Lipschitz constant, in the Euclidean norm, of the map from
the input to that node: a layer multiplies it by its own, a sum adds those of its terms, a
concatenation takes the root of the sum of squares.  Paths from a common ancestor are thus
counted once each, as the triangle inequality wants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theodolite.analysis.graph import Graph, Node, trace
from theodolite.analysis.linear_layers import BATCH_NORM, Constants, LinearLayer, is_copy, linear_layers
from theodolite.analysis.operator_norms import NotLipschitz, operation_norm, product_refusal, refusal, size_of
from theodolite.value import Value

_PAIRWISE = 2000  # largest number of outputs for which all pairs of rows are compared
_ORDER_PRESERVING = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax"})
_PRODUCTS = frozenset("linear conv1d conv2d conv3d matmul mm bmm addmm mul".split())
_PRODUCTS |= {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


@dataclass(frozen=True, eq=False)
class LipschitzBounds:
    """What the composition rules prove about one network.

    Attributes
    ----------
    graph : Graph
    upper : float
        Upper bound of the Lipschitz constant of the output; inf when ``reason`` says why
        there is none.
    reason : str
        Names the layer that has no global Lipschitz constant, "" otherwise.
    witness : str
        That layer's qualified name.
    confidence : float
        1 unless a large matrix needed a randomized proof.
    layers : list of LinearLayer
        The weight layers.
    factors : dict of str to Value
        Lipschitz constant of each layer that is not 1-Lipschitz by its type.
    constants : dict of Node to float
        Bound for each node that depends on the input.
    """

    graph: Graph
    upper: float
    reason: str
    witness: str
    confidence: float
    layers: list[LinearLayer]
    factors: dict[str, Value]
    constants: dict[Node, float]

    @property
    def logits(self) -> Node:
        """Node whose order decides the predicted class: the output, before a final softmax."""
        node = self.graph.output
        assert node is not None
        while node.op in _ORDER_PRESERVING or is_copy(node):
            source: Node = node.args[0]
            along = node.op not in _ORDER_PRESERVING or int(node.args[1]) in (1, -1)
            if source.shape is None or len(source.shape) != 2 or not along:
                break
            node = source
        return node

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the output is probabilities; their logarithms differ at most as much as the logits do."""
        node, logits = self.graph.output, self.logits
        while node is not None and node is not logits and is_copy(node):
            node = node.args[0]
        return node is not None and node is not logits and node.op in ("softmax", "_softmax")

    def pairwise(self) -> Tensor:
        r"""Return upper bounds of the Lipschitz constants of all differences of two logits.

        :math:`\Lambda_{yj} = \|(e_y - e_j)^\top W\|_2` times the bound of the last layer's
        input; without a linear last layer, :math:`\sqrt 2` times the bound of the logits.

        Returns
        -------
        Tensor, shape (K, K), float64
            Zero on the diagonal.
        """
        logits = self.logits
        assert logits.shape is not None
        K = logits.shape[-1]
        last = next((layer for layer in self.layers if layer.node is logits), None)
        if last is None or last.operator is not None or K > _PAIRWISE:
            bound = torch.full((K, K), math.sqrt(2.0) * self.constants.get(logits, 0.0), dtype=torch.float64)
        else:
            distances = torch.cdist(last.rows, last.rows, compute_mode="donot_use_mm_for_euclid_dist")
            bound = distances * self.constants[last.origin]
        return bound.fill_diagonal_(0.0) * (1.0 + 1e-12)


def lipschitz_bounds(graph: Graph, tol: float = 1e-8) -> LipschitzBounds:
    """Return the bounds that the composition rules prove.

    Parameters
    ----------
    graph : Graph
        A traced graph, in evaluation mode.
    tol : float
        Relative width aimed at in each operator norm.

    Raises
    ------
    ValueError
        If the graph was not traced.
    """
    if graph.output is None:
        raise ValueError(f"graph: expected a traced graph; tracing failed: {graph.reason}")
    constants = Constants(graph)
    layers = linear_layers(graph, constants)
    rules = _Rules(graph, constants, layers, tol)
    reason, witness = "", ""
    try:
        for node in graph.nodes:
            if node in constants.data:
                rules.visit(node)
        upper = rules.states.get(graph.output, 0.0)
    except NotLipschitz as outcome:
        upper, reason, witness = math.inf, str(outcome), outcome.node.layer or outcome.node.op
    return LipschitzBounds(
        graph, upper, reason, witness, max(0.0, 1.0 - rules.doubt), layers, rules.factors, rules.states
    )


class _Rules:
    """The walk over the graph and what it found so far."""

    def __init__(self, graph: Graph, constants: Constants, layers: list[LinearLayer], tol: float) -> None:
        self.constants = constants
        self.tol = tol
        self.layers = {layer.node: layer for layer in layers}
        # a convolution whose normalization is folded in has no other reader, so needs no bound of its own
        self.folded = {layer.node.args[0] for layer in layers if layer.folded}
        self.states: dict[Node, float] = {}
        self.factors: dict[str, Value] = {}
        self.doubt = 0.0

    def visit(self, node: Node) -> None:
        if node.op == "input":
            self.states[node] = 1.0
        elif node in self.layers:
            layer = self.layers[node]
            norm = layer.norm(self.tol)
            self.doubt += 1.0 - norm.confidence
            self.note(layer.name, norm)
            self.states[node] = self.states[layer.origin] * norm.high
        elif node not in self.folded:
            self.states[node] = self.combine(node)

    def note(self, name: str, factor: Value) -> None:
        count = sum(known.partition("#")[0] == name for known in self.factors)
        self.factors[name if not count else f"{name}#{count + 1}"] = factor

    def combine(self, node: Node) -> float:
        sources = self.constants.data_inputs(node)
        op = node.op
        if op in ("add", "sub", "rsub"):
            return self.sum_of(node)
        if op in ("cat", "stack", "concat"):
            return math.sqrt(sum(self.states[source] ** 2 for source in sources))
        if op == "where" and not self.constants.depends(node.args[0]):
            return math.sqrt(sum(self.spread(node, source) ** 2 for source in sources))
        if op in ("maximum", "minimum"):
            return math.sqrt(sum(self.spread(node, source) ** 2 for source in sources))
        if len(sources) > 1 and op in _PRODUCTS:
            raise NotLipschitz(product_refusal(node), node)
        if len(set(sources)) > 1:
            raise NotLipschitz(refusal(node), node)
        value = operation_norm(node, self.constants)
        if op == BATCH_NORM or op.endswith("_norm"):
            self.note(node.layer or node.name, value)
        return self.states[sources[0]] * value.high

    def spread(self, node: Node, source: Node) -> float:
        """Return a source's bound after it was broadcast to the node's shape."""
        return self.states[source] * math.sqrt(max(1.0, size_of(node) / max(1, size_of(source))))

    def sum_of(self, node: Node) -> float:
        first, second = node.args[:2]
        alpha = float(node.argument(2, "alpha", 1))
        weights = (abs(alpha), 1.0) if node.op == "rsub" else (1.0, abs(alpha))
        return sum(
            weight * self.spread(node, term)
            for weight, term in zip(weights, (first, second), strict=True)
            if self.constants.depends(term)
        )


def lipschitz_upper(model: nn.Module, x: Tensor) -> Value:
    """Return a proved upper bound of a network's Lipschitz constant in the Euclidean norm.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; it is not changed.
    x : Tensor, shape (n, ...)
        Example inputs, used for their shape and dtype alone.

    Returns
    -------
    Value
        A one-sided bound, or absent with the layer that has no Lipschitz constant as witness.

    Raises
    ------
    ValueError
        If the model could not be traced.
    """
    bounds = lipschitz_bounds(trace(model, x))
    if bounds.reason:
        return Value.absent(bounds.witness, note=bounds.reason)
    return Value.bound(None, bounds.upper, confidence=bounds.confidence, note="by composition over the graph")
