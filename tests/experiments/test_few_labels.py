"""Few labels: the parts do what is said, the claims hold on better numbers and fail on worse."""

import gzip

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from theodolite.experiments import _images
from theodolite.experiments import few_labels as ours
from theodolite.experiments.base import draw
from theodolite.theorems.subject import InputError


@pytest.fixture
def digits(monkeypatch, tmp_path):
    monkeypatch.setattr(_images, "FASHION", tmp_path)
    monkeypatch.setattr(_images, "mnist", lambda: None)


def test_a_run_on_digits(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(ours, "FAST_SIZES", (50, 100, 5000))
    monkeypatch.setattr(ours, "FAST_SEEDS", 2)
    monkeypatch.setattr(ours, "FAST_HELD", 300)
    monkeypatch.setattr(ours, "epoch_choices", lambda n: (1, 2))
    before = torch.get_rng_state()
    result = ours.FewLabels().run(fast=True)
    assert torch.equal(torch.get_rng_state(), before)
    numbers = result.numbers
    assert numbers["sizes"] == [50, 100]  # 5000 would leave too few to draw from
    assert numbers["held"] == 300
    errors = {method: np.array(rows) for method, rows in numbers["errors"].items()}
    assert all(rows.shape == (2, 2) and (rows > 0).all() and (rows < 1).all() for rows in errors.values())
    assert (errors[ours.SECOND][1] < errors[ours.PIXELS][1]).all()
    assert (errors[ours.SECOND][1] < errors[ours.FIRST][1]).all()
    assert len(result.claims) == 6
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    draw(ours.FewLabels(), numbers, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_claims_hold_and_fail():
    good = {ours.PIXELS: 0.30, ours.FIRST: 0.22, ours.SECOND: 0.20, ours.AFFINE: 0.25, ours.NETWORK: 0.24}
    spread, falling = np.array([-0.01, 0.0, 0.01]), np.array([[1.0], [0.9]])
    errors = {method: (error * falling + spread).tolist() for method, error in good.items()}
    numbers = {"sizes": [100, 300], "errors": errors}
    assert [claim.holds for claim in ours.claims(numbers)] == [True] * 6
    low, high = ours.differences(numbers)[ours.PIXELS][0]
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    bad = {
        method: ((0.5 - error) / falling + spread).tolist()
        for method, error in good.items()
        if method != ours.NETWORK
    }
    within = {**numbers, "errors": bad | {ours.NETWORK: (0.1 / falling + spread).tolist()}}
    beyond = {**numbers, "errors": bad | {ours.NETWORK: (0.5 / falling + spread).tolist()}}
    assert [claim.holds for claim in ours.claims(within)] == [False, False, False, False, True, False]
    assert not ours.claims(beyond)[4].holds


def test_intervals_are_those_of_the_paired_t_test():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 6))
    mean, half = ours.interval(a - b)
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert (mean - half, mean + half) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_samples_are_balanced_and_differ():
    y = torch.arange(10).repeat(30)
    rows = [ours.balanced_sample(y, 50, seed) for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0].sort().values, rows[2].sort().values)
    for one in rows:
        assert torch.equal(torch.bincount(y[one]), torch.full((10,), 5))
        assert len(one.unique()) == 50
    assert (y[rows[0][:10]].unique().numel()) > 3  # not class by class


def test_residuals_are_distances_to_affine_spaces():
    generator = np.random.default_rng(1)
    rows, labels = generator.normal(size=(40, 12)), np.repeat([3, 7], 20)
    tests = generator.normal(size=(5, 12))
    found = ours.affine_residuals(rows, labels, tests)
    assert found.shape == (2, 5, len(ours.DIMENSIONS))
    for c, label in enumerate((3, 7)):
        own = rows[labels == label]
        mean = own.mean(0)
        vectors = np.linalg.eigh(np.cov(own.T))[1][:, ::-1]
        for k, d in enumerate(ours.DIMENSIONS):
            off = tests - mean
            fit = vectors[:, :d] @ np.linalg.lstsq(vectors[:, :d], off.T)[0] if d else 0.0 * off.T
            assert np.allclose(found[c, :, k], np.square(off.T - fit).sum(0), atol=1e-10)


def test_cross_validation_finds_the_dimension():
    generator = np.random.default_rng(2)
    planes = [np.linalg.qr(generator.normal(size=(30, 2)))[0] for _ in range(2)]
    labels = np.repeat([0, 1], 60)
    rows = np.concatenate([generator.normal(size=(60, 2)) @ plane.T for plane in planes])
    rows += 0.05 * generator.normal(size=rows.shape)
    choice = ours.chosen_dimension(rows, labels)
    assert ours.DIMENSIONS[choice] == 2
    assert (ours.affine_classes(rows, labels, rows, choice) == labels).mean() == 1.0


def test_representations_begin_with_their_first_order():
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    rows = ours.representations(x)
    assert np.array_equal(rows[ours.PIXELS], x.flatten(1).numpy())
    first = ours.Scattering2D(2, (28, 28), 8, 1)(x).flatten(1).numpy()
    assert np.allclose(rows[ours.FIRST], first, atol=1e-6)
    assert np.array_equal(rows[ours.SECOND][:, : first.shape[1]], rows[ours.FIRST])
    assert rows[ours.SECOND].shape == (3, 81 * 49)


def test_training_is_reproducible_and_learns(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = torch.randn(60, 1, 8, 8, generator=generator) + 3.0 * y[:, None, None, None]
    monkeypatch.setattr(ours, "epoch_choices", lambda n: (1, 8))
    nets = [ours.trained(x, y, 0) for _ in range(2)]
    assert not nets[0].training
    with torch.no_grad():
        scores = [net(x) for net in nets]
    assert torch.equal(*scores)
    assert (scores[0].argmax(1) == y).double().mean() >= 0.95
    assert ours.epoch_choices(1) == (1, 8)


def test_the_held_out_images_are_others(digits):
    x, y, x_held, y_held, name = _images.split_images()
    assert (len(x), len(y), len(x_held), len(y_held)) == (1078, 1078, 719, 719)
    assert x.dtype == torch.float32
    assert 0.0 <= float(x.min()) < float(x.max()) <= 1.0
    assert "scikit-learn" in name
    known = {image.numpy().tobytes() for image in x}
    assert not any(image.numpy().tobytes() in known for image in x_held)


def test_fashion_mnist_has_a_part_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(_images, "FASHION", tmp_path)
    monkeypatch.setattr(_images, "SAMPLES", 3)

    def write(part: str, count: int, value: int) -> None:
        header = np.array([2051, count, 28, 28], ">u4").tobytes()
        images = gzip.compress(header + bytes([value]) * (count * 784))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        labels = gzip.compress(np.array([2049, count], ">u4").tobytes() + bytes(range(count)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(labels)

    write("train", 3, 51)
    with pytest.raises(
        InputError, match=r"t10k.*expected the 10000 test samples of Fashion-MNIST, got no file"
    ):
        _images.split_images()
    write("t10k", 2, 102)
    with pytest.raises(InputError, match=r"t10k.*expected the 10000 test samples"):
        _images.split_images()
    monkeypatch.setattr(_images, "HELD_OUT", 2)
    x, y, x_held, y_held, name = _images.split_images()
    assert (x.shape, x_held.shape) == ((3, 1, 28, 28), (2, 1, 28, 28))
    assert torch.allclose(x, torch.tensor(0.2))
    assert torch.allclose(x_held, torch.tensor(0.4))
    assert (sorted(y.tolist()), sorted(y_held.tolist())) == ([0, 1, 2], [0, 1])
    assert name == "Fashion-MNIST"
