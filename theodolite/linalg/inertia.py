"""The largest singular value bounded by the inertia of tau^2 I - A'A: a Cholesky factorization that completes."""

from __future__ import annotations

import math

import torch
from scipy.linalg.lapack import dpotrf
from torch import Tensor

from theodolite.linalg.dense import gram
from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, gamma, lanczos, start_generator

SMALL = 1024  # up to this min(m, n), inertia is cheaper than any other proof


class Grams:
    """Gram matrices H = fl(A'A) of tall blocks A (b, m, n), and the test sigma_max(A) <= tau.

    Let s = fl(tau^2 - c), B = fl(s I - H), and let Cholesky of B complete with factor R.  With
    g_k = k u / (1 - k u) and u = 2^-53, it proves sigma_max(A) <= tau if

        c >= g_{n+4} / (1 - g_{n+4}) tr(tau^2 I - H) + g_{m+2} |A|_F^2 + 4 u tau^2 .

    1. Cholesky: |B - R'R|_ij <= g_{n+1} (|R|'|R|)_ij for any order of summation (Higham 2002, theorem
       10.3); n + 4 leaves room for reciprocals in place of divisions.  The diagonal gives
       |r_j|^2 <= B_jj / (1 - g) for the columns of R, so |B - R'R| <= g sum |r_j|^2 <= g / (1 - g) tr B,
       which bounds -lambda_min(B): theorem 2.3 of Rump (2006), formally proved by Roux (2016).
    2. Gram: |H - A'A| <= g_m |A|'|A| entrywise, hence <= g_m |A|_F^2 in norm.  Cholesky reads only one
       triangle, so that a computed H need not be symmetric.
    3. Diagonal: squaring tau, subtracting c and subtracting H_jj cost at most u tau^2 each.
    4. Underflow: entries are at most 1 and tau >= 1/4, so the at most (m + 4 n (n + 2)) 2^-1074 that
       underflow adds are within the fourth u tau^2.

    A complex sum of k terms is two real ones of 2 k terms: there g_k becomes sqrt(2) g_{2k+2}.
    """

    def __init__(self, blocks: Tensor) -> None:
        _, self.m, self.n = blocks.shape
        self.blocks, self.H = blocks, gram(blocks)
        self.diagonal = self.H.diagonal(dim1=-2, dim2=-1).real
        self.F2 = self.diagonal.sum(1) * (1.0 + 8.0 * gamma(self.m + self.n + 8))

    def constant(self, k: int) -> float:
        """Return g_k."""
        return math.sqrt(2.0) * gamma(2 * k + 2) if self.blocks.is_complex() else gamma(k)

    def margin(self, tau: float, which: list[int]) -> Tensor:
        """Return c, shape (len(which),)."""
        g = self.constant(self.n + 4)
        trace = (tau * tau - self.diagonal[which]).clamp(min=0.0).sum(1)
        c = g / (1.0 - g) * trace + self.constant(self.m + 2) * self.F2[which]
        return PAD * (c + 4.0 * UNIT_ROUNDOFF * tau * tau)

    def at_most(self, tau: float, which: list[int]) -> Tensor:
        """Return for which of the blocks sigma_max <= tau is proved."""
        B = -(self.H if which == list(range(len(self.H))) else self.H[which])
        B.diagonal(dim1=-2, dim2=-1).add_((tau * tau - self.margin(tau, which))[:, None])
        if self.n <= SMALL or B.dtype != torch.float64 or B.device.type != "cpu":
            return torch.linalg.cholesky_ex(B).info == 0
        # in place; the transpose is in Fortran's order, and symmetric
        infos = [dpotrf(block.numpy().T, overwrite_a=True, clean=False)[1] for block in B]
        return torch.tensor(infos) == 0

    def rayleigh(self, i: int, steps: int, tol: float) -> float:
        """Return a proved lower bound |A v| / |v|, v a top eigenvector of H_i (by Lanczos if steps > 0)."""
        H, n = self.H[i], self.n
        if steps == 0:
            v = torch.linalg.eigh(H).eigenvectors[:, -1]
        else:
            if H.is_complex():  # C^n as R^2n: the same eigenvalues, each twice
                H = torch.cat([torch.cat([H.real, -H.imag], 1), torch.cat([H.imag, H.real], 1)])
            # The residual enters squared in the error of the eigenvalue, whence the square root.
            accuracy, generator = 0.01 * math.sqrt(tol), start_generator(i)
            run = lanczos(H.mv, len(H), steps=steps, generator=generator, tol=accuracy, which="largest")
            v = run.ritz_vectors([-1])[:, 0]
            v = torch.complex(v[:n], v[n:]) if len(v) > n else v
        image, size = (float(torch.linalg.vector_norm(x)) for x in (self.blocks[i] @ v, v))
        error = self.constant(self.n + 2) * math.sqrt(float(self.F2[i]))
        return image / size * (1.0 - 2.0 * self.constant(self.m + 4)) - error


def inertia(blocks: Tensor, tol: float, steps: int, lower: float = 0.5) -> tuple[float, float]:
    """Raise `lower` to the blocks' largest norm, and tau from there until every block is proved below.

    Parameters
    ----------
    blocks : Tensor, shape (b, m, n), m >= n
        Real or complex, entries at most 1, the largest at least 1/2.
    tol : float
        Relative distance aimed at.
    steps : int
        Of Lanczos in a block of more than 256 columns.
    lower : float
        A lower bound known so far.

    Returns
    -------
    tuple of float
        The lower bound, and tau.
    """
    grams = Grams(blocks)
    x = torch.randn(len(blocks), grams.n, 1, dtype=blocks.dtype, generator=start_generator(0))
    for _ in range(3):  # a power iteration, only to rank the blocks
        x = torch.nn.functional.normalize(grams.H @ x, dim=1)
    score = torch.linalg.vector_norm(blocks @ x, dim=(1, 2)).tolist()
    pending = sorted(range(len(blocks)), key=score.__getitem__, reverse=True)
    looks, look = [0] * len(blocks), 1
    tau, excess = 0.0, 0.5 * tol
    while pending:
        fresh = [i for i in pending if looks[i] < 2][:look]
        for i in fresh:
            exact = grams.n <= 256 or (looks[i] == 1 and grams.n <= SMALL)
            lower = max(lower, grams.rayleigh(i, 0 if exact else steps * (1 + 2 * looks[i]), tol))
            looks[i] = 2 if exact else looks[i] + 1
        excess *= 1.0 if fresh else 4.0  # all are located: what remains is rounding and convergence
        margins = grams.margin(lower, pending) / (lower * lower)
        tau = max(tau, lower * (1.0 + max(excess, float(margins.max()))))
        passed = grams.at_most(tau, pending).tolist()
        pending = [i for i, ok in zip(pending, passed, strict=True) if not ok]
        look = max(2, len(pending) // 2)
    return lower, tau
