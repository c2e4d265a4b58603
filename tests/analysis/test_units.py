"""Units that can go exactly: found by the weights alone, never because the data happen not to reach them."""

from __future__ import annotations

import copy

import builders
import pytest
import torch
from fixtures import nets
from torch import nn

from theodolite.analysis.graph import trace
from theodolite.analysis.unit_pairs import find_pairs
from theodolite.analysis.units import plan, silent_units, value_ranges
from theodolite.remedies.remove_units import shrink


def x8(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dense(*middle: nn.Module, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8, bias=bias), *middle, nn.Linear(8, 5, bias=bias)).double().eval()


def conv(padding: int = 0, *middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    middle = middle or (nn.ReLU(),)
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3, padding=1), *middle]
    layers += [nn.Conv2d(6, 4, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    width = 4 * ((6 + 2 * padding) // 2) ** 2
    return nn.Sequential(*layers, nn.Linear(width, 5)).double().eval()


def first_plan(model: nn.Module, x: torch.Tensor | None = None):
    x = x8() if x is None else x
    graph = trace(model, x)
    pairs, _ = find_pairs(graph)
    return plan(graph, pairs[0], x[:2])


def check(model: nn.Module, x: torch.Tensor, removed: dict[str, int]) -> nn.Module:
    """Shrink, and compare the function on data far from what the search saw."""
    before = copy.deepcopy(model.state_dict())
    small, found, _ = shrink(model, x)
    assert {k: v for k, v in found.items() if v} == removed
    for scale in (1.0, 100.0):
        probe = scale * torch.randn(50, 64, dtype=x.dtype)
        torch.testing.assert_close(small(probe), model(probe), rtol=1e-9, atol=1e-9 * scale)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return small


def test_nothing_is_found_in_a_random_network():
    for model in (dense(nn.ReLU()), conv(1), dense(nn.GELU())):
        assert first_plan(model).n_removed == 0
        small, removed, reason = shrink(model, x8())
        assert small is model
        assert removed == {}
        assert reason == ""


@torch.no_grad()
def test_unused_dead_and_duplicate_dense_units():
    model = dense(nn.ReLU())
    first, last = model[0], model[2]
    last.weight[:, 1] = 0.0
    first.weight[2] = 0.0
    first.bias[2] = -1.0
    first.weight[3] = 0.0
    first.bias[3] = 0.7  # a constant that is not zero
    first.weight[5], first.bias[5] = 2.5 * first.weight[4], 2.5 * first.bias[4]
    first.weight[6], first.bias[6] = first.weight[4], first.bias[4]
    found = first_plan(model)
    assert (found.unused, found.constant) == ([1], [2, 3])
    assert len(found.duplicate) == 2
    assert set(found.duplicate) < {4, 5, 6}
    small = check(model, x8(), {"dead": 2, "unused": 1, "duplicate": 2})
    assert small[0].weight.shape == (3, 64)
    assert small[2].weight.shape == (5, 3)


@torch.no_grad()
def test_a_negative_multiple_or_another_bias_is_no_duplicate():
    model = dense(nn.ReLU())
    first = model[0]
    first.weight[1], first.bias[1] = -first.weight[0], -first.bias[0]
    first.weight[3], first.bias[3] = 2 * first.weight[2], first.bias[2]
    first.weight[5], first.bias[5] = first.weight[4], first.bias[4]
    first.weight[5, 0] *= 1 + 1e-9
    assert first_plan(model).n_removed == 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("activation", "count"),
    [(nn.ReLU(), 2), (nn.LeakyReLU(0.2), 2), (nn.PReLU(), 2), (nn.Tanh(), 1), (nn.GELU(), 1)],
)
def test_multiples_are_duplicates_only_behind_a_homogeneous_activation(activation, count):
    model = dense(activation)
    first = model[0]
    first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
    first.weight[3], first.bias[3] = 3 * first.weight[2], 3 * first.bias[2]
    check(model, x8(), {"duplicate": count})


@torch.no_grad()
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.ELU()])
def test_constants_pass_through_any_activation(activation):
    model = dense(activation)
    model[0].weight[3] = 0.0
    check(model, x8(), {"dead": 1})


@torch.no_grad()
def test_a_constant_needs_a_place_in_the_next_bias():
    model = dense(nn.Sigmoid(), bias=False)
    model[0].weight[3] = 0.0  # sigmoid(0) = 1/2, and no bias to put it in
    assert first_plan(model).n_removed == 0
    model = dense(nn.ReLU(), bias=False)
    model[0].weight[3] = 0.0
    check(model, x8(), {"dead": 1})


@torch.no_grad()
def test_silent_on_the_data_is_not_dead():
    model = dense(nn.ReLU())
    model[0].bias[2] = -50.0
    x = x8()
    assert first_plan(model, x).n_removed == 0
    graph = trace(model, x)
    assert silent_units(graph, find_pairs(graph)[0], [x[:3], x[3:]])["0"].count(2) == 1
    assert float(model[:2](100 * torch.sign(model[0].weight[2])[None])[0, 2]) > 0  # some input does reach it


@torch.no_grad()
def test_dead_by_the_sign_of_everything_below():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        .double()
        .eval()
    )
    model[2].weight[1] = -model[2].weight[1].abs()
    model[2].bias[1] = -0.01
    check(model, x8(), {"dead": 1})
    model[2].bias[1] = 0.01  # alive where all units below are off
    assert shrink(model, x8())[1] == {}


@torch.no_grad()
def test_dead_because_the_activation_below_is_bounded():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        .double()
        .eval()
    )
    reach = float(model[2].weight[1].abs().sum())
    model[2].bias[1] = -1.001 * reach
    check(model, x8(), {"dead": 1})
    model[2].bias[1] = -0.999 * reach
    assert shrink(model, x8())[1] == {}


@torch.no_grad()
def test_ranges_hold_for_every_input():
    model = nn.Sequential(
        nn.Linear(64, 8), nn.ReLU6(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 4), nn.Softmax(1)
    )
    graph = trace(model.eval(), x8().float())
    ranges = value_ranges(graph)

    def observe(node, value):
        low, high = ranges[node]
        assert low <= float(value.min())
        assert float(value.max()) <= high

    graph.run(1000 * x8().float(), observe=observe)
    assert sum(r != (-float("inf"), float("inf")) for r in ranges.values()) >= 3


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions(padding):
    model = conv(padding)
    first, second, last = model[1], model[3], model[7]
    second.weight[:, 0] = 0.0
    first.weight[1], first.bias[1] = 0.0, -0.5
    first.weight[2], first.bias[2] = 0.0, 0.5  # a constant plane: padding would cut its border
    first.weight[4], first.bias[4] = 3 * first.weight[3], 3 * first.bias[3]
    last.weight.view(5, 4, -1)[:, 2] = 0.0
    small = check(model, x8(), {"unused": 2, "dead": 2 if padding == 0 else 1, "duplicate": 1})
    assert small[1].out_channels == (2 if padding == 0 else 3)
    assert small[3].weight.shape[:2] == (3, small[1].out_channels)
    assert small[7].in_features == 3 * (9 if padding == 0 else 16)


@torch.no_grad()
def test_constant_channel_into_a_linear_layer():
    model = conv(0)
    model[3].weight[1], model[3].bias[1] = 0.0, 0.8
    check(model, x8(), {"dead": 1})


@torch.no_grad()
def test_batch_norm_in_evaluation_mode():
    model = conv(0, nn.BatchNorm2d(6), nn.ReLU())
    norm = model[2]
    norm.running_mean.copy_(torch.randn(6))
    norm.running_var.copy_(torch.rand(6) + 0.5)
    norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.0, 1.5, 0.7]))
    norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.6, 0.0, 0.4]))
    first = model[1]
    # unit 5 is twice unit 4 after its own normalization
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    first.weight[5] = 2 * first.weight[4] * scale[4] / scale[5]
    shift = (first.bias - norm.running_mean) * scale + norm.bias
    norm.bias[5] += 2 * shift[4] - shift[5]
    small = check(model, x8(), {"dead": 2, "duplicate": 1})
    assert small[2].num_features == 3
    assert small[2].num_batches_tracked == 0


@torch.no_grad()
def test_batch_norm_after_the_activation_is_not_merged():
    model = dense(nn.ReLU(), nn.BatchNorm1d(8))
    model[0].weight[1], model[0].bias[1] = 2 * model[0].weight[0], 2 * model[0].bias[0]
    model[2].weight[4] = 0.0
    check(model, x8(), {"dead": 1})


@torch.no_grad()
def test_removal_goes_on_until_nothing_is_left_to_do():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
        .double()
        .eval()
    )
    model[4].weight[:, 1] = 0.0
    model[2].weight[[0, 2, 3], 2] = 0.0  # unit 2 below feeds only the unused unit
    small = check(model, x8(), {"unused": 2})
    assert (small[0].out_features, small[2].out_features) == (3, 3)


@torch.no_grad()
def test_a_layer_keeps_one_unit():
    model = dense(nn.ReLU())
    model[2].weight.zero_()
    small = check(model, x8(), {"unused": 7})
    assert small[0].out_features == 1
    model = dense(nn.ReLU())
    model[0].weight.zero_()
    model[0].bias.copy_(torch.linspace(-1, 1, 8))
    small = check(model, x8(), {"dead": 7})
    assert small[0].out_features == 1


@torch.no_grad()
def test_transformer_feed_forward():
    model = copy.deepcopy(nets.attention_net).eval()
    model.layer.linear1.weight[3] = 0.0
    model.layer.linear1.bias[3] = 0.2
    model.layer.linear2.weight[:, 5] = 0.0
    x = builders.digits()[0][:20]
    small, removed, _ = shrink(model, x)
    assert removed == {"dead": 1, "unused": 1, "duplicate": 0}
    assert small.layer.linear1.out_features == 14
    torch.testing.assert_close(small(x), model(x))


class Written(nn.Module):
    """A width written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3), nn.Linear(6 * 36, 5)

    def forward(self, x):
        return self.b(self.a(x.view(-1, 1, 8, 8)).relu().view(-1, 216))


class Twice(nn.Module):
    """One layer used twice, one whose units are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        h = self.a(x).relu()
        return self.c(h + self.b(self.b(h).relu()).relu())


class Scaled(nn.Linear):
    """No ordinary layer."""


def hooked() -> nn.Module:
    model = dense(nn.ReLU()).float()
    model[0].register_forward_hook(lambda *a: None)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (Written(), "a", "forward depends on its width"),
        (Twice(), "a", "its units are read 2 times"),
        (nn.Sequential(Scaled(64, 8), nn.ReLU(), nn.Linear(8, 5)), "0", "is a Scaled, not an ordinary layer"),
        (
            nn.Sequential(nn.Linear(64, 8), nn.Softmax(1), nn.Linear(8, 5)),
            "0",
            "does not keep its units apart",
        ),
        (
            nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 5)),
            "0",
            "does not keep its units apart",
        ),
        (hooked(), "0", "has hooks"),
    ],
)
def test_what_cannot_be_shrunk_is_left_alone_and_says_why(model, layer, reason):
    model = model.eval()
    weight = model.get_submodule(layer).weight
    weight[1] = 0.0
    x = x8().float()
    small, removed, why = shrink(model, x)
    assert small is model
    assert removed == {}
    assert why.startswith(f"layer '{layer}' stays: ")
    assert reason in why
