r"""The regularizer of functions that a family of subnetworks induces.

:math:`\Omega(Z) = \inf\{\sum_i\theta(W_i) : \sum_i\phi(W_i) = Z\}`, over any number of subnetworks, is a gauge, and so
convex: the nuclear norm for rank-one matrices, the nuclear deep-net regularizer for products of the layers' norms.
"""

from __future__ import annotations

import math

import torch

from theodolite.core.atom import Atom
from theodolite.core.params import Params, count
from theodolite.core.problem import Problem
from theodolite.core.repair import prune
from theodolite.linalg.lanczos import FailureLedger, gamma
from theodolite.losses.squared import SquaredLoss
from theodolite.value import Value

_SHARES = (0.1, 0.01, 0.001)  # of the polar, for the problems whose residuals are tried
_DELTA = 1e-9  # chance that a bound does not hold
_APART = 100_003  # between the seeds of the solver and of the bounds


def gauge_bounds(atom: Atom, params: Params, *, budget: float | None = None, seed: int = 0) -> Value:
    r"""Return a bound of Omega at the predictions Z of given subnetworks.

    The upper end is the sum of theta of those subnetworks, after pruning that keeps Z.  The lower end is
    :math:`\langle Q,Z\rangle/u`, u a proved upper bound of the polar of Q: for every Q it is at most Omega.  Tried are
    Q = Z and the residuals of :math:`\min_{Z'}\frac12\|Z-Z'\|^2+\lambda\Omega(Z')` for small lambda.

    Parameters
    ----------
    atom : Atom
        The family.
    params : Params
        Subnetworks, r = 0 for the zero model.
    budget : float, optional
        Seconds; 0 for Q = Z and the cheapest polar.
    seed : int
        Of random starts.

    References
    ----------
    Haeffele and Vidal, arXiv 1506.07540 (2015).
    """
    with torch.no_grad():
        Z = atom.phi(params)
        theta = float(atom.theta(params).sum())
        terms = count(params) + atom.depth + 8
        if not bool(Z.any()):
            return Value.bound(0.0, 0.0, note="the predictions are zero")
        share = None if budget is None else budget / (len(_SHARES) + 1)
        # each Q depends on the answers before: their starts are not to be those of the solver
        ledger = FailureLedger(_DELTA, seed + _APART)
        delta, start = ledger.next()
        loss, top = SquaredLoss(Z), atom.polar(Z, budget=share, seed=start, delta=delta)
        fewer = prune(Problem(loss, atom, max(top.low, 1e-300)), params)
        if bool(torch.equal(atom.phi(fewer), Z)):
            theta = min(theta, float(atom.theta(fewer).sum()))
        upper = theta * (1.0 + gamma(terms))
        # the predictions are rounded: so is what a Q makes of them
        rounding = gamma(terms + Z.numel()) * float(Z.norm() + theta * atom.row_bounds().norm())
        lower, confidence = (float(Z.square().sum()) - rounding * float(Z.norm())) / top.high, top.confidence
        for part in _SHARES if budget != 0.0 else ():
            if lower >= upper * (1.0 - 1e-6):
                break
            problem = Problem(loss, atom, part * max(top.low, 1e-12 * top.high))
            solution = problem.solve(tol=1e-4, budget=share, seed=seed, init=fewer)
            Q = Z - problem.predictions(solution.params)
            if not bool(Q.any()):
                continue
            delta, start = ledger.next()
            polar = atom.polar(Q, budget=share, seed=start, delta=delta)
            confidence += polar.confidence - 1.0  # a choice between them: all must hold
            found = (float((Q * Z).sum()) - rounding * float(Q.norm())) / polar.high
            if math.isfinite(found):
                lower = max(lower, found)
    return Value.bound(
        min(max(lower, 0.0), upper),
        upper,
        confidence=confidence,
        note="between <Q, Z> / polar(Q) and the sum of theta",
    )
