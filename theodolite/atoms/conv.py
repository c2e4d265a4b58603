r"""Pooled convolutional ReLU networks: the sum of units ``AvgPool(relu(conv(images, w)))`` times output weights.

A filter sees patches, so that the only hard part of such a network is as large as a filter: its polar is that of
a ReLU layer with one row for each patch, whose dual weight counts in its pooling cell alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from theodolite.atoms.conv_descent import descend_pooled, search
from theodolite.atoms.conv_patches import Geometry, as_images, as_pair, filter_basis
from theodolite.atoms.conv_polish import MOST
from theodolite.atoms.conv_rows import Rows, merged_rows
from theodolite.atoms.inputs import check_outputs, moderate, random_directions, same_directions, unit
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count
from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.losses.base import Support
from theodolite.polar.ascent import relu_values, rounding_margin, segments
from theodolite.polar.scaling import balanced, scaled_back
from theodolite.polar.tiers import upper_bounds
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

_WITNESSES = 32
_RANDOM = 512  # directions of a search for the lower end
_HELD = 1 << 25  # numbers in the table of all patches, beyond which they are formed again and again
_LONG = 600.0  # seconds of a search without a limit
_WIDTH = 1e-3  # relative width of a polar without a target
_PATIENCE = 0.7  # of the time left: the rest is for the proof


class ConvReLUAtom(Atom):
    r"""One convolutional filter with ReLU, average pooling and its output weights.

    :math:`\phi(w, U)_i = \sum_ch_{ic}(w)U_c` where :math:`h_{ic}` is the mean of :math:`\mathrm{relu}(x\cdot w)` over
    the patches x of image i in pooling cell c, and :math:`\theta = \|w\|_2\|U\|_F`, of degree 2.  Sums of r units are
    the networks ``Conv2d(channels, r, kernel_size, stride, bias=False)``, ``ReLU``, ``AvgPool2d(pool)``,
    ``Flatten``, ``Linear(r C, K, bias=False)`` with C cells: the convolution's weight is :meth:`filters` of W, the
    linear layer's is ``U.view(r * C, K).T``.  Params are ``(W, U)`` of shapes (r, d) and (r, C K).

    The polar is :math:`\max_{\|w\|=1}(\sum_{c}\|\sum_{i}h_{ic}(w)Q_i\|^2)^{1/2}`: ascent below, a relaxation or
    branch and bound above, whose cost grows with d.  So filters may be restricted to a few dimensions.

    Parameters
    ----------
    images : array-like, shape (n, channels, height, width) or (n, height, width)
        Finite.
    n_outputs : int
    kernel_size, stride, pool : int or pair of int
        Positions that do not fill a pooling cell are dropped, as are pixels that no filter reaches.
    basis : None, "dct", "gaussian-derivative", "pca" or array-like, shape (channels * kernel, d)
        Orthonormal columns of which filters are combinations; W then holds their coefficients.  See
        :func:`theodolite.atoms.conv_patches.filter_basis`; by default filters are free.
    n_components : int
        Number of columns of a basis that is named.
    pool_stride : int or pair of int, optional
        Distance between pooling cells, which overlap where it is less than ``pool``; ``pool`` by default.

    Attributes
    ----------
    geometry : Geometry
    basis : Tensor or None
    persistent : bool
        As of :class:`~theodolite.atoms.ReLUAtom`.

    Raises
    ------
    ValueError
        If an argument is of another form, or the kernel and one pooling cell do not fit the images.

    References
    ----------
    Sahiner et al., ICLR 2021 (arXiv 2012.13329); Haeffele and Vidal, arXiv 1506.07540.
    """

    degree = 2
    persistent = False

    def __init__(
        self,
        images: Any,
        n_outputs: int,
        kernel_size: Any,
        stride: Any = 1,
        pool: Any = 2,
        basis: Any = None,
        *,
        n_components: int = 5,
        pool_stride: Any = None,
    ) -> None:
        self.images = as_images(images)
        pairs = [
            as_pair(value, name)
            for value, name in (
                (kernel_size, "kernel_size"),
                (stride, "stride"),
                (pool, "pool"),
                (pool if pool_stride is None else pool_stride, "pool_stride"),
            )
        ]
        n, *size = self.images.shape
        self.geometry = Geometry((size[0], size[1], size[2]), *pairs)
        if not all(k <= s for k, s in zip(pairs[0], size[1:], strict=True)) or not self.geometry.cells:
            raise ValueError(
                f"images: expected at least one pooling cell of {pairs[2]} positions of a kernel {pairs[0]} "
                f"with stride {pairs[1]}, got images of {size[1]} x {size[2]}"
            )
        self.n_outputs = check_outputs(n_outputs)
        self.shape = (n, self.n_outputs)
        self.basis = filter_basis(basis, self.geometry, self.images, n_components)
        self.width = self.geometry.width if self.basis is None else self.basis.shape[1]
        chain = (
            2 * self.geometry.width + math.prod(self.geometry.pool) + self.geometry.cells + self.n_outputs + 8
        )
        # the rounding of a patch's coordinates is relative to the patch, times |basis|_F at most
        self.depth = chain * (1 if self.basis is None else math.ceil(math.sqrt(self.width)))
        numbers = n * self.geometry.cells * math.prod(self.geometry.pool) * self.width
        self._patches = self._coordinates(self.images) if numbers <= _HELD else None
        self._bounds = self._row_bounds()

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r units of random directions, theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        widths = (self.width, self.geometry.cells * self.n_outputs)
        return tuple(random_directions(r, width, generator).to(self.images.device) for width in widths)

    def filters(self, W: Tensor) -> Tensor:
        """Return the filters as a convolution's weight, shape (r, channels, kernel height, kernel width)."""
        whole = W if self.basis is None else W @ self.basis.T
        return whole.view(len(W), self.geometry.image[0], *self.geometry.kernel)

    def phi(self, params: Params, X: Any = None) -> Tensor:
        """Return the predictions, shape (n, K), of the images or of others, X."""
        W, U = params
        weights = U.reshape(count(params) * self.geometry.cells, self.n_outputs)
        images = None if X is None else as_images(X, shape=self.geometry.image).to(self.images)
        parts = [hidden.flatten(1) @ weights for hidden in self._hidden(W, images)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def hidden(self, W: Tensor) -> Tensor:
        """Return what filters show of each image in each cell, shape (n, r, C)."""
        return torch.cat(list(self._hidden(W, None)))

    def _hidden(self, W: Tensor, images: Tensor | None) -> list[Tensor]:
        """Return the hidden units of blocks of images, each of shape (m, r, C)."""
        table = self._patches if images is None else None
        images = self.images if images is None else images
        parts = []
        for part in self.geometry.chunks(len(images), len(W)):
            patches = self._coordinates(images[part]) if table is None else table[:, part]
            parts.append(torch.relu(patches @ W.T).mean(0).transpose(1, 2))
        return parts

    def _coordinates(self, images: Tensor) -> Tensor:
        """Return all patches, in the basis if there is one, shape (positions in a cell, m, C, d)."""
        patches = self.geometry.patches(images)
        return patches if self.basis is None else patches @ self.basis

    def _row_bounds(self) -> Tensor:
        """Return the norm over the cells of the mean length of a patch, for each image, rounded up."""
        parts = []
        for part in self.geometry.chunks(len(self.images)):
            sizes = torch.linalg.vector_norm(self.geometry.patches(self.images[part]), dim=3)
            parts.append(torch.linalg.vector_norm(sizes.mean(0), dim=1))
        slack = 0.0 if self.basis is None else 1e-7  # a basis is orthonormal to 1e-8
        return torch.cat(parts) * (1.0 + slack + gamma(self.depth))

    def theta(self, params: Params) -> Tensor:
        """Return |w| |U| of each unit."""
        W, U = params
        return W.norm(dim=1) * U.norm(dim=1)

    def penalty(self, params: Params) -> Tensor:
        """Return (|w|^2 + |U|^2) / 2 of each unit: weight decay."""
        W, U = params
        return 0.5 * (W.square().sum(1) + U.square().sum(1))

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return each unit's predictions, shape (r, n K) or (r, size)."""
        W, U = params
        weights = U.view(count(params), self.geometry.cells, self.n_outputs)
        single = torch.einsum("nrc,rck->rnk", self.hidden(W), weights)
        return single.flatten(1) if support is None else single[:, support.rows, support.cols]

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return the norm over the cells of the mean length of a patch, for each image."""
        return self._bounds if support is None else self._bounds[support.rows]

    def merge(self, params: Params) -> Params:
        """Join units of one filter: their output weights, times the filter's length, add up."""
        W, U = params
        if count(params) < 2:
            return params
        first = same_directions(unit(W))
        U = torch.zeros_like(U).index_add_(0, first, W.norm(dim=1, keepdim=True) * U)
        kept = first == torch.arange(len(first), device=first.device)
        return _shared(unit(W)[kept], U[kept])

    @cached_property
    def rows(self) -> Rows:
        """The rows of the polar, on the CPU; parallel patches of a cell are one."""
        basis = None if self.basis is None else self.basis.cpu()
        return merged_rows(self.geometry, self.images.cpu(), basis)

    def polar(
        self,
        Q: Tensor,
        *,
        target: float | None = None,
        budget: float | None = None,
        starts: Params | None = None,
        seed: int = 0,
        delta: float = 1e-9,
    ) -> Value:
        """Return a bound of the polar of Q, see :meth:`Atom.polar`.

        Upper ends: the sum over the rows of |Q_i| |x_i|, cell by cell, and with a budget branch and bound, with
        relaxations before it where filters have more than six dimensions; what the merging of patches and
        rounding may change is added.  Lower ends are evaluated.  Without a target the search ends at a relative
        width of 1e-3, and without a budget after ten minutes.
        """
        Q, exponent = moderate(Q, self.shape)
        if exponent is None:
            return Value.bound(0.0, 0.0, witness=self.init(1), note="Q is zero")
        rows = self.rows
        Q = (Q.to_dense() if Q.is_sparse else Q).cpu()
        X, V, shift = balanced(rows.X, rows.weights(Q))
        lost = ldexp_rounded(rows.error(Q), -shift, 1)
        exponent += rows.exponent + shift
        target = None if target is None else ldexp_rounded(target, -exponent, -1)
        began = time.monotonic()

        def left() -> float | None:
            return None if budget is None else max(budget - (time.monotonic() - began), 0.0)

        crude = _crude(X, V, rows.cells)
        upper, note = crude, "sum of |Q_i| |x_i| over merged patches, cell by cell"
        W = random_directions(1, self.width, torch.Generator().manual_seed(seed))
        if len(X):
            W = torch.cat([W, X[V.norm(dim=1).argmax()][None]])
        if starts is not None:
            W = torch.cat([W, starts[0].detach().cpu()])
        W = unit(W)
        proving = budget != 0.0 and upper > 0.0
        if proving:
            soon = math.inf if budget is None else began + 0.3 * budget
            W = torch.cat([W, search(X, V, rows.cells, W, n_random=_RANDOM, seed=seed, deadline=soon)[0]])
        values = relu_values(X, V, W, rows.cells)
        low = float(values.max())
        enough = max(-math.inf if target is None else target - lost, low * (1.0 + 1e-9), 1e-10 * crude)
        if proving and upper > enough and (self.persistent or target is None or low <= target):
            aim = None if target is None or low > target else target - lost
            for found in upper_bounds(
                X,
                V,
                cells=rows.cells,
                starts=unit(W),
                target=aim,
                left=left,
                patience=_LONG,
                tol=_WIDTH if aim is None else 1e-6,
                device=self.images.device,
            ):
                if found.high < upper:
                    upper, note = found.high, found.note.removeprefix("upper end: ")
                if found.witness is not None:
                    W = torch.cat([W, found.witness])
            values = relu_values(X, V, W, rows.cells)
            low = float(values.max())
        lower = max(low - 2.0 * rounding_margin(X, V, rows.cells) - lost, 0.0)
        upper = (upper + lost) * UP
        W = W[values.argsort(descending=True)]
        W = W[same_directions(W, 1e-9) == torch.arange(len(W))][:_WITNESSES].to(self.images.device)
        U = unit(self._pulled(W, Q.to(self.images.device)))
        value = Value.bound(min(lower, upper), upper, witness=(W, U), note="upper end: " + note)
        return scaled_back(value, exponent)

    def _pulled(self, W: Tensor, Q: Tensor) -> Tensor:
        """Return sum_i h_ic(w) Q_i for each filter, shape (r, C K)."""
        total, start = Q.new_zeros(len(W), self.geometry.cells, Q.shape[1]), 0
        for hidden in self._hidden(W, None):
            part = Q[start : start + len(hidden)]
            total += torch.einsum("nrc,nk->rck", hidden, part)
            start += len(hidden)
        return total.flatten(1)

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Alternate convex steps and ascents (:mod:`theodolite.atoms.conv_descent`); where too large, as by default."""
        C, K = self.geometry.cells, self.n_outputs
        if problem.loss.support is not None or MOST < 8 * C:
            return super().descend(problem, params, tol=tol, deadline=deadline, progress=progress)
        now = time.monotonic()
        W, U = params
        W, U = descend_pooled(
            problem.loss,
            problem.lam,
            self.rows,
            self.hidden,
            W,
            U.view(len(W), C, K),
            tol=tol,
            deadline=now + _PATIENCE * (deadline - now),
            progress=lambda W, U: progress(_shared(W, U.flatten(1))),
        )
        return min(params, _shared(W, U.flatten(1)), key=problem.objective)


def _crude(X: Tensor, V: Tensor, cells: Tensor) -> float:
    """Return the norm over the cells of sum |V_i| |x_i|, rounded up."""
    if not len(X):
        return 0.0
    sizes = torch.linalg.vector_norm(V, dim=1) * torch.linalg.vector_norm(X, dim=1)
    sums = torch.stack([sizes[part].sum() for part in segments(cells, len(X))])
    return (
        float(torch.linalg.vector_norm(sums)) * (1.0 + 4.0 * gamma(len(X) + V.shape[1] + len(sums) + 8)) * PAD
    )


def _shared(W: Tensor, U: Tensor) -> Params:
    """Return units of unit filters W with |w| = |U|, their output weights' length shared."""
    root = U.norm(dim=1, keepdim=True).sqrt()
    return W * root, U / root.clamp(min=torch.finfo(U.dtype).tiny)
