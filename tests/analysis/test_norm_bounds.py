"""Products of norms against the outputs they bound: each operation's factor, exact where it is attained."""

import math

import pytest
import torch
from torch import Tensor, nn

from theodolite.analysis.graph import trace
from theodolite.analysis.norm_bounds import NoBound, Term, ends_linearly, output_terms


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def terms_of(net: nn.Module, X: Tensor) -> list[Term]:
    net = net.double()
    names = [name for name, _ in net.named_parameters()]
    layers = {name: i for i, name in enumerate(n for n in names if not n.endswith("bias"))}
    layers |= {n: layers[n.replace("bias", "weight")] for n in names if n.endswith("bias")}
    return output_terms(trace(net, X), layers, X)


def product(net: nn.Module, powers: tuple[int, ...]) -> float:
    """Product of the layers' norms, the weight and the bias of one module together."""
    norms = [
        math.sqrt(sum(float(p.square().sum()) for p in m.parameters(recurse=False))) for m in net.modules()
    ]
    return math.prod(norm**power for norm, power in zip([n for n in norms if n], powers, strict=True))


def flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten())


NETS = {
    "linear": (nn.Linear(6, 4, bias=False), (5, 6)),
    "linear with a bias": (nn.Linear(6, 4), (5, 6)),
    "three layers": (
        nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(6, 6, bias=False), nn.LeakyReLU(0.3)))),
        (5, 6),
    ),
    "conv": (flat(nn.Conv2d(2, 3, 3, bias=False)), (4, 2, 7, 7)),
    "conv with a bias": (flat(nn.Conv2d(2, 3, 3, padding=1)), (4, 2, 7, 7)),
    "strided": (flat(nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)), (4, 2, 7, 7)),
    "dilated": (flat(nn.Conv2d(2, 3, 3, stride=2, dilation=2, bias=False)), (4, 2, 9, 9)),
    "grouped": (flat(nn.Conv2d(2, 4, 3, groups=2, bias=False)), (4, 2, 6, 6)),
    "one axis": (flat(nn.Conv1d(2, 3, 3, padding="same", bias=False), nn.ReLU()), (4, 2, 8)),
    "two convs, pools": (
        flat(
            nn.Conv2d(1, 3, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(3, 2, 2, padding=1, bias=False),
            nn.AvgPool2d(3, 1),
        ),
        (4, 1, 9, 9),
    ),
    "behind fixed layers": (
        flat(nn.AvgPool2d(2), nn.Conv2d(1, 2, 3, bias=False), nn.AdaptiveAvgPool2d(2)),
        (3, 1, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_no_weights_exceed_the_bound(name):
    """Random weights, and weights that ascend the ratio for single samples and for all together."""
    net, shape = NETS[name]
    X = normal(*shape)
    (term,) = terms_of(net, X)
    d = normal(len(X), seed=1).abs()
    whole, parameters = term.size(d), list(net.parameters())
    best = 0.0
    for trial in range(8):
        torch.manual_seed(trial)
        with torch.no_grad():
            for p in parameters:
                p.copy_(torch.randn_like(p))
        sample = trial % (len(X) + 1)
        for _ in range(25):
            outputs = net(X).flatten(1)
            size = (d[:, None] * outputs).norm() if sample == len(X) else outputs[sample].norm()
            gradients = torch.autograd.grad(size, parameters)
            with torch.no_grad():
                rows = outputs.norm(dim=1)
                scale = product(net, term.powers)
                assert (rows <= scale * term.rows * (1 + 1e-12)).all()
                assert float((d * rows).norm()) <= scale * whole * (1 + 1e-12)
                best = max(best, float((rows / (scale * term.rows)).max()))
                for p, g in zip(parameters, gradients, strict=True):
                    p.copy_((p + 3.0 * p.norm() * g / g.norm().clamp(min=1e-300)) / 4.0)
    assert best > 0.1  # a bound that nothing comes near would pass


def test_a_linear_layer_is_bounded_by_its_matrix_of_inputs():
    X = normal(7, 4)
    (term,) = terms_of(nn.Linear(4, 3, bias=False), X)
    assert torch.allclose(term.rows, X.norm(dim=1), rtol=1e-13)
    d = normal(7, seed=1).abs()
    assert term.size(d) == pytest.approx(float(torch.linalg.matrix_norm(d[:, None] * X, ord=2)), rel=1e-9)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "repeats"),
    [(3, 1, 1, 9), (3, 2, 1, 4), (3, 3, 1, 1), (2, 3, 1, 1), (3, 2, 2, 9), (5, 2, 1, 9), (3, 2, 3, 4)],
)
def test_the_factor_of_a_convolution_is_attained_by_some_pixel(kernel, stride, dilation, repeats):
    """ceil(k / s) along each axis: the entries of the patches of a single pixel, counted."""
    net = nn.Sequential(
        nn.Linear(24, 24, bias=False), nn.Conv2d(1, 1, kernel, stride=stride, dilation=dilation, bias=False)
    )
    net.append(nn.Flatten())
    X = normal(2, 1, 24, 24)
    (term,) = terms_of(net, X)
    assert term.factor == pytest.approx(math.sqrt(repeats), rel=1e-12)
    counted = 0.0
    for i in range(6, 18):
        pixel = torch.zeros(1, 1, 24, 24, dtype=torch.float64)
        pixel[0, 0, i, i] = 1.0
        patches = nn.functional.unfold(pixel, kernel, stride=stride, dilation=dilation)
        counted = max(counted, float(patches.square().sum()))
    assert counted == repeats


def test_factors_of_pools():
    X = normal(2, 1, 8, 8)
    first = nn.Conv2d(1, 1, 1, bias=False)
    factors = {
        1.0: nn.MaxPool2d(2),
        2.0: nn.MaxPool2d(3, 2),
        0.5: nn.AvgPool2d(2),
        1.0 + 1e-15: nn.Dropout(0.5).eval(),
    }
    for factor, pool in factors.items():
        (term,) = terms_of(flat(first, pool).eval(), X)
        assert term.factor == pytest.approx(factor, rel=1e-9)


def test_terms_of_branches():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.c = nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.c(torch.relu(self.a(x)) - self.b(x))

    X = normal(4, 3)
    found = {term.powers: term for term in terms_of(Branches(), X)}
    assert set(found) == {(1, 0, 1), (0, 1, 1)}
    assert torch.allclose(found[1, 0, 1].rows, X.norm(dim=1))


def test_a_frozen_layer_counts_with_its_norm():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    X = normal(4, 3)
    (term,) = output_terms(trace(net, X), {"0.weight": 0}, X)
    assert term.factor == pytest.approx(
        float(torch.linalg.matrix_norm(net[2].weight.detach(), ord=2)), rel=1e-9
    )
    (term,) = output_terms(
        trace(net, X), {"2.weight": 0}, X
    )  # what is below it is fixed: its values are known
    assert torch.allclose(term.rows, net[:2](X).norm(dim=1), rtol=1e-12)
    biased = nn.Sequential(nn.Linear(3, 2)).double()
    with pytest.raises(NoBound, match="both trained"):
        output_terms(trace(biased, X), {"0.weight": 0}, X)


def test_what_has_no_rule_is_named():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return self.a(x) * self.b(x)

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return self.a(x) + self.a(x).sum(0, keepdim=True)

    for net in (Product(), Mixing(), nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2))):
        with pytest.raises(NoBound, match="no rule bounds"):
            terms_of(net, normal(4, 3))


def test_linear_ends():
    nets = {
        True: nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)),
        False: nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU()),
    }
    for expected, net in nets.items():
        names = {name: i for i, (name, _) in enumerate(net.named_parameters())}
        assert ends_linearly(trace(net, torch.zeros(2, 3)), names) is expected
