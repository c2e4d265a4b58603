r"""The largest norm that a matrix gives a vector of signs: :math:`\max_{s\in\{\pm1\}^m}\|Qs\|`, l2 or l1.

NP-hard in general.  From inside: ascent over sign vectors.  From outside: all of them where m is small, else

.. math:: \|Qs\|_2 \le \Big(\sum_j r_j\Big)^{1/2}\sigma_{\max}(QR^{-1/2}), \qquad
          \|Qs\|_1 \le \Big(\sum_i p_i\sum_j r_j\Big)^{1/2}\sigma_{\max}(P^{-1/2}QR^{-1/2})

for any positive diagonals P, R, because :math:`\|R^{1/2}s\|_2^2=\sum_j r_j` for every s.  At the best of them the
first is at most :math:`\sqrt{\pi/2}`, the second 1.783 (Krivine's bound of Grothendieck's constant) times the truth.

References
----------
Nesterov, Optim. Methods Softw. 9 (1998) 141-160; Alon and Naor, SIAM J. Comput. 35 (2006) 787-803; Burer and
Monteiro, Math. Program. 95 (2003) 329-357.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.pattern import Pattern
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.linalg.spectral import sigma_max
from theodolite.linalg.subspace import Product, leading_triplets
from theodolite.optim.lbfgs import minimize
from theodolite.polar.scaling import power, scaled_back
from theodolite.value import Value

__all__ = ["SignMatrix", "best_signs", "sign_maximum"]

_ENUMERATED = 2.0**25  # norms of all sign vectors are compared up to so much work
_QUICK = 5e7  # products that are done even when no time is left
_CHUNK = 1 << 20
_GRAM = 2000  # columns up to which Q'Q is formed for the search
_RANDOM = 24  # random starts
_SIDES = 12  # leading singular vectors whose signs are starts
_KEPT = 24  # sign vectors returned
_WIDTH = 40  # largest rank of the relaxation's factor; any gives a bound


@dataclass(frozen=True)
class SignMatrix:
    """A matrix and the norm of its products with signs.

    Attributes
    ----------
    Q : Tensor, shape (n, m)
        Float64 on the CPU, dense or coalesced sparse COO.
    norm : {"l2", "l1"}
    """

    Q: Tensor
    norm: str

    @cached_property
    def products(self) -> tuple[Product, Product]:
        """Products with Q and its transpose, of blocks of columns."""
        if not self.Q.is_sparse:
            return lambda X: self.Q @ X, lambda Y: self.Q.T @ Y
        rows, cols = self.Q.indices()
        return Pattern(rows, cols, (self.Q.shape[0], self.Q.shape[1])).products(self.Q.values())

    @cached_property
    def gram(self) -> Tensor | None:
        """Q'Q, where a search can use it."""
        m = self.Q.shape[1]
        if self.norm != "l2" or m > _GRAM:
            return None
        if not self.Q.is_sparse:
            return self.Q.T @ self.Q
        forward, adjoint = self.products
        blocks = torch.eye(m, dtype=torch.float64).split(256, 1)
        return torch.cat([adjoint(forward(block)) for block in blocks], 1)

    @cached_property
    def row_sums(self) -> Tensor:
        """Sums of sizes in each row, shape (n,)."""
        return _dense(self.Q.abs().sum(1))

    @property
    def crude(self) -> float:
        """A bound of the norm of |Q| 1, rounding enclosed."""
        return self.length(self.row_sums[:, None])[0].item() * (1.0 + gamma(sum(self.Q.shape) + 8))

    def length(self, columns: Tensor) -> Tensor:
        """Return the norm of each column."""
        return torch.linalg.vector_norm(columns, 2.0 if self.norm == "l2" else 1.0, dim=0)

    def values(self, S: Tensor) -> Tensor:
        """Return ||Q s|| for each row s of S."""
        return self.length(self.products[0](S.T))

    def pull(self, S: Tensor) -> Tensor:
        """Return Q'x for the x that attains ||Q s||, up to a positive factor, for each row s: an ascent direction."""
        forward, adjoint = self.products
        Y = forward(S.T)
        return adjoint(Y if self.norm == "l2" else Y.sign()).T

    def scaled(self, left: Tensor | None, right: Tensor) -> Tensor:
        """Return diag(left) Q diag(right)."""
        if not self.Q.is_sparse:
            return (self.Q if left is None else left[:, None] * self.Q) * right
        (i, j), x = self.Q.indices(), self.Q.values()
        x = x * right[j] if left is None else left[i] * x * right[j]
        return torch.sparse_coo_tensor(
            self.Q.indices(), x, self.Q.shape, check_invariants=False, is_coalesced=True
        )


def _dense(x: Tensor) -> Tensor:
    return x.to_dense() if x.is_sparse else x


def _signs(count: int) -> Tensor:
    """Return all sign vectors of a length, shape (2^count, count)."""
    bits = torch.arange(2**count)[:, None] >> torch.arange(count)
    return 1.0 - 2.0 * (bits & 1).double()


def _enumerated(A: SignMatrix, most: float) -> tuple[float, Tensor] | None:
    """Return an upper bound by all sign vectors, rounding enclosed, and the best one; None for more work than `most`.

    The vector is cut in two, s = (a, b) with the last sign +1 (s and -s are alike), so that all squares
    a'Ga + 2 a'Gb + b'Gb, G = Q'Q, are one matrix product.  They err by gamma(n + 2 m + 8) times the squared l2 norm
    of |Q| 1, and sums of sizes by gamma(n + m + 8) times its l1 norm.
    """
    n, m = A.Q.shape
    if m > 60 or 2.0 ** (m - 1) * (1 if A.norm == "l2" else n) > most:
        return None
    Q, half = A.Q.to_dense() if A.Q.is_sparse else A.Q, m // 2
    left, right = _signs(half), _signs(m - half - 1)
    right = torch.cat([right, torch.ones(len(right), 1, dtype=torch.float64)], 1)
    best, place = -1.0, (0, 0)
    if A.norm == "l2":
        G = Q.T @ Q
        over, across = (left @ G[:half, :half] * left).sum(1), 2.0 * (G[:half, half:] @ right.T)
        beside = (right @ G[half:, half:] * right).sum(1)
        blocks = left.split(max(1, _CHUNK // len(right)))
    else:
        first, second = Q[:, :half] @ left.T, Q[:, half:] @ right.T
        blocks = left.split(max(1, _CHUNK // (n * len(right))))
    start = 0
    for block in blocks:
        stop = start + len(block)
        if A.norm == "l2":
            found = over[start:stop, None] + (block @ across + beside)
        else:
            found = (first[:, start:stop, None] + second[:, None, :]).abs().sum(0)
        top = int(found.argmax())
        if float(found.flatten()[top]) > best:
            best, place = float(found.flatten()[top]), (start + top // len(right), top % len(right))
        start = stop
    s = torch.cat([left[place[0]], right[place[1]]])[None]
    if A.norm == "l2":
        return math.sqrt(max(best, 0.0) + PAD * gamma(n + 2 * m + 8) * A.crude**2) * UP, s
    return (best + PAD * gamma(n + m + 8) * A.crude) * UP, s


def _relaxed(A: SignMatrix, seed: int, deadline: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return diagonals R and P (None for l2) near the best of the bound, and a factor Y whose rows replace signs.

    The dual of the bound is the largest ||Q Y||_F (sum of the lengths of its rows, for l1) over Y of shape
    (m, k) with rows of length 1, found by L-BFGS; at its solution X, the same with sides exchanged, the
    multipliers are the lengths of the rows of Q'X and QY.
    """
    n, m = A.Q.shape
    forward, adjoint = A.products
    k = min(m, _WIDTH, math.ceil(math.sqrt(2 * (m + (n if A.norm == "l1" else 0)))) + 1)
    Y = torch.randn(m, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def other(Y: Tensor) -> tuple[float, Tensor]:
        image = forward(Y)
        size = image.norm(dim=1, keepdim=True) if A.norm == "l1" else image.norm()
        return float(size.sum()), image / size.clamp(min=1e-300)

    def objective(point: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
        length = point[0].norm(dim=1, keepdim=True)
        unit = point[0] / length
        value, X = other(unit)
        slope = adjoint(X)
        slope = (slope - unit * (slope * unit).sum(1, keepdim=True)) / length
        return -value, (-slope,)

    Y = _unit_rows(adjoint(other(_unit_rows(Y))[1]))
    (Y,), _ = minimize(objective, (Y,), ftol=1e-9, max_iterations=400, deadline=deadline)
    Y = _unit_rows(Y)
    _, X = other(Y)
    left = forward(Y).norm(dim=1) if A.norm == "l1" else None
    return adjoint(X).norm(dim=1), left, Y


def _unit_rows(Y: Tensor) -> Tensor:
    """Return the rows with length 1, any direction for a zero row."""
    length = Y.norm(dim=1, keepdim=True)
    return torch.where(length > 0.0, Y / length.clamp(min=1e-300), Y.shape[1] ** -0.5)


def _proved(A: SignMatrix, R: Tensor, P: Tensor | None, delta: float, seed: int) -> tuple[float, float]:
    """Return the bound at diagonals R and P, rounding enclosed, and its confidence.

    With d = fl(r^(-1/2)) any positive numbers serve: ||Qs|| <= sigma_max(Q D) |D^-1 s|.  The product as
    computed errs by gamma(2) of each entry, and sigma_max of that is at most its Frobenius norm.
    """
    factors: list[Tensor | None] = []
    size = 1.0
    for weights, sums in ((P, A.row_sums), (R, _dense(A.Q.abs().sum(0)))):
        if weights is None:
            factors.append(None)
            continue
        used = sums > 0.0  # a zero column costs nothing, whatever its sign
        mean = float(weights[used].mean())
        d = torch.where(used, weights.clamp(min=1e-9 * mean if mean > 0.0 else 1.0).rsqrt(), 0.0)
        factors.append(d)
        size *= float(torch.where(used, d.square().reciprocal(), 0.0).sum()) * (1.0 + gamma(len(d) + 8))
    right = factors[1]
    assert right is not None
    T = A.scaled(factors[0], right)
    entries = T.values() if T.is_sparse else T
    proved = sigma_max(T, tol=1e-6, delta=delta, seed=seed)
    error = PAD * gamma(4) * float(entries.norm()) * (1.0 + gamma(entries.numel()))
    return math.sqrt(size) * (proved.high + error) * UP, proved.confidence


def best_signs(
    A: SignMatrix, starts: Tensor | None = None, *, seed: int = 0, deadline: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Return sign vectors none of which one flip improves (as far as the search went), best first, and their norms.

    Parameters
    ----------
    A : SignMatrix
    starts : Tensor, shape (b, m), optional
        Vectors whose signs are starts, beside those of singular vectors and random ones.
    seed : int
    deadline : float
        Value of ``time.monotonic()`` at which to stop; the starts are evaluated all the same.

    Returns
    -------
    S : Tensor, shape (b, m)
        Signs, the first of each +1, none twice.
    values : Tensor, shape (b,)
    """
    m = A.Q.shape[1]
    generator = torch.Generator().manual_seed(seed)
    S = [torch.randn(_RANDOM, m, generator=generator, dtype=torch.float64)]
    if time.monotonic() < deadline:
        block = torch.randn(m, min(m, _SIDES), generator=generator, dtype=torch.float64)
        S.append(leading_triplets(*A.products, block)[2].T[:_SIDES])
    if starts is not None:
        S.append(starts)
    signs = _sign(torch.cat(S))
    for _ in range(100):  # convex: the signs of the gradient never lose
        if time.monotonic() > deadline:
            break
        pull = A.pull(signs)
        fresh = torch.where(pull == 0.0, signs, pull.sign())
        if torch.equal(fresh, signs):
            break
        signs = fresh
    if (G := A.gram) is not None:
        signs = _flipped(G, signs, deadline)
    signs = torch.unique(signs * signs[:, :1], dim=0)
    values = A.values(signs)
    order = values.argsort(descending=True)
    return signs[order], values[order]


def _flipped(G: Tensor, S: Tensor, deadline: float) -> Tensor:
    """Return sign vectors whose s'Gs no single flip improves, from each row of S by the best flip each time."""
    H, diagonal, rows = S @ G, G.diagonal(), torch.arange(len(S))
    least = 1e-12 * float(diagonal.sum())
    for step in range(20 * S.shape[1]):
        gain, place = (diagonal - S * H).max(1)
        improving = gain > least
        if not bool(improving.any()) or (step % 16 == 0 and time.monotonic() > deadline):
            break
        i, j = rows[improving], place[improving]
        S = S.index_put((i, j), -S[i, j])
        H[i] += 2.0 * S[i, j][:, None] * G[j]
    return S


def _sign(x: Tensor) -> Tensor:
    return torch.where(x < 0.0, -1.0, 1.0).double()


def sign_maximum(
    Q: Tensor,
    norm: str = "l2",
    *,
    starts: Tensor | None = None,
    target: float | None = None,
    budget: float | None = None,
    seed: int = 0,
    delta: float = 1e-9,
) -> Value:
    r"""Return both ends of :math:`\max_{s\in\{\pm1\}^m}\|Qs\|`.

    Parameters
    ----------
    Q : Tensor, shape (n, m)
        Finite; dense or sparse COO.  A sparse one is not made dense, except to compare all signs of few columns;
        with up to 2,000 columns a dense matrix of (m, m) is formed for the search.
    norm : {"l2", "l1"}
    starts : Tensor, shape (b, m), optional
        Vectors whose signs the search starts from.
    target : float, optional
        Stop when the upper end is at most this, or the lower end above.
    budget : float, optional
        Seconds to aim at; 0 for the cheapest bound, which for a small matrix is one diagonal, not the best.
    seed, delta : int, float
        Of random starts; failure probability that the upper end may have.

    Returns
    -------
    Value
        A bound; its witness is a tensor of sign vectors, best first, shape (b, m).
    """
    deadline = math.inf if budget is None else time.monotonic() + budget
    Q = (Q.coalesce() if Q.is_sparse else Q).detach().to("cpu", torch.float64)
    entries = Q.values() if Q.is_sparse else Q
    top = float(entries.abs().max()) if entries.numel() else 0.0
    if top == 0.0:
        return Value.bound(0.0, 0.0, witness=torch.ones(1, Q.shape[1], dtype=torch.float64), note="Q is zero")
    exponent = math.frexp(top)[1]
    entries = power(entries, -exponent)  # exact: no square overflows, or underflows where it matters
    if Q.is_sparse:
        entries = torch.sparse_coo_tensor(
            Q.indices(), entries, Q.shape, check_invariants=False, is_coalesced=True
        )
    if target is not None:
        target = ldexp_rounded(target, -exponent, -1)
    return scaled_back(_bracket(SignMatrix(entries, norm), starts, target, deadline, seed, delta), exponent)


def _bracket(
    A: SignMatrix, starts: Tensor | None, target: float | None, deadline: float, seed: int, delta: float
) -> Value:
    """Return :func:`sign_maximum` of a matrix of moderate size."""
    upper, confidence, note = A.crude, 1.0, "norm of |Q| 1"
    candidates = [] if starts is None else [starts]
    n, m = A.Q.shape
    in_time = time.monotonic() < deadline
    if (in_time or n * m * min(n, m) <= _QUICK) and (target is None or upper > target):
        if (found := _enumerated(A, _ENUMERATED if in_time else min(_ENUMERATED, 1e-2 * _QUICK))) is not None:
            (upper, s), note = found, "all sign vectors, rounding enclosed"
            candidates.append(s)
        else:
            # a search that already beats the target leaves the costly half of the bound for later
            S, values = best_signs(A, starts, seed=seed, deadline=deadline)
            candidates.append(S[:_KEPT])
            until = deadline if target is None or float(values[0]) <= target else 0.0
            R, P, Y = _relaxed(A, seed, until)
            g = torch.randn(
                Y.shape[1], _RANDOM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            candidates.append((Y @ g).T)
            proved, sure = _proved(A, R, P, delta, seed)
            if proved < upper:
                upper, confidence, note = proved, sure, "diagonal relaxation, rounding enclosed"
    S, values = best_signs(A, torch.cat(candidates) if candidates else None, seed=seed + 1, deadline=deadline)
    S, values = S[:_KEPT], values[:_KEPT]
    lower = float(values[0]) * (1.0 - gamma(A.Q.shape[0] + 8)) - PAD * gamma(A.Q.shape[1] + 8) * A.crude
    better = values > (0.0 if target is None else target)
    S = S[better] if bool(better.any()) else S[:1]
    return Value.bound(
        min(max(lower, 0.0), upper), upper, confidence=confidence, witness=S, note=f"upper end: {note}"
    )
