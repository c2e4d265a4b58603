"""Figures of the field made again, with every claim asserted: ``theodolite reproduce``."""

from __future__ import annotations

from theodolite.experiments.base import Claim, Experiment, Result, reproduce
from theodolite.experiments.certified_convolution import CertifiedConvolution
from theodolite.experiments.decay_mismatch import DecayMismatch
from theodolite.experiments.dropout_balance import DropoutBalance
from theodolite.experiments.dropout_digits import DropoutDigits
from theodolite.experiments.dropout_objective import DropoutObjective
from theodolite.experiments.dropout_spectrum import DropoutSpectrum
from theodolite.experiments.dropout_structures import DropoutStructures
from theodolite.experiments.few_labels import FewLabels
from theodolite.experiments.gene_expression import GeneExpression
from theodolite.experiments.hyperspectral_denoising import HyperspectralDenoising
from theodolite.experiments.hyperspectral_recovery import HyperspectralRecovery
from theodolite.experiments.lesion_segmentation import LesionSegmentation
from theodolite.experiments.molecules import Molecules
from theodolite.experiments.movielens import Movielens
from theodolite.experiments.parallel_alexnets import ParallelAlexNets
from theodolite.experiments.scattering_energy import ScatteringEnergy
from theodolite.experiments.scattering_stability import ScatteringStability
from theodolite.experiments.small_world_graphs import SmallWorldGraphs
from theodolite.experiments.spoken_digits import SpokenDigits
from theodolite.experiments.spurious_stationary import SpuriousStationary
from theodolite.experiments.tensor_completion import TensorCompletion
from theodolite.experiments.video_background import VideoBackground
from theodolite.experiments.width_minima import WidthMinima

__all__ = ["ALL", "BY_NAME", "Claim", "Experiment", "Result", "reproduce"]

ALL: list[type[Experiment]] = [
    CertifiedConvolution,
    SpuriousStationary,
    Movielens,
    GeneExpression,
    TensorCompletion,
    HyperspectralRecovery,
    HyperspectralDenoising,
    VideoBackground,
    WidthMinima,
    DecayMismatch,
    ParallelAlexNets,
    DropoutObjective,
    DropoutSpectrum,
    DropoutBalance,
    DropoutStructures,
    DropoutDigits,
    ScatteringEnergy,
    ScatteringStability,
    SmallWorldGraphs,
    LesionSegmentation,
    Molecules,
    FewLabels,
    SpokenDigits,
]
BY_NAME = {experiment.name: experiment for experiment in ALL}
