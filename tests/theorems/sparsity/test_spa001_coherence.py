"""SPA001 against whole dictionaries, the known answers, and models without filters to compare."""

from __future__ import annotations

import math

import builders
import pytest
import scipy.linalg
import torch
from fixtures import nets
from torch import nn

from theodolite.reference.coherence import convolution_dictionary, dictionary_coherence
from theodolite.testing import check_theorem
from theodolite.theorems.base import evaluate
from theodolite.theorems.sparsity import coherence as module
from theodolite.theorems.sparsity.coherence import Coherence
from theodolite.theorems.subject import Subject


def finding_of(model, shape=(4,), outputs=2):
    torch.manual_seed(0)
    return evaluate(Coherence(), Subject(model, torch.randn(6, *shape), torch.arange(6) % outputs))


def test_spikes_and_hadamard_as_a_layer():
    """n = 256: mu = 1/16, fewer than 8.5 nonzeros, Welch 0.04424."""
    layer = nn.Linear(256, 512)
    with torch.no_grad():
        hadamard = torch.tensor(scipy.linalg.hadamard(256)) / 16.0
        layer.weight.copy_(torch.cat([torch.eye(256), hadamard]))
        layer.weight.mul_(torch.rand(512, 1) + 0.5)  # atoms are normalized
    values = finding_of(nn.Sequential(layer), (256,)).values
    assert values["coherence"].value == pytest.approx(1 / 16, rel=1e-6)
    assert values["tolerated_sparsity"].value == pytest.approx(8.5, rel=1e-6)
    assert values["welch[0]"].value == pytest.approx(0.04424, abs=5e-6)
    assert values["coherence"].kind == "exact"


def test_layers_against_whole_dictionaries():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 3, 3, stride=2, dilation=1, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 6, 2, groups=3),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(288, 2),
    ]
    model = nn.Sequential(*layers)

    def build():
        torch.manual_seed(0)
        return Subject(model, torch.randn(6, 1, 14, 14), torch.arange(6) % 2)

    def shifts(number, stride, groups=1):
        return convolution_dictionary(layers[number].weight.detach(), stride, (1, 1), groups)

    truth = {
        "coherence[0]": dictionary_coherence(shifts(0, (2, 2))),
        "coherence[2]": dictionary_coherence(shifts(2, (1, 1), 3)),
        "coherence[4]": dictionary_coherence(shifts(4, (2, 2))),
        "coherence[6]": dictionary_coherence(layers[6].weight.detach().T),
    }
    truth["coherence"] = max(truth.values())
    truth["tolerated_sparsity"] = 0.5 * (1 + 1 / truth["coherence"])
    finding = check_theorem(Coherence, build, truth=truth)
    assert finding.status == "certified"
    worst = finding.values["coherence"].witness["layer"]
    assert truth[f"coherence[{worst}]"] == truth["coherence"]
    for name, value in finding.values.items():
        if name.startswith("welch["):
            assert value.value <= finding.values[f"coherence{name[5:]}"].value + 1e-12


def test_duplicates_tolerate_one_nonzero_and_it_says_that_this_is_nothing():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[2] = -2.0 * layer.weight[0]
    value = finding_of(nn.Sequential(layer), outputs=2).values["tolerated_sparsity"]
    assert value.value == pytest.approx(1.0)
    assert "the theorem says nothing about this layer" in value.note


def test_orthogonal_filters_tolerate_anything():
    layer = nn.Linear(4, 3)
    nn.init.orthogonal_(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4)[:3])
    values = finding_of(nn.Sequential(layer)).values
    assert values["coherence"].value == 0.0
    assert values["tolerated_sparsity"].value == math.inf


def test_uniqueness_holds_below_the_tolerated_sparsity():
    """No two different codes with fewer nonzeros each give one signal: any 2 s atoms are independent."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 44)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(44, 44))[0][:, :40])
    tolerated = finding_of(nn.Sequential(layer), (40,)).values["tolerated_sparsity"].value
    together = 2 * (math.ceil(tolerated) - 1)
    assert together >= 4
    for seed in range(50):
        chosen = torch.randperm(44, generator=torch.Generator().manual_seed(seed))[:together]
        atoms = layer.weight[chosen].detach().double()
        assert float(torch.linalg.svdvals(atoms / atoms.norm(dim=1, keepdim=True))[-1]) > 1e-6


def test_shared_and_single_filters():
    torch.manual_seed(0)
    values = evaluate(Coherence(), Subject(nets.tied_net, *builders.digits_pairs(8)["train"])).values
    assert sorted(name for name in values if name.startswith("coherence[")) == [
        "coherence[head]",
        "coherence[shared]",
    ]
    mixed = finding_of(nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3)), outputs=3).values
    assert "layers with a single filter left out: 1" in mixed["coherence"].note
    assert mixed["coherence"].value == pytest.approx(1.0), "atoms in one dimension are parallel"


def test_a_layer_above_its_share_is_a_lower_bound(monkeypatch):
    model = nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 3))
    whole = finding_of(model, (20,), 3).values
    monkeypatch.setattr(module, "FLOPS", 3e5)
    part = finding_of(model, (20,), 3).values
    assert part["coherence"].kind == "bound"
    assert part["coherence"].upper is None
    assert part["coherence"].lower <= whole["coherence"].value
    assert part["tolerated_sparsity"].lower is None
    assert part["tolerated_sparsity"].upper >= whole["tolerated_sparsity"].value
    assert "of 200 filters" in part["coherence[0]"].note
    pair = part["coherence[0]"].witness["filters"]
    atoms = model[0].weight[pair].detach().double()
    assert abs(float(torch.cosine_similarity(*atoms, dim=0))) == pytest.approx(part["coherence[0]"].lower)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Identity()), "no linear or convolutional layer"),
        (nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), "every layer has a single filter"),
    ],
)
def test_not_applicable(model, reason):
    x = torch.randn(6, 4)
    y = x if isinstance(model[0], nn.Identity) else x[:, :1]
    finding = evaluate(Coherence(), Subject(model, x, y))
    assert finding.status == "not applicable"
    assert reason in finding.reason


def test_models_that_cannot_be_traced_and_tokens_have_filters_too():
    branching = evaluate(Coherence(), Subject(nets.branching_net, *builders.digits_pairs(8)["train"]))
    assert branching.status == "certified"
    assert evaluate(Coherence(), builders.tokens_subject()).status == "certified"
