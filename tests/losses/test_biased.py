"""A loss with a decayed bias: a minimum over that bias, and its dual."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from theodolite.atoms import MatrixAtom
from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, SquaredLoss
from theodolite.losses.biased import BiasedLoss

N, K = 40, 4


def squared(seed: int, decay: float) -> tuple[BiasedLoss, Tensor]:
    g = torch.Generator().manual_seed(seed)
    Y = 2.0 + torch.randn(N, K, generator=g, dtype=torch.float64)
    Z = torch.randn(N, K, generator=g, dtype=torch.float64)
    return BiasedLoss(SquaredLoss(Y, 2.0 / (N * K)), decay), Z


def entropy(seed: int, decay: float) -> tuple[BiasedLoss, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (N,), generator=g)  # two classes are absent
    Z = 3.0 * torch.randn(N, K, generator=g, dtype=torch.float64)
    return BiasedLoss(CrossEntropyLoss(y, K, 1.0 / N), decay), Z


CASES = pytest.mark.parametrize("make", [squared, entropy])
DECAYS = pytest.mark.parametrize("decay", [1e-6, 1e-3, 1.0, 100.0])


@CASES
@DECAYS
def test_value_is_the_least_over_the_bias(make, decay):
    loss, Z = make(0, decay)
    best = minimize(
        lambda b: loss.at(Z, torch.from_numpy(b)), loss.bias(Z).numpy() * 0.9, method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000},
    )  # fmt: skip
    assert loss.value(Z) <= best.fun * (1 + 1e-14)
    assert loss.value(Z) == pytest.approx(best.fun, rel=1e-6)
    assert loss.value(Z) <= loss.at(Z, torch.zeros(K, dtype=torch.float64)) * (1 + 1e-14)


@CASES
def test_another_factor_in_front(make):
    loss, Z = make(8, 0.1)
    twin = loss.rescaled(3.0 * loss.scale)
    assert twin.value(Z) == pytest.approx(3.0 * loss.value(Z), rel=1e-12)
    assert loss.to("cpu").value(Z) == loss.value(Z)


@CASES
@DECAYS
def test_gradient(make, decay):
    loss, Z = make(1, decay)
    G = loss.gradient(Z)
    V = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    h = 1e-5
    slope = (loss.value(Z + h * V) - loss.value(Z - h * V)) / (2 * h)
    assert float((G * V).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-9)


@CASES
@DECAYS
def test_fenchel_young_with_equality_at_the_gradient(make, decay):
    loss, Z = make(2, decay)
    R = -loss.gradient(Z)
    assert loss.dual(R) - float((R * Z).sum()) == pytest.approx(loss.value(Z), rel=1e-11)
    for seed in range(20):
        other = make(seed, decay)[1]
        for t in (0.1, 0.7, 1.0):
            assert loss.value(other) >= loss.dual(t * R) - t * float((R * other).sum()) - 1e-12


@CASES
def test_the_dual_holds_below_every_bias_and_fails_without_its_new_term(make):
    decay = 0.1
    loss, Z = make(3, decay)
    R = -loss.gradient(Z)
    broken = loss.loss.dual(R) - float((R * Z).sum())
    b = loss.bias(Z)
    assert loss.at(Z, b) >= loss.dual(R) - float((R * Z).sum()) - 1e-12
    assert broken > loss.at(Z, b) + 1e-6


@CASES
@DECAYS
def test_best_t_is_the_best_on_the_ray(make, decay):
    loss, Z = make(4, decay)
    R = -loss.gradient(Z)
    top = min(1.0, loss.t_range(R)[1])
    t, value = loss.best_t(R, upper=top)
    assert 0.0 <= t <= top
    assert value == pytest.approx(loss.dual(t * R), rel=1e-9, abs=1e-12)
    grid = [loss.dual(s * R) for s in torch.linspace(0, top, 101).tolist()]
    assert value >= max(grid) - 1e-6 * abs(value)


@CASES
def test_smoothness_and_rounding_are_finite_and_hold(make):
    loss, Z = make(6, 0.01)
    V = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    h = 1e-4
    curvature = (loss.value(Z + h * V) - 2 * loss.value(Z) + loss.value(Z - h * V)) / h**2
    assert curvature <= loss.smoothness(Z) * float(V.square().sum()) * (1 + 1e-3)
    primal, dual, rows = loss.magnitudes(Z, -loss.gradient(Z))
    assert primal >= abs(loss.value(Z))
    assert dual >= abs(loss.dual(-loss.gradient(Z)))
    assert rows.shape == (N,)


def test_a_decay_that_is_none_is_refused():
    for decay in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="decay: expected a finite number > 0"):
            BiasedLoss(SquaredLoss(torch.zeros(2, 1)), decay)


@pytest.mark.parametrize("decay", [1e-9, 1e-17])
def test_a_decay_too_small_for_newton_still_gives_a_valid_certificate(decay):
    g = torch.Generator().manual_seed(0)
    Y = 1e6 + torch.randn(20, 2, generator=g, dtype=torch.float64)
    for inner in (SquaredLoss(Y, 1 / 20), CrossEntropyLoss((Y[:, 0] > 1e6).long(), 2, 1 / 20)):
        loss = BiasedLoss(inner, decay)
        certificate = Problem(loss, MatrixAtom((20, 2)), 1e-3).certify(MatrixAtom((20, 2)).init(1))
        assert certificate.dual_bound <= certificate.objective
