"""GEN003: path norms against enumeration of every path, and the changes that must leave them alone."""

from __future__ import annotations

import math

import builders
import numpy as np
import pytest
import torch
from fixtures import nets
from torch import Tensor, nn

from theodolite.analysis.path_norm import path_norm
from theodolite.reference import paths
from theodolite.testing import FUNCTION_PRESERVING, check_theorem
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.generalization.path_norm import PathNorm
from theodolite.theorems.subject import Subject


class Function(nn.Module):
    """Submodules and a function that calls them."""

    def __init__(self, function, **parts: nn.Module) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def subject(model: nn.Module, *shape: int) -> Subject:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *shape, generator=generator)
    with torch.no_grad():
        outputs = model.double().eval()(x.double()).shape[1]
    return Subject(model, x, torch.zeros(4, outputs))


def finding(model: nn.Module, *shape: int) -> Finding:
    result = evaluate(PathNorm(), subject(model, *shape))
    assert result.status != "failed", result.traceback
    return result


def norms(model: nn.Module, *shape: int) -> tuple[float, float]:
    result = finding(model, *shape)
    assert result.status == "certified", result.reason
    assert result.values["path_norm"].kind == "exact"
    return result.values["path_norm"].value, result.values["path_norm_1"].value


def small(*widths: int, bias: bool = False, seed: int = 0) -> nn.Module:
    model = builders.mlp(*widths, bias=bias, seed=seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def enumerated(model: nn.Module, q: float) -> float:
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    layers = [
        (m.weight.detach().numpy(), None if m.bias is None else m.bias.detach().numpy()) for m in linear
    ]
    return paths.path_norm(*paths.layered_edges(layers), q)


def test_known_answer():
    model = builders.mlp(2, 2, 1).double()
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
        model.layers[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    two, one = norms(model, 2)
    assert two**2 == pytest.approx(14.0, rel=1e-12)
    assert one == pytest.approx(6.0, rel=1e-12)
    check_theorem(
        PathNorm, lambda: subject(model, 2), truth={"path_norm": math.sqrt(14.0), "path_norm_1": 6.0}
    )


@pytest.mark.parametrize("widths", [(3, 1), (3, 4, 2), (2, 3, 2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_every_path_is_counted_once(widths, bias):
    model = small(*widths, bias=bias, seed=len(widths))
    two, one = norms(model, widths[0])
    assert two == pytest.approx(enumerated(model, 2.0), rel=1e-12)
    assert one == pytest.approx(enumerated(model, 1.0), rel=1e-12)


def test_skip_connections_and_joins_are_paths_of_their_own():
    a, b, head = nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(4, 1)
    model = Function(
        lambda s, x: s.head(torch.cat([x + s.a(x).relu(), s.b(x).abs() - x], 1)), a=a, b=b, head=head
    ).double()
    edges: list[paths.Edge] = []
    for i in range(2):
        edges.append((("x", i), ("sum", i), 1.0))
        edges.append((("a", i), ("sum", i), 1.0))
        edges.append((("b", i), ("difference", i), 1.0))
        edges.append((("x", i), ("difference", i), -1.0))
        edges.append(("one", ("a", i), float(a.bias[i].detach())))
        for j in range(2):
            edges.append((("x", j), ("a", i), float(a.weight[i, j].detach())))
            edges.append((("x", j), ("b", i), float(b.weight[i, j].detach())))
        edges.append((("sum", i), "y", float(head.weight[0, i].detach())))
        edges.append((("difference", i), "y", float(head.weight[0, 2 + i].detach())))
    edges.append(("one", "y", float(head.bias[0].detach())))
    sources = [("x", 0), ("x", 1), "one"]
    two, one = norms(model, 2)
    assert two == pytest.approx(paths.path_norm(edges, sources, ["y"], 2.0), rel=1e-12)
    assert one == pytest.approx(paths.path_norm(edges, sources, ["y"], 1.0), rel=1e-12)


def unrolled(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """Return the matrix of a linear layer on inputs of a shape."""
    size = math.prod(shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        columns = layer(torch.eye(size, dtype=torch.float64).reshape(size, *shape)) - zero
    return columns.flatten(1).T.numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 1},
        {"dilation": 2},
        {"groups": 2},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_a_convolution_is_the_matrix_that_it_is(options):
    torch.manual_seed(0)
    first = nn.Conv2d(2, 4, 3, bias=False, **options).double()
    middle = tuple(first(torch.zeros(1, 2, 6, 6, dtype=torch.float64)).shape[1:])
    pool, head = nn.AvgPool2d(2), nn.Linear(4 * (middle[1] // 2) ** 2, 2, bias=False).double()
    matrices = [np.abs(unrolled(layer, shape)) for layer, shape in ((first, (2, 6, 6)), (pool, middle))]
    matrices.append(np.abs(head.weight.detach().numpy()))
    two, one = norms(nn.Sequential(first, nn.ReLU(), pool, nn.Flatten(), head), 2, 6, 6)
    assert one == pytest.approx(float((matrices[2] @ matrices[1] @ matrices[0]).sum()), rel=1e-10)
    squared = [matrix**2 for matrix in matrices]
    assert two**2 == pytest.approx(float((squared[2] @ squared[1] @ squared[0]).sum()), rel=1e-10)


def test_padding_by_copies_is_a_path_for_each_copy():
    torch.manual_seed(0)
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate", bias=False).double()
    a, b, c = layer.weight.detach().abs().flatten().tolist()
    two, one = norms(nn.Sequential(layer, nn.Flatten()), 1, 3)
    assert one == pytest.approx(3 * (a + b + c), rel=1e-12)
    assert two**2 == pytest.approx(3 * (a**2 + b**2 + c**2), rel=1e-12)


def test_a_maximum_is_the_sum_over_its_window():
    head = nn.Linear(4, 1, bias=False).double()
    nn.init.ones_(head.weight)
    model = nn.Sequential(nn.MaxPool2d(2, stride=1), nn.Flatten(), head)
    # 3x3 inputs lie in 1, 2 or 4 of the four windows: 16 paths in all, of weight 1
    assert norms(model, 1, 3, 3) == (pytest.approx(4.0), pytest.approx(16.0))
    pieces = Function(lambda s, x: s.head(x.view(-1, 2, 3).max(1).values), head=nn.Linear(3, 1, bias=False))
    nn.init.ones_(pieces.head.weight)
    assert norms(pieces, 6)[1] == pytest.approx(6.0)
    larger = Function(lambda s, x: torch.maximum(s.a(x), -s.a(x)), a=nn.Linear(3, 1, bias=False))
    nn.init.ones_(larger.a.weight)
    assert norms(larger, 3)[1] == pytest.approx(6.0)


def test_batch_normalization_is_folded_into_edges():
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(3).double()
    first, last = nn.Linear(2, 3).double(), nn.Linear(3, 1).double()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    model = nn.Sequential(first, norm, nn.ReLU(), last).eval()
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    folded = small(2, 3, 1, bias=True)
    with torch.no_grad():
        folded.layers[0].weight.copy_(scale[:, None] * first.weight)
        folded.layers[0].bias.copy_(scale * (first.bias - norm.running_mean) + norm.bias)
        folded.layers[2].load_state_dict(last.state_dict())
    result = finding(model, 2)
    assert result.values["path_norm"].value == pytest.approx(enumerated(folded, 2.0), rel=1e-12)
    assert "1 batch normalization folded into edges" in result.values["path_norm"].note


@pytest.mark.parametrize(
    ("model", "shape"), [(small(3, 5, 4, 2, bias=True), (3,)), (builders.conv_net("zeros"), (64,))]
)
def test_changes_that_keep_every_path_keep_the_norms(model, shape):
    before = norms(model, *shape)
    for change in FUNCTION_PRESERVING.values():
        other = change(model, torch.Generator().manual_seed(0))
        assert norms(other, *shape) == pytest.approx(before, rel=1e-9)


def test_hand_built_rescaling():
    model, other = small(2, 2, 1), small(2, 2, 1)
    with torch.no_grad():
        other.layers[0].weight[1] *= 1e6
        other.layers[2].weight[:, 1] /= 1e6
    assert norms(other, 2) == pytest.approx(norms(model, 2), rel=1e-12)
    with torch.no_grad():
        other.layers[2].weight[:, 1] *= 1e6  # now the function has changed, and so has the norm
    assert norms(other, 2)[0] > 10.0 * norms(model, 2)[0]


@pytest.mark.parametrize("seed", range(2))
def test_it_bounds_what_the_network_can_do(seed):
    """|f(x)|_1 <= phi_1 max(|x|_inf, 1): the sum over paths dominates every activation pattern."""
    model = small(4, 6, 5, 2, bias=True, seed=seed)
    _, one = norms(model, 4)
    x = 2.0 * torch.rand(2000, 4, dtype=torch.float64) - 1.0
    with torch.no_grad():
        best = x[model(x).abs().sum(1).argsort()[-20:]].requires_grad_()
    for _ in range(100):
        (slope,) = torch.autograd.grad(model(best).abs().sum(), best)
        best = (best + 0.1 * slope.sign()).clamp(-1.0, 1.0).detach().requires_grad_()
    assert float(model(best).abs().sum(1).detach().max()) <= one


def test_order_one_is_the_larger_and_biases_can_be_dropped():
    model = small(3, 4, 2, bias=True)
    two, one = norms(model, 3)
    assert two <= one
    x = torch.zeros(2, 3, dtype=torch.float64)
    dropped = path_norm(model, x, 2.0, bias="drop").value
    with torch.no_grad():
        model.layers[0].bias.zero_()
        model.layers[2].bias.zero_()
    assert dropped == pytest.approx(norms(model, 3)[0], rel=1e-12)
    assert dropped < two


def test_a_final_softmax_is_left_out_and_said_so():
    model = small(3, 4, 2)
    result = finding(nn.Sequential(model, nn.Softmax(1)), 3)
    assert result.values["path_norm"].value == pytest.approx(norms(model, 3)[0], rel=1e-12)
    assert "up to the logits" in result.values["path_norm"].note


def test_a_sum_beyond_float64_is_a_lower_bound():
    layers = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(4)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e120)
    zeros = torch.zeros(3, 1)
    result = evaluate(PathNorm(), Subject(nn.Sequential(*layers), zeros, zeros))
    for value in result.values.values():
        assert value.kind == "bound"
        assert value.upper is None
        assert 1e150 < value.lower < math.inf
    assert result.status == "certified"


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)), (3,), "layer '1' (Sigmoid)"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), (3,), "layer '1' (LayerNorm)"),
        (Function(lambda s, x: s.a(x) * s.a(x), a=nn.Linear(3, 2)), (3,), "a product of two quantities"),
        (nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(2.0), nn.Linear(4, 2)), (3,), "layer '1' (LeakyReLU)"),
    ],
)
def test_other_networks_have_no_path_norm(model, shape, reason):
    result = finding(model, *shape)
    assert result.status == "not applicable"
    assert result.values == {}
    assert reason in result.reason


def test_tokens_and_untraceable_networks():
    tokens = evaluate(PathNorm(), builders.tokens_subject())
    assert (tokens.status, tokens.reason) == ("not applicable", "inputs have dtype torch.int64")
    branching = evaluate(PathNorm(), builders.subject(nets.branching_net))
    assert branching.status == "not applicable"
    assert branching.reason.startswith("needs the computation graph, and the model could not be traced")
