"""Two-layer networks found in graphs, and what every other network is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.graph import trace
from theodolite.analysis.two_layer import Convolution, NotTwoLayer, TwoLayer, find_two_layer
from theodolite.models import MLP
from theodolite.nn import GatedLinear, ParallelSubnetworks


def read(model: nn.Module, shape: tuple[int, ...] = (6,)) -> TwoLayer:
    model.eval()
    graph = trace(model, torch.randn(2, *shape))
    assert graph.traced, graph.reason
    return find_two_layer(graph, {id(p) for p in model.parameters() if p.requires_grad})


def refusal(model: nn.Module, shape: tuple[int, ...] = (6,)) -> str:
    with pytest.raises(NotTwoLayer) as caught:
        read(model, shape)
    return str(caught.value)


def stack(*between: nn.Module, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=bias), *between, nn.Linear(5, 3, bias=bias))


class Functional(nn.Module):
    """Parameters of its own and a functional forward, after a fixed normalization of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))
        self.u = nn.Parameter(torch.randn(3, 5))
        self.register_buffer("mean", torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear((x - self.mean) / 2.0, self.w, self.b)), self.u)


@pytest.mark.parametrize(
    ("model", "shape", "activation", "weights", "biases"),
    [
        (stack(), (6,), "linear", ("0.weight", "1.weight"), ("", "")),
        (stack(nn.ReLU()), (6,), "relu", ("0.weight", "2.weight"), ("", "")),
        (stack(nn.ReLU(inplace=True), bias=True), (6,), "relu", ("0.weight", "2.weight"), ("0.bias", "2.bias")),
        (stack(nn.Dropout(), nn.ReLU(), nn.Identity(), nn.Dropout()), (6,), "relu", ("0.weight", "5.weight"), ("", "")),
        (nn.Sequential(nn.Flatten(), *stack(nn.ReLU())), (1, 2, 3), "relu", ("1.weight", "3.weight"), ("", "")),
        (MLP((6, 5, 3)), (6,), "relu", ("layers.0.weight", "layers.2.weight"), None),
        (Functional(), (6,), "relu", ("w", "u"), ("b", "")),
        (
            nn.Sequential(GatedLinear(6, 5, bias=True), nn.Linear(5, 3)), (6,), "gated",
            ("0.linear.weight", "1.weight"), ("0.linear.bias", "1.bias"),
        ),
        (nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(4)]), (6,), "linear",
         tuple(f"{i}.weight" for i in range(4)), ("", "")),
    ],
)  # fmt: skip
def test_families(model, shape, activation, weights, biases):
    found = read(model, shape)
    assert found.activation == activation
    assert found.weights == weights
    assert found.depth == len(weights)
    assert (found.gate is not None) == (activation == "gated")
    if biases is not None:
        assert (found.hidden_bias, found.output_bias) == biases


def conv_net(*between: nn.Module, bias: bool = False, **options) -> nn.Sequential:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, (2, 3), bias=bias, **options), nn.ReLU(), *between, nn.Flatten()]
    width = nn.Sequential(*layers)(torch.zeros(1, 2, 7, 8)).shape[1]
    return nn.Sequential(*layers, nn.Linear(width, 4, bias=bias))


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("model", "stride", "padding", "pool", "pool_stride"),
    [
        (conv_net(nn.AvgPool2d(2)), (1, 1), (0, 0), (2, 2), (2, 2)),
        (conv_net(nn.AvgPool2d((2, 3), stride=1), bias=True), (1, 1), (0, 0), (2, 3), (1, 1)),
        (conv_net(stride=(1, 2), padding=(1, 0)), (1, 2), (1, 0), (1, 1), (1, 1)),
        (conv_net(nn.Dropout(), nn.AdaptiveAvgPool2d(1)), (1, 1), (0, 0), (6, 6), (6, 6)),
        (conv_net(nn.AdaptiveAvgPool2d((3, 2)), bias=True), (1, 1), (0, 0), (2, 3), (2, 3)),
        (conv_net(GlobalMean()), (1, 1), (0, 0), (6, 6), (6, 6)),
        (conv_net(nn.AvgPool2d(2), padding=1, padding_mode="circular"), (1, 1), (0, 0), (2, 2), (2, 2)),
    ],
)
def test_pooled_convolutions(model, stride, padding, pool, pool_stride):
    found = read(model, (2, 7, 8))
    assert found.activation == "conv"
    assert found.weights == ("0.weight", f"{len(model) - 1}.weight")
    assert found.convolution == Convolution(stride, padding, pool, pool_stride)
    assert (found.hidden_bias != "") == (model[0].bias is not None)
    assert (found.inputs.op == "input") == (model[0].padding_mode == "zeros")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (conv_net(nn.MaxPool2d(2)), "neither the identity"),
        (conv_net(nn.AvgPool2d(3, ceil_mode=True)), "neither the identity"),
        (conv_net(nn.AvgPool2d(2, padding=1)), "neither the identity"),
        (conv_net(nn.AdaptiveAvgPool2d(4)), "neither the identity"),
        (conv_net(nn.AvgPool2d(2), dilation=2), "dilated or in groups"),
        (
            nn.Sequential(nn.Conv2d(2, 3, 2, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(168, 4)),
            "pads one side more",
        ),
        (nn.Sequential(nn.Conv2d(2, 2, 1), *conv_net(nn.AvgPool2d(2))), "deeper than two layers"),
    ],
)
def test_other_convolutions_are_refused(model, words):
    assert words in refusal(model, (2, 7, 8))


def test_padding_by_name():
    def net(kernel: tuple[int, int], padding: str, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 3, kernel, padding=padding), nn.ReLU(), nn.Flatten(), nn.Linear(width, 4)
        )

    for kernel, name, width, padding in (((3, 5), "same", 168, (1, 2)), ((2, 3), "valid", 108, (0, 0))):
        assert read(net(kernel, name, width), (2, 7, 8)).convolution.padding == padding


def test_leaky_units():
    found = read(stack(nn.LeakyReLU(0.3)))
    assert (found.activation, found.negative_slope) == ("leaky_relu", 0.3)
    assert "is not a number in [-1, 1]" in refusal(stack(nn.LeakyReLU(3.0)))


def test_what_is_read_makes_the_network_again():
    """The function rebuilt from the parts that were found is the model's own."""
    cases = [
        (Functional(), (6,)),
        (stack(nn.ReLU(), bias=True), (6,)),
        (nn.Sequential(nn.Flatten(), *stack()), (2, 3)),
        (nn.Sequential(GatedLinear(6, 5, bias=True), nn.Linear(5, 3)), (6,)),
    ]
    for model, shape in cases:
        model = model.double()
        x = torch.randn(9, *shape, dtype=torch.float64)
        graph = trace(model.eval(), x)
        found = find_two_layer(graph, {id(p) for p in model.parameters()})
        seen = {}
        graph.run(x, observe=lambda node, value, seen=seen: seen.__setitem__(node, value))
        h = x if found.inputs.op == "input" else seen[found.inputs]
        w, u = (model.get_parameter(name) for name in found.weights)
        h = h @ w.T
        h = h + model.get_parameter(found.hidden_bias) if found.hidden_bias else h
        h = h.relu() if found.activation == "relu" else h if found.gate is None else h * seen[found.gate]
        output = h @ u.T
        output = output + model.get_parameter(found.output_bias) if found.output_bias else output
        torch.testing.assert_close(output, model(x), rtol=1e-12, atol=1e-12)


def frozen(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


class Same(nn.Module):
    """One weight in both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x).relu())


class Transposed(Same):
    """The second weight is the transpose of the first."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.inner(x).relu(), self.inner.weight.T)


class Skip(nn.Module):
    """A linear path beside the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.a(x).relu())


class Gate(nn.Module):
    """A hidden layer times something; ``kind`` says what."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("gates", torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.kind == "trained":
            return self.c(h * self.b(x))
        if self.kind == "narrow":
            return self.c(h * (x[:, :1] > 0).to(h.dtype))
        return self.c(h * h)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MLP((6, 5, 4, 3)), "it is deeper than two layers: layer 'layers.2' (Linear) reads"),
        (stack(nn.Sigmoid()), "'sigmoid' in layer '1' (Sigmoid) is neither the identity, nor ReLU"),
        (stack(nn.ELU()), "'elu' in layer '1' (ELU) is neither"),
        (stack(nn.BatchNorm1d(5), nn.ReLU()), "layer '1' (BatchNorm1d) normalizes"),
        (nn.Sequential(nn.BatchNorm1d(6), *stack(nn.ReLU())), "reads layer '0' (BatchNorm1d), which is trained too"),
        (stack(nn.ReLU(), nn.LayerNorm(5)), "layer '2' (LayerNorm) normalizes"),
        (Same(), "is shared with layer 'inner' (Linear), so it is not free"),
        (Transposed(), "is not a parameter: it is computed"),
        (Skip(), "'add' in the model's own forward"),
        (Gate("trained"), "'mul' in the model's own forward"),
        (Gate("square"), "'mul' in the model's own forward"),
        (Gate("narrow"), "is not one gate for each hidden unit"),
        (nn.Linear(6, 3), "is the only trained layer: OPT004 certifies a last layer alone"),
        (nn.Sequential(stack(nn.ReLU()), nn.Softmax(1)), "not from a linear layer"),
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3, bias=False)), "has a bias in the middle"),
        (frozen(stack(nn.ReLU()), "0.weight"), "OPT004 certifies a last layer alone"),
        (frozen(stack(nn.ReLU()), "2.weight"), "the weight of layer '2' (Linear) is frozen"),
        (frozen(stack(nn.ReLU(), bias=True), "0.bias"), "the bias of layer '0' (Linear) is frozen"),
        (frozen(stack(nn.ReLU(), bias=True), "2.bias"), "the bias of layer '2' (Linear) is frozen"),
        (nn.Identity(), "not from a linear layer"),
    ],
)  # fmt: skip
def test_refusals_name_the_layer(model, words):
    assert words in refusal(model)


def test_a_layer_on_every_position_is_refused():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    assert "neither the identity" in refusal(model, (4, 6))
    wide = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    assert "is applied at several places of one sample" in refusal(wide, (4, 6))


def test_a_frozen_front_end_is_data():
    model = frozen(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), *stack(nn.ReLU())), "0.weight", "0.bias")
    found = read(model)
    assert found.weights == ("2.weight", "4.weight")
    assert found.inputs.op == "tanh"
    normalized = read(nn.Sequential(nn.BatchNorm1d(6, affine=False), *stack(nn.ReLU())))
    assert normalized.inputs.layer_type == "BatchNorm1d"


def test_subnetworks_of_several_units_are_told_why():
    assert "not from a linear layer" in refusal(ParallelSubnetworks(lambda: stack(nn.ReLU()), 2))
