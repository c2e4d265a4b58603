"""Convex losses of the predictions, with their duals."""

from theodolite.losses.base import Loss, SampleLoss, Support, accurate_sum
from theodolite.losses.cross_entropy import CrossEntropyLoss
from theodolite.losses.squared import SquaredLoss

__all__ = [
    "CrossEntropyLoss",
    "Loss",
    "SampleLoss",
    "SquaredLoss",
    "Support",
    "accurate_sum",
]
