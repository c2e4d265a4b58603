r"""The search of a branch and bound for the polar of a ReLU layer.

For rows :math:`x_i` with weights :math:`Q_i\in\mathbb R^K` in cells c, the maximum over unit vectors of

.. math:: F(w) = \Big(\sum_c\big\|\sum_{i\in c}Q_i\,\mathrm{relu}(x_i\cdot w)\big\|^2\Big)^{1/2}

is searched on the surface of a cube, directions being boxes on its faces.  Those with the largest upper
bounds (:mod:`theodolite.polar.box_bound`) are divided next.  Every direction is in an open box, or in one
that was closed because its bound is small enough, so that the largest of their bounds holds at any time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theodolite.linalg.lanczos import UP, gamma
from theodolite.polar import box_bound
from theodolite.polar.ascent import unit_rows
from theodolite.polar.box_bound import Boxes, Rows, bound_boxes, fold
from theodolite.polar.frontier import Frontier

__all__ = ["DIMENSIONS", "BranchAndBound", "Step"]

DIMENSIONS = 12
"""More than so many coordinates of w are refused: no budget would do."""
_MANY = 1 << 15  # rows times outputs from which one box is divided at a time, by
_LEVELS = 3  # halvings, its rows restricted to those undecided on it; at the start
_FACE = 8  # halvings of a whole face
_TOGETHER = 512  # otherwise so many boxes, by
_FEW = 2  # halvings each
_ROUNDS, _ROUNDS_FEW = 6, 1  # times that the domain of a polynomial is halved: it costs the same for few rows
_OPEN = 2_000_000  # boxes at most: memory
_DIRECT = 6  # dimensions up to which a box is asked for what is enough at once, not first for
_FIRST, _NEXT = 2.0, 0.75  # so many times what is attained, and then for such a part of it
_WITNESSES = 16


@dataclass(frozen=True)
class Step:
    """One line of the log.

    Attributes
    ----------
    boxes : int
        Boxes whose bound was computed so far.
    open : int
        Boxes that are still to be divided.
    lower, upper : float
        Ends of the bound.
    seconds : float
        Spent so far.
    """

    boxes: int
    open: int
    lower: float
    upper: float
    seconds: float


class BranchAndBound:
    """A search that can be stopped and taken up again.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Float64, finite, without zero rows, entries of moderate size.
    Q : Tensor, shape (n, K)
        The same.
    cells : Tensor, shape (n,), int64, optional
        The cell of each row, from 0; one cell by default.
    max_open : int
        Boxes held at most: about 24 d bytes each.

    Attributes
    ----------
    lower, upper : float
        Ends of the maximum, rounding enclosed.
    witness : Tensor, shape (m, d)
        Unit directions, the first attains the lower end.
    history : list of Step
    """

    def __init__(self, X: Tensor, Q: Tensor, cells: Tensor | None = None, *, max_open: int = _OPEN) -> None:
        n, d = X.shape
        if d > DIMENSIONS:
            raise ValueError(f"X: expected at most {DIMENSIONS} columns, got {d}")
        if cells is None:
            starts = torch.tensor([0, n], device=X.device)
        else:
            order = torch.argsort(cells, stable=True)
            X, Q, cells = X[order], Q[order], cells[order]
            starts = torch.searchsorted(cells, torch.arange(int(cells[-1]) + 2, device=X.device))
        sizes = torch.linalg.vector_norm(Q, dim=1)
        lengths = torch.linalg.vector_norm(X, dim=1)
        # principal axes: the extent of a box along those of small variance hardly matters
        axes = torch.linalg.eigh(X.T @ (X * (sizes / lengths)[:, None])).eigenvectors
        self.plain = Rows(X, Q, starts)
        self.degree = 4 if d <= 4 else 3 if d == 5 else 2
        self._turn(axes)
        self._closed, self._many, self.max_open = 0.0, n * Q.shape[1] > _MANY, max_open
        self.lower, self.witness = 0.0, X.new_zeros(0, d)
        self.boxes, self.seconds, self.history = 0, 0.0, list[Step]()
        extent = (sizes @ self.rows.X.abs())[None].repeat(2, 1)
        self.frontiers = [Frontier(d) for _ in range(d)]
        for axis, frontier in enumerate(self.frontiers):
            center = X.new_zeros(2, d)
            center[0, axis], center[1, axis] = -1.0, 1.0
            radius = X.new_ones(2, d)
            radius[:, axis] = 0.0
            frontier.push(X.new_full((2,), self.total), center, radius, extent)
        self.offer(axes.T[-1:])

    def _turn(self, axes: Tensor) -> None:
        """Let boxes be in the coordinates of nearly orthonormal columns, shape (d, d)."""
        d, X = len(axes), self.plain.X
        self.axes, self.rows = axes, Rows(X @ axes, self.plain.Q, self.plain.starts)
        self.total = self.rows.total()
        wrong = float((axes.T @ axes - torch.eye(d, dtype=X.dtype, device=X.device)).norm())
        self._stretch = (1.0 + 2.0 * wrong + gamma(16 * d)) * UP
        self._margin = box_bound.rounding_margin(self.rows, self.degree) + gamma(2 * d + 4) * self.total

    @property
    def upper(self) -> float:
        """Upper end of the maximum."""
        return max([self.lower, self._closed, *(f.top for f in self.frontiers)]) * self._stretch

    @property
    def open(self) -> int:
        """Number of open boxes."""
        return sum(f.count for f in self.frontiers)

    def offer(self, W: Tensor) -> None:
        """Use directions, shape (m, d), for the lower end."""
        W = unit_rows(W)
        values = self.plain.values(W).flatten(1).norm(dim=1)
        n, d = self.plain.X.shape
        noise = 2.0 * gamma(n + d + self.plain.Q.shape[1] * self.plain.cells + 16) * self.total
        best = int(values.argmax())
        if float(values[best]) - noise > self.lower:
            self.lower = float(values[best]) - noise
            self.witness = torch.cat([W[best : best + 1], self.witness])[:_WITNESSES]

    def run(
        self,
        target: float | None = None,
        budget: float | None = None,
        *,
        tol: float = 1e-6,
        callback: Callable[[Step], bool | None] | None = None,
    ) -> None:
        """Divide boxes until the upper end is at most the target, or the lower end times 1 + tol.

        Parameters
        ----------
        target : float, optional
            It ends, too, when the lower end exceeds it.
        budget : float, optional
            Seconds after which to stop.
        tol : float
            Relative width of the bound that is enough.
        callback : function(Step) -> bool, optional
            Called after each step; returning True stops.
        """
        began, before = time.monotonic(), self.seconds
        try:
            while True:
                self.seconds = before + time.monotonic() - began
                self.history.append(self._step())
                over = budget is not None and self.seconds - before >= budget
                over |= self.done(target, tol)
                if (callback is not None and callback(self.history[-1])) or over:
                    return
                self._divide(*self._aims(target, tol))
        finally:
            self.seconds = before + time.monotonic() - began

    def done(self, target: float | None, tol: float) -> bool:
        """Whether there is nothing left to do, see :meth:`run`, or no memory to do it in."""
        exceeded = target is not None and self.lower > target
        closed = self.upper <= self._enough(target, tol) * self._stretch
        return exceeded or closed or self.open > 1.5 * self.max_open

    def _enough(self, target: float | None, tol: float) -> float:
        """Return the bound up to which a box is closed."""
        wanted = -math.inf if target is None else target / self._stretch
        return max(wanted, self.lower * (1.0 + tol), 1e-10 * self.total)  # rounding

    def _aims(self, target: float | None, tol: float) -> tuple[float, float]:
        """Return the bound up to which a box is closed, and one that is asked of it next.

        Where what is enough is out of reach, bounds tuned for it are loose.
        """
        enough = self._enough(target, tol)
        if len(self.frontiers) <= _DIRECT:
            return enough, enough
        aim = max(_FIRST * self.lower, enough)
        while aim > enough and self.upper <= aim * self._stretch:
            aim = max(_NEXT * aim, enough)
        return enough, aim

    def _step(self) -> Step:
        return Step(self.boxes, self.open, self.lower, self.upper, self.seconds)

    def _divide(self, enough: float, aim: float) -> None:
        crowded = self.open > self.max_open  # then those that will be closed the soonest
        tops = [f.top for f in self.frontiers]
        axis = max(range(len(tops)), key=lambda j: self.frontiers[j].count if crowded else tops[j])
        popped = self.frontiers[axis].pop(1 if self._many else _TOGETHER, largest=not crowded)
        settled = popped[0] <= enough  # since they were put in what is enough may have risen
        if bool(settled.any()):
            self._closed = max(self._closed, float(popped[0][settled].max()))
            popped = tuple(x[~settled] for x in popped)  # type: ignore[assignment]
            if not len(popped[0]):
                return
        device, thin = self.rows.X.device, popped[2].amax(1) < 2.0**-40
        if bool(thin.any()):  # not worth dividing: their bound stays what it is
            self._closed = max(self._closed, float(popped[0][thin].max()))
            popped = tuple(x[~thin] for x in popped)  # type: ignore[assignment]
            if not len(popped[0]):
                return
        above, center, radius, weight = (x.to(device) for x in popped)
        rows, folded = self.rows, None
        if self._many:
            folded, index = fold(self.rows, Boxes(center, radius, axis))
            rows = self.rows.taken(index)
        levels = _LEVELS if self._many else _FEW
        if self._many and float(radius.sum()) == len(self.frontiers) - 1:
            levels = min(len(self.frontiers) - 1, _FACE)
        for _ in range(levels):
            above, center, radius, weight = _halved(above, center, radius, weight)
        boxes = Boxes(center, radius, axis)
        rounds = _ROUNDS if self._many else _ROUNDS_FEW
        found = bound_boxes(
            rows, boxes, aim, degree=self.degree, folded=folded, margin=self._margin, rounds=rounds
        )
        self.boxes += len(boxes)
        upper = torch.minimum(found.upper.nan_to_num(nan=math.inf), above)
        best = int(found.center.argmax())
        if float(found.center[best]) > self.lower * (1.0 + 1e-9):
            self.offer((self.axes @ center[best])[None])
        shut = upper <= enough
        if bool(shut.any()):
            self._closed = max(self._closed, float(upper[shut].max()))
        left = ~shut
        self.frontiers[axis].push(upper[left], center[left], radius[left], found.sensitivity[left])

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on later with the same X and Q, tensors and numbers only."""
        return {
            "axes": self.axes.cpu(),
            "boxes": [f.rows.clone() for f in self.frontiers],
            "witness": self.witness.cpu(),
            "numbers": [self.lower, self._closed, self.seconds, float(self.boxes)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a search on the same X and Q where :meth:`state_dict` was called."""
        d = len(self.frontiers)
        if len(state["boxes"]) != d or any(rows.shape[1] != 1 + 3 * d for rows in state["boxes"]):
            raise ValueError(f"state: expected boxes of {d} coordinates, got {len(state['boxes'])}")
        self._turn(
            state["axes"].to(self.plain.X.device)
        )  # another machine may compute others: signs, rounding
        self._refill([[rows] for rows in state["boxes"]])
        self.witness = state["witness"].to(self.plain.X.device)
        self.lower, self._closed, self.seconds, boxes = state["numbers"]
        self.boxes = int(boxes)

    def _refill(self, boxes: Iterable[Iterable[Tensor]]) -> None:
        """Let these be the open boxes, for each axis some arrays of them."""
        d = len(self.frontiers)
        for axis, parts in enumerate(boxes):
            self.frontiers[axis] = Frontier(d)
            for rows in parts:
                upper, *rest = rows.split([1, d, d, d], 1)
                self.frontiers[axis].push(upper[:, 0], *rest)

    def deal(self, parts: int) -> list[dict[str, Any]]:
        """Return states of so many searches, which together have the open boxes of this one."""
        whole = self.state_dict()
        sorted_boxes = [rows[rows[:, 0].argsort(descending=True)] for rows in whole["boxes"]]
        # every axis begins with another part, lest the first get one box more of each
        return [
            {
                **whole,
                "boxes": [rows[(i + axis) % parts :: parts] for axis, rows in enumerate(sorted_boxes)],
                "numbers": [self.lower, 0.0, 0.0, 0.0],
            }
            for i in range(parts)
        ]

    def collect(self, states: Sequence[dict[str, Any]], seconds: float) -> None:
        """Take back what searches that were dealt have come to in some seconds: in place of the open boxes."""
        self._refill(zip(*(state["boxes"] for state in states), strict=True))
        self._closed = max(self._closed, *(state["numbers"][1] for state in states))
        self.boxes += sum(int(state["numbers"][3]) for state in states)
        self.seconds += seconds
        best = max(states, key=lambda state: state["numbers"][0])
        if best["numbers"][0] > self.lower:
            self.lower, self.witness = best["numbers"][0], best["witness"].to(self.plain.X.device)
        self.history.append(self._step())


def _halved(above: Tensor, center: Tensor, radius: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Return both halves of boxes, divided along the coordinate whose extent causes the largest error."""
    j = torch.where(radius > 0.0, weight, -1.0).argmax(1, keepdim=True)
    half, here = 0.5 * radius.gather(1, j), center.gather(1, j)
    center = torch.cat([center.scatter(1, j, here - half), center.scatter(1, j, here + half)])
    weight = weight.scatter(1, j, 0.5 * weight.gather(1, j))
    return above.repeat(2), center, radius.scatter(1, j, half).repeat(2, 1), weight.repeat(2, 1)
