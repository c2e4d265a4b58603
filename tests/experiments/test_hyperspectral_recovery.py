"""Recovery of Indian Pines: the claims hold on the data, and can fail; the baselines are right."""

import numpy as np
import pytest
from scipy.sparse import coo_array

from theodolite.experiments import datasets
from theodolite.experiments import hyperspectral_recovery as ours
from theodolite.experiments.base import reproduce

needs = pytest.mark.skipif(
    not datasets.is_installed("tensorly"), reason=f"needs tensorly: {datasets.PACKAGES['tensorly'].command}"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("recovery")
    return reproduce(ours.HyperspectralRecovery(), folder, fast=True), folder


@needs
def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 5
    assert (folder / "hyperspectral-recovery.json").is_file()
    assert (folder / "hyperspectral-recovery.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs
def test_claims_fail_where_the_numbers_are_worse(written):
    numbers = written[0].numbers
    assert numbers["observed"] / np.prod(numbers["shape"]) == pytest.approx(ours.OBSERVED, rel=0.05)
    worse = numbers | {
        "gap": 1e-3,
        "relative_errors": numbers["relative_errors"] | {"completion": 0.2},
        "psnr": numbers["psnr"] | {"completion": numbers["psnr"]["linear"]},
        "by_band": {"completion": numbers["by_band"]["linear"], "linear": numbers["by_band"]["linear"]},
    }
    assert not any(claim.holds for claim in ours.claims(worse))


def test_linear_interpolation_finds_a_plane():
    rows, cols = np.indices((12, 12)).reshape(2, -1)
    X = np.stack([rows + 2.0 * cols, 5.0 - 0.5 * rows], axis=1)
    seen = np.random.default_rng(0).random(X.shape) < 0.4
    seen.reshape(12, 12, 2)[[0, 0, -1, -1], [0, -1, 0, -1]] = True  # all lies within the hull
    found = ours.interpolated(X, seen, (12, 12))
    np.testing.assert_allclose(found["linear"], X, atol=1e-9)
    np.testing.assert_array_equal(found["nearest"][seen], X[seen])
    assert ours.relative(found["linear"], X, ~seen) < 1e-9
    assert 0.0 < ours.relative(found["nearest"], X, ~seen) < 0.2


def test_alpha_is_the_one_of_least_error_on_what_was_held_out():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 3)) @ generator.standard_normal((3, 30))
    rows, cols = np.nonzero(generator.random(X.shape) < 0.5)
    share, found = ours.choose(rows, cols, X[rows, cols], X.shape, generator.random(len(rows)) < 0.1)
    assert [one["share"] for one in found] == list(ours.SHARES)
    assert share == min(found, key=lambda one: one["rms"])["share"]
    assert found[-1]["rms"] < 0.5 * found[0]["rms"]  # there is no noise: the less alpha the better


def test_the_least_alpha_whose_optimum_is_zero():
    matrix = coo_array(np.diag([3.0, 1.0, 2.0]))
    assert ours.least_zero(matrix) == pytest.approx(3.0)
