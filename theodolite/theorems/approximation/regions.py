"""APP001: activation regions that the network crosses between data points, counted exactly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

import torch

from theodolite.analysis.regions import (
    SegmentRegions,
    log10_region_limit,
    regions_along_segment,
)
from theodolite.theorems.base import Chart, NotApplicable, Theorem
from theodolite.theorems.hypotheses import PIECEWISE_LINEAR_NET, REAL_INPUT, require_cost
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

SEGMENTS = 20
# multiplications and additions for all segments together, some ten seconds on one core, and for one of them
BUDGET = 6e10
ALLOWANCE = BUDGET / 4


class ActivationRegions(Theorem):
    """Linear pieces of the network along segments between random pairs of training points.

    Two counts: activation regions (no unit changes its branch within one) and linear
    pieces (neighboring regions with the same affine map merged, which dead, duplicated
    or overruled units make fewer).  A segment that costs more than its share of a fixed
    budget is counted from its midpoint on as far as the share reaches; the counts are
    then exact for that part, and lower bounds for the whole.  Computed in float64, in
    which breakpoints closer than 1e-11 of the segment count as one, and slopes that differ
    by less than 1e-10 of the largest are taken for equal.
    """

    code = "APP001"
    title = "Activation regions on data segments"
    chapter = "approximation"
    statement = (
        r"On a segment $x(t)=(1-t)x_i+t\,x_j$ a piecewise linear network is affine between finitely many "
        r"breakpoints; through layers of $n_l$ ReLU units it crosses at most $\prod_l (n_l+1)$ regions."
    )
    reference = "serra2018bounding, montufar2014regions"
    hypotheses = (REAL_INPUT, PIECEWISE_LINEAR_NET)
    invariant = frozenset({"rescaling", "permutation"})
    sensitive = frozenset({"dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return counts over the segments, their density and the limit set by the widths."""
        cost = require_cost(subject)
        graph, x = subject.graph, subject.x
        device = "cpu" if subject.device.type == "mps" else subject.device  # float64 is needed
        pairs: list[tuple[int, int]] = []
        found: list[SegmentRegions] = []
        lengths: list[float] = []
        for i, j in _pairs(subject):
            subject.progress(len(found), SEGMENTS)
            ends = x[i].to(device), x[j].to(device)
            found.append(regions_along_segment(graph, *ends, budget=ALLOWANCE, cost=cost))
            pairs.append((i, j))
            lengths.append(float((x[j] - x[i]).double().norm()) * (found[-1].stop - found[-1].start))
            if sum(r.flops for r in found) > BUDGET - ALLOWANCE:
                break
        cells = [r.cells for r in found]
        most = max(range(len(found)), key=cells.__getitem__)
        note = _scope(found)
        values = {
            "regions": Value.exact(median(cells), witness={"counts": cells}, note=f"median of {note}"),
            "regions_max": Value.exact(
                cells[most], witness={"from": pairs[most][0], "to": pairs[most][1]}, note=f"largest of {note}"
            ),
            "linear_pieces": Value.exact(
                median(r.linear_pieces for r in found),
                note=f"median of {note}; neighbors merged whose slopes agree to 1e-10 of the largest",
            ),
            "breakpoints_per_distance": Value.exact(
                (sum(cells) - len(cells)) / sum(lengths),
                unit="per unit of input distance",
                note=f"over {note}",
            ),
        }
        if not all(r.whole for r in found):
            values["regions_whole"] = Value.bound(
                lower=median(cells), note=f"median over the same {len(found)} segments, each in full length"
            )
        values["log10_region_limit"] = Value.bound(
            upper=log10_region_limit(graph, cost),
            unit="decades",
            note="any segment, any weights: log10 of the product over layers of 1 + number of kinks",
        )
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Draw the histogram of the counts."""
        counts = values["regions"].witness["counts"]
        return Chart("histogram", {"segments": counts}, x_label="activation regions", y_label="segments")


def _pairs(subject: Subject) -> list[tuple[int, int]]:
    """Return random pairs of different training points, no point in two of them."""
    order = torch.randperm(subject.n, generator=subject.generator("APP001/segments")).tolist()
    pairs = zip(order[0::2], order[1::2], strict=False)
    differing = (pair for pair in pairs if not torch.equal(subject.x[pair[0]], subject.x[pair[1]]))
    chosen = list(itertools.islice(differing, SEGMENTS))
    if not chosen:
        raise NotApplicable("no two training points that differ were found to join by a segment")
    return chosen


def _scope(found: list[SegmentRegions]) -> str:
    """Say what was counted."""
    text = f"{len(found)} segment{'s' if len(found) > 1 else ''} between random training points"
    if all(r.whole for r in found):
        return text
    shares = [100.0 * (r.stop - r.start) for r in found]
    return f"{text}, on {min(shares):.2g} to {max(shares):.2g} % of each, from its midpoint on"
