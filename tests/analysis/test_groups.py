"""Actions of groups: their laws, what models make of them, and the exact average over them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from theodolite.analysis import groups
from theodolite.analysis.grid_sampling import cubic_slope, fourier_shift, fourier_slope
from theodolite.analysis.group_elements import GridMove, Permutation, Shift
from theodolite.analysis.warping import warp

F64 = torch.float64


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def floor(g, x):
    return groups.equivariance_defect(nn.Identity(), x, groups.Group("one", (g,), False), "same").floors


def moves(d):
    return st.builds(
        GridMove,
        st.permutations(range(d)).map(tuple),
        st.tuples(*[st.booleans()] * d),
        st.tuples(*[st.integers(-7, 7)] * d),
    )


@pytest.mark.parametrize("d", [1, 2, 3])
def test_grid_moves_obey_the_laws_of_a_group(d):
    x = noise(2, 3, *[5] * d)

    @given(moves(d), moves(d))
    @settings(max_examples=60, deadline=None)
    def check(g, h):
        assert torch.equal((g @ h)(x), g(h(x)))
        assert torch.equal(g.inverse()(g(x)), x)
        assert torch.equal(g(g.inverse()(x)), x)
        assert g.determinant * h.determinant == (g @ h).determinant
        assert (g.name == "identity") == torch.equal(g(x), x) or any(s % 5 == 0 for s in g.shift if s)

    check()


@pytest.mark.parametrize(
    ("sizes", "all_of_them", "turns"),
    [
        ((7,), 2, 1),
        ((6, 6), 8, 4),
        ((5, 8), 4, 2),
        ((4, 4, 4), 48, 24),
        ((4, 4, 3), 16, 8),
        ((2, 3, 4), 8, 4),
    ],
)
def test_symmetries_of_the_grid_are_a_whole_group(sizes, all_of_them, turns):
    whole, proper = groups.grid_symmetries(sizes), groups.grid_symmetries(sizes, rotations_only=True)
    assert (len(whole), len(proper)) == (all_of_them, turns)
    x = torch.arange(math.prod(sizes), dtype=F64).view(1, *sizes)
    for group in (whole, proper):
        orbit = {tuple(g(x).flatten().tolist()) for g in group.elements}
        assert len(orbit) == len(group), "different elements act differently"
        for g, h in itertools.product(group.elements, repeat=2):
            assert g @ h in group.elements
        assert all(g.inverse() in group.elements for g in group.elements)
    assert len({g.name for g in whole.elements}) == len(whole)


def test_rotations_are_torchs():
    x = noise(2, 1, 6, 6)
    named = {g.name: g for g in groups.grid_symmetries((6, 6)).elements}
    for k in (1, 2, 3):
        assert torch.equal(named[f"rotation by {90 * k} degrees"](x), torch.rot90(x, k, (2, 3)))
    assert torch.equal(named["transposition"](x), x.mT)
    assert torch.equal(named["flip of axis 1"](x), x.flip(3))
    assert torch.equal(GridMove((0, 1), (False, False), (2, -1))(x), x.roll((2, -1), (2, 3)))


def test_cyclic_shifts_are_a_whole_group():
    group = groups.cyclic_shifts((4, 6), step=2)
    assert len(group) == 6
    x = noise(1, 1, 4, 6)
    orbit = [g(x) for g in group.elements]
    for g, h in itertools.product(group.elements, repeat=2):
        assert any(torch.equal((g @ h)(x), other) for other in orbit)
    with pytest.raises(ValueError, match=r"step: expected a divisor of the sizes \(4, 6\), got 4"):
        groups.cyclic_shifts((4, 6), step=4)


def test_permutations_of_points_channels_and_nodes():
    whole = groups.permutations(4)
    assert (len(whole), whole.whole) == (24, True)
    x, adjacency = noise(2, 4, 3), noise(2, 4, 4, seed=1)
    for g, h in itertools.product(whole.elements[::5], whole.elements):
        assert torch.equal((g @ h)(x), g(h(x)))
        for one, two in zip((g @ h)((adjacency, x)), g(h((adjacency, x))), strict=True):
            assert torch.equal(one, two)
        assert g @ g.inverse() == whole.elements[0]
    g = whole.elements[7]
    matrix = torch.eye(4, dtype=F64)[list(g.order)]
    turned = g((adjacency, x))
    torch.testing.assert_close(turned[0], matrix @ adjacency @ matrix.T)
    torch.testing.assert_close(turned[1], matrix @ x)
    drawn = groups.permutations(9, most=5, seed=3)
    assert (len(drawn), drawn.whole) == (5, False)
    assert drawn == groups.permutations(9, most=5, seed=3)
    assert Permutation(tuple(range(9))).name == "identity"


def test_fourier_shifts_form_a_group_and_are_unitary_for_odd_sizes():
    x = noise(2, 3, 5, 9)
    g, h = Shift((0.3, 2.25)), Shift((-1.7, 0.5))
    torch.testing.assert_close((g @ h)(x), g(h(x)))
    torch.testing.assert_close(g(x).norm(), x.norm())
    assert float(floor(g, x).max()) < 1e-14
    torch.testing.assert_close(Shift((2.0, -1.0))(x), x.roll((2, -1), (2, 3)))
    even = noise(2, 1, 8)
    torch.testing.assert_close(Shift((3.0,))(even), even.roll(3, 2))
    assert float(floor(Shift((0.5,)), even).min()) > 0.01, "the Nyquist term is lost"
    u = torch.arange(12, dtype=F64)
    wave = torch.cos(2 * math.pi * 3 / 12 * u + 0.4)[None, None]
    shifted = torch.cos(2 * math.pi * 3 / 12 * (u - 0.3) + 0.4)[None, None]
    torch.testing.assert_close(fourier_shift(wave, (0.3,), (2,)), shifted)


def test_warps_follow_their_matrices():
    # smooth, and small at the border, so that interpolation and the border matter little
    q = torch.arange(33, dtype=F64) - 16.0
    blob = torch.exp(-((q[:, None] - 3.0) ** 2 + (q[None] + 2.0) ** 2) / 18.0)[None, None]
    quarter = groups.rotations([90.0]).elements[0]
    named = {g.name: g for g in groups.grid_symmetries((33, 33)).elements}
    torch.testing.assert_close(quarter(blob), named["rotation by 90 degrees"](blob), atol=1e-12, rtol=0)
    turned = groups.rotations([30.0]).elements[0]
    assert turned.name == "rotation by 30 degrees"
    assert (turned @ turned @ turned).name == "rotation by 90 degrees"
    assert float(floor(turned, blob)) < 5e-3
    assert float(floor(turned, noise(1, 1, 33, 33))) > 0.1
    (grown,) = groups.scalings([1.2]).elements
    expected = torch.exp(-((q[:, None] / 1.2 - 3.0) ** 2 + (q[None] / 1.2 + 2.0) ** 2) / 18.0)[None, None]
    torch.testing.assert_close(grown(blob), expected, atol=2e-3, rtol=0)
    (sheared,) = groups.shears([0.3]).elements
    expected = torch.exp(-((q[:, None] - 0.3 * q[None] - 3.0) ** 2 + (q[None] + 2.0) ** 2) / 18.0)[None, None]
    torch.testing.assert_close(sheared(blob), expected, atol=2e-3, rtol=0)
    (still,) = groups.rotations([0.0], d=3, plane=(0, 2)).elements
    volume = noise(1, 2, 3, 4, 5)
    torch.testing.assert_close(still(volume), volume)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_slopes_are_the_derivatives_of_the_interpolants(n, dtype):
    x, h = noise(3, n, seed=n, dtype=F64), 1e-5
    ends = [fourier_shift(x, (-s,), (1,)) for s in (h, -h)]
    slope = fourier_slope(x.to(dtype), 1)
    assert slope.dtype == dtype
    torch.testing.assert_close(slope.double(), (ends[0] - ends[1]) / (2 * h), atol=1e-4, rtol=1e-4)
    ends = [
        warp(x, torch.full((1, n), -s, dtype=F64), 1, interpolation="cubic", boundary="reflect")
        for s in (h, -h)
    ]
    slope = cubic_slope(x.to(dtype), 1)
    torch.testing.assert_close(slope.double(), (ends[0] - ends[1]) / (2 * h), atol=1e-4, rtol=1e-4)


def conv_net(mode="circular", seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)]
    return nn.Sequential(*layers).double()


def head_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def test_defects_against_the_definition():
    model, x = head_net(), noise(5, 2, 6, 6)
    group = groups.grid_symmetries((6, 6))
    found = groups.equivariance_defect(model, x, group)
    base = model(x)
    for row, g in zip(found.defects, group.elements, strict=True):
        truth = (model(g(x)) - base).norm(dim=1) / base.norm(dim=1)
        torch.testing.assert_close(row, truth.detach())
    assert not found.floors.any()
    value = found.estimate()
    assert value.kind == "estimate"
    assert value.lower < value.value < value.upper
    assert value.value == pytest.approx(float(found.defects.mean()))
    assert "5 inputs, at 8 elements" in value.note
    assert found.estimate(over="elements").value == pytest.approx(value.value)


def test_equivariance_of_images_in_images_out():
    model, x = conv_net(), noise(3, 2, 6, 6)
    model[2].padding_mode = "circular"
    model[2]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    shifts = groups.equivariance_defect(model, x, groups.cyclic_shifts((6, 6), 2), "same")
    assert float(shifts.defects.max()) < 1e-14
    torch.testing.assert_close(shifts.moved, shifts.outputs.expand_as(shifts.moved).detach())
    value = shifts.estimate()
    assert (value.kind, "no more than rounding" in value.note) == ("exact", True)
    broken = groups.equivariance_defect(conv_net("zeros"), x, groups.cyclic_shifts((6, 6), 2), "same")
    assert broken.estimate().lower > 0.01
    g = groups.grid_symmetries((6, 6)).elements[5]
    found = groups.equivariance_defect(model, x, groups.Group("one", (g,), False), "same")
    truth = (model(g(x)) - g(model(x))).flatten(1).norm(dim=1) / model(x).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.defects[0], truth.detach())


def test_interpolated_actions_show_their_floor():
    x = noise(4, 2, 9, 9)
    found = groups.equivariance_defect(conv_net(), x, groups.rotations([10.0, 45.0]), "same")
    assert found.floors.shape == found.defects.shape == (2, 4)
    assert float(found.floors.min()) > 0.05
    fractional = groups.equivariance_defect(nn.Identity(), x, groups.shifts([(0.5, 0.0), (0.3, 0.7)]), "same")
    assert float(fractional.defects.max()) == 0.0
    assert float(fractional.floors.max()) < 1e-14


class GraphNet(nn.Module):
    """Adjacency times features times weights, twice; summed over nodes where asked."""

    def __init__(self, total):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        self.total = total

    def forward(self, adjacency, features):
        out = adjacency @ self.b(torch.tanh(adjacency @ self.a(features)))
        return out.sum(1) if self.total else out


def test_graph_networks_commute_with_relabelling():
    graph = (noise(2, 6, 6), noise(2, 6, 3, seed=1))
    some = groups.permutations(6, most=8)
    assert float(groups.equivariance_defect(GraphNet(False), graph, some, "same").defects.max()) < 1e-14
    assert float(groups.equivariance_defect(GraphNet(True), graph, some).defects.max()) < 1e-14
    assert float(groups.equivariance_defect(GraphNet(False), graph, some).defects.max()) > 0.1
    small = (graph[0][:, :3, :3], graph[1][:, :3])
    whole = groups.permutations(3)
    average = groups.group_average(GraphNet(False), whole, "same")
    torch.testing.assert_close(average(*small), GraphNet(False)(*small))


@pytest.mark.parametrize("out_action", [None, "same"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_average_is_an_orthogonal_projection(out_action, seed):
    group = groups.grid_symmetries((6, 6))
    make = head_net if out_action is None else lambda s: conv_net("zeros", s)
    f, other, x = make(seed), make(seed + 10), noise(4, 2, 6, 6, seed=seed)
    average = groups.group_average(f, group, out_action)
    assert float(groups.equivariance_defect(average, x, group, out_action).defects.max()) < 1e-13
    again = groups.group_average(average, group, out_action)
    torch.testing.assert_close(again(x), average(x), rtol=1e-12, atol=1e-13)
    # on the union of orbits: Pythagoras with every function that commutes with the group
    orbit = torch.cat([g(x) for g in group.elements])
    commuting = groups.group_average(other, group, out_action)
    with torch.no_grad():
        rest, at = f(orbit) - average(orbit), commuting(orbit)
        assert abs(float((rest * at).sum())) < 1e-11 * float(rest.norm() * at.norm())
        near, far = float(rest.square().sum()), float((f(orbit) - at).square().sum())
        assert far == pytest.approx(near + float((average(orbit) - at).square().sum()))
        assert far > near


def test_models_that_commute_are_their_own_average():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model, x = model.double(), noise(6, 2, 9)
    group = groups.grid_symmetries((9,))
    average = groups.group_average(model, group)
    torch.testing.assert_close(average(x), model(x), rtol=1e-13, atol=1e-14)
    assert torch.equal(average(x).argmax(1), model(x).argmax(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    average(x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    average(x).sum().backward()
    assert model[0].weight.grad is not None


def test_what_does_not_fit_is_refused():
    x = noise(3, 2, 6, 6)
    with pytest.raises(ValueError, match="out_action: expected 'same' or None, got 'rotate'"):
        groups.equivariance_defect(head_net(), x, groups.flips(2), "rotate")
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        groups.equivariance_defect(head_net(), x * math.nan, groups.flips(2))
    with pytest.raises(ValueError, match=r"transposition does not act on x of shape \(3, 2, 5, 6\)"):
        groups.equivariance_defect(nn.Flatten(), x[:, :, :5], groups.grid_symmetries((6, 6)))
    with pytest.raises(ValueError, match="does not act on the model's output"):
        groups.equivariance_defect(head_net(), x, groups.flips(2), "same")
    with pytest.raises(ValueError, match="expected a whole group that moves entries exactly, got only some"):
        groups.group_average(head_net(), groups.permutations(9))
    with pytest.raises(ValueError, match="got interpolated actions"):
        groups.group_average(head_net(), groups.rotations([90.0]))
    with pytest.raises(ValueError, match="elements: expected at least one"):
        groups.rotations([])
    with pytest.raises(ValueError, match="factors: expected numbers > 0"):
        groups.scalings([0.0])


def test_the_interval_covers_the_mean_at_its_nominal_rate():
    from theodolite.testing import check_coverage

    model = head_net().float()
    group = groups.flips(2)
    everything = groups.equivariance_defect(model, noise(20000, 2, 6, 6, dtype=torch.float32), group)
    population = everything.defects.mean(0)

    def draw(seed):
        rows = torch.randint(0, 20000, (30,), generator=torch.Generator().manual_seed(seed))
        chosen = groups.Defect(
            group,
            everything.defects[:, rows],
            everything.floors[:, rows],
            everything.outputs,
            everything.moved,
        )
        return chosen.estimate()

    check_coverage(draw, float(population.mean()))
