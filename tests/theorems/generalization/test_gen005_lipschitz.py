"""GEN005: the Lipschitz bracket, against closed forms and against attempts to find a steeper pair."""

from __future__ import annotations

import math
from functools import partial

import builders
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from torch import Tensor, nn

from theodolite.analysis.operator_norms import ACTIVATIONS, GELU
from theodolite.reference.jacobian import largest_slope
from theodolite.testing import check_theorem
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.generalization.lipschitz import LipschitzBracket
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


def subject(model: nn.Module, *shape: int, n: int = 20) -> Subject:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *shape, generator=generator)
    with torch.no_grad():
        outputs = model.double().eval()(x.double()).shape[1]
    return Subject(model, x, torch.zeros(n, outputs))


def finding(model: nn.Module, *shape: int, n: int = 20) -> Finding:
    result = evaluate(LipschitzBracket(), subject(model, *shape, n=n))
    assert result.status != "failed", result.traceback
    return result


def absolute_value() -> nn.Module:
    model = builders.mlp(1, 2, 1).double()
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.layers[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    return model


def test_known_answer_of_the_absolute_value():
    result = finding(absolute_value(), 1)
    assert result.status == "certified"
    bracket = result.values["lipschitz"]
    assert bracket.kind == "bound"
    assert bracket.lower == pytest.approx(1.0, rel=1e-9)
    assert bracket.lower <= 1.0
    assert bracket.upper == pytest.approx(2.0, rel=1e-9)
    check_theorem(LipschitzBracket, lambda: subject(absolute_value(), 1), truth={"lipschitz": 1.0})


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 5), (4, 40)])
def test_of_a_linear_map_both_ends_are_its_norm(shape):
    torch.manual_seed(0)
    model = nn.Linear(*shape).double()
    truth = float(torch.linalg.matrix_norm(model.weight.detach(), 2))
    bracket = finding(model, shape[0], n=2).values["lipschitz"]
    assert bracket.lower <= truth * (1 + 1e-12)
    assert truth <= bracket.upper * (1 + 1e-12)
    assert bracket.upper == pytest.approx(truth, rel=1e-7)
    # with more than 32 outputs the direction comes from a few power steps
    assert bracket.lower == pytest.approx(truth, rel=1e-6 if shape[1] <= 32 else 0.02)


def steepest(model: nn.Module, *shape: int) -> float:
    """Return the largest difference quotient that a search over nearby and distant pairs finds."""
    generator = torch.Generator().manual_seed(1)
    a = 2.0 * torch.randn(32, *shape, generator=generator, dtype=torch.float64)
    b = a + torch.randn(32, *shape, generator=generator, dtype=torch.float64) * 0.1
    best = 0.0
    for _ in range(25):
        a.requires_grad_()
        b.requires_grad_()
        rise = (model(a) - model(b)).flatten(1).norm(dim=1)
        quotient = rise / (a - b).flatten(1).norm(dim=1).clamp_min(1e-9)
        best = max(best, float(quotient.detach().max()))
        grads = torch.autograd.grad(quotient.sum(), [a, b])
        units = [g / g.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * len(shape)) for g in grads]
        a, b = (a + 0.1 * units[0]).detach(), (b + 0.1 * units[1]).detach()
    return best


torch.manual_seed(0)
ARCHITECTURES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "biases": (builders.mlp(4, 8, 6, 3, bias=True), (4,)),
    "residual": (
        Function(lambda s, x: s.b(x + s.a(x).relu()), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        (4,),
    ),
    "joined": (
        Function(lambda s, x: torch.cat([s.a(x), -s.a(x).relu(), x], 1), a=nn.Linear(3, 2)),
        (3,),
    ),
    "difference": (Function(lambda s, x: s.a(x).relu() - 2.0 * x.sum(1, keepdim=True), a=nn.Linear(3, 3)), (3,)),
    "spread": (Function(lambda s, x: s.a(x) + x.mean(1, keepdim=True).expand(-1, 5), a=nn.Linear(4, 5)), (4,)),
    "maximum": (Function(lambda s, x: torch.maximum(s.a(x), s.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 4)), (3,)),
    "overlapping pools": (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        (1, 4, 4),
    ),
    "strided circular": (
        nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)),
        (2, 4, 4),
    ),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 2, 3, stride=2), nn.ReLU(), nn.Flatten()), (2, 3, 3)),
    "smooth": (
        nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6), nn.Mish(), nn.Linear(6, 2)),
        (3,),
    ),
    "saturating": (
        nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Hardswish(), nn.Linear(6, 4), nn.Softmax(1)),
        (3,),
    ),
    "log-softmax": (nn.Sequential(nn.Linear(3, 4), nn.ELU(2.0), nn.Linear(4, 4), nn.LogSoftmax(1)), (3,)),
    "normalized": (nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5, eps=0.1), nn.ReLU(), nn.Linear(5, 2)), (3,)),
    "batch norm": (
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)),
        (4,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_pair_is_steeper_than_the_upper_end(name):
    model, shape = ARCHITECTURES[name]
    bracket = finding(model, *shape).values["lipschitz"]
    found = steepest(model.double().eval(), *shape)
    assert 0.0 < bracket.lower <= bracket.upper
    assert found <= bracket.upper * (1 + 1e-9)
    # the search is no worse than the samples' Jacobians by much, so that it was a real attempt
    assert found >= 0.5 * bracket.lower


@pytest.mark.parametrize("seed", range(3))
def test_the_lower_end_is_attained_by_some_pair(seed):
    """In two dimensions a dense grid finds slopes as large as the lower end, up to its own step."""
    model = builders.mlp(2, 5, 4, 2, bias=True, seed=seed).double()
    bracket = finding(model, 2).values["lipschitz"]

    def jacobian_norms(points: Tensor) -> Tensor:
        rows = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(points)
        return torch.linalg.matrix_norm(rows, 2)

    axis = torch.linspace(-6.0, 6.0, 80, dtype=torch.float64)
    everywhere = float(jacobian_norms(torch.cartesian_prod(axis, axis)).detach().max())
    assert bracket.lower <= everywhere * (1 + 1e-9)
    assert everywhere <= bracket.upper
    points = (torch.randn(40, 2, dtype=torch.float64)).numpy()
    slope = largest_slope(lambda x: model(torch.as_tensor(x)[None]).detach().numpy(), points)
    assert slope <= bracket.upper


def test_a_shared_ancestor_is_counted_once_a_branch():
    model = Function(lambda s, x: s.a(x) + s.a(x), a=nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model.a.weight.copy_(torch.eye(2))
    bracket = finding(model, 2).values["lipschitz"]
    assert bracket.lower == pytest.approx(2.0, rel=1e-9)
    assert bracket.upper == pytest.approx(2.0, rel=1e-9)


def test_layers_have_values_and_rescaling_moves_the_bracket():
    torch.manual_seed(0)
    model = builders.mlp(3, 4, 2).double()
    v = finding(model, 3).values
    assert list(v) == ["lipschitz", "operator_norm[layers.0]", "operator_norm[layers.2]"]
    product = v["operator_norm[layers.0]"].upper * v["operator_norm[layers.2]"].upper
    assert v["lipschitz"].upper == pytest.approx(product)
    with torch.no_grad():
        model.layers[0].weight[0] *= 100.0
        model.layers[2].weight[:, 0] /= 100.0
    other = finding(model, 3).values["lipschitz"]
    assert other.upper > 1.5 * v["lipschitz"].upper
    assert other.lower == pytest.approx(v["lipschitz"].lower, rel=1e-6)


def test_a_constant_network_has_slope_zero():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    bracket = finding(model, 3).values["lipschitz"]
    assert (bracket.lower, bracket.upper) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.tokens_subject, "inputs have dtype torch.int64"),
        (lambda: builders.subject(builders.squaring_net()), "a product of two quantities that depend on the"),
        (lambda: builders.subject(nets.attention_net), "dot-product attention is not globally Lipschitz"),
        (lambda: builders.subject(nets.branching_net), "could not be traced"),
        (
            lambda: builders.subject(nn.Sequential(nn.Linear(64, 10), nn.LayerNorm(10, eps=0.0))),
            "a normalization without a positive eps is not Lipschitz",
        ),
    ],
)
def test_no_global_constant_no_number(build, reason):
    result = evaluate(LipschitzBracket(), build())
    assert result.status == "not applicable"
    assert result.values == {}
    assert reason in result.reason


class Single(nn.Module):
    """A forward that insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.ones(4, dtype=torch.float32)) @ torch.eye(2, dtype=torch.float32)


def test_without_float64_there_is_no_lower_end():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, generator=generator)
    model = Single()
    result = evaluate(LipschitzBracket(), Subject(model, x, torch.zeros(8, 2)))
    assert result.status == "certified"
    bracket = result.values["lipschitz"]
    assert bracket.lower is None
    norm = float(torch.linalg.matrix_norm(model.layer.weight.detach(), 2))
    assert bracket.upper == pytest.approx(norm, rel=1e-6)
    assert "no lower end: the model's forward does not run in float64" in bracket.note


def test_slopes_of_activations_are_at_most_their_constants():
    x = torch.linspace(-8.0, 8.0, 400_001, dtype=torch.float64)
    constants = {
        getattr(F, name, None) or getattr(torch, name): c for name, c in ACTIVATIONS.items() if c != 1.0
    }
    constants |= {partial(F.gelu, approximate=kind): c for kind, c in GELU.items()}
    assert len(constants) == 9
    for activation, constant in constants.items():
        slope = float((activation(x).diff() / x.diff()).abs().max())
        assert slope <= constant * (1 + 1e-9) <= 1.001 * slope, activation


def test_the_advice_names_a_wide_bracket():
    assert finding(absolute_value(), 1).advice == ""
    wide = finding(builders.mlp(8, 30, 30, 30, 30, 4, bias=True), 8)
    ratio = wide.values["lipschitz"].upper / wide.values["lipschitz"].lower
    assert ("a factor" in wide.advice) == (ratio >= 10.0)
    assert math.isfinite(ratio)
