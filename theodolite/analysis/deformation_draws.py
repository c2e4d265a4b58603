"""Random coefficients of band-limited displacement fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from theodolite.analysis.deformation_norms import Basis


def draw_coefficients(
    d: int, cut: int, count: int, generator: torch.Generator, *, basis: Basis = "sine", decay: bool = False
) -> Tensor:
    """Return independent normal coefficients of fields, zero above the cut.

    Parameters
    ----------
    d : int
        Axes.
    cut : int
        Frequencies k with |k| <= cut + 1/2 are drawn.
    count : int
        Fields.
    generator : torch.Generator
        Of the draw.
    basis : {"sine", "periodic"}
        Of the fields.
    decay : bool
        Whether variances are 1/|k|^2 rather than 1.

    Returns
    -------
    Tensor, shape (count, d, K, ..., K), float64
    """
    if basis not in ("sine", "periodic"):
        raise ValueError(f"basis: expected 'sine' or 'periodic', got {basis!r}")
    squares = squared_frequencies(d, cut, basis)
    drawn = torch.randn(count, d, *squares.shape, generator=generator, dtype=torch.float64)
    inside = (squares > 0) & (squares <= (cut + 0.5) ** 2)
    scale = torch.where(inside, squares.clamp(min=1).rsqrt() if decay else 1.0, 0.0)
    return drawn * scale


def squared_frequencies(d: int, cut: int, basis: Basis = "sine") -> Tensor:
    """Return |k|^2 of every wave of a field, shape (K, ..., K).

    Raises
    ------
    ValueError
        If none is at or below the cut.
    """
    k = torch.arange(1, cut + 1, dtype=torch.float64)
    line = (k if basis == "sine" else torch.cat([k.new_zeros(1), k, k])).square()
    squares = torch.zeros((1,) * d, dtype=torch.float64)
    for a in range(d):
        squares = squares + line.view(-1, *[1] * (d - 1 - a))
    least = d if basis == "sine" else 1
    if cut < 1 or least > (cut + 0.5) ** 2:
        raise ValueError(f"cut: expected at least {1 if basis == 'periodic' or d < 3 else 2}, got {cut}")
    return squares


def max_entropy_coefficients(
    shape: Sequence[int], cut: int, temperature: float, count: int, generator: torch.Generator
) -> Tensor:
    """Return sine coefficients of fields of greatest entropy, shape (count, d, cut, ..., cut), in pixels."""
    side = math.prod(shape) ** (1.0 / len(shape))
    drawn = draw_coefficients(len(shape), cut, count, generator, decay=True)
    return side * math.sqrt(temperature) * drawn


def temperature_for(displacement: float, shape: Sequence[int], cut: int) -> float:
    r"""Return the temperature of max-entropy fields of a given root mean squared displacement.

    Parameters
    ----------
    displacement : float
        :math:`\delta=n\sqrt{d\,2^{-d}\,T\sum_k|k|^{-2}}` in pixels, over the box and the draws; for images
        and a high cut c about :math:`\frac n2\sqrt{\pi T\ln c}`.
    shape : sequence of int
        Pixels along each axis.
    cut : int
        c.
    """
    d = len(shape)
    squares = squared_frequencies(d, cut)
    total = float(squares[squares <= (cut + 0.5) ** 2].reciprocal().sum())
    side = math.prod(shape) ** (1.0 / d)
    return float((displacement / side) ** 2 * 2.0**d / (d * total))
