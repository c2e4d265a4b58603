"""Conditions that several theorems share, each a function that really looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from theodolite.analysis import homogeneity, piecewise_linear
from theodolite.analysis.cost import Cost, forward_cost
from theodolite.theorems.base import Hypothesis, NotApplicable, Verdict, by_number, by_structure

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject


def require_graph(subject: Subject) -> None:
    """Raise NotApplicable, with the reason, when the model could not be traced."""
    if not subject.graph.traced:
        raise NotApplicable(
            f"needs the computation graph, and the model could not be traced ({subject.graph.reason})"
        )


def require_cost(subject: Subject) -> Cost:
    """Return what a forward pass costs; raise NotApplicable when the graph's batch size is fixed."""
    require_graph(subject)
    try:
        x = subject.x[:1].to(subject.device)
        return subject.once("forward cost", lambda: forward_cost(subject.graph, x))
    except ValueError as error:
        raise NotApplicable(
            f"the model's forward fixes the batch size when it is traced ({error})"
        ) from error


def require_gradients(subject: Subject) -> None:
    """Raise NotApplicable when the forward does not run while gradients are recorded."""

    def refusal() -> str:
        x = subject.x[:2].to(subject.device)
        try:
            with subject.preserved(), torch.enable_grad():
                subject.model(x)
        except RuntimeError as error:  # autograd's refusal of an in-place change, say
            return str(error).strip().splitlines()[0]
        return ""

    reason = subject.once("forward with gradients", refusal)
    if reason:
        raise NotApplicable(f"the model's forward does not run while gradients are recorded ({reason})")


def _real_input(subject: Subject) -> Verdict:
    return by_structure(
        subject.real_input, witness=str(subject.x.dtype), reason=f"inputs have dtype {subject.x.dtype}"
    )


def _classification(subject: Subject) -> Verdict:
    return by_structure(
        subject.loss_name == "cross_entropy" and subject.n_outputs > 1,
        witness={"loss": subject.loss_name, "outputs": subject.n_outputs},
        reason=f"the loss is {subject.loss_name} with "
        + (f"{subject.n_outputs} outputs" if subject.n_outputs > 1 else "one output"),
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
    node = piecewise_linear.obstruction(subject.graph)
    if node is not None and not piecewise_linear.is_curved(node):
        raise NotApplicable(f"no rule tells whether {node.where} is piecewise linear")
    if node is not None:
        return by_structure(
            False,
            witness={"layer": node.layer, "operation": node.op},
            reason=f"{node.where} is not piecewise linear in the input",
        )
    return by_structure(
        True, reason="every operation of the graph is affine or piecewise linear in the input"
    )


def homogeneity_of(subject: Subject, wrt: homogeneity.Variables) -> homogeneity.Homogeneity:
    """Return what is known about the model's degree of positive homogeneity, analyzed once."""
    x = subject.x[:2].to(subject.device)
    return subject.once(
        f"degree/{wrt}", lambda: homogeneity.analyse(subject.model, x, wrt=wrt, graph=subject.graph)
    )


def _homogeneous(subject: Subject) -> Verdict:
    result = homogeneity_of(subject, "parameters")
    if result.proved:
        return by_structure(True, witness=result.degree, reason=result.reason)
    if result.refuted:
        return by_structure(False, witness=result.witness, reason=result.reason)
    if result.degree is None:
        raise NotApplicable(result.reason)
    return by_number(result.probe_error, result.tolerance, witness=result.degree, reason=result.reason)


def _known_dual(subject: Subject) -> Verdict:
    known = subject.loss_name in ("cross_entropy", "mse")
    reason = (
        "" if known else f"the dual of the loss {subject.loss_name} is not known; use cross_entropy or mse"
    )
    return by_structure(known, witness=subject.loss_name, reason=reason)


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
    _homogeneous,
)
KNOWN_DUAL = Hypothesis(
    "convex loss with a known dual", "the loss is cross-entropy or mean squared error", _known_dual
)
