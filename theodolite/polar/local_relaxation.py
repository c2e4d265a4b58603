r"""Upper bounds of F(w) / |w| on a box or a cone of directions, from the rows that are undecided there.

A row whose sign is known on the region is linear or zero.  With A = sum Q_i x_i' over the active rows, a cell's rows
below another's, three bounds of the sum over the undecided rows U, the least of which counts:

- *chords*: on :math:`[l,h]` with l < 0 < h, :math:`\mathrm{relu}(t)\in st+[0,2\beta]`, s = h / (h - l), 2 beta = -s l;
- *harmonic*: relu(t) = t / 2 + |t| / 2, and |t| / 2 is bounded as in :mod:`theodolite.polar.harmonic_program`, on those
  t only that occur;
- *Shor*: :math:`\lambda_{\max}\begin{pmatrix}\frac12Q_U^TP^{-1}Q_U+sI&A+\frac12Q_U^TX_U\\
  \cdot&\frac12X_U^TPX_U+\mu(vv^T-\kappa^2I)-sI\end{pmatrix}` for any positive diagonal P, any mu >= 0 and any s, where
  :math:`v\cdot w\ge\kappa|w|` on the region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.symmetric import proved_eigenvalue
from theodolite.polar.harmonic import Moment, Moments, harmonic_moments
from theodolite.polar.harmonic_program import Choice, choice_bound, harmonic_program
from theodolite.polar.rows import Rows, merged
from theodolite.polar.scaling import scaled_back
from theodolite.polar.shor import assembled, cross, diagonal_blocks
from theodolite.value import Value

__all__ = ["box_relaxation_bound", "cone_relaxation_bound"]

_SHARPNESS = 100.0  # of the smoothed eigenvalue


def cone_relaxation_bound(
    X: Tensor,
    Q: Tensor,
    direction: Tensor,
    angle: float,
    cells: Tensor | None = None,
    *,
    degree: int = 4,
    steps: int = 20,
) -> Value:
    """Return a proved upper bound of F over the unit vectors within an angle of a direction.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    direction : Tensor, shape (d,)
        Not zero.
    angle : float
        In radians, from 0 to pi.
    cells : Tensor of int64, shape (n,), optional
        Cell of each row.
    degree : int
        Of the harmonic bound; 0 to leave it out.
    steps : int
        Of the search for the Shor bound's multipliers; 0 to leave it out.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, the shapes disagree, or another argument is out of range.
    """
    if not 0.0 <= angle <= math.pi:
        raise ValueError(f"angle: expected a number from 0 to pi, got {angle}")
    region = _Region.cone(_direction("direction", direction, X), angle)
    return _bound(X, Q, cells, region, None, degree, steps)


def box_relaxation_bound(
    X: Tensor,
    Q: Tensor,
    center: Tensor,
    radius: Tensor,
    cells: Tensor | None = None,
    *,
    degree: int = 4,
    steps: int = 20,
) -> Value:
    r"""Return a proved upper bound of F(w) / |w| over a box :math:`|w_j-c_j|\le r_j`.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64.
    Q : Tensor, shape (n, K)
        Float64.
    center, radius : Tensor, shape (d,)
        Float64; the center not zero, the radius not negative.
    cells : Tensor of int64, shape (n,), optional
        Cell of each row.
    degree : int
        Of the harmonic bound; 0 to leave it out.
    steps : int
        Of the search for the Shor bound's multipliers; 0 to leave it out.

    Raises
    ------
    ValueError
        If X or Q is not a finite float64 matrix, the shapes disagree, or another argument is out of range.
    """
    center = _direction("center", center, X)
    if radius.shape != center.shape or not bool((radius >= 0.0).all()) or not bool(radius.isfinite().all()):
        raise ValueError(f"radius: expected {len(center)} finite numbers >= 0, got {tuple(radius.shape)}")
    # within the ball of the box's half diagonal around the center: the angle's sine is at most |r| / |c|
    ratio = float(radius.norm() / center.norm()) * PAD
    region = _Region.cone(center, math.asin(ratio) * PAD if ratio < 1.0 else math.pi)
    return _bound(X, Q, cells, region, (center, radius), degree, steps)


def _direction(name: str, vector: Tensor, X: Tensor) -> Tensor:
    if vector.shape != X.shape[1:] or not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise ValueError(f"{name}: expected {X.shape[1]} finite numbers, not all zero, got {vector.tolist()}")
    return vector.detach().cpu().double()


@dataclass(frozen=True)
class _Region:
    """Unit vectors w with v . w >= cos, sin being the greatest |w - (v . w) v|; all of them where cos is -1."""

    v: Tensor
    cos: float
    sin: float

    @classmethod
    def cone(cls, axis: Tensor, angle: float) -> _Region:
        scaled = axis / axis.abs().max()
        cos = max(-1.0, math.cos(angle) - 1e-12)
        sin = 1.0 if cos <= 0.0 else min(1.0, math.sin(angle) + 1e-12)
        return cls(scaled / scaled.norm(), cos, sin)

    def range(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest x_i . w / |x_i|, rounded outward but for some units in the last place."""
        s = ((X @ self.v) / torch.linalg.vector_norm(X, dim=1)).clamp(-1.0, 1.0)
        if self.cos <= -1.0:
            return -torch.ones_like(s), torch.ones_like(s)
        across = ((1.0 - s * s).clamp(min=0.0) + 1e-14).sqrt() * math.sqrt(max(0.0, 1.0 - self.cos**2))
        # cos(theta +- phi), or an end where theta - phi < 0 or theta + phi > pi
        low = torch.where(s <= -self.cos, -1.0, s * self.cos - across)
        high = torch.where(s >= self.cos, 1.0, s * self.cos + across)
        return low.clamp(min=-1.0), high.clamp(max=1.0)


def _bound(
    X: Tensor,
    Q: Tensor,
    cells: Tensor | None,
    region: _Region,
    box: tuple[Tensor, Tensor] | None,
    degree: int,
    steps: int,
) -> Value:
    rows = merged(X, Q, cells)
    if not len(rows.X):
        return scaled_back(Value.bound(0.0, rows.crude, note="no row has both an input and a weight"), 0)
    lengths = torch.linalg.vector_norm(rows.X, dim=1)
    low, high = region.range(rows.X)
    if box is not None:
        center, radius = box
        least = (center.abs() - radius).clamp(min=0.0).norm() / PAD  # of |w| in the box
        middle, half = rows.X @ center / lengths, rows.X.abs() @ radius / lengths
        # a negative end is least where |w| is; where |w| may vanish only its sign is known
        ends = middle - half, middle + half
        low = torch.maximum(low, torch.where(ends[0] < 0.0, ends[0] / least, 0.0))
        high = torch.minimum(high, torch.where(ends[1] > 0.0, ends[1] / least, 0.0))
    # what rounding may have decided wrongly, and rounding of the linear part
    n, d = rows.X.shape
    total = float(torch.linalg.vector_norm(rows.Q, dim=1) @ lengths)
    slack = PAD * gamma(4 * n + 32 * d + 4 * rows.Q.shape[1] + 512) * total + rows.slack
    if box is not None:
        slack *= 1.0 + float((box[0].norm() + box[1].norm()) / least) if float(least) > 0.0 else math.inf
    found = _Local.of(rows, low, high, region)
    bounds = {"sum of |Q_i| |x_i|": rows.crude}
    if math.isfinite(slack):
        bounds["chords of the undecided rows"] = found.chords() + slack
    if len(found.undecided.X) and math.isfinite(slack):
        if degree:
            bounds["harmonic bound of the undecided rows"] = found.harmonic(degree) + slack
        if steps:
            bounds["Shor bound of the undecided rows"] = found.shor(steps) + slack
    name = min(bounds, key=bounds.__getitem__)
    value = Value.bound(0.0, bounds[name] * UP, note=f"upper end: {name}, rounding enclosed")
    return scaled_back(value, rows.exponent)


@dataclass(frozen=True)
class _Local:
    active: Tensor  # (C K, d)
    undecided: Rows
    low: Tensor  # of x_i . w / |x_i|
    high: Tensor
    region: _Region

    @classmethod
    def of(cls, rows: Rows, low: Tensor, high: Tensor, region: _Region) -> _Local:
        kept = (low < 0.0) & (high > 0.0)
        active, slices, start = [], [], 0
        for cell in rows.cells:
            chosen = (low[cell] >= 0.0) & (high[cell] > 0.0)
            active.append(rows.Q[cell][chosen].T @ rows.X[cell][chosen])
            stop = start + int(kept[cell].sum())
            slices.append(slice(start, stop))
            start = stop
        undecided = replace(rows, X=rows.X[kept], Q=rows.Q[kept], cells=tuple(slices), slack=0.0)
        return cls(torch.cat(active), undecided, low[kept], high[kept], region)

    def scaled(self, slopes: Tensor | float) -> Tensor:
        """Return A + sum over undecided rows of slope Q_i x_i', (C K, d)."""
        rows = self.undecided
        return self.active + cross(rows.Q * slopes, rows.X, rows.parts(), len(rows.cells))

    def linear(self, G: Tensor, offset: Tensor, scale: float) -> tuple[Moment, ...]:
        """Return moments of G w + offset, over scale, that add up to a bound of |u . (G w + offset)|.

        With w = a v + z, z orthogonal to v and a = v . w in [cos, 1], it is
        a (G v + offset) + G z + (1 - a) offset; or G w and offset are bounded apart, if that is less.
        """
        v, sin = self.region.v, self.region.sin
        whole, middle = G / scale, (G @ v + offset)[:, None] / scale
        apart = (offset[:, None] / scale,) if bool(offset.any()) else ()
        if self.region.cos <= 0.0:
            return tuple(Moment(1, A @ A.T, 0.0) for A in (whole, *apart))
        across = (G - torch.outer(G @ v, v)) * (sin / scale)
        inside = tuple((1.0 - self.region.cos) * A for A in apart)
        norm = torch.linalg.matrix_norm
        narrow = float(middle.norm() + norm(across, 2)) + sum(float(A.norm()) for A in inside)
        if narrow > float(norm(whole, 2)) + sum(float(A.norm()) for A in apart):
            return tuple(Moment(1, A @ A.T, 0.0) for A in (whole, *apart))
        return tuple(Moment(1, A @ A.T, 0.0) for A in (middle, across, *inside))

    def chords(self) -> float:
        """Return the bound by chords, rounding not counted."""
        rows = self.undecided
        lengths = torch.linalg.vector_norm(rows.X, dim=1)
        slopes = self.high / (self.high - self.low)
        beta = -0.5 * slopes * self.low * lengths
        weight = torch.linalg.vector_norm(rows.Q, dim=1)
        offset = torch.stack([beta[cell] @ rows.Q[cell] for cell in rows.cells]).flatten()
        spread = torch.stack(
            [rows.Q[cell].T @ (rows.Q[cell] * (beta / weight)[cell, None]) for cell in rows.cells]
        )
        sizes = torch.stack([(beta * weight)[cell].sum() for cell in rows.cells])
        G = self.scaled(slopes[:, None])
        S = float(sizes.norm() + G.norm() + offset.norm())
        if S == 0.0:
            return 0.0
        S *= PAD
        fixed = self.linear(G, offset, S)
        spread = 0.5 * (spread + spread.mT) / S
        moments = Moments(2, S, [], {}, {}, sizes / S, spread, 0.0, fixed=fixed)
        return choice_bound(moments, Choice(np.zeros(0), 1.0, 0.0), None)[0] * S * PAD

    def harmonic(self, degree: int) -> float:
        """Return the bound by even polynomials, rounding of the linear part not counted."""
        rows = self.undecided
        if rows.X.shape[1] < 2:
            return math.inf
        moments = harmonic_moments(rows, degree)
        G = self.scaled(0.5)
        fixed = self.linear(G, torch.zeros(len(G)).double(), moments.S)
        return harmonic_program(
            replace(
                moments,
                several=[m for m in moments.several if m.degree != 1],
                plus={k: x for k, x in moments.plus.items() if k != 1},
                fixed=fixed,
                reach=min(1.0, float(torch.maximum(self.high, -self.low).max()) * PAD),
            )
        )

    def shor(self, steps: int) -> float:
        """Return the Shor bound, rounding of the linear part not counted."""
        rows, v, cos = self.undecided, self.region.v, self.region.cos
        weight, length = (torch.linalg.vector_norm(A, dim=1) for A in (rows.Q, rows.X))
        p, S = weight / length, float(weight @ length)
        G, n = self.scaled(0.5) / S, len(p)
        left, right = 1.0 / (p.sqrt() * math.sqrt(S)), p.sqrt() / math.sqrt(S)
        m, d = G.shape
        cone = torch.outer(v, v) - max(0.0, cos) ** 2 * torch.eye(d).double()
        signs = torch.cat([torch.ones(m), -torch.ones(d)]).double()

        def matrix(x: Tensor) -> tuple[Tensor, float]:
            root = (0.5 * x[:n]).exp()
            A, D = diagonal_blocks(rows.Q, rows.X, rows.parts(), len(rows.cells), left / root, right * root)
            M = assembled(0.5 * A, G, 0.5 * D)
            size = float(M.trace())
            if cos > 0.0:
                M[m:, m:] += x[n] ** 2 * cone
                size += float(x[n] ** 2) * d
            M.diagonal().add_(x[n + 1] * signs)
            return M, size + float(x[n + 1].abs()) * (m + d)

        def smoothed(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            x = torch.from_numpy(flat.copy())
            x[:n].clamp_(-30.0, 30.0)
            values, vectors = torch.linalg.eigh(matrix(x)[0])
            scale = float(values.abs().max())
            weights = (_SHARPNESS * (values - values[-1]) / scale).exp()
            W = (vectors * (weights / weights.sum())) @ vectors.T
            gradient = torch.empty_like(x)
            K = rows.Q.shape[1]
            for c, cell in enumerate(rows.cells):
                block = W[c * K : (c + 1) * K, c * K : (c + 1) * K]
                a = (rows.Q[cell] @ block * rows.Q[cell]).sum(1) * left[cell] ** 2
                b = (rows.X[cell] @ W[m:, m:] * rows.X[cell]).sum(1) * right[cell] ** 2
                gradient[cell] = 0.5 * (b * x[cell].exp() - a * (-x[cell]).exp())
            gradient[n] = 2.0 * x[n] * float((W[m:, m:] * cone).sum()) if cos > 0.0 else 0.0
            gradient[n + 1] = float((W.diagonal() * signs).sum())
            smooth = float(values[-1]) + scale * float(weights.sum().log()) / _SHARPNESS
            return smooth * n, (n * gradient).numpy()

        start = torch.zeros(n + 2).double()
        start[n] = 0.1
        options = {"maxiter": steps, "maxcor": 10}
        solved = minimize(smoothed, start.numpy(), method="L-BFGS-B", jac=True, options=options)
        best = math.inf
        for x in (start, torch.from_numpy(solved.x)):
            x[:n].clamp_(-30.0, 30.0)
            M, size = matrix(x)
            best = min(best, proved_eigenvalue(M) + PAD * gamma(2 * n + 8 * (m + d) + 64) * size)
        return best * S * PAD
