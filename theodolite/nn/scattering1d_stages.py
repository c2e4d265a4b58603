"""One stage of the scattering of signals: what a wavelet keeps of a spectrum, its modulus on a coarse grid, and averages.

Frequencies are counted in steps of the padded grid, which are those of every coarser one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Low", "Wavelet", "averages", "between", "low_pass", "moduli", "wavelet"]

_NEGLIGIBLE = {torch.float32: 1e-9, torch.float64: 1e-17}  # of a filter's largest value


@dataclass(frozen=True)
class Wavelet:
    """The part of a filter that is not negligible.

    Attributes
    ----------
    start : int
        Its first frequency, which may be negative.
    values : Tensor, shape (2 length,)
        Every value twice, for real and imaginary parts.
    """

    start: int
    values: Tensor

    @property
    def stop(self) -> int:
        """The frequency after the last."""
        return self.start + len(self.values) // 2


@dataclass(frozen=True)
class Low:
    """The part of a low-pass that is not negligible.

    Attributes
    ----------
    values : Tensor, shape (length,)
        At frequencies 0, 1, ...
    size : int
        Length of a grid that holds it.
    """

    values: Tensor
    size: int


def wavelet(row: Tensor, scale: float, dtype: torch.dtype, device: torch.device) -> Wavelet:
    """Return a filter (n,), times a factor, without the widest gap in which it is negligible."""
    n, sizes = len(row), row.abs()
    places = (sizes > _NEGLIGIBLE[dtype] * sizes.max()).nonzero()[:, 0]
    if not len(places):
        places = torch.zeros(1, dtype=torch.long)
    gaps = torch.diff(places, append=places[:1] + n)
    widest = int(gaps.argmax())
    stop = int(places[widest]) + 1
    start = stop + int(gaps[widest]) - 1 - n
    if start + stop > n:  # twice its center: of what is the same modulo n, the lowest that is not below zero
        start, stop = start - n, stop - n
    if start + stop < 0:
        start, stop = start + n, stop + n
    values = row[torch.arange(start, stop) % n] * scale
    return Wavelet(start, values.repeat_interleave(2).to(device, dtype))


def low_pass(row: Tensor, size: int, scale: float, dtype: torch.dtype, device: torch.device) -> Low:
    """Return half of a symmetric low-pass (n,), times a factor, for the shortest grid that holds it: size, 2 size, ..."""
    n = len(row)
    half = row[: n // 2 + 1]
    length = int((half.abs() > _NEGLIGIBLE[dtype] * half.abs().max()).nonzero()[-1]) + 1
    while size < n and length > (size + 1) // 2:
        size *= 2
    return Low((half[:length] * (scale * size / n)).to(device, dtype), size)


def between(U: Tensor, half: Tensor | None, start: int, stop: int) -> Tensor:
    """Return the spectrum of signals (..., n) from one frequency to another, given half of it if they are real."""
    n = U.shape[-1]
    if half is not None and -(n // 2) <= start and stop <= n:
        parts = []
        if start < 0:
            parts.append(half[..., 1 - min(stop, 0) : 1 - start].flip(-1).conj())
        parts.append(half[..., max(start, 0) : max(stop, 0)])
        if stop > n // 2 + 1:
            parts.append(half[..., n - stop + 1 : n - max(start, n // 2 + 1) + 1].flip(-1).conj())
    else:
        whole = torch.fft.fft(U)
        periods = range(start // n, -(-stop // n))
        parts = [whole[..., max(start - p * n, 0) : min(stop - p * n, n)] for p in periods]
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def moduli(spectrum: Tensor, start: int, wavelets: Sequence[Wavelet], size: int) -> Tensor:
    """Return the moduli (b, p, wavelets, size) of what wavelets make of spectra (b, p, frequencies) from `start` on."""
    found = []
    for one in wavelets:
        part = spectrum[..., one.start - start : one.stop - start]
        product = torch.view_as_real(part).flatten(-2) * one.values
        folds = -(-product.shape[-1] // (2 * size))
        product = pad(product, (0, 2 * size * folds - product.shape[-1]))
        found.append(product.unflatten(-1, (folds, 2 * size)).sum(-2) if folds > 1 else product)
    together = torch.stack(found, -2) if len(found) > 1 else found[0].unsqueeze(-2)
    del found
    values = torch.fft.ifft(torch.view_as_complex(together.unflatten(-1, (size, 2))))
    if values.requires_grad:
        return values.abs()  # its derivative at zero is zero, that of a root of squares is not defined
    squares = torch.view_as_real(values).square_()
    return (squares[..., 0] + squares[..., 1]).sqrt_()  # a third of the time of a complex modulus


def averages(half: Tensor, kept: Low, cells: slice, count: int) -> Tensor:
    """Return averages of real signals, given half of their spectra: those of `count` that lie within the signal."""
    step = kept.size // count
    values = torch.fft.irfft(half[..., : len(kept.values)] * kept.values, kept.size)
    return values[..., cells.start * step : (cells.stop - 1) * step + 1 : step]
