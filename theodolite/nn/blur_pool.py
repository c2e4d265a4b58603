"""Downsampling that blurs before it drops samples, and strided layers made over to use it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AntiAliased", "BlurPadding", "BlurPool", "binomial_kernel"]

BlurPadding = Literal["circular", "reflect", "zero"]
_MODES = {"circular": "circular", "reflect": "reflect", "zero": "constant"}
_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_MAXIMA: dict[type[nn.Module], int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}
_MEANS: dict[type[nn.Module], int] = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
_DIMS = _CONVOLUTIONS | _MAXIMA | _MEANS


def binomial_kernel(size: int) -> Tensor:
    """Return the binomial coefficients of order size - 1 over their sum, shape (size,), float64.

    They are the box of two samples convolved with itself: a low-pass of sum 1 whose
    response at the highest frequency is zero to order size - 1.

    Raises
    ------
    ValueError
        If the size is below 1.
    """
    if size < 1:
        raise ValueError(f"size: expected an integer >= 1, got {size}")
    row = [math.comb(size - 1, i) for i in range(size)]
    return torch.tensor(row, dtype=torch.float64) / 2.0 ** (size - 1)


class BlurPool(nn.Module):
    """Blur with a binomial kernel and keep every ``stride``-th position, channel by channel.

    Positions 0, s, 2s, ... are kept, so that n positions become ceil(n / s); a kernel of
    even size reads half a position further to the right.  The values of the kernel are no
    parameters and are not saved.

    Parameters
    ----------
    dims : {1, 2, 3}
        Spatial axes.
    stride : int or sequence of int
        One number, or one an axis; axes of stride 1 are left alone.
    kernel_size : int or sequence of int, optional
        Of the binomial kernel along each axis that is subsampled; 2 stride - 1 by default.
    padding_mode : {"circular", "reflect", "zero"}
        How the input continues beyond its border.

    Raises
    ------
    ValueError
        If an argument is none of these, or an input is too small to be continued.

    Notes
    -----
    With circular padding and a stride that divides the size it commutes with shifts by
    multiples of the stride, as any circular subsampling does; the blur makes what other
    shifts change smaller, it does not make it zero.

    References
    ----------
    Zhang, Making convolutional networks shift-invariant again, ICML 2019.
    """

    kernel: Tensor

    def __init__(
        self,
        dims: int = 2,
        *,
        stride: int | Sequence[int] = 2,
        kernel_size: int | Sequence[int] | None = None,
        padding_mode: BlurPadding = "reflect",
    ) -> None:
        super().__init__()
        if dims not in (1, 2, 3):
            raise ValueError(f"dims: expected 1, 2 or 3, got {dims!r}")
        if padding_mode not in _MODES:
            raise ValueError(f"padding_mode: expected one of {', '.join(_MODES)}, got {padding_mode!r}")
        self.dims, self.padding_mode = dims, padding_mode
        self.stride = _per_axis(stride, dims, "stride")
        chosen = [2 * s - 1 for s in self.stride] if kernel_size is None else kernel_size
        sizes = _per_axis(chosen, dims, "kernel_size")
        self.kernel_size = tuple(k if s > 1 else 1 for k, s in zip(sizes, self.stride, strict=True))
        kernel = torch.ones((), dtype=torch.float64)
        for k in self.kernel_size:
            kernel = kernel.unsqueeze(-1) * binomial_kernel(k)
        # every entry is a multiple of a power of two: exact in any precision that is worked in
        self.register_buffer("kernel", kernel.to(torch.get_default_dtype())[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, sizes...) to (n, c, ceil(size / stride)...)."""
        if x.ndim != self.dims + 2:
            raise ValueError(
                f"x: expected {self.dims + 2} dimensions (samples, channels, {self.dims} of space), "
                f"got shape {tuple(x.shape)}"
            )
        x = _continued(x, [((k - 1) // 2, k // 2) for k in self.kernel_size], self.padding_mode)
        channels = x.shape[1]
        weight = self.kernel.to(x.dtype).expand(channels, 1, *self.kernel_size)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        return convolve(x, weight, stride=self.stride, groups=channels)

    def extra_repr(self) -> str:
        """Return the options for ``print(module)``."""
        return (
            f"{self.dims}, stride={self.stride}, kernel_size={self.kernel_size}, "
            f"padding_mode={self.padding_mode!r}"
        )


class AntiAliased(nn.Module):
    """A layer that subsamples, made over: the same layer at every position, then a blur-pool.

    A strided convolution becomes a dense one, a max-pool a dense maximum, an average pool a
    dense mean, each followed by :class:`BlurPool` with the stride that it had.  The outputs
    are as many as the layer's and stand where its outputs stood.  Weights are copied.

    Parameters
    ----------
    layer : nn.Conv1d, Conv2d, Conv3d, MaxPool1d, ..., AvgPool3d
        With a stride above 1 along some axis; it is not changed.
    kernel_size : int, optional
        Odd size of the blur; 2 stride - 1 along each axis by default.
    padding_mode : {"circular", "reflect", "zero"}
        How what is blurred continues beyond its border.  "circular" takes the layer's input
        to continue circularly too, whatever padding the layer itself has.

    Raises
    ------
    ValueError
        If the layer is none of these or returns indices, the kernel's size is even, or, on
        an input, if the outputs would be fewer than the layer's (``ceil_mode``, or
        a max-pool's padding seen circularly).

    References
    ----------
    Zhang, Making convolutional networks shift-invariant again, ICML 2019.

    Examples
    --------
    >>> import torch
    >>> pool = torch.nn.MaxPool2d(3, stride=2, padding=1)
    >>> AntiAliased(pool)(torch.zeros(1, 4, 13, 8)).shape == pool(torch.zeros(1, 4, 13, 8)).shape
    True
    """

    def __init__(
        self, layer: nn.Module, *, kernel_size: int | None = None, padding_mode: BlurPadding = "reflect"
    ) -> None:
        super().__init__()
        dims = _DIMS.get(type(layer))
        if dims is None:
            raise ValueError(
                f"layer: expected a convolution, max-pool or average pool, got {type(layer).__name__}"
            )
        if getattr(layer, "return_indices", False):
            raise ValueError("layer: expected a max-pool that returns no indices; blurred maxima have none")
        if kernel_size is not None and kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size: expected an odd size, whose outputs do not move, got {kernel_size}"
            )
        stride: Any = layer.stride
        self.blur = BlurPool(
            dims, stride=_per_axis(stride, dims, "stride"), kernel_size=kernel_size, padding_mode=padding_mode
        )
        if max(self.blur.stride) == 1:
            raise ValueError("layer: expected a stride above 1, got a layer that drops no positions")
        each = {
            name: _per_axis(getattr(layer, name, default), dims, name, least)
            for name, default, least in (("kernel_size", 1, 1), ("dilation", 1, 1), ("padding", 0, 0))
            if not isinstance(getattr(layer, name, default), str)
        }
        self.window = tuple(d * (k - 1) for k, d in zip(each["kernel_size"], each["dilation"], strict=True))
        self.padding = each.get("padding", (0,) * dims)  # "valid" is none; "same" takes no stride
        self.ceil_mode = bool(getattr(layer, "ceil_mode", False))
        self.circular = padding_mode == "circular"
        if self.circular and any(p > w for p, w in zip(self.padding, self.window, strict=True)):
            raise ValueError(
                f"layer: expected windows that reach over the padding, got padding {self.padding}"
            )
        self.dense = _dense(layer, dims, unpadded=self.circular)
        self.blur.to(next(self.dense.parameters(), self.blur.kernel).device)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, sizes...) to what the layer itself maps it to, in shape."""
        sizes = x.shape[-self.blur.dims :]
        y: Tensor = self.blur(self.at_every_position(x))
        for axis, n in enumerate(sizes):
            expected = self._positions(n, axis)
            dim = axis - self.blur.dims
            if y.shape[dim] < expected:
                why = "ceil_mode" if self.ceil_mode else "its padding"
                raise ValueError(
                    f"x: expected a size of which all {expected} outputs can be blurred, got {n} positions, "
                    f"where the layer's last output is one of {why}"
                )
            if y.shape[dim] > expected:
                y = y.narrow(dim, 0, expected)
        return y

    def at_every_position(self, x: Tensor) -> Tensor:
        """Return what the layer gives with stride 1, before anything is blurred and dropped."""
        if self.circular:
            # as many positions as there are inputs, on the torus
            ends = zip(self.padding, self.window, strict=True)
            x = _continued(x, [(p, w - p) for p, w in ends], "circular")
        found: Tensor = self.dense(x)
        return found

    def _positions(self, n: int, axis: int) -> int:
        """Return how many outputs the layer has along an axis of n positions."""
        s, p = self.blur.stride[axis], self.padding[axis]
        room = n + 2 * p - self.window[axis] - 1
        if not self.ceil_mode:
            return room // s + 1
        count = -(-room // s) + 1
        return count - 1 if (count - 1) * s >= n + p else count


def _per_axis(given: int | Sequence[int], dims: int, name: str, least: int = 1) -> tuple[int, ...]:
    sizes = (given,) * dims if isinstance(given, int) else tuple(given)
    sizes = sizes * dims if len(sizes) == 1 else sizes
    if len(sizes) != dims or any(not isinstance(s, int) or s < least for s in sizes):
        raise ValueError(f"{name}: expected one integer >= {least}, or {dims} of them, got {given!r}")
    return sizes


def _continued(x: Tensor, ends: Sequence[tuple[int, int]], mode: BlurPadding) -> Tensor:
    """Return x with so many positions more before and behind, along its last axes."""
    sizes = x.shape[-len(ends) :]
    room = {"circular": 0, "reflect": 1}
    for n, pair in zip(sizes, ends, strict=True):
        if mode in room and max(pair) > n - room[mode]:
            raise ValueError(
                f"x: expected at least {max(pair) + room[mode]} positions along each axis to continue it by "
                f"{max(pair)} ({mode}), got sizes {tuple(sizes)}"
            )
    flat = [end for pair in reversed(ends) for end in pair]
    return F.pad(x, flat, mode=_MODES[mode]) if any(flat) else x


def _dense(layer: nn.Module, dims: int, *, unpadded: bool) -> nn.Module:
    """Return a copy of the layer with stride 1, and without padding if asked."""
    like: Any = layer
    padding = 0 if unpadded else like.padding
    if type(layer) in _CONVOLUTIONS:
        options = {name: getattr(like, name) for name in ("dilation", "groups")}
        weight: nn.Parameter = like.weight
        mode = "zeros" if unpadded else like.padding_mode
        made: nn.Module = nn.utils.skip_init(
            type(layer), like.in_channels, like.out_channels, like.kernel_size,
            padding=padding, padding_mode=mode, bias=like.bias is not None,
            device=weight.device, dtype=weight.dtype, **options,
        )  # fmt: skip
        made.load_state_dict(layer.state_dict())
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(layer.get_parameter(name).requires_grad)
        return made.train(layer.training)
    if type(layer) in _MAXIMA:
        return type(layer)(like.kernel_size, stride=1, padding=padding, dilation=like.dilation)
    options = {"count_include_pad": like.count_include_pad}
    if dims > 1:
        options["divisor_override"] = like.divisor_override
    return type(layer)(like.kernel_size, stride=1, padding=padding, **options)
