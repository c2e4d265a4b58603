"""Positive homogeneity of the network, in its parameters and in its input."""

from __future__ import annotations

from dataclasses import replace

from theodolite.analysis.homogeneity import Homogeneity
from theodolite.theorems.base import Finding, Theorem
from theodolite.theorems.hypotheses import HAS_PARAMETERS, HOMOGENEOUS_PARAMETERS, homogeneity_of
from theodolite.theorems.subject import Subject
from theodolite.value import Value

# what a fault says about itself -> what to do about it; the first that matches
_REMEDIES = (
    ("has trained slopes", "freeze the slopes, or split the activation into two parts with decayed scales"),
    ("running mean", "fold the normalization into the layer before it, and drop the shift"),
    ("to the variance", "without the normalization its scale would count; with it the regularizer can be made 0 "
     "without changing the function, and no certificate is possible"),
    ("softmax to scores", "use attention without the softmax (linear attention): it is homogeneous"),
    ("adds terms", "put as many weight layers on the skip connection as on the branch (a projection)"),
    ("combines terms", "give all the branches that are joined the same number of weight layers"),
    ("compares terms", "replace the limit by a ReLU"),
)  # fmt: skip
_LOSS = frozenset({"Sigmoid", "Softmax", "LogSoftmax", "LogSigmoid", "Softmax2d"})


class PositiveHomogeneity(Theorem):
    """The degree p of f(a w) = a^p f(w), by rules over the graph; probes can only refute it."""

    code = "OPT001"
    title = "Positive homogeneity"
    chapter = "optimality"
    statement = (
        r"The global optimality theorems need a network $f$ that is positively homogeneous in its parameters: "
        r"$f(x; \alpha w) = \alpha^p f(x; w)$ for every $\alpha > 0$, with one degree $p$ for all parameters jointly."
    )
    reference = "haeffele2015global"
    hypotheses = (HAS_PARAMETERS, replace(HOMOGENEOUS_PARAMETERS, about=True))
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the degree in the parameters, and in the input if that question is decided."""
        values = {"degree": homogeneity_of(subject, "parameters").to_value()}
        in_input = homogeneity_of(subject, "input")
        if _decided(in_input):
            values["input_degree"] = in_input.to_value()
        elif not subject.real_input:
            values["input_degree"] = Value.absent(in_input.reason, note=in_input.reason)
        else:
            note = f"{values['degree'].note}; the degree in the input is open: {in_input.reason}"
            values["degree"] = replace(values["degree"], note=note)
        return values

    def advice(self, finding: Finding) -> str:
        """Return what to change in the layer that breaks homogeneity."""
        witness = next((h.verdict.witness for h in finding.hypotheses if h.status == "refuted"), None)
        if finding.status != "refuted" or not isinstance(witness, dict):
            return ""
        layer, kind, why = witness["layer"], witness["layer_type"], witness["why"]
        name = f"'{layer}'" if layer else "the model's own forward"
        if kind in _LOSS and witness["final"]:
            return f"put the {kind} of {name} into the loss: up to there the network may be homogeneous"
        if "adds a bias" in why and "Norm" in kind:
            return f"{name}: fold the normalization into the layer before it, and drop the shift (its bias)"
        if "adds a bias" in why:
            return (
                f"remove the bias of {name}, or carry a constant channel through the layers: biases are weights from it then, "
                "and the network is homogeneous"
            )
        known = next((what for sign, what in _REMEDIES if sign in why), None)
        return f"{name}: {known or 'replace it by ReLU, LeakyReLU, pooling or linear layers'}"


def _decided(found: Homogeneity) -> bool:
    return found.proved or found.refuted
