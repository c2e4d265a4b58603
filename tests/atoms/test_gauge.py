"""The regularizer that a family induces: nuclear and l1 norms where those are it, and a gauge everywhere."""

import pytest
import torch
from torch import Tensor

from theodolite.atoms import LinearNetAtom, MatrixAtom, ModuleAtom, ReLUAtom
from theodolite.atoms.gauge import gauge_bounds
from theodolite.core.params import join
from theodolite.models import MLP


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rank_one_matrices_induce_the_nuclear_norm():
    atom = MatrixAtom((6, 5))
    U, S, Vh = torch.linalg.svd(normal(6, 5))
    params = (S[:, None] * U.T[:5], Vh)
    value = gauge_bounds(atom, params)
    assert value.high == pytest.approx(float(S.sum()), rel=1e-9)
    assert float(S.sum()) * (1 - 1e-2) <= value.low <= float(S.sum()) * (1 + 1e-9)


def test_deep_linear_networks_induce_the_nuclear_norm_of_their_matrix():
    """For X = I, whatever the depth."""
    atom = LinearNetAtom(torch.eye(4, dtype=torch.float64), 3, 3)
    params = atom.init(5, seed=1)
    truth = float(torch.linalg.matrix_norm(atom.phi(params), ord="nuc"))
    value = gauge_bounds(atom, params)
    assert 0.98 * truth <= value.low <= truth * (1 + 1e-9)
    assert value.high >= truth * (1 - 1e-9)


def test_a_single_relu_unit_is_not_always_the_least():
    """relu(x) - relu(-x) of two units is the identity; the least regularizer of both together is 2."""
    X = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    atom = ReLUAtom(X, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    value = gauge_bounds(atom, join((one, one), (-one, -one)))
    assert value.low == pytest.approx(2.0, rel=1e-2)
    assert value.high == pytest.approx(2.0)


def test_it_is_subadditive_and_homogeneous_within_the_bounds():
    atom = ModuleAtom(MLP((3, 3, 2), bias=False), normal(6, 3), starts=4)
    a, b = atom.init(1, seed=1), atom.init(1, seed=2)
    one, two, both = (gauge_bounds(atom, p, budget=0) for p in (a, b, join(a, b)))
    assert both.low <= one.high + two.high
    assert both.high <= one.high + two.high + 1e-12
    triple = gauge_bounds(atom, atom.scale(a, torch.tensor([3.0], dtype=torch.float64)), budget=0)
    assert triple.low == pytest.approx(3 * one.low, rel=1e-6)
    assert triple.high == pytest.approx(3.0, rel=1e-9)


def test_the_zero_function_has_none():
    atom = MatrixAtom((3, 2))
    assert gauge_bounds(atom, atom.init(0)).high == 0.0
