r"""Operator norms of convolutions: any stride, dilation, padding, groups, dimension.

A convolution on a finite grid with zero padding is a compression of a circulant
operator on a longer ring, whose norm is the largest norm of its symbol at the ring's
frequencies.  Three exact reductions make the ring short and the bound tight:

* a stride s is undone by splitting the input into its s phases per axis (more input
  channels, shorter kernel, stride one);
* taps that no output ever reads on this grid are dropped;
* the ring may be *twisted*, :math:`x_{p+N} = e^{i\theta} x_p`.  Zeros stay zeros under the
  twist, so every :math:`\theta` is admissible; :math:`\theta = \pi` samples the symbol between
  the frequencies of :math:`\theta = 0` and keeps the conjugate symmetry of real kernels.

A ring of length N is admissible for zero padding when
:math:`N \ge \max(n + \max(l, r), n_{out})`, with l and r how far the taps reach beyond
the input of length n: then no output reads a wrapped nonzero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.linalg.lanczos import lanczos
from theodolite.linalg.spectral import batched_sigma_max
from theodolite.value import Value

DENSE_SIDE = 2048  # up to here (and up to so many flops) the operator's own matrix is factorized
_DENSE_FLOPS = 2e10
_CHUNK = 1 << 22  # complex entries of a symbol held at once
_WORK = 2e9  # flops for which further rings are tried
_MOST = 2e11  # flops above which the symbol is sampled on a coarser grid
_STEPS = 24  # Lanczos steps for the lower end

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# (length N, whether the ring is twisted by pi) for each axis
Ring = tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class _Axis:
    """Taps of a kernel along one axis after the reduction to stride one.

    ``taps`` holds (index in the kernel, phase, offset); ``shortest`` is the shortest
    admissible ring, ``periodic`` says that it is the only one (circular padding), and
    ``repeats`` how often one output of the ring may occur among the outputs.
    """

    taps: tuple[tuple[int, int, int], ...]
    shortest: int
    periodic: bool
    repeats: int

    @property
    def span(self) -> int:
        offsets = [offset for _, _, offset in self.taps]
        return max(offsets) - min(offsets)

    @property
    def rings(self) -> list[tuple[int, bool]]:
        """Rings worth trying; one frequency is enough when there is only one offset."""
        if self.span == 0:
            return [(1, False)]
        if self.periodic:
            return [(self.shortest, False)]
        return [(self.shortest + more, twist) for more in (0, 1) for twist in (False, True)]


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution without its bias, on a given grid, as a linear operator.

    Attributes
    ----------
    weight : Tensor, shape (out, in / groups, ...), float64, on the CPU
    size : tuple of int
        Spatial size of the input.
    stride, dilation : tuple of int
    padding : tuple of (left, right)
        For each axis.
    groups : int
    mode : {"zeros", "circular"}
        What the padding is filled with; other paddings are operators of their own.
    limit : tuple of int or None
        Keep at most so many outputs along each axis (for adjoints of transposed convolutions).
    """

    weight: Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mode: str = "zeros"
    limit: tuple[int, ...] | None = None

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def out_size(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        sizes = []
        for axis, kernel in enumerate(self.weight.shape[2:]):
            reach = self.size[axis] + sum(self.padding[axis]) - self.dilation[axis] * (int(kernel) - 1) - 1
            size = reach // self.stride[axis] + 1
            sizes.append(size if self.limit is None else min(size, self.limit[axis]))
        return tuple(sizes)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operator to x of shape (n, channels, *size), float64."""
        flat = [amount for pair in reversed(self.padding) for amount in pair]
        if any(flat):
            x = F.pad(x, flat, mode="circular" if self.mode == "circular" else "constant")
        conv = _CONV[len(self.size)]
        y: Tensor = conv(x, self.weight, None, self.stride, 0, self.dilation, self.groups)
        for axis, size in enumerate(self.out_size):
            y = y.narrow(2 + axis, 0, size)
        return y

    def squared_frobenius(self) -> float:
        """Return the sum of the squared entries of the operator's matrix."""
        if self.mode == "circular":
            # every output reads each of its taps, and two taps of one output may fall together
            reach = [d * (int(k) - 1) for k, d in zip(self.weight.shape[2:], self.dilation, strict=True)]
            if all(n > r for n, r in zip(self.size, reach, strict=True)):
                return float((self.weight**2).sum()) * math.prod(self.out_size)
            return float((self.dense() ** 2).sum())
        ones = torch.ones(1, self.in_channels, *self.size, dtype=torch.float64)
        return float(replace(self, weight=self.weight**2)(ones).sum())

    @property
    def is_small(self) -> bool:
        """Whether the matrix (one block a group) is small enough to be factorized."""
        columns = int(self.weight.shape[1]) * math.prod(self.size)
        rows = int(self.weight.shape[0]) // self.groups * math.prod(self.out_size)
        flops = 2.0 * self.groups * rows * columns * min(rows, columns)
        return min(rows, columns) <= DENSE_SIDE and flops <= _DENSE_FLOPS

    def dense(self) -> Tensor:
        """Return the operator's blocks as matrices, shape (groups, rows, columns)."""
        outputs, inputs = math.prod(self.out_size), math.prod(self.size)
        rows, columns = int(self.weight.shape[0]) // self.groups, int(self.weight.shape[1])
        matrix = torch.zeros(self.groups, rows, outputs, columns, inputs, dtype=torch.float64)
        blocks = self.weight.reshape(self.groups, rows, columns, -1)
        for tap, place in enumerate(itertools.product(*(range(int(k)) for k in self.weight.shape[2:]))):
            pairs = [self._reads(axis, j) for axis, j in enumerate(place)]
            t = _flat_index([reads[0] for reads in pairs], self.out_size)
            p = _flat_index([reads[1] for reads in pairs], self.size)
            # two taps may read the same input under circular padding, so that they add up
            matrix[:, :, t, :, p] += blocks[:, :, :, tap].reshape(1, self.groups, rows, columns)
        return matrix.reshape(self.groups, rows * outputs, columns * inputs)

    def _reads(self, axis: int, j: int) -> tuple[Tensor, Tensor]:
        """Return the outputs that read an input through tap j, and which input they read."""
        n = self.size[axis]
        t = torch.arange(self.out_size[axis])
        p = self.stride[axis] * t + self.dilation[axis] * j - self.padding[axis][0]
        if self.mode == "circular":
            return t, p % n
        inside = (p >= 0) & (p < n)
        return t[inside], p[inside]

    def norm(self, tol: float = 1e-8) -> Value:
        """Return a two-sided bound of the operator norm.

        Small operators by their matrix; otherwise the symbol above and Lanczos'
        Ritz values of the true operator below.

        Parameters
        ----------
        tol : float
            Relative width aimed at.
        """
        if 0 in self.out_size or not bool(self.weight.any()):
            return Value.bound(0.0, 0.0, note="the operator is zero")
        axes = [self._axis(axis) for axis in range(len(self.size))]
        if all(len(axis.taps) == 1 and axis.repeats == 1 for axis in axes):
            # one tap is one matrix at every place, and some output reads the input through it
            matrix = self.weight
            for axis in axes:
                matrix = matrix.select(2, axis.taps[0][0])
            lower, upper = batched_sigma_max(matrix.reshape(self.groups, -1, matrix.shape[1]), tol=tol)
            return Value.bound(lower, upper, note="from the matrix of its only tap")
        if self.is_small:
            lower, upper = batched_sigma_max(self.dense(), tol=tol)
            return Value.bound(lower, upper, note="from the operator's own matrix")
        upper = self.symbol_bound()
        lower = min(self.ritz_bound(), upper)
        return Value.bound(lower, upper, note="symbol on admissible rings above, Ritz value below")

    def ritz_bound(self, steps: int = _STEPS) -> float:
        """Return a lower bound of the norm: Lanczos on A'A, from a fixed random start."""
        shape = (1, self.in_channels, *self.size)

        def gram(v: Tensor) -> Tensor:
            with torch.enable_grad():
                x = v.reshape(shape).clone().requires_grad_()
                half = 0.5 * self(x).square().sum()
                return torch.autograd.grad(half, x)[0].flatten()

        generator = torch.Generator().manual_seed(1)
        run = lanczos(gram, math.prod(shape), steps=steps, generator=generator, tol=1e-6, which="largest")
        vector = run.ritz_vectors([-1])[:, 0]
        ratio = float(self(vector.reshape(shape)).norm() / vector.norm())
        return ratio * (1.0 - 1e-12)

    # upper end

    def _axis(self, axis: int) -> _Axis:
        n, n_out = self.size[axis], self.out_size[axis]
        stride, dilation, left = self.stride[axis], self.dilation[axis], self.padding[axis][0]
        kernel = int(self.weight.shape[2 + axis])
        if self.mode == "circular":
            # a stride that does not divide the ring: the outputs are some of those of stride one
            stride = stride if n % stride == 0 else 1
            length = n // stride
            taps = [(j, *_split(dilation * j - left, stride)) for j in range(kernel)]
            last = n_out if stride == self.stride[axis] else (n_out - 1) * self.stride[axis] + 1
            return _Axis(tuple((j, f, q) for j, f, q in taps), length, True, math.ceil(last / length))
        kept: list[tuple[int, int, int]] = []
        for j in range(kernel):
            phase, offset = _split(dilation * j - left, stride)
            length = -(-(n - phase) // stride)
            if max(0, -offset) < min(n_out, length - offset):  # some output reads the input here
                kept.append((j, phase, offset))
        length = -(-n // stride)
        if not kept:
            return _Axis((), 1, False, 1)
        before = max(0, -min(offset for _, _, offset in kept))
        after = max(0, n_out - 1 + max(offset for _, _, offset in kept) - (length - 1))
        return _Axis(tuple(kept), max(length + max(before, after), n_out), False, 1)

    def symbol_bound(self, rings: Sequence[Ring] | None = None) -> float:
        """Return an upper bound of the norm by the symbol on admissible rings.

        Parameters
        ----------
        rings : sequence of rings, optional
            Each gives (N, twisted) for every axis; the best of several short rings by
            default.  They are *not* checked for admissibility.
        """
        axes = [self._axis(axis) for axis in range(len(self.size))]
        if any(not axis.taps for axis in axes):
            return 0.0
        repeats = math.sqrt(math.prod(axis.repeats for axis in axes))
        if rings is not None:
            return repeats * min(self._on_ring(axes, ring) for ring in rings)
        candidates = list(itertools.product(*(axis.rings for axis in axes)))
        candidates.sort(key=lambda ring: (len(set(ring)), math.prod(n for n, _ in ring)))
        if self._work(axes, candidates[0]) > _MOST:
            ring, factor = self._coarse(axes)
            return repeats * factor * self._on_ring(axes, ring)
        best, spent = math.inf, 0.0
        for ring in candidates:
            work = self._work(axes, ring)
            if spent and spent + work > _WORK:
                continue
            spent += work
            best = min(best, self._on_ring(axes, ring))
        return repeats * best

    def _work(self, axes: Sequence[_Axis], ring: Ring) -> float:
        """Return the flops of one bound, by a count of frequencies and block sizes."""
        rows = int(self.weight.shape[0]) // self.groups
        columns = int(self.weight.shape[1]) * math.prod(len({f for _, f, _ in axis.taps}) for axis in axes)
        frequencies = math.prod(n for n, _ in ring) / 2.0 + 1.0
        return frequencies * self.groups * 12.0 * rows * columns * min(rows, columns)

    def _coarse(self, axes: Sequence[_Axis]) -> tuple[Ring, float]:
        r"""Return a coarser grid and the factor that makes up for it.

        A real trigonometric polynomial whose frequencies span d stays above
        :math:`M \cos(d t / 2)` within t of a maximum M; half a grid step is
        :math:`t = \pi / N`.  One factor an axis bounds the symbol at *every* frequency.
        """
        lengths, factor = [], 1.0
        for axis in axes:
            # at a length of one the axis has one offset, so that nothing is lost
            length = min(axis.rings[0][0], max(16, 10 * axis.span))
            lengths.append((length, False))
            if length < axis.rings[0][0]:
                factor /= math.cos(math.pi * axis.span / (2 * length))
        return tuple(lengths), factor

    def _on_ring(self, axes: Sequence[_Axis], ring: Ring) -> float:
        upper = 0.0
        for blocks in self._symbol(axes, ring):
            upper = max(upper, batched_sigma_max(blocks, tol=1e-8)[1])
        taps = math.prod(len(axis.taps) for axis in axes)
        reach = sum(max(abs(offset) for _, _, offset in axis.taps) for axis in axes)
        rounding = (taps + 8 * reach + 16) * math.sqrt(taps) * 2.3e-16 * float(self.weight.norm())
        return upper + rounding

    def _symbol(self, axes: Sequence[_Axis], ring: Ring) -> Iterator[Tensor]:
        """Yield the symbol's blocks at half of the frequencies (the others are conjugate)."""
        indices = torch.cartesian_prod(*(torch.arange(n) for n, _ in ring)).reshape(-1, len(ring))
        lengths = torch.tensor([n for n, _ in ring])
        twists = torch.tensor([int(twist) for _, twist in ring])
        places = torch.tensor([math.prod(n for n, _ in ring[axis + 1 :]) for axis in range(len(ring))])
        partners = (-indices - twists) % lengths
        indices = indices[(indices * places).sum(1) <= (partners * places).sum(1)]
        angles = math.pi * (2 * indices + twists).double() / lengths
        rows, per_group = int(self.weight.shape[0]), int(self.weight.shape[1])
        phases = list(itertools.product(*(sorted({f for _, f, _ in axis.taps}) for axis in axes)))
        chunk = max(1, _CHUNK // (rows * per_group * len(phases)))
        for part in angles.split(chunk):
            pieces = []
            for phase in phases:
                chosen = [[(j, q) for j, f, q in axis.taps if f == phase[a]] for a, axis in enumerate(axes)]
                kernel = self.weight
                exponent = torch.zeros(len(part), 1, dtype=torch.float64)
                for a, taps in enumerate(chosen):
                    kernel = kernel.index_select(2 + a, torch.tensor([j for j, _ in taps]))
                    offsets = torch.tensor([float(q) for _, q in taps], dtype=torch.float64)
                    along = part[:, a : a + 1] * offsets
                    exponent = (exponent[:, :, None] + along[:, None, :]).flatten(1)
                waves = torch.polar(torch.ones_like(exponent), exponent)
                flat = kernel.reshape(rows * per_group, -1)
                pieces.append((waves @ flat.T.to(waves.dtype)).reshape(-1, rows, per_group))
            blocks = torch.cat(pieces, 2)
            yield blocks.reshape(-1, rows // self.groups, blocks.shape[2])


def _split(position: int, stride: int) -> tuple[int, int]:
    """Return (phase, offset) with position = stride * offset + phase."""
    offset, phase = divmod(position, stride)
    return phase, offset


def _flat_index(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return row-major indices of the grid that index vectors span."""
    index = torch.zeros(1, dtype=torch.long)
    for part, size in zip(parts, sizes, strict=True):
        index = (index[:, None] * size + part[None, :]).flatten()
    return index
