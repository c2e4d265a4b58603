"""The weight layers of a graph as linear operators, with their normalization folded in.

Everything here is float64 on the CPU: statements are about the function that the stored
weights define in real arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.analysis.convolution import Convolution
from theodolite.analysis.graph import _FIRST_OUTPUT, Graph, Node
from theodolite.linalg.spectral import sigma_max
from theodolite.value import Value

BATCH_NORM = "_native_batch_norm_legit_no_training"
_TRANSPOSED = frozenset("conv_transpose1d conv_transpose2d conv_transpose3d".split())
_LAYERS = frozenset("linear conv1d conv2d conv3d".split()) | _TRANSPOSED
# operations that use the shape of a tensor and not its entries
_SHAPE_ONLY = frozenset(
    "sym_size sym_numel sym_stride zeros_like ones_like full_like new_zeros new_ones new_full".split()
)
# ways of copying a tensor that keep every entry
_COPIES = frozenset("alias clone contiguous detach _to_copy to lift_fresh_copy identity".split())

Apply = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


class Constants:
    """Which nodes depend on the data, and the float64 values of those that do not.

    Parameters
    ----------
    graph : Graph
        A traced graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.data: set[Node] = set()
        self._values: dict[Node, Any] = {}
        for node in graph.nodes:
            sources = node.op not in _SHAPE_ONLY and any(source in self.data for source in node.inputs)
            if node.op == "input" or sources:
                self.data.add(node)

    def depends(self, item: Any) -> bool:
        """Return whether an argument depends on the data."""
        return isinstance(item, Node) and item in self.data

    def data_inputs(self, node: Node) -> list[Node]:
        """Return the inputs of a node that depend on the data, each as often as it occurs."""
        return [source for source in node.inputs if source in self.data]

    def value(self, item: Any) -> Any:
        """Return the value of an argument that does not depend on the data; floats become float64."""
        if isinstance(item, (tuple, list)):
            return type(item)(self.value(part) for part in item)
        if not isinstance(item, Node):
            return item
        if item in self.data:
            return torch.zeros(item.shape or (), dtype=torch.float64)  # asked for its shape alone
        if item not in self._values:
            self._values[item] = self._compute(item)
        return self._values[item]

    def tensor(self, item: Any) -> Tensor:
        """Return the value of an argument as a float64 tensor on the CPU."""
        return torch.as_tensor(self.value(item), dtype=torch.float64).detach().cpu()

    def _compute(self, node: Node) -> Any:
        if node.is_leaf:
            result: Any = self.graph.value_of(node).detach()
        else:
            assert node.function is not None
            kwargs = {key: self.value(part) for key, part in node.kwargs.items()}
            with torch.no_grad():
                result = node.function(*(self.value(part) for part in node.args), **kwargs)
            if node.op in _FIRST_OUTPUT:
                result = result[0]
        if isinstance(result, Tensor) and result.is_floating_point():
            result = result.double()
        return result


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """One weight layer of a graph: y = W x + b.

    Attributes
    ----------
    name : str
        The layer's qualified name, with "#2" at its second use.
    node : Node
        Node of its output, after a folded normalization.
    source : Node
        Node that the operation reads.
    origin : Node
        Node on which ``norm`` is the norm: before a circular padding, which belongs to the
        convolution that reads it; otherwise the source.
    weight : Tensor, float64
        In the layout of the operation that applies it.
    bias : Tensor or None, float64
    apply : function(x, weight, bias) -> Tensor
        Runs the operation with other weights.
    rows : Tensor, shape (units, incoming)
        The weights that come into each output unit (or channel).
    operator : Convolution or None
        None for a plain matrix.
    folded : str
        Name of the batch normalization that was folded in, "" for none.
    parameters : frozenset of str
        Qualified names of the parameters that its weight is made of.
    """

    name: str
    node: Node
    source: Node
    origin: Node
    weight: Tensor
    bias: Tensor | None
    apply: Apply
    rows: Tensor
    operator: Convolution | None
    folded: str = ""
    parameters: frozenset[str] = frozenset()
    _norms: dict[float, Value] = field(default_factory=dict, repr=False)

    def norm(self, tol: float = 1e-8) -> Value:
        """Return a two-sided bound of the operator norm, of relative width about ``tol`` if small."""
        if tol not in self._norms:
            self._norms[tol] = (
                sigma_max(self.rows, tol=tol) if self.operator is None else self.operator.norm(tol)
            )
        return self._norms[tol]

    def squared_frobenius(self) -> float:
        """Return the sum of the squared entries of the operator's matrix."""
        return float((self.rows**2).sum()) if self.operator is None else self.operator.squared_frobenius()


def linear_layers(graph: Graph, constants: Constants) -> list[LinearLayer]:
    """Return the weight layers of a traced graph in order of execution.

    Products of the data with a constant matrix and convolutions with a constant kernel;
    a batch normalization (with running statistics) that follows one directly and is its
    only reader is folded in.
    """
    readers: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        for source in node.inputs:
            readers.setdefault(source, []).append(node)
    layers: list[LinearLayer] = []
    used: dict[str, int] = {}
    for node in graph.operations:
        operation = _read(node, constants)
        if operation is None:
            continue
        used[operation.name] = used.get(operation.name, 0) + 1
        name = operation.name if used[operation.name] == 1 else f"{operation.name}#{used[operation.name]}"
        following = readers.get(node, [])
        folds = len(following) == 1 and node is not graph.output and following[0].op == BATCH_NORM
        norm = following[0] if folds and operation.units_are_channels else None
        layers.append(operation.layer(name, norm, constants))
    return layers


def batch_norm_line(node: Node, constants: Constants) -> tuple[Tensor, Tensor]:
    """Return (scale, shift) of a batch normalization with running statistics, shape (channels,)."""
    _, gamma, beta, mean, variance, _, eps = node.args[:7]
    deviation = torch.sqrt(constants.tensor(variance) + float(eps))
    scale = (torch.ones_like(deviation) if gamma is None else constants.tensor(gamma)) / deviation
    offset = torch.zeros_like(scale) if beta is None else constants.tensor(beta)
    return scale, offset - scale * constants.tensor(mean)


def is_copy(node: Node) -> bool:
    """Return whether a node hands its first argument on unchanged (a clone, an inactive dropout)."""
    if node.op in ("native_dropout", "dropout"):
        return not node.argument(2, "train", False) or float(node.argument(1, "p", 0.5)) == 0.0
    dtypes = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.dtype)]
    return node.op in _COPIES and all(dtype.is_floating_point for dtype in dtypes)


def per_axis(argument: Any, axes: int) -> tuple[int, ...]:
    """Return an argument such as a stride as one integer for each axis."""
    values = [int(v) for v in argument] if isinstance(argument, (tuple, list)) else [int(argument)]
    return tuple(values * axes) if len(values) == 1 else tuple(values)


@dataclass(frozen=True, eq=False)
class _Operation:
    """A product with constant weights, as it stands in the graph."""

    name: str
    node: Node
    source: Node
    weight: Tensor
    bias: Tensor | None
    rest: tuple[Any, ...]
    apply: Apply
    parameters: frozenset[str]

    @property
    def transposed(self) -> bool:
        return self.node.op in _TRANSPOSED

    @property
    def units_are_channels(self) -> bool:
        """Whether the axis that batch normalization scales holds the output units."""
        return self.weight.ndim > 2 or (self.node.shape is not None and len(self.node.shape) == 2)

    def setting(self, position: int, default: int = 1) -> Any:
        """Return one of the settings that follow the bias: stride, padding, ..."""
        return self.rest[position] if len(self.rest) > position else default

    @property
    def groups(self) -> int:
        return int(self.setting(3)) if self.weight.ndim > 2 else 1

    def layer(self, name: str, norm: Node | None, constants: Constants) -> LinearLayer:
        weight, bias = self.weight, self.bias
        if norm is not None:
            scale, shift = batch_norm_line(norm, constants)
            weight = self._scaled(scale)
            bias = shift if bias is None else shift + scale * bias
        operator, origin = (None, self.source) if weight.ndim == 2 else self._convolution(weight)
        return LinearLayer(
            name=name,
            node=self.node if norm is None else norm,
            source=self.source,
            origin=origin,
            weight=weight,
            bias=bias,
            apply=self.apply,
            rows=self._rows(weight),
            operator=operator,
            folded="" if norm is None else norm.layer or norm.name,
            parameters=self.parameters,
        )

    def _blocks(self, weight: Tensor) -> Tensor:
        # layout (in, out / groups, ...): the outputs of group g belong to the g-th block of inputs
        return weight.reshape(self.groups, -1, *weight.shape[1:])

    def _rows(self, weight: Tensor) -> Tensor:
        if self.transposed:
            return self._blocks(weight).transpose(1, 2).flatten(0, 1).flatten(1)
        return weight.flatten(1)

    def _scaled(self, scale: Tensor) -> Tensor:
        ones = (1,) * (self.weight.ndim - 2)
        if self.transposed:
            blocks = self._blocks(self.weight) * scale.reshape(self.groups, 1, -1, *ones)
            return blocks.reshape(self.weight.shape)
        return self.weight * scale.reshape(-1, 1, *ones)

    def _convolution(self, weight: Tensor) -> tuple[Convolution, Node]:
        axes = weight.ndim - 2
        assert self.source.shape is not None
        assert self.node.shape is not None
        sizes = self.source.shape[-axes:]
        stride = per_axis(self.setting(0), axes)
        dilation = per_axis(self.setting(4 if self.transposed else 2), axes)
        padding = _padding(self.setting(1, 0), weight.shape[2:], dilation)
        if self.transposed:  # the adjoint of the convolution that maps its output to its input
            out = self.node.shape[-axes:]
            return Convolution(weight, out, stride, padding, dilation, self.groups, limit=sizes), self.source
        sides = None if any(map(any, padding)) else _circular(self.source, axes)
        if sides is None:
            return Convolution(weight, sizes, stride, padding, dilation, self.groups), self.source
        inner = tuple(n - sum(pair) for n, pair in zip(sizes, sides, strict=True))
        operator = Convolution(weight, inner, stride, sides, dilation, self.groups, mode="circular")
        return operator, self.source.args[0]


def _circular(source: Node, axes: int) -> tuple[tuple[int, int], ...] | None:
    """Return (left, right) for each axis when the node is a circular padding of all of them."""
    if source.op != "pad" or source.argument(2, "mode", "constant") != "circular":
        return None
    flat = [int(v) for v in source.args[1]]
    if len(flat) != 2 * axes:
        return None
    return tuple((flat[2 * i], flat[2 * i + 1]) for i in reversed(range(axes)))


def _read(node: Node, constants: Constants) -> _Operation | None:
    """Return the product that a node is, or None."""
    bias, rest = None, ()
    if node.op in _LAYERS:
        source, weight, bias, rest = node.args[0], node.args[1], node.argument(2, "bias"), node.args[3:]
    elif node.op in ("matmul", "mm"):
        source, weight = node.args
    elif node.op == "addmm" and not node.kwargs:
        bias, source, weight = node.args
    else:
        return None
    if not constants.depends(source) or constants.depends(weight) or constants.depends(bias):
        return None
    matrix = constants.tensor(weight)
    shift = None if bias is None else constants.tensor(bias)
    if node.op in _LAYERS:
        rest = tuple(constants.value(rest))
        apply = _replay(node, rest)
        return _Operation(_name(node, weight), node, source, matrix, shift, rest, apply, _targets(weight))
    if matrix.ndim != 2:
        return None
    return _Operation(_name(node, weight), node, source, matrix.T, shift, (), F.linear, _targets(weight))


def _targets(node: Any) -> frozenset[str]:
    """Return the names of the parameters that a node is computed from."""
    if not isinstance(node, Node):
        return frozenset()
    own = frozenset({node.target}) if node.target else frozenset()
    return own.union(*(_targets(source) for source in node.inputs))


def _replay(node: Node, rest: tuple[Any, ...]) -> Apply:
    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert node.function is not None
        result: Tensor = node.function(x, weight, bias, *rest)
        return result

    return apply


def _name(node: Node, weight: Any) -> str:
    if isinstance(weight, Node) and weight.target:
        return weight.target.removesuffix(".weight")
    return node.layer.partition(".parametrizations")[0] or node.name


def _padding(argument: Any, kernel: Any, dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if argument == "valid":
        return tuple((0, 0) for _ in kernel)
    if argument == "same":
        totals = [d * (int(k) - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in per_axis(argument, len(kernel)))
