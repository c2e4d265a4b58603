"""Mutual coherence of each layer's filters, and the sparsity that it tolerates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.analysis.coherence import Coherence as Result
from theodolite.analysis.coherence import coherence_flops, filter_coherence
from theodolite.theorems.base import Chart, NotApplicable, Theorem
from theodolite.theorems.subject import Subject
from theodolite.value import Value

FLOPS = 2e11  # for all layers together; a layer above its share is represented by some of its filters
_Layer = tuple[str, Tensor, dict[str, Any]]  # name, weight, options of filter_coherence
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Coherence(Theorem):
    """How far a layer's filters are from orthogonal, and which sparse codes they make unique."""

    code = "SPA001"
    title = "Mutual coherence of the filters"
    chapter = "sparsity"
    statement = (
        r"Let $D$ have unit-norm atoms (filters at all shifts), $\mu = \max_{i\ne j} |d_i^\top d_j|$. "
        r"If $x = D\Gamma$ with $\|\Gamma\|_0 < \frac12(1 + 1/\mu)$ (for convolutions, in every stripe), "
        r"$\Gamma$ is the unique sparsest code, and orthogonal matching pursuit and basis pursuit find it. "
        r"For any $N$ atoms in $\mathbb R^m$, $\mu^2 \ge (N - m)/(m(N - 1))$."
    )
    reference = "donoho2003optimally, papyan2017convolutional"
    sensitive = frozenset({"rescaling"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the largest coherence over layers, then coherence, Welch bound and sparsity by layer."""
        layers = list(_layers(subject.model))
        if not layers:
            raise NotApplicable("the model has no linear or convolutional layer with real weights")
        parts: dict[str, dict[str, Value]] = {"coherence": {}, "tolerated_sparsity": {}, "welch": {}}
        found: dict[str, tuple[Result | None, Tensor | None]] = {}
        left = FLOPS
        for done, (name, weight, options) in enumerate(sorted(layers, key=_flops)):
            rows = _sample(subject, (name, weight, options), left / (len(layers) - done))
            used = weight if rows is None else weight[rows]
            found[name] = filter_coherence(used, **options), rows
            left -= _flops((name, used, options))
            subject.progress(done + 1, len(layers))
        worst: tuple[float, str] | None = None
        for name, weight, _ in layers:
            result, rows = found[name]
            if result is not None:
                _describe(parts, name, result, len(weight), rows)
                if worst is None or result.mu > worst[0]:
                    worst = result.mu, name
        if worst is None:
            raise NotApplicable("every layer has a single filter, so that there is no pair to compare")
        return _headline(parts, worst[1], len(layers) - len(parts["coherence"])) | {
            f"{quantity}[{name}]": value for quantity, layer in parts.items() for name, value in layer.items()
        }

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Return coherence by layer."""
        layers = {name[10:-1]: v for name, v in values.items() if name.startswith("coherence[")}
        heights = [v.low for v in layers.values()]
        return Chart("bars", {"coherence": heights}, list(layers), "layer", "mutual coherence")


def _layers(model: nn.Module) -> Iterator[_Layer]:
    """Yield name, weight and options of each linear and convolutional layer, a shared weight once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            continue
        weight = module.weight.detach()
        if not weight.is_floating_point() or weight.numel() == 0 or weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        options: dict[str, Any] = {}
        if not isinstance(module, nn.Linear):
            options = {"stride": module.stride, "dilation": module.dilation, "groups": module.groups}
        yield name or type(module).__name__, weight, options


def _flops(layer: _Layer) -> float:
    _, weight, options = layer
    return coherence_flops(weight, stride=options.get("stride", ()), groups=options.get("groups", 1))


def _sample(subject: Subject, layer: _Layer, flops: float) -> Tensor | None:
    """Return the filters to compare when comparing all would take too long, else None."""
    name, weight, options = layer
    needed = _flops(layer)
    if needed <= flops or options.get("groups", 1) > 1:
        return None
    count = max(2, int(len(weight) * (flops / needed) ** 0.5))
    return torch.randperm(len(weight), generator=subject.generator(f"SPA001/{name}"))[:count].sort().values


def _describe(
    parts: dict[str, dict[str, Value]], name: str, result: Result, filters: int, rows: Tensor | None
) -> None:
    pair = [int(rows[i]) for i in result.pair] if rows is not None else list(result.pair)
    witness = {"filters": pair} | ({"lag": list(result.lag)} if result.lag else {})
    notes = [f"zero filters left out: {result.zeros}"] if result.zeros else []
    tolerated = result.tolerated_sparsity
    few = "fewer than two nonzeros: the theorem says nothing about this layer" if tolerated <= 2.0 else ""
    if rows is None:
        parts["coherence"][name] = Value.exact(result.mu, witness=witness, note="; ".join(notes))
        parts["tolerated_sparsity"][name] = Value.exact(tolerated, unit="nonzeros", note=few)
        parts["welch"][name] = Value.exact(
            result.welch, note="no filters of this number and shape have a smaller coherence"
        )
    else:
        notes.append(f"from {len(rows):,} of {filters:,} filters")
        parts["coherence"][name] = Value.bound(lower=result.mu, witness=witness, note="; ".join(notes))
        parts["tolerated_sparsity"][name] = Value.bound(
            upper=tolerated, unit="nonzeros", note=few or notes[-1]
        )


def _headline(parts: dict[str, dict[str, Value]], worst: str, single: int) -> dict[str, Value]:
    coherence, tolerated = parts["coherence"][worst], parts["tolerated_sparsity"][worst]
    witness = {"layer": worst} | coherence.witness
    note = (
        "largest over layers; filters normalized layer by layer, at all shifts on an image without borders"
        + (f"; layers with a single filter left out: {single}" if single else "")
        + (f"; {coherence.note}" if coherence.note else "")
    )
    sampled = any(value.kind == "bound" for value in parts["coherence"].values())
    if sampled:
        return {
            "coherence": Value.bound(lower=coherence.low, witness=witness, note=note),
            "tolerated_sparsity": Value.bound(upper=tolerated.high, unit="nonzeros", note=tolerated.note),
        }
    return {
        "coherence": Value.exact(coherence.low, witness=witness, note=note),
        "tolerated_sparsity": Value.exact(
            tolerated.high, unit="nonzeros", witness=worst, note=tolerated.note
        ),
    }
