r"""Signals on grids read at displaced points: :math:`L_\tau x(u)=x(u-\tau(u))`, differentiable in both.

Three interpolants: the trigonometric one (the periodic one of least degree, exact for band-limited
signals), the piecewise linear one and Keys' piecewise cubic one.  All read a sample where the
displacement is an integer, so that no displacement is exactly the identity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["fourier", "bilinear", "cubic"]
Boundary = Literal["periodic", "reflect", "zero"]
MOST_POSITIONS = 2**16
_CHUNK = 2**20  # entries of an intermediate result of trigonometric interpolation: what caches hold


def warp(
    x: Tensor,
    tau: Tensor,
    dimensions: int,
    interpolation: Interpolation = "fourier",
    boundary: Boundary = "periodic",
) -> Tensor:
    r"""Return :math:`x(u-\tau(u))` at every grid point u.

    Parameters
    ----------
    x : Tensor, shape (..., channels, n_1, ..., n_d)
        Real signals; one alone may lack the dimension of channels.
    tau : Tensor, shape (d, n_1, ..., n_d) or (..., d, n_1, ..., n_d)
        Displacements in samples: one for all, or one for each of the leading dimensions of ``x``.
    dimensions : {1, 2, 3}
        d.
    interpolation : {"fourier", "bilinear", "cubic"}
        "fourier" sums all samples for every point: exact, at a cost of the square of their number.
        For an even number its highest frequency is a cosine.  "bilinear" is linear along each axis,
        "cubic" the interpolant of Keys.
    boundary : {"periodic", "reflect", "zero"}
        What stands beyond the border: the signal again, its mirror image (the border sample twice),
        or, not for "fourier", zeros.

    Returns
    -------
    Tensor, shape and dtype as ``x``
        Differentiable in ``x`` and in ``tau``.

    Raises
    ------
    ValueError
        If an argument does not fit, or "fourier" were to sum over more than 65,536 samples.

    References
    ----------
    R. G. Keys, "Cubic convolution interpolation for digital image processing", IEEE Trans. Acoustics,
    Speech, and Signal Processing 29 (1981).
    """
    d = dimensions
    _check(x, tau, d, interpolation, boundary)
    sizes = x.shape[-d:]
    leading = tau.shape[: -d - 1]
    signals = x.reshape(math.prod(leading), -1, *sizes)  # with one field for all, batch and channels are one
    moves = tau.reshape(len(signals), d, math.prod(sizes))
    moves = moves.to(torch.promote_types(tau.dtype, torch.float32))
    work = torch.promote_types(x.dtype, torch.float32)
    read = _read_waves if interpolation == "fourier" else _read_neighbors
    return read(signals.to(work), moves, interpolation, boundary).to(x.dtype).reshape(x.shape)


def _check(x: Tensor, tau: Tensor, d: int, interpolation: str, boundary: str) -> None:
    if interpolation not in ("fourier", "bilinear", "cubic"):
        raise ValueError(f"interpolation: expected 'fourier', 'bilinear' or 'cubic', got {interpolation!r}")
    if boundary not in ("periodic", "reflect", "zero"):
        raise ValueError(f"boundary: expected 'periodic', 'reflect' or 'zero', got {boundary!r}")
    if interpolation == "fourier" and boundary == "zero":
        raise ValueError(
            "boundary: expected 'periodic' or 'reflect' with interpolation 'fourier', got 'zero'"
        )
    if d not in (1, 2, 3):
        raise ValueError(f"dimensions: expected 1, 2 or 3, got {d!r}")
    field = (d, *x.shape[x.ndim - d :])
    if (
        x.ndim < d
        or 0 in x.shape
        or tuple(tau.shape) not in (field, (*x.shape[: max(0, x.ndim - d - 1)], *field))
    ):
        raise ValueError(
            f"tau: expected shape {field}, or that after x's dimensions before the channels, "
            f"got {tuple(tau.shape)} for x of shape {tuple(x.shape)}"
        )
    for name, tensor in (("x", x), ("tau", tau)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected real numbers, got dtype {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    positions = math.prod(x.shape[-d:])
    if interpolation == "fourier" and positions > MOST_POSITIONS:
        raise ValueError(
            f"x: 'fourier' sums over all samples for every point and takes at most {MOST_POSITIONS:,}, "
            f"got {positions:,}; use interpolation='cubic'"
        )


def _read_waves(x: Tensor, tau: Tensor, interpolation: str, boundary: str) -> Tensor:
    """Read the trigonometric interpolant, shapes (B, C, n_1, ..., n_d) and (B, d, N) to (B, C, N)."""
    sizes = x.shape[2:]
    index = torch.stack(torch.meshgrid(*[torch.arange(n, device=x.device) for n in sizes], indexing="ij"))
    index = index.flatten(1)
    rows = max(1, _CHUNK // (len(x) * max(x.shape[1] * math.prod(sizes[1:]), sum(sizes))))
    lines = x.transpose(1, 2).flatten(2)
    parts = []
    for first in range(0, index.shape[1], rows):
        part = slice(first, first + rows)
        weights = [
            trigonometric_weights(n, index[a, part], tau[:, a, part], boundary).to(x)
            for a, n in enumerate(sizes)
        ]
        total = torch.matmul(weights[0], lines).unflatten(2, x.shape[1:2] + sizes[1:])
        for weight in reversed(weights[1:]):
            shape = (*weight.shape[:2], *[1] * (total.ndim - 3), -1)
            total = (total * weight.view(shape)).sum(-1)
        parts.append(total.transpose(1, 2))
    return torch.cat(parts, 2)


def trigonometric_weights(n: int, index: Tensor, tau: Tensor, boundary: str = "periodic") -> Tensor:
    r"""Return the weights of n samples in their trigonometric interpolant at the points index - tau.

    Parameters
    ----------
    n : int
        Samples at 0, ..., n - 1.  The weight of one at a distance t is :math:`\sin(\pi t)/(n\sin(\pi t/n))`,
        for even n times :math:`\cos(\pi t/n)`.
    index : Tensor, shape (P,), integers
        Grid points.
    tau : Tensor, shape (..., P)
        Displacements; where one is an integer the weights are exactly 0 and 1.
    boundary : {"periodic", "reflect"}
        With "reflect" the signal of period 2 n that the samples and their mirror images make.

    Returns
    -------
    Tensor, shape (..., P, n)
        Differentiable in ``tau``.
    """
    j = torch.arange(n, device=index.device)
    period = n if boundary == "periodic" else 2 * n
    whole = (-tau).detach().round()
    start = index + whole.long()
    table = _kernel(period, -tau - whole)

    def at(steps: Tensor) -> Tensor:
        return table.gather(-1, torch.remainder(steps + period // 2, period))

    direct = at(start[..., None] - j)
    # the mirror image of sample j stands at 2 n - 1 - j
    return direct if boundary == "periodic" else direct + at(start[..., None] + j + 1)


def _kernel(n: int, r: Tensor) -> Tensor:
    """Return the kernel of period n at the points c + r, c = -(n // 2), ..., for r in [-1/2, 1/2]."""
    c = torch.arange(n, device=r.device, dtype=r.dtype) - n // 2
    c = c[c != 0]
    sign = torch.where(c % 2 == 0, 1.0, -1.0).to(r)
    turn = (math.pi / n) * r[..., None]
    # sines of sums from those of their terms: tables of n + P sines, not of n P
    sines, cosines = torch.sin(math.pi / n * c), torch.cos(math.pi / n * c)
    sine = sines * torch.cos(turn) + cosines * torch.sin(turn)
    away = sign * (torch.sin(math.pi * r) / n)[..., None] / sine
    at = (torch.sinc(r) / torch.sinc(r / n))[..., None]
    if n % 2 == 0:
        away = away * (cosines * torch.cos(turn) - sines * torch.sin(turn))
        at = at * torch.cos(turn)
    return torch.cat([away[..., : n // 2], at, away[..., n // 2 :]], -1)


def _read_neighbors(x: Tensor, tau: Tensor, interpolation: str, boundary: str) -> Tensor:
    """Read a local interpolant, shapes (B, C, n_1, ..., n_d) and (B, d, N) to (B, C, N)."""
    B, C, *sizes = x.shape
    index = torch.stack(torch.meshgrid(*[torch.arange(n, device=x.device) for n in sizes], indexing="ij"))
    axes: list[list[tuple[Tensor, Tensor]]] = []
    for a, n in enumerate(sizes):
        whole = (-tau[:, a]).detach().floor()
        t = (-tau[:, a] - whole).to(x.dtype)
        low = index[a].flatten() + whole.long()
        axes.append([_placed(low + k, w, n, boundary) for k, w in _taps(t, interpolation)])
    flat = x.flatten(2)
    result = torch.zeros_like(flat)
    for corner in itertools.product(*axes):
        place, weight = torch.zeros_like(corner[0][0]), torch.ones_like(corner[0][1])
        for (i, w), n in zip(corner, sizes, strict=True):
            place, weight = place * n + i, weight * w
        result = result + weight[:, None] * flat.gather(2, place[:, None].expand(B, C, -1))
    return result


def _taps(t: Tensor, interpolation: str) -> Sequence[tuple[int, Tensor]]:
    """Return the neighbors that are read at a point t in [0, 1) beyond a sample, with their weights."""
    if interpolation == "bilinear":
        return (0, 1.0 - t), (1, t)
    return (
        (-1, ((2.0 - t) * t - 1.0) * t / 2.0),
        (0, ((3.0 * t - 5.0) * t * t + 2.0) / 2.0),
        (1, ((4.0 - 3.0 * t) * t + 1.0) * t / 2.0),
        (2, (t - 1.0) * t * t / 2.0),
    )


def _placed(at: Tensor, weight: Tensor, n: int, boundary: str) -> tuple[Tensor, Tensor]:
    """Return where a sample beyond the border is read, and its weight."""
    if boundary == "zero":
        return at.clamp(0, n - 1), torch.where((at >= 0) & (at < n), weight, 0.0)
    if boundary == "periodic":
        return at.remainder(n), weight
    folded = at.remainder(2 * n)
    return torch.minimum(folded, 2 * n - 1 - folded), weight
