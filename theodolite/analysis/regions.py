"""Activation regions and linear pieces that a network crosses along a segment, counted exactly.

Restricted to the segment x(t) = (1 - t) x_0 + t x_1, a continuous piecewise linear
network is affine in t between breakpoints.  The graph is walked in order of execution
with the pieces found so far, each held as its affine map of t (its values, continued,
at t = 0 and at t = 1).  An affine operation maps these two points; a piecewise linear
one adds the t at which some entry changes its branch.  Continuing the maps, instead of
interpolating between breakpoints, keeps slopes accurate on pieces however short.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis import piecewise_linear as pl
from theodolite.analysis.cost import ROWS, Cost, forward_cost
from theodolite.analysis.graph import Graph, Node

# breakpoints closer than this (in t, which runs from 0 to 1) are taken for one
RESOLUTION = 1e-11
# slopes that differ by less than this, relative to the largest, are taken for equal
SLOPE_TOLERANCE = 1e-10
# bytes that the pieces processed at a time may occupy at one operation
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class SegmentRegions:
    """Regions along a segment.

    Attributes
    ----------
    breakpoints : Tensor, shape (cells - 1,), float64
        Where some unit changes its branch, ascending, strictly inside (start, stop).
    kinks : Tensor, shape (linear_pieces - 1,), float64
        Those of the breakpoints at which the network's own slope changes.
    start, stop : float
        The part of [0, 1] that was counted; all of it unless a budget was spent.
    flops : float
        Multiplications and additions that the count took.
    """

    breakpoints: Tensor
    kinks: Tensor
    start: float
    stop: float
    flops: float

    @property
    def cells(self) -> int:
        """Number of activation regions crossed: every unit keeps its branch within one."""
        return len(self.breakpoints) + 1

    @property
    def linear_pieces(self) -> int:
        """Number of maximal intervals on which the network is affine in t."""
        return len(self.kinks) + 1

    @property
    def whole(self) -> bool:
        """Whether the whole segment was counted."""
        return self.start == 0.0 and self.stop == 1.0


def regions_along_segment(
    graph: Graph,
    x0: Tensor,
    x1: Tensor,
    *,
    budget: float = math.inf,
    cost: Cost | None = None,
) -> SegmentRegions:
    """Count the activation regions and linear pieces between two inputs.

    Parameters
    ----------
    graph : Graph
        Of a network that is continuous and piecewise linear in its input.
    x0, x1 : Tensor, shape (...)
        Ends of the segment, each one sample without batch axis.
    budget : float
        Multiplications and additions to spend.  When a forward pass at both ends
        suggests that they do not suffice, or when they are spent, the count covers
        the part of the second half that they allow, from the midpoint on.
    cost : Cost, optional
        Of one forward pass, if known.

    Returns
    -------
    SegmentRegions
        Computed in float64 for the weights as stored.

    Raises
    ------
    ValueError
        If the graph is not traced, or is not continuous and piecewise linear.
    """
    if not graph.traced:
        raise ValueError(f"graph: expected a traced graph; tracing failed: {graph.reason}")
    blocking = pl.obstruction(graph)
    if blocking is not None:
        raise ValueError(f"graph: expected a piecewise linear network, but {blocking.where} is not")
    cost = cost or forward_cost(graph, x0[None])
    with torch.no_grad():
        ends = torch.stack([x0, x1])
        walk = _Walk(graph, ends, cost, budget)
        if 2.0 * _changed_units(graph, ends) * cost.total <= budget:
            result = walk.count(0.0)
            if result.whole:
                return result
        return walk.count(0.5)


def _changed_units(graph: Graph, ends: Tensor) -> int:
    """Return how many units differ between the ends: a guess at how many change on the way."""
    changed = 0

    def observe(node: Node, value: Any) -> None:
        nonlocal changed
        if pl.elementwise(graph, node) is not None:
            changed += int(((value[0] > 0) != (value[1] > 0)).sum())

    graph.run(ends, observe=observe)
    return changed


def log10_region_limit(graph: Graph, cost: Cost) -> float:
    """Return log10 of the most activation regions that any segment can cross in this graph.

    If P pieces enter a layer of n units with one kink each, at most P (n + 1) leave
    it; a maximum over k entries has at most k - 1 kinks on a piece.  For a chain of
    ReLU layers this is the product of n_l + 1, the exact maximum over weights for
    inputs of dimension one (Serra, Tjandraatmadja and Ramalingam 2018).
    """
    alive = pl.data_dependent(graph)
    total = 0.0
    for node in graph.operations:
        if node not in alive:
            continue
        if pl.is_maximum(node):
            total += math.log10(1.0 + _spare_entries(node, cost))
        elif not pl.is_affine(node, alive):
            function = pl.elementwise(graph, node)
            assert function is not None
            total += math.log10(1.0 + cost.numel(node) * len(function.kinks))
    return total


def _spare_entries(node: Node, cost: Cost) -> int:
    """Return the sum of k - 1 over the groups of a maximum."""
    dummies = [torch.empty(1, *cost.shapes[source]) for source in node.inputs if source in cost.shapes]
    _, groups, _, _ = pl.candidates(node, dummies)
    distinct = groups.sort(1).values
    spare = int((distinct[:, 1:] != distinct[:, :-1]).sum())
    return spare // ROWS


class _Exhausted(Exception):  # noqa: N818  (an outcome, not an error)
    """The budget is spent."""


class _Walk:
    """One pass through the graph with the pieces of one segment.

    A value that depends on the data is held as a tensor of shape (2 m, 1, ...): for
    each of m pieces its affine map at t = 0, then for each at t = 1.  The second axis
    is a batch of one sample, so that any reshape in the network finds what it expects.
    """

    def __init__(self, graph: Graph, ends: Tensor, cost: Cost, budget: float) -> None:
        self.graph, self.cost, self.budget = graph, cost, budget
        self.ends = ends.unsqueeze(1).double()
        self.nodes = graph.nodes
        self.alive = pl.data_dependent(graph)
        self.functions = {n: pl.elementwise(graph, n) for n in graph.operations if n in self.alive}
        self.last_use = {source: i for i, node in enumerate(self.nodes) for source in node.inputs}
        self.constants: dict[Node, Any] = {}
        # small enough for memory, and for a budget to be spent in several steps
        share = budget / (8.0 * max(cost.total, 1.0)) if math.isfinite(budget) else math.inf
        self.chunk = int(max(1, min(_CHUNK_BYTES / (16 * cost.widest), share)))
        self.spent = 0.0

    def count(self, start: float) -> SegmentRegions:
        """Count from ``start`` to the end, or to where the budget is spent once more."""
        self.reached = self.start = start
        self.limit = self.spent + self.budget
        self.times: list[Tensor] = []
        self.jumps: list[Tensor] = []
        self.last_slope: Tensor | None = None
        self.largest_slope = self.largest_value = 0.0
        times = torch.tensor([start, 1.0], dtype=torch.float64, device=self.ends.device)
        with contextlib.suppress(_Exhausted):
            self._advance({}, times, 0)
        breakpoints = torch.cat(self.times) if self.times else times[:0]
        jumps = torch.cat(self.jumps) if self.jumps else times[:0]
        noise = SLOPE_TOLERANCE * self.largest_slope + 1e-13 * self.largest_value
        return SegmentRegions(
            breakpoints.cpu(), breakpoints[jumps > noise].cpu(), start, self.reached, self.spent
        )

    def _advance(self, env: dict[Node, Any], times: Tensor, first: int) -> None:
        """Carry the pieces between ``times`` through the nodes from ``first`` on, from left to right."""
        for i in range(first, len(self.nodes)):
            node = self.nodes[i]
            if node not in self.alive:
                if node not in self.constants:
                    self.constants[node] = self._constant(node, env)
            elif node.op == "input":
                env[node] = self.ends.repeat_interleave(len(times) - 1, 0)
            elif self.functions[node] is None and not pl.is_maximum(node):
                env[node] = self._affine(node, env)
                self._spend(node, len(times) - 1)
            else:
                finer = _refined(times, self._crossings(node, env, times))
                if len(finer) > len(times):
                    parents = torch.searchsorted(times, 0.5 * (finer[1:] + finer[:-1])) - 1
                    if len(parents) > self.chunk:
                        for low in range(0, len(parents), self.chunk):
                            part = parents[low : low + self.chunk]
                            inner = {source: _rows(value, part) for source, value in env.items()}
                            self._branch(node, inner, finer[low : low + len(part) + 1], i)
                            self._advance(inner, finer[low : low + len(part) + 1], i + 1)
                        return
                    env, times = {source: _rows(value, parents) for source, value in env.items()}, finer
                self._branch(node, env, times, i)
            self._forget(node, env, i)
        assert self.graph.output is not None
        self._finish(env[self.graph.output], times)

    def _branch(self, node: Node, env: dict[Node, Any], times: Tensor, i: int) -> None:
        """Apply a piecewise linear operation by the branch that each entry takes on each piece."""
        middle = 0.5 * (times[1:] + times[:-1])
        function = self.functions[node]
        if function is not None:
            at0, at1 = env[node.args[0]].chunk(2)
            value = _apply(function, at0, at1, middle)
        else:
            value = _largest(node, self._tensors(node, env), middle)
        env[node] = (value,) if _returns_pair(node) else value
        self._spend(node, len(middle))
        self._forget(node, env, i)

    def _forget(self, node: Node, env: dict[Node, Any], i: int) -> None:
        for source in node.inputs:
            if self.last_use[source] == i and source is not self.graph.output:
                env.pop(source, None)

    def _crossings(self, node: Node, env: dict[Node, Any], times: Tensor) -> Tensor:
        function = self.functions[node]
        if function is not None:
            at0, at1 = env[node.args[0]].chunk(2)
            return _kink_crossings(function, at0, at1, times)
        return _takeovers(node, self._tensors(node, env), times)

    def _tensors(self, node: Node, env: dict[Node, Any]) -> list[Tensor]:
        """Return a node's tensor arguments as (2 m, ...), or (1, ...) if free of the data."""
        values = [
            env[n] if n in self.alive else self.constants[n][None] for n in node.inputs if n.shape is not None
        ]
        return [value for value in values if isinstance(value, Tensor)]

    def _constant(self, node: Node, env: dict[Node, Any]) -> Any:
        """Return what does not depend on the data: weights in float64, and sizes."""
        if node.is_leaf:
            return _widened(self.graph.value_of(node).detach().to(self.ends.device))
        found = {n: env[n][0] if n in self.alive else self.constants[n] for n in node.inputs}
        return self._call(node, found)

    def _affine(self, node: Node, env: dict[Node, Any]) -> Any:
        if node.op == "_native_batch_norm_legit_no_training":
            x = env[node.args[0]]
            weight, bias, mean, variance = (None if a is None else self.constants[a] for a in node.args[1:5])
            scale = (variance + node.args[6]).rsqrt() * (1.0 if weight is None else weight)
            shift = (0.0 if bias is None else bias) - mean * scale
            shape = (-1, *[1] * (x.ndim - 3))
            return x * scale.view(shape) + shift.view(shape)
        if node.op in ("_to_copy", "to"):  # a change of precision: the identity in real arithmetic
            return env[node.args[0]]
        varying = [n for n in dict.fromkeys(node.inputs) if n in self.alive]

        def call(*values: Any) -> Any:
            return self._call(node, {**self.constants, **dict(zip(varying, values, strict=True))})

        return torch.vmap(call)(*(env[n] for n in varying))

    def _call(self, node: Node, found: dict[Node, Any]) -> Any:
        kwargs = {name: _substituted(value, found) for name, value in node.kwargs.items()}
        if kwargs.get("device") is not None:
            kwargs["device"] = self.ends.device
        if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
            kwargs["dtype"] = torch.float64
        assert node.function is not None
        if node.op == "squeeze":  # the batch of one must not go with the axes that were meant
            shape = node.args[0].shape or ()
            axes = node.argument(1, "dim", range(len(shape)))
            axes = [axes] if isinstance(axes, int) else axes
            return found[node.args[0]].squeeze([a for a in axes if shape[a] == 1])
        return _widened(node.function(*_substituted(node.args, found), **kwargs))

    def _spend(self, node: Node, pieces: int) -> None:
        self.spent += 2.0 * pieces * self.cost.flops.get(node, 0.0)
        if self.spent > self.limit and self.reached > self.start:
            raise _Exhausted

    def _finish(self, output: Tensor, times: Tensor) -> None:
        """Take in pieces that have passed through the whole graph."""
        at0, at1 = output.reshape(len(output), -1).chunk(2)
        slopes = at1 - at0
        self.largest_slope = max(self.largest_slope, float(slopes.abs().max()))
        self.largest_value = max(self.largest_value, float(output.abs().max()))
        inside = times[1:-1]
        if self.last_slope is not None:  # where the previous pieces ended is a breakpoint too
            slopes, inside = torch.cat([self.last_slope, slopes]), times[:-1]
        self.times.append(inside)
        self.jumps.append((slopes[1:] - slopes[:-1]).abs().amax(1))
        self.last_slope = slopes[-1:]
        self.reached = float(times[-1])


def _returns_pair(node: Node) -> bool:
    """Return whether an operation returns maxima together with where they are."""
    return node.op.startswith("adaptive_max_pool") or (
        node.op in ("max", "min") and isinstance(node.argument(1, "dim"), int)
    )


def _substituted(item: Any, found: dict[Node, Any]) -> Any:
    if isinstance(item, Node):
        return found[item]
    if isinstance(item, (tuple, list)):
        return type(item)(_substituted(part, found) for part in item)
    return item


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _rows(value: Any, parents: Tensor) -> Any:
    """Return the pieces' maps with piece ``parents[j]`` in place j."""
    if isinstance(value, Tensor):
        return torch.cat([half[parents] for half in value.chunk(2)])
    return tuple(_rows(part, parents) for part in value)


def _refined(times: Tensor, crossings: Tensor) -> Tensor:
    """Return the breakpoints together with new ones, those within the resolution taken for one."""
    crossings = crossings.sort().values
    apart = torch.ones_like(crossings, dtype=torch.bool)
    apart[1:] = crossings[1:] - crossings[:-1] > RESOLUTION
    return torch.cat([times, crossings[apart]]).sort().values


def _apply(function: pl.Elementwise, at0: Tensor, at1: Tensor, middle: Tensor) -> Tensor:
    """Return the maps after an elementwise operation, each entry by its branch at the middle."""
    value = torch.lerp(at0, at1, middle.view(-1, *[1] * (at0.ndim - 1)))
    slopes = [torch.as_tensor(s, dtype=value.dtype, device=value.device) for s in function.slopes]
    slope, offset = slopes[0], function.start - slopes[0] * function.kinks[0]
    for kink, before, after in zip(function.kinks, slopes[:-1], slopes[1:], strict=True):
        above = value > kink
        slope = torch.where(above, after, slope)
        offset = torch.where(above, offset + (before - after) * kink, offset)
    return torch.cat([slope * at0 + offset, slope * at1 + offset])


def _kink_crossings(function: pl.Elementwise, at0: Tensor, at1: Tensor, times: Tensor) -> Tensor:
    """Return the t inside each piece at which some entry meets a kink."""
    at0, at1 = at0.flatten(1), at1.flatten(1)
    slope = at1 - at0
    moves = slope.abs() > _least_slope(at0, at1)
    low, high = times[:-1, None] + RESOLUTION, times[1:, None] - RESOLUTION
    found = []
    for kink in function.kinks:
        t = (kink - at0) / slope
        found.append(t[moves & (t > low) & (t < high)])
    return torch.cat(found)


def _least_slope(at0: Tensor, at1: Tensor) -> float:
    """Return below what a slope is taken for the rounding of a constant."""
    return 1e-13 * float(torch.maximum(at0.abs().max(), at1.abs().max())) if at0.numel() else 0.0


def _takeovers(node: Node, values: list[Tensor], times: Tensor) -> Tensor:
    """Return the t inside each piece at which another member becomes a group's maximum.

    On a piece a maximum of affine functions is convex, so if the same member leads at
    both ends it leads throughout; elsewhere the upper envelope is followed from left
    to right, always to the steeper line that is met first.
    """
    at0, slope, groups = _lines(node, values)
    low, high = times[:-1] + RESOLUTION, times[1:] - RESOLUTION
    leaders = [(at0 + slope * t[:, None])[:, groups].argmax(2) for t in (low, high)]
    piece, group = torch.nonzero(leaders[0] != leaders[1], as_tuple=True)
    lines = at0[piece[:, None], groups[group]], slope[piece[:, None], groups[group]]
    least = _least_slope(at0, at0 + slope)
    leader, now, end = leaders[0][piece, group], low[piece], high[piece]
    found = [times[:0]]
    while len(leader):
        level, steepness = (line.gather(1, leader[:, None]) for line in lines)
        steeper = lines[1] - steepness
        t = torch.where(steeper > least, (level - lines[0]) / steeper, torch.inf).clamp(min=now[:, None])
        now = t.amin(1)
        # of several lines met at once the steepest leads afterwards
        leader = torch.where(t <= now[:, None] + RESOLUTION, lines[1], -torch.inf).argmax(1)
        going = now < end
        found.append(now[going])
        lines = lines[0][going], lines[1][going]
        leader, now, end = leader[going], now[going], end[going]
    return torch.cat(found)


def _largest(node: Node, values: list[Tensor], middle: Tensor) -> Tensor:
    """Return the maps after taking maxima (or minima), each by its leader at the middle."""
    at0, slope, groups = _lines(node, values)
    leader = (at0 + slope * middle[:, None])[:, groups].argmax(2)
    column = groups.expand(len(middle), -1, -1).gather(2, leader[:, :, None]).squeeze(2)
    entries, _, shape, _ = pl.candidates(node, values)
    return entries.gather(1, column.repeat(2, 1)).reshape(-1, *shape)


def _lines(node: Node, values: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return members' values at t = 0 and slopes, (m, d) each, and the groups; minima with signs changed."""
    entries, groups, _, smallest = pl.candidates(node, values)
    at0, at1 = (-entries if smallest else entries).chunk(2)
    return at0, at1 - at0, groups
