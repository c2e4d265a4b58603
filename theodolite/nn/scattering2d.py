r"""The scattering transform of images: cascades of wavelets and moduli, averaged.

.. math:: S_Jx = \big(x*\phi_J,\ |x*\psi_{\lambda_1}|*\phi_J,\ ||x*\psi_{\lambda_1}|*\psi_{\lambda_2}|*\phi_J,\ \dots\big)

for paths of increasing scale.  Each stage is kept on the coarsest grid that holds it.  What makes it fast: a modulus
follows each wavelet, so that its spectrum may be folded first and transformed back on the coarse grid; a spectrum is laid
out once so that what folds together lies apart, and all angles multiply it there; the last average is separable, hence
two small matrix products; and images are taken so many at a time that a stage stays in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from theodolite.linalg.lanczos import UP
from theodolite.nn.padding import PADDINGS, Padding, axis_copies, padded
from theodolite.nn.scattering_shared import check_counts, check_input, moderate, path_table, restored
from theodolite.nn.wavelet_families import FAMILIES, Family
from theodolite.nn.wavelets import Bank, Norm, folded
from theodolite.value import Value

__all__ = ["Scattering2D"]

_IMAGES = 3 << 16  # numbers of the first stage that are handled together, at most: it bounds the peak
_CHUNK = 15 << 14  # of any stage: they fit the cache
_TRANSFORMED = 1 << 16  # of them that are transformed back together: fewer, larger steps where maps are small
_NEGLIGIBLE = {
    torch.float32: 1e-9,
    torch.float64: 1e-17,
}  # of a filter's largest value: what folds in is left out
_Path = tuple[int, ...]  # numbers of its wavelets


@dataclass(frozen=True)
class _Filter:
    """One wavelet at one resolution: the parts of its spectrum that fold together and are not negligible.

    Attributes
    ----------
    parts : tuple of Tensor, each of shape (2 m n,)
        Every value twice, for real and imaginary parts.
    places : tuple of int
        Which of the step^2 parts they are.
    """

    parts: tuple[Tensor, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class _Tables:
    """What a transform multiplies by, in one precision on one device."""

    wavelets: dict[tuple[int, int], list[_Filter]]  # by resolution and scale
    averages: list[tuple[Tensor, Tensor]] | None  # by resolution, if the low-pass is separable
    lows: list[Tensor]  # by resolution, otherwise


class Scattering2D(nn.Module):
    r"""Scattering transform of images, in the order and with the values of Kymatio's class of this name.

    Parameters
    ----------
    J : int
        Averages are over about 2^J pixels, and one in 2^J is kept in each direction.
    shape : (int, int)
        Of the images.
    L : int
        Number of angles.
    max_order : {0, 1, 2, 3}
        Number of wavelets on a path, at most.
    pre_pad : bool
        Whether images come padded, to `padded_shape`.
    backend : {"torch"}
    out_type : {"array", "list"}
        A tensor, or a list of dictionaries with the keys "coef", "j", "n" and "theta".
    pad : {"reflect", "symmetric", "replicate", "zero", "periodic"}
        What images continue as.  "periodic" pads nothing where 2^J divides the shape, and shifts by 2^J pixels then shift
        the output by one: exactly.
    norm : {"reference", "B1", "tight"}
        As Kymatio's; or as in :meth:`theodolite.nn.wavelets.Bank.normalized`.
    wavelets : {"morlet", "gabor", "bump", "meyer"}
        Kymatio's; or those of :mod:`theodolite.nn.wavelet_families`, of which "meyer" loses nothing to subsampling: with
        periodic borders the transform is a contraction.

    Attributes
    ----------
    bank : Bank
        On the padded grid.
    padded_shape : (int, int)
    output_shape : (int, int)
        Of the averages.

    Raises
    ------
    ValueError
        If an argument is out of range: 2^J may not exceed the shape.

    Notes
    -----
    Filters have no place in the state: they follow from the arguments, and are computed in float64 whatever the input's
    precision.  Gradients are finite everywhere, that of a modulus at zero being zero.  ``torch.compile`` gives the same values
    and gains nothing: most of the time is in Fourier transforms, and stages have more shapes than it compiles for.

    References
    ----------
    Mallat, Communications on Pure and Applied Mathematics 65(10), 2012; Bruna and Mallat, TPAMI 35(8), 2013;
    Andreux et al., JMLR 21(60), 2020.

    Examples
    --------
    >>> import torch
    >>> Scattering2D(J=2, shape=(32, 32))(torch.zeros(3, 32, 32)).shape
    torch.Size([3, 81, 8, 8])
    """

    def __init__(
        self,
        J: int,
        shape: Sequence[int],
        L: int = 8,
        max_order: int = 2,
        pre_pad: bool = False,
        backend: str = "torch",
        out_type: Literal["array", "list"] = "array",
        *,
        pad: Padding = "reflect",
        norm: Norm = "reference",
        wavelets: Family = "morlet",
    ) -> None:
        super().__init__()
        check_counts(J=(J, 1), L=(L, 1), max_order=(max_order, 0))
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"shape: expected two positive integers, got {tuple(shape)}")
        if min(shape) < 2**J:
            raise ValueError(
                f"J: expected 2^J of at most {min(shape)}, the smaller side of the images, got 2^{J}"
            )
        if backend != "torch":
            raise ValueError(f"backend: expected 'torch', got {backend!r}")
        if out_type not in ("array", "list"):
            raise ValueError(f"out_type: expected 'array' or 'list', got {out_type!r}")
        if pad not in PADDINGS:
            raise ValueError(f"pad: expected one of {', '.join(map(repr, PADDINGS))}, got {pad!r}")
        if wavelets not in FAMILIES:
            raise ValueError(f"wavelets: expected one of {', '.join(map(repr, FAMILIES))}, got {wavelets!r}")
        self.J, self.shape, self.L = J, (int(shape[0]), int(shape[1])), L
        self.max_order, self.pre_pad, self.out_type, self.pad = max_order, pre_pad, out_type, pad
        self._whole = pad == "periodic" and not pre_pad and all(n % 2**J == 0 for n in self.shape)
        sides = [n if self._whole else ((n + 2**J) // 2**J + 1) * 2**J for n in self.shape]
        self.padded_shape = (sides[0], sides[1])
        cells = [n // 2**J - (0 if self._whole else 2) for n in sides]
        self.output_shape = (cells[0], cells[1])
        self.bank = FAMILIES[wavelets](self.padded_shape, J, L).normalized(norm)
        self._places = {path["n"]: place for place, path in enumerate(self.paths())}
        self._tables: dict[tuple[torch.dtype, torch.device], _Tables] = {}

    def forward(self, x: Tensor) -> Any:
        """Return the coefficients of images.

        Parameters
        ----------
        x : Tensor, shape (..., height, width)
            Float32, float64 or complex, finite.

        Returns
        -------
        Tensor, shape (..., paths, h, w), or list of dict
            Of the input's precision; complex for complex inputs, whose average is complex.

        Raises
        ------
        TypeError
            If x is no tensor of floating or complex numbers.
        ValueError
            If its last two sizes are others, or an entry is not finite.
        """
        expected = self.padded_shape if self.pre_pad else self.shape
        check_input(x, expected)
        images, exponent = moderate(x.reshape(-1, *expected))
        tables = self._table(images)
        step = max(1, _IMAGES // (math.prod(self.padded_shape) * self.L))
        if torch.is_grad_enabled() and images.requires_grad and len(images):
            found = torch.cat([self._differentiable(part, tables) for part in images.split(step)])
        else:
            found = images.new_empty(len(images), len(self), *self.output_shape)
            for start in range(0, len(images), step):
                rows = found[start : start + step]
                for values, places in self._coefficients(images[start : start + step], tables):
                    rows.index_copy_(1, places, values)
        found = restored(found, exponent).reshape(*x.shape[:-2], len(self), *self.output_shape)
        if self.out_type == "array":
            return found
        return [{"coef": found[..., i, :, :], **path} for i, path in enumerate(self.paths())]

    scattering = forward

    def __len__(self) -> int:
        """Return the number of paths."""
        return sum(math.comb(self.J, m) * self.L**m for m in range(self.max_order + 1))

    def paths(self) -> list[dict[str, tuple[int, ...]]]:
        """Return the scales "j", the angles "theta" and the numbers "n" of the wavelets of each path, in order."""
        found: list[list[tuple[int, ...]]] = [[()]]
        for _ in range(self.max_order):
            longer = []
            for path in found[-1]:
                first = path[-1] // self.L + 1 if path else 0
                longer += [(*path, n) for n in range(first * self.L, self.J * self.L)]
            found.append(longer)
        return [
            {"j": tuple(n // self.L for n in path), "n": path, "theta": tuple(n % self.L for n in path)}
            for order in found
            for path in order
        ]

    def meta(self) -> dict[str, NDArray[Any]]:
        """Return the paths as arrays: "order" (p,), and "j", "n" and "theta" (p, max_order), NaN where there is none."""
        paths = self.paths()
        tables = {
            key: path_table([path[key] for path in paths], self.max_order) for key in ("j", "n", "theta")
        }
        return {"order": np.array([len(path["n"]) for path in paths]), **tables}

    def lipschitz(self) -> Value:
        r"""Return a proved bound of :math:`2^J\|S x-S y\|/\|x-y\|` for real images.

        A stage whose bank has an upper frame bound B, on the grid that it works on and with its branches as they are
        subsampled, multiplies energies by B at most; those that wavelets pass on are multiplied by later ones.  Padding
        copies a pixel up to c times, which multiplies energies by c.  This is of the transform with the bank's filters in
        exact arithmetic; coefficients carry the rounding of their precision.

        Raises
        ------
        ValueError
            If images come padded: what was done to them is not known.
        """
        if self.pre_pad:
            raise ValueError("pre_pad: expected False for a Lipschitz constant, got True")
        copies = math.prod(
            int(axis_copies(n, m, self.pad)) for n, m in zip(self.shape, self.padded_shape, strict=True)
        )
        energy = self._stage(0, 0, self.max_order) * copies
        return Value.bound(
            0.0,
            math.sqrt(energy) * UP * UP,
            note=f"frame bounds of the subsampled banks, padding by {copies} copies; coefficients times 2^{self.J}",
        )

    def _stage(self, level: int, first: int, orders: int) -> float:
        """Return what energies at a resolution are multiplied by, at most, with so many orders to come."""
        scales = range(first, self.J if orders else first)
        low, high = self._low(level), [self._high(level, j) for j in scales]
        steps = tuple(1 << (j - level) for j in scales for _ in range(self.L))
        wavelets = torch.cat(high) if high else low.new_zeros(0, *low.shape)
        bank = Bank(low, wavelets, steps, 1 << (self.J - level))
        later = max((self._stage(j, j + 1, orders - 1) for j in scales), default=1.0)
        return bank.frame_bounds(subsampled=True).upper.high * max(1.0, later)

    def _low(self, level: int) -> Tensor:
        return _coarse(self.bank.low, level)

    def _high(self, level: int, j: int) -> Tensor:
        return _coarse(self.bank.high[j * self.L : (j + 1) * self.L], level)

    def _table(self, x: Tensor) -> _Tables:
        """Return the tables for inputs of a precision on a device; they are kept."""
        dtype = x.dtype.to_real()
        key = (dtype, x.device)
        if key not in self._tables:
            self._tables[key] = self._built(dtype, x.device)
        return self._tables[key]

    def _built(self, dtype: torch.dtype, device: torch.device) -> _Tables:
        wavelets: dict[tuple[int, int], list[_Filter]] = {}
        for level in range(self.J if self.max_order > 1 else 1):
            for j in range(level and level + 1, self.J):
                wavelets[level, j] = _filters(self._high(level, j), 1 << (j - level), dtype, device)
        low = self.bank.low
        rows = low[:, 0] / low[0, 0].sqrt(), low[0] / low[0, 0].sqrt()
        if float((torch.outer(*rows) - low).abs().max()) > 1e-13 * float(low.max()):
            lows = [self._low(level).to(device, dtype) for level in range(self.J)]
            return _Tables(wavelets, None, lows)
        averages = []
        for level in range(self.J):
            first, second = (_average(row, level, self.J, self._whole).to(device, dtype) for row in rows)
            averages.append((first, second))
        return _Tables(wavelets, averages, [])

    def _differentiable(self, images: Tensor, tables: _Tables) -> Tensor:
        """Return all coefficients (b, paths, h, w) of some images."""
        values, places = zip(*self._coefficients(images, tables), strict=True)
        return torch.cat(values, 1).index_select(1, torch.cat(places).argsort())

    def _coefficients(self, images: Tensor, tables: _Tables) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield coefficients (b, p, h, w) of some images, with the places (p,) of their paths."""
        kind = images.dtype
        if not self.pre_pad:
            images = padded(images, self.padded_shape, self.pad)
        for values, paths in self._descended(images.unsqueeze(1), [()], 0, tables):
            places = torch.tensor([self._places[path] for path in paths], device=values.device)
            yield values.to(kind), places

    def _descended(
        self, U: Tensor, paths: list[_Path], level: int, tables: _Tables
    ) -> Iterator[tuple[Tensor, list[_Path]]]:
        """Yield the averages (b, p, h, w) of maps (b, p, m, n) at a resolution and of all that wavelets make of them."""
        yield self._averaged(U, level, tables), paths
        first = paths[0][-1] // self.L + 1 if paths[0] else 0
        if len(paths[0]) == self.max_order or first == self.J:
            return
        shape = U.shape
        spectrum = torch.fft.fft2(U)
        del U  # what is not needed any more is given back at once: it bounds the peak
        for j in range(first, self.J):
            apart = _apart(spectrum, 1 << (j - level))
            size = shape[-2] >> (j - level), shape[-1] >> (j - level)
            # angles go on together where maps are small: fewer, larger steps
            together = max(1, min(self.L, _CHUNK // (math.prod(shape[:2]) * math.prod(size))))
            for start in range(0, self.L, together):
                angles = range(start, min(start + together, self.L))
                wavelets = tables.wavelets[level, j]
                longer = [(*path, j * self.L + theta) for theta in angles for path in paths]
                yield from self._descended(
                    _moduli(apart, [wavelets[k] for k in angles], size), longer, j, tables
                )
            del apart

    def _averaged(self, U: Tensor, level: int, tables: _Tables) -> Tensor:
        """Return averages of maps (..., m, n), one in 2^(J - level) of them, without what padding adds."""
        if tables.averages is not None:
            rows, columns = tables.averages[level]
            rows, columns = rows.to(U.dtype), columns.to(U.dtype)
            return torch.matmul(rows, torch.matmul(U, columns.T))
        step = 1 << (self.J - level)
        spectrum = folded(torch.fft.fft2(U) * tables.lows[level], step, (-2, -1)) / step**2
        values = torch.fft.ifft2(spectrum)
        values = values if U.is_complex() else values.real
        return values if self._whole else values[..., 1:-1, 1:-1]


def _coarse(spectrum: Tensor, level: int) -> Tensor:
    """Return filters on a grid 2^level times coarser: their low frequencies, folded."""
    for dim in (-2, -1):
        n = spectrum.shape[dim]
        start, length = int(n * 2.0 ** (-level - 1)), int(n * (1.0 - 2.0**-level))
        keep = torch.ones(n, dtype=spectrum.dtype)
        keep[start : start + length] = 0.0
        spectrum = spectrum * (keep if dim == -1 else keep[:, None])
    return folded(spectrum, 1 << level, (-2, -1))


def _filters(spectra: Tensor, step: int, dtype: torch.dtype, device: torch.device) -> list[_Filter]:
    """Return filters (L, m, n) by the parts of their spectra that fold together."""
    found = []
    for spectrum in spectra:
        parts = spectrum.unflatten(-1, (step, -1)).unflatten(-3, (step, -1)).permute(0, 2, 1, 3)
        parts = parts.reshape(step * step, -1) / step**2
        sizes = parts.abs().amax(1)
        places = (sizes > _NEGLIGIBLE[dtype] * sizes.max()).nonzero()[:, 0]
        values = parts[places].repeat_interleave(2, dim=1).to(device, dtype)
        found.append(_Filter(values.unbind(), tuple(places.tolist())))
    return found


def _apart(spectrum: Tensor, step: int) -> tuple[Tensor, ...]:
    """Return spectra (..., m, n) as step^2 tensors (..., 2 m n / step^2): real and imaginary parts of what folds together."""
    if step > 1:
        lead = spectrum.ndim - 2
        spectrum = spectrum.unflatten(-1, (step, -1)).unflatten(-3, (step, -1))
        order = (lead, lead + 2, *range(lead), lead + 1, lead + 3)
        spectrum = spectrum.permute(order).contiguous().flatten(0, 1)
    else:
        spectrum = spectrum.unsqueeze(0)
    return torch.view_as_real(spectrum).flatten(-3).unbind()


def _moduli(apart: Sequence[Tensor], wavelets: list[_Filter], size: tuple[int, int]) -> Tensor:
    """Return the moduli of what wavelets make of spectra of maps (b, p, ...), (b, wavelets p, *size)."""
    b, p = apart[0].shape[:2]
    if torch.is_grad_enabled() and apart[0].requires_grad:
        # the derivative of a modulus at zero is zero, that of a root of squares is not defined
        return torch.cat([torch.fft.ifft2(_product(apart, [w], size)[0]).abs() for w in wavelets], 1)
    found = apart[0].new_empty(b, len(wavelets), p, *size)
    step = max(1, _TRANSFORMED // (b * p * math.prod(size)))
    for start in range(0, len(wavelets), step):
        some = wavelets[start : start + step]
        parts = torch.view_as_real(torch.fft.ifft2(_product(apart, some, size)))
        real, imaginary = parts[..., 0], parts[..., 1]
        # half the time of a complex modulus
        squares = torch.addcmul(real * real, imaginary, imaginary)
        torch.sqrt(squares, out=found[:, start : start + len(some)].transpose(0, 1))
    return found.flatten(1, 2)


def _product(apart: Sequence[Tensor], wavelets: Sequence[_Filter], size: tuple[int, int]) -> Tensor:
    """Return the spectra of what wavelets make of maps, up to a phase, complex (wavelets, b, p, *size)."""
    found = []
    for wavelet in wavelets:
        total = apart[wavelet.places[0]] * wavelet.parts[0]
        for place, part in zip(wavelet.places[1:], wavelet.parts[1:], strict=True):
            total.addcmul_(apart[place], part)
        found.append(total)
    whole = torch.stack(found) if len(found) > 1 else found[0].unsqueeze(0)
    return torch.view_as_complex(whole.view(*whole.shape[:-1], *size, 2))


def _average(row: Tensor, level: int, J: int, whole: bool) -> Tensor:
    """Return the matrix (cells, m) that averages one axis at a resolution, from one axis of the low-pass (n,)."""
    n = len(row)
    start, length = int(n * 2.0 ** (-level - 1)), int(n * (1.0 - 2.0**-level))
    kept = row.clone()
    kept[start : start + length] = 0.0
    kernel = torch.fft.ifft(folded(kept, 1 << level)).real
    m, step = n >> level, 1 << (J - level)
    cells = torch.arange(m // step) if whole else torch.arange(1, m // step - 1)
    return kernel[(cells[:, None] * step - torch.arange(m)) % m]
