"""Generalization: error on new data, margins, capacity, Lipschitz brackets."""
