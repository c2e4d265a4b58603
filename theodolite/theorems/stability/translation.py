"""STA001: what a shift of the input does to every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from theodolite.analysis.equivariance import (
    Equivariance,
    LayerDefect,
    measure,
    relative_distance,
)
from theodolite.analysis.translation_action import translation_action, windowed
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.hypotheses import REAL_INPUT, require_cost
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

MOST_IMAGES = 200
# multiplications and additions in all: some ten seconds on two cores
BUDGET = 2e11


class TranslationEquivariance(Theorem):
    """Equivariance and invariance of every layer under cyclic shifts, beside what structure proves.

    Three relative distances a layer: how far the network up to it is from commuting
    with the shifts (by multiples of the strides so far, of which the theorem speaks);
    how far the layer is that alone, given inputs that are shifted exactly, which tells
    the layer that breaks equivariance most; and how far it is from invariant, at all
    shifts.  Means and maxima are exact numbers of the stated sample and shifts, no
    statement on other inputs; ``proved_layers`` is one on all inputs.
    """

    code = "STA001"
    title = "Translation equivariance by layer"
    chapter = "stability"
    statement = (
        r"With circular padding, strides that divide the sizes, pointwise nonlinearities and reductions over "
        r"all positions, $f_l(T_c x) = T_{c/P} f_l(x)$ for every input and every shift $c \in P\mathbb{Z}^d$, "
        r"$P$ the total stride; where no positions are left, $f_l(T_c x) = f_l(x)$. Otherwise the defect "
        r"$\|f_l(T_c x) - T_{c/P} f_l(x)\| / \|f_l(x)\|$ is measured."
    )
    reference = "wiatowski2018, azulay2019translations, zhang2019shift"
    hypotheses = (REAL_INPUT,)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the worst layer's defect, who breaks it most, what is proved, invariance, every layer."""
        cost = require_cost(subject)
        action = translation_action(subject.graph, subject.x[:2].to(subject.device), subject.image_shape)
        if action is None:
            raise NotApplicable(no_action(subject))
        shifts = action.default_shifts()
        if not shifts:
            raise NotApplicable("the inputs have one position along every axis, which nothing shifts")
        affordable = BUDGET / (2.0 * cost.total * (1 + len(shifts)))  # two passes: see ``measure``
        x, _ = subject.sample(int(min(MOST_IMAGES, max(2, affordable))), "STA001/images")
        found = measure(subject.graph, x, action, shifts=shifts, cost=cost)
        sample = f"{found.n:,} of {subject.n:,} training inputs and {len(found.shifts)} cyclic shifts"
        if not found.exact:
            sample += ", in the model's own precision"
        values = _of_layers(found, sample) | _of_output(subject, found, sample)
        values |= {f"defect[{layer.name}]": _defect(layer) for layer in found.layers}
        return values | {f"invariance[{layer.name}]": _invariance(layer) for layer in found.layers}

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Draw one bar a layer."""
        bars = {name[7:-1]: value.high for name, value in values.items() if name.startswith("defect[")}
        return Chart("bars", {"mean defect": list(bars.values())}, list(bars), "layer", "relative defect")

    def advice(self, finding: Finding) -> str:
        """Name the layer that breaks equivariance most, and why it does where the graph tells."""
        worst = finding.values.get("breaks_most")
        if worst is None or worst.witness["layer"] is None:
            return ""
        why = worst.witness["why"]
        return f"'{worst.witness['layer']}' breaks equivariance most" + (f": it {why}." if why else ".")


def no_action(subject: Subject) -> str:
    """Return why no translation is known to act on the inputs."""
    first = windowed(subject.graph)
    if first is not None:
        return f"the positions of the inputs could not be followed to {first.where}, the first to slide over them"
    shape = tuple(subject.x.shape[1:])
    if len(shape) == 1:
        return (
            "the inputs are flat vectors over which no convolution or pool slides: no translation is known to act "
            "(name their image_shape if they are images)"
        )
    return f"the inputs are arrays of shape {shape} over which no convolution or pool slides: no translation is known to act"


def _of_layers(found: Equivariance, sample: str) -> dict[str, Value]:
    if not found.layers:
        return {}
    worst = max(found.layers, key=lambda layer: float(layer.counted.mean()))
    breaker = max(found.layers, key=lambda layer: layer.own_defect)
    total, proved = len(found.layers), sum(layer.proved for layer in found.layers)
    number = float(worst.counted.mean())
    witness: dict[str, Any] = {"layer": worst.name, "shifts": [list(by) for by in found.shifts]}
    if number > found.rounding:
        where = f"at '{worst.name}'"
    elif proved == total:
        where = "which is rounding: every layer is proved to commute with these shifts"
    else:
        where = "no more than rounding on this sample, though not proved for all inputs"
    values = {
        "worst_layer_defect": Value.exact(number, witness=witness, note=f"mean over {sample}, {where}"),
        "largest_defect": Value.exact(
            max(float(layer.counted.max()) for layer in found.layers),
            note=f"largest of all layers, {sample}",
        ),
    }
    if breaker.own_defect > found.rounding:
        values["breaks_most"] = Value.exact(
            breaker.own_defect,
            witness={"layer": breaker.name, "why": breaker.fault},
            note=f"'{breaker.name}' alone, its inputs shifted exactly; mean over {sample}",
        )
    else:
        values["breaks_most"] = Value.exact(
            breaker.own_defect,
            witness={"layer": None, "why": ""},
            note=f"no layer adds more than rounding, {sample}",
        )
    values["proved_layers"] = Value.exact(
        proved,
        unit="layers",
        witness=found.fault or None,
        note=f"of {total}, equivariant for every input by the graph's operations"
        + (f"; first fault: {found.fault}" if found.fault else ""),
    )
    return values


def _of_output(subject: Subject, found: Equivariance, sample: str) -> dict[str, Value]:
    moved = torch.stack([relative_distance(found.outputs, other) for other in found.shifted_outputs])
    values = {
        "invariance_defect": Value.exact(
            float(moved.mean()),
            witness={"largest": float(moved.max())},
            note=f"change of the output relative to it, mean over {sample}",
        )
    }
    if subject.classification and subject.n_outputs > 1:
        kept = found.shifted_outputs.argmax(-1) == found.outputs.argmax(-1)
        values["predictions_kept"] = Value.exact(float(kept.double().mean()), note=f"share over {sample}")
    return values


def _defect(layer: LayerDefect) -> Value:
    note = "" if any(layer.lattice) else "at shifts that are no multiples of its stride: there are no others"
    witness = {"largest": float(layer.counted.max()), "own": layer.own_defect, "proved": layer.proved}
    return Value.exact(float(layer.counted.mean()), witness=witness, note=note)


def _invariance(layer: LayerDefect) -> Value:
    return Value.exact(float(layer.invariance.mean()), witness={"largest": float(layer.invariance.max())})
