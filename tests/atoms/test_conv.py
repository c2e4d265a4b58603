"""Pooled convolutions: against torch's own layers, brute force, and known answers on digits."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from theodolite.atoms import conv, conv_descent, conv_patches
from theodolite.atoms.conv import ConvReLUAtom
from theodolite.core.params import count
from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, LogisticLoss, MaskedSquaredLoss, SquaredLoss
from theodolite.losses.rounding import ray_bound
from theodolite.testing import check_atom
from theodolite.value import relative_gap


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def digits(n: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Images, pixels / 16, labels and centered one-hot targets."""
    data = load_digits()
    images = torch.tensor(data.images[:n])[:, None] / 16.0
    labels = torch.tensor(data.target[:n])
    targets = nn.functional.one_hot(labels, 10).double()
    return images, labels, targets - targets.mean(0)


def layers(atom: ConvReLUAtom, params: tuple[Tensor, Tensor], **pooling) -> nn.Sequential:
    """The same network of torch's layers."""
    W, U = params
    g, r = atom.geometry, count(params)
    net = nn.Sequential(
        nn.Conv2d(g.image[0], r, g.kernel, g.stride, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(g.pool, **pooling),
        nn.Flatten(),
        nn.Linear(r * g.cells, atom.n_outputs, bias=False),
    ).double()
    with torch.no_grad():
        net[0].weight.copy_(atom.filters(W))
        net[4].weight.copy_(U.reshape(r * g.cells, -1).T)
    return net


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 1, 8, 8), {"kernel_size": 2}),  # 6 x 6 of the 7 x 7 positions are pooled
        ((4, 3, 7, 9), {"kernel_size": (3, 2), "stride": (1, 2), "pool": (2, 1)}),
        ((4, 2, 6, 6), {"kernel_size": 3, "basis": "pca", "n_components": 4}),
        ((4, 1, 5, 6), {"kernel_size": (2, 3), "pool": (4, 4)}),
    ],
)
def test_it_is_the_network_that_it_says(shape, options):
    images = normal(*shape)
    atom = ConvReLUAtom(images, 3, **options)
    params = atom.init(4, seed=1)
    torch.testing.assert_close(layers(atom, params)(images), atom.phi(params), rtol=1e-12, atol=1e-12)
    others = normal(2, *shape[1:], seed=2)
    torch.testing.assert_close(layers(atom, params)(others), atom.phi(params, others), rtol=1e-12, atol=1e-12)


def test_cells_may_overlap():
    images = normal(4, 1, 6, 7)
    atom = ConvReLUAtom(images, 2, 2, pool=3, pool_stride=(1, 2))
    params = atom.init(3)
    assert atom.geometry.grid == (3, 2)
    net = layers(atom, params, stride=(1, 2))
    torch.testing.assert_close(net(images), atom.phi(params), rtol=1e-12, atol=1e-12)


def test_images_are_taken_in_blocks(monkeypatch):
    images = normal(7, 1, 5, 5)
    whole = ConvReLUAtom(images, 2, 2, basis="dct", n_components=3)
    params, Q = whole.init(3), normal(7, 2, seed=1)
    expected = whole.phi(params), whole.row_bounds(), whole.polar(Q, seed=3)
    monkeypatch.setattr(conv_patches, "_CHUNK", 100)
    monkeypatch.setattr(conv, "_HELD", 0)
    blocks = ConvReLUAtom(images, 2, 2, basis="dct", n_components=3)
    assert blocks._patches is None
    assert len(blocks._hidden(params[0], None)) > 1
    torch.testing.assert_close(blocks.phi(params), expected[0])
    torch.testing.assert_close(blocks.row_bounds(), expected[1])
    value = blocks.polar(Q, seed=3)
    assert (value.low, value.high) == pytest.approx((expected[2].low, expected[2].high), rel=1e-9)


def circle(m: int = 40_000) -> Tensor:
    angle = torch.arange(m, dtype=torch.float64) * (2 * math.pi / m)
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize(
    "options", [{"pool": (2, 1)}, {"pool": 1}, {"pool": 2, "pool_stride": 1}, {"pool": 3}], ids=str
)
def test_the_polar_against_brute_force(options):
    atom = ConvReLUAtom(torch.round(2.0 * normal(4, 1, 3, 4)), 2, (1, 2), **options)

    rows = atom.geometry.patches(atom.images).flatten(0, 2)
    kinks = rows[rows.any(1)].flip(1) * torch.tensor([1.0, -1.0])
    W = torch.nn.functional.normalize(torch.cat([circle(), kinks, -kinks]))

    def reference(Q: Tensor) -> float:
        hidden = atom.hidden(W)
        return float(torch.einsum("nrc,nk->rck", hidden, Q).flatten(1).norm(dim=1).max())

    check_atom(atom, trials=1, searches=100, reference=reference)


@pytest.mark.parametrize("factor", [1e-200, 1e-30, 1e30, 1e150])
def test_sizes_of_images_and_dual_points_do_not_matter(factor):
    images, Q = normal(4, 1, 4, 4), normal(4, 2, seed=1)
    value = ConvReLUAtom(images, 2, 2).polar(Q)
    for scaled in (
        ConvReLUAtom(factor * images, 2, 2).polar(Q / factor),
        ConvReLUAtom(images / factor, 2, 2).polar(factor * Q),
    ):
        assert scaled.low == pytest.approx(value.low, rel=1e-6)
        assert scaled.high == pytest.approx(value.high, rel=1e-2)


def test_a_persistent_polar_is_tight_even_where_the_target_is_refuted():
    atom, Q = ConvReLUAtom(normal(4, 1, 3, 4), 2, (1, 2)), normal(4, 2, seed=1)
    low = atom.polar(Q).low
    loose = atom.polar(Q, target=0.5 * low)
    atom.persistent = True
    tight = atom.polar(Q, target=0.5 * low)
    assert loose.low == pytest.approx(low, rel=1e-6)
    assert tight.high <= 1.001 * tight.low < loose.high


def test_filters_of_many_dimensions_have_relaxations():
    atom, Q = ConvReLUAtom(normal(6, 2, 4, 4), 2, 3, pool=1), normal(6, 2, seed=1)
    assert atom.width == 18
    value, crude = atom.polar(Q, budget=2.0), atom.polar(Q, budget=0.0)
    assert 0.0 < value.low <= value.high <= crude.high
    narrow = ConvReLUAtom(atom.images, 2, 3, pool=1, basis="pca", n_components=1)
    value = narrow.polar(Q)
    assert value.high == pytest.approx(value.low, rel=1e-9)


def test_units_of_one_filter_are_joined():
    atom = ConvReLUAtom(normal(4, 1, 4, 4), 2, 2)
    W, U = atom.init(3)
    twice = torch.cat([W, 2.0 * W[:2]]), torch.cat([U, normal(2, U.shape[1], seed=1)])
    merged = atom.merge(twice)
    assert count(merged) == 3
    torch.testing.assert_close(atom.phi(merged), atom.phi(twice))
    assert float(atom.theta(merged).sum()) <= float(atom.theta(twice).sum())


def test_a_small_problem_is_solved_and_certified():
    images, _, targets = digits(60)
    atom = ConvReLUAtom(images, 10, (1, 2), pool=(4, 7))
    loss = SquaredLoss(targets, scale=1 / 60)
    problem = Problem(loss, atom, 0.1 * Problem(loss, atom, 1.0).lambda_max().low)
    solution = problem.solve(tol=1e-3)
    c = solution.certificate
    assert abs(c.stationarity) <= 1e-9
    assert c.polar_ratio[0] <= 1.0 + 1e-3
    hidden = atom.hidden(circle(4000))
    R = -loss.gradient(problem.predictions(solution.params))
    everywhere = torch.einsum("nrc,nk->rck", hidden, R).flatten(1).norm(dim=1)
    assert float(everywhere.max()) <= problem.lam * (1.0 + 1e-3)


@pytest.fixture(scope="module")
def settled():
    """The known case on digits, descended upon to a small gap."""
    images, labels, targets = digits()
    atom = ConvReLUAtom(images, 10, kernel_size=2, stride=1, pool=2)
    loss = SquaredLoss(targets, scale=1 / len(labels))
    problem = Problem(loss, atom, 0.1 * 9 * 0.0256119)
    params = atom.descend(problem, atom.init(0), tol=1e-4, deadline=math.inf, progress=lambda _: None)
    return problem, params, labels


def test_known_answers_on_digits(settled):
    problem, params, labels = settled
    # stated for sums over cells divided by 36, not by 4
    R0 = -problem.loss.gradient(problem.loss.zeros())
    assert problem.atom.polar(R0, budget=2.0).low == pytest.approx(9 * 0.0256119, rel=1e-5)
    assert problem.objective(params) == pytest.approx(0.29222, abs=1e-3)
    assert problem.objective(params) <= 0.292224
    Z, theta = problem.predictions(params), float(problem.atom.theta(params).sum())
    assert problem.lam * theta == pytest.approx(0.06926, abs=2e-4)
    assert float((Z.argmax(1) == labels).double().mean()) >= 0.90
    R = -problem.loss.gradient(Z)
    assert float((R * Z).sum()) == pytest.approx(problem.lam * theta, rel=1e-9)
    for ratio, gap in [(1.02, 0.0062), (1.05, 0.0143), (1.2, 0.062), (1.5, 0.165)]:
        dual = ray_bound(problem.loss, Z, R, problem.lam, ratio * problem.lam, 0.0)
        # the repaired primal lacks the floor of 0.13 % of the run that these figures come from
        assert gap - 0.003 < relative_gap(problem.objective(params), dual) < gap + 0.001, ratio


def test_nothing_found_on_digits_exceeds_lambda(settled):
    problem, params, _ = settled
    R = -problem.loss.gradient(problem.predictions(params))
    rows = problem.atom.rows
    V = rows.weights(R)
    unit = torch.nn.functional.normalize(params[0])
    _, values = conv_descent.search(rows.X, V, rows.cells, unit, n_random=512, seed=7)
    assert float(values.max()) * 2.0**rows.exponent <= problem.lam * (1.0 + 5e-4)


def test_other_losses_are_descended_upon():
    images, labels, _ = digits(200)
    atom = ConvReLUAtom(images, 10, 2)
    two = ConvReLUAtom(images, 1, 2)
    y = torch.where(labels > 4, 1.0, -1.0)[:, None]
    for loss, family in (
        (CrossEntropyLoss(labels, 10, scale=1 / 200), atom),
        (LogisticLoss(y, scale=1 / 200), two),
    ):
        top = family.polar(-loss.gradient(loss.zeros()), budget=1.0).low
        problem = Problem(loss, family, 0.1 * top)
        params = family.descend(problem, family.init(0), tol=1e-4, deadline=math.inf, progress=lambda _: None)
        R, Z = -loss.gradient(problem.predictions(params)), problem.predictions(params)
        theta = float(family.theta(params).sum())
        assert float((R * Z).sum()) == pytest.approx(problem.lam * theta, rel=2e-3)
        assert family.polar(R, budget=1.0).low <= problem.lam * (1.0 + 2e-3)
        assert problem.objective(params) < 0.8 * loss.value(loss.zeros())


def test_limits():
    one = ConvReLUAtom(normal(1, 1, 3, 3), 2, 2)
    assert one.polar(normal(1, 2)).low > 0.0
    empty = ConvReLUAtom(torch.zeros(3, 1, 3, 3), 2, 2)
    value = empty.polar(normal(3, 2))
    assert value.low == 0.0
    assert value.high <= 1e-300
    problem = Problem(SquaredLoss(normal(3, 2)), empty, 1.0)
    assert problem.solve(tol=1e-3).certificate.gap == 0.0
    # labels of one class: nothing to explain
    images = normal(3, 1, 3, 3)
    problem = Problem(SquaredLoss(torch.zeros(3, 2, dtype=torch.float64)), ConvReLUAtom(images, 2, 2), 1.0)
    assert problem.certify(problem.atom.init(0)).gap == 0.0
    # lambda above its maximum: the zero network, proved even without a budget
    loss = SquaredLoss(normal(3, 2))
    atom = ConvReLUAtom(images, 2, 2)
    top = atom.polar(-loss.gradient(loss.zeros()), budget=0.0).high
    found = Problem(loss, atom, 1.001 * top).solve(tol=1e-3, budget=0.0)
    assert (found.certificate.gap, count(found.params)) == (0.0, 0)
    top = Problem(loss, atom, 1.0).lambda_max().high
    found = Problem(loss, atom, 1.001 * top).solve(tol=1e-3)
    assert (found.certificate.gap, count(found.params)) == (0.0, 0)


def test_other_ways_of_descent(monkeypatch):
    images, _, targets = digits(30)
    atom = ConvReLUAtom(images, 10, 2)
    rows, cols = (x.flatten() for x in torch.meshgrid(torch.arange(30), torch.arange(10), indexing="ij"))
    kept = (rows + cols) % 2 == 0
    masked = MaskedSquaredLoss(rows[kept], cols[kept], targets.flatten()[kept], (30, 10))
    for loss in (masked, SquaredLoss(targets)):
        problem = Problem(loss, atom, 0.5)
        start = atom.init(2)
        found = atom.descend(problem, start, tol=1e-3, deadline=math.inf, progress=lambda _: None)
        assert problem.objective(found) < problem.objective(start)
        monkeypatch.setattr(conv, "MOST", 10)  # convex steps would be too large


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((torch.zeros(2, 3), 2, 2), {}, "images: expected a nonempty real array"),
        ((torch.full((2, 3, 3), math.nan), 2, 2), {}, "images: expected finite"),
        ((torch.zeros(2, 3, 3), 0, 2), {}, "n_outputs"),
        ((torch.zeros(2, 3, 3), 2, 0), {}, "kernel_size"),
        ((torch.zeros(2, 3, 3), 2, (2, 2, 2)), {}, "kernel_size"),
        ((torch.zeros(2, 3, 3), 2, 2), {"stride": 1.5}, "stride"),
        ((torch.zeros(2, 3, 3), 2, 4), {}, "at least one pooling cell"),
        ((torch.zeros(2, 3, 3), 2, 2), {"pool": 3}, "at least one pooling cell"),
        ((torch.zeros(2, 3, 3), 2, 2), {"basis": "fourier"}, "basis: expected None"),
        (
            (torch.zeros(2, 3, 3), 2, 2),
            {"basis": "dct", "n_components": 5},
            "n_components: expected at most 4",
        ),
        ((torch.zeros(2, 3, 3), 2, 2), {"basis": "dct", "n_components": 0}, "n_components"),
        ((torch.zeros(2, 3, 3), 2, 2), {"basis": torch.ones(4, 2)}, "orthonormal"),
        ((torch.zeros(2, 3, 3), 2, 2), {"basis": torch.eye(3)}, "basis: expected a finite matrix"),
    ],
)
def test_bad_input_is_refused(arguments, options, match):
    with pytest.raises(ValueError, match=match):
        ConvReLUAtom(*arguments, **options)


def test_other_images_are_to_have_the_same_shape():
    atom = ConvReLUAtom(normal(2, 1, 3, 3), 2, 2)
    with pytest.raises(ValueError, match="images: expected shape"):
        atom.phi(atom.init(1), normal(2, 1, 3, 4))
