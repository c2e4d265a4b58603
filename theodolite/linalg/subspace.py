"""Leading singular triplets by block Krylov subspaces: searched, so bounds from inside only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

_LEADING = 16  # directions of a second pass that is to improve the largest value only


def orthonormal(X: Tensor) -> Tensor:
    """Return an orthonormal basis of a space that contains the columns of X."""
    return torch.linalg.qr(X).Q


def nearly_orthonormal(X: Tensor) -> Tensor:
    """Return a basis as :func:`orthonormal` does, faster where the columns of X are nearly orthogonal.

    Cholesky's factor of the Gram matrix of the columns, scaled to length one, where it is so well
    conditioned that the basis is orthonormal to 1e-12.
    """
    scaled = X / X.norm(dim=0).clamp(min=1e-300)
    L, info = torch.linalg.cholesky_ex(scaled.T @ scaled)
    if int(info) or float(L.diagonal().amin()) < 0.1:
        return orthonormal(X)
    return torch.linalg.solve_triangular(L, scaled.T, upper=False).T


def leading_triplets(
    forward: Product, adjoint: Product, start: Tensor, *, passes: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Return approximate leading singular triplets of an operator A, by Rayleigh and Ritz.

    The left space is spanned by A V, A A'A V, ..., V being the start; the singular values found
    never exceed those of A, up to rounding.

    Parameters
    ----------
    forward, adjoint : callable
        Products with A, (m, b) to (n, b), and with its transpose, (n, b) to (m, b).
    start : Tensor, shape (m, b)
        Any block: random, or the right singular vectors of a matrix nearby.
    passes : int
        Number of products with A and with its transpose; each adds b directions.

    Returns
    -------
    U : Tensor, shape (n, q)
    s : Tensor, shape (q,)
        Descending.
    V : Tensor, shape (m, q)
        Orthonormal columns, as U; q <= b * passes.
    """
    X = orthonormal(start)
    left: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(passes):
        Y = forward(X)
        room = Y.shape[0] - sum(Q.shape[1] for Q in left)
        if left:
            basis = torch.cat(left, 1)
            for _ in range(2):  # once is not enough where Y lies almost inside
                Y = orthonormal(Y - basis @ (basis.T @ Y))
        Y = orthonormal(Y)[:, :room]
        if Y.shape[1] == 0:
            break
        left.append(Y)
        images.append(adjoint(Y))
        X = orthonormal(images[-1])
    Q, B = torch.cat(left, 1), torch.cat(images, 1)
    V, s, small = torch.linalg.svd(B, full_matrices=False)
    return Q @ small.T, s, V


def largest_singular_value(forward: Product, adjoint: Product, start: Tensor) -> float:
    """Return an estimate, from below, of the largest singular value of an operator.

    One pass as in :func:`leading_triplets`, and a second from the best directions of the first only.

    Parameters
    ----------
    forward, adjoint : callable
        Products with the operator, (m, b) to (n, b), and with its transpose, (n, b) to (m, b).
    start : Tensor, shape (m, b)
        Nearly orthogonal columns, with some of the leading right singular vectors close to their span.
    """
    Q = nearly_orthonormal(forward(start))
    B = adjoint(Q)
    leading = torch.linalg.eigh(B.T @ B).eigenvectors[:, -_LEADING:]
    room = Q.shape[0] - Q.shape[1]  # none where Q spans the whole space
    if room:
        Y = forward(nearly_orthonormal(B @ leading))[:, :room]
        for _ in range(2):  # once is not enough where Y lies almost inside
            Y = nearly_orthonormal(Y - Q @ (Q.T @ Y))
        B = torch.cat([B, adjoint(Y)], 1)
    return float(torch.linalg.eigvalsh(B.T @ B)[-1].clamp(min=0.0).sqrt())
