"""Re-solve the last layer to its certified optimum."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from theodolite.remedies.base import Change, Remedy
from theodolite.theorems.head_problem import certified_problem
from theodolite.theorems.subject import Subject
from theodolite.value import Value, format_number, relative_gap

_SECONDS = 20.0


class ResolveHead(Remedy):
    """Replace the last layer by the optimum of its convex problem on the fitting part."""

    name = "resolve-head"
    title = "Re-solve the head"
    needs = "a trained linear last layer, cross-entropy or mean squared error, weight decay > 0"

    def change(self, model: nn.Module, subject: Subject, fit: Tensor) -> Change:
        """Solve on the rows to fit, features held fixed."""
        head, problem, weight, bias = certified_problem(subject, fit)
        seconds = _SECONDS
        if subject.deadline is not None:
            seconds = min(seconds, max(1.0, subject.deadline - time.monotonic()))
        before = problem.objective(weight, bias)
        solved = problem.solve(weight, bias, tol=1e-8, time_limit=seconds)
        with torch.no_grad():
            model.get_parameter(head.weight).copy_(solved.weight)
            if solved.bias is not None:
                model.get_parameter(head.bias).copy_(solved.bias)
        # what is saved is certified: the head after its rounding to the model's dtype
        new_bias = None if bias is None or solved.bias is None else solved.bias.to(bias.dtype)
        rounded = problem.evaluate(solved.weight.to(weight.dtype), new_bias)
        upper = rounded.objective + rounded.rounding
        gap = relative_gap(upper, max(solved.dual_bound, rounded.dual_bound))
        trained = sum(float(p.detach().double().square().sum()) for p in subject.parameters.values())
        others = problem.decay / 2 * trained - problem.penalty(weight, bias)
        whole = [before + others, rounded.objective + others]
        what = f"mean loss + decay/2 ||all trained parameters||^2 on the {len(fit):,} samples fitted"
        fall = 100 * (whole[1] / whole[0] - 1) if whole[0] else 0.0
        effects = {
            "objective_before": Value.exact(whole[0], note=what),
            "objective_after": Value.exact(whole[1], note=what),
            "gap": Value.bound(
                0.0, gap, note="of the new head on the samples fitted, of the head's own objective"
            ),
        }
        sentence = (
            f"re-solve the head on {len(fit):,} of {subject.n:,} training samples: objective there "
            f"{fall:+.2g} %, within {format_number(100 * gap, 'up')} % of the head's optimum"
        )
        return Change(model, sentence, effects)
