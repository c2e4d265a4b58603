"""Lie derivatives against finite flows, known answers, and their split among layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from theodolite.analysis import groups
from theodolite.analysis.graph import trace
from theodolite.analysis.grid_sampling import fourier_shift
from theodolite.analysis.group_elements import linear_warp
from theodolite.analysis.lie_derivative import (
    FAMILIES,
    displacement,
    fields,
    lie_derivative,
    velocity,
)
from theodolite.analysis.lie_layers import attribute
from theodolite.analysis.translation_action import translation_action
from theodolite.analysis.value_grids import output_grid
from theodolite.analysis.warping import warp
from theodolite.testing import snapshot

F64 = torch.float64


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flow(field, t, x):
    """T_t x for the finite flow that the field generates."""
    if field.family == "translation":
        return fourier_shift(x, (t * field.offset).tolist(), range(x.ndim - field.d, x.ndim))
    if field.tau is not None:
        return warp(x, t * field.tau, field.d, interpolation="cubic", boundary="reflect")
    return linear_warp(torch.linalg.matrix_exp(t * field.matrix))(x)


def conv_net(d=2, padding="circular", stride=1, head=False, seed=0):
    torch.manual_seed(seed)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    layers = [
        conv(2, 4, 3, stride, 1, padding_mode=padding),
        nn.Tanh(),
        conv(4, 3, 3, 1, 1, padding_mode=padding),
    ]
    if head:
        layers += [nn.GELU(), nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(*layers).double().eval()
    model(noise(1, 2, *[6] * d))
    return model


ALL_FIELDS = [(d, f) for d in (1, 2, 3) for family in FAMILIES for f in fields(family, d)]


@pytest.mark.parametrize(("d", "field"), ALL_FIELDS, ids=lambda p: p if isinstance(p, int) else p.family)
def test_velocities_are_derivatives_of_the_flow(d, field):
    x = noise(2, 3, *(5, 6, 4)[:d])
    h = 1e-5
    truth = (flow(field, h, x) - flow(field, -h, x)) / (2 * h)
    found = velocity(field, x, range(2, 2 + d), [1.0] * d)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-4)


def test_fields_are_what_their_names_say():
    assert [len(fields(f, 3)) for f in FAMILIES] == [3, 3, 1, 6, 3]
    assert [len(fields(f, 1)) for f in FAMILIES] == [1, 0, 1, 0, 1]
    (turn,) = fields("rotation", 2)
    named = groups.rotations([90.0]).elements[0]
    quarter = torch.linalg.matrix_exp(math.pi / 2 * turn.matrix)
    torch.testing.assert_close(quarter, torch.tensor(named.matrix, dtype=F64), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="family: expected one of translation, rotation"):
        fields("twirl", 2)


@pytest.mark.parametrize("out_action", [None, "same"])
@pytest.mark.parametrize("family", FAMILIES)
def test_against_central_differences_of_the_flow(family, out_action):
    model, x, h = conv_net(padding="zeros"), noise(2, 2, 6, 6), 1e-7
    field = fields(family, 2)[-1]
    found = lie_derivative(model, x, field, out_action)
    ends = [model(flow(field, s * h, x)) for s in (1, -1)]
    if out_action == "same":
        ends = [flow(field, -s * h, y) for s, y in zip((1, -1), ends, strict=True)]
    truth = ((ends[0] - ends[1]) / (2 * h)).detach()
    torch.testing.assert_close(found.value, truth, atol=1e-5, rtol=1e-5)
    assert found.method == "forward mode"
    assert not found.error.any()
    size = found.value.flatten(1).norm(dim=1) / found.output.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.relative, size)
    lee = found.lee()
    assert lee.value == pytest.approx(float(found.value.square().mean()))
    assert lee.kind == "estimate"


def test_a_displacement_field_of_the_user():
    model, x, h = conv_net(padding="zeros"), noise(2, 2, 6, 5), 1e-5
    u, v = torch.arange(6, dtype=F64)[:, None], torch.arange(5, dtype=F64)[None]
    tau = torch.stack([torch.sin(0.3 * u + 0 * v), torch.cos(0.2 * u - 0.4 * v)])
    field = displacement(tau)
    ends = [flow(field, -s * h, model(flow(field, s * h, x))) for s in (1, -1)]
    found = lie_derivative(model, x, field, "same")
    torch.testing.assert_close(found.value, (ends[0] - ends[1]).detach() / (2 * h), atol=1e-5, rtol=1e-5)
    # an affine field that is tabulated is that field, on a coarser output too
    (scale,) = fields("scale", 2)
    table = torch.stack([u + 0 * v - 2.5, 0 * u + v - 2.0])
    stride = conv_net(stride=2)
    one = lie_derivative(stride, x[..., :5], displacement(table), "same")
    torch.testing.assert_close(one.value, lie_derivative(stride, x[..., :5], scale, "same").value)


def test_squaring_breaks_equivariance_by_aliasing_alone():
    """64 samples: squares of inputs of band b have band 2 b, which aliases once it passes 32."""
    (shift,) = fields("translation", 1)

    def relative(b, seed):
        spectrum = torch.zeros(33, dtype=torch.complex128)
        parts = noise(b, 2, seed=seed)
        spectrum[1 : b + 1] = torch.complex(parts[:, 0], parts[:, 1])
        x = torch.fft.irfft(spectrum, n=64)[None, None] * 8.0
        found = lie_derivative(lambda z: z * z, x, shift, "same")
        return float(found.value.norm()), float(found.relative)

    assert max(relative(b, 0)[0] for b in range(1, 16)) < 1e-13
    seen = [relative(17, seed)[1] for seed in range(20)]
    assert min(seen) > 0.05
    assert 0.1 < sum(seen) / 20 < 0.6, "0.26 for one random draw"


def test_equivariant_and_invariant_networks_have_none():
    x = noise(3, 2, 8, 8)
    for shift in fields("translation", 2):
        # linear, circular, no stride: commutes with Fourier shifts exactly
        torch.manual_seed(0)
        conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular").double()
        found = lie_derivative(conv, x, shift, "same")
        assert float(found.value.abs().max()) < 1e-13
        assert found.lee().kind == "exact"
        pooled = lie_derivative(lambda z, conv=conv: conv(z).mean((2, 3)), x, shift)
        assert float(pooled.value.abs().max()) < 1e-13
    # affine functions of each entry commute with every flow of images
    for family in FAMILIES:
        found = lie_derivative(lambda z: 3.0 * z - 1.0, x, fields(family, 2)[0], "same")
        assert float(found.value.abs().max()) < 1e-13


class NoForwardMode(nn.Module):
    """Distances by an operation without a forward-mode derivative."""

    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(noise(4, 6, dtype=torch.float32))

    def forward(self, x):
        return torch.cdist(x.flatten(1, 2), self.points.expand(len(x), 4, 6))[:, :, 0].sin()


def test_operations_without_forward_mode_are_differenced_with_an_error():
    model, x = NoForwardMode(), noise(3, 2, 5, 6, dtype=torch.float32)
    before = snapshot(model)
    (turn,) = fields("rotation", 2)
    found = lie_derivative(model, x, turn)
    assert found.method == "central difference"
    assert snapshot(model) == before
    motion = velocity(turn, x.double(), (2, 3), (1.0, 1.0))
    at = x.double().requires_grad_()
    weights = model.points.detach().double()
    output = (at.flatten(1, 2)[:, :, None] - weights).norm(dim=3)[:, :, 0].sin()
    truth = torch.zeros_like(output)
    for j in range(output.shape[1]):
        (slope,) = torch.autograd.grad(output[:, j].sum(), at, retain_graph=True)
        truth[:, j] = (slope * motion).flatten(1).sum(1)
    gap = (found.value - truth).norm(dim=1)
    assert float(gap.max()) < 1e-7
    assert bool((gap <= found.error + 1e-9).all())
    assert "central differences" in found.lee().note
    with pytest.raises(ValueError, match="forward AD"):
        lie_derivative(model, x, turn, method="forward mode")
    forced = lie_derivative(conv_net(), x, turn, "same", method="central difference")
    torch.testing.assert_close(forced.value, lie_derivative(conv_net(), x.double(), turn, "same").value)


def test_what_does_not_fit_is_refused():
    (turn,) = fields("rotation", 2)
    model, x = conv_net(), noise(2, 2, 6, 6)
    with pytest.raises(ValueError, match="out_action: expected 'same' or None, got 'both'"):
        lie_derivative(model, x, turn, "both")
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        lie_derivative(model, x * math.inf, turn)
    with pytest.raises(ValueError, match="x: expected floating numbers with samples and 2 axes"):
        lie_derivative(model, torch.ones(2, 2, 6, 6, dtype=torch.int64), turn)
    with pytest.raises(ValueError, match="model: expected an output with 2 axes"):
        lie_derivative(conv_net(head=True), x, turn, "same")
    with pytest.raises(ValueError, match=r"tau: expected points \(6, 6\) as x has, got \(3, 3\)"):
        lie_derivative(model, x, displacement(torch.zeros(2, 3, 3)))
    with pytest.raises(ValueError, match=r"tau: expected shape \(d, n_1, ..., n_d\), got \(3, 3, 3\)"):
        displacement(torch.zeros(3, 3, 3))
    with pytest.raises(ValueError, match="tau: expected finite numbers"):
        displacement(torch.full((1, 4), math.nan))


# attribution


def attribution(model, x):
    graph = trace(model, x)
    action = translation_action(graph, x)
    return lambda field, **options: attribute(graph, x, action, field, **options)


@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_terms_follow_the_derivation_rule(padding):
    model, x = conv_net(padding=padding, stride=2, head=True), noise(3, 2, 6, 6)
    attributed = attribution(model, x)
    for family in FAMILIES:
        field = fields(family, 2)[0]
        check_terms(model, x, field, attributed(field))


def check_terms(model, x, field, found):
    """Each layer's term by hand: its own defect, through the derivative of all that follows."""
    total = lie_derivative(model, x, field)
    torch.testing.assert_close(found.value, total.value, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(sum(t.value for t in found.layers), found.value, atol=1e-13, rtol=1e-12)
    assert [t.name for t in found.layers] == ["0", "1", "2", "3", "5"]
    assert not found.equivariant

    values, motions = [x], [velocity(field, x, (2, 3), (1.0, 1.0))]
    for at, layer in enumerate(model):
        values.append(layer(values[-1]).detach())
        if at < 4:
            motions.append(velocity(field, values[-1], (2, 3), (2.0, 2.0)))
        else:
            motions.append(motions[-1].flatten(1) if at == 4 else torch.zeros_like(values[-1]))
    for term in found.layers:
        at = int(term.name)
        local = torch.func.jvp(model[at], (values[at],), (motions[at],))[1] - motions[at + 1]
        carried = torch.func.jvp(model[at + 1 :], (values[at + 1],), (local,))[1] if at < 5 else local
        torch.testing.assert_close(term.value, carried.detach(), atol=1e-12, rtol=1e-10)


class Residual(nn.Module):
    """Skip connections, normalization, attention-free: edges that bypass layers."""

    def __init__(self, image_out):
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2)
        self.out = nn.Conv2d(4, 1, 1)
        self.image_out = image_out

    def forward(self, x):
        h = torch.relu(self.norm(self.a(x)))
        h = h + self.up(self.pool(self.b(h)))
        y = self.out(h)
        return y.flatten(1) if self.image_out else y.mean((2, 3))


@pytest.mark.parametrize("image_out", [True, False])
def test_terms_of_networks_with_skips_sum_to_the_whole(image_out):
    model, x = Residual(image_out).double().eval(), noise(2, 2, 8, 8)
    attributed = attribution(model, x)
    for family in ("translation", "rotation"):
        field = fields(family, 2)[0]
        found = attributed(field)
        assert found.equivariant == image_out
        torch.testing.assert_close(sum(t.value for t in found.layers), found.value, atol=1e-13, rtol=1e-12)
        unflat = nn.Sequential(model, nn.Unflatten(1, (1, 8, 8))) if image_out else model
        whole = lie_derivative(unflat, x, field, "same" if image_out else None)
        torch.testing.assert_close(found.value, whole.value.flatten(1), atol=1e-12, rtol=1e-10)
    shift = attributed(fields("translation", 2)[1])
    sizes = {t.name: float(t.value.norm()) for t in shift.layers}
    assert sizes["b"] < 1e-12, "circular and linear: no term"
    assert sizes["norm"] < 1e-12
    assert sizes["a"] > 1e-3
    faults = {t.name: t.fault for t in shift.layers}
    assert (faults["a"], faults["b"]) == ("pads with zeros", "")


def test_float32_networks_are_computed_in_float64():
    model, x = conv_net(head=True).float(), noise(2, 2, 6, 6, dtype=torch.float32)
    found = attribution(model, x)(fields("scale", 2)[0])
    assert found.exact
    wide = lie_derivative(conv_net(head=True).float().double(), x.double(), fields("scale", 2)[0])
    torch.testing.assert_close(found.value, wide.value, atol=1e-12, rtol=1e-10)


def test_class_scores_stay_put_and_unknown_outputs_are_refused():
    class Sorted(nn.Module):
        def forward(self, x):
            return x.flatten(1).sort(1)[0].cumsum(1)[:, :3]

    model = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1), Sorted()).double()
    x = noise(2, 2, 6, 6)
    (field,) = fields("rotation", 2)
    attributed = attribution(model, x)
    with pytest.raises(ValueError, match="could not be followed to its output"):
        attributed(field)
    found = attributed(field, invariant=True)
    torch.testing.assert_close(found.value, lie_derivative(model, x, field).value, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(sum(t.value for t in found.layers), found.value, atol=1e-13, rtol=1e-12)


def test_attention_runs_in_forward_mode():
    torch.manual_seed(0)
    conv = nn.Conv1d(2, 8, 2, 2)

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.layer(self.conv(x).mT).mean(1)

    model, x = Attends().double().eval(), noise(2, 2, 8)
    (field,) = fields("translation", 1)
    found = attribution(model, x)(field)
    h = 1e-5
    truth = (model(flow(field, h, x)) - model(flow(field, -h, x))).detach() / (2 * h)
    torch.testing.assert_close(found.value, truth, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(sum(t.value for t in found.layers), found.value, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("last", [False, True])
def test_outputs_are_read_as_grids(last):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x):
            y = self.conv(x.view(-1, 3, 5, 4))
            return (y.permute(0, 2, 3, 1) if last else y).flatten(1)

    model, x = Flat().double(), noise(2, 60)
    graph = trace(model, x)
    output = model(x).detach()
    expected = output.view(2, 5, 4, 2).permute(0, 3, 1, 2) if last else output.view(2, 2, 5, 4)
    assert torch.equal(output_grid(graph, translation_action(graph, x), output), expected)
