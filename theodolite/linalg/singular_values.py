r"""Two-sided bounds of all singular values, rounding enclosed.

A computed decomposition :math:`\hat U\hat S\hat V^\top` is only near A, and its factors are only nearly
orthonormal.  With :math:`\|\hat U^\top\hat U-I\|\le\alpha`, :math:`\|\hat V^\top\hat V-I\|\le\beta` and
:math:`\|A-\hat U\hat S\hat V^\top\|\le\epsilon`, each bounded from above by Frobenius norms with the rounding of
their own computation,

.. math:: \sqrt{(1-\alpha)(1-\beta)}\,\hat s_i-\epsilon\le\sigma_i(A)\le\sqrt{(1+\alpha)(1+\beta)}\,\hat s_i+\epsilon ,

by Weyl's inequality and :math:`\sigma_i(BCD)\le\|B\|\sigma_i(C)\|D\|`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.scaled_matrix import exponent_of, scale


def defect(A: Tensor) -> float:
    """Return an upper bound of the norm of A'A - I, the columns' distance from being orthonormal."""
    gram = A.T @ A
    gram.diagonal().sub_(1.0)
    margin = gamma(len(A) + 4) * float((A.abs().T @ A.abs()).norm())
    return PAD * (float(gram.norm()) + PAD * margin)


def singular_value_bounds(A: Any) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds of all singular values of a matrix, in descending order.

    Parameters
    ----------
    A : array or Tensor, shape (m, n)
        Real; converted to float64.

    Returns
    -------
    lower, upper : Tensor, shape (min(m, n),)

    Raises
    ------
    ValueError
        If it is not a finite matrix.
    """
    matrix = torch.as_tensor(A, dtype=torch.float64).detach().cpu()
    if matrix.ndim != 2:
        raise ValueError(f"A: expected a matrix, got shape {tuple(matrix.shape)}")
    exponent = exponent_of("A", matrix)
    if not matrix.any():
        zeros = torch.zeros(min(matrix.shape), dtype=torch.float64)
        return zeros, zeros.clone()
    matrix = scale(matrix, -exponent)
    U, s, Vt = torch.linalg.svd(matrix, full_matrices=False)
    rest = float((matrix - (U * s) @ Vt).norm())
    margin = gamma(len(s) + 4) * float(((U.abs() * s) @ Vt.abs()).norm() + matrix.norm())
    error = PAD * (rest + PAD * margin)
    left, right = defect(U), defect(Vt.T)
    upper = (math.sqrt((1.0 + left) * (1.0 + right)) * s + error) * UP
    lower = (math.sqrt(max(1.0 - left, 0.0) * max(1.0 - right, 0.0)) * s - error).clamp_min(0.0) / UP
    zero, infinity = torch.zeros_like(s), torch.full_like(s, math.inf)
    # scaling back is exact, unless the result is subnormal: one number outward covers that
    return scale(lower, exponent).nextafter(zero), scale(upper, exponent).nextafter(infinity)
