"""The parts of the experiment on energies: its crops, its identity, and claims that can fail."""

import copy

import pytest
import torch

from theodolite.experiments import scattering_energy as experiment
from theodolite.nn.wavelets import morlet2d


def test_crops_are_disjoint_squares_without_means():
    x = experiment.crops(128)
    assert x.shape == (30, 128, 128)
    assert float(x.mean((1, 2)).abs().max()) < 1e-12
    whole = experiment.crops(64)
    torch.testing.assert_close(whole[0] - whole[0].mean(), x[0, :64, :64] - x[0, :64, :64].mean())


def test_the_identity_needs_a_tight_bank():
    x = experiment.crops(experiment.SMALL)[:2]
    banks = experiment.tight_banks()
    assert max(max(experiment.exactness(bank, x)) for bank in banks.values()) < 1e-12
    assert min(experiment.exactness(morlet2d((32, 32), 2, 3), x)) > 1e-3


def test_claims_can_fail():
    identity, shares, missing = (
        {"a": [1e-16] * 4},
        [[0.9, 0.09, 0.0, 0.0], [0.8, 0.15, 0.02, 0.001], [0.6, 0.3, 0.05, 0.005]],
        [0.01, 0.02, 0.03],
    )
    assert all(claim.holds for claim in experiment.claims(identity, shares, missing))
    broken = [({"a": [1e-9]}, shares, missing), (identity, shares, [0.06])]
    for row, column, value in ((0, 0, 0.5), (2, 2, 0.01), (2, 3, 0.03)):
        changed = copy.deepcopy(shares)
        changed[row][column] = value
        broken.append((identity, changed, missing))
    for i, arguments in enumerate(broken):
        assert sum(not claim.holds for claim in experiment.claims(*arguments)) == 1, i


def test_the_energy_by_frequency_is_that_of_the_bank():
    frequency, least, most = experiment.radial(morlet2d((128, 128), 3, 8), bins=16)
    assert len(frequency) == len(least) == len(most) == 16
    assert all(low <= high for low, high in zip(least, most, strict=True))
    assert max(most) == pytest.approx(1.0136, abs=0.01)
