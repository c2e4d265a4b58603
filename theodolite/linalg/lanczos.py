"""Symmetric Lanczos, and what a random start proves about the largest eigenvalue.

A Ritz value is a Rayleigh quotient: it bounds the spectrum *from inside* only, and a
small residual shows that *some* eigenvalue is near, not that it is the extreme one.
:func:`largest_eigenvalue` adds the missing half, with a stated failure probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

UNIT_ROUNDOFF = 2.0**-53
"""Unit roundoff of float64, in which every certificate is computed."""
PAD = 1.0 + 2.0**-20
"""Covers the rounding inside the formula of a margin, which is small itself."""
UP = 1.0 + 2.0**-46
"""Covers the few roundings of a formula whose result is reported, in place of directed rounding."""

_CHUNK = 1 << 20

Matvec = Callable[[Tensor], Tensor]
Callback = Callable[[int, Tensor, Tensor], "bool | None"]


def gamma(k: float) -> float:
    """Return ``k u / (1 - k u)``, the error constant of a float64 sum of k terms (inf if k u >= 1)."""
    ku = k * UNIT_ROUNDOFF
    return ku / (1.0 - ku) if ku < 1.0 else math.inf


def spend(delta: float, j: int) -> float:
    """Return the share ``6 delta / (pi^2 j^2)`` of a failure probability that call j may use.

    The shares of the calls j = 1, 2, ... add up to delta, so by the union bound all
    calls hold together with probability at least 1 - delta, however many there are.

    Parameters
    ----------
    delta : float
        Failure probability of all calls together, in (0, 1).
    j : int
        Number of the call, from 1.

    Raises
    ------
    ValueError
        If delta or j is out of range.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta: expected a number in (0, 1), got {delta!r}")
    if j < 1:
        raise ValueError(f"j: expected a call number from 1, got {j!r}")
    return 6.0 * delta / (math.pi * j) ** 2


def start_generator(seed: int) -> torch.Generator:
    """Return the CPU generator of random starts for a seed.

    The seed is mixed (SplitMix64): a user's own ``torch.manual_seed(seed)`` must not reproduce
    the starts inside the matrix, of which they have to be independent.
    """
    z = (seed * 0x9E3779B97F4A7C15 + 0x7E0D011E) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return torch.Generator().manual_seed((z ^ (z >> 31)) >> 1)


@dataclass(slots=True)
class FailureLedger:
    """Failure probability and seeds for a sequence of randomized calls.

    A later matrix may depend on an earlier answer (an iterate that was refined because
    its certificate failed).  The starts must not, so each call gets a seed of its own.

    Attributes
    ----------
    delta : float
        Failure probability of all calls together, in (0, 1).
    seed : int
        Seed from which those of the calls are counted.
    calls : int
        Number of shares handed out so far.

    Examples
    --------
    >>> ledger = FailureLedger(1e-9)
    >>> delta, seed = ledger.next()
    """

    delta: float
    seed: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        spend(self.delta, 1)

    def next(self) -> tuple[float, int]:
        """Return the failure probability and the seed of the next call."""
        self.calls += 1
        return spend(self.delta, self.calls), self.seed + self.calls - 1

    @property
    def spent(self) -> float:
        """Failure probability handed out so far; by the union bound, that of all calls made."""
        return sum(spend(self.delta, j) for j in range(1, self.calls + 1))


@dataclass(frozen=True, slots=True)
class LanczosResult:
    """What k steps of Lanczos found.

    Attributes
    ----------
    ritz_values : Tensor, shape (k,), float64, on the CPU
        Eigenvalues of the tridiagonal matrix, ascending.  In exact arithmetic the last
        is a lower bound of the largest eigenvalue, the first an upper bound of the least.
    residual_norms : Tensor, shape (k,), float64, on the CPU
        ``|beta_k s_ki|``: some eigenvalue lies within this distance of Ritz value i.
    alpha, beta : Tensor, shape (k,), float64, on the CPU
        Diagonal of the tridiagonal matrix; its subdiagonal followed by the last residual norm.
    basis : Tensor, shape (k, n)
        Orthonormal rows.
    residual : Tensor, shape (n,)
        What the last product left after orthogonalization, of norm ``beta[-1]``.
    breakdown : bool
        True if the Krylov space became invariant, so that it cannot grow.
    """

    ritz_values: Tensor
    residual_norms: Tensor
    alpha: Tensor
    beta: Tensor
    basis: Tensor
    residual: Tensor
    breakdown: bool

    def ritz_vectors(self, indices: list[int] | None = None) -> Tensor:
        """Return Ritz vectors as columns, shape (n, len(indices)), in the basis' dtype.

        Parameters
        ----------
        indices : list of int, optional
            Which Ritz values; negative ones count from the largest.  All by default.
        """
        _, vectors = _eigh(self.alpha, self.beta)
        chosen = vectors if indices is None else vectors[:, indices]
        return self.basis.T @ chosen.to(self.basis)


def lanczos(
    matvec: Matvec,
    n: int,
    *,
    steps: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    deflate: Tensor | None = None,
    tol: float | None = None,
    which: Literal["largest", "smallest", "both"] = "both",
    callback: Callback | None = None,
) -> LanczosResult:
    """Run Lanczos with full reorthogonalization, done twice, on a symmetric operator.

    Memory is one basis of ``steps * n`` numbers and one work vector.  The coefficients
    of the tridiagonal matrix are accumulated in float64 whatever the dtype.

    Parameters
    ----------
    matvec : callable
        Maps a vector of shape (n,), which it must not change, to its product, shape (n,).
    n : int
        Dimension, at least 1.
    steps : int
        Largest number of products; at most n are made.
    dtype, device
        Those of the basis, and of the vectors given to `matvec`.
    generator : torch.Generator, optional
        Source of the Gaussian start, on `device`.
    start : Tensor, shape (n,), optional
        Start to use instead; then nothing probabilistic may be concluded.
    deflate : Tensor, shape (r, n), optional
        Orthonormal rows to stay orthogonal to: the operator is compressed to their complement.
    tol : float, optional
        Stop when the residual at the end(s) in `which` is at most tol times the largest
        absolute Ritz value.
    which : {"largest", "smallest", "both"}
        End(s) that `tol` looks at.
    callback : callable, optional
        Called as ``callback(step, ritz_values, residual_norms)`` after each step; a true
        return value stops the run.

    Raises
    ------
    ValueError
        If n or steps is below 1, a shape is wrong, or a product is not finite.

    References
    ----------
    Parlett, The Symmetric Eigenvalue Problem, SIAM 1998, chapter 13.
    """
    if n < 1 or steps < 1:
        raise ValueError(f"n, steps: expected at least 1, got {n} and {steps}")
    if start is not None and start.shape != (n,):
        raise ValueError(f"start: expected shape ({n},), got {tuple(start.shape)}")
    if deflate is not None and (deflate.ndim != 2 or deflate.shape[1] != n):
        raise ValueError(f"deflate: expected shape (r, {n}), got {tuple(deflate.shape)}")
    k = min(steps, n)
    basis = torch.empty(k, n, dtype=dtype, device=device)
    work = torch.empty(n, dtype=dtype, device=device)
    if start is None:
        work.normal_(generator=generator)
    else:
        work.copy_(start)
    if deflate is not None:
        _project_out(work, deflate)
    norm = _norm(work)
    if not 0.0 < norm < math.inf:
        raise ValueError(f"start: expected a finite nonzero vector outside `deflate`, got norm {norm}")
    alpha = torch.zeros(k, dtype=torch.float64)
    beta = torch.zeros(k, dtype=torch.float64)
    negligible, scale, done, breakdown = 16.0 * torch.finfo(dtype).eps, 0.0, 0, False
    for j in range(k):
        basis[j].copy_(work).div_(norm)
        work.copy_(matvec(basis[j]).detach())
        a = _dot(basis[j], work)
        if not math.isfinite(a):
            raise ValueError(f"matvec: expected finite products, got {a} at step {j + 1}")
        for _ in range(2):
            if deflate is not None:
                _project_out(work, deflate)
            _project_out(work, basis[: j + 1])
        norm = _norm(work)
        alpha[j], beta[j], done = a, norm, j + 1
        scale = max(scale, abs(a), norm)
        breakdown = norm <= negligible * scale or done == n
        # The eigenproblem of step k costs k^3: without a callback it is solved ever more rarely.
        if callback is not None or (tol is not None and done % (1 + done // 10) == 0):
            values, residuals = _ritz(alpha[:done], beta[:done])
            ends = {"largest": [-1], "smallest": [0], "both": [0, -1]}[which]
            close = tol is not None and float(residuals[ends].max()) <= tol * float(values.abs().max())
            if (callback is not None and callback(done, values, residuals)) or close:
                break
        if breakdown:
            break
    alpha, beta = alpha[:done], beta[:done]
    values, residuals = _ritz(alpha, beta)
    return LanczosResult(values, residuals, alpha, beta, basis[:done], work, breakdown)


# Long vectors are handled in chunks: float32 sums over all of a million parameters would lose the
# orthogonality, and a float64 copy would cost as much as two basis rows.


def _project_out(vector: Tensor, rows: Tensor) -> None:
    pieces = list(zip(rows.split(_CHUNK, 1), vector.split(_CHUNK), strict=True))
    coefficients = sum((r @ x).double() for r, x in pieces).to(vector.dtype)
    for r, x in pieces:
        x.addmv_(r.T, coefficients, alpha=-1.0)


def _dot(x: Tensor, y: Tensor) -> float:
    pairs = zip(x.split(_CHUNK), y.split(_CHUNK), strict=True)
    return float(sum(torch.dot(a.double(), b.double()) for a, b in pairs))


def _norm(x: Tensor) -> float:
    # vector_norm is safe against overflow, which a square root of a dot product is not.
    return math.hypot(*(float(torch.linalg.vector_norm(a, dtype=torch.float64)) for a in x.split(_CHUNK)))


def _eigh(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = eigh_tridiagonal(alpha.numpy(), beta[:-1].numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _ritz(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = _eigh(alpha, beta)
    return values, (beta[-1] * vectors[-1]).abs()


def start_overlap(n: int, delta: float) -> float:
    """Return t with ``Pr[|b_1| <= t] <= delta`` for b uniform on the unit sphere of R^n.

    The density of b_1 is at most ``Gamma(n/2) / (sqrt(pi) Gamma((n-1)/2)) <= sqrt((n-1)/(2 pi))``
    for n >= 3 (its maximum, and Wendel's inequality), hence
    ``t = delta sqrt(pi / (2 (n-1)))``; for n = 2 the probability is ``(2/pi) asin t <= t``.
    """
    return 1.0 if n == 1 else delta * min(1.0, math.sqrt(math.pi / (2.0 * (n - 1))))


def random_start_inflation(n: int, steps: int, delta: float) -> float:
    r"""Return f with ``sigma_max <= f sqrt(theta_k)`` except with probability delta.

    theta_k is the largest Ritz value of :math:`A = G^T G` (n x n) after k = `steps`
    products, from a start b uniform on the sphere, in exact arithmetic, and

    .. math:: f = \cosh\big(\operatorname{arcosh}(1/t) / (2k - 1)\big), \qquad \Pr[|b_1| \le t] \le \delta .

    *Proof.*  Scale the largest eigenvalue to 1, let b_1 be the component of b on its
    eigenvector, and let theta_k < a < 1.  Every polynomial p of degree at most k - 1
    has :math:`\sum_i b_i^2 p(\lambda_i)^2 (\lambda_i - a) < 0`, so
    :math:`b_1^2 p(1)^2 (1 - a) < (1 - b_1^2) \max_{[0, a]} p(x)^2 (a - x)`.
    Substitute x = a (1 - s^2) and choose p so that s p is the Chebyshev polynomial
    :math:`T_{2k-1}(s)`: the maximum is a, and at x = 1, where s = i sqrt((1-a)/a), one gets
    :math:`p(1)^2 (1 - a) = a \sinh^2 w` with w = (2k - 1) artanh sqrt(1 - a).
    Hence |b_1| < 1 / cosh w; so |b_1| >= t implies
    :math:`1/a \le \cosh^2(\operatorname{arcosh}(1/t)/(2k-1))`.

    The bound holds for all k at once on the event |b_1| > t, so the number of steps may be
    chosen while running.  It implies the probability ``1.648 sqrt(n) exp(-(2k-1) sqrt(eps))``
    of Kuczynski and Wozniakowski (with 1.596 for 1.648), and is tighter.

    References
    ----------
    Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992) 1094-1122.
    """
    return math.cosh(math.acosh(1.0 / start_overlap(n, delta)) / (2 * steps - 1))


def largest_eigenvalue(
    matvec: Matvec,
    n: int,
    *,
    steps: int,
    delta: float,
    generator: torch.Generator,
    product_error: float = 0.0,
    floor: float = 0.0,
    tol: float = 0.0,
    enough: float = 0.0,
) -> tuple[float, float]:
    r"""Bracket the largest eigenvalue of a positive semidefinite operator, rounding included.

    The upper end fails with probability at most delta over the random starts (see
    :func:`random_start_inflation`), if `matvec` does not depend on them.

    Rounding: the products, the recurrence and the loss of orthogonality are measured, and
    make Lanczos exact for some :math:`A - \Delta`, :math:`\|\Delta\| \le d`.  The subspace S of
    its eigenvalues above (its largest) - g carries the top eigenvector of A up to d / (g - d)
    (Davis-Kahan), so b has an overlap of at least t' = t - d / (g - d) with S, and the proof
    above, applied to S and to the shift by d, gives
    :math:`\lambda_{\max} \le (\theta + d) \cosh^2(\operatorname{arcosh}(1/t')/(2k-1)) + g`.
    A tiny t (a tiny delta) would need a tiny d; several independent starts with
    :math:`\delta^{1/s}` each, of which at least one is good, are used when that is tighter.

    Parameters
    ----------
    matvec : callable
        float64 product of shape (n,) to (n,).
    n : int
        Dimension.
    steps : int
        Products in all starts together.
    delta : float
        Failure probability.
    generator : torch.Generator
        Source of the starts, on the CPU.
    product_error : float
        Computed products are within ``product_error * max(lambda_max, floor) * norm(x)``.
    floor : float
        Eigenvalues below this need no relative accuracy.
    tol : float
        Stop a start when its inflation of sqrt(lambda) is at most 1 + tol.
    enough : float
        Stop a start when its upper end is at most this number.

    Returns
    -------
    tuple of float
        (lower, upper); only the upper end can fail.

    Raises
    ------
    ValueError
        If a product is not finite.
    """
    starts = _number_of_starts(n, steps, delta, product_error)
    share = delta ** (1.0 / starts)
    k = min(n, max(2, steps // starts))
    lower = upper = 0.0

    def stop(step: int, values: Tensor, _: Tensor) -> bool:
        growth, slack = _start_factor(n, step, share, 2.0 * product_error * math.sqrt(step), 0.0)
        factor = growth / (1.0 - slack) if slack < 1.0 else math.inf
        return factor <= (1.0 + tol) ** 2 or float(values[-1]) * factor <= enough

    for _ in range(starts):
        products: list[Tensor] = []

        def product(x: Tensor, kept: list[Tensor] = products) -> Tensor:
            kept.append(matvec(x))
            return kept[-1]

        run = lanczos(product, n, steps=k, generator=generator, callback=stop)
        done = len(products)
        defect, skew, size = _defect(run, products)
        rounding = 16.0 * done * UNIT_ROUNDOFF * size  # of the small eigenproblem
        top = float(run.ritz_values[-1])
        spread = product_error * math.sqrt(done)
        # |Delta| <= 2 |F|, where |F| <= defect + skew (lambda + size) + spread max(lambda, floor).
        low = top - rounding - 2.0 * (defect + skew * size + spread * floor)
        low = max(0.0, low) / (1.0 + 2.0 * (skew + spread)) / UP
        unit = max(low, floor)
        error = 2.0 * PAD * (spread + skew)
        if size > 0.0:
            error += 2.0 * PAD * (defect + skew * size) / unit if unit > 0.0 else math.inf
        growth, slack = _start_factor(n, done, share, error, 2.0 * skew, exhausted=run.breakdown)
        theta = max(0.0, top + rounding)
        # Either lambda >= floor, and its own multiple may be moved to the left, or it is below.
        high = theta * growth / (1.0 - slack) if slack < 1.0 else math.inf
        upper = max(upper, UP * max(high, min(floor, theta * growth + slack * floor)))
        lower = max(lower, low)
    return lower, upper


def _defect(run: LanczosResult, products: list[Tensor]) -> tuple[float, float, float]:
    """Return bounds of |A Q - Q T - r e_k'|_F, |Q'Q - I|_F and |T| as computed, in float64.

    Q has the basis vectors as columns and, unless the run broke down, the normalized residual
    last; after a breakdown the residual r counts as defect instead.
    """
    basis, beta, n = run.basis, run.beta, run.basis.shape[1]
    k = len(products)
    size = float((run.alpha.abs() + beta + torch.cat([beta.new_zeros(1), beta[:-1]])).max())
    squares = 0.0
    for j, product in enumerate(products):
        row = product - run.alpha[j] * basis[j]
        if j > 0:
            row -= beta[j - 1] * basis[j - 1]
        if j + 1 < k:
            row -= beta[j] * basis[j + 1]
        elif not run.breakdown:
            row -= run.residual
        squares += (_norm(row) + 8.0 * UNIT_ROUNDOFF * (_norm(product) + 2.0 * size)) ** 2
    frame = basis if run.breakdown else torch.cat([basis, (run.residual / beta[-1])[None]])
    deviation = frame @ frame.T - torch.eye(len(frame), dtype=torch.float64)
    skew = float(torch.linalg.matrix_norm(deviation)) + 2.0 * gamma(n + k) * len(frame)
    return math.sqrt(squares) * PAD, skew * PAD, size * PAD


def _number_of_starts(n: int, steps: int, delta: float, product_error: float) -> int:
    """Return how many starts share the steps best.  It must not depend on any start."""

    def inflation(starts: int) -> float:
        k = steps // starts
        error = 2.0 * (product_error * math.sqrt(k) + 2.0 * k * gamma(n + k))
        growth, slack = _start_factor(n, k, delta ** (1.0 / starts), error, error)
        return growth / (1.0 - slack) if slack < 1.0 else math.inf

    return min(range(1, max(1, min(6, steps // 2)) + 1), key=inflation)


def _start_factor(
    n: int, steps: int, delta: float, error: float, drift: float, *, exhausted: bool = False
) -> tuple[float, float]:
    """Return (growth, slack) with lambda <= growth theta + slack max(lambda, floor).

    `error` bounds d over max(lambda, floor), `drift` the change of the start.
    """
    overlap = start_overlap(n, delta) - drift - 4.0 * UNIT_ROUNDOFF
    if overlap <= 0.0:
        return math.inf, math.inf
    choices = []
    for kept in (0.5, 0.8, 0.9, 0.97, 0.99) if error > 0.0 else (1.0,):
        gap = error * (1.0 + 1.0 / ((1.0 - kept) * overlap)) if error > 0.0 else 0.0
        angle = 0.0 if exhausted else math.acosh(max(1.0, 1.0 / (kept * overlap))) / (2 * steps - 1)
        growth = math.cosh(min(angle, 300.0)) ** 2
        slack = error * growth + gap
        choices.append((growth / (1.0 - slack) if slack < 1.0 else math.inf, growth, slack))
    return min(choices)[1:]
