"""Hidden units that can be taken out of a network without changing its function.

A unit can go when the graph and the weights alone show, for **every** input, that

* it is *unused*: its outgoing weights are zero;
* it is *constant*: its incoming weights (or its scale in batch normalization) are zero, or a
  ReLU follows and no possible input makes it positive.  The constant moves into the next bias;
* it is a *duplicate*: its incoming weights are those of another unit times a > 0, and what
  follows is positively homogeneous (or a = 1).  Then a times its outgoing weights move there.

Units that are zero merely on given data are counted by :func:`silent_units` and never removed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.unit_pairs import ELEMENTWISE, HOMOGENEOUS, NORM, POOLS, RESHAPES, SAME, Pair

_RANGES = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
}
_ULPS = 8.0  # rows that differ by less than this many units in the last place are the same


@dataclass(frozen=True, eq=False)
class Plan:
    """What can go between two layers, and what the second one becomes.

    Attributes
    ----------
    pair : Pair
    unused, constant, duplicate : list of int
        The units that go, by reason.
    keep : Tensor of int64
        The units that stay, at least one.
    weight, bias : Tensor
        The second layer's new weight, shape (outputs, kept inputs, ...), and bias or None.
    """

    pair: Pair
    unused: list[int]
    constant: list[int]
    duplicate: list[int]
    keep: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def n_removed(self) -> int:
        """Number of units that go."""
        return self.pair.n_units - len(self.keep)


def plan(graph: Graph, pair: Pair, x: Tensor) -> Plan:
    """Find the removable units of a pair.

    Parameters
    ----------
    graph : Graph
        A traced graph in evaluation mode.
    pair : Pair
        One of :func:`theodolite.analysis.unit_pairs.find_pairs`.
    x : Tensor, shape (n, ...)
        Any few inputs: what a constant unit's constant is gets read off a run.

    Returns
    -------
    Plan
        With ``n_removed == 0`` when every unit matters.
    """
    outgoing = graph.value_of(pair.last.args[1]).detach()
    columns = outgoing.reshape(len(outgoing), pair.n_units, -1)
    bias_node = pair.last.argument(2, "bias")
    bias = None if bias_node is None else graph.value_of(bias_node).detach().double()

    unused = set(torch.nonzero((columns == 0).all(2).all(0)).flatten().tolist())
    constant: list[int] = []
    candidates = [j for j in _constant_units(graph, pair) if j not in unused]
    for j, value in (_values_at(graph, pair, x, candidates) if candidates else {}).items():
        shift = _shift(pair, columns[:, j].double(), value)
        if shift is None or (bias is None and bool((shift != 0).any())):
            continue  # no place for the constant
        bias = None if bias is None else bias + shift
        constant.append(j)
    gone = unused | set(constant)
    merged: dict[int, Tensor] = {}
    duplicate: list[int] = []
    for j, i, scale in _duplicates(graph, pair, [u for u in range(pair.n_units) if u not in gone]):
        merged[i] = merged.get(i, columns[:, i].double()) + scale * columns[:, j].double()
        duplicate.append(j)
    gone |= set(duplicate)
    if len(gone) == pair.n_units:  # a layer without units is no layer
        spared = min(gone)
        gone.discard(spared)
        unused.discard(spared)
        constant = [j for j in constant if j != spared]
        merged[spared] = torch.zeros_like(columns[:, spared])  # its constant is in the bias already
    keep = torch.tensor([u for u in range(pair.n_units) if u not in gone], dtype=torch.int64)
    kept = columns[:, keep]
    for i, column in merged.items():
        kept[:, int((keep == i).nonzero())] = column.to(kept.dtype)
    shape = (
        (len(outgoing), -1) if pair.last.op == "linear" else (len(outgoing), len(keep), *outgoing.shape[2:])
    )
    bias = None if bias is None else bias.to(outgoing.dtype)
    return Plan(pair, sorted(unused), constant, duplicate, keep, kept.reshape(shape), bias)


def silent_units(graph: Graph, pairs: Iterable[Pair], batches: Iterable[Tensor]) -> dict[str, list[int]]:
    """Return the units that reach the next layer as zero on every given sample, by layer.

    Exact on the samples; says nothing about other inputs.
    """
    sources = {pair.last.args[0]: pair for pair in pairs}
    largest: dict[Node, Tensor] = {}

    def observe(node: Node, value: object) -> None:
        if node in sources and isinstance(value, Tensor):
            seen = _by_unit(value, sources[node]).abs().amax((0, 2))
            largest[node] = torch.maximum(largest[node], seen) if node in largest else seen

    with torch.no_grad():
        for batch in batches:
            graph.run(batch, observe=observe)
    silent = {sources[n].first.layer: torch.nonzero(m == 0).flatten().tolist() for n, m in largest.items()}
    return {layer: units for layer, units in silent.items() if units}


def _by_unit(value: Tensor, pair: Pair) -> Tensor:
    """Return the last layer's input as (samples, units, positions)."""
    if pair.first.op == "linear":
        return value.reshape(-1, pair.n_units, 1)
    return value.reshape(len(value), pair.n_units, -1)


def _incoming(graph: Graph, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Return (weight, scale, bias): the units' incoming rows are scale * weight, shape (units, inputs).

    Batch normalizations that follow at once are folded in.  The weight keeps its dtype:
    callers convert it in chunks.
    """
    weight = graph.value_of(pair.first.args[1]).detach().flatten(1)
    bias_node = pair.first.argument(2, "bias")
    scale = torch.ones(len(weight), dtype=torch.float64, device=weight.device)
    bias = torch.zeros_like(scale) if bias_node is None else graph.value_of(bias_node).detach().double()
    for node in pair.between:
        if node.op == NORM:
            factor, shift = _affine(graph, node)
            scale, bias = scale * factor, bias * factor + shift
        elif node.op not in SAME:
            break
    return weight, scale, bias


def _affine(graph: Graph, node: Node) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each unit in a batch normalization in evaluation mode."""
    gamma, beta, mean, variance = (
        None if n is None else graph.value_of(n).detach().double() for n in node.args[1:5]
    )
    assert mean is not None
    assert variance is not None
    scale = (variance + float(node.args[6])).rsqrt()
    scale = scale if gamma is None else scale * gamma
    return scale, (-mean * scale if beta is None else beta - mean * scale)


def _constant_units(graph: Graph, pair: Pair) -> list[int]:
    """Return the units whose value is the same for every input, by the weights alone."""
    weight, scale, bias = _incoming(graph, pair)
    constant = (weight == 0).all(1)
    for node in pair.norms:
        constant |= _affine(graph, node)[0] == 0
    following = next((n for n in pair.between if n.op != NORM and n.op not in SAME), None)
    if following is not None and following.op == "relu":
        low, high = value_ranges(graph)[pair.first.args[0]]
        if pair.first.op != "linear":
            low, high = min(low, 0.0), max(high, 0.0)  # the padding
        positive = weight.clamp(min=0).sum(1, dtype=torch.float64)
        negative = weight.clamp(max=0).sum(1, dtype=torch.float64)
        flipped = scale < 0
        positive, negative = (
            scale * torch.where(flipped, negative, positive),
            scale * torch.where(flipped, positive, negative),
        )
        zero = torch.zeros_like(bias)
        up = torch.where(positive > 0, positive * high, zero) if high != 0 else zero
        down = torch.where(negative < 0, negative * low, zero) if low != 0 else zero
        by_sign = (up <= 0) & (down <= 0) & (bias <= 0)
        slack = 1e-5 * (up.abs() + down.abs() + bias.abs())  # more than float32 rounding
        constant |= by_sign | (torch.isfinite(up + down) & (up + down + bias < -slack))
    return torch.nonzero(constant).flatten().tolist()


def value_ranges(graph: Graph) -> dict[Node, tuple[float, float]]:
    """Return for each node an interval that holds its entries for every input whatever."""
    everything = (-math.inf, math.inf)
    ranges: dict[Node, tuple[float, float]] = {}
    for node in graph.nodes:
        parts = [ranges[source] for source in node.inputs if source.shape is not None]
        low, high = (min(p[0] for p in parts), max(p[1] for p in parts)) if parts else everything
        if node.op == "relu":
            ranges[node] = (max(low, 0.0), max(high, 0.0))
        elif node.op in _RANGES:
            ranges[node] = _RANGES[node.op]
        elif node.op == "hardtanh":
            ranges[node] = (float(node.argument(1, "min_val", -1.0)), float(node.argument(2, "max_val", 1.0)))
        elif node.op in SAME or node.op in RESHAPES or node.op in ("cat", "permute", "transpose", "mean"):
            ranges[node] = (low, high)
        elif node.op in POOLS:
            ranges[node] = (min(low, 0.0), max(high, 0.0))  # an average may count padding
        elif node.op == "add" and len(parts) == 2 and not node.kwargs:
            ranges[node] = (parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])
        else:
            ranges[node] = everything
    return ranges


def _values_at(graph: Graph, pair: Pair, x: Tensor, units: list[int]) -> dict[int, Tensor]:
    """Return what constant units send to the last layer, shape (positions,) each."""
    source = pair.last.args[0]
    seen: list[Tensor] = []

    def observe(node: Node, value: object) -> None:
        if node is source and isinstance(value, Tensor):
            seen.append(_by_unit(value, pair))

    with torch.no_grad():
        graph.run(x, observe=observe)
    values = seen[0].double()
    spread = (values - values[:1]).abs().amax((0, 2))
    size = values.abs().amax((0, 2))
    # in exact arithmetic the spread is zero; anything but rounding would mean that a rule is wrong
    return {j: values[0, j] for j in units if float(spread[j]) <= 1e-5 * float(size[j])}


def _shift(pair: Pair, columns: Tensor, value: Tensor) -> Tensor | None:
    """Return what a constant unit adds to the last layer's outputs, None when it varies with the position."""
    if pair.last.op == "linear":
        return columns @ value
    if bool((value == 0).all()):
        return columns.new_zeros(len(columns))
    padding = pair.last.argument(4, "padding", 0)
    padded = padding != "valid" if isinstance(padding, str) else bool(torch.as_tensor(padding).any())
    if padded or float(value.max() - value.min()) > 1e-6 * float(value.abs().max()):
        return None
    return columns.sum(1) * value[0]


def _duplicates(graph: Graph, pair: Pair, units: list[int]) -> list[tuple[int, int, float]]:
    """Return (j, i, a): unit j is a > 0 times unit i, which stays, among the given units."""
    leading = homogeneous = True
    for node in pair.between:
        if node.op == NORM and not leading:
            return []  # its own scale and shift after the activation
        leading = leading and (node.op == NORM or node.op in SAME)
        if node.op in ELEMENTWISE and node.op not in HOMOGENEOUS:
            homogeneous = False
        if node.op == "pad" and float(node.argument(3, "value", 0.0) or 0.0) != 0.0:
            homogeneous = False
    weight, scale, bias = _incoming(graph, pair)

    def rows(index: list[int]) -> Tensor:
        return torch.cat([weight[index].double() * scale[index, None], bias[index, None]], 1)

    # equal directions have equal projections: sort by one, then compare neighbors only
    probe = torch.randn(weight.shape[1] + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = probe.to(weight.device)
    sizes, places = [], []
    for start in range(0, len(units), 256):
        chunk = rows(units[start : start + 256])
        size = chunk.norm(dim=1)
        sizes.append(size)
        places.append(chunk @ probe / (size if homogeneous else 1.0))
    if not sizes:
        return []
    norms, projections = torch.cat(sizes).tolist(), torch.cat(places).tolist()
    tolerance = _ULPS * torch.finfo(weight.dtype).eps
    largest = 1.0 if homogeneous else max(norms)
    reach = tolerance * largest * float(probe.norm())
    found: list[tuple[int, int, float]] = []
    kept: list[tuple[int, Tensor]] = []  # position in units, direction
    for place in sorted((p for p in range(len(units)) if norms[p] > 0), key=lambda p: projections[p]):
        direction = rows([units[place]])[0] / (norms[place] if homogeneous else 1.0)
        kept = [k for k in kept if projections[place] - projections[k[0]] <= reach]
        bound = tolerance * float(direction.abs().max())
        twin = next((p for p, other in kept if float((direction - other).abs().max()) <= bound), None)
        if twin is None:
            kept.append((place, direction))
        else:
            found.append((units[place], units[twin], norms[place] / norms[twin] if homogeneous else 1.0))
    return found
