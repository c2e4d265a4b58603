r"""A convex upper bound of the spectral norm of a tensor that is nearly always exact.

Let :math:`x=\bigotimes_{k\in S}a_k` and :math:`y=\bigotimes_{k\notin S}a_k` for unit vectors a_k, and let
:math:`T_S` be the unfolding of T with the modes S as rows.  Call a symmetric N *null* if
:math:`(a\otimes b)^\top N(a\otimes b)=0` for all a and b; such are the sums of products
:math:`A\otimes B` of antisymmetric matrices.  For N and N' null on S and on the other modes (each side split
into two groups of modes, a and b)

.. math:: \langle T,\otimes a_k\rangle = \tfrac12\binom xy^\top
          \begin{pmatrix}N&T_S\\T_S^\top&N'\end{pmatrix}\binom xy \le \lambda_{\max}(N,N'),
          \qquad \langle T,\otimes a_k\rangle^2\le\|T_S^\top x\|^2\le\lambda_{\max}(T_ST_S^\top+N).

With N = 0 these are the norms of the unfolding.  Every null matrix gives a valid bound; minimizing over them
is convex, the dual of the relaxation of x x' by positive semidefinite matrices that equal their partial
transposes (Doherty, Parrilo and Spedalieri, Phys. Rev. A 69, 022308 (2004)).  For order 3 it is exact if one
of the two modes in S has dimension 2: then nonnegative biquadratic forms are sums of squares (Calderon, Linear
Algebra Appl. 7 (1973) 175-177).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from theodolite.atoms.tensor_contractions import middle, unfold
from theodolite.core.params import Params
from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.spectral import sigma_max
from theodolite.optim.lbfgs import minimize

_DENSE = 300  # up to this size all eigenvectors are computed
_BLOCK, _MOST = (
    24,
    120,
)  # otherwise at least, and at most, so many of the largest are followed from step to step
_STEPS = 60
_TAIL = 14.0  # times its width below the largest an eigenvalue has a weight of 1e-6 in the soft maximum


class NullSpace:
    r"""The null matrices of two groups of modes of dimensions (n, m): sums of products of antisymmetric ones.

    They are held as coefficients, shape (n (n - 1) / 2, m (m - 1) / 2), of
    :math:`\frac12(E_{ik}-E_{ki})\otimes(E_{jl}-E_{lj})`, i < k, j < l.  Entries of the matrix are coefficients
    with either sign, so that it is null in floating point, too.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        cut = middle(dims) if len(dims) > 1 else 1
        self.groups = math.prod(dims[:cut]), math.prod(dims[cut:])
        self.size = math.prod(dims)
        self.pairs = [torch.triu_indices(n, n, 1) for n in self.groups]
        self.places = [(i * n + k, k * n + i) for (i, k), n in zip(self.pairs, self.groups, strict=True)]

    def zero(self) -> Tensor:
        """Return the coefficients of zero."""
        return torch.zeros(*(pairs.shape[1] for pairs in self.pairs), dtype=torch.float64)

    def matrix(self, coefficients: Tensor) -> Tensor:
        """Return the matrix, shape (n m, n m)."""
        n, m = self.groups
        (ik, ki), (jl, lj) = self.places
        whole, half = torch.zeros(n * n, m * m, dtype=torch.float64), 0.5 * coefficients
        rows = torch.zeros(len(half), m * m, dtype=torch.float64)
        rows[:, jl], rows[:, lj] = half, -half
        whole[ik], whole[ki] = rows, -rows
        return whole.view(n, n, m, m).permute(0, 2, 1, 3).reshape(n * m, n * m)

    def coefficients(self, G: Tensor) -> Tensor:
        """Return those of the orthogonal projection of a symmetric matrix; also the gradient for them."""
        n, m = self.groups
        (ik, _ki), (jl, lj) = self.places
        # of a symmetric G the other two of four terms are the same
        rows = G.view(n, m, n, m).permute(0, 2, 1, 3).reshape(n * n, m * m)[ik]
        return rows[:, jl] - rows[:, lj]


@dataclass(frozen=True)
class Relaxation:
    """Minimize lambda_max(K + N) over null N; K is T_S T_S' (one side) or the dilation of T_S (two).

    Attributes
    ----------
    K : Tensor, shape (m, m)
    sides : tuple of NullSpace
        One for each diagonal block of K.
    squared : bool
        Whether the bound is the root of the eigenvalue.
    """

    K: Tensor
    sides: tuple[NullSpace, ...]
    squared: bool

    @classmethod
    def of(cls, T: Tensor, modes: Sequence[int], *, both: bool) -> Relaxation:
        """Return the relaxation of a tensor for the modes S: null matrices for both sides, or for S only."""
        rest = tuple(k for k in range(T.ndim) if k not in modes)
        A = unfold(T, modes)
        rows, cols = (tuple(T.shape[k] for k in side) for side in (modes, rest))
        if not both:
            return cls(A @ A.T, (NullSpace(rows),), squared=True)
        zero = [torch.zeros(n, n, dtype=A.dtype, device=A.device) for n in A.shape]
        K = torch.cat([torch.cat([zero[0], A], 1), torch.cat([A.T, zero[1]], 1)])
        return cls(K, (NullSpace(rows), NullSpace(cols)), squared=False)

    def zero(self) -> list[Tensor]:
        """Return coefficients of zero, for each side."""
        return [side.zero() for side in self.sides]

    def null(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the null matrix of given coefficients, of the size of K."""
        return torch.block_diag(*(side.matrix(c) for c, side in zip(parts, self.sides, strict=True)))

    def largest(self, parts: Sequence[Tensor]) -> float:
        """Return the largest eigenvalue for given coefficients, not proved."""
        return float(torch.linalg.eigvalsh(self.K + self.null(parts))[-1])

    def coefficients(self, G: Tensor) -> list[Tensor]:
        """Return the coefficients, for each side, of the projection of a symmetric matrix."""
        found, start = [], 0
        for side in self.sides:
            here = slice(start, start + side.size)
            found.append(side.coefficients(G[here, here]))
            start += side.size
        return found

    def compressed(self, bases: Sequence[Sequence[Tensor]]) -> tuple[Relaxation, Tensor]:
        """Return the relaxation on subspaces, and their basis.

        Parameters
        ----------
        bases : sequence for each side of Tensors (n_k, q_k)
            Orthonormal columns for each mode.
        """
        frame = torch.block_diag(*(reduce(torch.kron, list(side)) for side in bases))
        K = frame.T @ self.K @ frame
        sides = tuple(NullSpace([B.shape[1] for B in side]) for side in bases)
        return replace(self, K=0.5 * (K + K.T), sides=sides), frame

    def minimize(
        self, parts: list[Tensor], *, enough: float, least: float, deadline: float, softest: float = 0.1
    ) -> tuple[list[Tensor], float]:
        """Return better coefficients, and an estimate of their eigenvalue.

        L-BFGS on the soft maximum of the eigenvalues, ever less soft.

        Parameters
        ----------
        parts : list of Tensor
            Coefficients to start from.
        enough : float
            An eigenvalue to stop at.
        least : float
            No null matrix has a smaller one.
        deadline : float
        softest : float
            Width of the first soft maximum, relative to the eigenvalue.
        """
        eigen = _Largest(len(self.K))
        top = float(eigen(self.K + self.null(parts), fresh=True)[0][-1])
        scale, best, smoothing, idle = top, (parts, top), softest, 0
        while idle < 2 and smoothing > 1e-7 and time.monotonic() < deadline:
            if best[1] <= max(enough, least * (1.0 + 1e-9)):
                break

            def soft(point: Params, mu: float = smoothing * scale) -> tuple[float, list[Tensor]]:
                values, vectors = eigen(self.K + self.null(point), _TAIL * mu)
                weights = ((values - values[-1]) / mu).exp()
                value = float(values[-1]) + mu * math.log(float(weights.sum()))
                weights = weights / weights.sum()
                V = vectors[:, weights > 1e-12]
                return value, self.coefficients((V * weights[weights > 1e-12]) @ V.T)

            moved, _ = minimize(
                soft,
                tuple(best[0]),
                max_iterations=_STEPS,
                memory=10,
                deadline=deadline,
                ftol=1e-3 * smoothing,
            )
            now = float(eigen(self.K + self.null(moved), _TAIL * smoothing * scale, fresh=True)[0][-1])
            idle = 0 if now < best[1] - 1e-9 * scale or smoothing > 1e-3 else idle + 1
            if now < best[1]:
                best = list(moved), now
            smoothing *= 0.3
        return best

    def prove(self, parts: Sequence[Tensor], error: float) -> float:
        r"""Return a proved upper bound of the spectral norm, rounding enclosed.

        K was computed with an error of norm at most `error`.  The null matrix is one exactly; adding it, and
        a shift that makes the largest eigenvalue the largest singular value, rounds each entry of the sums
        once.  The rest is the proof of :func:`sigma_max`.
        """
        N = self.null(parts)
        K = self.K + N
        shift = 1.01 * float(torch.linalg.eigvalsh(K)[0].abs())
        shifted = K + shift * torch.eye(len(K), dtype=K.dtype)
        rounding = 2.0 * UNIT_ROUNDOFF * (float(K.norm()) + float(shifted.norm()))
        high = sigma_max(shifted, method="inertia", tol=1e-12).high
        top = max(high - shift + PAD * (rounding + error) + 4.0 * UNIT_ROUNDOFF * (high + shift), 0.0)
        return math.sqrt(top) * UP if self.squared else top


class _Largest:
    """The largest eigenvalues of a sequence of nearby symmetric matrices, ascending, and their vectors."""

    def __init__(self, size: int) -> None:
        self.dense = size <= _DENSE
        self.vectors: Tensor | None = None

    def __call__(self, K: Tensor, width: float = 0.0, fresh: bool = False) -> tuple[Tensor, Tensor]:
        """Return those within a width of the largest, and some more; anew, or from the last ones by a Krylov step."""
        if self.dense or fresh or self.vectors is None:
            values, vectors = torch.linalg.eigh(K)
            if self.dense:
                return values, vectors
        else:
            V = self.vectors
            W = K @ V
            basis = torch.linalg.qr(torch.cat([V, W, K @ W], 1)).Q
            values, small = torch.linalg.eigh(basis.T @ (K @ basis))
            vectors = basis @ small[:, -_MOST:]
        # near the optimum many cluster at the top, and all of them shape the gradient
        count = max(_BLOCK, min(_MOST, int((values >= values[-1] - width).sum())))
        self.vectors = vectors[:, -count:]
        return values[-count:], self.vectors


def gram_error(T: Tensor, modes: Sequence[int]) -> float:
    """Return a bound of the norm of the rounding error of T_S T_S' as computed."""
    n = T.numel() // math.prod(T.shape[k] for k in modes)
    return gamma(n + 2) * float(T.norm()) ** 2 * PAD
