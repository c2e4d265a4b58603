"""STA001: what a shift of the input does to every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from theodolite.analysis.equivariance import Equivariance, LayerDefect, measure, translation_action
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.hypotheses import REAL_INPUT, require_cost
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

MOST_IMAGES = 200
# multiplications and additions in all: some five seconds on one core
BUDGET = 3e10
# relative defects below this are rounding, in float32 too
ROUNDING = 1e-5


class TranslationEquivariance(Theorem):
    """Equivariance defect of every layer under cyclic shifts, beside what structure proves.

    A layer's defect is taken at shifts by multiples of the strides so far, of which
    the theorem speaks; the output's invariance at all shifts.  Means and maxima are
    exact numbers of the stated sample and shifts, not estimates for other data.
    """

    code = "STA001"
    title = "Translation equivariance by layer"
    chapter = "stability"
    statement = (
        r"With circular padding, strides that divide the sizes, pointwise nonlinearities and reductions over "
        r"all positions, $f_l(T_c x) = T_{c/P} f_l(x)$ for every shift $c \in P\mathbb{Z}^d$, $P$ the total "
        r"stride; otherwise the defect $\|f_l(T_c x) - T_{c/P} f_l(x)\| / \|f_l(x)\|$ is measured."
    )
    reference = "azulay2019translations, zhang2019shift"
    hypotheses = (REAL_INPUT,)
    invariant = frozenset({"permutation"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the worst layer's defect, what is proved, the output's invariance, every layer's defect."""
        cost = require_cost(subject)
        action = translation_action(subject.graph, subject.x[:2].to(subject.device))
        if action is None:
            raise NotApplicable(_no_action(subject))
        shifts = action.default_shifts()
        if not shifts:
            raise NotApplicable("the inputs have one position along every axis, which nothing shifts")
        affordable = BUDGET / (max(cost.total, 1.0) * (1 + len(shifts)))
        x, _ = subject.sample(int(min(MOST_IMAGES, max(2, affordable))), "STA001/images")
        found = measure(subject.graph, x, action, shifts=shifts, cost=cost)
        return _summary(subject, found) | {f"defect[{layer.name}]": _defect(layer) for layer in found.layers}

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Draw one bar a layer."""
        bars = {name[7:-1]: value.high for name, value in values.items() if name.startswith("defect[")}
        return Chart("bars", {"mean defect": list(bars.values())}, list(bars), "layer", "relative defect")

    def advice(self, finding: Finding) -> str:
        """Name the first operation that shifts do not commute with."""
        proved = finding.values.get("proved_layers")
        fault = "" if proved is None else proved.witness
        return fault and f"The first operation that does not commute with shifts: {fault}."


def _no_action(subject: Subject) -> str:
    shape = tuple(subject.x.shape[1:])
    what = "flat vectors" if len(shape) == 1 else f"arrays of shape {shape}"
    return f"the inputs are {what} over which no convolution or pool slides: no translation is known to act"


def _summary(subject: Subject, found: Equivariance) -> dict[str, Value]:
    sample = f"{found.n:,} of {subject.n:,} training inputs and {len(found.shifts)} cyclic shifts"
    if not found.exact:
        sample += ", in the model's own precision"
    values: dict[str, Value] = {}
    if found.layers:
        worst = max(found.layers, key=lambda layer: _mean(layer.counted))
        source = max(found.layers, key=lambda layer: layer.increase)
        number = _mean(worst.counted)
        if number > ROUNDING:
            where = f"at '{worst.name}'; '{source.name}' adds most to the defect before it"
        else:
            where = "which is rounding: every layer commutes with these shifts"
        values["worst_layer_defect"] = Value.exact(
            number,
            witness={"layer": worst.name, "breaks it most": source.name, "increase": source.increase},
            note=f"mean over {sample}, {where}",
        )
        values["largest_defect"] = Value.exact(
            max(float(layer.counted.nan_to_num(0.0).max()) for layer in found.layers),
            note=f"largest of all layers, {sample}",
        )
        values["proved_layers"] = Value.exact(
            sum(layer.proved for layer in found.layers),
            witness=found.fault,
            note=f"of {len(found.layers)} layers proved equivariant by the graph"
            + (f"; first fault: {found.fault}" if found.fault else ""),
        )
    gap = (found.shifted_outputs - found.outputs).flatten(2).norm(dim=2)
    relative = torch.where(gap == 0, 0.0, gap / found.outputs.flatten(1).norm(dim=1))
    values["invariance_defect"] = Value.exact(
        float(relative.mean()),
        witness={"largest": float(relative.max())},
        note=f"of the output, mean over {sample}",
    )
    if subject.classification and subject.n_outputs > 1:
        kept = found.shifted_outputs.argmax(-1) == found.outputs.argmax(-1)
        values["predictions_kept"] = Value.exact(float(kept.double().mean()), note=f"share over {sample}")
    return values


def _mean(defects: torch.Tensor) -> float:
    return float(defects[~defects.isnan()].mean())


def _defect(layer: LayerDefect) -> Value:
    note = "" if any(layer.lattice) else "at shifts that are no multiples of its stride: there are no others"
    return Value.exact(
        _mean(layer.counted), witness={"largest": float(layer.counted.nan_to_num(0.0).max())}, note=note
    )
