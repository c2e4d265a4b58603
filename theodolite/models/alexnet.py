"""A small AlexNet without biases."""

from __future__ import annotations

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutional and three linear layers, as in AlexNet, for small images.

    Kernels are 3 x 3 with zero padding, with a max-pool of 2 x 2 after the first, the second and the fifth
    convolution, and ReLU behind each layer but the last.  There are no biases and no local response normalization,
    neither of which is positively homogeneous, and no dropout: so it is homogeneous of degree 8 in its parameters.
    Weights are drawn as He et al. do, which keeps the size of the signal through eight layers.

    Parameters
    ----------
    channels : int
        Of the images.
    size : int
        Height and width of the images, at least 8.
    n_classes : int
    width : int
        Channels of the first convolution; the second has twice, the next three each three times as many,
        the hidden linear layers eight times.

    Raises
    ------
    ValueError
        If a number is too small.

    References
    ----------
    Krizhevsky, Sutskever and Hinton, NIPS 2012; the homogeneous variant: Haeffele and Vidal, CVPR 2017.

    Examples
    --------
    >>> from functools import partial
    >>> from theodolite.nn import ParallelSubnetworks
    >>> net = ParallelSubnetworks(partial(AlexNet, 1, 8, 10, width=4), 3)
    """

    def __init__(self, channels: int, size: int, n_classes: int, *, width: int = 8) -> None:
        super().__init__()
        if size < 8 or min(channels, n_classes, width) < 1:
            raise ValueError(
                f"channels, size, n_classes, width: expected numbers >= 1 and a size >= 8, got {channels}, {size}, "
                f"{n_classes}, {width}"
            )
        widths = (channels, width, 2 * width, 3 * width, 3 * width, 3 * width)
        layers: list[nn.Module] = []
        for i in range(5):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False), nn.ReLU()]
            if i in (0, 1, 4):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = 8 * width
        self.classifier = nn.Sequential(
            nn.Linear(widths[5] * (size // 8) ** 2, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, n_classes, bias=False),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, size, size) to (n, n_classes)."""
        output: Tensor = self.classifier(self.features(x).flatten(1))
        return output
