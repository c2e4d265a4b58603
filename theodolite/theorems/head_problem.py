"""The last layer of a subject as a convex problem: its features, streamed, and its present weights."""

from __future__ import annotations

import torch
from torch import Tensor

from theodolite.analysis.graph import Node
from theodolite.analysis.head import Head, HeadProblem, NoHead, find_head, mean_loss
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.hypotheses import require_graph
from theodolite.theorems.subject import Reducer, Subject

FEATURE_BYTES = 1 << 30


class HeadFeatures(Reducer):
    """The input of the last linear layer on the training data, in the model's dtype.

    Nothing is kept when there is no such layer, no weight decay to certify it with, or
    when the features are larger than ``FEATURE_BYTES``.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._node: Node | None = None
        self._parts: list[Tensor] = []
        try:
            head = find_head(subject.graph)
        except NoHead:
            return
        if subject.weight_decay and _feature_bytes(subject, head) <= FEATURE_BYTES:
            self._node = head.features

    def wants(self, node: Node) -> bool:
        """Return whether the node is the last layer's input."""
        return node is self._node

    def update(self, node: Node, value: Tensor) -> None:
        """Keep a batch of features."""
        self._parts.append(value.cpu())

    @property
    def features(self) -> Tensor:
        """Features of shape (n, d)."""
        if self._node is not None and self._node.op == "input":
            return self.subject.x
        return torch.cat(self._parts)


def _feature_bytes(subject: Subject, head: Head) -> int:
    weight = subject.model.get_parameter(head.weight)
    return subject.n * weight.shape[1] * weight.element_size()


def certified_problem(
    subject: Subject, rows: Tensor | None = None
) -> tuple[Head, HeadProblem, Tensor, Tensor | None]:
    """Return the last layer's convex problem on the training data or on some of its rows.

    Parameters
    ----------
    subject : Subject
        With a weight decay.
    rows : Tensor of indices, optional
        Rows to train on; the loss is the mean over them.

    Returns
    -------
    head : Head
    problem : HeadProblem
        A frozen bias is a fixed offset; a trained one is decayed like the weight.
    weight, bias : Tensor
        The present head, shape (k, d) and (k,); bias is None when it is not trained.

    Raises
    ------
    NotApplicable
        If there is no trainable linear last layer, no such loss, or too much data.
    """
    require_graph(subject)
    if not subject.weight_decay:
        raise NotApplicable("needs a weight decay > 0")
    try:
        head = find_head(subject.graph)
    except NoHead as outcome:
        raise NotApplicable(str(outcome)) from None
    size = _feature_bytes(subject, head)
    if size > FEATURE_BYTES:
        raise NotApplicable(
            f"the features of {subject.n:,} samples take {size / 2**30:.2f} GiB, more than 1 GiB"
        )
    features, y = subject.reduced(HeadFeatures).features, subject.y
    if rows is not None:
        features, y = features[rows], y[rows]
    loss = mean_loss(subject.loss_name, y, subject.n_outputs)
    if loss is None:
        raise NotApplicable(f"the dual of the loss {subject.loss_name} is not known")
    trained = {id(p) for p in subject.parameters.values()}
    weight = subject.model.get_parameter(head.weight)
    bias = subject.model.get_parameter(head.bias) if head.bias else None
    if id(weight) not in trained:
        raise NotApplicable(f"{head.where} is frozen: its weight is not trained")
    offset = bias.detach().cpu() if bias is not None and id(bias) not in trained else None
    bias = None if offset is not None else bias
    problem = HeadProblem(
        features, loss, subject.weight_decay, bias="none" if bias is None else "decayed", offset=offset
    )
    return head, problem, weight.detach().cpu(), None if bias is None else bias.detach().cpu()
