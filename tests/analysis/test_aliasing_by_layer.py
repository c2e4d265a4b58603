"""Aliasing by layer against direct discrete Fourier transforms, and against known shares."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theodolite.analysis.aliasing_by_layer import (
    aliasing_by_layer,
    at_full_resolution,
    folded_share,
    share_beyond,
)
from theodolite.analysis.graph import trace
from theodolite.analysis.translation_action import translation_action


def measure(model, x):
    graph = trace(model.eval(), x)
    return aliasing_by_layer(graph, x, translation_action(graph, x))


def direct_share(signal, by):
    """One sample's share, by the transform's definition and one frequency at a time."""
    dims = signal.ndim - 1
    sizes = signal.shape[1:]
    total = beyond = 0.0
    for k in itertools.product(*(range(n) for n in sizes)):
        wave = torch.ones((), dtype=torch.complex128)
        for axis in range(dims):
            at = torch.arange(sizes[axis], dtype=torch.float64)
            shape = [-1 if a == axis else 1 for a in range(dims)]
            wave = wave * torch.exp(-2j * math.pi * k[axis] * at / sizes[axis]).reshape(shape)
        energy = float((signal * wave).sum(tuple(range(1, dims + 1))).abs().square().sum())
        inside = 1.0
        for axis in range(dims):
            folded = 2 * by[axis] * min(k[axis], sizes[axis] - k[axis]) - sizes[axis]
            inside *= 1.0 if folded < 0 else 0.5 if folded == 0 else 0.0
        total, beyond = total + energy, beyond + energy * (1.0 - inside)
    return beyond / total


@pytest.mark.parametrize(
    ("shape", "by"),
    [
        ((12,), (2,)),
        ((13,), (3,)),
        ((8, 8), (2, 2)),
        ((7, 6), (3, 2)),
        ((8, 5), (4, 1)),
        ((4, 6, 5), (2, 3, 2)),
        ((3,), (4,)),
    ],
)
def test_share_against_the_definition(shape, by):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    found = folded_share(x, range(2, x.ndim), by)
    assert found.tolist() == pytest.approx([direct_share(sample, by) for sample in x], abs=1e-12)
    # the dimensions may stand anywhere
    moved = folded_share(x.movedim(1, -1), range(1, x.ndim - 1), by)
    torch.testing.assert_close(moved, found)


@pytest.mark.parametrize(("d", "stride"), [(1, 2), (1, 4), (2, 2), (2, 4), (3, 2)])
def test_white_noise_and_band_limited_signals(d, stride):
    torch.manual_seed(0)
    shape = [{1: 512, 2: 32, 3: 16}[d]] * d
    noise = torch.randn(200, 1, *shape, dtype=torch.float64)
    dims, by = range(2, 2 + d), [stride] * d
    shares = folded_share(noise, dims, by)
    assert float(shares.mean()) == pytest.approx(1.0 - 1.0 / stride**d, abs=5e-3)
    u = torch.arange(shape[0], dtype=torch.float64)
    slow = torch.cos(2.0 * math.pi * (shape[0] // (2 * stride) - 1) * u / shape[0])
    slow = slow.reshape(1, 1, -1, *[1] * (d - 1)).expand(1, 1, *shape)
    assert float(folded_share(slow, dims, by)) < 1e-25
    fast = torch.cos(2.0 * math.pi * (shape[0] // (2 * stride) + 1) * u / shape[0])
    fast = fast.reshape(1, 1, -1, *[1] * (d - 1)).expand(1, 1, *shape)
    assert float(folded_share(fast, dims, by)) == pytest.approx(1.0)
    assert float(folded_share(torch.zeros(1, 1, *shape), dims, by)) == 0.0


def test_what_folds_is_what_subsampling_loses():
    """Interpolating the kept samples gives back a signal exactly when its share is zero."""
    torch.manual_seed(0)
    n, s = 24, 2
    for band, exact in ((5, True), (8, False)):
        spectrum = torch.zeros(n // 2 + 1, dtype=torch.complex128)
        spectrum[: band + 1] = torch.randn(band + 1, dtype=torch.complex128)
        x = torch.fft.irfft(spectrum, n=n)
        back = s * torch.fft.irfft(torch.fft.rfft(x[::s]), n=n)
        assert torch.allclose(back, x) == exact
        assert (float(folded_share(x[None, None], (2,), (s,))) < 1e-25) == exact


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(2, 4, 3, (1, 2), groups=2), nn.Conv2d(2, 3, 2, 3, dilation=2),
        nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2, dilation=2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d((4, 6)),
        nn.MaxPool2d(2, return_indices=False, ceil_mode=True),
    ],
)  # fmt: skip
def test_stride_one_holds_what_the_layer_keeps(layer):
    """Every stride-th position of the layer at stride one is the layer's output."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 12, 12)
    graph = trace(nn.Sequential(layer), x)
    seen = []

    def handler(node, *args, **kwargs):
        seen.append((node, at_full_resolution(node, args, kwargs)))
        return node.function(*args, **kwargs)

    names = ("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
    output = (
        graph.run(x, handlers=dict.fromkeys(names, handler)) if "AdaptiveMax" not in str(layer) else layer(x)
    )
    if not seen:
        node = next(n for n in graph.operations if n.op == "adaptive_max_pool2d")
        seen.append((node, at_full_resolution(node, (x,), {})))
    _, (full, dims) = seen[0]
    assert dims == (2, 3)
    strides = aliasing_by_layer(graph, x, None).subsamplings[0].strides
    torch.testing.assert_close(full[..., :: strides[0], :: strides[1]], output)


def test_network_against_its_own_parts():
    class Slices(nn.Module):
        def forward(self, x):
            return x[:, :, ::2, 1::3]

    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, 2, 1, padding_mode="circular").double()
    model = nn.Sequential(
        conv, nn.ReLU(), Slices(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    ).double()
    x = torch.randn(5, 2, 24, 24, dtype=torch.float64)
    found = measure(model, x)
    assert [s.name for s in found.subsamplings] == ["0", "2", "2 #2"]
    assert [s.strides for s in found.subsamplings] == [(2, 2), (2,), (3,)]
    with torch.no_grad():
        full = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), conv.weight, conv.bias)
        torch.testing.assert_close(found.subsamplings[0].shares, folded_share(full, (2, 3), (2, 2)))
        rectified = model[:2](x)
        torch.testing.assert_close(found.subsamplings[1].shares, folded_share(rectified, (2,), (2,)))
        torch.testing.assert_close(
            found.subsamplings[2].shares, folded_share(rectified[:, :, ::2, 1:], (3,), (3,))
        )
    assert found.exact
    assert list(found.nonlinearities) == ["1"]


def test_squares_of_band_limited_signals():
    """N = 64: the square of a band below 16 stays in the band of 32 frequencies, from 17 on it does not."""

    class Square(nn.Module):
        def forward(self, x):
            return torch.square(x)

    torch.manual_seed(0)
    conv = nn.Conv1d(1, 1, 1, bias=False).double()
    nn.init.ones_(conv.weight)
    model = nn.Sequential(conv, Square(), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    for band, beyond in ((15, False), (16, False), (17, True)):
        spectrum = torch.zeros(1, 1, 33, dtype=torch.complex128)
        spectrum[..., : band + 1] = torch.randn(band + 1, dtype=torch.complex128)
        x = torch.fft.irfft(spectrum, n=64).repeat(2, 1, 1)
        shares = measure(model, x).nonlinearities["1"]
        assert (float(shares.max()) > 1e-6) == beyond, (band, shares)
        fine = 2.0 * torch.fft.irfft(spectrum, n=128)
        expected = share_beyond(fine.square(), (2,))
        assert float(shares[0]) == pytest.approx(float(expected), abs=1e-15)


def test_linear_maps_make_nothing_beyond_the_band():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.LeakyReLU(1.0), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    for size in (8, 9):
        x = torch.randn(3, 1, size, size, dtype=torch.float64)
        assert float(measure(model, x).nonlinearities["1"].max()) < 1e-28
        steep = nn.Sequential(model[0], nn.ReLU(), model[2], model[3])
        assert float(measure(steep, x).nonlinearities["1"].min()) > 1e-4


def test_gains_of_filters():
    def gain(layer, size=16):
        found = measure(nn.Sequential(layer, nn.AdaptiveAvgPool1d(1), nn.Flatten()), torch.randn(2, 1, size))
        return found.subsamplings[0].gain

    blur = nn.Conv1d(1, 1, 3, 2, 1, bias=False)
    blur.weight.data = torch.tensor([[[0.25, 0.5, 0.25]]])
    # cos^2(w / 2) is 1 at rest and falls; the first of 256 frequencies that folds is just above pi / 2
    edge = math.cos(math.pi * 65 / 256) ** 2
    assert gain(blur).low <= edge <= gain(blur).high < edge + 1e-5
    flat = gain(nn.Conv1d(1, 1, 1, 2, bias=False))
    assert flat.low <= 1.0 <= flat.high < 1.0 + 1e-3
    difference = nn.Conv1d(1, 1, 2, 2, bias=False)
    difference.weight.data = torch.tensor([[[1.0, -1.0]]])
    assert gain(difference).low <= math.sqrt(2.0) <= gain(difference).high < math.sqrt(2.0) + 1e-3
    assert gain(nn.MaxPool1d(2)) is None
    assert gain(nn.AvgPool1d(2)).high < 1.0


def test_gain_of_channels_is_the_operator_norm():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, 2, 1, dilation=2, bias=False).double()
    found = measure(
        nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(2, 3, 12, 12).double()
    )
    spread = torch.zeros(4, 3, 5, 5, dtype=torch.float64)
    spread[..., ::2, ::2] = conv.weight.detach()
    symbol = torch.fft.fft2(spread, s=(32, 32)).permute(2, 3, 0, 1)
    norms = torch.linalg.matrix_norm(symbol, 2)
    folds = (2 * torch.fft.fftfreq(32).abs() > 0.5).to(torch.bool)
    folds = folds[:, None] | folds
    expected = float(norms[folds].max() / norms[~folds].max())
    gain = found.subsamplings[0].gain
    assert gain.low * (1 - 1e-9) <= expected <= gain.high * (1 + 1e-9)
    assert gain.high < expected * (1 + 1e-4)


def test_huge_filters_have_no_gain_and_nan_is_refused():
    conv = nn.Conv1d(2048, 2048, 1, 2, bias=False)
    found = measure(nn.Sequential(conv, nn.AdaptiveAvgPool1d(1), nn.Flatten()), torch.randn(2, 2048, 4))
    assert found.subsamplings[0].gain is None
    pool = nn.Sequential(nn.MaxPool1d(2), nn.Flatten())
    x = torch.full((2, 1, 8), torch.nan)
    with pytest.raises(ValueError, match="expected finite values"):
        measure(pool, x)


def test_float32_and_sizes_of_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(2, 2))
    x = torch.randn(3, 1, 8, 8)
    single, double = measure(model, x), measure(model.double(), x.double())
    torch.testing.assert_close(single.subsamplings[0].shares, double.subsamplings[0].shares)
    assert single.subsamplings[1].shares.tolist() == [0.0] * 3, "one window holds all positions"
