"""The mean of one number a sample, with the interval that its spread allows."""

from __future__ import annotations

import math

from scipy.stats import t as student
from torch import Tensor

from theodolite.analysis.binomial import clopper_pearson_lower, clopper_pearson_upper
from theodolite.value import Value


def mean_of(
    numbers: Tensor, *, rounding: float, what: str, confidence: float = 0.95, unit: str = ""
) -> Value:
    """Return the mean of numbers >= 0 of independent samples, with Student's interval.

    Where none of them exceeds what rounding makes, or there is one alone, nothing can be said
    of their spread; the mean is then an exact number of the samples given, and says so.

    Parameters
    ----------
    numbers : Tensor, shape (n,)
        One a sample.
    rounding : float
        Largest number that may be rounding.
    what : str
        The samples, for the note.
    confidence : float
        Of the interval, whose coverage is approximate.
    unit : str
        Of the numbers.
    """
    numbers = numbers.double()
    mean, n = float(numbers.mean()), len(numbers)
    if float(numbers.max()) <= rounding:
        return Value.exact(mean, unit=unit, note=f"no more than rounding at any of {what}")
    if n < 2 or not math.isfinite(mean):
        return Value.exact(mean, unit=unit, note=f"mean over {what}, too few or too large for an interval")
    half = float(student.ppf(0.5 + confidence / 2.0, n - 1)) * float(numbers.std()) / math.sqrt(n)
    note = f"mean over {what}; Student's interval for the mean over inputs drawn as they were"
    return Value.estimate(
        mean, max(mean - half, 0.0), mean + half, confidence=confidence, unit=unit, note=note
    )


def share_of(hits: Tensor, *, what: str, confidence: float = 0.95) -> Value:
    """Return a share with the interval of Clopper and Pearson, which covers at every sample size.

    Parameters
    ----------
    hits : Tensor of bool, shape (n,)
        One a sample.
    what : str
        The samples, for the note.
    confidence : float
        Of the interval.
    """
    k, n = int(hits.sum()), len(hits)
    ends = (f(k, n, (1.0 - confidence) / 2.0) for f in (clopper_pearson_lower, clopper_pearson_upper))
    return Value.estimate(k / n, *ends, confidence=confidence, note=f"{k} among {what}")


def share_change(before: Tensor, after: Tensor, *, what: str, confidence: float = 0.95) -> Value:
    """Return the change of a share on matched samples, with an interval that covers at every size.

    The share that gains and the share that loses each get a two-sided Clopper-Pearson interval
    at half the failure probability; their difference lies between the ends' differences.

    Parameters
    ----------
    before, after : Tensor of bool, shape (n,)
        The same samples twice.
    what : str
        The samples, for the note.
    confidence : float
        Of the interval.
    """
    n, delta = len(before), (1.0 - confidence) / 4.0
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    low = clopper_pearson_lower(gained, n, delta) - clopper_pearson_upper(lost, n, delta)
    high = clopper_pearson_upper(gained, n, delta) - clopper_pearson_lower(lost, n, delta)
    note = f"{gained} gained and {lost} lost among {what}, paired"
    return Value.estimate((gained - lost) / n, low, high, confidence=confidence, note=note)


def mean_difference(differences: Tensor, *, what: str, confidence: float = 0.95) -> Value:
    """Return the mean of paired differences, of any sign, with Student's interval.

    Parameters
    ----------
    differences : Tensor, shape (n,)
        One a sample.
    what : str
        The samples, for the note.
    confidence : float
        Of the interval, whose coverage is approximate.
    """
    differences = differences.double()
    mean, n = float(differences.mean()), len(differences)
    if n < 2 or not bool(differences.any()):
        return Value.exact(mean, note=f"paired, over {what}: too few, or no difference at all")
    half = float(student.ppf(0.5 + confidence / 2.0, n - 1)) * float(differences.std()) / math.sqrt(n)
    note = f"paired, mean over {what}; Student's interval for inputs drawn as they were"
    return Value.estimate(mean, mean - half, mean + half, confidence=confidence, note=note)
