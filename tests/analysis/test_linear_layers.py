"""The weight layers read from a graph: each must compute what its node computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_nets import batch_norm, random_network
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from theodolite.analysis.graph import Graph, Node, trace
from theodolite.analysis.linear_layers import Constants, LinearLayer, is_copy, linear_layers


def read(model: nn.Module, *shape: int) -> tuple[Graph, Tensor, list[LinearLayer]]:
    x = torch.randn(2, *shape, dtype=torch.float64)
    graph = trace(model.double().eval(), x)
    return graph, x, linear_layers(graph, Constants(graph))


def values_of(graph: Graph, x: Tensor) -> dict[Node, Any]:
    values: dict[Node, Any] = {node: x for node in graph.nodes if node.op == "input"}
    with torch.no_grad():
        graph.run(x, observe=values.__setitem__)
    return values


def check(model: nn.Module, *shape: int) -> list[LinearLayer]:
    """Replay every layer by its folded weight and bias, and compare its size with its matrix."""
    graph, x, layers = read(model, *shape)
    values = values_of(graph, x)
    for layer in layers:
        replayed = layer.apply(values[layer.source], layer.weight, layer.bias)
        torch.testing.assert_close(replayed, values[layer.node], rtol=1e-9, atol=1e-11)
        # the same without the bias, from the origin: its matrix and the norm of that
        start = values[layer.origin][:1]
        basis = torch.eye(start.numel(), dtype=torch.float64).reshape(-1, *start.shape[1:])
        if layer.operator is None:
            matrix = layer.apply(basis, layer.weight, None).flatten(1)
            if start.ndim == 2:
                assert layer.squared_frobenius() == pytest.approx(float((matrix**2).sum()), rel=1e-9)
        elif layer.origin is layer.source:
            matrix = layer.apply(basis, layer.weight, None).flatten(1)
            assert layer.squared_frobenius() == pytest.approx(float((matrix**2).sum()), rel=1e-9)
        else:
            continue
        true = float(torch.linalg.matrix_norm(matrix, 2))
        norm = layer.norm()
        assert norm.low <= true * (1 + 1e-9)
        assert norm.high >= true * (1 - 1e-12)
        assert layer.rows.shape[0] == values[layer.node].shape[1 if layer.weight.ndim > 2 else -1]
    return layers


FOLDED: list[tuple[str, nn.Module, tuple[int, ...]]] = [
    ("linear", nn.Linear(3, 5), (3,)),
    ("no bias", nn.Linear(3, 5, bias=False), (3,)),
    ("conv", nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2), (2, 5, 4)),
    ("conv 1-D, same", nn.Conv1d(2, 3, 4, padding="same", dilation=2), (2, 9)),
    ("conv 3-D", nn.Conv3d(1, 2, 2, bias=False), (1, 3, 3, 3)),
    ("transposed", nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 3, 3)),
    ("transposed 1-D", nn.ConvTranspose1d(2, 3, 2, dilation=2), (2, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), [case[1:] for case in FOLDED], ids=[case[0] for case in FOLDED])
def test_batch_norm_is_folded_into_the_layer_before(layer, shape):
    torch.manual_seed(0)
    with torch.no_grad():
        channels = layer.double()(torch.zeros(2, *shape, dtype=torch.float64)).shape[1]
    norm = batch_norm(channels, len(shape) - 1)
    [found] = check(nn.Sequential(layer, norm, nn.ReLU()), *shape)
    assert (found.name, found.folded) == ("0", "1")
    assert found.parameters == {"0.weight"}


def test_batch_norm_stays_where_folding_would_be_wrong():
    norm = batch_norm(4, 1)
    # over a sequence, the axis that is scaled is the position and not the unit
    assert [layer.folded for layer in check(nn.Sequential(nn.Linear(3, 4), norm), 4, 3)] == [""]

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 4), batch_norm(4, 0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return self.norm(y) + y

    # the layer's output has another reader
    assert [layer.folded for layer in check(Shared(), 3)] == [""]
    # after the activation there is no layer to fold it into
    assert [layer.folded for layer in check(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), norm), 3)] == [""]


def test_every_layer_of_random_networks_is_replayed():
    count = 0
    for seed in range(400, 406):
        model, shape = random_network(seed)
        count += len(check(model, *shape))
    assert count > 8


def test_circular_padding_belongs_to_its_convolution():
    conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
    _graph, _x, [layer] = read(nn.Sequential(nn.ReLU(), conv), 1, 4, 4)
    assert layer.source.op == "pad"
    assert layer.origin.op == "relu"
    basis = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    matrix = (conv(basis) - conv(0.0 * basis)).detach().flatten(1)
    assert layer.norm().high == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-7)
    assert layer.squared_frobenius() == pytest.approx(float((matrix**2).sum()), rel=1e-9)
    # mirrored copies are not a circulant: the padding stays an operation of its own
    mirrored = nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")
    [layer] = read(mirrored, 1, 4, 4)[2]
    assert layer.origin is layer.source


def test_products_with_constants_in_other_words():
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 2))
            self.bias = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.first) @ self.second

    layers = check(Products(), 3)
    assert [layer.name for layer in layers] == ["first", "second"]
    assert layers[0].rows.shape == (4, 3)
    assert layers[0].bias is not None


def test_scaled_addmm_is_not_mistaken_for_a_layer():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight, alpha=7.0)

    assert read(Scaled(), 3)[2] == []


def test_weights_that_are_computed_keep_their_layer_and_parameters():
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(3, 4))
    [found] = check(nn.Sequential(layer, nn.ReLU()), 3)
    assert found.name == "0"
    prefix = "0.parametrizations.weight.original"
    assert found.parameters == {f"{prefix}0", f"{prefix}1"}
    torch.testing.assert_close(found.weight, layer.weight.detach())


def test_tied_layers_are_two_layers_with_one_parameter():
    shared = nn.Linear(3, 3)
    first, second = check(nn.Sequential(shared, nn.ReLU(), shared), 3)
    assert second.name == f"{first.name}#2"
    assert first.parameters == second.parameters
    torch.testing.assert_close(first.weight, second.weight)


def test_products_of_data_with_data_are_no_layers():
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, None] @ self.gate(x)[:, :, None]

    assert [layer.name for layer in check(Bilinear(), 3)] == ["gate"]


def test_low_precision_weights_are_widened_without_loss():
    model = nn.Linear(3, 2).half()
    graph = trace(model, torch.zeros(2, 3, dtype=torch.float16))
    [layer] = linear_layers(graph, Constants(graph))
    assert layer.weight.dtype == torch.float64
    assert torch.equal(layer.weight, model.weight.detach().double())


def test_constants_know_what_depends_on_the_data():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.scale.exp() + torch.ones_like(x[0]).sum())

    model = Mixed()
    graph = trace(model, torch.zeros(2, 2))
    constants = Constants(graph)
    [product] = [node for node in graph.nodes if node.op == "mul"]
    first, second = product.args
    assert constants.depends(first)
    # a tensor of ones in the shape of the data holds nothing of the data
    assert not constants.depends(second)
    torch.testing.assert_close(constants.tensor(second), model.scale.detach().double().exp() + 2.0)
    assert constants.data_inputs(product) == [first]


def test_copies():
    graph = trace(nn.Sequential(nn.Dropout(0.5), nn.ReLU()).eval(), torch.zeros(2, 3))
    assert all(is_copy(node) for node in graph.operations if node.op != "relu")
    graph = trace(nn.Dropout(0.5).train(), torch.zeros(2, 3))
    assert not any(is_copy(node) for node in graph.operations)
