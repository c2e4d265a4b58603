"""What translations do to each kind of operation: one rule a kind, all read by ``analysis.spatial``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from theodolite.analysis import spatial_windows as windows
from theodolite.analysis.graph import Node
from theodolite.analysis.spatial import (
    BATCH,
    FREE,
    NO_ORDER,
    Label,
    Layout,
    Step,
    Trace,
    merged,
    only,
    padded,
)
from theodolite.analysis.spatial_moves import MOVES, moved

_POINTWISE_TEXT = """
prelu hardswish log_sigmoid alias dropout native_dropout feature_dropout alpha_dropout _to_copy to contiguous
detach rsub lift_fresh_copy identity zeros_like ones_like full_like
"""
_CONVOLUTIONS = "conv1d conv2d conv3d"
_POOLS = """
avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
"""
# besides pointwise operations, what may meet the positions that a circular padding repeats
_READ_PADDING = frozenset(f"{_CONVOLUTIONS} {_POOLS} pad clone _native_batch_norm_legit_no_training".split())
_POINTWISE = frozenset(_POINTWISE_TEXT.split())

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
    pointwise = torch.Tag.pointwise in getattr(node.function, "tags", ()) or node.op in _POINTWISE
    repeats = any(padded(trace, source, layout) for source, layout in layouts.items())
    if repeats and not pointwise and node.op not in _READ_PADDING:
        return Step(None, "takes circular padding for positions")
    for names, rule in _TABLE:
        if node.op in names:
            return rule(trace, node, layouts)
    if pointwise:
        return _pointwise(trace, node, layouts)
    first = next(iter(layouts.values()))
    same = node in trace.single and trace.shapes.get(node) == trace.shapes[sources[0]]
    return Step(first if same else None, f"has no rule here ({node.op})")


def _getitem(steps: dict[Node, Step], node: Node) -> Step:
    layout = steps[node.args[0]].layout
    chosen = layout[node.args[1]] if isinstance(layout, tuple) else None
    return Step(chosen, "" if chosen is not None else "takes the places of maxima, which shift along")


def _pointwise(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    shape = trace.shapes[node]
    rank = len(shape)
    result, fault = merged(list(layouts.values()))
    labels: list[Label] = []
    for d in range(rank):
        seen: dict[Label, Label] = {}
        for source, layout in layouts.items():
            at = d - rank + len(layout.labels)
            if at >= 0 and (trace.shapes[source][at] == shape[d] or layout.labels[at] == (BATCH,)):
                label = layout.labels[at]
                seen.setdefault(label and tuple(min(axis, FREE) for axis in label), label)
        if len(seen) > 1:
            what = "along different axes" if () not in seen else "with what has none"
            fault = fault or f"combines positions {what}"
        if None in seen and len(layouts) > 1:
            fault = fault or NO_ORDER
        labels.append(
            None if None in seen else max(seen.values(), key=lambda label: len(label or ()), default=())
        )
    for constant in node.inputs:
        sizes = trace.shapes.get(constant)
        if constant in layouts or sizes is None:
            continue
        if node.op == "prelu":  # one slope a channel
            aligned = [(labels[1], size) for size in sizes]
        else:
            aligned = list(zip(labels[rank - len(sizes) :], sizes, strict=True)) if sizes else []
        if any(size > 1 and label not in ((), (BATCH,)) for label, size in aligned):
            fault = fault or _BY_POSITION
    return Step(replace(result, labels=tuple(labels)), fault)


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
        common, fault = merged([left, right])
        inner = {left.labels[-1], right.labels[-2]}
        fault = fault or ("" if len(inner) == 1 and None not in inner else "mixes different positions")
        return Step(replace(common, labels=(*left.labels[:-1], right.labels[-1])), fault)
    if left is not None:
        labels = left.labels
        fault = "" if labels[-1] == () else "weighs each position by itself"
        if rank == len(labels) - 1:  # times a vector
            return Step(replace(left, labels=labels[:-1]), fault)
        same = trace.shapes[node][-1:] == trace.shapes[first][-1:]
        last = labels[-1] if same and labels[-1] is not None else ()
        return Step(replace(left, labels=(*labels[:-1], last)), fault)
    if right is None or len(right.labels) != rank or rank < 2:
        return Step(None, f"has no rule here ({node.op})")
    labels = right.labels
    fault = "" if labels[-2] == () else "weighs each position by itself"
    return Step(replace(right, labels=(*labels[:-2], (), labels[-1])), fault)


def _attention(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    query, key, value = (layouts.get(n) for n in node.args[:3])
    if query is None or key is None or value is None:
        return Step(None, "attends to what does not come from the data")
    common, fault = merged([query, key, value])
    if node.argument(3, "attn_mask") is not None or node.argument(5, "is_causal", False):
        fault = fault or "masks by position"
    if key.labels[-2] != value.labels[-2] or None in (*query.labels, *key.labels, *value.labels):
        fault = fault or "mixes different positions"
    return Step(replace(common, labels=(*query.labels[:-1], value.labels[-1])), fault)


def _normalized(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Batch, group and instance normalization: one weight a channel, dimension 1."""
    layout = only(layouts)
    return Step(layout, "" if layout.labels[1] == () else _BY_POSITION)


def _layer_norm(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout = only(layouts)
    covered = layout.labels[-len(node.args[1]) :]
    weights = any(isinstance(a, Node) for a in node.args[2:4])
    if None in covered:
        return Step(layout, NO_ORDER)
    return Step(layout, _BY_POSITION if weights and any(label != () for label in covered) else "")


def _reduction(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout = only(layouts)
    rank = len(layout.labels)
    dims = node.argument(2 if node.op == "linalg_vector_norm" else 1, "dim")
    chosen = range(rank) if dims in (None, [], ()) else [dims] if isinstance(dims, int) else dims
    gone = {d % rank for d in chosen}
    fault = NO_ORDER if any(layout.labels[d] is None for d in gone) else ""
    keep = len(trace.shapes[node]) == rank
    labels = [() if d in gone else label for d, label in enumerate(layout.labels) if keep or d not in gone]
    result = replace(layout, labels=tuple(labels))
    pair = node.op in ("max", "min") and isinstance(dims, int)
    return Step((result, None) if pair else result, fault)


def _softmax(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout = only(layouts)
    return Step(layout, NO_ORDER if layout.labels[node.args[1]] is None else "")


def _roll(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    layout = only(layouts)
    dims = node.argument(2, "dims", ())
    rolled = [layout.labels[d] for d in ([dims] if isinstance(dims, int) else dims)]
    if not rolled or any(label is None or len(label) > 1 for label in rolled):
        return Step(layout, "rolls several axes as one")
    return Step(layout, "")


_Rule = Callable[[Trace, Node, dict[Node, Layout]], Step]
_NAMED: tuple[tuple[str, _Rule], ...] = (
    (_CONVOLUTIONS, windows.convolution),
    ("conv_transpose1d conv_transpose2d conv_transpose3d", windows.transposed_convolution),
    (_POOLS, windows.pool),
    ("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", windows.adaptive_pool),
    ("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", windows.adaptive_pool),
    ("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d", windows.pad),
    ("replication_pad1d replication_pad2d replication_pad3d", windows.pad),
    ("upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d", windows.resized),
    (
        "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d pixel_shuffle pixel_unshuffle",
        windows.resized,
    ),
    ("linear matmul mm bmm", _product),
    ("scaled_dot_product_attention", _attention),
    ("_native_batch_norm_legit_no_training group_norm instance_norm", _normalized),
    ("layer_norm rms_norm", _layer_norm),
    ("mean sum amax amin var std prod logsumexp linalg_vector_norm max min", _reduction),
    ("softmax _softmax log_softmax _log_softmax", _softmax),
    ("roll", _roll),
    (" ".join(MOVES), moved),
)
_TABLE = tuple((frozenset(names.split()), rule) for names, rule in _NAMED)
