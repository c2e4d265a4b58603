r"""Two-layer ReLU networks: the sum of units :math:`\mathrm{relu}(Xw)u^\top`.

With weight decay, :math:`\frac\lambda2(\|w\|^2+\|u\|^2)`, a network has the same minimum as with
:math:`\theta = \|w\|_2\|u\|_2`, because a factor can be moved from one layer to the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from theodolite.atoms.inputs import (
    as_inputs,
    check_dual,
    check_outputs,
    random_directions,
    row_sum,
    same_directions,
    unit,
)
from theodolite.atoms.relu_polish import fresh_units, polish
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count, join
from theodolite.linalg.lanczos import gamma
from theodolite.linalg.scaled_matrix import ldexp_rounded
from theodolite.losses.base import Support
from theodolite.polar.arrangement import TooManyPatterns, arrangement_polar, patterns
from theodolite.polar.ascent import relu_ascent, relu_values
from theodolite.polar.branch_and_bound import DIMENSIONS
from theodolite.polar.leaky import leaky_rows
from theodolite.polar.scaling import balanced, lengths, scaled_back
from theodolite.polar.tiers import CLOSING, upper_bounds
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.core.problem import Problem

PATTERN_LIMIT = 500_000
_PATTERN_ENTRIES = 5e7  # of the table of patterns, one byte each
_PATTERNS_A_SECOND = 50_000  # on a slow core
_PATTERNS = 50_000  # that are enumerated where branch and bound would do
_LONG, _SHORT = (
    600.0,
    30.0,
)  # seconds of branch and bound without a budget, and for several outputs or many inputs
_WITNESSES = 32
_GROWTHS, _FRESH = 10, 16
_PATIENCE = 0.7  # of the time left: the rest is for the proof


class ReLUAtom(Atom):
    r"""One hidden ReLU unit with its output weights.

    :math:`\phi(w, u) = \mathrm{relu}(Xw)u^\top` and :math:`\theta = \|w\|_2\|u\|_2`, of degree 2.
    Params are ``(W, U)`` of shapes (r, d) and (r, K).

    The polar is :math:`\max_{\|w\|=1}\|Q^\top\mathrm{relu}(Xw)\|_2`.  Where the activation patterns
    of the inputs are few it is exact for one output; otherwise a bound: ascent below, branch and bound
    above, or relaxations where there are many inputs.

    Parameters
    ----------
    X : array-like, shape (n, d)
        Inputs, finite.
    n_outputs : int
    bias : bool
        Append a column of ones, whose weight (the bias) counts in ``||w||``.

    Attributes
    ----------
    persistent : bool
        Whether the polar's upper end is tightened even where the lower end has refuted the target: for a
        single certificate, not while there is something to descend.  False.

    Raises
    ------
    ValueError
        If X is not a finite, nonempty matrix, or n_outputs not an integer >= 1.

    References
    ----------
    Pilanci and Ergen, ICML 2020 (arXiv 2002.10553); Bach, JMLR 18 (2017) (arXiv 1412.8690).
    """

    degree = 2
    persistent = False
    negative_slope = 0.0

    def __init__(self, X: Any, n_outputs: int, bias: bool = False) -> None:
        self.bias = bool(bias)
        self.X = as_inputs(X, bias=self.bias)
        self.shape = (len(self.X), check_outputs(n_outputs))
        self.depth = self.X.shape[1] + self.shape[1] + 8
        self._patterns: Tensor | None = None
        self._enumerated = False

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r units of random directions, theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        parts = (random_directions(r, width, generator) for width in (self.X.shape[1], self.shape[1]))
        return tuple(p.to(self.X.device) for p in parts)

    def phi(self, params: Params, X: Any = None) -> Tensor:
        """Return relu(X W') U, shape (n, K)."""
        W, U = params
        return self.activation(self._inputs(X) @ W.T) @ U

    def activation(self, t: Tensor) -> Tensor:
        """Return relu(t), minus ``negative_slope`` relu(-t)."""
        return leaky_relu(t, self.negative_slope)

    def theta(self, params: Params) -> Tensor:
        """Return |w| |u| of each unit."""
        W, U = params
        return W.norm(dim=1) * U.norm(dim=1)

    def penalty(self, params: Params) -> Tensor:
        """Return (|w|^2 + |u|^2) / 2 of each unit: weight decay."""
        W, U = params
        return 0.5 * (W.square().sum(1) + U.square().sum(1))

    def predict(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions, on a support without the others."""
        if support is None:
            return self.phi(params)
        W, U = params
        hidden = self.activation(self.X @ W.T)
        total = self.X.new_zeros(support.size)
        for j in range(count(params)):
            total = total + hidden[support.rows, j] * U[j, support.cols]
        return total

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return each unit's predictions, shape (r, n K) or (r, size)."""
        W, U = params
        hidden = self.activation(W @ self.X.T)
        if support is not None:
            return hidden[:, support.rows] * U[:, support.cols]
        return (hidden[:, :, None] * U[:, None, :]).flatten(1)

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return |x_i|: |relu(x_i w) u| <= |x_i| |w| |u|."""
        norms = lengths(self.X)
        return norms if support is None else norms[support.rows]

    def merge(self, params: Params) -> Params:
        """Join units that are a sum of one: same direction of w, or same active samples and direction of u.

        In the first case the vectors ``|w| u`` add up, in the second the vectors ``|u| w``: where
        both units are active on the same samples relu is linear.
        """
        W, U = params
        if count(params) < 2:
            return params
        sizes = W.norm(dim=1, keepdim=True), U.norm(dim=1, keepdim=True)
        first = same_directions(unit(W))
        U = torch.zeros_like(U).index_add_(0, first, sizes[0] * U)
        W = unit(W)
        kept = first == torch.arange(len(first), device=first.device)
        W, U = W[kept], U[kept]
        lengths = U.norm(dim=1, keepdim=True)
        active = self.X @ W.T > 0
        alike = (active[:, :, None] == active[:, None, :]).all(0) if active.numel() * len(W) <= 1e8 else None
        if alike is None:
            return _balance(W, U)
        outputs = same_directions(unit(U))
        alike &= outputs[:, None] == outputs[None, :]
        first = alike.to(torch.uint8).argmax(dim=1)
        W = torch.zeros_like(W).index_add_(0, first, lengths * W)
        kept = first == torch.arange(len(first), device=first.device)
        return _balance(W[kept], unit(U)[kept])

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
        """Return a bound of max over |w| = 1 of |Q' relu(X w)|, see :meth:`Atom.polar`.

        Upper ends: enumeration of the patterns where they are few, branch and bound for up to twelve
        inputs (ten minutes at most without a budget, half a minute beyond six inputs or for several
        outputs) and relaxations beyond six; with ``budget=0`` the sum of |Q_i| |x_i|.  Lower ends are evaluated.
        """
        X, Q, exponent = balanced(*self._rows(check_dual(Q, self.shape)))
        target = None if target is None else ldexp_rounded(target, -exponent, -1)
        began = time.monotonic()

        def left() -> float | None:
            return None if budget is None else max(budget - (time.monotonic() - began), 0.0)

        crude = row_sum(Q, X.norm(dim=1))
        upper, note = crude, "sum of |Q_i| |x_i|"
        W = [X[Q.norm(dim=1).argmax()][None]]
        if starts is not None:
            W.append(starts[0].detach().cpu())
        wanted = -math.inf if target is None else target
        proving = budget != 0.0 and upper > 0.0
        table = self.patterns(budget) if proving and self._countable() else None
        if proving and (table is None or (target is not None and Q.shape[1] > 1)):
            W.append(relu_ascent(X, Q, torch.cat(W), seed=seed, budget=_share(left(), 0.3))[0])
        values = relu_values(X, Q, unit(torch.cat(W)))
        low = float(values.max())
        if table is not None:
            found = arrangement_polar(
                X,
                Q,
                patterns=table.cpu(),
                target=_aim(target, low, Q.shape[1]),
                budget=left(),
                starts=torch.cat(W),
                seed=seed,
            )
            W.append(found.witness)
            if found.high < upper:
                upper, note = found.high, found.note
            values = relu_values(X, Q, unit(torch.cat(W)))
            low = float(values.max())
        # proved, or nothing to gain
        enough = max(wanted, low * (1.0 + 1e-9), 1e-10 * crude)
        if proving and upper > enough and (self.persistent or target is None or low <= target):
            aim = target if target is not None and low <= target else None
            for found in self._proofs(X, Q, unit(torch.cat(W)), aim, left, table is not None):
                if found.high < upper:
                    upper, note = found.high, found.note.removeprefix("upper end: ")
                if found.witness is not None:
                    W.append(found.witness)
            values = relu_values(X, Q, unit(torch.cat(W)))
        return scaled_back(self._value(X, Q, unit(torch.cat(W)), values, upper, note), exponent)

    def _countable(self) -> bool:
        """Whether enumeration costs no more than branch and bound would."""
        n, d = self.X.shape
        return d > DIMENSIONS or 2 * sum(math.comb(n - 1, k) for k in range(d)) <= _PATTERNS

    def _proofs(
        self,
        X: Tensor,
        Q: Tensor,
        starts: Tensor,
        target: float | None,
        left: Callable[[], float | None],
        enumerated: bool,
    ) -> Iterator[Value]:
        """Yield bounds by relaxations, and by branch and bound where there are few dimensions."""
        easy = X.shape[1] <= CLOSING and Q.shape[1] == 1
        tol = 1e-5 if easy else 1e-3
        if target is not None:  # several outputs: ten times the boxes for each digit
            tol = 1e-6 if easy or left() is not None else 1e-4
        return upper_bounds(
            X,
            Q,
            starts=starts,
            target=target,
            left=left,
            patience=_LONG if easy else _SHORT,
            tol=tol,
            relax=not enumerated,
            device=self.X.device,
        )

    def patterns(self, budget: float | None = None) -> Tensor | None:
        """Return all activation patterns of the inputs, (p, n) bool, or None where they are too many.

        They are kept.  ``budget`` is in seconds, None for no limit.
        """
        if not self._enumerated:
            most = min(PATTERN_LIMIT, int(_PATTERN_ENTRIES / len(self.X)))
            limit = most if budget is None else min(most, int(_PATTERNS_A_SECOND * budget))
            try:
                self._patterns = patterns(self.X.cpu(), limit=limit)
            except TooManyPatterns:
                self._enumerated = limit == most  # otherwise a larger budget may do
            else:
                self._enumerated = True
        return self._patterns

    def _rows(self, Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (x_i, Q_i) on the CPU such that the polar is max over |w| = 1 of |sum_i Q_i relu(x_i w)|."""
        return leaky_rows(self.X.cpu(), Q, self.negative_slope)

    def _inputs(self, X: Any) -> Tensor:
        if X is None:
            return self.X
        return as_inputs(X, bias=self.bias, columns=self.X.shape[1] - self.bias).to(self.X.device)

    def _value(self, X: Tensor, Q: Tensor, W: Tensor, values: Tensor, upper: float, note: str) -> Value:
        """Return the Value whose witnesses are the best of the unit directions W, of known values."""
        order = values.argsort(descending=True)
        first = same_directions(W[order], 1e-9)
        order = order[first == torch.arange(len(order))][:_WITNESSES]
        W = W[order]
        U = unit(torch.relu(W @ X.T) @ Q)
        n, d = X.shape
        rounding = 4.0 * gamma(n + d + Q.shape[1] + 8) * row_sum(Q, X.norm(dim=1))
        lower = min(max(float(values[order[0]]) - rounding, 0.0), upper)
        witness = tuple(p.to(self.X.device) for p in (W, U))
        return Value.bound(lower, upper, witness=witness, note="upper end: " + note)

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Descend as by default, adding units where they help, then polish (:mod:`theodolite.atoms.relu_polish`)."""
        if problem.loss.support is not None:
            return super().descend(problem, params, tol=tol, deadline=deadline, progress=progress)
        now = time.monotonic()
        deadline = now + _PATIENCE * (deadline - now)
        loss, X, lam, device = problem.loss.to("cpu"), self.X.cpu(), problem.lam, self.X.device
        slope = self.negative_slope
        for growth in range(_GROWTHS):
            before = problem.objective(params)
            coarse = max(tol, 1e-5)
            params = super().descend(problem, params, tol=coarse, deadline=deadline, progress=progress)
            params = self.merge(params)
            gained = before - problem.objective(params)
            if time.monotonic() > deadline or (growth and gained <= 1e-4 * abs(before)):
                break
            W, U = (p.cpu() for p in params)
            fresh = fresh_units(loss, X, lam, W, U, most=_FRESH, seed=growth, slope=slope)
            params = join(params, tuple(p.to(device) for p in fresh))
        progress(params)
        W, U = (p.cpu() for p in params)
        polished = polish(loss, X, lam, W, U, slope=slope, tol=_inner(tol), deadline=deadline)
        return min(tuple(p.to(device) for p in polished), params, key=problem.objective)


def _aim(target: float | None, low: float, n_outputs: int) -> float | None:
    """Return the target to prove: none for one output, where the whole answer costs hardly more.

    A search that ends as soon as a target is exceeded leaves no useful upper end; where it is
    exceeded by little, a bound a little above what is attained is worth more.
    """
    if target is None or n_outputs == 1:
        return None
    return max(target, (1.0 + 1e-6) * low) if low <= 1.01 * target else target


def _inner(tol: float) -> float:
    """Return the accuracy of the polish: the polar of a residual errs like the square root of a gap."""
    return min(max(1e-3 * tol, 1e-13), 1e-7)


def _share(seconds: float | None, part: float) -> float | None:
    return None if seconds is None else part * seconds


def _balance(W: Tensor, U: Tensor) -> Params:
    """Return the same units with |w| = |u|."""
    w, u = (p.norm(dim=1, keepdim=True) for p in (W, U))
    size = (w * u).sqrt()
    tiny = torch.finfo(W.dtype).tiny
    return W * (size / w.clamp(min=tiny)), U * (size / u.clamp(min=tiny))
