r"""How a cascade of wavelets and moduli shares out the energy of a signal, over all paths and with all samples kept.

For a bank whose energy is 1 at every frequency, :math:`\sum_{m\le M}\|S_mx\|^2+\|U_{M+1}x\|^2=\|x\|^2` for every M: what
wavelets take from a map they hand on, and the low-pass keeps the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.linalg.lanczos import UP
from theodolite.nn.wavelets import Bank
from theodolite.value import Value

__all__ = ["Energies", "averages", "energies", "shift_bound"]

_Path = tuple[int, ...]  # numbers of its wavelets


@dataclass(frozen=True)
class Energies:
    r"""Energies by order of what a cascade makes of signals.

    Attributes
    ----------
    orders : Tensor, shape (..., M + 1)
        :math:`\|S_mx\|^2`, of the averages of all paths of each order.
    rest : Tensor, shape (...,)
        :math:`\|U_{M+1}x\|^2`, of the maps that the next order would average.
    total : Tensor, shape (...,)
        :math:`\|x\|^2`.
    """

    orders: Tensor
    rest: Tensor
    total: Tensor

    @property
    def missing(self) -> Tensor:
        """Share (...,) of the energy that neither averages nor maps have: 0, up to rounding, for all paths of a tight bank."""
        return 1.0 - (self.orders.sum(-1) + self.rest) / self.total


def energies(bank: Bank, x: Tensor, max_order: int, increasing: bool = False) -> Energies:
    """Return the energies of a scattering cascade by order.

    Parameters
    ----------
    bank : Bank
        With p band-passes there are p^m paths of order m, each of them computed: their cost is of that order.
    x : Tensor, shape (..., n_1, ..., n_d)
        Signals on the bank's grid, which is taken to be periodic.
    max_order : int
        M.
    increasing : bool
        Of paths whose wavelets get coarser, that is, are kept at larger steps, only.

    Raises
    ------
    ValueError
        If the signals have other sizes, or `max_order` is negative.
    """
    dims = _checked(bank, x, max_order)
    low, high = (h.to(x.device, x.dtype.to_real()) for h in (bank.low, bank.high))
    total = _energy(x, dims)
    orders = torch.zeros(*total.shape, max_order + 1, dtype=total.dtype, device=x.device)
    rest = torch.zeros_like(total)
    with torch.no_grad():
        for path, spectrum in _cascade(bank, high, x, max_order, increasing):
            order = len(path)
            orders[..., order] += _energy(spectrum * low, dims) / bank.low.numel()
            if order == max_order:  # a modulus keeps energies: no need to transform back
                for n in _next(bank, path, increasing):
                    rest += _energy(spectrum * high[n], dims) / bank.low.numel()
    return Energies(orders, rest, total)


def averages(bank: Bank, x: Tensor, max_order: int, increasing: bool = True) -> tuple[Tensor, Tensor]:
    r"""Return the averages of all paths with all samples kept, and the energy of the maps that are averaged.

    Parameters
    ----------
    bank, x, max_order, increasing
        As in :func:`energies`.

    Returns
    -------
    averages : Tensor, shape (..., paths, n_1, ..., n_d)
        :math:`S[p]x`, a path before its extensions.
    maps : Tensor, shape (...,)
        :math:`\sum_p\|U[p]x\|^2` of the same paths.

    Raises
    ------
    ValueError
        As :func:`energies` does.
    """
    dims = _checked(bank, x, max_order)
    low, high = (h.to(x.device, x.dtype.to_real()) for h in (bank.low, bank.high))
    found, maps = [], torch.zeros_like(_energy(x, dims))
    with torch.no_grad():
        for _, spectrum in _cascade(bank, high, x, max_order, increasing):
            average = torch.fft.ifftn(spectrum * low, dim=dims)
            found.append(average if x.is_complex() else average.real)
            maps += _energy(spectrum, dims) / bank.low.numel()
    return torch.stack(found, -bank.dimension - 1), maps


def shift_bound(bank: Bank, shift: Sequence[float]) -> Value:
    r"""Return a proved bound of :math:`\|S T_cx-Sx\|/(\sum_p\|U[p]x\|^2)^{1/2}`, with all samples kept.

    Maps :math:`U[p]x` shift as x does, so that only the low-pass counts:
    :math:`\kappa(c)=\max_\omega2|\sin(\omega\cdot c/2)||\hat\phi(\omega)|`.

    Parameters
    ----------
    bank : Bank
    shift : sequence of float
        c, in samples along each axis of the periodic grid; whole numbers shift samples.

    Raises
    ------
    ValueError
        If there is not one number an axis.
    """
    if len(shift) != bank.dimension:
        raise ValueError(f"shift: expected {bank.dimension} numbers, got {tuple(shift)}")
    phase = torch.zeros_like(bank.low, dtype=torch.float64)
    for axis, (n, c) in enumerate(zip(bank.low.shape, shift, strict=True)):
        size = [1] * bank.dimension
        size[axis] = n
        phase = phase + (torch.pi * c * torch.fft.fftfreq(n, dtype=torch.float64)).view(size)
    kappa = float((2.0 * phase.sin().abs() * bank.low.abs().double()).max())
    return Value.bound(0.0, kappa * UP, note="largest change that the low-pass lets through")


def _checked(bank: Bank, x: Tensor, max_order: int) -> tuple[int, ...]:
    """Return the axes of the grid, if the arguments fit."""
    sizes = tuple(x.shape[x.ndim - bank.dimension :])
    if sizes != tuple(bank.low.shape):
        raise ValueError(
            f"x: expected shape (..., {', '.join(map(str, bank.low.shape))}), got {tuple(x.shape)}"
        )
    if max_order < 0:
        raise ValueError(f"max_order: expected an integer >= 0, got {max_order}")
    return tuple(range(-bank.dimension, 0))


def _cascade(
    bank: Bank, high: Tensor, x: Tensor, max_order: int, increasing: bool
) -> Iterator[tuple[_Path, Tensor]]:
    """Yield every path of at most that many wavelets, with the spectrum of the map that it leads to."""
    dims = tuple(range(-bank.dimension, 0))
    waiting: list[_Path] = [()]
    stack: list[Tensor] = []  # spectra of the maps along the path
    while waiting:
        path = waiting.pop()
        del stack[len(path) :]
        U = torch.fft.ifftn(stack[-1] * high[path[-1]], dim=dims).abs() if path else x
        stack.append(torch.fft.fftn(U, dim=dims))
        yield path, stack[-1]
        if len(path) < max_order:
            waiting += [(*path, n) for n in reversed(_next(bank, path, increasing))]


def _next(bank: Bank, path: _Path, increasing: bool) -> list[int]:
    """Return the wavelets that may follow on a path."""
    step = bank.steps[path[-1]] if path and increasing else 0
    return [n for n, its_step in enumerate(bank.steps) if its_step > step or not increasing]


def _energy(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    return values.abs().double().square().sum(dims)
