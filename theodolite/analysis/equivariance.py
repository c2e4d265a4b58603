"""Translation equivariance of a network, at every layer: measured, and read off the graph.

A cyclic shift T_c of the input by c pixels acts on a layer f_l of total stride P as
the shift T'_c by c/P positions, and trivially where no positions are left.  Three
numbers are measured for every layer: the defect |f_l(T_c x) - T'_c f_l(x)| / |f_l(x)|
of the network up to it, its own defect when every layer before it is replaced by one
that commutes with the shifts, and |f_l(T_c x) - f_l(x)| / |f_l(x)|, how far it is from
invariant.  Beside them stands what the operations prove: with circular padding, strides
that divide the sizes, pointwise nonlinearities and reductions over all positions, every
layer commutes with the shifts by multiples of the strides so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis import spatial_rules
from theodolite.analysis.cost import Cost, forward_cost
from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.spatial import BATCH, Layout, Step
from theodolite.analysis.spatial_moves import MOVES
from theodolite.analysis.translation_action import Action, Shift, faults

_CREATIONS = ("zeros", "ones", "full", "arange", "linspace", "scalar_tensor")
_CHUNK_BYTES = 192 << 20


@dataclass(frozen=True)
class LayerDefect:
    """What shifts do to one layer.

    Attributes
    ----------
    name : str
        The layer, with the operation where a module runs several.
    where : str
        For messages: "layer 'conv1' (Conv2d)".
    defects : Tensor, shape (shifts, n)
        Relative defects; NaN for shifts that act on no whole number of positions.
    own : Tensor, shape (shifts, n)
        Defects that the layer makes itself: with inputs that are shifted exactly.
    invariance : Tensor, shape (shifts, n)
        Relative distances between the layer at a shifted input and at the input.
    lattice : tuple of bool
        For each shift whether structure could prove the defect zero.
    proved : bool
        Whether the operations up to here prove equivariance on the lattice.
    fault : str
        Why the layer itself is not shown to commute with shifts, "" if it is.
    """

    name: str
    where: str
    defects: Tensor
    own: Tensor
    invariance: Tensor
    lattice: tuple[bool, ...]
    proved: bool
    fault: str

    @property
    def counted(self) -> Tensor:
        """The defects on the lattice, or at every shift that acts on it where none is on the lattice."""
        if any(self.lattice):
            return self.defects[torch.tensor(self.lattice)]
        return self.defects[~self.defects.isnan().any(1)]

    @property
    def own_defect(self) -> float:
        """Mean of the layer's own defects on the lattice, 0 where none of the shifts is on it."""
        return float(self.own[torch.tensor(self.lattice)].mean()) if any(self.lattice) else 0.0


@dataclass(frozen=True)
class Equivariance:
    """Defects of all layers under a set of shifts.

    Attributes
    ----------
    layers : list of LayerDefect
        In order of execution.
    shifts : list of tuple of int
        Pixels along each spatial axis.
    n : int
        Number of inputs.
    outputs, shifted_outputs : Tensor, shape (n, ...) and (shifts, n, ...)
        The network's outputs.
    fault : str
        The first operation that is not shown to commute with shifts and why, "" if none.
    sizes : tuple of int
        Positions of the input along each spatial axis.
    exact : bool
        Whether float64 was used (False when the graph insists on its own precision).
    rounding : float
        Relative defects up to this one are taken for rounding.
    """

    layers: list[LayerDefect]
    shifts: list[Shift]
    n: int
    outputs: Tensor
    shifted_outputs: Tensor
    fault: str
    sizes: tuple[int, ...]
    exact: bool
    rounding: float


def measure(
    graph: Graph, x: Tensor, action: Action, *, shifts: list[Shift] | None = None, cost: Cost | None = None
) -> Equivariance:
    """Measure the defect of every layer under cyclic shifts.

    Parameters
    ----------
    graph : Graph
        A traced graph.
    x : Tensor, shape (n, ...)
        Inputs.
    action : Action
        From :func:`theodolite.analysis.translation_action.translation_action`.
    shifts : list of tuple of int, optional
        Pixels along each axis; the action's default if None.
    cost : Cost, optional
        Of a forward pass, if known.

    Returns
    -------
    Equivariance
        Computed in float64 where the graph allows it.
    """
    cost = cost or forward_cost(graph, x)
    shifts = action.default_shifts() if shifts is None else shifts
    layers = named_layers(graph, action.steps)
    options, exact = float64_options(graph, x)
    x = x.double() if exact else x
    rows = max(1, int(_CHUNK_BYTES / (24 * cost.widest * (1 + len(shifts)))))
    defects: dict[Node, list[Tensor]] = {node: [] for node in layers}
    own: dict[Node, list[Tensor]] = {node: [] for node in layers}
    invariance: dict[Node, list[Tensor]] = {node: [] for node in layers}
    outputs: list[Tensor] = []

    def observe(node: Node, value: Any) -> None:
        if node in defects and isinstance(value, Tensor) and value.is_floating_point():
            defects[node].append(_defects(value, action.steps[node].layout, shifts))
            base, *shifted = value.chunk(1 + len(shifts))
            invariance[node].append(torch.stack([relative_distance(base, other) for other in shifted]))

    casts = options.get("handlers", {})

    def exactly_shifted(node: Node, *args: Any, **kwargs: Any) -> Any:
        """Run an operation, note its defect, and hand on what it would give if it had none."""
        assert node.function is not None
        handler = casts.get(node.op)
        result = node.function(*args, **kwargs) if handler is None else handler(node, *args, **kwargs)
        value = result[0] if isinstance(result, tuple) else result
        if node not in own or not isinstance(value, Tensor) or not value.is_floating_point():
            return result
        layout = action.steps[node].layout
        own[node].append(_defects(value, layout, shifts))
        value = _exactly_shifted(value, layout, shifts)
        return (value, *result[1:]) if isinstance(result, tuple) else value

    corrected = {**options, "handlers": {**casts, **dict.fromkeys({n.op for n in layers}, exactly_shifted)}}
    with torch.no_grad():
        for block in x.split(rows):
            batch = torch.cat([block, *(action.shift(block, by) for by in shifts)])
            output = graph.run(batch, observe=observe, **options)
            outputs.append(output.unflatten(0, (1 + len(shifts), -1)).cpu())
            graph.run(batch, **corrected)
    output = torch.cat(outputs, 1)
    blamed = faults(action.steps)
    first = blamed.get(graph.output) if graph.output is not None else None
    return Equivariance(
        layers=[
            LayerDefect(
                name,
                node.where,
                torch.cat(defects[node], 1),
                torch.cat(own[node], 1),
                torch.cat(invariance[node], 1),
                _lattice(action.steps[node].layout, shifts),
                node not in blamed,
                own_fault(node, action.steps, layers),
            )
            for node, name in layers.items()
            if defects[node] and not bool(torch.cat(defects[node], 1).isnan().all())
        ],
        shifts=shifts,
        n=len(x),
        outputs=output[0],
        shifted_outputs=output[1:],
        fault="" if first is None else f"{first.where} {action.steps[first].fault}",
        sizes=action.sizes,
        exact=exact,
        rounding=math.sqrt(torch.finfo(x.dtype).eps),
    )


def own_fault(node: Node, steps: dict[Node, Step], layers: dict[Node, str]) -> str:
    """Return the fault of a measured operation, or of what stands between it and those measured before."""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        step = steps.get(current)
        if step is not None and step.fault:
            return step.fault
        stack += [source for source in current.inputs if source not in layers]
    return ""


def named_layers(graph: Graph, steps: dict[Node, Step]) -> dict[Node, str]:
    """Return the operations at which defects are measured, with names to report them by.

    The last operation of each module that has no parts, and every operation that a
    module with parts, or the model's own forward, runs itself; what only moves entries
    is left out.
    """
    inner = {n.layer for n in graph.operations if n.layer}
    parents = {name.rpartition(".")[0] for name in inner} | {
        name[:i] for name in inner for i, c in enumerate(name) if c == "."
    }
    nodes = [n for n, step in steps.items() if _is_measured(n) and is_comparable(step.layout, n.shape or ())]
    names: dict[Node, str] = {}
    counts: dict[str, int] = {}
    for at, node in enumerate(nodes):
        whole = node.layer != "" and node.layer not in parents
        if whole and at + 1 < len(nodes) and nodes[at + 1].layer == node.layer:
            continue
        name = node.layer if whole else f"{node.layer}.{node.op}" if node.layer else node.op
        counts[name] = counts.get(name, 0) + 1
        names[node] = name if counts[name] == 1 else f"{name} #{counts[name]}"
    return names


def _is_measured(node: Node) -> bool:
    """Return whether an operation computes something, or is the first of several results of one that does."""
    if node.op == "getitem":
        return node.args[0].op not in MOVES
    return not node.is_leaf and not spatial_rules.is_trivial(node)


def is_comparable(layout: Any, shape: tuple[int, ...]) -> bool:
    """Return whether samples are dimension 0 and every other dimension's positions are known."""
    if not isinstance(layout, Layout) or layout.labels[:1] != ((BATCH,),):
        return False
    for label, size in zip(layout.labels[1:], shape[1:], strict=True):
        if label is None or BATCH in label or (label and math.prod(layout.grid[a] for a in label) != size):
            return False
    return True


def _movement(layout: Layout, by: Shift) -> dict[int, int] | None:
    """Return the positions by which a shift moves along each axis, or None if not whole numbers."""
    moves = {a: Fraction(by[a]) / layout.stride[a] for a in layout.stride if layout.has(a)}
    if any(move.denominator != 1 for move in moves.values()):
        return None
    return {a: int(move) for a, move in moves.items()}


def _lattice(layout: Layout, shifts: list[Shift]) -> tuple[bool, ...]:
    return tuple(all(by[a] % period == 0 for a, period in layout.period.items()) for by in shifts)


def relative_distance(value: Tensor, other: Tensor) -> Tensor:
    """Return |other - value| / |value| for each sample, of |other| where the value is zero.

    Parameters
    ----------
    value, other : Tensor, shape (n, ...)

    Returns
    -------
    Tensor, shape (n,), float64, on the CPU
    """
    gap, size, spare = (
        t.reshape(len(t), -1).norm(dim=1).double().cpu() for t in (other - value, value, other)
    )
    return torch.where(gap == 0, 0.0, gap / torch.where(size > 0, size, spare))


def _defects(value: Tensor, layout: Layout, shifts: list[Shift]) -> Tensor:
    """Return the relative defects, shape (shifts, n), of a value at x and at its shifts."""
    base, *shifted = value.detach().chunk(1 + len(shifts))
    rows = []
    for by, other in zip(shifts, shifted, strict=True):
        moves = _movement(layout, by)
        if moves is None:
            rows.append(torch.full((len(base),), torch.nan, dtype=torch.float64))
        else:
            rows.append(relative_distance(_moved(base, layout, moves), other))
    return torch.stack(rows)


def _exactly_shifted(value: Tensor, layout: Layout, shifts: list[Shift]) -> Tensor:
    """Return the value at x followed by its own shifts, where these move whole positions."""
    base, *shifted = value.chunk(1 + len(shifts))
    moves = [_movement(layout, by) for by in shifts]
    parts = [other if m is None else _moved(base, layout, m) for m, other in zip(moves, shifted, strict=True)]
    result = torch.empty_like(value)  # with the same strides, which a later view may rely on
    return result.copy_(torch.cat([base, *parts]))


def _moved(value: Tensor, layout: Layout, moves: dict[int, int]) -> Tensor:
    for d, label in enumerate(layout.labels):
        axes = [] if d == 0 or label is None else list(label)
        if len(axes) == 1:
            value = value.roll(moves[axes[0]], d)
        elif axes:
            grid = value.unflatten(d, [layout.grid[a] for a in axes])
            dims = tuple(range(d, d + len(axes)))
            value = grid.roll([moves.get(a, 0) for a in axes], dims).flatten(d, dims[-1])
    return value


def float64_options(graph: Graph, x: Tensor) -> tuple[dict[str, Any], bool]:
    """Return options that run the graph in float64, or none when it insists on another precision."""
    leaves = [n for n in graph.nodes if n.op in ("parameter", "buffer")]
    wide = {n.target: graph.value_of(n).detach() for n in leaves}
    wide = {name: t.double() if t.is_floating_point() else t for name, t in wide.items()}

    def cast(node: Node, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert node.function is not None
        result: Tensor = node.function(value, *args, **kwargs)
        return value if value.is_floating_point() and result.is_floating_point() else result

    def made(node: Node, *args: Any, **kwargs: Any) -> Any:
        assert node.function is not None
        result: Tensor = node.function(*args, **kwargs)
        return result.double() if result.is_floating_point() else result

    handlers = {"_to_copy": cast, "to": cast, **dict.fromkeys(_CREATIONS, made)}
    options: dict[str, Any] = {"overrides": wide, "handlers": handlers}
    try:
        with torch.no_grad():
            graph.run(x[:2].double(), **options)
    except (RuntimeError, TypeError):  # two precisions meet in one operation, or the device has no float64
        return {}, False
    return options, True
