"""Groups on images, volumes, sequences, point sets and graphs, and what a model makes of them.

Images are (n, C, H, W), volumes (n, C, D, H, W), sequences (n, C, T): grids act on the last
axes.  Point sets are (n, points, features) and graphs pairs (adjacency, features): permutations
act on dimension 1.  :func:`equivariance_defect` measures any model against any of them, and
:func:`group_average` projects it onto the invariant or equivariant functions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from theodolite.analysis.equivariance import relative_distance
from theodolite.analysis.group_elements import (
    Batch,
    Element,
    GridMove,
    Permutation,
    Shift,
    linear_warp,
)
from theodolite.analysis.sample_mean import mean_of
from theodolite.value import Value

OutAction = Literal["same"] | None


@dataclass(frozen=True)
class Group:
    """A finite group, or some elements of a group.

    Attributes
    ----------
    name : str
        What it consists of.
    elements : tuple of Element
        In a fixed order.
    whole : bool
        Whether these are all elements, closed under products and inverses.
    """

    name: str
    elements: tuple[Element, ...]
    whole: bool

    def __post_init__(self) -> None:
        if not self.elements:
            raise ValueError("elements: expected at least one, got none")

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def exact(self) -> bool:
        """Whether every element only moves entries."""
        return all(g.exact for g in self.elements)


def cyclic_shifts(sizes: Sequence[int], step: int = 1) -> Group:
    """Return all cyclic shifts by multiples of ``step`` of the last axes, a whole group.

    Parameters
    ----------
    sizes : sequence of int
        Of these axes.
    step : int
        A divisor of every size.

    Raises
    ------
    ValueError
        If ``step`` does not divide a size.
    """
    if step < 1 or any(n % step for n in sizes):
        raise ValueError(f"step: expected a divisor of the sizes {tuple(sizes)}, got {step}")
    axes, still = tuple(range(len(sizes))), (False,) * len(sizes)
    shifts = itertools.product(*(range(0, n, step) for n in sizes))
    return Group("cyclic shifts", tuple(GridMove(axes, still, by) for by in shifts), True)


def grid_symmetries(sizes: Sequence[int], *, rotations_only: bool = False) -> Group:
    """Return the permutations and reflections of the axes that map a grid onto itself, a whole group.

    For sequences the flip; for images the 8 symmetries of the square, or the 4 of the
    rectangle; for volumes the 48 of the cube, of which 24 are rotations.

    Parameters
    ----------
    sizes : sequence of int
        Samples along each of the last axes.
    rotations_only : bool
        Leave out what reverses orientation.
    """
    d = len(sizes)
    moves = [
        GridMove(axes, flips)
        for axes in itertools.permutations(range(d))
        if all(sizes[a] == sizes[b] for a, b in enumerate(axes))
        for flips in itertools.product((False, True), repeat=d)
    ]
    chosen = [g for g in moves if g.determinant == 1 or not rotations_only]
    return Group("rotations" if rotations_only else "flips and rotations", tuple(chosen), True)


def flips(d: int) -> Group:
    """Return the reflections along the last ``d`` axes and their products, a whole group."""
    moves = (GridMove(tuple(range(d)), f) for f in itertools.product((False, True), repeat=d))
    return Group("flips", tuple(moves), True)


def permutations(size: int, most: int = 24, seed: int = 0) -> Group:
    """Return all permutations of channels, points or nodes, or some drawn at random.

    Parameters
    ----------
    size : int
        How many are permuted.
    most : int
        All are returned where there are no more than these; else ``most`` independent draws.
    seed : int
        Of the draws.
    """
    if math.factorial(min(size, 20)) <= most:
        orders = list(itertools.permutations(range(size)))
        return Group("permutations", tuple(map(Permutation, orders)), True)
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randperm(size, generator=generator).tolist() for _ in range(most))
    return Group("random permutations", tuple(Permutation(tuple(order)) for order in drawn), False)


def shifts(vectors: Sequence[Sequence[float]]) -> Group:
    """Return cyclic shifts by given vectors, in samples, by Fourier interpolation."""
    return Group("sub-pixel shifts", tuple(Shift(tuple(map(float, v))) for v in vectors), False)


def rotations(degrees: Sequence[float], d: int = 2, plane: tuple[int, int] = (0, 1)) -> Group:
    """Return rotations of ``d`` axes by given angles, from axis ``plane[0]`` to ``plane[1]``."""
    elements = []
    for angle in degrees:
        matrix = torch.eye(d, dtype=torch.float64)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        a, b = plane
        matrix[a, a], matrix[b, b], matrix[a, b], matrix[b, a] = c, c, -s, s
        elements.append(linear_warp(matrix))
    return Group("rotations", tuple(elements), False)


def scalings(factors: Sequence[float], d: int = 2) -> Group:
    """Return scalings of ``d`` axes by given factors > 0."""
    if any(not f > 0 for f in factors):
        raise ValueError(f"factors: expected numbers > 0, got {list(factors)}")
    eye = torch.eye(d, dtype=torch.float64)
    return Group("scalings", tuple(linear_warp(f * eye) for f in factors), False)


def shears(slopes: Sequence[float], d: int = 2, plane: tuple[int, int] = (0, 1)) -> Group:
    """Return shears by given slopes: axis ``plane[0]`` moves by slope times axis ``plane[1]``."""
    elements = []
    for slope in slopes:
        matrix = torch.eye(d, dtype=torch.float64)
        matrix[plane] = slope
        elements.append(linear_warp(matrix))
    return Group("shears", tuple(elements), False)


@dataclass(frozen=True)
class Defect:
    """How far a model is from commuting with some elements of a group.

    Attributes
    ----------
    group : Group
        The elements.
    defects : Tensor, shape (elements, n), float64
        |f(g x) - g' f(x)| / |f(x)|: exact for each element and input.
    floors : Tensor, shape (elements, n), float64
        |g^-1 g x - x| / |x|: what interpolation alone does to the input, 0 for exact actions.
    outputs : Tensor, shape (n, ...)
        f(x).
    moved : Tensor, shape (elements, n, ...)
        g'^-1 f(g x), which are f(x) where the model commutes with g.
    """

    group: Group
    defects: Tensor
    floors: Tensor
    outputs: Tensor
    moved: Tensor

    def estimate(self, over: Literal["data", "elements"] = "data", confidence: float = 0.95) -> Value:
        """Return the mean defect with an interval.

        Parameters
        ----------
        over : {"data", "elements"}
            Whether the interval is for further inputs, at these elements, or for further
            elements drawn as these were, at these inputs.
        confidence : float
            Of the interval.
        """
        elements, n = self.defects.shape
        rounding = 10.0 * torch.finfo(self.outputs.dtype).eps
        if over == "elements":
            what = f"{elements} elements, at {n} inputs"
            return mean_of(self.defects.mean(1), rounding=rounding, what=what, confidence=confidence)
        what = f"{n} inputs, at {elements} elements"
        return mean_of(self.defects.mean(0), rounding=rounding, what=what, confidence=confidence)


def equivariance_defect(
    model: Callable[..., Tensor], x: Batch, group: Group, out_action: OutAction = None
) -> Defect:
    """Measure how far a model is from commuting with a group: |f(g x) - g' f(x)| / |f(x)|.

    Parameters
    ----------
    model : nn.Module or function
        Maps ``x``, or the two tensors of a graph, to one Tensor of shape (n, ...).
    x : Tensor of shape (n, ...), or (adjacency, features)
        Inputs on which the elements act.
    group : Group
        Its elements, or some of them.
    out_action : {"same"} or None
        Whether the element acts on the output too (equivariance), or not (invariance).

    Returns
    -------
    Defect

    Raises
    ------
    ValueError
        If the inputs are not finite, do not fit the group, or ``out_action`` is unknown.
    """
    _check_action(out_action)
    for part in _parts(x):
        if not bool(torch.isfinite(part).all()):
            raise ValueError("x: expected finite numbers, got NaN or infinity")
    defects, floors, moved = [], [], []
    with torch.no_grad():
        base = _run(model, x)
        for g in group.elements:
            turned = _acted(g, x, "x")
            output = _run(model, turned)
            expected = base if out_action is None else _acted(g, base, "the model's output")
            if output.shape != expected.shape:
                raise ValueError(
                    f"model: expected an output of shape {tuple(expected.shape)} after {g.name}, "
                    f"got {tuple(output.shape)}"
                )
            defects.append(relative_distance(expected, output))
            back = x if g.exact else _acted(g.inverse(), turned, "x")
            floors.append(relative_distance(_parts(x)[0], _parts(back)[0]))
            moved.append(output if out_action is None else _acted(g.inverse(), output, "the output"))
    return Defect(group, torch.stack(defects), torch.stack(floors), base, torch.stack(moved))


class GroupAverage(nn.Module):
    """The mean of g'^-1 f(g x) over a whole finite group: invariant, or equivariant, exactly.

    Made by :func:`group_average`.
    """

    def __init__(self, model: nn.Module, group: Group, out_action: OutAction) -> None:
        super().__init__()
        self.model = model
        self.group = group
        self.out_action = out_action

    def forward(self, *x: Tensor) -> Tensor:
        """Return the average at a batch."""
        batch: Batch = x[0] if len(x) == 1 else (x[0], x[1])
        total: Tensor | None = None
        for g in self.group.elements:
            output = _run(self.model, _acted(g, batch, "x"))
            if self.out_action is not None:
                output = _acted(g.inverse(), output, "the model's output")
            total = output if total is None else total + output
        assert total is not None
        return total / len(self.group)


def group_average(model: nn.Module, group: Group, out_action: OutAction = None) -> GroupAverage:
    """Project a model onto the functions that a group leaves alone (the Reynolds operator).

    Parameters
    ----------
    model : nn.Module
        It is not changed, and shares its parameters with the result.
    group : Group
        A whole finite group that acts by moving entries.
    out_action : {"same"} or None
        Onto the equivariant functions ("same": the group acts on the output as on the input)
        or onto the invariant ones.

    Returns
    -------
    GroupAverage
        A module that costs one forward pass an element.

    Raises
    ------
    ValueError
        If the elements are no whole group or interpolate: their mean would be no projection.

    Notes
    -----
    On any set of inputs that the group maps to itself, the average P f is the invariant (or
    equivariant) function nearest to f in the mean square, and f - P f is orthogonal to all of
    them; a model that is invariant already is its own average.
    """
    _check_action(out_action)
    if not group.whole or not group.exact:
        what = "interpolated actions" if not group.exact else f"only some elements ({group.name})"
        raise ValueError(f"group: expected a whole group that moves entries exactly, got {what}")
    return GroupAverage(model, group, out_action)


def _check_action(out_action: Any) -> None:
    if out_action not in (None, "same"):
        raise ValueError(f"out_action: expected 'same' or None, got {out_action!r}")


def _parts(x: Batch) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else x


def _run(model: Callable[..., Tensor], x: Batch) -> Tensor:
    return model(*_parts(x))


def _acted(g: Element, x: Any, what: str) -> Any:
    try:
        result = g(x)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"group: {g.name} does not act on {what} ({str(error).splitlines()[0]})") from error
    shapes = [tuple(p.shape) for p in _parts(x)], [tuple(p.shape) for p in _parts(result)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"group: {g.name} does not act on {what} of shape {shapes[0][0]}")
    return result
