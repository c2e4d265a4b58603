"""What a few Hessian products prove: one-sided bounds of the spectrum, and whether the products are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.analysis.hessian import NotDifferentiable, SampleCost, TrainingObjective
from theodolite.linalg.lanczos import lanczos

# Work is counted in flops of one forward pass (SampleCost.work); a product costs about six.
STEPS, FEWER_STEPS, FEWEST_STEPS = 30, 20, 10
LANCZOS_WORK = 1e11  # all products together, some 20 s on two cores
DOUBLE_WORK = 2e10  # up to here everything is done in float64, which is several times slower
FEWEST_SAMPLES = 4
BASIS_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """How many samples and Lanczos steps a Hessian gets, and whether they are done in float64."""

    samples: int
    steps: int
    double: bool


def plan(cost: SampleCost, size: int, n: int) -> Plan:
    """Return a plan of bounded work and memory, the same on every machine.

    Parameters
    ----------
    cost : SampleCost
        Of one sample.
    size : int
        Number of parameters; a basis of fewer than two vectors means it is too large.
    n : int
        Number of samples that there are.
    """
    samples, steps = n, STEPS
    if n * STEPS * cost.work > LANCZOS_WORK:
        steps = FEWER_STEPS if 2 * FEWEST_SAMPLES * FEWER_STEPS * cost.work <= LANCZOS_WORK else FEWEST_STEPS
        samples = min(n, max(FEWEST_SAMPLES, int(LANCZOS_WORK / (steps * cost.work))))
    double = samples * steps * cost.work <= DOUBLE_WORK and 8 * size * steps <= BASIS_BYTES // 4
    return Plan(samples, min(steps, BASIS_BYTES // ((8 if double else 4) * size)), double)


@dataclass(frozen=True, slots=True)
class DerivativeCheck:
    """What difference quotients say about autograd's derivatives at a point.

    Attributes
    ----------
    kink : bool
        The quotients from the two sides differ: derivatives are autograd's choice there.
    first : str
        "" unless, at a point without a kink, autograd's first derivative is not the quotient.
    second : str
        "" unless autograd has no second derivative, or one that is not symmetric or not the quotient
        of its first.
    """

    kink: bool
    first: str = ""
    second: str = ""


def check_derivatives(objective: TrainingObjective, generator: torch.Generator) -> DerivativeCheck:
    """Compare autograd with difference quotients along one random direction, and its Hessian with its transpose.

    Each parameter moves by about its own size times the step, so that a straight-through
    estimator, a detached branch or a backward formula that is wrong or cannot be
    differentiated again shows.  In float32 only the first derivative is compared with a quotient.

    Raises
    ------
    NotDifferentiable
        As :meth:`TrainingObjective.loss_gradient`.
    """
    point, direction = objective.point, _direction(objective, generator)
    step, loose = (1e-6, 1e-2) if point.dtype == torch.float64 else (1e-3, 1e-1)
    gradient = objective.gradient()
    slope = float(gradient @ direction.double())
    below, here, above = (objective.value(t * direction) for t in (-step, 0.0, step))
    rounding = 1e3 * torch.finfo(point.dtype).eps * (1.0 + abs(here)) / step
    backward, forward = (here - below) / step, (above - here) / step
    kink, middle = _differ(backward, forward, loose, rounding), 0.5 * (backward + forward)
    first = ""
    if not kink and _differ(middle, slope, loose, rounding):
        first = f"its first derivative along a random direction is {slope:.4g}, the quotient {middle:.4g}"
    try:
        other = _direction(objective, generator)
        image, image_of_other = objective.product(direction), objective.product(other)
    except NotDifferentiable as error:
        return DerivativeCheck(kink, first, str(error))
    across, back = float(image @ other), float(image_of_other @ direction)
    sizes = float(image.norm() * other.norm() + image_of_other.norm() * direction.norm())
    if _differ(across, back, 0.0, torch.finfo(point.dtype).eps ** 0.5 * sizes):
        wrong = (
            f"autograd's are not symmetric ({across:.4g} one way, {back:.4g} the other): a layer's are wrong"
        )
        return DerivativeCheck(kink, first, wrong)
    curved = float(image @ direction)
    if kink or first or point.dtype != torch.float64:
        return DerivativeCheck(kink, first)
    # so small that a piecewise linear model stays on its piece; the second, should the first cross a kink
    for step in (1e-9, 1e-10):
        change = objective.gradient(step * direction) - objective.gradient(-step * direction)
        quotient = float(change @ direction) / (2.0 * step)
        rounding = 1e3 * torch.finfo(torch.float64).eps * float(gradient.norm() * direction.norm()) / step
        if not _differ(quotient, curved, loose, rounding):
            return DerivativeCheck(kink)
    second = (
        f"autograd's along a random direction is {curved:.4g}, the quotient of gradients {quotient:.4g}; "
        "the objective is not twice differentiable at these weights, or the model changes its gradients"
    )
    return DerivativeCheck(kink, second=second)


def resolves(objective: TrainingObjective, generator: torch.Generator) -> bool:
    """Return whether the objective, in float64, follows relative changes of its parameters of 1e-8.

    It does not when a layer rounds to float32 inside.  Kinks do no harm: near one, the central
    quotients of two small steps agree.
    """
    direction = _direction(objective, generator)
    quotients = []
    for step in (1e-6, 1e-8):
        rise = objective.value(step * direction) - objective.value(-step * direction)
        quotients.append(rise / (2.0 * step))
    rounding = 1e3 * torch.finfo(torch.float64).eps * (1.0 + abs(objective.value())) / 1e-8
    return not _differ(quotients[0], quotients[1], 1e-1, rounding)


def _direction(objective: TrainingObjective, generator: torch.Generator) -> Tensor:
    """Return a random direction, shape (size,), along which each parameter moves by about its own size."""
    point = objective.point
    noise = torch.randn(len(point), generator=generator, dtype=torch.float64).to(point)
    scale = torch.cat([p.square().mean().sqrt().expand(p.numel()) for p in objective.split(point).values()])
    return noise * torch.where(scale > 0, scale, 1.0)


def _differ(a: float, b: float, relative: float, absolute: float) -> bool:
    return abs(a - b) > relative * max(abs(a), abs(b)) + absolute


@dataclass(frozen=True, slots=True)
class RitzBounds:
    """What a few Lanczos steps prove about the ends of a spectrum.

    Attributes
    ----------
    ritz_values : Tensor, shape (k,), float64
        Ascending; the i-th largest is at most the i-th largest eigenvalue, likewise below.
    top, smallest : float
        Extreme eigenvalues of the operator compressed to the two extreme Ritz vectors, evaluated anew:
        at most the largest eigenvalue, at least the smallest.
    second : float or None
        At most the second-largest eigenvalue: the second-largest Ritz value less 1000 roundings of
        the largest; None when there is a single Ritz value.
    residual : float
        ``||H v - top v||`` for the unit vector v of ``top``: some eigenvalue lies that near.
    negative : int
        Ritz values below -1000 roundings: at least so many eigenvalues are negative.
    steps : int
        Products that were made.
    """

    ritz_values: Tensor
    top: float
    second: float | None
    smallest: float
    residual: float
    negative: int
    steps: int


def ritz_bounds(
    product: Callable[[Tensor], Tensor],
    size: int,
    *,
    steps: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    evaluate: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RitzBounds:
    """Run Lanczos on a symmetric operator and evaluate the ends anew in float64.

    Parameters
    ----------
    product : function
        Maps (size,) of ``dtype`` to (size,).
    size : int
        Dimension.
    steps : int
        Products to make at most.
    generator : torch.Generator
        Source of the start, on the CPU.
    dtype, device
        Those of the basis; float32 halves its memory, and its rounding is then larger.
    evaluate : function, optional
        Maps rows (r, size) of float64 to their products, as exactly as can be; by default
        ``product``.  A Rayleigh quotient is a bound whatever rounding Lanczos suffered, as
        long as this product is right.
    progress : function(done, total), optional
        Called after each product.

    Raises
    ------
    ValueError
        If a product is not finite.
    """
    total = min(steps, size)
    start = torch.randn(size, generator=generator, dtype=dtype).to(device)

    def report(step: int, values: Tensor, residuals: Tensor) -> None:
        if progress is not None:
            progress(step, total)

    run = lanczos(product, size, steps=total, dtype=dtype, device=device, start=start, callback=report)
    ritz = run.ritz_values
    ends = sorted({0, len(ritz) - 1})
    rounding = 1e3 * torch.finfo(dtype).eps * float(ritz.abs().max())
    vectors = run.ritz_vectors(ends).T.double()
    del run  # the basis is the largest thing here, and is not needed any more
    images = _each(product, vectors, dtype) if evaluate is None else evaluate(vectors).double()
    # nearly orthonormal rows: their compression has the eigenvalues of L^-1 (V H V') L^-T, V V' = L L'
    factor = torch.linalg.cholesky((vectors @ vectors.T).cpu())
    small = torch.linalg.solve_triangular(factor, (vectors @ images.T).cpu(), upper=False)
    small = torch.linalg.solve_triangular(factor, small.T, upper=False)
    values, rotation = torch.linalg.eigh(0.5 * (small + small.T))
    weights = torch.linalg.solve_triangular(factor.T, rotation[:, -1:], upper=True)[:, 0].to(vectors)
    top = float(values[-1])
    return RitzBounds(
        ritz,
        top,
        float(ritz[-2]) - rounding if len(ritz) > 1 else None,
        float(values[0]),
        float(torch.linalg.vector_norm(weights @ images - top * (weights @ vectors))),
        int((ritz < -rounding).sum()),
        len(ritz),
    )


def _each(product: Callable[[Tensor], Tensor], vectors: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.stack([product(vector.to(dtype)).double() for vector in vectors])
