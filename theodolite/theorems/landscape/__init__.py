"""Theorems of the chapter on landscapes: critical points and curvature."""
