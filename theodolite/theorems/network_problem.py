r"""A subject's two-layer network as the convex problem of :mod:`theodolite.estimators.trained_network`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from theodolite.analysis.graph import Node
from theodolite.analysis.head import mean_loss
from theodolite.analysis.two_layer import NotTwoLayer, TwoLayer, find_two_layer
from theodolite.estimators import trained_network
from theodolite.estimators.trained_network import NetworkProblem
from theodolite.theorems.base import NotApplicable, Verdict, by_structure
from theodolite.theorems.hypotheses import require_graph
from theodolite.theorems.subject import Reducer, Subject

INPUT_BYTES = 1 << 30


def two_layer_of(subject: Subject) -> TwoLayer:
    """Return the network's two layers, read once.

    Raises
    ------
    NotApplicable
        If the model could not be traced.
    NotTwoLayer
        If it is of another form.
    """
    require_graph(subject)
    trained = {id(p) for p in subject.parameters.values()}

    def read() -> TwoLayer | NotTwoLayer:
        try:
            found = find_two_layer(subject.graph, trained)
        except NotTwoLayer as outcome:
            return outcome
        return found

    result = subject.once("two layers", read)
    if isinstance(result, NotTwoLayer):
        raise result
    return result


def check_family(subject: Subject) -> Verdict:
    """Return whether the network is of a family that can be certified."""
    try:
        found = two_layer_of(subject)
    except NotTwoLayer as outcome:
        return by_structure(False, reason=str(outcome))
    if found.depth > 2:
        return by_structure(
            True, witness=list(found.weights), reason=f"a chain of {found.depth} trained linear layers"
        )
    names = {
        "linear": "no activation",
        "relu": "ReLU",
        "leaky_relu": "leaky ReLU",
        "gated": "fixed gates",
        "conv": "ReLU and average pooling",
    }
    return by_structure(
        True,
        witness=list(found.weights),
        reason=f"two trained layers with {names[found.activation]} between them",
    )


class NetworkInputs(Reducer):
    """What the first trained layer reads on the training data, and the gates' values.

    Nothing is kept without a weight decay, when the network is of no such family, or the inputs are larger than
    ``INPUT_BYTES`` in float64.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._wanted: dict[Node, list[Tensor]] = {}
        try:
            found = two_layer_of(subject)
        except (NotTwoLayer, NotApplicable):
            return
        if subject.weight_decay and _bytes(subject, found) <= INPUT_BYTES:
            self._wanted = {node: [] for node in (found.inputs, found.gate) if node is not None}

    def wants(self, node: Node) -> bool:
        """Return whether the node's values are kept."""
        return node in self._wanted

    def update(self, node: Node, value: Tensor) -> None:
        """Keep a batch."""
        self._wanted[node].append(value.cpu())

    def value(self, node: Node) -> Tensor:
        """Return the values of a node on all training data, shape (n, ...)."""
        return self.subject.x if node.op == "input" else torch.cat(self._wanted[node])


def _bytes(subject: Subject, found: TwoLayer) -> int:
    weight, read = subject.model.get_parameter(found.weights[0]), found.inputs.shape or ()
    if found.convolution is not None:  # every patch that a filter sees
        steps = zip(
            read[2:], found.convolution.padding, weight.shape[2:], found.convolution.stride, strict=True
        )
        patches = math.prod((size + 2 * pad - kernel) // stride + 1 for size, pad, kernel, stride in steps)
        return 8 * subject.n * patches * weight[0].numel()
    gates = len(weight) if found.gate is not None else 0
    return 8 * subject.n * (weight.shape[1] + gates)


def network_problem(subject: Subject) -> NetworkProblem:
    """Return the convex problem of a network that :func:`check_family` accepts.

    Raises
    ------
    NotApplicable
        If the loss has no known dual, the data are too large, a number is not finite or the gates are none.
    NotTwoLayer
        If the network is of another form.
    """
    found, decay = two_layer_of(subject), subject.weight_decay
    if not decay:
        raise NotApplicable("needs a weight decay > 0")
    loss = mean_loss(subject.loss_name, subject.y.cpu(), subject.n_outputs)
    if loss is None:
        raise NotApplicable(f"the dual of the loss {subject.loss_name} is not known")
    if _bytes(subject, found) > INPUT_BYTES:
        raise NotApplicable(
            f"the inputs of {subject.n:,} samples take {_bytes(subject, found) / 2**30:.2f} GiB, more than 1 GiB"
        )
    subject.logits()  # refuses outputs that are not finite
    seen = subject.reduced(NetworkInputs)
    gates = None if found.gate is None else seen.value(found.gate)
    try:
        return trained_network.network_problem(
            found, subject.parameters, seen.value(found.inputs), gates, loss, decay
        )
    except NotTwoLayer as outcome:
        raise NotApplicable(str(outcome)) from outcome
