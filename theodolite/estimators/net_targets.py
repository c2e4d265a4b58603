"""What a parallel network is fitted to: targets with their mean loss, and how outputs become predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from theodolite.estimators.subnetworks import Readout
from theodolite.losses import CrossEntropyLoss, LogisticLoss, SampleLoss, SquaredLoss

LossName = Literal["squared_error", "logistic", "cross_entropy"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of the n samples, in the form that the loss takes.

    Attributes
    ----------
    values : Tensor, shape (n, n_outputs); (n,) of class numbers for cross-entropy
    loss_name : {"squared_error", "logistic", "cross_entropy"}
    n_outputs : int
        Number k of the subnetworks' outputs.
    mix, offset : Tensor or None
        Of the readout, see :class:`Readout`.
    classes : ndarray, shape (n,), or None
        Class numbers, None for a regression.
    """

    values: Tensor
    loss_name: LossName
    n_outputs: int
    mix: Tensor | None = None
    offset: Tensor | None = None
    classes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def loss(self, rows: NDArray[np.int64] | None = None) -> SampleLoss:
        """Return the mean loss over all samples, or over some of them."""
        values = self.values if rows is None else self.values[torch.as_tensor(rows)]
        scale = 1.0 / len(values)
        if self.loss_name == "squared_error":
            return SquaredLoss(values, scale)
        if self.loss_name == "logistic":
            return LogisticLoss(values, scale)
        return CrossEntropyLoss(values, self.n_outputs, scale)

    def readout(self, intercept: Tensor | None) -> Readout:
        """Return the map of the subnetworks' sum, and an intercept, to the outputs of the module."""
        if intercept is None:
            return Readout(self.mix, self.offset)
        shift = intercept if self.mix is None else intercept @ self.mix
        return Readout(self.mix, shift if self.offset is None else shift + self.offset)


def of_numbers(y: NDArray[np.float64]) -> Targets:
    """Return targets (n,) or (n, k) of a regression."""
    values = torch.tensor(y.reshape(len(y), -1), dtype=torch.float64)
    return Targets(values, "squared_error", values.shape[1])


def of_classes(numbers: NDArray[np.int64], n_classes: int, loss: str) -> Targets:
    """Return targets of a classification.

    Two classes have one output z, whose module's outputs are -z/2 and z/2: softmax makes the logistic
    function of them.  Squared errors of more classes are of centered one-hot targets.

    Parameters
    ----------
    numbers : ndarray, shape (n,)
        Class numbers 0 .. n_classes - 1.
    n_classes : int
    loss : {"log_loss", "squared_error"}
    """
    classes = torch.tensor(numbers, dtype=torch.int64)
    if n_classes == 2:
        signs = (2.0 * classes.double() - 1.0)[:, None]
        mix = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
        return Targets(signs, "logistic" if loss == "log_loss" else "squared_error", 1, mix, None, numbers)
    if loss == "log_loss":
        return Targets(classes, "cross_entropy", n_classes, classes=numbers)
    one_hot = torch.nn.functional.one_hot(classes, n_classes).double()
    mean = one_hot.mean(0)
    return Targets(one_hot - mean, "squared_error", n_classes, None, mean, numbers)
