"""Answers known in closed form or from independent runs, reached through the whole chain of the core."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.atoms import LinearNetAtom, QuadraticAtom
from theodolite.core.atom import Atom
from theodolite.core.params import Params
from theodolite.core.problem import Problem
from theodolite.losses import SquaredLoss
from theodolite.losses.rounding import ray_bound
from theodolite.polar.ascent import relu_ascent
from theodolite.value import Value, relative_gap


def test_a_symmetric_tensor_of_known_spectral_norm():
    # sum_i q_i (x_i . w)^2 is (2 w_1 w_2, w_1^2), the tensor e1 e1 e2 + e1 e2 e1 + e2 e1 e1
    h = math.sqrt(0.5)
    X = torch.tensor([[1.0, 0.0], [h, h], [h, -h]], dtype=torch.float64)
    Q = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    polar = QuadraticAtom(X, 2).polar(Q)
    assert polar.low == pytest.approx(2 / math.sqrt(3), rel=1e-9)
    assert polar.low <= polar.high <= math.sqrt(2) * (1 + 1e-9)


@pytest.mark.parametrize("lam", [0.2, 0.5])
def test_three_layers_with_the_matched_regularizer(lam):
    one = torch.ones(1, 1, dtype=torch.float64)
    solution = Problem(SquaredLoss(one), LinearNetAtom(one, 1, depth=3), lam).solve(tol=1e-12)
    product = float(solution.params[0].sum() * solution.params[1].sum() * solution.params[2].sum())
    assert solution.certificate.objective == pytest.approx(lam - lam**2 / 2, abs=1e-12)
    assert product == pytest.approx(1 - lam, abs=1e-9)


class PooledReLU(Atom):
    """One 2 x 2 filter at the top-left 6 x 6 positions, ReLU, average in a 3 x 3 grid of cells, ten outputs.

    Its polar is known from inside only: the upper end is a factor of the lower one, for what a
    verified ratio would imply.
    """

    degree, depth = 2, 200

    def __init__(self, images: Tensor, ratio: float = 1.0) -> None:
        self.shape, self.ratio = (len(images), 10), ratio
        self.patches = images[:, :7, :7].unfold(1, 2, 1).unfold(2, 2, 1).reshape(len(images), 36, 4)
        axis = torch.arange(6) // 2
        self.pool = torch.nn.functional.one_hot((axis[:, None] * 3 + axis).flatten(), 9).double() / 36

    def init(self, r: int, seed: int = 0) -> Params:
        g = torch.Generator().manual_seed(seed)
        W, U = (torch.randn(r, *s, generator=g, dtype=torch.float64) for s in ((4,), (9, 10)))
        return W / W.norm(dim=1, keepdim=True), U / U.norm(dim=(1, 2), keepdim=True)

    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        hidden = torch.relu(torch.einsum("npd,rd->nrp", self.patches, params[0])) @ self.pool
        return hidden.flatten(1) @ params[1].flatten(0, 1)

    def theta(self, params: Params) -> Tensor:
        return params[0].norm(dim=1) * params[1].norm(dim=(1, 2))

    def penalty(self, params: Params) -> Tensor:
        return 0.5 * (params[0].square().sum(1) + params[1].square().sum((1, 2)))

    def row_bounds(self, support=None) -> Tensor:
        return self.patches.norm(dim=2).mean(1)

    def polar(self, Q: Tensor, *, starts=None, seed: int = 0, **options) -> Value:
        rows = torch.einsum("pc,nk->npck", self.pool, Q).flatten(0, 1).flatten(1)
        X = self.patches.flatten(0, 1)
        W, _ = relu_ascent(X, rows, starts=None if starts is None else starts[0], n_starts=16, seed=seed)
        U = (rows.T @ torch.relu(X @ W[:1].T)).T.view(1, 9, 10)
        return Value.bound(float(U.norm()), self.ratio * float(U.norm()), witness=(W[:1], U / U.norm()))


def test_pooled_filters_on_digits():
    digits = load_digits()
    images = torch.tensor(digits.images) / 16.0
    Y = torch.nn.functional.one_hot(torch.tensor(digits.target), 10).double()
    loss = SquaredLoss(Y - Y.mean(0), scale=1 / len(Y))
    top = Problem(loss, PooledReLU(images), 1.0).lambda_max().low
    assert top == pytest.approx(0.0256119, rel=1e-5)
    problem = Problem(loss, PooledReLU(images), 0.1 * top)
    solution = problem.solve(tol=0.0, init=PooledReLU(images).init(12, seed=1), max_rounds=1)
    assert solution.certificate.objective == pytest.approx(0.29222, abs=1e-3)
    theta = problem.lam * float(problem.atom.theta(solution.params).sum())
    assert theta == pytest.approx(0.06926, abs=1e-3)
    Z = problem.predictions(solution.params)
    R = -loss.gradient(Z)
    for ratio, gap in [(1.02, 0.0062), (1.05, 0.0143), (1.2, 0.062), (1.5, 0.165)]:
        dual = ray_bound(loss, Z, R, problem.lam, ratio * problem.lam, 0.0)
        implied = relative_gap(solution.certificate.objective, dual)
        # the repaired primal lacks the floor of 0.13 % of the run that these figures come from
        assert gap - 0.003 < implied < gap + 0.001, ratio
