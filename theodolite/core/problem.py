r"""A problem: :math:`\min_{r, W_1..W_r}\ \ell(\sum_{i=1}^r\phi(W_i)) + \lambda\sum_{i=1}^r\theta(W_i)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from theodolite.core.atom import Atom
from theodolite.core.certificate import Certificate, certify
from theodolite.core.params import Params, count
from theodolite.core.solve import Round, Solution, Solver
from theodolite.linalg.lanczos import FailureLedger
from theodolite.losses.base import Loss, check_positive
from theodolite.optim.log import Log
from theodolite.optim.ratio import least_ratio
from theodolite.value import Value


class Problem:
    """Minimize ``loss(sum_i phi(W_i)) + lam * sum_i theta(W_i)`` over any number of subnetworks.

    Parameters
    ----------
    loss : Loss
        Convex in the predictions.
    atom : Atom
        The family: phi, theta and their polar.
    lam : float
        Regularization, > 0.

    Raises
    ------
    TypeError
        If loss or atom is of another type.
    ValueError
        If ``lam`` is not a finite positive number, the shapes of loss and atom differ, or the
        atom's theta vanishes where its phi does not, so that no certificate exists.
    """

    def __init__(self, loss: Loss, atom: Atom, lam: float) -> None:
        if not isinstance(loss, Loss):
            raise TypeError(f"loss: expected a theodolite.losses.Loss, got {type(loss).__name__}")
        if not isinstance(atom, Atom):
            raise TypeError(f"atom: expected a theodolite.atoms.Atom, got {type(atom).__name__}")
        if tuple(loss.shape) != tuple(atom.shape):
            shapes = f"{tuple(loss.shape)} for the loss and {tuple(atom.shape)} for the atom"
            raise ValueError(f"loss, atom: expected predictions of one shape, got {shapes}")
        self.loss, self.atom, self.lam = loss, atom, check_positive(lam, "lam")
        self._refuse_infinite_polar()

    @cached_property
    def row_bounds(self) -> Tensor:
        """Bound of each row (entry) of phi over theta <= 1, float64."""
        return self.atom.row_bounds(self.loss.support).double()

    def predictions(self, params: Params) -> Tensor:
        """Return the predictions that the loss looks at, in the shape that it takes."""
        if not count(params):
            return self.loss.zeros()
        with torch.no_grad():
            return self.atom.predict(params, self.loss.support)

    def objective(self, params: Params) -> float:
        """Return P(W)."""
        with torch.no_grad():
            theta = float(self.atom.theta(params).sum())
        return self.loss.value(self.predictions(params)) + self.lam * theta

    def matrix(self, R: Tensor) -> Tensor:
        """Return R as an (n, k) matrix: sparse COO for a loss with a support."""
        support = self.loss.support
        if support is None:
            return R
        index = torch.stack([support.rows, support.cols])
        sure = support.sorted or None
        Q = torch.sparse_coo_tensor(index, R, self.loss.shape, check_invariants=False, is_coalesced=sure)
        return Q.coalesce()

    def lambda_max(self, budget: float | None = None, *, seed: int = 0, delta: float = 1e-9) -> Value:
        """Return the smallest lam for which the zero model is optimal, the polar of the residual at zero."""
        _check_range(0.0, budget)
        R = -self.loss.gradient(self.loss.zeros())
        return self.atom.polar(self.matrix(R), budget=budget, seed=seed, delta=delta)

    def certify(
        self,
        params: Params,
        *,
        tol: float = 1e-3,
        budget: float | None = None,
        seed: int = 0,
        delta: float = 1e-9,
    ) -> Certificate:
        """Return what is proved about given subnetworks, whether or not they are stationary.

        Parameters
        ----------
        params : Params
            Stacked parameters; r = 0 is the zero model.
        tol : float
            Relative gap at which the verdict is "closed".
        budget : float, optional
            Seconds for the polar, and a tenth of them for a bound of the family's own; 0: valid but loose.
        seed, delta : int, float
            Of random starts; failure probability that a randomized bound may have.

        Raises
        ------
        ValueError
            If an argument is out of range, or the predictions are not finite.
        """
        self.check_params(params)
        _check_range(tol, budget)
        with torch.no_grad():
            return certify(self, params, tol=tol, budget=budget, seed=seed, delta=delta)

    def solve(
        self,
        tol: float = 1e-3,
        budget: float | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        verbose: bool = False,
        *,
        init: Params | None = None,
        callback: Callable[[Round], bool | None] | None = None,
        max_rounds: int = 1000,
        delta: float = 1e-9,
    ) -> Solution:
        """Descend, certify, grow, prune, until the gap is closed or the budget is spent.

        Parameters
        ----------
        tol : float
            Relative gap (P - D) / |P| to stop at.
        budget : float, optional
            Seconds, the last tenth for the last certificate; None for no limit, 0 to certify the start, loosely.
        device : torch.device or str, optional
            Where to descend; bounds are proved in float64 wherever they are computed.
        seed, delta : int, float
            Of random starts; failure probability of all randomized bounds together.
        verbose : bool
            Print one line a round, as a mixed-integer solver does.
        init : Params, optional
            Where to start; by default no subnetworks.
        callback : function(Round) -> bool, optional
            Called after each round; returning True stops.
        max_rounds : int

        Returns
        -------
        Solution
            The best subnetworks found with their certificate; after Ctrl-C, those so far.
        """
        _check_range(tol, budget)
        problem = self if device is None else self.to(device)
        params = self.atom.init(0) if init is None else init
        self.check_params(params)
        params = tuple(p.detach().to(problem.loss.zeros().device) for p in params)
        with Log(verbose) as log, torch.no_grad():
            solver = Solver(problem, params, tol, budget, FailureLedger(delta, seed))
            return solver.run(max_rounds, callback, log)

    def to(self, device: torch.device | str) -> Problem:
        """Return the same problem with its data on a device."""
        return Problem(self.loss.to(device), self.atom.to(device), self.lam)

    def check_params(self, params: Params) -> None:
        """Refuse params that are not stacked tensors of the atom's shapes."""
        wanted = [tuple(p.shape[1:]) for p in self.atom.init(0)]
        tensors = isinstance(params, tuple | list) and all(isinstance(p, Tensor) for p in params)
        got = [tuple(p.shape) for p in params] if tensors else type(params).__name__
        if not tensors or got != [(len(params[0]), *shape) for shape in wanted]:
            raise ValueError(f"params: expected tensors of shapes {[('r', *s) for s in wanted]}, got {got}")

    def _refuse_infinite_polar(self) -> None:
        """Refuse an atom whose theta can vanish where phi does not, or whose row_bounds are wrong."""
        atom, support, bounds, why = self.atom, self.loss.support, self.row_bounds, ""
        if not bool(torch.isfinite(bounds).all()) or bool((bounds < 0.0).any()):
            why = "its row_bounds are not finite"
        if support is not None:  # the cost is not to grow with the data
            support = support.some(10_000)
            bounds = atom.row_bounds(support).double()
        start = atom.init(1)
        if not why:
            start = least_ratio(lambda p: atom.theta(p).sum(), lambda p: atom.predict(p, support), start)
        for grown in range(-1, 0 if why else len(start)):
            factors = [1e6 if i == grown and p.is_floating_point() else 1 for i, p in enumerate(start)]
            probe = tuple(p * factor for p, factor in zip(start, factors, strict=True))
            Z, theta = atom.predict(probe, support), float(atom.theta(probe).sum())
            size = Z.norm(dim=1) if Z.ndim == 2 else Z.abs()
            if bool((size > (1.0 + 1e-6) * theta * bounds + 1e-9 * size.max()).any()):
                why = "phi exceeds theta * row_bounds" + (f" as tensor {grown} grows" if grown >= 0 else "")
        if why:
            raise ValueError(
                "atom: expected a theta that vanishes only where phi does, otherwise the polar is infinite and "
                f"nothing can be certified; got one with {why}"
            )


def _check_range(tol: float, budget: float | None) -> None:
    if not tol >= 0:
        raise ValueError(f"tol: expected a number >= 0, got {tol}")
    if budget is not None and not budget >= 0:
        raise ValueError(f"budget: expected seconds >= 0 or None, got {budget}")
