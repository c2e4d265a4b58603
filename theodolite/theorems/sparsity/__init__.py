"""Theorems of the chapter on sparse representations."""
