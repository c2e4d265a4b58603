"""How a tensor answers to the scaling of the variables, and why its degree is not known.

The algebra in which :mod:`theodolite.analysis.homogeneity_rules` computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an operation's output is not shown to be homogeneous.

    Attributes
    ----------
    layer, layer_type : str
        Qualified name and class of the module that runs it.
    where, why : str
        One sentence in two halves: the layer, and what it does.
    order : int
        Position in the order of execution.
    """

    layer: str
    layer_type: str
    where: str
    why: str
    order: int = 0


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a tensor answers to the scaling of the variables.

    Attributes
    ----------
    degree : float
        Its degree; with a fault, the degree that it would have without it.
    free : bool
        Whether every degree fits: all entries are 0 or infinite.
    fault : Fault or None
        The first reason in the order of execution why the degree is not proved.
    """

    degree: float = 0.0
    free: bool = False
    fault: Fault | None = None

    @property
    def constant(self) -> bool:
        """Whether the tensor is shown not to change at all."""
        return self.fault is None and (self.free or self.degree == 0.0)


CONSTANT = Scaling()
FREE = Scaling(free=True)


def first_fault(parts: Iterable[Scaling]) -> Fault | None:
    """Return the earliest fault of some scalings."""
    return min((p.fault for p in parts if p.fault), key=lambda fault: fault.order, default=None)


def scaling_of_constant(value: Tensor) -> Scaling:
    """Return the scaling of a tensor that does not change: free when it has only zeros and infinities."""
    return FREE if bool(((value == 0) | torch.isinf(value)).all()) else CONSTANT


def product(parts: Iterable[Scaling]) -> Scaling:
    """Return the scaling of a product, of matrices too."""
    parts = list(parts)
    fault = first_fault(parts)
    if fault is None and any(p.free for p in parts):
        return FREE
    return Scaling(sum(p.degree for p in parts), fault=fault)


def power(base: Scaling, exponent: float) -> Scaling:
    """Return the scaling of a power with a constant exponent."""
    if base.free:
        return CONSTANT if exponent == 0 else FREE
    return replace(base, degree=base.degree * exponent)


def degree_zero(found: Scaling) -> Scaling:
    """Return the scaling of what depends on directions alone, such as a sign."""
    return replace(found, degree=0.0, free=False)
