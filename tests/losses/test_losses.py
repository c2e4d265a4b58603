"""Convex losses: values, gradients, duals, rays, all against an independent truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from theodolite.losses import CrossEntropyLoss, Loss, SquaredLoss, accurate_sum

SCALES = [1.0, 0.25]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses(n: int = 5, k: int = 3, scale: float = 0.25, seed: int = 0) -> list[Loss]:
    y = torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(seed))
    return [SquaredLoss(normal(n, k, seed=seed + 1), scale), CrossEntropyLoss(y, k, scale)]


def in_domain(loss: Loss, seed: int) -> torch.Tensor:
    """A random point of the dual's domain."""
    if isinstance(loss, SquaredLoss):
        return normal(*loss.shape, seed=seed)
    p = torch.softmax(3 * normal(*loss.shape, seed=seed), 1)
    return loss.scale * (F.one_hot(loss.y, loss.shape[1]).double() - p)


def test_means_are_torchs():
    Z, Y = normal(7, 4), normal(7, 4, seed=1)
    y = torch.tensor([0, 3, 2, 2, 1, 0, 3])
    assert SquaredLoss(Y, 2 / 28).value(Z) == pytest.approx(float(F.mse_loss(Z, Y)), rel=1e-14)
    assert CrossEntropyLoss(y, 4, 1 / 7).value(Z) == pytest.approx(float(F.cross_entropy(Z, y)), rel=1e-14)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("which", [0, 1])
def test_derivatives_are_autograds(which, scale):
    loss = losses(scale=scale)[which]
    Z = normal(*loss.shape, seed=5).requires_grad_()
    direction = normal(*loss.shape, seed=6)
    value = (
        scale / 2 * (loss.Y - Z).square().sum()
        if which == 0
        else scale * F.cross_entropy(Z, loss.y, reduction="sum")
    )
    (gradient,) = torch.autograd.grad(value, Z, create_graph=True)
    torch.testing.assert_close(loss.gradient(Z.detach()), gradient.detach(), rtol=1e-12, atol=1e-14)
    (second,) = torch.autograd.grad((gradient * direction).sum(), Z)
    product, weights = loss.curvature(Z.detach())
    torch.testing.assert_close(product(direction), second, rtol=1e-12, atol=1e-14)
    diagonal = torch.zeros_like(direction)
    for i in range(loss.shape[0]):
        for j in range(loss.shape[1]):
            unit = torch.zeros_like(direction)
            unit[i, j] = 1.0
            diagonal[i, j] = product(unit)[i, j]
    torch.testing.assert_close(weights, diagonal.mean(1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_dual_is_the_numerical_conjugate(which, scale, seed):
    loss = losses(n=3, k=3, scale=scale, seed=seed)[which]
    Q = in_domain(loss, seed + 20)

    def negative(z):
        Z = torch.from_numpy(z.reshape(loss.shape))
        return loss.value(Z) + float((Q * Z).sum()), (loss.gradient(Z) + Q).numpy().ravel()

    found = minimize(
        negative, np.zeros(9), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "maxiter": 2000}
    )
    assert loss.dual(Q) == pytest.approx(found.fun, rel=1e-7, abs=1e-9)


@given(st.integers(0, 10_000))
def test_fenchel_young(seed):
    for loss in losses(seed=seed):
        Z, Q = 3 * normal(*loss.shape, seed=seed), in_domain(loss, seed + 1)
        assert loss.value(Z) >= loss.dual(Q) - float((Q * Z).sum()) - 1e-12
        R = -loss.gradient(Z)
        assert loss.value(Z) == pytest.approx(loss.dual(R) - float((R * Z).sum()), rel=1e-12, abs=1e-13)


def test_cross_entropy_dual_at_the_edge_of_its_domain():
    loss = CrossEntropyLoss(torch.tensor([0, 2]), 3, scale=0.5)
    assert loss.dual(torch.zeros(2, 3)) == 0.0  # p = e_y: no entropy, and 0 ln 0 = 0
    half = 0.5 * (torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]) - torch.tensor([[0.5, 0.5, 0], [0.0, 0.5, 0.5]]))
    assert loss.dual(half) == pytest.approx(math.log(2.0), rel=1e-14)
    assert loss.dual(half + 1e-3) == -math.inf  # rows that do not sum to zero
    assert loss.dual(2.5 * half) == -math.inf  # a negative probability
    # float64 logits so large that softmax underflows to exact zeros
    Z = torch.tensor([[800.0, 0.0, -800.0], [900.0, 0.0, 0.0]])
    R = -loss.gradient(Z)
    assert math.isfinite(loss.value(Z))
    assert loss.dual(R) == 0.0
    assert loss.t_range(R) == (0.0, 1.0)


def test_t_range_is_where_the_dual_is_finite():
    loss = CrossEntropyLoss(torch.tensor([0, 2]), 3)
    R = torch.tensor([[3.0, -2.0, -1.0], [-0.5, 0.0, 0.5]], dtype=torch.float64)
    low, high = loss.t_range(R)
    assert (low, high) == (0.0, pytest.approx(1 / 3))
    assert math.isfinite(loss.dual(high * R))
    assert loss.dual(1.01 * high * R) == -math.inf
    assert loss.t_range(-R) == (0.0, 0.0)
    assert loss.t_range(R + 1) == (0.0, 0.0)
    assert SquaredLoss(torch.zeros(2, 3)).t_range(R) == (0.0, math.inf)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("linear", [0.0, 0.05])
@pytest.mark.parametrize("quadratic", [0.0, 0.3, 30.0])
def test_best_t_beats_a_grid(which, linear, quadratic):
    loss = losses(n=20)[which]
    R = -loss.gradient(normal(*loss.shape, seed=9))
    for upper in (math.inf, 0.2):
        t, value = loss.best_t(R, upper=upper, linear=linear, quadratic=quadratic)
        assert 0.0 <= t <= upper

        def objective(s, linear=linear, quadratic=quadratic):
            return loss.dual(s * R) - linear * s - quadratic * s * s / 2

        assert value == pytest.approx(objective(t), rel=1e-12, abs=1e-14)
        top = min(upper, loss.t_range(R)[1], 3.0)
        assert value >= max(objective(s) for s in np.linspace(0, top, 101)) - 1e-8 * abs(value)


def test_squared_t_may_exceed_one_and_cross_entropys_may_not():
    loss = SquaredLoss(torch.ones(4, 1))
    R = 0.5 * torch.ones(4, 1, dtype=torch.float64)
    assert loss.best_t(R)[0] == pytest.approx(2.0)
    other = CrossEntropyLoss(torch.tensor([0, 1]), 2)
    R = -other.gradient(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    assert other.best_t(R)[0] <= 1.0


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_center_stays_in_the_domain(which, seed):
    loss = losses(n=12, k=4, seed=seed)[which]
    Q = in_domain(loss, seed)
    centered = loss.center(Q)
    assert float(centered.sum(0).abs().max()) < 1e-14
    assert math.isfinite(loss.dual(centered))
    torch.testing.assert_close(loss.center(centered), centered, rtol=1e-10, atol=1e-13)


def test_center_with_an_absent_class():
    loss = CrossEntropyLoss(torch.tensor([0, 0, 2]), 4)
    centered = loss.center(in_domain(loss, 0))
    assert math.isfinite(loss.dual(centered))
    assert float(centered.sum(0).abs().max()) < 1e-14
    assert float(centered[:, [1, 3]].abs().max()) == 0.0


@pytest.mark.parametrize("which", [0, 1])
def test_rows_add_up(which):
    loss = losses(n=9)[which]
    Z = normal(9, 3, seed=3)
    parts = [slice(0, 4), slice(4, 9)]
    assert sum(loss.rows(s).value(Z[s]) for s in parts) == pytest.approx(loss.value(Z), rel=1e-14)
    index = torch.tensor([7, 1])
    torch.testing.assert_close(loss.rows(index).gradient(Z[index]), loss.gradient(Z)[index])


def test_single_class_has_no_loss():
    loss = CrossEntropyLoss(torch.tensor([0, 0]), 1)
    Z = torch.tensor([[3.0], [-2.0]])
    assert loss.value(Z) == 0.0
    assert loss.dual(-loss.gradient(Z)) == 0.0


@pytest.mark.parametrize("size", [0, 1, 5, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e280])
def test_accurate_sum_is_exact_but_for_one_rounding(size, scale):
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, 1, dtype=torch.float64, generator=generator) * scale
    wide = x * torch.exp(5.0 * torch.randn(size, 1, dtype=torch.float64, generator=generator))
    alternating = torch.cat([x, -x.flip(0), x[:1] * 1e-12])
    for terms in (x, wide, alternating, x.abs()):
        exact = math.fsum(terms[:, 0].tolist())
        assert abs(accurate_sum(terms) - exact) <= 2.0**-53 * float(terms.abs().sum()) + 5e-324


def test_accurate_sum_of_what_overflows():
    assert accurate_sum(torch.full((3, 1), 1.7e308, dtype=torch.float64)) == math.inf
    assert accurate_sum(torch.tensor([[1.7e308], [-1.7e308]], dtype=torch.float64)) == 0.0
    assert math.isnan(accurate_sum(torch.tensor([[1.0], [math.nan]]).double()))


def test_accurate_sum_survives_cancellation():
    matrix = torch.tensor([[1e16], [1.0], [-1e16], [1.0]], dtype=torch.float64)
    assert accurate_sum(matrix) == 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SquaredLoss(torch.zeros(3)), "Y: expected shape"),
        (lambda: SquaredLoss(torch.zeros(3, 1), 0.0), "scale: expected a finite number > 0"),
        (lambda: CrossEntropyLoss(torch.tensor([0, 3]), 3), "y: expected class numbers 0 to 2, got 0 to 3"),
        (lambda: CrossEntropyLoss(torch.zeros(3), 3), "y: expected class numbers of shape"),
        (lambda: CrossEntropyLoss(torch.tensor([0]), 2).value(torch.zeros(1, 3)), "Z: expected shape"),
        (lambda: SquaredLoss(torch.zeros(2, 2)).dual(torch.zeros(2, 3)), "Q: expected shape"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
