r"""Upper bounds of the ReLU polar for any number of inputs and outputs, at polynomial cost.

:math:`F(w)=\|Q^T\mathrm{relu}(Xw)\|_2` on the unit sphere.  :func:`shor_bound` ignores cancellation between rows,
:func:`harmonic_bound` (see :mod:`theodolite.polar.harmonic`) does not but pays for the kink;
:func:`relaxation_bound` reports the smaller.

Rows with one direction are merged first, :math:`\sum_iQ_i\mathrm{relu}(\alpha_ix\cdot w)=(\sum_i\alpha_iQ_i)
\mathrm{relu}(x\cdot w)` for positive factors; what rounding makes of it is bounded and added.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.spectral import sigma_max
from theodolite.polar.harmonic import harmonic_coefficients, harmonic_moments
from theodolite.value import Value

__all__ = ["harmonic_bound", "relaxation_bound", "shor_bound"]

_MANY, _SAMPLE = 16_000, 4_000  # beyond so many rows the diagonal is first optimized on a sample
_SHARPNESS = 30.0, 200.0, 1500.0  # of the smoothed eigenvalue, stage by stage
_QUADRATIC = 2_000  # merged rows up to which degree 30 is the default


def relaxation_bound(
    X: Tensor,
    Q: Tensor,
    *,
    degree: int | None = None,
    budget: float | None = None,
    device: torch.device | str | None = None,
) -> Value:
    r"""Return the least of several proved upper bounds of max F(w) over unit w.

    They are :math:`\sum_i\|Q_i\|\|x_i\|`, :math:`\sigma_{\max}(Q)\sigma_{\max}(X)`, the diagonal Shor bound and the
    harmonic bound; the note says which.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    degree : int, optional
        Of the harmonic bound; by default what `budget` allows, or 2 to 30 depending on n.
    budget : float, optional
        Seconds to aim at; 0 gives the first, cheapest bound only.
    device : torch.device or str, optional
        Where harmonic kernels are computed; the CPU by default.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, or the shapes disagree.
    """
    deadline = math.inf if budget is None else time.monotonic() + budget
    rows = _merged(X, Q)
    bounds = {"sum of |Q_i| |x_i|": rows.crude}
    if len(rows.X) and (budget is None or budget > 0.0):
        half = deadline if budget is None else time.monotonic() + 0.5 * budget
        shor, product = _shor(rows, half)
        bounds["sigma_max(Q) sigma_max(X)"] = product
        bounds["diagonal Shor bound"] = shor
        harmonic, used = _harmonic(rows, degree, True, deadline, device or "cpu")
        bounds[f"harmonic bound of degree {used}"] = harmonic
    name = min(bounds, key=bounds.__getitem__)
    return Value.bound(0.0, bounds[name], note=f"upper end: {name}, rounding enclosed")


def shor_bound(X: Tensor, Q: Tensor, *, merge: bool = True, budget: float | None = None) -> Value:
    r"""Return the diagonal Shor bound :math:`\frac12\sigma_{\max}([P^{-1/2}Q\ \ P^{1/2}X])^2` at a near-optimal P.

    Any positive diagonal P is valid: :math:`ab^+\le(a+b)^2/4` with :math:`a=p_i^{-1/2}Q_i^Tu`,
    :math:`b=p_i^{1/2}x_i^Tw`, summed over rows, and :math:`\|u\|^2+\|w\|^2=2`.  P is found by L-BFGS in log p on the
    log-sum-exp of the eigenvalues, on a sample of rows first; the final value is proved by
    :func:`theodolite.linalg.spectral.sigma_max`.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    merge : bool
        Add up rows with one direction first.
    budget : float, optional
        Seconds to aim at.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, or the shapes disagree.
    """
    rows = _merged(X, Q, merge)
    deadline = math.inf if budget is None else time.monotonic() + budget
    upper = _shor(rows, deadline)[0] if len(rows.X) else rows.crude
    return Value.bound(0.0, upper, note="upper end: diagonal Shor bound, rounding enclosed")


def harmonic_bound(
    X: Tensor,
    Q: Tensor,
    degree: int | None = None,
    *,
    envelope: bool = True,
    merge: bool = True,
    budget: float | None = None,
    device: torch.device | str | None = None,
) -> Value:
    """Return the harmonic bound, see :mod:`theodolite.polar.harmonic`.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    degree : int, optional
        Largest degree of a polynomial; by default what `budget` allows, or 2 to 30 depending on n.
    envelope : bool
        False for a constant envelope of the error.
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
    if degree is not None and degree < 0:
        raise ValueError(f"degree: expected at least 0, got {degree}")
    rows = _merged(X, Q, merge)
    if not len(rows.X):
        return Value.bound(0.0, rows.crude, note="no row has both an input and a weight")
    deadline = math.inf if budget is None else time.monotonic() + budget
    upper, used = _harmonic(rows, degree, envelope, deadline, device or "cpu")
    return Value.bound(0.0, upper, note=f"upper end: harmonic bound of degree {used}, rounding enclosed")


@dataclass(frozen=True)
class _Rows:
    X: Tensor
    Q: Tensor
    slack: float  # |F - F of the merged rows| on the unit sphere
    crude: float  # sum of |Q_i| |x_i|, slack included


def _merged(X: Tensor, Q: Tensor, merge: bool = True) -> _Rows:
    """Check the input, drop zero rows and add up those with one direction."""
    for name, A in (("X", X), ("Q", Q)):
        if A.ndim != 2 or A.dtype != torch.float64 or not A.isfinite().all():
            raise ValueError(f"{name}: expected a finite float64 matrix, got {A.dtype}, {tuple(A.shape)}")
    if len(X) != len(Q):
        raise ValueError(f"Q: expected {len(X)} rows, as X has, got {len(Q)}")
    used = (X != 0.0).any(1) & (Q != 0.0).any(1)
    X, Q = X[used].detach().cpu(), Q[used].detach().cpu()
    if not len(X):
        return _Rows(X, Q, 0.0, 0.0)
    sizes = torch.linalg.vector_norm(X, dim=1)
    # Directions that agree to ten digits are tried; the residual of the merge is measured in any case.
    keys = (X / sizes[:, None] * 1e10).round_() + 0.0
    group = np.unique(_opaque(keys.numpy()), return_inverse=True)[1] if merge else np.arange(len(X))
    index = torch.from_numpy(group.reshape(-1))
    groups = int(index.max()) + 1
    slack = 0.0
    if groups < len(X):
        first = torch.full((groups,), len(X)).scatter_reduce(0, index, torch.arange(len(X)), "amin")
        alpha = sizes / sizes[first[index]]
        rest = torch.linalg.vector_norm(X - alpha[:, None] * X[first[index]], dim=1)
        weight = torch.linalg.vector_norm(Q, dim=1)
        slack = float(weight @ (rest + gamma(len(X) + X.shape[1] + 16) * sizes)) * PAD
        Q = torch.zeros(groups, Q.shape[1], dtype=Q.dtype).index_add_(0, index, alpha[:, None] * Q)
        X = X[first]
        left = (Q != 0.0).any(1)
        X, Q, sizes = X[left], Q[left], sizes[first][left]
    crude = float((torch.linalg.vector_norm(Q, dim=1) * sizes).sum())
    crude *= 1.0 + 2.0 * gamma(len(X) + X.shape[1] + Q.shape[1] + 8)
    return _Rows(X, Q, slack, crude + slack)


def _opaque(keys: NDArray[np.float64]) -> NDArray[np.void]:
    keys = np.ascontiguousarray(keys)
    return keys.view(np.dtype((np.void, keys.shape[1] * 8)))[:, 0]


def _harmonic(
    rows: _Rows, degree: int | None, envelope: bool, deadline: float, device: torch.device | str
) -> tuple[float, int]:
    n = len(rows.X)
    if degree is None:
        known = math.isfinite(deadline) or n <= _QUADRATIC
        degree = 30 if known else 12 if n <= 6 * _QUADRATIC else 2
    X, slack = _in_row_space(rows.X, rows.Q)
    several, single, S = harmonic_moments(X, rows.Q, degree, deadline=deadline, device=device)
    value = harmonic_coefficients(several, single, S, X.shape[1], envelope=envelope)
    return (value + slack + rows.slack) * UP, len(several) - 1


def _in_row_space(X: Tensor, Q: Tensor) -> tuple[Tensor, float]:
    """Return X in coordinates of its row space (two at least), and a bound of what that changes in F."""
    d = X.shape[1]
    if d == 1:
        return torch.cat([X, torch.zeros_like(X)], 1), 0.0
    values, basis = torch.linalg.eigh(X.T @ X)
    rank = max(2, int((values > 1e-13 * values[-1]).sum()))
    if rank == d:
        return X, 0.0
    V = torch.linalg.qr(basis[:, -rank:]).Q
    Z = X @ V
    # F(w) differs from |Q' relu(Z V'w)| by |Q_i| |x_i - V z_i|, and |V'w| <= 1 up to rounding.
    rest = torch.linalg.vector_norm(X - Z @ V.T, dim=1)
    size = torch.linalg.vector_norm(X, dim=1)
    weight = torch.linalg.vector_norm(Q, dim=1)
    return Z, float(weight @ (rest + 8.0 * d * gamma(4 * d + 16) * size)) * PAD


def _shor(rows: _Rows, deadline: float) -> tuple[float, float]:
    """Return the Shor bound and sigma_max(Q) sigma_max(X), proved."""
    X, Q = rows.X, rows.Q
    product = sigma_max(X, tol=1e-6).high * sigma_max(Q, tol=1e-6).high * UP + rows.slack
    # Balanced and of size one: P^-1/2 Q and P^1/2 X have equal rows, sum |.|^2 / 2 = S.
    p = (torch.linalg.vector_norm(Q, dim=1) / torch.linalg.vector_norm(X, dim=1)).sqrt()
    S = float((torch.linalg.vector_norm(Q, dim=1) * torch.linalg.vector_norm(X, dim=1)).sum())
    q, x = Q / p[:, None] / math.sqrt(S), X * p[:, None] / math.sqrt(S)
    z = _diagonal(q, x, deadline)
    best = math.inf
    for candidate in (z, torch.zeros_like(z)):  # a search cut short may have made things worse
        root = (0.5 * candidate).exp()
        stack = torch.cat([q / root[:, None], x * root[:, None]], 1)
        # Entries carry a few roundings each: within 8 u in the Frobenius norm.
        top = sigma_max(stack, tol=1e-6).high + 8.0 * UNIT_ROUNDOFF * float(stack.norm()) * PAD
        best = min(best, 0.5 * top * top * S * UP**2)
    return best + rows.slack, product


def _diagonal(q: Tensor, x: Tensor, deadline: float) -> Tensor:
    """Return log p that nearly minimizes the largest eigenvalue of [q / sqrt(p), x sqrt(p)]' [same]."""
    n, K = q.shape
    cross = q.T @ x
    z = torch.zeros(n, dtype=q.dtype)
    if n <= _MANY:
        return _minimize(q, x, cross, 1.0, z, deadline, (20, 40, 120 if n <= _QUADRATIC else 0))
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    some = q[chosen], x[chosen], cross, n / _SAMPLE
    W = _density(*some, _minimize(*some, z[:_SAMPLE], deadline, (20, 40)), _SHARPNESS[1])[1]
    # For a density matrix W the best p_i is (Q_i' W_11 Q_i / x_i' W_22 x_i)^(1/2).
    a, b = ((A @ B * A).sum(1).clamp(min=0.0) for A, B in ((q, W[:K, :K]), (x, W[K:, K:])))
    tiny = 0.01 * float((a.mean() * b.mean()).sqrt())
    return _minimize(q, x, cross, 1.0, 0.5 * ((a + tiny).log() - (b + tiny).log()), deadline, (0, 20))


def _density(
    q: Tensor, x: Tensor, cross: Tensor, scale: float, z: Tensor, beta: float
) -> tuple[float, Tensor]:
    """Return the smoothed largest eigenvalue and its derivative, a density matrix (the Gibbs state)."""
    qq, xx = q / z.exp()[:, None], x * z.exp()[:, None]
    M = torch.cat([torch.cat([scale * (q.T @ qq), cross], 1), torch.cat([cross.T, scale * (x.T @ xx)], 1)])
    values, vectors = torch.linalg.eigh(M)
    weights = (beta * (values - values[-1]) / values[-1]).exp()
    smooth = float(values[-1] * (1.0 + weights.sum().log() / beta))
    return smooth, (vectors * (weights / weights.sum())) @ vectors.T


def _minimize(
    q: Tensor,
    x: Tensor,
    cross: Tensor,
    scale: float,
    z: Tensor,
    deadline: float,
    steps: tuple[int, ...],
) -> Tensor:
    K = q.shape[1]
    # L-BFGS takes a first step of the gradient's length: so that log p moves by about one, times n.
    unit = len(q) / _density(q, x, cross, scale, z, _SHARPNESS[0])[0]

    def smoothed(flat: NDArray[np.float64], beta: float) -> tuple[float, NDArray[np.float64]]:
        z = torch.from_numpy(flat).clamp(-40.0, 40.0)
        value, W = _density(q, x, cross, scale, z, beta)
        a, b = ((A @ B * A).sum(1) for A, B in ((q, W[:K, :K]), (x, W[K:, K:])))
        return value * unit, (scale * unit * (b * z.exp() - a * (-z).exp())).numpy()

    def late(_: NDArray[np.float64]) -> None:
        if time.monotonic() > deadline:
            raise StopIteration

    for beta, most in zip(_SHARPNESS, steps, strict=False):
        if most and time.monotonic() < deadline:
            options = {"maxiter": most, "maxcor": 15, "gtol": 0.0, "ftol": 1e-7}
            solved = minimize(
                smoothed, z.numpy(), (beta,), "L-BFGS-B", jac=True, callback=late, options=options
            )
            z = torch.from_numpy(solved.x).clamp(-40.0, 40.0)
    return z
