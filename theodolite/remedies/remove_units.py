"""Remove dead, unused and duplicate units exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.analysis.graph import Graph, Node, trace
from theodolite.analysis.unit_pairs import find_pairs
from theodolite.analysis.units import Plan, plan, silent_units
from theodolite.remedies.base import Change, Remedy
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.hypotheses import require_graph
from theodolite.theorems.subject import Subject, deep_copy
from theodolite.value import Value

_SAMPLES = 1024


class RemoveUnits(Remedy):
    """Take out every hidden unit whose absence provably leaves the function as it is.

    Structure proves it, whatever the input; a run on data must agree to rounding, or the
    layer is left alone.
    """

    name = "remove-units"
    title = "Remove dead, unused and duplicate units"
    needs = "linear or convolutional layers, each an ordinary module that is used once"

    def change(self, model: nn.Module, subject: Subject, fit: Tensor) -> Change:
        """Shrink layer after layer until nothing more can go."""
        require_graph(subject)
        x, _ = subject.sample(_SAMPLES, "remedies/remove-units")
        small, removed, reason = shrink(model, x, subject.graph)
        graph = trace(small, x) if removed else subject.graph
        silent = silent_units(graph, find_pairs(graph)[0], x.split(subject.batch_size))
        count = sum(map(len, silent.values()))
        on_data = f"zero on {len(x):,} training samples, which proves nothing about other inputs"
        if not removed:
            also = f"; {count} units are {on_data}" if count else ""
            raise NotApplicable(f"{reason or 'no unit is dead, unused or a duplicate for every input'}{also}")
        sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
        total = sum(removed.values())
        kinds = ", ".join(f"{number} {kind}" for kind, number in removed.items() if number)
        proved = Value.exact(total, witness=removed, note="for every input, by structure")
        difference = largest_difference(model, small, x, subject.batch_size)
        effects = {
            "units_removed": proved,
            "parameters_removed": Value.exact(sizes[0] - sizes[1]),
            "max_difference": Value.exact(difference, note=f"of any output on {len(x):,} training samples"),
            "units_silent": Value.exact(count, witness=silent, note=f"left in place: {on_data}"),
        }
        share = 100 * (sizes[0] - sizes[1]) / sizes[0]
        units = "unit" if total == 1 else "units"
        what = f"remove {kinds} {units}: same function exactly, {share:.2g} % fewer parameters"
        return Change(small, what, effects, same_function=True)

    def helped(self, change: Change, effects: Mapping[str, Value]) -> bool:
        """Return whether there are fewer parameters; the function is the same."""
        return effects["parameters_removed"].low > 0


def shrink(model: nn.Module, x: Tensor, graph: Graph | None = None) -> tuple[nn.Module, dict[str, int], str]:
    """Remove what can be removed exactly.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; it is not changed.
    x : Tensor, shape (n, ...)
        Inputs on which the smaller model must agree.
    graph : Graph, optional
        The model's graph, where it is known.

    Returns
    -------
    smaller : nn.Module
        A copy with smaller layers, or the model itself when nothing can go.
    removed : dict
        Numbers of units by reason: "dead", "unused", "duplicate"; empty when nothing can go.
    reason : str
        Why a layer with such units, or the first layer that could not be examined, had to stay; "" if none.
    """
    removed: dict[str, int] = {}
    refused: dict[str, str] = {}
    current, graph = model, graph or trace(model, x)
    while True:
        pairs, declined = find_pairs(graph)
        plans = (plan(graph, pair, x[:2]) for pair in pairs if pair.first.layer not in refused)
        found = next((p for p in plans if p.n_removed), None)
        if found is None:
            reasons = refused or ({} if pairs else declined)
            return current, removed, next((f"layer '{k}' stays: {v}" for k, v in reasons.items()), "")
        smaller = _replace(current, found)
        reason = _disagreement(current, smaller, x[:64])
        if reason:
            refused[found.pair.first.layer] = reason
            continue
        current, graph = smaller, trace(smaller, x)
        for kind, units in {
            "dead": found.constant,
            "unused": found.unused,
            "duplicate": found.duplicate,
        }.items():
            removed[kind] = removed.get(kind, 0) + len(units)


def _disagreement(model: nn.Module, smaller: nn.Module, x: Tensor) -> str:
    """Return why the smaller model cannot take the place of the larger, "" if it can."""
    try:
        difference = largest_difference(model, smaller, x, len(x))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        lines = str(error).strip().splitlines() or [""]
        return f"the model's forward depends on its width ({type(error).__name__}: {lines[0]})"
    with torch.no_grad():
        size = float(model(x).abs().max())
    allowed = torch.finfo(next(model.parameters()).dtype).eps ** 0.5 * (1.0 + size)
    return "" if difference <= allowed else f"the outputs would change by {difference:.2g}"


def largest_difference(model: nn.Module, other: nn.Module, x: Tensor, batch_size: int) -> float:
    """Return the largest difference of any output on the given inputs."""
    with torch.no_grad():
        return max(float((model(part) - other(part)).abs().max()) for part in x.split(batch_size))


def _replace(model: nn.Module, found: Plan) -> nn.Module:
    """Return a copy of the model with smaller modules in place of two layers and what lies between."""
    copied = deep_copy(model)
    pair, keep = found.pair, found.keep
    old = _owner(copied, pair.first.args[1])
    bias = None if old.bias is None else old.bias[keep]
    _install(copied, pair.first.args[1], _resized(old, old.weight[keep], bias))
    for node in pair.norms:
        norm = _owner(copied, node.args[3])
        tensors = {key: value[keep] if value.ndim else value for key, value in norm.state_dict().items()}
        _install(copied, node.args[3], _fresh(norm, (len(keep),), _NORM_OPTIONS, tensors))
    old = _owner(copied, pair.last.args[1])
    _install(copied, pair.last.args[1], _resized(old, found.weight, found.bias))
    return copied


def _owner(model: nn.Module, leaf: Node) -> Any:
    """Return the module that holds a parameter or buffer."""
    return model.get_submodule(leaf.target.rpartition(".")[0])


def _install(model: nn.Module, leaf: Node, module: nn.Module) -> None:
    """Put a module in the place of the one that holds a parameter or buffer."""
    parent, _, name = leaf.target.rpartition(".")[0].rpartition(".")
    setattr(model.get_submodule(parent), name, module)


_NORM_OPTIONS = ("eps", "momentum", "affine", "track_running_stats")
_CONV_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def _resized(old: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a new linear or convolutional layer with the given weights and the old one's options."""
    options: Sequence[str] = () if isinstance(old, nn.Linear) else _CONV_OPTIONS
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return _fresh(old, (weight.shape[1], weight.shape[0]), options, tensors, bias=bias is not None)


def _fresh(
    old: nn.Module, sizes: tuple[int, ...], options: Sequence[str], tensors: dict[str, Tensor], **more: bool
) -> nn.Module:
    """Return a new module of the old one's class, mode and device that holds the given tensors."""
    like = next(iter(tensors.values()))
    given = {name: getattr(old, name) for name in options}
    new = nn.utils.skip_init(type(old), *sizes, **given, **more, device=like.device, dtype=like.dtype)
    new.load_state_dict(tensors)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    return new.train(old.training)
