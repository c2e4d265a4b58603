"""Small models, data and subjects that the tests share."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from theodolite.models import MLP
from theodolite.theorems.subject import Subject


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1797 digits as (n, 64) in [0, 1] and their classes."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y)


def digits_pairs(n: int = 120, m: int = 60) -> dict[str, tuple[Tensor, Tensor]]:
    x, y = digits()
    return {"train": (x[:n], y[:n]), "test": (x[n : n + m], y[n : n + m])}


def mlp(*widths: int, bias: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(widths or (64, 16, 12, 10), bias=bias)


def conv_net(padding_mode: str = "circular", seed: int = 0) -> nn.Module:
    """A small convolutional classifier of 1x8x8 digits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 6, 3, padding=1, bias=False, padding_mode=padding_mode),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False, padding_mode=padding_mode),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10, bias=False),
    )


def dropout_net(p: float = 0.3, seed: int = 0) -> nn.Module:
    """A two-layer classifier of digits with dropout of its hidden units."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Dropout(p), nn.Linear(12, 10))


def tokens_net(seed: int = 0) -> nn.Module:
    """Embedding, mean over the sequence, linear: integer inputs."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x).mean(1))

    torch.manual_seed(seed)
    return Tokens()


def subject(
    model: nn.Module | None = None, n: int = 120, m: int = 60, *, test: bool = True, **options
) -> Subject:  # type: ignore[no-untyped-def]
    """A subject on a slice of digits."""
    pairs = digits_pairs(n, m)
    held_out = pairs["test"] if test else None
    return Subject(model or mlp(), *pairs["train"], test=held_out, **options)


def tokens_subject() -> Subject:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (40, 7), generator=generator)
    return Subject(tokens_net(), x, x[:, 0] % 3)


def regression_subject(**options) -> Subject:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    y = x[:, :1].abs() - x[:, 1:2]
    return Subject(mlp(4, 8, 1), x, y, test=(x + 0.1, y), **options)


def bare_subject() -> Subject:
    """A model without parameters."""
    return subject(nn.Sequential(nn.Identity()))


def constant_net() -> nn.Module:
    """A network whose output stays the same when its parameters are scaled."""

    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(self.layer(x))

    torch.manual_seed(0)
    return Signs()


def squaring_net() -> nn.Module:
    """A network whose output is squared: no global Lipschitz constant."""

    class Squaring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x)
            return y * y

    torch.manual_seed(0)
    return Squaring()


def with_zero_units(units: int, *, bias: bool = False) -> nn.Module:
    """A two-layer network whose first hidden units, or all of them, are zero in both layers."""
    model = mlp(64, 16, 10, bias=bias)
    with torch.no_grad():
        model.layers[0].weight[:units] = 0.0
        model.layers[2].weight[:, :units] = 0.0
    return model
