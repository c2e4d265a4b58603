"""STA006: what folds at each subsampling, and what each nonlinearity makes beyond the band."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from theodolite.analysis.aliasing_by_layer import Aliasing, Places, aliasing_by_layer, measured_flops
from theodolite.analysis.translation_action import translation_action
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.generalization.gap import mean_interval
from theodolite.theorems.hypotheses import REAL_INPUT, require_cost
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

MOST_INPUTS = 200
FEWEST_INPUTS = 8
BUDGET = 4e10  # multiplications and additions in all: some seconds
CONFIDENCE = 0.95


class AliasingByLayer(Theorem):
    """Where a network's subsampling folds high frequencies onto low ones, and how much.

    Shares are means over training inputs: exact numbers when all of them are used, else an estimate
    for the training set from a random part of it, with its interval.  The gains are of the weights
    alone.  A blur just before a subsampling takes away what folds there, and some of what stays.
    """

    code = "STA006"
    title = "Aliasing by layer"
    chapter = "stability"
    statement = (
        r"A layer of stride $s$ keeps every $s$-th position of the same layer of stride one. Of the latter's "
        r"energy the share at frequencies with $|\omega_i| > \pi/s_i$ for some axis $i$ folds onto lower ones "
        r"($1 - 1/s^d$ for white noise, 0 for a signal inside the coarse grid's band). A pointwise nonlinearity "
        r"makes energy beyond the band of its own grid; its share is measured on a twofold finer grid."
    )
    reference = "azulay2019translations, zhang2019shift"
    hypotheses = (REAL_INPUT,)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the worst layer's share, that of every subsampling, nonlinearity and filter."""
        cost = require_cost(subject)
        x = subject.x[:2].to(subject.device)
        action = translation_action(subject.graph, x, subject.image_shape)
        places = Places.of(subject.graph, action)
        if not places.names:
            raise NotApplicable(
                "no layer of the model drops positions, and no nonlinearity acts on a grid of them"
            )
        size = min(MOST_INPUTS, max(FEWEST_INPUTS, int(BUDGET / measured_flops(places, cost))))
        x, _ = subject.sample(size, "STA006/inputs")
        found = aliasing_by_layer(subject.graph, x, action, cost=cost)
        values = _worst(found, subject)
        for layer in found.subsamplings:
            values[f"folded_share[{layer.name}]"] = _mean(layer.shares, subject, found)
            if layer.gain is not None:
                values[f"folding_gain[{layer.name}]"] = layer.gain
        for name, shares in found.nonlinearities.items():
            values[f"beyond_band[{name}]"] = _mean(shares, subject, found)
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return the shares by layer."""
        bars = {
            name.partition("[")[2][:-1]: value.value or 0.0
            for name, value in values.items()
            if name.startswith(("folded_share[", "beyond_band["))
        }
        return Chart("bars", {"share": list(bars.values())}, list(bars), "layer", "share of the energy")

    def advice(self, finding: Finding) -> str:
        """Name the subsampling that folds most, where a blur would act."""
        worst = finding.values.get("worst_subsampling")
        if worst is None or not worst.value:
            return ""
        share = f"{100.0 * worst.value:.2g} %"
        return f"'{worst.witness['layer']}' folds most: a blur before its subsampling would act on {share} of the energy there."


def _worst(found: Aliasing, subject: Subject) -> dict[str, Value]:
    values = {}
    if found.subsamplings:
        layer = max(found.subsamplings, key=lambda s: float(s.shares.mean()))
        witness = {"layer": layer.name, "stride": list(layer.strides)}
        values["worst_subsampling"] = _mean(layer.shares, subject, found, f"at '{layer.name}'", witness)
    if found.nonlinearities:
        name, shares = max(found.nonlinearities.items(), key=lambda item: float(item[1].mean()))
        values["worst_nonlinearity"] = _mean(shares, subject, found, f"at '{name}'", {"layer": name})
    return values


def _mean(
    shares: Tensor,
    subject: Subject,
    found: Aliasing,
    where: str = "",
    witness: Mapping[str, object] | None = None,
) -> Value:
    """Return the mean over the training inputs: exact from all of them, else with an interval."""
    mean, n = float(shares.mean()), len(shares)
    details = [where] if where else []
    if n == subject.n:
        details.append(f"mean over all {n:,} training inputs")
    else:
        details.append(f"mean over {subject.n:,} training inputs, from {n:,} drawn of them (asymptotic)")
    if not found.exact:
        details.append("in the model's own precision")
    note = ", ".join(details)
    shown = {**(witness or {}), "largest": float(shares.max())}
    if n == subject.n:
        return Value.exact(mean, witness=shown, note=note)
    low, high = mean_interval(shares, CONFIDENCE)
    low, high = max(0.0, low), min(1.0, high)
    if math.isclose(float(shares.min()), float(shares.max()), rel_tol=1e-9, abs_tol=1e-12):
        note += ", all alike, so that they show no spread to judge by"
    return Value.estimate(
        mean, min(low, mean), max(high, mean), confidence=CONFIDENCE, witness=shown, note=note
    )
