"""Synthetic lesions in the MNI152 head: slices and blocks with an exact mask, and networks trained on them.

One average head, warped and recolored blobs: nothing here is a patient, and nothing follows for any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from theodolite.analysis.segmentation import dice, labels_of
from theodolite.experiments import datasets

Array = NDArray[np.float64]
# of 96 x 96 x 80 voxels of 2 mm: the axial slices to train on and those held out, two left out between them
TRAINED_SLICES, HELD_OUT_SLICES = (*range(24, 40), *range(56, 70)), tuple(range(42, 54))
FRONT = 48  # blocks are trained on behind this coronal plane and held out before it
Draw = Callable[[np.random.Generator], tuple[Array, Array]]


def head() -> tuple[Array, Array]:
    """Return the head at 2 mm and its probability of gray or white matter, each of shape (96, 96, 80).

    Raises
    ------
    InputError
        If nilearn is not installed.
    """
    parts = []
    for volume in datasets.mni152():
        even = volume[:196, :232, :188].reshape(98, 2, 116, 2, 94, 2).mean((1, 3, 5))
        parts.append(even[1:97, 11:107, :80])
    return parts[0], parts[1]


def implant(
    image: Array, tissue: Array, generator: np.random.Generator, *, radii: tuple[float, float] = (2.5, 7.0)
) -> tuple[Array, NDArray[np.bool_]]:
    """Put one lesion into an image or a volume: a warped ellipsoid inside the tissue, brighter, blurred.

    Parameters
    ----------
    image, tissue : array, shape (sizes...)
        Intensities, and the probability of tissue, above 0.9 somewhere.
    generator : numpy.random.Generator
    radii : tuple of float
        Least and largest half axis in voxels, before the warp.

    Returns
    -------
    image : array, shape (sizes...)
    mask : array of bool, shape (sizes...)
        Where the lesion is, before its blur.
    """
    dims = image.ndim
    inside = np.argwhere(tissue > 0.9)
    center = inside[generator.integers(len(inside))]
    places = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1) - center
    warped = places.astype(np.float64)
    for _ in range(3):  # each moves places by at most a voxel and a half, smoothly, and the center not at all
        wave = generator.normal(scale=0.35, size=dims)
        phase = generator.uniform(0.0, 2.0 * np.pi)
        step = generator.uniform(-1.5, 1.5, size=dims)
        warped += step * (np.sin(places @ wave + phase) - np.sin(phase))[..., None]
    rotation = np.linalg.qr(generator.normal(size=(dims, dims)))[0]
    axes = generator.uniform(*radii, size=dims)
    mask = (np.square(warped @ rotation / axes).sum(-1) <= 1.0) & (tissue > 0.5)
    change = generator.uniform(0.25, 0.45)
    return image + change * gaussian_filter(mask.astype(np.float64), 0.7), mask


def slices(volume: Array, tissue: Array, chosen: Sequence[int], size: int) -> Draw:
    """Return a function that draws a square of an axial slice around a place with tissue, flipped or not."""
    centers = {z: np.argwhere(tissue[:, :, z] > 0.9) for z in chosen}

    def draw(generator: np.random.Generator) -> tuple[Array, Array]:
        z = int(generator.choice(chosen))
        center = centers[z][generator.integers(len(centers[z]))]
        x, y = (int(np.clip(c - size // 2, 0, n - size)) for c, n in zip(center, volume.shape, strict=False))
        side = generator.choice((-1, 1))
        cut = (slice(x, x + size), slice(y, y + size), z)
        return volume[cut][::side], tissue[cut][::side]

    return draw


def blocks(volume: Array, tissue: Array, size: int, *, front: bool) -> Draw:
    """Return a function that draws a cube with tissue at its center, before or behind the plane in the middle."""
    half = size // 2
    allowed = np.zeros(volume.shape, dtype=bool)
    y = slice(FRONT + half, volume.shape[1] - half + 1) if front else slice(half, FRONT - half + 1)
    allowed[half : volume.shape[0] - half + 1, y, half : volume.shape[2] - half + 1] = True
    centers = np.argwhere(allowed & (tissue > 0.9))

    def draw(generator: np.random.Generator) -> tuple[Array, Array]:
        corner = centers[generator.integers(len(centers))] - half
        cut = tuple(slice(c, c + size) for c in corner)
        return volume[cut], tissue[cut]

    return draw


def batch(draw: Draw, n: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return images with one lesion each, at random brightness and with noise, and their masks.

    Returns
    -------
    x : Tensor, shape (n, 1, sizes...), float32
    masks : Tensor of int64, shape (n, sizes...)
    """
    images, masks = [], []
    for _ in range(n):
        image, mask = implant(*draw(generator), generator)
        gain = generator.uniform(0.85, 1.15)
        images.append(gain * image + generator.normal(scale=0.02, size=image.shape))
        masks.append(mask)
    x = torch.from_numpy(np.stack(images)).float().unsqueeze(1)
    return x, torch.from_numpy(np.stack(masks)).long()


def train(model: nn.Module, draw: Draw, steps: int, size: int, *, seed: int = 0, rate: float = 5e-3) -> None:
    """Minimize cross-entropy plus one less the soft Dice coefficient, by Adam with a rate that falls to zero."""
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    with torch.enable_grad():
        for _ in range(steps):
            x, masks = batch(draw, size, generator)
            logits = model(x)
            lesion, chance = (masks == 1).float(), logits.softmax(1)[:, 1]
            overlap = 2.0 * (lesion * chance).sum() / (lesion.sum() + chance.sum())
            optimizer.zero_grad()
            (F.cross_entropy(logits, masks) + 1.0 - overlap).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def overlap(model: nn.Module, x: Tensor, masks: Tensor) -> Tensor:
    """Return the Dice coefficient of the predicted lesion with the true one, shape (n,)."""
    with torch.no_grad():
        labels = torch.cat([labels_of(model(part)) for part in x.split(8)])
    return dice(labels == 1, masks == 1)
