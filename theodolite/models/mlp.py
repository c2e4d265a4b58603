"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected layers with ReLU between them.

    Parameters
    ----------
    widths : sequence of int
        Inputs, hidden layers, outputs: ``(64, 128, 64, 10)`` has three weight layers.
    bias : bool
        Whether the layers have biases.  Without them the network is positively
        homogeneous, of degree equal to the number of weight layers.

    Raises
    ------
    ValueError
        If fewer than two widths are given, or one is not positive.
    """

    def __init__(self, widths: Sequence[int], *, bias: bool = True) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths: expected at least two positive numbers, got {tuple(widths)}")
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, ...) to (n, outputs); each sample is flattened."""
        output: Tensor = self.layers(x.flatten(1))
        return output
