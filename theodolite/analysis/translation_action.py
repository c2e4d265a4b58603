"""How translations act on the input of a network, and through it on every operation of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from theodolite.analysis import spatial_rules
from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.piecewise_linear import data_dependent
from theodolite.analysis.spatial import BATCH, FREE, Label, Layout, Step, Trace, record
from theodolite.analysis.spatial_moves import MOVES, run_on

Shift = tuple[int, ...]
_WINDOWED = ("conv", "max_pool", "avg_pool", "adaptive_")


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


def translation_action(graph: Graph, x: Tensor, image_shape: Shift | None = None) -> Action | None:
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
    image_shape : tuple of int, optional
        (c, h, w) or (h, w), where flat inputs are flattened images.

    Returns
    -------
    Action or None
        None when no translation is known to act on the inputs.
    """
    trace = record(graph, x)
    alive = data_dependent(graph)
    slides = windowed(graph)
    root, places = _root(graph, trace, alive, x)
    rank = len(trace.shapes[root])
    if slides is None:
        if image_shape is not None and x.ndim == 2:
            return _of_flat_images(graph, trace, x, image_shape)
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


def windowed(graph: Graph) -> Node | None:
    """Return the first convolution or pool that reads the data, or None."""
    alive = data_dependent(graph)
    return next((n for n in graph.operations if n in alive and n.op.startswith(_WINDOWED)), None)


def _root(graph: Graph, trace: Trace, alive: set[Node], x: Tensor) -> tuple[Node, Tensor]:
    """Follow reshapes of the input up to three dimensions; return the node and where entries went."""
    node = next(n for n in graph.nodes if n.op == "input")
    size = x[0].numel()
    places = torch.arange(2 * size).view(2, *x.shape[1:])
    while places.ndim < 3:
        readers = [n for n in graph.consumers(node) if n in alive]
        if len(readers) != 1 or readers[0].op not in MOVES or readers[0].op == "getitem":
            break
        moved = run_on(trace, readers[0], {node: places})
        if (
            not isinstance(moved, Tensor)
            or moved.shape[0] != 2
            or int(moved[0].max()) >= size
            or moved[0].numel() != size
        ):
            break
        node, places = readers[0], moved
    return node, places[0]


def _of_flat_images(graph: Graph, trace: Trace, x: Tensor, shape: Shift) -> Action:
    root = next(n for n in graph.nodes if n.op == "input")
    c, h, w = shape if len(shape) == 3 else (1, *shape)
    places = torch.arange(c * h * w).view(c, h, w)
    label: Label = (0, 1) if c == 1 else (FREE, 0, 1)
    start = Layout(
        ((BATCH,), label),
        {BATCH: len(x), **({FREE: c} if c > 1 else {}), 0: h, 1: w},
        dict.fromkeys((0, 1), Fraction(1)),
        dict.fromkeys((0, 1), 1),
    )
    return Action(root, (2, 3), places, _follow(graph, trace, root, start))


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
    return _follow(graph, trace, root, start)


def _follow(graph: Graph, trace: Trace, root: Node, start: Layout) -> dict[Node, Step]:
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
