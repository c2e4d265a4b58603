"""Ritz bounds against dense spectra, and checks that refuse derivatives that are none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.curvature import Plan, check_derivatives, plan, ritz_bounds
from theodolite.analysis.hessian import SampleCost, TrainingObjective


def bounds_of(matrix: Tensor, steps: int, seed: int = 0, dtype: torch.dtype = torch.float64, **options):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    return ritz_bounds(
        lambda v: (matrix @ v.double()).to(v),
        len(matrix),
        steps=steps,
        generator=generator,
        dtype=dtype,
        **options,
    )


def symmetric(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    eigenvalues = torch.randn(size, generator=generator, dtype=torch.float64) ** 3
    return rotation @ torch.diag(eigenvalues) @ rotation.T


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bounds_hold_on_random_spectra(dtype):
    for seed in range(25):
        size = 3 + seed
        matrix = symmetric(size, seed)
        truth = torch.linalg.eigvalsh(matrix)
        slack = 1e-9 * float(truth.abs().max())
        for steps in (1, 2, 7):
            # the operator itself is exact, the basis is not: a Rayleigh quotient stays a bound
            found = bounds_of(matrix, steps, seed, dtype, evaluate=lambda rows, m=matrix: rows @ m)
            assert found.top <= truth[-1] + slack
            assert found.smallest >= truth[0] - slack
            assert found.second is None or found.second <= truth[-2] + slack
            assert float((truth - found.top).abs().min()) <= found.residual + slack
            assert found.negative <= int((truth < 0).sum())
            assert len(found.ritz_values) == found.steps <= min(steps, size)


def test_a_full_run_finds_the_ends():
    matrix = symmetric(20, 7)
    truth = torch.linalg.eigvalsh(matrix)
    found = bounds_of(matrix, 20)
    assert found.top == pytest.approx(float(truth[-1]), rel=1e-9)
    assert found.second == pytest.approx(float(truth[-2]), rel=1e-9)
    assert found.smallest == pytest.approx(float(truth[0]), rel=1e-9)
    assert found.negative == int((truth < 0).sum())
    assert found.residual < 1e-7


def test_a_saddle():
    # f = x1^2 - x2^2 / 2
    found = bounds_of(torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64)), 30)
    assert (found.top, found.smallest) == (pytest.approx(2.0), pytest.approx(-1.0))
    assert found.second == pytest.approx(-1.0)
    assert found.negative == 1


def test_zero_and_one_dimension():
    zero = bounds_of(torch.zeros(6, 6, dtype=torch.float64), 30)
    assert (zero.top, zero.smallest, zero.residual, zero.negative) == (0.0, 0.0, 0.0, 0)
    single = bounds_of(torch.tensor([[-3.0]], dtype=torch.float64), 30)
    assert (single.top, single.second, single.smallest) == (-3.0, None, -3.0)


def test_a_wrong_product_in_lanczos_cannot_spoil_the_bounds():
    matrix = symmetric(30, 3)
    truth = torch.linalg.eigvalsh(matrix)
    generator = torch.Generator().manual_seed(0)
    noisy = matrix + 0.3 * symmetric(30, 4)
    found = ritz_bounds(
        lambda v: noisy @ v, 30, steps=12, generator=generator, evaluate=lambda rows: rows @ matrix
    )
    assert truth[0] <= found.smallest <= found.top <= truth[-1]
    assert float((truth - found.top).abs().min()) <= found.residual


def test_progress_and_interrupt():
    seen: list[tuple[int, int]] = []
    bounds_of(symmetric(10, 0), 4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounds_of(symmetric(10, 0), 4, progress=interrupt)


def test_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        bounds_of(torch.full((4, 4), torch.inf, dtype=torch.float64), 3)


@pytest.mark.parametrize(
    ("cost", "size", "n", "expected"),
    [
        (SampleCost(25_000, 500), 13_000, 1_400, Plan(1_400, 30, True)),  # a small network: everything
        (SampleCost(3e8, 8e5), 11_000_000, 256, Plan(14, 20, False)),  # ResNet-18 at 64x64
        (SampleCost(3e8, 8e5), 11_000_000, 3, Plan(3, 24, False)),  # few samples
        (SampleCost(3.5e10, 5e7), 86_000_000, 1_000, Plan(4, 3, False)),  # a large transformer
        (SampleCost(1e12, 1e8), 1_000_000_000, 10, Plan(4, 0, False)),  # no basis fits
    ],
)
def test_plan(cost, size, n, expected):
    assert plan(cost, size, n) == expected


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class FirstOrder(torch.autograd.Function):
    """A square whose backward formula cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2.0 * grad * ctx.saved_tensors[0].data


class Between(nn.Module):
    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def checked(function, dtype: torch.dtype = torch.float64, zero_bias: bool = False, blank: bool = False):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = Between(function)
    if zero_bias:
        nn.init.zeros_(model.first.bias)
    x = torch.zeros(4, 4) if blank else torch.randn(4, 4)
    objective = TrainingObjective(model, x, torch.tensor([0, 1, 2, 0]), F.cross_entropy, dtype=dtype)
    return check_derivatives(objective, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("function", [torch.tanh, torch.relu, F.gelu, torch.square, nn.Identity()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_honest_derivatives_pass(function, dtype):
    assert checked(function, dtype) == checked(function, dtype)
    found = checked(function, dtype)
    assert (found.kink, found.first, found.second) == (False, "", "")


@pytest.mark.parametrize("function", [StraightThrough.apply, lambda z: z * z.detach()])
def test_changed_gradients_are_seen(function):
    assert "first derivative" in checked(function).first


def test_a_missing_second_derivative_is_seen():
    found = checked(FirstOrder.apply)
    assert found.first == ""
    assert "quotient of gradients" in found.second


def test_a_kink_is_seen():
    # blank inputs and zero biases: every ReLU sits at 0 and moves with its bias
    assert checked(torch.relu, zero_bias=True, blank=True).kink
    assert not checked(torch.relu, zero_bias=False, blank=True).kink
    assert not checked(torch.tanh, zero_bias=True, blank=True).kink
