"""Products of a tensor, dense or sparse, with rank-one tensors: what searches and predictions are made of."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theodolite.atoms.inputs import unit
from theodolite.core.params import Params

_CHUNK = 1 << 21  # numbers gathered at once
_LONG = 500  # singular vectors of an unfolding with more rows cost too much


def unfold(T: Tensor, modes: Sequence[int]) -> Tensor:
    """Return the matrix of a tensor with some of its modes as rows and the others as columns, both row-major."""
    rest = [k for k in range(T.ndim) if k not in modes]
    rows = math.prod(T.shape[k] for k in modes)
    return T.permute(*modes, *rest).reshape(rows, -1)


def products(factors: Sequence[Tensor]) -> Tensor:
    """Return the vectorized outer products of the rows of several (r, n_k), row-major, shape (r, prod n_k)."""
    out = factors[0]
    for factor in factors[1:]:
        out = (out[:, :, None] * factor[:, None, :]).flatten(1)
    return out


def middle(dims: Sequence[int]) -> int:
    """Return how many leading modes make the unfolding with them as rows nearest to square."""
    return min(range(1, len(dims)), key=lambda k: abs(math.log(math.prod(dims[:k]) / math.prod(dims[k:]))))


@dataclass(frozen=True)
class Dense:
    """A dense tensor, shape dims."""

    T: Tensor

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.T.shape)

    @property
    def terms(self) -> int:
        """Longest chain of sums in `inner`."""
        k = middle(self.dims)
        return math.prod(self.dims[:k]) + math.prod(self.dims[k:])

    def magnitude(self) -> Dense:
        """Return the tensor of absolute values."""
        return Dense(self.T.abs())

    def inner(self, params: Params) -> Tensor:
        """Return the inner product with each rank-one tensor, shape (r,)."""
        k = middle(self.dims)
        matrix = self.T.reshape(math.prod(self.dims[:k]), -1)
        return ((products(params[:k]) @ matrix) * products(params[k:])).sum(1)

    def sweep(self, params: list[Tensor]) -> None:
        """Maximize the inner products over each factor in turn, unit vectors all; one pass over T for two modes or more."""
        k = middle(self.dims)
        matrix = self.T.reshape(math.prod(self.dims[:k]), -1)
        for here, there in ((range(k), range(k, len(params))), (range(k, len(params)), range(k))):
            other = products([params[j] for j in there])
            # the larger groups of modes share one product with T, and settle before the other group moves
            shared = other @ (matrix.T if here.start == 0 else matrix)
            shared = shared.reshape(len(other), *(self.dims[j] for j in here))
            for _ in range(2 if len(here) > 1 else 1):
                for position, j in enumerate(here):
                    image = shared
                    for later in reversed(range(len(here))):
                        if later != position:
                            image = torch.movedim(image, later + 1, -1)
                            weight = params[here[later]].reshape(len(other), *[1] * (image.ndim - 2), -1)
                            image = (image * weight).sum(-1)
                    params[j] = unit(image)

    def peaks(self, count: int) -> Tensor:
        """Return the indices of the largest entries, shape (count, order)."""
        flat = self.T.abs().flatten().topk(min(count, self.T.numel())).indices
        return torch.stack(torch.unravel_index(flat, self.dims), 1)


@dataclass(frozen=True)
class Sparse:
    """The nonzero entries of a tensor: indices of shape (order, size), values of shape (size,)."""

    index: Tensor
    values: Tensor
    dims: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Longest chain of sums in `inner`."""
        return len(self.values)

    def magnitude(self) -> Sparse:
        """Return the tensor of absolute values."""
        return Sparse(self.index, self.values.abs(), self.dims)

    def inner(self, params: Params) -> Tensor:
        """Return the inner product with each rank-one tensor, shape (r,)."""
        total = torch.zeros(len(params[0]), dtype=torch.float64, device=self.values.device)
        for part in self._chunks(len(total)):
            total += gathered(params, self.index[:, part]) @ self.values[part]
        return total

    def sweep(self, params: list[Tensor]) -> None:
        """Maximize the inner products over each factor in turn, unit vectors all."""
        for j in range(len(params)):
            others = [k for k in range(len(params)) if k != j]
            image = torch.zeros_like(params[j])
            for part in self._chunks(len(image)):
                index = self.index[:, part]
                terms = gathered([params[k] for k in others], index[others]) * self.values[part]
                image.index_add_(1, index[j], terms)
            params[j] = unit(image)

    def peaks(self, count: int) -> Tensor:
        """Return the indices of the largest entries, shape (count, order)."""
        return self.index[:, self.values.abs().topk(min(count, len(self.values))).indices].T

    def _chunks(self, r: int) -> list[slice]:
        step = max(1, _CHUNK // max(r, 1))
        return [slice(start, start + step) for start in range(0, len(self.values), step)]


def gathered(params: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return the entries of each rank-one tensor at given places, shape (r, size)."""
    out = params[0][:, index[0]]
    for factor, places in zip(params[1:], index[1:], strict=True):
        out = out * factor[:, places]
    return out


class Entries(torch.autograd.Function):
    """Entries of a sum of rank-one tensors; nothing of the size r x entries is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, *params: Tensor) -> Tensor:
        """Return the entries at the places index, (order, size), of the sum over all r."""
        ctx.save_for_backward(index, *params)
        step = max(1, _CHUNK // max(1, len(params[0])))
        parts = [gathered(params, places).sum(0) for places in index.split(step, 1)]
        return torch.cat(parts) if parts else params[0].new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient for each factor."""
        index, *params = ctx.saved_tensors
        slope = gradients[0]
        found = [torch.zeros_like(p) for p in params]
        step = max(1, _CHUNK // max(1, len(params[0])))
        for places, s in zip(index.split(step, 1), slope.split(step), strict=True):
            pieces = [p[:, i] for p, i in zip(params, places, strict=True)]
            for j, target in enumerate(found):
                terms = s.expand(len(target), -1)
                for k, piece in enumerate(pieces):
                    if k != j:
                        terms = terms * piece
                target.index_add_(1, places[j], terms)
        return None, *found


def search(
    Q: Dense | Sparse, starts: Params | None, *, seed: int, n_starts: int, sweeps: int, deadline: float
) -> tuple[list[Tensor], Tensor]:
    r"""Return unit rank-one tensors of large inner product with Q, distinct, best first, and the products.

    Alternating maximization (the higher-order power method) from many starts at once: random ones, the
    leading singular vectors of the unfoldings with one mode as rows, the largest entries, and given ones.
    Each step maximizes over one factor, so that no product falls.

    Parameters
    ----------
    Q : Dense or Sparse
    starts : Params, optional
        Factors of shapes (r, n_k).
    seed, n_starts : int
        Of the random starts.
    sweeps : int
        At most so many passes over all modes.
    deadline : float
        Value of ``time.monotonic()`` at which to stop.
    """
    dims, device = Q.dims, (Q.T if isinstance(Q, Dense) else Q.values).device
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n_starts, n, generator=generator, dtype=torch.float64).to(device) for n in dims]
    peaks = Q.peaks(4).to(device)
    blocks = [draws, [torch.nn.functional.one_hot(peaks[:, k], n).double() for k, n in enumerate(dims)]]
    if starts is not None:
        blocks.append([p.detach().to(device) for p in starts])
    if isinstance(Q, Dense):
        width = min(4, *dims)
        leading = []
        for k, n in enumerate(dims):
            if n <= _LONG:
                matrix = unfold(Q.T, (k,))
                leading.append(torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -width:].T)
            else:
                leading.append(draws[k][torch.arange(width, device=device) % n_starts])
        blocks.append(leading)
    params = [unit(torch.cat([block[k] for block in blocks])) for k in range(len(dims))]
    values = Q.inner(tuple(params))
    for _ in range(sweeps):
        Q.sweep(params)
        before, values = values, Q.inner(tuple(params))
        settled = bool((values - before).abs().max() <= 1e-12 * values.abs().max())
        if settled or time.monotonic() >= deadline:
            break
    params[0] = torch.where(values < 0.0, -1.0, 1.0)[:, None] * params[0]
    values = values.abs()
    order = values.argsort(descending=True)
    params, values = [p[order] for p in params], values[order]
    overlap = torch.ones(len(values), len(values), dtype=torch.float64, device=device)
    for p in params:
        overlap *= p @ p.T
    # those within 1 % of a better one are the same maximum, not yet settled
    repeated = (overlap.abs() > 0.99).tril(-1).any(1)
    return [p[~repeated] for p in params], values[~repeated]
