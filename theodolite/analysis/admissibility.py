r"""The weak admissibility condition of Wiatowski and Boelcskei, layer by layer of any network.

A layer filters (upper frame bound B), applies a nonlinearity (Lipschitz constant L) and pools
(Lipschitz constant R).  Where :math:`\max\{B, B L^2 R^2\} \le 1` at every layer of a chain the
features contract distances.  The condition speaks of chains alone; where branches meet, the row
holds the proved Lipschitz constant of the whole block from the point where they parted (a residual
block whose body has the constant :math:`\Lambda` has :math:`1 + \Lambda`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from theodolite.analysis import pooling
from theodolite.analysis.frames import FrameBounds, frame_bounds, padding_node
from theodolite.analysis.graph import Graph, Node, trace
from theodolite.analysis.linear_layers import BATCH_NORM, LinearLayer, batch_norm_line, per_axis
from theodolite.analysis.linear_layers import Constants as _Constants
from theodolite.analysis.lipschitz import LipschitzBounds, lipschitz_bounds
from theodolite.analysis.operator_norms import is_rearrangement
from theodolite.value import Value

ROUNDING = 1e-12  # an exact number this close above one is one
_POOLS = pooling.MAX_POOLS.keys() | pooling.AVERAGE_POOLS.keys() | pooling.PADS | {"mean", "sum", "amax"}
# besides layers, pools and what moves entries: f(c x) = c f(x) for every c > 0
_HOMOGENEOUS = frozenset("relu leaky_relu prelu abs neg add sub cat stack maximum minimum".split())
_HOMOGENEOUS |= pooling.MAX_POOLS.keys() | pooling.AVERAGE_POOLS.keys() | {"mean", "sum", BATCH_NORM}


@dataclass(eq=False)
class Row:
    """One layer with the nonlinearity and the pooling that follow it, or a place where branches meet.

    Attributes
    ----------
    name : str
        The weight layer's name, else the operation's.
    kind : {"layer", "normalization", "operation", "junction"}
        "operation" is one without weights that follows no layer of its own.
    start, end : Node
        First and last operation.
    frames : FrameBounds or None
        Of a weight layer or a normalization.
    factor : float
        Proved Lipschitz constant of the first operation; at a junction of the whole block.
    nonlinearity, pooling : float
        L and R: proved Lipschitz constants of what follows, pointwise or not.
    stride : tuple of float
        S along each axis, () where nothing slides.
    so_far : float
        Proved Lipschitz constant from the network's input to ``end``.
    head : bool
        Whether this is the linear classifier on top of the features.
    free : bool
        Whether scaling the layer can be undone at the classifier: everything from here to the
        features is positively homogeneous and on no parallel branch, and no other layer has its weights.
    """

    name: str
    kind: str
    start: Node
    end: Node
    frames: FrameBounds | None
    factor: float
    nonlinearity: float = 1.0
    pooling: float = 1.0
    stride: tuple[float, ...] = ()
    so_far: float = 0.0
    head: bool = False
    free: bool = False

    @property
    def gain(self) -> float:
        r"""Upper bound of max(:math:`\sqrt B`, :math:`\sqrt B L R`)."""
        return self.factor * max(1.0, self.nonlinearity * self.pooling)

    @property
    def admissible(self) -> bool | None:
        """Whether the condition holds; None where the bounds leave that open."""
        after = max(1.0, self.nonlinearity * self.pooling) ** 2
        if self.frames is None:
            return self.gain <= 1.0 + ROUNDING
        B = self.frames.upper
        if B.kind == "exact":
            return B.high * after <= 1.0 + ROUNDING
        # L and R are upper bounds, so that only B alone can refute
        return True if B.high * after <= 1.0 else False if B.low > 1.0 else None

    @property
    def scaling(self) -> float:
        """The factor, at most one, that makes the row admissible."""
        return 1.0 if self.admissible else min(1.0, 1.0 / self.gain)


@dataclass(frozen=True, eq=False)
class Admissibility:
    """The condition at every layer, and what it gives.

    Attributes
    ----------
    rows : list of Row
        In order of execution.
    features : Node
        What the classifier reads; the output where no linear layer comes last.
    lipschitz : LipschitzBounds
        Proved constants from the input to every operation before the first that has none.
    frames : dict of str to FrameBounds
        Of all weight layers and further normalizations, also of those that no row speaks of.
    """

    rows: list[Row]
    features: Node
    lipschitz: LipschitzBounds
    frames: dict[str, FrameBounds]

    @property
    def constant(self) -> Value:
        """Proved Lipschitz constant of the features; absent where an operation has none."""
        if self.features not in self.lipschitz.constants:
            return Value.absent(self.lipschitz.witness, note=self.lipschitz.reason)
        upper, confidence = self.lipschitz.constants[self.features], self.lipschitz.confidence
        note = "a contraction" if upper <= 1.0 else "not proved to be a contraction"
        return Value.bound(upper=upper, confidence=confidence, note=f"of the features: {note}")

    @property
    def offending(self) -> list[Row]:
        """The rows below the classifier where the condition fails."""
        return [row for row in self.rows if not row.head and row.admissible is False]

    @property
    def undecided(self) -> list[Row]:
        """The rows below the classifier where the bounds leave the condition open."""
        return [row for row in self.rows if not row.head and row.admissible is None]


def admissibility(model: nn.Module, x: Tensor) -> Admissibility:
    """Check the weak admissibility condition at every layer of a network.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; it is not changed.
    x : Tensor, shape (n, ...)
        Example inputs, used for their shape and dtype alone.

    Returns
    -------
    Admissibility

    Raises
    ------
    ValueError
        If the model could not be traced.

    References
    ----------
    Wiatowski and Boelcskei, IEEE Trans. Inf. Theory 64 (2018), Theorem 2 and Proposition 2.
    """
    return admissibility_of(trace(model, x))


def admissibility_of(graph: Graph, bounds: LipschitzBounds | None = None) -> Admissibility:
    """Return the same from a traced graph, and from its Lipschitz bounds where these are known."""
    bounds = lipschitz_bounds(graph) if bounds is None else bounds
    constants = _Constants(graph)
    walk = _Walk(graph, constants, bounds)
    for node in graph.nodes:
        if node in bounds.constants and node.op != "input":
            walk.visit(node)
    features, head = _features(bounds)
    for row in walk.rows:
        row.head = row.start is head
        row.so_far = bounds.constants[row.end]
        row.free = not (row.head or walk.shared(row.start)) and _free(
            graph, constants, bounds, row.start, features
        )
    others = {row.name: row.frames for row in walk.rows if row.frames is not None}
    return Admissibility(walk.rows, features, bounds, walk.frames | others)


def _features(bounds: LipschitzBounds) -> tuple[Node, Node | None]:
    """Return what a linear classifier at the end reads, and the classifier; else the output and None."""
    output, logits = bounds.graph.output, bounds.logits
    assert output is not None
    last = next((layer for layer in bounds.layers if layer.node is logits and layer.operator is None), None)
    return (output, None) if last is None else (last.origin, last.node)


@dataclass
class _Walk:
    """The rows so far, and the row that each node belongs to."""

    graph: Graph
    constants: _Constants
    bounds: LipschitzBounds
    rows: list[Row] = field(default_factory=list)
    of: dict[Node, Row | None] = field(default_factory=dict)
    dominator: dict[Node, Node | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = {layer.node: layer for layer in self.bounds.layers}
        self.pads = {padding_node(layer): layer for layer in self.bounds.layers}
        circular = {layer.source for layer in self.bounds.layers if layer.origin is not layer.source}
        self.skipped = circular | self.pads.keys()
        self.names: dict[str, int] = {}
        self.readers: dict[Node, int] = {}
        for node in self.graph.operations:
            for source in dict.fromkeys(node.inputs if node in self.constants.data else []):
                self.readers[source] = self.readers.get(source, 0) + 1
        self.frames = {layer.name: frame_bounds(layer) for layer in self.bounds.layers}

    def visit(self, node: Node) -> None:
        sources = list(dict.fromkeys(self.constants.data_inputs(node)))
        if node in self.layers:
            return self.layer(node, self.layers[node])
        self.dominator[node] = self.meeting(sources)
        row = self.of.get(sources[0])
        if len(self.constants.data_inputs(node)) > 1:
            split = self.dominator[node]
            factor = self.ratio(node, split) if split is not None else self.bounds.constants[node]
            return self.open(node, self.name(node), "junction", None, factor)
        if node.op == BATCH_NORM:
            return self.open(
                node, node.layer or node.name, "normalization", self.line(node), self.ratio(node)
            )
        goes_on = row is not None and row.end is sources[0] and self.readers[sources[0]] == 1
        if node in self.skipped or (is_rearrangement(node) and not goes_on):
            self.of[node] = row
        elif row is None or not goes_on:  # branches part here
            self.open(node, self.name(node), "operation", None, self.ratio(node))
        else:
            self.extend(row, node)
        return None

    def layer(self, node: Node, layer: LinearLayer) -> None:
        pad = padding_node(layer)
        source = layer.origin if pad is None else pad.args[0]
        self.dominator[node] = source
        frames = self.frames[layer.name]
        stride: tuple[float, ...] = () if layer.operator is None else layer.operator.stride
        if layer.operator is not None and layer.operator.limit is not None:  # transposed
            stride = tuple(1.0 / s for s in stride)
        self.open(node, layer.name, "layer", frames, math.sqrt(frames.upper.high), stride)

    def shared(self, node: Node) -> bool:
        """Return whether a layer's weights are also another layer's."""
        own = self.layers.get(node)
        others = (layer for layer in self.bounds.layers if layer is not own)
        return own is not None and any(own.parameters & other.parameters for other in others)

    def line(self, node: Node) -> FrameBounds:
        squares = batch_norm_line(node, self.constants)[0].square()
        upper = Value.exact(float(squares.max()))
        return FrameBounds(Value.exact(float(squares.min())), upper, upper)

    def open(
        self,
        node: Node,
        name: str,
        kind: str,
        frames: FrameBounds | None,
        factor: float,
        stride: tuple[float, ...] = (),
    ) -> None:
        self.names[name] = self.names.get(name, 0) + 1
        name = name if self.names[name] == 1 or kind == "layer" else f"{name} #{self.names[name]}"
        row = Row(name, kind, node, node, frames, factor, stride=stride or strides(node))
        self.rows.append(row)
        self.of[node] = row

    def extend(self, row: Row, node: Node) -> None:
        row.end = node
        self.of[node] = row
        ratio = self.ratio(node)
        if node.op in _POOLS:
            row.pooling *= ratio
        elif not is_rearrangement(node):
            row.nonlinearity *= ratio
        further = strides(node)
        if further:
            same = len(further) == len(row.stride)
            row.stride = tuple(a * b for a, b in zip(row.stride, further, strict=True)) if same else further

    def ratio(self, node: Node, source: Node | None = None) -> float:
        """Return the proved Lipschitz constant from ``source``, or from the node's one source, to the node."""
        source = self.constants.data_inputs(node)[0] if source is None else source
        before, after = self.bounds.constants[source], self.bounds.constants[node]
        return after / before if before > 0.0 else 0.0

    def meeting(self, sources: list[Node]) -> Node | None:
        """Return the last node that lies on every path from the input to all of the sources."""
        first, *others = sources
        paths = [set(self.above(other)) for other in others]
        return next((node for node in self.above(first) if all(node in path for path in paths)), None)

    def above(self, node: Node | None) -> list[Node]:
        path = []
        while node is not None:
            path.append(node)
            node = self.dominator.get(node)
        return path

    def name(self, node: Node) -> str:
        return f"{node.layer}.{node.op}" if node.layer else node.op


def strides(node: Node) -> tuple[float, ...]:
    """Return the positions from one window of a pool to the next along each axis, () for anything else."""
    axes = pooling.MAX_POOLS.get(node.op) or pooling.AVERAGE_POOLS.get(node.op)
    if axes is None:
        return ()
    if node.op.startswith("adaptive"):
        source: Node = node.args[0]
        assert source.shape is not None
        assert node.shape is not None
        return tuple(n / m for n, m in zip(source.shape[-axes:], node.shape[-axes:], strict=True))
    return per_axis(node.argument(2, "stride") or node.args[1], axes)


def _free(graph: Graph, constants: _Constants, bounds: LipschitzBounds, start: Node, features: Node) -> bool:
    """Return whether scaling ``start`` scales the features by the same factor, biases scaled along."""
    linear = {layer.node for layer in bounds.layers}
    linear |= {layer.node.args[0] for layer in bounds.layers if layer.folded}
    below = {start}
    for node in graph.nodes[graph.nodes.index(start) + 1 :]:
        sources = constants.data_inputs(node) if node in constants.data else []
        if not any(source in below for source in sources):
            continue
        pads_with_zero = node.op in pooling.PADS and not node.argument(3, "value", 0.0)
        plain = node in linear or node.op in _HOMOGENEOUS or pads_with_zero or is_rearrangement(node)
        if plain and all(source in below for source in sources):
            below.add(node)
        elif node is features:
            return False
    return features in below
