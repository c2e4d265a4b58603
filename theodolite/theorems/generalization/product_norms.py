"""GEN004: products over the layers of operator, Frobenius and (1, inf) norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from theodolite.analysis.linear_layers import LinearLayer
from theodolite.theorems.base import Chart, Hypothesis, Theorem, Verdict, by_structure
from theodolite.theorems.generalization.lipschitz import network_bounds
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject


def weight_layers(subject: Subject) -> list[LinearLayer]:
    """Return the weight layers of the subject's graph, their norms shared with the Lipschitz bracket."""
    return network_bounds(subject).layers


def _has_weight_layers(subject: Subject) -> Verdict:
    count = len(weight_layers(subject))
    reason = f"the graph multiplies the data by {count} weight matrices or kernels"
    return by_structure(count > 0, witness=count, reason=reason)


WEIGHT_LAYERS = Hypothesis(
    "has weight layers", "at least one linear or convolutional layer acts on the data", _has_weight_layers
)


class ProductNorms(Theorem):
    """Products of the layers' norms, and each layer's stable rank.

    The operator norm of a convolution is that of the linear map on its own input size;
    its Frobenius and (1, inf) norms are those of the kernel, batch normalization folded
    in where it follows a layer directly.  As predictors of generalization these numbers
    are scores; as numbers they are exact.
    """

    code = "GEN004"
    title = "Product norms"
    chapter = "generalization"
    statement = (
        r"$\prod_i\|W_i\|_2$, $\prod_i\|W_i\|_F$, $\prod_i\max_u\|W_{i,u}\|_1$ over the weight layers, and "
        r"$\|W_i\|_F^2/\|W_i\|_2^2$, the stable rank of layer $i$."
    )
    reference = "neyshabur2015norm, bartlett2017spectral"
    hypotheses = (WEIGHT_LAYERS,)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the three products and the stable ranks."""
        layers = weight_layers(subject)
        norms = [layer.norm() for layer in layers]
        note = _coverage(subject, layers)
        doubt = sum(1.0 - norm.confidence for norm in norms)
        values = {
            "product_operator_norm": Value.bound(
                math.prod(norm.low for norm in norms),
                math.prod(norm.high for norm in norms),
                confidence=1.0 - doubt,
                note=note,
            ),
            "product_frobenius": Value.exact(math.prod(float(x.rows.norm()) for x in layers), note=note),
            "product_1_inf": Value.exact(
                math.prod(float(x.rows.abs().sum(1).max()) for x in layers), note=note
            ),
        }
        for layer, norm in zip(layers, norms, strict=True):
            if norm.high > 0.0:
                values[f"stable_rank[{layer.name}]"] = _stable_rank(layer, norm)
        return values

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return the stable ranks."""
        ranks = {k[len("stable_rank[") : -1]: v for k, v in values.items() if k.startswith("stable_rank[")}
        if len(ranks) < 2:
            return None
        series = {"lower": [v.low for v in ranks.values()], "upper": [v.high for v in ranks.values()]}
        return Chart("intervals", series, list(ranks), "layer", "stable rank", "Stable rank of each layer")


def _stable_rank(layer: LinearLayer, norm: Value) -> Value:
    """Return the stable rank of a layer's operator, which is at least 1 and at most its rank."""
    squared = layer.squared_frobenius()
    lower = max(1.0, squared / norm.high**2)
    upper = squared / norm.low**2 if norm.low > 0.0 else math.inf
    note = "of the operator on its input size" if layer.operator is not None else ""
    return Value.bound(lower, max(lower, upper), confidence=norm.confidence, note=note)


def _coverage(subject: Subject, layers: list[LinearLayer]) -> str:
    """Say which normalizations were folded in and which weights are in no factor."""
    folded = sum(bool(layer.folded) for layer in layers)
    counted = frozenset().union(*(layer.parameters for layer in layers))
    rest = [name for name, p in subject.model.named_parameters() if p.ndim > 1 and name not in counted]
    parts = [f"{len(layers)} weight layer{'s' * (len(layers) > 1)}"]
    if folded:
        parts.append(f"{folded} batch normalization{'s' * (folded > 1)} folded in")
    if rest:
        parts.append(f"without {rest[0]}" + (f" and {len(rest) - 1} more" if len(rest) > 1 else ""))
    return "; ".join(parts)
