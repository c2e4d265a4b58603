"""Logistic, Huber and Poisson losses: formulas, extremes, heads, wrong arguments."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import loss_cases
from fixtures.loss_cases import counts, normal
from scipy.optimize import minimize

from theodolite.analysis.head import HeadProblem
from theodolite.losses import CrossEntropyLoss, HuberLoss, LogisticLoss, PoissonLoss, SampleLoss, SquaredLoss


def test_means_are_torchs():
    Z, Y = 3 * normal(7, 4), normal(7, 4, seed=1)
    y, rate = Y.sign(), counts(7, 4)
    assert LogisticLoss(y, 1 / 28).value(Z) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(Z, (y + 1) / 2)), rel=1e-14
    )
    assert HuberLoss(Y, 0.6, 1 / 28).value(Z) == pytest.approx(
        float(F.huber_loss(Z, Y, delta=0.6)), rel=1e-14
    )
    assert PoissonLoss(rate, 1 / 28).value(Z) == pytest.approx(float(F.poisson_nll_loss(Z, rate)), rel=1e-13)
    rates = Z.abs() + 0.1
    assert PoissonLoss(rate, 1 / 28, "identity", offset=1.0).value(rates - 1.0) == pytest.approx(
        float(F.poisson_nll_loss(rates, rate, log_input=False, eps=0.0)), rel=1e-13
    )


def test_conjugates_of_the_table():
    q = torch.tensor([[0.3], [-0.2]], dtype=torch.float64)
    assert LogisticLoss([1, -1]).dual(q) == pytest.approx(
        -0.3 * math.log(0.3) - 0.7 * math.log(0.7) - 0.2 * math.log(0.2) - 0.8 * math.log(0.8), rel=1e-14
    )
    assert HuberLoss([2.0, 5.0], 0.3).dual(q) == pytest.approx(0.6 - 0.045 - 1.0 - 0.02, rel=1e-14)
    assert PoissonLoss([1, 0]).dual(q) == pytest.approx(
        0.7 - 0.7 * math.log(0.7) + 0.2 - 0.2 * math.log(0.2), rel=1e-14
    )
    assert PoissonLoss([3, 0], link="identity", offset=0.5).dual(q) == pytest.approx(
        3 + 3 * math.log(1.3 / 3) - 0.15 + 0.1, rel=1e-14
    )


def test_domains_and_their_ends():
    q = torch.tensor([[1.0]], dtype=torch.float64)
    assert LogisticLoss([1]).dual(q) == LogisticLoss([1]).dual(0 * q) == 0.0  # 0 ln 0 = 0
    assert LogisticLoss([1]).dual(1.001 * q) == LogisticLoss([1]).dual(-0.001 * q) == -math.inf
    assert HuberLoss([0.0], 1.0, 2.0).dual(2 * q) == -1.0
    assert HuberLoss([0.0], 1.0, 2.0).dual(2.001 * q) == -math.inf
    assert PoissonLoss([1]).dual(q) == 0.0
    assert PoissonLoss([1]).dual(1.001 * q) == -math.inf
    assert math.isfinite(PoissonLoss([1]).dual(-1e6 * q))
    identity = PoissonLoss([1, 0], link="identity", offset=1.0)
    assert identity.dual(torch.tensor([[0.0], [-1.0]])) == pytest.approx(2.0)
    assert identity.dual(torch.tensor([[-1.0], [0.0]])) < -20.0  # its limit is -inf
    assert identity.dual(torch.tensor([[-1.001], [0.0]])) == -math.inf
    assert identity.dual(torch.tensor([[math.nan], [0.0]])) == -math.inf


def test_t_may_exceed_one():
    """The domain is a box around the residual, so that the ray goes on to its wall."""
    R = -LogisticLoss([1, -1]).gradient(torch.tensor([[2.0], [-1.0]]))
    assert LogisticLoss([1, -1]).t_range(R) == (0.0, pytest.approx(1.0 + math.exp(1.0)))
    assert HuberLoss([0.5], 1.0).t_range(torch.tensor([[0.5]])) == (0.0, 2.0)
    assert HuberLoss([0.5], 1.0).t_range(torch.tensor([[0.0]])) == (0.0, math.inf)
    assert PoissonLoss([2, 2]).t_range(torch.tensor([[-1.0], [0.5]])) == (0.0, 4.0)
    assert PoissonLoss([2, 2]).t_range(torch.tensor([[-1.0], [-0.5]])) == (0.0, math.inf)
    assert PoissonLoss([2], link="identity", offset=1.0).t_range(torch.tensor([[-0.5]])) == (
        0.0,
        pytest.approx(2.0),
    )


EXTREMES = [0.0, 1e-300, 40.0, -40.0, 1e3, -1e3, 1e8, -1e8]


@pytest.mark.parametrize("name", ["logistic", "huber", "poisson", "squared", "cross-entropy"])
@pytest.mark.parametrize("size", EXTREMES)
def test_extreme_predictions(name, size):
    case = loss_cases.make_cases(4, 2, 0.25)[name]
    Z = torch.full((4, 2), size, dtype=torch.float64)
    Z[:, 0] *= torch.tensor([1.0, -1.0, 0.5, 1.0])
    if name == "poisson":
        Z = Z.clamp(max=700.0)  # beyond it exp overflows, see the next test
    R = -case.loss.gradient(Z)
    value, dual = case.loss.value(Z), case.loss.dual(R)
    with mpmath.workdps(400):
        exact = float(case.exact_value(Z))
        assert value == pytest.approx(exact, rel=1e-14, abs=1e-300)
        assert dual == pytest.approx(float(case.exact_dual(R)), rel=1e-12, abs=1e-13)
    assert dual > -math.inf
    assert case.loss.t_range(R)[1] >= 1.0 - 1e-12
    t, best = case.loss.best_t(R)
    assert best >= dual - 1e-9 * abs(dual)
    assert 0.0 <= t <= case.loss.t_range(R)[1]


def test_poisson_rates_that_overflow_prove_nothing():
    loss, Z = PoissonLoss([1, 2]), torch.tensor([[1e3], [0.0]])
    R = -loss.gradient(Z)
    assert loss.value(Z) == math.inf
    assert loss.smoothness(Z) == math.inf
    assert loss.dual(R) == -math.inf
    assert loss.t_range(R) == (0.0, 0.0)


def test_identity_link_outside_its_domain():
    loss = PoissonLoss([1, 0], link="identity", offset=[0.5, 0.0])
    assert loss.value(loss.zeros()) == pytest.approx(0.5 - math.log(0.5))
    assert loss.smoothness(loss.zeros()) == pytest.approx(4.0, rel=5e-3)
    for outside in ([[-0.5], [0.0]], [[-0.6], [0.0]], [[0.0], [-1e-9]]):
        Z = torch.tensor(outside, dtype=torch.float64)
        assert loss.value(Z) == loss.smoothness(Z) == math.inf
        assert torch.isnan(loss.gradient(Z)).sum() == 1  # no derivative there; the others are as they should
        assert torch.isnan(loss.curvature(Z)[1]).sum() == 1
        assert loss.dual(-loss.gradient(Z)) == -math.inf
        assert loss.t_range(-loss.gradient(Z)) == (0.0, 0.0)
    near = torch.tensor([[-0.4995], [1.0]], dtype=torch.float64)
    assert math.isfinite(loss.value(near))
    assert loss.smoothness(near) == math.inf


def test_offsets_broadcast_and_follow_the_rows():
    y, Z = counts(4, 3), normal(4, 3)
    offset = torch.tensor([0.1, 0.2, 0.3, 0.4])
    loss = PoissonLoss(y, offset=offset)
    assert loss.value(Z) == pytest.approx(PoissonLoss(y).value(Z + offset.double()[:, None]), rel=1e-14)
    assert loss.rows(slice(2, 4)).offset[:, 0].tolist() == offset[2:].tolist()
    assert loss.rows(torch.tensor([3])).value(Z[3:]) == pytest.approx(
        PoissonLoss(y[3:], offset=0.4).value(Z[3:]), rel=1e-7
    )


@pytest.mark.parametrize("bias", ["none", "decayed", "free"])
@pytest.mark.parametrize("name", ["logistic", "huber", "poisson"])
def test_heads_are_solved_and_certified(name, bias):
    case = loss_cases.make_cases(30, 2, 1 / 30)[name]
    H, mu = normal(30, 4, seed=7), 0.1
    solution = HeadProblem(H, case.loss, mu, bias=bias).solve(tol=1e-8)
    assert 0.0 <= solution.objective - solution.dual_bound <= 1e-7 * abs(solution.objective)
    A = torch.cat([H, torch.ones(30, bias != "none", dtype=torch.float64)], 1)
    decays = torch.full((A.shape[1],), mu, dtype=torch.float64)
    if bias == "free":
        decays[-1] = 0.0

    def objective(w):
        W = torch.from_numpy(w).reshape(2, -1)
        gradient = case.loss.gradient(A @ W.T).T @ A + decays * W
        return case.loss.value(A @ W.T) + 0.5 * float((decays * W * W).sum()), gradient.numpy().ravel()

    found = minimize(objective, np.zeros(2 * A.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-9})
    assert solution.dual_bound <= found.fun + 1e-12
    assert solution.objective == pytest.approx(found.fun, rel=1e-7)


@pytest.mark.parametrize("given", [[1, -1, 1], (1.0, -1.0, 1.0), np.array([1, -1, 1], dtype=np.int8)])
def test_lists_and_arrays_are_welcome(given):
    assert LogisticLoss(given).Y.tolist() == [[1.0], [-1.0], [1.0]]
    assert LogisticLoss(torch.tensor([[1, -1]])).shape == (1, 2)
    assert SquaredLoss([[1, 2], [3, 4]]).Y.dtype == torch.float64
    assert CrossEntropyLoss([0, 1], 2).shape == (2, 2)


def test_targets_are_copied_from_arrays_and_may_be_read_only():
    array = np.array([1.0, 2.0])[::-1]
    array.setflags(write=False)
    loss = HuberLoss(array)
    assert loss.Y.tolist() == [[2.0], [1.0]]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SquaredLoss([[0.0, 1.0], [2.0, NAN]]), r"Y: expected finite numbers, got NaN at \(1, 1\)"),
        (lambda: SquaredLoss(torch.zeros(0, 3)), r"Y: expected at least one number, got shape \(0, 3\)"),
        (lambda: SquaredLoss(torch.zeros(2, 2, dtype=torch.complex64)), "Y: expected real numbers"),
        (lambda: SquaredLoss([["a"]]), "Y: expected real numbers"),
        (lambda: HuberLoss([1.0, -INF]), "Y: expected finite numbers, got -inf at 1"),
        (lambda: HuberLoss([1.0], 0.0), "delta: expected a finite number > 0, got 0.0"),
        (lambda: HuberLoss(torch.zeros(2, 2, 2)), r"Y: expected shape \(n,\) or \(n, k\)"),
        (lambda: LogisticLoss([1, 0]), "y: expected -1 or \\+1, got 0.0 at \\(1, 0\\)"),
        (lambda: LogisticLoss([[1, -1], [1, 2]]), r"y: expected -1 or \+1, got 2.0 at \(1, 1\)"),
        (lambda: LogisticLoss([]), "y: expected at least one number"),
        (lambda: LogisticLoss([1], scale=-1.0), "scale: expected a finite number > 0"),
        (lambda: PoissonLoss([1, -1]), r"y: expected numbers >= 0, got -1.0 at \(1, 0\)"),
        (lambda: PoissonLoss([1], link="sqrt"), 'link: expected "log" or "identity", got \'sqrt\''),
        (lambda: PoissonLoss([1, 2], link="identity"), "offset: expected > 0 where y > 0"),
        (lambda: PoissonLoss([0], link="identity", offset=-1), "offset: expected > 0 where y > 0"),
        (
            lambda: PoissonLoss([1, 2], offset=[1.0, 2.0, 3.0]),
            r"offset: expected shape \(2, 1\), got \(3, 1\)",
        ),
        (lambda: PoissonLoss([1, 2], offset=NAN), "offset: expected finite numbers"),
        (
            lambda: CrossEntropyLoss(torch.zeros(0, dtype=torch.long), 2),
            "y: expected at least one class number",
        ),
        (lambda: CrossEntropyLoss([0.5], 2), "y: expected class numbers of shape"),
        (lambda: LogisticLoss([1, 1]).rescaled(0.0), "scale: expected a finite number > 0"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", loss_cases.NAMES)
def test_derivatives_are_computed_where_the_targets_are(name):
    """The meta device computes shapes only, and refuses tensors of another device as a GPU does."""
    loss = loss_cases.make_cases(4, 2, 0.5)[name].loss.to("meta")
    Z = loss.zeros()
    assert loss.gradient(Z).device.type == "meta"
    if isinstance(loss, SampleLoss):
        product, weights = loss.curvature(Z)
        assert product(Z).device.type == weights.device.type == "meta"
    if isinstance(loss, SquaredLoss | LogisticLoss | HuberLoss | PoissonLoss):
        assert loss.center(Z).device.type == "meta"
