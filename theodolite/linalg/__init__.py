"""Rigorous and fast linear algebra that every other layer may use."""
