"""GEN001: the error on new data, bounded by the errors on held-out data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from theodolite.analysis.binomial import clopper_pearson_upper
from theodolite.theorems.base import Finding, Theorem
from theodolite.theorems.hypotheses import CLASSIFICATION, IID, TEST_SPLIT
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

DELTA = 0.05


class HeldOutBound(Theorem):
    """Clopper-Pearson upper bound on the population error from a held-out sample.

    The one bound on the error of a trained network that needs nothing of the network:
    every other bound is to be compared with it.  A tie for the largest output counts
    as an error, so nothing depends on how ties are broken.
    """

    code = "GEN001"
    title = "Test-set bound"
    chapter = "generalization"
    statement = (
        r"With $k$ errors on $m$ independent draws that served no choice, with probability at least "
        r"$1-\delta$: $R(f) \le \mathrm{Beta}^{-1}(1-\delta;\, k+1,\, m-k)$, and $R(f)\le 1$ if $k=m$."
    )
    reference = "clopper1934interval, langford2005tutorial"
    hypotheses = (CLASSIFICATION, TEST_SPLIT, IID)
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the bound and the error on the sample."""
        wrong = subject.errors("test")
        k, m = int(wrong.sum()), len(wrong)
        note = f"{k:,} of {m:,} wrong"
        counted = {"errors": k, "points": m}
        return {
            "error_upper": Value.bound(
                upper=clopper_pearson_upper(k, m, DELTA), confidence=1 - DELTA, witness=counted, note=note
            ),
            "test_error": Value.exact(k / m, witness=counted, note=f"on the sample: {note}"),
        }

    def advice(self, finding: Finding) -> str:
        """Say how much of the bound is the size of the sample."""
        if not finding.values:
            return ""
        upper, error = finding.values["error_upper"].high, finding.values["test_error"].high
        if upper <= 2.0 * error:
            return ""
        return "More than half of the bound is the size of the test set: more test points would lower it."
