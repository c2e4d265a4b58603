r"""Signals with given coefficients, found by descent: :math:`\min_y\|Sy-s\|^2`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theodolite.optim.lbfgs import minimize
from theodolite.value import Value

__all__ = ["Synthesis", "synthesize"]


class _Reached(Exception):  # noqa: N818  (no error: the tolerance is met)
    pass


@dataclass(frozen=True)
class Synthesis:
    """A signal made to have given coefficients.

    Attributes
    ----------
    x : Tensor
        The best signal that was met.
    residual : Value
        Relative distance of its coefficients from the given ones: exact.  A small one does not make the signal the one that
        the coefficients came from: others have them too, shifted ones among them.
    history : list of float
        Relative distance at every evaluation.
    interrupted : bool
        Whether it was ended by an interrupt.
    """

    x: Tensor
    residual: Value
    history: list[float]
    interrupted: bool


def synthesize(
    transform: nn.Module | Callable[[Tensor], Tensor],
    target: Tensor,
    shape: Sequence[int],
    *,
    start: Tensor | None = None,
    steps: int = 200,
    tol: float = 1e-3,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> Synthesis:
    """Return a signal whose coefficients are close to given ones, by L-BFGS from noise.

    Parameters
    ----------
    transform : Module or callable
        From signals to one tensor, differentiable.
    target : Tensor
        Coefficients, finite and not all zero; real or complex.
    shape : sequence of int
        Of the signal, with any leading sizes that the target has.
    start : Tensor, optional
        Of that shape; by default white noise, scaled so that its coefficients have the target's size.
    steps : int
        Steps of descent, at most.
    tol : float
        Relative distance at which it stops.
    seed : int
        Of the noise.
    callback : callable, optional
        Called with the number of evaluations so far and the relative distance after each.

    Returns
    -------
    Synthesis

    Raises
    ------
    ValueError
        If shapes do not fit, the target is zero or not finite, or `steps` is not positive.

    Notes
    -----
    An interrupt ends it with the best signal so far.

    References
    ----------
    Bruna and Mallat, Mathematical Statistics and Learning 1(3), 2018.
    """
    size = float(target.detach().abs().square().sum().sqrt())
    if not 0.0 < size < math.inf:
        raise ValueError(f"target: expected finite coefficients that are not all zero, got norm {size}")
    if steps < 1:
        raise ValueError(f"steps: expected a positive number, got {steps}")
    if start is not None and tuple(start.shape) != tuple(shape):
        raise ValueError(f"start: expected shape {tuple(shape)}, got {tuple(start.shape)}")
    y = _noise(transform, target, shape, size, seed) if start is None else start.detach().clone()
    with torch.no_grad():
        found = transform(y)
    if not isinstance(found, Tensor) or found.shape != target.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"target: expected the shape that the transform makes of {tuple(shape)}, {got}, got {tuple(target.shape)}"
        )
    history: list[float] = []
    best, best_y = math.inf, y.clone()

    def loss(point: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
        nonlocal best, best_y
        at = point[0].to(y.dtype).requires_grad_()
        value = (transform(at) - target).abs().square().sum() / size**2
        (slope,) = torch.autograd.grad(value, at)
        distance = math.sqrt(float(value.detach()))
        history.append(distance)
        if distance < best:
            best, best_y = distance, at.detach().clone()
        if callback is not None:
            callback(len(history), distance)
        if best <= tol:
            raise _Reached
        return float(value.detach()), (slope.double(),)

    interrupted = False
    try:
        with suppress(_Reached):
            minimize(loss, (y.double(),), ftol=0.0, gtol=0.0, max_iterations=steps)
    except KeyboardInterrupt:
        interrupted = True
    with torch.no_grad():
        rest = float((transform(best_y) - target).abs().square().sum().sqrt()) / size
    precision = (
        "" if target.dtype.to_real() == torch.float64 else f", in {str(target.dtype).removeprefix('torch.')}"
    )
    note = f"after {len(history)} evaluations{precision}; the signal with these coefficients is not unique"
    return Synthesis(best_y, Value.exact(rest, note=note), history, interrupted)


def _noise(
    transform: Callable[[Tensor], Tensor], target: Tensor, shape: Sequence[int], size: float, seed: int
) -> Tensor:
    """Return white noise whose coefficients have a given norm."""
    dtype = target.dtype.to_real()
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise.to(target.device, dtype)
    with torch.no_grad():
        its = float(transform(noise).abs().square().sum().sqrt())
    return noise * (size / its) if its else noise
