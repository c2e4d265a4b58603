"""Balancedness of hidden units, as at the optima of dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.analysis.graph import Graph
from theodolite.analysis.unit_pairs import ELEMENTWISE, HOMOGENEOUS, Pair, find_pairs
from theodolite.theorems.base import Chart, Finding, Hypothesis, Theorem, Verdict, by_structure
from theodolite.theorems.hypotheses import HAS_PARAMETERS, require_graph
from theodolite.theorems.subject import Subject
from theodolite.value import Value

UNBALANCED = 0.5  # mean imbalance from which the advice speaks of it: norms in a ratio of 1.7


@dataclass(frozen=True, eq=False)
class Units:
    """The norms of the units between two layers.

    Attributes
    ----------
    layer : str
        Name of the layer that makes them.
    incoming, outgoing : Tensor, shape (units,), float64
        Norms of the incoming weights, bias included, and of the outgoing ones.
    """

    layer: str
    incoming: Tensor
    outgoing: Tensor

    @property
    def products(self) -> Tensor:
        """The product of both norms for each unit."""
        return self.incoming * self.outgoing

    @property
    def spread(self) -> float | None:
        """Standard deviation over mean of the products, None when all are zero."""
        products = self.products
        mean = float(products.mean())
        return float(products.std(correction=0)) / mean if mean > 0.0 else None

    @property
    def imbalance(self) -> Tensor:
        """``| ||u||^2 - ||v||^2 | / (||u||^2 + ||v||^2)`` for each unit, 0 where both are zero."""
        u, v = self.incoming.square(), self.outgoing.square()
        return torch.where(u + v > 0, (u - v).abs() / (u + v), 0.0)


def _interruption(graph: Graph, pair: Pair) -> str:
    """Return why a pair is not joined by a positively homogeneous map, "" if it is."""
    for node in pair.between:
        if node in pair.norms:
            return f"{node.where} normalizes its units"
        if node.op in ELEMENTWISE and node.op not in HOMOGENEOUS:
            return f"{node.where} is not positively homogeneous"
        if (
            node.op == "pad"
            and node.argument(2, "mode", "constant") == "constant"
            and node.argument(3, "value")
        ):
            return f"{node.where} pads with a constant other than 0"
    return ""


def hidden_units(subject: Subject) -> tuple[list[Units], dict[str, str]]:
    """Return the norms of all measurable units, and why the other layers' units are not measured."""
    pairs, declined = find_pairs(subject.graph)
    measured = []
    for pair in pairs:
        why = _interruption(subject.graph, pair)
        if why:
            declined[pair.first.layer] = why
            continue
        weight, bias, after = pair.first.args[1], pair.first.argument(2, "bias"), pair.last.args[1]
        rows = [subject.graph.value_of(n).detach().double() for n in (weight, bias) if n is not None]
        incoming = torch.cat([r.reshape(pair.n_units, -1) for r in rows], 1).norm(dim=1)
        columns = subject.graph.value_of(after).detach().double()
        columns = columns.reshape(len(columns), pair.n_units, -1)
        measured.append(Units(pair.first.layer, incoming.cpu(), columns.square().sum((0, 2)).sqrt().cpu()))
    return measured, declined


def _units(subject: Subject) -> tuple[list[Units], dict[str, str]]:
    return subject.once("DRO002/units", lambda: hidden_units(subject))


def _has_units(subject: Subject) -> Verdict:
    require_graph(subject)
    measured, declined = _units(subject)
    shown = [f"layer '{layer}': {why}" for layer, why in declined.items()]
    more = f", and {len(shown) - 2} more" if len(shown) > 2 else ""
    because = f" ({'; '.join(shown[:2])}{more})" if shown else ""
    reason = f"{len(measured)} pairs of weight layers have units of their own between them{because}"
    if not measured:
        reason = f"no two weight layers have positively homogeneous units of their own between them{because}"
    return by_structure(bool(measured), witness={"pairs": len(measured), "declined": declined}, reason=reason)


HIDDEN_UNITS = Hypothesis(
    "homogeneous hidden units",
    "two weight layers have units of their own between them, joined by a positively homogeneous map",
    _has_units,
)


class Balancedness(Theorem):
    """How equal the products of the norms of weights into and out of each unit are."""

    code = "DRO002"
    title = "Balancedness"
    chapter = "dropout"
    statement = (
        r"Dropout on the hidden layer of a linear network with squared loss has optima at which $\|u_k\| = \|v_k\|$ and "
        r"$\|u_k\|\|v_k\| = \|\hat X\|_*/r$ for each of the $r$ units: all are equal. Being balanced does not imply being "
        r"optimal, and for other networks the numbers are a diagnostic."
    )
    reference = "cavazza2018dropout, mianjy2018implicit"
    hypotheses = (HAS_PARAMETERS, HIDDEN_UNITS)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the relative spread of the products and the imbalance of the norms, by layer too."""
        measured, declined = _units(subject)
        count = sum(len(u.products) for u in measured)
        note = (
            f"standard deviation over mean of ||u_k|| ||v_k||, biases counted into u_k; the largest of {len(measured)} layers, "
            f"{count:,} units"
        )
        if declined:
            note += f"; not measured: {', '.join(repr(layer) for layer in declined)}"
        values = {}
        spreads = [(u.spread, u.layer) for u in measured if u.spread is not None]
        if spreads:
            largest, layer = max(spreads)
            values["spread"] = Value.exact(largest, witness={"layer": layer}, note=note)
        else:
            values["spread"] = Value.absent("every product of norms is zero", note=note)
        worst = max(measured, key=lambda u: float(u.imbalance.max()))
        unit = int(worst.imbalance.argmax())
        values["imbalance"] = Value.exact(
            float(worst.imbalance[unit]),
            witness={"layer": worst.layer, "unit": unit},
            note="largest | ||u_k||^2 - ||v_k||^2 | / (||u_k||^2 + ||v_k||^2); 0 for units that are zero",
        )
        total = sum(float(u.imbalance.sum()) for u in measured)
        values["mean_imbalance"] = Value.exact(total / count, note="the mean over all units")
        for units in measured:
            if units.spread is not None:
                low, high = int(units.products.argmin()), int(units.products.argmax())
                witness = {"smallest unit": low, "largest unit": high}
                values[f"spread[{units.layer}]"] = Value.exact(units.spread, witness=witness)
            values[f"imbalance[{units.layer}]"] = Value.exact(float(units.imbalance.max()))
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return the products in the layer where they spread most."""
        measured, _ = _units(subject)
        widest = max(measured, key=lambda u: u.spread or 0.0)
        title = f"units of {widest.layer}"
        return Chart(
            "histogram", {"units": widest.products.tolist()}, (), "norm in x norm out", "units", title
        )

    def advice(self, finding: Finding) -> str:
        """Return what rescaling the units would do."""
        mean = finding.values.get("mean_imbalance")
        if mean is None or mean.value is None or mean.value < UNBALANCED:
            return ""
        return (
            "rescale each unit so that its incoming and outgoing norms agree: the function stays the same and the weight decay "
            "becomes smaller"
        )
