"""The banks of signals: their parameters, their filters in time, and frame bounds."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from theodolite.nn.wavelets import Bank
from theodolite.nn.wavelets1d import Morlet, border, morlet1d, morlets


def in_time(n: int, xi: float, sigma: float) -> Tensor:
    """A filter as a sum over many periods of its formula in time."""
    t = torch.arange(n, dtype=torch.float64) + n * torch.arange(-60, 61, dtype=torch.float64)[:, None]
    envelope = torch.exp(-2.0 * (math.pi * sigma * t) ** 2)
    wave = envelope * torch.exp(2j * math.pi * xi * t)
    values = wave.sum(0)
    if xi:
        values = values - values.sum() / envelope.sum() * envelope.sum(0)
    return values / values.abs().sum()


@pytest.mark.parametrize(
    ("n", "J", "Q", "T"), [(48, 3, 1, None), (33, 4, 5, 11), (200, 5, 8, 32), (64, 0, 2, 1.5)]
)
def test_filters_are_what_their_formula_says(n, J, Q, T):
    bank, waves = morlet1d(n, J, Q, T), morlets(J, Q)
    low = 0.1 / (2**J if T is None else T)
    for row, (xi, sigma, _) in zip([bank.low, *bank.high], [Morlet(0.0, low, 0), *waves], strict=True):
        found = torch.fft.ifft(row)
        assert torch.allclose(found, in_time(n, xi, sigma).to(found.dtype), rtol=0.0, atol=1e-12)
    assert float(bank.high[:, 0].abs().max()) == 0.0
    assert bank.low_step == (2**J if T is None else 2 ** int(math.log2(T)))
    assert bank.steps == tuple(min(2**wave.j, bank.low_step) for wave in waves)


def test_frequencies_and_widths_of_a_bank():
    waves = morlets(6, 8)
    assert len(waves) == 38
    assert waves[0].xi == pytest.approx(1.0 / (1.0 + 2.0**0.375))
    ratios = [two.xi / one.xi for one, two in pairwise(waves[:31])]
    assert ratios == pytest.approx([2.0**-0.125] * 30)
    assert [wave.sigma for wave in waves[-7:]] == [0.1 / 2**6] * 7
    assert all(one.sigma >= two.sigma and one.j <= two.j for one, two in pairwise(waves))
    # a wavelet's samples resolve what lies within five widths of its frequency
    assert all(wave.xi + 5.0 * wave.sigma < 0.5 / 2**wave.j for wave in waves if wave.j)


def test_frame_bounds_of_the_reference_bank():
    for J, Q, lower in ((4, 1, 0.15396), (6, 8, 2.899e-4)):
        bank = morlet1d(1024, J, Q)
        found = bank.frame_bounds()
        assert (found.lower.value, found.upper.value) == pytest.approx((lower, 1.0), rel=1e-4)
        assert float(bank.energy()[512]) == pytest.approx(lower, rel=1e-4) or Q == 1
        tight = bank.normalized("tight").frame_bounds()
        assert (tight.lower.value, tight.upper.value) == pytest.approx((1.0, 1.0), abs=1e-14)


def test_frame_bounds_of_a_bank_of_three_octaves(monkeypatch):
    omega = 2.0 * math.pi * torch.fft.fftfreq(64, dtype=torch.float64)

    def gaussian(sigma: float, xi: float) -> Tensor:
        return sum(torch.exp(-0.5 * (sigma * (omega + 2.0 * math.pi * p - xi)) ** 2) for p in range(-3, 4))

    high = []
    for j in range(3):
        wave, envelope = gaussian(0.8 * 2**j, 0.75 * math.pi / 2**j), gaussian(0.8 * 2**j, 0.0)
        high.append(wave - wave[0] / envelope[0] * envelope)
    bank = Bank(gaussian(0.8 * 4, 0.0), torch.stack(high), (1, 2, 4), 8).normalized("B1")
    found = bank.frame_bounds()
    assert (found.lower.value, found.upper.value) == pytest.approx((0.5368, 1.0), abs=1e-4)
    found = bank.frame_bounds(subsampled=True)
    assert (found.lower.low, found.upper.high) == pytest.approx((0.3431, 1.0103), abs=1e-4)
    found = bank.frame_bounds(real=False, subsampled=True)
    assert (found.lower.low, found.upper.high) == pytest.approx((5.4e-4, 1.3806), abs=1e-4)
    monkeypatch.setattr("theodolite.nn.wavelets._FIBER", 0)
    assert bank.frame_bounds(subsampled=True).upper.high == pytest.approx(1.0850, abs=1e-4)
    assert bank.frame_bounds(real=False, subsampled=True).upper.high == pytest.approx(1.4546, abs=1e-4)


def test_the_border_holds_all_but_a_thousandth_of_the_low_pass():
    for n, T in ((512, 16), (300, 7.5)):
        sizes = in_time(n, 0.0, 0.1 / T).real[: n // 2]
        b = border(n, T)
        assert float(sizes[b - 1 :].sum()) <= 1e-3 < float(sizes[b - 2 :].sum())
    assert border(20, 32) == 10  # there is none
    assert border(1, 1) == 0


def test_a_long_bank_is_built_in_a_moment():
    start = time.process_time()
    bank = morlet1d(2**17, 8, 8)
    assert time.process_time() - start < 2.0
    assert bank.high.shape == (54, 2**17)
