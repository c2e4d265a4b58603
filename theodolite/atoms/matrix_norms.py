r"""Norms of the factors of a matrix: weights, groups, and proximal maps of the gauges.

With :math:`\theta = \|D_uu\|_a\|D_vv\|_b` the change of variables :math:`u' = D_uu`, :math:`v' = D_vv`
leads to the plain norms, :math:`Q' = D_u^{-\top}QD_v^{-1}` for the polar.  With b = l1 the gauge of
:math:`Z'` is :math:`\sum_j\|Z'_{:j}\|_a`: a sum over groups of entries, the columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from theodolite.linalg.lanczos import PAD, gamma
from theodolite.losses.base import moved

ORDERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
DUAL = {"l1": "linf", "l2": "l2", "linf": "l1"}


def norms(rows: Tensor, norm: str) -> Tensor:
    """Return the norm of each row, shape (r,)."""
    return torch.linalg.vector_norm(rows, ORDERS[norm], dim=1)


class Weight:
    """An invertible weight D of one factor.

    Parameters
    ----------
    D : Tensor or None
        Shape (size,) for a diagonal, (size, size) for a matrix; None for the identity.
    size : int
        Length of the factor.
    name : str
        What an error message calls it.

    Attributes
    ----------
    D : Tensor or None
        Float64.
    inverse : Tensor or None
        Entrywise inverse of a diagonal, approximate inverse M of a matrix.
    defect : float
        Proved bound of ``|I - D M|`` in the operator norms of l1, l2 and linf; 0 for a diagonal.

    Raises
    ------
    ValueError
        If the shape is wrong, an entry is not finite, or D is not proved to be invertible: where D
        vanishes, theta does and phi does not, so that nothing could be certified.
    """

    def __init__(self, D: Tensor | None, size: int, name: str) -> None:
        self.size = size
        self._ones = torch.ones(size, dtype=torch.float64)
        self.D: Tensor | None = None
        self.inverse: Tensor | None = None
        self.defect = 0.0
        if D is None:
            return
        if D.ndim not in (1, 2) or any(s != size for s in D.shape) or D.is_complex():
            raise ValueError(
                f"{name}: expected a real diagonal of shape ({size},) or a matrix of shape ({size}, {size}), "
                f"got {D.dtype} of shape {tuple(D.shape)}"
            )
        D = D.detach().double()
        if not bool(torch.isfinite(D).all()):
            raise ValueError(f"{name}: expected finite weights, got {D[~torch.isfinite(D)][0].item()}")
        singular = (
            f"{name}: expected invertible weights, got {{}}; where the weight vanishes the regularizer theta "
            "does and the prediction does not, so that the polar is infinite"
        )
        self.D = D
        if D.ndim == 1:
            self.inverse = 1.0 / D
            if not bool(torch.isfinite(self.inverse).all()):
                raise ValueError(singular.format(f"the entry {D[D.abs().argmin()].item()}"))
            return
        M, info = torch.linalg.inv_ex(D)
        # each of the three norms is at most size times the largest entry, rounding included
        residual = float((torch.eye(size, dtype=D.dtype, device=D.device) - D @ M).abs().max())
        rounding = gamma(size + 2) * float((D.abs() @ M.abs()).max() + 1.0)
        self.defect = PAD * size * (residual + rounding)
        if int(info) or not self.defect < 0.5:
            raise ValueError(singular.format("a matrix that is singular to working precision"))
        self.inverse = M

    @property
    def diagonal(self) -> bool:
        """Whether D is diagonal (or the identity)."""
        return self.D is None or self.D.ndim == 1

    def apply(self, rows: Tensor) -> Tensor:
        """Return D u for each row u."""
        if self.D is None:
            return rows
        return rows * self.D if self.D.ndim == 1 else rows @ self.D.T

    def solve(self, rows: Tensor) -> Tensor:
        """Return M u', near D^{-1} u', for each row u'."""
        if self.inverse is None:
            return rows
        return rows * self.inverse if self.inverse.ndim == 1 else rows @ self.inverse.T

    def pull(self, Q: Tensor) -> Tensor:
        """Return M^T Q, near D^{-T} Q: what acts on u' in place of u, for Q of shape (size, k)."""
        if self.inverse is None:
            return Q
        return self.inverse[:, None] * Q if self.inverse.ndim == 1 else self.inverse.T @ Q

    def magnitude(self, rows: Tensor) -> Tensor:
        """Return |D| |u| for each row u, to which the rounding of D u is relative."""
        if self.D is None:
            return rows.abs()
        return rows.abs() * self.D.abs() if self.D.ndim == 1 else rows.abs() @ self.D.abs().T

    def entry_bounds(self, norm: str) -> Tensor:
        """Return bounds of |u_i| over ||D u|| <= 1, shape (size,)."""
        if self.inverse is None:
            return self._ones
        up = (1.0 + gamma(self.size + 8)) / (1.0 - self.defect)
        return up * (self.inverse.abs() if self.inverse.ndim == 1 else norms(self.inverse, DUAL[norm]))

    def length_bound(self, norm: str) -> float:
        """Return a bound of ||u||_2 over ||D u|| <= 1."""
        bounds = self.entry_bounds(norm)
        size = float(bounds.norm())
        if self.diagonal and norm != "linf":
            size = float(bounds.max())
        elif self.inverse is not None and norm == "l1":
            size = float(self.inverse.norm(dim=0).max()) / (1.0 - self.defect)
        return size * PAD

    @property
    def inverse_norm(self) -> float:
        """Spectral norm of M, as computed."""
        if self.inverse is None:
            return 1.0
        return float(
            self.inverse.abs().max() if self.inverse.ndim == 1 else torch.linalg.matrix_norm(self.inverse, 2)
        )

    def to(self, device: torch.device | str) -> Weight:
        """Return the same weight on a device."""
        return moved(self, device)


class Groups:
    """A partition of the entries of a flat tensor, by the number of the group of each.

    Parameters
    ----------
    index : Tensor, shape (size,), int64
    count : int
        Number of groups; some may be empty.
    """

    def __init__(self, index: Tensor, count: int) -> None:
        self.index, self.count = index, count

    def norms(self, x: Tensor, norm: str) -> Tensor:
        """Return the norm of each group, shape (count,)."""
        out = x.new_zeros(self.count)
        if norm == "linf":
            return out.scatter_reduce(0, self.index, x.abs(), "amax")
        if norm == "l1":
            return out.index_add(0, self.index, x.abs())
        top = float(x.abs().max()) if x.numel() else 0.0
        if top == 0.0:
            return out
        unit = 2.0 ** min(
            max(math.frexp(top)[1], -1000), 1000
        )  # exact, and no square underflows that matters
        return out.index_add(0, self.index, (x / unit).square()).sqrt() * unit

    def metric(self, x: Tensor, norm: str) -> Tensor:
        """Return the least weights, at least x, for which :meth:`prox` has a closed form, in the shape of x."""
        return x if norm == "l1" else self.norms(x, "linf")[self.index]

    def prox(self, x: Tensor, t: Tensor, norm: str) -> tuple[Tensor, float]:
        """Return argmin_z sum (z - x)^2 / (2 t) + sum_g ||z_g||, and that sum of norms.

        Parameters
        ----------
        x : Tensor, shape (size,)
        t : Tensor
            One number, or shape (size,), constant on each group unless the norm is l1.
        norm : str
        """
        z = self._shrunk(x, t, norm)
        return z, float(self.norms(z, norm).sum())

    def _shrunk(self, x: Tensor, t: Tensor, norm: str) -> Tensor:
        if norm == "l1":
            return x.sign() * (x.abs() - t).clamp(min=0.0)
        if norm == "l2":
            sizes = self.norms(x, "l2")
            return x * (1.0 - t / sizes.clamp(min=1e-300)[self.index]).clamp(min=0.0)
        # Moreau: x less its projection on the l1 ball of radius t, that is x clipped at a level
        level = self._levels(x.abs(), t)[self.index]
        return torch.minimum(torch.maximum(x, -level), level)

    def _levels(self, x: Tensor, t: Tensor) -> Tensor:
        """Return c_g >= 0 with sum (x - c_g)_+ = t over group g, 0 where the sum of x is at most t."""
        t = t.expand_as(x)
        order = torch.argsort(x, descending=True)
        order = order[torch.argsort(self.index[order], stable=True)]
        groups, sizes = self.index[order], torch.bincount(self.index, minlength=self.count)
        first = sizes.cumsum(0) - sizes
        place = torch.arange(1, len(x) + 1, device=x.device) - first[groups]
        running = x[order].cumsum(0)
        before = torch.cat([running.new_zeros(1), running])[first]
        levels = (running - before[groups] - t[order]) / place
        above = (x[order] > levels).to(torch.int64)
        active = torch.zeros_like(sizes).index_add(0, groups, above)
        last = (first + active - 1).clamp(min=0)
        return torch.where(
            active > 0, levels[last.clamp(max=max(len(x) - 1, 0))], levels.new_zeros(())
        ).clamp(min=0.0)


def shrink_singular_values(Z: Tensor, t: Tensor) -> tuple[Tensor, float]:
    """Return argmin_X 1/2 ||X - Z||_F^2 + t ||X||_* and its nuclear norm."""
    if Z.shape[0] < Z.shape[1]:  # LAPACK is several times slower on wide matrices
        X, size = shrink_singular_values(Z.T, t)
        return X.T, size
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    s = (s - t).clamp(min=0.0)
    return (U * s) @ Vh, float(s.sum())


def balanced_factors(Z: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows u_i, v_i of equal lengths with Z = sum u_i v_i^T and sum ||u_i|| ||v_i|| = ||Z||_*."""
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    kept = s > 1e-14 * s.sum()  # less is rounding
    root = s[kept].sqrt()[:, None]
    return U.T[kept] * root, Vh[kept] * root


def spectral_norm(Z: Tensor) -> float:
    """Return the largest singular value, as computed."""
    return float(torch.linalg.matrix_norm(Z, 2))
