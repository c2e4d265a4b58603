"""Some entries of a large matrix: products on them and sparse matrices, without the rest."""

from __future__ import annotations

import warnings
from functools import cached_property

import scipy.sparse as sp
import torch
from torch import Tensor

from theodolite.linalg.subspace import Product

_CHUNK = 1 << 17  # numbers gathered at once: beyond the cache, gathering is several times slower
_BLOCK = 1 << 20  # entries of a dense block of rows
_INDEX = 2**31 - 1  # largest 32-bit index
_VECTOR = 8  # numbers in a vector register


def csr_tensor(starts: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a matrix in compressed rows, unchecked."""
    with warnings.catch_warnings():  # PyTorch calls its CSR tensors a beta
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        return torch.sparse_csr_tensor(starts, cols, values, size=shape, check_invariants=False)


def csr_product(matrix: sp.csr_array) -> Product:
    """Return the product of vectors and blocks of vectors with a matrix, in its own dtype."""
    if torch.backends.mkl.is_available():
        starts, cols, values = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
        fast = csr_tensor(starts, cols, values, matrix.shape)
        return lambda X: fast @ X
    return lambda X: torch.from_numpy(matrix @ X.numpy())


class Pattern:
    """Positions in an (n, m) matrix.

    Products take float32 too, which is two to four times as fast and good enough to search with.

    Parameters
    ----------
    rows, cols : Tensor, shape (size,), int64
        The positions, none twice, in any order.
    shape : tuple of int
        Shape (n, m) of the matrix.
    ordered : bool
        Whether the positions are known to be in the order of rows, and of columns within a row.
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int], ordered: bool = False) -> None:
        self.rows, self.cols, self.shape, self.ordered = rows, cols, shape, ordered
        self._ones: dict[torch.dtype, Tensor] = {}

    @cached_property
    def _sorted(self) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Order that sorts the positions (None if they are), both indices in it, and where each row begins."""
        order = None
        if not self.ordered:
            place = self.rows * self.shape[1] + self.cols
            order = None if bool((place[1:] > place[:-1]).all()) else torch.argsort(place)
        starts = torch.zeros(self.shape[0] + 1, dtype=torch.int64, device=self.rows.device)
        starts[1:] = torch.bincount(self.rows, minlength=self.shape[0]).cumsum(0)
        if order is None:
            return None, self.rows, self.cols, starts
        return order, self.rows[order], self.cols[order], starts

    @cached_property
    def _short(self) -> tuple[Tensor, Tensor]:
        """Where each row begins and the columns, as short integers where they fit: half of what products read."""
        _, _, cols, starts = self._sorted
        fits = max(len(cols), *self.shape) <= _INDEX
        return (starts.int(), cols.int()) if fits else (starts, cols)

    def _csr(self, values: Tensor) -> Tensor:
        """Return the sparse matrix of values in sorted order."""
        return csr_tensor(*self._short, values, self.shape)

    def outer(self, U: Tensor, V: Tensor) -> Tensor:
        """Return the entries of U V^T at the positions, shape (size,), in the dtype of U and V.

        Dense pattern in float64: blocks of rows of the product, a few megabytes each; otherwise one inner
        product for each position.  Differentiable.

        Parameters
        ----------
        U : Tensor, shape (n, r)
        V : Tensor, shape (m, r)
        """
        size, r = len(self.rows), max(U.shape[1], 1)
        n, m = self.shape
        if size == 0 or U.shape[1] == 0:
            return U.new_zeros(size)
        searched = not (U.requires_grad or V.requires_grad) and U.device.type == "cpu"
        # measured: an inner product in float64 costs as much as 440 / (20 + r) entries of a dense block
        if searched and (U.dtype == torch.float32 or n * m * (20 + r) >= 440 * size):
            order = self._sorted[0]
            if r < _VECTOR:  # PyTorch's loop is slow on shorter rows
                U, V = (torch.nn.functional.pad(X, (0, _VECTOR - r)) for X in (U, V))
            if U.dtype not in self._ones:
                self._ones[U.dtype] = self._csr(torch.ones(size, dtype=U.dtype))
            values = torch.sparse.sampled_addmm(self._ones[U.dtype], U, V.T, beta=0.0).values()
        # a gathered number costs about 30 times a multiplication in a dense product
        elif n * m * (16 + r) >= 30 * size * r:
            step = max(1, _CHUNK // r)
            pairs = zip(self.rows.split(step), self.cols.split(step), strict=True)
            return torch.cat([torch.linalg.vecdot(U[i], V[j]) for i, j in pairs])
        else:
            order, rows, cols, starts = self._sorted
            height = max(1, _BLOCK // m)
            parts = []
            for first in range(0, n, height):
                last = min(n, first + height)
                here = slice(int(starts[first]), int(starts[last]))
                block = U[first:last] @ V.T
                parts.append(block.reshape(-1)[(rows[here] - first) * m + cols[here]])
            values = torch.cat(parts)
        return values if order is None else torch.empty_like(values).index_copy(0, order, values)

    def products(self, values: Tensor) -> tuple[Product, Product]:
        """Return the products of blocks of vectors with the sparse matrix of these values and its transpose.

        Parameters
        ----------
        values : Tensor, shape (size,)
            Float64, or float32 for products in float32.

        Returns
        -------
        forward, adjoint : callable
            (m, b) to (n, b), and (n, b) to (m, b).
        """
        if values.device.type != "cpu":
            index = torch.stack([self.rows, self.cols])
            A = torch.sparse_coo_tensor(index, values, self.shape, check_invariants=False).coalesce()
            B = A.T.coalesce()
            return lambda X: torch.sparse.mm(A, X), lambda Y: torch.sparse.mm(B, Y)
        order = self._sorted[0]
        entries = values.detach() if order is None else values.detach()[order]
        starts, cols = self._short
        # PyTorch has no fast product with a transposed CSR matrix; SciPy has
        matrix = sp.csr_array((entries.numpy(), cols.numpy(), starts.numpy()), shape=self.shape)
        transposed = matrix.T
        if torch.backends.mkl.is_available():
            fast = self._csr(entries)
            return lambda X: fast @ X.detach(), lambda Y: torch.from_numpy(transposed @ Y.detach().numpy())
        return (
            lambda X: torch.from_numpy(matrix @ X.detach().numpy()),
            lambda Y: torch.from_numpy(transposed @ Y.detach().numpy()),
        )
