"""The meta-algorithm: descend, certify, grow by the polar's witness, prune, keeping the best dual bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from theodolite.core.certificate import Certificate, certify, judge, unbeaten
from theodolite.core.params import Params, count
from theodolite.core.repair import not_worse, prune, reweight
from theodolite.linalg.lanczos import FailureLedger
from theodolite.optim.log import Log
from theodolite.value import format_confidence, format_number, relative_gap

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

_HEADER = " round  units      incumbent          bound       gap   polar / lambda     time"
_PATIENCE = 4  # rounds that bring next to nothing before the verdict stays what it is


@dataclass(frozen=True)
class Round:
    """One line of the log: what was known after a round, with the best dual bound so far."""

    iteration: int
    units: int
    objective: float
    dual_bound: float
    gap: float
    polar_low: float
    polar_high: float
    seconds: float


@dataclass(frozen=True)
class Solution:
    """The best subnetworks found, their certificate with the best dual bound of all rounds, and the log."""

    params: Params
    certificate: Certificate
    history: tuple[Round, ...]
    interrupted: bool = False


class Solver:
    """One run of the meta-algorithm (arguments as in `Problem.solve`)."""

    certificate: Certificate

    def __init__(
        self, problem: Problem, params: Params, tol: float, budget: float | None, ledger: FailureLedger
    ) -> None:
        self.problem, self.params, self.tol, self.ledger = problem, params, tol, ledger
        self.candidate, self.dual, self.spent = params, -math.inf, 0.0
        self.history: list[Round] = []
        self.start, self.budget = time.monotonic(), math.inf if budget is None else budget

    def run(self, max_rounds: int, callback: Callable[[Round], bool | None] | None, log: Log) -> Solution:
        """Return the solution, also after Ctrl-C."""
        self.log, interrupted = log, False
        try:
            self._rounds(max_rounds, callback or (lambda _: None))
        except KeyboardInterrupt:
            interrupted = True
            if not self.history or self.problem.objective(self.candidate) < self.certificate.objective:
                self._certify(self.candidate, budget=0.0)  # the cheapest polar; the best dual bound stays
                self._record()
        c, how = self.certificate, "interrupted, " if interrupted else ""
        sure = "" if c.confidence == 1.0 else f" ({format_confidence(c.confidence)})"
        self.log.line(f"{how}{c.verdict}: gap <= {format_number(100 * c.gap, 'up')} %{sure}", "bold")
        return Solution(self.params, self.certificate, tuple(self.history), interrupted)

    def _rounds(self, max_rounds: int, callback: Callable[[Round], bool | None]) -> None:
        problem, idle, inner = self.problem, 0, max(self.tol, 1e-12)
        until = self.start + 0.9 * self.budget  # what is left is for the last certificate
        self.log.line(f"lambda = {problem.lam:.6g}, closed at a gap of {100 * self.tol:.3g} %\n{_HEADER}")
        last = self._certify(self.params, 0.25 * self.budget)  # a hard polar of the start is to leave time
        for n in range(max_rounds):
            enough = last.verdict == "closed" or idle >= _PATIENCE or time.monotonic() >= until
            if callback(self._record()) or enough:
                return
            params = self.params
            if n > 0 or not count(params):  # reweighting a start would drop what descent can still turn
                fresh = last.polar.witness if last.polar.low > problem.lam else None
                params = reweight(problem, params, fresh)
            params = problem.atom.descend(problem, params, tol=inner, deadline=until, progress=self._keep)
            params = reweight(problem, prune(problem, params))
            self._keep(params)
            now = self._certify(params if not_worse(problem, params, self.params) else self.params)
            gained = (last.objective - now.objective) + (now.dual_bound - last.dual_bound)
            stuck = gained < 0.01 * (now.objective - now.dual_bound)
            idle, inner = (idle + 1, 0.01 * inner) if stuck else (0, inner)  # descend further, then give up
            last = now
        self._record()

    def _certify(self, params: Params, budget: float = math.inf) -> Certificate:
        """Certify the new incumbent; by the union bound all dual bounds hold together."""
        delta, seed = self.ledger.next()
        left = min(budget, max(self.start + self.budget - time.monotonic(), 0.1 * self.budget))
        seconds = None if left == math.inf else left
        fresh = certify(self.problem, params, tol=self.tol, budget=seconds, seed=seed, delta=delta)
        self.spent += 1.0 - fresh.confidence
        self.dual = unbeaten(max(self.dual, fresh.dual_bound), fresh.objective)
        gap = min(fresh.gap, relative_gap(fresh.objective, self.dual))
        verdict, sure = judge(gap, self.tol, fresh.decrease), 1.0 - self.spent
        self.params = params
        self.certificate = replace(fresh, dual_bound=self.dual, gap=gap, verdict=verdict, confidence=sure)
        return self.certificate

    def _record(self) -> Round:
        c, n, seconds = self.certificate, len(self.history), time.monotonic() - self.start
        low, high = c.polar_ratio
        self.history.append(Round(n, c.units, c.objective, c.dual_bound, c.gap, low, high, seconds))
        numbers = f"{n:6d} {c.units:6d} {c.objective:14.8g} {c.dual_bound:14.8g} {100 * c.gap:7.3g} %"
        polar = f"[{format_number(low, 'down')}, {format_number(high, 'up')}]"
        self.log.line(f"{numbers} {polar:>16} {seconds:7.1f}s")
        return self.history[-1]

    def _keep(self, params: Params) -> None:
        """Note what an interrupt would return."""
        self.candidate = params
        self.log.status(f"descending with {count(params)} units, {time.monotonic() - self.start:.1f} s")
