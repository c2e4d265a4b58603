"""What the parallel networks share: their subnetworks, the problem that a fit solves, and trained networks adopted."""

from __future__ import annotations

import copy
import itertools
import numbers
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from theodolite.core.atom import Atom
from theodolite.core.params import Params
from theodolite.core.problem import Problem
from theodolite.estimators.base import (
    Callback,
    CertifiedEstimator,
    as_round,
    check_choice,
    check_factor,
    check_integer,
    check_number,
    seed_of,
)
from theodolite.estimators.net_path import Choice, choose_alpha
from theodolite.estimators.net_targets import Targets
from theodolite.estimators.subnetworks import (
    ConvUnits,
    GatedUnits,
    LinearUnits,
    Modules,
    ReLUUnits,
    Subnetworks,
    linear,
)
from theodolite.estimators.trained_network import network_gap, read_network, whole_certificate
from theodolite.losses import Loss, SampleLoss
from theodolite.losses.biased import BiasedLoss

KINDS = ("relu", "leaky_relu", "gated", "linear", "conv")
_BATCH = 1 << 12  # samples of a prediction at once
_APART = 100_003  # between the seeds of two fits: more than one makes use of


class ParallelNet(CertifiedEstimator):
    """What the regressor and the classifier share; see :class:`ParallelNetRegressor`."""

    def __init__(
        self,
        subnetwork: str | nn.Module | Callable[[], nn.Module] = "relu",
        alpha: float | str = 1e-3,
        tol: float = 1e-2,
        budget: float | None = None,
        bias: bool | None = None,
        fit_intercept: bool = False,
        negative_slope: float = 0.01,
        n_gates: int = 50,
        image_shape: tuple[int, ...] | None = None,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        pool: int | tuple[int, int] = 2,
        basis: Any = None,
        n_components: int = 5,
        alphas: int | Sequence[float] = 10,
        cv: Any = 5,
        verbose: bool = False,
        device: torch.device | str | None = None,
        random_state: Any = None,
    ) -> None:
        self.subnetwork = subnetwork
        self.alpha = alpha
        self.tol = tol
        self.budget = budget
        self.bias = bias
        self.fit_intercept = fit_intercept
        self.negative_slope = negative_slope
        self.n_gates = n_gates
        self.image_shape = image_shape
        self.kernel_size = kernel_size
        self.stride = stride
        self.pool = pool
        self.basis = basis
        self.n_components = n_components
        self.alphas = alphas
        self.cv = cv
        self.verbose = verbose
        self.device = device
        self.random_state = random_state

    def _check(self) -> None:
        """Refuse parameters that are none."""
        self._check_shared()
        if not callable(self.subnetwork) and self.subnetwork not in KINDS:
            expected = f"one of {', '.join(map(repr, KINDS))} or a function that returns a module"
            raise ValueError(f"subnetwork: expected {expected}, got {self.subnetwork!r}")
        check_choice(self.bias, "bias", (None, True, False))
        check_choice(self.fit_intercept, "fit_intercept", (True, False))
        if self.alpha != "cv":
            check_alpha(self.alpha)
        if self.subnetwork == "gated":
            check_integer(self.n_gates, "n_gates", low=1)

    @property
    def _flat(self) -> bool:
        """Whether samples are vectors."""
        return isinstance(self.subnetwork, str) and self.subnetwork != "conv"

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        shape = {"ensure_2d": self._flat, "allow_nd": not self._flat}
        return validate_data(self, X, *y, dtype=np.float64, **shape, **options)

    def _kind(self, X: Tensor) -> Subnetworks:
        """Return the kind of subnetworks; random gates are half-spaces of the standardized inputs."""
        if isinstance(self.subnetwork, nn.Module):
            return Modules(partial(copy.deepcopy, self.subnetwork))
        if not isinstance(self.subnetwork, str):
            return Modules(self.subnetwork)
        bias = self.subnetwork != "conv" if self.bias is None else self.bias
        if self.subnetwork == "relu":
            return ReLUUnits(bias)
        if self.subnetwork == "leaky_relu":
            return ReLUUnits(bias, check_number(self.negative_slope, "negative_slope", low=-1.0))
        if self.subnetwork == "linear":
            return LinearUnits(bias)
        if self.subnetwork == "conv":
            sizes = self.kernel_size, self.stride, self.pool
            return ConvUnits.read(X, self.image_shape, sizes, self.basis, self.n_components, bias=bias)
        generator = torch.Generator().manual_seed(seed_of(self.random_state))
        drawn = torch.randn(self.n_gates, X.shape[1] + 1, generator=generator, dtype=torch.float64)
        deviation, mean = X.std(0, correction=0), X.mean(0)
        normals = drawn[:, :-1] / torch.where(deviation > 0.0, deviation, 1.0)
        return GatedUnits(bias, torch.cat([normals, drawn[:, -1:] - normals @ mean[:, None]], 1))

    def _problem(self, atom: Atom, loss: Any, alpha: float) -> Problem:
        convex: Loss = BiasedLoss(loss, alpha) if self.fit_intercept else loss
        return Problem(convex, atom, alpha)

    def _fit(self, X: Tensor, targets: Targets, callback: Callback | None) -> None:
        """Choose alpha if that is asked for, solve, and keep the network."""
        kind, choice = self._kind(X), None
        if self.alpha == "cv":
            choice = self._choose(kind, X, targets, callback)
        atom = kind.atom(X, targets.n_outputs)
        self.alpha_ = float(self.alpha) if choice is None else choice.alpha
        problem = self._problem(atom, targets.loss(), self.alpha_)
        if choice is not None and choice.interrupted:
            callback = _stop
        solution = self._solve(problem, None if choice is None else choice.start, callback=callback)
        if choice is not None:
            self.cv_results_, self.best_index_ = choice.results, choice.best
            self.interrupted_ = choice.interrupted or solution.interrupted
        self.n_units_, self.input_shape_ = self.rank_, tuple(X.shape[1:])
        readout = targets.readout(_intercept(problem, solution.params))
        self.module_ = kind.module(atom, solution.params, readout).eval()

    def _choose(self, kind: Subnetworks, X: Tensor, targets: Targets, callback: Callback | None) -> Choice:
        seed, fits = seed_of(self.random_state), itertools.count(1)

        def fit(
            atom: Atom, rows: NDArray[np.int64] | None, alpha: float, start: Params | None
        ) -> tuple[Problem, Any]:
            problem = self._problem(atom, targets.loss(rows), alpha)
            # each starts from the last one's answer: its proofs are to have random starts of their own
            own = seed + _APART * next(fits)
            solved = problem.solve(
                self.tol, self.budget, self.device, own, self.verbose, init=start, callback=callback
            )
            return problem, solved

        return choose_alpha(fit, kind, X, targets, alphas=self.alphas, cv=self.cv, seed=seed)

    def _outputs(self, X: Any) -> Tensor:
        """Return the network's outputs, shape (n, outputs)."""
        check_is_fitted(self)
        X = torch.tensor(self._validated(X, reset=False))
        if tuple(X.shape[1:]) != self.input_shape_:
            raise ValueError(f"X: expected samples of shape {self.input_shape_}, got {tuple(X.shape[1:])}")
        with torch.no_grad():
            return torch.cat([self.module_(part) for part in X.split(_BATCH)])

    def _adopt(
        self,
        model: nn.Module,
        X: Any,
        loss_of: Callable[[int], tuple[SampleLoss, Tensor | None]],
        weight_decay: float,
        scale: Callable[[int], float],
    ) -> None:
        """Certify a trained network and keep it as the fit."""
        self._check_shared()
        decay, start = check_factor(weight_decay, "weight_decay"), time.monotonic()
        network = read_network(model, X)
        loss, mix = loss_of(network.n_outputs)
        problem = network.problem(loss, decay)
        seed, interrupted = seed_of(self.random_state), False
        certify = partial(problem.problem.certify, problem.params, tol=self.tol, seed=seed)
        try:
            own = certify(budget=self.budget)
        except KeyboardInterrupt:
            interrupted, own = True, certify(budget=0.0)
        self.network_gap_ = network_gap(problem, own)
        certificate = whole_certificate(problem, own)
        self._keep(certificate, (as_round(certificate, start),), interrupted)
        self.subnetwork, self.n_units_ = problem.family, self.rank_
        self.bias, self.fit_intercept = bool(network.found.hidden_bias), bool(network.found.output_bias)
        self.alpha = self.alpha_ = scale(network.n_outputs) * decay
        self.input_shape_, self.n_features_in_ = network.input_shape, network.input_shape[0]
        self.negative_slope = network.found.negative_slope
        self.module_ = network.model if mix is None else nn.Sequential(network.model, linear(mix.T, None))

    def to_torch(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Return the network as a plain module of its own, in evaluation mode.

        Its outputs are the predictions of a regression, (n, k), and one column for each class of a
        classification: the greatest is the predicted class, softmax of them the probabilities.

        Parameters
        ----------
        dtype : torch.dtype
            Of the weights and of the inputs that it takes; float64 gives the same predictions.
        """
        check_is_fitted(self)
        return copy.deepcopy(self.module_).to(dtype)


def check_alpha(alpha: Any) -> float:
    """Return alpha as a float, or refuse what is no positive number; zero with the reason."""
    if isinstance(alpha, numbers.Real) and not isinstance(alpha, bool) and alpha == 0:
        raise ValueError(
            "alpha: expected a number > 0 or 'cv', got 0: without a regularizer every dual point but zero is "
            "infeasible, so that nothing but the least value of the loss itself bounds a network from below"
        )
    if isinstance(alpha, str):
        raise ValueError(f"alpha: expected a number > 0 or 'cv', got {alpha!r}")
    return check_factor(alpha, "alpha")


def _intercept(problem: Problem, params: Params) -> Tensor | None:
    """Return the best bias of the outputs, where they have one."""
    loss = problem.loss
    return loss.bias(problem.predictions(params)) if isinstance(loss, BiasedLoss) else None


def _stop(_: Any) -> bool:
    return True
