"""Slow and obviously right versions, which tests hold the fast ones against."""
