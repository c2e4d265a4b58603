"""What every certified estimator shares: one call of the solver, and what it leaves on the estimator."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from theodolite.core.certificate import Certificate, judge
from theodolite.core.descend import descend
from theodolite.core.params import Params, count, select
from theodolite.core.problem import Problem
from theodolite.core.solve import Round, Solution
from theodolite.value import relative_gap

Callback = Callable[[Round], "bool | None"]

_LEAST, _MOST = 1e-100, 1e100  # of data and penalties: their products and squares stay normal numbers


class CertifiedEstimator(BaseEstimator):
    """An estimator whose fit minimizes a :class:`~theodolite.core.problem.Problem` and keeps the certificate.

    Subclasses write ``__init__`` with the parameters that are the first attributes below, as
    scikit-learn asks, and call ``_solve`` in ``fit``.

    Attributes
    ----------
    tol : float
        Relative gap to stop at.
    budget : float or None
        Seconds for the solver; where `max_rank` is given, 0.3 of them are kept for the descent at that rank.
    max_rank : int or None
        Most units to keep, where the subclass has this parameter.  The gap is still to the
        optimum over any number of units.
    verbose : bool
        Print one line a round.
    device : str, torch.device or None
        Where to compute.
    random_state : int, RandomState or None
        Of random starts.  None is 0: the same data give the same fit.
    certificate_ : Certificate
        What is proved about the fit.
    objective_, dual_bound_, gap_ : float
        Objective that the fit attains, proved lower bound of every objective, and the relative
        gap ``(objective - dual_bound) / |objective|``.
    rank_ : int
        Number of units.
    history_ : tuple of Round
        The solver's log.
    interrupted_ : bool
        Whether Ctrl-C ended the fit, which then is the best so far, with a valid certificate.
    """

    tol: float
    budget: float | None
    verbose: bool
    device: torch.device | str | None
    random_state: Any

    def _solve(
        self, problem: Problem, init: Params | None = None, *, callback: Callback | None = None
    ) -> Solution:
        """Solve a problem, keep at most ``max_rank`` units, and set the attributes that all estimators have.

        Parameters
        ----------
        problem : Problem
        init : Params, optional
            Where to start: by default no units.
        callback : function(Round) -> bool, optional
            Called after each round; returning True stops.

        Returns
        -------
        Solution
            On the CPU.
        """
        self._check_shared()
        start, seed = time.monotonic(), seed_of(self.random_state)
        max_rank = getattr(self, "max_rank", None)
        budget = self.budget if self.budget is None or max_rank is None else 0.7 * self.budget
        try:
            solution = problem.solve(
                self.tol, budget, self.device, seed, self.verbose, init=init, callback=callback
            )
        except KeyboardInterrupt:  # before the solver had taken over
            params = problem.atom.init(0) if init is None else init
            cheapest = problem.certify(params, tol=self.tol, budget=0.0, seed=seed)
            solution = Solution(params, cheapest, (as_round(cheapest, start),), interrupted=True)
        if max_rank is not None and count(solution.params) > max_rank:
            left = None if self.budget is None else max(start + self.budget - time.monotonic(), 0.0)
            solution = restrict(problem, solution, max_rank, tol=self.tol, budget=left, seed=seed)
        solution = replace(solution, params=tuple(p.detach().cpu() for p in solution.params))
        self._keep(solution.certificate, solution.history, solution.interrupted)
        return solution

    def _keep(self, certificate: Certificate, history: tuple[Round, ...], interrupted: bool) -> None:
        self.certificate_ = certificate
        self.objective_, self.dual_bound_ = certificate.objective, certificate.dual_bound
        self.gap_, self.rank_ = certificate.gap, certificate.units
        self.history_, self.interrupted_ = history, interrupted

    def _check_shared(self) -> None:
        """Refuse values of the shared parameters that are none."""
        check_number(self.tol, "tol", low=0.0)
        if self.budget is not None:
            check_number(self.budget, "budget", low=0.0)
        if self.device is not None:
            check_device(self.device)
        seed_of(self.random_state, draw=False)
        max_rank = getattr(self, "max_rank", None)
        if max_rank is not None:
            check_integer(max_rank, "max_rank", low=1)


def restrict(
    problem: Problem, solution: Solution, max_rank: int, *, tol: float, budget: float | None, seed: int
) -> Solution:
    """Return a solution with at most ``max_rank`` units, certified against the optimum over any number.

    The units of largest theta are kept and descended from at that fixed number.  The problem is then
    not convex, so that the gap says how much the restriction may cost.  The family's own descent is used,
    unless it solves the convex problem of the sum and so finds the number of units itself: then L-BFGS
    moves the factors, whose Euclidean norms are smooth.  What has more units is not taken.

    Parameters
    ----------
    problem : Problem
    solution : Solution
        Of the unrestricted problem; its dual bound still holds.
    max_rank : int
    tol : float
    budget : float or None
        Seconds, a third of them for the certificate.
    seed : int
        Of the certificate.
    """
    problem, start = problem.to(solution.params[0].device), time.monotonic()
    deadline = math.inf if budget is None else start + 0.67 * budget
    method = partial(descend, problem) if problem.atom.convex else partial(problem.atom.descend, problem)
    with torch.no_grad():
        largest = torch.argsort(problem.atom.theta(solution.params), descending=True)[:max_rank]
        best, interrupted = select(solution.params, largest), solution.interrupted

        def progress(params: Params) -> None:
            nonlocal best
            if count(params) <= max_rank and problem.objective(params) < problem.objective(best):
                best = params

        if not interrupted:
            try:
                progress(method(best, tol=tol, deadline=deadline, progress=progress))
            except KeyboardInterrupt:
                interrupted = True
        best = problem.atom.merge(best)
    before = solution.certificate
    left = None if budget is None else max(start + budget - time.monotonic(), 0.1 * budget)
    try:
        fresh = problem.certify(best, tol=tol, budget=0.0 if interrupted else left, seed=seed + 1)
    except KeyboardInterrupt:
        interrupted, fresh = True, problem.certify(best, tol=tol, budget=0.0, seed=seed + 1)
    dual_bound = max(before.dual_bound, fresh.dual_bound)
    gap = min(fresh.gap, relative_gap(fresh.objective, dual_bound))
    certificate = replace(
        fresh,
        dual_bound=dual_bound,
        gap=gap,
        verdict=judge(gap, tol, fresh.decrease),
        confidence=before.confidence + fresh.confidence - 1.0,  # both bounds hold together
    )
    started = time.monotonic() - (solution.history[-1].seconds if solution.history else 0.0)
    history = (*solution.history, as_round(certificate, started, len(solution.history)))
    return Solution(best, certificate, history, interrupted)


def as_round(certificate: Certificate, start: float, iteration: int = 0) -> Round:
    """Return the line of the log that a certificate is, begun at a value of ``time.monotonic()``."""
    low, high = certificate.polar_ratio
    c, seconds = certificate, time.monotonic() - start
    return Round(iteration, c.units, c.objective, c.dual_bound, c.gap, low, high, seconds)


def seed_of(random_state: Any, draw: bool = True) -> int:
    """Return the seed of the solver, or refuse what is none; without `draw` a generator is left as it is."""
    if random_state is None:
        return 0
    try:
        generator = check_random_state(random_state)
    except ValueError as error:
        expected = "None, an integer from 0 to 2**32 - 1 or a RandomState"
        raise ValueError(f"random_state: expected {expected}, got {random_state!r}") from error
    return int(generator.randint(2**31 - 1)) if draw else 0


def check_device(given: Any) -> None:
    """Refuse a device that torch cannot compute on here."""
    try:
        float(torch.ones(1, dtype=torch.float64, device=given))
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:  # as torch says it
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise ValueError(f"device: expected one that torch can use here, got {given!r} ({why})") from error


def check_factor(given: Any, name: str) -> float:
    """Return a positive number, or refuse it, and one whose square underflows or overflows."""
    number = check_number(given, name, low=0.0, strict=True)
    if not _LEAST <= number <= _MOST:
        raise ValueError(f"{name}: expected a number from {_LEAST:g} to {_MOST:g}, got {given!r}")
    return number


def check_scale(values: NDArray[np.float64], name: str) -> None:
    """Refuse numbers whose squares float64 cannot hold: rounding is bounded relative to those.

    Parameters
    ----------
    values : ndarray
        NaN is passed over; zeros, and small numbers beside a large one, do no harm.
    name : str
    """
    size = max(float(np.fmax.reduce(values, axis=None)), -float(np.fmin.reduce(values, axis=None)))
    if size > _MOST or 0.0 < size < _LEAST:
        expected = f"a largest number from {_LEAST:g} to {_MOST:g} in size, or zeros"
        raise ValueError(f"{name}: expected {expected}, got {size:g}; give them in another unit")


def check_number(given: Any, name: str, *, low: float = -math.inf, strict: bool = False) -> float:
    """Return a finite real number as a float, or refuse it.

    Parameters
    ----------
    given : object
    name : str
        What the message calls it.
    low : float
        Least value allowed; excluded itself if `strict`.
    strict : bool

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is not finite or out of range.
    """
    expected = "a finite number" if low == -math.inf else f"a finite number {'>' if strict else '>='} {low:g}"
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {given!r}")
    number = float(given)
    if not math.isfinite(number) or number < low or (strict and number == low):
        raise ValueError(f"{name}: expected {expected}, got {given!r}")
    return number


def check_integer(given: Any, name: str, *, low: int) -> int:
    """Return an integer, or refuse what is none (TypeError) or too small (ValueError)."""
    if isinstance(given, bool) or not isinstance(given, numbers.Integral):
        raise TypeError(f"{name}: expected an integer >= {low}, got {given!r}")
    if given < low:
        raise ValueError(f"{name}: expected an integer >= {low}, got {given!r}")
    return int(given)


def check_choice(given: Any, name: str, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is not one of the choices (compared by type, too: 0 is not False)."""
    if not any(given is choice or (type(given) is type(choice) and given == choice) for choice in choices):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {given!r}")
