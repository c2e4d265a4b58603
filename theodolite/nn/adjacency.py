"""Weighted undirected graphs: adjacency matrices read and checked, and the symmetric matrices that filters are functions of."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Laplacian", "csr_tensor", "laplacian_matrix", "lazy_walk", "read_adjacency"]

Laplacian = Literal["normalized", "combinatorial"]
_LARGEST = float(np.finfo(np.float64).max)
_ASYMMETRY = 1e-6  # of the largest weight: rounding of matrices computed in float32


def read_adjacency(W: Any, name: str = "W") -> sp.csr_array:
    """Return the weights of an undirected graph as a sparse matrix, float64.

    Parameters
    ----------
    W : Tensor, array or scipy sparse matrix, shape (n, n)
        Non-negative; symmetric to 1e-6 of the largest weight, and the mean of both halves is taken.  Entries on the diagonal
        are loops.
    name : str
        What errors call it.

    Raises
    ------
    TypeError
        If W is no matrix of real numbers.
    ValueError
        If it is not square, has no nodes, or an entry is negative, NaN, infinite or unlike its mirror image.
    """
    if isinstance(W, Tensor):
        W = W.detach().cpu()
        if W.is_complex():
            raise TypeError(f"{name}: expected real weights, got {W.dtype}")
        if W.layout != torch.strided:
            coo = W.to_sparse_coo().coalesce()
            W = sp.csr_array((coo.values().double().numpy(), tuple(coo.indices().numpy())), tuple(W.shape))
        else:
            W = W.double().numpy()
    if not sp.issparse(W) and not isinstance(W, np.ndarray):
        raise TypeError(f"{name}: expected a tensor, an array or a sparse matrix, got {type(W).__name__}")
    if W.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected real weights, got {W.dtype}")
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.shape[0] == 0:
        raise ValueError(f"{name}: expected a square matrix with a row for each node, got shape {W.shape}")
    csr = sp.csr_array(W, dtype=np.float64, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    if not np.isfinite(csr.data).all():
        raise ValueError(f"{name}: expected finite weights, got NaN or infinity")
    if csr.data.size and csr.data.max() > _LARGEST / csr.data.size:
        raise ValueError(f"{name}: expected weights whose sums are numbers, got one of {csr.data.max():.6g}")
    if csr.data.size and csr.data.min() < 0.0:
        raise ValueError(f"{name}: expected non-negative weights, got {csr.data.min():.6g}")
    off = sp.csr_array(csr - csr.T)
    if off.data.size and abs(off.data).max() > _ASYMMETRY * csr.data.max():
        entry = off.tocoo()
        worst = int(abs(entry.data).argmax())
        i, j = int(entry.coords[0][worst]), int(entry.coords[1][worst])
        raise ValueError(
            f"{name}: expected a symmetric matrix (an undirected graph), got {csr[i, j]:.6g} at ({i}, {j}) and "
            f"{csr[j, i]:.6g} at ({j}, {i})"
        )
    return sp.csr_array(0.5 * csr + 0.5 * csr.T)


def lazy_walk(adjacency: sp.csr_array) -> tuple[sp.csr_array, NDArray[np.float64]]:
    """Return the symmetric matrix of a lazy walk, and the degrees.

    A node without edges counts as having a loop of weight 1, so that its walk stays: each connected component then has the
    eigenvalue 1 once.

    Returns
    -------
    T : csr_array, shape (n, n)
        Half the identity plus half the adjacency divided by the roots of both degrees; eigenvalues in [0, 1].
    degrees : array, shape (n,)
    """
    affinity, degrees = _normalized(adjacency)
    return sp.csr_array(0.5 * (sp.eye_array(affinity.shape[0], format="csr") + affinity)), degrees


def laplacian_matrix(adjacency: sp.csr_array, kind: Laplacian) -> NDArray[np.float64]:
    """Return a Laplacian, dense: zero for a node without edges."""
    if kind == "normalized":
        found = np.eye(adjacency.shape[0]) - _normalized(adjacency)[0].toarray()
    else:
        found = np.diag(adjacency.sum(1)) - adjacency.toarray()
    return np.asarray(found, dtype=np.float64)


def _normalized(adjacency: sp.csr_array) -> tuple[sp.csr_array, NDArray[np.float64]]:
    """Return the adjacency divided by the roots of both degrees, and the degrees."""
    degrees = np.asarray(adjacency.sum(1), dtype=np.float64)
    alone = degrees == 0.0
    degrees[alone] = 1.0
    root, loops = (
        sp.diags_array(values, format="csr") for values in (degrees**-0.5, alone.astype(np.float64))
    )
    return sp.csr_array(root @ (adjacency + loops) @ root), degrees


def csr_tensor(matrix: sp.csr_array) -> Tensor:
    """Return a sparse matrix as a tensor in the same layout, whose products with columns have gradients."""
    with warnings.catch_warnings():  # that the layout is in beta
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr),
            torch.from_numpy(matrix.indices),
            torch.from_numpy(matrix.data),
            matrix.shape,
        )
