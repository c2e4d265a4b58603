r"""The harmonic bound of the ReLU polar, for any number of inputs, outputs, rows and cells.

With the moments of :mod:`theodolite.polar.harmonic`, S = 1, and polynomials :math:`c=\sum_lc_lP_l`,
:math:`e=\sum_le_lP_l\ge0` and a number a for which :math:`|\mathrm{relu}(t)-c(t)|\le a+e(t)` on [-1, 1],

.. math:: F(w)\le\max_{\|u\|=1}\Big(\sum_l|c_l|(u^TM_lu)^{1/2}+a\sum_c(S_c\,u_c^TC_cu_c)^{1/2}\Big)
   +e_0+\sum_{l\ge1}|e_l|m'_l,

where :math:`C_c=\sum_{i\in c}\tilde Q_i\tilde Q_i^T/\|\tilde Q_i\|`: the rows' own weights
:math:`|\tilde Q_i\cdot u|` multiply the error a (Cauchy and Schwarz), not their norms.  The maximum is over one u for
all degrees, hence at most :math:`\lambda_{\max}(N)+\frac12\sum_l|c_l|b_l+\frac a2\sum_cb'_c` for any positive b with

.. math:: N=\sum_l\frac{|c_l|}{2b_l}M_l+\mathrm{diag}_c\Big(\frac{aS_c}{2b'_c}C_c\Big),

and equal to it at the best b, since :math:`\rho\mapsto\langle\rho,M_l\rangle^{1/2}` is concave on density matrices.
The best coefficients solve a linear program for finitely many :math:`\rho`; those that the solution calls for are
added, a few times.  The pair (c + e, c - e) is one polynomial above relu and one below, so that one-sided
envelopes are included; on all data tried e gained less than 0.2 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UNIT_ROUNDOFF, UP, gamma
from theodolite.linalg.symmetric import leading_eigenpairs, proved_eigenvalue
from theodolite.polar.harmonic import Moment, Moments, gegenbauer, kernel_error

__all__ = ["harmonic_program"]

_FINE = 1 << 15  # angles at which an envelope is checked
_CUTS, _STEPS = 6, 30  # densities added, and steps towards each
_CLOSE = 1e-3  # relative distance from the program's value at which no more are

Array = NDArray[np.float64]


def harmonic_program(moments: Moments, *, envelope: bool = True, joint: bool = True) -> float:
    """Return the least harmonic bound that the linear program finds, proved on all of [-1, 1] and for all u.

    Parameters
    ----------
    moments : Moments
        Of degree 0 at least.
    envelope : bool
        False for e = 0.
    joint : bool
        False for coefficients that are the best where each degree may have a maximum of its own.
    """
    program = _Program.of(moments, envelope)
    x, _ = program.solve([_separate(moments)])
    best, density, cuts = math.inf, None, []
    for _ in range(_CUTS if joint else 1):
        bound, density = _choice_bound(moments, program.choice(x), density)
        best = min(best, bound)
        cuts.append(_costs(moments, density))
        if not joint or bound > 3.0 * best:
            break
        x, value = program.solve(cuts)
        if best <= value * (1.0 + _CLOSE):
            break
    return best * moments.S * UP


@dataclass(frozen=True)
class _Choice:
    """Coefficients for which a + e bounds the error of c, and e is nonnegative: proved."""

    c: Array  # of each moment
    a: float
    rest: float  # e_0 + sum |e_l| m'_l


@dataclass(frozen=True)
class _Program:
    r"""Minimize t + e_0 + sum |e_l| m'_l: t at least what each density makes of c and a, at the nodes.

    The nodes are cosines of equidistant angles.  Between the angles of a finer grid, h apart, a trigonometric
    polynomial of degree L bounded by B exceeds its chord by at most :math:`h^2L^2B/8` (Bernstein); the kink is a node,
    and relu's own second derivative in the angle is at most 1.  What is lacking there is added to a and to e_0.
    """

    moments: Moments
    degrees: list[int]  # of c, one for each moment
    enveloping: list[int]  # of e, from 1; empty for e = 0
    rows: Array
    right: Array
    rest: Array  # costs of e_0, e+ and e-

    @classmethod
    def of(cls, moments: Moments, envelope: bool) -> _Program:
        nodes = _cosines(16 * max(moments.degree, 4))
        degrees = [moment.degree for moment in moments.several]
        enveloping = sorted(moments.plus) if envelope else []
        basis = torch.stack(gegenbauer(torch.from_numpy(nodes), moments.d, moments.degree), 1).numpy()
        model, one = basis[:, degrees], np.ones((len(nodes), 1))
        e = np.hstack([one, basis[:, enveloping], -basis[:, enveloping]]) if envelope else one[:, :0]
        relu, none = nodes.clip(min=0.0), np.zeros_like(model)
        rows = [
            np.hstack([model, -model, -one, -e]),
            np.hstack([-model, model, -one, -e]),
            np.hstack([none, none, 0.0 * one, -e]),
        ]
        right = [relu, -relu, 0.0 * relu]
        rest = [1.0, *(moments.plus[k] for k in enveloping), *(moments.minus[k] for k in enveloping)]
        several = rows if envelope else rows[:2]
        return cls(
            moments,
            degrees,
            enveloping,
            np.vstack(several),
            np.concatenate(right[: len(several)]),
            np.array(rest if envelope else []),
        )

    def solve(self, cuts: list[tuple[Array, float]]) -> tuple[Array, float]:
        """Return c+, c-, a, e_0, e+, e- and the value: zeros and inf where the solver fails."""
        count = 2 * len(self.degrees) + 1 + len(self.rest)
        above = np.array([[*m, *m, a, *(0.0 * self.rest), -1.0] for m, a in cuts])
        rows = np.vstack([np.hstack([self.rows, np.zeros((len(self.rows), 1))]), above])
        cost = np.concatenate([np.zeros(count - len(self.rest)), self.rest, [1.0]])
        right = np.concatenate([self.right, np.zeros(len(cuts))])
        solved = linprog(cost, rows, right, bounds=(0.0, None), method="highs")
        return (solved.x[:-1], float(solved.fun)) if solved.status == 0 else (np.zeros(count), math.inf)

    def choice(self, x: Array) -> _Choice:
        """Return a solution with what it lacks added."""
        k, E = len(self.degrees), len(self.enveloping)
        c, a, e = x[:k] - x[k : 2 * k], float(x[2 * k]), np.zeros(E + 1)
        if len(self.rest):
            e = np.concatenate([x[2 * k + 1 : 2 * k + 2], x[2 * k + 2 : 2 * k + 2 + E] - x[2 * k + 2 + E :]])
        L = max([*self.degrees, *self.enveloping])
        nodes = torch.from_numpy(_cosines(_FINE))
        basis = gegenbauer(nodes, self.moments.d, L)
        model, envelope = torch.zeros_like(nodes), torch.zeros_like(nodes)
        for total, parts in (
            (model, zip(self.degrees, c, strict=True)),
            (envelope, zip([0, *self.enveloping], e, strict=True)),
        ):
            for k, factor in parts:
                total.add_(basis[k], alpha=float(factor))
        size = float(np.abs(c).sum() + np.abs(e).sum()) + 1.0
        between = (math.pi / (2 * _FINE)) ** 2 / 8.0 * (L**2 * size + 1.0)
        rounding = (kernel_error(self.moments.d, L) + gamma(4 * k + 4 * E + 32)) * size + 8.0 * UNIT_ROUNDOFF
        margin = PAD * (between + rounding)
        lack = float(((nodes.clip(min=0.0) - model).abs() - envelope).max()) - a + margin
        below = margin - float(envelope.min()) if E else 0.0
        rest = e[0] + max(0.0, below)
        if E:
            rest += (
                np.maximum(e[1:], 0.0) @ self.rest[1 : E + 1] + np.maximum(-e[1:], 0.0) @ self.rest[E + 1 :]
            )
        return _Choice(c, max(0.0, a + lack), float(rest))


def _separate(moments: Moments) -> tuple[Array, float]:
    """Return the costs of |c_l| and of a, where each has a maximum of its own."""

    def norm(moment: Moment) -> float:
        top = float(leading_eigenpairs(moment.matrix, 1)[0][-1])
        return math.sqrt(max(0.0, top) + moment.error) + moment.shift

    tops = torch.linalg.eigvalsh(moments.spread)[:, -1].clamp(min=0.0)
    return np.array([norm(m) for m in moments.several]), float((moments.sizes * tops).sum().sqrt())


def _roots(moments: Moments, density: Tensor) -> tuple[Array, Tensor]:
    """Return <density, M_l>^(1/2) and (S_c <density_c, C_c>)^(1/2), errors included."""

    def root(moment: Moment) -> float:
        return math.sqrt(max(float((density * moment.matrix).sum()) + moment.error, 1e-24))

    C, K, _ = moments.spread.shape
    blocks = density.view(C, K, C, K).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    inner = (blocks * moments.spread).sum((1, 2)).clamp(min=0.0) + moments.spread_error
    return np.array([root(m) for m in moments.several]), (moments.sizes * inner).sqrt().clamp(min=1e-12)


def _costs(moments: Moments, density: Tensor) -> tuple[Array, float]:
    several, single = _roots(moments, density)
    return several + np.array([m.shift for m in moments.several]), float(single.sum())


def _choice_bound(moments: Moments, choice: _Choice, density: Tensor | None) -> tuple[float, Tensor]:
    """Return a proved bound for these coefficients, and a density that (nearly) attains it."""
    m = math.prod(moments.spread.shape[:2])
    density = torch.eye(m).double() / m if density is None else density
    best, chosen = math.inf, None
    for k in range(_STEPS if m > 1 else 1):
        roots = _roots(moments, density)
        N, rest, _ = _linearized(moments, choice, *roots)
        values, vectors = leading_eigenpairs(N, 1, tol=1e-4)
        if float(values[-1]) + rest < best:
            best, chosen = float(values[-1]) + rest, roots
        step = 2.0 / (k + 3.0)
        density = (1.0 - step) * density + step * torch.outer(vectors[:, -1], vectors[:, -1])
    assert chosen is not None
    N, rest, size = _linearized(moments, choice, *chosen)
    error = PAD * gamma(len(moments.several) + len(moments.sizes) + 32) * (size + rest)
    return max(0.0, proved_eigenvalue(N)) + rest + error, density


def _linearized(
    moments: Moments, choice: _Choice, several: Array, single: Tensor
) -> tuple[Tensor, float, float]:
    """Return N at these b and b', what is to be added to its eigenvalue, and a bound of the Frobenius norms in it."""
    side = math.prod(moments.spread.shape[:2])
    N, rest, size = torch.zeros(side, side).double(), choice.rest, 0.0
    terms = list(zip(np.abs(choice.c).tolist(), several.tolist(), moments.several, strict=True))
    for c, b, moment in terms:
        if c > 0.0:
            N.add_(moment.matrix, alpha=c / (2.0 * b))
            rest += c * (0.5 * b + moment.error / (2.0 * b) + moment.shift)
            size += c / (2.0 * b) * float(moment.matrix.norm())
    factors = choice.a * moments.sizes / (2.0 * single)
    blocks = factors[:, None, None] * moments.spread
    N += torch.block_diag(*blocks)
    rest += float((0.5 * choice.a * single + factors * moments.spread_error).sum())
    return N, rest, size + float(torch.linalg.vector_norm(blocks, dim=(1, 2)).sum())


def _cosines(size: int) -> Array:
    """Return cosines of equidistant angles from 0 to pi, of which the middle one is zero."""
    nodes = np.cos(np.linspace(0.0, math.pi, 2 * size + 1))
    nodes[size] = 0.0
    return nodes
