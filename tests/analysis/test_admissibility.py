"""The condition at each layer, what it proves, and where it says nothing."""

from __future__ import annotations

import math

import builders
import pytest
import random_nets
import torch
from torch import nn

from theodolite.analysis.admissibility import admissibility
from theodolite.analysis.feature_stability import deformation_sensitivity, vertical_invariance
from theodolite.analysis.translation_action import translation_action
from theodolite.value import Value


def circular(channels, outputs, *, stride=1):
    return nn.Conv2d(channels, outputs, 3, stride, 1, padding_mode="circular")


def rows_of(model, shape):
    return {
        row.name: row for row in admissibility(model.double().eval(), torch.zeros(2, *shape).double()).rows
    }


def features_of(model, x):
    """What the last linear layer reads."""
    with torch.no_grad():
        return model[:-1](x)


def test_a_chain_by_hand():
    model = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.Sigmoid(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)
    )
    model[0].weight.data = torch.diag(torch.tensor([3.0, 1.0]))
    model[2].weight.data = torch.diag(torch.tensor([0.5, 0.25]))
    found = admissibility(model.double().eval(), torch.zeros(2, 2).double())
    first, second, head = found.rows
    assert first.nonlinearity == 0.25
    assert first.gain == pytest.approx(3.0), "the filters alone offend, whatever the sigmoid"
    assert (first.admissible, second.admissible, head.head) == (False, True, True)
    assert first.scaling == pytest.approx(1.0 / 3.0)
    assert second.scaling == 1.0
    assert (first.free, second.free) == (False, True), "a sigmoid does not scale along"
    assert found.offending == [first]
    assert found.constant.upper == pytest.approx(3.0 * 0.25 * 0.5)
    assert "a contraction" in found.constant.note


def test_pooling_and_strides():
    model = nn.Sequential(
        circular(1, 4), nn.ReLU(), nn.MaxPool2d(3, 2, 1), circular(4, 4, stride=2), nn.LeakyReLU(-2.0),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 4, 3),
    )  # fmt: skip
    rows = rows_of(model, (1, 16, 16))
    assert rows["0"].pooling == pytest.approx(2.0), "an entry lies in at most 2 x 2 windows"
    assert rows["0"].stride == (2, 2)
    assert rows["3"].nonlinearity == 2.0
    assert rows["3"].pooling == pytest.approx(0.5)
    assert rows["3"].stride == (4, 4)


def test_rescaling_admits_and_keeps_the_function():
    """The scaling that is named makes each layer admissible, and the classifier undoes it."""
    model = builders.conv_net(seed=3).double()
    before = admissibility(model, torch.zeros(2, 64).double())
    assert before.offending
    assert all(row.free for row in before.rows if not row.head)
    x = torch.randn(5, 64, dtype=torch.float64)
    output, undo = model(x), 1.0
    with torch.no_grad():
        for row in before.rows:
            if not row.head:
                model.get_submodule(row.name).weight.mul_(row.scaling * (1.0 - 1e-9))
                undo /= row.scaling * (1.0 - 1e-9)
        model[-1].weight.mul_(undo)
    torch.testing.assert_close(model(x), output)
    after = admissibility(model, torch.zeros(2, 64).double())
    assert not after.offending
    assert not after.undecided
    assert after.constant.upper <= 1.0


def test_a_residual_block_adds():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return torch.relu(x + torch.relu(self.body(x)))

    torch.manual_seed(0)
    rows = rows_of(nn.Sequential(nn.Linear(3, 3), Block(), nn.Linear(3, 2)), (3,))
    body, block = rows["1.body"], rows["1.add"]
    assert block.kind == "junction"
    assert block.gain == pytest.approx(1.0 + math.sqrt(body.frames.upper.high))
    assert block.admissible is False
    assert not body.free, "the other branch would have to be scaled along"
    assert rows["0"].free


def test_a_concatenation_takes_the_root_of_the_squares():
    model = nn.Sequential(nn.Linear(3, 4), random_nets.Branches(nn.Linear(4, 4), nn.ReLU()), nn.Linear(8, 2))
    rows = rows_of(model, (3,))
    branch = rows["1.branches.0"]
    assert rows["1.cat"].gain == pytest.approx(math.sqrt(branch.frames.upper.high + 1.0))
    assert rows["1.branches.1.relu"].kind == "operation"


def test_pre_activation_normalization_is_a_layer():
    norm = nn.BatchNorm1d(4)
    norm.weight.data = torch.tensor([3.0, -2.0, 1.0, 0.5])
    rows = rows_of(nn.Sequential(norm, nn.ReLU(), nn.Linear(4, 2)), (4,))
    frames = rows["0"].frames
    assert frames.upper.value == pytest.approx(9.0, rel=1e-4)
    assert frames.lower.value == pytest.approx(0.25, rel=1e-4)


def test_shared_weights_are_not_free():
    layer = nn.Linear(3, 3)
    layer.weight.data = 2.0 * torch.eye(3)
    rows = rows_of(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(3, 2)), (3,))
    assert [row.free for row in rows.values()] == [False] * 3
    assert [row.admissible for row in rows.values()][:2] == [False, False]


def test_tight_layers_are_admissible_to_rounding():
    """An exact number that is one to rounding passes; a proved bound just above it leaves the question open."""
    patches = nn.Conv2d(1, 4, 2, 2, bias=False).double()
    nn.init.orthogonal_(patches.weight.data.view(4, 4))
    rows = rows_of(nn.Sequential(patches, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), (1, 8, 8))
    assert rows["0"].admissible is True
    dense = nn.Linear(4, 4, bias=False)
    dense.weight.data = torch.eye(4)
    row = rows_of(nn.Sequential(dense, nn.ReLU(), nn.Linear(4, 2)), (4,))["0"]
    assert row.admissible is None
    assert row.gain == pytest.approx(1.0, rel=1e-6)


def test_no_constant_beyond_attention():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), nn.Linear(8, 2)
    )
    found = admissibility(model.eval(), torch.zeros(2, 5, 4))
    assert found.constant.value is None
    assert "attention" in found.constant.note
    assert {"0", "1.linear1", "2"} <= found.frames.keys(), "their frames are known all the same"


@pytest.mark.parametrize("seed", range(2))
def test_features_never_move_more_than_proved(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        circular(2, 3), nn.Tanh(), nn.MaxPool2d(2), random_nets.Residual(circular(3, 3), nn.Identity(), 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, 2),
    ).double()  # fmt: skip
    found = admissibility(model, torch.zeros(2, 2, 8, 8).double())
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    y = (x + 1e-3 * torch.randn_like(x)).requires_grad_()
    for _ in range(10):  # ascent of the ratio
        ratio = (model[:-1](x) - model[:-1](y)).norm() / (x - y).norm()
        (step,) = torch.autograd.grad(ratio, y)
        y = (y + 1e-3 * step / step.norm()).detach().requires_grad_()
        assert float(ratio.detach()) <= found.constant.upper


def test_vertical_invariance_holds_and_is_of_the_right_size():
    """One linear layer and an average: the bound is above the true change, and close for slow signals."""
    torch.manual_seed(0)
    conv = nn.Conv1d(1, 1, 1, bias=False)
    conv.weight.data.fill_(1.0)
    model = nn.Sequential(conv, nn.AvgPool1d(8, 1), nn.Flatten(), nn.Linear(25, 2)).double()
    x = torch.zeros(2, 1, 32).double()
    found = admissibility(model, x)
    value = vertical_invariance(found, translation_action(found.lipschitz.graph, x))
    omega = 2.0 * math.pi * torch.fft.fftfreq(32, dtype=torch.float64)
    kernel = torch.fft.fft(torch.cat([torch.full((8,), 1 / 8), torch.zeros(24)]).double()).abs()
    assert value.upper == pytest.approx(float((omega.abs() * kernel).max()), rel=1e-7)
    signals = torch.randn(200, 1, 32, dtype=torch.float64)
    moved = (features_of(model, signals.roll(1, 2)) - features_of(model, signals)).norm(dim=1)
    assert float((moved / signals.flatten(1).norm(dim=1)).max()) <= value.upper


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("window", [(2, 2), (4, 4), (3, 1), (8, 8)])
def test_vertical_invariance_of_random_networks(seed, window):
    torch.manual_seed(seed)
    layers = [
        circular(1, 3),
        nn.ReLU(),
        circular(3, 4, stride=2),
        nn.Tanh(),
        nn.AvgPool2d(*window),
        nn.Flatten(),
    ]
    size = nn.Sequential(*layers)(torch.zeros(1, 1, 16, 16)).shape[1]
    model = nn.Sequential(*layers, nn.Linear(size, 2)).double()
    x = torch.zeros(2, 1, 16, 16).double()
    found = admissibility(model, x)
    value = vertical_invariance(found, translation_action(found.lipschitz.graph, x))
    assert "multiples of 2 x 2 pixels" in value.note
    x = 3.0 * torch.randn(50, 1, 16, 16, dtype=torch.float64)
    for shift in ((2, 0), (0, 4), (2, -2)):
        moved = (features_of(model, x.roll(shift, (2, 3))) - features_of(model, x)).norm(dim=1)
        bound = value.upper * math.hypot(*shift) * x.flatten(1).norm(dim=1)
        assert bool((moved <= bound + 1e-12).all())
    if window == (8, 8):
        assert value.upper == 0.0, "of all positions"


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()], "pads with zeros"),
        ([circular(1, 3), nn.ReLU(), nn.Flatten()], "no average over positions"),
        ([circular(1, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Flatten()], "does not average equally"),
        ([nn.Flatten(), nn.ReLU()], "no translation is known"),
    ],
)
def test_vertical_invariance_says_why_not(layers, reason):
    size = nn.Sequential(*layers)(torch.zeros(1, 1, 8, 8)).shape[1]
    model, x = nn.Sequential(*layers, nn.Linear(size, 2)), torch.zeros(2, 1, 8, 8)
    found = admissibility(model, x)
    action = None if "translation" in reason else translation_action(found.lipschitz.graph, x)
    value = vertical_invariance(found, action)
    assert value.value is None
    assert value.upper is None
    assert reason in value.note


def test_deformations_of_band_limited_images():
    """Samples of trigonometric polynomials at displaced points, the features a tight layer."""
    torch.manual_seed(0)
    n, band = 32, 3
    layer = nn.Conv1d(1, 2, 2, 2, bias=False).double()
    nn.init.orthogonal_(layer.weight.data.view(2, 2))
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(n, 2)).double()
    found = admissibility(model, torch.zeros(2, 1, n).double())
    value = deformation_sensitivity(found, 1)
    assert value.upper == pytest.approx(2.0 / (1.0 + math.sqrt(0.5)), rel=1e-6)
    assert isinstance(value, Value)
    assert value.kind == "bound"
    k, u = torch.arange(-band, band + 1), torch.arange(n, dtype=torch.float64)
    R, largest = 2.0 * math.pi * band / n, 0.0
    for _ in range(50):
        c = torch.randn(len(k), dtype=torch.complex128)
        tau = (
            2.0 * torch.rand(n, dtype=torch.float64) * torch.rand(1) - 0.5
        )  # rough: no bound of its gradient

        def sample(at, c=c):
            return (torch.exp(2j * math.pi * at[:, None] * k / n) * c).sum(1).real[None, None]

        x, warped = sample(u), sample(u - tau)
        moved = float((features_of(model, warped) - features_of(model, x)).norm() / x.norm())
        bound = found.constant.upper * (math.exp(R * float(tau.abs().max())) - 1.0)
        assert moved <= bound
        largest = max(largest, moved / bound)
    assert largest > 0.1, "the bound is not vacuous"
