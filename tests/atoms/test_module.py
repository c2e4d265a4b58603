"""Whole networks as subnetworks: what is refused, what the core makes of them, and brute force."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from theodolite.analysis.graph import trace
from theodolite.atoms import LinearNetAtom, ModuleAtom, ReLUAtom
from theodolite.core.params import count, join, select
from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, SquaredLoss
from theodolite.models import MLP, AlexNet
from theodolite.nn import ParallelSubnetworks
from theodolite.nn.regularizers import ProductOfNorms
from theodolite.testing import check_atom


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(7, 4)
chain = partial(MLP, bias=False)


class Residual(nn.Module):
    """Two branches of two weight layers each, then one more: degree 3."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(i, 3, bias=False) for i in (4, 3, 4, 3))
        self.e = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.e(torch.relu(self.b(torch.relu(self.a(x))) + self.d(self.c(x))))


class Shared(nn.Module):
    """One weight used twice: degree 3."""

    def __init__(self):
        super().__init__()
        self.a, self.e = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.e(torch.relu(self.a(torch.relu(self.a(x)))))


def test_a_convolutional_network_passes_the_public_check():
    def make():
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2, 2, 2, bias=False),
            nn.LeakyReLU(0.1),
            nn.AvgPool2d(2, 1),
            nn.Flatten(),
            nn.Linear(2, 3, bias=False),
        )

    atom = ModuleAtom(make, normal(4, 1, 6, 6), starts=3)
    assert (atom.degree, atom.shape) == (3, (4, 3))
    check_atom(atom, trials=1, searches=40)


def test_branches_and_shared_weights_are_for_a_power_of_the_norm():
    for make in (Residual, Shared):
        with pytest.raises(ValueError, match="regularizer='power' allows them"):
            ModuleAtom(make, X)
    atom = ModuleAtom(Residual, X, regularizer="power", starts=3)
    assert atom.degree == 3
    check_atom(atom, trials=1, searches=40)


def test_the_largest_product_of_norms_on_the_sphere():
    """Power: b = prod a^(a/2) |x| for a weight that occurs a times; reached where layers are aligned."""
    atom = ModuleAtom(Shared, X, regularizer="power")
    assert torch.allclose(atom.row_bounds(), 2.0 * X.norm(dim=1), rtol=1e-12)
    # |W|^2 = 3 at theta = 1; the weight used twice has |a|^2 = 2, the other |e|^2 = 1, all along one direction
    x = X[:1].abs()
    u = x / x.norm()
    params = (math.sqrt(2.0) * u.T @ u)[None], torch.cat([u, 0.0 * u])[None]
    one = ModuleAtom(Shared, x, regularizer="power")
    assert float(one.theta(params)) == pytest.approx(1.0)
    assert float(one.phi(params).norm()) == pytest.approx(float(one.row_bounds()[0]))


def test_two_layers_agree_with_the_family_made_for_them():
    """phi, theta and the polar of a width-1 network are those of ReLUAtom; its exact polar lies in the bracket."""
    atom, relu = ModuleAtom(chain((4, 1, 2)), X), ReLUAtom(X, 2)
    params = atom.init(3, seed=1)
    W, U = params[0][:, 0], params[1][:, :, 0]
    assert torch.allclose(atom.phi(params), relu.phi((W, U)))
    assert torch.allclose(atom.theta(params), relu.theta((W, U)))
    assert torch.allclose(atom.row_bounds(), relu.row_bounds())
    for seed in range(4):
        Q = normal(7, 2, seed=seed)
        ours, exact = atom.polar(Q), relu.polar(Q)
        assert ours.low <= exact.high * (1 + 1e-9)
        assert ours.high >= exact.low * (1 - 1e-9)
        assert ours.low >= 0.999 * exact.low


def test_a_deep_linear_chain_has_the_spectral_norm_as_its_polar():
    atom = ModuleAtom(nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(2))), X)
    exact = LinearNetAtom(X, 4, 2)
    Q = normal(7, 4, seed=3)
    truth = float(torch.linalg.matrix_norm(X.T @ Q, ord=2))
    value = atom.polar(Q)
    assert exact.polar(Q).high == pytest.approx(truth, rel=1e-6)
    assert value.low == pytest.approx(truth, rel=1e-5)
    assert value.high >= truth
    assert value.high <= float(torch.linalg.matrix_norm(X, 2) * torch.linalg.matrix_norm(Q, 2)) * (1 + 1e-9)


def test_the_upper_end_is_below_both_bounds_of_which_it_is_the_least():
    atom = ModuleAtom(chain((4, 5, 5, 2)), X)
    for seed in range(5):
        Q = normal(7, 2, seed=seed) * (normal(7, 1, seed=seed + 9) * 2).exp()
        upper = atom.polar(Q).high
        assert upper <= float((Q.norm(dim=1) * X.norm(dim=1)).sum()) * (1 + 1e-9)
        assert upper <= float(torch.linalg.matrix_norm(Q, 2) * torch.linalg.matrix_norm(X, 2)) * (1 + 1e-9)


def test_the_known_answer_of_matched_regularization():
    """x = y = 1, three layers: the minimum is lambda - lambda^2 / 2 at s = 1 - lambda, and it is certified."""
    one = torch.ones(1, 1, dtype=torch.float64)
    atom = ModuleAtom(chain((1, 1, 1, 1)), one)
    assert atom.polar(one).high == pytest.approx(1.0)
    for lam in (0.05, 0.2, 0.7):
        solution = Problem(SquaredLoss(one), atom, lam).solve(tol=1e-6)
        assert solution.certificate.objective == pytest.approx(lam - lam**2 / 2, rel=1e-6)
        assert float(atom.phi(solution.params)) == pytest.approx(1.0 - lam, rel=1e-5)
        assert solution.certificate.verdict == "closed"
    # along eps (1, 1, 1) the objective falls as 1/2 - (1 - lam) eps^3, and the zero model is no minimum
    problem, eps = Problem(SquaredLoss(one), atom, 0.2), 1e-3
    point = tuple(torch.full((1, 1, 1), eps, dtype=torch.float64) for _ in range(3))
    assert 0.5 - problem.objective(point) == pytest.approx(0.8 * eps**3, rel=1e-6)
    certificate = problem.certify(atom.init(0))
    assert certificate.verdict == "improvable"
    assert certificate.decrease == pytest.approx(0.5 - 0.18, rel=1e-6)


def test_the_zero_network_is_certified_from_the_upper_end_on():
    labels = torch.arange(12) % 3
    loss = CrossEntropyLoss(labels, 3)
    atom = ModuleAtom(chain((4, 3, 3, 3)), normal(12, 4), starts=4)
    top = Problem(loss, atom, 1.0).lambda_max()
    assert 0.0 < top.low < top.high
    zero = Problem(loss, atom, 1.001 * top.high).certify(atom.init(0))
    assert (zero.verdict, zero.gap) == ("closed", 0.0)
    grown = Problem(loss, atom, 0.5 * top.low).certify(atom.init(0))
    assert grown.verdict == "improvable"
    assert grown.dual_bound <= grown.objective - grown.decrease


def test_growth_adds_subnetworks_and_restarts_never_beat_the_bound():
    loss = SquaredLoss(torch.sin(3.0 * X[:, :2]))
    atom = ModuleAtom(chain((4, 3, 3, 2)), X, starts=4)
    problem = Problem(loss, atom, 0.2 * Problem(loss, atom, 1.0).lambda_max().low)
    solution = problem.solve(budget=20, max_rounds=4)
    objectives = [line.objective for line in solution.history]
    assert objectives[-1] < 0.8 * objectives[0]
    assert solution.history[1].units > 0
    assert solution.certificate.stationarity == pytest.approx(0.0, abs=1e-3)
    bound = solution.certificate.dual_bound
    for seed in range(4):
        start = atom.init(3, seed)
        end = atom.descend(problem, start, tol=1e-4, deadline=math.inf, progress=lambda _: None)
        assert problem.objective(end) >= bound


def test_modules_and_params_are_two_forms_of_one_thing():
    images = normal(5, 1, 8, 8)
    make = partial(AlexNet, 1, 8, 3, width=1)
    torch.manual_seed(0)
    net = ParallelSubnetworks(make, 3).double()
    atom = ModuleAtom(make, images)
    assert atom.degree == 8
    params = atom.stack(net)
    with torch.no_grad():
        assert torch.allclose(atom.phi(params), net(images), rtol=1e-9)
        assert torch.allclose(atom.theta(params), ProductOfNorms().each(net))
        for i, module in enumerate(atom.modules(params)):
            assert torch.allclose(module(images), net[i](images))
    assert count(atom.stack([])) == 0
    with pytest.raises(ValueError, match="modules: expected parameters of shapes"):
        atom.stack([MLP((4, 3))])


def test_a_frozen_feature_map_is_a_constant():
    net = chain((4, 3, 3, 2))
    net.layers[0].requires_grad_(False)
    atom = ModuleAtom(net, X)
    assert atom.degree == 2
    hidden = torch.relu(net.layers[0](X.float())).detach().double()
    assert torch.allclose(atom.row_bounds(), hidden.norm(dim=1), rtol=1e-5)


def test_module_and_data_are_left_alone():
    net = chain((4, 3, 2)).train()
    before = {name: p.clone() for name, p in net.named_parameters()}
    state = torch.random.get_rng_state()
    atom = ModuleAtom(net, X.float())
    atom.polar(normal(7, 2))
    made = ModuleAtom(lambda: chain((4, 3, 2)), X)
    assert torch.equal(torch.random.get_rng_state(), state) or made is None
    assert net.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    assert atom.X.dtype == torch.float64


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (MLP((4, 3, 2)), r"layer 'layers.2' \(Linear\) adds a bias of degree 1 to a term of degree 2"),
        (
            nn.Sequential(nn.Linear(4, 3, bias=False), nn.Sigmoid(), nn.Linear(3, 2, bias=False)),
            r"'1' \(Sigmoid\)",
        ),
        (
            nn.Sequential(nn.Linear(4, 3, bias=False), nn.LayerNorm(3), nn.Linear(3, 2, bias=False)),
            "LayerNorm",
        ),
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.Softmax(1)), r"\(Softmax\)"),
        (nn.Identity(), "expected parameters"),
        (nn.Sequential(nn.Linear(4, 2, bias=False), nn.Unflatten(1, (2, 1))), r"shape \(n, k\)"),
    ],
)
def test_what_cannot_be_certified_is_refused_with_the_layer_and_why(net, words):
    with pytest.raises(ValueError, match=words):
        ModuleAtom(net, X)


def test_bad_arguments():
    net = chain((4, 3, 2))
    for options in ({"regularizer": "l1"}, {"starts": -1}, {"starts": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ModuleAtom(net, X, **options)
    for wrong in (X[0], X[:0], X * math.nan, X.to(torch.complex128)):
        with pytest.raises(ValueError, match="X: expected"):
            ModuleAtom(net, wrong)
    with pytest.raises(TypeError, match=r"module: expected an nn\.Module"):
        ModuleAtom(lambda: 3, X)
    with pytest.raises(ValueError, match="X: expected real inputs"):
        ModuleAtom(net, X).phi(ModuleAtom(net, X).init(1), X[:, :3])


@pytest.mark.parametrize("make", [partial(chain, (4, 3, 3, 2)), Residual])
def test_without_a_search_the_upper_end_is_the_same(make):
    searching, proving = (ModuleAtom(make, X, regularizer="power", starts=starts) for starts in (2, 0))
    for seed in range(3):
        both, upper = (atom.polar(normal(7, 2, seed=seed), seed=seed) for atom in (searching, proving))
        assert both.low > 0.0
        assert (upper.low, upper.high, upper.witness) == (0.0, both.high, None)
        assert (upper.note, upper.confidence) == (both.note, both.confidence)
    loss, params = SquaredLoss(normal(7, 2, seed=5)), searching.init(2, seed=6)
    one, two = (Problem(loss, atom, 3.0).certify(params) for atom in (searching, proving))
    assert one.dual_bound == two.dual_bound


def test_a_graph_of_the_same_module_with_other_weights_will_do():
    torch.manual_seed(1)
    net, other = Residual().double(), Residual().double()
    traced, given = (ModuleAtom(net, X, regularizer="power", graph=g) for g in (None, trace(other, X)))
    assert (traced.degree, traced.depth, traced.shape) == (given.degree, given.depth, given.shape)
    assert torch.equal(traced.row_bounds(), given.row_bounds())
    Q = normal(7, 2)
    assert traced.polar(Q).high == given.polar(Q).high


def test_one_sample_and_zero_rows():
    for data in (X[:1], torch.cat([X[:2], torch.zeros(1, 4, dtype=torch.float64)])):
        atom = ModuleAtom(chain((4, 3, 2)), data, starts=3)
        value = atom.polar(normal(len(data), 2))
        assert 0.0 < value.low <= value.high
    assert float(atom.row_bounds()[-1]) == 0.0


def test_an_untraceable_loop_over_subnetworks_gives_the_same_as_one_call():
    atom = ModuleAtom(chain((4, 3, 2)), X)
    params = join(atom.init(3), select(atom.init(2, seed=5), slice(0, 1)))
    together = atom.each(params)
    atom._vectorized = False
    assert torch.allclose(atom.each(params), together)
