"""Dropout as an explicit regularizer."""
