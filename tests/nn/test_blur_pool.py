"""Blur-pools: shapes of what they replace, values of a slow reference, shifts that commute."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from theodolite.analysis.equivariance import measure
from theodolite.analysis.graph import trace
from theodolite.analysis.translation_action import translation_action
from theodolite.nn import AntiAliased, BlurPool
from theodolite.nn.blur_pool import binomial_kernel


def blurred(x, sizes, strides, mode):
    """Blur and subsample one axis after another, position by position."""
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True), 2):
        if stride == 1:
            continue
        n, kernel = x.shape[axis], binomial_kernel(size).to(x)
        rows = []
        for start in range(0, n, stride):
            total = torch.zeros_like(x.select(axis, 0))
            for j in range(size):
                at = start + j - (size - 1) // 2
                if mode == "circular":
                    at %= n
                elif mode == "reflect":
                    at = abs(at)
                    at = min(at, 2 * (n - 1) - at)
                elif not 0 <= at < n:
                    continue
                total = total + kernel[j] * x.select(axis, at)
            rows.append(total)
        x = torch.stack(rows, axis)
    return x


def test_the_kernel_is_a_binomial():
    assert binomial_kernel(1).tolist() == [1.0]
    assert binomial_kernel(3).tolist() == [0.25, 0.5, 0.25]
    assert binomial_kernel(5).tolist() == [c / 16 for c in (1, 4, 6, 4, 1)]
    box = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for size in range(2, 8):
        kernel = binomial_kernel(size)
        spread = torch.nn.functional.conv1d(binomial_kernel(size - 1)[None, None], box[None, None], padding=1)
        torch.testing.assert_close(kernel, spread[0, 0])
        assert (
            abs(float((kernel * (-1.0) ** torch.arange(size)).sum())) < 1e-15
        )  # silent at the top frequency
    with pytest.raises(ValueError, match="size: expected an integer >= 1, got 0"):
        binomial_kernel(0)


@pytest.mark.parametrize("mode", ["circular", "reflect", "zero"])
@pytest.mark.parametrize(
    ("dims", "stride", "size"), [(1, 2, 3), (1, 3, 4), (2, 2, 5), (2, (1, 2), 2), (3, (2, 1, 3), 3)]
)
def test_it_is_the_slow_blur(dims, stride, size, mode):
    x = torch.randn(2, 3, *(7, 6, 5)[:dims], dtype=torch.float64)
    pool = BlurPool(dims, stride=stride, kernel_size=size, padding_mode=mode)
    strides = (stride,) * dims if isinstance(stride, int) else stride
    expected = blurred(x, (size,) * dims, strides, mode)
    assert tuple(expected.shape[2:]) == tuple(-(-n // s) for n, s in zip((7, 6, 5), strides, strict=False))
    torch.testing.assert_close(pool(x), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(pool(x.float()), expected.float())


def test_a_constant_stays_and_the_size_follows_the_stride():
    assert BlurPool(2, stride=4).kernel_size == (7, 7)
    for mode in ("circular", "reflect"):
        y = BlurPool(2, stride=3, padding_mode=mode)(torch.full((1, 2, 11, 9), 3.0))
        torch.testing.assert_close(y, torch.full((1, 2, 4, 3), 3.0))
    assert not BlurPool(1).state_dict()
    assert torch.autograd.gradcheck(
        BlurPool(1, padding_mode="circular"), torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dims": 4}, "dims: expected 1, 2 or 3, got 4"),
        ({"stride": 0}, "stride: expected one integer >= 1"),
        ({"stride": (2, 2, 2)}, "stride: expected one integer >= 1, or 2 of them"),
        ({"kernel_size": 0}, "kernel_size: expected one integer >= 1"),
        ({"padding_mode": "mirror"}, "padding_mode: expected one of circular, reflect, zero, got 'mirror'"),
    ],
)
def test_wrong_options_are_one_sentence(options, reason):
    with pytest.raises(ValueError, match=reason):
        BlurPool(**options)


@pytest.mark.parametrize(
    ("mode", "shape", "reason"),
    [
        ("reflect", (1, 1, 1, 8), "at least 2 positions along each axis to continue it by 1"),
        ("reflect", (1, 8, 8), "expected 4 dimensions"),
    ],
)
def test_inputs_that_cannot_be_continued(mode, shape, reason):
    with pytest.raises(ValueError, match=reason):
        BlurPool(2, padding_mode=mode)(torch.zeros(shape))


LAYERS = [
    *(
        getattr(nn, f"Conv{d}d")(2, 3, k, stride=s, padding=p, dilation=g, padding_mode=mode)
        for d, k, s, p, g, mode in (
            (1, 3, 2, 1, 1, "zeros"), (1, 5, 3, 2, 2, "reflect"), (1, 1, 2, 0, 1, "zeros"), (2, 3, 2, 1, 1, "circular"),
            (2, 4, (2, 1), 1, 1, "zeros"), (2, 2, 3, 0, 1, "zeros"), (3, 3, 2, 1, 1, "zeros"),
        )
    ),
    nn.Conv2d(2, 4, 3, stride=2, groups=2, bias=False, padding="valid"),
    nn.MaxPool1d(2), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (2, 1)), nn.MaxPool2d(2, 3), nn.MaxPool3d(2),
    nn.MaxPool2d(3, 2, dilation=2), nn.AvgPool1d(2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, divisor_override=5), nn.AvgPool3d(2), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["circular", "reflect", "zero"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_shapes_are_those_of_the_layer_or_it_refuses(layer, mode):
    dims = int(type(layer).__name__[-2])
    new = AntiAliased(layer, padding_mode=mode)
    served = refused = 0
    for sizes in itertools.product(*[(8, 9, 10, 13)[: 4 if dims < 3 else 2]] * dims):
        x = torch.randn(1, 2, *sizes)
        expected = layer(x).shape
        try:
            assert new(x).shape == expected
            served += 1
        except ValueError as error:
            assert "outputs can be blurred" in str(error)  # noqa: PT017
            refused += 1
            assert layer.__dict__.get("ceil_mode") or mode == "circular"
    assert served > 0
    if mode != "circular" and not layer.__dict__.get("ceil_mode"):
        assert refused == 0


@pytest.mark.parametrize("layer", [one for one in LAYERS if not one.__dict__.get("ceil_mode")], ids=str)
def test_it_is_the_dense_layer_then_the_blur(layer):
    dims = int(type(layer).__name__[-2])
    layer = copy.deepcopy(layer).double()
    before = copy.deepcopy(layer.state_dict())
    dense = copy.deepcopy(layer)
    dense.stride = (1,) * dims if hasattr(layer, "weight") else 1
    x = torch.randn(2, 2, *[9] * dims, dtype=torch.float64)
    new = AntiAliased(layer, padding_mode="reflect")
    expected = blurred(dense(x), new.blur.kernel_size, new.blur.stride, "reflect")
    torch.testing.assert_close(new(x), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in layer.parameters())
    kernel = dict(new.named_buffers())["blur.kernel"]
    with torch.no_grad():
        assert float(kernel.sum()) == 1.0


def test_an_average_of_two_becomes_the_binomial_of_four():
    x = torch.randn(1, 1, 16, dtype=torch.float64)
    expected = BlurPool(1, kernel_size=4, padding_mode="circular")(x)
    torch.testing.assert_close(AntiAliased(nn.AvgPool1d(2), padding_mode="circular")(x), expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 3, 2, stride=2),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2),
    ],
    ids=str,
)
def test_on_the_torus_it_commutes_with_shifts_and_the_graph_proves_it(layer):
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU()).double()
    net.append(AntiAliased(layer.double(), padding_mode="circular"))
    x = torch.randn(3, 1, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        y, shifted = net(x), net(x.roll((2, -4), (2, 3)))
    torch.testing.assert_close(shifted, y.roll((1, -2), (2, 3)), rtol=1e-12, atol=1e-12)
    graph = trace(net.eval(), x)
    action = translation_action(graph, x)
    found = measure(graph, x, action)
    assert found.exact
    assert all(defect.proved for defect in found.layers), found.fault
    assert max(float(defect.counted.max()) for defect in found.layers) < 1e-14


def test_a_max_pool_is_nearer_to_commuting_with_one_pixel():
    """A signal at the highest frequency: the pool's outputs jump, the blurred ones do not."""
    x = torch.tensor([0.0, 0.0, 1.0, 1.0] * 4).view(1, 1, 16)
    pool, new = nn.MaxPool1d(2), AntiAliased(nn.MaxPool1d(2), padding_mode="circular")
    jumps = [float((f(x.roll(1, 2)) - f(x)).abs().max()) for f in (pool, new)]
    assert jumps[0] == 1.0
    assert jumps[1] <= 0.5


@pytest.mark.parametrize(
    ("layer", "options", "reason"),
    [
        (nn.Linear(2, 2), {}, "layer: expected a convolution, max-pool or average pool, got Linear"),
        (nn.ConvTranspose2d(2, 2, 2, 2), {}, "got ConvTranspose2d"),
        (nn.Conv2d(1, 1, 3), {}, "drops no positions"),
        (nn.MaxPool2d(2, return_indices=True), {}, "returns no indices"),
        (nn.MaxPool2d(2), {"kernel_size": 4}, "expected an odd size"),
        (nn.Conv1d(1, 1, 2, 2, padding=2), {"padding_mode": "circular"}, "reach over the padding"),
    ],
)
def test_what_cannot_be_made_over(layer, options, reason):
    with pytest.raises(ValueError, match=reason):
        AntiAliased(layer, **options)
