"""Newton's method for the convex problem of a last layer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from theodolite.analysis.head import HeadProblem

Progress = Callable[[int, float, float], None]

_GRAM_WORK = 5e10  # multiplications that one matrix of the preconditioner may take
_FEW = 4  # products with the Hessian that any Newton step takes


def newton(
    problem: HeadProblem,
    W: Tensor,
    tol: float,
    deadline: float,
    max_iterations: int,
    progress: Progress | None,
) -> tuple[Tensor, int]:
    """Minimize by Newton steps from preconditioned conjugate gradients, with a line search.

    Parameters
    ----------
    problem : HeadProblem
    W : Tensor, shape (k, columns)
        Where to start.
    tol : float
        Relative duality gap to stop at.
    deadline : float
        Value of ``time.monotonic()`` after which the present point is returned.
    max_iterations : int
    progress : function(iteration, objective, dual bound) or None

    Returns
    -------
    W : Tensor
    steps : int
    """
    Z, preconditioner = problem.scores(W), _Preconditioner(problem)
    value, bound, steps, first = problem.loss_value(Z) + problem.norms(W), -math.inf, 0, 0.0
    while True:
        residuals = [-part.gradient(z) for part, z in zip(problem.losses, Z, strict=True)]
        gradient = W * problem.decays - problem.pull_back(residuals)
        bound = max(bound, problem.residual_bound(residuals, gradient, value))
        if progress is not None:
            progress(steps, value, bound)
        size = float(gradient.norm())
        first = first or size
        done = value - bound <= tol * abs(value) or size == 0.0
        if done or steps >= max_iterations or time.monotonic() >= deadline:
            return W, steps
        step = _newton_step(problem, Z, gradient, preconditioner, min(0.1, math.sqrt(size / first)), deadline)
        moved = _line_search(problem, W, Z, step, value)
        if moved is None:  # no decrease that float64 can see
            return W, steps
        W, Z, value = moved
        steps += 1


def _newton_step(
    problem: HeadProblem,
    Z: list[Tensor],
    gradient: Tensor,
    preconditioner: _Preconditioner,
    accuracy: float,
    deadline: float,
) -> Tensor:
    """Return an approximate solution S of Hessian(S) = -gradient."""
    curvatures = [part.curvature(z) for part, z in zip(problem.losses, Z, strict=True)]
    preconditioner.update([weights for _, weights in curvatures])

    def hessian(S: Tensor) -> Tensor:
        total = S * problem.decays
        for A, (product, _) in zip(problem.blocks(), curvatures, strict=True):
            total.addmm_(product(A @ S.T).T, A)
        return total

    step = torch.zeros_like(gradient)
    residual = -gradient
    target = accuracy * float(gradient.norm())
    direction, product = torch.zeros_like(gradient), math.inf
    for _ in range(500):
        renewed = preconditioner.count()
        preconditioned = preconditioner(residual)
        new = float((residual * preconditioned).sum())
        # another inner product begins another Krylov space
        direction = preconditioned if renewed else preconditioned + (new / product) * direction
        product = new
        curved = hessian(direction)
        bend = float((direction * curved).sum())
        if bend <= 0.0:  # rounding: the Hessian is positive definite
            break
        length = product / bend
        step = step + length * direction
        residual = residual - length * curved
        if float(residual.norm()) <= target or time.monotonic() >= deadline:
            break
    return step


class _Preconditioner:
    """An approximate inverse of A^T diag(w) A + decays, one for all outputs.

    The diagonal to begin with.  When the products with the Hessian have cost as much as a
    factorization, one is made, and at a later point another when they have again: hardly
    more than twice the work of the choice that hindsight would make.

    Eight rows for each column show the matrix well enough.  With fewer rows than columns
    the smaller matrix B B^T, B = diag(w)^(1/2) A, is factored instead; where both are too
    large the diagonal must do.
    """

    def __init__(self, problem: HeadProblem) -> None:
        self.problem = problem
        self.columns = len(problem.decays)
        self.stride = max(1, problem.n // (8 * self.columns))
        rows = sum(len(A[:: self.stride]) for A in problem.blocks())
        self.side = min(rows, self.columns) if problem.bias != "free" else self.columns
        gram = rows * self.columns * self.side + self.side**3 / 3
        self.cost = gram if gram <= _GRAM_WORK else math.inf
        self.product = 2.0 * problem.n * self.columns * problem.k
        self.spent = 0.0
        self.weights: list[Tensor] = []
        self.inverse: Callable[[Tensor], Tensor] | None = None

    def __call__(self, S: Tensor) -> Tensor:
        """Apply the approximate inverse."""
        return S / self.diagonal if self.inverse is None else self.inverse(S)

    def update(self, weights: list[Tensor]) -> None:
        """Take the weights of a new point."""
        self.weights = weights
        if self.spent + _FEW * self.product >= self.cost:
            self._factor()
        if self.inverse is None:
            diagonal = self.problem.decays.clone()
            for A, w in zip(self.problem.blocks(), weights, strict=True):
                diagonal += w @ A.square()
            self.diagonal = diagonal.clamp(min=1e-300)

    def count(self) -> bool:
        """Count one product with the Hessian; return whether the inverse is a new one."""
        self.spent += self.product
        return self.inverse is None and self.spent > self.cost and self._factor()

    def _factor(self) -> bool:
        self.spent = 0.0
        problem, stride = self.problem, self.stride
        pairs = zip(problem.blocks(), self.weights, strict=True)
        B = torch.cat([A[::stride] * (stride * w[::stride, None]).sqrt() for A, w in pairs])
        small = self.side < self.columns
        gram = B @ B.T if small else torch.diag(problem.decays) + B.T @ B
        if small:
            gram.diagonal().add_(problem.decay)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            self.cost = math.inf
            return False
        if small:  # Sherman, Morrison and Woodbury
            self.inverse = lambda S: (S - torch.cholesky_solve(B @ S.T, factor).T @ B) / problem.decay
        else:
            self.inverse = lambda S: torch.cholesky_solve(S.T, factor).T
        return True


def _line_search(
    problem: HeadProblem, W: Tensor, Z: list[Tensor], step: Tensor, value: float
) -> tuple[Tensor, list[Tensor], float] | None:
    """Minimize along W + a step to a tenth of the slope; None when P does not fall."""
    along = problem.scores(step, shifted=False)
    base, bend = float((W * step * problem.decays).sum()), float((step.square() * problem.decays).sum())

    def slope(a: float) -> float:
        terms = zip(problem.losses, Z, along, strict=True)
        return (
            base + a * bend + math.fsum(float((part.gradient(z + a * s) * s).sum()) for part, z, s in terms)
        )

    low, high, a = 0.0, math.inf, 1.0
    first = slope(0.0)
    low_slope, high_slope = first, math.inf
    for _ in range(30):
        new = slope(a)
        if abs(new) <= 0.1 * abs(first):
            break
        if new < 0:
            low, low_slope = a, new
        else:
            high, high_slope = a, new
        if math.isinf(high):
            a *= 2.0
        else:  # the secant, kept away from the ends
            secant = low - low_slope * (high - low) / (high_slope - low_slope)
            a = min(max(secant, low + 0.1 * (high - low)), high - 0.1 * (high - low))
    moved = W + a * step
    scores = [z + a * s for z, s in zip(Z, along, strict=True)]
    after = problem.loss_value(scores) + problem.norms(moved)
    return (moved, scores, after) if after < value else None
