"""Layers that drop positions: how much each aliases, and a model in which they blur first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.analysis.graph import Node
from theodolite.analysis.spatial import Layout
from theodolite.analysis.translation_action import Action
from theodolite.nn.blur_pool import AntiAliased, BlurPadding

SLIDING = ("conv1d", "conv2d", "conv3d", "max_pool", "avg_pool")
DENSEST = 16  # times the work of a layer that its dense version may take


def made_over(model: nn.Module, action: Action, x: Tensor) -> tuple[dict[str, AntiAliased], dict[str, str]]:
    """Return, for the layers that drop positions, their anti-aliased versions by name, and why others stay.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; it is not changed.
    action : Action
        How translations act on the nodes of its graph.
    x : Tensor, shape (n, ...)
        Inputs on which the new layers must give the old ones' shapes.
    """
    modes = {m.padding_mode for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd) and _pads(m)}
    mode: BlurPadding = "circular" if modes == {"circular"} else "reflect"
    found: dict[str, AntiAliased] = {}
    refused: dict[str, str] = {}
    seen: set[int] = set()  # a module that is used twice has several names
    for node, step in action.steps.items():
        if not node.op.startswith(SLIDING) or not isinstance(step.layout, Layout):
            continue
        factor = _dropped(node, action)
        module = model.get_submodule(node.layer)
        if factor == 1 or id(module) in seen:
            continue
        seen.add(id(module))
        if next(module.children(), None) is not None:
            refused[node.layer or node.op] = "it is no module of its own"
        elif factor > DENSEST:
            refused[node.layer] = f"its dense version would take {factor:g} times its work"
        elif module._forward_hooks or module._forward_pre_hooks:
            refused[node.layer] = "it has hooks, which would be lost"
        else:
            try:
                found[node.layer] = AntiAliased(module, padding_mode=mode).eval()
                with torch.no_grad():
                    swapped(model, {node.layer: found[node.layer]})(x)
            except ValueError as error:
                found.pop(node.layer, None)
                refused[node.layer] = str(error)
    return found, refused


def aliasing(model: nn.Module, layers: Mapping[str, AntiAliased], x: Tensor) -> dict[str, float]:
    """Return, for each layer, the share of what it gives at every position that its stride folds over.

    The norm of the frequencies above half the new rate, along some axis, over that of all, with the
    layer's own inputs in the unchanged model.
    """
    energies = {name: [0.0, 0.0] for name in layers}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            layer = layers[name]
            y = layer.at_every_position(args[0]).double()
            dims = tuple(range(2, y.ndim))
            power = torch.fft.fftn(y, dim=dims).abs().square().sum((0, 1))
            folded = torch.zeros_like(power, dtype=torch.bool)
            for axis, stride in enumerate(layer.blur.stride):
                high = torch.fft.fftfreq(power.shape[axis], device=y.device).abs() > 0.5 / stride
                folded |= high.view([-1 if a == axis else 1 for a in range(power.ndim)])
            energies[name][0] += float(power[folded].sum())
            energies[name][1] += float(power.sum())

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in layers]
    try:
        with torch.no_grad():
            for part in x.split(16):
                model(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (high / whole) ** 0.5 if whole else 0.0 for name, (high, whole) in energies.items()}


def swapped(model: nn.Module, layers: Mapping[str, AntiAliased]) -> nn.Module:
    """Return a copy of the model with copies of new modules, by name, wherever the old ones are used."""
    copied = copy.deepcopy(model)
    new = {id(copied.get_submodule(name)): copy.deepcopy(layer) for name, layer in layers.items()}
    if id(copied) in new:
        return new[id(copied)]
    for parent in list(copied.modules()):
        for key, child in list(parent._modules.items()):
            if id(child) in new:
                parent._modules[key] = new[id(child)]
    return copied


def _pads(convolution: Any) -> bool:
    padding = convolution.padding
    return padding == "same" if isinstance(padding, str) else any(padding)


def _dropped(node: Node, action: Action) -> float:
    """Return how many positions of a layer's input there are to one of its outputs, 1 where none is dropped."""
    source = action.steps.get(node.args[0])
    if source is None or not isinstance(source.layout, Layout):
        return 1.0
    before, after = source.layout.stride, action.steps[node].layout.stride
    factor = 1.0
    for axis in before:
        factor *= float(after[axis] / before[axis])
    return factor
