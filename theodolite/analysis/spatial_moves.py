"""Where an operation that only moves entries puts the positions of an image: followed by markers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.graph import Node
from theodolite.analysis.spatial import FREE, Label, Layout, Step, Trace, merged

_NAMES = """
view reshape flatten unflatten _unsafe_view permute transpose t movedim squeeze unsqueeze select
slice narrow split split_with_sizes chunk unbind getitem cat concat stack expand
"""
MOVES = frozenset(_NAMES.split())
_MIXED = -2  # marks entries of dimensions that mix positions with something else
_FREE_AXES = itertools.count(FREE)
_Key = tuple[int, int]  # a dimension, and an axis that it runs over


def moved(trace: Trace, node: Node, layouts: dict[Node, Layout]) -> Step:
    """Move markers that carry each entry's position through the operation, and see where they went."""
    common, fault = merged(list(layouts.values()))
    rank = max(len(layout.labels) for layout in layouts.values())
    free = [[next(_FREE_AXES) for _ in range(8)] for _ in range(rank)]
    lines: dict[_Key, dict[Node, Tensor]] = {}
    for source, layout in layouts.items():
        cuts = trace.shapes[node] if "view" in node.op or "flatten" in node.op or node.op == "reshape" else ()
        for key, line in _lines(layout, trace.shapes[source], cuts, free).items():
            lines.setdefault(key, {})[source] = line.expand(trace.shapes[source]).contiguous()
    if node.op in ("cat", "concat", "stack"):
        fault = _join_constants(trace, node, layouts, lines) or fault
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
        results.append(replace(common, labels=labels, grid={**common.grid, **sizes}))
    return Step(tuple(results) if several else results[0], fault)


def _join_constants(
    trace: Trace, node: Node, layouts: dict[Node, Layout], lines: dict[_Key, dict[Node, Tensor]]
) -> str:
    """Let constants that are joined along channels carry the positions of the data; return the fault."""
    source, layout = next(iter(layouts.items()))
    shape = trace.shapes[source]
    dim = node.argument(1, "dim", 0) % len(shape)
    constants = [n for n in dict.fromkeys(node.inputs) if n not in layouts and n in trace.shapes]
    if not constants or node.op == "stack" or layout.labels[dim] != ():
        return ""
    for constant in constants:
        for (d, _), markers in lines.items():
            if d != dim and trace.shapes[constant][d] == shape[d]:
                line = markers[source].narrow(dim, 0, 1)
                markers[constant] = line.expand(trace.shapes[constant]).contiguous()
    return "joins constants that may depend on the position"


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
