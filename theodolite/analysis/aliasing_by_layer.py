r"""Aliasing by layer: what folds where a network subsamples, and what its nonlinearities make.

*Subsampling.*  A layer of stride s is the same layer of stride one, of which every s-th position is
kept.  The discrete Fourier transform of the layer of stride one splits its energy: what lies beyond
the coarse grid's band, :math:`|\omega_i| > \pi / s_i` for some axis i, folds onto lower frequencies
(at the band's edge itself half of it counts).  White noise has the share :math:`1 - 1 / s^d`, a signal
inside the band 0.

*Nonlinearities.*  A pointwise nonlinearity acts on the continuous image that its samples stand for.
On a twofold finer grid, by trigonometric interpolation, the share of its output's energy beyond the
band of its own grid is what it makes that this grid cannot hold.  (What lies beyond the finer grid's
band too is folded there.)

*Gains.*  The largest norm of a filter's symbol on the frequencies that fold, relative to that on the
frequencies that stay: what the weights could let through, whatever the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis import pooling
from theodolite.analysis.admissibility import strides
from theodolite.analysis.cost import Cost, forward_cost
from theodolite.analysis.equivariance import float64_options
from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.linear_layers import Constants, per_axis
from theodolite.analysis.operator_norms import ACTIVATIONS
from theodolite.analysis.spatial import FREE, Layout
from theodolite.analysis.translation_action import Action
from theodolite.linalg.spectral import batched_sigma_max
from theodolite.value import Value

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_POOLS = pooling.MAX_POOLS | pooling.AVERAGE_POOLS
_NONLINEARITIES = (ACTIVATIONS.keys() - {"neg"}) | {
    *(
        "gelu",
        "elu",
        "celu",
        "softplus",
        "leaky_relu",
        "prelu",
        "clamp",
        "clamp_min",
        "square",
        "pow",
        "exp",
        "sign",
    )
}
_CHUNK_BYTES = 192 << 20
_GAIN_WORK = 1e9  # rows x columns x the smaller of both over all frequencies of a filter's symbol
_FINEST = {1: 256, 2: 32, 3: 12}  # frequencies an axis


@dataclass(eq=False)
class Subsampling:
    """One place where positions are dropped.

    Attributes
    ----------
    name : str
    where : str
        For messages: "layer 'conv1' (Conv2d)".
    strides : tuple of int
        Along each axis.
    shares : Tensor, shape (n,), float64
        For each input the share of the energy before subsampling that folds.
    gain : Value or None
        Largest gain on the frequencies that fold relative to that on those that stay; None where
        there is no filter or it is too large.
    """

    name: str
    where: str
    strides: tuple[int, ...]
    shares: Tensor
    gain: Value | None = None


@dataclass(eq=False)
class Aliasing:
    """What folds and what is made beyond the band, for a set of inputs.

    Attributes
    ----------
    subsamplings : list of Subsampling
        In order of execution.
    nonlinearities : dict of str to Tensor, shape (n,), float64
        Shares of the energy beyond the band behind each pointwise nonlinearity.
    n : int
        Number of inputs.
    exact : bool
        Whether float64 was used (False when the graph insists on its own precision).
    """

    subsamplings: list[Subsampling]
    nonlinearities: dict[str, Tensor]
    n: int
    exact: bool


def aliasing_by_layer(
    graph: Graph, x: Tensor, action: Action | None, *, cost: Cost | None = None
) -> Aliasing:
    """Measure aliasing at every layer of a network.

    Parameters
    ----------
    graph : Graph
        A traced graph.
    x : Tensor, shape (n, ...)
        Inputs.
    action : Action or None
        Where the positions are; without it the nonlinearities are left out.
    cost : Cost, optional
        Of a forward pass, if known.

    Returns
    -------
    Aliasing
        Computed in float64 where the graph allows it.

    Raises
    ------
    ValueError
        If the graph was not traced, or a value on the way is not finite.
    """
    cost = cost or forward_cost(graph, x)
    places = Places.of(graph, action)
    options, exact = float64_options(graph, x)
    x = x.double() if exact else x
    folded: dict[Node, list[Tensor]] = {node: [] for node in places.subsampled}
    made: dict[Node, list[Tensor]] = {node: [] for node in places.nonlinear}
    casts = options.get("handlers", {})

    def observed(node: Node, *args: Any, **kwargs: Any) -> Any:
        assert node.function is not None
        handler = casts.get(node.op)
        if node in folded:
            full, dims = at_full_resolution(node, args, kwargs)
            folded[node].append(folded_share(full, dims, places.subsampled[node]))
        if node in made:
            fine = _interpolated(args[0], places.nonlinear[node])
            made[node].append(share_beyond(node.function(fine, *args[1:], **kwargs), places.nonlinear[node]))
        return node.function(*args, **kwargs) if handler is None else handler(node, *args, **kwargs)

    watched = {node.op for node in (*folded, *made)}
    rows = max(1, int(_CHUNK_BYTES / (8 * 3 * 2 ** max(places.dimensions, 1) * cost.widest)))
    with torch.no_grad():
        for block in x.split(rows):
            graph.run(block, **{**options, "handlers": {**casts, **dict.fromkeys(watched, observed)}})
    gains = _Gains(Constants(graph))
    return Aliasing(
        [
            Subsampling(places.names[node], node.where, by, torch.cat(folded[node]), gains.of(node, by))
            for node, by in places.subsampled.items()
        ],
        {places.names[node]: torch.cat(shares) for node, shares in made.items()},
        len(x),
        exact,
    )


@dataclass(frozen=True)
class Places:
    """Where a network drops positions, and where it is pointwise and nonlinear.

    Attributes
    ----------
    subsampled : dict of Node to tuple of int
        Strides along each axis, at least one above 1.
    nonlinear : dict of Node to tuple of int
        Dimensions of the tensor that are positions.
    names : dict of Node to str
    """

    subsampled: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    nonlinear: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    names: dict[Node, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, action: Action | None) -> Places:
        """Return the places of a traced graph."""
        found, data, used = cls(), Constants(graph).data, dict[str, int]()
        for node in graph.operations:
            if node not in data or (node.op in _CONVOLUTIONS and node.args[1] in data):
                continue
            by = _strides(node)
            dims = _positions(node, action)
            if max(by, default=1) > 1:
                found.subsampled[node] = by
            elif node.op in _NONLINEARITIES and dims:
                found.nonlinear[node] = dims
            else:
                continue
            name = node.layer or node.op
            used[name] = used.get(name, 0) + 1
            found.names[node] = name if used[name] == 1 else f"{name} #{used[name]}"
        return found

    @property
    def dimensions(self) -> int:
        """Most axes at any of them."""
        return max((len(axes) for axes in (*self.subsampled.values(), *self.nonlinear.values())), default=0)


def measured_flops(places: Places, cost: Cost) -> float:
    """Return roughly the multiplications and additions that measuring one sample takes."""
    total = cost.total
    for node, by in places.subsampled.items():
        size = cost.numel(node) * math.prod(by)
        total += cost.flops[node] * math.prod(by) + 5.0 * size * math.log2(size + 1)
    for node, dims in places.nonlinear.items():
        size = cost.numel(node) * 2 ** len(dims)
        total += 20.0 * size * math.log2(size + 1)
    return total


def _strides(node: Node) -> tuple[int, ...]:
    """Return by how much an operation subsamples along each axis, () where it does not."""
    if node.op in _CONVOLUTIONS:
        return per_axis(node.argument(3, "stride", 1), _CONVOLUTIONS[node.op])
    if node.op == "slice" and node.shape is not None:
        dim, step = int(node.argument(1, "dim", 0)) % len(node.shape), int(node.argument(4, "step", 1))
        return (step,) if dim >= 2 and step > 1 else ()
    by = strides(node)
    source = node.args[0] if by else None
    if any(s != int(s) for s in by) or source is None or source.shape is None:
        return ()  # cells of unequal size
    whole = [n == int(s) for n, s in zip(source.shape[-len(by) :], by, strict=True)]
    if node.op.startswith("adaptive") and all(whole):
        return ()  # one mean of all positions, which no grid is left to hold
    return tuple(int(s) for s in by)


def _positions(node: Node, action: Action | None) -> tuple[int, ...]:
    """Return the dimensions of an operation's input that are positions, each of one axis and unpadded."""
    source = node.args[0] if node.args else None
    if action is None or not isinstance(source, Node):  # several inputs come as a list
        return ()
    step = action.steps.get(source)
    layout = step.layout if step is not None else None
    if not isinstance(layout, Layout) or source.shape is None:
        return ()
    return tuple(
        d
        for d, label in enumerate(layout.labels)
        if label is not None
        and len(label) == 1
        and 0 <= label[0] < FREE
        and source.shape[d] == layout.grid[label[0]] > 1
    )


def at_full_resolution(
    node: Node, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return what a subsampling operation gives at stride one, and the dimensions that hold positions."""
    assert node.function is not None
    x = args[0]
    if node.op == "slice":
        dim = int(node.argument(1, "dim", 0)) % x.ndim
        ends = [
            int(v) for v in (node.argument(2, "start") or 0, min(node.argument(3, "end") or 0, x.shape[dim]))
        ]
        whole = torch.arange(x.shape[dim], device=x.device)[ends[0] : ends[1] or None]
        return x.index_select(dim, whole), (dim,)
    axes = len(_strides(node))
    dims = tuple(range(x.ndim - axes, x.ndim))
    ones, given = [1] * axes, list(args)
    if node.op in _CONVOLUTIONS:
        given, kwargs = (
            (given, {**kwargs, "stride": ones})
            if len(given) < 4
            else ([*given[:3], ones, *given[4:]], kwargs)
        )
        result: Tensor = node.function(*given, **kwargs)
        return result, dims
    functions: dict[tuple[bool, int], Callable[..., Tensor]] = {
        (True, 1): torch.nn.functional.avg_pool1d,
        (True, 2): torch.nn.functional.avg_pool2d,
        (True, 3): torch.nn.functional.avg_pool3d,
        (False, 1): torch.nn.functional.max_pool1d,
        (False, 2): torch.nn.functional.max_pool2d,
        (False, 3): torch.nn.functional.max_pool3d,
    }
    average = node.op in pooling.AVERAGE_POOLS
    pool = functions[average, axes]
    if node.op.startswith("adaptive"):
        return pool(x, list(_strides(node)), 1), dims
    kernel, padding = (list(per_axis(a, axes)) for a in (node.args[1], node.argument(3, "padding", 0)))
    if average:
        include = bool(node.argument(5, "count_include_pad", True))
        return pool(x, kernel, 1, padding, False, include), dims
    return pool(x, kernel, 1, padding, list(per_axis(node.argument(4, "dilation", 1), axes))), dims


def folded_share(x: Tensor, dims: Sequence[int], by: Sequence[int]) -> Tensor:
    """Return the share of each sample's energy that folds when every ``by``-th position is kept.

    Parameters
    ----------
    x : Tensor, shape (n, ...)
    dims : sequence of int
        Dimensions that are positions.
    by : sequence of int
        Strides along them.

    Returns
    -------
    Tensor, shape (n,), float64, on the CPU
        0 for a sample that is zero.
    """

    def outside(stride: int) -> Callable[[Tensor, int], Tensor]:
        return lambda k, m: (1.0 + (2 * stride * k - m).sign().double()) / 2.0

    return _share(x, dims, [outside(stride) for stride in by])


def share_beyond(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the share of each sample's energy beyond the band of the grid that is half as fine."""
    return _share(x, dims, [lambda k, m: (4 * k > m).double()] * len(dims))


def _share(x: Tensor, dims: Sequence[int], outside: Sequence[Callable[[Tensor, int], Tensor]]) -> Tensor:
    """Return the share of the energy outside a product of bands, given what of |k| of m is outside each."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x: expected finite values at every layer, got NaN or infinite ones")
    axes = tuple(range(-len(dims), 0))
    moved = x.movedim(list(dims), list(axes))
    power = torch.fft.rfftn(moved, dim=axes).abs().square()
    power = power.double().reshape(len(x), -1, *power.shape[-len(dims) :]).sum(1)
    inside = torch.ones_like(power[0])
    for axis, share in enumerate(outside):
        m, count = moved.shape[axis - len(dims)], power.shape[1 + axis]
        k = torch.arange(count, device=power.device)
        k = torch.minimum(k, m - k)
        shape = [count if a == axis else 1 for a in range(len(dims))]
        inside = inside * (1.0 - share(k, m)).reshape(shape)
        if axis == len(dims) - 1:  # of two conjugate frequencies one is there
            power = power * torch.where((k > 0) & (2 * k < m), 2.0, 1.0)
    total = power.flatten(1).sum(1)
    beyond = (power * (1.0 - inside)).flatten(1).sum(1)
    return torch.where(total > 0, beyond / torch.where(total > 0, total, 1.0), 0.0).cpu()


def _interpolated(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the trigonometric interpolant on a grid twice as fine along each of the dimensions."""
    for dim in dims:
        m = x.shape[dim]
        spectrum = torch.fft.rfft(x, dim=dim)
        if m % 2 == 0:
            spectrum.select(dim, m // 2).mul_(0.5)  # it stands for two frequencies of the finer grid
        x = 2.0 * torch.fft.irfft(spectrum, n=2 * m, dim=dim)
    return x


class _Gains:
    """Gains of the filters before a subsampling."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants

    def of(self, node: Node, by: tuple[int, ...]) -> Value | None:
        kernel, dilation, groups = self.kernel(node, len(by))
        if kernel is None:
            return None
        rows, columns = int(kernel.shape[0]) // groups, int(kernel.shape[1])
        finest, work = _FINEST[len(by)], float(groups * rows * columns * min(rows, columns))
        while finest > 4 and work * finest ** len(by) > 2.0 * _GAIN_WORK:
            finest //= 2
        if work * finest ** len(by) > 20.0 * _GAIN_WORK:
            return None
        stays, folds = (_largest(kernel, dilation, groups, part) for part in _frequencies(finest, by))
        grid = " x ".join([str(finest)] * len(by))
        note = f"over {grid} frequencies of the layer's filters"
        if stays[1] == 0.0 or folds[1] == 0.0:
            return Value.bound(0.0, 0.0 if folds[1] == 0.0 else math.inf, note=note)
        return Value.bound(folds[0] / stays[1], folds[1] / stays[0], note=note)

    def kernel(self, node: Node, axes: int) -> tuple[Tensor | None, tuple[int, ...], int]:
        """Return the filters in the layout of a convolution, their dilation and groups."""
        if node.op in _CONVOLUTIONS:
            dilation = per_axis(node.argument(5, "dilation", 1), axes)
            return self.constants.tensor(node.args[1]), dilation, int(node.argument(6, "groups", 1))
        if node.op in pooling.AVERAGE_POOLS:
            sizes = [int(s) for s in strides(node)] if node.op.startswith("adaptive") else node.args[1]
            return torch.ones(1, 1, *per_axis(sizes, axes), dtype=torch.float64), (1,) * axes, 1
        return None, (1,) * axes, 1


def _frequencies(count: int, by: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the frequencies of a grid that stay and those that fold, up to conjugates, shape (F, axes)."""
    k = torch.cartesian_prod(*[torch.arange(count) - (count - 1) // 2 for _ in by]).reshape(-1, len(by))
    k = k[k[:, -1] >= 0]  # a real filter has the same gain at the opposite frequency
    fold = (2 * k.abs() * torch.tensor(list(by)) > count).any(1)
    angles = 2.0 * math.pi * k.double() / count
    return angles[~fold], angles[fold]


def _largest(kernel: Tensor, dilation: Sequence[int], groups: int, angles: Tensor) -> tuple[float, float]:
    """Return bounds of the largest norm of a kernel's symbol at the given frequencies."""
    grids = [d * torch.arange(int(n)) for d, n in zip(dilation, kernel.shape[2:], strict=True)]
    places = torch.cartesian_prod(*grids).reshape(-1, len(grids)).double()
    phase = angles @ places.T
    flat = kernel.flatten(2).flatten(0, 1)
    symbol = torch.polar(torch.ones_like(phase), phase) @ flat.T.to(torch.complex128)
    return batched_sigma_max(symbol.reshape(-1, kernel.shape[0] // groups, kernel.shape[1]), tol=1e-6)
