"""Sums over all paths of a small graph, path after path."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

Edge = tuple[Hashable, Hashable, float]


def paths(edges: Iterable[Edge], source: Hashable, sinks: Iterable[Hashable]) -> Iterator[list[float]]:
    """Yield the weights along every path from a source to any sink of an acyclic graph."""
    leaving: dict[Hashable, list[tuple[Hashable, float]]] = {}
    for start, end, weight in edges:
        leaving.setdefault(start, []).append((end, weight))
    yield from _from(leaving, source, set(sinks), [])


def _from(
    leaving: Mapping[Hashable, Sequence[tuple[Hashable, float]]],
    at: Hashable,
    sinks: set[Hashable],
    weights: list[float],
) -> Iterator[list[float]]:
    if at in sinks:
        yield weights
    for end, weight in leaving.get(at, ()):
        yield from _from(leaving, end, sinks, [*weights, weight])


def path_norm(
    edges: Iterable[Edge], sources: Iterable[Hashable], sinks: Iterable[Hashable], q: float
) -> float:
    """Return the path norm of order q of a graph by enumeration."""
    edges, sinks = list(edges), set(sinks)
    total = 0.0
    for source in sources:
        for weights in paths(edges, source, sinks):
            total += math.prod(abs(w) ** q for w in weights)
    return total ** (1.0 / q)


def layered_edges(
    layers: Sequence[tuple[ArrayLike, ArrayLike | None]],
) -> tuple[list[Edge], list[Hashable], list[Hashable]]:
    """Return (edges, sources, sinks) of a fully connected network.

    Parameters
    ----------
    layers : sequence of (weight (out, in), bias (out,) or None)
        A bias is an edge from the source "one".
    """
    edges: list[Edge] = []
    width = 0
    for depth, (weight, bias) in enumerate(layers):
        W = np.asarray(weight, dtype=float)
        for i in range(W.shape[0]):
            edges += [((depth, j), (depth + 1, i), float(W[i, j])) for j in range(W.shape[1])]
            if bias is not None:
                edges.append(("one", (depth + 1, i), float(np.asarray(bias, dtype=float)[i])))
        width = W.shape[0]
    inputs = np.asarray(layers[0][0]).shape[1]
    sources: list[Hashable] = [(0, j) for j in range(inputs)]
    sinks: list[Hashable] = [(len(layers), i) for i in range(width)]
    return edges, [*sources, "one"], sinks
