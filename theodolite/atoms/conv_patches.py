"""Patches of images under a convolution and its pooling cells, and bases of few dimensions for filters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theodolite.linalg.dense import all_finite, gram

Pair = tuple[int, int]
_CHUNK = 1 << 22  # numbers in a temporary tensor
_ORTHONORMAL = 1e-8


@dataclass(frozen=True)
class Geometry:
    """How a convolution and its average pooling walk over images; no padding, remainders dropped.

    Attributes
    ----------
    image : tuple of int
        Shape (channels, height, width) of an image.
    kernel, stride, pool, pool_stride : pair of int
        Heights and widths.
    """

    image: tuple[int, int, int]
    kernel: Pair
    stride: Pair
    pool: Pair
    pool_stride: Pair

    @property
    def grid(self) -> Pair:
        """Number of pooling cells along both axes."""
        positions = [
            (s - k) // t + 1 for s, k, t in zip(self.image[1:], self.kernel, self.stride, strict=True)
        ]
        ends = zip(positions, self.pool, self.pool_stride, strict=True)
        rows, columns = ((p - q) // t + 1 if p >= q else 0 for p, q, t in ends)
        return rows, columns

    @property
    def cells(self) -> int:
        """Number of pooling cells."""
        return math.prod(self.grid)

    @property
    def width(self) -> int:
        """Number of entries of a patch."""
        return self.image[0] * math.prod(self.kernel)

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches, shape (positions in a cell, images, cells, width).

        Entries of a patch are in the order of a filter of `torch.nn.Conv2d`: channel, row, column.
        """
        (kh, kw), (sh, sw), (ph, pw), (th, tw) = self.kernel, self.stride, self.pool, self.pool_stride
        windows = images.unfold(2, kh, sh).unfold(3, kw, sw)  # (n, channels, oh, ow, kh, kw)
        windows = windows.unfold(2, ph, th).unfold(3, pw, tw)  # (n, channels, ch, cw, kh, kw, ph, pw)
        windows = windows.permute(6, 7, 0, 2, 3, 1, 4, 5)
        return windows.reshape(ph * pw, len(images), self.cells, self.width)

    def chunks(self, n: int, columns: int = 0) -> Iterator[slice]:
        """Return slices of n images so small that their patches, with further columns, fit a temporary."""
        each = math.prod(self.pool) * self.cells * (self.width + columns)
        step = max(1, _CHUNK // each)
        return (slice(start, min(start + step, n)) for start in range(0, n, step))


def as_images(images: Any, *, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return images as a float64 tensor (n, channels, height, width).

    Parameters
    ----------
    images : array-like, shape (n, channels, height, width) or (n, height, width)
        A tensor keeps its device.
    shape : tuple of int, optional
        The (channels, height, width) that is expected.

    Raises
    ------
    ValueError
        If they are not finite, nonempty and real, or of another shape.
    """
    if not isinstance(images, Tensor):
        images = np.asarray(images)
        if images.dtype.kind not in "fiub":
            raise ValueError(f"images: expected real numbers, got dtype {images.dtype}")
        images = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float64))
    images = images.detach()
    if images.ndim == 3:
        images = images[:, None]
    if images.is_complex() or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            "images: expected a nonempty real array of shape (n, channels, height, width), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"images: expected shape (n, {', '.join(map(str, shape))}), got {tuple(images.shape)}"
        )
    images = images.double()
    if not all_finite(images):
        bad = int((~torch.isfinite(images)).sum())
        raise ValueError(f"images: expected finite numbers, got {bad} that are NaN or infinite")
    return images


def as_pair(value: Any, name: str) -> Pair:
    """Return a height and a width from one or two integers >= 1, or refuse others."""
    parts = tuple(value) if isinstance(value, tuple | list) else (value, value)
    whole = all(not isinstance(p, bool) and isinstance(p, int | np.integer) and p >= 1 for p in parts)
    if len(parts) != 2 or not whole:
        raise ValueError(f"{name}: expected an integer >= 1 or a pair of them, got {value!r}")
    return int(parts[0]), int(parts[1])


def filter_basis(basis: Any, geometry: Geometry, images: Tensor, n_components: int) -> Tensor | None:
    """Return orthonormal columns (width, b) that filters are combinations of, or None for free filters.

    Parameters
    ----------
    basis : None, "dct", "gaussian-derivative", "pca" or array-like, shape (width, b)
        ``"dct"``: the lowest frequencies of the cosine transform of a patch; ``"gaussian-derivative"``: a
        Gaussian of a quarter of the kernel's size and its derivatives, those of low order first, the same in
        all channels; ``"pca"``: the directions in which the patches have the largest sum of squares.
    geometry : Geometry
    images : Tensor, shape (n, channels, height, width)
    n_components : int
        b, for a basis that is named.

    Raises
    ------
    ValueError
        If the basis is none of these, or its columns are not orthonormal.
    """
    if basis is None:
        return None
    d = geometry.width
    if not isinstance(basis, str):
        given = torch.as_tensor(
            np.asarray(basis.cpu() if isinstance(basis, Tensor) else basis, dtype=np.float64)
        )
        if given.ndim != 2 or len(given) != d or not 1 <= given.shape[1] <= d or not all_finite(given):
            raise ValueError(
                f"basis: expected a finite matrix of shape ({d}, b), b <= {d}, got {tuple(given.shape)}"
            )
        off = float((given.T @ given - torch.eye(given.shape[1], dtype=given.dtype)).abs().max())
        if off > _ORTHONORMAL:
            raise ValueError(f"basis: expected orthonormal columns, got inner products off by {off:.3g}")
        return given.to(images.device)
    makers = {"dct": _cosines, "gaussian-derivative": _gaussian_derivatives, "pca": _principal}
    if basis not in makers:
        raise ValueError(f"basis: expected None, a matrix or one of {', '.join(makers)}, got {basis!r}")
    if isinstance(n_components, bool) or int(n_components) != n_components or n_components < 1:
        raise ValueError(f"n_components: expected an integer >= 1, got {n_components}")
    found = makers[basis](geometry, images)
    if n_components > found.shape[1]:
        raise ValueError(f"n_components: expected at most {found.shape[1]} for {basis!r}, got {n_components}")
    return found[:, :n_components].contiguous().to(images.device)


def _cosines(geometry: Geometry, images: Tensor) -> Tensor:
    """Return the cosine transform of (channel, row, column), the sum of the three frequencies increasing."""
    sizes = (geometry.image[0], *geometry.kernel)
    parts = []
    for size in sizes:
        k, j = torch.arange(size)[:, None], torch.arange(size, dtype=torch.float64)
        wave = torch.cos(math.pi * k * (j + 0.5) / size) * math.sqrt(2.0 / size)
        wave[0] *= math.sqrt(0.5)
        parts.append(wave)
    whole = torch.einsum("ax,by,cz->abcxyz", *parts).reshape(math.prod(sizes), -1)
    frequency = torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij")).sum(0).flatten()
    return whole[frequency.argsort(stable=True)].T


def _gaussian_derivatives(geometry: Geometry, images: Tensor) -> Tensor:
    """Return Hermite functions of row and column, the order increasing, made orthonormal."""
    kh, kw = geometry.kernel
    profiles = []
    for size in (kh, kw):
        t = (torch.arange(size, dtype=torch.float64) - 0.5 * (size - 1)) / max(0.25 * size, 0.5)
        waves = [torch.exp(-0.5 * t.square())]
        waves.append(-t * waves[0])
        for order in range(2, size):
            waves.append(-t * waves[-1] - (order - 1) * waves[-2])
        profiles.append(torch.stack(waves[:size]))
    columns = [
        torch.outer(profiles[0][i], profiles[1][order - i]).flatten()
        for order in range(kh + kw - 1)
        for i in range(max(0, order - kw + 1), min(order, kh - 1) + 1)
    ]
    q, r = torch.linalg.qr(torch.stack(columns, 1))
    q = q * torch.where(r.diagonal() < 0.0, -1.0, 1.0)
    channels = geometry.image[0]
    return q.repeat(channels, 1) / math.sqrt(channels)


def _principal(geometry: Geometry, images: Tensor) -> Tensor:
    """Return the right singular vectors of all patches, the singular values decreasing."""
    d = geometry.width
    total = images.new_zeros(d, d)
    for part in geometry.chunks(len(images)):
        total += gram(geometry.patches(images[part]).view(-1, d))
    vectors = torch.linalg.eigh(total).eigenvectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0.0, -1.0, 1.0)
