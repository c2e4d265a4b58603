"""The graph computes what the module computes, in both modes, and refuses with the reason."""

from __future__ import annotations

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theodolite.analysis import export
from theodolite.analysis.graph import Node, trace


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


class Functional(nn.Module):
    """A function of the input and some modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def both(pair):
    """Use the values and the places alike, so that neither can be mistaken for the other."""
    values, places = pair
    return (2.0 * values + places).flatten(1)


def doubled_in_place(view):
    """Return a function that doubles a view in place and returns what it is a view of."""

    def forward(x):
        y = 1.0 * x
        view(y).mul_(2.0)
        return y

    return forward


SEVERAL_RESULTS = {
    "max-pool, values": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0].flatten(1), (3, 6, 6)),
    "max-pool, places": (lambda x: F.max_pool2d(x, 2, return_indices=True)[1].flatten(1) * 1.0, (3, 6, 6)),
    "max-pool, both": (lambda x: both(F.max_pool2d(x, 2, return_indices=True)), (3, 6, 6)),
    "max-pool 1-D": (lambda x: both(F.max_pool1d(x, 2, return_indices=True)), (3, 6)),
    "max-pool 3-D": (lambda x: both(F.max_pool3d(x, 2, return_indices=True)), (3, 4, 4, 4)),
    "unpooling": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2).flatten(1),
        (3, 6, 6),
    ),
    "adaptive max-pool": (lambda x: both(F.adaptive_max_pool2d(x, 2, return_indices=True)), (3, 6, 6)),
    "split": (lambda x: x.split(2, 1)[0] - x.split(2, 1)[2], (6,)),
    "split by sizes": (lambda x: torch.cat(x.split([2, 1, 3], 1)[::-1], 1), (6,)),
    "chunk": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], (6,)),
    "unbind": (lambda x: sum((i + 1.0) * part for i, part in enumerate(x.unbind(1))), (3, 4)),
    "a part of a split changed in place": (doubled_in_place(lambda y: y.narrow(1, 2, 2)), (6,)),
    "a column changed in place": (doubled_in_place(lambda y: y[:, 1]), (6,)),
    "max over a dimension": (lambda x: both(x.max(2)), (3, 4)),
    "top-k": (lambda x: both(x.topk(2, 1)), (6,)),
    "sort": (lambda x: both(x.sort(1)), (6,)),
    "variance and mean": (lambda x: sum(torch.var_mean(x, 1, keepdim=True)) + x, (6,)),
    "layer norm and its statistics": (lambda x: sum(torch.native_layer_norm(x, [6], None, None, 0.1)), (6,)),
    "batch norm and its statistics": (
        lambda x: sum(torch.native_batch_norm(x, None, None, None, None, True, 0.1, 0.1)),
        (6,),
    ),
    "dropout and its mask": (lambda x: both(torch.native_dropout(x, 0.5, False)), (6,)),
    "log-determinant": (lambda x: torch.stack(torch.linalg.slogdet(x), 1), (4, 4)),
}


def all_of(cases):
    """Return one function whose output holds those of all cases side by side: tracing is what takes long."""
    return lambda x: torch.cat([function(x).flatten(1) for function, _ in cases], 1)


@pytest.mark.parametrize("shape", sorted({shape for _, shape in SEVERAL_RESULTS.values()}))
def test_each_of_several_results_is_the_right_one(shape):
    cases = [case for case in SEVERAL_RESULTS.values() if case[1] == shape]
    model, x = Functional(all_of(cases)).eval(), torch.randn(5, *shape)
    graph = trace(model, x)
    assert graph.traced, graph.reason
    torch.testing.assert_close(graph.run(x), model(x))
    seen = []
    graph.run(x[:2], observe=lambda node, value: seen.append((node, value)))
    for node, value in seen:
        first = value[0] if isinstance(value, (tuple, list)) else value
        if isinstance(first, torch.Tensor) and node.shape is not None:
            assert node.shape == tuple(first.shape), node


def test_results_of_an_lstm():
    def forward(x, lstm):
        outputs, (hidden, cell) = lstm(x)
        return torch.cat([outputs[:, -1], hidden[-1], cell[-1], hidden[0] * cell[1], outputs.sum(1)], 1)

    model, x = Functional(forward, nn.LSTM(4, 5, 2, batch_first=True)).eval(), torch.randn(6, 7, 4)
    torch.testing.assert_close(trace(model, x).run(x), model(x))


def test_handlers_of_operations_with_by_products():
    x = torch.randn(4, 3, 6, 6)
    model = Functional(SEVERAL_RESULTS["unpooling"][0])
    graph = trace(model, x)
    pooled = next(node for node in graph.operations if node.op.startswith("max_pool2d"))
    everything = {pooled.op: lambda node, *args: F.max_pool2d(*args, return_indices=True)}
    torch.testing.assert_close(graph.run(x, handlers=everything), model(x))
    with pytest.raises(ValueError, match="expected all results"):
        graph.run(x, handlers={pooled.op: lambda node, *args: F.max_pool2d(*args)})


def test_a_loop_over_samples_is_not_traced():
    """Its graph would hold the two samples of the example, and leave out all others without a word."""
    model = Functional(lambda x, layer: torch.stack([layer(row).relu() for row in x]), nn.Linear(6, 3))
    graph = trace(model, torch.randn(4, 6))
    assert not graph.traced
    assert "fixes the number of samples" in graph.reason


class Reshapes(nn.Module):
    """Everything that is written out without functionalizing; ``last`` ends it."""

    def __init__(self, last=lambda x: x, **options):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, **options)
        self.drop, self.head, self.last = nn.Dropout(0.5), nn.Linear(8, 3), last

    def forward(self, x):
        y = torch.relu(
            self.norm(self.conv(x.flatten(1).unflatten(1, (1, 4, 4)).flatten(2).unflatten(2, (4, 4))))
        )
        y = (
            self.drop(y.flatten(1).flatten(1))
            + y[:, 0].transpose(1, 2).unsqueeze(1).expand(-1, 2, -1, -1).sum()
        )
        return self.last(self.head(y))


SHORT = {
    "all": Reshapes().eval(),
    "a norm without weights": Reshapes(affine=False).eval(),
    "a view at the end": Reshapes(lambda x: x.unflatten(1, (3, 1))).eval(),
    "nothing but a view": nn.Flatten(),
    "the input itself": nn.Identity(),
}
LONG = {
    "statistics that are updated": Reshapes().train(),
    "statistics of the batch": Reshapes(track_running_stats=False).eval(),
    "a dropout at work": nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train(),
    "in place": Reshapes(lambda x: x.relu_()).eval(),
    "a view in place": Reshapes(doubled_in_place(lambda y: y[:, 1])).eval(),
    "not contiguous": Functional(lambda x: x.transpose(2, 3).flatten(1)),
    "an operation that PyTorch decomposes": Functional(F.hardshrink),
    "samples that are merged": Functional(lambda x: x.flatten(0, 2)),
}


@pytest.fixture
def functionalized(monkeypatch):
    """Return the list of programs that PyTorch has functionalized."""
    programs = []
    functionalize = torch.export.ExportedProgram.run_decompositions

    def counted(program, *args):
        programs.append(program)
        return functionalize(program, *args)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    return programs


@pytest.mark.parametrize("case", LONG)
def test_what_is_not_simple_is_functionalized(case, functionalized):
    assert trace(LONG[case], torch.randn(5, 1, 4, 4)).traced
    assert len(functionalized) == 1


@pytest.mark.parametrize("case", SHORT)
def test_what_is_simple_is_not_functionalized_and_has_the_same_graph(case, functionalized, monkeypatch):
    def outline(graph):
        at = {node: i for i, node in enumerate(graph.nodes)}

        def placed(item):
            if isinstance(item, Node):
                return ("node", at[item])
            return [placed(part) for part in item] if isinstance(item, (tuple, list)) else item

        assert len({node.name for node in at}) == len(at)
        rows = [(n.op, n.layer, n.layer_type, n.target, n.shape, n.function) for n in graph.nodes]
        return rows, [(placed(n.args), n.kwargs) for n in graph.nodes], at[graph.output]

    model, x = SHORT[case], torch.randn(5, 1, 4, 4)
    short = trace(model, x)
    assert not functionalized
    monkeypatch.setattr(export, "made_functional", lambda program: False)
    long = trace(model, x)
    assert len(functionalized) == 1
    assert short.traced
    assert outline(short) == outline(long)
