r"""Norms of the factors of a structured factorization: Euclidean plus l1 plus total variation, and signs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.polar.total_variation import (
    differences,
    differences_adjoint,
    prox_total_variation,
    squared_norm_bound,
)

__all__ = ["FactorNorm", "Term"]


@dataclass(frozen=True)
class Term:
    """One term ``weight * |A u|`` of a norm: A the identity or the differences, |.| the l2 or the l1 norm."""

    order: str
    weight: float
    grid: tuple[int, ...] | None = None

    def forward(self, X: Tensor, axis: int) -> Tensor:
        """Return A applied along an axis of a matrix."""
        return X if self.grid is None else differences(X, self.grid, axis)

    def adjoint(self, X: Tensor, axis: int) -> Tensor:
        """Return A^T applied along an axis of a matrix."""
        return X if self.grid is None else differences_adjoint(X, self.grid, axis)

    @property
    def stretch(self) -> float:
        """Bound of the squared norm of A."""
        return 1.0 if self.grid is None else squared_norm_bound(self.grid)


@dataclass(frozen=True)
class FactorNorm:
    r"""The norm :math:`l_2\|u\|_2+l_1\|u\|_1+\mathit{tv}\,\|Du\|_1` of a factor, D the differences on a grid.

    Parameters
    ----------
    l2, l1, tv : float
        Nonnegative weights; l2 + l1 must be positive, because the total variation of a constant vanishes.
    grid : tuple of int, optional
        Shape of the factor as an image or a volume, its last axis running fastest; by default a signal in
        one dimension.  Total variation is anisotropic: the sum over all pairs of neighbors.
    nonnegative : bool
        Whether the factor's entries are >= 0.

    Raises
    ------
    ValueError
        If a weight or the grid is not one of these.

    Examples
    --------
    >>> import torch
    >>> FactorNorm(l2=1.0, tv=0.5)(torch.tensor([[3.0, 4.0]])).item()
    5.5
    """

    l2: float = 1.0
    l1: float = 0.0
    tv: float = 0.0
    grid: tuple[int, ...] | None = None
    nonnegative: bool = False

    def __post_init__(self) -> None:
        for name in ("l2", "l1", "tv"):
            weight = getattr(self, name)
            if not (isinstance(weight, int | float) and 0.0 <= weight < math.inf):
                raise ValueError(f"{name}: expected a finite number >= 0, got {weight!r}")
        if self.l2 + self.l1 == 0.0:
            raise ValueError(
                "l2, l1: expected a positive weight, got 0 and 0; the total variation alone vanishes for constants"
            )
        sizes = self.grid is None or (
            isinstance(self.grid, tuple)
            and self.grid
            and all(isinstance(s, int) and s > 0 for s in self.grid)
        )
        if not sizes:
            raise ValueError(f"grid: expected a tuple of integers >= 1 or None, got {self.grid!r}")

    def check_size(self, size: int, name: str) -> None:
        """Refuse a grid that does not hold this many values."""
        if self.grid is not None and math.prod(self.grid) != size:
            raise ValueError(f"{name}: expected a grid of {size} values in all, got {self.grid}")

    @property
    def plain(self) -> bool:
        """Whether this is a multiple of the Euclidean norm (perhaps of nonnegative factors)."""
        return self.l1 == 0.0 and self.tv == 0.0

    def terms(self, size: int) -> list[Term]:
        """Return the terms of positive weight, one without differences first."""
        found = [("l2", self.l2, None), ("l1", self.l1, None), ("l1", self.tv, self.grid or (size,))]
        return [Term(*term) for term in found if term[1] > 0.0]

    def euclidean(self) -> float:
        """Return the largest known c with ``norm(u) >= c ||u||_2``, rounded down."""
        return math.nextafter(self.l2 + self.l1, 0.0)

    def summed(self, size: int) -> float:
        """Return the largest known c with ``norm(u) >= c ||u||_1``, rounded down."""
        return (self.l1 + self.l2 / math.sqrt(size)) * (1.0 - 2.0**-50)

    def effective(self, U: Tensor) -> Tensor:
        """Return the factors themselves: of nonnegative ones the positive part of their parameters."""
        return U.clamp(min=0.0) if self.nonnegative else U

    def __call__(self, U: Tensor) -> Tensor:
        """Return the norm of each row of effective factors, shape (r,)."""
        total = self.gauge(U)
        return total + self.l2 * torch.linalg.vector_norm(U, dim=-1) if self.l2 else total

    def gauge(self, U: Tensor) -> Tensor:
        """Return the l1 and total variation terms of each row, shape (r,)."""
        total = U.new_zeros(len(U))
        if self.l1:
            total = total + self.l1 * U.abs().sum(-1)
        if self.tv:
            total = total + self.tv * differences(U, self.grid or (U.shape[-1],)).abs().sum(-1)
        return total

    def prox_gauge(
        self, U: Tensor, t: Tensor, dual: Tensor | None = None, tol: float = 1e-10, max_iterations: int = 500
    ) -> tuple[Tensor, Tensor | None]:
        """Return argmin_X 1/2 ||X - U||^2 + t gauge(X), over X >= 0 if nonnegative, of each row.

        The l1 term and the signs act after the total variation: shrinking keeps the order of the values.

        Parameters
        ----------
        U : Tensor, shape (r, n)
        t : Tensor, shape (r,)
        dual : Tensor, optional
            As returned by an earlier call, to start from.
        tol : float
            Relative duality gap of the total variation's part.
        max_iterations : int
            Of that part.
        """
        if self.tv:
            grid, t_v = self.grid or (U.shape[-1],), self.tv * t
            U, dual = prox_total_variation(U, t_v, grid, dual=dual, tol=tol, max_iterations=max_iterations)
        shrink = (self.l1 * t)[:, None]
        if self.nonnegative:
            return (U - shrink).clamp(min=0.0), dual
        return (U.sign() * (U.abs() - shrink).clamp(min=0.0) if self.l1 else U), dual

    def prox(
        self, U: Tensor, t: Tensor, dual: Tensor | None = None, tol: float = 1e-10, max_iterations: int = 500
    ) -> tuple[Tensor, Tensor | None]:
        """Return argmin_X 1/2 ||X - U||^2 + t norm(X) of each row: group shrinkage after :meth:`prox_gauge`."""
        X, dual = self.prox_gauge(U, t, dual, tol, max_iterations)
        if self.l2:
            length = torch.linalg.vector_norm(X, dim=-1)
            kept = (1.0 - self.l2 * t / length.clamp(min=1e-300)).clamp(min=0.0)
            X = X * kept[:, None]
        return X, dual

    def maximizers(
        self,
        G: Tensor,
        start: Tensor | None = None,
        dual: Tensor | None = None,
        iterations: int = 30,
        tol: float = 1e-12,
    ) -> tuple[Tensor, Tensor | None]:
        """Return for each row g a factor u of norm 1 with <g, u> near its maximum, the dual norm of g.

        At the dual norm tau, u is a multiple of ``prox_gauge(g, tau)``; tau is sought by Newton's method
        from below: ``tau = <g, u> / norm(u)``.  Where no factor gives a positive value, the best
        coordinate is returned.

        Parameters
        ----------
        G : Tensor, shape (k, n)
        start : Tensor, shape (k, n), optional
            Factors that the result is to be no worse than.
        dual : Tensor, optional
            As returned by an earlier call, to start from.
        iterations : int
            Newton steps, each of which costs a proximal map.
        tol : float
            Relative gain of tau to stop at.
        """
        best = torch.zeros_like(G)
        best[torch.arange(len(G)), (G if self.nonnegative else G.abs()).argmax(1)] = 1.0
        if not self.nonnegative:
            best = best * torch.where((G * best).sum(1) < 0.0, -1.0, 1.0)[:, None]
        best = best / self(best)[:, None]
        tau = (G * best).sum(1)
        candidates = [] if start is None else [start]
        if self.l2:
            candidates.append(self.effective(G))
        for fresh in candidates:
            best, tau, _ = self._better(G, fresh, best, tau)
        if not self.plain and (self.tv or self.l2):
            for _ in range(iterations):
                fresh, dual = self.prox_gauge(G, tau.clamp(min=0.0), dual, max(1e-12, 1e-3 * tol), 100)
                before = tau
                best, tau, size = self._better(G, fresh, best, tau)
                if not bool((tau - before > tol * tau.abs()).any()) or not bool(size.any()):
                    break
        return best, dual

    def _better(self, G: Tensor, fresh: Tensor, best: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the better of two factors for each row, their values, and the norms of the fresh ones."""
        size = self(fresh)
        fresh = fresh / size.clamp(min=1e-300)[:, None]
        value = (G * fresh).sum(1)
        better = (size > 0.0) & (value > tau)
        return torch.where(better[:, None], fresh, best), torch.where(better, value, tau), size
