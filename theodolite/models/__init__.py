"""Small readable networks, for audits and experiments."""

from theodolite.models.mlp import MLP

__all__ = ["MLP"]
