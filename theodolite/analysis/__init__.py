"""Algorithms with more than one caller, or that users call directly."""
