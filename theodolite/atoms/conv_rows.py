r"""The rows of a pooled convolution's polar: one for each direction of a patch in a pooling cell.

Parallel patches of one cell are one row, since

.. math:: \sum_iQ_i\,\mathrm{relu}(\alpha_ix\cdot w)=\Big(\sum_i\alpha_iQ_i\Big)\mathrm{relu}(x\cdot w),

and zero patches none.  Patches count as parallel that agree to ten digits; by how much they do not is bounded,
and what that changes in the polar is added to its ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theodolite.atoms.conv_patches import Geometry
from theodolite.linalg.dense import largest
from theodolite.linalg.lanczos import PAD, gamma
from theodolite.polar.rows import direction_digits, hash_factors
from theodolite.polar.scaling import power


@dataclass(frozen=True)
class Rows:
    r"""Rows x_g in cells, and how the rows Q_i of a dual point add up to their weights.

    Attributes
    ----------
    X : Tensor, shape (m, d)
        Coordinates of one patch of each group, divided by ``2^exponent``.
    cells : Tensor of int64, shape (m,)
        Nondecreasing.
    group, image : Tensor of int64, shape (entries,)
        Row and image of each patch that is not zero.
    share : Tensor, shape (entries,)
        Its length over that of its row, divided by the number of patches in a cell.
    slack : Tensor, shape (n,)
        For |Q_i| = 1 a bound of what merging, and rounding in the weights and coordinates, changes in F
        because of image i.
    exponent : int
        Largest patch entries are about ``2^exponent``; the function of these rows is to be multiplied by it.
    """

    X: Tensor
    cells: Tensor
    group: Tensor
    image: Tensor
    share: Tensor
    slack: Tensor
    exponent: int

    def weights(self, Q: Tensor) -> Tensor:
        """Return the weight of each row, shape (m, K), for Q of shape (n, K)."""
        total = Q.new_zeros(len(self.X), Q.shape[1])
        step = max(1, (1 << 22) // Q.shape[1])
        parts = (x.split(step) for x in (self.group, self.image, self.share))
        for group, image, share in zip(*parts, strict=True):
            total.index_add_(0, group, share[:, None] * Q[image])
        return total

    def error(self, Q: Tensor) -> float:
        """Return how far the function of the rows, at unit vectors, is from that of the patches, at most."""
        return float(torch.linalg.vector_norm(Q, dim=1) @ self.slack) * PAD


def merged_rows(geometry: Geometry, images: Tensor, basis: Tensor | None) -> Rows:
    """Return the rows of all patches of some images.

    Parameters
    ----------
    geometry : Geometry
    images : Tensor, shape (n, channels, height, width)
        On the CPU, float64.
    basis : Tensor, shape (width, b), optional
        Orthonormal; rows are the coordinates of patches in it.
    """
    top = largest(images)
    exponent = math.frexp(top)[1] if top > 0.0 else 0
    images = power(images, -exponent)
    P, d = math.prod(geometry.pool), geometry.width
    factors = hash_factors(d)
    parts = []
    for part in geometry.chunks(len(images)):
        patches = geometry.patches(images[part])
        sizes = torch.linalg.vector_norm(patches, dim=3)
        p, i, c = (sizes > 0.0).nonzero(as_tuple=True)
        rows, lengths = patches[p, i, c], sizes[p, i, c]
        # where two hashes collide, `rest` below is large
        hashed = torch.from_numpy(direction_digits(rows, lengths) @ factors)
        parts.append((hashed, c, i + part.start, p, lengths))
    hashes, c, i, p, lengths = (torch.cat(x) for x in zip(*parts, strict=True))
    _, direction = np.unique(hashes.numpy(), return_inverse=True)
    key = c.numpy() * (len(hashes) + 1) + direction.reshape(-1)  # the groups in the order of their cells
    _, first, group = (
        torch.from_numpy(x.reshape(-1)) for x in np.unique(key, return_index=True, return_inverse=True)
    )
    members = torch.bincount(group, minlength=len(first)) if len(group) else first
    # what is merged but not quite parallel: |x - alpha y|, patch by patch
    head = _entries(geometry, images, i[first], c[first], p[first])
    slack = images.new_zeros(len(images))
    share = lengths / lengths[first[group]]
    step = max(1, (1 << 22) // d)
    spread = 1.0 if basis is None else math.sqrt(basis.shape[1])
    rounding = gamma(int(members.max()) + 4 * d + 32) * spread if len(first) else 0.0
    for start in range(0, len(group), step):
        s = slice(start, start + step)
        rest = _entries(geometry, images, i[s], c[s], p[s]) - share[s, None] * head[group[s]]
        lost = torch.linalg.vector_norm(rest, dim=1) * spread + rounding * lengths[s]
        slack.index_add_(0, i[s], lost / P)
    X, cells, share = head if basis is None else head @ basis, c[first], share / P
    seen = X.any(1)  # a basis may miss a patch altogether
    if not bool(seen.all()):
        kept = seen[group]
        group, i, share = (seen.cumsum(0) - 1)[group[kept]], i[kept], share[kept]
        X, cells = X[seen], cells[seen]
    return Rows(X, cells, group, i, share, slack * PAD, exponent)


def _entries(geometry: Geometry, images: Tensor, i: Tensor, c: Tensor, p: Tensor) -> Tensor:
    """Return single patches, shape (entries, width), by image, cell and position within the cell."""
    (kh, kw), (sh, sw), (_, pw), (th, tw) = (
        geometry.kernel,
        geometry.stride,
        geometry.pool,
        geometry.pool_stride,
    )
    columns = geometry.grid[1]
    y = sh * (th * (c // columns) + p // pw)
    x = sw * (tw * (c % columns) + p % pw)
    channel = torch.arange(geometry.image[0])[:, None, None]
    row, column = torch.arange(kh)[:, None], torch.arange(kw)
    i, y, x = (t[:, None, None, None] for t in (i, y, x))
    return images[i, channel, y + row, x + column].flatten(1)
