"""STA003: frame bounds of the layers, which of them are admissible, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from theodolite.analysis.admissibility import Admissibility, Row, admissibility_of
from theodolite.analysis.feature_stability import deformation_sensitivity, vertical_invariance
from theodolite.analysis.translation_action import Action, translation_action
from theodolite.theorems.base import Chart, Finding, Theorem
from theodolite.theorems.generalization.lipschitz import network_bounds
from theodolite.theorems.generalization.product_norms import WEIGHT_LAYERS
from theodolite.theorems.hypotheses import REAL_INPUT
from theodolite.value import Value, format_number

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject


class FrameBoundsAndAdmissibility(Theorem):
    """How much each layer can shrink and stretch its input, and whether the features contract distances.

    The condition asks of each layer that neither its filters nor these with their nonlinearity and
    pooling stretch any input; where branches meet, of the block between.  The product of the layers'
    factors bounds the features' Lipschitz constant with or without it.  Features are what the linear
    classifier at the end reads, or the output where there is none.  Scaling a layer until it is
    admissible changes nothing that the classifier cannot undo where all that follows is positively
    homogeneous, as with ReLUs and no branches.
    """

    code = "STA003"
    title = "Frame bounds and admissibility"
    chapter = "stability"
    statement = (
        r"$A_n\|x\|^2 \le \|K_n x\|^2 \le B_n\|x\|^2$. If $\max\{B_n, B_n L_n^2 R_n^2\} \le 1$ at every layer, "
        r"$L_n$ and $R_n$ the Lipschitz constants of its nonlinearity and pooling, the features contract: "
        r"$\|\Phi(f) - \Phi(h)\| \le \|f - h\|$. In any case $\|\Phi(f) - \Phi(h)\| \le \Lambda \|f - h\|$ with the "
        r"composed constant $\Lambda$, and $\|\Phi(L_\tau f) - \Phi(f)\| \le 1.172\, \Lambda R \|\tau\|_\infty \|f\|$ "
        r"for $f$ band-limited to $R$ and $\max|\partial_i\tau_j| \le 1/(2d)$."
    )
    reference = "wiatowski2018, sedghi2019singular"
    hypotheses = (REAL_INPUT, WEIGHT_LAYERS)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return how many layers are admissible, what follows, and each layer's bounds."""
        bounds = network_bounds(subject)
        found = admissibility_of(subject.graph, bounds)
        action = _action(subject)
        values = {"admissible_layers": _count(found), "feature_lipschitz": found.constant}
        if action is not None:
            values["deformation_sensitivity"] = deformation_sensitivity(found, len(action.dims))
            values["vertical_invariance"] = vertical_invariance(found, action)
        for name, frames in found.frames.items():
            values[f"frame_lower[{name}]"] = frames.lower
            values[f"frame_upper[{name}]"] = frames.upper
            values[f"branch_sum[{name}]"] = frames.tree
        for row in found.rows:
            values[f"condition[{row.name}]"] = _condition(row)
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return the frame bounds of the layers."""
        lower, upper = (
            {k[len(p) : -1]: v for k, v in values.items() if k.startswith(p)}
            for p in ("frame_lower[", "frame_upper[")
        )
        if len(upper) < 2:
            return None
        series = {"A": [v.low for v in lower.values()], "B": [v.high for v in upper.values()]}
        return Chart("intervals", series, list(upper), "layer", "squared gain", "Frame bounds of each layer")

    def advice(self, finding: Finding) -> str:
        """Say how the layers that offend could be admitted, where that is free."""
        count = finding.values.get("admissible_layers")
        offending = (count.witness or {}) if count is not None else {}
        free = {name: entry for name, entry in offending.items() if entry["free"] and entry["layer"]}
        if not free:
            return ""
        name = min(free, key=lambda n: float(free[n]["scaling"]))
        more = f", and likewise {len(free) - 1} more," if len(free) > 1 else ""
        return (
            f"scaling '{name}' by {format_number(free[name]['scaling'])}{more} makes it admissible; the classifier "
            "can undo the scaling, so that only the features change"
        )


def _action(subject: Subject) -> Action | None:
    return subject.once(
        "translation action",
        lambda: translation_action(subject.graph, subject.x[:2].to(subject.device), subject.image_shape),
    )


def _count(found: Admissibility) -> Value:
    rows = [row for row in found.rows if not row.head]
    offending, undecided = found.offending, found.undecided
    witness = {
        row.name: {
            "gain": row.gain,
            "scaling": row.scaling,
            "free": row.free,
            "layer": row.frames is not None,
        }
        for row in offending
    }
    proved = len(rows) - len(offending) - len(undecided)
    reached = found.features in found.lipschitz.constants
    unit = f"of {len(rows)} layers"
    parts = [f"up to {'the features' if reached else 'the first operation without a constant'}"]
    if offending:
        worst = max(offending, key=lambda row: row.gain)
        parts.append(f"'{worst.name}' stretches most, up to {format_number(worst.gain, 'up')} times")
    if undecided:
        parts.append(f"{len(undecided)} open: the bounds are on both sides of 1")
    note = "; ".join(parts)
    if not undecided:
        return Value.exact(proved, unit=unit, witness=witness or None, note=note)
    return Value.bound(proved, proved + len(undecided), unit=unit, witness=witness or None, note=note)


def _condition(row: Row) -> Value:
    r"""Return an upper bound of max(B, B L^2 R^2), with its factors."""
    B = row.frames.upper.high if row.frames is not None else row.factor**2
    witness = {
        "B": B,
        "L": row.nonlinearity,
        "R": row.pooling,
        "S": list(row.stride),
        "admissible": row.admissible,
        "scaling": row.scaling,
        "so_far": row.so_far,
    }
    note = {"junction": "of the block whose branches meet here", "layer": "", "normalization": ""}.get(
        row.kind, "no layer of its own"
    )
    confidence = row.frames.upper.confidence if row.frames is not None else 1.0
    return Value.bound(upper=row.gain**2, confidence=confidence, witness=witness, note=note)
