"""Parallel subnetworks: one call or many, growing, shrinking, saving."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.nn import ParallelSubnetworks
from theodolite.nn.parallel import ParallelSubnetworks as Parallel
from theodolite.nn.regularizers import ProductOfNorms
from theodolite.testing import check_global_state


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))


def conv() -> nn.Module:
    layers = [nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3))


def in_place() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))


class Shifting(nn.Module):
    """Changes its input in place, and not by an idempotent map."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.add_(1.0).mul_(self.scale))


class Deciding(nn.Module):
    """Control flow that looks at the values of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y if self.inner.weight.sum() > 0 else -y


class Counting(nn.Module):
    """A buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * self.calls


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6, bias=False)
        self.two = self.one
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(x).relu()))


def reference(net: Parallel, x: Tensor) -> Tensor:
    """The sum, by a plain loop over copies of the input."""
    return sum(subnetwork(x.clone()) for subnetwork in net)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("r", [1, 2, 5])
@pytest.mark.parametrize(
    "make", [dense, conv, normalized, dropped, in_place, Shifting, Deciding, Counting, Tied]
)
@pytest.mark.parametrize("training", [True, False])
def test_the_sum_and_its_gradient_are_those_of_a_loop(make, r, training, x):
    torch.manual_seed(0)
    net = ParallelSubnetworks(make, r).double().train(training)
    twin, x = copy.deepcopy(net), x.double()
    kept = x.clone()
    torch.manual_seed(1)
    output = net(x)
    torch.manual_seed(1)
    expected = reference(twin, x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    output.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    for b, c in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(b, c)
    assert torch.equal(x, kept), "the caller's input was changed"


def calls(net: Parallel, x: Tensor, monkeypatch) -> int:
    """How often the first weight layer's kernel is called in one forward."""
    count = 0
    original = F.linear

    def counting(*args, **kwargs):
        nonlocal count
        count += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "linear", counting)
    net(x)
    monkeypatch.undo()
    return count


def test_equal_structures_run_as_one_call_and_others_one_by_one(x, monkeypatch):
    net = ParallelSubnetworks(dense, 4)
    assert net.one_structure()
    assert calls(net, x, monkeypatch) == 2
    net.grow(nn.Linear(6, 3))
    assert not net.one_structure()
    assert calls(net, x, monkeypatch) == 9
    torch.testing.assert_close(net(x), reference(net, x))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.eval(),
        lambda m: setattr(m[1], "negative_slope", 0.3),
        lambda m: setattr(m[0], "extra", torch.ones(1)),
        lambda m: m[0].register_parameter("bias", nn.Parameter(torch.ones(5))),
        lambda m: m.double(),
        lambda m: m.append(nn.ReLU()),
    ],
)
def test_what_differs_is_not_one_structure(change):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5, bias=False), nn.LeakyReLU(0.1), nn.Linear(5, 3))

    net = ParallelSubnetworks(make, 3)
    assert net.one_structure()
    change(net[1])
    assert not net.one_structure()


def test_what_has_no_vectorized_kernel_runs_one_by_one():
    def attention() -> nn.Module:
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
        return nn.Sequential(layer, nn.Flatten())

    net, tokens = ParallelSubnetworks(attention, 3), torch.randn(2, 5, 4)
    torch.testing.assert_close(net(tokens), reference(net, tokens))
    recurrent = ParallelSubnetworks(lambda: Last(4), 3)
    torch.testing.assert_close(recurrent(tokens), reference(recurrent, tokens))


class Last(nn.Module):
    """The last state of a recurrent layer, whose weights lie in a list too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.LSTM(width, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0][:, -1]


def test_a_hook_is_called_once_a_subnetwork(x):
    net, seen = ParallelSubnetworks(dense, 3), []
    for index, subnetwork in enumerate(net):
        subnetwork.register_forward_hook(lambda m, i, o, index=index: seen.append(index))
    net(x)
    assert seen == [0, 1, 2]


def test_an_error_of_the_subnetworks_is_theirs(x):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ParallelSubnetworks(dense, 3)(x[:, :4])


def test_grow_takes_a_module_or_makes_one(x):
    net = ParallelSubnetworks(dense, 2).double().eval()
    before = net(x.double())
    silent = dense()
    nn.init.zeros_(silent[2].weight)
    assert net.grow(silent) is silent
    assert net.r == len(net) == 3
    assert not silent.training
    torch.testing.assert_close(net(x.double()), before, rtol=1e-14, atol=1e-14)
    new = net.grow()
    assert new[0].weight.dtype == torch.float64
    torch.testing.assert_close(net(x.double()), before + new(x.double()))


def test_a_grown_subnetwork_trains_once_the_optimizer_knows_it(x):
    torch.manual_seed(0)
    net = ParallelSubnetworks(dense, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    target = torch.randn(7, 3)

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(net(x), target).backward()
        optimizer.step()

    step()
    new = net.grow()
    before = new[0].weight.clone()
    step()
    assert torch.equal(new[0].weight, before)
    optimizer.add_param_group({"params": new.parameters()})
    step()
    assert not torch.equal(new[0].weight, before)


def test_prune_removes_what_is_zero_and_keeps_the_function_exactly(x):
    net = ParallelSubnetworks(dense, 5)
    with torch.no_grad():
        net[1][0].weight.zero_()
        net[3][2].weight.zero_()
        net[4][2].weight.mul_(1e-6)
    before = reference(net, x)
    assert net.prune() == [1, 3]
    assert torch.equal(reference(net, x), before)
    assert net.prune() == []
    assert net.prune(ProductOfNorms("l1"), tolerance=1e-3) == [2]
    assert net.r == 2
    assert net.prune(lambda module: torch.zeros(())) == [0, 1]
    assert torch.equal(net(x), torch.zeros(7, 3))
    assert net.prune() == []


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_prune_refuses_what_is_no_share(tolerance):
    with pytest.raises(ValueError, match=r"tolerance: expected a number in \[0, 1\)"):
        ParallelSubnetworks(dense, 2).prune(tolerance=tolerance)


def test_prune_refuses_a_regularizer_that_is_none():
    with pytest.raises(ValueError, match="regularizer: expected a number >= 0, got nan at subnetwork 0"):
        ParallelSubnetworks(dense, 2).prune(lambda module: torch.tensor(torch.nan))
    with pytest.raises(ValueError, match=r"got -1\.0 at subnetwork 0"):
        ParallelSubnetworks(dense, 2).prune(lambda module: torch.tensor(-1.0))


@pytest.mark.parametrize("r", [0, 1, 3])
@pytest.mark.parametrize("other", [0, 2, 4])
def test_a_state_is_loaded_whatever_r_was(r, other, x):
    torch.manual_seed(0)
    net, loaded = ParallelSubnetworks(dense, r), nn.Sequential(ParallelSubnetworks(dense, other))
    file = io.BytesIO()
    torch.save(nn.Sequential(net).state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded[0].r == r
    assert torch.equal(loaded(x), net(x))


def test_a_state_after_grow_and_prune(x):
    net = ParallelSubnetworks(dense, 2)
    net.grow()
    nn.init.zeros_(net[0][0].weight)
    net.prune()
    loaded = ParallelSubnetworks(dense, 1)
    loaded.load_state_dict(net.state_dict())
    assert torch.equal(loaded(x), net(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded.load_state_dict({"_extra_state": torch.tensor(3)})


def test_no_subnetwork_is_the_zero_model_in_the_right_dtype_and_leaves_random_numbers_alone(x):
    net = check_global_state(lambda: ParallelSubnetworks(dense, 0))
    assert torch.equal(check_global_state(lambda: net(x)), torch.zeros(7, 3))
    assert net.double()(x.double()).dtype == torch.float64
    assert net.grow()[0].weight.dtype == torch.float64
    assert ParallelSubnetworks(lambda: dense().double(), 0).grow()[0].weight.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, x):
    torch.manual_seed(0)
    net = ParallelSubnetworks(dense, 3).to(dtype)
    torch.testing.assert_close(net(x.to(dtype)).float(), reference(net.float(), x), rtol=5e-2, atol=5e-2)


def test_another_device_reaches_what_is_made_later():
    net = ParallelSubnetworks(dense, 0).to("meta")
    assert net.grow()[0].weight.device.type == "meta"
    assert net(torch.zeros(7, 6, device="meta")).shape == (7, 3)


def test_it_can_be_copied_compiled_into_a_graph_and_printed(x):
    net = ParallelSubnetworks(dense, 3)
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x))
    program = torch.export.export(net, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), net(x))
    assert "r=3" in repr(net)


@pytest.mark.parametrize(
    ("make", "r", "error", "words"),
    [
        (dense, -1, ValueError, "r: expected a whole number >= 0, got -1"),
        (dense, 1.5, TypeError, "r: expected a whole number >= 0, got 1.5"),
        (dense, True, TypeError, "r: expected a whole number"),
        (dense(), 2, ValueError, None),
        (lambda: 3, 2, TypeError, "make: expected a function that returns an nn.Module, got int"),
        (lambda: None, 0, TypeError, "got NoneType"),
        ("dense", 2, TypeError, "make: expected a function that returns a module, got str"),
    ],
)
def test_bad_arguments_are_refused(make, r, error, words):
    if words is None:  # a module is callable, but not without an input
        error, words = TypeError, "missing"
    with pytest.raises(error, match=words):
        ParallelSubnetworks(make, r)


def test_one_module_twice_is_refused():
    shared = dense()
    with pytest.raises(ValueError, match="make: expected a new module at each call"):
        ParallelSubnetworks(lambda: shared, 2)
    with pytest.raises(ValueError, match="make: expected a new module"):
        ParallelSubnetworks(lambda: nn.Sequential(shared, nn.ReLU()), 2)
    net = ParallelSubnetworks(dense, 1)
    with pytest.raises(ValueError, match="module: expected a new subnetwork"):
        net.grow(net[0])
    with pytest.raises(TypeError, match=r"module: expected an nn\.Module, got int"):
        net.grow(3)


def test_outputs_of_different_shapes_are_refused(x):
    net = ParallelSubnetworks(dense, 2)
    net.grow(nn.Linear(6, 1))
    with pytest.raises(
        ValueError, match=r"one shape, got \(7, 3\) from subnetwork 0 and \(7, 1\) from subnetwork 2"
    ):
        net(x)
