"""How far shifts and deformations move pixels, Fourier moduli and scattering coefficients."""

from __future__ import annotations

import math
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from theodolite.analysis.deformation import Deformation
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.experiments.scattering_energy import crops
from theodolite.nn.scattering_energy import averages, shift_bound
from theodolite.nn.wavelet_families import meyer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, ANGLES, ORDER = 128, 4, 2
SCALES = (2, 3, 4, 5)
GRADIENTS = (0.01, 0.03, 0.1)
SHIFTS = (1, 2, 4, 8)
SAMPLES, DILATION = 1024, 0.04  # of the tones, and by how much they are dilated
TONES = (0.02, 0.04, 0.08, 0.16, 0.32)  # cycles a sample


class ScatteringStability(Experiment):
    """Scattering moves in proportion to the gradient of a deformation; Fourier moduli do not."""

    name = "scattering-stability"
    title = "What shifts and deformations move"
    statement = (
        r"Scattering with a tight bank and all samples kept is a contraction, moves by at most "
        r"$\max_\omega2|\sin(\omega\cdot c/2)||\hat\phi_J(\omega)|(\sum_p\|U[p]x\|^2)^{1/2}$ under a shift by $c$, and in "
        r"proportion to $\|\nabla\tau\|_\infty$ under a deformation; the Fourier modulus does not see shifts, but loses a "
        r"tone of high frequency to a small dilation. Photographs, each crop less its mean; deformations of their periodic "
        r"interpolants."
    )
    reference = "mallat2012group, bruna2013invariant"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Deform and shift crops of photographs at every scale, and dilate tones."""
        x = crops(SIDE)[:: 15 if fast else 5]
        x = x / x.flatten(1).norm(dim=1)[:, None, None]
        fields = 1 if fast else 3
        progress(f"{len(x)} crops, {fields} deformations of each of {len(GRADIENTS)} sizes")
        moved = {g: [bend(x, g, seed) for seed in range(fields)] for g in GRADIENTS}
        shifted = {c: x.roll(c, -1) for c in SHIFTS}
        curves: dict[str, dict[str, list[float]]] = {
            "pixels": changes(lambda z: z, x, moved, shifted),
            "Fourier modulus": changes(fourier_modulus, x, moved, shifted),
        }
        bounds: dict[str, list[float]] = {}
        for J in SCALES:
            progress(f"scattering over {2**J} pixels")
            bank = meyer((SIDE, SIDE), J, ANGLES)
            curves[f"J = {J}"] = changes(lambda z, b=bank: averages(b, z, ORDER)[0], x, moved, shifted)
            size = averages(bank, x, ORDER)[1].sqrt()
            bounds[f"J = {J}"] = [float((shift_bound(bank, (0, c)).high * size).mean()) for c in SHIFTS]
            # each input against its own bound
            curves[f"J = {J}"]["share of the bound"] = [
                float((change(lambda z, b=bank: averages(b, z, ORDER)[0], x, shifted[c])
                       / (shift_bound(bank, (0, c)).high * size)).max())
                for c in SHIFTS
            ]  # fmt: skip
        progress("tones")
        numbers = {
            "gradients": list(GRADIENTS),
            "shifts": list(SHIFTS),
            "curves": curves,
            "bounds": bounds,
            "tones": list(TONES),
            "dilated": dilated(),
            "crops": len(x),
            "fields": fields,
        }
        return Result(claims(numbers), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw changes against gradients, against shifts with their bounds, and against the frequency of a dilated tone."""
        left, middle, right = figure.subplots(1, 3)
        for i, (name, curve) in enumerate(numbers["curves"].items()):
            style = {"color": f"C{i}", "marker": "o", "ms": 3.5, "lw": 1.2}
            left.loglog(numbers["gradients"], curve["deformed"], label=name, **style)
            if name != "Fourier modulus":  # zero
                middle.loglog(numbers["shifts"], curve["shifted"], label=name, **style)
            if name in numbers["bounds"]:
                middle.loglog(numbers["shifts"], numbers["bounds"][name], "--", color=f"C{i}", lw=0.8)
        left.set(xlabel=r"$\|\nabla\tau\|_\infty$", ylabel=r"$\|S L_\tau x-Sx\|/\|x\|$", title="deformations")
        left.legend(fontsize=7, loc="lower right")
        middle.set(
            xlabel="shift, pixels", ylabel=r"$\|S T_c x-Sx\|/\|x\|$", title="shifts (dashed: proved bound)"
        )
        middle.set_xticks(numbers["shifts"], [str(c) for c in numbers["shifts"]], minor=False)
        middle.minorticks_off()
        middle.legend(fontsize=7)
        for name, values in numbers["dilated"].items():
            right.semilogx(numbers["tones"], values, "o-", ms=3.5, lw=1.2, label=name)
        right.set(
            xlabel="frequency of a tone, cycles a sample",
            ylabel="change / size",
            title=f"dilation by {100 * DILATION:g} %",
        )
        right.set_xticks(numbers["tones"], [f"{tone:g}" for tone in numbers["tones"]], minor=False)
        right.minorticks_off()
        right.set_ylim(0, 1.8)
        right.legend(fontsize=7)


def bend(x: Tensor, gradient: float, seed: int) -> Tensor:
    """Return images deformed by a random field that vanishes at their borders."""
    return Deformation.random((SIDE, SIDE), grad_inf=gradient, seed=seed).apply(x)


def fourier_modulus(x: Tensor) -> Tensor:
    """Return the modulus of the unitary Fourier transform of images."""
    return torch.fft.fft2(x, norm="ortho").abs()


def change(transform: Any, x: Tensor, other: Tensor) -> Tensor:
    """Return for each input how far its features move."""
    difference: Tensor = transform(other) - transform(x)
    return difference.flatten(1).norm(dim=1)


def changes(
    transform: Any, x: Tensor, moved: dict[float, list[Tensor]], shifted: dict[int, Tensor]
) -> dict[str, list[float]]:
    """Return mean changes by gradient and by shift of inputs of size 1, and the largest of all over that of the pixels."""
    deformed = [[change(transform, x, other) for other in others] for others in moved.values()]
    rolled = [change(transform, x, other) for other in shifted.values()]
    pixels = [(other - x).flatten(1).norm(dim=1) for others in moved.values() for other in others]
    ratios = [found / pixel for found, pixel in zip(chain.from_iterable(deformed), pixels, strict=True)]
    return {
        "deformed": [float(torch.stack(values).mean()) for values in deformed],
        "shifted": [float(values.mean()) for values in rolled],
        "of the pixels": [float(torch.stack(ratios).max())],
    }


def dilated() -> dict[str, list[float]]:
    """Return how far a dilation moves the features of tones under a window, relative to the tone's size."""
    u = torch.arange(SAMPLES, dtype=torch.float64) - SAMPLES / 2
    bank = meyer((SAMPLES,), 7)

    def tone(frequency: float, stretch: float) -> Tensor:
        v = u * (1.0 - stretch)
        wave: Tensor = torch.cos(2.0 * math.pi * frequency * v) * torch.exp(-0.5 * (v / (SAMPLES / 8)) ** 2)
        return wave

    features = {
        "Fourier modulus": lambda z: torch.fft.fft(z, norm="ortho").abs(),
        "scattering, J = 7": lambda z: averages(bank, z, ORDER)[0],
    }
    found: dict[str, list[float]] = {}
    for name, transform in features.items():
        pairs = [(tone(f, 0.0), tone(f, DILATION)) for f in TONES]
        found[name] = [float((transform(b) - transform(a)).norm() / a.norm()) for a, b in pairs]
    return found


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed."""
    curves, tones = numbers["curves"], numbers["dilated"]
    scattering = [curves[f"J = {J}"] for J in SCALES]
    share = max(max(curve["share of the bound"]) for curve in scattering)
    contraction = max(curve["of the pixels"][0] for curve in scattering)
    slopes = [curve["deformed"][0] / GRADIENTS[0] for curve in (curves["pixels"], *scattering)]
    growth = [
        math.log(curve["deformed"][-1] / curve["deformed"][0]) / math.log(GRADIENTS[-1] / GRADIENTS[0])
        for curve in scattering
    ]
    ones = [curve["shifted"][0] for curve in scattering]
    blind = max(curves["Fourier modulus"]["shifted"])
    least, most = tones["Fourier modulus"][-1], max(tones["scattering, J = 7"])
    return [
        Claim("no shift moves scattering beyond its proved bound", share <= 1.0, share),
        Claim("no deformation moves scattering more than the pixels", contraction <= 1.0, contraction),
        Claim(
            "each octave of averaging makes scattering less sensitive to a deformation",
            all(a > b for a, b in pairwise(slopes)),
            ", ".join(f"{slope:.2g}" for slope in slopes),
        ),
        Claim(
            "scattering moves in proportion to the gradient: the exponent is between 0.8 and 1.1",
            all(0.8 <= exponent <= 1.1 for exponent in growth),
            ", ".join(f"{exponent:.2f}" for exponent in growth),
        ),
        Claim(
            "each octave of averaging takes off at least a fifth of what a shift by one pixel moves",
            all(b < a / 1.25 for a, b in pairwise(ones)),
            ", ".join(f"{one:.2g}" for one in ones),
        ),
        Claim("the Fourier modulus does not see shifts", blind < 1e-12, blind),
        Claim(
            "a dilation moves the Fourier modulus of a high tone at least three times as far as any tone's scattering",
            least > 3.0 * most,
            least / most,
        ),
    ]
