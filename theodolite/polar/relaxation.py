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
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from theodolite.linalg.dense import all_finite, gram
from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.spectral import sigma_max
from theodolite.polar.harmonic import harmonic_coefficients, harmonic_moments
from theodolite.polar.scaling import balanced, scaled_back
from theodolite.value import Value

__all__ = ["harmonic_bound", "relaxation_bound", "shor_bound"]

_MANY, _SAMPLE = 16_000, 4_000  # beyond so many rows the diagonal is first optimized on a sample
_SHARPNESS = 30.0, 200.0, 1500.0  # of the smoothed eigenvalue, stage by stage
_CHEAP = 2e9  # products in a Gram matrix, below which time is not asked for
_TIMED = 2_000  # rows by which a Gram matrix is timed
_PROOF, _WORTHWHILE = 2.0, 30.0  # Gram matrices that a proof costs, and that a search on all rows is worth
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
        quadratic = degree is not None or _allows_quadratic(rows, half)
        bounds |= _shor(rows, half if quadratic else deadline)
        harmonic, used = _harmonic(rows, degree if quadratic else 1, True, deadline, device or "cpu")
        bounds[f"harmonic bound of degree {used}"] = harmonic
    name = min(bounds, key=bounds.__getitem__)
    found = Value.bound(0.0, bounds[name], note=f"upper end: {name}, rounding enclosed")
    return scaled_back(found, rows.exponent)


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
    bounds = _shor(rows, deadline) if len(rows.X) else {}
    upper = bounds.get("diagonal Shor bound", rows.crude)
    note = "diagonal Shor bound" if bounds else "sum of |Q_i| |x_i|"
    found = Value.bound(0.0, upper, note=f"upper end: {note}, rounding enclosed")
    return scaled_back(found, rows.exponent)


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
        found = Value.bound(0.0, rows.crude, note="no row has both an input and a weight")
        return scaled_back(found, rows.exponent)
    deadline = math.inf if budget is None else time.monotonic() + budget
    if degree is None and not _allows_quadratic(rows, deadline):
        degree = 1
    upper, used = _harmonic(rows, degree, envelope, deadline, device or "cpu")
    found = Value.bound(0.0, upper, note=f"upper end: harmonic bound of degree {used}, rounding enclosed")
    return scaled_back(found, rows.exponent)


@dataclass(frozen=True)
class _Rows:
    X: Tensor
    Q: Tensor
    slack: float  # |F - F of the merged rows| on the unit sphere
    crude: float  # sum of |Q_i| |x_i|, slack included
    exponent: int  # of the power of two by which F is to be multiplied


def _merged(X: Tensor, Q: Tensor, merge: bool = True) -> _Rows:
    """Check the input, drop zero rows, scale by powers of two and add up rows with one direction."""
    for name, A in (("X", X), ("Q", Q)):
        if A.ndim != 2 or A.dtype != torch.float64 or not all_finite(A):
            raise ValueError(f"{name}: expected a finite float64 matrix, got {A.dtype}, {tuple(A.shape)}")
    if len(X) != len(Q):
        raise ValueError(f"Q: expected {len(X)} rows, as X has, got {len(Q)}")
    used = (X != 0.0).any(1) & (Q != 0.0).any(1)
    X, Q = _selected(X.detach().cpu(), Q.detach().cpu(), used.cpu())
    if not len(X):
        return _Rows(X, Q, 0.0, 0.0, 0)
    X, Q, exponent = balanced(X, Q)
    X, Q = _selected(X, Q, (Q != 0.0).any(1))
    sizes = torch.linalg.vector_norm(X, dim=1)
    index = _same_direction(X, sizes) if merge else torch.arange(len(X))
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
    return _Rows(X, Q, slack, crude + slack, exponent)


def _selected(X: Tensor, Q: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    return (X, Q) if bool(used.all()) else (X[used], Q[used])


def _same_direction(X: Tensor, sizes: Tensor) -> Tensor:
    """Return the number of each row's group: rows whose directions agree to ten digits.

    Nothing is proved by it: what a merge of its groups changes is measured.
    """

    def keys(rows: Tensor, lengths: Tensor) -> NDArray[np.int64]:
        rounded = (rows / lengths[:, None]).mul_(1e10).round_().add_(0.0)
        return rounded.numpy().view(np.int64)

    # A hash of each row (modulo 2^64) first: few rows, if any, have to be sorted entry by entry.
    factors = np.random.default_rng(0).integers(2**62, size=X.shape[1], dtype=np.int64) | 1
    parts = zip(X.split(_SAMPLE), sizes.split(_SAMPLE), strict=True)
    hashes = np.concatenate([keys(*part) @ factors for part in parts])
    _, group, members = np.unique(hashes, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    twins = np.flatnonzero(members[group] > 1)
    if len(twins):
        rows = np.ascontiguousarray(keys(X[twins], sizes[twins]))
        whole = rows.view(np.dtype((np.void, rows.shape[1] * 8)))[:, 0]
        group[twins] = len(members) + np.unique(whole, return_inverse=True)[1].reshape(-1)
        group = np.unique(group, return_inverse=True)[1].reshape(-1)
    return torch.from_numpy(group)


def _seconds_of_gram(*parts: Tensor) -> float:
    """Return about how long the Gram matrix of all columns takes, from some of the rows."""
    n = len(parts[0])
    some = torch.cat([part[:: max(1, n // _TIMED)] for part in parts], 1)
    begin = time.monotonic()
    gram(some)
    return (time.monotonic() - begin) * n / len(some)


def _allows_quadratic(rows: _Rows, deadline: float) -> bool:
    """Return whether there is time for the harmonic bound of degree 2: about a Gram matrix of X per output."""
    n, d = rows.X.shape
    if math.isinf(deadline) or n * d * d < _CHEAP:
        return True
    return time.monotonic() + (rows.Q.shape[1] + 3) * _seconds_of_gram(rows.X) < deadline


def _harmonic(
    rows: _Rows, degree: int | None, envelope: bool, deadline: float, device: torch.device | str
) -> tuple[float, int]:
    n = len(rows.X)
    if degree is None:
        known = math.isfinite(deadline) or n <= _QUADRATIC
        degree = 30 if known else 12 if n <= 6 * _QUADRATIC else 2
    # Degrees 0 and 1 do not depend on the dimension, as long as that is two at least.
    X, slack = _in_row_space(rows.X, rows.Q) if degree > 1 or rows.X.shape[1] < 2 else (rows.X, 0.0)
    several, single, S = harmonic_moments(X, rows.Q, degree, deadline=deadline, device=device)
    value = harmonic_coefficients(several, single, S, X.shape[1], envelope=envelope)
    return (value + slack + rows.slack) * UP, len(several) - 1


def _in_row_space(X: Tensor, Q: Tensor) -> tuple[Tensor, float]:
    """Return X in coordinates of its row space (two at least), and a bound of what that changes in F."""
    d = X.shape[1]
    if d == 1:
        return torch.cat([X, torch.zeros_like(X)], 1), 0.0
    values, basis = torch.linalg.eigh(gram(X))
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


def _shor(rows: _Rows, deadline: float) -> dict[str, float]:
    """Return the Shor bound and, unless it takes long, sigma_max(Q) sigma_max(X), proved, by name.

    Empty where there is no time for a proof.
    """
    X, Q = rows.X, rows.Q
    n, columns = len(X), X.shape[1] + Q.shape[1]
    timed = math.isfinite(deadline) and n * columns**2 >= _CHEAP
    proof = _PROOF * _seconds_of_gram(Q, X) if timed else 0.0
    if timed and time.monotonic() + proof > deadline:
        return {}
    bounds = {}
    if not timed:
        product = sigma_max(X, tol=1e-6).high * sigma_max(Q, tol=1e-6).high * UP
        bounds["sigma_max(Q) sigma_max(X)"] = product + rows.slack
    # Balanced and of size one: P^-1/2 Q and P^1/2 X have equal rows, sum |.|^2 / 2 = S.
    p = (torch.linalg.vector_norm(Q, dim=1) / torch.linalg.vector_norm(X, dim=1)).sqrt()
    S = float((torch.linalg.vector_norm(Q, dim=1) * torch.linalg.vector_norm(X, dim=1)).sum())
    q, x = Q / p[:, None] / math.sqrt(S), X * (p / math.sqrt(S))[:, None]
    z = _diagonal(q, x, deadline - proof)
    root = (0.5 * z).exp()
    stack = torch.cat([q / root[:, None], x * root[:, None]], 1)
    # Entries carry a few roundings each: within 8 u in the Frobenius norm.
    top = sigma_max(stack, tol=1e-6).high + 8.0 * UNIT_ROUNDOFF * float(stack.norm()) * PAD
    bounds["diagonal Shor bound"] = 0.5 * top * top * S * UP**2 + rows.slack
    return bounds


def _diagonal(q: Tensor, x: Tensor, deadline: float) -> Tensor:
    """Return log p that nearly minimizes the largest eigenvalue of [q / sqrt(p), x sqrt(p)]' [same]."""
    n, K = q.shape
    cross = q.T @ x
    if n <= _MANY:
        z = _best_scale(q, x, cross, 1.0).expand(n).clone()
        found = _minimize(q, x, cross, 1.0, z, deadline, (20, 40, 120 if n <= _QUADRATIC else 0))
        return min(found, z, key=lambda z: _largest(q, x, cross, z))  # a search cut short may be worse
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    some = q[chosen], x[chosen], cross, n / _SAMPLE
    z = _best_scale(*some)
    pass_seconds = _seconds_of_gram(q, x) if math.isfinite(deadline) else 0.0
    if time.monotonic() + 1.5 * pass_seconds < deadline:
        z = _best_scale(q, x, cross, 1.0)
    z = z.expand(n).clone()
    now, deadline = time.monotonic(), deadline - 6.0 * pass_seconds
    if now + _WORTHWHILE * pass_seconds > deadline:
        return z
    soon = now + 0.5 * (deadline - now)
    W = _density(*some, _minimize(*some, z[:_SAMPLE], soon, (20, 40)), _SHARPNESS[1])[1]
    # For a density matrix W the best p_i is (Q_i' W_11 Q_i / x_i' W_22 x_i)^(1/2).
    a, b = ((A @ B * A).sum(1).clamp(min=0.0) for A, B in ((q, W[:K, :K]), (x, W[K:, K:])))
    tiny = 0.01 * float((a.mean() * b.mean()).sqrt())
    start = 0.5 * ((a + tiny).log() - (b + tiny).log())
    start += _best_scale(q * (-0.5 * start).exp()[:, None], x * (0.5 * start).exp()[:, None], cross, 1.0)
    found = _minimize(q, x, cross, 1.0, start, deadline, (0, 20))
    return min(found, start, z, key=lambda z: _largest(q, x, cross, z))


def _best_scale(q: Tensor, x: Tensor, cross: Tensor, scale: float) -> Tensor:
    """Return the best log p among those equal in all rows: one Gram matrix, many eigenvalues."""
    K = q.shape[1]
    single = q.float(), x.float()  # of no proof, and half the time
    M = torch.block_diag(*(scale * gram(A).double() for A in single))
    M[:K, K:], M[K:, :K] = cross, cross.T
    sizes = M.diagonal()
    middle = 0.5 * math.log(float(sizes[:K].max()) / float(sizes[K:].max()))

    def largest(z: float) -> float:
        factors = torch.full_like(sizes, math.exp(0.5 * z))
        factors[:K] = math.exp(-0.5 * z)
        return float(torch.linalg.eigvalsh(factors[:, None] * M * factors)[-1])

    # the largest diagonal entries are equal at `middle`, and within the dimension of the eigenvalues
    reach = 0.5 * math.log(len(M)) + 0.1
    found = minimize_scalar(
        largest, bounds=(middle - reach, middle + reach), method="bounded", options={"xatol": 0.01}
    )
    return torch.tensor([float(found.x)], dtype=q.dtype)


def _largest(q: Tensor, x: Tensor, cross: Tensor, z: Tensor) -> float:
    return float(torch.linalg.eigvalsh(_gram(q, x, cross, 1.0, z))[-1])


def _gram(q: Tensor, x: Tensor, cross: Tensor, scale: float, z: Tensor) -> Tensor:
    qq, xx = q / z.exp()[:, None], x * z.exp()[:, None]
    return torch.cat(
        [torch.cat([scale * gram(q, qq), cross], 1), torch.cat([cross.T, scale * gram(x, xx)], 1)]
    )


def _density(
    q: Tensor, x: Tensor, cross: Tensor, scale: float, z: Tensor, beta: float
) -> tuple[float, Tensor]:
    """Return the smoothed largest eigenvalue and its derivative, a density matrix (the Gibbs state)."""
    values, vectors = torch.linalg.eigh(_gram(q, x, cross, scale, z))
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
