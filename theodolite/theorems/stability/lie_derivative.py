"""STA004: how fast a network stops commuting with small translations, rotations and scalings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from theodolite.analysis.equivariance import float64_options, named_layers
from theodolite.analysis.image_layout import SpatialView
from theodolite.analysis.lie_derivative import VectorField, fields, lie_derivative, relative_size
from theodolite.analysis.lie_layers import attribute
from theodolite.analysis.sample_mean import mean_of
from theodolite.analysis.translation_action import Action, translation_action
from theodolite.analysis.value_grids import acts_on_output, output_grid
from theodolite.theorems.base import Chart, Finding, NotApplicable, Theorem
from theodolite.theorems.hypotheses import REAL_INPUT, require_cost
from theodolite.theorems.stability.translation import no_action
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

FAMILIES = ("translation", "rotation", "scale")
MOST_INPUTS = 100
# multiplications and additions in all: some seconds on two cores
BUDGET = 3e10
_MOST_ENTRIES = 2e7  # of the terms that are held at once


class LieDerivatives(Theorem):
    """Lie derivatives under translations, rotations and scalings, and the layers that they come from.

    Each is relative to the output, for one pixel, one radian, or one unit of log scale: the
    slope at no motion, not the change that a motion of that size makes.  The flow acts on
    outputs that hold positions (equivariance) and leaves others alone (invariance).  A layer's
    term is what it fails to commute by, carried to the output; the terms of all layers add up
    to the whole, as vectors.
    """

    code = "STA004"
    title = "Lie derivative by layer"
    chapter = "stability"
    statement = (
        r"$\mathcal{L}_X f(x) = \frac{d}{dt}\big|_{t=0} T'_{-t} f(T_t x)$ is zero for every $x$ exactly when $f$ "
        r"commutes with the linear flow $T_t = e^{tA}$ of the field $X$; "
        r"$\mathcal{L}(h \circ g) = (\mathcal{L} h) \circ g + dh \cdot \mathcal{L} g$ splits it among layers. "
        r"Measured: the mean of $\|\mathcal{L}_X f(x)\| / \|f(x)\|$, and "
        r"$\mathrm{LEE} = E\,\|\mathcal{L}_X f\|^2 / \dim$."
    )
    reference = "gruver2023lie"
    hypotheses = (REAL_INPUT,)
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the relative derivatives, the error of each family, the layer of the largest term, all terms."""
        cost = require_cost(subject)
        graph = subject.graph
        action = translation_action(graph, subject.x[:2].to(subject.device), subject.image_shape)
        if action is None:
            raise NotApplicable(no_action(subject))
        chosen = {family: _fitting(family, action) for family in FAMILIES}
        chosen = {family: some for family, some in chosen.items() if some}
        if not chosen:
            raise NotApplicable("the inputs have one position along every axis, which nothing moves")
        if not subject.classification and acts_on_output(graph, action) is None:
            raise NotApplicable("the positions of the inputs could not be followed to the output")
        runs = sum(map(len, chosen.values()))
        copies = 2.0 + len(named_layers(graph, action.steps))
        # float64 convolutions of few channels cost their memory traffic
        work = 3.0 * runs * (cost.total + 100.0 * sum(map(cost.numel, cost.flops)))
        room = _MOST_ENTRIES / (copies * max(subject.n_outputs, 1))
        x, _ = subject.sample(_rows(BUDGET / 2.0 / work, 8), "STA004/inputs")
        few, _ = subject.sample(_rows(min(BUDGET / 2.0 / (copies * work), room), 4), "STA004/terms")
        sample, part = (f"{len(rows):,} of {subject.n:,} training inputs" for rows in (x, few))
        measured = {f: _measured(subject, x, action, some) for f, some in chosen.items()}
        values = {family: found.relative(family, sample) for family, found in measured.items()}
        values |= {f"lee[{family}]": found.lee(family, sample) for family, found in measured.items()}
        if any(found.differenced for found in measured.values()):
            return values
        return values | _terms({f: _split(subject, few, action, some) for f, some in chosen.items()}, part)

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Draw the terms of each layer, for translations and for the next family."""
        terms = {name[5:-1]: value for name, value in values.items() if name.startswith("term[")}
        if not terms:
            return None
        series = {"translation": [value.value or 0.0 for value in terms.values()]}
        other = next((f for f in FAMILIES[1:] if f in values), None)
        if other is not None:
            series[other] = [value.witness["terms"][other] for value in terms.values()]
        return Chart("bars", series, list(terms), "layer", "relative term")

    def advice(self, finding: Finding) -> str:
        """Name the layer with the largest term under translations, and why it has one."""
        worst = finding.values.get("breaks_most")
        if worst is None or worst.witness["layer"] is None:
            return ""
        why = worst.witness["why"]
        reason = f"it {why}" if why else "it commutes with shifts by its stride, so this is aliasing"
        return f"'{worst.witness['layer']}' adds most to the change under small translations: {reason}."


def _rows(affordable: float, least: int) -> int:
    return int(min(MOST_INPUTS, max(least, affordable)))


@dataclass(frozen=True)
class _Measured:
    """Lie derivatives of one family.

    Attributes
    ----------
    sizes : Tensor, shape (fields, n)
        Relative.
    squares : Tensor, shape (fields, n)
        |L f|^2 / dim.
    how : str
        What the reader must know of the computation.
    rounding : float
        Relative derivatives up to this one are taken for rounding.
    unit : str
        Of t.
    differenced : bool
        Whether an operation lacks a forward-mode derivative.
    """

    sizes: Tensor
    squares: Tensor
    how: str
    rounding: float
    unit: str
    differenced: bool = False

    def relative(self, family: str, sample: str) -> Value:
        """Return the mean over the inputs of the root mean square over the family's fields."""
        what = f"{sample}{self.how}" + (
            f", root mean square of {len(self.sizes)} fields" * (len(self.sizes) > 1)
        )
        return mean_of(_together(self.sizes), rounding=self.rounding, what=what, unit=f"per {self.unit}")

    def lee(self, family: str, sample: str) -> Value:
        """Return the local equivariance error, mean over the family's fields."""
        scale = float((self.squares / self.sizes.square().clamp(min=1e-300)).median())
        return mean_of(
            self.squares.mean(0),
            rounding=self.rounding**2 * scale,
            what=f"{sample}{self.how}",
            unit=f"per {self.unit} squared",
        )


def _together(sizes: Tensor) -> Tensor:
    return sizes.square().mean(0).sqrt()


def _fitting(family: str, action: Action) -> list[VectorField]:
    """Return the fields of a family that move along axes with more than one position."""
    d = len(action.sizes)
    return [f for f in fields(family, d) if all(action.sizes[a] > 1 for a in range(d) if f.moves(a))]


@dataclass(frozen=True)
class _Split:
    """Relative sizes of the layers' terms, shape (fields, n) each, and the layers' faults."""

    terms: dict[str, Tensor]
    faults: dict[str, str]
    how: str
    rounding: float


def _measured(subject: Subject, x: Tensor, action: Action, some: list[VectorField]) -> _Measured:
    graph, cost = subject.graph, require_cost(subject)
    try:
        found = [
            attribute(graph, x, action, f, invariant=subject.classification, split=False, cost=cost)
            for f in some
        ]
    except NotImplementedError:
        return _differenced(subject, x, action, some)
    return _Measured(
        torch.stack([relative_size(one.value, one.output) for one in found]),
        torch.stack([one.value.flatten(1).double().square().mean(1) for one in found]),
        _how(found[0].exact),
        _rounding(found[0].value),
        some[0].unit,
    )


def _split(subject: Subject, x: Tensor, action: Action, some: list[VectorField]) -> _Split:
    graph, cost = subject.graph, require_cost(subject)
    found = [attribute(graph, x, action, f, invariant=subject.classification, cost=cost) for f in some]
    terms = {
        t.name: torch.stack([relative_size(one.layers[i].value, one.output) for one in found])
        for i, t in enumerate(found[0].layers)
    }
    faults = {t.name: t.fault for t in found[0].layers}
    return _Split(terms, faults, _how(found[0].exact), _rounding(found[0].value))


def _how(exact: bool) -> str:
    return "" if exact else ", in the model's own precision"


def _rounding(value: Tensor) -> float:
    return 1e4 * torch.finfo(value.dtype).eps


def _differenced(subject: Subject, x: Tensor, action: Action, some: list[VectorField]) -> _Measured:
    """Measure by central differences in float64 where an operation has no forward-mode derivative."""
    graph = subject.graph
    options, exact = float64_options(graph, x)
    if not exact:
        raise NotApplicable(
            "an operation has no forward-mode derivative, and the model does not run in float64 for differences"
        )
    view = SpatialView.of(action, tuple(x.shape[1:]))
    follows = not subject.classification and bool(acts_on_output(graph, action))

    def network(images: Tensor) -> Tensor:
        output = graph.run(view.inputs(images), **options)
        grid = output_grid(graph, action, output) if follows else None
        return output if grid is None else grid

    images = view.images(x)
    found = [
        lie_derivative(network, images, f, "same" if follows else None, method="central difference")
        for f in some
    ]
    sizes = torch.stack([one.relative for one in found])
    error = max(float(relative_size(one.error[:, None], one.output).max()) for one in found)
    return _Measured(
        sizes,
        torch.stack([one.value.flatten(1).square().mean(1) for one in found]),
        f", by central differences (relative error about {error:.1e})",
        max(error, 1e-9),
        some[0].unit,
        differenced=True,
    )


def _terms(measured: dict[str, _Split], sample: str) -> dict[str, Value]:
    first = next(iter(measured.values()))
    means = {
        f: {name: float(_together(t).mean()) for name, t in m.terms.items()} for f, m in measured.items()
    }
    largest = {f: max(terms, key=terms.__getitem__) for f, terms in means.items()}
    family = next(iter(measured))
    layer: str | None = largest[family]
    sizes = _together(first.terms[largest[family]])
    witness: dict[str, Any] = {"layer": layer, "why": first.faults[largest[family]], "largest": largest}
    if float(sizes.max()) <= first.rounding:
        witness = {"layer": None, "why": "", "largest": largest}
    what = f"{sample}{first.how}"
    values = {
        "breaks_most": replace(
            mean_of(sizes, rounding=first.rounding, what=f"{what}: the largest term, of '{layer}'"),
            witness=witness,
        )
    }
    for name, term in first.terms.items():
        value = mean_of(_together(term), rounding=first.rounding, what=what)
        share = {"why": first.faults[name], "terms": {f: terms[name] for f, terms in means.items()}}
        values[f"term[{name}]"] = replace(value, witness=share)
    return values
