"""Pooling and padding as separable selections: which output reads which input, per axis.

A pooling window over several axes is the product of its windows along each axis, so that
norms and counts multiply.  Channels do not mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.analysis.graph import Node
from theodolite.analysis.linear_layers import per_axis
from theodolite.linalg.spectral import sigma_max

MAX_POOLS = {f"{prefix}max_pool{d}d": d for prefix in ("", "adaptive_") for d in (1, 2, 3)}
MAX_POOLS |= {f"max_pool{d}d_with_indices": d for d in (1, 2, 3)}
AVERAGE_POOLS = {f"{prefix}avg_pool{d}d": d for prefix in ("", "adaptive_") for d in (1, 2, 3)}
PADS = frozenset(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d".split()
)
_DENSE = 2048  # longest axis whose matrix is formed


@dataclass(frozen=True, eq=False)
class Windows:
    """Weighted reads along one axis: output ``outputs[k]`` reads input ``inputs[k]``.

    Attributes
    ----------
    outputs, inputs : Tensor, shape (reads,), int64
    weights : Tensor, shape (reads,), float64
    n_out, n : int
        Number of outputs and of inputs.
    """

    outputs: Tensor
    inputs: Tensor
    weights: Tensor
    n_out: int
    n: int

    @property
    def overlap(self) -> int:
        """Largest number of windows that one input lies in."""
        return int(torch.bincount(self.inputs, minlength=1).max()) if len(self.inputs) else 0

    def norm(self) -> tuple[float, float]:
        """Return lower and upper bounds of the axis' operator norm."""
        if len(self.inputs) == 0:
            return 0.0, 0.0
        if max(self.n, self.n_out) <= _DENSE:
            matrix = torch.zeros(self.n_out, self.n, dtype=torch.float64)
            matrix.index_put_((self.outputs, self.inputs), self.weights, accumulate=True)
            value = sigma_max(matrix)
            return value.low, value.high
        # Schur's test above, the norm of the longest row below
        size = self.weights.abs()
        rows = torch.zeros(self.n_out, dtype=torch.float64).index_add_(0, self.outputs, size)
        columns = torch.zeros(self.n, dtype=torch.float64).index_add_(0, self.inputs, size)
        squares = torch.zeros(self.n_out, dtype=torch.float64).index_add_(0, self.outputs, size**2)
        return math.sqrt(float(squares.max())), math.sqrt(float(rows.max() * columns.max())) * (1 + 1e-12)

    def apply(self, x: Tensor, axis: int, power: float = 1.0) -> Tensor:
        """Return the weighted sums along an axis of x, with the weights raised to a power."""
        weights = self.weights.abs() ** power
        moved = x.movedim(axis, -1)
        picked = moved[..., self.inputs.to(x.device)] * weights.to(x)
        sums = torch.zeros(*moved.shape[:-1], self.n_out, dtype=x.dtype, device=x.device)
        return sums.index_add_(-1, self.outputs.to(x.device), picked).movedim(-1, axis)


def overlap(windows: Sequence[Windows]) -> int:
    """Return the largest number of windows that one input lies in, over all axes."""
    return math.prod(w.overlap for w in windows)


def norm(windows: Sequence[Windows]) -> tuple[float, float]:
    """Return lower and upper bounds of the operator norm of a separable selection."""
    lower, upper = 1.0, 1.0
    for w in windows:
        low, high = w.norm()
        lower, upper = lower * low, upper * high
    return lower, upper


def pool_windows(node: Node) -> list[Windows]:
    """Return the windows of a pooling node along each of its axes.

    Averages carry their weights; the windows of a maximum have weights one.
    """
    average = node.op in AVERAGE_POOLS
    axes = AVERAGE_POOLS[node.op] if average else MAX_POOLS[node.op]
    source = node.args[0]
    sizes, outs = source.shape[-axes:], node.shape[-axes:] if node.shape else ()
    if node.op.startswith("adaptive"):
        return [_adaptive(n, n_out, average) for n, n_out in zip(sizes, outs, strict=True)]
    kernel = per_axis(node.args[1], axes)
    stride = per_axis(node.argument(2, "stride") or kernel, axes)
    padding = per_axis(node.argument(3, "padding", 0), axes)
    if not average:
        dilation = per_axis(node.argument(4, "dilation", 1), axes)
        return [
            _sliding(n, n_out, k, s, p, d)
            for n, n_out, k, s, p, d in zip(sizes, outs, kernel, stride, padding, dilation, strict=True)
        ]
    include = bool(node.argument(5, "count_include_pad", True))
    divisor = node.argument(6, "divisor_override")
    windows = []
    for axis in range(axes):
        fixed = None if divisor is None else (float(divisor) if axis == 0 else 1.0)
        reads = _sliding(sizes[axis], outs[axis], kernel[axis], stride[axis], padding[axis], 1)
        windows.append(_averaged(reads, kernel[axis], stride[axis], padding[axis], include, fixed))
    return windows


def pad_windows(node: Node) -> list[Windows]:
    """Return which input each output of a padding node copies, along each padded axis."""
    flat = [int(v) for v in node.args[1]]
    mode = {"constant_pad_nd": "constant", "pad": node.argument(2, "mode", "constant")}.get(
        node.op, "reflect" if node.op.startswith("reflection") else "replicate"
    )
    source: Node = node.args[0]
    assert source.shape is not None
    windows = []
    for axis in range(len(flat) // 2):
        left, right = flat[2 * axis : 2 * axis + 2]
        n = source.shape[-1 - axis]
        index = torch.arange(1.0, n + 1.0, dtype=torch.float64).reshape(1, 1, -1)
        read = F.pad(index, (left, right), mode=mode).flatten().long() - 1  # -1 where a constant stands
        kept = read >= 0
        outputs = torch.arange(len(read))[kept]
        windows.append(Windows(outputs, read[kept], _ones(outputs), len(read), n))
    return windows


def _ones(like: Tensor) -> Tensor:
    return torch.ones(len(like), dtype=torch.float64)


def _adaptive(n: int, n_out: int, average: bool) -> Windows:
    pairs = [(t, i) for t in range(n_out) for i in range(t * n // n_out, -(-(t + 1) * n // n_out))]
    outputs, inputs = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    weights = _ones(outputs)
    if average:
        weights = weights / torch.bincount(outputs, minlength=n_out)[outputs]
    return Windows(outputs, inputs, weights, n_out, n)


def _sliding(n: int, n_out: int, kernel: int, stride: int, padding: int, dilation: int) -> Windows:
    places = stride * torch.arange(n_out)[:, None] - padding + dilation * torch.arange(kernel)
    inside = (places >= 0) & (places < n)
    outputs = torch.arange(n_out)[:, None].expand_as(places)[inside]
    return Windows(outputs, places[inside], _ones(outputs), n_out, n)


def _averaged(
    reads: Windows, kernel: int, stride: int, padding: int, include_pad: bool, divisor: float | None
) -> Windows:
    if divisor is not None:
        counts: Any = torch.full((reads.n_out,), divisor, dtype=torch.float64)
    elif include_pad:
        # a last window that hangs over (ceil_mode) counts only what lies on the padded input
        start = stride * torch.arange(reads.n_out) - padding
        counts = (start + kernel).clamp(max=reads.n + padding) - start
    else:
        counts = torch.bincount(reads.outputs, minlength=reads.n_out)
    return Windows(reads.outputs, reads.inputs, reads.weights / counts[reads.outputs], reads.n_out, reads.n)
