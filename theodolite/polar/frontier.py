"""The open boxes of a branch and bound, in arrays: the largest are taken out, new ones put in."""

from __future__ import annotations

import torch
from torch import Tensor


class Frontier:
    """Boxes with one fixed coordinate.

    Each is a row (upper bound, center, radius, sensitivity) of 1 + 3 d float64 numbers.
    """

    def __init__(self, d: int) -> None:
        self.d, self.count = d, 0
        self._rows = torch.empty(64, 1 + 3 * d, dtype=torch.float64)

    @property
    def rows(self) -> Tensor:
        """All boxes, shape (count, 1 + 3 d), in no order."""
        return self._rows[: self.count]

    @property
    def top(self) -> float:
        """The largest upper bound, 0 without boxes."""
        return float(self.rows[:, 0].max()) if self.count else 0.0

    def push(self, upper: Tensor, center: Tensor, radius: Tensor, sensitivity: Tensor) -> None:
        """Put boxes in."""
        fresh = torch.cat([upper[:, None], center, radius, sensitivity], 1).cpu()
        while self.count + len(fresh) > len(self._rows):
            self._rows = torch.cat([self._rows, torch.empty_like(self._rows)])
        self._rows[self.count : self.count + len(fresh)] = fresh
        self.count += len(fresh)

    def pop(self, most: int, largest: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take out the boxes with the largest upper bounds, or the smallest, at most so many."""
        which = self.rows[:, 0].topk(min(most, self.count), largest=largest).indices
        taken = self._rows[which]
        left = self.count - len(which)
        kept = torch.ones(len(which), dtype=torch.bool)
        kept[which[which >= left] - left] = False
        self._rows[which[which < left]] = self._rows[left : self.count][kept]
        self.count = left
        upper, *parts = taken.split([1, self.d, self.d, self.d], 1)
        return upper[:, 0], parts[0], parts[1], parts[2]
