"""Audit trained PyTorch networks with the theorems of deep learning, and certify optimality gaps.

>>> import theodolite as td
>>> report = td.audit(model, {"train": (X, y), "test": (X_test, y_test)})  # doctest: +SKIP

``import theodolite`` loads neither PyTorch nor scikit-learn: every name below is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theodolite import (
        analysis,
        atoms,
        auditing,
        core,
        estimators,
        experiments,
        linalg,
        losses,
        models,
        nn,
        optim,
        polar,
        remedies,
        testing,
        theorems,
    )
    from theodolite.auditing.run import audit
    from theodolite.core.problem import Problem
    from theodolite.value import Value

__version__ = "0.1.0"

__all__ = [
    "Problem",
    "Value",
    "__version__",
    "analysis",
    "atoms",
    "audit",
    "auditing",
    "core",
    "estimators",
    "experiments",
    "linalg",
    "losses",
    "models",
    "nn",
    "optim",
    "polar",
    "remedies",
    "testing",
    "theorems",
]

_ATTRIBUTES = {
    "audit": "theodolite.auditing.run",
    "Problem": "theodolite.core.problem",
    "Value": "theodolite.value",
}


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        found = getattr(importlib.import_module(_ATTRIBUTES[name]), name)
        globals()[name] = found
        return found
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
