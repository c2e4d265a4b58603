"""Banks beside Morlet's: their energies, what subsampling does to them, and what can be got back from coefficients."""

from __future__ import annotations

import math

import pytest
import torch

from theodolite.nn import Scattering2D
from theodolite.nn.scattering_energy import energies
from theodolite.nn.wavelet_families import FAMILIES, bump_steerable, gabor2d, meyer
from theodolite.nn.wavelets import Bank, mirrored, morlet2d

SETTINGS = [((128,), 3, 1), ((32, 32), 3, 8), ((32, 48), 2, 5), ((16, 16), 2, 6), ((24, 24), 3, 1)]


def images(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("shape", "J", "L"), [*SETTINGS, ((33, 35), 2, 4), ((9, 6), 1, 3)])
def test_meyer_wavelets_keep_every_energy(shape, J, L):
    bank = meyer(shape, J, L)
    torch.testing.assert_close(bank.energy(), torch.ones(shape, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("shape", "J", "L"), SETTINGS)
def test_and_keep_them_subsampled(shape, J, L):
    bounds = meyer(shape, J, L).frame_bounds(subsampled=True)
    assert 1.0 - 1e-12 < bounds.lower.low <= 1.0 <= bounds.upper.high < 1.0 + 1e-12
    # as a matrix: kept samples times the root of their distance have the energy of the signal
    x, bank = images(2, *shape), meyer(shape, J, L)
    coefficients = bank.transform(x)
    found = torch.zeros(2, dtype=torch.float64)
    for branch, step in zip(coefficients.unbind(1), (bank.low_step, *bank.steps), strict=True):
        kept = branch[(slice(None), *[slice(None, None, step)] * len(shape))]
        found += kept.abs().square().flatten(1).sum(1) * step ** len(shape)
    torch.testing.assert_close(found, x.square().flatten(1).sum(1), rtol=1e-13, atol=0)


def test_a_gabor_bank_is_morlets_without_the_correction():
    shape, J, L = (32, 32), 2, 4
    gabor, morlet = gabor2d(shape, J, L), morlet2d(shape, J, L)
    assert torch.equal(gabor.low, morlet.low)
    assert float(morlet.high[:, 0, 0].abs().max()) < 1e-12 < 0.1 < float(gabor.high[:, 0, 0].min())
    correction = gabor.high - morlet.high  # Gaussians, largest at zero frequency
    assert float(correction.min()) > -1e-12
    assert not correction.flatten(1).argmax(1).any()


def test_bumps_have_compact_support_and_turn():
    bank = bump_steerable((64, 64), 3, 8)
    assert bank.frame_bounds().upper.value == pytest.approx(1.0, rel=1e-14)
    k = 2 * math.pi * torch.fft.fftfreq(64, dtype=torch.float64)
    size = torch.hypot(k[:, None], k)
    for j in range(3):
        outside = size >= 2 * 0.85 * math.pi / 2**j
        assert float(bank.high[8 * j : 8 * j + 8, outside].abs().sum()) == 0.0
    turned = bank.high[9].flip(0).roll(1, 0).T  # by a quarter turn, four of eight angles
    inside = size < math.pi
    assert float((turned - bank.high[13])[inside].abs().max()) < 1e-12
    assert float((turned - bank.high[12])[inside].abs().max()) > 0.1


@pytest.mark.parametrize("family", list(FAMILIES))
def test_coefficients_of_real_images_give_them_back(family):
    bank = FAMILIES[family]((24, 20), 2, 4)
    x = images(3, 24, 20)
    torch.testing.assert_close(bank.inverse(bank.transform(x)), x, rtol=0, atol=1e-11)
    assert bank.inverse(bank.transform(x.float())).dtype == torch.float32


def test_and_of_complex_ones_where_no_frequency_is_lost():
    x = torch.complex(images(24, 20), images(24, 20, seed=1))
    bank = meyer((24, 20), 2, 4)  # its wavelets cover half of the frequencies
    with pytest.raises(ValueError, match="inverse: expected a bank with A > 0, got A ="):
        bank.inverse(bank.transform(x), real=False)
    completed = gabor2d((24, 20), 2, 4)
    both = Bank(
        completed.low,
        torch.cat([completed.high, torch.stack([mirrored(h) for h in completed.high])]),
        completed.steps * 2,
        completed.low_step,
    )
    torch.testing.assert_close(both.inverse(both.transform(x), real=False), x, rtol=0, atol=1e-11)


def test_a_completed_bank_is_tight():
    bank = morlet2d((32, 32), 2, 6).completed()
    torch.testing.assert_close(bank.energy(), torch.ones(32, 32, dtype=torch.float64), rtol=0, atol=1e-14)
    assert len(bank.high) == len(bank.steps) == 13


@pytest.mark.parametrize(
    "bank", [meyer((16, 16), 2, 3), morlet2d((16, 16), 2, 3).completed(), morlet2d((16, 16), 2, 3).normalized("tight")],
    ids=["meyer", "completed", "tight"],
)  # fmt: skip
def test_all_paths_share_out_the_energy_exactly(bank):
    x = images(2, 16, 16)
    previous = None
    for order in (0, 1, 2, 3):
        found = energies(bank, x, order)
        assert float(found.missing.abs().max()) < 1e-13
        if previous is not None:  # what an order averages was handed on by the one before
            torch.testing.assert_close(found.orders[..., :-1], previous.orders)
            torch.testing.assert_close(found.orders[..., -1] + found.rest, previous.rest, rtol=1e-12, atol=0)
        previous = found


def test_the_canonical_tight_bank_of_a_line():
    bank = meyer((256,), 4)
    x = images(3, 256)
    for order in (1, 2, 3):
        assert float(energies(bank, x, order).missing.abs().max()) < 1e-14 * 10
    assert float(energies(bank, x, 3, increasing=True).missing.min()) > 0.01


def test_energies_refuse_other_sizes():
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 16, 16\), got \(3, 16, 15\)"):
        energies(meyer((16, 16), 2, 3), torch.zeros(3, 16, 15), 1)
    with pytest.raises(ValueError, match="max_order: expected an integer >= 0, got -1"):
        energies(meyer((16, 16), 2, 3), torch.zeros(16, 16), -1)
    with pytest.raises(ValueError, match=r"shape: expected one or two sizes, got \(4, 4, 4\)"):
        meyer((4, 4, 4), 1)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_transform_may_have_any_family(family):
    transform = Scattering2D(2, (16, 24), L=4, pad="periodic", wavelets=family)
    x = images(3, 16, 24)
    shifted = transform(x.roll((4, 8), (1, 2)))
    torch.testing.assert_close(shifted, transform(x).roll((1, 2), (-2, -1)), rtol=0, atol=1e-14)
    constant = transform.lipschitz().upper
    differences = (transform(x) - transform(x.flip(0))).flatten(1).norm(dim=1) * 4
    assert bool((differences <= constant * (x - x.flip(0)).flatten(1).norm(dim=1) + 1e-12).all())
    if family == "meyer":
        assert constant < 1.0 + 1e-11
