"""Oracles of the polar that several atoms share."""
