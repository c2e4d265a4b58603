r"""Enumeration of the activation patterns of one ReLU layer.

The sign of :math:`Xw` is constant on each cell of the central hyperplane arrangement of the rows of X.
There are at most :math:`2\sum_{k<d}\binom{n-1}{k}` cells in R^d (Cover 1965), polynomially many in n
for a fixed rank d.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theodolite.linalg.dense import all_finite

__all__ = ["TooManyPatterns", "pattern_bound", "patterns"]

PARALLEL = 1e-12
"""Rows whose directions differ by less than this are one line."""
_CHUNK = 1 << 22  # numbers in a temporary array
_FEW = 2_000  # rows on whose account alone many more are refused

Array = NDArray[np.float64]
Words = NDArray[np.uint64]


class TooManyPatterns(ValueError):  # noqa: N818  (an outcome that callers plan for)
    """The arrangement may have more cells than the caller allows."""


def pattern_bound(n: int, d: int) -> int:
    r"""Return Cover's bound :math:`2\sum_{k<d}\binom{n-1}{k}` of the number of patterns of n rows of rank d.

    Equality holds in general position.

    References
    ----------
    Cover, IEEE Trans. Electron. Comput. EC-14 (1965) 326-334.
    """
    return 2 * sum(math.comb(n - 1, k) for k in range(d)) if n > 0 else 1


def patterns(X: Tensor, *, limit: int = 100_000) -> Tensor:
    r"""Return all activation patterns 1[Xw > 0], one for each cell of the arrangement of X's rows.

    Every cell is a pointed cone in the row space, hence spanned by rays, each the null vector of
    d - 1 independent rows (d the rank).  All (d - 1)-subsets are tried; around a ray, the rows that
    vanish there take all signs that their own arrangement, of rank d - 1, allows.  So degenerate
    positions (repeated, parallel, coplanar rows, rank deficiency) need no perturbation.

    Rounding: an entry of a ray's sign vector that its error bound cannot separate from zero counts as
    zero and takes both signs.  That may add patterns that no w has, which loosens no bound that is a
    maximum over cells, and may lose cells thinner than about 1e-7, between rows so close to each other; rows
    count as parallel when their directions are within 1e-12.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Finite; converted to float64.
    limit : int
        Largest number of patterns, by :func:`pattern_bound`, to enumerate.

    Returns
    -------
    Tensor of bool, shape (p, n)
        Distinct patterns; False for zero rows.

    Raises
    ------
    TooManyPatterns
        If the bound exceeds `limit`.
    ValueError
        If X is not a finite matrix.
    """
    if not isinstance(X, Tensor) or X.ndim != 2 or not all_finite(X):
        got = tuple(X.shape) if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(f"X: expected a finite tensor of shape (n, d), got {got}")
    rows = X.detach().to("cpu", torch.float64).numpy()
    if len(rows) > _FEW:
        _refuse_many(_lines(rows[:_FEW])[0], limit)  # a part of the rows has no more patterns than all
    lines, line, flipped = _lines(rows)
    if not len(lines):
        return torch.zeros(1, len(rows), dtype=torch.bool)
    _refuse_many(lines, limit)  # spares the decomposition of a large matrix
    # What the rank neglects may have been all that told two lines apart.
    lines, again, turned = _lines(_row_space(lines))
    m, d = lines.shape
    if pattern_bound(m, d) > limit:
        raise TooManyPatterns(
            f"X: expected at most {limit:,} patterns, got up to {pattern_bound(m, d):,} of {m} rows of rank {d}"
        )
    cells = _unpack(_cells(lines), m)[:, again] ^ turned
    found = np.zeros((len(cells), len(rows)), dtype=bool)
    used = line >= 0
    found[:, used] = cells[:, line[used]] ^ flipped[used]
    return torch.from_numpy(found)


def _lines(rows: Array) -> tuple[Array, NDArray[np.int64], NDArray[np.bool_]]:
    """Return the distinct lines as unit vectors, each row's line (-1 for a zero row) and whether it is flipped."""
    size = np.abs(rows).max(axis=1, initial=0.0)
    line = np.full(len(rows), -1)
    flipped = np.zeros(len(rows), dtype=bool)
    used = np.flatnonzero(size)
    unit = rows[used] / size[used, None]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    # Parallel rows are neighbors in the order of one generic projection.
    generic = np.random.default_rng(0).standard_normal(rows.shape[1])
    sign = np.where(unit @ generic < 0.0, -1.0, 1.0)
    unit *= sign[:, None]
    height = unit @ generic
    order = np.argsort(height, kind="stable")
    reach = PARALLEL * (1.0 + float(np.linalg.norm(generic)))
    kept: list[int] = []
    for i in order:
        for j in reversed(kept):
            if height[i] - height[j] > reach:
                line[used[i]] = len(kept)
                kept.append(i)
                break
            if np.abs(unit[i] - unit[j]).max() <= PARALLEL:
                line[used[i]] = line[used[j]]
                break
        else:
            line[used[i]] = len(kept)
            kept.append(i)
    flipped[used] = sign < 0.0
    return unit[kept], line, flipped


def _refuse_many(lines: Array, limit: int) -> None:
    """Refuse lines of which a few alone have a rank with which the bound of the patterns exceeds the limit."""
    allowed = 0
    while allowed < lines.shape[1] and pattern_bound(len(lines), allowed + 1) <= limit:
        allowed += 1
    # far above the tolerance of the rank of all rows, whose singular values are no smaller
    some = lines[: 4 * (allowed + 1)]
    if len(some) > allowed and int(np.linalg.matrix_rank(some, rtol=1e-5)) > allowed:
        raise TooManyPatterns(
            f"X: expected at most {limit:,} patterns, got {len(lines)} rows of too high a rank"
        )


def _row_space(lines: Array) -> Array:
    """Return unit rows in coordinates of their span, in which they are not nearly dependent.

    A linear map of w changes no pattern; the one that makes the columns orthonormal is the best conditioned.
    """
    coordinates, values, _ = np.linalg.svd(lines, full_matrices=False)
    coordinates = coordinates[:, : max(1, int((values > 1e-11 * values[0]).sum()))]
    return coordinates / np.linalg.norm(coordinates, axis=1, keepdims=True)


def _cells(lines: Array) -> Words:
    """Return the packed sign patterns of distinct unit lines that span their space."""
    m, d = lines.shape
    if d == 1:  # distinct lines in one dimension: one
        return _pack(np.array([[True], [False]]))
    bits = _pack(np.eye(m, dtype=bool))
    choices = np.array(list(itertools.product([False, True], repeat=d - 1)))
    found, special = [], []
    for subset in _subsets(m, d - 1, max(1, _CHUNK // (m + bits.shape[1] * len(choices)))):
        rays, least = _null_vectors(lines[subset])
        good = least > 1e-12
        subset, rays, least = subset[good], rays[good], least[good]
        heights = rays @ lines.T
        # A ray's error is at most about d u / sigma_min: |y_i . ray| below that proves no sign.
        zero = np.abs(heights) <= (16.0 * d * 2.0**-52 / least)[:, None]
        np.put_along_axis(zero, subset, True, axis=1)
        simple = zero.sum(axis=1) == d - 1
        base = _pack((heights > 0.0) & ~zero)
        words = base[simple, None, :]
        for j, choice in enumerate(choices.T):
            mask = np.where(choice[:, None], bits[subset[simple, j], None, :], np.uint64(0))
            words = words | mask
        found.append(_unique(words.reshape(-1, bits.shape[1])))
        if not simple.all():
            special.append(_unique(np.concatenate([base[~simple], _pack(zero[~simple])], axis=1)))
    if special:
        found += _around_degenerate_rays(lines, _unique(np.concatenate(special)), bits)
    half = _unique(np.concatenate(found))
    everything = np.bitwise_or.reduce(bits, axis=0)
    return _unique(np.concatenate([half, half ^ everything]))  # the opposite rays


def _around_degenerate_rays(lines: Array, special: Words, bits: Words) -> Iterator[Words]:
    """Yield the patterns of the cells at rays on which more than d - 1 lines vanish."""
    m, d = lines.shape
    width = bits.shape[1]
    zeros = _unpack(special[:, width:], m)
    for base, zero in zip(special[:, :width], zeros, strict=True):
        where = np.flatnonzero(zero)
        coordinates, _, _ = np.linalg.svd(lines[where], full_matrices=False)
        local, line, flipped = _lines(coordinates[:, : d - 1])
        signs = _unpack(_cells(local), len(local))[:, line] ^ flipped
        full = np.zeros((len(signs), m), dtype=bool)
        full[:, where] = signs
        yield base | _pack(full)


def _subsets(m: int, size: int, chunk: int) -> Iterator[NDArray[np.int64]]:
    every = itertools.chain.from_iterable(itertools.combinations(range(m), size))
    while True:
        block = np.fromiter(itertools.islice(every, chunk * size), dtype=np.int64)
        if not len(block):
            return
        yield block.reshape(-1, size)


def _null_vectors(subsets: Array) -> tuple[Array, Array]:
    """Return unit vectors orthogonal to the rows of each (d - 1, d) matrix, and about its smallest singular value.

    That is at least the rows' volume over a constant; but the volume of several rows close to each other is a
    product of small numbers, and says nothing when it is tiny.
    """
    d = subsets.shape[2]
    if d == 2:
        ray = np.stack([-subsets[:, 0, 1], subsets[:, 0, 0]], axis=1)
    elif d == 3:
        ray = np.cross(subsets[:, 0], subsets[:, 1]).astype(np.float64, copy=False)
    else:
        q, r = torch.linalg.qr(torch.from_numpy(subsets).mT, mode="complete")
        least = r.diagonal(dim1=-2, dim2=-1).prod(dim=-1).abs()
        flat = least < 1e-3
        if bool(flat.any()):
            eye = torch.eye(d - 1, dtype=r.dtype).expand(int(flat.sum()), -1, -1)
            inverse = torch.linalg.solve_triangular(r[flat, : d - 1], eye, upper=True)
            least[flat] = 1.0 / torch.linalg.matrix_norm(inverse)  # zero, or NaN, for dependent rows
        return q[..., -1].numpy(), least.numpy()
    volume = np.linalg.norm(ray, axis=1)
    return ray / np.maximum(volume, 1e-300)[:, None], volume


def _pack(signs: NDArray[np.bool_]) -> Words:
    packed = np.packbits(signs, axis=1)
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return np.ascontiguousarray(packed).view(np.uint64)


def _unpack(words: Words, m: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=m).astype(bool)


def _unique(words: Words) -> Words:
    if words.shape[1] == 1:
        return np.unique(words[:, 0])[:, None]
    words = words[np.lexsort(words.T)]
    return words[np.append(True, (words[1:] != words[:-1]).any(axis=1))] if len(words) else words
