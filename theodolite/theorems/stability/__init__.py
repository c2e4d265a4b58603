"""Geometric stability: what translations do to every layer."""
