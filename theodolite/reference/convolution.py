"""The matrix of a convolution, entry by entry from the definition."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def source_index(position: int, size: int, mode: str) -> int | None:
    """Return which input entry stands at a position of the padded axis; None for a zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "circular":
        return position % size
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "reflect":
        return -position if position < 0 else 2 * (size - 1) - position
    raise ValueError(f"mode: expected zeros, circular, replicate or reflect, got {mode!r}")


def matrix(
    weight: NDArray[np.float64],
    size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    mode: str = "zeros",
) -> NDArray[np.float64]:
    """Return the matrix of a convolution without bias, rows and columns in (channel, place) order.

    Parameters
    ----------
    weight : array, shape (out, in / groups, ...)
    size : sequence of int
        Spatial size of the input.
    stride, padding, dilation : sequence of int
        One for each axis; the padding is the same on both sides.
    groups : int
    mode : {"zeros", "circular", "replicate", "reflect"}
    """
    out_channels, per_group, *kernel = weight.shape
    axes = range(len(size))
    out = [(size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in axes]
    result = np.zeros((out_channels, *out, per_group * groups, *size))
    for o in range(out_channels):
        group = o // (out_channels // groups)
        for t in itertools.product(*map(range, out)):
            for j in itertools.product(*map(range, kernel)):
                places = [stride[a] * t[a] + dilation[a] * j[a] - padding[a] for a in axes]
                read = [source_index(places[a], size[a], mode) for a in axes]
                if any(r is None for r in read):
                    continue
                for i in range(per_group):
                    entry, tap = (o, *t, group * per_group + i, *read), (o, i, *j)
                    result[entry] += weight[tap]
    return result.reshape(out_channels * int(np.prod(out)), -1)
