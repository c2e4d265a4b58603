"""Targets and indices as users give them: lists, arrays or tensors, checked and converted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def first(mask: Tensor) -> tuple[int, ...]:
    """Return the index of the first True of a mask that has one."""
    return tuple(int(i) for i in mask.nonzero()[0])


def numbers(given: Any, name: str, *, vectors: bool = True) -> Tensor:
    """Return targets as a float64 matrix; a vector becomes a column where vectors are welcome.

    Raises
    ------
    ValueError
        If they are not real and finite, not of shape (n, k) (or (n,)), or empty.
    """
    real = given if isinstance(given, Tensor) else np.asarray(given)
    if isinstance(real, Tensor):
        if real.is_complex():
            raise ValueError(f"{name}: expected real numbers, got {real.dtype}")
        Y = real.detach().double()
    else:
        if real.dtype.kind not in "biuf":
            raise ValueError(f"{name}: expected real numbers, got {real.dtype}")
        Y = torch.from_numpy(np.array(real, dtype=np.float64, order="C"))  # a copy: theirs may be read-only
    if Y.ndim != 2 and not (vectors and Y.ndim == 1):
        expected = "(n,) or (n, k)" if vectors else "(n, k)"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(Y.shape)}")
    if not Y.numel():
        raise ValueError(f"{name}: expected at least one number, got shape {tuple(Y.shape)}")
    refuse(~torch.isfinite(Y), Y, name, "finite numbers")
    return Y[:, None] if Y.ndim == 1 else Y


def refuse(wrong: Tensor, Y: Tensor, name: str, expected: str) -> None:
    """Raise a ValueError that names the first wrong entry, if there is one."""
    if bool(wrong.any()):
        place = first(wrong)
        got = float(Y[place])
        where = place if len(place) > 1 else place[0]
        raise ValueError(f"{name}: expected {expected}, got {'NaN' if got != got else got} at {where}")


def integers(given: Any, name: str, what: str = "integers") -> Tensor:
    """Return a vector of integers as an int64 tensor.

    Raises
    ------
    ValueError
        If they are not integers or not in a vector.
    """
    found = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(
            f"{name}: expected {what} of shape (n,), got {found.dtype} of shape {tuple(found.shape)}"
        )
    return found.long()
