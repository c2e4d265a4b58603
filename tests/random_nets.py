"""Random networks of every kind of layer, residual sums and concatenations, for adversarial tests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
MAXIMUM = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
ADAPTIVE = {
    1: (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
}
RELU_LIKE: list[Callable[[], nn.Module]] = [nn.ReLU, nn.LeakyReLU]
SMOOTH: list[Callable[[], nn.Module]] = [
    *(nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Mish, nn.SELU, nn.CELU, nn.LogSigmoid),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ReLU6, nn.PReLU),
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.LeakyReLU(-2.0),
]
MOST_ENTRIES = 150


class Residual(nn.Module):
    """The sum, or the difference, of two branches."""

    def __init__(self, body: nn.Module, skip: nn.Module, sign: int) -> None:
        super().__init__()
        self.body, self.skip, self.sign = body, skip, sign

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x) if self.sign > 0 else self.skip(x) - self.body(x)


class Branches(nn.Module):
    """The concatenation of several branches along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    """Return the shape of one output; raises what the module raises when it does not fit."""
    with torch.no_grad():
        return tuple(module.double().eval()(torch.zeros(2, *shape, dtype=torch.float64)).shape[1:])


def batch_norm(channels: int, axes: int) -> nn.Module:
    norm = BATCH_NORM[axes](channels)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 2.0)
    return norm


def _layer(draw: random.Random, shape: Shape, relu_only: bool) -> nn.Module:
    axes, channels = len(shape) - 1, shape[0]
    common = ["activation", "activation", "norm"]
    kind = draw.choice(
        [*common, "linear", "linear"]
        if axes == 0
        else [*common, "conv", "conv", "transposed", "average", "maximum", "adaptive", "pad", "upsample"]
    )
    if kind == "norm":
        return batch_norm(channels, axes)
    if kind == "linear":
        return nn.Linear(channels, draw.randint(2, 6))
    if kind == "conv":
        kernel, groups = draw.randint(1, 3), draw.choice([1, 1, channels])
        padding = draw.randint(0, min(kernel - 1, min(shape[1:]) - 1))
        mode = draw.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
        stride, dilation = draw.randint(1, 2), draw.choice([1, 1, 2])
        out = groups * draw.randint(1, 3)
        return CONV[axes](channels, out, kernel, stride, padding, dilation, groups, padding_mode=mode)
    if kind == "transposed":
        stride = draw.randint(1, 3)
        out, kernel, extra = draw.randint(1, 3), draw.randint(1, 3), draw.randint(0, stride - 1)
        return TRANSPOSED[axes](channels, out, kernel, stride, 0, extra)
    if kind in ("average", "maximum"):
        kernel, stride, ceil = draw.randint(1, 3), draw.randint(1, 3), draw.random() < 0.3
        padding = draw.randint(0, kernel // 2)
        if kind == "maximum":
            return MAXIMUM[axes](kernel, stride, padding, ceil_mode=ceil)
        return AVERAGE[axes](kernel, stride, padding, ceil, draw.random() < 0.5)
    if kind == "adaptive":
        return draw.choice(ADAPTIVE[axes])(draw.randint(1, 3))
    if kind == "pad":
        return {1: nn.ReflectionPad1d(1), 2: nn.ReplicationPad2d(1), 3: nn.ConstantPad3d(1, 2.0)}[axes]
    if kind == "upsample" and not relu_only:
        smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
        return nn.Upsample(scale_factor=2, mode=draw.choice(["nearest", smooth]))
    return draw.choice(RELU_LIKE if relu_only or draw.random() < 0.3 else SMOOTH)()


def _branching(draw: random.Random, shape: Shape, depth: int, relu_only: bool) -> nn.Module:
    if draw.random() < 0.5:
        parts = [_chain(draw, shape, draw.randint(0, 2), depth, relu_only) for _ in range(draw.randint(2, 3))]
        outs = [shape_after(part, shape) for part in parts]
        return Branches(*parts) if all(out[1:] == outs[0][1:] for out in outs) else parts[0]
    body = _chain(draw, shape, draw.randint(1, 3), depth, relu_only)
    out, sign = shape_after(body, shape), draw.choice([1, -1])
    if out == shape:
        return Residual(body, nn.Identity(), sign)
    if len(shape) == 1:
        return Residual(body, nn.Linear(shape[0], out[0]), sign)
    if out[1:] == shape[1:]:
        return Residual(body, CONV[len(shape) - 1](shape[0], out[0], 1), sign)
    return body


def _chain(draw: random.Random, shape: Shape, length: int, depth: int, relu_only: bool) -> nn.Module:
    layers: list[nn.Module] = []
    while len(layers) < length:
        branching = depth < 2 and draw.random() < 0.25
        try:
            layer = (
                _branching(draw, shape, depth + 1, relu_only) if branching else _layer(draw, shape, relu_only)
            )
            after = shape_after(layer, shape)
        except (RuntimeError, ValueError):  # it does not fit here: another one
            continue
        if 0 < math.prod(after) <= MOST_ENTRIES:
            layers.append(layer)
            shape = after
    return nn.Sequential(*layers)


def random_network(
    seed: int, *, relu_only: bool = False, n_outputs: int | None = None
) -> tuple[nn.Module, Shape]:
    """Return a network in float64 and in evaluation mode, and the shape of its input.

    Parameters
    ----------
    seed : int
    relu_only : bool
        Only operations that a path norm is defined for.
    n_outputs : int, optional
        Ends in a linear layer of so many units; by default any end will do.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape: Shape = draw.choice([(5,), (2, 7), (2, 5, 4), (2, 5, 4), (1, 3, 3, 3)])
    body = _chain(draw, shape, draw.randint(2, 6), 0, relu_only)
    after = shape_after(body, shape)
    if n_outputs is not None or draw.random() < 0.6:
        head = nn.Linear(math.prod(after), n_outputs or draw.randint(1, 4))
        body = nn.Sequential(body, nn.Flatten(), head)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(draw.choice([0.5, 1.0, 2.0, 4.0]))
    return body.double().eval(), shape
