"""Function-preserving changes leave alone what is declared invariant and move what is declared sensitive.

Eleven networks, three kinds of change, seven draws of each: 231 changed networks.  Every theorem
that declares a kind invariant is evaluated on every one of them; one that declares it sensitive,
on the first draw for each network.
"""

from __future__ import annotations

import dataclasses
import functools

import builders
import pytest
import torch
from torch import Tensor, nn

import theodolite.theorems as theorems
from theodolite.analysis.graph import Graph
from theodolite.testing import FUNCTION_PRESERVING, same_values
from theodolite.theorems.base import Finding, Theorem, evaluate
from theodolite.theorems.subject import Subject

DRAWS = 7
NETWORKS = range(11)
# what is declared neither: some networks' values stay and some others' move ...
DEPENDS = {
    ("SPA001", "dead units"),
    ("LAN001", "dead units"),
}
# ... or a random draw meets the units in another order, which small networks need not show
RANDOM = {
    ("DRO001", "permutation"): "below nonlinear layers masks are drawn for the units in their order",
    ("DRO001", "dead units"): "below nonlinear layers masks are drawn for the units in their order",
    ("OPT005", "permutation"): "Lanczos starts from a random vector",
    ("OPT006", "permutation"): "the polar's search starts from random units beside the network's own",
    ("OPT007", "permutation"): "the search in a zero subnetwork's place starts from random weights",
    ("LAN001", "permutation"): "Lanczos starts from a random vector",
    ("SPA001", "permutation"): "of a large layer's filters a random part is compared",
}


@functools.cache
def network(index: int) -> nn.Module:
    """One of eleven networks: depth two to four, with and without biases, dense and convolutional, one with dropout."""
    makers = [
        lambda: builders.mlp(64, 12, 10),
        lambda: builders.mlp(64, 12, 10, bias=True, seed=1),
        lambda: builders.mlp(64, 10, 8, 10, seed=2),
        lambda: builders.mlp(64, 10, 8, 10, bias=True, seed=3),
        lambda: builders.mlp(64, 8, 8, 8, 10, seed=4),
        lambda: builders.mlp(64, 16, 10, seed=5),
        lambda: builders.mlp(64, 6, 12, 10, bias=True, seed=6),
        lambda: builders.conv_net(),
        lambda: builders.conv_net("zeros", seed=1),
        lambda: builders.conv_net("circular", seed=2),
        lambda: builders.dropout_net(seed=3).eval(),
    ]
    return makers[index]().double()


@functools.cache
def data(index: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Digits with the network's own classes, one in four changed: it is mostly right, with margins."""
    x = builders.digits()[0][:30].double()
    with torch.no_grad():
        y = network(index)(x).argmax(1)
    y[::4] = (y[::4] + 1) % 10
    return (x[:20], y[:20]), (x[20:], y[20:])


def subject(index: int, model: nn.Module) -> Subject:
    train, test = data(index)
    return Subject(model, *train, test=test, weight_decay=1e-3)


@functools.cache
def original(index: int) -> Subject:
    return subject(index, network(index))


@functools.cache
def before(index: int, theorem: type[Theorem]) -> Finding:
    return evaluate(theorem(), original(index))


@functools.cache
def wider_graph(index: int) -> Graph:
    """The graph of the network with one more unit a layer."""
    generator = torch.Generator().manual_seed(0)
    return subject(index, FUNCTION_PRESERVING["dead units"](network(index), generator)).graph


@functools.cache
def changed(index: int, change: str, draw: int) -> Subject:
    """Return the subject with a changed network, whose function is checked to be the same."""
    generator = torch.Generator().manual_seed(1000 * index + draw)
    model = FUNCTION_PRESERVING[change](network(index), generator)
    x = data(index)[0][0]
    torch.testing.assert_close(model(x), network(index)(x), rtol=1e-9, atol=1e-11)
    result = subject(index, model)
    if draw > 0:
        # tracing is most of the time, and draws of one kind differ in numbers alone: they share a graph
        graph = wider_graph(index) if change == "dead units" else original(index).graph
        result.once("graph", lambda: dataclasses.replace(graph, model=result.model))
    return result


@pytest.mark.parametrize("change", sorted(FUNCTION_PRESERVING))
@pytest.mark.parametrize("index", NETWORKS)
def test_declared_invariance(index, change):
    invariant = [theorem for theorem in theorems.ALL if change in theorem.invariant]
    for draw in range(DRAWS):
        result = changed(index, change, draw)
        for theorem in invariant:
            one, two = before(index, theorem), evaluate(theorem(), result)
            assert one.status != "failed", one.traceback
            assert same_values(one, two, 1e-6), (theorem.code, draw, one.values, two.values, two.reason)


@pytest.mark.parametrize("change", sorted(FUNCTION_PRESERVING))
@pytest.mark.parametrize("index", NETWORKS)
def test_declared_sensitivity(index, change):
    for theorem in theorems.ALL:
        if change in theorem.sensitive and before(index, theorem).values:
            after = evaluate(theorem(), changed(index, change, 0))
            assert after.status == before(index, theorem).status
            assert not same_values(before(index, theorem), after, 1e-9), theorem.code


@pytest.mark.parametrize("change", sorted(FUNCTION_PRESERVING))
@pytest.mark.parametrize("index", NETWORKS)
def test_draws_that_share_a_graph_have_that_graph(index, change):
    def outline(graph: Graph) -> list[tuple[object, ...]]:
        return [(n.name, n.op, n.layer, n.target, n.shape, [s.name for s in n.inputs]) for n in graph.nodes]

    shared = wider_graph(index) if change == "dead units" else original(index).graph
    assert outline(changed(index, change, 0).graph) == outline(shared)


def test_no_declaration_is_empty():
    """Each theorem has values on some of the networks, so that what it declares was tried."""
    for theorem in theorems.ALL:
        assert any(before(index, theorem).values for index in NETWORKS), theorem.code


def undeclared() -> list[tuple[type[Theorem], str]]:
    kinds = sorted(FUNCTION_PRESERVING)
    return [(t, kind) for t in theorems.ALL for kind in kinds if kind not in t.invariant | t.sensitive]


def test_nothing_is_left_undeclared_without_reason():
    assert {(t.code, change) for t, change in undeclared()} == DEPENDS | set(RANDOM)


@pytest.mark.parametrize(("theorem", "change"), [c for c in undeclared() if (c[0].code, c[1]) in DEPENDS])
def test_what_is_left_undeclared_depends_on_the_network(theorem, change):
    stays = set()
    for index in reversed(NETWORKS):
        one = before(index, theorem)
        for draw in range(3 if one.values and len(stays) < 2 else 0):
            stays.add(same_values(one, evaluate(theorem(), changed(index, change, draw)), 1e-6))
    assert stays == {True, False}
