"""Figures of the field made again, with every claim asserted: ``theodolite reproduce``."""

from __future__ import annotations

from theodolite.experiments.base import Claim, Experiment, Result, reproduce
from theodolite.experiments.gene_expression import GeneExpression
from theodolite.experiments.hyperspectral_denoising import HyperspectralDenoising
from theodolite.experiments.hyperspectral_recovery import HyperspectralRecovery
from theodolite.experiments.movielens import Movielens
from theodolite.experiments.spurious_stationary import SpuriousStationary
from theodolite.experiments.tensor_completion import TensorCompletion
from theodolite.experiments.video_background import VideoBackground

__all__ = ["ALL", "BY_NAME", "Claim", "Experiment", "Result", "reproduce"]

ALL: list[type[Experiment]] = [
    SpuriousStationary,
    Movielens,
    GeneExpression,
    TensorCompletion,
    HyperspectralRecovery,
    HyperspectralDenoising,
    VideoBackground,
]
BY_NAME = {experiment.name: experiment for experiment in ALL}
