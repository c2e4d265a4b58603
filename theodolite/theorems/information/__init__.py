"""Theorems of the chapter on information in weights and activations."""
