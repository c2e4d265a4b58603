"""Stochastic gradient descent with dropout on factors of a matrix, the plain algorithm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Watch = Callable[[int, Array, Array], None]


def graded_matrix(m: int, n: int, singular: Array, *, seed: int = 0) -> Array:
    """Return a matrix with given singular values and random singular vectors."""
    generator = np.random.default_rng(seed)
    left, _ = np.linalg.qr(generator.normal(size=(m, len(singular))))
    right, _ = np.linalg.qr(generator.normal(size=(n, len(singular))))
    return np.asarray((left * singular) @ right.T)


def train(
    Y: Array,
    width: int,
    p: float,
    steps: int,
    *,
    block: int = 1,
    step_size: float = 0.2,
    decay: float = 400.0,
    seed: int = 0,
    start: tuple[Array, Array] | None = None,
    watch: Watch | None = None,
) -> tuple[Array, Array]:
    r"""Return factors U (m, width), V (n, width) after steps of descent, each with fresh masks.

    A step descends :math:`\frac12\|Y-(U\circ M)V^\top\|_F^2`, M a mask over 1 - p for each row and unit, as
    ``torch.nn.Dropout`` draws it for a batch of rows.  Step sizes fall as 1 / t in the end.

    Parameters
    ----------
    Y : ndarray, shape (m, n)
    width : int
    p : float
        Probability of dropping a unit, or a block of consecutive ones.
    steps : int
    block : int
    step_size : float
        The first one, times the largest singular value of Y.
    decay : float
        Ratio of the first step size to the last, less one.
    seed : int
        Of the start and of the masks.
    start : (ndarray, ndarray), optional
        Factors to start from; by default random, of about the size of Y's.
    watch : function(step, U, V), optional
        Called before each step.
    """
    generator = np.random.default_rng(seed)
    top = float(np.linalg.norm(Y, 2))
    size = np.sqrt(top / (width * np.sqrt(Y.size)))
    drawn = (size * generator.normal(size=(side, width)) for side in Y.shape)
    U, V = (np.array(factor) for factor in (drawn if start is None else start))
    blocks, rate = width // block, step_size / top
    for t in range(steps):
        if watch is not None:
            watch(t, U, V)
        mask = (generator.random((len(U), blocks)) >= p) / (1.0 - p)
        mask = mask if block == 1 else mask.repeat(block, axis=1)
        masked = U * mask
        residual = Y - masked @ V.T
        step = rate / (1.0 + decay * t / steps)
        U, V = U + step * (residual @ V) * mask, V + step * residual.T @ masked
    return U, V


def expected_objective(Y: Array, U: Array, V: Array, p: float, *, block: int = 1) -> float:
    """Return the squared error plus dropout's penalty: the mean of the masked squared error."""
    blocks = [(U[:, i : i + block], V[:, i : i + block]) for i in range(0, U.shape[1], block)]
    # |U_b V_b'|^2 is the inner product of the Gram matrices
    penalty = sum(float(((u.T @ u) * (v.T @ v)).sum()) for u, v in blocks)
    return float(np.square(Y - U @ V.T).sum()) + p / (1.0 - p) * penalty


def spread(U: Array, V: Array) -> float:
    """Return standard deviation over mean of the units' products of norms."""
    products = np.linalg.norm(U, axis=0) * np.linalg.norm(V, axis=0)
    return float(products.std() / products.mean())
