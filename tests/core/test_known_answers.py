"""Answers known in closed form or from independent runs, reached through the whole chain of the core."""

from __future__ import annotations

import math

import pytest
import torch

from theodolite.atoms import LinearNetAtom, QuadraticAtom
from theodolite.core.problem import Problem
from theodolite.losses import SquaredLoss


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
