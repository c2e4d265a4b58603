r"""Upper bounds of :math:`F(w)=\|G(w)\|`, :math:`G_c(w)=\sum_{i\in c}Q_i\mathrm{relu}(x_i\cdot w)`, on boxes of directions.

A box is :math:`w=c+\delta`, :math:`|\delta_j|\le r_j`.  On it row i is :math:`\rho_i\,\mathrm{relu}(v_i+y_i)` with
:math:`\rho_i=\sum_j|x_{ij}|r_j`, :math:`v_i=x_i\cdot c/\rho_i` and :math:`|y_i|\le1`: linear or zero where :math:`|v_i|\ge1`,
and within :math:`\rho_ie(v_i)` of a polynomial elsewhere (:mod:`theodolite.polar.minimax`).  The polynomials of all rows
add up to one vector polynomial :math:`\hat G` *with their signs*: what cancels between rows cancels here.  The errors
:math:`\beta_i=\rho_ie(v_i)` do not; with any weights :math:`a_i>0` and, for each cell,

.. math:: S_c=\sum_i\beta_ia_i,\qquad C_c=\sum_i\beta_iQ_iQ_i^\top/a_i,\qquad
          \sum_i\beta_i|u_c\cdot Q_i|\le\sqrt{S_c\,u_c^\top C_cu_c}
          \le\tfrac12\Big(\frac{\eta_cS_c}\varrho+\frac{\varrho\,u_c^\top C_cu_c}{\eta_c}\Big)

for all :math:`\eta_c,\varrho>0`.  Let D be the block-diagonal matrix of the :math:`C_c/\eta_c`, :math:`\mu>\lambda_{\max}(D)`,
:math:`N=\mu I-D`.  With :math:`\varrho=\|w\|/\|c\|` and a unit vector u,
:math:`u\cdot\hat G\le\frac12(\hat G^\top N^{-1}\hat G/\varrho+\varrho\,u^\top Nu)`; the sum of both is
:math:`\le\tau\|w\|` for all u if

.. math:: \hat G^\top N^{-1}\hat G+\sum_c\eta_cS_c\le(2\tau\|c\|-\mu)\,\|w\|^2/\|c\|^2 ,

one inequality between polynomials in :math:`\delta`.  For one output and one cell
:math:`\pm\hat G+\sum\beta_i|Q_i|\le\tau\,c\cdot w/\|c\|` will do.  It is tested on the whole
box and, where it fails, on parts of it, which costs nothing for the rows.

Rounding.  All of it moves :math:`\|G\|` by at most a margin of
:math:`\gamma_k(a+4)(\|c\|+\|r\|)\sum_i\|Q_i\|\|x_i\|`, a the largest sum of the absolute coefficients of
a polynomial; what follows, on few numbers, is covered by 2^-40 of the sizes involved, or gamma_k where they are many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.linalg.lanczos import gamma
from theodolite.polar.minimax import Table, table
from theodolite.polar.polynomials import Monomials, monomials

_BLOCK = 1 << 17  # numbers in a temporary matrix (boxes, rows): it stays in the cache,
_STRIP = 1 << 18  # and so does one of (rows, outputs times monomials)
_SLACK = 2.0**-40
_SHAPE = 0.25  # of the polynomial's slack, which can be cut without the rows, in what is to be divided
_STEPS = 12  # of the fixed point for u
_FLOOR = 0.8  # largest eigenvalue of D over mu, at most
_FLAT = 0.15  # of |Q_i| in the weights a_i, at least: a small one fits the direction u alone


@dataclass(frozen=True)
class Rows:
    """Rows x_i with their weights Q_i, sorted by cell.

    Attributes
    ----------
    X : Tensor, shape (n, d)
    Q : Tensor, shape (n, K)
    starts : Tensor, shape (C + 1,), int64
        Where each cell's rows begin.
    """

    X: Tensor
    Q: Tensor
    starts: Tensor

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.starts) - 1

    def labels(self) -> Tensor:
        """Return the number of each row's cell, shape (n,)."""
        return torch.repeat_interleave(self.starts.diff())

    def taken(self, index: Tensor) -> Rows:
        """Return some of the rows, given by increasing indices."""
        return Rows(self.X[index], self.Q[index], torch.searchsorted(index, self.starts))

    def total(self) -> float:
        """Return the sum of |Q_i| |x_i|, rounded up."""
        size = float(
            (torch.linalg.vector_norm(self.Q, dim=1) * torch.linalg.vector_norm(self.X, dim=1)).sum()
        )
        return size * (1.0 + 4.0 * gamma(len(self.X) + self.X.shape[1] + self.Q.shape[1]))

    def values(self, W: Tensor) -> Tensor:
        """Return G_c(w) for each row of W, shape (b, C, K)."""
        out = W.new_zeros(len(W), self.cells, self.Q.shape[1])
        ends = self.starts.tolist()
        height = max(1, _BLOCK // len(W))
        for c in range(self.cells):
            for first in range(ends[c], ends[c + 1], height):
                part = slice(first, min(first + height, ends[c + 1]))
                out[:, c] += (W @ self.X[part].T).relu_() @ self.Q[part]
        return out


@dataclass(frozen=True)
class Boxes:
    """Boxes of directions with one coordinate fixed, `axis`.

    Attributes
    ----------
    center, radius : Tensor, shape (b, d)
        The radius of the fixed coordinate is 0.
    axis : int
    """

    center: Tensor
    radius: Tensor
    axis: int

    def __len__(self) -> int:
        return len(self.center)


@dataclass(frozen=True)
class Bounds:
    """What is known about boxes.

    Attributes
    ----------
    upper : Tensor, shape (b,)
        F(w) <= upper |w| on the box, rounding enclosed.
    center : Tensor, shape (b,)
        F(c) / |c| approximately.
    sensitivity : Tensor, shape (b, d)
        How much of the error each coordinate's extent causes.
    """

    upper: Tensor
    center: Tensor
    sensitivity: Tensor


def fold(rows: Rows, box: Boxes) -> tuple[Tensor, Tensor]:
    """Return sum Q_i x_i^T over the rows that are active on all of one box, (C, K, d), and which rows are undecided."""
    t = (rows.X @ box.center.T)[:, 0]
    reach = (rows.X.abs() @ box.radius.T)[:, 0] * (1.0 + _SLACK)
    active, undecided = t >= reach, t.abs() < reach
    ends = rows.starts.tolist()
    folded = rows.X.new_zeros(rows.cells, rows.Q.shape[1], rows.X.shape[1])
    for c in range(rows.cells):
        part = slice(ends[c], ends[c + 1])
        folded[c] = rows.Q[part].T @ (rows.X[part] * active[part, None])
    return folded, undecided.nonzero()[:, 0]


def bound_boxes(
    rows: Rows, boxes: Boxes, wanted: float, *, degree: int, folded: Tensor | None, margin: float, rounds: int
) -> Bounds:
    """Return bounds of F on boxes.

    Parameters
    ----------
    rows : Rows
    boxes : Boxes
    wanted : float
        The bound that is to be shown; where it cannot, what can be.
    degree : int
        Of the polynomials.
    folded : Tensor, shape (C, K, d), optional
        A linear part beside the rows.
    margin : float
        Rounding of |G| over |c| + |r|.
    rounds : int
        How often the domain of the polynomial is halved at most.
    """
    model = _Model(rows, boxes, degree)
    model.sum_rows()
    if folded is not None:
        model.add_linear(folded)
    upper, center = model.scalar(wanted, rounds) if model.outputs == 1 else model.vector(wanted, rounds)
    lengths = torch.linalg.vector_norm(boxes.center, dim=1) + torch.linalg.vector_norm(boxes.radius, dim=1)
    return Bounds(upper * (1.0 + _SLACK) + margin * lengths, center, model.sensitivity)


def rounding_margin(rows: Rows, degree: int) -> float:
    """Return the margin of the rounding of |G| on a box over |c| + |r|."""
    n, d = rows.X.shape
    return gamma(n + 8 * d + 4 * degree + 64) * (table(degree).size + 4.0) * rows.total()


class _Model:
    """The polynomials of a batch of boxes, and the bounds that follow."""

    def __init__(self, rows: Rows, boxes: Boxes, degree: int) -> None:
        self.rows, self.boxes = rows, boxes
        d = rows.X.shape[1]
        self.free = [j for j in range(d) if j != boxes.axis]
        self.monomials: Monomials = monomials(d - 1, degree)
        self.table: Table = table(degree).to(rows.X.device)
        self.outputs = rows.cells * rows.Q.shape[1]
        self.slack = max(_SLACK, 2.0 * gamma(len(rows.X) + 64))  # of sums over the rows
        shape = (len(boxes), rows.cells, rows.Q.shape[1], len(self.monomials))
        self.G = rows.X.new_zeros(shape)
        self.errors: list[tuple[int, slice, Tensor, Tensor]] = []  # (cell, rows, beta, 1 / rho) of the parts
        self.radius = boxes.radius[:, self.free]
        self.sensitivity = torch.zeros_like(boxes.radius)

    def sum_rows(self) -> None:
        """Add the polynomials of all rows."""
        rows, b = self.rows, len(self.boxes)
        ends, height = rows.starts.tolist(), max(256, _BLOCK // b)
        multinomials = self.monomials.multinomials.to(rows.X.device)
        for c in range(rows.cells):
            for first in range(ends[c], ends[c + 1], height):
                part = slice(first, min(first + height, ends[c + 1]))
                X, Q = rows.X[part], rows.Q[part]
                weights, beta, inverse = self._weights(X)
                self.errors.append((c, part, beta, inverse))
                powers = self.monomials.values(X[:, self.free]) * multinomials
                strip = max(64, _STRIP // (Q.shape[1] * powers.shape[1]))
                for first in range(0, len(Q), strip):
                    some = slice(first, first + strip)
                    for which, weight in zip(self.monomials.slices, weights, strict=True):
                        features = (Q[some, :, None] * powers[some, None, which]).flatten(1)
                        self.G[:, c, :, which] += (weight[:, some] @ features).view(b, Q.shape[1], -1)
        scales = self.monomials.values(self.radius)
        self.G *= scales[:, None, None, :]

    def _weights(self, X: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return rho^(1 - l) a_l for each degree l, the errors beta, and 1 / rho, each of shape (b, rows)."""
        t = self.boxes.center @ X.T
        rho = (self.boxes.radius @ X.abs().T) * (1.0 + _SLACK)
        undecided, active = t.abs() < rho, t >= rho
        inverse = torch.where(undecided, 1.0 / rho, 0.0)
        index = self.table.index(t * inverse)
        beta = self.table.errors[index] * rho * undecided
        weights, scale = [], rho * undecided
        for power in range(self.table.degree + 1):
            weight = self.table.coefficients[:, power][index] * scale
            if power == 0:
                weight += torch.where(active, t, 0.0)
            elif power == 1:
                weight += active
            weights.append(weight)
            scale = scale * inverse if power else undecided.to(X.dtype)
        return weights, beta, inverse

    def add_linear(self, folded: Tensor) -> None:
        """Add a linear part, the same for all boxes."""
        self.G[..., 0] += torch.einsum("ckd,bd->bck", folded, self.boxes.center)
        if self.monomials.degree:
            linear = folded[:, :, self.free]
            self.G[..., 1 : 1 + len(self.free)] += linear * self.radius[:, None, None, :]

    def _error_sums(self, u: Tensor | None, flat: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return S, (b, C), and C, (b, C, K, K), with weights a_i that suit the directions u of shape (b, C, K).

        The weights are (|u . Q_i|^2 + flat^2 |Q_i|^2)^(1/2), flat of shape (b,); |Q_i| without u.
        """
        b, K = len(self.boxes), self.rows.Q.shape[1]
        S = self.G.new_zeros(b, self.rows.cells)
        C = self.G.new_zeros(b, self.rows.cells, K, K)
        for c, part, beta, inverse in self.errors:
            X, Q = self.rows.X[part], self.rows.Q[part]
            size = torch.linalg.vector_norm(Q, dim=1)
            if u is None or flat is None:
                weighted = beta * size
            else:
                a = torch.hypot(u[:, c] @ Q.T, flat[:, None] * size).clamp(min=1e-200)
                weighted = beta * a
                products = (Q[:, :, None] * Q[:, None, :]).flatten(1)
                C[:, c] += ((beta / a) @ products).view(b, K, K)
            S[:, c] += weighted.sum(1)
            self.sensitivity += ((weighted * inverse) @ X.abs()) * self.boxes.radius
        return S * (1.0 + self.slack), C

    def _blame(self, weight: Tensor, scale: Tensor | float, more: Tensor | float = 0.0) -> None:
        """Count a polynomial's slack, (b, m), towards what each coordinate's extent causes."""
        scale = scale[:, None] if isinstance(scale, Tensor) else scale
        slack = torch.zeros_like(self.sensitivity)
        slack[:, self.free] = weight * scale
        self.sensitivity += _SHAPE * (slack + more)

    def scalar(self, wanted: float, rounds: int) -> tuple[Tensor, Tensor]:
        """Return the bounds and the values at the centers for one output."""
        S, _ = self._error_sums(None)
        P = self.G[:, 0, 0]
        center, b = self.boxes.center, len(self.boxes)
        length = torch.linalg.vector_norm(center, dim=1)
        slope = center[:, self.free] * self.radius / length[:, None].square()
        least = 1.0 - slope.abs().sum(1) - _SLACK
        most = 1.0 + slope.abs().sum(1) + _SLACK
        W = torch.zeros_like(P)
        W[:, 0] = 1.0
        if self.monomials.degree:
            W[:, 1 : 1 + len(self.free)] = slope
        kappa = wanted * length
        both = torch.cat([P, -P]) - (kappa[:, None] * W).repeat(2, 1)
        both[:, 0] += S[:, 0].repeat(2) + _SLACK * both.abs().sum(1)
        bend = wanted * self.boxes.radius.square() / length[:, None]  # of |w|, which its tangent lies below
        self._blame(self.monomials.weight(P), 1.0, bend)
        excess = _largest(self.monomials, both, rounds).view(2, b).amax(0)
        upper = kappa + excess / torch.where(excess > 0.0, least, most)
        return torch.where(least > 0.0, upper / length, math.inf), P[:, 0].abs() / length

    def vector(self, wanted: float, rounds: int) -> tuple[Tensor, Tensor]:
        """Return the bounds and the values at the centers for several outputs."""
        center = self.boxes.center
        g = self.G[..., 0]
        size = g.flatten(1).norm(dim=1).clamp(min=1e-300)
        length = torch.linalg.vector_norm(center, dim=1)
        # where G is far from what is wanted at the center it may have any direction where it is not
        free = (1.0 - size / (wanted * length)).clamp(0.0, 1.0)
        S, C = self._error_sums(g / size[:, None, None], _FLAT + free)
        K = C.shape[-1]
        C.diagonal(dim1=-2, dim2=-1).add_(self.slack * S[..., None] + 1e-300)
        mu, eta = _multipliers(g, S, C, wanted * length, free)
        D = C / eta[..., None, None]
        N = mu[:, None, None, None] * torch.eye(K, dtype=g.dtype, device=g.device) - D
        inverse, sure = _inverses(N)
        G = self.G.flatten(1, 2)
        HG = (inverse @ self.G).flatten(1, 2)
        P = self.monomials.square(G.mT @ HG)
        double = monomials(self.monomials.variables, 2 * self.monomials.degree)
        # (sum of lengths)^2 times the norm of the inverse, which is at most 1 / (0.2 mu)
        spread = G.norm(dim=1).sum(1).square() * (5.0 * math.sqrt(K)) / mu
        ratio = 1.0 / length.square()
        low = (center.abs() - self.boxes.radius).clamp(min=0.0).square().sum(1) * ratio * (1.0 - _SLACK)
        high = (center.abs() + self.boxes.radius).square().sum(1) * ratio * (1.0 + _SLACK)
        kappa = 2.0 * wanted * length - mu
        W = torch.zeros_like(P)
        W[:, 0] = 1.0
        linear, square, _, _ = double._even
        W[:, linear] = 2.0 * center[:, self.free] * self.radius * ratio[:, None]
        W[:, square] = self.radius.square() * ratio[:, None]
        test = P - kappa[:, None] * W
        terms = max(_SLACK, gamma(4 * (self.outputs + len(self.monomials) ** 2)))
        test[:, 0] += (eta * S).sum(1) + terms * spread + _SLACK * test.abs().sum(1)
        self._blame(double.weight(test), 0.5 / (wanted * length).clamp(min=1e-300))
        excess = _largest(double, test, rounds)
        kappa = kappa + excess / torch.where(excess > 0.0, low, high)
        upper = 0.5 * (kappa + mu) / length
        return torch.where(sure, upper, math.inf), size / length


def _multipliers(g: Tensor, S: Tensor, C: Tensor, least: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return mu and eta that suit G(c) = g: u = (g + D u) / mu, D = C / eta, eta^2 = u'Cu / S, but mu >= least.

    Any positive ones with D <= 0.8 mu are valid.  Where G is small at the center it is larger elsewhere: a bound
    of a number by (number^2 / mu + mu) / 2 is to be sharp where the bound that is wanted is attained, and eta
    for a share `free` of directions that are the worst ones.
    """
    size = g.flatten(1).norm(dim=1).clamp(min=1e-300)
    tops = torch.linalg.eigvalsh(C)[..., -1] * (1.0 + _SLACK) + _SLACK * S
    worst = tops.square() * S / (tops * S).sum(1, keepdim=True).clamp(min=1e-300)
    u, mu = g / size[:, None, None], size
    for _ in range(_STEPS):
        Cu = (C @ u[..., None])[..., 0]
        form = (u * Cu).sum(-1).clamp(min=0.0) * (1.0 - free[:, None]) + worst * free[:, None]
        eta = (form / S.clamp(min=1e-300)).sqrt()
        eta = torch.maximum(eta, tops / (_FLOOR * torch.maximum(mu, least)[:, None])).clamp(min=1e-300)
        v = g + Cu / eta[..., None]
        mu = v.flatten(1).norm(dim=1).clamp(min=1e-300)
        u = v / mu[:, None, None]
    return torch.maximum(torch.maximum(mu, least), (tops / (_FLOOR * eta)).amax(1)), eta


def _inverses(N: Tensor) -> tuple[Tensor, Tensor]:
    """Return H >= N^-1 for batches of blocks whose eigenvalues are between 0.2 and 1 times one number, and where sure.

    If |I - N H| <= e then N^-1 <= H + 5 e N^-1.
    """
    H = torch.linalg.inv(N)
    H = 0.5 * (H + H.mT)
    eye = torch.eye(N.shape[-1], dtype=N.dtype, device=N.device)
    wrong = (N @ H - eye).flatten(2).norm(dim=2).amax(1)
    return H * (1.0 + _SLACK), wrong <= 2.0**-44


def _largest(kind: Monomials, P: Tensor, rounds: int) -> Tensor:
    """Return upper bounds of polynomials on the cube; halves of it are looked at where that may show <= 0."""
    worst = torch.full_like(P[:, 0], -math.inf)
    owner = torch.arange(len(P), device=P.device)
    hopeless = torch.zeros_like(worst, dtype=torch.bool)
    for k in range(rounds + 1):
        upper = kind.upper(P)
        hopeless[owner[P[:, 0] > 0.0]] = True
        again = (upper > 0.0) & ~hopeless[owner]
        if k == rounds or not bool(again.any()):
            return worst.scatter_reduce(0, owner, upper, "amax")
        worst = worst.scatter_reduce(0, owner[~again], upper[~again], "amax")
        P, owner = P[again], owner[again]
        P = torch.cat(kind.halved(P, kind.weight(P).argmax(1)))
        owner = owner.repeat(2)
    return worst
