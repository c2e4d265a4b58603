"""Counts of regions on a segment: against sampling and bisection, known answers, ties and budgets."""

from __future__ import annotations

import copy
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theodolite.analysis.cost import forward_cost
from theodolite.analysis.graph import trace
from theodolite.analysis.piecewise_linear import is_curved, obstruction
from theodolite.analysis.regions import log10_region_limit, regions_along_segment
from theodolite.reference.regions import regions_by_sampling


class Functional(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


class Residual(nn.Module):
    def __init__(self, width, activation):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), activation, nn.Linear(width, width))

    def forward(self, x):
        return x + self.inner(x)


def count(model, start, stop, **options):
    start, stop = (torch.as_tensor(t, dtype=torch.float64) for t in (start, stop))
    return regions_along_segment(trace(model.eval(), torch.stack([start, stop])), start, stop, **options)


def tent(k):
    """The k-fold composition of T(x) = 2 relu(x) - 4 relu(x - 1/2)."""
    layers = []
    for _ in range(k):
        first, second = nn.Linear(1, 2), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            first.weight.fill_(1.0)
            first.bias.copy_(torch.tensor([0.0, -0.5]))
            second.weight.copy_(torch.tensor([[2.0, -4.0]]))
        layers += [first, nn.ReLU(), second]
    return nn.Sequential(*layers).double()


ACTIVATIONS = [
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    lambda: nn.Hardtanh(-0.3, 0.4),
    nn.ReLU6,
]


def dense(seed):
    draw = random.Random(seed)
    width = inputs = draw.choice([1, 2, 5])
    layers = []
    for _ in range(draw.randint(1, 4)):
        units = draw.choice([3, 6, 9])
        layers.append(nn.Linear(width, units, bias=draw.random() < 0.8))
        layers += [nn.BatchNorm1d(units)] * (draw.random() < 0.4)
        layers.append(draw.choice(ACTIVATIONS)())
        layers += [Residual(units, draw.choice(ACTIVATIONS)())] * (draw.random() < 0.4)
        width = units
    return nn.Sequential(*layers, nn.Linear(width, draw.choice([1, 3]))), (inputs,)


def convolutional(seed):
    draw = random.Random(seed)
    channels = inputs = draw.choice([1, 2])
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2, ceil_mode=True)]
    pools.append(nn.MaxPool2d(2, ceil_mode=True))
    layers = []
    for _ in range(draw.randint(1, 2)):
        mode, stride, filters = draw.choice(["zeros", "circular"]), draw.choice([1, 2]), draw.choice([2, 3])
        layers.append(nn.Conv2d(channels, filters, 3, stride, 1, padding_mode=mode))
        layers += [nn.BatchNorm2d(filters)] * (draw.random() < 0.5)
        layers += [draw.choice(ACTIVATIONS)(), draw.choice(pools)]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2)), (inputs, 6, 6)


def random_network(seed):
    torch.manual_seed(seed)
    model, shape = (dense if seed % 2 else convolutional)(seed)
    model(torch.randn(3, *shape))
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    return model.double().eval(), 2 * torch.randn(shape).double(), 2 * torch.randn(shape).double()


@pytest.mark.parametrize("seed", range(9))
def test_counts_equal_those_of_sampling_and_bisection(seed):
    model, start, stop = random_network(seed)
    graph = trace(model, torch.stack([start, stop]))
    found = regions_along_segment(graph, start, stop)
    cells, kinks = regions_by_sampling(model, start, stop, samples=2001, resolution=1e-10)
    assert found.cells == len(cells) + 1
    assert found.linear_pieces == len(kinks) + 1
    torch.testing.assert_close(found.breakpoints, torch.tensor(cells, dtype=torch.float64), atol=1e-8, rtol=0)
    assert found.whole
    assert math.log10(found.cells) <= log10_region_limit(graph, forward_cost(graph, start[None]))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_tent_maps(k):
    """Composed k times: 2^k pieces on [0, 1], at the dyadic numbers, and two constant ones outside."""
    graph = trace(tent(k), torch.zeros(2, 1).double())
    ends = [torch.tensor([t]).double() for t in (0.0, 1.0, -1.0, 2.0)]
    found = regions_along_segment(graph, *ends[:2])
    assert found.cells == found.linear_pieces == 2**k
    dyadic = torch.arange(1, 2**k, dtype=torch.float64) / 2**k
    torch.testing.assert_close(found.breakpoints, dyadic, atol=1e-13, rtol=0)
    assert regions_along_segment(graph, *ends[2:]).linear_pieces == (3 if k == 1 else 2**k + 2)
    inner = regions_along_segment(graph, torch.tensor([0.25]).double(), torch.tensor([0.75]).double())
    assert inner.cells == max(2, 2 ** (k - 1)), "a breakpoint at an end is not inside"


def test_limit_is_the_product_of_widths_plus_one():
    """(1; 3, 3, 3) has at most 64 pieces (Serra et al. 2018)."""
    model = nn.Sequential(
        nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)
    )
    graph = trace(model, torch.randn(2, 1))
    assert 10 ** log10_region_limit(graph, forward_cost(graph, torch.randn(2, 1))) == pytest.approx(64.0)


def test_a_maximum_over_k_has_at_most_k_pieces():
    """Five tangents of a parabola: the limit k = 5 is attained."""
    at = torch.linspace(-0.8, 0.8, 5).double()
    model = Functional(lambda x: (2 * at * x - at**2).amax(1, keepdim=True))
    graph = trace(model, torch.randn(2, 1).double())
    assert 10 ** log10_region_limit(graph, forward_cost(graph, torch.randn(2, 1).double())) == pytest.approx(
        5
    )
    found = count(model, [-1.0], [1.0])
    assert found.linear_pieces == 5
    torch.testing.assert_close(found.breakpoints * 2 - 1, (at[1:] + at[:-1]) / 2)


TIES = {  # function, regions, linear pieces on [-1, 1]
    "a kink inside": (lambda x: x.relu(), 2, 2),
    "two units with one kink": (lambda x: x.relu() + (2 * x).relu(), 2, 2),
    "kinks that cancel": (lambda x: x.relu() - (-x).relu(), 2, 1),
    "a duplicate that cancels": (lambda x: (x - 0.1).relu() - (x - 0.1).relu() + x, 2, 1),
    "a unit that never moves": (lambda x: (0.0 * x).relu() + x, 1, 1),
    "a unit that touches zero": (lambda x: (-(x.abs())).relu() + x, 2, 1),
    "three lines through one point": (lambda x: torch.cat([x, -x, 0 * x], 1).amax(1, True), 2, 2),
    "an overruled line": (lambda x: torch.cat([x, -x, 0 * x - 1], 1).amax(1, True), 2, 2),
    "equal lines": (lambda x: torch.cat([x, x], 1).amax(1, True), 1, 1),
    "two kinks close together": (lambda x: x.relu() + (x - 1e-9).relu(), 3, 3),
    "tiny scale": (lambda x: (1e-30 * x).relu() - 2 * (1e-30 * x - 5e-31).relu(), 3, 3),
    "beside a large offset": (lambda x: (x.relu() + 1e9).relu() - 1e9, 2, 2),
    "a kink far outside": (lambda x: (x + 100).relu(), 1, 1),
}


@pytest.mark.parametrize("name", TIES)
def test_ties(name):
    function, cells, pieces = TIES[name]
    found = count(Functional(function), [-1.0], [1.0])
    assert (found.cells, found.linear_pieces) == (cells, pieces)


def test_a_breakpoint_at_an_end_is_not_inside():
    graph = trace(Functional(lambda x: x.relu()), torch.zeros(2, 2).double())
    for start, stop, cells in (([0, 0], [1, 1], 1), ([-1, -1], [0, 0], 1), ([0, -1], [0, 1], 2)):
        ends = torch.tensor(start).double(), torch.tensor(stop).double()
        assert regions_along_segment(graph, *ends).cells == cells


class ClassToken(nn.Module):
    """A constant token joined to the data, and constants added to both."""

    def __init__(self):
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(5, 4))
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x.view(-1, 4, 4)], 1) + self.places
        return self.head(self.layer(tokens).relu().amax(1))


def image(x):
    return x.view(-1, 1, 4, 4)


def lines(units):
    return nn.Linear(16, units)


def conv():
    return nn.Conv2d(1, 3, 3, padding=1)


MASK = torch.tensor([True, False] * 8)
OPERATIONS = {
    "maxout": lambda: Functional(lambda x, a: a(x).view(-1, 6, 2).max(2)[0], lines(12)),
    "minima": lambda: Functional(lambda x, a: a(x).amin(1, True) + a(x).min(1, keepdim=True)[0], lines(12)),
    "maximum": lambda: Functional(
        lambda x, a, b: torch.maximum(a(x), torch.minimum(b(x), torch.tensor(0.3))), lines(9), lines(9)
    ),
    "clamps": lambda: Functional(
        lambda x, a: a(x).clamp(-0.2, 0.3) + a(x).clamp(min=0.1) + F.hardsigmoid(4 * a(x)), lines(9)
    ),
    "threshold": lambda: Functional(lambda x, a: F.threshold(a(x), 0.2, 0.2) + F.relu6(9 * a(x)), lines(9)),
    "class token": ClassToken,
    "adaptive max-pool": lambda: Functional(
        lambda x, c: F.adaptive_max_pool2d(c(image(x)), 3).flatten(1), conv()
    ),
    "dilated max-pool": lambda: Functional(
        lambda x, c: F.max_pool2d(c(image(x)), 2, 1, dilation=2).flatten(1), conv()
    ),
    "padded max-pool of negatives": lambda: Functional(
        lambda x, c: F.max_pool2d(c(image(x)) - 3, 3, 1, 1).flatten(1), conv()
    ),
    "oblong max-pool": lambda: Functional(
        lambda x, c: F.max_pool2d(c(x.view(-1, 1, 2, 8)), (2, 3), (1, 2), (0, 1)).flatten(1), conv()
    ),
    "max-pool with places": lambda: Functional(
        lambda x, c: F.max_pool2d(c(image(x)), 2, return_indices=True)[0].flatten(1), conv()
    ),
    "max-pool 1-D": lambda: Functional(
        lambda x, c: F.max_pool1d(c(x[:, None]), 3, 2, 1, ceil_mode=True).flatten(1),
        nn.Conv1d(1, 3, 3, padding=1),
    ),
    "max-pool 3-D": lambda: Functional(
        lambda x, c: F.max_pool3d(c(x.view(-1, 1, 4, 2, 2)), 2, (2, 1, 1)).flatten(1), nn.Conv3d(1, 3, 1)
    ),
    "split": lambda: Functional(
        lambda x, a, b: b(
            torch.cat([p.abs() if i else p for i, p in enumerate(a(x).split([5, 3, 4], 1))], 1)
        ),
        lines(12),
        nn.Linear(12, 7),
    ),
    "unbind": lambda: Functional(
        lambda x, a: a(x.view(-1, 4, 4)).unbind(1)[0].relu() - a(x.view(-1, 4, 4)).unbind(1)[2].abs(),
        nn.Linear(4, 6),
    ),
    "PReLU by channel": lambda: Functional(
        lambda x, c, p: p(c(image(x))).sum((2, 3)), conv(), nn.PReLU(3, init=-0.5)
    ),
    "squeezes": lambda: Functional(lambda x, a: a(x).relu().unsqueeze(1).squeeze(), lines(5)),
    "tokens in the batch axis": lambda: Functional(
        lambda x, a: a(x.view(-1, 4)).relu().view(-1, 4, 5).mean(1), nn.Linear(4, 5)
    ),
    "a shared layer": lambda: Functional(lambda x, a: a(a(x).relu()).relu(), lines(16)),
    "a constant mask": lambda: Functional(lambda x, a: torch.where(MASK, a(x), x.relu()), lines(16)),
    "masked fill": lambda: Functional(lambda x, a: a(x).masked_fill(MASK, 0.0).relu(), lines(16)),
    "bilinear upsampling": lambda: Functional(
        lambda x, c: F.interpolate(c(image(x)).relu(), scale_factor=2, mode="bilinear").flatten(1), conv()
    ),
    "transposed convolution": lambda: Functional(
        lambda x, c: c(image(x).relu()).abs().mean((2, 3)), nn.ConvTranspose2d(1, 3, 3, 2)
    ),
    "constant divisor": lambda: Functional(lambda x, a: a(x).relu() / a.weight.norm(), lines(4)),
    "roll and cumulative sum": lambda: Functional(
        lambda x, a: (a(x).roll(1, 1) - a(x)).relu().cumsum(1), lines(4)
    ),
    "einsum with weights": lambda: Functional(
        lambda x, a: torch.einsum("bi,oi->bo", x, a.weight).relu(), lines(4)
    ),
    "addmm": lambda: Functional(
        lambda x, a: torch.addmm(a.bias, x, a.weight.T, alpha=2, beta=0.5).relu(), lines(6)
    ),
    "a negative slope": lambda: Functional(lambda x, a: F.leaky_relu(a(x), -0.7), lines(6)),
}


class SideBySide(nn.Module):
    """Several networks on one input: tracing is what takes long."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x):
        return torch.cat([model(x).flatten(1) for model in self.models], 1)


@pytest.mark.parametrize("group", range(5))
def test_affine_within_pieces_and_kinked_between(group):
    """An oracle that knows nothing of the operations: the network's own values."""
    torch.manual_seed(group)
    model = SideBySide([make() for make in list(OPERATIONS.values())[group::5]]).double().eval()
    start, stop = 2 * torch.randn(16).double(), 2 * torch.randn(16).double()
    found = count(model, start, stop)
    edges = [0.0, *found.kinks.tolist(), 1.0]
    shares = torch.tensor([0.02, 0.25, 0.5, 0.77, 0.98], dtype=torch.float64)
    t = torch.stack([a + (b - a) * shares for a, b in itertools.pairwise(edges)])
    with torch.no_grad():
        y = model(torch.lerp(start, stop, t.flatten()[:, None])).flatten(1).unflatten(0, t.shape)
    slopes = y.diff(dim=1) / t.diff(dim=1)[..., None]
    lengths = t.diff(dim=1).sum(1)[:, None, None]
    assert float(((slopes - slopes[:, :1]) * lengths).abs().max()) <= 1e-12 * float(y.abs().max())
    assert found.linear_pieces >= 2
    assert float((slopes[1:, 0] - slopes[:-1, -1]).abs().amax(1).min()) > 1e-6
    assert set(found.kinks.tolist()) <= set(found.breakpoints.tolist())


def test_a_spent_budget_counts_a_part_from_the_midpoint():
    graph = trace(tent(7), torch.zeros(2, 1).double())
    start, stop = torch.zeros(1).double(), torch.ones(1).double()
    one = forward_cost(graph, torch.zeros(1, 1).double()).total
    whole = regions_along_segment(graph, start, stop)
    for budget in (1.0, 10 * one, 30 * one):
        part = regions_along_segment(graph, start, stop, budget=budget)
        assert part.start == 0.5
        assert 0.5 < part.stop <= 1.0
        inside = whole.breakpoints[(whole.breakpoints > 0.5) & (whole.breakpoints < part.stop)]
        torch.testing.assert_close(part.breakpoints, inside)
        assert not part.whole
    assert regions_along_segment(graph, start, stop, budget=1e4 * one).whole


def test_chunks_give_the_same_count(monkeypatch):
    model, start, stop = random_network(2)
    graph = trace(model, torch.stack([start, stop]))
    many = regions_along_segment(graph, start, stop)
    monkeypatch.setattr("theodolite.analysis.regions._CHUNK_BYTES", 2000)
    few = regions_along_segment(graph, start, stop)
    torch.testing.assert_close(few.breakpoints, many.breakpoints)
    torch.testing.assert_close(few.kinks, many.kinks)


def test_single_and_half_precision_are_counted_for_the_stored_weights():
    model = tent(3)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.tensor([[0.0], [1.0]], dtype=dtype)
        graph = trace(copy.deepcopy(model).to(dtype), x)
        assert regions_along_segment(graph, *x).cells == 8


CURVED = {
    "sigmoid": lambda x: x.sigmoid(),
    "a product with itself": lambda x: x * x.relu(),
    "a quotient": lambda x: x / (1 + x.abs()),
}
UNKNOWN = {
    "sort": lambda x: x.sort(1)[0],
    "a mask from the data": lambda x: torch.where(x > 0, x, -x),
    "places of maxima": lambda x: x.max(1, keepdim=True)[1] + x,
    "dtype that rounds": lambda x: x.to(torch.int32) + x,
}


@pytest.mark.parametrize("name", CURVED | UNKNOWN)
def test_refusals(name):
    model = Functional((CURVED | UNKNOWN)[name])
    graph = trace(model, torch.randn(2, 4))
    node = obstruction(graph)
    assert node is not None
    assert is_curved(node) == (name in CURVED)
    with pytest.raises(ValueError, match="expected a piecewise linear network, but the model's own forward"):
        regions_along_segment(graph, torch.zeros(4), torch.ones(4))


def test_untraced_graph_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="expected a traced graph"):
        count(Branching(), [0.0], [1.0])
