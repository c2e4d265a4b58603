r"""What a family of subnetworks has to offer: prediction, regularizer and polar.

A problem of this package is

.. math:: \min_{r, W_1..W_r}\ \ell\Big(\sum_{i=1}^r\phi(W_i)\Big) + \lambda\sum_{i=1}^r\theta(W_i),

and an :class:`Atom` is the pair (phi, theta) of one family, with the *polar*
:math:`\Omega^\circ(Q) = \sup\{\langle Q,\phi(W)\rangle : \theta(W)\le1\}` that belongs to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from theodolite.losses.base import Movable, Support, moved
from theodolite.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from theodolite.core.problem import Problem

Params = tuple[Tensor, ...]
"""The parameters of r subnetworks, stacked: each tensor has a leading axis of length r."""


def count(params: Params) -> int:
    """Return the number r of subnetworks."""
    return len(params[0])


def select(params: Params, index: Any) -> Params:
    """Return some of the subnetworks, by a slice, a mask or indices."""
    return tuple(p[index] for p in params)


def join(*several: Params) -> Params:
    """Return all subnetworks of several sets."""
    return tuple(torch.cat(parts) for parts in zip(*several, strict=True))


class Atom(ABC):
    """One family of subnetworks, positively homogeneous of one degree.

    Subclasses set ``shape`` and ``degree`` and write the abstract methods.  Everything is
    computed in float64.  ``phi`` and ``theta`` must be differentiable by autograd wherever
    theta > 0.

    Attributes
    ----------
    shape : tuple of int
        Shape (n, k) of the predictions.
    degree : int
        Both phi and theta scale by alpha when every parameter scales by alpha^(1/degree).
    depth : int
        Number of additions and multiplications in a chain behind one entry of phi, up to a
        factor: rounding errors are at most ``gamma(depth)`` times ``row_bounds * theta``.
    """

    shape: tuple[int, int]
    degree: int
    depth: int

    @abstractmethod
    def init(self, r: int, seed: int = 0) -> Params:
        """Return r random subnetworks with theta = 1 each (r may be 0)."""

    @abstractmethod
    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        """Return the sum of all subnetworks' predictions, shape (n, k).

        ``X`` are other inputs to predict for, where the family has inputs; None takes those
        of the problem.
        """

    @abstractmethod
    def theta(self, params: Params) -> Tensor:
        """Return the regularizer of each subnetwork, shape (r,), >= 0."""

    @abstractmethod
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
        """Return a bound of the polar of Q.

        Parameters
        ----------
        Q : Tensor, shape (n, k)
            Float64; a torch sparse COO tensor for a loss with a support.
        target : float, optional
            Enough is proved when the upper end is at most this; an oracle that refines step by
            step may stop there, or once its lower end exceeds it.
        budget : float, optional
            Seconds after which to return what is proved so far; 0 for the cheapest bound.
        starts : Params, optional
            Subnetworks to start a search from.
        seed : int
            Of the random starts.  It changes from call to call.
        delta : float
            Failure probability that a randomized upper end may have.

        Returns
        -------
        Value
            A `bound` with both ends, rounding enclosed; ``confidence`` at least 1 - delta; its
            ``witness`` are Params with theta = 1 of which the first attains the lower end and
            the others, if any, are further directions worth adding, best first.
        """

    @abstractmethod
    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return, for each row (each entry of a support), a bound of ||phi(W)_i|| over theta(W) <= 1.

        A finite bound proves that phi vanishes wherever theta does; a family for which
        none exists has an infinite polar and is refused.
        """

    def predict(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions that a loss looks at: all, shape (n, k), or those on a support, (size,).

        The default forms all of them; a family that can do without should.
        """
        Z = self.phi(params)
        return Z if support is None else Z[support.rows, support.cols]

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions of each subnetwork alone, flattened, shape (r, size)."""
        parts = [
            self.predict(select(params, slice(i, i + 1)), support).reshape(1, -1)
            for i in range(count(params))
        ]
        size = math.prod(self.shape) if support is None else support.size
        return torch.cat(parts) if parts else torch.zeros(0, size, dtype=torch.float64)

    def penalty(self, params: Params) -> Tensor:
        """Return a regularizer that is >= theta, with equality after a rescaling that keeps phi, shape (r,).

        Descent uses it because it may be smoother than theta (half the squared norms in place
        of the product of two).  The default is theta itself.
        """
        return self.theta(params)

    def scale(self, params: Params, alpha: Tensor) -> Params:
        """Return the subnetworks with phi_i and theta_i multiplied by alpha_i >= 0, alpha of shape (r,)."""
        factor = alpha.clamp(min=0.0) ** (1.0 / self.degree)
        return tuple(p * factor.view(-1, *[1] * (p.ndim - 1)) for p in params)

    def merge(self, params: Params) -> Params:
        """Return fewer subnetworks with the same sum of phi and no larger theta, where some have one direction.

        The default merges none.
        """
        return params

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Return subnetworks with a lower objective; the default is :func:`theodolite.core.descend.descend`.

        Parameters
        ----------
        problem : Problem
        params : Params
            Where to start; there may be none (r = 0).
        tol : float
            Relative gap that the solver aims at in the end.
        deadline : float
            Value of ``time.monotonic()`` at which to stop.
        progress : function(Params)
            To be called now and then with what there is: it is what an interrupt keeps.
        """
        from theodolite.core.descend import descend

        return descend(problem, params, tol=tol, deadline=deadline, progress=progress)

    def to(self: Movable, device: torch.device | str) -> Movable:
        """Return the same family with its data on a device."""
        return moved(self, device)
