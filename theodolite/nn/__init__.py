"""Ordinary modules: parallel subnetworks, fixed gates, and regularizers that match them."""

from __future__ import annotations

from theodolite.nn import regularizers
from theodolite.nn.gated import GatedLinear
from theodolite.nn.parallel import ParallelSubnetworks

__all__ = ["GatedLinear", "ParallelSubnetworks", "regularizers"]
