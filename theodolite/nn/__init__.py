"""Ordinary modules: parallel subnetworks, fixed gates, and regularizers that match them."""

from __future__ import annotations

from theodolite.nn import regularizers
from theodolite.nn.dropout import BernoulliDropout, DropBlock, DropConnect
from theodolite.nn.gated import GatedLinear
from theodolite.nn.parallel import ParallelSubnetworks
from theodolite.nn.scattering2d import Scattering2D

__all__ = [
    "BernoulliDropout",
    "DropBlock",
    "DropConnect",
    "GatedLinear",
    "ParallelSubnetworks",
    "Scattering2D",
    "regularizers",
]
