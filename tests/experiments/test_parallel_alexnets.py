"""Parallel AlexNets: the claims hold on a few images, and can fail; what the images are."""

import pytest
import torch

from theodolite.experiments import _images
from theodolite.experiments import parallel_alexnets as ours
from theodolite.experiments.base import draw


@pytest.fixture(scope="module")
def result():
    return ours.ParallelAlexNets().run(fast=True)


def test_every_claim_holds(result, tmp_path):
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 8
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    draw(ours.ParallelAlexNets(), result.numbers, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_no_objective_is_below_the_bound(result):
    assert 0.0 <= result.numbers["dual_bound"] <= ours.best_of(result.numbers)


def test_claims_can_fail(result):
    numbers = result.numbers | {
        "degree": 7,
        "trained": {"1": [{"objective": 1.0, "accuracy": 0.1}], "3": [{"objective": 1.5, "accuracy": 0.2}]},
        "growth": [
            {"units": 1, "objective": 1.0, "polar_low": 0.0},
            {"units": 2, "objective": 1.1, "polar_low": 0.0},
        ],
        "dual_bound": 1.2,
        "pruned": {"removed": 0, "change": 0.1, "module_error": 1.0},
    }
    assert [claim.holds for claim in ours.claims_of(numbers)] == [False] * 8


def test_images_fall_back_on_what_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(_images, "FASHION", tmp_path)
    monkeypatch.setattr(_images, "mnist", lambda: None)
    x, y, name = _images.images(50)
    assert x.shape == (50, 1, 8, 8)
    assert x.dtype == torch.float64
    assert 0.0 <= float(x.min()) < float(x.max()) <= 1.0
    assert len(y.unique()) > 5
    assert "scikit-learn" in name
    again = _images.images(50)
    assert torch.equal(x, again[0])


def test_fashion_mnist_is_read_and_checked(monkeypatch, tmp_path):
    import gzip

    import numpy as np

    from theodolite.theorems.subject import InputError

    monkeypatch.setattr(_images, "FASHION", tmp_path)
    body = np.arange(3 * 28 * 28, dtype=np.uint64).astype(np.uint8)

    def write(count: int) -> None:
        header = np.array([2051, count, 28, 28], ">u4").tobytes()
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + body.tobytes()))
        labels = np.array([2049, count], ">u4").tobytes() + bytes(range(3))
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))

    write(3)
    with pytest.raises(InputError, match="expected the 60000 training samples"):
        _images.fashion()
    monkeypatch.setattr(_images, "SAMPLES", 3)
    x, y, name = _images.images(3)
    assert x.shape == (3, 1, 14, 14)
    assert sorted(y.tolist()) == [0, 1, 2]
    assert "Fashion-MNIST" in name
