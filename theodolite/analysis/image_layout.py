"""The inputs of a network as sequences, images or volumes, whatever layout its forward expects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theodolite.analysis.translation_action import Action


@dataclass(frozen=True)
class SpatialView:
    """Where the entries of a sample stand when channels come first and space last.

    Attributes
    ----------
    places : Tensor, shape (channels, n_1, ..., n_d), integers
        The entry of the flattened sample that stands there.
    shape : tuple of int
        Of one sample.
    """

    places: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, action: Action, shape: tuple[int, ...]) -> SpatialView:
        """Return the layout of what translations of samples of a shape act on."""
        d = len(action.dims)
        spatial = action.places.movedim([a - 1 for a in action.dims], list(range(-d, 0)))
        return cls(spatial.reshape(-1, *action.sizes), shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Positions along each spatial axis."""
        return tuple(self.places.shape[1:])

    @property
    def channels(self) -> int:
        """Entries at a position."""
        return len(self.places)

    def images(self, x: Tensor) -> Tensor:
        """Return inputs (n, ...) as (n, channels, n_1, ..., n_d)."""
        return x.flatten(1)[:, self.places.to(x.device)]

    def inputs(self, images: Tensor) -> Tensor:
        """Return images (n, channels, n_1, ..., n_d) as the inputs that they are."""
        back = torch.empty(math.prod(self.shape), dtype=torch.long)
        back[self.places.flatten()] = torch.arange(len(back))
        return images.flatten(1)[:, back.to(images.device)].unflatten(1, self.shape)

    def network(self, model: nn.Module) -> nn.Module:
        """Return the model as a function of images."""
        return _OfImages(model, self)


class _OfImages(nn.Module):
    def __init__(self, model: nn.Module, layout: SpatialView) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.model(self.layout.inputs(images))
        return output
