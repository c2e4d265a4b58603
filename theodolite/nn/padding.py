"""How signals continue beyond their borders, as copies of their own samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["PADDINGS", "Padding", "axis_copies", "padded"]

Padding = Literal["reflect", "symmetric", "replicate", "zero", "periodic"]
PADDINGS = ("reflect", "symmetric", "replicate", "zero", "periodic")


def padded(x: Tensor, sizes: Sequence[int], pad: Padding) -> Tensor:
    """Return signals whose last axes have been continued to given sizes, evenly on both sides.

    Parameters
    ----------
    x : Tensor, shape (..., n_1, ..., n_d)
    sizes : sequence of int
        As many as axes are padded; an odd rest goes to the end.
    pad : {"reflect", "symmetric", "replicate", "zero", "periodic"}
        Mirrored at the outer samples, or beyond them; the outer samples repeated; zeros; or the signal again.
    """
    for axis, size in enumerate(sizes, x.ndim - len(sizes)):
        index, inside = _source(x.shape[axis], size, pad)
        x = x.index_select(axis, index.to(x.device))
        if not bool(inside.all()):
            shape = [1] * x.ndim
            shape[axis] = size
            x = x * inside.to(x.device).view(shape)
    return x


def axis_copies(n: int, size: int, pad: Padding) -> int:
    """Return how often a sample of n occurs among `size` of a padded axis, at most: the square of the padding's norm."""
    index, inside = _source(n, size, pad)
    return int(torch.bincount(index[inside]).max())


def _source(n: int, size: int, pad: Padding) -> tuple[Tensor, Tensor]:
    """Return which sample each place of a padded axis has, and whether it has one."""
    place = torch.arange(size) - (size - n) // 2
    inside = torch.ones(size, dtype=torch.bool)
    if pad == "periodic":
        index = place % n
    elif pad == "reflect":
        period = max(2 * (n - 1), 1)
        index = place % period
        index = torch.where(index >= n, period - index, index)
    elif pad == "symmetric":
        index = place % (2 * n)
        index = torch.where(index >= n, 2 * n - 1 - index, index)
    else:
        index = place.clamp(0, n - 1)
        if pad == "zero":
            inside = (place >= 0) & (place < n)
    return index, inside
