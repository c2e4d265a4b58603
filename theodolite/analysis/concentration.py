"""What independent draws prove about a mean or an entropy: finite-sample, one-sided.

All functions take the failure probability ``delta`` of one side; several statements that
are to hold together share it (union bound).  Information is in nats.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from theodolite.analysis.binomial import clopper_pearson_lower, clopper_pearson_upper


def empirical_bernstein(values: ArrayLike, width: float, delta: float) -> float:
    """Return h with ``E[v] <= mean(values) + h``, and by symmetry ``E[v] >= mean(values) - h``.

    ``h = sqrt(2 V log(2/delta) / n) + 7 width log(2/delta) / (3 (n - 1))`` with the unbiased
    sample variance V; each of the two inequalities fails with probability at most delta.

    Parameters
    ----------
    values : array, shape (n,)
        Independent draws from one distribution, n >= 2.
    width : float
        Length of an interval, chosen without the draws, that holds every possible value.
    delta : float
        Failure probability of one side, in (0, 1).

    Raises
    ------
    ValueError
        If there are fewer than two draws, or they span more than ``width``.

    References
    ----------
    Maurer and Pontil, Empirical Bernstein bounds and sample-variance penalization, COLT 2009.
    """
    draws = np.asarray(values, dtype=np.float64)
    n = draws.size
    if n < 2:
        raise ValueError(f"values: expected at least two draws, got {n}")
    _check_probability(delta)
    if np.ptp(draws) > width * (1.0 + 1e-12):
        raise ValueError(f"width: expected at least the range of the draws, {np.ptp(draws)}, got {width}")
    log_term = math.log(2.0 / delta)
    variance = float(draws.var(ddof=1))
    return math.sqrt(2.0 * variance * log_term / n) + 7.0 * width * log_term / (3.0 * (n - 1))


def plug_in_entropy(counts: ArrayLike) -> float:
    """Return the entropy of the observed frequencies, in nats; on average below the true one."""
    share = np.asarray(counts, dtype=np.float64)
    share = share[share > 0] / share.sum()
    return float(-(share * np.log(share)).sum())


def entropy_lower_bound(counts: ArrayLike, delta: float) -> float:
    """Return a lower bound of a discrete distribution's entropy, in nats.

    The better of two bounds that fail with probability delta/2 each, at least 0:

    * *bounded differences* (McDiarmid; Antos and Kontoyiannis 2001): the plug-in entropy has a mean
      below the truth and moves by at most ``2 log(n)/n`` when one of the n draws changes, so
      ``H >= H_plug - log(n) sqrt(2 log(1/delta) / n)``;
    * *intervals*: each probability lies in its Clopper-Pearson interval (all classes together).
      ``-p log p`` is concave, hence above its chord on the interval, and the least sum of chords over
      the intervals with ``sum p = 1`` is a linear program that filling up the flattest chords solves.

    Parameters
    ----------
    counts : array of int, shape (n_classes,)
        Draws of each class, with all possible classes present (zeros count).
    delta : float
        Failure probability, in (0, 1).

    Raises
    ------
    ValueError
        If there is no draw or delta is out of range.
    """
    counts = np.asarray(counts)
    n = int(counts.sum())
    if n < 1:
        raise ValueError("counts: expected at least one draw, got none")
    _check_probability(delta)
    spread = math.log(n) * math.sqrt(2.0 * math.log(2.0 / delta) / n)
    return max(0.0, plug_in_entropy(counts) - spread, _chord_bound(counts, n, delta / 2.0))


def _chord_bound(counts: np.ndarray, n: int, delta: float) -> float:
    side = delta / (2 * len(counts))
    low = np.array([clopper_pearson_lower(int(c), n, side) for c in counts])
    high = np.array([clopper_pearson_upper(int(c), n, side) for c in counts])
    ends = np.stack([low, high])
    terms = -ends * np.log(np.where(ends > 0.0, ends, 1.0))
    slope = (terms[1] - terms[0]) / (high - low)
    order = np.argsort(slope, kind="stable")
    left = 1.0 - low.sum()
    added = np.clip(
        left - np.concatenate([[0.0], np.cumsum((high - low)[order])[:-1]]), 0.0, (high - low)[order]
    )
    return float(terms[0].sum() + (slope[order] * added).sum())


def _check_probability(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta: expected a number in (0, 1), got {delta}")
