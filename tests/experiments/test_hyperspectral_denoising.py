"""Denoising of Indian Pines: the claims hold on the data, and can fail."""

import numpy as np
import pytest

from theodolite.experiments import datasets
from theodolite.experiments import hyperspectral_denoising as ours
from theodolite.experiments.base import reproduce

needs = pytest.mark.skipif(
    not datasets.is_installed("tensorly"), reason=f"needs tensorly: {datasets.PACKAGES['tensorly'].command}"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("denoising")
    return reproduce(ours.HyperspectralDenoising(), folder, fast=True), folder


@needs
def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 6
    assert (folder / "hyperspectral-denoising.json").is_file()
    assert (folder / "hyperspectral-denoising.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs
def test_the_bound_is_below_what_is_attained(written):
    for fit in written[0].numbers["structured"]:
        assert 0.0 < fit["dual_bound"] <= fit["objective"]
        assert fit["gap"] == pytest.approx(1.0 - fit["dual_bound"] / fit["objective"])


@needs
def test_claims_fail_where_the_numbers_are_worse(written):
    numbers = written[0].numbers
    worse = numbers | {
        "low_rank": [one | {"gap": 1e-3} for one in numbers["low_rank"]],
        "structured": [one | {"rms": 0.09, "gap": 0.9} for one in numbers["structured"]],
        "least": -1e-3,
    }
    assert not any(claim.holds for claim in ours.claims(worse))


def test_low_rank_keeps_the_image_of_least_error():
    generator = np.random.default_rng(0)
    clean = np.outer(generator.random(40), generator.random(20))
    noisy = clean + 0.1 * generator.standard_normal(clean.shape)
    fits, best = ours.low_rank(clean, noisy, 0.1 * (np.sqrt(40) + np.sqrt(20)))
    assert [one["share"] for one in fits] == list(ours.LOW_RANK)
    assert ours.rms(best - clean) == pytest.approx(min(one["rms"] for one in fits))
    assert ours.least(fits)["rms"] < 0.5 * ours.rms(noisy - clean)


def test_decibels():
    assert ours.psnr(0.1) == "20.0 dB"
    assert ours.rms(np.array([3.0, -3.0])) == 3.0
