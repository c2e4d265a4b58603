"""OPT008: how deep weight decay digs the local minimum at W = 0, and what it cannot go below."""

from __future__ import annotations

import math
import time

import torch

from theodolite.analysis.graph import Graph
from theodolite.analysis.head import mean_loss
from theodolite.atoms.module import ModuleAtom
from theodolite.core.problem import Problem
from theodolite.linalg.lanczos import gamma
from theodolite.nn.regularizers import WeightDecay
from theodolite.theorems.base import Finding, Hypothesis, NotApplicable, Theorem, Verdict, by_structure
from theodolite.theorems.hypotheses import (
    HAS_PARAMETERS,
    HOMOGENEOUS_PARAMETERS,
    KNOWN_DUAL,
    WEIGHT_DECAY,
    homogeneity_of,
    require_graph,
)
from theodolite.theorems.subject import Subject
from theodolite.value import Value, format_number, relative_gap

_SECONDS = 5.0
_NUMBERS = 2e9  # activations of one forward pass over all data


def _is_deep(subject: Subject) -> Verdict:
    found = homogeneity_of(subject, "parameters")
    degree = found.degree or 0.0
    if not found.proved:
        raise NotApplicable(f"needs a proved degree: {found.reason}")
    return by_structure(
        degree > 2.0, witness=degree, reason=f"the network has degree {degree:g} in its parameters"
    )


DEEP = Hypothesis(
    "degree above 2", "the network's degree in its parameters is larger than weight decay's, 2", _is_deep
)


class MinimumAtZero(Theorem):
    """Weight decay on a deep homogeneous network: the basin of W = 0, and a bound below all minima."""

    code = "OPT008"
    title = "Minimum at zero weights"
    chapter = "optimality"
    statement = (
        r"Let $f$ be positively homogeneous of degree $L > 2$ and $\ell$ convex and never negative. With "
        r"$u = \sup\{\langle -\nabla\ell(0), f(W)\rangle : \|W\|^2\le L\}$, $W = 0$ is a strict local minimum of "
        r"$\ell(f(W)) + \frac w2\|W\|^2$: no $W\ne 0$ with $\|W\|^{L-2} < wL^{L/2}/(2u)$ has an objective as small, and "
        r"gradient flow from $\|W\|^{L-2} < wL^{L/2-1}/u$ ends at 0. With "
        r"$B = (2P/(wL))^{L/2}$ and $\lambda = \frac{wL}2B^{2/L-1}$, no sum of such networks has an objective below "
        r"the dual value of a $Q$ with $\sup\{\langle Q, f(W)\rangle : \|W\|^2\le L\}\le\lambda$, P being any attained one."
    )
    reference = "haeffele2015global"
    cost = "slow"
    hypotheses = (HAS_PARAMETERS, WEIGHT_DECAY, HOMOGENEOUS_PARAMETERS, DEEP, KNOWN_DUAL)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the radius of the basin, the objective at zero and here, and the bound below both."""
        require_graph(subject)
        began = time.monotonic()
        decay, loss = subject.weight_decay, mean_loss(subject.loss_name, subject.y.cpu(), subject.n_outputs)
        assert decay is not None
        assert loss is not None
        each = sum(math.prod(node.shape[1:]) for node in subject.graph.operations if node.shape)
        if subject.n * each > _NUMBERS:
            raise NotApplicable(f"{subject.n:,} samples are too many for a bound in float64")
        subject.logits()  # refuses outputs that are not finite
        try:
            # only upper ends of the polar are used here
            atom = ModuleAtom(
                subject.model, subject.x.cpu(), regularizer="power", starts=0, graph=_graph_in_double(subject)
            )
        except ValueError as outcome:
            raise NotApplicable(str(outcome)) from outcome
        params = atom.stack([subject.model])
        seed = int(subject.generator(self.code).initial_seed())
        at_zero = -loss.gradient(loss.zeros())
        polar = atom.polar(at_zero, target=0.0, budget=0.1 * _SECONDS, seed=seed)
        radii = [f(decay, atom.degree, polar.high) for f in (WeightDecay.basin, WeightDecay.attraction)]
        size = float(sum(p.square().sum() for p in params)) ** 0.5
        penalty = 0.5 * decay * size**2
        objective = loss.value(atom.phi(params)) + penalty
        zero = loss.value(loss.zeros())
        best = min(objective, zero)
        slope = WeightDecay.slope(decay, atom.degree, max(best, 1e-12))
        left = max(0.0, _SECONDS - (time.monotonic() - began))
        certificate = Problem(loss, atom, slope).certify(params, budget=left, seed=seed)
        empty = Problem(loss, atom, slope).certify(atom.init(0), budget=0.3 * left, seed=seed)
        rounding = gamma(sum(p.numel() for p in params) + atom.depth) * (penalty + loss.value(loss.zeros()))
        bound = min(max(certificate.dual_bound, empty.dual_bound, 0.0), best)
        sure = certificate.confidence + empty.confidence - 1.0  # the better of two: both must hold
        return {
            "basin_radius": Value.bound(
                lower=radii[0],
                confidence=polar.confidence,
                unit="norm of all weights",
                note="no other weights up to this norm have an objective as small as W = 0 has",
            ),
            "attraction_radius": Value.bound(
                lower=radii[1],
                confidence=polar.confidence,
                unit="norm of all weights",
                witness={"norm": size},
                note=f"gradient flow from any weights up to this norm ends at W = 0; here it is {format_number(size)}",
            ),
            "objective_at_zero": Value.exact(zero, note=f"here it is {format_number(objective)}"),
            "dual_bound": Value.bound(
                lower=bound,
                confidence=sure,
                note="no sum of networks of this architecture has a smaller objective, loss + decay: by the chord of the "
                "decay, " + certificate.polar.note,
            ),
            "gap": Value.bound(
                0.0,
                relative_gap(objective + rounding, bound),
                confidence=sure,
                note="relative to the objective here: what a sum of such networks can take off it, at most",
            ),
        }

    def advice(self, finding: Finding) -> str:
        """Say where to start, or that the present weights are in the basin."""
        radius = finding.values.get("attraction_radius")
        if radius is not None and radius.witness["norm"] <= radius.low:
            return (
                "these weights lie where gradient flow leads to W = 0: start from larger ones, or penalize the product "
                "of the layers' norms"
            )
        return ""


def _graph_in_double(subject: Subject) -> Graph | None:
    """Return the subject's graph if it is one in float64 on the CPU; others may lack a conversion that float64 needs."""
    tensors = [subject.x, *subject.model.parameters(), *subject.model.buffers()]
    here = all(t.device.type == "cpu" for t in tensors)
    double = all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())
    return subject.graph if here and double else None
