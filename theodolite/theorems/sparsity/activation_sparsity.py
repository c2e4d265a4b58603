"""Sparsity of the activations on the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.analysis.graph import Node
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.subject import Reducer, Subject
from theodolite.value import Value

# ATen names, and the names of the modules that stand for them when a model cannot be traced
ACTIVATIONS = frozenset(
    "relu relu6 clamp clamp_min leaky_relu leakyrelu prelu rrelu elu selu celu gelu silu mish softplus "
    "softsign hardtanh hardswish hardsigmoid sigmoid tanh threshold softshrink hardshrink tanhshrink".split()
)
_CHANNELS_FIRST = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
_PASSED = frozenset(
    "_native_batch_norm_legit_no_training native_group_norm group_norm instance_norm add sub mul div clone "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d native_dropout dropout".split()
)
_FEATURES_LAST = frozenset("linear matmul native_layer_norm layer_norm".split())
_LISTED = 50  # units named in a witness


@dataclass
class Layer:
    """Counts of one activation.

    Attributes
    ----------
    zeros, entries : int
        Entries that are exactly zero, and all entries, over the data.
    active : Tensor of bool, shape (units,)
        Whether a unit was ever different from zero.
    """

    zeros: int
    entries: int
    active: Tensor

    @property
    def share(self) -> float:
        """Share of entries that are exactly zero."""
        return self.zeros / self.entries

    @property
    def silent(self) -> list[int]:
        """Units that were zero on every sample."""
        return torch.nonzero(~self.active).flatten().tolist()


class ZeroCounter(Reducer):
    """Counts exact zeros and silent units of each activation as batches stream by."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._layers: dict[tuple[Node, int], Layer] = {}
        self._of_data: set[Node] = set()
        for node in subject.graph.nodes:
            if node.op == "input" or not self._of_data.isdisjoint(node.inputs):
                self._of_data.add(node)

    def wants(self, node: Node) -> bool:
        """Return whether the node is an activation of the data (not, say, of a weight)."""
        return node.op in ACTIVATIONS and (node in self._of_data or not self.subject.graph.traced)

    def update(self, node: Node, value: Tensor) -> None:
        """Count one batch, shape (batch, units) or (batch, channels, ...) or (batch, ..., features)."""
        if value.ndim < 2 or not value.is_floating_point():
            return
        zero = value == 0
        axis = 1 if value.ndim == 2 or channels_first(node, value.ndim) else value.ndim - 1
        silent = zero.transpose(1, axis).transpose(0, 1).flatten(1).all(1).cpu()
        key = (node, len(silent))  # a module that is used twice, unlike an operation, may have two widths
        layer = self._layers.setdefault(key, Layer(0, 0, torch.zeros(len(silent), dtype=torch.bool)))
        layer.zeros += int(zero.sum())
        layer.entries += zero.numel()
        layer.active |= ~silent

    @property
    def layers(self) -> dict[str, Layer]:
        """Counts by layer name, with "#2" at the second use."""
        named: dict[str, Layer] = {}
        uses: dict[str, int] = {}
        for (node, _), layer in self._layers.items():
            name = node.layer or node.name
            uses[name] = uses.get(name, 0) + 1
            named[name if uses[name] == 1 else f"{name}#{uses[name]}"] = layer
        return named


def channels_first(node: Node, ndim: int) -> bool:
    """Return whether an activation's units are on axis 1: it follows a convolution, or has many axes."""
    source = node
    while source.inputs:
        source = source.inputs[0]
        if source.op in _CHANNELS_FIRST:
            return True
        if source.op not in _PASSED and source.op not in ACTIVATIONS:
            break
    return ndim > 3 and source.op not in _FEATURES_LAST


def _nothing_counted(subject: Subject) -> str:
    graph = subject.graph
    if graph.traced:
        counter = subject.reduced(ZeroCounter)
        present = any(counter.wants(node) for node in graph.nodes)
    else:
        present = any(type(module).__name__.lower() in ACTIVATIONS for module in subject.model.modules())
    if present:
        return "no activation of the model has one axis for the samples and one for its units"
    if graph.traced:
        return "the model has no activation operation (ReLU, GELU, ...)"
    return f"the model has no activation module (ReLU, ...) and could not be traced ({graph.reason})"


class ActivationSparsity(Theorem):
    """Which share of the activations is zero, and which units never are anything else."""

    code = "SPA002"
    title = "Activation sparsity"
    chapter = "sparsity"
    statement = (
        r"A ReLU with bias $-\beta$ is nonnegative soft thresholding, $[D^\top x - \beta]_+$, one step of "
        r"sparse coding from zero; the nonzeros of its output are the support of the code $\Gamma$ that the "
        r"network uses. Reported: the share of entries with $\Gamma_i = 0$ exactly, and the units that are "
        r"zero on every sample."
    )
    reference = "papyan2017convolutional"
    reducers = (ZeroCounter,)
    invariant = frozenset({"rescaling", "permutation"})
    sensitive = frozenset({"dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the share of zeros and the number of silent units, over all activations and by layer."""
        layers = subject.reduced(ZeroCounter).layers
        if not layers:
            raise NotApplicable(_nothing_counted(subject))
        entries = sum(layer.entries for layer in layers.values())
        zeros = sum(layer.zeros for layer in layers.values())
        silent = {name: len(layer.silent) for name, layer in layers.items()}
        units = sum(len(layer.active) for layer in layers.values())
        note = f"on all {subject.n:,} training samples"
        values = {
            "zero_fraction": Value.exact(
                zeros / entries, note=f"of {entries // subject.n:,} activations a sample, {note}"
            ),
            "silent_units": Value.exact(
                sum(silent.values()),
                unit="units",
                witness={name: count for name, count in silent.items() if count} or None,
                note=f"of {units:,}; zero {note}, which says nothing about other inputs",
            ),
        }
        for name, layer in layers.items():
            values[f"zero_fraction[{name}]"] = Value.exact(layer.share)
        for name, layer in layers.items():
            if layer.silent:
                values[f"silent_units[{name}]"] = Value.exact(
                    len(layer.silent),
                    unit="units",
                    witness=layer.silent[:_LISTED],
                    note=f"of {len(layer.active):,}",
                )
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Return the share of zeros by layer."""
        layers = {name[14:-1]: v.low for name, v in values.items() if name.startswith("zero_fraction[")}
        return Chart("bars", {"zeros": list(layers.values())}, list(layers), "layer", "share of zeros")

    def advice(self, finding: Finding) -> str:
        """Return whether units can probably go."""
        silent = finding.values.get("silent_units")
        if silent is None or not silent.value:
            return ""
        return (
            f"silent units: {silent.value:.0f} are zero on every training sample and get no gradient from it; "
            "try removing or re-initializing them"
        )
