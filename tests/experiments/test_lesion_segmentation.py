"""Synthetic lesions: masks that are exact, parts that do not mix, and claims that can fail."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from theodolite.analysis.segmentation import segmentation_equivariance
from theodolite.experiments import _lesions as lesions
from theodolite.experiments import lesion_segmentation as experiment
from theodolite.experiments.base import reproduce
from theodolite.models import EncoderDecoder


def blob(shape=(96, 96, 80)):
    """A made-up head: an ellipsoid of tissue with smooth intensities."""
    generator = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    tissue = (np.square(places / 0.8).sum(-1) < 1.0).astype(float)
    image = tissue * (0.5 + 0.5 * gaussian_filter(generator.normal(size=shape), 3.0))
    return image, tissue


@pytest.mark.parametrize("dims", [2, 3])
def test_a_lesion_is_in_the_tissue_and_its_mask_is_exact(dims):
    image, tissue = (v[30:70, 30:70, 40] if dims == 2 else v[30:70, 30:70, 20:60] for v in blob())
    tissue = tissue.copy()
    tissue[:15] = 0.3
    generator = np.random.default_rng(0)
    sizes = []
    for _ in range(20):
        new, mask = lesions.implant(image, tissue, generator)
        assert mask.dtype == bool
        assert mask.any()
        assert (tissue[mask] > 0.5).all()
        change = new - image
        assert change.min() >= 0.0
        # brightness was added where the mask is and within the reach of the blur, nowhere else
        np.testing.assert_allclose(
            change,
            gaussian_filter(mask.astype(float), 0.7)
            * change.max()
            / gaussian_filter(mask.astype(float), 0.7).max(),
            atol=1e-12,
        )
        assert 0.0 < change.max() <= 0.45
        sizes.append(mask.sum())
    assert len(set(sizes)) > 10
    first, again = (lesions.implant(image, tissue, np.random.default_rng(1)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_is_held_out_is_never_trained_on():
    # every voxel holds its place along the axis that separates the parts
    ones = np.ones((96, 96, 80))
    depth = ones * np.arange(80)
    generator = np.random.default_rng(0)
    trained = {
        float(lesions.slices(depth, ones, lesions.TRAINED_SLICES, 16)(generator)[0].mean())
        for _ in range(200)
    }
    held = {
        float(lesions.slices(depth, ones, lesions.HELD_OUT_SLICES, 16)(generator)[0].mean())
        for _ in range(200)
    }
    assert min(abs(a - b) for a in trained for b in held) >= 3  # two slices between them
    rows = ones * np.arange(96)[None, :, None]
    for front in (True, False):
        draw = lesions.blocks(rows, ones, 24, front=front)
        cubes = [draw(generator)[0] for _ in range(100)]
        assert all(cube.shape == (24, 24, 24) for cube in cubes)
        assert min(c.min() for c in cubes) == (lesions.FRONT if front else 0.0)
        assert max(c.max() for c in cubes) == (95.0 if front else lesions.FRONT - 1.0)


def test_training_finds_lesions_and_the_network_keeps_its_seed():
    image, tissue = blob()
    draw = lesions.slices(image, tissue, (38, 40, 42), 24)
    state = torch.get_rng_state()
    net = experiment.network(width=3, padding_mode="circular", down="max")
    assert torch.equal(torch.get_rng_state(), state)
    x, masks = lesions.batch(draw, 6, np.random.default_rng(1))
    assert x.shape == (6, 1, 24, 24)
    assert masks.shape == (6, 24, 24)
    assert x.dtype == torch.float32
    before = float(lesions.overlap(net.eval(), x, masks).mean())
    lesions.train(net, draw, 40, 4, rate=1e-2)
    assert not net.training
    assert float(lesions.overlap(net, x, masks).mean()) > max(0.4, before + 0.1)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run on the made-up head, small and without training."""
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("lesions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesions, "head", blob)
        patch.setattr(lesions, "train", lambda net, *rest, **options: net.eval())
        patch.setattr(experiment, "SIZE", 16)
        patch.setattr(experiment, "BLOCK", 8)
        patch.setattr(experiment.LesionSegmentation, "needs", None)
        return reproduce(experiment.LesionSegmentation(), folder, fast=True), folder


def test_what_structure_gives_holds_without_training(untrained):
    result, folder = untrained
    held = {claim.statement.split(":")[0]: claim.holds for claim in result.claims}
    assert held["circular padding"]
    assert held["where the logits' relative defect is <= 1e-12, rounding"]
    assert held["as the operations prove, layer by layer, for every input"]
    assert not held["slices"]
    record = json.loads((folder / "lesion-segmentation.json").read_text())
    assert record["numbers"]["slices"][0]["layers"][0]["fault"] == "pads with zeros"
    assert all(net["period"] == [4, 4] for net in record["numbers"]["slices"])
    assert all(len(net["residues"]) == 16 for net in record["numbers"]["slices"])
    assert (folder / "lesion-segmentation.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_claims_fail_where_they_are_not_so(untrained):
    numbers = copy.deepcopy(untrained[0].numbers)
    plain, blur = numbers["slices"][1:]
    for net in (*numbers["slices"], numbers["blocks"]):
        net["dice"] = 0.8
    plain["off"]["dice"], blur["off"]["dice"] = 0.9, 0.95
    for row in plain["residues"]:
        row["dice"] = row["labels"] = 0.9
    for row in blur["residues"]:
        row["dice"] = row["labels"] = 0.95
    plain["off"]["defect"], blur["off"]["defect"] = 0.04, 0.02
    numbers["slices"][0]["on"]["largest_defect"] = 0.1
    assert [c.statement for c in experiment.claims(numbers) if not c.holds] == []
    blur["off"]["dice"] = 0.902
    plain["residues"][5]["labels"] = 1.0
    plain["layers"][3]["proved"] = False
    numbers["blocks"]["on"]["labels"] = 1.0 - 1e-6
    broken = [c.statement for c in experiment.claims(numbers) if not c.holds]
    assert len(broken) == 4


def test_layers_and_pictures_are_those_of_the_network():
    net = EncoderDecoder(1, 2, width=2).double().eval()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    rows = experiment.layers(net, x)
    assert len(rows) == 11
    assert all(row["stride"] < 1e-14 for row in rows)
    found = segmentation_equivariance(net, x, [(1, 0)], period=4)
    assert rows[-1]["name"] == "head"
    assert rows[-1]["one"] == pytest.approx(float(found.defects.mean()))
    labels, moved = experiment.prediction(net, x)
    assert float((labels == moved).double().mean()) == pytest.approx(float(found.agreements.mean()))
