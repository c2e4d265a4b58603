"""DRO002: balance of units, against the balanced optima of dropout and changes made by hand."""

from __future__ import annotations

import builders
import pytest
import torch
from fixtures import nets
from torch import Tensor, nn

from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.dropout.balancedness import Balancedness
from theodolite.theorems.subject import Subject


def finding(subject: Subject) -> Finding:
    result = evaluate(Balancedness(), subject)
    assert result.status != "failed", result.traceback
    return result


def factors(U: Tensor, V: Tensor) -> Subject:
    """The linear network x -> U V' x."""
    first = nn.Linear(V.shape[0], V.shape[1], bias=False, dtype=torch.float64)
    last = nn.Linear(U.shape[1], U.shape[0], bias=False, dtype=torch.float64)
    with torch.no_grad():
        first.weight.copy_(V.T)
        last.weight.copy_(U)
    x = torch.eye(V.shape[0], dtype=torch.float64)
    return Subject(nn.Sequential(first, last), x, x @ (U @ V.T).T)


def equalized(singular: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return factors U, V of diag(singular) of some width whose columns have equal norms."""
    padded = torch.zeros(width, dtype=torch.float64)
    padded[: len(singular)] = singular.double()
    R = torch.eye(width, dtype=torch.float64)
    for _ in range(width - 1):  # Givens rotations that make one diagonal entry the mean each
        S = R.T @ padded.diag() @ R
        i, j = int(S.diag().argmin()), int(S.diag().argmax())
        a, b, c, mean = S[i, i], S[j, j], S[i, j], padded.mean()
        # t solves a - mean + 2 c t + (b - mean) t^2 = 0
        t = (-c + torch.sqrt((c * c - (a - mean) * (b - mean)).clamp_min(0.0))) / (b - mean)
        G = torch.eye(width, dtype=torch.float64)
        cos = 1.0 / torch.sqrt(1.0 + t * t)
        G[i, i], G[j, i], G[i, j], G[j, j] = cos, t * cos, -t * cos, cos
        R = R @ G
    root = padded.sqrt().diag()[: len(singular)]
    return root @ R, root @ R


def test_known_answer_of_the_equalized_optimum():
    """Y = diag(3, 2, 1), width 4, kappa 2: every |u||v| is 0.625 at the optimum diag(1.75, 0.75, 0)."""
    U, V = equalized(torch.tensor([1.75, 0.75, 0.0]), 4)
    torch.testing.assert_close(U @ V.T, torch.tensor([1.75, 0.75, 0.0], dtype=torch.float64).diag())
    torch.testing.assert_close(U.norm(dim=0) * V.norm(dim=0), torch.full((4,), 0.625, dtype=torch.float64))
    # the deterministic objective of dropout there is the notes' optimal value
    Y = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).diag()
    value = (Y - U @ V.T).square().sum() + 2.0 * (U.norm(dim=0) * V.norm(dim=0)).square().sum()
    assert float(value) == pytest.approx(7.25, rel=1e-10)
    result = finding(factors(U, V))
    assert result.status == "certified"
    assert list(result.values)[:3] == ["spread", "imbalance", "mean_imbalance"]
    for value in result.values.values():
        assert value.kind == "exact"
        assert value.value == pytest.approx(0.0, abs=1e-7)
    assert result.advice == ""


def test_the_unequalized_factors_of_the_same_matrix_spread():
    S = torch.tensor([1.75, 0.75, 0.0], dtype=torch.float64)
    v = finding(factors(S.sqrt().diag(), S.sqrt().diag())).values
    assert v["spread"].value == pytest.approx(float(S.std(correction=0) / S.mean()))
    assert v["spread"].witness == {"layer": "0"}
    assert v["imbalance"].value == 0.0  # balanced all the same, a zero unit included
    assert v["spread[0]"].witness == {"smallest unit": 2, "largest unit": 0}


@pytest.mark.parametrize("c", [0.1, 3.0, 1e6])
def test_rescaling_one_unit_changes_its_imbalance_and_no_product(c):
    U, V = equalized(torch.tensor([1.75, 0.75, 0.5]), 3)
    U, V = U.clone(), V.clone()
    V[:, 1] *= c
    U[:, 1] /= c
    v = finding(factors(U, V)).values
    assert v["spread"].value == pytest.approx(0.0, abs=1e-7)
    expected = abs(c**2 - c**-2) / (c**2 + c**-2)
    assert v["imbalance"].value == pytest.approx(expected, rel=1e-6)
    assert v["imbalance"].witness == {"layer": "0", "unit": 1}
    assert v["mean_imbalance"].value == pytest.approx(expected / 3, rel=1e-6)


def test_biases_count_into_the_incoming_norm():
    model = builders.mlp(1, 2, 1, bias=True).double()
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[3.0], [0.0]]))
        model.layers[0].bias.copy_(torch.tensor([4.0, 5.0]))
        model.layers[2].weight.copy_(torch.tensor([[5.0, 5.0]]))
    v = finding(Subject(model, torch.ones(3, 1), torch.ones(3, 1))).values
    assert v["spread"].value == pytest.approx(0.0, abs=1e-12)
    assert v["imbalance"].value == pytest.approx(0.0, abs=1e-12)


def test_convolutional_units_are_channels():
    torch.manual_seed(0)
    conv, head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 4, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), head).double()
    v = finding(Subject(model, torch.randn(3, 2, 6, 6), torch.zeros(3, 3))).values
    u = torch.cat([conv.weight.detach().flatten(1), conv.bias.detach()[:, None]], 1).norm(dim=1)
    w = head.weight.detach().view(3, 4, 4).transpose(0, 1).flatten(1).norm(dim=1)
    products = u * w
    assert v["spread"].value == pytest.approx(float(products.std(correction=0) / products.mean()))
    assert v["imbalance"].value == pytest.approx(float(((u**2 - w**2).abs() / (u**2 + w**2)).max()))


def test_headlines_are_the_worst_layer():
    subject = builders.subject(builders.mlp(64, 16, 12, 8, 10))
    v = finding(subject).values
    layers = ("layers.0", "layers.2", "layers.4")
    spreads = {name: v[f"spread[{name}]"].value for name in layers}
    assert v["spread"].value == max(spreads.values())
    assert v["spread"].witness == {"layer": max(spreads, key=spreads.get)}
    assert v["imbalance"].value == max(v[f"imbalance[{name}]"].value for name in layers)
    assert "the largest of 3 layers, 36 units" in v["spread"].note


def test_dead_and_zero_units():
    model = builders.mlp(3, 4, 2).double()
    with torch.no_grad():
        model.layers[2].weight[:, 1] = 0.0
    v = finding(Subject(model, torch.randn(4, 3), torch.zeros(4, 2))).values
    assert v["imbalance"].value == 1.0
    assert v["imbalance"].witness == {"layer": "layers.0", "unit": 1}
    with torch.no_grad():
        model.layers[0].weight.zero_()
        model.layers[2].weight.zero_()
    zero = finding(Subject(model, torch.randn(4, 3), torch.zeros(4, 2)))
    assert zero.values["spread"].value is None
    assert zero.values["spread"].witness == "every product of norms is zero"
    assert zero.values["imbalance"].value == 0.0
    assert zero.chart is not None


def test_a_single_unit_does_not_spread():
    v = finding(Subject(builders.mlp(3, 1, 2), torch.randn(1, 3), torch.zeros(1, 2))).values
    assert v["spread"].value == 0.0


def test_advice_for_unbalanced_units():
    model = builders.mlp(3, 4, 2)
    with torch.no_grad():
        model.layers[0].weight *= 100.0
    assert "rescale each unit" in finding(Subject(model, torch.randn(4, 3), torch.zeros(4, 2))).advice


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: builders.subject(builders.mlp(64, 10)),
            "no two weight layers have positively homogeneous units",
        ),
        (lambda: builders.subject(nets.sigmoid_net), "layer '1' (Sigmoid) is not positively homogeneous"),
        (lambda: builders.subject(nets.batch_norm_net), "layer '1' (BatchNorm1d) normalizes its units"),
        (lambda: builders.subject(nets.branching_net), "needs the computation graph"),
        (builders.bare_subject, "the model has 0 parameters"),
        (lambda: builders.subject(nets.tied_net), "is used more than once or shares its weights"),
    ],
)
def test_where_there_are_no_units_to_compare(build, reason):
    result = finding(build())
    assert result.status == "not applicable"
    assert reason in result.reason
    assert result.values == {}


def test_layers_that_are_not_measured_are_named():
    model = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10))
    v = finding(builders.subject(model)).values
    assert set(v) == {"spread", "imbalance", "mean_imbalance", "spread[2]", "imbalance[2]"}
    assert "not measured: '0'" in v["spread"].note
