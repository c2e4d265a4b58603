"""GEN003: path norms, in one pass over the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from theodolite.analysis.path_norm import NotReLU, PathSum, path_sum, path_value
from theodolite.theorems.base import Hypothesis, Theorem, Verdict, by_structure
from theodolite.theorems.hypotheses import REAL_INPUT, require_graph
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject


def _sums(subject: Subject, q: float) -> PathSum:
    return subject.once(f"path sum/{q:g}", lambda: path_sum(subject.graph, q))


def _relu_like(subject: Subject) -> Verdict:
    require_graph(subject)
    try:
        _sums(subject, 2.0)
    except NotReLU as outcome:
        witness = {"layer": outcome.node.layer, "operation": outcome.node.op}
        return by_structure(False, witness=witness, reason=str(outcome))
    return by_structure(True, reason="every operation is linear, a ReLU, a maximum or a sum of these")


RELU_NETWORK = Hypothesis(
    "ReLU network",
    "every operation is linear, a (leaky) ReLU, an absolute value, a maximum or a sum",
    _relu_like,
)


class PathNorm(Theorem):
    """The path norms of order 2 and 1.

    Every path from an input coordinate to an output counts; a bias is an edge from a
    constant 1, batch normalization is folded into edges, a maximum is replaced by the
    sum over its window.  Unlike products of layer norms they do not change when a ReLU
    unit's incoming weights are multiplied by c and its outgoing ones divided by c.
    """

    code = "GEN003"
    title = "Path norms"
    chapter = "generalization"
    statement = (
        r"$\phi_q(w)=\Big(\sum_{\gamma}\prod_{e\in\gamma}|w_e|^q\Big)^{1/q}$ over all paths $\gamma$ from an "
        r"input (or a bias) to an output; the Rademacher complexity of ReLU networks with $\phi_q\le r$ is "
        r"of order $r$."
    )
    reference = "neyshabur2015norm, gonon2024path"
    hypotheses = (REAL_INPUT, RELU_NETWORK)
    invariant = frozenset({"rescaling", "permutation", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the path norms of order 2 and 1."""
        two, one = _sums(subject, 2.0), _sums(subject, 1.0)
        note = "biases are edges from a constant 1"
        if two.folded:
            many = len(two.folded) > 1
            note += f"; {len(two.folded)} batch normalization{'s' * many} folded into edges"
        if two.stripped:
            note += f"; up to the logits, before the final '{two.stripped}'"
        return {"path_norm": _noted(path_value(two), note), "path_norm_1": _noted(path_value(one), note)}


def _noted(value: Value, note: str) -> Value:
    if value.kind == "exact" and value.value is not None:
        return Value.exact(value.value, note=note)
    return Value.bound(value.lower, value.upper, note=f"{value.note}; {note}")
