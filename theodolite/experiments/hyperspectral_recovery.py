"""Indian Pines from a tenth of its entries: completion by a matrix of low rank, with a closed gap."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds

from theodolite.estimators import MatrixCompletion
from theodolite.experiments import datasets
from theodolite.experiments.base import Claim, Experiment, Progress, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OBSERVED = 0.1
HELD_OUT = 0.1  # of the observed entries, to choose alpha
SHARES = (0.1, 0.06, 0.04, 0.025, 0.016)  # of the least alpha whose optimum is zero
TOL, LOOSE = 1e-4, 1e-2  # of the fit that counts, and of those that choose alpha
CROP = 32  # rows and columns of the image, if fast
BAND = 29  # that is drawn
METHODS = {
    "completion": "matrix completion",
    "linear": "linear interpolation",
    "nearest": "nearest pixel",
    "mean": "mean of the band",
}


class HyperspectralRecovery(Experiment):
    """A completion with a certificate against interpolation within each band."""

    name = "hyperspectral-recovery"
    title = "A hyperspectral image from a tenth of its entries, with a certified gap"
    statement = (
        r"A row of $X$ is a pixel and a column a spectral band. With a tenth $M$ of the entries, $\frac12\|M\odot(X-Z)\|_F^2"
        r"+\alpha\|Z\|_*$ is minimized; the gap $(P-D)/P$ to the dual bound proves that no matrix $Z$, of any rank, "
        r"has an objective lower by more. That the optimum is near the true image is measured on the entries "
        r"that were not seen."
    )
    reference = "haeffele2015global"
    needs: ClassVar[str | None] = "tensorly"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Complete the image, or a crop of it if fast."""
        progress("reading the image")
        cube, _ = datasets.indian_pines()
        if fast:
            cube = cube[:CROP, :CROP]
        X = cube.reshape(-1, cube.shape[2])
        generator = np.random.default_rng(0)
        seen = generator.random(X.shape) < OBSERVED
        means = np.where(seen, X, 0.0).sum(0) / seen.sum(0)
        rows, cols = np.nonzero(seen)
        entries = X[rows, cols] - means[cols]
        held_out = generator.random(len(entries)) < HELD_OUT
        progress("choosing alpha")
        share, validation = choose(rows, cols, entries, X.shape, held_out)
        progress("completing")
        start = time.process_time()
        whole = coo_array((entries, (rows, cols)), shape=X.shape)
        alpha = share * least_zero(whole)
        model = MatrixCompletion(alpha=alpha, tol=TOL).fit(whole)
        seconds = time.process_time() - start
        progress("interpolating")
        found = {"completion": model.complete() + means, "mean": np.broadcast_to(means, X.shape)}
        found |= interpolated(X, seen, cube.shape[:2])
        errors = {name: float(relative(Z, X, ~seen)) for name, Z in found.items()}
        peak = float(X.max())
        rms = float(np.sqrt(np.square(X[~seen]).mean()))
        image = {name: found[name][:, BAND].reshape(cube.shape[:2]) for name in ("completion", "linear")}
        numbers = {
            "shape": list(cube.shape),
            "observed": int(seen.sum()),
            "validation": validation,
            "share": share,
            "alpha": alpha,
            "objective": model.objective_,
            "dual_bound": model.dual_bound_,
            "gap": model.gap_,
            "verdict": model.certificate_.verdict,
            "confidence": model.certificate_.confidence,
            "rank": model.rank_,
            "cpu_seconds": seconds,
            "relative_errors": errors,
            "peak": peak,
            "psnr": {name: 20.0 * math.log10(peak / (error * rms)) for name, error in errors.items()},
            "by_band": {name: relative(found[name], X, ~seen, axis=0) for name in ("completion", "linear")},
            "band": BAND,
            "images": {
                "truth": cube[:, :, BAND],
                "observed": np.where(seen, X, np.nan)[:, BAND].reshape(cube.shape[:2]),
                **{name: np.round(picture, 1) for name, picture in image.items()},
            },
        }
        return Result(claims(numbers), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw one band in five ways, and the error of every band."""
        figure.set_size_inches(9.0, 6.2)
        axes = figure.subplots(2, 3).ravel()
        images = {name: np.asarray(image, dtype=float) for name, image in numbers["images"].items()}
        low, high = np.percentile(images["truth"], [1.0, 99.0])
        errors, psnr = numbers["relative_errors"], numbers["psnr"]
        titles = {
            "truth": f"truth, band {numbers['band'] + 1}",
            "observed": "observed: a tenth (white: missing)",
        }
        for name in ("linear", "completion"):
            titles[name] = (
                f"{METHODS[name]}; all bands:\nerror {100 * errors[name]:.1f} %, {psnr[name]:.1f} dB"
            )
        for ax, name in zip(axes, ("truth", "observed", "linear", "completion"), strict=False):
            ax.imshow(images[name], cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            ax.set_title(titles[name], fontsize=9)
        off = axes[4].imshow(
            np.abs(images["completion"] - images["truth"]), cmap="magma", vmin=0.0, vmax=0.25 * (high - low)
        )
        axes[4].set_title(
            f"size of the completion's error\n(colors end at {0.25 * (high - low):.0f})", fontsize=9
        )
        figure.colorbar(off, ax=axes[4], shrink=0.8)
        for ax in axes[:5]:
            ax.set(xticks=[], yticks=[])
        for name, color in (("linear", "C7"), ("completion", "C0")):
            by_band = np.asarray(numbers["by_band"][name])
            axes[5].semilogy(
                np.arange(1, len(by_band) + 1), by_band, color=color, lw=1.2, label=METHODS[name]
            )
        axes[5].set(xlabel="band", title="relative error on entries not seen")
        axes[5].title.set_fontsize(9)
        axes[5].legend(fontsize=8)
        figure.suptitle(
            f"certified gap {numbers['gap']:.1e} at rank {numbers['rank']}: no matrix of any rank has an objective "
            "lower by more",
            fontsize=9,
        )


def least_zero(matrix: coo_array) -> float:
    """Return the least alpha whose optimum is zero, the largest singular value of what was observed."""
    start = np.ones(min(matrix.shape))
    return float(svds(matrix.tocsr(), k=1, v0=start, return_singular_vectors=False)[0])


def choose(
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    entries: NDArray[np.float64],
    shape: tuple[int, int],
    held_out: NDArray[np.bool_],
) -> tuple[float, list[dict[str, float]]]:
    """Return the share of `least_zero` with the least error on held-out entries, and all errors."""
    kept = ~held_out
    matrix = coo_array((entries[kept], (rows[kept], cols[kept])), shape=shape)
    largest = least_zero(matrix)
    found: list[dict[str, float]] = []
    model: MatrixCompletion | None = None
    for share in SHARES:
        model = MatrixCompletion(alpha=share * largest, tol=LOOSE).fit(matrix, init=model)
        errors = model.predict(rows[held_out], cols[held_out]) - entries[held_out]
        rms = float(np.sqrt(np.square(errors).mean()))
        found.append({"share": share, "rms": rms, "rank": model.rank_, "gap": model.gap_})
    return min(found, key=lambda one: one["rms"])["share"], found


def interpolated(
    X: NDArray[np.float64], seen: NDArray[np.bool_], size: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    """Return each band by its nearest observed pixels, and linearly between them (nearest outside their hull)."""
    pixels = np.indices(size).reshape(2, -1).T.astype(np.float64)
    nearest, linear = np.empty_like(X), np.empty_like(X)
    for band in range(X.shape[1]):
        here = seen[:, band]
        nearest[:, band] = NearestNDInterpolator(pixels[here], X[here, band])(pixels)
        between = LinearNDInterpolator(pixels[here], X[here, band])(pixels)
        linear[:, band] = np.where(np.isnan(between), nearest[:, band], between)
    return {"nearest": nearest, "linear": linear}


def relative(
    Z: NDArray[np.float64], X: NDArray[np.float64], where: NDArray[np.bool_], axis: int | None = None
) -> Any:
    """Return the relative error at some entries, of all or of each column."""
    off, size = np.where(where, Z - X, 0.0), np.where(where, X, 0.0)
    return np.sqrt(np.square(off).sum(axis) / np.square(size).sum(axis))


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed of a completion."""
    errors, psnr = numbers["relative_errors"], numbers["psnr"]
    ours, gain = errors["completion"], psnr["completion"] - psnr["linear"]
    simple = min(errors["mean"], errors["nearest"])
    by_band = numbers["by_band"]
    better = float((np.asarray(by_band["completion"]) < np.asarray(by_band["linear"])).mean())
    return [
        Claim(f"the certified gap is <= {TOL:g}", numbers["gap"] <= TOL, numbers["gap"]),
        Claim("the relative error on the entries not seen is <= 0.06", ours <= 0.06, ours),
        Claim(
            "it is below half of that of the band's mean and of the nearest pixel",
            ours <= 0.5 * errors["mean"] and ours < simple,
            f"{ours:.4f} against {errors['mean']:.4f} and {errors['nearest']:.4f}",
        ),
        Claim("its PSNR is >= 2 dB above that of linear interpolation", gain >= 2.0, f"{gain:.2f} dB"),
        Claim("it is below linear interpolation in >= 0.6 of the bands", better >= 0.6, better),
    ]
