"""Coherence from the whole dictionary, atom by atom."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def dictionary_coherence(dictionary: Tensor) -> float:
    """Return the largest |cosine| between two different nonzero columns, 0 if there are not two."""
    columns = [c / c.norm() for c in dictionary.double().T if float(c.norm()) > 0]
    pairs = itertools.combinations(columns, 2)
    return max((abs(float(a @ b)) for a, b in pairs), default=0.0)


def convolution_dictionary(
    weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> Tensor:
    """Return every shift of every filter on a torus wide enough that no shift meets itself.

    Parameters
    ----------
    weight : Tensor, shape (filters, channels, ...)
        As in a convolution.
    stride, dilation : sequence of int
        One number an axis.
    groups : int
        As in a convolution.

    Returns
    -------
    Tensor, shape (pixels, atoms), float64
    """
    filters, channels, *kernel = weight.shape
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [s * -(-(2 * span) // s) for s, span in zip(stride, spans, strict=True)]
    atoms = []
    for number in range(filters):
        first = (number * groups // filters) * channels
        for corner in itertools.product(*(range(0, size, s) for size, s in zip(sizes, stride, strict=True))):
            image = torch.zeros(channels * groups, *sizes, dtype=torch.float64)
            for tap in itertools.product(*(range(k) for k in kernel)):
                place = [(c + d * t) % n for c, d, t, n in zip(corner, dilation, tap, sizes, strict=True)]
                for channel in range(channels):
                    pixel, entry = (first + channel, *place), (number, channel, *tap)
                    image[pixel] = float(weight[entry])
            atoms.append(image.flatten())
    return torch.stack(atoms, 1)
