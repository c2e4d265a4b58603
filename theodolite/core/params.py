"""Parameters of r subnetworks, stacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Params = tuple[Tensor, ...]
"""The parameters of r subnetworks, stacked: each tensor has a leading axis of length r."""


def count(params: Params) -> int:
    """Return the number r of subnetworks."""
    return len(params[0])


def select(params: Params, index: Any) -> Params:
    """Return some of the subnetworks, by a slice, a mask or indices."""
    return tuple(p[index] for p in params)


def join(*several: Params) -> Params:
    """Return all subnetworks of several sets."""
    return tuple(torch.cat(parts) for parts in zip(*several, strict=True))
