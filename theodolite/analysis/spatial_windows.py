"""What translations do to operations that slide a window, pad or resize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from theodolite.analysis.graph import Node
from theodolite.analysis.spatial import BATCH, NO_ORDER, Layout, Step, Trace, each, only


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
    options = zip(kernel, each(stride, d), each(padding, d), each(dilation, d), strict=True)
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
            fault = fault or ("pads at the border" if pool else "pads with zeros")
        elif n % s:
            fault = fault or f"has stride {s}, which does not divide the size {n}"
        elif n_out * s != n or (n_out - 1) * s + gap * (k - 1) + 1 > before[at]:
            fault = fault or "treats positions near the border differently"
    return Step(replace(layout, labels=tuple(labels)), fault)


def convolution(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Slide weights that do not depend on the data."""
    if node.args[0] not in layouts or len(layouts) > 1:
        return Step(None, "convolves with weights made from the data")
    kernel = trace.shapes[node.args[1]][2:]
    options = (
        node.argument(i, name, default)
        for i, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    stride, padding, dilation = options
    return _windowed(trace, node, only(layouts), kernel, stride, padding, dilation, pool=False)


def pool(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Slide a maximum or a mean."""
    d = int(node.op[node.op.index("_pool") + 5])
    kernel = each(node.argument(1, "kernel_size"), d)
    stride = node.argument(2, "stride") or kernel
    dilation = 1 if node.op.startswith("avg") else node.argument(4, "dilation", 1)
    return _windowed(
        trace, node, only(layouts), kernel, stride, node.argument(3, "padding", 0), dilation, pool=True
    )


def adaptive_pool(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Pool to a given number of positions."""
    layout, shape = only(layouts), trace.shapes[node]
    labels, fault = list(layout.labels), ""
    d = int(node.op[node.op.index("_pool") + 5])
    for at in range(-d, 0):
        label, n_out = labels[at], shape[at]
        if n_out == 1:
            labels[at], fault = (), fault or ("" if label is not None else NO_ORDER)
        elif label is None or len(label) > 1:
            labels[at], fault = None, "slides over positions that are not in a row"
        elif label:
            n = layout.grid[label[0]]
            if n % n_out or n != trace.shapes[node.args[0]][at]:
                fault = fault or f"pools {n} positions to {n_out}, unequally many in each cell"
            layout = layout.stretched(label[0], n_out, Fraction(n, n_out))
    result = replace(layout, labels=tuple(labels))
    return Step((result, None) if "max" in node.op else result, fault)


def pad(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Add positions at the border, which only a circular padding takes from the data's."""
    layout, fault = only(layouts), ""
    before, after = trace.shapes[node.args[0]], trace.shapes[node]
    circular = node.op == "pad" and node.argument(2, "mode", "constant") == "circular"
    for d, label in enumerate(layout.labels):
        if before[d] == after[d] or label == ():
            continue
        if label is None or len(label) > 1:
            return Step(None, "pads positions that are not in a row")
        if circular and before[d] != layout.grid[label[0]]:
            return Step(None, "pads what is padded already")
        if not circular:
            fault = "pads otherwise than circularly"
            layout = layout.stretched(label[0], after[d], Fraction(1))
    return Step(layout, fault)


def transposed_convolution(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Write windows side by side."""
    if node.args[0] not in layouts or len(layouts) > 1:
        return Step(None, "convolves with weights made from the data")
    layout = only(layouts)
    kernel, before, after = (trace.shapes[n] for n in (node.args[1], node.args[0], node))
    d = len(kernel) - 2
    stride = each(node.argument(3, "stride", 1), d)
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


def resized(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Upsampling and pixel (un)shuffling."""
    layout, fault = only(layouts), ""
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
