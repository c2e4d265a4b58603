"""Parallel subnetworks: the sum is a sum, and its terms are one function."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from theodolite.analysis.graph import trace
from theodolite.analysis.homogeneity_probes import scaled_parameters
from theodolite.analysis.parallel_structure import WHOLE, Blocks, Parallel, parallel_subnetworks

D = 6


def lin(i: int, o: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(i, o, bias=bias)


def conv(i: int, o: int, groups: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(i, o, size, padding=size // 2, groups=groups, bias=False)


def deep(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), lin(D, 5), nn.ReLU(), lin(5, width), nn.ReLU(), lin(width, 3))


def shallow(width: int = 5) -> nn.Module:
    return nn.Sequential(lin(D, width), nn.ReLU(), lin(width, 3))


class Sum(nn.Module):
    def __init__(self, *branches: nn.Module, how: str = "sum") -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        return torch.stack(outputs, 1).sum(1) if self.how == "stack" else sum(outputs) / 2


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = lin(D, 5), lin(5, 3), lin(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(torch.relu(self.first(x))) + self.right(torch.relu(self.first(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.skip, self.block, self.last = lin(D, 5), lin(5, 5), lin(5, 5), lin(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.skip(h) + torch.relu(self.block(h)))


class Grouped(nn.Module):
    """Four subnetworks as grouped convolutions, summed by their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(2, 8),
            nn.ReLU(),
            conv(8, 12, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            conv(12, 20, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(-1, 4, 5).sum(1)


class TiedTranspose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, D))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.relu(nn.functional.linear(x, self.weight)), self.weight)


def frozen_first() -> nn.Module:
    model = shallow()
    model[0].weight.requires_grad_(False)
    return model


VECTOR, IMAGE = (D,), (2, 4, 4)
PARALLEL = {
    "two layers": (shallow, VECTOR, 5),
    "first bias": (lambda: nn.Sequential(lin(D, 5, True), nn.ReLU(), lin(5, 3)), VECTOR, 5),
    "two linear layers": (lambda: nn.Sequential(lin(D, 4), lin(4, 3)), VECTOR, 4),
    "convolution": (lambda: nn.Sequential(conv(2, 7), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), lin(28, 3)), IMAGE, 7),
    "two convolutions": (lambda: nn.Sequential(conv(2, 7), nn.ReLU(), conv(7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGE, 7),
    "groups": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 12, 4), nn.ReLU(), nn.Flatten(), lin(192, 3)), IMAGE, 4),
    "grouped outputs": (Grouped, IMAGE, 4),
    "branches": (lambda: Sum(deep(), deep(), deep()), VECTOR, 3),
    "stacked": (lambda: Sum(deep(), deep(), how="stack"), VECTOR, 2),
    "branches of units": (lambda: Sum(shallow(4), shallow(7)), VECTOR, 11),
}  # fmt: skip
SINGLE = {
    "three layers": (deep, VECTOR, "mixes the units below it"),
    "one layer": (lambda: lin(D, 3), VECTOR, "only layer with parameters"),
    "frozen features": (frozen_first, VECTOR, "only layer with parameters"),
    "different depths": (lambda: Sum(deep(), shallow()), VECTOR, "different architectures"),
    "different widths": (lambda: Sum(deep(4), deep(5)), VECTOR, "different architectures"),
    "shared layer": (Shared, VECTOR, "share the parameter 'first.weight'"),
    "residual": (Residual, VECTOR, "mixes the units below it"),
    "groups of the input": (lambda: nn.Sequential(conv(2, 2, 2), nn.ReLU(), nn.Flatten(), lin(32, 3)), IMAGE, "read different parts"),
}  # fmt: skip


def structure(model: nn.Module, shape: tuple[int, ...]) -> Parallel:
    graph = trace(model, torch.randn(2, *shape))
    return parallel_subnetworks(graph, {id(p) for p in scaled_parameters(model)})


def pieces(parameters: dict[str, Tensor], blocks: Blocks) -> list[dict[str, Tensor]]:
    """Return views of the parameters of each subnetwork of a bundle."""
    found: list[dict[str, Tensor]] = [{} for _ in range(blocks.count)]
    for name, axis in blocks.parts:
        chunks = [parameters[name]] if axis == WHOLE else parameters[name].chunk(blocks.count, axis)
        assert len(chunks) == blocks.count
        for subnetwork, chunk in zip(found, chunks, strict=True):
            subnetwork[name] = chunk
    return found


@pytest.mark.parametrize("name", sorted(PARALLEL))
def test_the_network_is_the_sum_of_its_subnetworks(name):
    build, shape, count = PARALLEL[name]
    torch.manual_seed(0)
    model = build().double()
    found = structure(model, shape)
    assert found.count == count
    assert found.zero == 0
    assert found.count == sum(b.count for b in found.blocks)
    x = torch.randn(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        whole, total, covered = model(x), 0.0, 0
        for bundle in range(len(found.blocks)):
            for index in range(found.blocks[bundle].count):
                alone = copy.deepcopy(model)
                parameters = dict(alone.named_parameters())
                kept = {k: v.clone() for k, v in pieces(parameters, found.blocks[bundle])[index].items()}
                for p in parameters.values():
                    p.zero_()
                for key, value in pieces(parameters, found.blocks[bundle])[index].items():
                    value.copy_(kept[key])
                    covered += value.numel()
                total = total + alone(x)
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-12)
    assert covered == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(PARALLEL))
def test_subnetworks_can_change_places(name):
    build, shape, _ = PARALLEL[name]
    torch.manual_seed(0)
    model = build().double()
    found = structure(model, shape)
    x = torch.randn(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        subnetworks = [p for blocks in found.blocks for p in pieces(dict(model.named_parameters()), blocks)]
        first, last = subnetworks[0], subnetworks[-1]
        pairs = zip(sorted(first), sorted(last), strict=True)
        for one, two in pairs:
            first[one].copy_((old := last[two].clone(), last[two].copy_(first[one]))[0])
            assert old.shape == first[one].shape
    torch.testing.assert_close(model(x).detach(), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_a_single_subnetwork_is_named_with_its_reason(name):
    build, shape, reason = SINGLE[name]
    found = structure(build(), shape)
    assert (found.count, found.unknown) == (1, "")
    assert reason in found.reason


def test_what_cannot_be_followed_is_open():
    found = structure(TiedTranspose(), VECTOR)
    assert (found.count, found.reason) == (1, "")
    assert "'weight' is used along two of its axes" in found.unknown
    softmax = structure(nn.Sequential(lin(D, 5), nn.Softmax(1), lin(5, 3)), VECTOR)
    assert softmax.unknown == "layer '1' (Softmax) (softmax)"


def test_zero_subnetworks_are_counted():
    model = shallow()
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].weight[3] = 0.0
        model[2].weight[:, 3] = 0.0
    assert structure(model, VECTOR).zero == 1
    branches = Sum(deep(), deep(), deep())
    with torch.no_grad():
        for parameter in branches.branches[1].parameters():
            parameter.zero_()
    assert structure(branches, VECTOR).zero == 1


def test_a_deep_network_needs_no_deep_recursion():
    model = nn.Sequential(*(layer for _ in range(400) for layer in (lin(3, 3), nn.ReLU())), lin(3, 2))
    graph = trace(model, torch.randn(2, 3))
    found = parallel_subnetworks(graph, {id(p) for p in model.parameters()})
    assert found.count == 1
