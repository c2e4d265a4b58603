r"""What a family of subnetworks has to offer: prediction phi, regularizer theta and polar.

Of :math:`\min_{r, W_1..W_r}\ \ell(\sum_i\phi(W_i)) + \lambda\sum_i\theta(W_i)` an :class:`Atom` is the pair
(phi, theta), with the *polar* :math:`\Omega^\circ(Q) = \sup\{\langle Q,\phi(W)\rangle : \theta(W)\le1\}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.core.descend import descend
from theodolite.core.params import Params, count, select
from theodolite.losses.base import Movable, Support, moved
from theodolite.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from theodolite.core.problem import Problem

    Progress = Callable[[Params], None]


class Atom(ABC):
    """One family of subnetworks, positively homogeneous of one degree, computed in float64.

    Subclasses set the attributes and write the abstract methods.  ``phi`` and ``theta`` must be
    differentiable by autograd wherever theta > 0.

    Attributes
    ----------
    shape : tuple of int
        Shape (n, k) of the predictions.
    degree : int
        phi and theta scale by alpha when every parameter scales by alpha^(1/degree).
    depth : int
        Bound of the number of roundings in a chain behind one entry of phi: rounding errors of
        row i are at most ``gamma(depth) * row_bounds[i] * theta``.
    convex : bool
        Whether ``descend`` solves the convex problem of the sum, weights included.
    """

    shape: tuple[int, int]
    degree: int
    depth: int
    convex = False

    @abstractmethod
    def init(self, r: int, seed: int = 0) -> Params:
        """Return r random subnetworks with theta = 1 each (r may be 0)."""

    @abstractmethod
    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        """Return the sum of all predictions, shape (n, k); for other inputs X where there are inputs."""

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
            Float64; torch sparse COO for a loss with a support.
        target : float, optional
            An oracle that refines may stop once its upper end is at most this, or its lower end above.
        budget : float, optional
            Seconds after which to return what is proved so far; 0 for the cheapest bound.
        starts : Params, optional
            Subnetworks to start a search from.
        seed : int
            Of random starts; core changes it from call to call.
        delta : float
            Failure probability that a randomized upper end may have.

        Returns
        -------
        Value
            A `bound` with both ends, rounding enclosed, confidence at least 1 - delta.  Its
            ``witness`` are Params with theta = 1: the first attains the lower end, any others
            are further directions worth adding, best first.
        """

    @abstractmethod
    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return for each row (entry of a support) a bound of ||phi(W)_i|| over theta(W) <= 1.

        A finite bound proves that phi vanishes wherever theta does; without one the polar is infinite.
        """

    def predict(self, params: Params, support: Support | None = None) -> Tensor:
        """Return what a loss looks at: all predictions, (n, k), or those on a support, (size,).

        The default forms all of them; a family that can do without should.
        """
        Z = self.phi(params)
        return Z if support is None else Z[support.rows, support.cols]

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions of each subnetwork alone, flattened, shape (r, size)."""
        parts = [select(params, slice(i, i + 1)) for i in range(count(params))] or [params]
        return torch.stack([self.predict(p, support).reshape(-1) for p in parts])[: count(params)]

    def penalty(self, params: Params) -> Tensor:
        """Return a smoother regularizer >= theta, equal to it after a rescaling that keeps phi, shape (r,)."""
        return self.theta(params)

    def scale(self, params: Params, alpha: Tensor) -> Params:
        """Return the subnetworks with phi_i and theta_i multiplied by alpha_i >= 0, alpha of shape (r,)."""
        factor = alpha ** (1.0 / self.degree)
        return tuple(p * factor.view(-1, *[1] * (p.ndim - 1)) for p in params)

    def merge(self, params: Params) -> Params:
        """Return fewer subnetworks with the same sum of phi and no larger theta; the default merges none."""
        return params

    def dual_bound(
        self, problem: Problem, params: Params, *, tol: float, budget: float | None, seed: int, delta: float
    ) -> Value | None:
        """Return a lower bound of the objective of any subnetworks, from elsewhere than the ray of the residual.

        Asked for where the ray's leaves a gap above tol; the default has none.  ``budget`` is in seconds: None
        for no limit, 0 for what is known already.  The `bound` has a lower end, rounding enclosed, of
        confidence at least 1 - delta, which is what the polar left: perhaps 0.  It need not depend on the
        params: a family may keep it, and improve it from call to call.
        """
        return None

    def descend(
        self, problem: Problem, params: Params, *, tol: float, deadline: float, progress: Progress
    ) -> Params:
        """Return subnetworks with a lower objective; the default is L-BFGS on all parameters.

        ``tol`` is the relative gap aimed at in the end, ``deadline`` a value of
        ``time.monotonic()`` at which to stop, and ``progress`` is to be called now and then with
        what there is: an interrupt keeps that.  There may be no subnetworks to start from.
        """
        return descend(problem, params, tol=tol, deadline=deadline, progress=progress)

    def to(self: Movable, device: torch.device | str) -> Movable:
        """Return the same family with its data on a device."""
        return moved(self, device)
