"""Closed forms of dropout's penalties against exhaustive sums over all masks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.analysis.dropout import (
    deep_dropout_regularizer,
    dropblock_regularizer,
    dropconnect_regularizer,
    dropout_regularizer,
    feature_regularizer,
    monte_carlo,
    softmax_score,
)
from theodolite.nn import BernoulliDropout, DropBlock, DropConnect
from theodolite.nn.dropout import kappa


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def seed_zero() -> tuple[Tensor, Tensor, Tensor]:
    """The known answers' matrices: U 6 x 4, V 5 x 4, Y 6 x 5."""
    generator = np.random.default_rng(0)
    return tuple(torch.from_numpy(generator.normal(size=shape)) for shape in ((6, 4), (5, 4), (6, 5)))  # type: ignore[return-value]


def expectation(masks: int, p: float, loss: Callable[[Tensor], Tensor]) -> float:
    """Return the mean of a loss over all 2^masks masks, each divided by 1 - p."""
    total = 0.0
    for kept in itertools.product((0.0, 1.0), repeat=masks):
        weight = math.prod(1.0 - p if k else p for k in kept)
        total += weight * float(loss(torch.tensor(kept, dtype=torch.float64) / (1.0 - p)))
    return total


def squared(A: Tensor) -> Tensor:
    return A.square().sum()


def test_known_answer_of_sixteen_masks():
    U, V, Y = seed_zero()
    plain, brute = squared(Y - U @ V.T), expectation(4, 0.3, lambda m: squared(Y - (U * m) @ V.T))
    assert brute == pytest.approx(106.26494474991128, rel=1e-10)
    assert float(plain) + dropout_regularizer(U, V, 0.3).value == pytest.approx(brute, rel=1e-10)


def test_known_answer_of_blocks():
    U, V, Y = seed_zero()
    brute = expectation(2, 0.3, lambda m: squared(Y - (U * m.repeat_interleave(2)) @ V.T))
    assert brute == pytest.approx(110.83987306325056, rel=1e-10)
    value = dropblock_regularizer(U, V, 2, 0.3)
    assert value.kind == "exact"
    assert float(squared(Y - U @ V.T)) + value.value == pytest.approx(brute, rel=1e-10)


def test_known_answer_of_drop_connect():
    U, V, X = torch.ones(1, 1), torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    assert dropout_regularizer(U, V, 0.5, inputs=X).value == pytest.approx(0.0, abs=1e-12)
    assert dropconnect_regularizer(U, V, 0.5, side="in", inputs=X).value == pytest.approx(2.0, rel=1e-10)
    assert dropconnect_regularizer(U, V, 0.75, side="in", inputs=X).value == pytest.approx(6.0, rel=1e-10)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_drop_connect_on_both_sides_by_brute_force(p):
    U, V, X, Y = normal(2, 3), normal(3, 3, seed=1), normal(3, 4, seed=2), normal(2, 4, seed=3)
    plain = float(squared(Y - U @ V.T @ X))
    out = expectation(6, p, lambda m: squared(Y - (U * m.reshape(2, 3)) @ V.T @ X))
    assert dropconnect_regularizer(U, V, p, side="out", inputs=X).value == pytest.approx(
        out - plain, rel=1e-10
    )
    inn = expectation(9, p, lambda m: squared(Y - U @ (V * m.reshape(3, 3)).T @ X))
    assert dropconnect_regularizer(U, V, p, side="in", inputs=X).value == pytest.approx(
        inn - plain, rel=1e-10
    )
    dropped = expectation(3, p, lambda m: squared(Y - (U * m) @ V.T @ X))
    assert dropout_regularizer(U, V, p, inputs=X).value == pytest.approx(dropped - plain, rel=1e-10)


def test_drop_connect_of_whitened_inputs_is_dropout():
    U, V = normal(4, 3), normal(5, 3, seed=1)
    X = torch.linalg.qr(normal(9, 5, seed=2)).Q.T
    own = dropout_regularizer(U, V, 0.4, inputs=X).value
    assert dropconnect_regularizer(U, V, 0.4, side="in", inputs=X).value == pytest.approx(own, rel=1e-10)
    assert dropconnect_regularizer(U, V, 0.4, side="in").value == pytest.approx(
        dropout_regularizer(U, V, 0.4).value
    )


def test_missing_entries_have_another_penalty():
    U, V, Y = seed_zero()
    seen = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    plain = float(squared((Y - U @ V.T) * seen))
    brute = expectation(4, 0.3, lambda m: squared((Y - (U * m) @ V.T) * seen))
    value = dropout_regularizer(U, V, 0.3, observed=seen)
    assert plain + value.value == pytest.approx(brute, rel=1e-10)
    assert dropout_regularizer(U, V, 0.3, observed=torch.ones(6, 5)).value == pytest.approx(
        dropout_regularizer(U, V, 0.3).value
    )


@pytest.mark.parametrize("block", [1, 2])
def test_last_layer_of_any_network(block):
    """Features of a ReLU layer, one mask for all samples; and one for each gives the same mean."""
    X, W, U, Y = normal(3, 2), normal(4, 2, seed=1), normal(2, 4, seed=2), normal(3, 2, seed=3)
    H = (X @ W.T).clamp_min(0.0)
    plain = float(squared(Y - H @ U.T))
    shared = expectation(4 // block, 0.4, lambda m: squared(Y - (H * m.repeat_interleave(block)) @ U.T))
    value = feature_regularizer(H, U, 0.4, block=block).value
    assert value == pytest.approx(shared - plain, rel=1e-10)
    own = sum(
        expectation(4 // block, 0.4, lambda m, i=i: squared(Y[i] - (H[i] * m.repeat_interleave(block)) @ U.T))
        for i in range(3)
    )
    assert own == pytest.approx(shared, rel=1e-10)


def test_copies_of_a_unit_cost_less():
    H, U = normal(6, 1), normal(2, 1, seed=1)
    one = feature_regularizer(H, U, 0.5).value
    assert feature_regularizer(H.repeat(1, 5), U.repeat(1, 5) / 5.0, 0.5).value == pytest.approx(one / 5.0)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deep_networks_by_brute_force(depth):
    widths, rates = [2, 3, 2][:depth], [0.2, 0.5, 0.7][:depth]
    sizes = [3, *widths, 2]
    weights = [normal(b, a, seed=i) for i, (a, b) in enumerate(itertools.pairwise(sizes))]
    X, Y = normal(3, 4, seed=7), normal(2, 4, seed=8)
    total, plain = 0.0, X
    for weight in weights:
        plain = weight @ plain
    for kept in itertools.product(*[itertools.product((0, 1), repeat=w) for w in widths]):
        h, chance = X, 1.0
        for weight, mask, p in zip(weights, kept, rates, strict=False):
            m = torch.tensor(mask, dtype=torch.float64)
            chance *= math.prod(1.0 - p if k else p for k in mask)
            h = (weight @ h) * m[:, None] / (1.0 - p)
        total += chance * float(squared(Y - weights[-1] @ h))
    value = deep_dropout_regularizer(weights, rates, inputs=X).value
    assert value == pytest.approx(total - float(squared(Y - plain)), rel=1e-10)


def test_one_hidden_layer_is_the_plain_formula():
    U, V, _ = seed_zero()
    assert deep_dropout_regularizer([V.T, U], [0.3]).value == pytest.approx(
        dropout_regularizer(U, V, 0.3).value, rel=1e-12
    )


def softmax_loss(H: Tensor, U: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(H @ U.T, y, reduction="sum")


@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.parametrize("block", [1, 2])
def test_second_order_score_is_the_limit_for_weak_units(block, p):
    H, y = normal(3, 4), torch.tensor([0, 2, 1])
    ratios = []
    for size in (0.1, 0.01):
        U = size * normal(3, 4, seed=1)
        exact = expectation(
            4 // block, p, lambda m, U=U: softmax_loss(H * m.repeat_interleave(block), U, y)
        ) - float(softmax_loss(H, U, y))
        score = softmax_score(H, U, (H @ U.T).softmax(1), p, block=block)
        assert score.kind == "score"
        assert exact >= 0.0  # Jensen
        ratios.append(abs(score.value / exact - 1.0))
    assert ratios[1] < 0.02
    assert ratios[1] < 0.2 * ratios[0]


def test_second_order_score_is_not_the_limit_for_small_rates():
    """A unit that is seldom dropped is dropped as a whole."""
    H, U, y = normal(3, 4), normal(3, 4, seed=1), torch.tensor([0, 2, 1])
    exact = expectation(4, 1e-4, lambda m: softmax_loss(H * m, U, y)) - float(softmax_loss(H, U, y))
    assert softmax_score(H, U, (H @ U.T).softmax(1), 1e-4).value < 0.9 * exact


def test_score_of_many_rows_in_parts_is_one_sum(monkeypatch):
    H, U = normal(50, 6), normal(3, 6, seed=1)
    P = (H @ U.T).softmax(1)
    whole = softmax_score(H, U, P, 0.3, block=2).value, feature_regularizer(H, U, 0.3, block=2).value
    monkeypatch.setattr("theodolite.analysis.dropout._CHUNK", 20)
    parts = softmax_score(H, U, P, 0.3, block=2).value, feature_regularizer(H, U, 0.3, block=2).value
    assert parts == pytest.approx(whole, rel=1e-12)


def test_modules_attain_the_closed_forms_on_average():
    """Known answer 7: the mean of 4,000 masks is within its interval of the exact value."""
    generator = torch.Generator().manual_seed(0)
    H = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    U = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    Y = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    plain = float(squared(Y - H @ U.T))
    exact = feature_regularizer(H, U, 0.4).value
    module = BernoulliDropout(0.4)
    found = monte_carlo(lambda: float(squared(Y - module(H) @ U.T)) - plain, 4000, confidence=0.999)
    assert found.low <= exact <= found.high
    assert (found.high - found.low) / exact < 0.1
    block = DropBlock(5, 0.4)
    found = monte_carlo(lambda: float(squared(Y - block(H) @ U.T)) - plain, 1000, confidence=0.999)
    assert found.low <= feature_regularizer(H, U, 0.4, block=5).value <= found.high
    layer = DropConnect(5, 3, bias=False, p=0.4).double()
    layer.weight.data = U.clone()
    found = monte_carlo(lambda: float(squared(Y - layer(H)).detach()) - plain, 2000, confidence=0.999)
    assert found.low <= dropconnect_regularizer(U, H, 0.4, side="out").value <= found.high


def test_gradients_with_masks_are_those_of_the_deterministic_objective_on_average():
    """Exhaustively: the mean gradient of the masked squared error is the gradient of error and penalty."""
    U, V, Y = seed_zero()
    leaves = [U.clone().requires_grad_(), V.clone().requires_grad_()]
    means = [torch.zeros_like(U), torch.zeros_like(V)]
    for kept in itertools.product((0.0, 1.0), repeat=4):
        m = torch.tensor(kept, dtype=torch.float64) / 0.7
        chance = math.prod(0.7 if k else 0.3 for k in kept)
        gradients = torch.autograd.grad(squared(Y - (leaves[0] * m) @ leaves[1].T), leaves)
        means = [mean + chance * g for mean, g in zip(means, gradients, strict=True)]
    penalty = kappa(0.3) * (leaves[0].square().sum(0) * leaves[1].square().sum(0)).sum()
    exact = torch.autograd.grad(squared(Y - leaves[0] @ leaves[1].T) + penalty, leaves)
    for mean, gradient in zip(means, exact, strict=True):
        torch.testing.assert_close(mean, gradient, rtol=1e-10, atol=1e-10)


def test_invariants():
    U, V, _ = seed_zero()
    X, order, scale = normal(5, 7, seed=3), [2, 0, 3, 1], torch.tensor([2.0, -0.1, 7.0, 1.0])
    for value in (
        lambda u, v: dropout_regularizer(u, v, 0.4).value,
        lambda u, v: dropout_regularizer(u, v, 0.4, inputs=X).value,
        lambda u, v: dropconnect_regularizer(u, v, 0.4, side="in", inputs=X).value,
        lambda u, v: deep_dropout_regularizer([v.T, u], [0.4]).value,
    ):
        assert value(U[:, order], V[:, order]) == pytest.approx(value(U, V), rel=1e-12)
        assert value(U * scale, V / scale) == pytest.approx(value(U, V), rel=1e-12)
    assert dropout_regularizer(U, V, 0.0).value == 0.0
    assert dropblock_regularizer(U, V, 4, 0.0).value == 0.0
    assert deep_dropout_regularizer([V.T, U], [0.0]).value == 0.0
    # one block of all units is the Frobenius norm of the product
    assert dropblock_regularizer(U, V, 4, 0.5).value == pytest.approx(float(squared(U @ V.T)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dropout_regularizer(normal(2, 3), normal(2, 4), 0.5), "U, V: expected as many columns"),
        (lambda: dropout_regularizer(normal(2), normal(2, 4), 0.5), "U: expected a matrix"),
        (lambda: dropout_regularizer([[math.nan]], [[1.0]], 0.5), "U: expected finite entries"),
        (lambda: dropout_regularizer(normal(2, 3), normal(2, 3), 1.0), "p: expected a probability"),
        (
            lambda: dropout_regularizer(normal(2, 3), normal(2, 3), 0.5, inputs=normal(3, 2)),
            "inputs: expected 2 rows",
        ),
        (
            lambda: dropout_regularizer(normal(2, 3), normal(2, 3), 0.5, observed=torch.ones(3, 2)),
            "observed: expected shape",
        ),
        (
            lambda: dropblock_regularizer(normal(2, 3), normal(2, 3), 2, 0.5),
            "block: expected a divisor of the 3",
        ),
        (lambda: dropconnect_regularizer(normal(2, 3), normal(2, 3), 0.5, side="?"), "side: expected"),
        (lambda: deep_dropout_regularizer([normal(2, 3)], []), "weights: expected at least two"),
        (
            lambda: deep_dropout_regularizer([normal(2, 3), normal(2, 3)], [0.5]),
            r"weights\[1\]: expected 2 columns",
        ),
        (lambda: deep_dropout_regularizer([normal(2, 3), normal(2, 2)], []), "rates: expected 1"),
        (
            lambda: deep_dropout_regularizer([normal(2, 3), normal(2, 2)], [0.5], inputs=normal(2, 2)),
            "inputs: expected 3 rows",
        ),
        (lambda: feature_regularizer(normal(2, 3), normal(2, 2), 0.5), "features, outgoing: expected"),
        (
            lambda: softmax_score(normal(2, 3), normal(2, 3), normal(3, 2), 0.5),
            "probabilities: expected shape",
        ),
        (lambda: monte_carlo(lambda: 0.0, 1), "draws: expected at least 2"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
