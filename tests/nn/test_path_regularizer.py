"""Path norms against explicit sums over paths, their degree, and rescalings of units."""

import itertools

import pytest
import torch
from torch import nn

from theodolite.models import MLP, AlexNet
from theodolite.nn import ParallelSubnetworks
from theodolite.nn.regularizers import PathRegularizer, ProductOfNorms


def by_hand(net: MLP, q: int) -> float:
    weights = [layer.weight.detach() for layer in net.layers if isinstance(layer, nn.Linear)]
    sizes = [weights[0].shape[1], *(len(w) for w in weights)]
    total = 0.0
    for path in itertools.product(*map(range, sizes)):
        product = 1.0
        for w, (i, j) in zip(weights, itertools.pairwise(path), strict=True):
            product *= abs(float(w[j, i])) ** q
        total += product
    return total ** (1 / q)


@pytest.mark.parametrize("q", [1, 2])
def test_it_is_the_sum_over_paths(q):
    torch.manual_seed(0)
    net = MLP((3, 4, 2, 3), bias=False).double()
    assert float(PathRegularizer(q)(net).detach()) == pytest.approx(by_hand(net, q), rel=1e-12)
    assert PathRegularizer(q).degree(net) == 3


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("make", [lambda: MLP((5, 4, 3), bias=False), lambda: AlexNet(1, 8, 3, width=2)])
def test_its_degree_is_the_networks(make, q):
    torch.manual_seed(0)
    net = make().double()
    regularizer = PathRegularizer(q)
    before, degree = float(regularizer(net).detach()), regularizer.degree(net)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.3)
    assert float(regularizer(net).detach()) == pytest.approx(1.3**degree * before, rel=1e-10)


def test_rescaled_units_keep_it_and_change_other_regularizers():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False)
    ).double()
    values = [float(f(net).detach()) for f in (PathRegularizer(), PathRegularizer(1), ProductOfNorms())]
    with torch.no_grad():
        net[0].weight[1] *= 7.0
        net[3].weight[:, 4:8] /= 7.0  # the four positions of channel 1
    after = [float(f(net).detach()) for f in (PathRegularizer(), PathRegularizer(1), ProductOfNorms())]
    assert after[:2] == pytest.approx(values[:2], rel=1e-12)
    assert abs(after[2] / values[2] - 1.0) > 0.1


def test_the_one_norm_bounds_the_outputs():
    torch.manual_seed(0)
    for _ in range(20):
        net = MLP((4, 6, 5, 2), bias=False).double()
        x = 2.0 * torch.rand(50, 4, dtype=torch.float64) - 1.0
        assert float(net(x).detach().abs().sum(1).max()) <= float(PathRegularizer(1)(net).detach())


def test_groups_and_transposed_convolutions():
    torch.manual_seed(0)
    grouped = nn.Sequential(
        nn.Conv1d(4, 6, 2, groups=2, bias=False), nn.ConvTranspose1d(6, 4, 2, groups=2, bias=False)
    )
    first, second = (layer.weight.detach().abs().sum(2) for layer in grouped)
    total = sum(float(second[3 * g + j].sum() * first[3 * g + j].sum()) for g in range(2) for j in range(3))
    assert float(PathRegularizer(1)(grouped).detach()) == pytest.approx(total, rel=1e-5)


def test_parallel_subnetworks_add_up_and_zero_ones_count_nothing():
    torch.manual_seed(0)
    net = ParallelSubnetworks(lambda: MLP((3, 4, 2), bias=False), 3)
    with torch.no_grad():
        net[1].layers[2].weight.zero_()
    regularizer = PathRegularizer()
    each = regularizer.each(net)
    assert float(each[1].detach()) == 0.0
    assert float(regularizer(net).detach()) == pytest.approx(float(each.sum().detach()))
    regularizer(net).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.prune(regularizer) == [1]
    assert float(regularizer(ParallelSubnetworks(lambda: MLP((3, 2), bias=False), 0))) == 0.0


def test_what_it_refuses():
    with pytest.raises(ValueError, match="q: expected 1 or 2"):
        PathRegularizer(3)
    with pytest.raises(ValueError, match="expected no bias"):
        PathRegularizer()(MLP((3, 2)))
    with pytest.raises(
        ValueError, match="expected a chain of layers, got '1' with 5 inputs behind 3 outputs"
    ):
        PathRegularizer()(nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(5, 2, bias=False)))
