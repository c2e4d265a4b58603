"""Parallel subnetworks, and whether one of them is zero."""

from __future__ import annotations

from theodolite.analysis.homogeneity_probes import scaled_parameters
from theodolite.analysis.parallel_structure import Parallel, parallel_subnetworks
from theodolite.theorems.base import (
    Finding,
    Hypothesis,
    NotApplicable,
    Theorem,
    Verdict,
    by_number,
    by_structure,
)
from theodolite.theorems.hypotheses import (
    HAS_PARAMETERS,
    HOMOGENEOUS_PARAMETERS,
    homogeneity_of,
    require_graph,
)
from theodolite.theorems.subject import Subject
from theodolite.value import Value

TOLERANCE = 1e-6  # of a degree that is known from probes alone


def parallel_structure(subject: Subject) -> Parallel:
    """Return the model as a sum of subnetworks, read once."""
    trained = {id(p) for p in scaled_parameters(subject.model)}
    return subject.once("parallel structure", lambda: parallel_subnetworks(subject.graph, trained))


def _is_parallel(subject: Subject) -> Verdict:
    require_graph(subject)
    found = parallel_structure(subject)
    if found.count > 1:
        return by_structure(True, witness=found.count, reason=f"{found.count:,} subnetworks: {found.reason}")
    if found.unknown:
        raise NotApplicable(f"the structure could not be followed through {found.unknown}")
    return by_structure(False, witness={"subnetworks": 1}, reason=f"one subnetwork: {found.reason}")


def _positive_degree(subject: Subject) -> Verdict:
    found = homogeneity_of(subject, "parameters")
    degree = found.degree
    assert degree is not None  # the hypothesis before this one holds or is undecided with a degree
    reason = f"the network has degree {degree:g} in its parameters"
    if not found.proved:
        return by_number(TOLERANCE - degree, 0.0, witness=degree, reason=reason)
    return by_structure(degree > 0.0, witness=degree, reason=reason)


POSITIVE_DEGREE = Hypothesis("positive degree", "the degree in the parameters is positive", _positive_degree)
PARALLEL = Hypothesis(
    "parallel subnetworks",
    "the output is a sum of at least two subnetworks of one architecture without shared parameters",
    _is_parallel,
    about=True,
)


class ParallelSubnetworks(Theorem):
    """The number of parallel subnetworks, and how many of them are zero throughout."""

    code = "OPT002"
    title = "Parallel subnetworks"
    chapter = "optimality"
    statement = (
        r"Let $f(x; W) = \sum_{i=1}^r \phi(x; W_i)$ with $\phi$ and the regularizer $\theta$ positively homogeneous of one "
        r"degree, and a convex differentiable loss. A local minimum with a zero subnetwork, $W_i = 0$ in all its layers, is "
        r"global, and for $r > NK$ ($N$ samples, $K$ outputs) a path along which the objective never rises leads to one."
    )
    reference = "haeffele2015global"
    hypotheses = (HAS_PARAMETERS, HOMOGENEOUS_PARAMETERS, POSITIVE_DEGREE, PARALLEL)
    invariant = frozenset({"rescaling", "permutation"})
    sensitive = frozenset({"dead units"})

    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the numbers of subnetworks and of zero ones."""
        found = parallel_structure(subject)
        enough = subject.n * subject.n_outputs
        width = (
            f"r = {found.count:,} {'>' if found.count > enough else '<='} NK = {enough:,} training outputs"
        )
        zero = (
            "with a regularizer of the network's degree and a convex differentiable loss, a local minimum with a zero "
            "subnetwork is global; that these weights are a local minimum no computation can prove, so this certifies nothing"
        )
        return {
            "subnetworks": Value.exact(found.count, note=f"{found.reason}; {width}"),
            "zero_subnetworks": Value.exact(
                found.zero, note=zero if found.zero else f"none is zero throughout; {zero}"
            ),
        }

    def advice(self, finding: Finding) -> str:
        """Return how to get a structure to which the theorem applies."""
        if finding.status == "refuted":
            return "sum several copies of a small network, each with its own parameters, to make the theorem apply"
        return ""
