"""Passes over large dense matrices at less than the obvious cost."""

from __future__ import annotations

import math
import os

import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

_WIDTH = 96  # columns computed together
_LARGE = 1 << 26  # products from which it is worth the trouble


def all_finite(A: Tensor) -> bool:
    """Return whether no entry is NaN or infinite, without a mask of all entries."""
    return math.isfinite(largest(A))


def largest(A: Tensor) -> float:
    """Return the largest absolute value, NaN if there is one, 0 without entries; without a copy."""
    return max(abs(float(x)) for x in torch.aminmax(A)) if A.numel() else 0.0


def physical_memory() -> float:
    """Return the bytes of memory that this machine has, or inf where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not POSIX
        return math.inf


def gram(A: Tensor, B: Tensor | None = None) -> Tensor:
    """Return A' B where that is known to be symmetric (Hermitian), each entry one inner product.

    Parameters
    ----------
    A : Tensor, shape (..., m, n)
    B : Tensor, shape (..., m, n), optional
        A times a real diagonal matrix from the left; A itself by default.
    """
    B = A if B is None else B
    m, n = A.shape[-2:]
    if n <= 2 * _WIDTH or m * n * n < _LARGE:
        return A.mH @ B
    H = torch.empty(*A.shape[:-2], n, n, dtype=A.dtype, device=A.device)
    if B is A and A.dtype == torch.float64 and A.device.type == "cpu":
        for block, image in zip(A.reshape(-1, m, n), H.view(-1, n, n), strict=True):
            # in Fortran's order the transpose, as which BLAS takes the block without a copy
            image.copy_(torch.from_numpy(dsyrk(1.0, block.contiguous().numpy().T)).T)
            image.tril_().add_(image.tril(-1).T)
        return H
    for start in range(0, n, _WIDTH):
        strip = A[..., start:].mH @ B[..., start : start + _WIDTH]
        H[..., start:, start : start + _WIDTH] = strip
        H[..., start : start + _WIDTH, start:] = strip.mH
    return H
