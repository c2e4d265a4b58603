"""The degree of weight decay against that of the network."""

from __future__ import annotations

import torch

from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.unit_pairs import find_pairs
from theodolite.theorems.base import Finding, Hypothesis, Theorem, Verdict, by_number, by_structure
from theodolite.theorems.hypotheses import (
    HAS_PARAMETERS,
    HOMOGENEOUS_PARAMETERS,
    WEIGHT_DECAY,
    homogeneity_of,
    require_graph,
)
from theodolite.theorems.subject import Subject
from theodolite.value import Value, format_number

DECAY_DEGREE = 2.0
TOLERANCE = 1e-6  # of a degree that is known from probes alone
_QUOTIENTS = frozenset("div divide true_divide addcdiv".split())
_RECIPROCALS = frozenset("reciprocal rsqrt".split())


def _degrees_match(subject: Subject) -> Verdict:
    found = homogeneity_of(subject, "parameters")
    degree = found.degree
    assert degree is not None  # the hypothesis before this one holds or is undecided with a degree
    difference = abs(degree - DECAY_DEGREE)
    if difference <= TOLERANCE:
        reason = "weight decay and the network have degree 2"
        if not found.proved:
            return by_number(difference, TOLERANCE, witness=degree, reason=reason)
        return by_structure(True, witness=degree, reason=reason)
    reason = f"weight decay has degree 2, the network {degree:g}"
    condition = _zero_is_a_minimum(subject) if degree > DECAY_DEGREE and found.proved else None
    if condition is None:
        linear = (
            "; where the outputs are linear in the parameters the objective is convex without any theorem"
        )
        return by_structure(False, witness={"degree": degree}, reason=reason + linear * (degree == 1.0))
    at_zero, here = _objectives(subject)
    compared = f"objective {format_number(at_zero)} there, {format_number(here)} at these weights"
    kind = "spurious" if here < at_zero else "strict"
    witness = {"degree": degree, "objective": here, "objective_at_zero": at_zero}
    sentence = f"{reason}: W = 0 is a {kind} local minimum ({compared}{condition})"
    return by_structure(False, witness=witness, reason=sentence)


def _zero_is_a_minimum(subject: Subject) -> str | None:
    """Return the condition ("" for none) under which W = 0 is a strict local minimum for degree p > 2.

    |f(w)| <= C |w|^p when f is bounded on the unit sphere, so that near zero the loss falls by
    at most a constant times |w|^p, less than the decay's w/2 |w|^2.  None when f may be unbounded there.
    """
    if not subject.graph.traced or _divides_by_parameters(subject.graph):
        return None
    known = subject.loss_name in ("cross_entropy", "mse")
    return "" if known else "; provided that the loss is locally Lipschitz in the outputs at 0"


def _divides_by_parameters(graph: Graph) -> bool:
    moving: set[Node] = set()
    for node in graph.nodes:
        if node.op != "parameter" and not any(source in moving for source in node.inputs):
            continue
        moving.add(node)
        below = []
        if node.op in _QUOTIENTS:
            below = [node.args[2 if node.op == "addcdiv" else 1]]
        elif node.op in _RECIPROCALS:
            below = [node.args[0]]
        elif node.op == "pow" and not (isinstance(node.args[1], (int, float)) and node.args[1] >= 0):
            below = list(node.args[:2])
        if any(item in moving for item in below):
            return True
    return False


def _objectives(subject: Subject) -> tuple[float, float]:
    """Return the training objective at zero parameters and at the present ones."""
    logits, y = subject.logits(), subject.y
    with torch.no_grad():
        loss = float(subject.per_sample_loss(logits, y).double().mean())
        at_zero = float(subject.per_sample_loss(torch.zeros_like(logits), y).double().mean())
    assert subject.weight_decay is not None
    square = sum(float(p.detach().double().square().sum()) for p in subject.parameters.values())
    return at_zero, loss + subject.weight_decay / 2 * square


DEGREES_MATCH = Hypothesis(
    "degrees match",
    "the regularizer has the same degree of homogeneity as the network",
    _degrees_match,
    about=True,
)


class RegularizerDegree(Theorem):
    """Weight decay has degree 2: it is the matched regularizer of networks of degree 2 alone."""

    code = "OPT003"
    title = "Regularizer degree"
    chapter = "optimality"
    statement = (
        r"The global optimality theorems need a regularizer $\theta$ of the network's own degree $p$. Weight decay "
        r"$\frac{w}{2}\|W\|^2$ has degree 2. For $p = 2$ and pairs of layers, minimizing it over rescalings gives "
        r"$w\sum_i\|u_i\|\|v_i\|$ exactly. For $p > 2$ and a loss that is locally Lipschitz in the outputs, $W = 0$ "
        r"is a strict local minimum for every $w > 0$: the loss changes by $O(\|W\|^p)$, the decay by $\frac{w}{2}\|W\|^2$."
    )
    reference = "haeffele2015global"
    hypotheses = (HAS_PARAMETERS, WEIGHT_DECAY, HOMOGENEOUS_PARAMETERS, DEGREES_MATCH)
    invariant = frozenset({"permutation"})
    sensitive = frozenset({"rescaling", "dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return both degrees and what balancing the layers would save."""
        require_graph(subject)
        found = homogeneity_of(subject, "parameters")
        values = {
            "degree": found.to_value(),
            "regularizer_degree": Value.exact(
                DECAY_DEGREE, note="weight decay w/2 ||W||^2 on all trainable parameters"
            ),
        }
        excess = _excess(subject)
        if excess is not None:
            values["excess"] = excess
        return values

    def advice(self, finding: Finding) -> str:
        """Return which regularizer to use."""
        if finding.status == "refuted":
            witness = next(h.verdict.witness for h in finding.hypotheses if h.status == "refuted")
            if "local minimum" in finding.reason:
                return (
                    "penalize the sum over subnetworks of the product of their layers' norms, "
                    f"of degree {witness['degree']:g}: then "
                    "W = 0 is no local minimum unless it is global; start away from it, its gradient is zero either way"
                )
            return "penalize the network's subnetworks with a regularizer of the network's own degree"
        excess = finding.values.get("excess")
        if excess is not None and excess.value is not None and excess.value > 0.01:
            return (
                f"balancing the two layers (norm in = norm out for each unit) saves {100 * excess.value:.2g} % of the weight "
                "decay without changing the function"
            )
        return ""


def _excess(subject: Subject) -> Value | None:
    """Return the part of the weight decay that rescaling the units of a two-layer network would save."""
    pairs, _ = find_pairs(subject.graph)
    trained = {name for name, p in subject.parameters.items() if p.requires_grad}
    if len(pairs) != 1 or pairs[0].norms:
        return None
    nodes = [n for n in (*pairs[0].first.args[1:3], *pairs[0].last.args[1:3]) if isinstance(n, Node)]
    if {n.target for n in nodes} != (trained or set(subject.parameters)):
        return None
    units = pairs[0].n_units
    incoming = [subject.graph.value_of(n).detach().double().reshape(units, -1) for n in nodes[:-1]]
    outgoing = subject.graph.value_of(nodes[-1]).detach().double()
    outgoing = outgoing.reshape(len(outgoing), units, -1).transpose(0, 1).reshape(units, -1)
    u, v = torch.cat(incoming, 1).norm(dim=1), outgoing.norm(dim=1)
    total = float((u.square() + v.square()).sum())
    if total == 0.0:
        return None
    matched = 2.0 * float((u * v).sum())
    note = "1 - 2 sum ||u_i|| ||v_i|| / ||W||^2: what rescaling the units would save, the function unchanged"
    return Value.exact(max(0.0, 1.0 - matched / total), unit="of the weight decay", note=note)
