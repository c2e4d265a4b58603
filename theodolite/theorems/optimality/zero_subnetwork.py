"""OPT007: a zero subnetwork at a local minimum, what a computation can refute of it and what it cannot prove."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from theodolite.analysis.head import mean_loss
from theodolite.polar.ascent import ascend
from theodolite.theorems.base import (
    Finding,
    Hypothesis,
    NotApplicable,
    Theorem,
    Verdict,
    by_structure,
)
from theodolite.theorems.hypotheses import (
    HAS_PARAMETERS,
    HOMOGENEOUS_PARAMETERS,
    KNOWN_DUAL,
    WEIGHT_DECAY,
    homogeneity_of,
)
from theodolite.theorems.optimality.parallel_subnetworks import PARALLEL, parallel_structure
from theodolite.theorems.subject import Subject
from theodolite.value import Value, format_number

STATIONARY = 1e-2  # relative violation of Euler's identity up to which a point counts as stationary
_STARTS, _STEPS, _SECONDS = 8, 20, 5.0
_NUMBERS = 2e8  # activations of one forward pass over all data


def _of_degree_two(subject: Subject) -> Verdict:
    found = homogeneity_of(subject, "parameters")
    if not found.proved:
        raise NotApplicable(f"needs a proved degree: {found.reason}")
    return by_structure(
        found.degree == 2.0,
        witness=found.degree,
        reason=f"the network has degree {found.degree:g} in its parameters, weight decay degree 2",
    )


DEGREE_TWO = Hypothesis(
    "degree 2", "the network has the degree of weight decay in its parameters, 2", _of_degree_two
)
LOCAL_MINIMUM = Hypothesis(
    "local minimum", "the weights are a local minimum, which no finite number of evaluations can prove"
)


class ZeroSubnetwork(Theorem):
    """A local minimum with a zero subnetwork is global: its conditions are tested, and it certifies nothing alone."""

    code = "OPT007"
    title = "Local minimum with a zero subnetwork"
    chapter = "optimality"
    statement = (
        r"Let $f = \sum_i\phi(W_i)$ with $\phi$ of degree 2, $\ell$ convex and differentiable, $R = -\nabla\ell(f)$. A local "
        r"minimum of $\ell(f) + \frac w2\|W\|^2$ in which some $W_i = 0$ is global, for any number of subnetworks. At every "
        r"stationary point $\langle R, f\rangle = \frac w2\|W\|^2$, and at a local minimum with $W_i = 0$ no $V$ has "
        r"$\langle R, \phi(V)\rangle > \frac w2\|V\|^2$: one such $V$ refutes it, and lowers the objective in that place."
    )
    reference = "haeffele2015global"
    cost = "slow"
    hypotheses = (
        HAS_PARAMETERS,
        WEIGHT_DECAY,
        HOMOGENEOUS_PARAMETERS,
        DEGREE_TWO,
        KNOWN_DUAL,
        PARALLEL,
        LOCAL_MINIMUM,
    )

    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return Euler's residual, the number of zero subnetworks, and the best direction found for one."""
        residual, inner, decay = _euler(subject)
        zero = parallel_structure(subject).zero
        values = {
            "euler_residual": Value.exact(
                residual,
                note=f"|<R, Z> - w/2 ||W||^2| over their sum: {format_number(inner)} and {format_number(decay)}, "
                f"all {subject.n:,} training samples; 0 at a stationary point",
            ),
            "zero_subnetworks": Value.exact(float(zero)),
        }
        if zero:
            values["polar_ratio"] = Value.bound(
                lower=_growth(subject),
                note="the fall of the loss over the rise of the decay along a direction in place of a zero subnetwork, the "
                "best of a search; above 1 these weights are no local minimum, and no search proves that it is at most 1",
            )
        return values

    def advice(self, finding: Finding) -> str:
        """Say which of the conditions fails, or that none was seen to."""
        if "euler_residual" not in finding.values:
            return ""
        residual, zero = finding.values["euler_residual"].high, finding.values["zero_subnetworks"].high
        growth = finding.values.get("polar_ratio")
        if residual > STATIONARY:
            return "train on: the point is not stationary, so it is no local minimum and nothing is certified"
        if growth is not None and growth.low > 1.0 + 1e-6:
            return (
                f"no local minimum: a zero subnetwork can grow along a direction in which the loss falls "
                f"{format_number(growth.low)} times as fast as the weight decay rises; perturb it and train on"
            )
        if not zero:
            return "add a subnetwork of zeros: without one a local minimum need not be global"
        return "quote no optimality from this test alone: a certificate needs an upper bound of the polar"


def _euler(subject: Subject) -> tuple[float, float, float]:
    """Return the relative violation of <R, Z> = w/2 |W|^2, and both sides."""

    def compute() -> tuple[float, float, float]:
        loss = mean_loss(subject.loss_name, subject.y.cpu(), subject.n_outputs)
        assert loss is not None
        assert subject.weight_decay is not None
        Z = subject.logits().double().cpu()
        inner = -float((loss.gradient(Z) * Z).sum())
        squares = sum(float(p.detach().double().square().sum()) for p in subject.parameters.values())
        decay = 0.5 * subject.weight_decay * squares
        total = abs(inner) + decay
        return (abs(inner - decay) / total if total else 0.0), inner, decay

    return subject.once("OPT007/euler", compute)


def _growth(subject: Subject) -> float:
    """Return the largest <R, phi(V)> over w/2 |V|^2 found for V in the place of a zero subnetwork."""

    def compute() -> float:
        loss = mean_loss(subject.loss_name, subject.y.cpu(), subject.n_outputs)
        assert loss is not None
        each = sum(math.prod(node.shape[1:]) for node in subject.graph.operations if node.shape)
        if subject.n * each > _NUMBERS:
            raise NotApplicable(f"{subject.n:,} samples are too many for a search in float64")
        model = copy.deepcopy(subject.model).cpu().double()
        x, weights = subject.x.cpu().double(), {n: p.detach() for n, p in model.named_parameters()}
        places = _first_zero(subject)
        with torch.no_grad():
            Z = model(x)
            R = -loss.gradient(Z)
        generator = torch.Generator().manual_seed(int(subject.generator("OPT007/starts").initial_seed()))
        sizes = [int(mask.sum()) for mask in places.values()]
        starts = torch.randn(_STARTS, sum(sizes), dtype=torch.float64, generator=generator)

        def fall(flat: Tensor) -> Tensor:
            parts = dict(weights)
            for (name, mask), part in zip(places.items(), flat.split(sizes), strict=True):
                parts[name] = weights[name].masked_scatter(mask, part)
            # the subnetworks add up and this one was zero: what is new is its output
            phi = functional_call(model, parts, (x,)) - Z
            return (R * phi).sum() / flat.square().sum()

        def ratio(point: tuple[Tensor, ...]) -> Tensor:
            return torch.stack([fall(flat) for flat in point[0]])

        with torch.enable_grad():
            _, values = ascend(ratio, (starts,), budget=_SECONDS, max_steps=_STEPS, tol=1e-4)
        assert subject.weight_decay is not None
        return max(float(values.max()), 0.0) / (0.5 * subject.weight_decay)

    return subject.once("OPT007/growth", compute)


def _first_zero(subject: Subject) -> dict[str, Tensor]:
    """Return the places of the first zero subnetwork's parameters, a mask for each parameter."""
    for blocks in parallel_structure(subject).blocks:
        for index in range(blocks.count):
            masks = {}
            for name, axis in sorted(blocks.parts):
                value: Any = subject.parameters[name].detach().cpu()
                mask = torch.zeros(value.shape, dtype=torch.bool)
                if axis < 0:
                    mask[...] = True
                else:
                    size = value.shape[axis] // blocks.count
                    mask.narrow(axis, index * size, size).fill_(True)
                masks[name] = mask
            if all(
                not bool(subject.parameters[name].detach().cpu()[mask].any()) for name, mask in masks.items()
            ):
                return masks
    raise NotApplicable("no subnetwork is zero")
