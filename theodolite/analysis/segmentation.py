"""What a shift of the input does to a segmentation: logits, labels and overlap, by residue of the stride."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theodolite.analysis.equivariance import relative_distance
from theodolite.analysis.graph import trace
from theodolite.analysis.spatial import Layout
from theodolite.analysis.translation_action import translation_action
from theodolite.value import Value

__all__ = ["Agreement", "SegmentationEquivariance", "dice", "labels_of", "segmentation_equivariance"]

Shift = tuple[int, ...]
_CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class Agreement:
    """How far the segmentation commutes with a set of shifts, in the mean over inputs and shifts.

    Attributes
    ----------
    defect : Value
        |f(T_c x) - T_c f(x)| / |f(x)| of the logits.
    labels : Value
        Share of the positions at which the labels of both agree.
    dice : Value
        Overlap of each class but the first, the background, averaged over them.
    """

    defect: Value
    labels: Value
    dice: Value


@dataclass(frozen=True)
class SegmentationEquivariance:
    """Logits and labels at shifted inputs beside shifted logits and labels.

    Attributes
    ----------
    shifts : list of tuple of int
        Pixels along each spatial axis.
    period : tuple of int
        Total stride P along each axis; residues are taken by it.
    defects : Tensor, shape (shifts, n), float64
        Relative distances of the logits.
    agreements : Tensor, shape (shifts, n), float64
        Shares of the positions that have the same label.
    dices : Tensor, shape (shifts, n, classes), float64
        Overlap of each class.
    """

    shifts: list[Shift]
    period: Shift
    defects: Tensor
    agreements: Tensor
    dices: Tensor

    @property
    def residues(self) -> list[Shift]:
        """The shifts modulo the period."""
        return [tuple(c % p for c, p in zip(by, self.period, strict=True)) for by in self.shifts]

    def over(self, chosen: Sequence[bool], what: str) -> Agreement:
        """Return the means over the chosen shifts and all inputs, exact for these.

        Parameters
        ----------
        chosen : sequence of bool
            One a shift, at least one of them true.
        what : str
            The shifts in words, for the note.
        """
        rows = torch.tensor(list(chosen))
        if len(rows) != len(self.shifts) or not bool(rows.any()):
            raise ValueError(f"chosen: expected {len(self.shifts)} booleans, one of them true, got {chosen}")
        note = f"mean over {self.defects.shape[1]:,} inputs and {int(rows.sum())} cyclic shifts, {what}"
        means = (
            tensor[rows].mean() for tensor in (self.defects, self.agreements, self.dices[..., 1:].mean(-1))
        )
        return Agreement(*(Value.exact(float(mean), note=note) for mean in means))

    def by_residue(self) -> dict[Shift, Agreement]:
        """Return the agreement for each residue of the shifts modulo the period, in order."""
        found = self.residues
        return {r: self.over([r == other for other in found], f"c = {r} mod P") for r in sorted(set(found))}

    @property
    def on_lattice(self) -> Agreement | None:
        """Over the shifts that the total stride divides; None if there are none."""
        chosen = [not any(r) for r in self.residues]
        return self.over(chosen, "multiples of the total stride") if any(chosen) else None

    @property
    def off_lattice(self) -> Agreement | None:
        """Over all other shifts; None if there are none."""
        chosen = [any(r) for r in self.residues]
        return self.over(chosen, "no multiples of the total stride") if any(chosen) else None


def dice(first: Tensor, second: Tensor) -> Tensor:
    """Return the Dice coefficient 2 |A and B| / (|A| + |B|) of pairs of masks.

    It is 1 where both masks are empty: they agree.

    Parameters
    ----------
    first, second : Tensor of bool, shape (n, ...)

    Returns
    -------
    Tensor, shape (n,), float64
    """
    if first.shape != second.shape or first.dtype != torch.bool or second.dtype != torch.bool:
        raise ValueError(
            f"first, second: expected masks of bool of one shape, got {first.dtype} {tuple(first.shape)} "
            f"and {second.dtype} {tuple(second.shape)}"
        )
    both, a, b = (mask.flatten(1).sum(1).double() for mask in (first & second, first, second))
    return torch.where(a + b > 0, 2.0 * both / (a + b).clamp(min=1.0), 1.0)


def labels_of(logits: Tensor) -> Tensor:
    """Return the label of each position, shape (n, sizes...): the class of the largest logit, the first of several.

    Parameters
    ----------
    logits : Tensor, shape (n, classes, sizes...)
        Of a single class: its label is 1 where the logit is positive, else 0.
    """
    return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def segmentation_equivariance(
    model: nn.Module, x: Tensor, shifts: Sequence[Sequence[int]] | None = None, *, period: int | None = None
) -> SegmentationEquivariance:
    """Measure how far a segmentation commutes with cyclic shifts: f(T_c x) against T_c f(x), in logits and labels.

    Parameters
    ----------
    model : nn.Module
        Maps (n, channels, sizes...) to logits (n, classes, sizes...).  It is run in evaluation mode
        and left in the mode in which it came.
    x : Tensor, shape (n, channels, sizes...)
        Inputs with one, two or three spatial axes, of the model's dtype and device.
    shifts : sequence of tuple of int, optional
        Pixels along each axis; by default every residue modulo the total stride (along one axis at a
        time where these are more than 64), and the total stride itself along each axis.
    period : int, optional
        Total stride P; read off the model's graph if None.

    Returns
    -------
    SegmentationEquivariance
        Exact numbers of these inputs and shifts, up to the rounding of the model's dtype (in which a
        label can tip where two logits tie); no statement on others.

    Raises
    ------
    ValueError
        If the inputs, shifts or logits have other shapes or are not finite, or the total stride is
        neither given nor readable.

    Notes
    -----
    With circular padding and a total stride P that divides the sizes, a network of convolutions, pools,
    nearest-neighbor upsampling and skip connections has defect 0 for shifts by multiples of P (see
    :mod:`theodolite.analysis.equivariance`, which also tells the layers apart).
    """
    if x.ndim not in (3, 4, 5) or not len(x) or not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"x: expected finite inputs of shape (n, channels, one to three sizes), got shape {tuple(x.shape)}"
        )
    sizes = tuple(x.shape[2:])
    dims = tuple(range(2, x.ndim))
    with _evaluated(model), torch.no_grad():
        stride = _total_stride(model, x) if period is None else (period,) * len(dims)
        if min(stride) < 1:
            raise ValueError(f"period: expected an integer >= 1, got {period}")
        chosen = _default_shifts(stride, sizes) if shifts is None else _checked_shifts(shifts, len(dims))
        size, found = 1, []
        start = 0
        while start < len(x):
            block = x[start : start + size]
            found.append(_compared(model, block, chosen, dims))
            start += len(block)
            per_input = 8 * math.prod(sizes) * max(16, found[-1][2].shape[-1])
            size = max(1, _CHUNK_BYTES // per_input)
    defects, agreements, dices = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return SegmentationEquivariance(chosen, stride, defects, agreements, dices)


def _compared(
    model: nn.Module, x: Tensor, shifts: list[Shift], dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return defects and agreements, shape (shifts, n), and overlaps, shape (shifts, n, classes)."""
    logits = _logits(model, x)
    labels = labels_of(logits)
    classes = max(logits.shape[1], 2)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for by in shifts:
        at_shifted = _logits(model, x.roll(by, dims))
        other = labels_of(at_shifted)
        moved = labels.roll(by, [d - 1 for d in dims])
        overlap = torch.stack([dice(moved == k, other == k) for k in range(classes)], -1)
        rows.append(
            (
                relative_distance(logits.roll(by, dims), at_shifted),
                (moved == other).flatten(1).double().mean(1).cpu(),
                overlap.cpu(),
            )
        )
    defects, agreements, dices = (torch.stack(column) for column in zip(*rows, strict=True))
    return defects, agreements, dices


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != x.ndim or logits.shape[2:] != x.shape[2:]:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model: expected logits of shape ({len(x)}, classes, {', '.join(map(str, x.shape[2:]))}), one for "
            f"each position of the input, got {came}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("model: expected finite logits, got NaN or infinity")
    return logits


def _total_stride(model: nn.Module, x: Tensor) -> Shift:
    """Read the total stride along each axis off the graph."""
    graph = trace(model, x[:2])
    action = translation_action(graph, x[:2]) if graph.traced else None
    step = None if action is None or graph.output is None else action.steps.get(graph.output)
    if step is None or not isinstance(step.layout, Layout):
        why = graph.reason or "the positions could not be followed through it"
        raise ValueError(f"period: expected the total stride, which the model's graph does not tell ({why})")
    return tuple(step.layout.period[axis] for axis in range(x.ndim - 2))


def _default_shifts(stride: Shift, sizes: Shift) -> list[Shift]:
    axes = range(len(stride))
    if math.prod(stride) <= 64:
        shifts = list(itertools.product(*(range(p) for p in stride)))
    else:
        shifts = [tuple(c if a == axis else 0 for a in axes) for axis in axes for c in range(1, stride[axis])]
    whole = [tuple(stride[a] if a == axis else 0 for a in axes) for axis in axes]
    shifts += [by for by in whole if all(c < n for c, n in zip(by, sizes, strict=True))]
    return [by for by in dict.fromkeys(shifts) if any(by)]


def _checked_shifts(shifts: Sequence[Sequence[int]], rank: int) -> list[Shift]:
    chosen = [tuple(int(c) for c in by) for by in shifts]
    if not chosen or any(len(by) != rank for by in chosen):
        raise ValueError(f"shifts: expected at least one shift of {rank} integers, got {list(shifts)!r}")
    return chosen


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
