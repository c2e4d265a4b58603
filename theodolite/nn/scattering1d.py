r"""The scattering transform of signals: cascades of wavelets and moduli, averaged.

.. math:: Sx=\big(x*\phi,\ |x*\psi_{\lambda_1}|*\phi,\ ||x*\psi_{\lambda_1}|*\psi_{\lambda_2}|*\phi,\ \dots\big)

for paths of increasing scale.  Each stage is kept on the coarsest grid that holds it.  What makes it fast: a modulus follows
each wavelet, so that what a wavelet keeps of a spectrum may lie anywhere on the coarse grid; it is cut out, multiplied, and
transformed back there.  Moduli are real, so that half of their spectra is computed, and averages take the lowest part of
that.  Signals and wavelets are taken so many at a time that a stage stays in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.linalg.lanczos import UP
from theodolite.nn.padding import PADDINGS, Padding, axis_copies, padded
from theodolite.nn.scattering1d_stages import Low, Wavelet, averages, between, low_pass, moduli, wavelet
from theodolite.nn.scattering_shared import check_counts, check_input, moderate, path_table, restored
from theodolite.nn.wavelets import Bank, Norm, folded
from theodolite.nn.wavelets1d import Morlet, border, morlet1d, morlets
from theodolite.value import Value

__all__ = ["Scattering1D"]

_CHUNK = 1 << 18  # numbers of a stage that are handled together: they fit the cache

Path = tuple[int, ...]


@dataclass(frozen=True)
class _Tables:
    """What a transform multiplies by, in one precision on one device."""

    wavelets: dict[tuple[int, int, int], Wavelet]  # by bank, resolution and number
    lows: dict[tuple[int, int], Low]  # by bank and resolution


class Scattering1D(nn.Module):
    r"""Scattering transform of signals, in the order and with the values of Kymatio's class of this name.

    Parameters
    ----------
    J : int
        The longest wavelets last for about 2^J samples.
    shape : int or (int,)
        Number of samples.
    Q : int or (int, int)
        Wavelets to the octave in the first order, and in later ones (1 by default).
    T : float, optional
        Averages are over about T samples, 2^J by default, and one in 2^floor(log2(T)) is kept; 0 for none.
    max_order : {0, 1, 2, 3}
        Number of wavelets on a path, at most.
    average : bool, optional
        False is another word for T = 0.
    oversampling : int
        Every stage keeps up to 2^oversampling times as many samples.
    out_type : {"array", "dict", "list"}
        A tensor; coefficients by the numbers of their wavelets; or dictionaries with the keys "coef", "j" and "n".  Those
        that are not averaged differ in length, and make no tensor.
    backend : {"torch"}
    pad : {"reflect", "symmetric", "replicate", "zero", "periodic"}
        What signals continue as.  "periodic" pads nothing where the step from one coefficient to the next divides the
        length, and shifts by that step then shift the output by one: exactly.
    norm : {"reference", "B1", "tight"}
        As Kymatio's 0.3.0, which divides a filter by the step of the grid that it works on, and so a coefficient by those of
        its moduli; or as in :meth:`theodolite.nn.wavelets.Bank.normalized`, and filters the same on all grids.

    Attributes
    ----------
    banks : (Bank, Bank)
        Of the first order and of later ones, on the padded grid.
    padded_shape : (int,)
    output_shape : (int,)
        Of the averages.

    Raises
    ------
    ValueError
        If an argument is out of range, or a signal too short to hold a coefficient.

    Notes
    -----
    Filters have no place in the state: they follow from the arguments, and are computed in float64 whatever the input's
    precision.  Gradients are finite everywhere, that of a modulus at zero being zero.  ``torch.compile`` gives the same values
    but no speed, and takes minutes: nearly all time is spent in Fourier transforms, which it leaves as they are.

    References
    ----------
    Mallat, Communications on Pure and Applied Mathematics 65(10), 2012; Andén and Mallat, IEEE Transactions on Signal
    Processing 62(16), 2014; Andreux et al., JMLR 21(60), 2020.

    Examples
    --------
    >>> import torch
    >>> Scattering1D(J=6, shape=1024, Q=8)(torch.zeros(3, 1024)).shape
    torch.Size([3, 126, 16])
    """

    def __init__(
        self,
        J: int,
        shape: int | Sequence[int],
        Q: int | Sequence[int] = 1,
        T: float | None = None,
        max_order: int = 2,
        average: bool | None = None,
        oversampling: int = 0,
        out_type: Literal["array", "dict", "list"] = "array",
        backend: str = "torch",
        *,
        pad: Padding = "reflect",
        norm: Norm = "reference",
    ) -> None:
        super().__init__()
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        octaves = (Q,) if isinstance(Q, int) else tuple(Q)
        if len(sizes) != 1:
            raise ValueError(f"shape: expected the number of samples, got {sizes}")
        if len(octaves) not in (1, 2):
            raise ValueError(f"Q: expected one number or two, got {octaves}")
        check_counts(J=(J, 0), shape=(sizes[0], 1), max_order=(max_order, 0), oversampling=(oversampling, 0))
        for q in octaves:
            check_counts(Q=(q, 1))
        if backend != "torch":
            raise ValueError(f"backend: expected 'torch', got {backend!r}")
        if pad not in PADDINGS:
            raise ValueError(f"pad: expected one of {', '.join(map(repr, PADDINGS))}, got {pad!r}")
        self.J, self.shape, self.max_order, self.oversampling = J, (sizes[0],), max_order, oversampling
        self.Q = (octaves[0], octaves[1] if len(octaves) == 2 else 1)
        self.T, self.average = _averaging(J, sizes[0], T, average)
        if out_type not in ("array", "dict", "list") or (out_type == "array" and not self.average):
            words = (
                "'array', 'dict' or 'list'" if self.average else "'dict' or 'list', as nothing is averaged"
            )
            raise ValueError(f"out_type: expected {words}, got {out_type!r}")
        self.out_type, self.pad, self.norm = out_type, pad, norm
        self.morlets = tuple(morlets(J, q) for q in self.Q)
        self._coarsest = max(math.floor(math.log2(self.T)) - oversampling, 0)
        self._set_grids(sizes[0])
        self.banks = (self._bank(0), self._bank(1))
        self._rows = {path: row for row, path in enumerate(self._paths())}
        self._tables: dict[tuple[torch.dtype, torch.device], _Tables] = {}

    def _set_grids(self, n: int) -> None:
        """Choose the padded length, and which samples of each grid lie within the signal."""
        scales = [wave.j for waves in self.morlets[: self.max_order] for wave in waves]
        levels = {self._level(j) for j in scales} | ({self._coarsest} if self.average else {0})
        step = 1 << max(levels)
        whole = self.pad == "periodic" and n % step == 0
        size = n if whole else _padded_size(n, self.T, 2**self.J, self.max_order, step)
        first = (size - n) // 2
        self.padded_shape = (size,)
        self._within = {k: slice(-(-first >> k), -(-(first + n) >> k)) for k in levels}
        if size % step or any(cells.start >= cells.stop for cells in self._within.values()):
            raise ValueError(
                f"shape: expected a signal that holds one in {step} samples, as J = {self.J} and T = {self.T} need it, got {n}"
            )
        cells = self._within[self._coarsest] if self.average else self._within[0]
        self.output_shape = (cells.stop - cells.start,)

    def _bank(self, number: int) -> Bank:
        bank = morlet1d(self.padded_shape[0], self.J, self.Q[number], self.T)
        steps = tuple(1 << self._level(wave.j) for wave in self.morlets[number])
        step = 1 << self._coarsest if self.average else max(steps)
        return replace(bank, steps=steps, low_step=step).normalized(self.norm)

    def _level(self, j: int) -> int:
        """Return the grid, 2^level times coarser, that moduli of scale j are kept on."""
        return (
            min(max(j - self.oversampling, 0), self._coarsest)
            if self.average
            else max(j - self.oversampling, 0)
        )

    def forward(self, x: Tensor) -> Any:
        """Return the coefficients of signals.

        Parameters
        ----------
        x : Tensor, shape (..., samples)
            Float32, float64 or complex, finite.

        Returns
        -------
        Tensor, shape (..., paths, length), or dict or list of Tensor, each of shape (..., length)
            Of the input's precision; complex for complex inputs, whose average is complex.

        Raises
        ------
        TypeError
            If x is no tensor of floating or complex numbers.
        ValueError
            If its last size is another, or an entry is not finite.
        """
        check_input(x, self.shape)
        signals, exponent = moderate(x.reshape(-1, *self.shape))
        tables = self._table(signals)
        step = max(1, _CHUNK // self.padded_shape[0])
        lead = x.shape[:-1]
        if not self.average:
            some = signals if len(signals) else signals.new_zeros(1, *self.shape)
            chunks = [self._unaveraged(part, tables) for part in some.split(step)]
            found = [
                restored(torch.cat(parts)[: len(signals)], exponent) for parts in zip(*chunks, strict=True)
            ]
            found = [part.reshape(*lead, part.shape[-1]) for part in found]
        else:
            array = restored(self._averaged(signals, tables, step), exponent)
            array = array.reshape(*lead, len(self), *self.output_shape)
            if self.out_type == "array":
                return array
            found = list(array.unbind(-2))
        if self.out_type == "dict":
            return dict(zip(self._rows, found, strict=True))
        return [{"coef": one, **path} for one, path in zip(found, self.paths(), strict=True)]

    scattering = forward

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self._rows)

    def output_size(self, detail: bool = False) -> int | tuple[int, ...]:
        """Return the number of paths, or those of each order."""
        counts = [0] * (self.max_order + 1)
        for path in self._rows:
            counts[len(path)] += 1
        return tuple(counts) if detail else len(self)

    def paths(self) -> list[dict[str, Path]]:
        """Return the scales "j" and the numbers "n" of the wavelets of each path, in order."""
        return [{"j": tuple(wave.j for wave in self._waves(path)), "n": path} for path in self._rows]

    def meta(self) -> dict[str, Any]:
        """Return the paths: arrays "order" (p,), "xi", "sigma", "j" and "n" (p, max_order), NaN where there is none; "key"."""
        wavelets = [self._waves(path) for path in self._rows]
        numbers = {
            key: [[getattr(wave, key) for wave in waves] for waves in wavelets]
            for key in ("xi", "sigma", "j")
        }
        tables = {key: path_table(rows, self.max_order) for key, rows in {**numbers, "n": self._rows}.items()}
        return {"order": np.array([len(path) for path in self._rows]), **tables, "key": list(self._rows)}

    def _waves(self, path: Path) -> list[Morlet]:
        return [self.morlets[min(i, 1)][n] for i, n in enumerate(path)]

    def _paths(self) -> list[Path]:
        orders: list[list[Path]] = [[()]]
        for _ in range(self.max_order):
            longer = []
            for path in orders[-1]:
                longer += [(*path, n) for _, numbers in self._next(path) for n in numbers]
            orders.append(longer)
        return [path for order in orders for path in order]

    def _next(self, path: Path) -> list[tuple[int, list[int]]]:
        """Return the wavelets that may follow a path, by their scales."""
        if len(path) == self.max_order:
            return []
        first = self._waves(path)[-1].j + 1 if path else 0
        numbered = enumerate(self.morlets[min(len(path), 1)])
        return [
            (j, [n for n, _ in group])
            for j, group in groupby(numbered, key=lambda pair: pair[1].j)
            if j >= first
        ]

    def lipschitz(self) -> Value:
        r"""Return a proved bound of :math:`2^{k/2}\|S x-S y\|/\|x-y\|` for real signals, one in 2^k samples being kept.

        On the grid that a stage works on, its low-pass and its wavelets, as they are subsampled and each weighted by the root
        of what its moduli are multiplied by later, have an upper frame bound, which multiplies energies.  Padding copies a
        sample up to c times, which multiplies them by c.  Coefficients that are not averaged count times the root of their
        own step.  This is of the transform with the banks' filters in exact arithmetic; coefficients carry the rounding of
        their precision.
        """
        copies = axis_copies(self.shape[0], self.padded_shape[0], self.pad)
        energy = self._energy((), {}) * copies
        if not self.average:
            energy += 1.0  # the signal itself
        steps = f"2^{self._coarsest / 2:g}" if self.average else "the roots of their steps"
        return Value.bound(
            0.0,
            math.sqrt(energy) * UP * UP,
            note=f"frame bounds of the subsampled banks, padding by {copies} copies; coefficients times {steps}",
        )

    def _energy(self, path: Path, known: dict[tuple[int, int], float]) -> float:
        """Return what the energy of signals at a path is multiplied by, at most, on the way to all that follows."""
        number, level, waves = min(len(path), 1), self._resolution(path), self._next(path)
        key = len(path), self._waves(path)[-1].j if path else -1
        if key in known:
            return known[key]
        bank, scale = self.banks[number], self._scale(level)
        low, step = folded(bank.low, 1 << level) * scale, bank.low_step >> level
        rows, steps = [torch.zeros_like(low)], [1]
        if not self.average:  # moduli are kept as they are
            rows = [torch.ones_like(low)] if path else rows
            low, step = (
                torch.zeros_like(low),
                max(1 << (self._level(j) - level) for j, _ in waves) if waves else 1,
            )
        for j, numbers in waves:
            later = self._energy((*path, numbers[0]), known) * UP
            rows += [folded(bank.high[n], 1 << level) * (scale * math.sqrt(later)) for n in numbers]
            steps += [1 << (self._level(j) - level)] * len(numbers)
        stage = Bank(low, torch.stack(rows), tuple(steps), step)
        known[key] = stage.frame_bounds(subsampled=True).upper.high * UP
        return known[key]

    def _resolution(self, path: Path) -> int:
        """Return the grid that the moduli of a path are on."""
        return self._level(self._waves(path)[-1].j) if path else 0

    def _scale(self, level: int) -> float:
        """Return what filters are multiplied by on a grid."""
        return 2.0**-level if self.norm == "reference" else 1.0

    def _table(self, x: Tensor) -> _Tables:
        """Return the tables for inputs of a precision on a device; they are kept."""
        dtype = x.dtype.to_real()
        key = (dtype, x.device)
        if key not in self._tables:
            self._tables[key] = self._built(dtype, x.device)
        return self._tables[key]

    def _built(self, dtype: torch.dtype, device: torch.device) -> _Tables:
        tables = _Tables({}, {})
        cells = self.padded_shape[0] >> self._coarsest
        for path in self._rows:
            number, level = min(len(path), 1), self._resolution(path)
            bank, scale = self.banks[number], self._scale(level)
            if self.average and (number, level) not in tables.lows:
                row = folded(bank.low, 1 << level)
                tables.lows[number, level] = low_pass(row, cells, scale, dtype, device)
            for j, numbers in self._next(path):
                # an inverse transform divides by the length of its own grid
                factor = scale * 2.0 ** (level - self._level(j))
                for key in ((number, level, n) for n in numbers):
                    if key not in tables.wavelets:
                        row = folded(bank.high[key[2]], 1 << level)
                        tables.wavelets[key] = wavelet(row, factor, dtype, device)
        return tables

    def _averaged(self, signals: Tensor, tables: _Tables, step: int) -> Tensor:
        """Return the averages (b, paths, length) of signals, so many at a time."""
        if torch.is_grad_enabled() and signals.requires_grad and len(signals):
            return torch.cat([self._chunk(part, tables) for part in signals.split(step)])
        found = signals.new_empty(len(signals), len(self), *self.output_shape)
        for start in range(0, len(signals), step):
            found[start : start + step] = self._chunk(signals[start : start + step], tables)
        return found

    def _chunk(self, signals: Tensor, tables: _Tables) -> Tensor:
        paths, parts = self._coefficients(signals, tables)
        order = torch.empty(len(paths), dtype=torch.long)
        order[[self._rows[path] for path in paths]] = torch.arange(len(paths))
        return torch.cat([part.to(signals.dtype) for part in parts], 1)[:, order.to(signals.device)]

    def _unaveraged(self, signals: Tensor, tables: _Tables) -> list[Tensor]:
        """Return the signals and their moduli, (b, length) for each path."""
        paths, parts = self._coefficients(signals, tables)
        found = dict(zip(paths, (one for part in parts for one in part.unbind(1)), strict=True))
        return [found[path] for path in self._rows]

    def _coefficients(self, signals: Tensor, tables: _Tables) -> tuple[list[Path], list[Tensor]]:
        """Return paths in some order, and the coefficients of some at a time, (b, some, length)."""
        found: list[tuple[list[Path], Tensor]] = []
        self._descend(padded(signals, self.padded_shape, self.pad).unsqueeze(1), [()], tables, found)
        return [path for paths, _ in found for path in paths], [part for _, part in found]

    def _descend(
        self, U: Tensor, paths: list[Path], tables: _Tables, found: list[tuple[list[Path], Tensor]]
    ) -> None:
        """Add the coefficients that signals (b, p, n) at paths of one scale lead to."""
        number, level, waves = min(len(paths[0]), 1), self._resolution(paths[0]), self._next(paths[0])
        half = torch.fft.rfft(U) if not U.is_complex() and (self.average or waves) else None
        if self.average:
            found.append((paths, self._average(U, half, tables.lows[number, level])))
        else:
            found.append((paths, U[..., self._within[level]]))
        if not waves:
            return
        wavelets = {n: tables.wavelets[number, level, n] for _, numbers in waves for n in numbers}
        start, stop = min(w.start for w in wavelets.values()), max(w.stop for w in wavelets.values())
        spectrum = between(U, half, start, stop)
        count = U.shape[0] * U.shape[1]
        del U, half  # they bound the peak
        for j, numbers in waves:
            size = self.padded_shape[0] >> self._level(j)
            # more than one at a time: single real transforms are slow
            together = max(2 if count == 1 else 1, _CHUNK // (count * size))
            for first in range(0, len(numbers), together):
                taken = numbers[first : first + together]
                maps = moduli(spectrum, start, [wavelets[n] for n in taken], size).flatten(1, 2)
                self._descend(maps, [(*path, n) for path in paths for n in taken], tables, found)
                del maps

    def _average(self, U: Tensor, half: Tensor | None, kept: Low) -> Tensor:
        cells, count = self._within[self._coarsest], self.padded_shape[0] >> self._coarsest
        if half is not None:
            return averages(half, kept, cells, count)
        parts = [averages(torch.fft.rfft(part), kept, cells, count) for part in (U.real, U.imag)]
        return torch.complex(parts[0], parts[1])


def _averaging(J: int, n: int, T: float | None, average: bool | None) -> tuple[float, bool]:
    """Return the support of averages, and whether there are any."""
    if T is None:
        return 2**J, average is None or bool(average)
    if isinstance(T, bool) or not isinstance(T, int | float) or not (T == 0 or 1 <= T <= n):
        raise ValueError(f"T: expected 0, or a number from 1 to {n}, the number of samples, got {T!r}")
    if average is not None and bool(average) != (T > 0):
        raise ValueError(f"average: expected {T > 0} or None as T is {T}, got {average}")
    return (T, True) if T else (2**J, False)


def _padded_size(n: int, T: float, longest: float, orders: int, step: int) -> int:
    """Return the length that n samples are padded to, for averages and wavelets that last so long.

    The reference's is a power of two, with no more padding than a reflection gives.  Coefficients that lie within the signal
    do not see all of it: a path moves what is beyond the borders by no more than the convolution of its Gaussians does, and of
    that less than 1e-14 is farther away than eight widths.  A shorter length that keeps so much is as good.
    """
    size = 1 << min(math.ceil(math.log2(n + 6 * border(n, T))), math.floor(math.log2(3 * n - 2)))
    margin = math.ceil(8.0 * math.hypot(T, math.sqrt(orders) * longest) / (0.2 * math.pi))
    unit = 2 * step  # samples of all grids stay where they are
    shorter = -(-(n + 2 * margin) // unit)
    while shorter // (shorter & -shorter) not in (
        1,
        3,
        5,
        9,
        15,
    ):  # Fourier transforms of such lengths are fast
        shorter += 1
    return min(size, shorter * unit)
