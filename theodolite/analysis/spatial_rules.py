"""What translations do to each kind of operation: one rule a kind, all read by ``analysis.spatial``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.graph import Node
from theodolite.analysis.spatial import BATCH, FREE, Label, Layout, Step, Trace

_MOVES_TEXT = """
view reshape flatten unflatten _unsafe_view permute transpose t movedim squeeze unsqueeze select
slice narrow split split_with_sizes chunk unbind getitem cat concat stack expand
"""
_POINTWISE_TEXT = """
prelu hardswish log_sigmoid alias dropout native_dropout feature_dropout alpha_dropout _to_copy to contiguous
detach rsub lift_fresh_copy identity zeros_like ones_like full_like
"""
MOVES = frozenset(_MOVES_TEXT.split())
_POINTWISE = frozenset(_POINTWISE_TEXT.split())
_MIXED = -2  # marks entries of dimensions that mix positions with something else
_FREE_AXES = itertools.count(FREE)
_Key = tuple[int, int]  # a dimension, and an axis that it runs over

_BY_POSITION = "has weights that depend on the position"


def is_trivial(node: Node) -> bool:
    """Return whether an operation only moves, copies or pads entries."""
    return node.op in MOVES or node.op in (
        "clone",
        "alias",
        "contiguous",
        "detach",
        "_to_copy",
        "dropout",
        "pad",
    )


def step(trace: Trace, steps: dict[Node, Step], node: Node, sources: list[Node]) -> Step:
    """Return what translations do to an operation whose sources are known."""
    if node.op == "getitem":
        return _getitem(steps, node)
    layouts = {s: steps[s].layout for s in sources}
    if not all(isinstance(layout, Layout) for layout in layouts.values()):
        return Step(None, "takes several tensors at once")
    if node.op in ("max", "min") and isinstance(node.argument(1, "dim"), Node):
        return _pointwise(trace, node, layouts)
    for names, rule in _TABLE:
        if node.op in names:
            return rule(trace, node, layouts)
    tags = getattr(node.function, "tags", ())
    if torch.Tag.pointwise in tags or node.op in _POINTWISE:
        return _pointwise(trace, node, layouts)
    first = next(iter(layouts.values()))
    same = trace.shapes.get(node) == trace.shapes[sources[0]]
    return Step(first if same else None, f"has no rule here ({node.op})")


def _getitem(steps: dict[Node, Step], node: Node) -> Step:
    layout = steps[node.args[0]].layout
    if isinstance(layout, tuple):
        return Step(layout[node.args[1]])
    return Step(None, "takes the places of maxima, which shift along")


def _merged(layouts: Sequence[Layout]) -> tuple[Layout, str]:
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


def _pointwise(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    shape = trace.shapes[node]
    rank = len(shape)
    result, fault = _merged(list(layouts.values()))
    labels: list[Label] = []
    for d in range(rank):
        seen: dict[Label, Label] = {}
        for source, layout in layouts.items():
            at = d - rank + len(layout.labels)
            if at >= 0 and (trace.shapes[source][at] == shape[d] or layout.labels[at] == (BATCH,)):
                label = layout.labels[at]
                seen.setdefault(label and tuple(min(axis, FREE) for axis in label), label)
        if len(seen) > 1:
            fault = fault or "combines positions with what has none"
        labels.append(
            None if None in seen else max(seen.values(), key=lambda label: len(label or ()), default=())
        )
    for constant in node.inputs:
        sizes = trace.shapes.get(constant)
        if constant in layouts or sizes is None:
            continue
        aligned = zip(labels[rank - len(sizes) :], sizes, strict=True) if sizes else ()
        if any(size > 1 and label not in ((), (BATCH,)) for label, size in aligned):
            fault = fault or _BY_POSITION
    return Step(replace(result, labels=tuple(labels)), fault)


def _moved(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Move markers that carry each entry's position through the operation, and see where they went."""
    merged, fault = _merged(list(layouts.values()))
    rank = max(len(layout.labels) for layout in layouts.values())
    free = [[next(_FREE_AXES) for _ in range(8)] for _ in range(rank)]
    lines: dict[_Key, dict[Node, Tensor]] = {}
    for source, layout in layouts.items():
        cuts = trace.shapes[node] if "view" in node.op or "flatten" in node.op or node.op == "reshape" else ()
        for key, line in _lines(layout, trace.shapes[source], cuts, free).items():
            lines.setdefault(key, {})[source] = line.expand(trace.shapes[source]).contiguous()
    after = {key: run_on(trace, node, markers) for key, markers in lines.items()}
    several = isinstance(next(iter(after.values())), (tuple, list))
    results = []
    for part in range(len(next(iter(after.values()))) if several else 1):
        found = {key: result[part] if several else result for key, result in after.items()}
        for key, marker in found.items():
            whole = max(int(line.max()) + 1 for line in lines[key].values())
            if key[1] < FREE and len(marker[marker >= 0].unique()) < whole:
                fault = fault or "keeps some positions only"
        labels = _read(found)
        sizes = {key[1]: int(found[key].max()) + 1 for key in found if key[1] >= FREE}
        results.append(replace(merged, labels=labels, grid={**merged.grid, **sizes}))
    return Step(tuple(results) if several else results[0], fault)


def _lines(
    layout: Layout, shape: tuple[int, ...], new_shape: tuple[int, ...], free: list[list[int]]
) -> dict[_Key, Tensor]:
    """Return, for every dimension and axis that it runs over, the position of each entry along the axis.

    A dimension without positions is split where a new shape will split it, so that
    its parts can be followed one by one.
    """
    result: dict[_Key, Tensor] = {}
    below = 1
    for d in range(len(shape) - 1, -1, -1):
        label = layout.labels[d]
        if label:
            sizes = [(axis, layout.grid[axis] if len(label) > 1 else shape[d]) for axis in label]
        elif label is None:
            sizes = [(_MIXED, shape[d])]
        else:
            sizes = list(zip(free[d], _split(shape[d], below, new_shape), strict=False))
        after = 1
        for axis, size in reversed(sizes):
            result[d, axis] = (torch.arange(shape[d]) // after % size).view(-1, *[1] * (len(shape) - d - 1))
            after *= size
        below *= shape[d]
    return dict(reversed(result.items()))


def _split(size: int, below: int, new_shape: tuple[int, ...]) -> list[int]:
    """Return the factors into which a reshape cuts a dimension with ``below`` entries under each index."""
    cuts: list[int] = []
    product = 1
    for new in reversed(new_shape):
        product *= new
        cut = product // below
        last = cuts[-1] if cuts else 1
        if (
            product % below == 0
            and last < cut < size
            and cut % last == 0
            and size % cut == 0
            and len(cuts) < 7
        ):
            cuts.append(cut)
    bounds = [1, *cuts, size]
    return [high // low for low, high in itertools.pairwise(bounds)][::-1]


def run_on(trace: Trace, node: Node, markers: dict[Node, Tensor]) -> Any:
    """Run an operation on markers; what carries none is -1 throughout."""

    def filled(item: Any) -> Any:
        if isinstance(item, Node):
            if item in markers:
                return markers[item]
            return trace.sizes[item] if item in trace.sizes else torch.full(trace.shapes[item], -1)
        if isinstance(item, (tuple, list)):
            return type(item)(filled(part) for part in item)
        return item

    assert node.function is not None
    return node.function(*filled(node.args), **{k: filled(v) for k, v in node.kwargs.items()})


def _read(markers: dict[_Key, Tensor]) -> tuple[Label, ...]:
    """Return the labels of the dimensions along which moved markers vary."""
    rank = next(iter(markers.values())).ndim
    varying: list[list[_Key]] = [[] for _ in range(rank)]
    for key, marker in markers.items():
        for d in range(rank):
            if bool((marker != marker.narrow(d, 0, 1)).any()):
                varying[d].append(key)
    labels: list[Label] = []
    for d, keys in enumerate(varying):
        if all(axis >= FREE for _, axis in keys):
            labels.append(())
            continue
        lines = {key: markers[key].movedim(d, 0).reshape(markers[key].shape[d], -1)[:, 0] for key in keys}
        alone = all(axis != _MIXED and sum((e, axis) in other for other in varying) == 1 for e, axis in keys)
        order = next((o for o in itertools.permutations(keys) if _row_major(o, lines)), None)
        labels.append(tuple(axis for _, axis in order) if alone and order is not None else None)
    return tuple(labels)


def _row_major(order: Sequence[_Key], lines: dict[_Key, Tensor]) -> bool:
    """Return whether positions along several axes run through a dimension in row-major order."""
    length, expected = 1, {}
    for key in reversed(order):
        size = int(lines[key].max()) + 1
        expected[key] = (length, size)
        length *= size
    if any(len(line) != length for line in lines.values()):
        return False
    index = torch.arange(length)
    return all(torch.equal(lines[k], index // stride % size) for k, (stride, size) in expected.items())


def _one(layouts: dict[Node, Layout]) -> Layout:
    return next(iter(layouts.values()))


def _each(item: Any, d: int) -> list[Any]:
    if isinstance(item, (int, str)):
        return [item] * d
    return list(item) if len(item) == d else list(item) * d


def _windowed(
    trace: Trace,
    node: Node,
    layout: Layout,
    kernel: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    pool: bool,
) -> Step:
    """Slide a window: convolutions and pools."""
    d = len(kernel)
    before, after = trace.shapes[node.args[0]], trace.shapes[node]
    labels, fault = list(layout.labels), ""
    if not pool and labels[-d - 1] != ():
        labels[-d - 1], fault = (), "reads positions as channels"
    options = zip(kernel, _each(stride, d), _each(padding, d), _each(dilation, d), strict=True)
    for at, (k, s, p, gap) in zip(range(-d, 0), options, strict=True):
        label = labels[at]
        if label == ():
            continue
        if label is None or len(label) > 1 or label == (BATCH,):
            labels[at], fault = None, fault or "slides over positions that are not in a row"
            continue
        axis, n, n_out = label[0], layout.grid[label[0]], after[at]
        padded = (gap * (k - 1) > 0) if p == "same" else p not in (0, "valid")
        if pool and not padded and k == n == before[at] and n_out == 1:
            labels[at] = ()  # all positions at once
            continue
        layout = layout.stretched(axis, n_out, Fraction(s))
        labels[at] = label if n_out > 1 else ()
        if padded:
            fault = fault or "pads with zeros"
        elif n % s:
            fault = fault or f"has stride {s}, which does not divide the size {n}"
        elif n_out * s != n or (n_out - 1) * s + gap * (k - 1) + 1 > before[at]:
            fault = fault or "treats positions near the border differently"
    return Step(replace(layout, labels=tuple(labels)), fault)


def _convolution(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    if node.args[0] not in layouts or len(layouts) > 1:
        return Step(None, "convolves with weights made from the data")
    kernel = trace.shapes[node.args[1]][2:]
    options = (
        node.argument(i, name, default)
        for i, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    stride, padding, dilation = options
    return _windowed(trace, node, _one(layouts), kernel, stride, padding, dilation, pool=False)


def _pool(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    d = int(node.op[node.op.index("_pool") + 5])
    kernel = _each(node.argument(1, "kernel_size"), d)
    stride = node.argument(2, "stride") or kernel
    dilation = 1 if node.op.startswith("avg") else node.argument(4, "dilation", 1)
    return _windowed(
        trace, node, _one(layouts), kernel, stride, node.argument(3, "padding", 0), dilation, pool=True
    )


def _adaptive_pool(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout, shape = _one(layouts), trace.shapes[node]
    labels, fault = list(layout.labels), ""
    d = int(node.op[node.op.index("_pool") + 5])
    for at in range(-d, 0):
        label, n_out = labels[at], shape[at]
        if n_out == 1:
            labels[at] = ()
        elif label is None or len(label) > 1:
            labels[at], fault = None, "slides over positions that are not in a row"
        elif label:
            n = layout.grid[label[0]]
            if n % n_out or n != trace.shapes[node.args[0]][at]:
                fault = fault or f"pools {n} positions to {n_out}, unequally many in each cell"
            layout = layout.stretched(label[0], n_out, Fraction(n, n_out))
    result = replace(layout, labels=tuple(labels))
    return Step((result, None) if "max" in node.op else result, fault)


def _pad(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout, fault = _one(layouts), ""
    before, after = trace.shapes[node.args[0]], trace.shapes[node]
    circular = node.op == "pad" and node.argument(2, "mode", "constant") == "circular"
    for d, label in enumerate(layout.labels):
        if before[d] == after[d] or label == ():
            continue
        if label is None or len(label) > 1:
            return Step(None, "pads positions that are not in a row")
        if not circular:
            fault = "pads otherwise than circularly"
            layout = layout.stretched(label[0], after[d], Fraction(1))
    return Step(layout, fault)


def _transposed_convolution(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    if node.args[0] not in layouts or len(layouts) > 1:
        return Step(None, "convolves with weights made from the data")
    layout = _one(layouts)
    kernel, before, after = (trace.shapes[n] for n in (node.args[1], node.args[0], node))
    d = len(kernel) - 2
    stride = _each(node.argument(3, "stride", 1), d)
    fault = "" if layout.labels[-d - 1] == () else "reads positions as channels"
    for at in range(-d, 0):
        label = layout.labels[at]
        if label == ():
            continue
        if label is None or len(label) > 1:
            return Step(None, "slides over positions that are not in a row")
        layout = layout.stretched(label[0], after[at], Fraction(1, stride[at]))
        if kernel[at] != stride[at] or after[at] != before[at] * stride[at]:
            fault = fault or "cuts what its windows write beyond the border"
    return Step(layout, fault)


def _resized(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Upsampling and pixel (un)shuffling."""
    layout, fault = _one(layouts), ""
    before, after = trace.shapes[node.args[0]], trace.shapes[node]
    channels = 1 if node.op.startswith("upsample") else len(before) - 3
    if layout.labels[channels] != ():
        fault = "reads positions as channels"
    for d in range(channels + 1, len(before)):
        label = layout.labels[d]
        if label == ():
            continue
        if label is None or len(label) > 1:
            return Step(None, "resizes positions that are not in a row")
        layout = layout.stretched(label[0], after[d], Fraction(before[d], after[d]))
        if "linear" in node.op or "bicubic" in node.op:
            fault = fault or "interpolates otherwise than circularly"
        elif (after[d] % before[d] if after[d] > before[d] else before[d] % after[d]) != 0:
            fault = fault or f"resizes {before[d]} positions to {after[d]}"
    return Step(layout, fault)


def _product(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Matrix products: linear layers and attention."""
    first, second = node.args[0], node.args[1]
    left, right = layouts.get(first), layouts.get(second)
    if node.op == "linear" and right is not None:
        return Step(None, "has weights made from the data")
    rank = len(trace.shapes[node])
    if left is not None and right is not None:
        if len(left.labels) != rank or len(right.labels) != rank or rank < 2:
            return Step(None, f"has no rule here ({node.op})")
        merged, fault = _merged([left, right])
        inner = {left.labels[-1], right.labels[-2]}
        fault = fault or ("" if len(inner) == 1 and None not in inner else "mixes different positions")
        return Step(replace(merged, labels=(*left.labels[:-1], right.labels[-1])), fault)
    if left is not None:
        labels = left.labels
        same = trace.shapes[node][-1:] == trace.shapes[first][-1:]
        last = labels[-1] if same and labels[-1] is not None else ()
        return Step(
            replace(left, labels=(*labels[:-1], last)),
            "" if labels[-1] == () else "weighs each position by itself",
        )
    if right is None or len(right.labels) != rank or rank < 2:
        return Step(None, f"has no rule here ({node.op})")
    labels = right.labels
    fault = "" if labels[-2] == () else "weighs each position by itself"
    return Step(replace(right, labels=(*labels[:-2], (), labels[-1])), fault)


def _attention(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    query, key, value = (layouts.get(n) for n in node.args[:3])
    if query is None or key is None or value is None:
        return Step(None, "attends to what does not come from the data")
    merged, fault = _merged([query, key, value])
    if node.argument(3, "attn_mask") is not None or node.argument(5, "is_causal", False):
        fault = fault or "masks by position"
    if key.labels[-2] != value.labels[-2] or None in (*query.labels, *key.labels, *value.labels):
        fault = fault or "mixes different positions"
    return Step(replace(merged, labels=(*query.labels[:-1], value.labels[-1])), fault)


def _normalized(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Batch, group and instance normalization: one weight a channel, dimension 1."""
    layout = _one(layouts)
    return Step(layout, "" if layout.labels[1] == () else _BY_POSITION)


def _layer_norm(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout = _one(layouts)
    covered = layout.labels[-len(node.args[1]) :]
    weights = any(isinstance(a, Node) for a in node.args[2:4])
    return Step(layout, _BY_POSITION if weights and any(label != () for label in covered) else "")


def _reduction(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout = _one(layouts)
    rank = len(layout.labels)
    dims = node.argument(2 if node.op == "linalg_vector_norm" else 1, "dim")
    chosen = range(rank) if dims in (None, [], ()) else [dims] if isinstance(dims, int) else dims
    gone = {d % rank for d in chosen}
    keep = len(trace.shapes[node]) == rank
    labels = [() if d in gone else label for d, label in enumerate(layout.labels) if keep or d not in gone]
    result = replace(layout, labels=tuple(labels))
    pair = node.op in ("max", "min") and isinstance(dims, int)
    return Step((result, None) if pair else result)


def _unchanged(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    return Step(_one(layouts))


_Rule = Callable[[Trace, Node, dict[Node, Layout]], Step]
_NAMED: tuple[tuple[str, _Rule], ...] = (
    ("conv1d conv2d conv3d", _convolution),
    ("conv_transpose1d conv_transpose2d conv_transpose3d", _transposed_convolution),
    ("avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d", _pool),
    ("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices", _pool),
    ("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", _adaptive_pool),
    ("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", _adaptive_pool),
    ("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d", _pad),
    ("replication_pad1d replication_pad2d replication_pad3d", _pad),
    ("upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d", _resized),
    ("upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d pixel_shuffle pixel_unshuffle", _resized),
    ("linear matmul mm bmm", _product),
    ("scaled_dot_product_attention", _attention),
    ("_native_batch_norm_legit_no_training group_norm instance_norm", _normalized),
    ("layer_norm rms_norm", _layer_norm),
    ("mean sum amax amin var std prod logsumexp linalg_vector_norm max min", _reduction),
    ("softmax _softmax log_softmax _log_softmax roll", _unchanged),
    (_MOVES_TEXT, _moved),
)
_TABLE = tuple((frozenset(names.split()), rule) for names, rule in _NAMED)
