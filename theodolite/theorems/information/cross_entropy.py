"""Cross-entropy on held-out data, and what it proves about conditional entropy and information."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.analysis.concentration import empirical_bernstein, entropy_lower_bound, plug_in_entropy
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.hypotheses import CLASSIFICATION, IID, TEST_SPLIT
from theodolite.theorems.subject import Split, Subject
from theodolite.value import Value

DELTA = 0.05  # failure probability of all bounds of the finding together


def mixed_log_loss(logits: Tensor, y: Tensor, floor: float) -> Tensor:
    """Return -log of the mixture (1 - C floor) q + floor at the true class, shape (n,), in nats.

    Parameters
    ----------
    logits : Tensor, shape (n, C)
    y : Tensor of int64, shape (n,)
    floor : float
        In (0, 1/C): no class gets less, so that the loss is at most -log(floor).
    """
    classes = logits.shape[1]
    probability = logits.double().softmax(1).gather(1, y[:, None])[:, 0]
    return -torch.log((1.0 - classes * floor) * probability + floor)


def mixture_floor(n: int, classes: int, delta: float) -> float:
    """Return a floor for :func:`mixed_log_loss` that depends on no outcome of the n draws.

    Mixing costs about ``C floor``, and the range it leaves costs about ``7 log(1/floor)
    log(2/delta) / 3n``: this is where the two stop trading off, up to a logarithm.
    """
    return min(0.5, 7.0 * math.log(2.0 / delta) / (3.0 * n)) / classes


def conditional_entropy_upper(losses: Tensor, floor: float, delta: float, classes: int) -> float:
    """Return an upper bound of H(Y|X) in nats from i.i.d. mixed losses (n,), by empirical Bernstein."""
    largest = 1.0 - (classes - 1) * floor
    width = math.log(largest / floor)
    return float(losses.mean()) + empirical_bernstein(losses.numpy(), width, delta)


class CrossEntropy(Theorem):
    """Held-out cross-entropy bounds the conditional entropy of the labels from above."""

    code = "INF001"
    title = "Cross-entropy and H(Y|X)"
    chapter = "information"
    statement = (
        r"For every predictor $q$ fixed before the test data, $\mathbb E[-\log q(Y|X)] = H(Y|X) + "
        r"\mathbb E_X \mathrm{KL}(p \| q) \ge H(Y|X)$. With $q$ mixed with the uniform distribution the "
        r"loss is bounded, and by the empirical Bernstein inequality $H(Y|X) \le$ its test mean plus $h$ with "
        r"probability $1 - \delta$; hence $I(f(X);Y) \ge H(Y) - \mathbb E[-\log q]$."
    )
    reference = "maurer2009empirical"
    hypotheses = (CLASSIFICATION, TEST_SPLIT, IID)
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the bounds, which hold together, and the cross-entropies of both samples."""
        logits, y = subject.logits("test"), subject.data["test"][1]
        n, classes = logits.shape
        if n < 2:
            raise NotApplicable("a confidence bound needs at least two test samples")
        part = DELTA / 2
        floor = mixture_floor(n, classes, part)
        upper = conditional_entropy_upper(mixed_log_loss(logits, y, floor), floor, part, classes)
        counts = np.bincount(y.numpy(), minlength=classes)
        lower = entropy_lower_bound(counts, part)
        together = (
            f"{n:,} test samples; all bounds of this finding hold together with {100 * (1 - DELTA):g} %"
        )
        everything = math.log(classes)
        return {
            "conditional_entropy": Value.bound(
                upper=min(upper, everything),
                unit="nats",
                confidence=1.0 - part,
                note=f"H(Y|X), no predictor has a smaller expected cross-entropy; {together}",
            ),
            "information": Value.bound(
                lower=max(0.0, lower - upper),
                unit="nats",
                confidence=1.0 - DELTA,
                note="I(f(X);Y), what the outputs tell about the label; the inputs tell at least as much",
            ),
            "label_entropy": Value.bound(
                lower=lower, upper=everything, unit="nats", confidence=1.0 - part, note="H(Y)"
            ),
            "test_cross_entropy": Value.exact(
                _mean_loss(subject, "test"), unit="nats", note=f"mean over the {n:,} test samples themselves"
            ),
            "train_cross_entropy": Value.exact(
                _mean_loss(subject, "train"),
                unit="nats",
                note=f"mean over the {subject.n:,} training samples",
            ),
            "test_label_entropy": Value.exact(
                plug_in_entropy(counts), unit="nats", note="of the class frequencies among the test samples"
            ),
        }

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return both cross-entropies beside the entropy of the labels."""
        names = {
            "training": "train_cross_entropy",
            "test": "test_cross_entropy",
            "class frequencies": "test_label_entropy",
        }
        heights = [values[name].high for name in names.values()]
        if not all(map(math.isfinite, heights)):
            return None
        return Chart(
            "bars", {"nats": heights}, list(names), "", "nats", "cross-entropy, and entropy of labels"
        )

    def advice(self, finding: Finding) -> str:
        """Return whether the probabilities are worse than class frequencies."""
        if not finding.values:
            return ""
        loss, labels = finding.values["test_cross_entropy"].high, finding.values["test_label_entropy"].high
        if loss > labels:
            return (
                f"the predicted probabilities cost {loss:.3g} nats on test data, the class frequencies alone "
                f"{labels:.3g}: train longer or, if the error is small, calibrate (temperature scaling)"
            )
        return ""


def _mean_loss(subject: Subject, split: Split) -> float:
    """Return the mean cross-entropy in float64; infinite when a true class got probability 0."""
    return float(F.cross_entropy(subject.logits(split).double(), subject.data[split][1]))
