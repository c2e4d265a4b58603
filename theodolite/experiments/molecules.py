"""Energies of molecules from integrals that do not change when a molecule is turned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from theodolite.experiments import datasets
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.scattering3d import HarmonicScattering3D

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

SIDE, STEP = 32, 0.4  # grid points, and their distance in angstrom
WIDTH = 0.4  # of the Gaussians that stand for atoms, in angstrom
SCALES, DEGREES, POWERS = 2, 3, (0.5, 1.0, 2.0, 3.0)
CHARGES = {  # nuclear, and of the valence electrons
    "H": (1, 1), "Li": (3, 1), "Be": (4, 2), "B": (5, 3), "C": (6, 4), "N": (7, 5), "O": (8, 6), "F": (9, 7),
    "Na": (11, 1), "Al": (13, 3), "Si": (14, 4), "P": (15, 5), "S": (16, 6), "Cl": (17, 7),
}  # fmt: skip
FOLDS, REPEATS = 5, 3
PENALTIES = np.logspace(-8, 4, 25)
DRAWS = 2000  # of the bootstrap over molecules
SETS = ("mean", "counts", "order 1", "orders 1, 2", "counts + orders 1, 2")


class Molecules(Experiment):
    """Ridge regression on solid harmonic scattering against counting the atoms of each element."""

    name = "molecules"
    title = "Atomization energies from rotation invariants"
    statement = (
        r"A molecule is a sum of Gaussians $\rho$ at its atoms, once for nuclear, once for valence, once for core charges; its "
        r"features are $\int\rho^q$, $\int U_{j,l}\rho^q$ and $\int U_{j_2,l}U_{j_1,l}\rho^q$. They forget where it is and how "
        r"it is turned, and a linear function of them predicts what it takes to part its atoms, at 0 K."
    )
    reference = "eickenberg2017solid, curtiss1997assessment, staroverov2003comparative"
    needs = "ase"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Compute invariants, turn the molecules, and predict each molecule by a fit to others."""
        molecules = datasets.g2()
        energies = np.array([molecule.atomization for molecule in molecules])
        generator = np.random.default_rng(0)
        progress(f"{len(molecules)} molecules")
        features = invariants([density(molecule) for molecule in molecules])
        every = 4 if fast else 1
        progress("turned by the grid's symmetries")
        symmetric = max(grid_defect(density(molecule)) for molecule in molecules[:: 10 * every])
        progress("turned at random")
        turned = invariants([density(molecule, rotation(generator)) for molecule in molecules[::every]])
        scales = features.std(0)  # of which each feature changes by how much
        still, moved = (
            (t / np.where(scales > 0.0, scales, 1.0)).reshape(len(t), -1) for t in (features[::every], turned)
        )
        defects = np.linalg.norm(moved - still, axis=1) / np.linalg.norm(still, axis=1)
        progress("cross-validation")
        sets = feature_sets(molecules, features)
        predicted = {name: cross_validated(X, energies) for name, X in sets.items()}
        shifts = turned_predictions(features, turned, energies, every)
        numbers = {
            "molecules": [molecule.name for molecule in molecules],
            "energies": energies,
            "predicted": {name: values.mean(0) for name, values in predicted.items()},
            "errors": {
                name: summary(np.abs(values - energies).mean(0)) for name, values in predicted.items()
            },
            "differences": differences(predicted, energies),
            "grid_defect": symmetric,
            "turned_defect": summary(defects),
            "turned_energies": summary(np.abs(shifts)),
        }
        return Result(claims(numbers), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw predicted against measured energies, and the errors of all features."""
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
        energies = np.asarray(numbers["energies"])
        for name, color, size in (("counts", "0.65", 10), ("order 1", "C0", 10)):
            error = numbers["errors"][name]["mean"]
            left.scatter(
                energies,
                np.asarray(numbers["predicted"][name]) - energies,
                s=size,
                color=color,
                alpha=0.8,
                label=f"{name}: {error:.1f} on average",
            )
        left.axhline(0.0, color="k", lw=0.8)
        left.set(
            xlabel="measured atomization energy (kcal/mol)",
            ylabel="predicted - measured (kcal/mol)",
            title=f"{len(energies)} molecules, each predicted by others",
        )
        left.legend(fontsize=8)
        names = SETS[1:]
        for place, name in enumerate(names):
            error = numbers["errors"][name]
            color = "0.65" if name == "counts" else "C0"
            right.barh(place, error["mean"], color=color, height=0.6)
            right.plot([error["low"], error["high"]], [place, place], color="k", lw=1.5)
            right.text(1.0, place, name, va="center", fontsize=9, color="w" if color == "C0" else "k")
        mean = numbers["errors"]["mean"]["mean"]
        right.set_yticks([])
        right.invert_yaxis()
        right.set(
            xlabel="mean absolute error (kcal/mol), 95 % interval",
            title=f"by features; predicting the mean: {mean:.0f}",
        )


def density(molecule: datasets.Molecule, turn: Array | None = None) -> torch.Tensor:
    """Return the nuclear, valence and core charges of a molecule, smoothed, about its center: (3, n, n, n), per grid cell."""
    places = molecule.positions - molecule.positions.mean(0)
    if turn is not None:
        places = places @ turn.T
    grid = (np.arange(SIDE) - (SIDE - 1) / 2.0) * STEP
    waves = (
        np.exp(-0.5 * ((grid[:, None, None] - places) / WIDTH) ** 2) * STEP / (WIDTH * np.sqrt(2.0 * np.pi))
    )
    nuclear, valence = np.array([CHARGES[element] for element in molecule.elements], dtype=float).T
    weights = np.stack([nuclear, valence, nuclear - valence])
    axes = (waves[..., 0], waves[..., 1], waves[..., 2])
    return torch.from_numpy(np.einsum("ca,xa,ya,za->cxyz", weights, *axes, optimize=True)).float()


def invariants(densities: Sequence[torch.Tensor]) -> Array:
    """Return features (molecules, channels, 1 + paths (L + 1), powers): integrals of the density, then of its scattering."""
    transform = HarmonicScattering3D(
        SCALES, (SIDE,) * 3, L=DEGREES, integral_powers=POWERS, sampling="symmetric"
    )
    found = []
    for charges in densities:
        plain = torch.stack([charges.pow(q).sum((1, 2, 3)) for q in POWERS], -1)
        found.append(torch.cat([plain[:, None], transform(charges).flatten(1, 2)], 1))
    return torch.stack(found).double().numpy()


def feature_sets(molecules: Sequence[datasets.Molecule], features: Array) -> dict[str, Array]:
    """Return the tables (molecules, features) that are compared; none for the mean."""
    n = len(molecules)
    counts = np.array([[molecule.elements.count(element) for element in CHARGES] for molecule in molecules])
    first = features[:, :, : 1 + (SCALES + 1) * (DEGREES + 1)].reshape(n, -1)
    both = features.reshape(n, -1)
    tables = (np.zeros((n, 1)), counts, first, both, np.hstack([counts, both]))
    return {name: table.astype(np.float64) for name, table in zip(SETS, tables, strict=True)}


def fitted(X: Array, y: Array) -> Any:
    """Return the function of a ridge regression on standardized features; leave-one-out errors choose the penalty."""
    scaler = StandardScaler().fit(X)
    model = RidgeCV(PENALTIES).fit(scaler.transform(X), y)
    return lambda Z: model.predict(scaler.transform(Z))


def folds(n: int, repeat: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return what is trained on and what is predicted, by fold."""
    return list(KFold(FOLDS, shuffle=True, random_state=repeat).split(np.zeros(n)))


def cross_validated(X: Array, y: Array) -> Array:
    """Return predictions (repeats, molecules), each by a fit to the other folds."""
    found = np.zeros((REPEATS, len(y)))
    for repeat in range(REPEATS):
        for train, test in folds(len(y), repeat):
            found[repeat, test] = fitted(X[train], y[train])(X[test])
    return found


def turned_predictions(features: Array, turned: Array, y: Array, every: int) -> Array:
    """Return by how much predictions from order 1 move (kcal/mol) where a molecule that was not trained on is turned."""
    columns = 1 + (SCALES + 1) * (DEGREES + 1)
    still, moved = (t[:, :, :columns].reshape(len(t), -1) for t in (features, turned))
    found = np.zeros(len(moved))
    for train, test in folds(len(y), 0):
        predict = fitted(still[train], y[train])
        chosen = test[test % every == 0]
        if len(chosen):
            found[chosen // every] = predict(moved[chosen // every]) - predict(still[chosen])
    return found


def grid_defect(charges: torch.Tensor) -> float:
    """Return the largest relative change of a molecule's features under shifts, quarter turns and flips of the grid."""
    moved = [
        charges.roll((5, -3, 8), (1, 2, 3)),
        charges.rot90(1, (1, 2)),
        charges.rot90(1, (2, 3)).rot90(1, (1, 3)),
        charges.rot90(2, (1, 3)),
        charges.flip(1),
        charges.flip((1, 2, 3)),
    ]
    plain, *others = invariants([charges, *moved])
    return max(float(np.linalg.norm(other - plain) / np.linalg.norm(plain)) for other in others)


def rotation(generator: np.random.Generator) -> Array:
    """Return a uniformly random rotation."""
    basis, triangle = np.linalg.qr(generator.standard_normal((3, 3)))
    basis = basis * np.sign(np.diag(triangle))
    basis[:, 0] *= np.sign(np.linalg.det(basis))
    return basis


def summary(values: Array) -> dict[str, float]:
    """Return a mean over molecules with its 95 % interval, by the bootstrap."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def differences(predicted: dict[str, Array], y: Array) -> dict[str, dict[str, float]]:
    """Return by how much one set's error exceeds another's, over the same molecules (kcal/mol)."""
    errors = {name: np.abs(values - y).mean(0) for name, values in predicted.items()}
    pairs = (("counts", "order 1"), ("order 1", "orders 1, 2"), ("orders 1, 2", "counts + orders 1, 2"))
    return {f"{one} - {two}": summary(errors[one] - errors[two]) for one, two in pairs}


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}] kcal/mol"


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed."""
    errors, gains = numbers["errors"], numbers["differences"]
    gain, second, counts = gains.values()
    turned, moved = numbers["turned_defect"], numbers["turned_energies"]
    return [
        Claim(
            "shifts, quarter turns and flips of the grid change the features by less than 5e-6 of their norm",
            numbers["grid_defect"] < 5e-6,
            numbers["grid_defect"],
        ),
        Claim(
            "other rotations change them, in units of their spread, by less than 1 % on average: the grid is coarse",
            turned["high"] < 0.01,
            f"{100 * turned['mean']:.3f} % [{100 * turned['low']:.3f}, {100 * turned['high']:.3f}]",
        ),
        Claim(
            "and what is predicted by less than the error of the prediction",
            moved["high"] < errors["order 1"]["low"],
            _interval(moved),
        ),
        Claim(
            "counting atoms predicts to within a fifth of what the mean does",
            errors["counts"]["high"] < 0.2 * errors["mean"]["low"],
            _interval(errors["counts"]),
        ),
        Claim("scattering of order 1 errs by less than counting atoms", gain["low"] > 0.0, _interval(gain)),
        Claim(
            "order 2 gains nothing on top that 148 molecules could show",
            second["low"] <= 0.0,
            _interval(second),
        ),
        Claim("nor do counts of atoms beside both orders", counts["low"] <= 0.0, _interval(counts)),
    ]
