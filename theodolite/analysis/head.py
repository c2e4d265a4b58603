r"""The last layer of a network as a convex problem, with its certificate and its solution.

With the features :math:`h_i` (the input of the last linear layer) held fixed, training
that layer alone is

.. math:: \min_{V,b}\ P(V,b) = \ell(HV^\top + \mathbf 1 b^\top) + \tfrac\mu2\|V\|_F^2 + \tfrac\mu2\|b\|^2,

and for every :math:`Q` in the domain of the loss' dual :math:`d`

.. math:: P(V,b) \ge D(Q) = d(Q) - \tfrac1{2\mu}\|[H\ \mathbf 1]^\top Q\|_F^2 .

A decayed bias is the weight of one more feature that is constantly 1.  A bias that is
not decayed drops out of the quadratic term and demands :math:`\mathbf 1^\top Q = 0`.
Everything is computed in float64, in blocks of rows, and each bound is moved outward by
a bound on its own rounding error, the features being taken as given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.head_solver import Progress, newton
from theodolite.linalg.lanczos import gamma
from theodolite.losses import CrossEntropyLoss, SampleLoss, SquaredLoss, accurate_sum
from theodolite.value import relative_gap

BiasDecay = Literal["decayed", "free", "none"]

_BLOCK_BYTES = 128 << 20
_CACHE_BYTES = 512 << 20
_SAME = frozenset("alias clone contiguous detach dropout native_dropout lift_fresh_copy".split())


class NoHead(ValueError):  # noqa: N818  (an outcome: the network has no such layer)
    """The network's output is no free linear layer; the text says why."""


@dataclass(frozen=True, eq=False)
class Head:
    """The last linear layer of a network, found in its graph.

    Attributes
    ----------
    weight : str
        Qualified name of the weight, shape (k, d).
    bias : str
        Qualified name of the bias, "" when there is none.
    features : Node
        The node whose output, shape (n, d), the layer reads.
    where : str
        The layer, for messages.
    """

    weight: str
    bias: str
    features: Node
    where: str


def find_head(graph: Graph) -> Head:
    """Return the linear layer that produces the output.

    Parameters
    ----------
    graph : Graph
        A traced graph in evaluation mode.

    Returns
    -------
    Head

    Raises
    ------
    NoHead
        If the model could not be traced, its last operation is not linear in a parameter,
        or that parameter is used elsewhere too.
    """
    node = graph.output
    if node is None:
        raise NoHead(f"needs the computation graph, and the model could not be traced ({graph.reason})")
    while node.op in _SAME:  # evaluation mode: dropout is the identity
        node = node.inputs[0]
    if node.op != "linear":
        what = "the input itself" if node.op == "input" else f"'{node.op}' in {node.where}"
        raise NoHead(f"the output comes from {what}, not from a linear layer")
    features, weight, bias = node.args[0], node.args[1], node.argument(2, "bias")
    for leaf, name in ((weight, "weight"), (bias, "bias")):
        if leaf is None:
            continue
        if leaf.op != "parameter":
            raise NoHead(f"the {name} of {node.where} is not a parameter: it is computed ({leaf.op})")
        others = [n for n in graph.consumers(leaf) if n is not node] or (
            [node] if leaf in features.inputs else []
        )
        if others:
            raise NoHead(f"the {name} of {node.where} is shared with {others[0].where}, so it is not free")
    return Head(weight.target, bias.target if bias is not None else "", features, node.where)


def mean_loss(name: str, y: Tensor, n_outputs: int) -> SampleLoss | None:
    """Return the mean loss over the rows of y as a convex loss, or None when it is not known to be one.

    Parameters
    ----------
    name : str
        "cross_entropy", or "mse": the mean over samples *and* outputs, as in ``torch.nn.MSELoss``.
    y : Tensor, shape (n,) integers or (n, k) floats
        Targets.
    n_outputs : int
        Number k of outputs.
    """
    if name == "cross_entropy":
        return CrossEntropyLoss(y, n_outputs, scale=1.0 / len(y))
    if name == "mse":
        return SquaredLoss(y, scale=2.0 / (len(y) * n_outputs))
    return None


@dataclass(frozen=True)
class HeadSolution:
    """A head and what is proved about it.

    Attributes
    ----------
    weight : Tensor, shape (k, d), float64
    bias : Tensor, shape (k,), float64, or None
    objective : float
        P, at most ``rounding`` away from its value in exact arithmetic.
    dual_bound : float
        No head has a smaller objective; rounding is enclosed.
    rounding : float
        Bound on the error of ``objective``.
    iterations : int
        Newton steps taken.
    seconds : float
    """

    weight: Tensor
    bias: Tensor | None
    objective: float
    dual_bound: float
    rounding: float = 0.0
    iterations: int = 0
    seconds: float = 0.0

    @property
    def gap(self) -> float:
        """Relative distance to the optimum that is not excluded, rounding enclosed; never negative."""
        return relative_gap(self.objective + self.rounding, self.dual_bound)


class HeadProblem:
    """The convex problem of a last layer on fixed features.

    Parameters
    ----------
    features : Tensor, shape (n, d)
        Any float dtype; converted to float64 block by block.
    loss : Loss
        Of the (n, k) outputs, with its scale (1/n for a mean).
    decay : float
        mu > 0.
    bias : {"decayed", "free", "none"}
        Whether there is a bias, and whether mu/2 ||b||^2 is part of the objective.
    offset : Tensor, shape (k,), optional
        A fixed bias that is added to the outputs and not trained.

    Attributes
    ----------
    n, k, d : int
        Numbers of samples, outputs and features.
    decays : Tensor, shape (d,) or (d + 1,)
        mu for each column of [H 1], 0 for a free bias.
    losses : list of Loss
        The loss, block of rows by block of rows.

    Raises
    ------
    ValueError
        If shapes disagree or the decay is not positive.
    """

    def __init__(
        self,
        features: Tensor,
        loss: SampleLoss,
        decay: float,
        *,
        bias: BiasDecay = "none",
        offset: Tensor | None = None,
    ) -> None:
        if features.ndim != 2 or len(features) != loss.shape[0]:
            raise ValueError(f"features: expected shape ({loss.shape[0]}, d), got {tuple(features.shape)}")
        if not (math.isfinite(decay) and decay > 0):
            raise ValueError(f"decay: expected a finite number > 0, got {decay}")
        self.features, self.loss, self.decay, self.bias = features, loss, decay, bias
        self.n, self.k = loss.shape
        self.d = features.shape[1]
        self.offset = None if offset is None else offset.double()
        columns = self.d + (bias != "none")
        self.decays = torch.full((columns,), float(decay), dtype=torch.float64)
        if bias == "free":
            self.decays[-1] = 0.0
        rows = max(1, _BLOCK_BYTES // (8 * (columns + 4 * self.k)))
        self._slices = [slice(i, min(i + rows, self.n)) for i in range(0, self.n, rows)]
        self.losses = [loss.rows(s) for s in self._slices]
        self._kept = [self._block(s) for s in self._slices] if 8 * self.n * columns <= _CACHE_BYTES else None

    def objective(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Return P(V, b)."""
        W = self._join(weight, bias)
        return self.loss_value(self.scores(W)) + self.norms(W)

    def penalty(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Return the part mu/2 ||V||^2 (+ mu/2 ||b||^2) of P(V, b)."""
        return self.norms(self._join(weight, bias))

    def evaluate(self, weight: Tensor, bias: Tensor | None = None) -> HeadSolution:
        """Certify a given head by the best dual point on the ray of its residual."""
        return self._certified(self._join(weight, bias))

    def solve(
        self,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        tol: float = 1e-6,
        time_limit: float = 60.0,
        max_iterations: int = 100,
        progress: Progress | None = None,
    ) -> HeadSolution:
        """Solve by Newton's method with preconditioned conjugate gradients and a line search.

        Parameters
        ----------
        weight, bias : Tensor, optional
            Where to start; zero by default.
        tol : float
            Relative duality gap to stop at.
        time_limit : float
            Seconds after which the best head so far is returned.
        max_iterations : int
            Newton steps.
        progress : function(iteration, objective, dual bound), optional
            Called after each step.

        Returns
        -------
        HeadSolution
            Its ``gap`` says how far it got.
        """
        start = time.monotonic()
        W = torch.zeros(self.k, len(self.decays), dtype=torch.float64)
        if weight is not None:
            W = self._join(weight, bias)
        W, steps = newton(self, W, tol, start + time_limit, max_iterations, progress)
        return replace(self._certified(W), iterations=steps, seconds=time.monotonic() - start)

    def _block(self, rows: slice) -> Tensor:
        block = self.features[rows].double()
        return block if self.bias == "none" else torch.cat([block, block.new_ones(len(block), 1)], 1)

    def blocks(self) -> Iterator[Tensor]:
        """Yield blocks of rows of A = [H 1] (or H), in float64."""
        yield from self._kept if self._kept is not None else map(self._block, self._slices)

    def _join(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        if tuple(weight.shape) != (self.k, self.d):
            raise ValueError(f"weight: expected shape ({self.k}, {self.d}), got {tuple(weight.shape)}")
        if (bias is None) != (self.bias == "none"):
            raise ValueError(
                f"bias: expected {'none' if bias is not None else 'a bias'} for bias={self.bias!r}"
            )
        W = weight.detach().double()
        return W if bias is None else torch.cat([W, bias.detach().double()[:, None]], 1)

    def scores(self, W: Tensor, *, shifted: bool = True) -> list[Tensor]:
        """Return the outputs A W^T, with the offset unless ``shifted`` is False, block by block."""
        offset = self.offset if shifted else None
        return [A @ W.T if offset is None else A @ W.T + offset for A in self.blocks()]

    def pull_back(self, parts: list[Tensor]) -> Tensor:
        """Return (A^T Q)^T, shape (k, columns)."""
        total = torch.zeros(self.k, len(self.decays), dtype=torch.float64)
        for A, q in zip(self.blocks(), parts, strict=True):
            total.addmm_(q.T, A)
        return total

    def loss_value(self, Z: list[Tensor]) -> float:
        """Return the loss of outputs given block by block."""
        return math.fsum(part.value(z) for part, z in zip(self.losses, Z, strict=True))

    def norms(self, W: Tensor) -> float:
        """Return the penalty of W = [V b]."""
        return 0.5 * accurate_sum(W.square() * self.decays)

    def residual_bound(self, residuals: list[Tensor], gradient: Tensor, value: float) -> float:
        """Return the dual bound at Q = residual (t = 1), cheaply."""
        if self.bias != "free":
            return value - float(gradient.square().sum()) / (2 * self.decay)  # what P - D reduces to
        Q = self.loss.center(torch.cat(residuals))
        A_Q = self.pull_back([Q[s] for s in self._slices])[:, :-1]
        return self.loss.dual(Q) - self._linear(Q) - float(A_Q.square().sum()) / (2 * self.decay)

    def _linear(self, Q: Tensor) -> float:
        return 0.0 if self.offset is None else float(Q.sum(0) @ self.offset)

    def _certified(self, W: Tensor) -> HeadSolution:
        """Return P, the best D on the ray of the residual, and bounds of their rounding errors."""
        Z = torch.cat(self.scores(W))
        value = self.loss_value([Z[s] for s in self._slices]) + self.norms(W)
        R = -self.loss.gradient(Z)
        if self.bias == "free":
            R = self.loss.center(R)
        # a sum over rows in chunks of about sqrt(n) has a rounding error of order sqrt(n), not n
        chunk = max(64, math.isqrt(self.n))
        depth = self.n // chunk + chunk + len(self.losses) + 1
        G, size = torch.zeros(self.k, len(self.decays), dtype=torch.float64), []
        for A, rows in zip(self.blocks(), self._slices, strict=True):
            size.append(A.norm(dim=1))
            for part, q in zip(A.split(chunk), R[rows].split(chunk), strict=True):
                G.addmm_(q.T, part)
        if self.bias == "free":
            G = G[:, :-1]
        quadratic = accurate_sum(G.square()) / self.decay
        t, dual = self.loss.best_t(R, linear=self._linear(R), quadratic=quadratic)
        errors = self._rounding(W, Z, R, t, float(G.norm()), torch.cat(size), depth)
        weight, bias = (W, None) if self.bias == "none" else (W[:, :-1], W[:, -1])
        return HeadSolution(weight, bias, value, dual - errors[1], errors[0])

    def _rounding(
        self, W: Tensor, Z: Tensor, R: Tensor, t: float, pulled: float, size: Tensor, depth: int
    ) -> tuple[float, float]:
        """Bound the rounding errors of P(W) and of D(t R).

        A sum of m products in float64, in any order, has an error of at most gamma(m)
        times the sum of the sizes of its terms.  ``pulled`` is ||A^T R||_F, ``size`` holds
        the norms of the rows of A, and ``depth`` is the length of the sums in A^T R.
        """
        primal_terms, dual_terms, repair = self.loss.magnitudes(Z, t * R)
        slopes, pulled = R.norm(dim=1), t * pulled
        few, many = gamma(2 * self.k + 32), gamma(self.d + 8)
        # to make the columns of Q sum to exactly zero moves every entry once more
        moves = few * (1 + self.k) if self.bias == "free" else few
        shift = 0.0 if self.offset is None else float(self.offset.norm())
        scores = many * (size * float(W.norm(dim=1).max()) + shift) * math.sqrt(self.k)
        primal = few * primal_terms + many * self.norms(W)
        primal += 2 * float(slopes @ scores) + self.loss.smoothness(Z) * float(scores @ scores)
        matrix = gamma(depth) * t * float(slopes @ size) + 2 * moves * float(repair @ size)
        dual = moves * (dual_terms + shift * float((t * slopes + repair).sum()))
        dual += (2 * pulled * matrix + matrix * matrix + many * pulled * pulled) / (2 * self.decay)
        return primal, dual
