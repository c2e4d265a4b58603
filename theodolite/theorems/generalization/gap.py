"""GEN002: how much worse the model is on new data than on its training data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from scipy.stats import t as student_t
from torch import Tensor

from theodolite.analysis.binomial import clopper_pearson_lower, clopper_pearson_upper
from theodolite.theorems.base import NotApplicable, Theorem
from theodolite.theorems.hypotheses import IID, TEST_SPLIT
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Split, Subject

CONFIDENCE = 0.95


class GeneralizationGap(Theorem):
    """Train and test error, and the population gap with its confidence interval.

    The gap is the population's error minus the error on the training sample at hand.
    Given the trained model the latter is a known number, so the interval is the test
    sample's alone, shifted: Clopper-Pearson for the error rate, and for the mean loss
    Student's interval with Hall's correction for skewness, which is right only
    asymptotically (a loss without a bound admits no interval that always is).
    """

    code = "GEN002"
    title = "Generalization gap"
    chapter = "generalization"
    statement = (
        r"$R(f)-\hat R_S(f)$, with $R$ the population's error and $\hat R_S$ that of the training sample; "
        r"the test error is an unbiased estimate of $R(f)$."
    )
    reference = "clopper1934interval, hall1992skewness"
    hypotheses = (TEST_SPLIT, IID)
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the gaps and the four numbers that they come from."""
        if subject.loss_name == "cross_entropy" and subject.n_outputs == 1:
            raise NotApplicable("cross-entropy of a single output is 0 whatever the model does")
        values: dict[str, Value] = {}
        if subject.loss_name == "cross_entropy":
            values.update(_errors(subject))
        values.update(_losses(subject))
        return values


def _errors(subject: Subject) -> dict[str, Value]:
    counts: dict[Split, tuple[int, int]] = {
        split: (int(subject.errors(split).sum()), len(subject.data[split][0])) for split in subject.data
    }
    (a, n), (b, m) = counts["train"], counts["test"]
    delta = (1.0 - CONFIDENCE) / 2.0
    low, high = clopper_pearson_lower(b, m, delta), clopper_pearson_upper(b, m, delta)
    return {
        "gap": Value.estimate(
            b / m - a / n,
            low - a / n,
            high - a / n,
            confidence=CONFIDENCE,
            note=f"population error minus training error, from {m:,} test points (Clopper-Pearson)",
        ),
        "train_error": Value.exact(a / n, note=f"on the sample: {a:,} of {n:,} wrong"),
        "test_error": Value.exact(b / m, note=f"on the sample: {b:,} of {m:,} wrong"),
    }


def _losses(subject: Subject) -> dict[str, Value]:
    nonnegative = subject.loss_name in ("cross_entropy", "mse")
    unit = "nats" if subject.loss_name == "cross_entropy" else ""
    losses: dict[Split, Tensor] = {split: _sample_losses(subject, split) for split in subject.data}
    train, test = float(losses["train"].mean()), float(losses["test"].mean())
    n, m = len(losses["train"]), len(losses["test"])
    low, high = mean_interval(losses["test"], CONFIDENCE)
    low = max(low, 0.0) if nonnegative else low
    return {
        "loss_gap": Value.estimate(
            test - train,
            low - train,
            high - train,
            confidence=CONFIDENCE,
            unit=unit,
            note=f"population loss minus training loss, from {m:,} test points; the interval is asymptotic",
        ),
        "train_loss": Value.exact(train, unit=unit, note=f"mean over the {n:,} training points"),
        "test_loss": Value.exact(test, unit=unit, note=f"mean over the {m:,} test points"),
    }


def _sample_losses(subject: Subject, split: Split) -> Tensor:
    """Return the loss of each row, shape (n,), float64."""
    output, target = subject.logits(split), subject.data[split][1]
    try:
        wide = target.double() if target.is_floating_point() else target
        losses = subject.per_sample_loss(output.double(), wide)
    except RuntimeError:  # a user's loss with tensors of its own, in the model's precision
        losses = subject.per_sample_loss(output, target).double()
    losses = losses.detach()
    broken = int((~torch.isfinite(losses)).sum())
    if broken:
        raise NotApplicable(f"the loss is NaN or infinite on {broken:,} of {len(losses):,} {split} samples")
    return losses


def mean_interval(sample: Tensor, confidence: float) -> tuple[float, float]:
    """Return a confidence interval for the mean of the distribution behind a sample.

    Student's interval after Hall's monotone cubic transformation, which removes the
    first-order effect of skewness; losses are skewed, and Student's interval alone
    stops short of their long tail.

    Parameters
    ----------
    sample : Tensor, shape (m,), float64
        Independent draws.
    confidence : float
        Nominal coverage, in (0, 1).

    Returns
    -------
    tuple of float
        Lower and upper end; infinite when the sample shows no spread to judge by.

    References
    ----------
    P. Hall, "On the removal of skewness by transformation", J. R. Stat. Soc. B 54 (1992).
    """
    m = len(sample)
    mean = float(sample.mean())
    centered = sample - mean
    variance = float(centered.square().mean())
    if m < 2 or variance <= (torch.finfo(sample.dtype).eps * abs(mean)) ** 2:
        return -math.inf, math.inf
    skewness = float(centered.pow(3).mean()) / variance**1.5
    quantile = float(student_t.ppf(0.5 + confidence / 2.0, m - 1)) / math.sqrt(m)
    scale = math.sqrt(variance * m / (m - 1))
    return mean - scale * _unskewed(quantile, skewness, m), mean - scale * _unskewed(-quantile, skewness, m)


def _unskewed(y: float, skewness: float, m: int) -> float:
    """Return s with s + g s^2 / 3 + g^2 s^3 / 27 + g / 6m = y, for skewness g."""
    if abs(skewness) < 1e-6:
        return y
    root = 1.0 + skewness * (y - skewness / (6.0 * m))
    return 3.0 / skewness * (math.copysign(abs(root) ** (1.0 / 3.0), root) - 1.0)
