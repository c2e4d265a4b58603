"""Optimizers that more than one part of the package needs."""
