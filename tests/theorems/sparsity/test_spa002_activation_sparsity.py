"""SPA002 against counts by hand, for units on either axis, and models without activations."""

from __future__ import annotations

import builders
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from torch import nn

from theodolite.testing import check_theorem
from theodolite.theorems.base import evaluate
from theodolite.theorems.sparsity.activation_sparsity import ActivationSparsity
from theodolite.theorems.subject import Subject


def finding_of(model, x, outputs=2):
    return evaluate(ActivationSparsity(), Subject(model, x, torch.arange(len(x)) % outputs))


def values_of(model, x, outputs=2):
    return finding_of(model, x, outputs).values


def test_relu_is_soft_thresholding():
    """Nonnegative soft thresholding at beta is the ReLU with bias -beta, to the bit."""
    torch.manual_seed(0)
    layer, beta = nn.Linear(6, 5), 0.3
    with torch.no_grad():
        layer.bias.fill_(-beta)
    x = torch.randn(40, 6)
    correlations = F.linear(x, layer.weight, None)
    code = torch.where(correlations > beta, F.linear(x, layer.weight, layer.bias), 0.0)
    assert torch.equal(layer(x).relu(), code)
    values = values_of(nn.Sequential(layer, nn.ReLU(), nn.Linear(5, 2)), x)
    assert values["zero_fraction"].value == pytest.approx(float((code == 0).double().mean()), rel=1e-12)


def test_counts_by_hand():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, -5.0, 0.0]))
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, 3.0], [0.0, 4.0]])
    values = values_of(model, x)  # nonzero: unit 0 on two samples, unit 1 on one, 2 and 3 never
    assert values["zero_fraction"].value == 13 / 16
    assert values["silent_units"].value == 2
    assert values["silent_units[1]"].witness == [2, 3]
    assert values["silent_units"].witness == {"1": 2}
    assert "of 4; zero on all 4 training samples" in values["silent_units"].note
    assert {v.kind for v in values.values()} == {"exact"}


def test_a_digits_network_against_forward_passes():
    model, hidden = builders.mlp(64, 16, 12, 10), []

    def build():
        return builders.subject(model, 150)

    subject = build()
    x = subject.x
    for layer in model.layers:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            hidden.append(x)
    zeros = [float((h == 0).double().mean()) for h in hidden]
    sizes = [h.numel() for h in hidden]
    truth = {
        "zero_fraction": sum(z * s for z, s in zip(zeros, sizes, strict=True)) / sum(sizes),
        "silent_units": sum(int((h == 0).all(0).sum()) for h in hidden),
        "zero_fraction[layers.1]": zeros[0],
        "zero_fraction[layers.3]": zeros[1],
    }
    finding = check_theorem(ActivationSparsity, build, truth=truth)
    assert finding.status == "certified"


def test_batches_add_up(monkeypatch):
    model, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(50, 3)
    whole = values_of(model, x)
    monkeypatch.setattr(Subject, "batch_size", 7)
    parts = values_of(model, x)
    assert {k: v.value for k, v in whole.items()} == {k: v.value for k, v in parts.items()}


class Tokens(nn.Module):
    """Units on the last axis."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.layer(x).relu().mean(1))


def test_units_are_features_after_a_linear_layer_and_channels_after_a_convolution():
    torch.manual_seed(0)
    tokens = Tokens()
    with torch.no_grad():
        tokens.layer.bias[4] = -100.0
    values = values_of(tokens, torch.randn(9, 7, 3))
    silent = next(v for name, v in values.items() if name.startswith("silent_units["))
    assert (silent.value, silent.witness, silent.note) == (1, [4], "of 6")
    norm = nn.Sequential(
        nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(18, 2)
    )
    with torch.no_grad():
        norm[1].bias[2] = -100.0
    silent = values_of(norm.eval(), torch.randn(9, 3, 8))["silent_units[2]"]
    assert (silent.value, silent.witness, silent.note) == (1, [2], "of 6")
    image = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2))
    with torch.no_grad():
        image[0].bias[5] = -100.0
    assert values_of(image, torch.randn(9, 1, 6, 6))["silent_units[1]"].witness == [5]


def test_smooth_activations_have_no_exact_zeros():
    values = evaluate(
        ActivationSparsity(), Subject(nets.sigmoid_net, *builders.digits_pairs(20)["train"])
    ).values
    assert values["zero_fraction"].value == 0.0
    assert values["silent_units"].value == 0
    assert values["silent_units"].witness is None


def test_activations_of_weights_are_not_counted():
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(-torch.ones(2, 3))

        def forward(self, x):
            return F.linear(x, self.weight.relu())

    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Positive())
    values = values_of(model, torch.randn(10, 3))
    assert [name for name in values if name.startswith("zero_fraction[")] == ["zero_fraction[1]"]


def test_a_module_that_is_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.a, self.b = nn.ReLU(), nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.act(self.b(self.act(self.a(x))))

    values = values_of(Twice(), torch.randn(10, 3))
    assert {"zero_fraction[act]", "zero_fraction[act#2]"} <= values.keys()


def test_untraced_models_count_their_modules():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.head = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)

        def forward(self, x):
            h = self.act(self.first(x))
            return self.head(h if h.sum() > 0 else 2 * h)

    torch.manual_seed(0)
    model, x = Branching(), torch.randn(10, 3)
    values = values_of(model, x)
    assert values["zero_fraction"].value == float((model.first(x).relu() == 0).double().mean())


def test_a_loop_over_samples_counts_no_wrong_numbers():
    """Traced, it would hold two samples only; as modules its activations have no batch axis."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.head = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)

        def forward(self, x):
            return torch.stack([self.head(self.act(self.first(row))) for row in x])

    finding = finding_of(Loop(), torch.randn(10, 3))
    assert finding.status == "not applicable"
    assert finding.reason == "no activation of the model has one axis for the samples and one for its units"


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Identity(), nn.Linear(3, 2))])
def test_not_applicable(model):
    finding = finding_of(model, torch.randn(10, 3))
    assert finding.status == "not applicable"
    assert finding.reason == "the model has no activation operation (ReLU, GELU, ...)"


def test_advice_names_silent_units():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].bias.fill_(2.0)
        model[0].bias[1] = -100.0
    assert finding_of(model, torch.rand(10, 3)).advice.startswith("silent units: 1 ")
    with torch.no_grad():
        model[0].bias[1] = 2.0
    assert finding_of(model, torch.rand(10, 3)).advice == ""
