"""Defects under shifts: what is proved never moves, what moves is blamed on the layer that moves it."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theodolite.analysis.equivariance import measure, relative_distance
from theodolite.analysis.graph import trace
from theodolite.analysis.spatial import Layout
from theodolite.analysis.translation_action import faults, translation_action, windowed


class Functional(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def conv(inputs=2, outputs=4, kernel=3, **options):
    return nn.Conv2d(
        inputs, outputs, kernel, **{"padding": kernel // 2, "padding_mode": "circular", **options}
    )


def gap(y):
    return y.mean((2, 3))


def padded(y):
    return F.pad(y, (1, 1, 1, 1), mode="circular")


def tokens(y):
    return y.flatten(2).transpose(1, 2)


def net(function, *modules):
    """A convolution that commutes with shifts, then ``function``, then further modules."""
    return lambda: Functional(lambda x, c, *rest: function(c(x), *rest), conv(), *(m() for m in modules))


ROW = torch.linspace(0.1, 1.0, 8)
attend = F.scaled_dot_product_attention

PROVED = {  # commutes with the shifts by multiples of its total stride
    "circular": net(lambda y: gap(y.relu())),
    "1x1": lambda: Functional(lambda x, c: gap(c(x)), conv(kernel=1)),
    "even kernel": lambda: Functional(
        lambda x, c: gap(c(x)), nn.Conv2d(2, 4, 2, padding="same", padding_mode="circular")
    ),
    "dilated": lambda: Functional(lambda x, c: gap(c(x).relu()), conv(dilation=2, padding=2)),
    "strided": lambda: Functional(lambda x, c: gap(c(x).relu()), conv(stride=2)),
    "padded apart": lambda: Functional(lambda x, c: gap(c(padded(x))), conv(padding=0)),
    "max-pool": net(lambda y: gap(F.max_pool2d(y, 2))),
    "pool of everything": net(lambda y: F.avg_pool2d(y, 8).flatten(1)),
    "adaptive pools": net(lambda y: gap(F.adaptive_avg_pool2d(F.adaptive_max_pool2d(y, 4), 2))),
    "linear head": net(lambda y, a: a(gap(y)), lambda: nn.Linear(4, 3)),
    "constant channel": lambda: Functional(
        lambda x, c: gap(c(torch.cat([x[:, :1], torch.ones_like(x[:, :1])], 1)).relu()), conv()
    ),
    "transposed image": net(lambda y, d: gap(d(y.transpose(2, 3).relu()).relu()), lambda: conv(4)),
    "rolled": net(lambda y: gap(y.roll(1, 3) * y)),
    "softmax over positions": net(lambda y: (y.flatten(2).softmax(2) ** 2).sum(2)),
    "squeeze and excitation": net(
        lambda y, a: gap(y * a(gap(y)).sigmoid()[:, :, None, None]), lambda: nn.Linear(4, 4)
    ),
    "attention": net(lambda y: attend(tokens(y), tokens(y), tokens(y)).mean(1)),
    "Gram matrix": net(lambda y: (y.flatten(2) @ tokens(y)).flatten(1)),
    "linear over channels": net(
        lambda y, a: a(y.permute(0, 2, 3, 1)).relu().mean((1, 2)), lambda: nn.Linear(4, 5)
    ),
    "layer norm over channels": net(
        lambda y, a: a(y.permute(0, 2, 3, 1)).relu().mean((1, 2)), lambda: nn.LayerNorm(4)
    ),
    "batch norm": net(lambda y, a: gap(a(y).relu()), lambda: nn.BatchNorm2d(4)),
    "group norm": net(lambda y, a: gap(a(y).relu()), lambda: nn.GroupNorm(2, 4)),
    "PReLU": net(lambda y, a: gap(a(y)), lambda: nn.PReLU(4)),
    "nearest upsampling": net(lambda y, d: gap(d(F.interpolate(y, scale_factor=2)).relu()), lambda: conv(4)),
    "pixel shuffle": net(lambda y, d: gap(d(F.pixel_shuffle(y, 2)).relu()), lambda: conv(1)),
    "tiling transposed convolution": net(
        lambda y, d, e: gap(e(d(y)).relu()), lambda: nn.ConvTranspose2d(4, 4, 2, 2), lambda: conv(4)
    ),
    "U-net": net(
        lambda y, d, e: gap(
            e(torch.cat([y, F.interpolate(d(F.max_pool2d(y, 2)), scale_factor=2)], 1)).relu()
        ),
        lambda: conv(4),
        lambda: conv(8, 3),
    ),
    "transformer without places": lambda: Functional(
        lambda x, c, a: a(tokens(c(x))).mean(1),
        nn.Conv2d(2, 4, 4, 4),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ),
    "channels split": net(lambda y: gap(y.chunk(2, 1)[0] * y.chunk(2, 1)[1])),
    "a mask from the data": net(lambda y: gap(torch.where(y > 0, y, -2 * y))),
    "less the maximum": net(lambda y: gap((y - y.amax((2, 3), keepdim=True)).exp())),
}

BROKEN = {  # model, part of the reason
    "zero padding": (
        lambda: Functional(lambda x, c: gap(c(x).relu()), conv(padding_mode="zeros")),
        "pads with zeros",
    ),
    "no padding": (lambda: Functional(lambda x, c: gap(c(x).relu()), conv(padding=0)), "near the border"),
    "stride 3 of 8": (
        lambda: Functional(lambda x, c: gap(c(x).relu()), conv(stride=3)),
        "stride 3, which does not divide the size 8",
    ),
    "too much padding": (
        lambda: Functional(lambda x, c: gap(c(x).relu()), conv(padding=2)),
        "near the border",
    ),
    "max-pool with padding": (net(lambda y: gap(F.max_pool2d(y, 3, 2, 1))), "pads at the border"),
    "mean of what is padded": (net(lambda y: gap(padded(y).relu())), "circular padding for positions"),
    "rolling what is padded": (
        net(lambda y: gap(padded(y).roll(1, 3) * padded(y))),
        "circular padding for positions",
    ),
    "padding twice": (net(lambda y: gap(F.max_pool2d(padded(padded(y)), 5, 1))), "padded already"),
    "places added": (net(lambda y: gap((y + ROW).relu())), "depend on the position"),
    "a channel of places": (
        lambda: Functional(
            lambda x, c: gap(c(torch.cat([x, ROW.expand(x.shape[0], 1, 8, 8)], 1)).relu()), conv(3)
        ),
        "joins constants that may depend on the position",
    ),
    "flattened": (
        net(lambda y, a: a(y.flatten(1)), lambda: nn.Linear(256, 3)),
        "weighs each position by itself",
    ),
    "transposed and added": (net(lambda y: gap((y + y.transpose(2, 3)).relu())), "along different axes"),
    "flipped": (net(lambda y: gap(y.flip(3) * y)), "no rule here (flip)"),
    "rolled as one row": (
        net(lambda y: (y.flatten(2).roll(1, 2) * y.flatten(2)).mean(2)),
        "rolls several axes",
    ),
    "sorted": (net(lambda y: y.flatten(2).sort(2)[0][:, :, :5].flatten(1)), "no rule here (sort)"),
    "places of maxima": (
        net(lambda y: y.flatten(2).max(2)[0] + y.flatten(2).max(2)[1]),
        "places of maxima",
    ),
    "cropped": (net(lambda y: gap(y[:, :, 1:].relu())), "keeps some positions only"),
    "one position": (net(lambda y: y[:, :, 0, 0]), "keeps some positions only"),
    "causal attention": (
        net(lambda y: attend(tokens(y), tokens(y), tokens(y), is_causal=True).mean(1)),
        "masks by position",
    ),
    "weights by column": (
        net(lambda y, a: gap(a(y)), lambda: nn.Linear(8, 8)),
        "weighs each position by itself",
    ),
    "rows as channels": (
        net(lambda y, a: gap(a(y.transpose(1, 2)).relu()), lambda: nn.BatchNorm2d(8)),
        "depend on the position",
    ),
    "bilinear upsampling": (
        net(lambda y: gap(F.interpolate(y, scale_factor=2, mode="bilinear").relu())),
        "interpolates",
    ),
    "overlapping transposed convolution": (
        net(lambda y, a: gap(a(y).relu()), lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, 1)),
        "beyond the border",
    ),
    "maxima of window halves": (
        net(lambda y: y.view(-1, 4, 4, 2, 4, 2).amax((3, 5)).mean((2, 3))),
        "no regular order",
    ),
    "scrambled twice": (
        net(lambda y: gap(y.reshape(-1, 8, 4, 8).transpose(1, 2).reshape(-1, 4, 8, 8).relu() * y)),
        "",
    ),
    "a matrix square": (net(lambda y: gap(y @ y)), "mixes different positions"),
}


def measured(model, x, shifts=None, *, oblique=False):
    """Measure; ``oblique`` adds a shift along all axes at once, on the coarsest lattice."""
    model = model.eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)):
                module.weight.normal_()
    graph = trace(model, x)
    action = translation_action(graph, x)
    assert action is not None
    if oblique:
        layouts = [step.layout for step in action.steps.values() if isinstance(step.layout, Layout)]
        coarsest = max(period for layout in layouts for period in layout.period.values())
        shifts = [*action.default_shifts(), (coarsest,) * len(action.dims)]
    return measure(graph, x, action, shifts=shifts), action, graph


def check_blame(found):
    """What is proved has no defect, and who makes a defect is not free of fault."""
    assert found.exact
    for layer in found.layers:
        if layer.proved and any(layer.lattice):
            assert float(layer.counted.max()) < 1e-11, (layer.name, layer.counted)
        if layer.own_defect > 1e-11:
            assert layer.fault, (layer.name, layer.own_defect)
            assert not layer.proved


class SideBySide(nn.Module):
    """Several networks on one input: tracing is what takes long."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x):
        return torch.cat([model(x) for model in self.models], 1)


@pytest.mark.parametrize("group", range(5))
def test_proved(group):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 8, 8)
    model = SideBySide([make() for make in list(PROVED.values())[group::5]])
    found, action, graph = measured(model, x, oblique=True)
    assert found.fault == ""
    assert graph.output not in faults(action.steps)
    check_blame(found)
    assert all(layer.proved for layer in found.layers)
    assert max(layer.own_defect for layer in found.layers) < 1e-11
    layout = action.steps[graph.output].layout
    on_lattice = [all(by[a] % p == 0 for a, p in layout.period.items()) for by in found.shifts]
    assert any(on_lattice)
    for ok, other in zip(on_lattice, found.shifted_outputs, strict=True):
        if ok:  # all these networks end without positions
            torch.testing.assert_close(other, found.outputs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 8, 8)
    make, reason = BROKEN[name]
    found, _, _ = measured(make(), x, oblique=True)
    assert found.fault
    assert reason in found.fault
    check_blame(found)
    on_lattice = [
        i
        for i, by in enumerate(found.shifts)
        if all(layer.lattice[i] for layer in found.layers) and any(c % 8 for c in by)
    ]
    if on_lattice and name != "sorted":  # which is invariant, although no rule shows it
        moved = [relative_distance(found.outputs, found.shifted_outputs[i]).max() for i in on_lattice]
        assert float(max(moved)) > 1e-6, "the network does break it"


def random_stack(seed):
    """Convolutions, pools and norms in random order, mostly but not always circular."""
    draw = random.Random(seed)
    layers, channels = [], 2
    for _ in range(draw.randint(1, 4)):
        kernel, stride = draw.choice([(1, 1), (3, 1), (3, 2), (2, 2), (4, 2), (3, 3)])
        mode = draw.choice(["circular"] * 5 + ["zeros", "reflect"])
        layers.append(
            nn.Conv2d(
                channels, 3, kernel, stride, draw.choice([(kernel - 1) // 2, kernel // 2]), padding_mode=mode
            )
        )
        layers += [draw.choice([nn.ReLU(), nn.Tanh(), nn.PReLU(3)]), nn.BatchNorm2d(3)]
        layers.append(
            draw.choice(
                [
                    nn.Identity(),
                    nn.MaxPool2d(2),
                    nn.AvgPool2d(2, ceil_mode=True),
                    nn.MaxPool2d(3, 1, 1),
                    nn.Upsample(scale_factor=2),
                    nn.GroupNorm(1, 3),
                ]
            )
        )
        channels = 3
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(draw.choice([1, 2])), nn.Flatten())


def test_random_stacks_are_blamed_rightly():
    proved = broken = 0
    for seed in range(6):
        torch.manual_seed(seed)
        draw = random.Random(1000 + seed)
        x = torch.randn(2, 2, draw.choice([12, 16]), draw.choice([8, 12]))
        model = random_stack(seed)
        try:
            model.eval()(x)
        except RuntimeError:  # a window larger than what is left
            continue
        found, _, _ = measured(model, x)
        check_blame(found)
        own = [layer for layer in found.layers if layer.fault and any(layer.lattice)]
        broken += sum(layer.own_defect > 1e-6 for layer in own)
        proved += sum(layer.proved for layer in found.layers)
    assert proved > 15
    assert broken >= 2


def test_stride_two():
    """Even shifts move whole positions; odd ones none, and the mean over positions is invariant to even ones."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found, _, _ = measured(model, torch.randn(4, 2, 8, 8), [(1, 0), (2, 0), (3, 1), (4, 2)])
    first = found.layers[0]
    assert first.lattice == (False, True, False, True)
    assert first.defects[[0, 2]].isnan().all()
    assert float(first.defects[[1, 3]].max()) < 1e-13
    last = found.layers[-1]
    assert last.lattice == first.lattice
    assert float(last.defects[[0, 2]].min()) > 1e-3, "without positions every shift acts: trivially"
    assert float(last.counted.max()) < 1e-13
    torch.testing.assert_close(last.invariance, last.defects)


def test_encoder_and_decoder_of_stride_four():
    """32 x 32, circular: rounding at shifts by 4 and 8, not at others."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 32)),
        conv(1, 4, stride=2),
        nn.ReLU(),
        conv(4, 8, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 1, 2, 2),
        nn.Flatten(1, 2),
    )
    x = torch.randn(2, 32, 32)
    found, _, _ = measured(model, x, [(0, 4), (8, 0), (4, 8), (1, 0), (2, 0), (0, 3)])
    last = found.layers[-1]
    assert last.lattice == (True, True, True, False, False, False)
    assert float(last.defects[:3].max()) < 1e-14
    assert float(last.defects[3:].min()) > 1e-3
    assert found.fault == ""
    with torch.no_grad():
        direct = model.double()(x.double().roll((4, 8), (1, 2))) - model(x.double()).roll((4, 8), (1, 2))
    assert float(direct.norm()) < 1e-13


def test_numbers_by_hand():
    """Zero padding, kernel of ones, one pixel: everything in fractions."""
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.zeros(1, 1, 6)
    x[0, 0, 0] = 1.0  # the output is (1, 1, 0, 0, 0, 0); that of x shifted by 1 is (1, 1, 1, 0, 0, 0)
    found, _, _ = measured(nn.Sequential(layer), x, [(1,), (5,)])
    (only,) = found.layers  # shifted by 5 it would be (1, 0, 0, 0, 0, 1), and is (0, 0, 0, 0, 1, 1)
    assert only.defects.flatten().tolist() == pytest.approx([math.sqrt(1 / 2), 1.0])
    assert only.own.flatten().tolist() == pytest.approx(only.defects.flatten().tolist())
    assert only.invariance.flatten().tolist() == pytest.approx([math.sqrt(1 / 2), 2 / math.sqrt(2)])


def test_own_defects_name_the_one_layer_that_breaks_it():
    torch.manual_seed(0)
    layers = [conv(2, 4), nn.ReLU(), conv(4, 4, padding_mode="zeros"), nn.ReLU(), conv(4, 4), nn.ReLU()]
    found, _, _ = measured(nn.Sequential(*layers), torch.randn(4, 2, 8, 8))
    own = {layer.name: layer.own_defect for layer in found.layers}
    assert own.pop("2") > 0.1
    assert max(own.values()) < 1e-13
    assert float(found.layers[-1].counted.mean()) > 0.05, "but the defect goes on to the end"
    first = next(layer for layer in found.layers if layer.name == "2")
    torch.testing.assert_close(first.own, first.defects, msg="what comes before it commutes")


def test_a_layer_that_is_zero_at_the_input():
    assert relative_distance(
        torch.zeros(2, 3), torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
    ).tolist() == [1, 0]


def test_volumes_sequences_and_flat_images():
    torch.manual_seed(0)
    volume = nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular"), nn.MaxPool3d(2), nn.Flatten(2)
    )
    found, action, _ = measured(volume, torch.randn(2, 1, 4, 4, 6))
    assert action.sizes == (4, 4, 6)
    assert found.fault == ""
    sequence = nn.Sequential(nn.Conv1d(3, 2, 5, padding=2, padding_mode="circular"), nn.ReLU())
    assert measured(sequence, torch.randn(2, 3, 9))[0].sizes == (9,)
    flat = nn.Sequential(nn.Unflatten(1, (1, 4, 6)), conv(1, 2))
    found, action, _ = measured(flat, torch.randn(2, 24))
    assert action.sizes == (4, 6)
    x = torch.randn(2, 24)
    assert torch.equal(action.shift(x, (1, 2)).view(2, 4, 6), x.view(2, 4, 6).roll((1, 2), (1, 2)))
    last = Functional(lambda x, c: c(x.permute(0, 3, 1, 2)), conv())
    assert translation_action(trace(last, torch.randn(2, 4, 6, 2)), torch.randn(2, 4, 6, 2)).dims == (1, 2)


def test_no_action():
    flat = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    graph = trace(flat, torch.randn(2, 8))
    assert translation_action(graph, torch.randn(2, 8)) is None
    assert windowed(graph) is None
    images = nn.Sequential(nn.Flatten(), nn.Linear(32, 4))
    assert translation_action(trace(images, torch.randn(2, 2, 4, 4)), torch.randn(2, 2, 4, 4)).sizes == (4, 4)


def test_images_in_blocks_give_the_same(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(conv(padding_mode="zeros"), nn.ReLU(), nn.Flatten()), torch.randn(5, 2, 8, 8)
    whole, _, _ = measured(model, x)
    monkeypatch.setattr("theodolite.analysis.equivariance._CHUNK_BYTES", 1)
    parts, _, _ = measured(model, x)
    for one, two in zip(whole.layers, parts.layers, strict=True):
        torch.testing.assert_close(one.defects, two.defects, equal_nan=True)
        torch.testing.assert_close(one.own, two.own, equal_nan=True)
    torch.testing.assert_close(whole.shifted_outputs, parts.shifted_outputs)


def test_a_product_with_a_vector():
    class Scored(nn.Module):
        def __init__(self, before):
            super().__init__()
            self.conv, self.weights, self.before = conv(), nn.Parameter(torch.randn(4)), before

        def forward(self, x):
            y = tokens(self.conv(x))
            return y.mean(1) @ self.weights if self.before else (y @ self.weights).mean(1)

    for before in (True, False):
        graph = trace(Scored(before), torch.randn(2, 2, 8, 8))
        action = translation_action(graph, torch.randn(2, 2, 8, 8), None)
        found = measure(graph, torch.randn(3, 2, 8, 8), action)
        assert found.fault == ""
        assert max(float(layer.counted.max()) for layer in found.layers) < 1e-5


def test_graphs_that_insist_on_their_precision():
    model = Functional(lambda x, c: c(x) + torch.ones(8, dtype=torch.float32), conv())
    found, _, _ = measured(model, torch.randn(2, 2, 8, 8))
    assert found.exact == (found.outputs.dtype == torch.float64)
    low = conv().bfloat16()
    found, _, _ = measured(nn.Sequential(low), torch.randn(2, 2, 8, 8).bfloat16())
    assert max(layer.own_defect for layer in found.layers) <= found.rounding
