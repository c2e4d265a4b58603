"""The training objective's derivatives, measured once for every theorem on stationarity and curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.analysis.curvature import (
    BASIS_BYTES,
    RitzBounds,
    check_derivatives,
    plan,
    resolves,
    ritz_bounds,
)
from theodolite.analysis.hessian import NotDifferentiable, SampleCost, TrainingObjective, sample_cost
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.hypotheses import require_gradients
from theodolite.theorems.subject import Subject

GRAPH_BYTES = 1 << 29  # what a retained graph may take
PROBES = 2  # samples on which derivatives are checked
_NO_CURVATURE = "needs second derivatives of the loss: "


@dataclass(frozen=True)
class Curvature:
    """Ritz bounds of the training objective's Hessian, with what they were computed on."""

    bounds: RitzBounds
    samples: int
    parameters: int
    note: str


def objective(
    subject: Subject, x: Tensor, y: Tensor, dtype: torch.dtype | None, batch_size: int | None = None
) -> TrainingObjective:
    """Return the training objective on some rows; an unknown weight decay counts as 0."""
    names = [name for name, p in subject.parameters.items() if p.is_floating_point()]
    decay = subject.weight_decay or 0.0
    return TrainingObjective(
        subject.model,
        x,
        y,
        subject.loss,
        weight_decay=decay,
        parameters=names,
        dtype=dtype,
        batch_size=batch_size,
    )


@dataclass(frozen=True)
class Probe:
    """What a few samples show about the objective's derivatives.

    Attributes
    ----------
    cost : SampleCost
        Of one sample.
    exact : torch.dtype
        float64 if the model runs in it, else its own type.
    kink : bool
        Whether the objective has a kink exactly at these weights.
    second : str
        Why there is no second derivative, "" if there is one.
    """

    cost: SampleCost
    exact: torch.dtype
    kink: bool
    second: str


def probe(subject: Subject) -> Probe:
    """Return what a few samples show about the objective's derivatives.

    Raises
    ------
    NotApplicable
        If autograd's gradient is not the derivative.
    """
    if not any(p.is_floating_point() for p in subject.parameters.values()):
        raise NotApplicable("needs real parameters")
    return subject.once("hessian/probe", lambda: _probe(subject))


def _probe(subject: Subject) -> Probe:
    require_gradients(subject)
    x, y = subject.sample(PROBES, "hessian/probe")
    few = objective(subject, x, y, None)
    exact = _in_double(subject, x, y) or few
    try:
        cost = sample_cost(few)
        check = check_derivatives(exact, subject.generator("hessian/direction"))
    except NotDifferentiable as error:
        raise NotApplicable(f"needs the gradient of the loss: {error}") from error
    if check.first:
        raise NotApplicable(f"autograd does not differentiate this objective: {check.first}")
    return Probe(cost, exact.point.dtype, check.kink, check.second)


def _in_double(subject: Subject, x: Tensor, y: Tensor) -> TrainingObjective | None:
    """Return the objective in float64, or None where the model, its loss or the device cannot."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in subject.model.modules()):
        return None  # what TorchScript has specialized for float32 stays in float32
    try:
        double = objective(subject, x, y, torch.float64)
        # a model that rounds to float32 inside runs in float64 without being more exact
        return double if resolves(double, subject.generator("hessian/direction")) else None
    except (RuntimeError, TypeError):
        return None  # a constant of another dtype in forward or loss, or a device without float64


def curvature(subject: Subject) -> Curvature:
    """Return the Ritz bounds that the theorems on curvature share.

    Raises
    ------
    NotApplicable
        If there are no second derivatives, or the model is too large for a Lanczos basis.
    """
    return subject.once("hessian/ritz", lambda: _curvature(subject))


def _curvature(subject: Subject) -> Curvature:
    seen = probe(subject)
    size = sum(p.numel() for p in subject.parameters.values() if p.is_floating_point())
    if seen.second:
        raise NotApplicable(_NO_CURVATURE + seen.second)
    planned = plan(seen.cost, size, subject.n)
    if planned.steps < min(2, size):
        raise NotApplicable(
            f"two Lanczos vectors of {size:,} parameters take more than {BASIS_BYTES >> 30} GiB"
        )
    samples = planned.samples
    x, y = subject.sample(samples, "hessian/samples")
    own = next(p for p in subject.parameters.values() if p.is_floating_point()).dtype
    dtype = seen.exact if planned.double else own
    rows = max(1, int(GRAPH_BYTES / max(1.0, seen.cost.elements * dtype.itemsize)))
    working = objective(subject, x, y, dtype, batch_size=rows)
    try:
        if rows >= samples:
            working.retain()

        def evaluate(vectors: Tensor) -> Tensor:
            if dtype == seen.exact:
                return working.products(vectors)
            working.release()
            return objective(subject, x, y, seen.exact, batch_size=max(1, rows // 32)).products(vectors)

        bounds = ritz_bounds(
            working.product,
            size,
            steps=planned.steps,
            generator=subject.generator("hessian/start"),
            dtype=dtype,
            device=subject.device,
            evaluate=evaluate,
            progress=subject.progress,
        )
    except NotDifferentiable as error:
        raise NotApplicable(_NO_CURVATURE + str(error)) from error
    return Curvature(bounds, samples, size, _note(subject, samples, bounds.steps, seen))


def _note(subject: Subject, samples: int, steps: int, seen: Probe) -> str:
    rows = (
        f"all {samples:,} training samples"
        if samples == subject.n
        else f"{samples} of {subject.n:,} training samples"
    )
    return (
        f"on {rows}, {steps} Lanczos steps, quotients evaluated in {arithmetic(seen.exact)}{caveats(subject)}"
    )


def arithmetic(dtype: torch.dtype) -> str:
    """Return "float64" for torch.float64."""
    return str(dtype).removeprefix("torch.")


def caveats(subject: Subject) -> str:
    """Return what a reader of any derivative of the objective needs to know, for the end of a note."""
    decay = "; weight decay was not given and counts as 0" if subject.weight_decay is None else ""
    kink = "; the objective has a kink exactly at these weights, where derivatives are autograd's choice"
    return decay + (kink if probe(subject).kink else "")
