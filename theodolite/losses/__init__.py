"""Convex losses of the predictions, with their duals."""

from theodolite.losses.base import Loss, SampleLoss, Support, accurate_sum
from theodolite.losses.cross_entropy import CrossEntropyLoss
from theodolite.losses.huber import HuberLoss
from theodolite.losses.logistic import LogisticLoss
from theodolite.losses.masked import MaskedLoss, MaskedSquaredLoss
from theodolite.losses.poisson import PoissonLoss
from theodolite.losses.separable import SeparableLoss
from theodolite.losses.squared import SquaredLoss

__all__ = [
    "CrossEntropyLoss",
    "HuberLoss",
    "LogisticLoss",
    "Loss",
    "MaskedLoss",
    "MaskedSquaredLoss",
    "PoissonLoss",
    "SampleLoss",
    "SeparableLoss",
    "SquaredLoss",
    "Support",
    "accurate_sum",
]
