"""Path norms against the enumeration of all paths, and the inequality that they are for."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Hashable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import mlp
from random_nets import Branches, Residual, batch_norm, random_network
from torch import Tensor, nn

from theodolite.analysis.graph import trace
from theodolite.analysis.path_norm import NotReLU, path_norm, path_sum
from theodolite.reference import convolution, paths

ORDERS = (1.0, 2.0, 3.0)


def array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().double().numpy()


def enumerated(layers: list[tuple[object, object]], q: float) -> float:
    return paths.path_norm(*paths.layered_edges(layers), q)


def check(model: nn.Module, shape: tuple[int, ...], layers: list[tuple[object, object]]) -> None:
    """Compare with the enumeration, with biases as edges and without them."""
    graph = trace(model, torch.zeros(2, *shape))
    unbiased = [(weight, None) for weight, _ in layers]
    for q in ORDERS:
        assert path_sum(graph, q).norm == pytest.approx(enumerated(layers, q), rel=1e-6)
        assert path_sum(graph, q, "drop").norm == pytest.approx(enumerated(unbiased, q), rel=1e-6)


def test_known_answer():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    model[2].weight.data = torch.tensor([[1.0, -1.0]])
    x = torch.zeros(2, 2)
    assert path_norm(model, x).value == pytest.approx(math.sqrt(14.0), rel=1e-12)
    assert path_norm(model, x, 1.0).value == pytest.approx(6.0, rel=1e-12)
    assert path_sum(trace(model, x)).total == pytest.approx(14.0, rel=1e-12)


# against enumeration


@pytest.mark.parametrize("bias", [False, True])
def test_fully_connected(bias):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(3, 4, bias=bias), nn.ReLU(), nn.Linear(4, 2, bias=bias), nn.LeakyReLU(0.3)),
        nn.Linear(2, 3, bias=bias),
    )
    check(model, (3,), [(array(model[i].weight), array(model[i].bias)) for i in (0, 2, 4)])


def conv_matrix(layer: nn.Conv2d, size: tuple[int, int]) -> np.ndarray:
    return convolution.matrix(
        array(layer.weight),
        size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def pool_matrix(channels: int, size: int, kernel: int, stride: int, entry: float) -> np.ndarray:
    starts = range(0, size - kernel + 1, stride)
    along = np.array([[float(s <= i < s + kernel) for i in range(size)] for s in starts])
    return entry * np.kron(np.eye(channels), np.kron(along, along))


@pytest.mark.parametrize("average", [False, True])
def test_convolution_and_pooling(average):
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 4, 2, padding=1, dilation=2, groups=2)
    # 3 + 2 - 2 = 3 places a side; windows of 2 at stride 1 overlap
    pool = nn.AvgPool2d(2, 1) if average else nn.MaxPool2d(2, 1)
    model = nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(16, 2))
    bias = np.repeat(array(conv.bias), 9)
    layers = [
        (conv_matrix(conv, (3, 3)), bias),
        (pool_matrix(4, 3, 2, 1, 0.25 if average else 1.0), None),
        (array(model[4].weight), array(model[4].bias)),
    ]
    check(model, (2, 3, 3), layers)


def test_strided_and_transposed_convolution():
    torch.manual_seed(2)
    down, up = nn.Conv1d(1, 2, 3, stride=2, padding=1), nn.ConvTranspose1d(2, 1, 3, stride=2)
    model = nn.Sequential(down, nn.ReLU(), up)
    weight = down.weight.detach().double().numpy()
    first = convolution.matrix(weight, (4,), stride=(2,), padding=(1,), dilation=(1,))
    # a transposed convolution is the adjoint of the convolution with the same kernel
    kernel = up.weight.detach().double().numpy()
    second = convolution.matrix(kernel, (5,), stride=(2,), padding=(0,), dilation=(1,)).T
    layers = [(first, np.repeat(array(down.bias), 2)), (second, np.repeat(array(up.bias), 5))]
    check(model, (1, 4), layers)


def test_two_taps_on_one_input_are_two_paths():
    torch.manual_seed(3)
    conv = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    # a ring of two: both outer taps read the same neighbor
    taps = conv.weight.detach().double().abs()
    graph = trace(conv, torch.zeros(2, 1, 2))
    for q in ORDERS:
        assert path_sum(graph, q).total == pytest.approx(2.0 * float((taps**q).sum()), rel=1e-6)


@pytest.mark.parametrize("where", ["folded", "alone"])
def test_batch_norm_is_an_edge(where):
    torch.manual_seed(4)
    norm, head = batch_norm(3, 0), nn.Linear(3, 2)
    scale = array(norm.weight) / np.sqrt(array(norm.running_var) + norm.eps)
    shift = array(norm.bias) - scale * array(norm.running_mean)
    last = (array(head.weight), array(head.bias))
    if where == "folded":
        layer = nn.Linear(2, 3)
        model = nn.Sequential(layer, norm, nn.ReLU(), head).eval()
        weight, bias = array(layer.weight), array(layer.bias)
        check(model, (2,), [(scale[:, None] * weight, scale * bias + shift), last])
    else:
        model = nn.Sequential(nn.ReLU(), norm, nn.ReLU(), head).eval()
        check(model, (3,), [(np.diag(scale), shift), last])
    found = path_sum(trace(model, torch.zeros(2, 2 if where == "folded" else 3)))
    assert found.folded == ("1",)


def linear_edges(layer: nn.Linear, source: str, sink: str) -> list[paths.Edge]:
    weight = array(layer.weight)
    edges: list[paths.Edge] = [
        ((source, j), (sink, i), float(weight[i, j])) for i, j in itertools.product(*map(range, weight.shape))
    ]
    if layer.bias is not None:
        edges += [("one", (sink, i), float(b)) for i, b in enumerate(array(layer.bias))]
    return edges


def test_residual_sum_and_concatenation():
    torch.manual_seed(5)
    inner, outer, head = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(4, 2)
    body = nn.Sequential(inner, nn.ReLU(), outer)
    sources: list[Hashable] = [("x", 0), ("x", 1), "one"]
    common = linear_edges(inner, "x", "h") + linear_edges(outer, "h", "s")
    for sign in (1, -1):
        # y = x +- body(x): the identity is a path of weight one
        edges = common + [(("x", i), ("s", i), 1.0) for i in range(2)]
        graph = trace(Residual(body, nn.Identity(), sign), torch.zeros(2, 2))
        for q in ORDERS:
            expected = paths.path_norm(edges, sources, [("s", 0), ("s", 1)], q)
            assert path_sum(graph, q).norm == pytest.approx(expected, rel=1e-6)
    model = nn.Sequential(Branches(body, nn.Identity()), nn.ReLU(), head)
    edges = common + [(("s", i), ("c", i), 1.0) for i in range(2)]
    edges += [(("x", i), ("c", 2 + i), 1.0) for i in range(2)] + linear_edges(head, "c", "y")
    graph = trace(model, torch.zeros(2, 2))
    for q in ORDERS:
        expected = paths.path_norm(edges, sources, [("y", 0), ("y", 1)], q)
        assert path_sum(graph, q).norm == pytest.approx(expected, rel=1e-6)


def test_tied_weights_count_wherever_they_are_used():
    torch.manual_seed(6)
    shared = nn.Linear(3, 3)
    layer = (array(shared.weight), array(shared.bias))
    check(nn.Sequential(shared, nn.ReLU(), shared), (3,), [layer, layer])


# operations without weights

SIMPLE: list[tuple[str, Callable[[Tensor], Tensor], tuple[int, ...], float, float]] = [
    # the sum over paths of order 1 and of order 2
    ("identity", lambda x: x, (3,), 3.0, 3.0),
    ("negative", lambda x: -x, (3,), 3.0, 3.0),
    ("absolute value", torch.abs, (3,), 3.0, 3.0),
    ("scaled", lambda x: 2.0 * x, (3,), 6.0, 12.0),
    ("divided", lambda x: x / 2.0, (3,), 1.5, 0.75),
    ("weighted summand", lambda x: torch.sub(x, x.relu(), alpha=3.0), (3,), 12.0, 30.0),
    ("constant minus", lambda x: 5.0 - x, (3,), 18.0, 78.0),
    ("elementwise maximum", lambda x: torch.maximum(x, x.flip(1)), (3,), 6.0, 6.0),
    ("maximum with a constant", lambda x: torch.maximum(x, torch.full((3,), 2.0)), (3,), 9.0, 15.0),
    ("maximum along an axis", lambda x: x.max(1, keepdim=True).values, (3,), 3.0, 3.0),
    ("maximum without the axis", lambda x: x.max(2)[0], (2, 3), 6.0, 6.0),
    ("largest", lambda x: x.amax((1, 2))[:, None], (2, 3), 6.0, 6.0),
    ("sum", lambda x: x.sum(1, keepdim=True), (4,), 4.0, 4.0),
    ("mean", lambda x: x.mean(1, keepdim=True), (4,), 1.0, 0.25),
    ("pieces", lambda x: x.chunk(2, 1)[0] + 2.0 * x.chunk(2, 1)[1], (4,), 6.0, 10.0),
    ("one of several", lambda x: x.split([1, 3], 1)[1], (4,), 3.0, 3.0),
    ("stacked", lambda x: torch.stack([x, -x], 1), (2,), 4.0, 4.0),
    ("copies", lambda x: x.repeat(1, 3), (2,), 6.0, 6.0),
    ("uneven copies", lambda x: x.repeat_interleave(torch.tensor([1, 4]), 1), (2,), 5.0, 5.0),
    ("broadcast", lambda x: x[:, :, None] + x[:, None, :], (3,), 18.0, 18.0),
    ("global average", lambda x: F.adaptive_avg_pool2d(x, 1), (1, 2, 2), 1.0, 0.25),
    ("global maximum", lambda x: F.adaptive_max_pool2d(x, 1), (1, 2, 2), 4.0, 4.0),
    ("maximum and its place", lambda x: F.max_pool2d(x, 2, 1, return_indices=True)[0], (1, 3, 3), 16.0, 16.0),
    ("constant padding", lambda x: F.pad(x, (1, 0), value=-3.0), (2,), 5.0, 11.0),
    ("mirrored padding", lambda x: F.pad(x, (1, 1), mode="reflect"), (1, 3), 5.0, 5.0),
    ("inactive dropout", lambda x: F.dropout(x, 0.5, training=False), (3,), 3.0, 3.0),
    ("in place", lambda x: x.clone().mul_(2.0).relu_(), (3,), 6.0, 12.0),
]


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Together(nn.Module):
    """Several functions of one input: one graph to trace, with an output for each."""

    def __init__(self, functions: list[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), *(function(x).flatten(1) for function in self.functions)], 1)


@pytest.mark.parametrize("shape", sorted({case[2] for case in SIMPLE}), ids=str)
def test_operations_without_weights(shape):
    cases = [case for case in SIMPLE if case[2] == shape]
    graph = trace(Together([case[1] for case in cases]), torch.zeros(2, *shape))
    together = 1.0 * math.prod(shape) + sum(case[3] for case in cases)
    assert path_sum(graph, 1.0).total == pytest.approx(together, rel=1e-12)
    for (name, _, _, *totals), node in zip(cases, graph.output.args[0][1:], strict=True):
        for q, total in zip((1.0, 2.0), totals, strict=True):
            found = path_sum(dataclasses.replace(graph, output=node), q).total
            assert found == pytest.approx(total, rel=1e-12), (name, q)


def test_final_softmax_is_left_out_and_named():
    model = nn.Sequential(nn.Linear(2, 3), nn.Softmax(1))
    x = torch.zeros(2, 2)
    assert path_sum(trace(model, x)).stripped == "1"
    assert path_norm(model, x).value == path_norm(model[0], x).value
    with pytest.raises(NotReLU, match=r"'1' \(Softmax\)"):
        path_norm(nn.Sequential(*model, nn.Linear(3, 2)), x)


# what the norm is for


def test_order_one_bounds_the_growth_of_random_networks():
    """|f(a) - f(b)|_1 <= phi_1 |a - b|_inf without biases; |f(a)|_1 <= phi_1 max(|a|_inf, 1) with them."""
    closest = 0.0
    for seed in range(300, 306):
        model, shape = random_network(seed, relu_only=True)
        graph = trace(model, torch.zeros(2, *shape, dtype=torch.float64))
        slope = path_sum(graph, 1.0, "drop").norm
        size = path_sum(graph, 1.0, "edge").norm
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(64, *shape, generator=generator, dtype=torch.float64)
        a[:32] = torch.sign(a[:32])
        signs = torch.sign(torch.randn(a.shape, generator=generator, dtype=torch.float64))
        # from points close together to points far apart
        apart = torch.logspace(-3, 1, 64, dtype=torch.float64).reshape(-1, *(1 for _ in shape))
        b = a + apart * signs
        with torch.no_grad():
            fa, fb = model(a).flatten(1), model(b).flatten(1)
        growth = (fa - fb).abs().sum(1) / (a - b).flatten(1).abs().amax(1)
        assert float(growth.max()) <= slope * (1 + 1e-9), seed
        assert bool((fa.abs().sum(1) <= size * a.flatten(1).abs().amax(1).clamp_min(1.0) * (1 + 1e-12)).all())
        closest = max(closest, float(growth.max()) / slope)
    assert closest > 0.3


def test_gradient_never_exceeds_the_sum_over_its_paths():
    """Each entry of the Jacobian is a sum over active paths, so the entries' sum is at most phi_1."""
    model = mlp(4, 6, 5, 3, bias=True).double()
    slope = path_norm(model, torch.zeros(2, 4, dtype=torch.float64), 1.0, "drop").value
    for x in torch.randn(20, 4, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(model, x[None])
        assert float(jacobian.abs().sum()) <= slope


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_rescaling_leaves_it_alone(kind):
    torch.manual_seed(7)
    if kind == "dense":
        model, shape = mlp(5, 8, 6, 3, bias=True), (5,)
        pairs = list(itertools.pairwise(m for m in model.modules() if isinstance(m, nn.Linear)))
    else:
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU()
        )
        shape, pairs = (2, 6, 6), [(model[0], model[3])]
    model = model.double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    graph = trace(model, x)
    before = {q: path_sum(graph, q).norm for q in ORDERS}
    scaled = copy.deepcopy(model)
    layers = dict(zip(model.modules(), scaled.modules(), strict=True))
    draw = random.Random(0)
    with torch.no_grad():
        for first, second in ((layers[a], layers[b]) for a, b in pairs):
            for unit in range(len(first.weight)):
                c = 10.0 ** draw.uniform(-2, 2)
                first.weight[unit] *= c
                first.bias[unit] *= c
                second.weight[:, unit] /= c
    torch.testing.assert_close(scaled(x), model(x))
    graph = trace(scaled, x)
    for q in ORDERS:
        assert path_sum(graph, q).norm == pytest.approx(before[q], rel=1e-10)
    # a change of the function is seen
    with torch.no_grad():
        first.weight[0] *= 2.0
    assert path_sum(graph).norm != pytest.approx(before[2.0], rel=1e-4)


# refusals and extremes


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x).mean(1)


REFUSED: list[tuple[nn.Module, Tensor, str]] = [
    (nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)), torch.zeros(2, 3), r"'1' \(Sigmoid\)"),
    (nn.Sequential(nn.Linear(3, 3), nn.GELU()), torch.zeros(2, 3), r"'1' \(GELU\)"),
    (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), torch.zeros(2, 3), r"'1' \(LayerNorm\)"),
    (nn.LeakyReLU(-1.5), torch.zeros(2, 3), "leaky_relu"),
    (nn.BatchNorm1d(3).train(), torch.randn(2, 3), "batch_norm"),
    (Function(lambda x: x * x.relu()), torch.zeros(2, 3), "depend on the input"),
    (Function(lambda x: 1.0 / x), torch.ones(2, 3), "reciprocal"),
    (Function(lambda x: torch.ones(3) / x), torch.ones(2, 3), "div"),
    (Function(lambda x: x.max(1, keepdim=True)[1] + x), torch.ones(2, 3), "getitem"),
    (Tokens(), torch.zeros(2, 4, dtype=torch.long), "embedding"),
]


@pytest.mark.parametrize(("model", "x", "words"), REFUSED, ids=[case[2] for case in REFUSED])
def test_other_networks_are_refused_by_layer(model, x, words):
    with pytest.raises(NotReLU, match=words):
        path_norm(model, x)


def test_arguments_are_named():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"q: expected a number >= 1, got 0\.5"):
        path_norm(nn.Linear(3, 2), x, 0.5)
    with pytest.raises(ValueError, match="bias: expected 'edge' or 'drop', got 'keep'"):
        path_norm(nn.Linear(3, 2), x, 2.0, "keep")
    with pytest.raises(ValueError, match="tracing failed"):
        path_norm(nn.Linear(4, 2), x)
    with pytest.raises(NotReLU, match="does not depend on the input"):
        path_norm(Function(lambda x: torch.ones(2, 2)), x)


def test_a_sum_beyond_float64_is_a_lower_bound():
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(12))).double()
    for layer in model:
        layer.weight.data.fill_(1e30)
    value = path_norm(model, torch.zeros(2, 2, dtype=torch.float64))
    assert (value.kind, value.value, value.upper) == ("bound", None, None)
    assert value.lower == pytest.approx(math.sqrt(torch.finfo(torch.float64).max))
    assert "exceeds float64" in value.note


def test_half_precision_weights_are_summed_in_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10)).bfloat16()
    exact = copy.deepcopy(model).double()
    value = path_norm(model, torch.zeros(2, 40, dtype=torch.bfloat16)).value
    assert value == pytest.approx(path_norm(exact, torch.zeros(2, 40, dtype=torch.float64)).value, rel=1e-12)
