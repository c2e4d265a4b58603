"""Frame bounds of layers against the singular values of their matrices, built column by column."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from theodolite.analysis.frames import frame_bounds
from theodolite.analysis.graph import trace
from theodolite.analysis.linear_layers import Constants, linear_layers

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def bounds_of(module, shape):
    graph = trace(module, torch.zeros(2, *shape, dtype=next(module.parameters()).dtype))
    return frame_bounds(linear_layers(graph, Constants(graph))[0])


def dense(module, shape):
    """The matrix of x -> f(x) - f(0), one unit input a column."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        columns = module(basis) - module(torch.zeros(1, *shape, dtype=torch.float64))
    return columns.flatten(1).T


def extremes(matrix):
    """Smallest and largest |Kx|^2 for |x| = 1."""
    values = torch.linalg.eigvalsh(matrix.T @ matrix)
    return max(0.0, float(values[0])), float(values[-1])


def check(module, shape):
    found, (A, B) = bounds_of(module, shape), extremes(dense(module, shape))
    slack = 1e-12 * max(B, 1.0)
    for value, truth in ((found.lower, A), (found.upper, B)):
        assert value.low - slack <= truth <= value.high + slack, (module, shape, truth, value)
    assert found.tree.high >= B - slack
    return found


def normalized(conv, channels):
    norm = NORM[conv.weight.ndim - 2](channels)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.uniform_(norm.weight, -2.0, 2.0)
    return nn.Sequential(conv, norm)


@pytest.mark.parametrize("seed", range(3))
def test_random_convolutions_against_their_matrices(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    done = 0
    while done < 6:
        d = draw.choice([1, 2, 2, 3])
        longest = {1: 14, 2: 6, 3: 4}[d]
        shape = tuple(draw.randint(3, longest) for _ in range(d))
        kernel, stride, dilation, pad = (
            tuple(draw.randint(low, high) for _ in range(d)) for low, high in ((1, 3), (1, 3), (1, 2), (0, 1))
        )
        groups = draw.choice([1, 1, 2])
        channels, outputs = groups * draw.randint(1, 2), groups * draw.randint(1, 3)
        options = {"padding": pad, "dilation": dilation, "groups": groups}
        if draw.random() < 0.25:
            conv = TRANSPOSED[d](channels, outputs, kernel, stride, **options)
        else:
            mode = draw.choice(["zeros", "circular", "reflect", "replicate"])
            conv = CONV[d](channels, outputs, kernel, stride, padding_mode=mode, **options)
        module = (normalized(conv, outputs) if draw.random() < 0.4 else conv).double().eval()
        try:
            module(torch.zeros(1, channels, *shape, dtype=torch.float64))
        except (RuntimeError, ValueError):
            continue  # a window longer than the input
        check(module, (channels, *shape))
        done += 1


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_circular_convolutions_exactly(d, stride):
    torch.manual_seed(d)
    size = {1: 16, 2: 8, 3: 4}[d]
    conv = CONV[d](1, 2 * stride**d, max(3, stride), stride, 1, padding_mode="circular", bias=False).double()
    shape = (1, *[size] * d)
    found, values = bounds_of(conv, shape), torch.linalg.svdvals(dense(conv, shape))
    assert found.lower.kind == found.upper.kind == found.tree.kind == "exact"
    assert found.upper.value == pytest.approx(float(values[0]) ** 2, rel=1e-12)
    assert found.lower.value == pytest.approx(float(values[-1]) ** 2, rel=1e-9)
    assert found.lower.value > 0.0


def test_inputs_that_no_window_reads():
    torch.manual_seed(0)
    assert check(nn.Conv1d(1, 6, 2, 3, padding_mode="circular").double(), (1, 12)).lower.value == 0.0
    assert check(nn.Conv1d(1, 3, 3, 3, padding_mode="circular").double(), (1, 12)).lower.value > 0.0
    # a transposed convolution of 5 channels that writes 2 positions of each 3
    assert check(nn.ConvTranspose1d(5, 2, 2, 3, output_padding=1).double(), (5, 4)).lower.value == 0.0


def test_symbol_of_the_note():
    """3 x 3, circular, N = 8, and with stride 2: the symbol's maximum is the matrix's norm."""
    torch.manual_seed(0)
    for stride in (1, 2):
        conv = nn.Conv2d(3, 5, 3, stride, 1, padding_mode="circular").double()
        B = float(torch.linalg.matrix_norm(dense(conv, (3, 8, 8)), 2)) ** 2
        assert bounds_of(conv, (3, 8, 8)).upper.value == pytest.approx(B, rel=1e-12)


def test_sum_over_branches_by_the_definition():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, 1, 1, padding_mode="circular", bias=False).double()
    spectra = torch.fft.fftn(conv.weight.detach(), s=(8, 8), dim=(2, 3)).abs().square()
    found = bounds_of(conv, (3, 8, 8))
    assert found.tree.value == pytest.approx(float(spectra.sum((0, 1)).max()), rel=1e-12)
    assert found.tree.value > found.upper.value
    # of one input channel and one filter, both are the largest squared gain
    single = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    one = bounds_of(single, (1, 12))
    assert one.tree.value == pytest.approx(one.upper.value, rel=1e-12)


def test_what_has_fewer_outputs_has_no_lower_bound():
    torch.manual_seed(0)
    for module, shape in (
        (nn.Conv2d(4, 2, 3, padding=1), (4, 6, 6)),
        (nn.Conv2d(2, 4, 3, 2, 1, padding_mode="circular"), (2, 8, 8)),
        (nn.Linear(7, 5), (7,)),
    ):
        found = check(module.double(), shape)
        assert (found.lower.kind, found.lower.value) == ("exact", 0.0)
        assert "some inputs are mapped to zero" in found.lower.note


def test_orthogonal_layers_are_tight():
    patch = nn.Conv2d(3, 12, 2, 2, bias=False).double()
    nn.init.orthogonal_(patch.weight.data.view(12, 12))
    back = nn.ConvTranspose2d(12, 3, 2, 2, bias=False).double()
    back.weight.data = patch.weight.data.clone()
    for module, shape in ((patch, (3, 64, 64)), (back, (12, 32, 32))):
        found = bounds_of(module, shape)  # no padding and nothing left over: exact at any size
        assert found.lower.value == pytest.approx(1.0, rel=1e-12)
        assert found.upper.value == pytest.approx(1.0, rel=1e-12)
    left_over = bounds_of(patch, (3, 65, 64))
    assert left_over.lower.value == 0.0


def test_zero_padding_needs_the_longer_grid():
    """The kernel (1, 1) on two points: |x|^2 + (x_1 + x_2)^2 without wrapping, and the bound is above it."""
    conv = nn.Conv1d(1, 1, 2, padding=1, bias=False).double()
    nn.init.ones_(conv.weight)
    found = check(conv, (1, 2))
    assert found.upper.low <= 3.0 <= found.upper.high < 3.0 + 1e-6
    assert found.lower.low <= 1.0 <= found.lower.high


def test_large_layers_are_bounded_without_a_decomposition():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    found = bounds_of(conv, (16, 40, 40))
    assert found.lower.low == 0.0 < found.lower.high <= found.upper.high
    assert "too large" in found.lower.note
    padded = bounds_of(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), (16, 40, 40))
    assert "the squared norm of its padding" in padded.upper.note
    wide = bounds_of(nn.Linear(1200, 1300), (1200,))
    assert wide.lower.low == 0.0
    assert wide.lower.high == pytest.approx(1300 / 3 / 1200, rel=0.05)


def test_reflection_stretches_by_its_multiplicity():
    """A reflected border repeats an entry: the identity behind it has B = 2 a side."""
    conv = nn.Conv1d(1, 3, 3, padding=1, padding_mode="reflect", bias=False).double()
    conv.weight.data = torch.eye(3, dtype=torch.float64).reshape(3, 1, 3)
    found = check(conv, (1, 8))
    assert found.upper.high == pytest.approx(4.0, rel=1e-9)


def test_zero_weights_and_lower_precision():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    nn.init.zeros_(conv.weight)
    found = bounds_of(conv, (2, 5, 5))
    assert (found.lower.value, found.upper.value, found.tree.value) == (0.0, 0.0, 0.0)
    torch.manual_seed(0)
    single = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    wide = bounds_of(single, (2, 6, 6))
    assert wide == bounds_of(single.double(), (2, 6, 6)), "statements are about the stored weights"
    for scale in (1e-30, 1e30):
        scaled = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular").double()
        scaled.weight.data = single.weight.data * scale
        assert bounds_of(scaled, (2, 6, 6)).upper.value == pytest.approx(
            wide.upper.value * scale**2, rel=1e-9
        )
