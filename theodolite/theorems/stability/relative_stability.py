"""STA005: relative stability, deformations against noise of the same size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from theodolite.analysis import relative_stability as probe
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.deformable import deformable
from theodolite.theorems.hypotheses import REAL_INPUT
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

DISPLACEMENTS = (1.0, 0.5)
FIELDS = 2
MOST_INPUTS = 100
# multiplications and additions in all: some seconds on two cores
BUDGET = 2e10


class RelativeStability(Theorem):
    r"""The mean squared change of the output under deformations over that under noise of the same size.

    Deformations of greatest entropy with a root mean squared displacement of one pixel and of half a
    pixel; noise of uniform direction and of the norm that deformations change an input by on average.  Below 1
    the network resists deformations more than noise.  The interval is the bootstrap's over inputs.
    """

    code = "STA005"
    title = "Relative stability to deformations"
    chapter = "stability"
    statement = (
        r"$R_f=\langle\|f(L_\tau x)-f(x)\|^2\rangle_{x,\tau}\,/\,\langle\|f(x+\eta)-f(x)\|^2\rangle_{x,\eta}$, "
        r"$\|\eta\|=\langle\|L_\tau x-x\|\rangle$."
    )
    reference = "petrini2021relative"
    hypotheses = (REAL_INPUT,)
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the ratio at a displacement of one pixel, and at each displacement."""
        what = deformable(subject)
        if subject.n < 2:
            raise NotApplicable("an interval over inputs needs at least two of them")
        work = what.flops * (1.0 + 2.0 * FIELDS) * len(DISPLACEMENTS)
        rows, _ = subject.sample(int(min(MOST_INPUTS, max(8, BUDGET / work))), "STA005/inputs")
        x = what.layout.images(rows)
        if not float(probe.norms(x - x.flatten(2).mean(2).view(*x.shape[:2], *[1] * (x.ndim - 2))).max()):
            raise NotApplicable("every input of the sample is constant in space: deformations do not move it")
        seed = int(subject.generator("STA005").initial_seed() % 2**31)
        values = {
            f"relative_stability[{delta:g}]": probe.relative_stability(
                what.network,
                x,
                displacement=delta,
                fields=FIELDS,
                interpolation=what.interpolation,
                batch_size=subject.batch_size,
                seed=seed,
            )
            for delta in DISPLACEMENTS
        }
        return {"relative_stability": next(iter(values.values())), **values}

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Draw the intervals by displacement."""
        found = {name[19:-1]: v for name, v in values.items() if "[" in name and v.kind == "estimate"}
        if not found:
            return None
        series = {"lower": [v.low for v in found.values()], "upper": [v.high for v in found.values()]}
        return Chart("intervals", series, list(found), "displacement in pixels", "relative stability")

    def advice(self, finding: Finding) -> str:
        """Say what lowers the ratio where it is above 1."""
        ratio = finding.values.get("relative_stability")
        if ratio is None or ratio.kind != "estimate" or ratio.low <= 1.0:
            return ""
        return "Deformations of a pixel move the output more than noise of their size does: try them as data augmentation."
