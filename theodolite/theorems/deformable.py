"""A subject whose inputs are sequences, images or volumes, as what deforms them needs it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from theodolite.analysis import relative_stability as probe
from theodolite.analysis.image_layout import SpatialView
from theodolite.analysis.translation_action import translation_action
from theodolite.analysis.warping import Interpolation
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.hypotheses import require_cost

if TYPE_CHECKING:
    from theodolite.theorems.subject import Subject

EXACT_WARP = 2e8  # above it trigonometric interpolation gives way to a local one


@dataclass(frozen=True, eq=False)
class Deformable:
    """A subject whose inputs are sequences, images or volumes.

    Attributes
    ----------
    network : nn.Module
        The model as a function of (n, channels, n_1, ..., n_d).
    layout : SpatialView
        Where the inputs' entries stand.
    interpolation : {"fourier", "cubic"}
        How they are warped.
    flops : float
        Of one warp and one forward pass.
    """

    network: nn.Module
    layout: SpatialView
    interpolation: Interpolation
    flops: float

    @property
    def how(self) -> str:
        """The interpolation in words."""
        return "trigonometric interpolation" if self.interpolation == "fourier" else "cubic interpolation"


def deformable(subject: Subject) -> Deformable:
    """Return the subject's network as a function of images, found once.

    Raises
    ------
    NotApplicable
        If no deformation is known to act on the inputs, or the model could not be traced.
    """
    return subject.once("deformable", lambda: _deformable(subject))


def _deformable(subject: Subject) -> Deformable:
    cost = require_cost(subject)
    shape = tuple(subject.x.shape[1:])
    action = translation_action(subject.graph, subject.x[:2].to(subject.device), subject.image_shape)
    if action is None:
        raise NotApplicable(
            f"no positions are known in inputs of shape {shape}, so no deformation acts on them"
            + (" (name their image_shape if they are flattened images)" if len(shape) == 1 else "")
        )
    layout = SpatialView.of(action, shape)
    if min(layout.sizes) < 4:
        sizes = " x ".join(map(str, layout.sizes))
        raise NotApplicable(
            f"the inputs have {sizes} positions, too few to deform: at least 4 along each axis"
        )
    positions = math.prod(layout.sizes)
    # the weights of each axis' samples at every point, then the sums
    sums = positions * (40.0 * sum(layout.sizes) + 2.0 * positions * layout.channels)
    exact = sums <= EXACT_WARP
    local = 4.0 ** len(layout.sizes) * 4.0 * positions * layout.channels
    return Deformable(
        layout.network(probe.frozen(subject.model)),
        layout,
        "fourier" if exact else "cubic",
        cost.total + (sums if exact else local),
    )
