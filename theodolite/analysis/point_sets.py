"""Whether the rows of a network's inputs are a set: points, all treated alike."""

from __future__ import annotations

import torch
from torch import Tensor

from theodolite.analysis.graph import Graph
from theodolite.analysis.piecewise_linear import data_dependent
from theodolite.analysis.spatial import Layout, record
from theodolite.analysis.translation_action import Action, analyse, windowed

_PRODUCTS = ("linear", "matmul", "mm", "bmm")
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# what no rule speaks of may treat rows alike: it is measured, not refused
_UNKNOWN = ("has no rule here", "follows a layer whose positions are unknown")


def set_action(graph: Graph, x: Tensor) -> Action | str:
    """Find how permutations act on a network of sets of points, or why its inputs are none.

    Inputs (n, points, features) count as sets where the first product is one linear map for
    all rows and no operation is known to tell rows apart by their place (weights by position,
    recurrence, windows, a fixed graph).

    Parameters
    ----------
    graph : Graph
        A traced graph.
    x : Tensor, shape (n, points, features)
        Inputs.

    Returns
    -------
    Action or str
        The action on dimension 1, or one sentence.
    """
    root = next(n for n in graph.nodes if n.op == "input")
    steps = analyse(graph, record(graph, x), root, (1,))
    shape = tuple(x.shape[1:])
    opening = f"the inputs are arrays of shape {shape}, and their rows are no set: "
    slides = windowed(graph)
    if slides is not None:
        return f"{opening}{slides.where} slides over neighbors"
    if x.shape[1] < 2:
        return f"{opening}there is one alone"
    alive = data_dependent(graph)
    recurrent = next((n for n in graph.operations if n in alive and n.op in _RECURRENT), None)
    if recurrent is not None:
        return f"{opening}{recurrent.where} reads them in order"
    told_apart = next(
        (n for n, step in steps.items() if step.fault and not step.fault.startswith(_UNKNOWN)), None
    )
    if told_apart is not None:
        return f"{opening}{told_apart.where} {steps[told_apart].fault}"
    first = next((n for n in steps if n.op in _PRODUCTS), None)
    read = None if first is None else steps[first.args[0]].layout if first.args[0] in steps else None
    if not isinstance(read, Layout) or not read.has(0) or read.labels[-1] != ():
        return f"{opening}no linear map that all of them share comes first"
    return Action(root, (1,), torch.arange(x[0].numel()).view(shape), steps)
