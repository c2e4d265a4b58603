r"""Matrix factorization with a factor measured by its largest entry: sums of :math:`us^\top`, s a vector of signs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.inputs import check_direction, same_directions
from theodolite.atoms.matrix_norms import DUAL, Groups, norms
from theodolite.atoms.pairs import Pairs
from theodolite.atoms.proximal import GOAL, Composite, estimated_gap, minimize
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count
from theodolite.linalg.lanczos import UP, gamma
from theodolite.losses.base import Support
from theodolite.polar.signs import SignMatrix, best_signs, sign_maximum
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

_PAIRS = (("l2", "linf"), ("linf", "l2"), ("linf", "linf"))
_ADDED = 16  # sign vectors that enter at once
_ROUNDS = 200


class SignMatrixAtom(Pairs, Atom):
    r"""Rank-one matrices :math:`uv^\top` with :math:`\theta=\|u\|_a\|v\|_b`, a or b being linf, degree 2.

    The extreme points of the gauge's unit ball are :math:`us^\top` with signs s: a factorization with binary codes,
    without a bound on their number.  The polar, for (l2, linf) :math:`\max_{s\in\{\pm1\}^m}\|Qs\|_2` and for (linf,
    linf) :math:`\max_s\|Qs\|_1`, is NP-hard: exact up to about 26 columns (fewer for linf, linf; the smaller side of
    Q counts), then a bracket whose ends are at most a factor of 1.26 (1.79) apart in theory, if the search found the
    best signs, and commonly 1.05 to 1.1 (1.2 to 1.3).

    Parameters
    ----------
    shape : tuple of int
        Shape (n, m) of the predictions.
    norms : tuple of str
        Norms of u and v: ("l2", "linf"), ("linf", "l2") or ("linf", "linf").

    Raises
    ------
    ValueError
        If the shape or the norms are not one of these.

    Notes
    -----
    Params are (U, V) of shapes (r, n) and (r, m).  With a support nothing of shape (n, m) is formed, but with up to
    2,000 columns on the side of the signs a dense Gram matrix of them.

    References
    ----------
    Nesterov, Optim. Methods Softw. 9 (1998) 141-160; Alon and Naor, SIAM J. Comput. 35 (2006) 787-803;
    Chandrasekaran, Recht, Parrilo and Willsky, Found. Comput. Math. 12 (2012) 805-849.

    Examples
    --------
    >>> import torch
    >>> polar = SignMatrixAtom((2, 2)).polar(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(polar.high, 6)
    5.0
    """

    degree = 2

    def __init__(self, shape: tuple[int, int], norms: tuple[str, str] = ("l2", "linf")) -> None:
        if len(shape) != 2 or any(not isinstance(s, int) or s < 1 for s in shape):
            raise ValueError(f"shape: expected two integers >= 1, got {tuple(shape)}")
        if tuple(norms) not in _PAIRS:
            raise ValueError(f"norms: expected one of {', '.join(map(str, _PAIRS))}, got {norms!r}")
        self.shape = (shape[0], shape[1])
        self.norms = (norms[0], norms[1])
        # a product and a sum over at most min(n, m) useful subnetworks
        self.depth = min(shape) + 2
        self._anchor = torch.zeros(0, dtype=torch.float64)

    @property
    def side(self) -> int:
        """Which factor is a vector of signs, 0 or 1: that of norm linf, the shorter one if both are."""
        if self.norms == ("linf", "linf"):
            return int(self.shape[0] >= self.shape[1])
        return self.norms.index("linf")

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r random pairs with theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(r, size, dtype=torch.float64, generator=generator) for size in self.shape]
        U, V = (
            x.to(self._anchor.device) / norms(x, norm)[:, None].to(self._anchor.device)
            for x, norm in zip(draws, self.norms, strict=True)
        )
        return U, V

    def theta(self, params: Params) -> Tensor:
        """Return ||u|| ||v||."""
        return norms(params[0], self.norms[0]) * norms(params[1], self.norms[1])

    def penalty(self, params: Params) -> Tensor:
        """Return (||u||^2 + ||v||^2) / 2, equal to theta where both are equally long."""
        return 0.5 * (norms(params[0], self.norms[0]).square() + norms(params[1], self.norms[1]).square())

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return |u_i| ||v||_2 at most, or |u_i| |v_j| on a support: entries are at most 1."""
        device = self._anchor.device
        if support is not None:
            return torch.ones(support.size, dtype=torch.float64, device=device)
        length = math.sqrt(self.shape[1]) if self.norms[1] == "linf" else 1.0
        return torch.full(self.shape[:1], length * UP, dtype=torch.float64, device=device)

    def merge(self, params: Params) -> Params:
        """Join pairs whose sign factors are parallel, for which the other factors add up."""
        if not count(params):
            return params
        F, S = self._split(params)
        length = norms(S, "l2")[:, None]
        top = S.gather(1, S.abs().argmax(1, keepdim=True))
        S = S * torch.where(top < 0.0, -1.0, 1.0) / length
        F = F * torch.where(top < 0.0, -1.0, 1.0) * length
        first = same_directions(S)
        kept = first == torch.arange(len(first), device=first.device)
        F = torch.zeros_like(F).index_add_(0, first, F)
        return self._balanced(F[kept], S[kept])

    def _split(self, params: Params) -> tuple[Tensor, Tensor]:
        """Return the free factors and the sign factors."""
        return params[1 - self.side], params[self.side]

    def _balanced(self, F: Tensor, S: Tensor) -> Params:
        """Return the pairs with both factors equally long; those of zero free factors become zero."""
        long, wide = norms(F, self.norms[1 - self.side]), norms(S, "linf")
        tiny = torch.finfo(F.dtype).tiny
        root = (wide / long.clamp(min=tiny)).sqrt().clamp(max=1e150)[:, None]
        F, S = F * root, torch.where(long[:, None] > 0.0, S / root, 0.0)
        return (F, S) if self.side == 1 else (S, F)

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
        """Return both ends of the polar (see :meth:`Atom.polar`).

        Those of :func:`theodolite.polar.signs.sign_maximum`.  Each witness is (x / ||x||, s), x = Qs or its
        signs; where a target is given, only those above it.
        """
        Q = check_direction(Q, self.shape)[0].to("cpu")
        Q = Q if self.side == 1 else Q.T.coalesce() if Q.is_sparse else Q.T
        free = self.norms[1 - self.side]
        value = sign_maximum(
            Q,
            DUAL[free],
            starts=None if starts is None else self._split(starts)[1].detach().cpu(),
            target=target,
            budget=budget,
            seed=seed,
            delta=delta,
        )
        S = value.witness
        F = (Q @ S.T).T
        largest = F.abs().amax(1, keepdim=True)
        F = torch.where(largest > 0.0, F / largest.clamp(min=1e-300), 1.0)
        F = torch.where(F < 0.0, -1.0, 1.0).double() if free == "linf" else F / F.norm(dim=1, keepdim=True)
        pair = (F, S) if self.side == 1 else (S, F)
        witness = tuple(p.to(self._anchor.device) for p in pair)
        # F has length 1 up to rounding
        lower = value.low * (1.0 - gamma(F.shape[1] + 16))
        return Value.bound(
            max(lower, 0.0), value.high, confidence=value.confidence, witness=witness, note=value.note
        )

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Return pairs near the optimum, by column generation (see :meth:`Atom.descend`).

        With the sign factors held, the problem in the free factors is convex, a group lasso, and solved by
        accelerated proximal steps; then sign vectors that the search finds to help enter with a free factor of
        zero, until it finds none.
        """
        norm = self.norms[1 - self.side]
        F, S = self._split(self.merge(params))
        length = norms(S, "linf")[:, None]
        F, S = F * length, S / length.clamp(min=torch.finfo(S.dtype).tiny)
        gap, best = 1.0, params
        for seed in range(_ROUNDS):
            inner = min(max(tol, 0.1 * gap), 0.1)
            if len(S):
                F = self._refit(problem, F, S, tol=inner, deadline=deadline, progress=progress)
                used = norms(F, norm) > 0.0
                F, S = F[used], S[used]
            now = self._balanced(F, S)
            R = -problem.loss.gradient(problem.predictions(now))
            if not bool(torch.isfinite(R).all()):  # rounding put it beyond the end of the loss's domain
                break
            best = now
            progress(best)
            if time.monotonic() >= deadline:
                break
            fresh, values = self._search(problem.matrix(R), S, seed, deadline)
            objective = problem.objective(best)
            gap = estimated_gap(problem.loss, problem.lam, objective, R, float(values[0]))
            fresh = fresh[values > (1.0 + 1e-9) * problem.lam]
            fresh = fresh[((fresh @ S.T).abs() < (1.0 - 1e-9) * S.shape[1]).all(1)][:_ADDED]  # not there yet
            if gap <= GOAL * tol or (not len(fresh) and inner <= tol):
                break
            S = torch.cat([S, fresh])
            F = torch.cat([F, F.new_zeros(len(fresh), F.shape[1])])
        return best

    def _search(self, Q: Tensor, S: Tensor, seed: int, deadline: float) -> tuple[Tensor, Tensor]:
        """Return sign vectors, best first, and the dual norms of Q times them."""
        Q = Q.to("cpu") if self.side == 1 else Q.to("cpu").T
        A = SignMatrix(Q.coalesce() if Q.is_sparse else Q, DUAL[self.norms[1 - self.side]])
        found, values = best_signs(A, S.cpu() if len(S) else None, seed=seed, deadline=deadline)
        return found.to(S.device), values.to(S.device)

    def _refit(
        self,
        problem: Problem,
        F: Tensor,
        S: Tensor,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Tensor:
        """Return the best free factors for given sign factors."""
        support, norm, side = problem.loss.support, self.norms[1 - self.side], self.side
        r, size = F.shape
        groups = Groups(torch.arange(r, device=F.device).repeat_interleave(size), r)

        def predict(F: Tensor) -> Tensor:
            return self.predict((F, S) if side == 1 else (S, F), support)

        def adjoint(G: Tensor) -> Tensor:
            if support is None:
                return S @ (G.T if side == 1 else G)
            forward, backward = self.pattern(support).products(G)
            return (forward if side == 1 else backward)(S.T).T

        def prox(F: Tensor, t: Tensor) -> tuple[Tensor, float]:
            shrunk, total = groups.prox(F.reshape(-1), t, norm)
            return shrunk.view(F.shape), total

        composite = Composite(
            problem.loss,
            problem.lam,
            predict,
            adjoint,
            stretch=torch.linalg.matrix_norm(S @ S.T, 2),
            prox=prox,
            polar=lambda G: float(norms(G, DUAL[norm]).max()),
        )
        return minimize(
            composite,
            F,
            tol=tol,
            deadline=deadline,
            progress=lambda F: progress(self._balanced(F, S)),
        )
