r"""What deformations do to a network: relative stability, slopes, and the worst one that ascent finds.

Every image gets fields of its own, so that pairs of an image and a field are independent and intervals
over images cover what is drawn.  Networks are copied and run in evaluation mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.analysis.deformation_draws import (
    draw_coefficients,
    max_entropy_coefficients,
    squared_frequencies,
    temperature_for,
)
from theodolite.analysis.deformation_norms import displacements, norm_at, scaled_to
from theodolite.analysis.sample_mean import mean_of
from theodolite.analysis.warping import Interpolation, warp
from theodolite.value import Value


def relative_stability(
    model: nn.Module,
    x: Tensor,
    *,
    displacement: float = 1.0,
    cut: int = 3,
    fields: int = 4,
    resamples: int = 1000,
    confidence: float = 0.95,
    interpolation: Interpolation = "fourier",
    batch_size: int = 64,
    seed: int = 0,
) -> Value:
    r"""Return :math:`R_f`, how far deformations move the output beside noise that moves the input as far.

    :math:`R_f=\langle\|f(L_\tau x)-f(x)\|^2\rangle_{x,\tau}/\langle\|f(x+\eta)-f(x)\|^2\rangle_{x,\eta}` with
    max-entropy fields :math:`\tau` and noise of uniform direction and :math:`\|\eta\|=\langle\|L_\tau x-x\|\rangle`.

    Parameters
    ----------
    model : nn.Module
        Maps (n, channels, n_1, ..., n_d) to (n, ...); it is not changed.
    x : Tensor, shape (n, channels, n_1, ..., n_d)
        At least two sequences, images or volumes.
    displacement : float
        Root mean squared displacement of the fields, in pixels.
    cut : int
        Cut of the fields' frequencies.
    fields : int
        Fields, and draws of noise, for each image.
    resamples : int
        Of the bootstrap.
    confidence : float
        Of the interval.
    interpolation : {"fourier", "bilinear", "cubic"}
        See :func:`theodolite.analysis.warping.warp`; the boundary is periodic.
    batch_size : int
        Images a forward pass.
    seed : int
        Of every draw.

    Returns
    -------
    Value
        An estimate with the bootstrap's interval over images (the size of the noise is held fixed); its
        witness holds both mean squares and the size of the noise.  Absent where noise does not move the output.

    Raises
    ------
    ValueError
        If the inputs are not at least two real sequences, images or volumes.

    References
    ----------
    Petrini, Favero, Geiger and Wyart, Relative stability toward diffeomorphisms indicates performance in
    deep nets, NeurIPS 2021, arXiv 2105.02468.
    """
    _dimensions(x)
    if len(x) < 2:
        raise ValueError(f"x: expected at least two samples for an interval over them, got {len(x)}")
    for name, count in (("fields", fields), ("resamples", resamples), ("batch_size", batch_size)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if not 0.0 < displacement < math.inf:
        raise ValueError(f"displacement: expected a positive number of pixels, got {displacement}")
    network = frozen(model)
    sizes = tuple(x.shape[2:])
    generator = torch.Generator().manual_seed(seed)
    temperature = temperature_for(displacement, sizes, cut)
    drawn = max_entropy_coefficients(sizes, cut, temperature, fields * len(x), generator)
    drawn = drawn.unflatten(0, (fields, len(x)))
    moved = [deformed(x, coefficients, interpolation) for coefficients in drawn]
    size = float(torch.stack([norms(other - x) for other in moved]).mean())
    base = outputs(network, x, batch_size)
    deformation, noise = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    for other in moved:
        deformation += norms(outputs(network, other, batch_size) - base).square() / fields
        noisy = x + noise_like(x, torch.full((len(x),), size, dtype=torch.float64), generator)
        noise += norms(outputs(network, noisy, batch_size) - base).square() / fields
    witness: dict[str, Any] = {
        "deformation": float(deformation.mean()),
        "noise": float(noise.mean()),
        "noise_norm": size,
    }
    if not witness["noise"] > 0.0:
        return Value.absent(witness, note="noise of the deformations' size does not move the output")
    rows = torch.randint(len(x), (resamples, len(x)), generator=generator)
    ratios = deformation[rows].sum(1) / noise[rows].sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    tail = (1.0 - confidence) / 2.0
    ratio = witness["deformation"] / witness["noise"]
    return Value.estimate(
        ratio,
        min(ratio, float(ratios.quantile(tail))),
        max(ratio, float(ratios.quantile(1.0 - tail))),
        confidence=confidence,
        witness=witness,
        note=f"{len(x):,} inputs, {fields} fields each, of displacement {displacement:g} pixels and cut {cut}; "
        "bootstrap over inputs",
    )


@dataclass(frozen=True, eq=False)
class Response:
    r"""What deformations of one size do to a network.

    Attributes
    ----------
    grad_inf : float
        Largest :math:`\|\nabla\tau\|_\infty`; each field's is this to a relative 1e-6.
    coefficients : Tensor, shape (n, d, K, ..., K)
        Of the sine fields, one for each input.
    change : Tensor, shape (n,), float64
        |f(L_tau x) - f(x)|.
    moved : Tensor, shape (n,), float64
        |L_tau x - x|, over the pixels.
    """

    grad_inf: float
    coefficients: Tensor
    change: Tensor
    moved: Tensor


def respond(
    network: nn.Module,
    x: Tensor,
    unit: Tensor,
    grad_inf: float,
    interpolation: Interpolation = "fourier",
    batch_size: int = 64,
) -> Response:
    """Deform every input by a field of its own and measure what the output makes of it.

    Parameters
    ----------
    network : nn.Module
        From :func:`frozen`.
    x : Tensor, shape (n, channels, n_1, ..., n_d)
        Inputs.
    unit : Tensor, shape (n, d, K, ..., K)
        Sine fields of gradient 1, from :func:`unit_fields`.
    grad_inf : float
        The size to which they are scaled.
    interpolation : {"fourier", "bilinear", "cubic"}
        Of the warp.
    batch_size : int
        Inputs a forward pass.
    """
    scaled = unit * grad_inf
    other = deformed(x, scaled, interpolation)
    change = norms(outputs(network, other, batch_size) - outputs(network, x, batch_size))
    return Response(grad_inf, scaled, change, norms(other - x))


def unit_fields(x: Tensor, coefficients: Tensor) -> Tensor:
    """Scale each sine field so that the certified upper end of its gradient's norm is 1."""
    return scaled_to(tuple(x.shape[2:]), coefficients, "sine", {"grad_inf": 1.0})


def ascend(
    network: nn.Module,
    x: Tensor,
    coefficients: Tensor,
    grad_inf: float,
    *,
    steps: int = 20,
    interpolation: Interpolation = "fourier",
) -> Tensor:
    r"""Climb from given fields to ones that move the output more.

    Normalized gradient steps on the fields' coefficients, weighted so that all frequencies have gradients
    of one size; the field is scaled to the constraint inside of what is climbed.

    Parameters
    ----------
    network : nn.Module
        From :func:`frozen`; inputs of a batch do not mix.
    x : Tensor, shape (n, channels, n_1, ..., n_d)
        Inputs.
    coefficients : Tensor, shape (n, d, K, ..., K)
        Where to start, one sine field for each input.
    grad_inf : float
        The constraint on the gradient.
    steps : int
        Gradient steps.
    interpolation : {"fourier", "bilinear", "cubic"}
        Of the warp.

    Returns
    -------
    Tensor, shape as ``coefficients``
        The best ones seen, no worse than the start up to the grid's error in the constraint.
    """
    sizes = tuple(x.shape[2:])
    d, cut = len(sizes), coefficients.shape[-1]
    weight = squared_frequencies(d, cut).rsqrt()
    points = {1: 16, 2: 5, 3: 3}[d] * cut
    lines = [(torch.arange(points, dtype=torch.float64) + 0.5) * (n / points) - 0.5 for n in sizes]
    with torch.no_grad():
        base = network(x)
    at = coefficients / weight
    at = at / _sizes(at, d)
    best, highest = coefficients, torch.full((len(x),), -1.0, dtype=torch.float64)
    momentum = torch.zeros_like(at)
    for step in range(steps + 1):
        at = at.detach().requires_grad_()
        with torch.enable_grad():
            current = at * weight
            norm = norm_at("grad_inf", sizes, current, "sine", lines).amax(1)
            current = current * (grad_inf / norm).view(-1, *[1] * (d + 1))
            change = (network(deformed(x, current, interpolation)) - base).flatten(1).double().square().sum(1)
            slope = None
            if change.requires_grad:
                (slope,) = torch.autograd.grad(change.sum(), at, allow_unused=True)
        better = change.detach().cpu() > highest
        highest = torch.where(better, change.detach().cpu(), highest)
        best = torch.where(better.view(-1, *[1] * (d + 1)), current.detach(), best)
        if slope is None or not bool(torch.isfinite(slope).all()):
            break
        momentum = 0.7 * momentum + slope / _sizes(slope, d)
        pace = 0.5 * (1.0 - step / (steps + 1.0))
        at = at.detach() + pace * momentum / _sizes(momentum, d)
        at = at / _sizes(at, d)
    return best


def deformation_slope(
    model: nn.Module,
    x: Tensor,
    grad_inf: float | Sequence[float] = (0.02, 0.05, 0.1),
    *,
    cut: int = 3,
    steps: int = 20,
    interpolation: Interpolation = "fourier",
    batch_size: int = 64,
    seed: int = 0,
) -> dict[float, dict[str, Value]]:
    r"""Return how steeply a network's output moves with the gradient of a deformation, at several sizes.

    Parameters
    ----------
    model : nn.Module
        Maps (n, channels, n_1, ..., n_d) to (n, ...); it is not changed.
    x : Tensor, shape (n, channels, n_1, ..., n_d)
        Sequences, images or volumes.
    grad_inf : float or sequence of float
        Sizes :math:`\|\nabla\tau\|_\infty`.
    cut : int
        Cut of the sine fields' frequencies.
    steps : int
        Gradient steps of the ascent, 0 for none.
    interpolation : {"fourier", "bilinear", "cubic"}
        Of the warp; the boundary is periodic.
    batch_size : int
        Inputs a forward pass.
    seed : int
        Of the fields, one for each input.

    Returns
    -------
    dict of float to dict of str to Value
        For each size ``mean``, the mean of :math:`\|f(L_\tau x)-f(x)\|/\|\nabla\tau\|_\infty` over inputs and random
        fields with Student's interval, and ``worst``, a lower bound of its supremum over the fields with the
        cut: the largest that ascent found.  It certifies nothing from above.

    Raises
    ------
    ValueError
        If the inputs are not real sequences, images or volumes, or a size is not in (0, 1).
    """
    d = _dimensions(x)
    scales = [float(g) for g in (grad_inf if isinstance(grad_inf, Sequence) else [grad_inf])]
    if not scales or not all(0.0 < g < 1.0 for g in scales):
        raise ValueError(f"grad_inf: expected numbers in (0, 1), got {grad_inf}")
    if steps < 0 or batch_size < 1:
        raise ValueError(f"steps, batch_size: expected at least 0 and 1, got {steps} and {batch_size}")
    network = frozen(model)
    drawn = draw_coefficients(d, cut, len(x), torch.Generator().manual_seed(seed), decay=True)
    unit = unit_fields(x, drawn)
    found: dict[float, dict[str, Value]] = {}
    for scale in scales:
        typical = respond(network, x, unit, scale, interpolation, batch_size)
        largest = typical.change.max()
        if steps:
            climbed = torch.cat(
                [
                    ascend(network, part, start, scale, steps=steps, interpolation=interpolation)
                    for part, start in zip(x.split(batch_size), unit.split(batch_size), strict=True)
                ]
            )
            worst = respond(network, x, unit_fields(x, climbed), scale, interpolation, batch_size)
            largest = torch.maximum(largest, worst.change.max())
        rounding = math.sqrt(torch.finfo(x.dtype).eps) * float(norms(outputs(network, x, batch_size)).max())
        found[scale] = {
            "mean": mean_of(
                typical.change / scale,
                rounding=rounding / scale,
                what=f"{len(x):,} inputs, a random field of gradient {scale:g} and cut {cut} each",
            ),
            "worst": Value.bound(
                lower=float(largest) / scale,
                note=f"largest found by ascent over fields of gradient at most {scale:g} and cut {cut} "
                f"on {len(x):,} inputs; from inside, it bounds nothing from above",
            ),
        }
    return found


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, without trainable parameters."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def outputs(network: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    """Return a network's outputs, shape (n, ...), without gradients."""
    with torch.no_grad():
        return torch.cat([network(part) for part in x.split(batch_size)])


def norms(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample, shape (n,), float64, on the CPU."""
    return x.detach().double().flatten(1).norm(dim=1).cpu()


def deformed(x: Tensor, coefficients: Tensor, interpolation: Interpolation = "fourier") -> Tensor:
    """Return every input deformed by a sine field of its own, differentiable in the coefficients."""
    d = x.ndim - 2
    tau = displacements(tuple(x.shape[2:]), coefficients, "sine").to(x.device)
    return warp(x, tau, d, interpolation)


def noise_like(x: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise of uniform direction and the given norm for each sample, shape as ``x``."""
    drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    scale = size / drawn.flatten(1).norm(dim=1)
    return (drawn * scale.view(-1, *[1] * (x.ndim - 1))).to(x)


def _dimensions(x: Tensor) -> int:
    if not x.is_floating_point() or x.ndim not in (3, 4, 5) or 0 in x.shape:
        raise ValueError(
            "x: expected real sequences, images or volumes of shape (n, channels, n_1, ..., n_d), "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    return x.ndim - 2


def _sizes(values: Tensor, d: int) -> Tensor:
    return values.flatten(1).norm(dim=1).clamp(min=1e-300).view(-1, *[1] * (d + 1))
