"""GEN005: between which numbers the network's Lipschitz constant lies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from theodolite.analysis.jacobian import NoDerivative, lipschitz_lower
from theodolite.analysis.lipschitz import LipschitzBounds, lipschitz_bounds
from theodolite.theorems.base import (
    Chart,
    Finding,
    Hypothesis,
    NotApplicable,
    Theorem,
    Verdict,
    by_structure,
)
from theodolite.theorems.hypotheses import REAL_INPUT, require_cost, require_graph
from theodolite.value import Value, format_number

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

_WORK = 1e11  # flops for the Jacobians
_CHEAP = 1e7  # flops of a forward pass up to which the search itself is in float64
_POINTS = 256


def network_bounds(subject: Subject) -> LipschitzBounds:
    """Return what the composition rules prove, computed once a subject."""
    require_graph(subject)
    return subject.once("lipschitz bounds", lambda: lipschitz_bounds(subject.graph))


def exact_model(subject: Subject) -> nn.Module:
    """Return a float64 copy of the model, in evaluation mode and without trainable parameters.

    Raises
    ------
    NotApplicable
        If the model's forward insists on another precision.
    """
    return subject.once("float64 model", lambda: _double(subject))


def _double(subject: Subject) -> nn.Module:
    model = copy.deepcopy(subject.model).double().requires_grad_(False)
    x = subject.x[:2].to(subject.device)
    try:
        with torch.no_grad():
            output = model(x.double() if subject.real_input else x)
    except RuntimeError as error:  # tensors of another dtype that the forward makes itself
        reason = (str(error).splitlines() or ["?"])[0]
        raise NotApplicable(f"the model's forward does not run in float64 ({reason})") from error
    if output.dtype != torch.float64:
        raise NotApplicable(f"the model's forward returns {output.dtype} when its weights are float64")
    return model


def forward_flops(subject: Subject) -> float:
    """Return the flops of one sample's forward pass; by the parameters when it can't be traced."""
    try:
        return require_cost(subject).total
    except NotApplicable:
        return 2.0 * sum(p.numel() for p in subject.model.parameters())


def _lipschitz_layers(subject: Subject) -> Verdict:
    bounds = network_bounds(subject)
    return by_structure(
        not bounds.reason,
        witness=bounds.witness or None,
        reason=bounds.reason or "every operation of the graph has a Lipschitz constant",
    )


LIPSCHITZ_LAYERS = Hypothesis(
    "globally Lipschitz layers",
    "every operation has a finite Lipschitz constant on the whole space",
    _lipschitz_layers,
)


class LipschitzBracket(Theorem):
    """A bracket of the Lipschitz constant from input to output, in the Euclidean norm.

    Above by composition over the graph: products along a path, sums over branches, with
    the true operator norm of every layer on its own input size (convolutions by their
    symbol or their matrix, batch normalization folded in).  Below by difference quotients
    along the top singular vectors of sampled Jacobians; a search from inside, which says
    nothing about the supremum.
    """

    code = "GEN005"
    title = "Lipschitz bracket"
    chapter = "generalization"
    statement = (
        r"$\max_k \|f(x_k+h v_k)-f(x_k-h v_k)\|/(2h)\;\le\;\mathrm{Lip}(f)\;\le\;\prod_i\|W_i\|_2$ for a chain; "
        r"sums over the branches of a graph."
    )
    reference = "virmaux2018lipschitz, sedghi2019singular"
    hypotheses = (REAL_INPUT, LIPSCHITZ_LAYERS)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the bracket, and the bounds of each layer's operator norm."""
        bounds = network_bounds(subject)
        flops = forward_flops(subject)
        size = int(min(_POINTS, max(8, _WORK / (3.0 * min(subject.n_outputs, 32) * max(flops, 1.0)))))
        x, _ = subject.sample(size, "GEN005/points")
        note = f"below: slopes at {len(x):,} training points; above: composition over the graph"
        lower: float | None = None
        try:
            lower, _ = lipschitz_lower(
                exact_model(subject),
                x.double(),
                search=exact_model(subject) if flops <= _CHEAP else subject.model,
                batch=max(1, min(64, subject.batch_size)),
                generator=subject.generator("GEN005/power"),
            )
        except (NoDerivative, NotApplicable) as error:
            note = f"above: composition over the graph; no lower end: {error}"
        if lower is not None and lower > bounds.upper:
            raise ArithmeticError(f"the bracket is crossed: {lower!r} > {bounds.upper!r}")
        values = {"lipschitz": Value.bound(lower, bounds.upper, confidence=bounds.confidence, note=note)}
        folded = {layer.name: layer.folded for layer in bounds.layers if layer.folded}
        for name, norm in bounds.factors.items():
            how = f"with '{folded[name]}' folded in" if name in folded else ""
            values[f"operator_norm[{name}]"] = Value.bound(
                norm.lower,
                norm.upper,
                confidence=norm.confidence,
                note="; ".join(filter(None, (how, norm.note))),
            )
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return the layers' operator norms."""
        prefix = "operator_norm["
        norms = {k[len(prefix) : -1]: v for k, v in values.items() if k.startswith(prefix)}
        if len(norms) < 2:
            return None
        series = {"lower": [v.low for v in norms.values()], "upper": [v.high for v in norms.values()]}
        title = "Operator norm of each layer"
        return Chart("intervals", series, list(norms), "layer", "operator norm", title)

    def advice(self, finding: Finding) -> str:
        """Say how loose the bracket is where that matters."""
        bracket = finding.values.get("lipschitz")
        if bracket is None or not bracket.low > 0.0 or bracket.high < 10.0 * bracket.low:
            return ""
        ratio = format_number(bracket.high / bracket.low)
        return f"the ends are a factor {ratio} apart, so what rests on the upper one may be that pessimistic"
