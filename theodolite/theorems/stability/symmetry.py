"""STA007: what flips, quarter turns and permutations of the input do to the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from theodolite.analysis.equivariance import float64_options
from theodolite.analysis.group_elements import GridMove
from theodolite.analysis.groups import Defect, Group, equivariance_defect, grid_symmetries, permutations
from theodolite.analysis.image_layout import SpatialView
from theodolite.analysis.point_sets import set_action
from theodolite.analysis.sample_mean import mean_difference, mean_of, share_change, share_of
from theodolite.analysis.translation_action import Action, translation_action
from theodolite.analysis.value_grids import acts_on_output, output_grid
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.hypotheses import REAL_INPUT, require_cost
from theodolite.theorems.stability.translation import no_action
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

MOST_INPUTS = 1000
MOST_SHOWN = 8  # elements; of more the generators stand for all
DRAWN = 8  # permutations, where there are too many to try all
# multiplications and additions in all: some seconds on two cores
BUDGET = 5e10
_CHUNK_BYTES = 128 << 20


class SymmetryDefects(Theorem):
    """Defects under the symmetries of the grid, or permutations of a set, and what averaging would do.

    Of images the flips and quarter turns (of rectangles the half turn), of volumes those of
    the box, of sequences the flip; of sets of points some permutations drawn at random.  The
    mean of g'^-1 f(g x) over a whole group is the invariant (or equivariant) function nearest
    to f; its accuracy, or loss, stands beside that of f, on the same inputs.
    """

    code = "STA007"
    title = "Flips, rotations and permutations"
    chapter = "stability"
    statement = (
        r"For a finite group $G$, $Pf(x) = \frac{1}{|G|}\sum_{g \in G} g'^{-1} f(g x)$ is the orthogonal projection of "
        r"$f$ onto the functions that commute with $G$, on inputs that $G$ maps to themselves; the defect "
        r"$\|f(gx) - g'f(x)\| / \|f(x)\|$ is zero for all $g$ exactly when $Pf = f$."
    )
    reference = "cohen2016group, elesedy2021provably"
    hypotheses = (REAL_INPUT,)
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the mean defect, predictions kept, what averaging changes, and every element's defect."""
        cost = require_cost(subject)
        action, group, sets = _group(subject)
        follows = acts_on_output(subject.graph, action) if not subject.classification else False
        if follows is None:
            raise NotApplicable("the positions of the inputs could not be followed to the output")
        affordable = min(MOST_INPUTS, BUDGET / (len(group) * 2.0 * cost.total))
        x, y = subject.sample(int(max(2, affordable)), "STA007/inputs")
        options, exact = float64_options(subject.graph, x)
        x = x.double() if exact else x
        rows = max(1, int(_CHUNK_BYTES / (16 * cost.widest)))
        view = SpatialView.of(action, tuple(x.shape[1:]))

        def network(grid: Tensor) -> Tensor:
            output = subject.graph.run(view.inputs(grid.mT if sets else grid), **options)
            placed = output_grid(subject.graph, action, output) if follows else None
            return output if placed is None else placed.mT if sets else placed

        found = _measured(network, view.images(x).mT if sets else view.images(x), group, follows, rows)
        sample = f"{len(x):,} of {subject.n:,} training inputs"
        sample += "" if exact else ", in the model's own precision"
        moving = [i for i, g in enumerate(group.elements) if g.name != "identity"]
        rounding = 1e3 * torch.finfo(found.outputs.dtype).eps
        what = f"{sample}, {len(moving)} {group.name}"
        values = {"defect": mean_of(found.defects[moving].mean(0), rounding=rounding, what=what)}
        if subject.classification and subject.n_outputs > 1:
            values |= _predictions(found, y.cpu(), sample)
        elif group.whole and not subject.classification:
            values |= _losses(subject, action, found, y, sample, follows)
        for i in moving if len(moving) <= MOST_SHOWN else _generators(group):
            value = mean_of(found.defects[i], rounding=rounding, what=sample)
            values[f"defect[{group.elements[i].name}]"] = value
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart:
        """Draw one bar an element."""
        bars = {n[7:-1]: value.value or 0.0 for n, value in values.items() if n.startswith("defect[")}
        return Chart("bars", {"mean defect": list(bars.values())}, list(bars), "element", "relative defect")

    def advice(self, finding: Finding) -> str:
        """Say whether averaging over the group helped on the sample."""
        change = finding.values.get("accuracy_change")
        if change is not None and change.low > 0.0:
            return "averaging the outputs over the group makes the network more accurate on the sample."
        loss = finding.values.get("loss_change")
        if loss is not None and loss.high < 0.0:
            return "averaging the outputs over the group lowers the loss on the sample."
        return ""


def _group(subject: Subject) -> tuple[Action, Group, bool]:
    """Return how the group acts, the group, and whether it permutes the points of sets."""
    graph, x = subject.graph, subject.x[:2].to(subject.device)
    action = translation_action(graph, x, subject.image_shape)
    if action is not None:
        sizes = action.sizes
        moves = [g for g in grid_symmetries(sizes).elements if isinstance(g, GridMove)]
        # what turns or exchanges axes of one position alone does nothing
        still = [a for a, n in enumerate(sizes) if n == 1]
        moves = [g for g in moves if all(g.axes[a] == a and not g.flips[a] for a in still)]
        if len(moves) == 1:
            raise NotApplicable("the inputs have one position along every axis, which nothing turns")
        return action, Group("flips and rotations" if len(sizes) > 1 else "flip", tuple(moves), True), False
    if x.ndim != 3:
        raise NotApplicable(no_action(subject))
    found = set_action(graph, x)
    if isinstance(found, str):
        raise NotApplicable(found)
    return found, permutations(x.shape[1], DRAWN, subject.seed), True


def _generators(group: Group) -> list[int]:
    """Return where the flips of one axis and the exchanges of two are: they make all symmetries of a box."""
    found = []
    for i, g in enumerate(group.elements):
        assert isinstance(g, GridMove)
        exchanged = sum(a != b for a, b in enumerate(g.axes))
        if (exchanged, sum(g.flips)) in ((0, 1), (2, 0)):
            found.append(i)
    return found


def _measured(
    network: Callable[[Tensor], Tensor], x: Tensor, group: Group, follows: bool, rows: int
) -> Defect:
    try:
        parts = [equivariance_defect(network, p, group, "same" if follows else None) for p in x.split(rows)]
    except ValueError as error:  # an output whose grid lacks a symmetry that the input's has
        raise NotApplicable(str(error)) from error
    return Defect(
        group,
        torch.cat([p.defects for p in parts], 1),
        torch.cat([p.floors for p in parts], 1),
        torch.cat([p.outputs for p in parts]).cpu(),
        torch.cat([p.moved for p in parts], 1).cpu(),
    )


def _predictions(found: Defect, y: Tensor, sample: str) -> dict[str, Value]:
    base, moved = found.outputs.argmax(1), found.moved.argmax(2)
    kept = share_of((moved == base).all(0), what=f"{sample} keep their class under every element")
    values = {"predictions_kept": kept}
    if not found.group.whole:
        return values
    right = base == y
    averaged = found.moved.mean(0).argmax(1) == y
    values["accuracy"] = share_of(right, what=sample)
    values["averaged_accuracy"] = share_of(averaged, what=f"{sample}, outputs averaged over the group")
    values["accuracy_change"] = share_change(right, averaged, what=sample)
    for i, g in enumerate(found.group.elements):
        flipped = isinstance(g, GridMove) and g.axes == tuple(sorted(g.axes)) and sum(g.flips) == 1
        if flipped and len(found.group) > 2:
            two = (found.outputs + found.moved[i]).argmax(1) == y  # with the identity a group of two
            values[f"accuracy_change[{g.name}]"] = share_change(right, two, what=sample)
    return values


def _losses(
    subject: Subject, action: Action, found: Defect, y: Tensor, sample: str, follows: bool
) -> dict[str, Any]:
    """Return the loss before and after averaging; only the squared error is known on grids."""
    average = found.moved.mean(0)
    target: Tensor | None = y.to(found.outputs)
    if follows:
        target = (
            output_grid(subject.graph, action, y.to(found.outputs)) if subject.loss_name == "mse" else None
        )
        if target is not None and target.shape != average.shape:
            target = target.mT
    if target is None:
        return {}
    pair = []
    for output in (found.outputs, average):
        if follows:
            pair.append((output - target).flatten(1).square().mean(1))
        else:
            pair.append(subject.per_sample_loss(output, target))
    return {
        "loss": mean_of(pair[0].detach(), rounding=0.0, what=sample),
        "averaged_loss": mean_of(
            pair[1].detach(), rounding=0.0, what=f"{sample}, outputs averaged over the group"
        ),
        "loss_change": mean_difference((pair[1] - pair[0]).detach(), what=sample),
    }
