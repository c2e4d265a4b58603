"""Operator norms of single layers against matrices that are built entry by entry."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from theodolite.analysis import convolution
from theodolite.analysis.convolution import Convolution
from theodolite.analysis.operator_norms import operator_norm
from theodolite.reference import convolution as reference

SECOND_DIFFERENCE = torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64)


def same(kernel: torch.Tensor, n: int) -> Convolution:
    """A convolution with zero padding that keeps the size n."""
    axes = kernel.ndim
    half = tuple((k // 2, k // 2) for k in kernel.shape)
    return Convolution(kernel[None, None], (n,) * axes, (1,) * axes, half, (1,) * axes)


def top(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def dense_norm(module: nn.Module, shape: tuple[int, ...]) -> float:
    module = module.double().eval()
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        columns = (module(basis) - module(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1)
    return float(torch.linalg.matrix_norm(columns, 2))


@pytest.mark.parametrize(
    ("n", "twisted", "expected"),
    [
        (5, False, 3.6180340),
        (6, False, 4.0),
        (7, False, 3.8019377),
        (9, False, 3.8793852),
        (6, True, 3.7320508),
    ],
)
def test_second_difference_on_rings(n, twisted, expected):
    operator = same(SECOND_DIFFERENCE, 5)
    assert operator.symbol_bound([((n, twisted),)]) == pytest.approx(expected, rel=1e-6)
    # five is too short a ring: what it gives is below the norm
    assert (operator.symbol_bound([((n, twisted),)]) < 2.0 + math.sqrt(3.0)) == (n == 5)


def test_second_difference():
    operator = same(SECOND_DIFFERENCE, 5)
    for bound in (operator.norm(), operator_norm(_as_module(SECOND_DIFFERENCE), (1, 5))):
        assert bound.lower == pytest.approx(3.7320508, rel=1e-6)
        assert bound.upper == pytest.approx(3.7320508, rel=1e-6)
    # the twisted ring attains the norm here, where the best plain ring gives 3.8019377
    assert operator.symbol_bound() == pytest.approx(2.0 + math.sqrt(3.0), rel=1e-6)


@pytest.mark.parametrize(("n", "expected"), [(5, 13.0901699), (6, 16.0), (7, 14.4547305)])
def test_outer_product_on_rings(n, expected):
    operator = same(torch.outer(SECOND_DIFFERENCE, SECOND_DIFFERENCE), 5)
    assert operator.symbol_bound([((n, False), (n, False))]) == pytest.approx(expected, rel=1e-6)
    assert operator.norm().lower == pytest.approx(13.9282032, rel=1e-6)
    assert operator.norm().upper == pytest.approx(13.9282032, rel=1e-6)


def _as_module(kernel: torch.Tensor) -> nn.Module:
    module = nn.Conv1d(1, 1, len(kernel), padding=len(kernel) // 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(kernel)
    return module


def random_convolutions(count: int, seed: int, mode: str) -> list[Convolution]:
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    found: list[Convolution] = []
    while len(found) < count:
        axes = draw.choice([1, 1, 2, 2, 3]) if mode == "zeros" else draw.choice([1, 2])
        largest = {1: 9, 2: 5, 3: 3}[axes]
        size = tuple(draw.randint(1, largest) for _ in range(axes))
        kernel = tuple(draw.randint(1, 4 if axes < 3 else 2) for _ in range(axes))
        stride, dilation = (tuple(draw.randint(1, m) for _ in range(axes)) for m in (3, 2))
        padding = tuple(draw.randint(0, min(n, 4) if mode != "zeros" else 4) for n in size)
        groups = draw.choice([1, 1, 2])
        weight = torch.randn(
            groups * draw.randint(1, 2), draw.randint(1, 2), *kernel, generator=generator
        ).double()
        if draw.random() < 0.3:
            weight[draw.randrange(len(weight))] = weight.abs().max()  # a low-pass filter
        sides = tuple((p, p) for p in padding)
        operator = Convolution(weight, size, stride, sides, dilation, groups, mode)
        if all(n > 0 for n in operator.out_size):
            found.append(operator)
    return found


def reference_matrix(operator: Convolution) -> np.ndarray:
    return reference.matrix(
        operator.weight.numpy(),
        operator.size,
        stride=operator.stride,
        padding=[left for left, _ in operator.padding],
        dilation=operator.dilation,
        groups=operator.groups,
        mode=operator.mode,
    )


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_symbol_bound_never_falls_below_the_matrix(mode):
    for operator in random_convolutions(200 if mode == "zeros" else 150, 0, mode):
        true = top(reference_matrix(operator))
        axes = [operator._axis(axis) for axis in range(len(operator.size))]
        upper = operator.symbol_bound()
        assert upper >= true * (1 - 1e-12), operator
        if mode == "zeros" and all(axis.taps for axis in axes):
            # every admissible ring is valid by itself, twisted or not
            for more, twist in itertools.product((0, 1, 2, 3), (False, True)):
                ring = [tuple((axis.shortest + more, twist) for axis in axes)]
                assert operator.symbol_bound(ring) >= true * (1 - 1e-12), (operator, more, twist)


def test_circular_symbol_is_the_norm():
    exact = [
        c
        for c in random_convolutions(150, 1, "circular")
        if all(n % s == 0 for n, s in zip(c.size, c.stride, strict=True))
        and all(m == n // s for m, n, s in zip(c.out_size, c.size, c.stride, strict=True))
    ]
    assert len(exact) > 15
    assert any(s > 1 for c in exact for s in c.stride)
    for operator in exact:
        assert operator.symbol_bound() == pytest.approx(top(reference_matrix(operator)), rel=1e-6)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_dense_and_frobenius_are_those_of_the_definition(mode):
    for operator in random_convolutions(40, 2, mode):
        expected = reference_matrix(operator)
        blocks = operator.dense()
        assert operator.squared_frobenius() == pytest.approx((expected**2).sum(), rel=1e-10)
        full = torch.block_diag(*blocks).numpy()
        np.testing.assert_allclose(full, expected, atol=1e-12)
        x = torch.randn(2, operator.in_channels, *operator.size, dtype=torch.float64)
        np.testing.assert_allclose(
            operator(x).flatten(1).numpy(), x.flatten(1).numpy() @ expected.T, atol=1e-10
        )


def test_large_path_brackets_the_norm(monkeypatch):
    monkeypatch.setattr(convolution, "DENSE_SIDE", 0)
    for operator in random_convolutions(80, 3, "zeros"):
        value = operator.norm()
        true = top(reference_matrix(operator))
        assert value.lower <= true * (1 + 1e-12)
        assert value.upper >= true * (1 - 1e-12)
        assert value.lower >= 0.99 * true  # Lanczos has the space for it


def test_coarse_grid_is_still_a_bound(monkeypatch):
    monkeypatch.setattr(convolution, "_MOST", 0.0)
    generator = torch.Generator().manual_seed(0)
    for n in (12, 30, 41):
        weight = torch.randn(3, 2, 3, 3, generator=generator).double()
        operator = Convolution(weight, (n, n), (1, 1), ((1, 1), (1, 1)), (1, 1))
        true = operator.ritz_bound(steps=60)
        assert true <= operator.symbol_bound() <= 1.1 * true


def test_coarse_grid_makes_up_for_a_peak_between_its_frequencies(monkeypatch):
    # |1 - exp(2 i w)| is largest at a quarter turn, halfway between two of the grid's 30 frequencies
    kernel = torch.tensor([[[1.0, 0.0, -1.0, 0.0]]], dtype=torch.float64)
    operator = Convolution(kernel, (400,), (1,), ((1, 2),), (1,))
    true = operator.norm().lower
    assert true == pytest.approx(2.0, rel=1e-3)
    grid = max(abs(1.0 - np.exp(4j * np.pi * k / 30)) for k in range(30))
    assert grid < 0.996 * true
    monkeypatch.setattr(convolution, "_MOST", 0.0)
    assert true <= operator.symbol_bound() <= 1.02 * true


LAYERS = [
    (nn.Linear(7, 4), (7,)),
    (nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect"), (2, 7)),
    (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 6, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 5, 4)),
    (nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2)), (2, 5, 6)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", stride=2), (2, 6, 5)),
    (nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), (1, 4, 4, 3)),
    (nn.ConvTranspose1d(3, 2, 4, stride=3, padding=1, output_padding=2), (3, 5)),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 3)),
    (nn.ConvTranspose2d(2, 3, 2, dilation=3, output_padding=2, stride=2), (2, 3, 3)),
    (nn.AvgPool2d(3, 2, 1), (2, 6, 7)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (1, 6, 7)),
    (nn.AvgPool2d((2, 3), divisor_override=5), (1, 6, 7)),
    (nn.AdaptiveAvgPool2d((3, 2)), (1, 7, 5)),
    (nn.ReflectionPad1d(4), (1, 8)),
    (nn.ReplicationPad2d((2, 0, 1, 3)), (1, 4, 3)),
    (nn.Upsample(scale_factor=2), (1, 3, 4)),
    (nn.Upsample(size=(5, 7), mode="bilinear"), (1, 3, 4)),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)), (1, 6, 6)),
    (nn.Flatten(), (2, 3)),
]


@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=lambda item: type(item).__name__)
def test_layers_against_their_matrix(module, shape):
    value = operator_norm(module.eval(), shape)
    true = dense_norm(module, shape)
    assert value.lower <= true * (1 + 1e-6)
    assert value.upper >= true * (1 - 1e-9)
    assert value.upper == pytest.approx(true, rel=1e-5)
    assert value.lower == pytest.approx(true, rel=1e-5)


def test_reflect_padding_copies_both_sides():
    assert operator_norm(nn.ReflectionPad1d(4), (1, 8)).upper == pytest.approx(math.sqrt(3.0))


def test_batch_norm_in_both_modes():
    norm = nn.BatchNorm2d(3).eval()
    norm.weight.data = torch.tensor([1.0, -4.0, 0.5])
    norm.running_var = torch.tensor([1.0, 4.0, 1.0])
    value = operator_norm(norm, (3, 4, 4))
    assert value.upper == pytest.approx(4.0 / math.sqrt(4.0 + norm.eps), rel=1e-6)
    assert operator_norm(nn.Sequential(nn.Conv2d(2, 3, 3), norm).eval(), (2, 5, 5)).upper > 0
    with pytest.raises(ValueError, match="evaluation mode"):
        operator_norm(norm.train(), (3, 4, 4))


@pytest.mark.parametrize(
    ("pool", "windows"),
    [
        (nn.MaxPool2d(2), 1),
        (nn.MaxPool2d(3, 2, 1), 4),
        (nn.MaxPool2d(3, 1, 1), 9),
        (nn.AdaptiveMaxPool2d((4, 3)), 4),
    ],
)
def test_max_pool_counts_windows(pool, windows):
    value = operator_norm(pool, (1, 7, 7))
    assert value.lower == value.upper == math.sqrt(windows)
    # attained: one pixel above all others
    x = torch.zeros(49, 1, 7, 7, dtype=torch.float64)
    x.view(49, 49).fill_diagonal_(1.0)
    slopes = pool(x).flatten(1).norm(dim=1)
    assert float(slopes.max()) == pytest.approx(math.sqrt(windows))


def test_kernel_as_a_matrix_is_no_bound():
    torch.manual_seed(0)
    module = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    value = operator_norm(module, (8, 12, 12))
    reshaped = float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2))
    assert value.lower > 1.3 * reshaped


def test_zero_and_unread_kernels():
    module = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    nn.init.zeros_(module.weight)
    value = operator_norm(module, (2, 4, 4))
    assert (value.lower, value.upper) == (0.0, 0.0)
    # on a 1x1 image only the middle tap is ever read
    nn.init.ones_(module.weight)
    assert operator_norm(module, (2, 1, 1)).upper == pytest.approx(2.0)


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match="module: expected a linear layer, pooling or padding, got Sigmoid"):
        operator_norm(nn.Sigmoid(), (3,))
    with pytest.raises(ValueError, match="input_shape"):
        operator_norm(nn.Linear(3, 2), (5,))


def test_the_module_is_left_alone():
    module = nn.Conv2d(2, 3, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    operator_norm(module, (2, 6, 6))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())


def random_modules(count: int, seed: int) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Convolutions with every padding mode, and transposed ones, in one to three dimensions."""
    draw = random.Random(seed)
    found: list[tuple[nn.Module, tuple[int, ...]]] = []
    while len(found) < count:
        axes = draw.choice([1, 2, 2, 3])
        size = tuple(draw.randint(1, {1: 9, 2: 5, 3: 3}[axes]) for _ in range(axes))
        kernel, stride, dilation = (tuple(draw.randint(1, most) for _ in range(axes)) for most in (3, 3, 2))
        groups = draw.choice([1, 1, 2])
        inputs, outputs = groups * draw.randint(1, 2), groups * draw.randint(1, 2)
        if draw.random() < 0.65:
            mode = draw.choice(["zeros", "circular", "reflect", "replicate"])
            padding = draw.choice([tuple(draw.randint(0, 2) for _ in range(axes)), "same", "valid"])
            stride = (1,) * axes if padding == "same" else stride
            layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
            module = layer(inputs, outputs, kernel, stride, padding, dilation, groups, padding_mode=mode)
        else:
            extra = tuple(draw.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
            layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
            module = layer(inputs, outputs, kernel, stride, draw.randint(0, 1), extra, groups, True, dilation)
        module = module.double().requires_grad_(False)
        try:
            fits = module(torch.zeros(1, inputs, *size, dtype=torch.float64)).numel() > 0
        except RuntimeError:  # the kernel is larger than the input, or the padding than what it mirrors
            continue
        if fits:
            found.append((module, (inputs, *size)))
    return found


def test_random_modules_against_their_matrix():
    for module, shape in random_modules(12, 0):
        value, true = operator_norm(module, shape), dense_norm(module, shape)
        assert value.lower <= true * (1 + 1e-9), (module, shape)
        assert value.upper >= true * (1 - 1e-12), (module, shape)
        assert value.upper <= true * (1 + 1e-6), (module, shape)


@pytest.mark.parametrize("stride", [1, 2])
def test_large_circular_convolutions_are_bracketed(monkeypatch, stride):
    monkeypatch.setattr(convolution, "DENSE_SIDE", 0)
    for operator in random_convolutions(40, 10 + stride, "circular"):
        value, true = operator.norm(), top(reference_matrix(operator))
        assert value.lower <= true * (1 + 1e-12)
        assert value.upper >= true * (1 - 1e-12)


def test_power_iteration_from_below_is_no_bound_above():
    """Many channels: a hundred steps have not arrived, the proved upper end has."""
    generator = torch.Generator().manual_seed(0)
    operator = Convolution(
        torch.randn(96, 96, 3, 3, generator=generator).double(), (8, 8), (1, 1), ((1, 1), (1, 1)), (1, 1)
    )
    upper, lower = operator.symbol_bound(), operator.ritz_bound(steps=60)
    x = torch.randn(1, 96, 8, 8, generator=generator).double()
    for _ in range(20):
        with torch.enable_grad():
            x.requires_grad_()
            y = operator(x)
            (x,) = torch.autograd.grad(0.5 * y.square().sum(), x)
        x = (x / x.norm()).detach()
    power = float(operator(x).norm())
    assert power < 0.99 * lower
    assert lower <= upper <= 1.1 * lower
