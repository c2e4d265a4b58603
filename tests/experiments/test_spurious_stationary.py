"""The constructed minimum against closed forms; the experiment's claims hold, and can fail."""

import json
import math

import pytest
import torch

from theodolite.experiments import spurious_stationary as ours
from theodolite.experiments.base import reproduce


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("spurious")
    return reproduce(ours.SpuriousStationary(), folder, fast=True), folder


def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 15
    record = json.loads((folder / "spurious-stationary.json").read_text())
    assert all(claim["holds"] is True for claim in record["claims"])
    assert (folder / "spurious-stationary.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_growth_is_certified_at_every_rank(written):
    numbers = written[0].numbers
    for way in (numbers["toy"], *numbers["digits"]["ways"]):
        assert way["ranks"] == list(range(way["ranks"][0], way["ranks"][-1] + 1))
        assert max(way["dual_bounds"]) <= min(way["objectives"])
        assert max(way["gaps"][:-1]) > 1e-3
        assert way["polar_ratios"][-1] == pytest.approx(1.0, abs=1e-4)


def test_the_known_answers_of_the_constructed_problem():
    problem, point = ours.constructed()
    a, b = ours.LIKES
    lam, s = ours.LAM, b - ours.LAM
    assert problem.objective(point) == pytest.approx(a**2 + lam**2 + 2.0 * lam * s)
    U = math.sqrt(a - lam) * torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    assert problem.objective((U, U)) == pytest.approx(ours.rank_one_global())
    # the optimum shrinks every observed rating by lambda: rank 2 by the two groups together
    both = torch.cat([U, point[0]])
    certificate = problem.certify((both, both))
    assert certificate.objective == pytest.approx(2.0 * lam**2 + 2.0 * lam * (a + b - 2.0 * lam))
    assert certificate.gap < 1e-9


def test_the_hessian_has_the_closed_form():
    problem, point = ours.constructed()
    near = ours.basin(problem, point, starts=20)
    assert near["least_eigenvalue"] == pytest.approx(2.0 * ours.LAM)
    assert near["returned"] == 20


def test_a_point_that_is_no_minimum_is_not_returned_to(monkeypatch):
    # with likes this far apart, the other group's entries turn the minimum into a saddle: 2 s + lambda < a
    monkeypatch.setattr(ours, "LIKES", (4.0, 1.5))
    problem, point = ours.constructed()
    near = ours.basin(problem, point, starts=20)
    assert near["gradient"] < 1e-12
    assert near["least_eigenvalue"] == pytest.approx(2.0 * (1.5 - ours.LAM) + ours.LAM - 4.0)
    assert near["returned"] == 0
    claims = ours.minimum_claims(near, ours.Way(objectives=[1.0], gaps=[1.0], polar_lows=[1.0]))
    assert sum(not claim.holds for claim in claims) >= 5
