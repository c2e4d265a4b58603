"""Elements of groups, each with its action on a batch, its inverse and its products.

The exact actions only move entries: :class:`GridMove` permutes, reflects and rolls the axes
of a grid, :class:`Permutation` reorders channels, points or nodes.  The interpolated ones
read between the samples: :class:`Shift` by parts of a pixel, :class:`Warp` by a matrix.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis.grid_sampling import fourier_shift
from theodolite.analysis.warping import warp

Batch = Tensor | tuple[Tensor, Tensor]


class Element(ABC):
    """One element of a group, with its action on a batch.

    ``g(x)`` acts; ``g @ h`` acts as h first, then g; ``g.inverse()`` undoes g.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What it does, in words."""

    @property
    def exact(self) -> bool:
        """Whether it only moves entries, so that the group's laws hold to the last bit."""
        return True

    @abstractmethod
    def __call__(self, x: Any) -> Any:
        """Act on a batch."""

    @abstractmethod
    def __matmul__(self, other: Any) -> Element:
        """Return the element that acts as ``other`` first."""

    @abstractmethod
    def inverse(self) -> Element:
        """Return the element that undoes this one."""


@dataclass(frozen=True)
class GridMove(Element):
    """Permutation, reflection, then cyclic shift of the last axes of a grid.

    Attributes
    ----------
    axes : tuple of int
        Axis a of the result is axis ``axes[a]`` of the input.
    flips : tuple of bool
        Which axes of the result are reversed.
    shift : tuple of int
        Samples by which each axis is rolled afterwards; all zero when empty.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    shift: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not any(self.shift):  # one spelling of no shift, so that equal moves compare equal
            object.__setattr__(self, "shift", ())

    @property
    def _by(self) -> tuple[int, ...]:
        return self.shift or (0,) * len(self.axes)

    @property
    def name(self) -> str:
        """Such as "rotation by 90 degrees", "flip of axis 1", "shift by (2, 0)"."""
        parts = []
        if any(self.flips) or self.axes != tuple(range(len(self.axes))):
            parts.append(self._turn())
        if any(self._by):
            parts.append(f"shift by {self._by if len(self._by) > 1 else self._by[0]}")
        return ", ".join(parts) or "identity"

    def _turn(self) -> str:
        if len(self.axes) == 2:
            planar: dict[tuple[tuple[int, ...], tuple[bool, ...]], str] = {
                ((1, 0), (True, False)): "rotation by 90 degrees",
                ((0, 1), (True, True)): "rotation by 180 degrees",
                ((1, 0), (False, True)): "rotation by 270 degrees",
                ((1, 0), (False, False)): "transposition",
                ((1, 0), (True, True)): "reflection in the other diagonal",
            }
            if (self.axes, self.flips) in planar:
                return planar[self.axes, self.flips]
        reversed_axes = [str(a) for a, flip in enumerate(self.flips) if flip]
        flips = f"flip of axis {', '.join(reversed_axes)}" if reversed_axes else ""
        moved = "" if self.axes == tuple(range(len(self.axes))) else f"axes {self.axes}"
        return ", ".join(filter(None, (moved, flips)))

    @property
    def determinant(self) -> int:
        """1 for rotations, -1 for what reverses orientation."""
        crossings = sum(a > b for a, b in itertools.combinations(self.axes, 2))
        return -1 if (crossings + sum(self.flips)) % 2 else 1

    def __call__(self, x: Tensor) -> Tensor:
        """Act on the last axes of ``x``."""
        first = _first_axis(x, len(self.axes))
        x = x.permute(*range(first), *(first + a for a in self.axes))
        x = x.flip([first + a for a, flip in enumerate(self.flips) if flip])
        return x.roll(self._by, tuple(range(first, x.ndim))) if any(self._by) else x

    def __matmul__(self, other: GridMove) -> GridMove:
        """Return the move that makes ``other`` first."""
        axes = tuple(other.axes[a] for a in self.axes)
        flips = tuple(other.flips[a] != flip for a, flip in zip(self.axes, self.flips, strict=True))
        turned = (other._by[a] * (-1 if f else 1) for a, f in zip(self.axes, self.flips, strict=True))
        return GridMove(axes, flips, tuple(s + c for s, c in zip(self._by, turned, strict=True)))

    def inverse(self) -> GridMove:
        """Return the move back."""
        back = tuple(self.axes.index(a) for a in range(len(self.axes)))
        flips = tuple(self.flips[a] for a in back)
        return GridMove(back, flips, tuple(self._by[a] * (1 if self.flips[a] else -1) for a in back))


@dataclass(frozen=True)
class Permutation(Element):
    """Reordering of dimension 1: of channels, of points, or of the nodes of graphs.

    Acts on a Tensor of shape (n, m, ...), or on graphs (adjacency, features) of shapes (n, m, m)
    and (n, m, k), whose edges go with their nodes.

    Attributes
    ----------
    order : tuple of int
        Entry i of the result is entry ``order[i]`` of the input.
    """

    order: tuple[int, ...]

    @property
    def name(self) -> str:
        """The order, in full when it is short."""
        if self.order == tuple(range(len(self.order))):
            return "identity"
        shown = ", ".join(map(str, self.order[:8]))
        return f"order {shown}" + (", ..." if len(self.order) > 8 else "")

    def __call__(self, x: Batch) -> Batch:
        """Reorder a tensor, or a pair of adjacency and features."""
        if isinstance(x, Tensor):
            return x.index_select(1, torch.tensor(self.order, device=x.device))
        adjacency, features = x
        order = torch.tensor(self.order, device=adjacency.device)
        return adjacency.index_select(1, order).index_select(2, order), features.index_select(1, order)

    def __matmul__(self, other: Permutation) -> Permutation:
        """Return the permutation that applies ``other`` first."""
        return Permutation(tuple(other.order[i] for i in self.order))

    def inverse(self) -> Permutation:
        """Return the permutation back."""
        return Permutation(tuple(sorted(range(len(self.order)), key=self.order.__getitem__)))


@dataclass(frozen=True)
class Shift(Element):
    """Cyclic shift of the last axes by any number of samples, by Fourier interpolation."""

    by: tuple[float, ...]

    @property
    def name(self) -> str:
        """The samples along each axis."""
        return "shift by (" + ", ".join(f"{c:.4g}" for c in self.by) + ")"

    @property
    def exact(self) -> bool:
        """False: it interpolates."""
        return False

    def __call__(self, x: Tensor) -> Tensor:
        """Act on the last axes of ``x``."""
        return fourier_shift(x, self.by, range(_first_axis(x, len(self.by)), x.ndim))

    def __matmul__(self, other: Shift) -> Shift:
        """Return the sum of both shifts."""
        return Shift(tuple(a + b for a, b in zip(self.by, other.by, strict=True)))

    def inverse(self) -> Shift:
        """Return the shift back."""
        return Shift(tuple(-c for c in self.by))


@dataclass(frozen=True)
class Warp(Element):
    """Linear map of the last axes about the grid's center, x(M^-1 u), by cubic interpolation with mirrored borders.

    Attributes
    ----------
    matrix : tuple of tuple of float
        M, in samples.
    """

    matrix: tuple[tuple[float, ...], ...]

    @property
    def name(self) -> str:
        """The angle of a plane rotation, the factor of a scaling, the matrix otherwise."""
        m = self.matrix
        if len(m) == 2 and m[0][0] == m[1][1] and m[0][1] == -m[1][0] and m[1][0]:
            return f"rotation by {math.degrees(math.atan2(m[1][0], m[0][0])):.4g} degrees"
        if all(m[a][b] == (m[0][0] if a == b else 0.0) for a in range(len(m)) for b in range(len(m))):
            return f"scaling by {m[0][0]:.4g}"
        return "map by " + str([[round(e, 4) for e in row] for row in m])

    @property
    def exact(self) -> bool:
        """False: it interpolates."""
        return False

    def __call__(self, x: Tensor) -> Tensor:
        """Act on the last axes of ``x``."""
        sizes = x.shape[_first_axis(x, len(self.matrix)) :]
        lines = [torch.arange(n, dtype=x.dtype, device=x.device) - (n - 1) / 2.0 for n in sizes]
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
        back = torch.tensor(self.matrix, dtype=torch.float64).inverse().to(x)
        tau = grid - torch.einsum("ab,b...->a...", back, grid)
        return warp(x, tau, len(sizes), interpolation="cubic", boundary="reflect")

    def __matmul__(self, other: Warp) -> Warp:
        """Return the product of both matrices."""
        rows = torch.tensor(self.matrix, dtype=torch.float64) @ torch.tensor(
            other.matrix, dtype=torch.float64
        )
        return linear_warp(rows)

    def inverse(self) -> Warp:
        """Return the inverse map."""
        return linear_warp(torch.tensor(self.matrix, dtype=torch.float64).inverse())


def linear_warp(matrix: Tensor) -> Warp:
    """Return the warp by a matrix of shape (d, d)."""
    return Warp(tuple(tuple(float(e) for e in row) for row in matrix))


def _first_axis(x: Tensor, d: int) -> int:
    if x.ndim <= d:
        raise IndexError(f"expected samples and {d} axes, got shape {tuple(x.shape)}")
    return x.ndim - d
