"""Pooling and padding windows against PyTorch's own pooling, entry by entry."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.analysis import pooling
from theodolite.analysis.graph import Node

Size = tuple[int, ...]
POOLS = {
    ("max", 1): F.max_pool1d,
    ("max", 2): F.max_pool2d,
    ("max", 3): F.max_pool3d,
    ("avg", 1): F.avg_pool1d,
    ("avg", 2): F.avg_pool2d,
    ("avg", 3): F.avg_pool3d,
}


def columns(function: object, size: Size) -> Tensor:
    """The outputs for every unit vector: the matrix of a linear function, shape (outputs, inputs)."""
    n = math.prod(size)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, 1, *size)
    return function(basis).flatten(1).T  # type: ignore[operator]


def matrix_of(windows: list[pooling.Windows]) -> Tensor:
    """The Kronecker product of the windows along each axis."""
    result = torch.ones(1, 1, dtype=torch.float64)
    for along in windows:
        one = torch.zeros(along.n_out, along.n, dtype=torch.float64)
        for out, read, weight in zip(along.outputs, along.inputs, along.weights, strict=True):
            one[out, read] += weight
        result = torch.kron(result, one)
    return result


def node_of(op: str, size: Size, out: Size, *arguments: object) -> Node:
    source = Node("x", "input", shape=(2, 1, *size))
    return Node("pool", op, args=(source, *arguments), shape=(2, 1, *out))


def random_pools(kind: str, count: int) -> list[tuple[Node, Tensor]]:
    """Random windows: the node, and PyTorch's outputs for every unit vector."""
    draw = random.Random(count)
    found: list[tuple[Node, Tensor]] = []
    while len(found) < count:
        axes = draw.choice([1, 2, 2, 3])
        size = tuple(draw.randint(1, {1: 12, 2: 7, 3: 4}[axes]) for _ in range(axes))
        kernel, stride = (tuple(draw.randint(1, 4) for _ in range(axes)) for _ in range(2))
        padding = tuple(draw.randint(0, k // 2) for k in kernel)
        ceil = draw.random() < 0.4
        if kind == "max":
            dilation = tuple(draw.randint(1, 2) for _ in range(axes))
            arguments: tuple[object, ...] = (kernel, stride, padding, dilation, ceil)
        else:
            divisor = (draw.randint(1, 9),) if axes > 1 and draw.random() < 0.3 else ()
            arguments = (kernel, stride, padding, ceil, draw.random() < 0.5, *divisor)
        pool = POOLS[kind, axes]
        try:
            image = columns(lambda x, pool=pool, given=arguments: pool(x, *given), size)
            out = tuple(pool(torch.zeros(1, 1, *size), *arguments).shape[2:])
        except RuntimeError:  # the window does not fit
            continue
        found.append((node_of(f"{kind}_pool{axes}d", size, out, *(list(map(_plain, arguments)))), image))
    return found


def _plain(argument: object) -> object:
    return list(argument) if isinstance(argument, tuple) else argument


def test_average_windows_are_the_matrix_of_the_pool():
    for node, image in random_pools("avg", 150):
        windows = pooling.pool_windows(node)
        torch.testing.assert_close(matrix_of(windows), image, atol=1e-14, rtol=0)
        lower, upper = pooling.norm(windows)
        true = float(torch.linalg.matrix_norm(image, 2))
        assert lower <= true * (1 + 1e-12)
        assert upper >= true * (1 - 1e-12)
        assert upper - lower <= 1e-6 * upper


def test_maximum_windows_are_what_each_maximum_reads():
    for node, image in random_pools("max", 150):
        windows = pooling.pool_windows(node)
        # one entry above all others shows in every window that holds it
        torch.testing.assert_close((matrix_of(windows) > 0).double(), (image > 0).double())
        assert bool((matrix_of(windows) <= 1.0).all())
        assert pooling.overlap(windows) == int((image > 0).sum(0).max())


def test_maximum_is_as_steep_as_its_overlap_and_no_steeper():
    generator = torch.Generator().manual_seed(0)
    for kernel, stride, padding in ((3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 0)):
        out = F.max_pool2d(torch.zeros(1, 1, 7, 7), kernel, stride, padding).shape[2:]
        windows = pooling.pool_windows(node_of("max_pool2d", (7, 7), tuple(out), kernel, stride, padding))
        bound = math.sqrt(pooling.overlap(windows))
        a = torch.randn(300, 1, 7, 7, generator=generator, dtype=torch.float64)
        b = a + 3.0 * torch.randn(a.shape, generator=generator, dtype=torch.float64) * (
            torch.rand(a.shape, generator=generator) < 0.1
        )
        fa, fb = (F.max_pool2d(x, kernel, stride, padding) for x in (a, b))
        slope = (fa - fb).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1).clamp_min(1e-12)
        assert float(slope.max()) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_adaptive_pools(axes):
    draw = random.Random(axes)
    average = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[axes]
    maximum = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[axes]
    for _ in range(25):
        size = tuple(draw.randint(1, {1: 12, 2: 7, 3: 4}[axes]) for _ in range(axes))
        out = tuple(draw.randint(1, 5) for _ in range(axes))
        windows = pooling.pool_windows(node_of(f"adaptive_avg_pool{axes}d", size, out, list(out)))
        expected = columns(lambda x, out=out: average(x, out), size)
        torch.testing.assert_close(matrix_of(windows), expected, atol=1e-14, rtol=0)
        windows = pooling.pool_windows(node_of(f"adaptive_max_pool{axes}d", size, out, list(out)))
        expected = columns(lambda x, out=out: maximum(x, out), size)
        torch.testing.assert_close(matrix_of(windows), (expected > 0).double())


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_pads(mode):
    draw = random.Random(0)
    for _ in range(25):
        axes = draw.choice([1, 2])
        size = tuple(draw.randint(3, 6) for _ in range(axes))
        low = -1 if mode == "constant" else 0
        flat = [draw.randint(low, 2) for _ in range(2 * axes)]
        expected = columns(lambda x, flat=flat: F.pad(x, flat, mode=mode), size)
        node = node_of("pad", size, (), flat, mode)
        windows = pooling.pad_windows(node)[::-1]
        torch.testing.assert_close(matrix_of(windows), expected)
        # the norm of a copying is the root of the largest number of copies
        true = float(torch.linalg.matrix_norm(expected, 2))
        assert math.sqrt(pooling.overlap(windows)) == pytest.approx(true)


def test_named_pads_are_read_by_their_names():
    for op, mode in (("reflection_pad1d", "reflect"), ("replication_pad1d", "replicate")):
        windows = pooling.pad_windows(node_of(op, (4,), (), [2, 1]))
        expected = columns(lambda x, mode=mode: F.pad(x, (2, 1), mode=mode), (4,))
        torch.testing.assert_close(matrix_of(windows), expected)
    windows = pooling.pad_windows(node_of("constant_pad_nd", (4,), (), [2, 1], 7.0))
    torch.testing.assert_close(matrix_of(windows), columns(lambda x: F.pad(x, (2, 1)), (4,)))


def test_long_axes_are_bounded_without_their_matrix(monkeypatch):
    node = node_of("avg_pool1d", (40,), (19,), [4], [2], [0])
    lower, upper = pooling.norm(pooling.pool_windows(node))
    monkeypatch.setattr(pooling, "_DENSE", 0)
    wide_lower, wide_upper = pooling.norm(pooling.pool_windows(node))
    assert wide_lower <= lower <= upper <= wide_upper
    # each window reads four entries, each entry is read twice: the Schur test is nearly met
    assert wide_upper == pytest.approx(math.sqrt(0.5), rel=1e-9)
    assert wide_upper <= 1.01 * upper


def test_windows_beyond_the_input_read_nothing():
    windows = pooling.pad_windows(node_of("pad", (3,), (), [-3, 1], "constant"))
    assert pooling.overlap(windows) == 0
    assert pooling.norm(windows) == (0.0, 0.0)


def test_apply_sums_powers_of_the_weights():
    node = node_of("avg_pool2d", (4, 4), (2, 2), [2, 2])
    rows, cols = pooling.pool_windows(node)
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    for power in (1.0, 2.0):
        expected = F.avg_pool2d(x, 2) * 4.0 / 4.0**power
        torch.testing.assert_close(cols.apply(rows.apply(x, -2, power), -1, power), expected)
