"""Products of norms: value, gradient, degree, and what they refuse."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from theodolite.nn import ParallelSubnetworks
from theodolite.nn.regularizers import ProductOfNorms, WeightDecay, subnetworks


def chain(*widths: int, dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(sum(widths))
    layers = [nn.Linear(a, b, bias=False, dtype=dtype) for a, b in pairwise(widths)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in net.modules() if hasattr(m, "weight")]


NORMS = {
    "fro": lambda w: float(w.detach().square().sum().sqrt()),
    "l1": lambda w: float(w.detach().abs().sum()),
    "spectral": lambda w: float(torch.linalg.svdvals(w.detach().flatten(1))[0]),
}


def scaled(net: nn.Module, alpha: float) -> nn.Module:
    with torch.no_grad():
        for w in weights(net):
            w.mul_(alpha)
    return net


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_value_and_degree(norm, depth):
    net = chain(*range(4, 5 + depth))
    theta = ProductOfNorms(norm)
    expected = math.prod(map(NORMS[norm], weights(net)))
    assert theta(net).item() == pytest.approx(expected, rel=1e-12)
    assert theta.degree(net) == depth
    assert theta(scaled(net, 1.7)).item() == pytest.approx(expected * 1.7**depth, rel=1e-12)


def test_subnetworks_are_summed_wherever_they_are():
    net = ParallelSubnetworks(lambda: chain(4, 3, 2), 4).double()
    theta = ProductOfNorms()
    singles = [theta(s).item() for s in net]
    assert theta.each(net).tolist() == pytest.approx(singles)
    assert theta(nn.Sequential(nn.Flatten(), net)).item() == pytest.approx(sum(singles))
    assert theta.degree(net) == 2
    assert theta(ParallelSubnetworks(lambda: chain(4, 3, 2), 0)).item() == 0.0
    with pytest.raises(ValueError, match="no parameters beside those of its ParallelSubnetworks"):
        subnetworks(nn.Sequential(net, nn.Linear(2, 2)))
    net.grow(chain(4, 3, 3, 2))
    with pytest.raises(ValueError, match="one depth, got 2, 3"):
        theta.degree(net)


def grouped() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 6, 3, bias=False),
        nn.ReLU(),
        nn.Conv1d(6, 9, 2, groups=3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(45, 4, bias=False),
    ).double()


def test_groups_are_the_subnetworks_that_one_module_computes():
    net = grouped()
    first, middle, last = weights(net)
    parts = [
        first[2 * g : 2 * g + 2].norm()
        * middle[3 * g : 3 * g + 3].norm()
        * last[:, 15 * g : 15 * g + 15].norm()
        for g in range(3)
    ]
    theta = ProductOfNorms(groups=3)
    assert theta.each(net).tolist() == pytest.approx([p.item() for p in parts])
    assert theta(net).item() == pytest.approx(sum(parts).item())
    # every unit of a two-layer network: the path norm in its l2 form
    two = chain(5, 7, 3)
    per_unit = (two[0].weight.norm(dim=1) * two[2].weight.norm(dim=0)).tolist()
    assert ProductOfNorms(groups=7).each(two).tolist() == pytest.approx(per_unit)
    with pytest.raises(ValueError, match=r"groups: expected a divisor of the 7 channels of '0', got 2"):
        ProductOfNorms(groups=2)(two)
    with pytest.raises(
        ValueError, match="a convolution with 7 groups between the first and the last layer, got '2'"
    ):
        ProductOfNorms(groups=7)(chain(5, 7, 7, 3))


def test_a_first_bias_is_the_weight_of_a_constant_input():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    augmented = torch.cat([net[0].weight, net[0].bias[:, None]], 1)
    expected = (augmented.norm() * net[2].weight.norm()).item()
    assert ProductOfNorms(bias="first")(net).item() == pytest.approx(expected)
    per_unit = (augmented.norm(dim=1) * net[2].weight.norm(dim=0)).tolist()
    assert ProductOfNorms(bias="first", groups=3).each(net).tolist() == pytest.approx(per_unit)
    with pytest.raises(ValueError, match=r"got that of '0' \(Linear\).*bias='first' counts it"):
        ProductOfNorms()(net)
    with pytest.raises(ValueError, match=r"got that of '2' \(Linear\): it scales with another power"):
        ProductOfNorms(bias="first")(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [lambda: chain(4, 3, 3, 2), grouped])
def test_gradcheck(norm, make):
    net = make()
    names = [name for name, _ in net.named_parameters()]

    def value(*values):
        owner = nn.Module()
        owner.net = net
        return torch.func.functional_call(
            Wrapped(net, ProductOfNorms(norm)), {f"net.{n}": v for n, v in zip(names, values, strict=True)}
        )

    inputs = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    assert torch.autograd.gradcheck(value, inputs)


class Wrapped(nn.Module):
    """A regularizer as a function of the parameters alone."""

    def __init__(self, net: nn.Module, theta: nn.Module) -> None:
        super().__init__()
        self.net, self.theta = net, theta

    def forward(self) -> torch.Tensor:
        return self.theta(self.net)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("empty", [[0], [1], [0, 1, 2]])
def test_the_subgradient_at_an_empty_subnetwork_is_zero(norm, empty):
    net = ParallelSubnetworks(lambda: chain(4, 3, 3, 2), 2)
    with torch.no_grad():
        for level in empty:
            weights(net[1])[level].zero_()
    value = ProductOfNorms(norm)(net)
    value.backward()
    assert value.item() == pytest.approx(math.prod(map(NORMS[norm], weights(net[0]))))
    assert all(bool((w.grad == 0).all()) for w in weights(net[1]))
    assert all(bool((w.grad.abs() > 0).any()) for w in weights(net[0]))


def test_depth_neither_overflows_nor_underflows_on_the_way():
    net = chain(*[3] * 61, dtype=torch.float32)
    with torch.no_grad():
        for level, w in enumerate(weights(net)):
            w.mul_((1e6 if level < 30 else 1e-6) / w.norm())
    value = ProductOfNorms()(net)  # thirty factors of 1e6, then thirty of 1e-6
    assert value.item() == pytest.approx(1.0, rel=1e-3)
    value.backward()
    assert all(bool(torch.isfinite(w.grad).all()) for w in weights(net))
    assert ProductOfNorms()(chain(8, 8, 8).half()).item() == pytest.approx(
        ProductOfNorms()(chain(8, 8, 8)).item(), rel=1e-2
    )


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3)), "normalization can shrink to 0"),
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.PReLU()), r"the parameter 'weight' of '1' \(PReLU\)"),
        (nn.Embedding(4, 3), "of Embedding"),
        (nn.ReLU(), "at least one weight, got none in ReLU"),
        (nn.LSTM(3, 2), "'weight_ih_l0' of LSTM"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False)), "'original0' of"),
    ],
)
def test_parameters_that_do_not_count_are_refused(net, words):
    with pytest.raises(ValueError, match=words):
        ProductOfNorms()(net)


def test_a_weight_under_two_names_is_refused():
    net = chain(3, 3, 3)
    net[2].weight = net[0].weight
    with pytest.raises(ValueError, match=r"used once, got one of '2' \(Linear\) twice"):
        ProductOfNorms()(net)


@pytest.mark.parametrize("options", [{"norm": "l3"}, {"bias": "all"}, {"groups": 0}, {"groups": True}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        ProductOfNorms(**options)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_decay_is_never_below_its_least_and_equal_at_balanced_layers(depth):
    net = chain(*[4] * (depth + 1))
    decay = WeightDecay()
    theta = ProductOfNorms()(net).item()
    assert decay(net).item() > decay.least(theta, depth)
    with torch.no_grad():
        for w in weights(net):
            w.mul_(theta ** (1 / depth) / w.norm())
    assert decay(net).item() == pytest.approx(decay.least(theta, depth), rel=1e-12)
    if depth == 2:
        assert decay.least(theta, 2) == theta
    assert decay.degree(net) == 2


def test_decay_counts_what_is_trained():
    net = nn.Linear(3, 2)
    net.weight.requires_grad_(False)
    assert float(WeightDecay()(net).detach()) == pytest.approx(0.5 * float(net.bias.detach().square().sum()))
    assert float(WeightDecay()(nn.ReLU())) == 0.0
