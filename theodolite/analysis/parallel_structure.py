"""Parallel subnetworks: a graph's output as a sum of copies of one architecture.

f(x) = sum_i phi(x; W_i), with one function phi and parameters W_i of their own.  The output
is opened from behind: sums of branches, and the last weight layer, which sums over its
input channels.  Channels are followed from the front as equal, contiguous *blocks* along
dimension 1, each of which depends on its own slices of the parameters alone: the units of
a first layer, or the groups of grouped convolutions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from theodolite.analysis.graph import Graph, Node

_LAYERS = frozenset("linear conv1d conv2d conv3d".split())
_COPIES = frozenset(
    "_unsafe_view alias clone contiguous detach flatten reshape squeeze unflatten unsqueeze view".split()
)
_ELEMENTWISE = frozenset("abs dropout leaky_relu native_dropout neg relu sqrt square".split())
_NUMBERS = frozenset("mul div pow".split())
_AVERAGES = frozenset(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_bilinear2d upsample_nearest1d upsample_nearest2d".split()
)
_SPATIAL = _AVERAGES | frozenset("amax getitem max_pool1d max_pool2d max_pool3d mean pad sum".split())
WHOLE = -1  # in place of an axis: the parameter belongs to one subnetwork entirely


@dataclass(frozen=True)
class Blocks:
    """Equal parts of a value, each with its own slices of the parameters.

    Attributes
    ----------
    count : int
        How many.
    parts : frozenset of (str, int)
        Parameters that they depend on, each split evenly among them along an axis, or ``WHOLE``.
    obstacle : str
        Why there is only one, as a sentence; "" when there are more, or when it is not known.
    unknown : str
        The operation at which the channels could not be followed, "" otherwise.
    """

    count: int
    parts: frozenset[tuple[str, int]]
    obstacle: str = ""
    unknown: str = ""


@dataclass(frozen=True)
class Term:
    """Some of the summands: what the blocks at a node make, after linear operations without parameters."""

    node: Node
    blocks: Blocks
    after: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Parallel:
    """A network as a sum of subnetworks.

    Attributes
    ----------
    count : int
        Number of subnetworks of one architecture; 1 when the network is not a sum of several.
    zero : int
        How many of them have only zero parameters.
    reason : str
        What makes the output a sum, or why it is not one.
    unknown : str
        Where the analysis ended without an answer, "" otherwise.
    blocks : tuple of Blocks
        The parameters of the subnetworks, when there are several.
    """

    count: int
    zero: int
    reason: str
    unknown: str = ""
    blocks: tuple[Blocks, ...] = ()


def parallel_subnetworks(graph: Graph, trained: set[int]) -> Parallel:
    """Write a network as a sum of subnetworks, as many as its structure shows.

    Parameters
    ----------
    graph : Graph
        A traced graph.
    trained : set of int
        ``id`` of the parameters that count as parameters; the others are constants.

    Returns
    -------
    Parallel
    """
    assert graph.output is not None
    reader = _Reader(graph, trained)
    terms = reader.terms(graph.output) if graph.output in reader.moving else []
    if not terms:
        return Parallel(1, 0, "the output does not depend on the parameters")
    total = sum(term.blocks.count for term in terms)
    unknown = next((term.blocks.unknown for term in terms if term.blocks.unknown), "")
    zero = sum(reader.zeros(term.blocks) for term in terms)
    if total == 1:
        return Parallel(1, zero, terms[0].blocks.obstacle, unknown)
    owners = [{name for name, _ in term.blocks.parts} for term in terms]
    shared = sorted(name for name in set().union(*owners) if sum(name in owner for owner in owners) > 1)
    if shared:
        return Parallel(1, 0, f"the branches that are summed share the parameter '{shared[0]}'")
    for term in terms:
        names = [name for name, _ in term.blocks.parts]
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        if twice:
            return Parallel(1, 0, "", f"parameter '{twice[0]}' is used along two of its axes")
    if len({reader.signature(term) for term in terms}) > 1:
        return Parallel(1, 0, "the branches that are summed have different architectures", unknown)
    if len(terms) > 1:
        reason = f"the output is a sum of {len(terms)} branches with parameters of their own"
    else:
        reason = f"{terms[0].node.where} sums over parts with parameters of their own"
    return Parallel(total, zero, reason, blocks=tuple(term.blocks for term in terms))


class _Reader:
    def __init__(self, graph: Graph, trained: set[int]) -> None:
        self.graph = graph
        self.cache: dict[Node, Blocks] = {}
        self.trained = {n for n in graph.nodes if n.op == "parameter" and id(graph.value_of(n)) in trained}
        self.moving = set(self.trained)
        for node in graph.nodes:
            if node.op != "sym_size" and any(source in self.moving for source in node.inputs):
                self.moving.add(node)
        for node in graph.nodes:  # in order of execution, so that no deep network needs deep recursion
            if node in self.moving and not node.is_leaf:
                self.cache[node] = self._blocks(node)

    def terms(self, node: Node) -> list[Term]:
        """Return what sums to the value of a node that depends on the parameters."""
        source = node.args[0] if node.args else None
        moving = [n for n in node.inputs if n in self.moving]
        if (
            node.op == "add"
            and len(moving) == 2
            and node.argument(2, "alpha", 1) == 1
            and _same_shape(node, *moving)
        ):
            return self.terms(moving[0]) + self.terms(moving[1])
        if not isinstance(source, Node) or source not in self.moving:
            return [Term(node, self._whole(node))]
        if _adds_zero(node):
            return self.terms(source)
        if (
            node.op == "sum"
            and source.op == "stack"
            and _dims(node) == {source.argument(1, "dim", 0) % _rank(source)}
        ):
            branches = [self.terms(item) for item in source.args[0] if item in self.moving]
            return [replace(t, after=(*t.after, "stacked")) for branch in branches for t in branch]
        if self._sums_channels(node):
            return [Term(node, self._with_weight(self.blocks(source), node))]
        channels = (
            len(moving) == 1 and node.op in ("sum", "mean") and 1 in _dims(node) and 0 not in _dims(node)
        )
        if channels and self.blocks(source).count > 1:
            return [Term(node, self.blocks(source))]
        linear = node.op in _COPIES | _AVERAGES or (node.op in ("sum", "mean") and 0 not in _dims(node))
        if len(moving) == 1 and (linear or (node.op in ("mul", "div") and _by_number(node))):
            return [
                replace(t, after=(*t.after, (node.op, _constants(node), node.shape)))
                for t in self.terms(source)
            ]
        return [Term(node, self._whole(node))]

    def _whole(self, node: Node) -> Blocks:
        found = self.blocks(node)
        if found.count == 1:
            return found
        linear = node.op in _LAYERS and node.args[0] not in self.moving
        return self._lump(
            node, f"{node.where} is the only layer with parameters on its path" if linear else ""
        )

    def _sums_channels(self, node: Node) -> bool:
        """Whether a weight layer sums over all its input channels, with trained weights and no bias."""
        if node.op not in _LAYERS or node.args[1] not in self.trained or node.argument(2, "bias") is not None:
            return False
        return _rank(node) == 2 if node.op == "linear" else int(node.argument(6, "groups", 1)) == 1

    def _with_weight(self, below: Blocks, node: Node) -> Blocks:
        part = (node.args[1].target, 1 if below.count > 1 else WHOLE)
        return replace(below, parts=below.parts | {part})

    def blocks(self, node: Node) -> Blocks:
        """Return the blocks of channels of a node that depends on the parameters."""
        return self.cache[node] if node in self.cache else self._lump(node)

    def _blocks(self, node: Node) -> Blocks:
        source = node.args[0] if node.args else None
        if node.op in _LAYERS and node.args[1] in self.trained:
            return self._layer(node)
        if not isinstance(source, Node) or source not in self.moving:
            return self._lump(node)
        below, before, shape = self.blocks(source), source.shape or (), node.shape or ()
        others = [n for n in node.inputs[1:] if n.op != "sym_size"]
        if (
            node.op == "add"
            and len(others) == 1
            and others[0] in self.moving
            and _same_shape(node, source, others[0])
        ):
            other = self.blocks(others[0])
            count = math.gcd(below.count, other.count)
            return (
                Blocks(count, below.parts | other.parts)
                if count > 1
                else self._lump(node, below.obstacle or other.obstacle)
            )
        if others or min(len(before), len(shape)) < 2 or shape[0] != before[0]:
            return self._lump(node)
        kept = node.op in _ELEMENTWISE or (node.op in _NUMBERS and _by_number(node))
        kept |= node.op in _SPATIAL and len(before) > 2 and shape[1] == before[1] and _leaves_channels(node)
        kept |= _adds_zero(node) or (node.op in _COPIES and shape[1] % below.count == 0)
        return below if kept else self._lump(node)

    def _layer(self, node: Node) -> Blocks:
        source, weight, bias = node.args[0], node.args[1], node.argument(2, "bias")
        if (bias is not None and bias not in self.trained) or (node.op == "linear" and _rank(node) != 2):
            return self._lump(node)
        groups = 1 if node.op == "linear" else int(node.argument(6, "groups", 1))
        parts = frozenset((n.target, 0) for n in (weight, bias) if n is not None)
        if source not in self.moving:
            if groups > 1:
                return self._lump(node, f"the groups of {node.where} read different parts of the input")
            return Blocks(int(weight.shape[0]), parts)
        below = self.blocks(source)
        count = math.gcd(below.count, groups)
        if count > 1:
            return Blocks(count, below.parts | parts)
        mixing = f"{node.where} mixes the units below it, so that all paths share their parameters"
        return self._lump(node, "" if below.unknown else mixing)

    def _lump(self, node: Node, obstacle: str = "") -> Blocks:
        """Return one block that depends on everything below a node."""
        names = frozenset((n.target, WHOLE) for n in self._below(node) if n in self.trained)
        return Blocks(1, names, obstacle, "" if obstacle else f"{node.where} ({node.op})")

    def _below(self, node: Node) -> set[Node]:
        found: set[Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current not in found:
                found.add(current)
                stack.extend(current.inputs)
        return found

    def signature(self, term: Term) -> tuple[Any, ...]:
        """Return the function of one block without its parameters: equal for equal architectures."""
        axes, count = dict(term.blocks.parts), term.blocks.count
        order: dict[Node, int] = {}
        lines: list[Any] = [term.after]
        stack = [term.node]
        while stack:
            node = stack[-1]
            waiting = [source for source in node.inputs if source not in order]
            if waiting and node not in order:
                stack.append(waiting[0])
                continue
            stack.pop()
            if node not in order:
                order[node] = len(order)
                lines.append(self._line(node, axes, count, tuple(order[source] for source in node.inputs)))
        return tuple(lines)

    def _line(self, node: Node, axes: dict[str, int], count: int, children: tuple[int, ...]) -> Any:
        """Return what one node contributes to a signature."""
        if node in self.trained:
            return tuple(s // count if i == axes[node.target] else s for i, s in enumerate(node.shape or ()))
        if node.is_leaf:
            return node.name
        if node not in self.moving:
            return node.op, _constants(node), node.shape, children
        constants = () if node.op in _COPIES else _constants(node, count)
        return node.op, constants, (node.shape or ())[2:], children

    def zeros(self, blocks: Blocks) -> int:
        """Return how many blocks have only zero parameters."""
        values = {n.target: self.graph.value_of(n).detach() for n in self.trained}
        empty = torch.ones(blocks.count, dtype=torch.bool)
        for name, axis in blocks.parts:
            rows = values[name] if axis == WHOLE else values[name].movedim(axis, 0)
            empty &= (rows.reshape(blocks.count, -1) == 0).all(1).cpu()
        return int(empty.sum())


def _rank(node: Node) -> int:
    return len(node.shape or ())


def _same_shape(node: Node, *others: Node) -> bool:
    return all(other.shape == node.shape for other in others)


def _dims(node: Node) -> set[int]:
    """Return the dimensions that a reduction runs over."""
    rank = _rank(node.args[0])
    dims = node.argument(1, "dim")
    return {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}


def _leaves_channels(node: Node) -> bool:
    """Whether a spatial operation leaves batch and channels apart."""
    if node.op in ("mean", "sum", "amax"):
        return min(_dims(node)) > 1
    return node.op != "pad" or len(node.args[1]) <= 2 * (_rank(node) - 2)


def _adds_zero(node: Node) -> bool:
    """Whether a node adds the number 0, as Python's ``sum`` does to begin with."""
    return node.op == "add" and _by_number(node) and node.args[1] == 0


def _by_number(node: Node) -> bool:
    return len(node.args) == 2 and isinstance(node.args[1], (int, float))


def _constants(node: Node, count: int = 1) -> tuple[Any, ...]:
    """Return the arguments that are not nodes; the number of groups as one of ``count`` blocks sees it."""
    values = [None if isinstance(a, Node) else a for a in node.args]
    if node.op in _LAYERS and node.op != "linear" and len(values) > 6 and isinstance(values[6], int):
        values[6] = values[6] // math.gcd(values[6], count)
    return tuple(str(v) for v in values), str(
        sorted((k, str(v)) for k, v in node.kwargs.items() if not isinstance(v, Node))
    )
