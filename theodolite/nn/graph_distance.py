r"""How far apart the banks of two graphs are, as operators: what the stability of scattering is proved with.

For banks stacked into :math:`\mathcal W,\mathcal W'` (all filters of a graph, one below the other) this is
:math:`\|\mathcal W-\mathcal W'\|_{op}`, the largest root of an eigenvalue of :math:`\sum_k(\Psi_k-\Psi_k')^*(\Psi_k-\Psi_k')`.
It has little to do with the distance of adjacency matrices: an edge of weight 1e-6 may be all that a node has.
"""

from __future__ import annotations

import math

from torch import Tensor

from theodolite.linalg.lanczos import UNIT_ROUNDOFF
from theodolite.linalg.spectral import sigma_max
from theodolite.nn.graph_wavelets import GraphBank
from theodolite.value import Value

__all__ = ["bank_distance"]

_STEPS = 50  # of Lanczos
_ACCURACY = 1e-6  # of products with the difference, relative to its norm, that its bound relies on


def bank_distance(bank: GraphBank, other: GraphBank, *, seed: int = 0) -> tuple[Value, Value]:
    """Return bounds of the norms of the difference of two banks, and of that of their low-passes alone.

    Parameters
    ----------
    bank, other : GraphBank
        Of graphs whose nodes correspond; norms are weighted by those of `bank`.
    seed : int
        For more than 1,024 nodes, where the bound holds with probability 1 - 1e-9 over a random start.

    Returns
    -------
    tuple of Value
        Upper ends.  Rounding of the filters themselves is not enclosed where they come from eigenvectors.
    """
    ratio = (other.weights / bank.weights).sqrt()
    if bank.vectors is not None and other.vectors is not None:
        difference = _matrices(bank) - ratio[:, None] * _matrices(other) / ratio
        return sigma_max(difference.flatten(0, 1)), sigma_max(difference[0])
    if bool((ratio == 1.0).all()) and (bank.walk != other.walk).nnz == 0:
        return (Value.bound(0.0, 0.0, note="the graphs are the same"),) * 2
    found = sigma_max(
        _Difference(bank, other, ratio), method="random", product_error=_ACCURACY, seed=seed, max_steps=_STEPS
    )
    # either products are as accurate as was said, or the norm is below this
    floor = _rounding(bank, other, ratio) / _ACCURACY
    whole = Value.bound(
        0.0, max(found.high, floor), confidence=found.confidence, note="Lanczos from random starts"
    )
    return whole, whole


def _matrices(bank: GraphBank) -> Tensor:
    """Return the filters as symmetric matrices (J + 1, n, n), without the weights."""
    assert bank.vectors is not None
    assert bank.responses is not None
    return bank.vectors * bank.responses.unsqueeze(1) @ bank.vectors.T


def _rounding(bank: GraphBank, other: GraphBank, ratio: Tensor) -> float:
    """Return a bound of the error of a product with the difference, relative to the signal.

    T has norm 1 and no negative entries, so that a product with it errs by gamma(r) of the signal, r its longest row and a few
    for the rounding of its entries; filters take up to 2^(J - 1) products, and errors add up.
    """
    longest = max(int((walk.indptr[1:] - walk.indptr[:-1]).max()) for walk in (bank.walk, other.walk))
    steps = 2.0 ** (bank.J - 1) + bank.J + 4.0
    spread = float(ratio.max() / ratio.min())
    return 4.0 * steps * (longest + 12.0) * math.sqrt(bank.J + 1.0) * (1.0 + spread) * UNIT_ROUNDOFF


class _Difference:
    """The difference of two banks of walks as an operator, in the norm of the first."""

    def __init__(self, bank: GraphBank, other: GraphBank, ratio: Tensor) -> None:
        self.banks, self.ratio = (bank, other), ratio
        self.shape = ((bank.J + 1) * bank.n, bank.n)

    def matvec(self, x: Tensor) -> Tensor:
        first, second = (bank.symmetric(v) for bank, v in zip(self.banks, (x, x / self.ratio), strict=True))
        return (first - self.ratio * second).flatten()

    def rmatvec(self, y: Tensor) -> Tensor:
        y = y.reshape(-1, self.shape[1])
        first, second = (
            bank.symmetric_adjoint(v) for bank, v in zip(self.banks, (y, y * self.ratio), strict=True)
        )
        return first - second / self.ratio
