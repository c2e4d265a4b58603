"""What scattering transforms share: what they ask of arguments and inputs, their scaling, and tables of paths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["check_counts", "check_input", "moderate", "path_table", "restored"]

_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_SAFE = 1e15  # inputs larger, or smaller than its inverse, are scaled by a power of two


def check_counts(**counts: tuple[object, int]) -> None:
    """Raise an error unless every number, given with the least that it may be, is an integer, and `max_order` at most 3."""
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
        if name == "max_order" and value > 3:
            raise ValueError(f"max_order: expected at most 3, got {value}")


def check_input(x: object, sizes: Sequence[int]) -> None:
    """Raise an error unless x is a tensor of these last sizes, of finite numbers in single or double precision."""
    if not isinstance(x, Tensor) or x.dtype not in _DTYPES:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a tensor of single or double precision, got {got}")
    if x.ndim < len(sizes) or tuple(x.shape[-len(sizes) :]) != tuple(sizes):
        expected = ", ".join(map(str, sizes))
        raise ValueError(f"x: expected shape (..., {expected}), got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError("x: expected finite entries, got NaN or infinity")


def moderate(x: Tensor) -> tuple[Tensor, int]:
    """Return inputs times a power of two whose squares neither overflow nor vanish, and what that is to be undone by."""
    top = float(x.detach().abs().amax()) if x.numel() else 0.0
    if top == 0.0 or 1.0 / _SAFE < top < _SAFE:
        return x, 0
    exponent = math.frexp(top)[1]
    return restored(x, -exponent), exponent


def restored(x: Tensor, exponent: int) -> Tensor:
    """Return x times 2^exponent."""
    if not exponent:
        return x
    half = exponent // 2  # in two steps: 2^exponent itself may not be a number
    return x * 2.0**half * 2.0 ** (exponent - half)


def path_table(rows: Iterable[Sequence[float]], max_order: int) -> NDArray[np.float64]:
    """Return one number for each wavelet of each path, shape (paths, max_order), NaN where there is none."""
    found = [[*row, *[math.nan] * (max(max_order, 1) - len(row))] for row in rows]
    return np.array(found, dtype=np.float64)
