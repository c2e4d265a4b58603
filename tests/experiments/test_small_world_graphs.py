"""Scattering on graphs that change: the claims hold, and fail on worse numbers; graphs and changes are as described."""

import copy

import numpy as np
import pytest
import torch

from theodolite.experiments import datasets
from theodolite.experiments import small_world_graphs as ours
from theodolite.experiments.base import reproduce


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("graphs")
    return reproduce(ours.SmallWorldGraphs(), folder, fast=True), folder


def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    installed = datasets.is_installed("pygsp")
    assert len(result.claims) == 5 + installed
    assert ("roads" in result.numbers) == installed
    assert installed or "pip install" in result.numbers["roads_skipped"]
    assert (folder / "small-world-graphs.json").is_file()
    assert (folder / "small-world-graphs.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_claims_fail_where_the_numbers_are_worse(written):
    runs = copy.deepcopy(written[0].numbers["runs"])
    for run in runs:
        run["within"] -= 1
        for name in ours.BANKS:
            run["bound"][name] *= 2.0
            run["mean"][name] = 0.5 * run["mean"][ours.FOURIER]
            if run["kind"] == "shrinking" or run["size"] == 0.1:
                run["mean"][name] = 0.3
    assert not any(claim.holds for claim in ours.claims(runs, runs))


def test_without_the_roads_a_reason_is_given(monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda module: None)
    monkeypatch.setattr(ours, "NODES", 20)
    monkeypatch.setattr(ours, "NEIGHBORS", 10)
    result = ours.SmallWorldGraphs().run(fast=True)
    assert result.numbers["roads_skipped"] == "needs pygsp: pip install --no-deps pygsp==0.6.1"
    assert result.claims[0].holds


def test_rings_are_rewired():
    generator = np.random.default_rng(0)
    ring = ours.small_world(12, 4, 0.0, generator)
    assert ring[0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert all(np.array_equal(ring[i], np.roll(ring[0], i)) for i in range(12))
    whole = ours.small_world(100, 50, 0.0, generator)
    moved = ours.small_world(100, 50, 0.1, generator)
    for W in (whole, moved):
        assert np.array_equal(W, W.T)
        assert set(np.unique(W)) == {0.0, 1.0}
        assert W.trace() == 0
        assert W.sum() == 100 * 50
    share = ((whole == 1) & (moved == 0)).sum() / whole.sum()
    assert 0.06 < share < 0.12
    full = ours.small_world(5, 4, 1.0, generator)
    assert np.array_equal(full, 1.0 - np.eye(5))


def test_changes_are_those_of_the_statement():
    generator = np.random.default_rng(0)
    W, draws = ours.small_world(20, 6, 0.1, generator), generator.random(20)
    for kind in ours.KINDS:
        for size in (0.1, 1.0):
            V = ours.changed(W, size, kind, draws)
            assert np.array_equal(V, V.T)
            assert V.min() >= 0.0
            assert np.abs(V - W).max() <= size * W.max() + 1e-15
    shrunk = ours.changed(W, 0.2, "shrinking", draws)[W > 0]
    assert 0.8 <= shrunk.min() <= shrunk.max() <= 0.84
    signs = ours.changed(W, 0.2, "random signs", draws)[W > 0]
    assert signs.min() < 1.0 < signs.max()


def test_errors_are_distances_of_the_transforms():
    generator = np.random.default_rng(3)
    W = ours.small_world(20, 6, 0.1, generator)
    found = ours.compared(W, 1, (0.5,), 3, np.random.default_rng(0), tuple(ours.BANKS))
    assert [run["kind"] for run in found] == list(ours.KINDS)
    again = np.random.default_rng(0)
    V = ours.changed(W, 0.5, "random signs", again.random(20))
    x = torch.from_numpy(again.standard_normal((3, 20)))
    one, two = (ours.GraphScattering(A, 6, 2)(x).flatten(1) for A in (W, V))
    errors = (one - two).norm(dim=1) / x.norm(dim=1)
    assert found[0]["mean"]["diffusion"] == pytest.approx(float(errors.mean()), rel=1e-9)
    assert found[0]["most"]["diffusion"] == pytest.approx(float(errors.max()), rel=1e-9)
    frequencies = [
        v @ np.diag(1.0 / np.sqrt(W.sum(1))) @ W @ np.diag(1.0 / np.sqrt(W.sum(1))) @ v
        for v in ours.fourier(W).T.numpy()
    ]
    assert frequencies == sorted(frequencies, reverse=True)
