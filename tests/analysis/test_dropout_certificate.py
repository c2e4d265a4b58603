"""The certificate is tight at optima, and nothing tried falls below its bound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.analysis.dropout_certificate import (
    certify_dropout,
    closed_bound,
    dual_bound,
    objective_upper,
    row_space,
)
from theodolite.analysis.equalization import equalized_factors
from theodolite.analysis.squared_norms import squared_ksupport_prox, squared_nuclear_prox
from theodolite.nn.dropout import kappa

DIAGONAL = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def rate(L: float, width: int) -> float:
    """The rate with kappa = L width."""
    return L * width / (1.0 + L * width)


def third_matrix() -> Tensor:
    generator = np.random.default_rng(0)
    generator.normal(size=(6, 4)), generator.normal(size=(5, 4))
    return torch.from_numpy(generator.normal(size=(6, 5)))


def test_known_answer_of_the_dual():
    """Q = diag(2.5, 2.5, 2): 14.5 - 4.125 - 3.125 = 7.25."""
    Q = torch.diag(torch.tensor([2.5, 2.5, 2.0], dtype=torch.float64))
    value, confidence = dual_bound(Q, DIAGONAL, 0.5)
    assert value == pytest.approx(7.25, rel=1e-9)
    assert value <= 7.25
    assert confidence == 1.0


@pytest.mark.parametrize("method", ["closed", "dual"])
def test_known_answer_of_the_drawn_matrix_at_width_eight(method):
    U, V = equalized_factors(squared_nuclear_prox(third_matrix(), 0.3, 8), 8)
    certificate = certify_dropout(U, V, third_matrix(), rate(0.3, 8), method=method)
    assert certificate.dual_bound == pytest.approx(15.84065355104407, rel=1e-9 if method == "dual" else 1e-12)
    assert certificate.objective == pytest.approx(15.84065355104407, rel=1e-12)
    assert certificate.gap <= (1e-9 if method == "dual" else 1e-12)
    assert certificate.optimum.kind == "bound"


def test_known_answer_of_blocks():
    """k = 2, L = 0.5: primal = dual = 5.25."""
    X = squared_ksupport_prox(DIAGONAL, 0.5, 2).matrix
    for Q in (2.0 * (DIAGONAL - X), 0.3 * (DIAGONAL - X)):
        assert dual_bound(Q, DIAGONAL, 0.5, block=2)[0] == pytest.approx(5.25, abs=1e-7)
    assert closed_bound(DIAGONAL, 0.5, 6, block=2) == pytest.approx(5.25, abs=1e-10)
    assert closed_bound(DIAGONAL, 0.5, 6, block=2) <= 5.25


def test_width_one_is_certified_by_the_closed_form_alone():
    U, V = equalized_factors(squared_nuclear_prox(DIAGONAL, 0.5, 1), 1)
    closed, dual = (certify_dropout(U, V, DIAGONAL, 1.0 / 3.0, method=m) for m in ("closed", "dual"))
    assert closed.objective == pytest.approx(8.0, rel=1e-12)
    assert closed.gap < 1e-12
    assert dual.dual_bound <= 7.25 + 1e-12  # blind to the rank: a bound of every width at the same L
    assert dual.gap > 0.09


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("inputs", [False, True])
def test_descent_from_many_starts_never_beats_either_bound(block, inputs):
    rng = np.random.default_rng(0)
    for trial in range(6):
        width = int(rng.integers(1, 4)) * block
        Y, p = normal(4, 7, seed=trial), float(rng.uniform(0.05, 0.9))
        X = normal(3, 7, seed=50 + trial) if inputs else torch.eye(7, dtype=torch.float64)
        leaves = [
            torch.from_numpy(rng.normal(size=(4, width))),
            torch.from_numpy(rng.normal(size=(len(X), width))),
        ]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        optimizer = torch.optim.LBFGS(leaves, max_iter=150, line_search_fn="strong_wolfe")

        def closure(leaves=leaves, optimizer=optimizer, X=X, Y=Y, p=p):
            optimizer.zero_grad()
            U, H = leaves[0], X.T @ leaves[1]
            parts = torch.stack([u @ h.T for u, h in zip(U.split(block, 1), H.split(block, 1), strict=True)])
            value = (Y - parts.sum(0)).square().sum() + kappa(p) * parts.square().sum()
            value.backward()
            return value

        for _ in range(3):
            optimizer.step(closure)
            U, V = (leaf.detach() for leaf in leaves)
            for method in ("closed", "dual"):
                found = certify_dropout(U, V, Y, p, inputs=X if inputs else None, block=block, method=method)
                value = float(closure().detach())
                assert found.dual_bound <= value
                assert value <= found.objective <= value * (1.0 + 1e-11)
        if block == 1:
            assert certify_dropout(U, V, Y, p, inputs=X if inputs else None).gap < 1e-3


def test_any_dual_point_is_a_bound():
    """Thousands of random Q, for matrices and for row spaces, against the closed-form optimum."""
    Y, X = normal(5, 8), normal(3, 8, seed=1)
    space = row_space(X)
    inside = Y @ space.basis.T
    for L in (0.01, 0.4, 10.0):
        plain = squared_nuclear_prox(Y, L).value
        limited = squared_nuclear_prox(inside, L).value + float((Y - inside @ space.basis).square().sum())
        best = squared_ksupport_prox(Y, L, 2).value
        for seed in range(300):
            Q = normal(5, 8, seed=100 + seed) * 10.0 ** (seed % 5 - 2) + (Y if seed % 2 else 0.0)
            assert dual_bound(Q, Y, L)[0] <= plain
            assert dual_bound(Q, Y, L, block=2)[0] <= best
            assert dual_bound(Q, Y, L, space=space)[0] <= limited * (1.0 + 1e-13)


def test_the_objective_is_rounded_up():
    """Against exact rational arithmetic, where entries of very different sizes cancel."""
    U = torch.tensor([[1e8, 1.0], [1.0, 3.0]], dtype=torch.float64)
    V = torch.tensor([[1.0, -1e8], [0.1, 0.2]], dtype=torch.float64)
    Y, p = torch.tensor([[0.1, 0.3], [0.7, -0.2]], dtype=torch.float64), 0.25
    u, v, y = ([[Fraction(x) for x in row] for row in m.tolist()] for m in (U, V, Y))
    product = [[sum(a * b for a, b in zip(r, c, strict=True)) for c in v] for r in u]
    exact = sum((y[i][j] - product[i][j]) ** 2 for i in range(2) for j in range(2))
    own = [sum(row[k] ** 2 for row in u) * sum(row[k] ** 2 for row in v) for k in range(2)]
    exact += Fraction(1, 3) * sum(own)
    upper = objective_upper(U, V, Y, p)
    assert Fraction(upper) >= exact
    assert upper == pytest.approx(float(exact), rel=1e-6)


def test_zero_matrix_and_rates():
    zero = certify_dropout(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(3, 4), 0.5)
    assert (zero.objective, zero.dual_bound, zero.gap) == (0.0, 0.0, 0.0)
    U, V = normal(3, 3), normal(4, 3, seed=1)
    exact = certify_dropout(U, V, U @ V.T, 0.0)
    assert exact.objective < 1e-25
    nothing = certify_dropout(U, V, normal(3, 4, seed=2), 0.0, method="dual")
    assert nothing.dual_bound == 0.0


@pytest.mark.parametrize("scale", [1e-90, 1e90])
def test_units_of_the_data_do_not_matter(scale):
    Y = scale * third_matrix()
    U, V = equalized_factors(squared_nuclear_prox(Y, 0.3, 4), 4)
    assert certify_dropout(U, V, Y, rate(0.3, 4)).gap < 1e-11
    assert certify_dropout(U, V, Y, rate(0.3, 4), method="dual").gap < 1e-8


class TestInputs:
    def solved(self, X: Tensor, Y: Tensor, L: float, width: int) -> tuple[Tensor, Tensor]:
        left, s, right = torch.linalg.svd(X, full_matrices=False)
        rank = int((s > 1e-10 * s[0]).sum())
        U, H = equalized_factors(squared_nuclear_prox(Y @ right[:rank].T, L, width), width)
        return U, (left[:, :rank] / s[:rank]) @ H

    @pytest.mark.parametrize("shape", [(3, 20), (20, 6), (6, 6)])
    def test_it_is_tight_for_any_shape(self, shape):
        X, Y = normal(*shape), normal(4, shape[1], seed=1)
        U, V = self.solved(X, Y, 0.2, 3)
        certificate = certify_dropout(U, V, Y, rate(0.2, 3), inputs=X)
        assert certificate.gap < 1e-11
        assert ("not used" in certificate.note) == (shape[0] >= shape[1])

    def test_zero_and_repeated_features_span_nothing_new(self):
        X, Y = normal(3, 20), normal(4, 20, seed=1)
        wide = torch.cat([X, torch.zeros(2, 20), X[:1]])
        U, V = self.solved(wide, Y, 0.2, 3)
        certificate = certify_dropout(U, V, Y, rate(0.2, 3), inputs=wide)
        assert certificate.gap < 1e-11
        assert "not used" not in certificate.note

    def test_features_that_nearly_depend_reach_what_is_left_of_them(self):
        """Large weights fit a target along the difference of two features that agree to twelve digits."""
        generator = normal(2, 20)
        apart = normal(1, 20, seed=3)
        X = torch.cat([generator, generator[:1] + 1e-12 * apart])
        difference = X[2:] - X[:1]
        Y = difference / difference.norm()
        U = torch.ones(1, 1, dtype=torch.float64)
        V = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64) / difference.norm()
        p = rate(1e-6, 1)
        for method in ("closed", "dual"):
            certificate = certify_dropout(U, V, Y, p, inputs=X, method=method)
            value = float((Y - U @ (X.T @ V).T).square().sum()) + kappa(p) * float((X.T @ V).square().sum())
            assert value < 1e-5  # where the target without that direction leaves nearly 1
            assert certificate.dual_bound <= value <= certificate.objective
            assert "cannot be told" in certificate.note

    def test_ill_conditioned_features_stay_bounded(self):
        X = normal(4, 30) * (10.0 ** -torch.arange(0.0, 8.0, 2.0, dtype=torch.float64))[:, None]
        Y = normal(3, 30, seed=1)
        U, V = self.solved(X, Y, 0.2, 3)
        certificate = certify_dropout(U, V, Y, rate(0.2, 3), inputs=X)
        assert 0.0 <= certificate.gap < 1e-6

    def test_inputs_of_zeros(self):
        Y = normal(3, 5)
        certificate = certify_dropout(normal(3, 2), normal(4, 2), Y, 0.5, inputs=torch.zeros(4, 5))
        assert certificate.dual_bound == pytest.approx(float(Y.square().sum()), rel=1e-12)
        assert certificate.gap < 1e-12


def test_a_large_matrix_is_certified_without_decomposing_it(monkeypatch):
    monkeypatch.setattr("theodolite.analysis.dropout_certificate._SVD", 4)
    Y = third_matrix()
    U, V = equalized_factors(squared_nuclear_prox(Y, 0.3, 8), 8)
    certificate = certify_dropout(U, V, Y, rate(0.3, 8))
    assert certificate.note.startswith("dual")
    assert certificate.gap < 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Y": torch.ones(2, 2)}, r"Y: expected shape \(6, 5\)"),
        ({"p": 1.0}, "p: expected a probability"),
        ({"block": 3}, "block: expected a divisor of the 4 units"),
        ({"method": "svd"}, "method: expected"),
        ({"inputs": torch.ones(4, 5)}, "inputs: expected 5 rows"),
        ({"Y": torch.full((6, 5), torch.nan)}, "Y: expected finite entries"),
    ],
)
def test_what_is_refused(change, message):
    given = {"U": normal(6, 4), "V": normal(5, 4), "Y": normal(6, 5), "p": 0.5} | change
    with pytest.raises(ValueError, match=message):
        certify_dropout(**given)
