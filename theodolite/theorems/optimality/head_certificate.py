"""OPT004: how far the last layer is from its optimum, its features held fixed."""

from __future__ import annotations

import time

from theodolite.analysis.head import NoHead, find_head
from theodolite.theorems.base import Finding, Hypothesis, Theorem, Verdict, by_structure
from theodolite.theorems.head_problem import HeadFeatures, certified_problem
from theodolite.theorems.hypotheses import KNOWN_DUAL, WEIGHT_DECAY, require_graph
from theodolite.theorems.subject import Subject
from theodolite.value import Value, relative_gap

_SECONDS = 12.0
_TOLERANCE = 1e-10


def _linear_head(subject: Subject) -> Verdict:
    require_graph(subject)
    try:
        head = find_head(subject.graph)
    except NoHead as outcome:
        return by_structure(False, reason=str(outcome))
    trained = any(p is subject.model.get_parameter(head.weight) for p in subject.parameters.values())
    reason = (
        f"{head.where} is linear and trained"
        if trained
        else f"{head.where} is frozen: its weight is not trained"
    )
    return by_structure(trained, witness=head.weight, reason=reason)


LINEAR_HEAD = Hypothesis(
    "linear last layer",
    "the output is a trained linear layer whose weight is used nowhere else",
    _linear_head,
)


class HeadCertificate(Theorem):
    """Weak duality for the last layer: what retraining it alone could still gain."""

    code = "OPT004"
    title = "Head certificate"
    chapter = "optimality"
    statement = (
        r"With the features $H$ fixed, the last layer minimizes the convex "
        r"$P(V)=\ell(HV^\top)+\frac\mu2\|V\|_F^2$ (a decayed bias is the weight of a constant feature), and "
        r"$P(V)\ge D(Q)=-\ell^*(-Q)-\frac1{2\mu}\|H^\top Q\|_F^2$ for every $V$ and every $Q$. "
        r"So $(P-D)/|P|$ bounds what retraining the head alone can gain, and nothing about the layers below."
    )
    reference = "rockafellar1970convex"
    hypotheses = (WEIGHT_DECAY, LINEAR_HEAD, KNOWN_DUAL)
    reducers = (HeadFeatures,)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the gap of the present head and the bracket of its optimum."""
        _, problem, weight, bias = certified_problem(subject)
        seconds = _SECONDS
        if subject.deadline is not None:
            seconds = min(seconds, max(1.0, subject.deadline - time.monotonic()))
        present = problem.evaluate(weight, bias)
        solved = problem.solve(
            weight,
            bias,
            tol=_TOLERANCE,
            time_limit=seconds,
            progress=lambda i, p, d: subject.progress(i, i + 1),
        )
        objective = present.objective
        best = min(objective + present.rounding, solved.objective + solved.rounding)
        bound = min(max(present.dual_bound, solved.dual_bound), best)
        # what the other parameters add to the objective is the same for every head
        trained = [p.detach().double().square().sum() for p in subject.parameters.values()]
        penalty = problem.decay / 2 * float(sum(trained)) - problem.penalty(weight, bias)
        whole = objective + penalty
        gain = max(0.0, objective - present.rounding - best)
        upper = relative_gap(objective + present.rounding, bound)
        lower = min(gain / objective if objective else 0.0, upper)
        frozen = f"features frozen as the model computes them, all {subject.n:,} training samples"
        part = f"relative to the head's own objective, mean loss + decay/2 ||head||^2; {frozen}"
        all_of_it = (
            "relative to the whole training objective, mean loss + decay/2 ||all trained parameters||^2"
        )
        return {
            "gap": Value.bound(lower, upper, note=part),
            "objective": Value.exact(objective, note=f"mean loss + decay/2 ||head||^2; {frozen}"),
            "optimum": Value.bound(
                bound, best, note="least value of that objective over all heads; float64 rounding enclosed"
            ),
            "training_objective": Value.exact(whole, note="mean loss + decay/2 ||all trained parameters||^2"),
            "training_gap": Value.bound(
                min(gain / whole, (objective + present.rounding - bound) / whole) if whole else 0.0,
                relative_gap(whole + present.rounding, bound + penalty),
                note=f"{all_of_it}: what retraining the head alone can take off it",
            ),
        }

    def advice(self, finding: Finding) -> str:
        """Suggest to re-solve the head where that surely lowers the training objective."""
        gap = finding.values.get("training_gap")
        if gap is None or gap.low < 0.01:
            return ""
        return f"Re-solve the last layer: the training objective falls by at least {100 * gap.low:.3g} %."
