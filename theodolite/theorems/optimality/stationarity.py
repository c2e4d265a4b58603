"""Stationarity of the training objective, and the sign of its curvature."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from theodolite.analysis.hessian import NotDifferentiable
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.curvature import arithmetic, caveats, curvature, objective, probe
from theodolite.theorems.hypotheses import HAS_PARAMETERS
from theodolite.theorems.subject import Subject
from theodolite.value import Value

GRADIENT_WORK = 4e11  # flops of a forward pass over the data; a gradient costs about three
DOUBLE_WORK = 4e10  # up to here in float64
STATIONARY = 0.05  # relative gradient below which the advice calls a point stationary


class Stationarity(Theorem):
    """How far the training objective is from a stationary point, and whether it curves down."""

    code = "OPT005"
    title = "Stationarity and sign of curvature"
    chapter = "optimality"
    statement = (
        r"At a local minimum of $L(W) + \frac{w}{2}\|W\|^2$ where it is twice differentiable, "
        r"$\nabla L + wW = 0$, hence $\langle W_l, \nabla_l L\rangle + w\|W_l\|^2 = 0$ for each weight "
        r"matrix (Euler's identity $\langle R, Z\rangle = \lambda\Theta$ of homogeneous networks), and the "
        r"Hessian has no negative eigenvalue."
    )
    reference = "haeffele2015global"
    hypotheses = (HAS_PARAMETERS,)
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the relative gradient, Euler's residuals and a bound of the smallest eigenvalue."""
        values = gradient_values(subject)
        try:
            result = curvature(subject)
        except NotApplicable as reason:
            headline = next(iter(values))
            old = values[headline]
            values[headline] = Value.exact(
                old.value or 0.0, unit=old.unit, note=f"{old.note}; no curvature: {reason}"
            )
            return values
        bounds = result.bounds
        values["smallest_eigenvalue"] = Value.bound(
            upper=bounds.smallest,
            note=f"of the Hessian, {result.note}"
            + (
                "; below 0: a stationary point with this Hessian is no local minimum"
                if bounds.negative
                else ""
            ),
        )
        values["negative_directions"] = Value.bound(
            lower=float(bounds.negative),
            unit="eigenvalues",
            note="orthogonal directions along which the objective curves down",
        )
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return Euler's residual by weight matrix."""
        layers = {name[15:-1]: v.value for name, v in values.items() if name.startswith("euler_residual[")}
        bars = {name: value for name, value in layers.items() if value is not None}
        return (
            Chart("bars", {"residual": list(bars.values())}, list(bars), "weights", "relative residual")
            if bars
            else None
        )

    def advice(self, finding: Finding) -> str:
        """Return whether to train on, or to leave a saddle."""
        relative, bottom = finding.values.get("relative_gradient"), finding.values.get("smallest_eigenvalue")
        downward = finding.values.get("negative_directions")
        if relative is not None and relative.high > STATIONARY:
            return (
                f"the objective is not stationary (relative gradient {relative.high:.2g}): train longer "
                "before quoting theorems on local minima; decoupled weight decay (AdamW) stops elsewhere"
            )
        if bottom is not None and downward is not None and downward.low > 0:
            return (
                f"the objective curves down (second derivative at most {bottom.high:.3g} along a direction): "
                "a perturbed or second-order step can escape"
            )
        return ""


def gradient_values(subject: Subject) -> dict[str, Value]:
    """Return the values that need the gradient alone, by decreasing importance."""
    seen = probe(subject)
    samples = min(subject.n, max(1, int(GRADIENT_WORK / max(1.0, seen.cost.work))))
    x, y = subject.sample(samples, "OPT005/samples")
    dtype = seen.exact if samples * seen.cost.work <= DOUBLE_WORK else None
    goal = objective(subject, x, y, dtype, batch_size=subject.batch_size)
    try:
        gradient = goal.loss_gradient(subject.progress)
    except NotDifferentiable as error:
        raise NotApplicable(f"needs the gradient of the loss, and autograd gives none: {error}") from error
    decay, weights = goal.weight_decay, goal.point.double()
    total = gradient + decay * weights
    rows = (
        f"all {samples:,} training samples"
        if samples == subject.n
        else f"{samples:,} of {subject.n:,} training samples"
    )
    note = f"on {rows}, in {arithmetic(goal.point.dtype)}{caveats(subject)}"
    values: dict[str, Value] = {}
    if decay > 0.0:
        values["relative_gradient"] = Value.exact(
            _ratio(_norm(total), _norm(gradient) + decay * _norm(weights)),
            note=f"1 means far from stationary, 0 stationary; {note}",
        )
    values["relative_slope"] = Value.exact(
        _ratio(_norm(total) * _norm(weights), abs(goal.value())),
        note=f"first-order relative change of the objective for a relative change of the weights; {note}",
    )
    values["gradient_norm"] = Value.exact(_norm(total), note=note)
    if decay > 0.0:
        values.update(_euler(goal.split(weights), goal.split(gradient), decay))
    return values


def _euler(weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], decay: float) -> dict[str, Value]:
    """Return |<W, dL/dW> + w|W|^2| over the sum of the two terms' sizes, for each weight matrix."""
    layers: dict[str, float] = {}
    for name, weight in weights.items():
        if weight.ndim >= 2:
            pull, shrink = float((weight * gradient[name]).sum()), decay * float(weight.square().sum())
            layers[name.removesuffix(".weight")] = _ratio(abs(pull + shrink), abs(pull) + shrink)
    if not layers:
        return {}
    worst = max(layers, key=lambda name: layers[name])
    values = {
        "euler_residual": Value.exact(
            layers[worst], witness=worst, note="the largest over weight matrices; 0 if stationary"
        )
    }
    return values | {f"euler_residual[{name}]": Value.exact(residual) for name, residual in layers.items()}


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _ratio(part: float, whole: float) -> float:
    """Return part / whole, and 0 for 0 / 0; infinite if only the whole vanishes."""
    if part == 0.0:
        return 0.0
    return part / whole if whole > 0.0 else float("inf")
