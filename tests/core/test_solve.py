"""The meta-algorithm: it closes what has a known answer, keeps the best bound, and can be stopped."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from toy_atoms import Entry, soft_threshold

from theodolite.atoms import MatrixAtom, StructuredAtom
from theodolite.core import repair
from theodolite.core.params import count, join, select
from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, SquaredLoss
from theodolite.polar.factor_norm import FactorNorm


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entrywise(lam: float = 0.5, seed: int = 0) -> tuple[Problem, float]:
    Y = normal(6, 4, seed=seed)
    Z = soft_threshold(Y, lam)
    optimum = 0.5 * float((Y - Z).square().sum()) + lam * float(Z.abs().sum())
    return Problem(SquaredLoss(Y), Entry((6, 4)), lam), optimum


@pytest.mark.parametrize("seed", range(5))
def test_closes_a_problem_with_a_known_answer(seed):
    problem, optimum = entrywise(seed=seed)
    solution = problem.solve(tol=1e-9)
    assert solution.certificate.verdict == "closed"
    assert solution.certificate.objective == pytest.approx(optimum, rel=2e-9)
    assert solution.certificate.dual_bound <= optimum * (1 + 1e-14)
    assert problem.objective(solution.params) <= solution.certificate.objective
    assert not solution.interrupted


def test_cross_entropy_closes():
    y = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(0))
    problem = Problem(CrossEntropyLoss(y, 4, 1 / 30), Entry((30, 4)), 0.01)
    assert problem.solve(tol=1e-6).certificate.verdict == "closed"


def test_history_is_monotone_and_ends_with_the_certificate():
    solution = entrywise()[0].solve(tol=1e-9)
    history = solution.history
    assert [r.iteration for r in history] == list(range(len(history)))
    assert all(a.objective >= b.objective * (1 - 1e-12) for a, b in itertools.pairwise(history))
    assert all(a.dual_bound <= b.dual_bound for a, b in itertools.pairwise(history))
    assert (history[-1].objective, history[-1].gap) == (
        solution.certificate.objective,
        solution.certificate.gap,
    )


def test_zero_model_above_lambda_max():
    solution = entrywise(lam=100.0)[0].solve()
    assert count(solution.params) == 0
    assert (solution.certificate.verdict, solution.certificate.gap) == ("closed", 0.0)


def test_budget_0_certifies_the_start():
    problem, optimum = entrywise()
    start = Entry((6, 4)).init(2)
    solution = problem.solve(budget=0, init=start)
    assert torch.equal(solution.params[0], start[0])
    assert solution.certificate.dual_bound <= optimum <= solution.certificate.objective
    assert len(solution.history) == 1


def test_a_start_is_used_and_not_changed():
    problem, optimum = entrywise()
    start = Entry((6, 4)).init(3, seed=5)
    kept = start[0].clone()
    assert problem.solve(tol=1e-8, init=start).certificate.objective == pytest.approx(optimum, rel=1e-7)
    assert torch.equal(start[0], kept)


def test_callback_stops():
    seen = []
    solution = entrywise()[0].solve(tol=0.0, callback=lambda r: seen.append(r) or len(seen) == 2)
    assert len(seen) == 2
    assert tuple(seen) == solution.history


def test_max_rounds_returns_the_incumbent():
    solution = entrywise()[0].solve(tol=0.0, max_rounds=1)
    assert len(solution.history) == 2
    assert solution.certificate.gap < 1.0


def test_a_bound_that_cannot_close_ends_open():
    class Loose(Entry):
        def polar(self, Q, **options):
            value = super().polar(Q)
            return type(value).bound(value.lower, 1.1 * value.upper, witness=value.witness)

    problem = Problem(SquaredLoss(normal(6, 4)), Loose((6, 4)), 0.5)
    certificate = problem.solve(tol=1e-9).certificate
    assert certificate.verdict != "closed"
    assert 1e-9 < certificate.gap < 0.1


def test_one_start_gives_one_answer():
    first, second = (entrywise()[0].solve(tol=1e-6, seed=3) for _ in range(2))
    assert torch.equal(first.params[0], second.params[0])


def test_interrupt_keeps_the_incumbent_with_its_certificate():
    problem, optimum = entrywise()

    class Interrupting(Entry):
        calls = 0

        def descend(self, problem, params, *, tol, deadline, progress):
            Interrupting.calls += 1
            if Interrupting.calls == 2:
                progress((0.9 * params[0],))
                raise KeyboardInterrupt
            return params

    problem = Problem(problem.loss, Interrupting((6, 4)), problem.lam)
    solution = problem.solve(tol=0.0)
    assert solution.interrupted
    assert solution.certificate.dual_bound <= optimum <= solution.certificate.objective
    assert problem.objective(solution.params) <= solution.certificate.objective


def test_interrupt_before_anything_is_known():
    class Interrupting(Entry):
        def polar(self, Q, *, budget=None, **options):
            if budget != 0:
                raise KeyboardInterrupt
            return super().polar(Q, budget=0)

    problem = Problem(SquaredLoss(normal(6, 4)), Interrupting((6, 4)), 0.5)
    solution = problem.solve()
    assert solution.interrupted
    assert count(solution.params) == 0
    assert solution.certificate.gap > 0.0


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_real_signal():
    script = textwrap.dedent(
        """
        import os, signal, sys, time
        import torch
        from toy_atoms import Entry
        from theodolite.core.problem import Problem
        from theodolite.losses import SquaredLoss

        class Slow(Entry):
            def descend(self, problem, params, *, tol, deadline, progress):
                progress(params)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

        Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        solution = Problem(SquaredLoss(Y), Slow((6, 4)), 0.5).solve(verbose=True)
        assert solution.interrupted and len(solution.params[0]) > 0
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 0, done.stderr
    assert "interrupted, undecided: gap <=" in done.stdout


def test_log_reads_like_a_solver(capsys):
    entrywise()[0].solve(tol=1e-6, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lambda = 0.5, closed at a gap of 0.0001 %"
    assert lines[1].split() == "round units incumbent bound gap polar / lambda time".split()
    assert lines[-1].startswith("closed: gap <= ")
    assert all(len(line) <= 80 for line in lines)
    entrywise()[0].solve(tol=1e-6)
    assert capsys.readouterr().out == ""


def test_reweighting_solves_the_conic_problem():
    problem, _ = entrywise()
    params = Entry((6, 4)).init(6, seed=2)
    better = repair.reweight(problem, params, Entry((6, 4)).init(4, seed=3))
    Z, R = problem.predictions(better), -problem.loss.gradient(problem.predictions(better))
    theta = problem.lam * float(problem.atom.theta(better).sum())
    assert float((R * Z).sum()) == pytest.approx(theta, rel=1e-6)
    assert problem.objective(better) <= problem.objective(params)


def test_reweighting_of_what_is_too_large_to_hold(monkeypatch):
    monkeypatch.setattr(repair, "_ENTRIES", 30)
    problem, _ = entrywise()
    params = Entry((6, 4)).init(2, seed=2)
    fresh = problem.certify(params).polar.witness
    better = repair.reweight(problem, params, fresh)
    assert problem.objective(better) < problem.objective(params)
    Z, R = problem.predictions(better), -problem.loss.gradient(problem.predictions(better))
    assert float((R * Z).sum()) == pytest.approx(
        problem.lam * float(problem.atom.theta(better).sum()), rel=1e-6
    )
    first = repair.reweight(problem, problem.atom.init(0), fresh)
    assert problem.objective(first) < problem.objective(problem.atom.init(0))


def test_pruning_keeps_predictions_and_does_not_raise_theta():
    problem, _ = entrywise()
    one = Entry((6, 4)).init(5, seed=2)
    zero = (torch.zeros(2, 6, 4, dtype=torch.float64),)
    params = join(one, zero, select(one, slice(0, 3)), Entry((6, 4)).init(30, seed=4))
    fewer = repair.prune(problem, params)
    assert count(fewer) <= 24  # the dimension of the predictions
    torch.testing.assert_close(problem.predictions(fewer), problem.predictions(params), rtol=0, atol=1e-12)
    assert float(problem.atom.theta(fewer).sum()) <= float(problem.atom.theta(params).sum()) * (1 + 1e-12)
    assert count(repair.prune(problem, zero)) == 0
    assert count(repair.prune(problem, problem.atom.init(0))) == 0


def test_a_bound_that_a_later_incumbent_refutes_raises():
    class Broken(Entry):
        """Its first polar is far too small, the later ones are right."""

        calls = 0

        def polar(self, Q, **options):
            value = super().polar(Q)
            Broken.calls += 1
            if Broken.calls == 1:
                return type(value).bound(0.0, 0.51, witness=value.witness)
            return value

    with pytest.raises(ArithmeticError, match="refutes a bound"):
        Problem(SquaredLoss(normal(6, 4)), Broken((6, 4)), 0.5).solve(tol=1e-9)


def test_the_last_certificate_has_a_tenth_of_the_budget_to_itself():
    class Late(Entry):
        """Descends until it is told to stop, and beyond; its polar is loose where it has no time."""

        given: list[float] = []  # noqa: RUF012

        def polar(self, Q, *, budget=None, **options):
            self.given.append(budget)
            loose = super().polar(Q, budget=0)
            return loose if budget < 0.02 else super().polar(Q)

        def descend(self, problem, params, *, deadline, **options):
            time.sleep(max(deadline + 0.03 - time.monotonic(), 0.0))
            return params

    start, problem = time.monotonic(), Problem(SquaredLoss(normal(6, 4)), Late((6, 4)), 0.5)
    solution = problem.solve(tol=0.0, budget=0.5)
    assert len(solution.history) == 2
    assert all(given > 0.02 for given in Late.given)
    assert time.monotonic() - start >= 0.45
    assert Late.given[0] == 0.125  # a quarter for the start
    assert Late.given[-1] == pytest.approx(0.05)  # though only 0.02 were left
    low, high = solution.certificate.polar_ratio
    assert high / low < 1.01
    assert solution.certificate.gap <= min(r.gap for r in solution.history)


@pytest.mark.parametrize("budget", [1.0, 2.0])
def test_a_budget_is_kept_and_the_last_gap_is_the_best(budget):
    planted = normal(120, 3) @ normal(3, 100, seed=1)
    norm = FactorNorm(l2=1.0, l1=0.1, tv=0.1, nonnegative=True)
    problem = Problem(
        SquaredLoss(planted + normal(120, 100, seed=2)), StructuredAtom((120, 100), norm, norm), 5.0
    )
    start = time.monotonic()
    solution = problem.solve(tol=0.0, budget=budget)
    seconds = time.monotonic() - start
    assert seconds < 1.3 * budget + 0.5
    assert solution.certificate.gap <= min(r.gap for r in solution.history)


def test_a_convex_descent_is_given_what_it_missed(monkeypatch):
    # of a matrix of rank 2 the descent found the first pair only: the polar's witness must not get lost
    rng = np.random.default_rng(0)
    U, V = np.linalg.qr(rng.standard_normal((8, 2)))[0], np.linalg.qr(rng.standard_normal((6, 2)))[0]
    problem = Problem(SquaredLoss((U * [9.0, 5.0]) @ V.T), MatrixAtom((8, 6)), 1.0)
    first = torch.from_numpy(8.0 * U[:, :1].T.copy()), torch.from_numpy(V[:, :1].T.copy())
    witness = problem.certify(first).polar.witness
    assert repair.reweight(problem, first) is first
    for held in (1e9, 1.0):  # one by one, and together
        monkeypatch.setattr(repair, "_ENTRIES", held)
        grown = repair.reweight(problem, first, witness)
        assert len(grown[0]) == 2
        assert problem.certify(grown, tol=1e-8).verdict == "closed"
