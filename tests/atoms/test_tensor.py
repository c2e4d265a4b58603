"""Tensor atoms: the polar against brute force, known norms and adversaries, and problems solved to optimality."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.atoms import TensorAtom
from theodolite.atoms.tensor_contractions import unfold
from theodolite.atoms.tensor_polar import bipartitions
from theodolite.atoms.tensor_relaxation import NullSpace, Relaxation
from theodolite.core.problem import Problem
from theodolite.losses import LogisticLoss, MaskedLoss, MaskedSquaredLoss, SquaredLoss
from theodolite.losses.base import Support
from theodolite.testing import check_atom


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polar(T: Tensor, **options):
    atom = TensorAtom(tuple(T.shape))
    return atom.polar(T.reshape(atom.shape), **options)


def w_state() -> Tensor:
    T = torch.zeros(2, 2, 2, dtype=torch.float64)
    T[0, 0, 1] = T[0, 1, 0] = T[1, 0, 0] = 1.0
    return T


def orthogonal(dims: tuple[int, ...], weights: list[float], seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """An orthogonally decomposable tensor, whose norm is its largest weight, and its factors."""
    bases = [torch.linalg.qr(normal(n, n, seed=seed + k)).Q[:, : len(weights)] for k, n in enumerate(dims)]
    letters = "abcdefg"[: len(dims)]
    rule = ",".join(f"{x}r" for x in letters) + ",r->" + letters
    return torch.einsum(rule, *bases, torch.tensor(weights, dtype=torch.float64)), bases


def grid(n: int) -> Tensor:
    """Unit vectors of R^2 or R^3, of either sign, dense; a maximum over them is within 1e-5 of that over all."""
    angle = torch.linspace(0.0, math.pi, 1001, dtype=torch.float64)
    if n == 2:
        return torch.stack([angle.cos(), angle.sin()], 1)
    fine = torch.linspace(0.0, math.pi, 301, dtype=torch.float64)
    a, b = (x.flatten() for x in torch.meshgrid(fine, fine, indexing="ij"))
    return torch.stack([a.cos(), a.sin() * b.cos(), a.sin() * b.sin()], 1)


def brute(T: Tensor) -> float:
    """The norm of a (2 or 3, n, m) tensor: the first vector on a grid, the others exact."""
    matrices = torch.einsum("ra,abc->rbc", grid(T.shape[0]), T)
    return float(torch.linalg.matrix_norm(matrices, 2).max())


def test_known_answer_of_the_w_state():
    value = polar(w_state())
    assert value.low == pytest.approx(2.0 / math.sqrt(3.0), rel=1e-9)
    assert 2.0 / math.sqrt(3.0) <= value.high <= 2.0 / math.sqrt(3.0) * (1.0 + 1e-6)
    assert torch.linalg.matrix_norm(unfold(w_state(), (0,)), 2) == pytest.approx(math.sqrt(2.0))
    assert value.confidence == 1.0


@pytest.mark.parametrize("dims", [(2, 3, 4), (3, 2, 3), (3, 4, 3), (2, 5, 5)])
def test_polar_against_a_grid(dims):
    T = normal(*dims, seed=sum(dims))
    truth, value = brute(T), polar(T)
    assert truth * (1.0 - 1e-12) <= value.high
    assert value.low <= truth * (1.0 + 1e-4)  # the grid's own error
    if 2 in dims:  # nonnegative biquadratic forms are sums of squares there
        assert value.high <= value.low * (1.0 + 1e-5)
    unfoldings = min(float(torch.linalg.matrix_norm(unfold(T, s), 2)) for s in bipartitions(3))
    assert value.high <= unfoldings * (1.0 + 1e-9)


def test_order_four_against_a_grid():
    T = normal(2, 2, 3, 3, seed=3)
    A = grid(2)[::20]
    first = torch.einsum("ra,abcd->rbcd", A, T)
    truth = float(torch.linalg.matrix_norm(torch.einsum("sb,rbcd->rscd", A, first), 2).max())
    value = polar(T)
    # neighbors on the grid span angles below 0.063
    assert truth <= value.high
    assert value.low <= truth / math.cos(0.0315) ** 2
    assert value.high <= 1.02 * value.low


@pytest.mark.parametrize("dims", [(5, 6, 4), (4, 3, 3, 4), (2, 3, 2, 2, 3)])
def test_the_norm_of_an_orthogonally_decomposable_tensor_is_its_largest_weight(dims):
    weights = [3.0, 2.5] if 2 in dims else [3.0, 2.5, 1.0]
    value = polar(orthogonal(dims, weights)[0])
    assert value.low == pytest.approx(3.0, rel=1e-11)
    assert 3.0 <= value.high <= 3.0 * (1.0 + 1e-8)


@pytest.mark.parametrize("dims", [(4, 4, 4), (6, 5, 3), (3, 3, 3, 3)])
@pytest.mark.parametrize("kind", ["normal", "positive", "symmetric"])
def test_ascent_never_beats_the_upper_end(dims, kind):
    T = normal(*dims, seed=7)
    if kind == "positive":
        T = T.abs()
    if kind == "symmetric" and len(set(dims)) == 1:
        T = sum(T.permute(p) for p in itertools.permutations(range(T.ndim)))
    value = polar(T)
    a = [torch.nn.functional.normalize(normal(300, n, seed=k), dim=1) for k, n in enumerate(dims)]
    letters = "abcd"[: T.ndim]
    for _ in range(60):
        for k in range(T.ndim):
            others = [j for j in range(T.ndim) if j != k]
            rule = letters + "," + ",".join("r" + letters[j] for j in others) + "->r" + letters[k]
            a[k] = torch.nn.functional.normalize(torch.einsum(rule, T, *(a[j] for j in others)), dim=1)
    best = float(torch.einsum(letters + "," + ",".join("r" + x for x in letters) + "->r", T, *a).max())
    assert best <= value.high * (1.0 + 1e-14)
    assert value.low >= best * (1.0 - 1e-9)


def test_null_matrices_are_null_and_projections_orthogonal():
    space = NullSpace((3, 4))
    c = normal(3, 6)
    N = space.matrix(c)
    assert torch.equal(N, N.T)
    x = torch.kron(normal(3, seed=1), normal(4, seed=2))
    assert abs(float(x @ N @ x)) <= 1e-13 * float(x @ x)
    torch.testing.assert_close(space.coefficients(N), c, atol=1e-14, rtol=0.0)
    G = normal(12, 12, seed=4)
    G = G + G.T
    rest = G - space.matrix(space.coefficients(G))
    assert abs(float((rest * N).sum())) <= 1e-12
    # its partial transpose is the identity on what is left: the form is the same
    assert float(x @ rest @ x) == pytest.approx(float(x @ G @ x), rel=1e-12)
    assert space.matrix(space.zero()).abs().max() == 0.0
    assert NullSpace((5,)).zero().numel() == 0


@pytest.mark.parametrize("both", [True, False])
def test_every_null_matrix_gives_a_valid_bound(both):
    T = normal(3, 4, 3, seed=5)
    low, relaxation = polar(T).low, Relaxation.of(T, (0, 1), both=both)
    for seed in range(5):
        parts = [0.3 * normal(*c.shape, seed=seed) for c in relaxation.zero()]
        assert relaxation.prove(parts, 1e-12) >= low
    unfolding = float(torch.linalg.matrix_norm(unfold(T, (0, 1)), 2))
    assert relaxation.prove(relaxation.zero(), 0.0) == pytest.approx(unfolding, rel=1e-9)


def test_the_search_on_subspaces_leads_to_the_same_bound(monkeypatch):
    T = orthogonal((6, 7, 8), [2.0, 1.9, 1.8])[0] + 0.02 * normal(6, 7, 8)
    whole = polar(T)
    monkeypatch.setattr("theodolite.atoms.tensor_polar._CORE", 20)
    monkeypatch.setattr("theodolite.atoms.tensor_relaxation._DENSE", 24)  # eigenvectors followed, not all
    parts = polar(T)
    assert parts.high == pytest.approx(whole.high, rel=1e-4)
    assert parts.high >= whole.low
    # the answer to one tensor is where that to a similar one begins, and valid whatever the other
    atom = TensorAtom((6, 7, 8))
    for other in (T, 1.001 * T + 0.001 * normal(6, 7, 8, seed=2), normal(6, 7, 8, seed=3)):
        found = atom.polar(other.reshape(atom.shape))
        fresh = polar(other)
        assert fresh.low <= found.high
        assert found.high == pytest.approx(fresh.high, rel=2e-3)


def test_targets_and_budgets():
    T, loose = normal(5, 5, 5), polar(normal(5, 5, 5), budget=0.0)
    close = polar(T)
    assert loose.high >= close.high
    assert loose.low <= close.low * (1.0 + 1e-12)
    aimed = polar(T, target=1.02 * close.low)
    assert close.low <= aimed.high <= 1.02 * close.low
    hopeless = polar(T, target=0.5 * close.low)  # not provable: nothing costly is tried
    assert "unfolding" in hopeless.note
    assert bool((TensorAtom((5, 5, 5)).each(hopeless.witness) @ T.flatten() > 0.5 * close.low).all())


def test_sparse_dual_points_equal_dense_ones():
    Q = normal(5, 30) * (normal(5, 30, seed=1) > 0.8)
    atom = TensorAtom((5, 6, 5))
    dense, sparse = atom.polar(Q), atom.polar(Q.to_sparse_coo())
    assert sparse.low == pytest.approx(dense.low, rel=1e-9)
    assert sparse.high == pytest.approx(dense.high, rel=1e-6)


def test_a_large_sparse_dual_point_is_never_made_dense():
    dims, atom = (20_000, 3_000, 5_000), TensorAtom((20_000, 3_000, 5_000))
    rows = torch.arange(40) * 400
    cols = torch.arange(40) * 70 * 5_000 + torch.arange(40) * 100  # no two share an index: diagonal
    values = torch.linspace(1.0, 2.0, 40, dtype=torch.float64)
    Q = torch.sparse_coo_tensor(
        torch.stack([rows, cols]), values, atom.shape, check_invariants=True
    ).coalesce()
    value = atom.polar(Q)
    assert value.low == pytest.approx(2.0, rel=1e-9)
    assert 2.0 <= value.high <= 2.0 * (1.0 + 1e-6)
    assert [p.shape[1] for p in value.witness] == list(dims)


def test_extreme_sizes():
    T = normal(3, 3, 3)
    one = polar(T)
    for factor in (1e-200, 1e200):
        value = polar(factor * T)
        assert value.low == pytest.approx(factor * one.low, rel=1e-9)
        assert value.high == pytest.approx(factor * one.high, rel=1e-9)
        assert polar(factor * T, target=1.0).high >= factor * one.low
    assert polar(torch.zeros(2, 2, 2)).high == 0.0
    assert polar(1e-320 * torch.ones(2, 2, 2, dtype=torch.float64), target=1.0).high <= 1e-319


def test_predictions_on_a_support_equal_dense_ones_and_so_do_gradients():
    atom = TensorAtom((4, 3, 5, 2))
    params = atom.init(3, seed=1)
    index = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    for size in (9, 100):  # gathered, and taken from the whole
        rows, cols = index[:size] // 30, index[:size] % 30
        support = Support(rows, cols, atom.shape)
        leaves = [p.clone().requires_grad_() for p in params]
        weights = normal(size, seed=2)
        (atom.predict(tuple(leaves), support) * weights).sum().backward()
        twins = [p.clone().requires_grad_() for p in params]
        whole = atom.phi(tuple(twins))[rows, cols]
        (whole * weights).sum().backward()
        torch.testing.assert_close(atom.predict(params, support), whole.detach())
        for a, b in zip(leaves, twins, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_indices_there_and_back():
    atom, T = TensorAtom((3, 4, 5)), normal(3, 4, 5)
    index = torch.tensor([[0, 1, 2], [2, 3, 4], [1, 0, 0]])
    rows, cols = atom.matrix_index(index)
    assert torch.equal(T.reshape(atom.shape)[rows, cols], T[tuple(index.T)])
    assert torch.equal(atom.tensor_index(rows, cols), index.T)
    assert torch.equal(atom.fold(T.reshape(3, 20)), T)
    again = atom.matrix_index(np.nonzero(np.ones((3, 4, 5))))
    assert len(again[0]) == 60
    support = atom.support(index)
    assert support.size == 3
    for wrong, message in (
        (torch.tensor([[0, 1]]), r"index: expected shape \(size, 3\)"),
        (torch.tensor([[0, 4, 0]]), "index: expected 0 to 3 in mode 1"),
        ((torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 1])), "as many for each mode"),
        (torch.tensor([[0.5, 0.0, 0.0]]), "index"),
    ):
        with pytest.raises(ValueError, match=message):
            atom.matrix_index(wrong)
    with pytest.raises(ValueError, match="each entry once"):
        atom.support(torch.tensor([[0, 1, 2], [0, 1, 2]]))


@pytest.mark.parametrize("dims", [(3, 3), (3, 0, 2), (2.0, 3, 4), (True, 2, 2)])
def test_wrong_dims_are_refused(dims):
    with pytest.raises(ValueError, match="dims: expected at least three integers >= 1"):
        TensorAtom(dims)


def test_wrong_dual_points_are_refused():
    atom = TensorAtom((2, 3, 4))
    with pytest.raises(ValueError, match="Q: expected shape"):
        atom.polar(normal(3, 8))
    with pytest.raises(ValueError, match="Q: expected finite"):
        atom.polar(torch.full((2, 12), math.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="X: expected None"):
        atom.phi(atom.init(1), normal(2, 2))


def test_merge_joins_what_is_parallel():
    atom = TensorAtom((3, 4, 2))
    a, b, c = (p[:1] for p in atom.init(1, seed=1))
    other = atom.init(1, seed=2)
    params = (
        torch.cat([a, -2.0 * a, other[0]]),
        torch.cat([b, b, other[1]]),
        torch.cat([c, normal(1, 2), other[2]]),
    )
    merged = atom.merge(params)
    assert len(merged[0]) == 2
    torch.testing.assert_close(atom.phi(merged), atom.phi(params))
    cancel = (*tuple(torch.cat([p, p]) for p in (a, b)), torch.cat([c, -c]))
    assert len(atom.merge(cancel)[0]) == 0


@pytest.mark.parametrize("dims", [(6, 5, 7), (4, 5, 4, 4)])
def test_weights_of_an_orthogonally_decomposable_tensor_are_thresholded(dims):
    weights = [4.0, 3.0, 2.0, 0.7]
    T, _ = orthogonal(dims, weights)
    atom = TensorAtom(dims)
    solution = Problem(SquaredLoss(T.reshape(atom.shape)), atom, 1.0).solve(tol=1e-7)
    # 1/2 (w - x)^2 + x is least at x = w - 1: a weight of w > 1 costs w - 1/2, a smaller one w^2 / 2
    expected = 3.5 + 2.5 + 1.5 + 0.5 * 0.7**2
    assert solution.certificate.verdict == "closed"
    assert solution.certificate.objective == pytest.approx(expected, rel=1e-7)
    found = atom.theta(solution.params).sort(descending=True).values
    torch.testing.assert_close(
        found, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), rtol=1e-3, atol=1e-3
    )


def test_lambda_max():
    T, _ = orthogonal((4, 4, 4), [2.0, 1.0])
    atom = TensorAtom((4, 4, 4))
    problem = Problem(SquaredLoss(T.reshape(4, 16)), atom, 2.0001)
    assert problem.lambda_max().high == pytest.approx(2.0, rel=1e-8)
    certificate = problem.certify(atom.init(0))
    assert certificate.gap == 0.0
    assert certificate.verdict == "closed"


def test_a_masked_problem_closes():
    generator = torch.Generator().manual_seed(1)
    atom = TensorAtom((8, 7, 6))
    truth = 6.0 * atom.phi(atom.init(2, seed=3))
    seen = torch.rand(8, 42, generator=generator) < 0.7
    rows, cols = seen.nonzero(as_tuple=True)
    values = truth[rows, cols] + 0.05 * normal(len(rows), seed=4)
    solution = Problem(MaskedSquaredLoss(rows, cols, values, atom.shape), atom, 0.5).solve(tol=1e-4)
    assert solution.certificate.gap <= 1e-4
    error = (atom.phi(solution.params) - truth)[~seen].norm() / truth[~seen].norm()
    assert error < 0.3


def test_any_loss_goes():
    atom = TensorAtom((4, 3, 3))
    signs = torch.where(atom.phi(atom.init(1, seed=2)) > 0.0, 1.0, -1.0)
    rows, cols = torch.ones(4, 9).nonzero(as_tuple=True)
    loss = MaskedLoss(LogisticLoss(signs.reshape(-1)), rows, cols, atom.shape)
    certificate = Problem(loss, atom, 0.8).solve(tol=1e-3).certificate
    assert certificate.gap <= 1e-3


def test_order_four_passes_the_public_check():
    check_atom(TensorAtom((2, 2, 1, 2)), trials=1, searches=50)
