"""Ordinary modules: scattering, parallel subnetworks, gates, dropout, anti-aliased layers, and regularizers."""

from __future__ import annotations

from theodolite.nn import regularizers
from theodolite.nn.blur_pool import AntiAliased, BlurPool
from theodolite.nn.dropout import BernoulliDropout, DropBlock, DropConnect
from theodolite.nn.gated import GatedLinear
from theodolite.nn.graph_scattering import GraphScattering
from theodolite.nn.parallel import ParallelSubnetworks
from theodolite.nn.scattering1d import Scattering1D
from theodolite.nn.scattering2d import Scattering2D
from theodolite.nn.scattering3d import HarmonicScattering3D

__all__ = [
    "AntiAliased",
    "BernoulliDropout",
    "BlurPool",
    "DropBlock",
    "DropConnect",
    "GatedLinear",
    "GraphScattering",
    "HarmonicScattering3D",
    "ParallelSubnetworks",
    "Scattering1D",
    "Scattering2D",
    "regularizers",
]
