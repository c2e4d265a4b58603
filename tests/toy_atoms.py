"""A family simple enough to see through: one entry of a matrix, whose gauge is the l1 norm."""

from __future__ import annotations

import torch
from torch import Tensor

from theodolite.core.atom import Atom
from theodolite.core.params import Params
from theodolite.losses import Support
from theodolite.value import Value


class Entry(Atom):
    """phi = W (an (n, k) array itself), theta = sum |W|: its polar is max |Q|, attained by one entry."""

    degree = 1
    depth = 1

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def init(self, r: int, seed: int = 0) -> Params:
        g = torch.Generator().manual_seed(seed)
        W = torch.randn(r, *self.shape, generator=g, dtype=torch.float64)
        return (W / W.abs().sum((1, 2), keepdim=True),)

    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        return params[0].sum(0)

    def theta(self, params: Params) -> Tensor:
        return params[0].abs().sum((1, 2))

    def polar(self, Q, *, target=None, budget=None, starts=None, seed=0, delta=1e-9) -> Value:
        Q = Q.to_dense()
        if budget == 0:
            return Value.bound(0.0, float(Q.abs().sum()))
        order = Q.abs().reshape(-1).argsort(descending=True)[:3]
        witness = torch.zeros(len(order), Q.numel(), dtype=torch.float64)
        witness[range(len(order)), order] = Q.reshape(-1)[order].sign()
        top = float(Q.abs().max())
        return Value.bound(top, top, witness=(witness.view(-1, *Q.shape),))

    def descend(self, problem, params, **options) -> Params:
        """The best weights of the polar's directions are all there is to find."""
        return params

    def row_bounds(self, support: Support | None = None) -> Tensor:
        return torch.ones(self.shape[0] if support is None else support.size, dtype=torch.float64)


def soft_threshold(Y: Tensor, lam: float) -> Tensor:
    """Minimizer of 1/2 ||Y - Z||^2 + lam sum |Z|."""
    return Y.sign() * (Y.abs() - lam).clamp(min=0.0)
