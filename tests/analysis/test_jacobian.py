"""Jacobians at points and the lower bounds made from them, against differences and known constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from builders import mlp
from torch import Tensor, nn

from theodolite.analysis import jacobian
from theodolite.analysis.graph import trace
from theodolite.analysis.jacobian import NoDerivative, jacobian_directions, lipschitz_lower
from theodolite.analysis.lipschitz import lipschitz_bounds
from theodolite.reference import jacobian as reference


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def numpy_function(model: nn.Module) -> reference.Function:
    def function(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(x)[None])[0].numpy()

    return function


def double(*widths: int, seed: int = 0) -> nn.Module:
    return mlp(*widths, bias=True, seed=seed).double().requires_grad_(False)


def test_reference_jacobian_of_a_known_function():
    x = np.array([0.3, -2.0])
    found = reference.jacobian(lambda x: np.array([x[0] * x[1], np.sin(x[0]), 4.0 * x[1]]), x)
    np.testing.assert_allclose(found, [[-2.0, 0.3], [math.cos(0.3), 0.0], [0.0, 4.0]], atol=1e-8)


def test_reference_slope_is_the_largest_over_pairs():
    points = np.array([[0.0], [1.0], [3.0], [3.0]])
    assert reference.largest_slope(lambda x: x**2, points) == pytest.approx(4.0)


# norms and directions


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_norms_and_directions_are_those_of_the_jacobian(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 3)).double().requires_grad_(False)
    x = torch.randn(6, 5, dtype=torch.float64)
    norms, directions = jacobian_directions(model, x)
    for k in range(len(x)):
        J = reference.jacobian(numpy_function(model), x[k].numpy())
        assert float(norms[k]) == pytest.approx(np.linalg.norm(J, 2), rel=1e-6)
        assert float(directions[k].norm()) == pytest.approx(1.0)
        assert np.linalg.norm(J @ directions[k].numpy()) == pytest.approx(np.linalg.norm(J, 2), rel=1e-6)


def test_images_and_several_output_axes():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, padding=1).double().requires_grad_(False)
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    norms, directions = jacobian_directions(model, x)
    J = reference.jacobian(numpy_function(model), x[0].numpy())
    # more outputs than are formed: eight power steps, so from below
    assert 0.8 * np.linalg.norm(J, 2) <= float(norms[0]) <= np.linalg.norm(J, 2) * (1 + 1e-9)
    assert directions.shape == x.shape
    lower, _ = lipschitz_lower(model, x)
    assert 0.8 * np.linalg.norm(J, 2) <= lower <= np.linalg.norm(J, 2)


def test_power_iteration_stays_below_the_norm_and_comes_close(monkeypatch):
    model = double(12, 20, 16, 8)
    x = torch.randn(30, 12, dtype=torch.float64)
    exact, _ = jacobian_directions(model, x)
    monkeypatch.setattr(jacobian, "_ROWS", 0)
    below, directions = jacobian_directions(model, x, torch.Generator().manual_seed(0))
    assert bool((below <= exact * (1 + 1e-9)).all())
    assert bool((below >= 0.8 * exact).all())
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(30, dtype=torch.float64))
    # eight steps converge, the start alone does not
    monkeypatch.setattr(jacobian, "_POWER_STEPS", 1)
    start, _ = jacobian_directions(model, x, torch.Generator().manual_seed(0))
    assert float((start / exact).mean()) < float((below / exact).mean()) - 0.05


def test_power_iteration_needs_no_second_derivative():
    # the derivatives of the hard sigmoid and of fused attention can't be derived again
    model = nn.Sequential(nn.Linear(3, 40), nn.Hardsigmoid(), nn.Linear(40, 40)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    lower, _ = lipschitz_lower(model.requires_grad_(False), x, generator=torch.Generator().manual_seed(0))
    J = reference.jacobian(numpy_function(model), x[0].numpy())
    assert lower >= 0.9 * np.linalg.norm(J, 2)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval().requires_grad_(False)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert lipschitz_lower(nn.Sequential(layer, nn.Flatten()), x)[0] > 0.0


def test_zero_jacobian_has_no_direction():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    model[0].bias.data.fill_(-100.0)
    norms, directions = jacobian_directions(model, torch.randn(5, 3, dtype=torch.float64))
    assert float(norms.max()) == 0.0
    assert float(directions.abs().max()) == 0.0
    assert lipschitz_lower(model, torch.randn(5, 3, dtype=torch.float64))[0] == 0.0
    wide = nn.Sequential(model, nn.Linear(2, 40).double())
    assert lipschitz_lower(wide, torch.randn(5, 3, dtype=torch.float64))[0] == 0.0


def test_no_derivative_is_said():
    x = torch.randn(2, 3, dtype=torch.float64)
    for function in (lambda x: (x > 0).double(), lambda x: torch.ones(2, 3), lambda x: x.detach()):
        with pytest.raises(NoDerivative, match="no derivative in the input"):
            jacobian_directions(Function(function), x)


# the lower bound


def test_linear_network_is_met():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double().requires_grad_(False)
    norm = float(torch.linalg.matrix_norm(layer.weight, 2))
    lower, _ = lipschitz_lower(layer, torch.randn(3, 6, dtype=torch.float64))
    assert lower == pytest.approx(norm, rel=1e-8)
    assert lower <= norm


def test_absolute_value():
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    net[0].weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    net[2].weight.data = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    lower, _ = lipschitz_lower(net.requires_grad_(False), torch.tensor([[0.7], [-0.2]], dtype=torch.float64))
    assert lower == pytest.approx(1.0, rel=1e-8)
    assert lower <= 1.0
    # at the kink the derivative that PyTorch picks is that of neither side
    assert lipschitz_lower(net, torch.zeros(1, 1, dtype=torch.float64))[0] <= 1.0


def test_row_of_the_steepest_point():
    model = Function(lambda x: x**2)
    x = torch.tensor([[1.0], [-30.0], [5.0]], dtype=torch.float64)
    lower, row = lipschitz_lower(model, x)
    assert row == 1
    assert lower == pytest.approx(60.0, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_below_the_upper_bound_and_above_most_sampled_slopes(seed):
    model = double(4, 16, 16, 3, seed=seed)
    x = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    lower, _ = lipschitz_lower(model, x)
    assert lower <= lipschitz_bounds(trace(model, x)).upper
    sampled = reference.largest_slope(numpy_function(model), x[:12].numpy())
    assert lower >= sampled
    # it is the steepest of the Jacobians at the points, to the kinks within a step
    assert lower >= 0.99 * float(jacobian_directions(model, x)[0].max())


def test_a_derivative_that_is_wrong_does_not_count():
    """Backward passes may lie (straight-through estimators); a difference quotient can't."""
    model = Function(lambda x: x + (100.0 * x - (100.0 * x).detach()))
    x = torch.randn(4, 3, dtype=torch.float64)
    assert float(jacobian_directions(model, x)[0].max()) == pytest.approx(101.0)
    lower, _ = lipschitz_lower(model, x)
    assert lower == pytest.approx(1.0, rel=1e-6)
    assert lower <= 1.0


@pytest.mark.parametrize("size", [1e4, 1e8, 1e10])
def test_rounding_inside_the_network_does_not_count(size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 20, dtype=torch.float64, generator=generator)
    # cancellation: the last digits of x are lost on the way
    lower, _ = lipschitz_lower(Function(lambda x: (x + size) - size), x)
    assert 0.9 <= lower <= 1.0
    # a part in single precision
    lower, _ = lipschitz_lower(Function(lambda x: x.float().double()), x)
    assert 0.9 <= lower <= 1.0
    # inputs that are large and orthogonal to all rows
    layer = nn.Linear(20, 5, bias=False).double().requires_grad_(False)
    layer.weight -= layer.weight.mean(1, keepdim=True)
    lower, _ = lipschitz_lower(layer, x + size)
    assert lower <= float(torch.linalg.matrix_norm(layer.weight, 2))


def test_search_in_single_precision_still_proves_in_double():
    model = double(6, 24, 4)
    x = torch.randn(30, 6, dtype=torch.float64)
    fast = mlp(6, 24, 4, bias=True).requires_grad_(False)
    slow, quick = lipschitz_lower(model, x), lipschitz_lower(model, x, search=fast, batch=7)
    assert quick[0] == pytest.approx(slow[0], rel=1e-6)
    # a search that misleads costs tightness, never validity
    misled, _ = lipschitz_lower(model, x, search=Function(lambda x: -x.abs()))
    assert 0.0 < misled <= slow[0] * (1 + 1e-9)


def test_points_where_the_network_is_not_finite_are_passed_over():
    model = Function(lambda x: torch.where(x > 5.0, torch.nan, 3.0 * x))
    x = torch.tensor([[1.0], [9.0], [-2.0]], dtype=torch.float64)
    lower, row = lipschitz_lower(model, x)
    assert lower == pytest.approx(3.0, rel=1e-8)
    assert row != 1


def test_model_and_generators_are_left_alone():
    model = mlp(4, 40, 40, bias=True).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    for generator in (None, torch.Generator().manual_seed(3)):
        assert lipschitz_lower(model, x, generator=generator)[0] > 0.0
    assert lipschitz_lower(model, x) == lipschitz_lower(model, x)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert not x.requires_grad
