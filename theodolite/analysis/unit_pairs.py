"""Pairs of weight layers with private units between them.

A unit is an output of a linear or convolutional layer that reaches exactly one other such
layer, through operations that keep the units apart: activations, batch normalization in
evaluation mode, pooling, flattening.  Both layers can then be replaced by smaller ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from theodolite.analysis.graph import Graph, Node

WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WEIGHT_OPS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
NORM = "_native_batch_norm_legit_no_training"
SAME = frozenset("alias clone contiguous detach dropout native_dropout lift_fresh_copy".split())
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu"})
ELEMENTWISE = HOMOGENEOUS | frozenset(
    "gelu silu sigmoid tanh elu selu celu softplus hardtanh relu6 hardswish hardsigmoid mish".split()
)
POOLS = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split()
)
RESHAPES = frozenset("view reshape flatten squeeze _unsafe_view".split())


@dataclass(frozen=True, eq=False)
class Pair:
    """Two weight layers with units of their own between them.

    Attributes
    ----------
    first, last : Node
        The layer that makes the units and the one that reads them.
    between : tuple of Node
        The operations on the way, in order.
    """

    first: Node
    last: Node
    between: tuple[Node, ...]

    @property
    def n_units(self) -> int:
        """Number of units."""
        return int(self.first.args[1].shape[0])

    @property
    def norms(self) -> list[Node]:
        """The batch normalizations on the way."""
        return [node for node in self.between if node.op == NORM]


def find_pairs(graph: Graph) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs of layers whose units are private to them.

    Parameters
    ----------
    graph : Graph
        A traced graph in evaluation mode.

    Returns
    -------
    pairs : list of Pair
        In order of execution.
    declined : dict
        Name of a layer -> why its units cannot be removed.
    """
    readers: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        for source in dict.fromkeys(node.inputs):
            if not (node.op == "sym_size" and node.args[1] == 0):  # only asks for the batch size
                readers.setdefault(source, []).append(node)
    pairs: list[Pair] = []
    declined: dict[str, str] = {}
    for first in graph.operations:
        if first.op not in WEIGHT_OPS or first.args[1].op != "parameter":
            continue
        reason = _unfit(graph, first, readers)
        between: list[Node] = []
        node = first
        while not reason:
            after = readers.get(node, [])
            if node is graph.output:
                break
            if len(after) != 1:
                reason = f"its units are read {len(after)} times"
            elif after[0].op in WEIGHT_OPS and after[0].args[0] is node:
                reason = _unfit(graph, after[0], readers) or _mismatch(first, after[0])
                if not reason:
                    pairs.append(Pair(first, after[0], tuple(between)))
                break
            else:
                node = after[0]
                reason = _mixes(graph, first, node)
                between.append(node)
        if reason:
            declined[first.layer] = reason
    return pairs, declined


def _unfit(graph: Graph, node: Node, readers: dict[Node, list[Node]]) -> str:
    """Return why a layer cannot be replaced by a smaller one, "" if it can."""
    for leaf in [leaf for leaf in node.args[1:3] if leaf is not None]:
        if leaf.op != "parameter":
            return f"the weights of {node.where} are computed"
        if len(readers[leaf]) > 1:
            return f"{node.where} is used more than once or shares its weights"
    owner = node.args[1].target.rpartition(".")[0]
    if node.op != "linear" and int(node.argument(6, "groups", 1)) != 1:
        return f"{node.where} is a grouped convolution"
    return _unfit_module(graph.model, owner, WEIGHT_LAYERS)


def _unfit_module(model: nn.Module, name: str, kinds: tuple[type[nn.Module], ...]) -> str:
    module = model.get_submodule(name)
    if type(module) not in kinds:
        return f"'{name or 'the model'}' is a {type(module).__name__}, not an ordinary layer"
    hooks = [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
    if hooks:
        return f"'{name}' has hooks"
    if sum(m is module for _, m in model.named_modules(remove_duplicate=False)) > 1:
        return f"'{name}' is registered under two names"
    return ""


def _mismatch(first: Node, last: Node) -> str:
    """Return why the second layer's inputs are no whole number of positions for each unit."""
    source = last.args[0]
    assert source.shape is not None
    assert first.shape is not None
    if first.op == "linear" and last.op == "linear":
        fits = len(source.shape) == len(first.shape) and last.args[1].shape[1] == first.args[1].shape[0]
    elif last.op == "linear":
        fits = len(source.shape) == 2 and last.args[1].shape[1] % first.args[1].shape[0] == 0
    else:
        fits = first.op != "linear" and last.args[1].shape[1] == first.args[1].shape[0]
    return "" if fits else f"{last.where} does not read its outputs unit by unit"


def _mixes(graph: Graph, first: Node, node: Node) -> str:
    """Return why an operation does not keep the units apart, "" if it does."""
    source, shape = node.args[0] if node.args else None, node.shape
    before = source.shape if isinstance(source, Node) else None
    refusal = f"{node.where} ({node.op}) does not keep its units apart"
    if before is None or shape is None:
        return refusal
    if node.op == NORM:
        owner = node.args[3].target.rpartition(".")[0] if isinstance(node.args[3], Node) else ""
        return (
            _unfit_module(graph.model, owner, NORM_LAYERS)
            if first.op != "linear" or len(before) == 2
            else refusal
        )
    if node.op in SAME or (node.op in ELEMENTWISE and node.op != "prelu"):
        return ""
    if node.op == "prelu":
        return "" if math.prod(node.args[1].shape) == 1 else refusal
    if first.op == "linear":  # units on the last axis: positions and pools would be something else
        return "" if node.op in RESHAPES and shape == before else refusal
    if node.op in POOLS:
        return "" if len(shape) > 2 and shape[1] == before[1] else refusal
    if node.op == "pad":
        return "" if len(node.args[1]) <= 2 * (len(before) - 2) else refusal
    if node.op == "mean":
        dims = {d % len(before) for d in node.argument(1, "dim", None) or []}
        return "" if dims and min(dims) > 1 else refusal
    # (n, units, ...) to (n, units * positions): the order stays, unit by unit
    flat = len(shape) == 2 and len(before) >= 2 and math.prod(before[1:]) == shape[1]
    return "" if node.op in RESHAPES and (flat or shape == before) else refusal
