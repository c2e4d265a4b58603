"""Scattering on small-world graphs whose weights change, against the graph Fourier transform and a proved bound."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order
from torch import Tensor

from theodolite.experiments import datasets
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.adjacency import laplacian_matrix, read_adjacency
from theodolite.nn.graph_scattering import GraphScattering
from theodolite.nn.graph_wavelets import GraphBankName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

NODES, NEIGHBORS, REWIRED = 100, 50, 0.1
SCALES, ORDER = 6, 2
SIZES = (0.1, 0.2, 0.4, 0.7, 1.0)
KINDS = ("random signs", "shrinking")
BANKS: dict[str, GraphBankName] = {"tight Hann": "hann", "monic cubic": "cubic", "diffusion": "diffusion"}
FOURIER = "graph Fourier"
COLORS = {"tight Hann": "C0", "monic cubic": "C1", "diffusion": "C2", FOURIER: "0.4"}
ROADS = "roads of Minnesota"
BALL = 600  # nodes of the road graph in a fast run
RATIO = 1 / 6  # most that scattering moves, relative to the Fourier coefficients
LOOSE = 8.0  # most that a bound is times the largest error


class SmallWorldGraphs(Experiment):
    """Scattering moves in proportion to a graph's weights, within a proved bound; its eigenvectors do not."""

    name = "small-world-graphs"
    title = "Scattering on graphs that change: proportional and bounded"
    statement = (
        r"The weights of small-world graphs of 100 nodes change by $W'=W+EW+WE$, $E$ diagonal with entries of at most "
        r"$\varepsilon/2$: of random signs, or all negative and within a factor $1-\varepsilon$ of each other (shrinking). "
        r"White signals are transformed on both graphs. Scattering of 6 scales and 3 layers obeys "
        r"$\|Sx-S'x\|\le(2\|\mathcal W-\mathcal W'\|+\|\Phi-\Phi'\|)\|x\|$, $\mathcal W$ the stack of all filters, "
        r"$\Phi$ the low-pass: proved, and computed for each pair of graphs. Coefficients in the Laplacian's eigenvectors, "
        r"with signs chosen in their favor, move several times as far. All matrices are normalized by degrees, so that a "
        r"common factor of the weights cancels. The roads of Minnesota are a graph of 2640 nodes, where pygsp is installed."
    )
    reference = (
        "gama2019stability, gama2019diffusion, shuman2015spectrum, hammond2011wavelets, watts1998collective"
    )

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Draw graphs, change them, and measure how far the transforms move."""
        graphs, changes, signals = (2, 2, 20) if fast else (10, 10, 20)
        sizes = SIZES[::2] if fast else SIZES
        runs: list[dict[str, Any]] = []
        for g in range(graphs):
            progress(f"graph {g + 1} of {graphs}")
            generator = np.random.default_rng(g)
            W = small_world(NODES, NEIGHBORS, REWIRED, generator)
            made = compared(W, changes, sizes, signals, generator, tuple(BANKS))
            runs += [{"graph": f"small world {g}", **run} for run in made]
        numbers: dict[str, Any] = {"sizes": sizes, "signals": graphs * changes * signals, "runs": runs}
        if datasets.is_installed("pygsp"):
            progress(ROADS)
            generator = np.random.default_rng(0)
            W = roads(BALL if fast else None)
            made = compared(W, 1, (sizes[0], sizes[-1]), signals, generator, ("diffusion",))
            numbers["roads"] = [{"graph": ROADS, **run} for run in made]
        else:
            numbers["roads_skipped"] = f"needs pygsp: {datasets.PACKAGES['pygsp'].command}"
        return Result(claims(runs, numbers.get("roads", [])), numbers)

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw errors and bounds against the size of the change."""
        panels = [(kind, kind, numbers["runs"]) for kind in KINDS]
        if "roads" in numbers:
            panels.append((ROADS, KINDS[0], numbers["roads"]))
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, kind, runs) in zip(axes, panels, strict=True):
            chosen = [run for run in runs if run["kind"] == kind]
            sizes = sorted({run["size"] for run in chosen})
            for name, color in COLORS.items():
                if name not in chosen[0]["mean"]:
                    continue
                curves = {
                    key: [[run[key].get(name) for run in chosen if run["size"] == size] for size in sizes]
                    for key in ("mean", "most", "bound")
                }
                means = [float(np.mean(values)) for values in curves["mean"]]
                axis.loglog(sizes, means, "o-", color=color, ms=3.5, lw=1.2, label=name)
                axis.fill_between(
                    sizes, means, [max(v) for v in curves["most"]], color=color, alpha=0.2, lw=0
                )
                if name != FOURIER:
                    axis.loglog(sizes, [min(v) for v in curves["bound"]], "--", color=color, lw=1.2)
            axis.set(title=title, xlabel=r"size of the change $\varepsilon$")
            axis.set_xticks([0.1, 0.2, 0.5, 1.0], ["0.1", "0.2", "0.5", "1"])
            axis.minorticks_off()
        axes[0].plot([], [], "k--", lw=1.2, label="proved bound (least)")
        axes[0].set(ylabel="distance / norm of the signal")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)


def small_world(n: int, neighbors: int, rewired: float, generator: np.random.Generator) -> Array:
    """Return the adjacency matrix of a ring lattice some of whose edges lead elsewhere (Watts and Strogatz).

    Parameters
    ----------
    n : int
        Number of nodes.
    neighbors : int
        Even number, less than n, of nearest ones on the ring that each node is connected to at first.
    rewired : float
        Probability with which the far end of an edge is moved to a node that is no neighbor.
    generator : numpy.random.Generator
    """
    W = np.zeros((n, n))
    steps = range(1, neighbors // 2 + 1)
    for step in steps:
        W += np.roll(np.eye(n), step, 1) + np.roll(np.eye(n), -step, 1)
    for step in steps:
        for i in np.flatnonzero(generator.random(n) < rewired):
            free = np.setdiff1d(np.flatnonzero(W[i] == 0.0), [i])
            if free.size:
                old, new = (i + step) % n, generator.choice(free)
                W[i, old] = W[old, i] = 0.0
                W[i, new] = W[new, i] = 1.0
    return W


def roads(nodes: int | None = None) -> Array:
    """Return the largest component of the road graph, or so many nodes of it around the first."""
    W = datasets.minnesota()
    order = breadth_first_order(W, 0, directed=False, return_predecessors=False)[:nodes]
    found: Array = W[order][:, order].toarray()
    return found


def changed(W: Array, size: float, kind: str, draws: Array) -> Array:
    """Return W + E W + W E; `draws` are uniform in [0, 1], one for each node."""
    e = 0.5 * size * (2.0 * draws - 1.0) if kind == "random signs" else -0.5 * size * (1.0 - size * draws)
    return W * (1.0 + (e[:, None] + e))


def fourier(W: Array) -> Tensor:
    """Return the eigenvectors of the Laplacian as columns, by frequency."""
    return torch.linalg.eigh(torch.from_numpy(laplacian_matrix(read_adjacency(W), "normalized")))[1]


def compared(
    W: Array,
    changes: int,
    sizes: Sequence[float],
    signals: int,
    generator: np.random.Generator,
    banks: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Return, for each change of a graph, the errors of each transform relative to the signals, and the bounds."""
    transforms = {name: GraphScattering(W, SCALES, ORDER, BANKS[name]) for name in banks}
    vectors, found = fourier(W), []
    kinds = KINDS if len(banks) > 1 else KINDS[:1]
    for change in range(changes):
        draws = generator.random(len(W))
        x = torch.from_numpy(generator.standard_normal((signals, len(W))))
        before = {name: transform(x) for name, transform in transforms.items()}
        for kind, size in product(kinds, sizes):
            V = changed(W, size, kind, draws)
            moves = {
                name: GraphScattering(V, SCALES, ORDER, BANKS[name])(x).sub(before[name]).flatten(1)
                for name in banks
            }
            others = fourier(V)
            moves[FOURIER] = x @ (others * (others * vectors).sum(0).sign() - vectors)
            errors = {name: move.norm(dim=1) / x.norm(dim=1) for name, move in moves.items()}
            bounds = {name: transform.stability_bound(V).high for name, transform in transforms.items()}
            found.append(
                {
                    "change": change,
                    "kind": kind,
                    "size": size,
                    "mean": {name: float(error.mean()) for name, error in errors.items()},
                    "most": {name: float(error.max()) for name, error in errors.items()},
                    "bound": bounds,
                    "within": sum(int((errors[name] <= bounds[name]).sum()) for name in banks),
                    "pairs": signals * len(banks),
                }
            )
    return found


def slope(runs: list[dict[str, Any]], kind: str, name: str) -> float:
    """Return the least-squares slope of the logarithm of the mean error in that of the change."""
    chosen = [run for run in runs if run["kind"] == kind]
    return float(
        np.polyfit(np.log([r["size"] for r in chosen]), np.log([r["mean"][name] for r in chosen]), 1)[0]
    )


def ratio(runs: list[dict[str, Any]]) -> float:
    """Return the largest ratio of a mean error of scattering to that of the Fourier coefficients."""
    return max(run["mean"][name] / run["mean"][FOURIER] for run in runs for name in run["bound"])


def claims(runs: list[dict[str, Any]], on_roads: list[dict[str, Any]]) -> list[Claim]:
    """Return what is claimed."""
    within, pairs = (sum(run[key] for run in runs + on_roads) for key in ("within", "pairs"))
    loose = max(run["bound"][name] / run["most"][name] for run in runs for name in BANKS)
    linear = [slope(runs, "random signs", name) for name in BANKS]
    shrinking = [slope(runs, "shrinking", name) for name in BANKS]
    made = [
        Claim(
            "each signal's scattering moves by at most its proved bound",
            within == pairs,
            f"{within:,} of {pairs:,}",
        ),
        Claim(f"no bound is more than {LOOSE:g} times the largest error", loose <= LOOSE, loose),
        Claim(
            f"the mean error of scattering is at most {RATIO:.2g} of the Fourier coefficients', in every change",
            ratio(runs) <= RATIO,
            ratio(runs),
        ),
        Claim(
            "under random signs it grows in proportion: log-log slopes from 0.9 to 1.1",
            all(0.9 <= s <= 1.1 for s in linear),
            ", ".join(f"{s:.2f}" for s in linear),
        ),
        Claim(
            "where the graph shrinks a common factor cancels: slopes of at least 1.8",
            min(shrinking) >= 1.8,
            ", ".join(f"{s:.2f}" for s in shrinking),
        ),
    ]
    if on_roads:
        made.append(
            Claim(
                f"{ROADS}: at most {RATIO:.2g} of the Fourier coefficients' error, in every change",
                ratio(on_roads) <= RATIO,
                ratio(on_roads),
            )
        )
    return made
