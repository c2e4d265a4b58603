"""Lipschitz bounds of whole networks: known constants, refusals, and attacks that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_nets import SMOOTH, Branches, Residual, random_network
from torch import Tensor, nn

from theodolite.analysis.graph import trace
from theodolite.analysis.lipschitz import LipschitzBounds, lipschitz_bounds, lipschitz_upper
from theodolite.reference.jacobian import largest_slope
from theodolite.value import Value


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def bounds_of(model: nn.Module, shape: tuple[int, ...]) -> LipschitzBounds:
    return lipschitz_bounds(trace(model, torch.zeros(2, *shape, dtype=torch.float64)))


def ascend(model: nn.Module, shape: tuple[int, ...], seed: int, starts: int = 10, steps: int = 25) -> float:
    """The largest slope over pairs of points that gradient ascent on both of them finds."""
    generator = torch.Generator().manual_seed(seed)
    place = (-1, *(1 for _ in shape))
    scale = torch.logspace(-1.5, 1.0, starts, dtype=torch.float64)
    center = scale.reshape(place) * torch.randn(starts, *shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(starts, *shape, generator=generator, dtype=torch.float64)
    shrink = 10.0 ** (-6.0 * torch.rand(starts, generator=generator, dtype=torch.float64))
    half = (scale.clamp_max(1.0) * shrink).reshape(place)
    center.requires_grad_()
    direction.requires_grad_()
    optimizer = torch.optim.Adam([center, direction], lr=0.1)
    best = 0.0
    for _ in range(steps):
        unit = direction / direction.flatten(1).norm(dim=1).reshape(place)
        change = (model(center + half * unit) - model(center - half * unit)).flatten(1).norm(dim=1)
        slope = change / (2.0 * half.flatten())
        best = max(best, float(slope.detach().max()))
        optimizer.zero_grad()
        (-(slope + 1e-12).log().sum()).backward()
        for tensor in (center, direction):
            assert tensor.grad is not None
            tensor.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
    return best


# known answers

DIAGONAL = [[3.0, 0.0], [0.0, 2.0]]
PARTLY_DEAD = nn.BatchNorm1d(2)
PARTLY_DEAD.weight.data = torch.tensor([-6.0, 1.0])
PARTLY_DEAD.running_var = torch.tensor([4.0 - PARTLY_DEAD.eps, 1.0])

ATTAINED: list[tuple[str, nn.Module, tuple[int, ...], float]] = [
    ("nothing", nn.Identity(), (3,), 1.0),
    ("product of norms", nn.Sequential(linear(DIAGONAL), nn.ReLU(), linear([[4.0, 0.0]])), (2,), 12.0),
    ("residual sum", Residual(linear(DIAGONAL), nn.Identity(), 1), (2,), 4.0),
    ("residual difference", Residual(linear([[-3.0, 0.0], [0.0, 2.0]]), nn.Identity(), -1), (2,), 4.0),
    ("sum with itself", Function(lambda x: x + x), (3,), 2.0),
    ("scaled summand", Function(lambda x: torch.add(x, x, alpha=3.0)), (3,), 4.0),
    ("concatenation", Branches(linear(DIAGONAL), nn.Identity()), (2,), math.sqrt(10.0)),
    ("two copies", Function(lambda x: torch.cat([x, x], 1)), (3,), math.sqrt(2.0)),
    ("repeated", Function(lambda x: x.repeat(1, 3)), (2,), math.sqrt(3.0)),
    ("expanded", Function(lambda x: x[:, None].expand(-1, 5, -1)), (2,), math.sqrt(5.0)),
    ("broadcast summand", Function(lambda x: torch.zeros(4, 1) + x[:, None]), (2,), 2.0),
    ("broadcast factor", Function(lambda x: x[:, None] * torch.tensor([[3.0], [3.0]])), (2,), math.sqrt(18)),
    ("largest factor", Function(lambda x: x * torch.tensor([1.0, -7.0])), (2,), 7.0),
    ("division", Function(lambda x: x / torch.tensor([0.5, -4.0])), (2,), 2.0),
    ("constant minus", Function(lambda x: 3.0 - x), (2,), 1.0),
    ("mean", Function(lambda x: x.mean(1, keepdim=True)), (4,), 0.5),
    ("sum", Function(lambda x: x.sum(1, keepdim=True)), (4,), 2.0),
    ("matrix on the left", Function(lambda x: (torch.eye(2) * 5.0) @ x), (2, 3), 5.0),
    ("batch normalization", PARTLY_DEAD.eval(), (2,), 3.0),
    ("disjoint maximum", nn.MaxPool2d(2), (1, 4, 4), 1.0),
    ("overlapping maximum", nn.MaxPool2d(3, stride=2, padding=1), (1, 7, 7), 2.0),
    ("average", nn.AvgPool2d(2), (1, 4, 4), 0.5),
    ("global average", nn.AdaptiveAvgPool2d(1), (1, 4, 4), 0.25),
    ("slope below zero", nn.LeakyReLU(-2.0), (2,), 2.0),
    ("sigmoid", nn.Sigmoid(), (2,), 0.25),
    ("softmax", nn.Softmax(1), (2,), 0.5),
]


class Together(nn.Module):
    """Several networks on one input: one graph to trace, and each network's bound in it."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), *(model(x).flatten(1) for model in self.models)], 1)

    def constants(self, shape: tuple[int, ...]) -> list[float]:
        found = lipschitz_bounds(trace(self, torch.zeros(2, *shape)))
        assert not found.reason
        assert found.graph.output is not None
        return [found.constants[node] for node in found.graph.output.args[0][1:]]


@pytest.mark.parametrize("shape", sorted({case[2] for case in ATTAINED}), ids=str)
def test_known_constants(shape):
    cases = [case for case in ATTAINED if case[2] == shape]
    for (name, _, _, expected), upper in zip(
        cases, Together([case[1] for case in cases]).constants(shape), strict=True
    ):
        assert expected <= upper * (1 + 1e-12), name
        assert upper == pytest.approx(expected, rel=1e-6), name


def test_output_that_does_not_depend_on_the_input():
    assert lipschitz_upper(Function(lambda x: torch.ones(1, 3) * 0.5), torch.zeros(2, 2)).upper == 0.0


def test_absolute_value_as_a_relu_network():
    net = nn.Sequential(linear([[1.0], [-1.0]]), nn.ReLU(), linear([[1.0, 1.0]]))
    found = bounds_of(net.double(), (1,))
    # the network is |x|, whose constant is 1; the product of norms is 2
    assert found.upper == pytest.approx(2.0, rel=1e-6)
    points = np.linspace(-2.0, 2.0, 21)[:, None]

    def function(x: np.ndarray) -> np.ndarray:
        return net(torch.as_tensor(x)[None]).detach().numpy()[0]

    assert largest_slope(function, points) == pytest.approx(1.0)
    assert set(found.factors) == {"0", "2"}
    assert found.factors["0"].low == pytest.approx(math.sqrt(2.0))


# name of the activation -> the largest slope by the note, or by calculus
SLOPES = {"GELU": 1.1289041, "SiLU": 1.0998393, "Mish": 1.0884982, "SELU": 1.7580993, "Hardswish": 1.5}
SLOPES |= {"Sigmoid": 0.25, "Hardsigmoid": 1.0 / 6.0, "LeakyReLU": 2.0}


def test_activations_are_bounded_tightly():
    modules = [make() for make in SMOOTH]
    bounds = Together(modules).constants((1,))
    fine = torch.logspace(-9.0, 0.0, 100, dtype=torch.float64)
    x = torch.cat([torch.linspace(-40.0, 40.0, 200_001, dtype=torch.float64), fine, -fine])[:, None]
    x.requires_grad_()
    for module, upper in zip(modules, bounds, strict=True):
        (slope,) = torch.autograd.grad(module.double()(x).sum(), x)
        # the derivative that PyTorch uses for the hard sigmoid is 1/6 in float32
        steepest = float(slope.abs().max()) * (1.0 - 3e-7 * isinstance(module, nn.Hardsigmoid))
        assert steepest <= upper <= 1.0001 * steepest, module
        assert upper == pytest.approx(SLOPES.get(type(module).__name__, 1.0), rel=1e-4), module


def test_softplus_beta_and_elu_alpha():
    assert lipschitz_upper(nn.Softplus(beta=7.0), torch.zeros(2, 3)).upper == 1.0
    assert lipschitz_upper(nn.ELU(3.0), torch.zeros(2, 3)).upper == 3.0


# attacks


@pytest.mark.parametrize("block", range(3))
def test_ascent_never_beats_the_bound(block):
    reached = []
    for seed in range(5 * block, 5 * block + 5):
        model, shape = random_network(seed)
        found = bounds_of(model, shape)
        assert not found.reason
        slope = ascend(model.requires_grad_(False), shape, seed)
        assert slope <= found.upper * (1 + 1e-8) + 1e-9, (seed, slope, found.upper)
        reached.append(slope / found.upper if found.upper else 1.0)
    # the attack is one: on some networks it comes close to the bound
    assert max(reached) > 0.4


def test_ascent_reaches_the_norm_of_a_linear_network():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(12, 2)
    )
    model = model.double().requires_grad_(False)
    basis = torch.eye(2 * 6 * 6, dtype=torch.float64).reshape(-1, 2, 6, 6)
    true = float(torch.linalg.matrix_norm((model(basis) - model(basis * 0.0)).T, 2))
    assert ascend(model, (2, 6, 6), 0, steps=150) == pytest.approx(true, rel=1e-2)
    assert true <= bounds_of(model, (2, 6, 6)).upper


def test_normalization_of_a_tiny_input_is_as_steep_as_its_bound():
    for model in (nn.LayerNorm(4), nn.RMSNorm(4, eps=1e-3), nn.GroupNorm(1, 4)):
        model = model.double()
        upper = bounds_of(model, (4,)).upper
        x = torch.zeros(1, 4, dtype=torch.float64)
        step = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64) * 1e-7
        slope = float(((model(x + step) - model(x - step)).norm() / (2.0 * step.norm())).detach())
        assert slope == pytest.approx(upper, rel=1e-4)
        assert slope <= upper


def test_transformer_with_fixed_attention_weights_is_bounded():
    """What a transformer does besides attention: positions mixed by a constant matrix, norms, an MLP."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mix", torch.softmax(torch.randn(5, 5), 1))
            self.value, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
            self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.out(self.mix @ self.value(x))
            return (x + self.mlp(x)).mean(1)

    torch.manual_seed(0)
    model = Mixer().double()
    found = bounds_of(model, (5, 4))
    assert not found.reason
    slope = ascend(model.requires_grad_(False), (5, 4), 0, steps=120)
    assert 0.3 * found.upper <= slope <= found.upper


# refusals


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.project(x).chunk(3, -1))


class Written(nn.Module):
    """Attention written out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x @ x.mT, -1) @ x


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


REFUSED: list[tuple[str, nn.Module, tuple[int, ...], str]] = [
    ("attention", nn.Sequential(nn.Identity(), Attention()), (3, 4), "layer '1' (Attention): dot-product"),
    ("attention by hand", Written(), (3, 4), "product of two quantities that depend on the input"),
    ("encoder layer", nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), (3, 4), "attention"),
    ("recurrent", LastState(), (3, 4), "lstm"),
    ("square", Function(lambda x: x * x), (3,), "product of two quantities"),
    ("gate", nn.GLU(1), (4,), "glu"),
    ("instance norm", nn.InstanceNorm1d(2), (2, 5), "instance_norm"),
    ("batch norm in training mode", nn.BatchNorm1d(3).train(), (3,), "BatchNorm1d"),
    ("dropout in training mode", nn.Dropout(0.5).train(), (3,), "dropout"),
    ("no eps", nn.LayerNorm(3, eps=0.0), (3,), "without a positive eps"),
    ("own norm", Function(lambda x: F.normalize(x)), (3,), "operation 'div'"),
    (
        "reciprocal",
        Function(lambda x: torch.ones(3) / (2.0 + x)),
        (3,),
        "division by what depends on the input",
    ),
    ("rounding", Function(lambda x: x.div(2.0, rounding_mode="floor")), (3,), "rounding is not continuous"),
    ("integers", Function(lambda x: x.long().float()), (3,), "_to_copy"),
    ("zero divisor", Function(lambda x: x / torch.tensor([0.0, 1.0, 2.0])), (3,), "division by zero"),
    ("jump", nn.Threshold(0.1, 20.0), (3,), "threshold"),
    ("hard shrinkage", nn.Hardshrink(), (3,), "Hardshrink"),
    ("early softplus", nn.Softplus(1.0, 2.0), (3,), "softplus"),
    ("negative celu", nn.CELU(-1.0), (3,), "celu"),
    ("where by data", Function(lambda x: torch.where(x > 0, x, x - 1.0)), (3,), "gt"),
    ("argmax", Function(lambda x: x.argmax(1, keepdim=True) * 1.0), (3,), "argmax"),
    ("place of the maximum", Function(lambda x: x.max(1, keepdim=True)[1] * 1.0), (3,), "getitem"),
    ("uneven", Function(lambda x: x.repeat_interleave(torch.tensor([1, 7]), 1)), (2,), "repeat_interleave"),
]


@pytest.mark.parametrize(
    ("model", "shape", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refusals_name_the_operation(model, shape, words):
    generator = torch.Generator().manual_seed(0)
    value = lipschitz_upper(model, torch.randn(2, *shape, generator=generator))
    assert value.upper is None
    assert value.value is None
    assert value.witness
    assert words in value.note


def test_untraceable_model_is_an_error_and_not_a_number():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0.0 else -x

    with pytest.raises(ValueError, match="expected a traced graph; tracing failed"):
        lipschitz_upper(Branching(), torch.ones(2, 3))


# differences of two logits


def test_pairwise_bounds_are_exact_for_one_layer():
    W = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    model = nn.Linear(2, 3, bias=False, dtype=torch.float64)
    model.weight.data = W
    expected = torch.cdist(W, W)
    for net in (model, nn.Sequential(model, nn.LogSoftmax(1)), nn.Sequential(model, nn.Softmax(1))):
        found = bounds_of(net, (2,))
        assert found.pairwise().numpy() == pytest.approx(expected.numpy(), rel=1e-9)
        assert found.ends_in_softmax == (isinstance(net, nn.Sequential) and isinstance(net[1], nn.Softmax))
    # without a linear last layer, the square root of two times the bound of the logits
    rectified = bounds_of(nn.Sequential(model, nn.ReLU()), (2,))
    spectral = float(torch.linalg.matrix_norm(W, 2))
    assert float(rectified.pairwise()[0, 1]) == pytest.approx(math.sqrt(2.0) * spectral, rel=1e-6)
    assert bool((rectified.pairwise().diagonal() == 0.0).all())


def test_pairwise_bounds_hold_for_random_networks():
    for seed in range(100, 103):
        model, shape = random_network(seed, n_outputs=3)
        bound = bounds_of(model, shape).pairwise()
        model.requires_grad_(False)
        for i, j in ((0, 1), (1, 2)):
            difference = Function(lambda x, i=i, j=j, model=model: model(x)[:, [i]] - model(x)[:, [j]])
            assert ascend(difference, shape, seed, steps=12) <= float(bound[i, j]) * (1 + 1e-8) + 1e-9


# the result as a whole


def test_the_sum_over_branches_counts_each_path_once():
    model = nn.Sequential(*(Residual(linear(DIAGONAL), nn.Identity(), 1) for _ in range(3)))
    assert bounds_of(model.double(), (2,)).upper == pytest.approx(64.0, rel=1e-6)


def test_tied_weights_are_named_apart():
    shared = nn.Linear(3, 3)
    found = bounds_of(nn.Sequential(shared, nn.ReLU(), shared).double(), (3,))
    assert len(found.layers) == len(found.factors) == 2
    assert {layer.parameters for layer in found.layers} == {found.layers[0].parameters}
    first, second = found.factors.values()
    assert found.upper == pytest.approx(first.high * second.high, rel=1e-12)
    assert first == second


def test_folded_batch_norm_is_never_worse_than_the_product():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    norm.running_var.uniform_(0.01, 4.0)
    norm.weight.data.normal_()
    layer = nn.Linear(4, 6)
    folded = bounds_of(nn.Sequential(layer, norm).eval().double(), (4,))
    alone = bounds_of(nn.Sequential(nn.ReLU(), norm).eval().double(), (6,))
    product = float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) * alone.upper
    assert folded.upper < 0.99 * product
    assert folded.layers[0].folded == "1"
    assert list(alone.factors) == ["1"]


def test_value_is_one_sided_and_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    value = lipschitz_upper(model, torch.zeros(2, 3))
    assert isinstance(value, Value)
    assert (value.kind, value.lower, value.confidence) == ("bound", None, 1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


def test_large_weights_do_not_overflow_to_nan():
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(12))).double()
    for layer in model:
        layer.weight.data.fill_(1e30)
    value = lipschitz_upper(model, torch.zeros(2, 2, dtype=torch.float64))
    assert value.upper == math.inf
