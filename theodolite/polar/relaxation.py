r"""Upper bounds of the ReLU polar for any number of inputs and outputs, at polynomial cost.

:math:`F(w)=(\sum_c\|\sum_{i\in c}Q_i\mathrm{relu}(x_i\cdot w)\|_2^2)^{1/2}` on the unit sphere, for rows in cells; all
are in one cell unless said.  :func:`shor_bound` (see :mod:`theodolite.polar.shor`) ignores cancellation between rows,
:func:`harmonic_bound` (see :mod:`theodolite.polar.harmonic_program`) does not but pays for the kink;
:func:`relaxation_bound` reports the smaller.  Rows of one cell with one direction are merged first.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from theodolite.linalg.dense import gram
from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.spectral import sigma_max
from theodolite.polar.harmonic import harmonic_moments, seconds_of_squares
from theodolite.polar.harmonic_program import harmonic_program
from theodolite.polar.rows import Rows, merged
from theodolite.polar.scaling import scaled_back
from theodolite.polar.shor import shor
from theodolite.value import Value

__all__ = ["harmonic_bound", "relaxation_bound", "shor_bound"]

_CHEAP = 2e9  # products in a Gram matrix, below which time is not asked for
_QUADRATIC = 2_000  # merged rows up to which degree 30 is the default
_FEW = 8  # inputs up to which degree 30 may be worth its time for more rows
_OTHERS = 0.3  # part of the time that is left to the Shor bound
_COLUMNS = 1_000  # outputs of all cells together, beyond which each cell has a harmonic bound of its own
_WIDE = 300  # columns up to which the rank is looked at


def relaxation_bound(
    X: Tensor,
    Q: Tensor,
    cells: Tensor | None = None,
    *,
    degree: int | None = None,
    budget: float | None = None,
    device: torch.device | str | None = None,
) -> Value:
    r"""Return the least of several proved upper bounds of max F(w) over unit w.

    They are :math:`(\sum_c(\sum_{i\in c}\|Q_i\|\|x_i\|)^2)^{1/2}`,
    :math:`\max_c\sigma_{\max}(Q_c)\sigma_{\max}(X)`, the diagonal Shor bound and the harmonic bound; the note says
    which.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    cells : Tensor of int64, shape (n,), optional
        Cell of each row.  The same as Q with a block of K columns for each cell, at much lower cost, and a better bound.
    degree : int, optional
        Of the harmonic bound; by default what `budget` allows, or 2 to 30 depending on n.
    budget : float, optional
        Seconds to aim at; 0 gives the first, cheapest bound only.
    device : torch.device or str, optional
        Where harmonic kernels are computed; the CPU by default.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, the shapes disagree, or degree is negative.
    """
    _check_degree(degree)
    deadline = math.inf if budget is None else time.monotonic() + budget
    rows = merged(X, Q, cells)
    bounds = {"sum of |Q_i| |x_i|": rows.crude}
    if len(rows.X) and (budget is None or budget > 0.0):
        on = device or "cpu"
        # the greater part of the time for the harmonic bound, which keeps what cancels between rows
        soon = deadline if budget is None else deadline - _OTHERS * budget
        quadratic = (degree is None or degree > 1) and _allows_quadratic(rows, soon)
        harmonic, used = _harmonic(rows, degree if quadratic else min(1, degree or 1), True, soon, on)
        bounds[f"harmonic bound of degree {used}"] = harmonic
        product = _product(rows)
        if product is not None:
            bounds["sigma_max(Q) sigma_max(X)"] = product
        found = shor(rows, deadline)
        if found is not None:
            bounds["diagonal Shor bound"] = found
    name = min(bounds, key=bounds.__getitem__)
    value = Value.bound(0.0, bounds[name], note=f"upper end: {name}, rounding enclosed")
    return scaled_back(value, rows.exponent)


def shor_bound(
    X: Tensor, Q: Tensor, cells: Tensor | None = None, *, merge: bool = True, budget: float | None = None
) -> Value:
    r"""Return the diagonal Shor bound :math:`\frac12\sigma_{\max}([P^{-1/2}Q\ \ P^{1/2}X])^2` at a near-optimal P.

    Any positive diagonal P is valid, see :mod:`theodolite.polar.shor`.  P is found by L-BFGS in log p on the
    log-sum-exp of the eigenvalues, on a sample of rows first; the final value is proved by a Cholesky factorization.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    cells : Tensor of int64, shape (n,), optional
        Cell of each row.
    merge : bool
        Add up rows with one direction first.
    budget : float, optional
        Seconds to aim at.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, or the shapes disagree.
    """
    rows = merged(X, Q, cells, merge)
    deadline = math.inf if budget is None else time.monotonic() + budget
    found = shor(rows, deadline) if len(rows.X) else None
    note = "sum of |Q_i| |x_i|" if found is None else "diagonal Shor bound"
    value = Value.bound(
        0.0, rows.crude if found is None else found, note=f"upper end: {note}, rounding enclosed"
    )
    return scaled_back(value, rows.exponent)


def harmonic_bound(
    X: Tensor,
    Q: Tensor,
    degree: int | None = None,
    *,
    cells: Tensor | None = None,
    envelope: bool = True,
    joint: bool = True,
    merge: bool = True,
    budget: float | None = None,
    device: torch.device | str | None = None,
) -> Value:
    """Return the harmonic bound, see :mod:`theodolite.polar.harmonic_program`.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    degree : int, optional
        Largest degree of a polynomial; by default what `budget` allows, or 2 to 30 depending on n.
    cells : Tensor of int64, shape (n,), optional
        Cell of each row.
    envelope : bool
        False for a constant envelope of the error.
    joint : bool
        False for coefficients that are the best where each degree may have a maximum of its own.
    merge : bool
        Add up rows with one direction first.
    budget : float, optional
        Seconds to aim at.
    device : torch.device or str, optional
        Where kernels are computed; the CPU by default.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, the shapes disagree, or degree is negative.
    """
    _check_degree(degree)
    rows = merged(X, Q, cells, merge)
    if not len(rows.X):
        value = Value.bound(0.0, rows.crude, note="no row has both an input and a weight")
        return scaled_back(value, rows.exponent)
    deadline = math.inf if budget is None else time.monotonic() + budget
    if degree is None and not _allows_quadratic(rows, deadline):
        degree = 1
    upper, used = _harmonic(rows, degree, envelope, deadline, device or "cpu", joint)
    value = Value.bound(0.0, upper, note=f"upper end: harmonic bound of degree {used}, rounding enclosed")
    return scaled_back(value, rows.exponent)


def _check_degree(degree: int | None) -> None:
    if degree is not None and degree < 0:
        raise ValueError(f"degree: expected at least 0, got {degree}")


def _product(rows: Rows) -> float | None:
    """Return max_c sigma_max(Q_c) sigma_max(X), proved; None where that takes long."""
    n, d = rows.X.shape
    if n * (d + rows.Q.shape[1]) ** 2 >= _CHEAP:
        return None
    several = max(sigma_max(rows.Q[cell], tol=1e-6).high for cell in rows.cells)
    return sigma_max(rows.X, tol=1e-6).high * several * UP + rows.slack


def _allows_quadratic(rows: Rows, deadline: float) -> bool:
    """Return whether there is time for the harmonic bound of degree 2: about half a Gram matrix of X per output."""
    return math.isinf(deadline) or time.monotonic() + seconds_of_squares(rows) <= deadline


def _harmonic(
    rows: Rows,
    degree: int | None,
    envelope: bool,
    deadline: float,
    device: torch.device | str,
    joint: bool = True,
) -> tuple[float, int]:
    """Return the harmonic bound with merging's slack, and the degree that was reached."""
    n, C = len(rows.X), len(rows.cells)
    if C > 1 and C * rows.Q.shape[1] > _COLUMNS:
        bounds, reached = [], []
        for c, cell in enumerate(rows.cells):
            one = replace(
                rows, X=rows.X[cell], Q=rows.Q[cell], cells=(slice(0, cell.stop - cell.start),), slack=0.0
            )
            left = deadline - time.monotonic()
            if left < 0.0:
                sizes = torch.linalg.vector_norm(one.X, dim=1) @ torch.linalg.vector_norm(one.Q, dim=1)
                bounds.append(float(sizes) * (1.0 + 2.0 * gamma(n + sum(one.X.shape) + one.Q.shape[1] + 8)))
                reached.append(0)
                continue
            soon = time.monotonic() + left / (C - c)
            found = _harmonic(one, degree, envelope, soon, device, joint)
            bounds.append(found[0])
            reached.append(found[1])
        return (math.hypot(*bounds) * UP + rows.slack) * UP, min(reached)
    if degree is None:
        # beyond degree 12 there is little to gain, and nothing in many dimensions
        most = 30 if n <= _QUADRATIC or (rows.X.shape[1] <= _FEW and math.isfinite(deadline)) else 12
        degree = most if math.isfinite(deadline) or n <= 6 * _QUADRATIC else 2
    # Degrees 0 and 1 do not depend on the dimension, as long as that is two at least.
    X, slack = _in_row_space(rows) if degree > 1 or rows.X.shape[1] < 2 else (rows.X, 0.0)
    moments = harmonic_moments(replace(rows, X=X), degree, deadline=deadline, device=device)
    value = harmonic_program(moments, envelope=envelope, joint=joint)
    return (value + slack + rows.slack) * UP, moments.degree


def _in_row_space(rows: Rows) -> tuple[Tensor, float]:
    """Return X in coordinates of its row space (two at least), and a bound of what that changes in F."""
    X, d = rows.X, rows.X.shape[1]
    if d == 1:
        return torch.cat([X, torch.zeros_like(X)], 1), 0.0
    if d > _WIDE:
        return X, 0.0
    values, basis = torch.linalg.eigh(gram(X))
    rank = max(2, int((values > 1e-13 * values[-1]).sum()))
    if rank == d:
        return X, 0.0
    V = torch.linalg.qr(basis[:, -rank:]).Q
    Z = X @ V
    # F(w) differs from that of Z at V'w by |Q_i| |x_i - V z_i|, and |V'w| <= 1 up to rounding.
    rest = torch.linalg.vector_norm(X - Z @ V.T, dim=1)
    size = torch.linalg.vector_norm(X, dim=1)
    weight = torch.linalg.vector_norm(rows.Q, dim=1)
    return Z, float(weight @ (rest + 8.0 * d * gamma(4 * d + 16) * size)) * PAD
