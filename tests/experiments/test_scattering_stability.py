"""The parts of the experiment on stability: what it measures, and claims that can fail."""

import copy

import pytest
import torch

from theodolite.experiments import scattering_stability as experiment
from theodolite.nn.scattering_energy import averages, shift_bound
from theodolite.nn.wavelet_families import meyer
from theodolite.nn.wavelets import morlet2d


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_changes_by_hand():
    x = images(3, 8, 8)
    x = x / x.flatten(1).norm(dim=1)[:, None, None]
    found = experiment.changes(lambda z: 2.0 * z, x, {0.1: [x + 0.5, x]}, {1: -x})
    assert found["deformed"] == [pytest.approx(0.5 * 2 * 0.5 * 8)]
    assert found["shifted"] == [pytest.approx(4.0)]


@pytest.mark.parametrize("bank", [meyer((16, 24), 2, 3), morlet2d((16, 24), 2, 4).normalized("tight")])
def test_shifts_stay_within_their_bound(bank):
    x = images(4, 16, 24)
    values, maps = averages(bank, x, 2)
    for shift in ((0, 1), (1, 0), (3, -5), (8, 12)):
        moved = averages(bank, x.roll(shift, (1, 2)), 2)[0]
        bound = shift_bound(bank, shift).high * maps.sqrt()
        assert bool(((moved - values).flatten(1).norm(dim=1) <= bound * (1 + 1e-12)).all())
    assert shift_bound(bank, (0, 0)).high == 0.0
    with pytest.raises(ValueError, match=r"shift: expected 2 numbers, got \(1,\)"):
        shift_bound(bank, (1,))


def test_the_low_pass_alone_attains_it():
    bank, shift = meyer((64,), 2), (1,)
    best = 0.0
    for k in range(64):
        wave = torch.cos(2 * torch.pi * k * torch.arange(64, dtype=torch.float64) / 64)
        values, maps = averages(bank, wave, 0)
        best = max(best, float((averages(bank, wave.roll(1), 0)[0] - values).norm() / maps.sqrt()))
    assert best == pytest.approx(shift_bound(bank, shift).high, rel=1e-12)


def test_gaussian_low_passes_shift_as_known():
    """A Gaussian of width 0.8 times 2^(J - 1): the bound of a shift by one pixel."""
    found = [shift_bound(morlet2d((32, 1024), J, 1), (0, 1)).high for J in (2, 3, 4, 5)]
    assert found == pytest.approx([0.373, 0.1887, 0.0944, 0.0472], rel=5e-3)


def test_averages_are_those_of_every_path_by_itself():
    bank, x = meyer((8, 8), 2, 2), images(8, 8)
    found = averages(bank, x, 2)[0]

    def average(z):
        return torch.fft.ifft2(torch.fft.fft2(z) * bank.low).real

    def modulus(z, n):
        return torch.fft.ifft2(torch.fft.fft2(z) * bank.high[n]).abs()

    expected = [average(x)]
    for n in range(4):
        expected.append(average(modulus(x, n)))
        expected += [average(modulus(modulus(x, n), m)) for m in range(4) if bank.steps[m] > bank.steps[n]]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-14)


def test_claims_can_fail():
    curve = {"deformed": [0.03, 0.09, 0.3], "shifted": [1.0] * 4}
    curves = {"pixels": curve, "Fourier modulus": curve | {"shifted": [0.0] * 4}}
    for i, J in enumerate(experiment.SCALES):
        curves[f"J = {J}"] = {
            "deformed": [v / 2 ** (i + 1) for v in curve["deformed"]],
            "shifted": [v / 2 ** (i + 1) for v in curve["shifted"]],
            "of the pixels": [0.5],
            "share of the bound": [0.5],
        }
    good = {"curves": curves, "dilated": {"Fourier modulus": [0.4, 1.4], "scattering, J = 7": [0.1, 0.1]}}
    assert all(claim.holds for claim in experiment.claims(good))
    changes = [
        ("J = 3", "share of the bound", [1.01]),
        ("J = 3", "of the pixels", [1.01]),
        ("J = 3", "deformed", [0.0076, 0.02, 0.01]),
        ("J = 2", "shifted", [0.26] * 4),
        ("Fourier modulus", "shifted", [1e-3] * 4),
    ]
    for name, key, values in changes:
        broken = copy.deepcopy(good)
        broken["curves"][name][key] = values
        assert sum(not claim.holds for claim in experiment.claims(broken)) == 1, (name, key)
    broken = copy.deepcopy(good)
    broken["dilated"]["scattering, J = 7"][0] = 0.6
    assert sum(not claim.holds for claim in experiment.claims(broken)) == 1
