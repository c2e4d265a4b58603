"""Equalized factors against the least penalty, and deep linear networks against search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.analysis.dropout import deep_dropout_regularizer, dropout_regularizer
from theodolite.analysis.equalization import (
    balance,
    deep_dropout_optimum,
    deep_factor,
    equalize,
    equalized_factors,
    equalized_layers,
    equalizing_rotation,
)
from theodolite.analysis.squared_norms import squared_nuclear_prox
from theodolite.nn.dropout import kappa, theta_for_width

DIAGONAL = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_known_answer_of_width_four():
    U, V = equalized_factors(squared_nuclear_prox(DIAGONAL, 0.5), 4)
    assert balance(U, V).products.tolist() == pytest.approx([0.625] * 4, rel=1e-10)
    error = float((DIAGONAL - U @ V.T).square().sum())
    assert error + dropout_regularizer(U, V, 2.0 / 3.0).value == pytest.approx(7.25, rel=1e-10)


def test_known_answer_of_width_eight():
    """Known answer 3: width 8, theta = 1 / (1 + r L), the objective of the equalized optimum."""
    generator = np.random.default_rng(0)
    generator.normal(size=(6, 4)), generator.normal(size=(5, 4))
    Y = torch.from_numpy(generator.normal(size=(6, 5)))
    theta = theta_for_width(1.0 / 1.3, 8)
    assert theta == pytest.approx(0.294117647, abs=1e-9)
    best = squared_nuclear_prox(Y, 0.3, 8)
    U, V = equalized_factors(best, 8)
    error = float((Y - U @ V.T).square().sum())
    assert error + dropout_regularizer(U, V, 1.0 - theta).value == pytest.approx(15.84065355104407, rel=1e-13)


@pytest.mark.parametrize("width", [3, 4, 5, 16, 100])
def test_equalized_factors_have_one_product_and_equal_columns(width):
    A, B = normal(6, 3), normal(5, 3, seed=1)
    U, V, T = equalize(A, B, width)
    X = A @ B.T
    nuclear = float(torch.linalg.svdvals(X).sum())
    torch.testing.assert_close(U @ V.T, X, rtol=1e-12, atol=1e-12)
    for factor in (U, V):
        assert factor.square().sum(0).tolist() == pytest.approx([nuclear / width] * width, rel=1e-12)
    torch.testing.assert_close(T @ T.T, torch.eye(len(T), dtype=torch.float64), rtol=0, atol=1e-13)
    report = balance(U, V)
    assert report.spread < 1e-13
    assert report.imbalance < 1e-12
    assert dropout_regularizer(U, V, 0.5).value == pytest.approx(nuclear**2 / width, rel=1e-12)


def test_no_factors_of_the_same_product_cost_less():
    A, B = normal(5, 4), normal(6, 4, seed=1)
    U, V, _ = equalize(A, B)
    least = dropout_regularizer(U, V, 0.5).value
    for seed in range(300):
        G = normal(4, 4, seed=seed)
        for change in (G, torch.linalg.qr(G).Q, torch.eye(4, dtype=torch.float64) + 1e-3 * G):
            other = dropout_regularizer(U @ change, V @ torch.linalg.inv(change).T, 0.5).value
            assert other >= least * (1.0 - 1e-10)


def test_awkward_singular_values():
    for s, width in itertools.product(([1.0], [1.0, 1.0], [1e8, 1.0, 1e-8], [5.0, 0.0], []), (3, 50)):
        singular = torch.tensor(s, dtype=torch.float64)
        T = equalizing_rotation(singular, width)
        diagonal = (singular[:, None] * T.square()).sum(0)
        assert diagonal.tolist() == pytest.approx([sum(s) / width] * width, rel=1e-9)


def test_factors_that_are_not_of_full_rank():
    A = torch.cat([normal(5, 2), torch.zeros(5, 2)], 1)
    U, V, T = equalize(A, A, 3)
    assert T.shape == (2, 3)
    torch.testing.assert_close(U @ V.T, A @ A.T, rtol=0, atol=1e-12)
    assert equalize(torch.zeros(3, 2), torch.zeros(4, 2))[0].tolist() == [[0.0, 0.0]] * 3
    with pytest.raises(ValueError, match="width: expected at least the rank 2, got 1"):
        equalize(A, A, 1)


def test_balance_tells_unequal_units():
    U, V = torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2)
    report = balance(U, V)
    assert report.products.tolist() == [2.0, 1.0]
    assert report.spread == pytest.approx(0.5 / 1.5)
    assert report.imbalance == pytest.approx(3.0 / 5.0)
    assert balance(torch.zeros(2, 2), V).spread == 0.0
    X = torch.diag(torch.tensor([1.0, 2.0]))
    assert balance(U, V, inputs=X).spread == 0.0


# --- deep linear networks


def test_one_hidden_layer_is_the_plain_theory():
    assert deep_factor([0.5], [8]) == pytest.approx(1.0 / 8.0)
    Y = normal(5, 6)
    weights, optimum = deep_dropout_optimum(Y, [0.6], [3])
    best = squared_nuclear_prox(Y, kappa(0.6) / 3, 3)
    assert optimum.low == pytest.approx(best.value, rel=1e-12)
    assert optimum.high == pytest.approx(best.value, rel=1e-12)
    torch.testing.assert_close(weights[1] @ weights[0], best.matrix)


@pytest.mark.parametrize("widths", [(4,), (4, 7), (5, 3, 6), (3, 3, 3, 9)])
def test_rank_one_attains_the_envelope(widths):
    X, rates = normal(5, 1) @ normal(1, 6, seed=1), [0.2, 0.5, 0.7, 0.4][: len(widths)]
    layers = equalized_layers(X, widths)
    assert [(w.shape[1], len(w)) for w in layers] == [*itertools.pairwise([6, *widths, 5])]
    product = layers[0]
    for weight in layers[1:]:
        product = weight @ product
    torch.testing.assert_close(product, X)
    nuclear = float(torch.linalg.svdvals(X).sum())
    expected = deep_factor(rates, widths) * nuclear**2
    assert deep_dropout_regularizer(layers, rates).value == pytest.approx(expected, rel=1e-12)


def test_two_hidden_layers_attain_the_factor_of_their_rank():
    X, rates, widths = normal(6, 3) @ normal(3, 5, seed=1), (0.3, 0.6), (4, 9)
    nuclear = float(torch.linalg.svdvals(X).sum())
    value = deep_dropout_regularizer(equalized_layers(X, widths), rates).value
    assert value == pytest.approx(deep_factor(rates, widths, 3) * nuclear**2, rel=1e-12)
    assert value > 1.01 * deep_factor(rates, widths) * nuclear**2


def test_the_envelope_is_below_every_network():
    for seed, depth in itertools.product(range(30), (1, 2, 3)):
        widths, rates = (4, 3, 5)[:depth], (0.3, 0.6, 0.5)[:depth]
        sizes = [5, *widths, 4]
        layers = [normal(b, a, seed=10 * seed + i) for i, (a, b) in enumerate(itertools.pairwise(sizes))]
        product = layers[0]
        for weight in layers[1:]:
            product = weight @ product
        nuclear = float(torch.linalg.svdvals(product).sum())
        assert deep_dropout_regularizer(layers, rates).value >= deep_factor(rates, widths) * nuclear**2


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_descent_ends_between_both_ends(p):
    """Adam from random starts on the exact objective of two hidden layers never falls below the lower end."""
    Y, widths = normal(4, 5, seed=2), (4, 5)
    weights, optimum = deep_dropout_optimum(Y, (p, p), widths)
    product = weights[2] @ weights[1] @ weights[0]
    attained = float((Y - product).square().sum()) + deep_dropout_regularizer(weights, (p, p)).value
    assert attained == pytest.approx(optimum.high, rel=1e-12)
    found = []
    for seed in range(2):
        leaves = [
            normal(b, a, seed=seed + 10 * i).mul_(0.6).requires_grad_()
            for i, (a, b) in enumerate(itertools.pairwise([5, *widths, 4]))
        ]
        optimizer = torch.optim.Adam(leaves, lr=0.02)
        for _ in range(500):
            optimizer.zero_grad()
            loss = deep_objective(Y, leaves, p)
            loss.backward()
            optimizer.step()
        found.append(float(loss.detach()))
    assert min(found) >= optimum.low * (1.0 - 1e-9)
    assert optimum.high <= min(found) * 1.05  # equalized layers are not much worse than what search finds


def deep_objective(Y: Tensor, weights: list[Tensor], p: float) -> Tensor:
    mean = extra = weights[0] @ weights[0].T
    extra, product = torch.zeros_like(extra), weights[0]
    for weight in weights[1:]:
        extra = extra + kappa(p) * (mean + extra).diagonal().diag()
        mean, extra, product = weight @ mean @ weight.T, weight @ extra @ weight.T, weight @ product
    return (Y - product).square().sum() + extra.trace()


def test_large_rates_have_an_optimum_of_rank_one_with_both_ends_equal():
    Y = torch.diag(torch.tensor([5.0, 1.0, 0.5], dtype=torch.float64))
    weights, optimum = deep_dropout_optimum(Y, (0.9, 0.9), (3, 4))
    assert optimum.high == pytest.approx(optimum.low, rel=1e-12)
    assert int((torch.linalg.svdvals(weights[2] @ weights[1] @ weights[0]) > 1e-10).sum()) == 1


def test_what_is_refused():
    with pytest.raises(ValueError, match="rates, widths: expected one each"):
        deep_factor([0.5], [1, 2])
    with pytest.raises(ValueError, match="widths: expected at least one hidden layer"):
        equalized_layers(DIAGONAL, [])
    with pytest.raises(ValueError, match="U, V: expected as many columns"):
        balance(torch.ones(2, 3), torch.ones(2, 2))
