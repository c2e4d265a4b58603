"""The top of the Hessian's spectrum, by Ritz values."""

from __future__ import annotations

from collections.abc import Mapping

from theodolite.theorems.base import Chart, Finding, Theorem
from theodolite.theorems.curvature import curvature
from theodolite.theorems.hypotheses import HAS_PARAMETERS
from theodolite.theorems.subject import Subject
from theodolite.value import Value


class HessianTop(Theorem):
    """Largest eigenvalues of the training objective's Hessian, bounded from inside."""

    code = "LAN001"
    title = "Top of the Hessian spectrum"
    chapter = "landscape"
    statement = (
        r"For orthonormal $V$, the eigenvalues of $V^\top H V$ interlace those of $H$: the largest is at "
        r"most $\lambda_{\max}(H)$, the smallest at least $\lambda_{\min}(H)$; for a unit vector $v$ some "
        r"eigenvalue lies in $\theta \pm \|Hv - \theta v\|$. $H$ is the Hessian of mean loss "
        r"plus $\frac{w}{2}\|W\|^2$; for piecewise linear networks, that of the current piece."
    )
    reference = "parlett1998symmetric"
    hypotheses = (HAS_PARAMETERS,)
    sensitive = frozenset({"rescaling"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return one-sided bounds of the extreme eigenvalues and an interval that holds one."""
        result = curvature(subject)
        bounds, note = result.bounds, result.note
        values = {
            "top_eigenvalue": Value.bound(lower=bounds.top, note=note),
            "eigenvalue_near_top": Value.bound(
                bounds.top - bounds.residual,
                bounds.top + bounds.residual,
                note="some eigenvalue lies in here, not necessarily the largest",
            ),
        }
        if bounds.second is not None:
            values["second_eigenvalue"] = Value.bound(
                lower=bounds.second, note="of the second-largest eigenvalue"
            )
        values["smallest_eigenvalue"] = Value.bound(upper=bounds.smallest, note=note)
        if bounds.top > 0.0:
            values["stable_step_size"] = Value.bound(
                upper=2.0 / bounds.top,
                note="with a larger one, gradient descent on these samples leaves a minimum this curved",
            )
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Return the Ritz values, ascending."""
        ritz = curvature(subject).bounds.ritz_values.tolist()
        labels = [str(i + 1) for i in range(len(ritz))]
        return Chart("bars", {"Ritz value": ritz}, labels, "Ritz value, ascending", "curvature", self.title)

    def advice(self, finding: Finding) -> str:
        """Return the largest step size that the curvature allows."""
        step = finding.values.get("stable_step_size")
        if step is None:
            return ""
        return f"gradient descent with steps above {step.high:.3g} is unstable along the sharpest direction"
