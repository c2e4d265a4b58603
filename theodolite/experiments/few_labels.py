"""Classification from few labels: wavelets that are given against filters that are learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from theodolite.experiments._images import split_images
from theodolite.experiments.base import Claim, Experiment, Progress, Result
from theodolite.nn.scattering2d import Scattering2D

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]

SIZES, SEEDS, HELD = (100, 300, 1000, 3000), 5, 5000
FAST_SIZES, FAST_SEEDS, FAST_HELD = (100, 300), 4, 2000
SCALES, ANGLES = 2, 8
PENALTIES = np.logspace(-1, 6, 15)  # of the linear classifiers
DIMENSIONS = (0, 1, 2, 5, 10, 20, 40, 80)  # of the affine spaces that cross-validation chooses among
FOLDS = 5
WIDTH = 16  # channels of the network's first layer
CONFIDENCE = 0.95

PIXELS, FIRST, SECOND = "pixels, linear", "order 1, linear", "orders 1, 2, linear"
AFFINE, NETWORK = "orders 1, 2, affine", "CNN"
METHODS = (PIXELS, FIRST, SECOND, AFFINE, NETWORK)


class FewLabels(Experiment):
    """Held-out error of linear and affine classifiers on scattering, and of a trained network, by the number of labels.

    Notes
    -----
    Samples have as many images of each class.  Penalties, dimensions and the length of training are chosen within a sample;
    images are not augmented.  Intervals are Student's over samples, for one set of held-out images.
    """

    name = "few-labels"
    title = "Few labels: scattering against a network that is trained from scratch"
    statement = (
        r"Images are classified from $n$ labels: linearly from pixels, from $(x*\phi,|x*\psi_{\lambda_1}|*\phi)$, and with "
        r"$||x*\psi_{\lambda_1}|*\psi_{\lambda_2}|*\phi$ added; by the nearest affine space; and by a small convolutional "
        r"network. What is known of images before any is seen, and wavelets know that they deform, need not be learned."
    )
    reference = "bruna2013invariant"

    def run(self, *, fast: bool = False, progress: Progress = lambda _: None) -> Result:
        """Fit every classifier to several samples of each size, all tested on the same images."""
        seeds, held = (FAST_SEEDS, FAST_HELD) if fast else (SEEDS, HELD)
        x, y, x_held, y_held, source = split_images()
        x_held, y_held = x_held[:held], y_held[:held]
        sizes = [n for n in (FAST_SIZES if fast else SIZES) if 2 * n <= len(x)]
        progress(f"scattering of {len(x_held)} held-out images")
        tests = representations(x_held)
        errors: dict[str, list[list[float]]] = {method: [] for method in METHODS}
        for n in sizes:
            for method in METHODS:
                errors[method].append([])
            for seed in range(seeds):
                progress(f"{n} labels, sample {seed + 1} of {seeds}")
                rows = balanced_sample(y, n, seed)
                found = test_errors(x[rows], y[rows], x_held, y_held, tests, seed)
                for method, error in found.items():
                    errors[method][-1].append(error)
        numbers = {"source": source, "held": len(x_held), "sizes": sizes, "errors": errors}
        return Result(claims(numbers), numbers | {"differences": differences(numbers)})

    def plot(self, figure: Figure, numbers: dict[str, Any]) -> None:
        """Draw errors over the number of labels, and what each is above order two's."""
        left, right = figure.subplots(1, 2)
        sizes = numbers["sizes"]
        for i, method in enumerate(METHODS):
            style = {"color": f"C{i}", "marker": "s" if method == NETWORK else "o", "ms": 4, "lw": 1.2}
            errors = 100.0 * np.asarray(numbers["errors"][method])
            mean, half = interval(errors)
            left.plot(sizes, mean, label=method, **style)
            left.fill_between(
                sizes, np.maximum(mean - half, 0.5 * mean), mean + half, color=f"C{i}", alpha=0.15, lw=0
            )
            mean, half = interval(errors - 100.0 * np.asarray(numbers["errors"][SECOND]))
            if method == SECOND:
                right.axhline(0.0, color=f"C{i}", lw=1.2)
                continue
            right.plot(sizes, mean, **style)
            right.fill_between(sizes, mean - half, mean + half, color=f"C{i}", alpha=0.15, lw=0)
        left.set(
            xscale="log", yscale="log", xlabel="labels", ylabel="held-out error in %", title=numbers["source"]
        )
        right.set(
            xscale="log",
            xlabel="labels",
            ylabel=f"points above {SECOND}",
            title="paired differences, 95 % intervals",
        )
        ticks = [value for value in (1, 2, 3, 5, 10, 15, 20, 30, 40, 50) if in_view(value, left.get_ylim())]
        left.set_yticks(ticks, [str(value) for value in ticks])
        for axis in (left, right):
            axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
            axis.minorticks_off()
        figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside right center")


def in_view(value: float, limits: tuple[float, float]) -> bool:
    """Return whether a value is within limits."""
    return limits[0] <= value <= limits[1]


def balanced_sample(y: Tensor, n: int, seed: int) -> Tensor:
    """Return n random rows, of each class as many, in a random order."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 + seed))
    each = n // len(y.unique())
    rows = torch.cat([order[y[order] == label][:each] for label in y.unique()])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def representations(x: Tensor) -> dict[str, Array]:
    """Return a row of numbers for each image, as pixels and as scattering coefficients."""
    transform = Scattering2D(SCALES, x.shape[-2:], ANGLES)
    coefficients = torch.cat([transform(part).squeeze(1) for part in x.split(500)])
    first = 1 + SCALES * ANGLES  # paths of at most one wavelet come first
    both = coefficients.flatten(1).numpy()
    return {
        PIXELS: x.flatten(1).numpy(),
        FIRST: coefficients[:, :first].flatten(1).numpy(),
        SECOND: both,
        AFFINE: both,
    }


def test_errors(
    x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, tests: dict[str, Array], seed: int
) -> dict[str, float]:
    """Return the held-out error of every classifier after a fit to one sample."""
    labels, truth, found = y.numpy(), y_held.numpy(), {}
    for name, rows in representations(x).items():
        if name == AFFINE:
            predicted = affine_classes(rows, labels, tests[name], chosen_dimension(rows, labels))
        else:
            # the penalty has the least squared error when single images of the sample are left out
            model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=PENALTIES)).fit(rows, labels)
            predicted = model.predict(tests[name])
        found[name] = float((predicted != truth).mean())
    mean, scale = x.mean(), x.std()
    net = trained((x - mean) / scale, y, seed)
    with torch.no_grad():
        scores = torch.cat([net((part - mean) / scale) for part in x_held.split(500)])
    return found | {NETWORK: float((scores.argmax(1) != y_held).double().mean())}


def affine_residuals(rows: Array, labels: Array, tests: Array) -> Array:
    """Return squared distances to each class's mean plus its first d principal directions: (classes, tests, choices of d)."""
    found = []
    for label in np.unique(labels):
        own = rows[labels == label]
        mean = own.mean(0)
        directions = np.linalg.svd(own - mean, full_matrices=False)[2][: max(DIMENSIONS)]
        along = np.square((tests - mean) @ directions.T).cumsum(1)
        along = np.concatenate([np.zeros((len(tests), 1), along.dtype), along], 1)
        within = [min(d, len(directions)) for d in DIMENSIONS]
        found.append(np.square(tests - mean).sum(1)[:, None] - along[:, within])
    return np.stack(found)


def chosen_dimension(rows: Array, labels: Array) -> int:
    """Return which of the dimensions errs least in cross-validation on a sample."""
    wrong = np.zeros(len(DIMENSIONS))
    for kept, out in StratifiedKFold(FOLDS).split(rows, labels):
        residuals = affine_residuals(rows[kept], labels[kept], rows[out])
        wrong += (np.unique(labels)[residuals.argmin(0)] != labels[out][:, None]).sum(0)
    return int(wrong.argmin())


def affine_classes(rows: Array, labels: Array, tests: Array, choice: int) -> Array:
    """Return the class whose affine space is nearest."""
    return np.asarray(np.unique(labels)[affine_residuals(rows, labels, tests)[..., choice].argmin(0)])


def network(side: int) -> nn.Sequential:
    """Return a convolutional network of three stages, normalized, for square images of one channel."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (WIDTH, 2 * WIDTH, 4 * WIDTH):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear((side // 8) ** 2 * channels, 10))


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    """Return a network in evaluation mode: a fifth of the sample chooses for how long, and then it learns from all."""
    held = len(x) // 5
    wrong = []
    for epochs in epoch_choices(len(x)):
        net = descended(x[held:], y[held:], epochs, seed)
        with torch.no_grad():
            wrong.append((int((net(x[:held]).argmax(1) != y[:held]).sum()), -epochs))  # the longest of equals
    return descended(x, y, -min(wrong)[1], seed)


def epoch_choices(n: int) -> tuple[int, ...]:
    """Return for how many epochs networks are trained on n labels."""
    return (8, 24) if n < 1000 else (6, 14)


def descended(x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Sequential:
    """Return a network, in evaluation mode, after some epochs of steps that shrink to zero along a cosine."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = network(x.shape[-1])
        step = torch.optim.AdamW(net.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(step, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(32 if len(x) <= 1000 else 64):
                if len(rows) > 1:  # of one image there is no variance to normalize by
                    step.zero_grad()
                    F.cross_entropy(net(x[rows]), y[rows]).backward()
                    step.step()
            schedule.step()
    return net.eval()


def interval(samples: Array) -> tuple[Array, Array]:
    """Return means over the last axis, and half the length of Student's intervals of confidence 95 %."""
    count = samples.shape[-1]
    factor = student.ppf(0.5 + 0.5 * CONFIDENCE, count - 1) / np.sqrt(count)
    return samples.mean(-1), factor * samples.std(-1, ddof=1)


def differences(numbers: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return by how much each error is above that of both orders, from the same samples: ends of intervals, by size."""
    base, found = np.asarray(numbers["errors"][SECOND]), {}
    for method in METHODS:
        mean, half = interval(np.asarray(numbers["errors"][method]) - base)
        found[method] = list(zip((mean - half).tolist(), (mean + half).tolist(), strict=True))
    return found


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Return what is claimed, of means over samples."""
    sizes, errors = numbers["sizes"], {m: np.asarray(e) for m, e in numbers["errors"].items()}
    mean = {method: 100.0 * error.mean(1) for method, error in errors.items()}
    above = {method: mean[method] - mean[SECOND] for method in METHODS}
    intervals = differences(numbers)

    def first(method: str) -> str:
        low, high = (100.0 * end for end in intervals[method][0])
        return f"{above[method][0]:.1f} points, {low:.1f} to {high:.1f}"

    gains = ", ".join(f"{gain:.1f} with {n:,}" for n, gain in zip(sizes, above[NETWORK], strict=True))
    slowest = max(float(np.diff(values).max()) for values in mean.values())
    few = f"with {sizes[0]} labels"
    return [
        Claim(
            f"{few} a linear classifier errs >= 4 points less on both orders than on pixels",
            above[PIXELS][0] >= 4.0,
            first(PIXELS),
        ),
        Claim(
            f"{few} it errs less on average than a network that is trained from scratch",
            above[NETWORK][0] > 0.0,
            first(NETWORK),
        ),
        Claim(
            f"{few} it errs less on average than the nearest affine space",
            above[AFFINE][0] > 0.0,
            first(AFFINE),
        ),
        Claim(
            "the second order lowers its error by >= 0.5 points with every number of labels",
            bool((above[FIRST] >= 0.5).all()),
            f"by {above[FIRST].min():.1f} or more",
        ),
        Claim(
            "the network is within 5 points of it with every number of labels",
            bool((above[NETWORK] <= 5.0).all()),
            f"points above it: {gains}",
        ),
        Claim(
            "each classifier errs less with more labels",
            slowest < 0.0,
            f"by {-slowest:.1f} points or more a step",
        ),
    ]
