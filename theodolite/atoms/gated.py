r"""Gated ReLU networks with fixed gates: the sum of units :math:`D_gXwu^\top`.

The gates :math:`D_g` (which samples a unit sees) are data, not parameters, so that training is a
convex problem: the sum over gates of nuclear norms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from theodolite.atoms.inputs import as_inputs, check_dual, check_outputs, random_directions, row_sum
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count
from theodolite.linalg.lanczos import gamma
from theodolite.linalg.spectral import batched_sigma_max
from theodolite.losses.base import Support
from theodolite.polar.scaling import balanced, lengths, scaled_back
from theodolite.value import Value

_WITNESSES = 32
_NEGLIGIBLE = 1e-13


class GatedReLUAtom(Atom):
    r"""One linear unit behind one of G fixed gates, with its output weights.

    :math:`\phi(g, w, u) = D_gXwu^\top` and :math:`\theta = \|w\|_2\|u\|_2`, of degree 2 in (w, u).
    Params are ``(gate, W, U)`` of shapes (r,), (r, d) and (r, K); ``gate`` is int64 and neither
    scaled nor descended upon.

    The polar is :math:`\max_g\sigma_{\max}(X^\top D_gQ)`.

    Parameters
    ----------
    X : array-like, shape (n, d)
        Inputs, finite.
    n_outputs : int
    gates : array-like, shape (n, G) or (G, d)
        The diagonals of the D_g as columns of zeros and ones; or gate vectors h_g, then a sample
        passes where ``x @ h_g > 0``.  An (n, G) array of zeros and ones (or bool) counts as the former.

    Raises
    ------
    ValueError
        If X is not a finite, nonempty matrix, or the gates are neither.

    References
    ----------
    Mishkin, Sahiner and Pilanci, ICML 2022 (arXiv 2202.01331).
    """

    degree = 2

    def __init__(self, X: Any, n_outputs: int, gates: Any) -> None:
        self.X = as_inputs(X)
        self.shape = (len(self.X), check_outputs(n_outputs))
        self.depth = self.X.shape[1] + self.shape[1] + 8
        self.directions: Tensor | None = None
        self.gates = self._read(gates)

    def _read(self, gates: Any) -> Tensor:
        """Return the diagonals of the D_g, (n, G) float64, and keep the gate vectors if there are any."""
        n, d = self.X.shape
        table = gates if isinstance(gates, Tensor) else torch.from_numpy(np.array(gates, dtype=np.float64))
        table = table.detach().to(self.X)
        if table.ndim != 2 or 0 in table.shape or not bool(torch.isfinite(table).all()):
            raise ValueError(f"gates: expected a finite, nonempty matrix, got shape {tuple(table.shape)}")
        if len(table) == n and bool(((table == 0) | (table == 1)).all()):
            return table
        if table.shape[1] != d:
            raise ValueError(
                f"gates: expected zeros and ones of shape ({n}, G) or gate vectors of shape (G, {d}), "
                f"got shape {tuple(table.shape)}"
            )
        self.directions = table
        return self._open(self.X)

    def _open(self, X: Tensor) -> Tensor:
        if self.directions is None:
            raise ValueError(
                "X: expected None, since gates given for each sample have no value at other inputs"
            )
        return (X @ self.directions.T > 0).to(X)

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r units of random gates and directions, theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        gate = torch.randint(self.gates.shape[1], (r,), generator=generator)
        parts = (random_directions(r, width, generator) for width in (self.X.shape[1], self.shape[1]))
        return tuple(p.to(self.X.device) for p in (gate, *parts))

    def phi(self, params: Params, X: Any = None) -> Tensor:
        """Return sum_j D_g(j) X w_j u_j', shape (n, K); other inputs need gate vectors."""
        gate, W, U = params
        if X is None:
            X, gates = self.X, self.gates
        else:
            X = as_inputs(X, columns=self.X.shape[1]).to(self.X.device)
            gates = self._open(X)
        return ((X @ W.T) * gates[:, gate]) @ U

    def theta(self, params: Params) -> Tensor:
        """Return |w| |u| of each unit."""
        _, W, U = params
        return W.norm(dim=1) * U.norm(dim=1)

    def penalty(self, params: Params) -> Tensor:
        """Return (|w|^2 + |u|^2) / 2 of each unit."""
        _, W, U = params
        return 0.5 * (W.square().sum(1) + U.square().sum(1))

    def scale(self, params: Params, alpha: Tensor) -> Params:
        """Return the units with phi and theta multiplied by alpha >= 0, their gates as they are."""
        gate, *weights = params
        return gate, *super().scale(tuple(weights), alpha)

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return each unit's predictions, shape (r, n K) or (r, size)."""
        gate, W, U = params
        hidden = (W @ self.X.T) * self.gates.T[gate]
        if support is not None:
            return hidden[:, support.rows] * U[:, support.cols]
        return (hidden[:, :, None] * U[:, None, :]).flatten(1)

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return |x_i| where any gate lets the sample pass, else 0."""
        norms = lengths(self.X) * self.gates.amax(1)
        return norms if support is None else norms[support.rows]

    def merge(self, params: Params) -> Params:
        """Replace the units of each gate by the singular triplets of the sum of their w u'.

        phi depends on that sum only, and its nuclear norm is the least that theta can be.
        """
        gate, W, U = params
        if not count(params):
            return params
        parts = []
        for g in gate.unique():
            left, sizes, right = torch.linalg.svd(W[gate == g].T @ U[gate == g], full_matrices=False)
            kept = sizes > _NEGLIGIBLE * sizes[:1]
            root = sizes[kept, None].sqrt()
            parts.append((g.repeat(int(kept.sum())), root * left.T[kept], root * right[kept]))
        return tuple(torch.cat(p) for p in zip(*parts, strict=True))

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
        """Return a bound of max_g sigma_max(X' D_g Q), see :meth:`Atom.polar`.

        The upper end is proved by Cholesky factorizations, to which the rounding error of forming
        the products is added; with ``budget=0`` it is the sum of |Q_i| |x_i|.
        """
        X, Q, exponent = balanced(self.X.cpu(), check_dual(Q, self.shape))
        gates = self.gates.cpu()
        crude = row_sum(Q, X.norm(dim=1) * gates.amax(1))
        blocks = torch.stack([X.T @ (gate[:, None] * Q) for gate in gates.T])  # (G, d, K)
        left, sizes, right = torch.linalg.svd(blocks, full_matrices=False)
        rank = sizes.shape[1]
        order = sizes.flatten().argsort(descending=True)[:_WITNESSES]
        g, j = order // rank, order % rank
        W, U = left.mT[g, j], right[g, j]
        W, U = (torch.nn.functional.normalize(p) for p in (W, U))
        error = gamma(len(X) + 4) * crude  # |fl(X' D Q) - X' D Q| <= gamma |X|' D |Q|, of that norm at most
        upper = crude
        if crude > 0.0 and budget != 0.0:
            upper = min(upper, (batched_sigma_max(blocks, tol=1e-10)[1] + error) * (1.0 + gamma(4)))
        hidden = (X @ W[0]) * gates[:, g[0]]
        value = float(hidden @ Q @ U[0]) - 4.0 * gamma(len(X) + X.shape[1] + Q.shape[1] + 8) * crude
        witness = tuple(p.contiguous().to(self.X.device) for p in (g, W, U))
        note = "upper end: sum of |Q_i| |x_i|" if upper == crude else "upper end: singular values of X' D_g Q"
        found = Value.bound(min(max(value, 0.0), upper), upper, witness=witness, note=note)
        return scaled_back(found, exponent)
