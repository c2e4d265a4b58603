"""STA002: how far small deformations of the input move the output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.analysis import relative_stability as probe
from theodolite.analysis.deformation import elementary_factor, gradient_norms
from theodolite.analysis.deformation_draws import draw_coefficients
from theodolite.analysis.deformation_norms import supremum
from theodolite.analysis.sample_mean import mean_of
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.deformable import Deformable, deformable
from theodolite.theorems.generalization.lipschitz import network_bounds
from theodolite.theorems.hypotheses import REAL_INPUT, require_gradients
from theodolite.value import Value, format_number

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

SCALES = (0.02, 0.05, 0.1)
CUT = 3
MOST_INPUTS = 64
MOST_CLIMBED = 8
STEPS = 10
# multiplications and additions of each of the two parts: some seconds on two cores
BUDGET = 2e10


class DeformationSlope(Theorem):
    r"""How far deformations with small gradients move the output, beside noise that moves the input as far.

    Deformations are sums of sines that vanish at the border, each scaled to the stated
    :math:`\|\nabla\tau\|_\infty` (certified to a relative 1e-6), every input with one of its own.  The slope is the
    output's relative change over that size.  ``worst_slope`` is what gradient ascent over the fields found:
    it bounds the supremum from inside and certifies nothing.  Where the network has a certified
    Lipschitz constant, ``slope_bound`` bounds the mean measured slope by that constant times the pixels'
    change, and ``interpolant_bound`` the constant times the change of the periodic trigonometric interpolant in
    :math:`L^2` by the elementary inequality, for each of the fields measured.
    """

    code = "STA002"
    title = "Deformation slope"
    chapter = "stability"
    statement = (
        r"$\|f(L_\tau x)-f(x)\|\le\mathrm{Lip}(f)\,\|L_\tau x-x\|$, and on the periodic interpolant "
        r"$\|L_\tau x-x\|_2\le\frac{2}{1+\sqrt{1-a}}\,\|\tau\|_\infty\|\nabla x\|_2$ with "
        r"$a=d\,\|\nabla\tau\|_{\max}<1$. The slope $\|f(L_\tau x)-f(x)\|/(\|f(x)\|\,\|\nabla\tau\|_\infty)$ is measured."
    )
    reference = "mallat2012group, wiatowski2018"
    hypotheses = (REAL_INPUT,)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the mean slope, the worst found, what is proved of it, noise's slope, and every scale's."""
        what = deformable(subject)
        size = int(min(MOST_INPUTS, max(4, BUDGET / (3.0 * len(SCALES) * what.flops))))
        rows, _ = subject.sample(size, "STA002/inputs")
        x = what.layout.images(rows)
        base = probe.outputs(what.network, x, subject.batch_size)
        length = probe.norms(base)
        seen = length > 0.0
        if not bool(seen.any()):
            raise NotApplicable(
                "the output is zero at every input of the sample, so nothing is relative to it"
            )
        x, length, base = x[seen.to(x.device)], length[seen], base[seen.to(x.device)]
        d = len(what.layout.sizes)
        drawn = draw_coefficients(d, CUT, len(x), subject.generator("STA002/fields"), decay=True)
        unit = probe.unit_fields(x, drawn)
        rounding = math.sqrt(torch.finfo(x.dtype).eps)
        sample = f"{len(x):,} of {subject.n:,} training inputs"
        noise_draws = subject.generator("STA002/noise")
        slopes: dict[str, Value] = {}
        noise: dict[str, Value] = {}
        for scale in SCALES:
            response = probe.respond(what.network, x, unit, scale, what.interpolation, subject.batch_size)
            about = f"{sample}, a random field of gradient {scale:g} each, by {what.how}"
            slopes[f"slope[{scale:g}]"] = mean_of(
                response.change / length / scale, rounding=rounding / scale, what=about
            )
            noisy = x + probe.noise_like(x, response.moved, noise_draws)
            moved = probe.norms(probe.outputs(what.network, noisy, subject.batch_size) - base)
            noise[f"noise_slope[{scale:g}]"] = mean_of(
                moved / length / scale,
                rounding=rounding / scale,
                what=f"{sample}, noise as large as a deformation of gradient {scale:g} makes it",
            )
        last = f"slope[{SCALES[-1]:g}]"
        values = {"slope": slopes[last], "noise_slope": noise[f"noise_{last}"]}
        values |= _worst(subject, what, x, length, response)
        values |= _proved(subject, what, x, length, response)
        return values | slopes | noise

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Draw the mean slopes by scale, of deformations and of noise."""
        labels = [f"{scale:g}" for scale in SCALES]
        series = {
            name: [float(values[f"{key}[{label}]"].value or 0.0) for label in labels]
            for name, key in (("deformations", "slope"), ("noise of their size", "noise_slope"))
        }
        return Chart("line", series, labels, "gradient of the deformation", "relative change per gradient")

    def advice(self, finding: Finding) -> str:
        """Say how far the worst found is from the typical where that matters."""
        mean, worst = finding.values.get("slope"), finding.values.get("worst_slope")
        if mean is None or worst is None or not mean.value or worst.low < 3.0 * mean.high:
            return ""
        ratio = format_number(worst.low / mean.value)
        return f"The worst deformation found moves the output {ratio} times as far as the mean of random ones as steep."


def _worst(
    subject: Subject, what: Deformable, x: Tensor, length: Tensor, response: probe.Response
) -> dict[str, Value]:
    climbed = 0
    if _has_gradients(subject, what, x):
        climbed = int(min(MOST_CLIMBED, len(x), max(1, BUDGET / (3.0 * (STEPS + 1) * what.flops))))
    scale = response.grad_inf
    largest = float((response.change / length).max())
    if climbed:
        # the inputs that random fields move most have the most to show
        order = (response.change / length).argsort(descending=True, stable=True)[:climbed]
        some = x[order.to(x.device)]
        found = probe.ascend(
            what.network,
            some,
            response.coefficients[order],
            scale,
            steps=STEPS,
            interpolation=what.interpolation,
        )
        top = probe.respond(
            what.network, some, probe.unit_fields(some, found), scale, what.interpolation, subject.batch_size
        )
        largest = max(largest, float((top.change / length[order]).max()))
    how = (
        f"by ascent on {climbed} inputs"
        if climbed
        else "among random fields (the forward records no gradients)"
    )
    note = f"largest found {how}, gradient at most {scale:g}; from inside, it bounds nothing from above"
    return {"worst_slope": Value.bound(lower=largest / scale, note=note)}


def _has_gradients(subject: Subject, what: Deformable, x: Tensor) -> bool:
    try:
        require_gradients(subject)
    except NotApplicable:
        return False
    with torch.enable_grad():
        return bool(what.network(x[:2].detach().requires_grad_()).requires_grad)


def _proved(
    subject: Subject, what: Deformable, x: Tensor, length: Tensor, response: probe.Response
) -> dict[str, Value]:
    bounds = network_bounds(subject)
    if bounds.reason:
        return {}
    scale = response.grad_inf
    rounding = math.sqrt(torch.finfo(x.dtype).eps) * length
    excess = response.change - bounds.upper * response.moved * (1.0 + 1e-6) - rounding
    if float(excess.max()) > 0.0:
        raise ArithmeticError(f"a change exceeds what the Lipschitz constant {bounds.upper!r} allows")
    proved = float((bounds.upper * response.moved / length / scale).mean())
    values = {
        "slope_bound": Value.bound(
            upper=proved,
            confidence=bounds.confidence,
            note=f"of the mean slope over these inputs and fields of gradient {scale:g}: the network's Lipschitz "
            "constant times the change of the pixels",
        )
    }
    if what.interpolation == "fourier":
        tau, grad, entry = (
            supremum(what.layout.sizes, response.coefficients, "sine", name)[1]
            for name in ("tau_inf", "grad_inf", "grad_max")
        )
        d = len(what.layout.sizes)
        factors = torch.tensor(
            [elementary_factor(g, e, d) for g, e in zip(grad.tolist(), entry.tolist(), strict=True)],
            dtype=torch.float64,
        )
        elementary = factors * tau * gradient_norms(x).cpu() * (1.0 + 1e-12)
        values["interpolant_bound"] = Value.bound(
            upper=float((bounds.upper * elementary / length / scale).mean()),
            confidence=bounds.confidence,
            note="of the Lipschitz constant times the change in L2 of the inputs' periodic trigonometric "
            "interpolants, by the elementary inequality; the pixels' change approximates that one",
        )
    return values
