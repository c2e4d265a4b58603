r"""Tensor factorization: phi(a, b, c, ...) = a (x) b (x) c ..., with a product of norms as regularizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from theodolite.atoms.inputs import moderate, same_directions, unit
from theodolite.atoms.matrix_polar import free_bound
from theodolite.atoms.tensor_contractions import Dense, Entries, Sparse, gathered, middle, products, search
from theodolite.atoms.tensor_polar import Memory, entries_of, upper_bound
from theodolite.core.atom import Atom
from theodolite.core.descend import descend
from theodolite.core.params import Params, count, select
from theodolite.linalg.lanczos import UP, gamma
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.losses.base import Support
from theodolite.losses.inputs import integers
from theodolite.polar.scaling import scaled_back
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

_WITNESSES = 10
_FULL = 0.2  # share of observed entries from which all predictions are formed,
_MOST = 3e7  # if they are not more than this


class TensorAtom(Atom):
    r"""Rank-one tensors :math:`a_1\otimes\dots\otimes a_d` with :math:`\theta=\prod_k\|a_k\|_2`, of degree d.

    Its gauge is the nuclear norm of a tensor, its polar the spectral norm
    :math:`\max\langle Q, a_1\otimes\dots\otimes a_d\rangle` over unit vectors, both NP-hard.  So the polar
    is an interval: searched from below by alternating maximization, proved from above by unfoldings
    and a convex relaxation (:mod:`theodolite.atoms.tensor_relaxation`), at which the two ends nearly always meet.

    Predictions are matrices, as everywhere: ``shape`` is (n_1, n_2 ... n_d), the row-major unfolding that
    ``tensor.reshape(n_1, -1)`` gives; see :meth:`matrix_index` and :meth:`tensor_index`.

    Parameters
    ----------
    dims : tuple of int
        Dimensions (n_1, ..., n_d), d >= 3.

    Raises
    ------
    ValueError
        If there are fewer than three, or one is not an integer >= 1.

    Notes
    -----
    Params are d factors of shapes (r, n_k).

    References
    ----------
    Haeffele and Vidal, arXiv 1506.07540; Hillar and Lim, Most tensor problems are NP-hard, J. ACM 60 (2013).

    Examples
    --------
    >>> import torch
    >>> T = torch.zeros(2, 2, 2)
    >>> T[0, 0, 1] = T[0, 1, 0] = T[1, 0, 0] = 1.0
    >>> polar = TensorAtom((2, 2, 2)).polar(T.reshape(2, 4))  # the unfoldings only show sqrt(2)
    >>> round(polar.low, 6), round(polar.high, 6)
    (1.154701, 1.154701)
    """

    def __init__(self, dims: Sequence[int]) -> None:
        dims = tuple(dims)
        if len(dims) < 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in dims):
            raise ValueError(f"dims: expected at least three integers >= 1, got {dims}")
        self.dims: tuple[int, ...] = dims
        self.degree = len(dims)
        self.shape = (dims[0], math.prod(dims[1:]))
        # a norm of n_k numbers in each factor of theta; a product of d in phi
        self.depth = sum(dims) + 2 * len(dims) + 4
        self._memory: Memory = {}
        self._anchor = torch.zeros(0, dtype=torch.float64)
        self._index: tuple[Support, tuple[Tensor, Tensor]] | None = None

    # --- indices -------------------------------------------------------------------------------------

    def matrix_index(self, index: Any) -> tuple[Tensor, Tensor]:
        """Return rows and columns in the unfolding of entries of the tensor.

        Parameters
        ----------
        index : array-like of int, shape (size, d), or d arrays of shape (size,)
            An array of shape (size, d) has one entry a row; a tuple or list of d vectors, as ``nonzero`` gives
            them, one mode each.

        Raises
        ------
        ValueError
            If they are not d integers each, or one is out of range.
        """
        if isinstance(index, tuple | list) and len(index) == self.degree and np.ndim(index[0]) == 1:
            modes = [integers(i, f"index[{k}]") for k, i in enumerate(index)]
        else:
            whole = index if isinstance(index, Tensor) else torch.from_numpy(np.array(index))
            if whole.ndim != 2 or whole.shape[1] != self.degree:
                raise ValueError(f"index: expected shape (size, {self.degree}), got {tuple(whole.shape)}")
            modes = [integers(whole[:, k], f"index[:, {k}]") for k in range(self.degree)]
        if len({len(m) for m in modes}) > 1:
            raise ValueError(f"index: expected as many for each mode, got {[len(m) for m in modes]}")
        for k, (m, n) in enumerate(zip(modes, self.dims, strict=True)):
            if bool(((m < 0) | (m >= n)).any()):
                raise ValueError(f"index: expected 0 to {n - 1} in mode {k}, got {m.min()} to {m.max()}")
        cols = torch.zeros_like(modes[0])
        for m, n in zip(modes[1:], self.dims[1:], strict=True):
            cols = cols * n + m
        return modes[0], cols

    def tensor_index(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the index in the tensor, shape (d, size), of entries of the unfolding."""
        return torch.stack([rows, *torch.unravel_index(cols, self.dims[1:])])

    def support(self, index: Any) -> Support:
        """Return the support of given entries of the tensor (see :meth:`matrix_index`), none twice."""
        return Support.checked(*self.matrix_index(index), self.shape)

    def fold(self, matrix: Tensor) -> Tensor:
        """Return an unfolding, shape (n_1, n_2 ... n_d), as a tensor of shape dims."""
        return matrix.reshape(self.dims)

    # --- the family ----------------------------------------------------------------------------------

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r random rank-one tensors with theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(r, n, dtype=torch.float64, generator=generator) for n in self.dims]
        return tuple(unit(x).to(self._anchor.device) for x in draws)

    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        """Return the unfolding of the sum, shape (n_1, n_2 ... n_d); there are no inputs."""
        if X is not None:
            raise ValueError("X: expected None, a tensor factorization has no inputs")
        k = middle(self.dims)
        return (products(params[:k]).T @ products(params[k:])).reshape(self.shape)

    def theta(self, params: Params) -> Tensor:
        """Return the product of the norms."""
        return torch.stack([torch.linalg.vector_norm(p, dim=1) for p in params]).prod(0)

    def penalty(self, params: Params) -> Tensor:
        """Return sum_k |a_k|^d / d, equal to theta where all are equally long, else more (inequality of means)."""
        return sum(p.square().sum(1) ** (0.5 * self.degree) for p in params) / self.degree  # type: ignore[return-value]

    def predict(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions; on a small support without forming the others."""
        if support is None:
            return self.phi(params)
        if support.size >= _FULL * math.prod(self.shape) and math.prod(self.shape) <= _MOST:
            return self.phi(params).reshape(-1).gather(0, self._cached(support)[1])
        found: Tensor = Entries.apply(self._places(support), *params)
        return found

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions of each rank-one tensor, flattened, shape (r, size)."""
        return products(params) if support is None else gathered(params, self._places(support))

    def _places(self, support: Support) -> Tensor:
        return self._cached(support)[0]

    def _cached(self, support: Support) -> tuple[Tensor, Tensor]:
        """Return the support's indices in the tensor, (d, size), and in the vector of all entries."""
        if self._index is None or self._index[0] is not support:
            flat = support.rows * self.shape[1] + support.cols
            self._index = support, (self.tensor_index(support.rows, support.cols), flat)
        return self._index[1]

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return 1: no row, and no entry, of a rank-one tensor of unit vectors is longer."""
        return torch.ones(
            self.shape[0] if support is None else support.size,
            dtype=torch.float64,
            device=self._anchor.device,
        )

    def merge(self, params: Params) -> Params:
        """Join rank-one tensors that are parallel in all modes but one, or in all."""
        for free in range(self.degree):
            if count(params) < 2:
                break
            # |a_k| times the direction: all sizes go to the free factor
            size = torch.stack([p.norm(dim=1) for k, p in enumerate(params) if k != free]).prod(0)
            directions, sign = [], torch.ones_like(size)
            for k, p in enumerate(params):
                if k != free:
                    u = unit(p)
                    flip = torch.where(u.gather(1, u.abs().argmax(1, keepdim=True)) < 0.0, -1.0, 1.0)
                    directions.append(u * flip)
                    sign = sign * flip[:, 0]
            first = same_directions(torch.cat(directions, 1))
            kept = first == torch.arange(len(first), device=first.device)
            if bool(kept.all()):
                continue
            total = torch.zeros_like(params[free])
            total.index_add_(0, first, (size * sign)[:, None] * params[free])
            parts = iter(directions)
            merged = tuple(total if k == free else next(parts) for k in range(self.degree))
            params = self._balanced(select(merged, kept))
        return params

    def _balanced(self, params: Params) -> Params:
        """Return the same rank-one tensors with factors of equal length, those that are zero left out."""
        theta = self.theta(params)
        params, theta = select(params, theta > 0.0), theta[theta > 0.0]
        return tuple(unit(p) * (theta ** (1.0 / self.degree))[:, None] for p in params)

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Return rank-one tensors with a lower objective, by L-BFGS on all factors (see :meth:`Atom.descend`).

        A relative excess e of the polar costs as much of the regularizer, but a further unit gains only
        O(e^2): for a gap of tol the objective must be within about tol^2 of the optimum.
        """
        tol = max(min(tol, tol**2), 1e-12)
        return descend(problem, params, tol=tol, deadline=deadline, progress=progress)

    # --- the polar -----------------------------------------------------------------------------------

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
        """Return both ends of the spectral norm of the folded Q (see :meth:`Atom.polar`).

        Upper end: see :func:`theodolite.atoms.tensor_polar.upper_bound`.  Lower end: the inner product
        with the witness over the product of its norms, their rounding errors taken off.
        """
        deadline = math.inf if budget is None else time.monotonic() + budget
        Q, exponent = moderate(Q, self.shape)
        if exponent is None:
            return Value.bound(0.0, 0.0, witness=self.init(1, seed), note="Q is zero")
        tensor = entries_of(Q, self.dims)
        quick = budget == 0.0
        witness, lower = self._attained(tensor, starts, seed, deadline, quick)
        upper, confidence, note = free_bound(Q), 1.0, "norms of Q"
        if not quick:
            aim = None if target is None else ldexp_rounded(target, -exponent, -1)
            upper, confidence, note = upper_bound(
                tensor,
                witness,
                starts,
                lower=lower,
                target=aim,
                seed=seed,
                delta=delta,
                deadline=deadline,
                memory=self._memory,
            )
        found = Value.bound(min(lower, upper), upper, confidence=confidence, witness=witness, note=note)
        return scaled_back(self._worthwhile(found, tensor, target, exponent), exponent)

    def _attained(
        self, tensor: Dense | Sparse, starts: Params | None, seed: int, deadline: float, quick: bool
    ) -> tuple[Params, float]:
        """Return the witnesses, best first, and a proved lower bound of the first's inner product."""
        # large tensors get fewer starts: a pass over all costs as much as everything else
        size = math.prod(self.dims) if isinstance(tensor, Dense) else 10 * len(tensor.values)
        n_starts = int(min(32, max(6, 2e7 // size)))
        sweeps = 1 if quick else 100
        params, _ = search(tensor, starts, seed=seed, n_starts=n_starts, sweeps=sweeps, deadline=deadline)
        found = tuple(unit(p[:_WITNESSES]) for p in params)
        first = select(found, slice(0, 1))
        spread = float(tensor.magnitude().inner(tuple(p.abs() for p in first))[0])
        value = float(tensor.inner(first)[0]) - 2.0 * gamma(tensor.terms + 8 * self.degree) * spread
        length = (1.0 + gamma(max(self.dims) + 8)) ** self.degree
        return found, max(value / (length * UP), 0.0)

    def _worthwhile(self, found: Value, tensor: Dense | Sparse, target: float | None, exponent: int) -> Value:
        """Return the bound with those witnesses only that exceed the target."""
        witness = found.witness
        limit = 0.0 if target is None else ldexp_rounded(target, -exponent, -1)
        kept = tensor.inner(witness) > limit
        kept[0] = True
        return Value.bound(
            found.low, found.high, confidence=found.confidence, witness=select(witness, kept), note=found.note
        )
