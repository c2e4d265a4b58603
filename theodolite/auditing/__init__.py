"""Audits: models and data in, a report out."""

from theodolite.auditing.report import Report
from theodolite.auditing.run import audit

__all__ = ["Report", "audit"]
