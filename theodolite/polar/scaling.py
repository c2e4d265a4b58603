r"""Powers of two that keep the squares in a polar's bounds from overflow and underflow.

:math:`\sum_iQ_i\mathrm{relu}(x_i\cdot w)` stays as it is when x_i is divided and Q_i multiplied by one positive
number, and so are sums with any other function of degree one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.value import Value

__all__ = ["balanced", "lengths", "power", "scaled_back"]


def power(x: Tensor, exponent: Tensor | int) -> Tensor:
    """Return x 2^exponent, exact but for overflow and underflow, on the device of x.

    Of a sparse matrix, which is to be coalesced, with one exponent for all its entries.
    """
    if x.is_sparse:
        values = power(x.values(), exponent)
        return torch.sparse_coo_tensor(
            x.indices(), values, x.shape, check_invariants=False, is_coalesced=True
        )
    exponents = torch.as_tensor(exponent).cpu().numpy()
    if not exponents.any():
        return x.detach()
    if abs(exponents).max() <= 1022:  # a product with a number that float64 has is much faster
        return x.detach() * torch.as_tensor(np.ldexp(1.0, exponents), device=x.device)
    with np.errstate(over="ignore"):
        numbers = np.ldexp(x.detach().cpu().numpy(), exponents)
    return torch.from_numpy(numbers).to(x.device)


def _exponents(rows: Tensor) -> Tensor:
    """Return e with max_j |x_ij| in [2^(e-1), 2^e) for each row, 0 for a zero row, shape (n,)."""
    if not rows.shape[1]:
        return torch.zeros(len(rows), dtype=torch.int64)
    return torch.frexp(rows.detach().cpu().abs().amax(1)).exponent.long()


def lengths(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of each row, shape (n,), whose squares neither overflow nor underflow."""
    e = _exponents(rows)
    return power(torch.linalg.vector_norm(power(rows, -e[:, None]), dim=1), e)


def balanced(X: Tensor, Q: Tensor) -> tuple[Tensor, Tensor, int]:
    r"""Return X', Q' and e with :math:`x_i'\cdot w\,Q_i'2^e = x_i\cdot w\,Q_i`, all of moderate size.

    The largest entry of each nonzero row of X' is in [1/2, 1), and so is the largest of all of Q' that have such a
    row.  Products with powers of two are exact; rows of Q' that would be below 2^-400, far less than any margin
    for rounding, become zero.

    Parameters
    ----------
    X : Tensor, shape (n, d)
    Q : Tensor, shape (n, K)
    """
    used = (X != 0.0).any(1) & (Q != 0.0).any(1)
    e, f = _exponents(X), _exponents(Q)
    if not bool(used.any()):
        return power(X, -e[:, None]), torch.zeros_like(Q), 0
    most = int((e + f)[used].max())
    kept = used & (e + f >= most - 400)
    shift = torch.where(kept, e - most, 0)
    return power(X, -e[:, None]), torch.where(kept[:, None], power(Q, shift[:, None]), 0.0), most


def scaled_back(value: Value, exponent: int) -> Value:
    """Return a bound of the polar of Q from that of 2^-exponent Q, ends rounded outward."""
    low, high = (ldexp_rounded(end, exponent, toward) for end, toward in ((value.low, -1), (value.high, 1)))
    return dataclasses.replace(value, lower=min(low, high), upper=high)
