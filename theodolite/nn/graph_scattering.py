r"""The scattering transform of signals on the nodes of a graph, with what is proved of its stability.

.. math:: U[p]x = |\psi_{j_m}\cdots|\psi_{j_1}x|\cdots|,\qquad S[p]x = \phi\,U[p]x

for paths p of up to three wavelets.  A renumbering of the nodes renumbers :math:`S[p]x` (equivariance), and leaves its sums
over all nodes alone (invariance): the modulus and functions of a graph's matrix commute with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from theodolite.linalg.lanczos import UP
from theodolite.nn.adjacency import Laplacian, read_adjacency
from theodolite.nn.graph_distance import bank_distance
from theodolite.nn.graph_kernels import GraphNorm
from theodolite.nn.graph_wavelets import GraphBank, GraphBankName, graph_bank
from theodolite.nn.scattering_shared import path_table
from theodolite.value import Value

__all__ = ["GraphScattering"]

_CHUNK = 1 << 21  # numbers of a stage that are handled together
_OUTS = ("nodes", "mean", "moments")
_Readout = Callable[[Tensor, "Tensor | None"], Tensor]


class GraphScattering(nn.Module):
    r"""Scattering transform of signals on a graph.

    Parameters
    ----------
    W : Tensor, array or scipy sparse matrix, shape (n, n)
        Weights of the edges: non-negative, symmetric.
    J : int
        Number of wavelets.
    order : {0, 1, 2, 3}
        Number of wavelets on a path, at most.
    bank : {"diffusion", "geometric", "hann", "cubic"}
        See :func:`theodolite.nn.graph_wavelets.graph_bank`, to which `laplacian`, `top` and `norm` go too.
    increasing : bool
        Whether wavelets on a path get coarser; by default all paths are taken.
    out : {"nodes", "mean", "moments"}
        The low-pass of U[p]x at every node; the mean of U[p]x over all nodes; or the sums over all nodes of its powers.
    moments : sequence of int
        Those powers.

    Raises
    ------
    ValueError, TypeError
        If W is no such matrix, or an argument is out of range.

    Notes
    -----
    Filters have no place in the state: they follow from the arguments, and are computed in float64 whatever the signal's
    precision.  Gradients are finite everywhere, that of a modulus at zero being zero.  Working memory does not grow with the
    number of signals or paths.

    References
    ----------
    Gama, Ribeiro and Bruna, ICLR 2019; Gao, Wolf and Hirn, ICML 2019; Zou and Lerman, Applied and Computational Harmonic
    Analysis 49(3), 2020.

    Examples
    --------
    >>> import torch
    >>> ring = torch.eye(20).roll(1, 0) + torch.eye(20).roll(-1, 0)
    >>> GraphScattering(ring, J=3)(torch.zeros(5, 20)).shape
    torch.Size([5, 13, 20])
    """

    def __init__(
        self,
        W: Any,
        J: int,
        order: int = 2,
        bank: GraphBankName = "diffusion",
        *,
        increasing: bool = False,
        out: Literal["nodes", "mean", "moments"] = "nodes",
        moments: Sequence[int] = (1, 2, 3, 4),
        laplacian: Laplacian = "normalized",
        top: float | None = None,
        norm: GraphNorm = "B1",
    ) -> None:
        super().__init__()
        if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= 3:
            raise ValueError(f"order: expected 0, 1, 2 or 3, got {order!r}")
        if out not in _OUTS:
            raise ValueError(f"out: expected one of {', '.join(map(repr, _OUTS))}, got {out!r}")
        powers = tuple(moments)
        if not powers or any(isinstance(q, bool) or not isinstance(q, int) or q < 1 for q in powers):
            raise ValueError(f"moments: expected integers >= 1, got {powers!r}")
        self.bank = graph_bank(W, J, bank, laplacian=laplacian, top=top, norm=norm)
        self.J, self.order, self.increasing, self.out, self.moments = J, order, increasing, out, powers

    def forward(self, x: Tensor) -> Tensor:
        """Return the coefficients of signals.

        Parameters
        ----------
        x : Tensor, shape (..., n)
            Float32 or float64, finite; nodes come last.

        Returns
        -------
        Tensor, shape (..., paths, n), (..., paths) or (..., paths, moments)
            For `out` "nodes", "mean" or "moments", of the input's precision.

        Raises
        ------
        TypeError
            If x is no tensor of float32 or float64.
        ValueError
            If its last size is not the number of nodes, or an entry is not finite.
        """
        signals = self._read(x)
        step = max(1, _CHUNK // (self.bank.n * (self.J + 1)))
        found = torch.cat([self._transformed(part) for part in signals.split(step)])
        return found.reshape(*x.shape[:-1], *found.shape[1:])

    def _read(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a tensor of float32 or float64, got {got}")
        n = self.bank.n
        if x.ndim < 1 or x.shape[-1] != n:
            raise ValueError(
                f"x: expected shape (..., {n}), a number for each node last, got {tuple(x.shape)}"
            )
        if not bool(x.isfinite().all()):
            raise ValueError("x: expected finite entries, got NaN or infinity")
        return x.reshape(-1, n)

    def _transformed(self, x: Tensor) -> Tensor:
        layers: list[list[Tensor]] = [[] for _ in range(self.order + 1)]
        self._descend(self.bank, x.unsqueeze(1), [-1], layers, self._readout)
        return torch.cat([part for layer in layers for part in layer], 1)

    def _descend(
        self, bank: GraphBank, U: Tensor, last: list[int], layers: list[list[Tensor]], readout: _Readout
    ) -> None:
        """Read out signals U of shape (b, p, n), each the end of a path, and all longer ones.

        What is handled at once are some paths' children, and their children before the next ones: each order's readouts come in
        the order of their paths all the same.
        """
        layer, deeper = layers[0], layers[1:]
        if not deeper:
            layer.append(readout(U, bank.lowpass(U) if self.out == "nodes" else None))
            return
        step = max(1, _CHUNK // (max(1, len(U)) * bank.n * (self.J + 1)))
        for start in range(0, U.shape[1], step):
            part = U[:, start : start + step]
            stack = bank(part)
            layer.append(readout(part, stack[:, :, 0]))
            children, ends = stack[:, :, 1:].abs().flatten(1, 2), []
            for i, end in enumerate(last[start : start + step]):
                ends += [(i * self.J + j, j) for j in range(end + 1 if self.increasing else 0, self.J)]
            if len(ends) < children.shape[1]:
                children = children[:, [i for i, _ in ends]]
            if ends:
                self._descend(bank, children, [j for _, j in ends], deeper, readout)

    def _readout(self, U: Tensor, low: Tensor | None) -> Tensor:
        if self.out == "nodes":
            assert low is not None
            return low
        if self.out == "mean":
            return U.mean(-1)
        return torch.stack([U.pow(q).sum(-1) for q in self.moments], -1)

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self.paths())

    def paths(self) -> list[tuple[int, ...]]:
        """Return the wavelets of each path, 0 the finest, in order."""
        return [
            path
            for order in range(self.order + 1)
            for path in product(range(self.J), repeat=order)
            if not self.increasing or all(a < b for a, b in pairwise(path))
        ]

    def meta(self) -> dict[str, NDArray[Any]]:
        """Return the paths as arrays: "order" (p,), and "j" (p, order), NaN where there is none."""
        paths = self.paths()
        return {"order": np.array([len(path) for path in paths]), "j": path_table(paths, self.order)}

    def lipschitz(self) -> Value:
        r"""Return a proved bound of :math:`\|Sx-Sy\|/\|x-y\|`.

        With the bank's upper frame bound B, :math:`\sqrt B` for "nodes" if B is at most 1, else :math:`B^{(M+1)/2}`, M the
        order.  For "mean" :math:`\|a\|(\sum_{m\le M}B^m)^{1/2}`, a the averaging vector.  The norms are the weighted ones of
        "geometric", but for its means.  This is of the transform with the bank's filters in exact arithmetic.

        Returns
        -------
        Value
            None exists for moments above the first, which grow faster than any multiple of the signal.
        """
        B = self.bank.upper_frame_bound().high
        if self.out == "nodes":
            return Value.bound(0.0, _root(B if B <= 1.0 else B ** (self.order + 1)), note=self._norms())
        size = self._readout_norm()
        if size is None:
            return Value.absent({"moment": max(self.moments)}, note=_NO_MOMENTS)
        energy = sum(B**m for m in range(self.order + 1))
        return Value.bound(0.0, size * _root(energy) * UP, note=self._norms())

    def stability_bound(
        self,
        W_other: Any,
        x: Tensor | None = None,
        *,
        permutation: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Value:
        r"""Return a proved bound of the distance between the transforms on this graph and on another one.

        With :math:`\mathcal W,\mathcal W'` the stacks of all filters of both graphs, :math:`\Phi,\Phi'` their low-passes,
        :math:`U'_m` all paths of length m on the other graph, and :math:`\beta=\max(1,\sqrt B)`,

        .. math:: \|Sx-S'x\|\le\|\mathcal W-\mathcal W'\|\sum_{m<M}\beta^{M-m}\|U'_mx\|+\|\Phi-\Phi'\|\,\|U'_Mx\|,

        which is at most :math:`(M+1)\|\mathcal W-\mathcal W'\|\,\|x\|` where both upper frame bounds are at most 1.

        Parameters
        ----------
        W_other : Tensor, array or scipy sparse matrix, shape (n, n)
            Of as many nodes.
        x : Tensor, shape (..., n), optional
            Signals of which it is to hold, all together; by default the bound is of the distance divided by the norm of x, for
            every x.
        permutation : sequence of int, optional
            Node v of this graph is ``permutation[v]`` of the other; by default nodes have the same numbers.  The bound holds for
            every choice, so that the least over several is a bound too.
        seed : int
            See :func:`theodolite.nn.graph_distance.bank_distance`; to be chosen without knowledge of the graphs.

        Returns
        -------
        Value
            In the norm of this graph's bank.  None exists for moments above the first.

        Raises
        ------
        ValueError
            If the other graph has another number of nodes, or `permutation` is none.

        Notes
        -----
        Let :math:`e_m=\|U_mx-U'_mx\|` and :math:`s_m=\|S_mx-S'_mx\|`.  As the modulus does not expand, both
        :math:`s_m^2+e_{m+1}^2\le\|\mathcal WU_mx-\mathcal W'U'_mx\|^2` and
        :math:`\|\mathcal WU_mx-\mathcal W'U'_mx\|\le\beta e_m+\|\mathcal W-\mathcal W'\|\,\|U'_mx\|`.  So
        :math:`t_m=(\sum_{k\le m}s_k^2+e_{m+1}^2)^{1/2}` satisfies
        :math:`t_m\le\beta t_{m-1}+\|\mathcal W-\mathcal W'\|\,\|U'_mx\|`,
        and of the last order only low-passes are taken.  Any subset of the paths obeys it.  The weighted norms of
        "geometric" differ from graph to graph, and for every x :math:`\|U'_mx\|` may grow by the root of the largest ratio of
        degrees times that of their inverses.
        """
        size = self._readout_norm()
        if size is None:
            return Value.absent({"moment": max(self.moments)}, note=_NO_MOMENTS)
        bank, other = self.bank, self.bank.like(self._corresponding(W_other, permutation))
        whole, low = bank_distance(bank, other, seed=seed)
        beta = max(1.0, math.sqrt(bank.upper_frame_bound().high))
        if x is None:
            ratio = other.weights / bank.weights
            growth = math.sqrt(max(1.0, other.upper_frame_bound().high))
            spread = math.sqrt(float(ratio.max() / ratio.min()))
            sizes = [1.0, *(spread * growth**m for m in range(1, self.order + 1))]
        else:
            sizes = self._sizes(other, x)
        errors = [0.0]  # of U_m
        for norm in sizes:
            errors.append(beta * errors[-1] + whole.high * norm)
        nodes = beta * errors[-2] + low.high * sizes[-1]
        bound = nodes if self.out == "nodes" else size * math.hypot(*errors[:-1])
        return Value.bound(0.0, bound * UP * UP, confidence=whole.confidence, note=self._norms())

    def _corresponding(self, W_other: Any, permutation: Sequence[int] | None) -> Any:
        adjacency, n = read_adjacency(W_other, "W_other"), self.bank.n
        if adjacency.shape[0] != n:
            raise ValueError(f"W_other: expected a graph of {n} nodes, got {adjacency.shape[0]}")
        if permutation is None:
            return adjacency
        order = np.asarray(permutation)
        if order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
            raise ValueError(f"permutation: expected each of 0, ..., {n - 1} once, got shape {order.shape}")
        return adjacency[order][:, order]

    def _sizes(self, bank: GraphBank, x: Tensor) -> list[float]:
        """Return the weighted norms of all paths of each length, together, on a graph."""
        root = self.bank.weights.sqrt()
        layers: list[list[Tensor]] = [[] for _ in range(self.order + 1)]
        signals = self._read(x).detach().to("cpu", torch.float64)

        def readout(U: Tensor, low: Tensor | None) -> Tensor:
            return (U / root).flatten().norm().reshape(1)

        with torch.no_grad():
            for part in signals.split(max(1, _CHUNK // (bank.n * (self.J + 1)))):
                self._descend(bank, part.unsqueeze(1), [-1], layers, readout)
        return [float(torch.cat(layer).norm()) * UP if layer else 0.0 for layer in layers]

    def _readout_norm(self) -> float | None:
        """Return the norm of what paths are read out with after the bank; None for moments above the first."""
        if self.out == "nodes":
            return 1.0
        total = math.sqrt(float(self.bank.weights.sum()))
        if self.out == "mean":
            return total / self.bank.n
        return total if self.moments == (1,) else None

    def _norms(self) -> str:
        if self.bank.name != "geometric":
            return f"filters of the {self.bank.name} bank in exact arithmetic"
        inputs = "signals" if self.out == "nodes" else "inputs"
        return f"filters of the geometric bank in exact arithmetic; norms of {inputs} divided by the roots of degrees"


_NO_MOMENTS = "a moment above the first grows faster than any multiple of the signal"


def _root(energy: float) -> float:
    return 1.0 if energy == 1.0 else math.sqrt(energy) * UP
