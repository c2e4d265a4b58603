"""Public checks for theorems, losses and families of subnetworks, in the manner of ``check_estimator``."""

from theodolite.testing.atoms import check_atom
from theodolite.testing.losses import check_loss
from theodolite.testing.theorems import (
    FUNCTION_PRESERVING,
    check_coverage,
    check_global_state,
    check_theorem,
    hidden_layers,
    insert_dead_units,
    permute_units,
    rescale_units,
    same_values,
    snapshot,
)

__all__ = [
    "FUNCTION_PRESERVING",
    "check_atom",
    "check_coverage",
    "check_global_state",
    "check_loss",
    "check_theorem",
    "hidden_layers",
    "insert_dead_units",
    "permute_units",
    "rescale_units",
    "same_values",
    "snapshot",
]
