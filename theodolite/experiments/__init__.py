"""Figures of the field made again, with every claim asserted: ``theodolite reproduce``."""

from __future__ import annotations

from theodolite.experiments.base import Claim, Experiment, Result, reproduce
from theodolite.experiments.spurious_stationary import SpuriousStationary

__all__ = ["ALL", "BY_NAME", "Claim", "Experiment", "Result", "reproduce"]

ALL: list[type[Experiment]] = [
    SpuriousStationary,
]
BY_NAME = {experiment.name: experiment for experiment in ALL}
