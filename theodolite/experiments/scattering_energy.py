"""Where a scattering cascade keeps the energy of photographs, order by order."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.scattering_energy import energies
from theodolite.nn.wavelet_families import meyer
from theodolite.nn.wavelets import Bank, morlet2d

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, ANGLES, ORDER = 128, 4, 3
SMALL = 32  # side of the crops on which all paths are taken
SCALES = (1, 2, 3, 4, 5)


class ScatteringEnergy(Experiment):
    """Energy is conserved exactly by all paths of tight banks, and most of it is in few orders."""

    name = "scattering-energy"
    title = "Where scattering keeps the energy of photographs"
    statement = (
        r"With a bank whose energy is 1 at every frequency, $\sum_{m\le M}\|S_mx\|^2+\|U_{M+1}x\|^2=\|x\|^2$ for every $M$. "
        r"Transforms take only paths of wavelets that get coarser; how much that loses, and how few orders hold the rest, is "
        r"measured on two photographs, each crop less its mean."
    )
    reference = "mallat2012group, bruna2013invariant"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Check the identity over all paths, then measure shares by scale over paths that get coarser."""
        progress("all paths of three banks")
        small = crops(SMALL)[:: 60 if fast else 20]
        identity = {name: exactness(bank, small) for name, bank in tight_banks().items()}
        x = crops(SIDE)[:: 10 if fast else 2]
        shares, missing = [], []
        for J in SCALES:
            progress(f"averages over {2**J} pixels, {len(x)} crops")
            found = energies(meyer((SIDE, SIDE), J, ANGLES), x, ORDER, increasing=True)
            shares.append((found.orders / found.total[:, None]).mean(0).tolist())
            missing.append(float(found.missing.mean()))
        waves = {"Morlet": morlet2d((SIDE, SIDE), 3, 8), "Meyer": meyer((SIDE, SIDE), 3, 8)}
        numbers = {
            "identity": identity,
            "crops": len(x),
            "scales": list(SCALES),
            "shares": shares,
            "missing": missing,
            "energy": {name: radial(bank) for name, bank in waves.items()},
        }
        return Result(claims(identity, shares, missing), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw shares by scale, their decay by order, and the energy of two banks by frequency."""
        left, middle, right = figure.subplots(1, 3)
        scales, shares = numbers["scales"], np.asarray(numbers["shares"])
        bottom = np.zeros(len(scales))
        parts = [(f"order {m}", shares[:, m]) for m in range(shares.shape[1])]
        parts.append(("paths left out", np.asarray(numbers["missing"])))
        for i, (label, share) in enumerate(parts):
            color = f"C{i}" if label.startswith("order") else "0.75"
            left.bar(scales, 100 * share, bottom=100 * bottom, label=label, color=color, width=0.7)
            bottom += share
        left.set(
            xlabel="J", ylabel="share of the energy, %", title=f"{numbers['crops']} crops of photographs"
        )
        left.set_ylim(0, 135)
        left.set_xticks(scales)
        left.set_yticks(range(0, 101, 20))
        left.legend(fontsize=7, ncols=2, loc="upper center")
        for J, row in zip(scales, shares, strict=True):
            kept = [100 * share for share in row if share > 0]
            middle.semilogy(range(len(kept)), kept, "o-", ms=4, lw=1, label=f"J = {J}")
        middle.set(xlabel="order", ylabel="share of the energy, %", title="decay by order")
        middle.set_xticks(range(shares.shape[1]))
        middle.legend(fontsize=7)
        for i, (name, (frequency, least, most)) in enumerate(numbers["energy"].items()):
            right.fill_between(frequency, least, most, alpha=0.3, color=f"C{i}", lw=0)
            right.plot(frequency, most, color=f"C{i}", lw=1.2, label=name)
            right.plot(frequency, least, color=f"C{i}", lw=1.2)
        right.set(xlabel="frequency, radians a pixel", ylabel="energy of the bank", title="J = 3, L = 8")
        right.set_ylim(0, 1.25)
        right.legend(fontsize=8, loc="lower left")


def tight_banks() -> dict[str, Bank]:
    """Return three banks whose energy is 1 at every frequency."""
    morlet = morlet2d((SMALL, SMALL), 2, 3)
    return {
        "Meyer": meyer((SMALL, SMALL), 2, 3),
        "Morlet, divided by the root of its energy": morlet.normalized("tight"),
        "Morlet, completed by a high-pass": morlet.completed(),
    }


def crops(side: int) -> Tensor:
    """Return all disjoint square crops (n, side, side) of scikit-learn's two photographs in gray, each less its mean."""
    found = []
    for photograph in load_sample_images().images:
        gray = torch.from_numpy(np.asarray(photograph, dtype=np.float64)).mean(-1) / 255.0
        rows, columns = (n // side for n in gray.shape)
        tiles = gray[: rows * side, : columns * side].unflatten(0, (rows, side)).unflatten(2, (columns, side))
        found.append(tiles.transpose(1, 2).flatten(0, 1))
    x = torch.cat(found)
    return x - x.mean((1, 2), keepdim=True)


def exactness(bank: Bank, x: Tensor) -> list[float]:
    """Return the largest relative defect of the identity for M = 0, ..., over all paths."""
    return [float(energies(bank, x, order).missing.abs().max()) for order in range(ORDER + 1)]


def radial(bank: Bank, bins: int = 64) -> tuple[list[float], list[float], list[float]]:
    """Return frequencies up to pi, and the least and largest energy of a bank about each."""
    k = 2.0 * torch.pi * torch.fft.fftfreq(SIDE, dtype=torch.float64)
    size, energy = torch.hypot(k[:, None], k), bank.energy()
    edges = torch.linspace(0.0, torch.pi, bins + 1, dtype=torch.float64)
    rings = [energy[(size >= a) & (size <= b)] for a, b in pairwise(edges)]
    return (
        (0.5 * (edges[1:] + edges[:-1])).tolist(),
        [float(ring.min()) for ring in rings],
        [float(ring.max()) for ring in rings],
    )


def claims(identity: dict[str, list[float]], shares: list[list[float]], missing: list[float]) -> list[Claim]:
    """Return what is claimed."""
    defect = max(max(row) for row in identity.values())
    second, third = [row[2] for row in shares[1:]], max(row[3] for row in shares)
    two = min(row[0] + row[1] for row in shares)
    grows = all(a < b for a, b in pairwise(second))
    return [
        Claim(
            f"all paths of three tight banks conserve energy to rounding, for every M up to {ORDER}",
            defect <= 1e-12,
            defect,
        ),
        Claim("orders 0 and 1 hold more than 80 % at every scale", two > 0.8, two),
        Claim(
            "the share of order 2 grows with the scale",
            grows,
            ", ".join(f"{100 * share:.2g} %" for share in second),
        ),
        Claim("order 3 holds less than 2 % at every scale", third < 0.02, third),
        Claim(
            "paths that do not get coarser, which are left out, hold less than 5 %",
            max(missing) < 0.05,
            max(missing),
        ),
    ]
