r"""What a block of random vectors proves about the largest singular value, by Chebyshev polynomials.

Let :math:`\mu > 0`, :math:`M = 2 A^\top A / \mu^2 - I`, :math:`\Omega` an (n, b) matrix of standard
normal numbers and :math:`Y_k = T_k(M)\,\Omega`.  If :math:`\sigma = \sigma_{\max}(A) > \mu`, its right
singular vector v gives :math:`\|Y_k\|_F \ge T_k(\theta)\,|v^\top\Omega|` with
:math:`\theta = 2\sigma^2/\mu^2 - 1`, while the singular values up to :math:`\mu` do not grow at all.  As
:math:`|v^\top\Omega|^2` is chi-squared with b degrees of freedom, it exceeds t except with probability
:math:`\int_0^t x^{b/2-1} e^{-x/2} / (2^{b/2}\Gamma(b/2))\,dx \le (t/2)^{b/2} / \Gamma(b/2 + 1)`.
Hence :math:`T_k(\theta) \le \|Y_k\|_F / \sqrt t` for all k at once.

A block needs far fewer passes than one vector, for which t is of the order of the squared failure
probability, and costs little more where products are limited by reading the matrix.

Rounding.  The computed iterates satisfy :math:`Y_j = 2 M Y_{j-1} - Y_{j-2} + E_j`, and so
:math:`Y_k = T_k(M)\Omega + \sum_j U_{k-j}(M) E_j`.  With products of :math:`A^\top A` within
:math:`e\,\sigma^2`, and :math:`\eta = 2 (\theta + 1)(e + 16 u)`,

.. math:: \|E_j\|_F \le \eta\,(\|Y_{j-1}\|_F + \|Y_{j-2}\|_F), \qquad
          \|U_{k-j}(M)\| \le U_{k-j}(\theta) \le k\,T_k(\theta),

the last because :math:`U_i` is a sum of at most i + 1 polynomials :math:`T_j`, :math:`j \le i`.  Therefore

.. math:: T_k(\theta)\Big(\sqrt t - 2 k \eta \sum_{j<k}\|Y_j\|_F\Big) \le \|Y_k\|_F .

The norms are those computed, and in :math:`\eta` the last bound stands for :math:`\sigma`: all of them
hold at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP

WIDTH = 8  # vectors in a block: more cost more, fewer need more passes
_LOOK = 4  # steps between two looks at the bound


def least_length(width: int, delta: float) -> float:
    """Return s such that `width` independent normal numbers have a norm below s with probability <= delta."""
    return math.sqrt(2.0) * math.exp((math.log(delta) + math.lgamma(0.5 * width + 1.0)) / width) / UP


def steps_needed(n: int, ratio: float, delta: float) -> float:
    """Return how many steps should prove sigma_max <= ratio * mu when no singular value exceeds mu.

    Parameters
    ----------
    n : int
        Columns of the matrix.
    ratio, delta : float
        ``ratio > 1``, and the failure probability.
    """
    size = math.sqrt(0.5 * n * WIDTH)  # that of a block whose components all oscillate
    return math.acosh(max(1.0, size / least_length(WIDTH, delta))) / (2.0 * math.acosh(ratio))


def largest_singular_value(
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    n: int,
    *,
    mu: float,
    ceiling: float,
    enough: float,
    steps: int,
    delta: float,
    generator: torch.Generator,
    product_error: float,
) -> float:
    """Return an upper bound of sigma_max that fails with probability at most delta, rounding enclosed.

    Parameters
    ----------
    forward, adjoint : callable
        Float64 products of blocks of vectors with the matrix, (n, b) to (m, b), and with its transpose.
    n : int
        Columns of the matrix.
    mu : float
        Positive; the closer to sigma_max, from either side, the closer the bound.
    ceiling : float
        A bound of sigma_max known before; may be inf, and then nothing is proved.
    enough : float
        The bound at which to stop.
    steps : int
        Pairs of products at most.
    delta : float
        Failure probability.
    generator : torch.Generator
        Source of the block, on the CPU.
    product_error : float
        Both products are within ``product_error * sigma_max * norm(x)`` of the exact ones.
    """
    c = 4.0 / (mu * mu)
    mu = math.sqrt(4.0 / c)  # so that rounding c needs no thought
    pair = 2.0 * product_error + product_error**2
    length = least_length(WIDTH, delta)
    before = torch.randn(n, WIDTH, dtype=torch.float64, generator=generator)
    now = 0.5 * c * adjoint(forward(before)) - before
    bound, total = ceiling, PAD * float(before.norm())
    for k in range(1, steps + 1):
        size = PAD * float(now.norm())
        if not math.isfinite(size) or size > 1e150:
            break
        if k % _LOOK == 0 or k in (1, 2, steps):
            eta = PAD * c * bound**2 * (pair + 16.0 * UNIT_ROUNDOFF)  # 2 (theta + 1) = c sigma^2
            left = length - 2.0 * k * eta * total
            if left > 0.0:
                growth = math.acosh(max(1.0, size / left)) / k
                bound = min(bound, UP * mu * math.cosh(0.5 * growth) * UP)
            if bound <= enough:
                break
        total += size
        before, now = now, c * adjoint(forward(now)) - 2.0 * now - before
    return bound
