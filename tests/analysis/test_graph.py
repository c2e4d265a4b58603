"""The graph computes what the module computes, in both modes, and refuses with the reason."""

from __future__ import annotations

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theodolite.analysis.graph import trace


class Residual(nn.Module):
    """In-place operations, a skip connection and tied weights."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.b = nn.Conv2d(3, 3, 3, padding=1)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        y = F.relu(self.norm(self.a(x)), inplace=True)
        y = self.b(y)
        y += x
        return self.head(F.max_pool2d(y, 2).mean((2, 3)))


@pytest.mark.parametrize("training", [False, True])
def test_run_equals_forward(training):
    torch.manual_seed(0)
    model, x = Residual().train(training), torch.randn(5, 3, 6, 6)
    graph = trace(model, x)
    assert graph.traced
    assert graph.training is training
    state = {k: v.clone() for k, v in model.state_dict().items()}
    ours = graph.run(x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(ours, model(x))


def test_names_layers_and_weights():
    graph = trace(Residual().eval(), torch.randn(2, 3, 6, 6))
    ops = [node.op for node in graph.operations]
    assert ops.count("conv2d") == 2
    assert "relu" in ops
    assert "add" in ops
    weights = {node.inputs[1].target for node in graph.operations if node.op == "conv2d"}
    assert len(weights) == 1, "tied weights appear once"
    convolution = next(node for node in graph.operations if node.op == "conv2d")
    assert convolution.layer == "a"
    assert convolution.where == "layer 'a' (Conv2d)"
    assert convolution.shape == (2, 3, 6, 6)


def test_overrides_and_handlers():
    model, x = builders.mlp(4, 3, 2), torch.ones(3, 4)
    graph = trace(model, x)
    zero = graph.run(x, overrides={"layers.0.weight": torch.zeros(3, 4)})
    assert torch.equal(zero, torch.zeros(3, 2))
    linear = graph.run(x, handlers={"relu": lambda node, value: value})
    torch.testing.assert_close(linear, x @ model.layers[0].weight.T @ model.layers[2].weight.T)


def test_one_row_and_any_batch_size():
    graph = trace(builders.conv_net(), torch.randn(1, 64))
    assert graph.run(torch.randn(7, 64)).shape == (7, 10)


def test_random_nodes_are_found():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    assert trace(model.eval(), torch.randn(2, 4)).random_nodes() == []
    assert [n.layer for n in trace(model.train(), torch.randn(2, 4)).random_nodes()] == ["1"]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_untraceable_says_why(capfd):
    graph = trace(Branching(), torch.randn(2, 4))
    assert not graph.traced
    assert graph.nodes == []
    assert graph.reason
    with pytest.raises(ValueError, match="tracing failed"):
        graph.run(torch.randn(2, 4))
    assert capfd.readouterr() == ("", ""), "tracing prints nothing"


class Pair(nn.Module):
    def forward(self, x):
        return {"a": x + 1, "b": x}


def test_output_must_be_one_tensor():
    with pytest.raises(ValueError, match="dict with keys 'a', 'b'"):
        trace(Pair(), torch.randn(2, 4))


def test_global_random_state_is_left_alone():
    model, x = builders.conv_net(), torch.randn(2, 64)
    before = torch.get_rng_state()
    trace(model, x)
    assert torch.equal(before, torch.get_rng_state())
