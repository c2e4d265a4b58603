r"""The diagonal Shor bound of the ReLU polar, for any number of inputs, outputs, rows and cells.

For unit u (one part :math:`u_c` for each cell) and w, and any positive P,

.. math:: \sum_iQ_i\cdot u_{c(i)}\,\mathrm{relu}(x_i\cdot w)\le\tfrac14\sum_i\big(p_i^{-1/2}Q_i\cdot u_{c(i)}
   +p_i^{1/2}x_i\cdot w\big)^2\le\tfrac12\lambda_{\max}(M),\qquad
   M=\begin{pmatrix}\mathrm{diag}_c\,Q_c^TP_c^{-1}Q_c&(Q_c^TX_c)_c\\\cdot&X^TPX\end{pmatrix},

because :math:`ab^+\le(a+b)^2/4` and :math:`\|u\|^2+\|w\|^2=2`.  The search for P is in float32 where there is
much to do; only the last matrix has to be in float64, and its largest eigenvalue proved.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from theodolite.linalg.dense import gram
from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.symmetric import leading_eigenpairs, proved_eigenvalue
from theodolite.polar.rows import Rows

__all__ = ["seconds_of_gram", "shor"]

_MANY, _SAMPLE = 16_000, 4_000  # beyond so many rows the diagonal is first optimized on a sample
_SHARPNESS = 30.0, 200.0, 1500.0  # of the smoothed eigenvalue, stage by stage
_CHEAP = 2e9  # products in a Gram matrix, below which time is not asked for, nor float32 used
_TIMED = 2_000  # rows by which a Gram matrix is timed
_THOROUGH = 2_000  # rows up to which the last stage is worth its time
_PAIRS = 32  # eigenvectors from which the gradient of a large problem is made
_WORTHWHILE = 6.0  # evaluations that a search on all rows is worth
_SIDE = 6_000  # of the largest matrix that is formed


def seconds_of_gram(*parts: Tensor) -> float:
    """Return about how long the Gram matrix of all columns takes, from some of the rows."""
    n = len(parts[0])
    some = torch.cat([part[:: max(1, n // _TIMED)] for part in parts], 1)
    begin = time.monotonic()
    gram(some)
    return (time.monotonic() - begin) * n / len(some)


def shor(rows: Rows, deadline: float = math.inf) -> float | None:
    """Return the Shor bound at the best diagonal that time allows, proved, merging's slack included.

    None where there is no time for a proof, or the matrix would be too large.

    Parameters
    ----------
    rows : Rows
        At least one.
    deadline : float
        ``time.monotonic()`` by which to be done.
    """
    X, Q = rows.X, rows.Q
    n, side = len(X), len(rows.cells) * Q.shape[1] + X.shape[1]
    if side > _SIDE:
        return None
    timed = math.isfinite(deadline) and n * side**2 >= _CHEAP
    proof = (2.5 + 10.0 * side / n) * seconds_of_gram(Q, X) if timed else 0.0
    if timed and time.monotonic() + proof > deadline:
        return None
    # Balanced and of size one: P^-1/2 Q and P^1/2 X have equal rows, sum |.|^2 / 2 = S.
    weight, length = (torch.linalg.vector_norm(A, dim=1) for A in (Q, X))
    S, p = float(weight @ length), (weight / length).sqrt()
    left, right = 1.0 / (p * math.sqrt(S)), p / math.sqrt(S)
    single = n * side**2 >= _CHEAP
    data = _Data.of(rows, left, right, torch.float32 if single else torch.float64)
    root = (0.5 * _diagonal(data, deadline - proof)).exp()
    return _proved(rows, left / root, right * root, S)


def _proved(rows: Rows, left: Tensor, right: Tensor, S: float) -> float:
    """Return the bound with P^-1/2 = left sqrt(S), P^1/2 = right sqrt(S), up to a few roundings of each.

    They change the factor of M by at most 16 u in the Frobenius norm; M as computed is within gamma(n + 16) times its
    trace of the Gram matrix of that factor, in any order of summation.
    """
    C = len(rows.cells)
    A, D = _diagonal_blocks(rows.Q, rows.X, rows.parts(), C, left, right)
    M = _assembled(A, _cross(rows.Q, rows.X, rows.parts(), C) / S, D)
    trace = float(M.trace()) * (1.0 + 2.0 * gamma(len(rows.X) + len(M) + 16))
    top = proved_eigenvalue(M) + PAD * gamma(2 * len(rows.X) + 32) * trace
    top = (math.sqrt(max(top, 0.0)) + PAD * 16.0 * UNIT_ROUNDOFF * math.sqrt(trace)) ** 2
    return (0.5 * top * S * UP + rows.slack) * UP


@dataclass(frozen=True)
class _Data:
    """Balanced rows, in the precision of the search; `scale` makes up for rows that a sample leaves out."""

    q: Tensor
    x: Tensor
    parts: list[tuple[int, slice]]
    cross: Tensor
    scale: float

    @classmethod
    def of(cls, rows: Rows, left: Tensor, right: Tensor, dtype: torch.dtype) -> _Data:
        x = torch.empty(rows.X.shape, dtype=dtype)
        for _, part in rows.parts():
            x[part] = rows.X[part] * right[part, None]
        q = (rows.Q * left[:, None]).to(dtype)
        return cls(q, x, rows.parts(), _cross(q, x, rows.parts(), len(rows.cells)), 1.0)

    def sample(self, size: int) -> tuple[_Data, Tensor]:
        """Return some of the rows, and which."""
        chosen = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))[:size].sort().values
        cell = torch.zeros(len(self.x), dtype=torch.int64)
        for c, part in self.parts:
            cell[part] = c
        parts, cell = [], cell[chosen]
        for c in range(int(cell.max()) + 1):
            inside = (cell == c).nonzero()[:, 0]
            if len(inside):
                parts.append((c, slice(int(inside[0]), int(inside[-1]) + 1)))
        return _Data(self.q[chosen], self.x[chosen], parts, self.cross, len(self.x) / len(chosen)), chosen

    def matrix(self, z: Tensor) -> Tensor:
        """Return M at log p = z."""
        root = (0.5 * z).exp().to(self.x)
        C = len(self.cross) // self.q.shape[1]
        A, D = _diagonal_blocks(self.q, self.x, self.parts, C, 1.0 / root, root)
        return _assembled(self.scale * A, self.cross, self.scale * D)

    def squares(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squares of q_i V_c(i) and of x_i V, summed over columns, shape (n,) float64 each."""
        K, V = self.q.shape[1], V.to(self.x)
        m = len(self.cross)
        a, b = torch.empty(len(self.q)).double(), torch.empty(len(self.q)).double()
        for c, part in self.parts:
            a[part] = (self.q[part] @ V[c * K : (c + 1) * K]).square_().sum(1).double()
            b[part] = (self.x[part] @ V[m:]).square_().sum(1).double()
        return a, b


def _diagonal_blocks(
    q: Tensor, x: Tensor, parts: list[tuple[int, slice]], C: int, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Q_c' L^2 Q_c for each cell, (C, K, K), and X' R^2 X, (d, d), L and R diagonal."""
    K, d = q.shape[1], x.shape[1]
    A = torch.zeros(C, K, K, dtype=q.dtype)
    syrk = dsyrk if x.dtype == torch.float64 else ssyrk
    D = np.zeros((d, d), dtype=x.numpy().dtype, order="F")
    for c, part in parts:
        y = q[part] * left[part, None]
        A[c] += y.T @ y
        D = syrk(1.0, (x[part] * right[part, None]).numpy().T, beta=1.0, c=D, overwrite_c=True)
    square = torch.from_numpy(np.ascontiguousarray(D))
    return A, square.triu() + square.triu(1).T


def _cross(q: Tensor, x: Tensor, parts: list[tuple[int, slice]], C: int) -> Tensor:
    """Return Q_c' X_c for each cell, one below the other, (C K, d)."""
    K = q.shape[1]
    product = torch.zeros(C * K, x.shape[1], dtype=q.dtype)
    for c, part in parts:
        product[c * K : (c + 1) * K] += q[part].T @ x[part]
    return product


def _assembled(A: Tensor, B: Tensor, D: Tensor) -> Tensor:
    """Return the symmetric matrix of diagonal blocks A_c and D, and B between them."""
    m = len(B)
    M = torch.empty(m + len(D), m + len(D), dtype=D.dtype)
    M[:m, :m] = torch.block_diag(*A)
    M[:m, :m] = 0.5 * (M[:m, :m] + M[:m, :m].T)
    M[:m, m:], M[m:, :m], M[m:, m:] = B, B.T, D
    return M


def _diagonal(data: _Data, deadline: float) -> Tensor:
    """Return log p that nearly minimizes the largest eigenvalue of M."""
    n, side = len(data.x), len(data.cross) + data.x.shape[1]
    begin = time.monotonic()
    z = _best_scale(data, torch.zeros(n).double())
    if n <= _MANY:
        found = _minimize(data, z, deadline, (20, 40, 120 if n <= _THOROUGH else 0))
        return min(found, z, key=lambda z: _largest(data, z))  # a search cut short may be worse
    each = 2.0 * (time.monotonic() - begin)  # an evaluation on all rows, at the most
    if time.monotonic() + _WORTHWHILE * each > deadline:
        return z
    start, soon = z, time.monotonic() + 0.4 * (deadline - time.monotonic())
    few, chosen = data.sample(max(_SAMPLE, 4 * side))
    if 2 * len(chosen) <= n:
        _, V = _density(few, _minimize(few, z[chosen], soon, (20, 40)), _SHARPNESS[1])
        # For a density matrix W = V V' the best p_i is (Q_i' W_11 Q_i / x_i' W_22 x_i)^(1/2).
        a, b = data.squares(V)
        tiny = 0.01 * float((a.mean() * b.mean()).sqrt())
        start = 0.5 * ((a + tiny).log() - (b + tiny).log())
        start = _best_scale(data, start)
    found = _minimize(data, start, deadline - 3.0 * each, (0, 20))
    return min(found, start, z, key=lambda z: _largest(data, z))


def _best_scale(data: _Data, z: Tensor) -> Tensor:
    """Return z plus the best constant: one matrix, many eigenvalues."""
    M, m = data.matrix(z), len(data.cross)
    sizes = M.diagonal()
    middle = 0.5 * math.log(float(sizes[:m].max()) / float(sizes[m:].max()))

    def largest(step: float) -> float:
        factors = torch.full_like(sizes, math.exp(0.5 * step))
        factors[:m] = math.exp(-0.5 * step)
        return float(leading_eigenpairs(factors[:, None] * M * factors, 1, tol=1e-3)[0][-1])

    # the largest diagonal entries are equal at `middle`, and within the dimension of the eigenvalues
    reach = 0.5 * math.log(len(M)) + 0.1
    found = minimize_scalar(
        largest, bounds=(middle - reach, middle + reach), method="bounded", options={"xatol": 0.02}
    )
    return z + float(found.x)


def _largest(data: _Data, z: Tensor) -> float:
    return float(leading_eigenpairs(data.matrix(z), 1, tol=1e-4)[0][-1])


def _density(data: _Data, z: Tensor, beta: float) -> tuple[float, Tensor]:
    """Return the smoothed largest eigenvalue, and V with V V' its derivative, a density matrix (the Gibbs state)."""
    values, vectors = leading_eigenpairs(data.matrix(z), _PAIRS, tol=1e-4)
    weights = (beta * (values - values[-1]) / values[-1]).exp()
    smooth = float(values[-1] * (1.0 + weights.sum().log() / beta))
    kept = weights > 1e-9
    return smooth, vectors[:, kept] * (weights[kept] / weights.sum()).sqrt()


def _minimize(data: _Data, z: Tensor, deadline: float, steps: tuple[int, ...]) -> Tensor:
    # L-BFGS takes a first step of the gradient's length: so that log p moves by about one, times n.
    unit = len(z) / _density(data, z, _SHARPNESS[0])[0]

    def smoothed(flat: NDArray[np.float64], beta: float) -> tuple[float, NDArray[np.float64]]:
        if time.monotonic() > deadline:
            raise _OutOfTime
        z = torch.from_numpy(flat).clamp(-40.0, 40.0)
        value, V = _density(data, z, beta)
        a, b = data.squares(V)
        return value * unit, (data.scale * unit * (b * z.exp() - a * (-z).exp())).numpy()

    latest = z

    def keep(flat: NDArray[np.float64]) -> None:
        nonlocal latest
        latest = torch.from_numpy(flat.copy()).clamp(-40.0, 40.0)

    tolerance = 1e-7 if data.x.dtype == torch.float64 else 1e-5
    for beta, most in zip(_SHARPNESS, steps, strict=False):
        if most and time.monotonic() < deadline:
            options = {"maxiter": most, "maxcor": 15, "gtol": 0.0, "ftol": tolerance}
            try:
                minimize(
                    smoothed, latest.numpy(), (beta,), "L-BFGS-B", jac=True, callback=keep, options=options
                )
            except _OutOfTime:
                break
    return latest


class _OutOfTime(Exception):  # noqa: N818  (an outcome, not an error)
    """The search's time is up."""
