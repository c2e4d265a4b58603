"""Translation equivariance of a network, at every layer: measured, and read off the graph.

A cyclic shift T_c of the input by c pixels acts on a layer f_l of total stride P as
the shift T'_c by c/P positions, and trivially where no positions are left.  The
defect |f_l(T_c x) - T'_c f_l(x)| / |f_l(x)| is measured; beside it stands what the
operations prove: with circular padding, strides that divide the sizes, pointwise
nonlinearities and reductions over all positions, every layer commutes with the
shifts by multiples of the strides so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from theodolite.analysis import spatial_rules
from theodolite.analysis.cost import Cost, forward_cost
from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.piecewise_linear import data_dependent
from theodolite.analysis.spatial import BATCH, Label, Layout, Step, Trace, record

Shift = tuple[int, ...]
_CHUNK_BYTES = 192 << 20
_WINDOWED = ("conv", "max_pool", "avg_pool", "adaptive_")


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
    lattice : tuple of bool
        For each shift whether structure could prove the defect zero.
    increase : float
        Mean defect above that of the nearest layers before it, at the shifts that count.
    proved : bool
        Whether the operations up to here prove equivariance on the lattice.
    """

    name: str
    where: str
    defects: Tensor
    lattice: tuple[bool, ...]
    increase: float
    proved: bool

    @property
    def counted(self) -> Tensor:
        """The defects on the lattice, or at every shift where none of the shifts is on it."""
        return self.defects[_counted(self.defects, self.lattice)]


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
    """

    layers: list[LayerDefect]
    shifts: list[Shift]
    n: int
    outputs: Tensor
    shifted_outputs: Tensor
    fault: str
    sizes: tuple[int, ...]
    exact: bool


@dataclass(frozen=True)
class Action:
    """How translations act on the input, and through it on every node.

    Attributes
    ----------
    root : Node
        The node whose dimensions are space: the input, or the first reshape of it.
    dims : tuple of int
        Its spatial dimensions.
    places : Tensor, shape of one sample at the root, integers
        The input entry that stands in each place of the root.
    steps : dict of Node to Step
        What the shifts do to each operation from the root on.
    """

    root: Node
    dims: tuple[int, ...]
    places: Tensor
    steps: dict[Node, Step]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Positions along each spatial axis."""
        return tuple(self.places.shape[d - 1] for d in self.dims)

    def shift(self, x: Tensor, by: Shift) -> Tensor:
        """Return the input shifted cyclically, shape as ``x``."""
        moved = self.places.roll(by, [d - 1 for d in self.dims]).flatten()
        result = torch.empty_like(x).flatten(1)
        result[:, self.places.flatten()] = x.flatten(1)[:, moved]
        return result.view_as(x)

    def default_shifts(self) -> list[Shift]:
        """Return shifts along one axis at a time: powers of two, and each layer's smallest provable ones."""
        shifts: list[Shift] = []
        layouts = [step.layout for step in self.steps.values() if isinstance(step.layout, Layout)]
        for axis, size in enumerate(self.sizes):
            periods = {layout.period[axis] for layout in layouts if layout.period[axis] < size}
            coarsest = max(periods, default=1)
            powers = {2**k for k in range(size.bit_length()) if 2**k <= max(coarsest, 4)}
            middle = coarsest * max(1, size // (2 * coarsest))
            pixels = sorted(c for c in powers | periods | {middle} if c < size)
            shifts += [tuple(c if a == axis else 0 for a in range(len(self.sizes))) for c in pixels]
        return shifts


def translation_action(graph: Graph, x: Tensor) -> Action | None:
    """Find how translations act on a network's input.

    The spatial dimensions are those over which the first convolution or pool slides.
    Without one, inputs of four or five dimensions are taken for images (n, c, h, w) or
    volumes (n, c, d, h, w).

    Parameters
    ----------
    graph : Graph
        A traced graph.
    x : Tensor, shape (n, ...)
        Inputs.

    Returns
    -------
    Action or None
        None when no translation is known to act on the inputs.
    """
    trace = record(graph, x)
    alive = data_dependent(graph)
    slides = next((n for n in graph.operations if n in alive and n.op.startswith(_WINDOWED)), None)
    root, places = _root(graph, trace, alive, x)
    rank = len(trace.shapes[root])
    if slides is None:
        if x.ndim not in (4, 5) or root.op != "input":
            return None
        dims = tuple(range(2, x.ndim))
        return Action(root, dims, places, analyse(graph, trace, root, dims))
    digit = next(c for c in slides.op if c.isdigit())
    starts = range(rank - int(digit), 0, -1)  # (n, c, h, w) before (n, h, w, c)
    for first in starts:
        dims = tuple(range(first, first + int(digit)))
        steps = analyse(graph, trace, root, dims)
        read = steps.get(slides.args[0])
        expected = tuple((a,) for a in range(len(dims)))
        if (
            read is not None
            and isinstance(read.layout, Layout)
            and read.layout.labels[-len(dims) :] == expected
        ):
            return Action(root, dims, places, steps)
    return None


def _root(graph: Graph, trace: Trace, alive: set[Node], x: Tensor) -> tuple[Node, Tensor]:
    """Follow reshapes of the input up to three dimensions; return the node and where entries went."""
    node = next(n for n in graph.nodes if n.op == "input")
    size = x[0].numel()
    places = torch.arange(2 * size).view(2, *x.shape[1:])
    while places.ndim < 3:
        readers = [n for n in graph.consumers(node) if n in alive]
        if len(readers) != 1 or readers[0].op not in spatial_rules.MOVES or readers[0].op == "getitem":
            break
        moved = spatial_rules.run_on(trace, readers[0], {node: places})
        if (
            not isinstance(moved, Tensor)
            or moved.shape[0] != 2
            or int(moved[0].max()) >= size
            or moved[0].numel() != size
        ):
            break
        node, places = readers[0], moved
    return node, places[0]


def analyse(graph: Graph, trace: Trace, root: Node, dims: Sequence[int]) -> dict[Node, Step]:
    """Follow the spatial dimensions ``dims`` of ``root`` through the graph.

    Returns
    -------
    dict of Node to Step
        For the root and every operation that depends on it.
    """
    shape = trace.shapes[root]
    labels: list[Label] = [(dims.index(d),) if d in dims else () for d in range(len(shape))]
    labels[0] = (BATCH,)
    axes = range(len(dims))
    start = Layout(
        tuple(labels),
        {BATCH: shape[0], **{a: shape[dims[a]] for a in axes}},
        dict.fromkeys(axes, Fraction(1)),
        dict.fromkeys(axes, 1),
    )
    steps = {root: Step(start)}
    alive = data_dependent(graph)
    for node in graph.nodes[graph.nodes.index(root) + 1 :]:
        if node not in alive or node.is_leaf:
            continue
        sources = [s for s in dict.fromkeys(node.inputs) if s in alive]
        if any(s not in steps or steps[s].layout is None for s in sources):
            steps[node] = Step(None, "follows a layer whose positions are unknown")
        else:
            steps[node] = spatial_rules.step(trace, steps, node, sources)
    return steps


def faults(steps: dict[Node, Step]) -> dict[Node, Node]:
    """Return, for each node not proved to commute with shifts, the first operation to blame."""
    order = {node: i for i, node in enumerate(steps)}
    blamed: dict[Node, Node] = {}
    for node, step in steps.items():
        earlier = [blamed[s] for s in node.inputs if s in blamed]
        if earlier:
            blamed[node] = min(earlier, key=order.__getitem__)
        elif step.fault:
            blamed[node] = node
    return blamed


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
        From :func:`translation_action`.
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
    options, exact = _float64(graph, x)
    x = x.double() if exact else x
    rows = max(1, int(_CHUNK_BYTES / (24 * cost.widest * (1 + len(shifts)))))
    found: dict[Node, list[Tensor]] = {node: [] for node in layers}
    outputs: list[Tensor] = []

    def observe(node: Node, value: Any) -> None:
        if node in found:
            found[node].append(_defects(value, action.steps[node].layout, shifts))

    with torch.no_grad():
        for block in x.split(rows):
            batch = torch.cat([block, *(action.shift(block, by) for by in shifts)])
            outputs.append(
                graph.run(batch, observe=observe, **options).unflatten(0, (1 + len(shifts), -1)).cpu()
            )
    output = torch.cat(outputs, 1)
    defects = {node: torch.cat(parts, 1) for node, parts in found.items()}
    blamed = faults(action.steps)
    first = blamed.get(graph.output) if graph.output is not None else None
    return Equivariance(
        layers=[
            LayerDefect(
                name,
                node.where,
                defects[node],
                _lattice(action.steps[node].layout, shifts),
                _increase(node, defects, _lattice(action.steps[node].layout, shifts)),
                node not in blamed,
            )
            for node, name in layers.items()
            if not bool(defects[node].isnan().all())
        ],
        shifts=shifts,
        n=len(x),
        outputs=output[0],
        shifted_outputs=output[1:],
        fault="" if first is None else f"{first.where} {action.steps[first].fault}",
        sizes=action.sizes,
        exact=exact,
    )


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
    nodes = [
        n
        for n, step in steps.items()
        if not n.is_leaf and not spatial_rules.is_trivial(n) and _comparable(step.layout, n.shape or ())
    ]
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


def _comparable(layout: Any, shape: tuple[int, ...]) -> bool:
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


def _defects(value: Tensor, layout: Layout, shifts: list[Shift]) -> Tensor:
    """Return the relative defects, shape (shifts, n), of a value at x and at its shifts."""
    base, *shifted = value.detach().chunk(1 + len(shifts))
    scale = base.flatten(1).norm(dim=1)
    rows = []
    for by, other in zip(shifts, shifted, strict=True):
        moves = _movement(layout, by)
        if moves is None:
            rows.append(torch.full_like(scale, torch.nan))
            continue
        gap = (other - _moved(base, layout, moves)).flatten(1).norm(dim=1)
        rows.append(torch.where(gap == 0, 0.0, gap / scale))
    return torch.stack(rows).double().cpu()


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


def _counted(defects: Tensor, lattice: Sequence[bool]) -> Tensor:
    """Return which shifts count for a layer: those on its lattice, or all that act on it if none is."""
    return torch.tensor(lattice) if any(lattice) else ~defects.isnan().any(1)


def _increase(node: Node, defects: dict[Node, Tensor], lattice: tuple[bool, ...]) -> float:
    """Return the mean defect minus the largest of the nearest layers before, at the shifts that count."""
    rows = _counted(defects[node], lattice)
    before = 0.0
    for source in _measured_before(node, defects):
        earlier = defects[source][rows]
        seen = earlier[~earlier.isnan()]
        before = max(before, float(seen.mean()) if len(seen) else 0.0)
    return float(defects[node][rows].mean()) - before


def _measured_before(node: Node, defects: dict[Node, Tensor]) -> Iterator[Node]:
    stack, seen = list(node.inputs), set()
    while stack:
        source = stack.pop()
        if source in seen:
            continue
        seen.add(source)
        if source in defects:
            yield source
        else:
            stack.extend(source.inputs)


def _float64(graph: Graph, x: Tensor) -> tuple[dict[str, Any], bool]:
    """Return options that run the graph in float64, or none when it insists on another precision."""
    leaves = [n for n in graph.nodes if n.op in ("parameter", "buffer")]
    wide = {n.target: graph.value_of(n).detach() for n in leaves}
    wide = {name: t.double() if t.is_floating_point() else t for name, t in wide.items()}

    def cast(node: Node, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert node.function is not None
        result: Tensor = node.function(value, *args, **kwargs)
        return value if value.is_floating_point() and result.is_floating_point() else result

    options: dict[str, Any] = {"overrides": wide, "handlers": {"_to_copy": cast, "to": cast}}
    try:
        with torch.no_grad():
            graph.run(x[:2].double(), **options)
    except (RuntimeError, TypeError):  # two precisions meet in one operation, or the device has no float64
        return {}, False
    return options, True
