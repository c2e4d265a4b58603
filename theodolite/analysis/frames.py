r"""Frame bounds of weight layers: the extreme factors by which a layer stretches squared norms.

A layer without its bias is a linear map K on its own input size, and

.. math:: A \|x\|^2 \le \|K x\|^2 \le B \|x\|^2

with A and B the extreme squared singular values (A = 0 where K has fewer outputs than
inputs).  On a periodic grid they are those of the symbol's blocks
:math:`[\hat K(\omega + 2 \pi l / s)]_l / s^{d/2}`, C_out x C_in s^d numbers a frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from theodolite.analysis import pooling
from theodolite.analysis.convolution import Convolution
from theodolite.analysis.graph import Node
from theodolite.analysis.linear_layers import LinearLayer
from theodolite.value import Value

_WORK = 1e9  # rows x columns x the smaller of both, over all blocks, up to which singular values are computed
_ENTRIES = 1 << 23  # of a matrix that is formed
_TOO_LARGE = "too large for its smallest singular value: below zero, above the mean squared one"


@dataclass(frozen=True)
class FrameBounds:
    r"""How much a weight layer stretches squared norms.

    Attributes
    ----------
    lower, upper : Value
        A and B.  Exact for circular padding, and where no padding is needed and no input
        left over; otherwise two-sided bounds.
    tree : Value
        The sum over the frequencies' worst, :math:`\max_\omega \|\hat K(\omega)\|_F^2`, which takes
        every filter for a branch of its own: at least B.
    """

    lower: Value
    upper: Value
    tree: Value


def frame_bounds(layer: LinearLayer) -> FrameBounds:
    """Return the frame bounds of a weight layer, its folded normalization and its padding included.

    Parameters
    ----------
    layer : LinearLayer
        From :func:`theodolite.analysis.linear_layers.linear_layers`: a linear layer, or a
        convolution, transposed or not, of any dimension, stride, dilation, groups and padding.

    Returns
    -------
    FrameBounds
        In float64; bounds carry an explicit margin for rounding.

    References
    ----------
    Wiatowski and Boelcskei, IEEE Trans. Inf. Theory 64 (2018), whose frame bound is ``tree``;
    Sedghi, Gupta and Long, ICLR 2019, for the symbol.
    """
    tree = _tree(layer)
    if not bool(layer.weight.any()) or 0 in (layer.node.shape or ())[1:]:
        zero = Value.exact(0.0, note="the weights are zero")
        return FrameBounds(zero, zero, zero)
    if layer.operator is None:
        lower, upper = _of_matrix(layer)
    else:
        ring = periodic(layer.operator)
        exact = None if ring is None or padding_node(layer) is not None else _on_the_grid(layer, ring)
        lower, upper = exact or _off_the_grid(layer, layer.operator)
    return FrameBounds(lower, upper, tree)


def padding_node(layer: LinearLayer) -> Node | None:
    """Return the padding that a convolution reads, unless it is circular and so a part of the operator."""
    at_rest = layer.operator is None or layer.origin is not layer.source
    return None if at_rest or layer.source.op not in pooling.PADS else layer.source


def periodic(operator: Convolution) -> Convolution | None:
    """Return the operator as one with circular padding that keeps every output once, or None."""
    covers = all(
        n_out * stride == n
        for n_out, stride, n in zip(operator.out_size, operator.stride, operator.size, strict=True)
    )
    if not covers:
        return None
    if operator.mode == "circular":
        return operator
    # without padding, windows that cover the input read nothing that is wrapped
    return None if any(map(any, operator.padding)) else replace(operator, mode="circular")


def _transposed(layer: LinearLayer) -> bool:
    """Return whether the layer is the adjoint of its operator."""
    return layer.operator is not None and layer.operator.limit is not None


def _reach(layer: LinearLayer) -> tuple[int, int]:
    """Return the numbers of outputs and of inputs of one sample, before padding."""
    if layer.operator is None:
        return int(layer.rows.shape[0]), int(layer.rows.shape[1])
    pad = padding_node(layer)
    source = layer.origin if pad is None else pad.args[0]
    assert layer.node.shape is not None
    assert source.shape is not None
    return math.prod(layer.node.shape[1:]), math.prod(source.shape[1:])


def _fewer(layer: LinearLayer) -> Value | None:
    rows, columns = _reach(layer)
    if rows >= columns:
        return None
    return Value.exact(0.0, note=f"{rows:,} outputs of {columns:,} inputs: some inputs are mapped to zero")


def _enclosed(layer: LinearLayer, matrices: Tensor) -> tuple[Value, Value]:
    """Return A and B of a block-diagonal operator, LAPACK's backward error enclosed."""
    values = torch.linalg.svdvals(matrices)
    top, bottom = float(values.max()), float(values.min())
    margin = 8.0 * sum(matrices.shape[1:]) * torch.finfo(torch.float64).eps * top
    upper = Value.bound((top - margin) ** 2, (top + margin) ** 2, note="from the layer's own matrix")
    lower = Value.bound(
        max(0.0, bottom - margin) ** 2, (bottom + margin) ** 2, note="from the layer's own matrix"
    )
    return _fewer(layer) or lower, upper


def _squared(norm: Value, factor: float = 1.0) -> Value:
    """Return a norm's square, times the squared norm of a padding before it."""
    # a padding copies entries, of which the layer need not see all
    low = 0.0 if factor > 1.0 else norm.low**2 * (1.0 - 1e-15)
    note = norm.note if factor == 1.0 else f"{norm.note}; times {factor:g}, the squared norm of its padding"
    return Value.bound(low, norm.high**2 * factor * (1.0 + 1e-15), confidence=norm.confidence, note=note)


def _crude(layer: LinearLayer, factor: float = 1.0) -> Value:
    """Return bounds of A that need no decomposition: the mean squared singular value is above it."""
    mean = layer.squared_frobenius() * factor / _reach(layer)[1] * (1.0 + 1e-12)
    return _fewer(layer) or Value.bound(0.0, mean, note=_TOO_LARGE)


def _of_matrix(layer: LinearLayer) -> tuple[Value, Value]:
    rows, columns = _reach(layer)
    upper = _squared(layer.norm())
    if rows < columns or float(rows) * columns * min(rows, columns) > _WORK:
        return _crude(layer), upper
    return _enclosed(layer, layer.rows[None])[0], upper


def _on_the_grid(layer: LinearLayer, ring: Convolution) -> tuple[Value, Value] | None:
    """Return exact A and B from the symbol's blocks, or None where these are too many."""
    axes = [ring._axis(axis) for axis in range(len(ring.size))]
    lengths = tuple(axis.rings[0] for axis in axes)
    if ring._work(axes, lengths) > 3.0 * _WORK:  # 12 flops an entry of real blocks, here they are complex
        return None
    top, bottom, side = 0.0, math.inf, 1
    phases = int(ring.weight.shape[1]) * math.prod(ring.stride)
    for blocks in ring._symbol(axes, lengths):
        values = torch.linalg.svdvals(blocks)
        top, bottom = max(top, float(values.max())), min(bottom, float(values.min()))
        side = max(blocks.shape[1:])
        # inputs that no output reads; of a transposed convolution, more inputs than outputs that are written
        unread = blocks.shape[1] > blocks.shape[2] if _transposed(layer) else blocks.shape[2] < phases
        bottom = 0.0 if unread else bottom
    if bottom <= 4.0 * side * torch.finfo(torch.float64).eps * top:
        bottom = 0.0  # not told apart from zero
    note = "over the frequencies of the grid"
    return _fewer(layer) or Value.exact(bottom**2, note=note), Value.exact(top**2, note=note)


def _off_the_grid(layer: LinearLayer, operator: Convolution) -> tuple[Value, Value]:
    pad = padding_node(layer)
    windows = [] if pad is None else pooling.pad_windows(pad)
    factor = float(pooling.overlap(windows))
    rows = int(operator.weight.shape[0]) // operator.groups * math.prod(operator.out_size)
    columns = int(operator.weight.shape[1]) * math.prod(operator.size)
    entries = float(operator.groups) * rows * columns
    small = (
        entries <= _ENTRIES and entries * min(rows, columns) <= _WORK and len(windows) <= len(operator.size)
    )
    if not small:
        return _crude(layer, factor), _squared(layer.norm(), factor)
    if pad is None:
        lower = _fewer(layer) or _enclosed(layer, operator.dense())[0]
        return lower, _squared(layer.norm())
    return _enclosed(layer, _with_padding(operator, windows))


def _with_padding(operator: Convolution, windows: list[pooling.Windows]) -> Tensor:
    """Return the matrices of the operator after a padding, shape (groups, rows, columns)."""
    places = [torch.arange(n) for n in operator.size]
    inner = list(operator.size)
    for axis, window in enumerate(windows):  # of the last axis first
        places[-1 - axis] = torch.full((window.n_out,), -1).index_copy_(0, window.outputs, window.inputs)
        inner[-1 - axis] = window.n
    index, kept = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    for place, n in zip(places, inner, strict=True):
        index = (index[:, None] * n + place).flatten()
        kept = (kept[:, None] & (place >= 0)).flatten()
    dense = operator.dense().unflatten(2, (-1, len(index)))
    matrix = torch.zeros(*dense.shape[:3], math.prod(inner), dtype=dense.dtype)
    return matrix.index_add_(3, index[kept], dense[..., kept]).flatten(2)


def _tree(layer: LinearLayer) -> Value:
    """Return the largest sum of the filters' squared gains at one frequency."""
    operator = layer.operator
    if operator is None:
        return Value.exact(layer.squared_frobenius(), note="sum of the squared weights")
    lengths, strides = [], []
    for n, stride, dilation, kernel in zip(
        operator.size, operator.stride, operator.dilation, operator.weight.shape[2:], strict=True
    ):
        circular = operator.mode == "circular"
        # a stride that does not divide the ring: the outputs are some of those of stride one
        strides.append(1 if circular and n % stride else stride)
        longer = n if circular else n + dilation * (int(kernel) - 1)
        lengths.append(-(-longer // strides[-1]) * strides[-1])
    power, rounding = _power(operator, lengths)
    for axis, stride in enumerate(strides):
        power = power.unflatten(1 + axis, (stride, -1)).mean(
            1 + axis
        )  # of the frequencies that fold together
    pad = padding_node(layer)
    factor = math.prod(operator._axis(axis).repeats for axis in range(len(operator.size)))
    factor *= 1 if pad is None else pooling.overlap(pooling.pad_windows(pad))
    top, note = float(power.max()), "every filter a branch of its own"
    if pad is None and periodic(operator) is not None:
        return Value.exact(top, note=note)
    return Value.bound(upper=factor * (top + rounding), note=note)


def _power(operator: Convolution, lengths: list[int]) -> tuple[Tensor, float]:
    """Return the filters' summed squared gains at a ring's frequencies, shape (groups, *lengths), and their rounding.

    A trigonometric polynomial whose coefficients are the products of all pairs of taps.
    """
    taps = operator.weight.reshape(operator.groups, -1, math.prod(operator.weight.shape[2:]))
    products = taps.mT @ taps
    grids = [
        d * torch.arange(int(k)) for d, k in zip(operator.dilation, operator.weight.shape[2:], strict=True)
    ]
    places = torch.cartesian_prod(*grids).reshape(-1, len(grids))
    apart = (places[:, None] - places).flatten(0, 1) % torch.tensor(lengths)
    coefficients = torch.zeros(operator.groups, *lengths, dtype=taps.dtype)
    for group, values in zip(coefficients, products, strict=True):
        group.index_put_(tuple(apart.T), values.flatten(), accumulate=True)
    power = torch.fft.fftn(coefficients, dim=tuple(range(1, 1 + len(lengths)))).real.clamp(min=0.0)
    digits = math.log2(math.prod(lengths)) + taps.shape[1] + taps.shape[2] ** 2
    return power, digits * 2.3e-16 * float(products.abs().sum((1, 2)).max())
