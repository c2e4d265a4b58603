"""The experiment's claims hold on a few images, and can fail."""

import copy
import json

import pytest
import torch

from theodolite.experiments import certified_convolution as ours
from theodolite.experiments.base import reproduce


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("convolution")
    return reproduce(ours.CertifiedConvolution(), folder, fast=True), folder


def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 5
    record = json.loads((folder / "certified-convolution.json").read_text())
    assert all(claim["holds"] is True for claim in record["claims"])
    assert (folder / "certified-convolution.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_numbers_agree_with_each_other(written):
    (case,) = written[0].numbers["cases"]
    assert case["gap"] <= 3e-3
    assert case["gap"] == pytest.approx(
        (case["objective"] - case["dual_bound"]) / case["objective"], rel=1e-6
    )
    assert case["path"]["gaps"][-1] == pytest.approx(case["gap"], rel=0.2)
    filters = torch.tensor(case["filters"])
    assert filters.shape == (case["units"], 2, 2)
    assert filters.norm(dim=(1, 2)).numpy() == pytest.approx(1.0)
    assert case["lambda"] * sum(case["theta"]) < case["objective"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gap", 0.01),
        ("accuracy", 0.5),
        ("held_out_accuracy", 0.5),
        ("stationarity", -1e-3),
        ("dual_bound", 1.0),
    ],
)
def test_claims_can_fail(written, key, value):
    numbers = copy.deepcopy(written[0].numbers)
    numbers["cases"][0][key] = value
    assert any(not claim.holds for claim in ours.claims(numbers))


def test_a_network_below_the_bound_would_be_noticed(written):
    numbers = copy.deepcopy(written[0].numbers)
    numbers["restarts"].append(0.5 * numbers["cases"][0]["dual_bound"])
    assert not ours.claims(numbers)[-1].holds
