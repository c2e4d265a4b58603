"""Approximation and expressivity: linear regions."""
