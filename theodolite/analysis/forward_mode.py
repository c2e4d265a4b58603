"""Forward-mode differentiation with torch, made ready."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator

import torch
import torch.autograd.forward_ad as fwd
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Compute with operations that have forward-mode derivatives, recording no other gradients.

    The fused attentions have none, so that attention is computed by its definition.
    """
    _load()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


@functools.cache
def _load() -> None:
    """Make the first dual number, at which torch warns of its own use of torch.jit.script."""
    with warnings.catch_warnings(), fwd.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        fwd.make_dual(torch.zeros(1), torch.zeros(1))
