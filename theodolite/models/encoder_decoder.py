"""A small encoder-decoder that labels every position of an image or a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.nn.blur_pool import AntiAliased, BlurPadding

Downsampling = Literal["max", "stride", "blur"]
_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BLURS: dict[str, BlurPadding] = {"circular": "circular", "reflect": "reflect", "zeros": "zero"}


class EncoderDecoder(nn.Module):
    """A U-net of a few lines: each level down halves the size, each level up doubles it and joins what was there.

    A level is two convolutions of size 3, each with ReLU behind it.  On the way up the values are
    repeated (nearest neighbor), concatenated with the output of the level of the same size on the way
    down, and convolved again; a 1 x 1 convolution gives the logits.  Weights are drawn as He et al. do.

    Parameters
    ----------
    channels, n_classes : int
        Of the input and of the logits.
    dims : {2, 3}
        Spatial axes.
    width : int
        Channels of the first level; each level down has twice as many.
    depth : int
        Levels down; sizes must be multiples of the total stride, 2 ** depth.
    down : {"max", "stride", "blur"}
        Max-pool of size 2, convolution of stride 2, or the maximum of two at every position followed
        by a blur-pool.
    padding_mode : {"circular", "reflect", "zeros"}
        Of convolutions and blur-pools.
    batch_norm : bool
        Whether batch normalization stands between each convolution and its ReLU.

    Raises
    ------
    ValueError
        If an argument is none of these, or an input has other sizes.

    Notes
    -----
    With circular padding it commutes with shifts by multiples of 2 ** depth along each axis:
    every part does, on its own grid.  With any other shift it does not in general.

    References
    ----------
    Ronneberger, Fischer and Brox, U-Net: convolutional networks for biomedical image segmentation, MICCAI 2015.

    Examples
    --------
    >>> import torch
    >>> EncoderDecoder(1, 2, width=4)(torch.zeros(1, 1, 16, 24)).shape
    torch.Size([1, 2, 16, 24])
    """

    def __init__(
        self,
        channels: int,
        n_classes: int,
        *,
        dims: int = 2,
        width: int = 8,
        depth: int = 2,
        down: Downsampling = "max",
        padding_mode: Literal["circular", "reflect", "zeros"] = "circular",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, n_classes, width, depth) < 1:
            raise ValueError(
                f"channels, n_classes, width, depth: expected numbers >= 1, got {channels}, {n_classes}, "
                f"{width}, {depth}"
            )
        for name, given, allowed in (
            ("dims", dims, (2, 3)),
            ("down", down, ("max", "stride", "blur")),
            ("padding_mode", padding_mode, tuple(_BLURS)),
        ):
            if given not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {given!r}")
        self.dims, self.stride = dims, 2**depth

        def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            return _CONVOLUTIONS[dims](
                inputs, outputs, 3, stride=stride, padding=1, padding_mode=padding_mode
            )

        def level(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for before in (inputs, outputs):
                layers.append(convolution(before, outputs))
                if batch_norm:
                    layers.append(_NORMS[dims](outputs))
                layers.append(nn.ReLU())
            return nn.Sequential(*layers)

        def halving(count: int) -> nn.Module:
            if down == "stride":
                return convolution(count, count, stride=2)
            pool = _POOLS[dims](2)
            return AntiAliased(pool, padding_mode=_BLURS[padding_mode]) if down == "blur" else pool

        widths = [width * 2**i for i in range(depth + 1)]
        self.encoder = nn.ModuleList(
            level(before, after) for before, after in zip([channels, *widths], widths[:-1], strict=False)
        )
        self.down = nn.ModuleList(halving(count) for count in widths[:-1])
        self.bottom = level(widths[-2], widths[-1])
        self.decoder = nn.ModuleList(
            level(above + count, count) for above, count in zip(widths[1:], widths[:-1], strict=True)
        )
        self.head = _CONVOLUTIONS[dims](width, n_classes, 1)
        for module in self.modules():
            if type(module) is _CONVOLUTIONS[dims]:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, sizes...) to logits (n, n_classes, sizes...)."""
        self._check(x.shape)
        skips = []
        for level, halve in zip(self.encoder, self.down, strict=True):
            x = level(x)
            skips.append(x)
            x = halve(x)
        x = self.bottom(x)
        for level, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
        logits: Tensor = self.head(x)
        return logits

    def _check(self, shape: Sequence[int]) -> None:
        if len(shape) != self.dims + 2 or any(n < 1 or n % self.stride for n in shape[2:]):
            raise ValueError(
                f"x: expected {self.dims + 2} dimensions with {self.dims} sizes that {self.stride} divides, "
                f"got shape {tuple(shape)}"
            )
