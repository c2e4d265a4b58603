"""Intervals for a probability from counted successes, exact at every sample size."""

from __future__ import annotations

import math

from scipy.special import betainccinv, betaincinv

_TINY = 1e-200  # below it scipy's inverses of the incomplete beta function fall short


def clopper_pearson_upper(errors: int, n: int, delta: float) -> float:
    """Return the Clopper-Pearson upper bound on a probability.

    The largest p under which ``errors`` or fewer successes among ``n`` independent
    draws still have probability ``delta``; over repeated draws the bound is at least
    the true probability in a share of at least ``1 - delta`` of them, whatever p and n.

    Parameters
    ----------
    errors : int
        Successes, between 0 and n.
    n : int
        Draws, at least 1.
    delta : float
        Probability with which the bound may fail, in (0, 1).

    Returns
    -------
    float
        Beta^{-1}(1 - delta; errors + 1, n - errors); 1 when every draw is a success.  For
        delta below 1e-200 Chernoff's bound, which is slightly larger.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    Clopper and Pearson (1934); Langford, "Tutorial on practical prediction theory for
    classification", JMLR 6 (2005).
    """
    _check(errors, n, delta)
    if delta < _TINY:
        return kl_inverse_upper(errors / n, -math.log(delta) / n)
    # the complemented inverse takes delta itself, so a tiny one is not lost in 1 - delta
    return 1.0 if errors == n else float(betainccinv(errors + 1, n - errors, delta))


def clopper_pearson_lower(errors: int, n: int, delta: float) -> float:
    """Return the Clopper-Pearson lower bound on a probability; arguments as for the upper one."""
    _check(errors, n, delta)
    if delta < _TINY:
        return max(0.0, 1.0 - kl_inverse_upper((n - errors) / n, -math.log(delta) / n))
    return 0.0 if errors == 0 else float(betaincinv(errors, n - errors + 1, delta))


def _check(errors: int, n: int, delta: float) -> None:
    if n < 1:
        raise ValueError(f"n: expected at least one draw, got {n}")
    if not 0 <= errors <= n:
        raise ValueError(f"errors: expected a number between 0 and n={n}, got {errors}")
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta: expected a number in (0, 1), got {delta}")


def bernoulli_kl(q: float, p: float) -> float:
    """Return kl(q | p) in nats, the divergence of Bernoulli(p) from Bernoulli(q); may be inf."""
    if (p == 0.0 and q > 0.0) or (p == 1.0 and q < 1.0):
        return math.inf
    return max(_kl(q, p)[0], 0.0)


def _kl(q: float, p: float) -> tuple[float, float]:
    """Return kl(q | p) for finite terms, and a bound of its rounding error."""
    hit = math.log(q / p) if q > 0.0 else 0.0
    not_q, not_p = math.log1p(-q) if q < 1.0 else 0.0, math.log1p(-p) if q < 1.0 else 0.0
    size = q * (1.0 + abs(hit)) + (1.0 - q) * (abs(not_q) + abs(not_p))
    return q * hit + (1.0 - q) * (not_q - not_p), 2.0**-50 * size


def kl_inverse_upper(q: float, c: float) -> float:
    """Return the largest r with kl(q | r) <= c, rounded to the safe side.

    Bisection down to neighboring floats; the end returned is the one on which kl exceeds
    c by more than its rounding error, never the midpoint, so that a bound stays a bound.

    Parameters
    ----------
    q : float
        Observed rate, in [0, 1].
    c : float
        Divergence in nats, at least 0.

    Returns
    -------
    float
        In [q, 1].

    Raises
    ------
    ValueError
        If q is no probability or c is negative.
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q: expected a probability, got {q}")
    if not c >= 0.0:
        raise ValueError(f"c: expected a number >= 0, got {c}")
    inside, outside = q, 1.0
    if bernoulli_kl(q, 1.0) <= c:
        return 1.0
    while True:
        middle = 0.5 * (inside + outside)
        if not inside < middle < outside:
            return outside
        divergence, rounding = _kl(q, middle)
        if divergence - rounding > c:
            outside = middle
        else:
            inside = middle
