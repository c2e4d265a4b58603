"""Which layer of a network breaks its equivariance: the Lie derivative, split among the layers.

For h after g the derivation rule says L(h o g) = (L h) o g + dh . L g.  So the Lie derivative of
a network is a sum with one term a layer: what the layer fails to commute by, given inputs that
move exactly, carried to the output by the derivative of all that follows.  The terms are found
together, in one forward-mode pass over copies of the batch: in copy l every layer up to the l-th
hands on the exact velocity in place of its own, and neighbors' outcomes differ by one term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from theodolite.analysis.cost import Cost, forward_cost
from theodolite.analysis.equivariance import float64_options, is_comparable, named_layers, own_fault
from theodolite.analysis.forward_mode import forward_mode
from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.image_layout import SpatialView
from theodolite.analysis.lie_derivative import VectorField, velocity
from theodolite.analysis.spatial import Layout
from theodolite.analysis.spatial_moves import MOVES
from theodolite.analysis.translation_action import Action
from theodolite.analysis.value_grids import apart

_CHUNK_BYTES = 192 << 20


@dataclass(frozen=True, eq=False)
class LayerTerm:
    """One layer's term of the Lie derivative.

    Attributes
    ----------
    name : str
        The layer, as in :func:`theodolite.analysis.equivariance.named_layers`.
    value : Tensor, shape (n, ...)
        At the network's output.
    fault : str
        Why the layer is not shown to commute with shifts, "" if it is.
    """

    name: str
    value: Tensor
    fault: str


@dataclass(frozen=True, eq=False)
class LieAttribution:
    """The Lie derivative of a network and its layers' terms.

    Attributes
    ----------
    field : VectorField
        Along which.
    value, output : Tensor, shape (n, ...)
        L f(x), which is the sum of the terms, and f(x).
    layers : list of LayerTerm
        In order of execution.
    equivariant : bool
        Whether the flow acts on the output too.
    exact : bool
        Whether float64 was used (False when the graph insists on its own precision).
    """

    field: VectorField
    value: Tensor
    output: Tensor
    layers: list[LayerTerm]
    equivariant: bool
    exact: bool


def attribute(
    graph: Graph,
    x: Tensor,
    action: Action,
    field: VectorField,
    *,
    invariant: bool = False,
    split: bool = True,
    cost: Cost | None = None,
) -> LieAttribution:
    """Return the Lie derivative of a traced network, split among its layers.

    Parameters
    ----------
    graph : Graph
        A traced graph.
    x : Tensor, shape (n, ...)
        Inputs as the network takes them.
    action : Action
        From :func:`theodolite.analysis.translation_action.translation_action`: which dimensions
        of the input, and through it of every layer, hold positions, and how far apart.
    field : VectorField
        On the action's axes.
    invariant : bool
        Leave the output alone whatever its dimensions hold (class scores); otherwise the flow
        acts on those that hold positions.
    split : bool
        Whether the layers' terms are wanted, each of which costs one more pass; none otherwise.
    cost : Cost, optional
        Of a forward pass, if known.

    Returns
    -------
    LieAttribution

    Raises
    ------
    NotImplementedError
        If an operation has no forward-mode derivative.
    ValueError
        If the positions cannot be followed to the output, and ``invariant`` is False.
    """
    assert graph.output is not None
    widest = (cost or forward_cost(graph, x)).widest
    options, exact = float64_options(graph, x)
    x = x.double() if exact else x
    views = {
        node: name
        for node, name in named_layers(graph, action.steps).items()
        if split and _moving(node.shape or (), action.steps[node].layout, field)
    }
    last = graph.output
    followed = last in action.steps and _moving(last.shape or (), action.steps[last].layout, field)
    if not followed and not invariant:
        raise ValueError(f"graph: the positions could not be followed to its output, {last.where}")
    if split and last not in views and not (last.op in MOVES and followed):
        views[last] = last.layer or last.op
    order = {node: at for at, node in enumerate(views, 1)}
    copies = 1 + len(order)
    rows = max(1, int(_CHUNK_BYTES / (48 * widest * copies)))
    parts = [
        _terms(graph, block, action, field, order, invariant, followed, options) for block in x.split(rows)
    ]
    output, ends = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts], 1)
    terms = ends[:-1] - ends[1:]
    faults = {node: own_fault(node, action.steps, views) if node in action.steps else "" for node in views}
    layers = [
        LayerTerm(name, term, faults[node]) for (node, name), term in zip(views.items(), terms, strict=True)
    ]
    moves = followed and not invariant and any(action.steps[last].layout.has(a) for a in range(field.d))
    return LieAttribution(field, ends[0], output, layers, moves, exact)


def _terms(
    graph: Graph,
    x: Tensor,
    action: Action,
    field: VectorField,
    order: dict[Node, int],
    invariant: bool,
    followed: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Return the output and, for each copy, the Lie derivative that is left, shape (copies, n, ...)."""
    copies, n = 1 + len(order), len(x)
    casts = {**options.get("handlers", {}), "scaled_dot_product_attention": _attention}

    def motion(node: Node, value: Tensor) -> Tensor:
        if node is graph.output and (invariant or not followed):
            return torch.zeros_like(value)
        return _motion(value, action.steps[node].layout, field)

    def corrected(node: Node, *args: Any, **kwargs: Any) -> Any:
        """Run an operation; let the copies in which the layer is exact move as its positions do."""
        assert node.function is not None
        handler = casts.get(node.op)
        result = node.function(*args, **kwargs) if handler is None else handler(node, *args, **kwargs)
        if node not in order:
            return result
        value = result[0] if isinstance(result, tuple) else result
        primal, tangent = fwd.unpack_dual(value)
        own = torch.zeros_like(primal) if tangent is None else tangent
        exactly = motion(node, primal[:n]).repeat(copies - order[node], *[1] * (primal.ndim - 1))
        moved = fwd.make_dual(primal, torch.cat([own[: order[node] * n], exactly]))
        return (moved, *result[1:]) if isinstance(result, tuple) else moved

    handlers = {**casts, **dict.fromkeys({node.op for node in order}, corrected)}
    view = SpatialView.of(action, tuple(x.shape[1:]))
    grid = view.images(x)
    start = view.inputs(velocity(field, grid, range(2, grid.ndim), [1.0] * field.d))
    with forward_mode(), fwd.dual_level():
        batch = fwd.make_dual(
            x.repeat(copies, *[1] * (x.ndim - 1)), start.repeat(copies, *[1] * (x.ndim - 1))
        )
        primal, tangent = fwd.unpack_dual(graph.run(batch, **{**options, "handlers": handlers}))
        assert graph.output is not None
        slope = torch.zeros_like(primal) if tangent is None else tangent.clone()
    output = primal[:n].clone()
    ends = slope.unflatten(0, (copies, n)) - motion(graph.output, output)
    return output.cpu(), ends.cpu()


def _attention(node: Node, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attend; lay the result out in memory as the queries are, on which a later view may rely."""
    assert node.function is not None
    result: Tensor = node.function(query, *args, **kwargs)
    order = sorted(range(query.ndim), key=query.stride, reverse=True)
    return result.permute(order).contiguous().permute(sorted(range(len(order)), key=order.__getitem__))


def _moving(shape: tuple[int, ...], layout: Any, field: VectorField) -> bool:
    """Return whether the flow acts on a value: on its axes, by coordinates of axes that it has."""
    if not is_comparable(layout, shape) or not isinstance(layout, Layout):
        return False
    found = apart(torch.empty(shape, device="meta"), layout)
    if found is None:
        return False
    axes = {a for a in found[1] if a < field.d}
    return all(field.reads(a) <= axes for a in axes)


def _motion(value: Tensor, layout: Layout, field: VectorField) -> Tensor:
    found = apart(value, layout)
    assert found is not None
    view, dims = found
    places = [dims.get(a) for a in range(field.d)]
    spacing = [float(layout.stride[a]) for a in range(field.d)]
    if all(p is None for p in places):
        return torch.zeros_like(value)
    return velocity(field, view, places, spacing).reshape(value.shape)
