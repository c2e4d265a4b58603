r"""Polynomials near the kink of a ReLU: :math:`p_v(y)\approx\mathrm{relu}(v+y)` for :math:`|y|\le1`, errors proved.

For :math:`v\ge1` the polynomial is v + y and for :math:`v\le-1` it is 0, both exact; in between a table of nearly
best uniform approximations, whose errors are at most .2507, .0908, .0633 and .0426 for degrees 1 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_ENTRIES = 2048  # with v >= 0; the others follow by symmetry
_POINTS = 1024  # of a grid of y, for the search
_FINE = 4096  # and for the proof
_EXCHANGES = 60
_ROUNDING = 1e-13  # a table's entries are of order one


@dataclass(frozen=True)
class Table:
    """Polynomials for equally spaced v in [-1, 1].

    Attributes
    ----------
    coefficients : Tensor, shape (entries, degree + 1)
        In the powers of y, constant first.
    errors : Tensor, shape (entries,)
        Of each entry, for every v that is nearest to it: the distance of v is included.
    size : float
        At least the sum of the absolute coefficients of any entry.
    """

    coefficients: Tensor
    errors: Tensor
    size: float

    @property
    def degree(self) -> int:
        """Degree of the polynomials."""
        return self.coefficients.shape[1] - 1

    def index(self, v: Tensor) -> Tensor:
        """Return the entry nearest to each v, which is clamped to [-1, 1]."""
        steps = len(self.coefficients) - 1
        return ((v.clamp(-1.0, 1.0) + 1.0) * (0.5 * steps)).round_().long()

    def to(self, device: torch.device | str) -> Table:
        """Return the same table on a device."""
        return Table(self.coefficients.to(device), self.errors.to(device), self.size)


@cache
def table(degree: int) -> Table:
    """Return the table of one degree from 1 to 6."""
    if not 1 <= degree <= 6:
        raise ValueError(f"degree: expected an integer from 1 to 6, got {degree}")
    v = np.linspace(0.0, 1.0, _ENTRIES + 1)
    right = _search(v, degree)
    right[-1] = 0.0
    right[-1, :2] = 1.0  # v = 1: the ReLU is v + y
    errors = _errors(v, right)
    # relu(-v + y) = y - v + relu(v - y)
    left = right * (-1.0) ** np.arange(degree + 1)
    left[:, 0] -= v
    left[:, 1] += 1.0
    coefficients = np.concatenate([left[:0:-1], right])
    both = np.concatenate([errors[:0:-1], errors])
    nearest = 0.5 / _ENTRIES  # relu is Lipschitz
    size = float(np.abs(coefficients).sum(1).max()) * (1.0 + 1e-12)
    return Table(torch.from_numpy(coefficients), torch.from_numpy(both + nearest + 1e-12), size)


def _search(v: Array, degree: int) -> Array:
    """Return coefficients near the best by exchanging one point of a reference at a time, for all v at once."""
    y = np.cos(np.linspace(np.pi, 0.0, _POINTS + 1))  # denser at the ends
    powers = y[:, None] ** np.arange(degree + 1)
    wanted = np.maximum(v[:, None] + y, 0.0)
    count = degree + 2
    reference = np.tile(np.linspace(0, _POINTS, count).round().astype(np.int64), (len(v), 1))
    signs = (-1.0) ** np.arange(count)
    best, least = np.zeros((len(v), degree + 1)), np.full(len(v), np.inf)
    here = np.arange(len(v))
    for _ in range(_EXCHANGES):
        system = np.concatenate([powers[reference], np.tile(signs[:, None], (len(v), 1, 1))], 2)
        solution = np.linalg.solve(system, np.take_along_axis(wanted, reference, 1)[..., None])[..., 0]
        rest = wanted - solution[:, :-1] @ powers.T
        at = np.abs(rest).argmax(1)
        height = np.abs(rest[here, at])
        better = height < least
        best[better], least[better] = solution[better, :-1], height[better]
        reference = _exchanged(reference, at, rest[here, at], solution[:, -1:] * signs)
    return best


def _exchanged(
    reference: NDArray[np.int64], at: NDArray[np.int64], rest: Array, errors: Array
) -> NDArray[np.int64]:
    """Return references with the point of the largest error, in the place of a neighbor where it has its sign."""
    out = reference.copy()
    here, count = np.arange(len(at)), reference.shape[1]
    same = np.sign(rest)[:, None] == np.sign(errors)
    after = (reference < at[:, None]).sum(1)  # how many lie to the left
    inside = (after > 0) & (after < count)
    left = np.clip(after - 1, 0, count - 1)
    which = np.where(same[here, left], left, np.clip(after, 0, count - 1))
    out[here[inside], which[inside]] = at[inside]
    for end, shifted in ((after == 0, -1), (after == count, 1)):
        edge = 0 if shifted < 0 else count - 1
        alike = end & same[:, edge]
        out[alike, edge] = at[alike]
        moved = end & ~alike
        if shifted < 0:
            out[moved] = np.concatenate([at[moved, None], reference[moved, :-1]], 1)
        else:
            out[moved] = np.concatenate([reference[moved, 1:], at[moved, None]], 1)
    present = (reference == at[:, None]).any(1)
    out[present] = reference[present]
    return out


def _errors(v: Array, coefficients: Array) -> Array:
    """Return an upper bound of max |relu(v + y) - p(y)| over |y| <= 1.

    On each side of the kink the difference is a polynomial: between two points of a grid that holds the kink
    and the ends it exceeds its values there by at most spacing^2 / 8 times the largest second derivative.
    """
    degree = coefficients.shape[1] - 1
    y = np.linspace(-1.0, 1.0, _FINE + 1)
    powers = y[:, None] ** np.arange(degree + 1)
    out = np.empty(len(v))
    bend = np.abs(coefficients) @ (np.arange(degree + 1) * (np.arange(degree + 1) - 1.0))
    for part in np.array_split(np.arange(len(v)), max(1, len(v) // 256)):
        rest = np.maximum(v[part, None] + y, 0.0) - coefficients[part] @ powers.T
        out[part] = np.abs(rest).max(1)
    kink = np.abs((coefficients * (-v[:, None]) ** np.arange(degree + 1)).sum(1))
    return np.maximum(out, kink) + (2.0 / _FINE) ** 2 / 8.0 * bend + _ROUNDING
