"""Fixed widths against the certified optimum: the claims hold, and can fail."""

import pytest

from theodolite.experiments import width_minima as ours
from theodolite.experiments.base import draw


@pytest.fixture(scope="module")
def result():
    return ours.WidthMinima().run(fast=True)


def test_every_claim_holds(result, tmp_path):
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 11
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    draw(ours.WidthMinima(), result.numbers, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_planted_optimum_is_the_known_answer(result):
    planted = result.numbers["sets"]["planted"]
    assert planted["dual_bound"] <= ours.KNOWN * (1 + 1e-6)
    assert planted["objective"] == pytest.approx(ours.KNOWN, rel=1e-5)
    assert all(value >= planted["dual_bound"] for values in planted["ends"].values() for value in values)


def test_claims_can_fail():
    found = {
        "gap": 0.1,
        "units": 2,
        "dual_bound": 1.0,
        "ends": {"1": [1.001, 1.001], "2": [0.9, 1.002], "4": [1.05, 1.1]},
    }
    assert [claim.holds for claim in ours.claims_of("none", found)] == [False] * 5
