"""The encoder-decoder: shapes, refusals, and the shifts with which it commutes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from theodolite.analysis.equivariance import measure
from theodolite.analysis.graph import trace
from theodolite.analysis.translation_action import translation_action
from theodolite.models import EncoderDecoder

VARIANTS = [
    (2, "max", True, "circular"), (2, "stride", False, "circular"), (2, "blur", True, "circular"), (3, "max", False, "circular"),
    (3, "stride", True, "circular"), (3, "blur", False, "circular"), (2, "blur", False, "zeros"), (3, "max", True, "reflect"),
]  # fmt: skip


def defect(net, x, by):
    dims = tuple(range(2, x.ndim))
    with torch.no_grad():
        moved = net(x).roll(by, dims)
        return float((net(x.roll(by, dims)) - moved).norm() / moved.norm())


@pytest.mark.parametrize("down", ["max", "stride", "blur"])
def test_stride_four_on_a_torus_of_32(down):
    """Rounding at multiples of 4, a hundredth and more at other shifts."""
    net = EncoderDecoder(1, 2, down=down).double().eval()
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    for c in (4, 8):
        assert defect(net, x, (c, 0)) < 5e-15
        assert defect(net, x, (c, -c)) < 5e-15
    for c in (1, 2, 3, 5, 6):
        assert defect(net, x, (c, 0)) > 1e-2
        assert defect(net, x, (4, c)) > 1e-2


@pytest.mark.parametrize(("dims", "down", "batch_norm", "padding_mode"), VARIANTS)
def test_every_variant(dims, down, batch_norm, padding_mode):
    net = EncoderDecoder(
        2, 3, dims=dims, width=2, depth=1, down=down, padding_mode=padding_mode, batch_norm=batch_norm
    ).double()
    x = torch.randn(2, 2, *(8, 6, 4)[:dims], dtype=torch.float64)
    net(x).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    net.eval()
    assert net(x).shape == (2, 3, *x.shape[2:])
    assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()) == batch_norm
    by = (2, -2, 0)[:dims]
    if padding_mode == "circular":
        assert defect(net, x, by) < 1e-14
    else:
        assert defect(net, x, by) > 1e-6


@pytest.mark.parametrize(
    ("dims", "down", "padding_mode"),
    [(2, "blur", "circular"), (3, "stride", "circular"), (2, "max", "zeros")],
)
def test_the_graph_proves_it(dims, down, padding_mode):
    net = EncoderDecoder(
        1, 2, dims=dims, width=2, depth=1, down=down, padding_mode=padding_mode, batch_norm=True
    ).eval()
    x = torch.randn(2, 1, *(8, 6, 4)[:dims])
    graph = trace(net, x)
    action = translation_action(graph, x)
    found = measure(graph, x, action, shifts=[(2, -2, 0)[:dims]])
    assert found.exact
    if padding_mode == "circular":
        assert all(layer.proved for layer in found.layers), found.fault
    else:
        assert found.fault == "layer 'encoder.0.0' (Conv2d) pads with zeros"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_total_stride_and_the_widths_follow_the_depth(depth):
    net = EncoderDecoder(1, 2, width=2, depth=depth)
    assert net.stride == 2**depth
    assert net.bottom[0].out_channels == 2 * 2**depth
    x = torch.randn(1, 1, 16, 16)
    assert net(x).shape == (1, 2, 16, 16)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"width": 0}, "expected numbers >= 1"),
        ({"dims": 1}, "dims: expected one of 2, 3, got 1"),
        ({"down": "mean"}, "down: expected one of max, stride, blur, got 'mean'"),
        ({"padding_mode": "replicate"}, "padding_mode: expected one of circular, reflect, zeros"),
    ],
)
def test_wrong_options_are_one_sentence(options, reason):
    with pytest.raises(ValueError, match=reason):
        EncoderDecoder(1, 2, **options)


@pytest.mark.parametrize("shape", [(1, 1, 30, 32), (1, 1, 32), (1, 1, 32, 32, 32)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="expected 4 dimensions with 2 sizes that 4 divides"):
        EncoderDecoder(1, 2)(torch.zeros(shape))
