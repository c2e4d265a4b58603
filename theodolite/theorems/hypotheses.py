"""Conditions that several theorems share, each a function that really looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from theodolite.analysis import homogeneity
from theodolite.theorems.base import Hypothesis, NotApplicable, Verdict, by_number, by_structure

if TYPE_CHECKING:
    from theodolite.analysis.graph import Node
    from theodolite.theorems.subject import Subject

# operations that are piecewise linear in their input, beside those that are linear
PIECEWISE_LINEAR = frozenset(
    [
        "relu",
        "leaky_relu",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "hardtanh",
        "relu6",
        "abs",
        "maximum",
        "minimum",
    ]
)
# operations that are affine in the one input that depends on the data
AFFINE = frozenset(
    [
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "mean",
        "sum",
        "add",
        "sub",
        "neg",
        "cat",
        "stack",
        "view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "t",
        "squeeze",
        "unsqueeze",
        "select",
        "slice",
        "split",
        "chunk",
        "getitem",
        "clone",
        "contiguous",
        "alias",
        "detach",
        "to",
        "_to_copy",
        "expand",
        "repeat",
        "pad",
        "constant_pad_nd",
        "reflection_pad1d",
        "reflection_pad2d",
        "replication_pad1d",
        "replication_pad2d",
        "_native_batch_norm_legit_no_training",
        "dropout",
        "native_dropout",
        "identity",
        "upsample_nearest2d",
        "sym_size",
        "lift_fresh_copy",
        "unflatten",
        "movedim",
        "roll",
        "flip",
        "index_select",
        "narrow",
        "addmm",
        "matmul",
        "mm",
        "bmm",
        "mul",
        "div",
    ]
)
_PRODUCTS = frozenset(["mul", "div", "matmul", "mm", "bmm", "addmm", "linear", "conv1d", "conv2d", "conv3d"])


def depends_on_input(subject: Subject) -> set[Node]:
    """Return the graph's nodes whose value depends on the data."""
    alive: set[Node] = set()
    for node in subject.graph.nodes:
        if node.op == "input" or any(source in alive for source in node.inputs):
            alive.add(node)
    return alive


def require_graph(subject: Subject) -> None:
    """Raise NotApplicable, with the reason, when the model could not be traced."""
    if not subject.graph.traced:
        raise NotApplicable(
            f"needs the computation graph, and the model could not be traced ({subject.graph.reason})"
        )


def _real_input(subject: Subject) -> Verdict:
    return by_structure(
        subject.real_input, witness=str(subject.x.dtype), reason=f"inputs have dtype {subject.x.dtype}"
    )


def _classification(subject: Subject) -> Verdict:
    return by_structure(
        subject.loss_name == "cross_entropy" and subject.n_outputs > 1,
        witness={"loss": subject.loss_name, "outputs": subject.n_outputs},
        reason=f"the loss is {subject.loss_name} with {subject.n_outputs} outputs",
    )


def _test_split(subject: Subject) -> Verdict:
    given = "test" in subject.data
    reason = (
        "a test split was given"
        if given
        else "only (X, y) was given, which counts as training data; give {'train', 'test'}"
    )
    return by_structure(given, reason=reason)


def _weight_decay(subject: Subject) -> Verdict:
    decay = subject.weight_decay
    reason = "weight decay was not given" if decay is None else f"weight decay is {decay:g}"
    return by_structure(decay is not None and decay > 0, witness=decay, reason=reason)


def _has_parameters(subject: Subject) -> Verdict:
    count = sum(p.numel() for p in subject.parameters.values())
    return by_structure(count > 0, witness=count, reason=f"the model has {count:,} parameters")


def _piecewise_linear(subject: Subject) -> Verdict:
    require_graph(subject)
    alive = depends_on_input(subject)
    for node in subject.graph.operations:
        if node not in alive or node.op in PIECEWISE_LINEAR:
            continue
        sources = [s for s in node.inputs if s in alive]
        product = node.op in _PRODUCTS and len(sources) > 1
        if node.op not in AFFINE or product:
            return by_structure(
                False,
                witness={"layer": node.layer, "operation": node.op},
                reason=f"{node.where} is not piecewise linear in the input",
            )
    return by_structure(
        True, reason="every operation of the graph is affine or piecewise linear in the input"
    )


def _homogeneous(wrt: str):  # type: ignore[no-untyped-def]
    def check(subject: Subject) -> Verdict:
        result = subject.once(
            f"degree/{wrt}",
            lambda: homogeneity.analyse(
                subject.model, subject.x[:2].to(subject.device), wrt=wrt, graph=subject.graph
            ),
        )
        if result.proved:
            return by_structure(
                True, witness=result.degree, reason=f"degree {result.degree:g} by the rules of the graph"
            )
        if result.refuted:
            return by_structure(False, witness=result.witness, reason=result.reason)
        if result.degree is None:
            raise NotApplicable(result.reason)
        return by_number(result.probe_error, result.tolerance, witness=result.degree, reason=result.reason)

    return check


REAL_INPUT = Hypothesis("real input", "the inputs are real vectors", _real_input)
CLASSIFICATION = Hypothesis("classification", "cross-entropy loss with at least two classes", _classification)
TEST_SPLIT = Hypothesis("test split", "data apart from the training data were given", _test_split)
IID = Hypothesis(
    "i.i.d. test data",
    "the test data are independent draws from the distribution of interest, used for no choice",
)
WEIGHT_DECAY = Hypothesis(
    "weight decay > 0",
    "the training objective has a weight decay > 0, coupled, on all parameters",
    _weight_decay,
)
HAS_PARAMETERS = Hypothesis("has parameters", "the model has parameters", _has_parameters)
PIECEWISE_LINEAR_NET = Hypothesis(
    "piecewise linear", "the network is piecewise linear in its input", _piecewise_linear
)
HOMOGENEOUS_PARAMETERS = Hypothesis(
    "positively homogeneous in the parameters",
    "f(a w) = a^p f(w) for every a > 0, one p for all parameters",
    _homogeneous("parameters"),
)
HOMOGENEOUS_INPUT = Hypothesis(
    "positively homogeneous in the input", "f(a x) = a^q f(x) for every a > 0", _homogeneous("input")
)
