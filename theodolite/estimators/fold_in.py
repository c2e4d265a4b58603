r"""New rows of a factorization: their factors, given those of the columns.

With :math:`Z=UV^\top` and the regularizer :math:`\alpha\sum_i\|u_i\|\|v_i\|`, which is the least
:math:`\tfrac\alpha2(\|U\|_F^2+\|V\|_F^2)` over all scalings, a row x of U solves
:math:`\min_x \sum_j f(z_j + V_jx) + \tfrac\alpha2\|x\|^2` over its observed entries: ridge regression
for squared errors.  At an optimum with balanced factors the rows of U solve exactly this problem, for
their gradient :math:`\nabla\ell(Z)V+\alpha U` vanishes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from theodolite.losses import SampleLoss
from theodolite.losses.squared import SquaredLoss

_NUMBERS = 4_000_000  # in the Hessians held at once
_STEPS = 100


def fold_in(
    loss: SampleLoss,
    starts: NDArray[np.int64],
    cols: NDArray[np.int64],
    offsets: NDArray[np.float64],
    features: NDArray[np.float64],
    penalties: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the factors of rows, shape (n, r), each by Newton's method (one step for squared errors).

    Parameters
    ----------
    loss : SampleLoss of shape (size, 1)
        Of the observed entries of all rows, one row after another.
    starts : ndarray of int64, shape (n + 1,)
        Where the entries of each row begin.
    cols : ndarray of int64, shape (size,)
        Columns of the entries.
    offsets : ndarray, shape (size,)
        What is added to their predictions.
    features : ndarray, shape (m, r)
        Factors of the columns.
    penalties : ndarray, shape (r,)
        Positive factors of half the squares of the unknowns.
    """
    n, r = len(starts) - 1, features.shape[1]
    factors = np.zeros((n, r))
    height = max(1, _NUMBERS // max(r * r, 1))
    for top in range(0, n if r else 0, height):
        block = starts[top : min(top + height, n) + 1]
        here = slice(int(block[0]), int(block[-1]))
        if here.start < here.stop:
            rows = _Rows(loss.rows(here), block - block[0], cols[here], offsets[here], features, penalties)
            factors[top : top + len(block) - 1] = rows.solve()
    return factors


class _Rows:
    """A block of rows, solved together (arguments as in `fold_in`)."""

    def __init__(
        self,
        loss: SampleLoss,
        starts: NDArray[np.int64],
        cols: NDArray[np.int64],
        offsets: NDArray[np.float64],
        features: NDArray[np.float64],
        penalties: NDArray[np.float64],
    ) -> None:
        self.loss, self.starts, self.cols, self.offsets = loss, starts, cols, offsets
        self.features, self.penalties = features, penalties
        self.count = len(starts) - 1

    def predict(self, factors: NDArray[np.float64]) -> torch.Tensor:
        inner = np.empty(len(self.cols))
        for i in range(self.count):
            here = slice(self.starts[i], self.starts[i + 1])
            inner[here] = self.features[self.cols[here]] @ factors[i]
        return torch.from_numpy(self.offsets + inner)[:, None]

    def values(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objective of each row."""
        Z, penalty = self.predict(factors), 0.5 * (factors**2) @ self.penalties
        each = [
            self.loss.rows(slice(int(self.starts[i]), int(self.starts[i + 1]))).value(
                Z[self.starts[i] : self.starts[i + 1]]
            )
            for i in range(self.count)
        ]
        return np.array(each) + penalty

    def newton(self, factors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the gradients and the Newton steps."""
        Z = self.predict(factors)
        slopes = self.loss.gradient(Z)[:, 0].numpy()
        bends = self.loss.curvature(Z)[1].numpy()
        gradients = factors * self.penalties
        hessians = np.tile(np.diag(self.penalties), (self.count, 1, 1))
        for i in range(self.count):
            here = slice(self.starts[i], self.starts[i + 1])
            V = self.features[self.cols[here]]
            gradients[i] += V.T @ slopes[here]
            hessians[i] += V.T @ (bends[here, None] * V)
        steps = np.asarray(np.linalg.solve(hessians, gradients[:, :, None])[:, :, 0], dtype=np.float64)
        return gradients, steps

    def solve(self) -> NDArray[np.float64]:
        factors = np.zeros((self.count, self.features.shape[1]))
        if isinstance(self.loss, SquaredLoss):
            factors -= self.newton(factors)[1]
            return factors - self.newton(factors)[1]  # once more for what rounding left
        values = self.values(factors)
        for _ in range(_STEPS):
            gradients, steps = self.newton(factors)
            fall, length = (gradients * steps).sum(1), np.ones(self.count)
            open_ = fall > 1e-26 * (1.0 + np.abs(values))
            if not open_.any():
                break
            length[~open_] = 0.0
            for _ in range(40):  # halve the steps that go too far; below rounding all are welcome
                trial = factors - length[:, None] * steps
                reached = self.values(trial)
                far = ~(reached <= values - 1e-4 * length * fall + 1e-14 * np.abs(values))
                if not far.any():
                    break
                length[far] *= 0.5
            else:
                length[far] = 0.0
                trial = factors - length[:, None] * steps
                reached = self.values(trial)
            factors, values = trial, reached
            if not length.any():
                break
        return factors
