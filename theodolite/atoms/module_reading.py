"""What is asked of a module that is to be a subnetwork: its inputs, its degree, its layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.analysis.graph import Graph
from theodolite.analysis.homogeneity import analyse
from theodolite.analysis.linear_layers import per_axis
from theodolite.analysis.pooling import AVERAGE_POOLS
from theodolite.linalg.dense import all_finite


def as_batch(X: Any, like: Tensor | None = None) -> Tensor:
    """Return finite float64 inputs of any shape (n, ...), n >= 1."""
    X = torch.as_tensor(X).detach()
    wanted = "n" if like is None else f"n, {', '.join(map(str, like.shape[1:]))}"
    if X.ndim < 2 or X.is_complex() or not X.numel() or (like is not None and X.shape[1:] != like.shape[1:]):
        raise ValueError(
            f"X: expected real inputs of shape ({wanted}, ...), got {X.dtype} of shape {tuple(X.shape)}"
        )
    X = X.double() if like is None else X.to(like)
    if not all_finite(X):
        raise ValueError(
            f"X: expected finite numbers, got {int((~torch.isfinite(X)).sum())} that are NaN or infinite"
        )
    return X


def copied(module: Any) -> nn.Module:
    """Return a copy of a module, or one that a function makes, in evaluation mode and float64."""
    if not isinstance(module, nn.Module) and callable(module):
        with torch.random.fork_rng():
            module = module()
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module: expected an nn.Module or a function that returns one, got {type(module).__name__}"
        )
    return copy.deepcopy(module).double().eval()


def proved_degree(module: nn.Module, X: Tensor, graph: Graph) -> int:
    """Return the degree in the parameters, or refuse with the layer that breaks it."""
    if not any(True for _ in module.parameters()):
        raise ValueError(f"module: expected parameters, got none in {type(module).__name__}")
    found = analyse(module, X[:2], wrt="parameters", graph=graph)
    if not found.proved or not graph.traced or found.degree is None:
        reason = found.reason if graph.traced else f"it could not be traced ({graph.reason})"
        raise ValueError(
            f"module: expected one that is positively homogeneous in its parameters, but {reason}"
        )
    if found.degree < 1 or found.degree != int(found.degree):
        raise ValueError(f"module: expected an integer degree >= 1 in its parameters, got {found.degree:g}")
    return int(found.degree)


def layers_of(names: Iterable[str]) -> dict[str, int]:
    """Return which layer each parameter belongs to: the weight and the bias of a module are one's."""
    layers: dict[str, int] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        weight = f"{owner}.weight" if owner else "weight"
        new = len(set(layers.values()))
        layers[name] = layers.get(weight, new) if leaf == "bias" else new
    return layers


def roundings(graph: Graph) -> int:
    """Return a bound of the roundings in a chain behind one entry of the output: of all operations' longest sums."""
    total = 0
    for node in graph.operations:
        source = node.inputs[0].shape if node.inputs else None
        if node.op == "linear" or node.op.startswith("conv"):
            weight = node.args[1].shape
            total += math.prod(weight[1:]) + 2
        elif source and node.shape:
            window = node.args[1] if node.op in AVERAGE_POOLS and not node.op.startswith("adaptive") else 1
            merged = math.prod(source) // max(1, math.prod(node.shape)) + 1
            total += max(merged, math.prod(per_axis(window, AVERAGE_POOLS.get(node.op, 1)))) + 2
    return total
