"""Which operations of a graph are affine or continuous and piecewise linear in the data.

One table serves the check (is this network piecewise linear, and if not, which layer
is the first that is not?) and the count of its linear pieces, so that what is counted
is what was proved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.graph import Graph, Node

# affine in all tensor arguments together
_JOINT_NAMES = "add sub rsub neg cat stack concat slice_scatter select_scatter"
# affine in the first argument, for any other arguments that do not depend on the data
_UNARY_NAMES = """
view reshape flatten permute transpose t squeeze unsqueeze unflatten movedim view_as reshape_as _unsafe_view
select slice split split_with_sizes chunk unbind getitem index index_select narrow diagonal tril triu
clone contiguous alias detach lift_fresh_copy identity expand expand_as repeat tile roll flip rot90
pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
replication_pad3d mean sum cumsum diff avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d _native_batch_norm_legit_no_training unfold im2col col2im
pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty
"""
# a product of two factors: affine as long as one of the two arguments is free of the data
_FACTOR_NAMES = {
    "mul matmul mm bmm mv dot outer inner linear": (0, 1),
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d": (0, 1),
    "addmm addmv baddbmm addbmm addcmul bilinear": (1, 2),
}
_MAX_POOL_NAMES = """
max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
"""
# curved in their argument, whatever surrounds them; what is in no table here is simply not known
_CURVED_NAMES = """
sigmoid log_sigmoid tanh gelu silu mish softplus softsign elu celu selu hardswish tanhshrink erf exp expm1 log log1p
sqrt rsqrt square pow reciprocal sin cos softmax _softmax log_softmax _log_softmax logsumexp layer_norm rms_norm
group_norm instance_norm glu linalg_vector_norm norm var std prod lstm gru rnn_tanh scaled_dot_product_attention
mul matmul mm bmm mv dot outer linear conv1d conv2d conv3d addmm baddbmm addcmul bilinear div einsum
"""
_CURVED = frozenset(_CURVED_NAMES.split())
_JOINT, _UNARY = frozenset(_JOINT_NAMES.split()), frozenset(_UNARY_NAMES.split())
_MAX_POOLS = frozenset(_MAX_POOL_NAMES.split())
_REDUCTIONS = frozenset(["amax", "amin", "max", "min", "maximum", "minimum"])
_FACTORS = {name: pair for names, pair in _FACTOR_NAMES.items() for name in names.split()}


@dataclass(frozen=True)
class Elementwise:
    """A continuous piecewise linear function of one variable.

    Attributes
    ----------
    kinks : tuple of float
        Where the slope changes, ascending.
    slopes : tuple of float or Tensor
        One more than kinks; a tensor broadcasts against the sample.
    start : float
        Value at the first kink.
    """

    kinks: tuple[float, ...]
    slopes: tuple[float | Tensor, ...]
    start: float = 0.0


def data_dependent(graph: Graph) -> set[Node]:
    """Return the nodes whose entries depend on the data; sizes read off a shape do not."""
    alive: set[Node] = set()
    for node in graph.nodes:
        is_size = node.shape is None and node.op not in ("item", "_local_scalar_dense")
        if node.op == "input" or (not is_size and any(source in alive for source in node.inputs)):
            alive.add(node)
    return alive


def obstruction(graph: Graph) -> Node | None:
    """Return the first operation not shown to be continuous and piecewise linear in the data, or None."""
    alive = data_dependent(graph)
    for node in graph.operations:
        if node in alive and not (
            is_affine(node, alive) or elementwise(graph, node) is not None or is_maximum(node)
        ):
            return node
    return None


def is_curved(node: Node) -> bool:
    """Return whether an operation that :func:`obstruction` named is known not to be piecewise linear."""
    return node.op in _CURVED


def is_affine(node: Node, alive: set[Node]) -> bool:
    """Return whether an operation is affine in those of its arguments that depend on the data."""
    positions = _positions(node, alive)
    if node.op in _FACTORS:
        return sum(p in positions for p in _FACTORS[node.op]) < 2
    if node.op == "div":
        return 1 not in positions and node.kwargs.get("rounding_mode") is None
    if node.op == "einsum":
        return sum(source in alive for source in node.inputs) == 1
    if node.op in ("where", "masked_fill"):
        return not positions & ({0} if node.op == "where" else {1, 2})
    if node.op in ("dropout", "native_dropout", "feature_dropout", "alpha_dropout"):
        return not node.argument(2, "train", True)
    if node.op == "getitem":
        return not (node.args[0].op.startswith(("max", "min", "adaptive_max")) and node.args[1] != 0)
    if node.op in ("_to_copy", "to"):
        casts = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.dtype)]
        return all(dtype.is_floating_point for dtype in casts)
    return node.op in _JOINT or (node.op in _UNARY and positions <= {0})


def _positions(node: Node, alive: set[Node]) -> set[int]:
    """Return which arguments depend on the data; those given by name count as -1."""
    found = {i for i, argument in enumerate(node.args) if any(n in alive for n in _nodes(argument))}
    return found | ({-1} if any(n in alive for n in _nodes(tuple(node.kwargs.values()))) else set())


def _nodes(item: Any) -> Iterator[Node]:
    if isinstance(item, Node):
        yield item
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from _nodes(part)


def elementwise(graph: Graph, node: Node) -> Elementwise | None:
    """Return the function that an operation applies to each entry, if it is piecewise linear."""
    op = node.op
    if op == "relu":
        return Elementwise((0.0,), (0.0, 1.0))
    if op == "leaky_relu":
        return Elementwise((0.0,), (float(node.argument(1, "negative_slope", 0.01)), 1.0))
    if op == "rrelu":
        low, high = node.argument(1, "lower", 1 / 8), node.argument(2, "upper", 1 / 3)
        return None if node.argument(3, "training", False) else Elementwise((0.0,), ((low + high) / 2, 1.0))
    if op == "prelu":
        weight = node.args[1]
        if not weight.is_leaf or weight.op == "input":
            return None
        slope = graph.value_of(weight).detach().double()
        if slope.numel() > 1:  # one slope a channel: axis 1 of the batch
            slope = slope.view(-1, *[1] * (len(node.shape or ()) - 2))
        return Elementwise((0.0,), (slope, 1.0))
    if op == "abs":
        return Elementwise((0.0,), (-1.0, 1.0))
    if op == "hardsigmoid":
        return Elementwise((-3.0, 3.0), (0.0, 1 / 6, 0.0))
    if op == "threshold":
        at, value = node.args[1], node.args[2]
        return Elementwise((float(at),), (0.0, 1.0), float(at)) if at == value else None
    if op == "relu6":
        return _clamp(0.0, 6.0)
    if op == "hardtanh":
        return _clamp(node.argument(1, "min_val", -1.0), node.argument(2, "max_val", 1.0))
    if op == "clamp":
        return _clamp(node.argument(1, "min"), node.argument(2, "max"))
    if op == "clamp_min":
        return _clamp(node.argument(1, "min"), None)
    if op == "clamp_max":
        return _clamp(None, node.argument(1, "max"))
    return None


def _clamp(low: Any, high: Any) -> Elementwise | None:
    """Return a clamp between numbers; bounds that are tensors are not in the table."""
    if isinstance(low, (Node, Tensor)) or isinstance(high, (Node, Tensor)):
        return None
    below = low is not None and math.isfinite(low)
    above = high is not None and math.isfinite(high)
    if below and above:
        return Elementwise((float(low), float(high)), (0.0, 1.0, 0.0), float(low)) if low < high else None
    if below:
        return Elementwise((float(low),), (0.0, 1.0), float(low))
    return Elementwise((float(high),), (1.0, 0.0), float(high)) if above else None


def is_maximum(node: Node) -> bool:
    """Return whether an operation takes maxima or minima over fixed groups of entries."""
    return node.op in _MAX_POOLS or node.op in _REDUCTIONS


def candidates(node: Node, values: list[Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...], bool]:
    """Return what an operation takes the maxima of.

    Parameters
    ----------
    node : Node
        For which :func:`is_maximum` holds.
    values : list of Tensor, each of shape (rows, ...)
        Its tensor arguments, broadcast over rows.

    Returns
    -------
    entries : Tensor, shape (rows, d)
        The arguments' entries.
    groups : Tensor, shape (g, k), integers
        Columns of ``entries`` over which each maximum is taken; a group with fewer
        than k members repeats one.
    shape : tuple of int
        Shape of the g results for one row.
    smallest : bool
        Whether minima are meant.
    """
    smallest = node.op.startswith("min") or node.op == "amin"
    if len(values) == 2:
        first, second = _broadcast(*values)
        size = first[0].numel()
        columns = torch.arange(size, device=first.device)
        entries = torch.cat([first.reshape(len(first), -1), second.reshape(len(second), -1)], 1)
        return entries, torch.stack([columns, columns + size], 1), tuple(first.shape[1:]), smallest
    value = values[0]
    inner = tuple(value.shape[1:])
    columns = torch.arange(value[0].numel(), device=value.device).view(inner)
    if node.op in _MAX_POOLS:
        groups, shape = _pool_groups(node, columns)
    else:
        groups, shape = _reduction_groups(node, columns)
    return value.reshape(len(value), -1), groups, shape, smallest


def _broadcast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Broadcast two arguments whose axis 0 is the row."""
    rank = max(first.ndim, second.ndim)
    padded = [v.reshape(len(v), *[1] * (rank - v.ndim), *v.shape[1:]) for v in (first, second)]
    one, two = torch.broadcast_tensors(*padded)
    return one, two


def _reduction_groups(node: Node, columns: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    dims = node.argument(1, "dim", None)
    every = range(columns.ndim)
    chosen = list(every) if dims in (None, [], ()) else [dims] if isinstance(dims, int) else list(dims)
    chosen = [d % columns.ndim for d in chosen]
    kept = [d for d in every if d not in chosen]
    groups = columns.permute(*kept, *chosen).reshape(math.prod(columns.shape[d] for d in kept), -1)
    if node.argument(2, "keepdim", False):
        return groups, tuple(1 if d in chosen else columns.shape[d] for d in every)
    return groups, tuple(columns.shape[d] for d in kept)


def _pool_groups(node: Node, columns: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return each pooling window as columns, from the windows along every axis."""
    d = int(node.op[node.op.index("max_pool") + len("max_pool")])
    sizes = columns.shape[-d:]
    axes = [_windows(node, axis, d, size) for axis, size in enumerate(sizes)]
    # the window of an output cell is the product of its windows along the axes
    result = columns.reshape(-1, *sizes)
    for axis, windows in enumerate(axes):
        table = torch.as_tensor(windows, device=columns.device)
        at = 1 + axis  # windows of earlier axes have moved to the end
        result = result.movedim(at, -1)[..., table].movedim(-2, at)
    outputs = result.shape[1 : 1 + d]
    return result.reshape(result.shape[0] * math.prod(outputs), -1), (*columns.shape[:-d], *outputs)


def _windows(node: Node, axis: int, d: int, size: int) -> list[list[int]]:
    """Return the input positions of each pooling window along one axis, equally many in each."""
    if node.op.startswith("adaptive"):
        outputs = _each(node.args[1], d)[axis]
        cells = [range(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
    else:
        kernel = _each(node.argument(1, "kernel_size"), d)[axis]
        stride = _each(node.argument(2, "stride") or kernel, d)[axis % d]
        padding = _each(node.argument(3, "padding", 0), d)[axis]
        dilation = _each(node.argument(4, "dilation", 1), d)[axis]
        ceiling = bool(node.argument(5, "ceil_mode", False))
        span = size + 2 * padding - dilation * (kernel - 1) - 1
        outputs = (-(-span // stride) if ceiling else span // stride) + 1
        if ceiling and (outputs - 1) * stride >= size + padding:  # no window starts in the right padding
            outputs -= 1
        starts = [i * stride - padding for i in range(outputs)]
        cells = [range(s, s + dilation * (kernel - 1) + 1, dilation) for s in starts]
    inside = [[p for p in cell if 0 <= p < size] for cell in cells]
    longest = max(map(len, inside))
    return [window + window[:1] * (longest - len(window)) for window in inside]


def _each(item: Any, d: int) -> list[int]:
    if isinstance(item, int):
        return [item] * d
    return list(item) if len(item) == d else list(item) * d
