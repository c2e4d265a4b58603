"""The last layer as a convex problem: found in the graph, solved, bounded from below."""

from __future__ import annotations

import itertools
from fractions import Fraction

import builders
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from scipy.optimize import minimize
from torch import nn

from theodolite.analysis import head as head_module
from theodolite.analysis import head_solver
from theodolite.analysis.graph import trace
from theodolite.analysis.head import HeadProblem, NoHead, find_head, mean_loss
from theodolite.losses import CrossEntropyLoss, SquaredLoss
from theodolite.value import relative_gap

BIASES = ["none", "decayed", "free"]


def data(n: int = 60, d: int = 7, k: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    H = torch.randn(n, d, generator=generator, dtype=torch.float64).relu()
    Z = H @ torch.randn(d, k, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return H, (Z + noise).argmax(1), Z + noise


def make(which: str, bias: str, mu: float = 0.03, offset=None, **sizes) -> HeadProblem:
    H, y, Y = data(**sizes)
    loss = mean_loss("cross_entropy", y, Y.shape[1]) if which == "ce" else mean_loss("mse", Y, Y.shape[1])
    return HeadProblem(H, loss, mu, bias=bias, offset=offset)


def split(problem: HeadProblem, w: np.ndarray):
    W = torch.from_numpy(w.reshape(problem.k, -1))
    return (W, None) if problem.bias == "none" else (W[:, :-1], W[:, -1])


def oracle(problem: HeadProblem, seed: int = 0) -> float:
    """The optimum by scipy on the objective written out plainly."""
    H = problem.features.double()
    offset = 0.0 if problem.offset is None else problem.offset

    def objective(w):
        W = torch.from_numpy(w.reshape(problem.k, -1)).requires_grad_()
        V, b = (W, 0.0) if problem.bias == "none" else (W[:, :-1], W[:, -1])
        Z = H @ V.T + b + offset
        if isinstance(problem.loss, CrossEntropyLoss):
            value = F.cross_entropy(Z, problem.loss.y)
        else:
            value = F.mse_loss(Z, problem.loss.Y)
        value = value + problem.decay / 2 * V.square().sum()
        if problem.bias == "decayed":
            value = value + problem.decay / 2 * b.square().sum()
        (gradient,) = torch.autograd.grad(value, W)
        return float(value.detach()), gradient.numpy().ravel()

    size = problem.k * len(problem.decays)
    start = np.random.default_rng(seed).normal(size=size)
    return minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000}).fun


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("which", ["ce", "mse"])
@pytest.mark.parametrize("shifted", [False, True])
def test_solution_is_the_optimum_and_the_bound_touches_it(which, bias, shifted):
    offset = torch.tensor([0.5, -1.0, 0.0, 2.0]) if shifted else None
    problem = make(which, bias, offset=offset)
    seen = []
    solved = problem.solve(tol=1e-11, progress=lambda i, p, d: seen.append((i, p, d)))
    truth = oracle(problem)
    assert solved.objective == pytest.approx(truth, rel=1e-9)
    assert solved.dual_bound <= truth + 1e-12
    assert 0.0 <= solved.gap < 1e-9
    assert [i for i, _, _ in seen] == list(range(len(seen)))
    assert all(a[1] > b[1] for a, b in itertools.pairwise(seen))
    assert all(bound <= truth + 1e-10 for _, _, bound in seen)


def test_ridge_head_at_its_closed_form_has_no_gap():
    H, _, Y = data(n=80, d=9, k=3)
    mu, scale = 0.2, 2 / (80 * 3)
    V = scale * Y.T @ H @ torch.linalg.inv(scale * H.T @ H + mu * torch.eye(9, dtype=torch.float64))
    certified = HeadProblem(H, mean_loss("mse", Y, 3), mu).evaluate(V)
    assert 0.0 <= certified.gap <= 1e-12
    Xb = torch.cat([H, torch.ones(80, 1, dtype=torch.float64)], 1)
    Vb = scale * Y.T @ Xb @ torch.linalg.inv(scale * Xb.T @ Xb + mu * torch.eye(10, dtype=torch.float64))
    certified = HeadProblem(H, mean_loss("mse", Y, 3), mu, bias="decayed").evaluate(Vb[:, :-1], Vb[:, -1])
    assert 0.0 <= certified.gap <= 1e-12


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("which", ["ce", "mse"])
def test_nothing_attains_less_than_a_bound(which, bias):
    problem = make(which, bias, mu=0.01)
    best = problem.solve(tol=1e-12)
    bounds = [best.dual_bound]
    generator = torch.Generator().manual_seed(3)
    size = (problem.k, len(problem.decays))
    for scale in (0.0, 1e-3, 0.1, 1.0, 10.0):
        for _ in range(10):
            step = scale * torch.randn(size, generator=generator, dtype=torch.float64)
            for center in (0.0, 1.0):
                V, b = split(problem, step.numpy())
                V = V + center * best.weight
                b = None if b is None else b + center * best.bias
                at = problem.evaluate(V, b)
                bounds.append(at.dual_bound)
                assert at.gap >= 0.0
                assert at.objective == pytest.approx(problem.objective(V, b), rel=1e-13)
                assert at.objective + at.rounding >= best.dual_bound
    attained = min(best.objective, oracle(problem), oracle(problem, 1))
    assert max(bounds) <= attained * (1 + 1e-14)


def test_bounds_hold_in_exact_arithmetic():
    # one output, two features: the optimum of ridge regression as a fraction
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        H = torch.randn(50, 2, generator=generator, dtype=torch.float64)
        Y = 100 + torch.randn(50, 1, generator=generator, dtype=torch.float64)
        mu = 2.0 ** -(seed % 20)
        solved = HeadProblem(H, SquaredLoss(Y, 0.5), mu).solve(tol=0.0)
        h = [[Fraction(v) for v in row] for row in H.tolist()]
        y = [Fraction(v[0]) for v in Y.tolist()]
        half, decay = Fraction(1, 2), Fraction(mu)
        a = [[half * sum(r[i] * r[j] for r in h) + (decay if i == j else 0) for j in (0, 1)] for i in (0, 1)]
        c = [half * sum(r[i] * t for r, t in zip(h, y, strict=True)) for i in (0, 1)]
        det = a[0][0] * a[1][1] - a[0][1] * a[1][0]
        v = [(c[0] * a[1][1] - c[1] * a[0][1]) / det, (c[1] * a[0][0] - c[0] * a[1][0]) / det]

        def objective(v, h=h, y=y, decay=decay):
            errors = (t - r[0] * v[0] - r[1] * v[1] for r, t in zip(h, y, strict=True))
            return sum(e * e for e in errors) / 4 + decay / 2 * (v[0] ** 2 + v[1] ** 2)

        optimum = objective(v)
        assert Fraction(solved.dual_bound) <= optimum
        present = objective([Fraction(float(w)) for w in solved.weight[0]])
        assert abs(Fraction(solved.objective) - present) <= Fraction(solved.rounding)
        assert solved.gap < 1e-9


@pytest.mark.parametrize("which", ["ce", "mse"])
@pytest.mark.parametrize("bias", ["decayed", "free"])
def test_blocks_and_preconditioners_change_nothing(which, bias, monkeypatch):
    sizes = {"n": 90, "d": 5}
    whole = make(which, bias, **sizes).solve(tol=1e-11)
    monkeypatch.setattr(head_module, "_BLOCK_BYTES", 4000)
    monkeypatch.setattr(head_module, "_CACHE_BYTES", 0)
    problem = make(which, bias, **sizes)
    assert len(problem.losses) > 2
    for work in (5e10, 0.0):
        monkeypatch.setattr(head_solver, "_GRAM_WORK", work)
        solved = problem.solve(tol=1e-11)
        assert solved.objective == pytest.approx(whole.objective, rel=1e-9)
        assert solved.gap < 1e-9


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("which", ["ce", "mse"])
def test_more_features_than_samples(which, bias):
    problem = make(which, bias, n=15, d=24, k=3, mu=1e-2)
    solved = problem.solve(tol=1e-10)
    assert solved.gap < 1e-8
    assert solved.objective == pytest.approx(oracle(problem), rel=1e-6)


def test_cvxpy_agrees():
    cvxpy = pytest.importorskip("cvxpy")
    for bias in BIASES:
        problem = make("ce", bias, n=30, d=4, k=3)
        V, b = cvxpy.Variable((3, 4)), cvxpy.Variable((1, 3))
        Z = problem.features.numpy() @ V.T + (b if bias != "none" else 0)
        true = cvxpy.multiply(F.one_hot(problem.loss.y, 3).numpy(), Z)
        value = (cvxpy.sum(cvxpy.log_sum_exp(Z, axis=1)) - cvxpy.sum(true)) / 30
        value += problem.decay / 2 * cvxpy.sum_squares(V)
        if bias == "decayed":
            value += problem.decay / 2 * cvxpy.sum_squares(b)
        optimum = cvxpy.Problem(cvxpy.Minimize(value)).solve(solver="CLARABEL")
        assert problem.solve(tol=1e-10).objective == pytest.approx(optimum, rel=1e-6)


def test_absent_class_with_a_free_bias():
    # the bias of the absent class runs to minus infinity: the optimum is approached, never attained
    H, y, _ = data()
    problem = HeadProblem(H, mean_loss("cross_entropy", y.clamp(max=2), 4), 0.03, bias="free")
    three = HeadProblem(H, mean_loss("cross_entropy", y.clamp(max=2), 3), 0.03, bias="free")
    assert problem.solve(tol=1e-6).gap <= 1e-5
    assert problem.solve().objective == pytest.approx(three.solve().objective, rel=1e-4)


def test_time_limit_keeps_the_bound():
    problem = make("ce", "decayed", mu=1e-6)
    stopped = problem.solve(time_limit=0.0)
    assert stopped.iterations == 0
    assert stopped.dual_bound <= problem.solve(tol=1e-9).objective
    assert stopped.gap > 0
    assert problem.solve(max_iterations=2).iterations == 2


def test_float32_features_are_taken_exactly():
    H, y, _ = data()
    loss = mean_loss("cross_entropy", y, 4)
    single, double = H.float(), H.float().double()
    results = [HeadProblem(h, loss, 0.1).solve(tol=1e-12).objective for h in (single, double)]
    assert results[0] == results[1]


def test_relative_gap():
    assert relative_gap(2.0, 1.0) == 0.5
    assert relative_gap(1.0, 1.5) == 0.0
    assert relative_gap(0.0, 0.0) == 0.0


def test_unknown_loss_has_no_convex_problem():
    assert mean_loss("huber", torch.zeros(3), 1) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HeadProblem(torch.zeros(3, 2), SquaredLoss(torch.zeros(4, 1)), 1.0), "features: expected"),
        (lambda: HeadProblem(torch.zeros(4, 2), SquaredLoss(torch.zeros(4, 1)), 0.0), "decay: expected"),
        (lambda: make("mse", "none").evaluate(torch.zeros(2, 2)), "weight: expected shape"),
        (lambda: make("mse", "decayed").evaluate(torch.zeros(4, 7)), "bias: expected a bias"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class MatrixHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(64, 10))

    def forward(self, x):
        return x @ self.matrix


class SharedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(self.layer(x).relu())


def test_heads_are_found():
    x = builders.digits()[0][:4]
    plain = find_head(trace(builders.mlp(bias=True).eval(), x))
    assert (plain.weight, plain.bias) == ("layers.4.weight", "layers.4.bias")
    assert plain.features.op == "relu"
    direct = find_head(trace(nn.Linear(64, 10, bias=False).eval(), x))
    assert (direct.weight, direct.bias, direct.features.op) == ("weight", "", "input")
    tail = nn.Sequential(nn.Linear(64, 10), nn.Identity(), nn.Dropout(0.3)).eval()
    assert find_head(trace(tail, x)).weight == "0.weight"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(64, 10), nn.Softmax(1)), r"'softmax' in layer '1' \(Softmax\)"),
        (MatrixHead(), "'matmul' in the model's own forward"),
        (SharedHead(), "the weight of layer 'layer' .* is shared with layer 'layer'"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)), "is not a parameter: it is computed"),
        (nets.branching_net, "could not be traced"),
        (nn.Identity(), "comes from .*, not from a linear layer"),
    ],
)
def test_no_head_says_why(model, message):
    with pytest.raises(NoHead, match=message):
        find_head(trace(model.eval(), builders.digits()[0][:4]))
