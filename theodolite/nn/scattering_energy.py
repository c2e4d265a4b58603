r"""How a cascade of wavelets and moduli shares out the energy of a signal, over all paths and with all samples kept.

For a bank whose energy is 1 at every frequency, :math:`\sum_{m\le M}\|S_mx\|^2+\|U_{M+1}x\|^2=\|x\|^2` for every M: what
wavelets take from a map they hand on, and the low-pass keeps the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.nn.wavelets import Bank

__all__ = ["Energies", "energies"]


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
    sizes = tuple(x.shape[x.ndim - bank.dimension :])
    if sizes != tuple(bank.low.shape):
        raise ValueError(f"x: expected shape (..., {', '.join(map(str, bank.low.shape))}), got {tuple(x.shape)}")
    if max_order < 0:
        raise ValueError(f"max_order: expected an integer >= 0, got {max_order}")
    dims = tuple(range(-bank.dimension, 0))
    precision = x.real.dtype if x.is_complex() else x.dtype
    low = bank.low.to(x.device, precision)
    high = bank.high.to(x.device, precision)
    total = _energy(x, dims)
    orders = torch.zeros(*total.shape, max_order + 1, dtype=total.dtype, device=x.device)
    rest = torch.zeros_like(total)

    def descend(U: Tensor, order: int, step: int) -> None:
        spectrum = torch.fft.fftn(U, dim=dims)
        orders[..., order] += _energy(spectrum * low, dims) / bank.low.numel()
        for wavelet, its_step in zip(high, bank.steps, strict=True):
            if increasing and its_step <= step:
                continue
            if order == max_order:  # a modulus keeps energies: no need to transform back
                rest.add_(_energy(spectrum * wavelet, dims) / bank.low.numel())
            else:
                descend(torch.fft.ifftn(spectrum * wavelet, dim=dims).abs(), order + 1, its_step)

    with torch.no_grad():
        descend(x, 0, 0)
    return Energies(orders, rest, total)


def _energy(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    return values.abs().double().square().sum(dims)
