"""What families of rank-one matrices share: predictions of pairs of factors, without the rest of the matrix."""

from __future__ import annotations

from torch import Tensor

from theodolite.core.params import Params
from theodolite.linalg.pattern import Pattern
from theodolite.losses.base import Support


class Pairs:
    """The part of an atom of rank-one matrices u v^T; params are (U, V) of shapes (r, n) and (r, m)."""

    shape: tuple[int, int]
    _pattern: tuple[Support, Pattern] | None = None

    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        """Return U^T V, shape (n, m); there are no inputs."""
        if X is not None:
            raise ValueError("X: expected None, a matrix factorization has no inputs")
        return params[0].T @ params[1]

    def predict(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions; on a support without forming the others."""
        if support is None:
            return self.phi(params)
        return self.pattern(support).outer(params[0].T, params[1].T)

    def pattern(self, support: Support) -> Pattern:
        """Return the support's products, sorted once."""
        if self._pattern is None or self._pattern[0] is not support:
            self._pattern = support, Pattern(support.rows, support.cols, self.shape, support.sorted)
        return self._pattern[1]

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions of each pair, flattened, shape (r, size)."""
        U, V = params
        if support is None:
            return (U[:, :, None] * V[:, None, :]).flatten(1)
        return U[:, support.rows] * V[:, support.cols]
