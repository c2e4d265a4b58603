"""OPT006: the certificate of a two-layer network, against every network that training can find."""

from __future__ import annotations

import copy
import math
import time

import builders
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from torch import Tensor, nn

from theodolite.nn import GatedLinear
from theodolite.nn.regularizers import WeightDecay
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.optimality.network_certificate import NetworkCertificate
from theodolite.theorems.subject import Subject

NAMES = ["gap", "objective", "dual_bound", "polar_ratio", "width"]


def finding(subject: Subject, seconds: float = 10.0) -> Finding:
    result = evaluate(NetworkCertificate(seconds), subject)
    assert result.status != "failed", result.traceback
    return result


def objective(model: nn.Module, x: Tensor, y: Tensor, decay: float) -> Tensor:
    """The training objective, the way a user writes it."""
    loss = F.mse_loss if y.is_floating_point() else F.cross_entropy
    squares = [p.square().sum() for p in model.parameters() if p.requires_grad]
    return loss(model(x), y) + 0.5 * decay * sum(squares)


def trained(model: nn.Module, x: Tensor, y: Tensor, decay: float, steps: int = 200) -> nn.Module:
    """A copy, trained by L-BFGS in float64."""
    model, x = copy.deepcopy(model).double(), x.double()
    y = y.double() if y.is_floating_point() else y
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=steps,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(model, x, y, decay)
        value.backward()
        return value

    optimizer.step(closure)
    return model


def relu(d: int, r: int, k: int, *, bias: tuple[bool, bool] = (False, False), seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, r, bias=bias[0]), nn.ReLU(), nn.Linear(r, k, bias=bias[1])).double()


def linear(
    d: int, r: int, k: int, *, bias: tuple[bool, bool] = (False, False), seed: int = 0
) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, r, bias=bias[0]), nn.Linear(r, k, bias=bias[1])).double()


def gated(
    d: int, r: int, k: int, *, bias: tuple[bool, bool] = (False, False), seed: int = 0
) -> nn.Sequential:
    torch.manual_seed(seed)
    gates = torch.randn(5, d).repeat(-(-r // 5), 1)[:r]  # five half-spaces, several units each
    return nn.Sequential(GatedLinear(d, r, bias[0], gates=gates), nn.Linear(r, k, bias=bias[1])).double()


def small_data(task: str, n: int = 40, d: int = 3, k: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    if task == "mse":
        y = torch.stack([x[:, 0].abs() - 0.3, x[:, 1] * x[:, -1]], 1)
        return x, y[:, :k] + 0.1 * torch.randn(n, k, generator=g, dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long()


FAMILIES = pytest.mark.parametrize("family", [linear, gated, relu])
TASKS = pytest.mark.parametrize("task", ["mse", "cross_entropy"])
BOTH, NONE, HIDDEN, OUTPUT = (True, True), (False, False), (True, False), (False, True)
# each family with both losses and all biases; a certificate's time goes into reading the network
CASES = [(linear, "mse", NONE), (linear, "cross_entropy", BOTH), (linear, "mse", OUTPUT)]
CASES += [(gated, "cross_entropy", NONE), (gated, "mse", BOTH), (gated, "cross_entropy", HIDDEN)]
CASES += [(relu, task, bias) for task in ("mse", "cross_entropy") for bias in (NONE, BOTH)]
CASES += [(relu, "mse", HIDDEN), (relu, "cross_entropy", OUTPUT)]
CLOSING = [(family, "mse", bias) for family in (linear, gated) for bias in (NONE, BOTH, HIDDEN, OUTPUT)]
CLOSING += [(family, "cross_entropy", bias) for family in (linear, gated) for bias in (BOTH, OUTPUT)]


@pytest.mark.parametrize(("family", "task", "bias"), CASES)
def test_no_training_of_any_width_gets_below_the_bound(family, task, bias):
    x, y = small_data(task)
    decay = 0.02
    model = trained(family(3, 6, 2, bias=bias), x, y, decay, 60)
    result = finding(Subject(model, x, y, weight_decay=decay), 1.0)
    assert result.status == "conditional"
    assert list(result.values) == NAMES
    gap, own, bound, polar, width = result.values.values()
    with torch.no_grad():
        assert own.value == pytest.approx(objective(model, x, y, decay).item(), rel=1e-12)
    assert width.value == 6
    assert 0.0 <= gap.lower <= gap.upper
    assert polar.lower <= polar.upper
    assert (own.value - bound.lower) / own.value == pytest.approx(gap.upper, rel=1e-6, abs=1e-12)
    wide = trained(family(3, 15, 2, bias=bias, seed=1), x, y, decay, 60)
    assert bound.lower <= objective(wide, x, y, decay).item() * (1 + 1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_no_training_of_a_pooled_convolution_gets_below_the_bound(bias):
    def convolution(width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, width, 2, bias=bias), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4 * width, 2, bias=bias)).double()

    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, 5, 5, generator=g, dtype=torch.float64)
    y, decay = (x.mean((1, 2, 3)) > 0).long(), 0.05
    model = trained(convolution(4, 0), x, y, decay, 60)
    result = finding(Subject(model, x, y, weight_decay=decay), 1.0)
    assert result.status == "conditional"
    assert result.values["gap"].witness["family"] == "conv"
    assert result.values["objective"].value == pytest.approx(objective(model, x, y, decay).item(), rel=1e-12)
    for seed in range(1, 4):
        wide = trained(convolution(12, seed), x, y, decay, 60)
        assert result.values["dual_bound"].lower <= objective(wide, x, y, decay).item() * (1 + 1e-12)


def test_too_many_patches_are_refused(monkeypatch):
    x, y = builders.digits_pairs(40)["train"]
    monkeypatch.setattr("theodolite.theorems.network_problem.INPUT_BYTES", 8 * 40 * 49 * 4 - 1)
    assert "more than 1 GiB" in finding(Subject(nets.pooled_conv, x, y, weight_decay=1e-3)).reason


@pytest.mark.parametrize(("family", "task", "bias"), CLOSING)
def test_linear_and_gated_networks_close(family, task, bias):
    """Enough units of every gate, trained to the end: nothing is left to gain."""
    x, y = small_data(task)
    decay = 0.05
    model = trained(family(3, 20, 2, bias=bias, seed=1), x, y, decay, 1000)
    result = finding(Subject(model, x, y, weight_decay=decay))
    assert result.values["gap"].upper < 1e-3
    assert result.values["polar_ratio"].upper < 1.01
    assert result.values["gap"].witness["verdict"] == "closed"
    assert "no network of this family, of any width" in result.advice


def test_a_relu_network_of_one_output_closes_by_enumeration():
    x, y = small_data("mse", d=2, k=1)
    decay = 0.05
    runs = [trained(relu(2, 20, 1, seed=s), x, y, decay, 2000) for s in range(3)]
    model = min(runs, key=lambda m: objective(m, x, y, decay).item())
    result = finding(Subject(model, x, y, weight_decay=decay))
    assert result.values["gap"].upper < 1e-2
    assert result.values["polar_ratio"].upper < 1.05


@FAMILIES
def test_the_promised_gain_is_really_there(family):
    """An untrained, unbalanced network: its lower end is a network that exists."""
    x, y = small_data("mse")
    decay = 0.02
    model = family(3, 4, 2, bias=(True, True))
    with torch.no_grad():
        for p in model[0].parameters():
            p.mul_(3.0)
    result = finding(Subject(model, x, y, weight_decay=decay), 3.0)
    gap = result.values["gap"]
    assert gap.witness["verdict"] == "improvable"
    assert gap.witness["balancing"] > 0.0
    before = objective(model, x, y, decay).item()
    wide = trained(family(3, 25, 2, bias=(True, True), seed=1), x, y, decay, 150)
    best = objective(wide, x, y, decay).item()
    assert (before - best) / before >= gap.lower
    assert (before - best) / before <= gap.upper
    assert "the training objective falls by at least" in result.advice


def test_balancing_alone_is_what_a_rescaled_optimum_lacks():
    x, y = small_data("mse")
    decay = 0.05
    model = trained(linear(3, 3, 2), x, y, decay, 2000)
    assert finding(Subject(model, x, y, weight_decay=decay)).values["gap"].upper < 1e-4
    with torch.no_grad():
        norms = model[0].weight.square().sum() / 2
        model[0].weight.mul_(2.0)
        model[1].weight.div_(2.0)
    excess = decay * norms.item() * (4.0 + 0.25 - 2.0)
    gap = finding(Subject(model, x, y, weight_decay=decay)).values["gap"]
    total = objective(model, x, y, decay).item()
    assert gap.lower == pytest.approx(excess / total, rel=1e-6)
    assert gap.upper == pytest.approx(excess / total, abs=1e-4)
    assert gap.witness["one more unit"] == 0.0


def test_a_decay_above_lambda_max_proves_the_zero_network_optimal():
    x, y = small_data("mse")
    model = linear(3, 4, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    result = finding(Subject(model, x, y, weight_decay=10.0))
    assert result.values["gap"].upper < 1e-12
    assert result.values["polar_ratio"].upper < 1.0
    small = finding(Subject(model, x, y, weight_decay=1e-3))
    assert small.values["polar_ratio"].lower > 1.0
    assert small.values["gap"].witness["one more unit"] > 0.0


def test_a_decayed_output_bias_needs_its_term_in_the_bound():
    """Targets with a large mean: a bound without the term would lie above what training reaches."""
    x, y = small_data("mse")
    y = y + 5.0
    decay = 0.5
    model = trained(linear(3, 4, 2, bias=(False, True)), x, y, decay, 2000)
    result = finding(Subject(model, x, y, weight_decay=decay))
    reached = objective(model, x, y, decay).item()
    assert result.values["dual_bound"].lower <= reached
    assert result.values["gap"].upper < 1e-4


@pytest.mark.parametrize(
    "name", ["two_layer_relu", "two_layer_leaky", "two_layer_linear", "two_layer_gated", "pooled_conv"]
)
def test_networks_on_digits_with_flattened_images(name):
    x, y = builders.digits_pairs(60)["train"]
    plain = finding(Subject(getattr(nets, name), x, y, weight_decay=1e-2), 2.0)
    images = nn.Sequential(nn.Flatten(), *getattr(nets, name))
    shaped = finding(Subject(images, x.view(-1, 1, 8, 8), y, weight_decay=1e-2), 2.0)
    for key in ("objective", "width"):
        assert shaped.values[key].value == pytest.approx(plain.values[key].value, rel=1e-9)
    assert 0.0 < shaped.values["gap"].upper <= 1.0
    assert plain.status == shaped.status == "conditional"
    assert "AdamW" in next(h for h in plain.hypotheses if h.status == "assumed").statement


def test_a_frozen_front_end_and_a_half_precision_model():
    x, y = builders.digits_pairs(60)["train"]
    model = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 10))
    model[0].requires_grad_(False)
    result = finding(Subject(model, x, y, weight_decay=1e-2), 2.0)
    with torch.no_grad():
        expected = objective(model.double(), x.double(), y, 1e-2).item()
    assert result.values["objective"].value == pytest.approx(expected, rel=1e-6)
    half = finding(Subject(copy.deepcopy(nets.two_layer_linear).to(torch.bfloat16), x, y, weight_decay=1e-2))
    assert 0.0 <= half.values["gap"].upper <= 1.0


def other_gate() -> nn.Module:
    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 5), nn.Linear(5, 10)
            self.register_buffer("gates", torch.randn(5, 64))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * torch.sigmoid(F.linear(x, self.gates)))

    return Soft()


@pytest.mark.parametrize(
    ("model", "decay", "words"),
    [
        (lambda: nets.relu_net, 1e-3, "it is deeper than two layers"),
        (lambda: nets.two_layer_relu, None, "weight decay was not given"),
        (lambda: nets.two_layer_relu, 0.0, "weight decay is 0"),
        (lambda: nets.sigmoid_net, 1e-3, "neither the identity, nor ReLU"),
        (lambda: nets.batch_norm_net, 1e-3, "normalizes"),
        (lambda: nets.branching_net, 1e-3, "could not be traced"),
        (lambda: builders.mlp(64, 10), 1e-3, "OPT004"),
        (other_gate, 1e-3, "has values other than 0 and 1"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_the_reason(model, decay, words):
    x, y = builders.digits_pairs(40)["train"]
    result = finding(Subject(model(), x, y, weight_decay=decay))
    assert result.status == "not applicable"
    assert words in result.reason
    assert not result.values


def test_another_loss_and_too_much_data_are_refused(monkeypatch):
    x, y = builders.digits_pairs(40)["train"]
    result = finding(
        Subject(nets.two_layer_relu, x, F.one_hot(y).double(), loss=F.huber_loss, weight_decay=1e-3)
    )
    assert "the dual of the loss huber_loss is not known" in result.reason
    monkeypatch.setattr("theodolite.theorems.network_problem.INPUT_BYTES", 1000)
    assert "more than 1 GiB" in finding(Subject(nets.two_layer_relu, x, y, weight_decay=1e-3)).reason


def test_a_deadline_that_has_passed_still_gives_a_valid_bound():
    x, y = small_data("mse")
    decay = 0.02
    model = trained(relu(3, 6, 2), x, y, decay)
    subject = Subject(model, x, y, weight_decay=decay)
    subject.deadline = time.monotonic() - 1.0
    loose = finding(subject)
    tight = finding(Subject(model, x, y, weight_decay=decay))
    assert loose.values["gap"].upper >= tight.values["gap"].upper
    assert 0.0 <= loose.values["dual_bound"].lower <= objective(model, x, y, decay).item()


def test_decay_of_a_deep_linear_chain_known_answer():
    """x = y = 1, half of (1 - w1 w2 w3)^2 and decay 0.2, doubled: torch's mean has no half."""
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(3)]).double()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.921699)
    one = torch.ones(1, 1, dtype=torch.float64)
    result = finding(Subject(model, one, one, weight_decay=0.4))
    assert result.values["objective"].value == pytest.approx(2 * 0.278401, rel=1e-5)
    assert result.values["dual_bound"].lower == pytest.approx(2 * 0.26293, rel=1e-4)
    assert result.values["gap"].lower == 0.0
    assert WeightDecay.slope(0.2, 3, 0.2784013) == pytest.approx(0.31142, rel=1e-4)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    spurious = finding(
        Subject(model, one, one, weight_decay=0.4)
    )  # a strict local minimum, not the global one
    assert spurious.values["dual_bound"].lower <= 2 * 0.278401


@pytest.mark.parametrize("depth", [3, 4])
@TASKS
def test_the_chord_holds_below_what_deep_training_reaches(depth, task):
    x, y = small_data(task)
    decay = 0.02
    best = math.inf
    results = []
    for seed in range(3):
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 3, bias=level == 0) for level in range(depth - 1)]
        model = trained(nn.Sequential(*layers, nn.Linear(3, 2)), x, y, decay, 80)
        best = min(best, objective(model, x, y, decay).item())
        if seed < 2:
            results.append(finding(Subject(model, x, y, weight_decay=decay)))
    for result in results:
        assert 0.0 < result.values["dual_bound"].lower <= best
        assert result.values["width"].value == 3
        assert result.advice
    theta = torch.linspace(0.01, 0.99, 50, dtype=torch.float64) * (2 / (decay * depth)) ** (depth / 2)
    assert bool(
        (0.5 * decay * depth * theta ** (2 / depth) >= WeightDecay.slope(decay, depth, 1.0) * theta).all()
    )
