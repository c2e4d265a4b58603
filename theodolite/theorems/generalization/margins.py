"""GEN006: how far the outputs are from a tie, and the inputs from the decision boundary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from theodolite.analysis.attacks import radius
from theodolite.theorems.base import Chart, NotApplicable, Theorem
from theodolite.theorems.generalization.lipschitz import exact_model, forward_flops, network_bounds
from theodolite.theorems.hypotheses import CLASSIFICATION, require_gradients
from theodolite.theorems.subject import margins
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Split, Subject

_EXACT_LOGITS = 2e10  # flops up to which margins are recomputed in float64
_THOROUGH = 3e11  # flops of a thorough attack, in float64
_LIGHT = 8e11  # flops of a light one, in float32
_POINTS = 200


class _LogScores(nn.Module):
    """Logarithms of probabilities: they differ as the logits do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.model(x)
        # a clamp makes differences smaller, never larger, so that bounds by them stay bounds
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


@dataclass(frozen=True)
class _Plan:
    """How many points the attack can afford, and how hard it may try."""

    points: int
    steps: int
    refinements: int
    targets: int
    dtype: torch.dtype

    @classmethod
    def affordable(cls, flops: float) -> _Plan:
        points = int(min(_POINTS, _THOROUGH / (1400.0 * max(flops, 1.0))))
        if points >= 32:
            return cls(points, 20, 12, 3, torch.float64)
        return cls(int(min(100, max(4, _LIGHT / (180.0 * max(flops, 1.0))))), 8, 2, 1, torch.float32)


class Margins(Theorem):
    """Output margins of the training sample, and a bracket of the median input margin.

    The radius of a point is the distance to the nearest input that the network does not
    put into the point's class (0 for a misclassified point).  Below: margin over the
    Lipschitz constant of each difference of two logits, the last layer's rows taken pair
    by pair.  Above: a perturbation that was found and re-verified in float64.  The medians
    of the two ends bracket the median radius of the points used.
    """

    code = "GEN006"
    title = "Margins and radii"
    chapter = "generalization"
    statement = (
        r"$m(x,y)=f_y(x)-\max_{j\ne y}f_j(x)$; "
        r"$\;\min_{j\ne y}(f_y-f_j)(x)/\Lambda_{yj}\le r(x)\le\|\delta\|_2$ for every $\delta$ with $\arg\max f(x+\delta)\ne y$, "
        r"$\Lambda_{yj}=\|(e_y-e_j)^\top W_L\|_2\,\mathrm{Lip}(f_{<L})$."
    )
    reference = "tsuzuku2018lipschitz, moosavi2016deepfool"
    hypotheses = (CLASSIFICATION,)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the radius bracket, where there is one, and the quantiles of the margins."""
        for split in subject.data:
            subject.logits(split)  # says so where an output is not finite
        values = {}
        if subject.real_input:
            found = _radius(subject)
            if found is not None:
                values["radius"] = found
        m = _margins(subject)
        note = f"over {subject.n:,} training points"
        values["margin_median"] = Value.exact(float(m.quantile(0.5)), note=note)
        values["margin_10_percent"] = Value.exact(float(m.quantile(0.1)), note=f"10 % quantile {note}")
        lowest = int(m.argmin())
        values["margin_min"] = Value.exact(float(m[lowest]), witness={"training point": lowest}, note=note)
        values["margin_not_positive"] = Value.exact(float((m <= 0).double().mean()), note=f"fraction {note}")
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return the distribution of the margins."""
        m = _margins(subject)
        shown = m if len(m) <= 5000 else m[torch.linspace(0, len(m) - 1, 5000).long()]
        title = "Output margins of the training points"
        return Chart("histogram", {"margin": shown.tolist()}, x_label="margin", title=title)


def _margins(subject: Subject) -> Tensor:
    """Return the margins of the training sample in float64, shape (n,)."""

    def compute() -> Tensor:
        try:
            model = exact_model(subject) if subject.n * forward_flops(subject) <= _EXACT_LOGITS else None
        except NotApplicable:  # the outputs as the model computes them are what there is
            model = None
        if model is None:
            return margins(subject.logits().double(), subject.y)
        with torch.no_grad():
            parts = [model(_double(x)).cpu() for x, _ in subject.batches()]
        return margins(torch.cat(parts), subject.y)

    return subject.once("margins", compute)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _radius(subject: Subject) -> Value | None:
    """Return the bracket of the median radius, or None when neither end is known."""
    split: Split = "test" if "test" in subject.data else "train"
    plan = _Plan.affordable(forward_flops(subject))
    x, y = subject.sample(plan.points, "GEN006/points", split)
    try:
        require_gradients(subject)
        model = exact_model(subject)
    except NotApplicable:  # no attack without gradients; no end can be verified without float64
        return None
    try:
        bounds = network_bounds(subject)
        reason = bounds.reason
    except NotApplicable as outcome:
        bounds, reason = None, str(outcome)
    if bounds is not None and bounds.ends_in_softmax:
        model = _LogScores(model)
    lower = None
    if bounds is not None and not reason:
        lower = _certified(model, x, y, bounds.pairwise())
    upper = radius(
        model, x, y, steps=plan.steps, refinements=plan.refinements, targets=plan.targets, dtype=plan.dtype
    )
    if lower is not None and bool((lower > upper * (1.0 + 1e-9)).any()):
        raise ArithmeticError("a certified radius exceeds the norm of a perturbation that misclassifies")
    points = f"{len(x):,} {'training' if split == 'train' else 'test'} points"
    note = f"medians over {points}, {int((upper == 0).sum()):,} of them misclassified"
    missed = int(torch.isinf(upper).sum())
    if missed:
        note += f"; no misclassified point was found near {missed:,}"
    if lower is None:
        note += f"; no lower end: {reason}"
    above = _median(upper)
    below = None if lower is None else min(_median(lower), above)
    if below is None and math.isinf(above):
        return None
    return Value.bound(
        below,
        None if math.isinf(above) else above,
        unit="l2",
        confidence=1.0 if lower is None or bounds is None else bounds.confidence,
        note=note,
    )


def _median(numbers: Tensor) -> float:
    """Return the median, the mean of the middle two of an even count; inf is a number here."""
    ordered = numbers.sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2.0


def _certified(model: nn.Module, x: Tensor, y: Tensor, pairwise: Tensor) -> Tensor:
    """Return lower ends of the radii, shape (n,), float64."""
    with torch.no_grad():
        logits = model(x.double()).cpu()
    y = y.cpu()
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = pairwise[y]
    # two identical rows never change places: no distance if the gap is positive, zero otherwise
    flat = torch.where(gaps > 0, torch.inf, 0.0).to(gaps)
    ratios = torch.where(slopes > 0, gaps / slopes, flat)
    ratios.scatter_(1, y[:, None], torch.inf)
    return ratios.amin(1).clamp_min(0.0)
