"""Words in the middle of silence, and changes of them: warps of time, resampling, shifts, noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from theodolite.experiments._sounds import RATE

Array = NDArray[np.float64]

LENGTH = 1 << 14  # samples: a word in the middle of silence
FINER = 4  # grid that warps are interpolated on
WAVES = (1.0, 4.0)  # Hz, of which a warp is made


def centered(word: Array) -> Array:
    """Return a recording in the middle of silence."""
    before = (LENGTH - len(word)) // 2
    return np.pad(word, (before, LENGTH - len(word) - before))


def changed(signals: Array, kind: str, strength: float, generator: np.random.Generator) -> Array:
    """Return signals after a random change of one kind: of slope, relative rate, largest shift in seconds, or SNR in dB."""
    count = len(signals)
    if kind == "warp":
        return warped(signals, strength * smooth_slopes(count, generator))
    if kind == "resampling":
        return warped(signals, strength * generator.choice([-1.0, 1.0], (count, 1)) * np.ones(LENGTH))
    if kind == "shift":
        most = round(strength * RATE)
        return np.stack([np.roll(x, generator.integers(-most, most + 1)) for x in signals])
    # of the power of what is not padding
    power = np.square(signals).sum(1) / (signals != 0.0).sum(1)
    noise = generator.standard_normal(signals.shape)
    return np.asarray(signals + noise * np.sqrt(power * 10.0 ** (-strength / 10.0))[:, None])


def smooth_slopes(count: int, generator: np.random.Generator) -> Array:
    """Return random sums of four slow waves, (count, samples), the largest value of each being one."""
    time = np.arange(LENGTH) / RATE
    slopes = np.zeros((count, LENGTH))
    for _ in range(4):
        rate, phase, size = (
            generator.uniform(*WAVES, (count, 1)),
            generator.uniform(0.0, 2.0 * np.pi, (count, 1)),
            generator.standard_normal((count, 1)),
        )
        slopes += size * np.cos(2.0 * np.pi * rate * time + phase)
    return np.asarray(slopes / np.abs(slopes).max(1, keepdims=True))


def warped(signals: Array, slopes: Array) -> Array:
    r"""Return :math:`x(t-\tau(t))` for displacements that have these slopes and are zero in the middle.

    What a warp moves above half the rate is left out instead of folded.
    """
    tau = np.cumsum(slopes, 1)
    tau -= tau[:, [LENGTH // 2]]
    samples, fine = np.arange(LENGTH), np.arange(FINER * LENGTH) / FINER
    dense = np.fft.irfft(np.fft.rfft(signals), FINER * LENGTH) * FINER
    moved = [
        map_coordinates(x, FINER * (fine - np.interp(fine, samples, t))[None], order=3, mode="constant")
        for x, t in zip(dense, tau, strict=True)
    ]
    spectrum = np.fft.rfft(np.stack(moved))[:, : LENGTH // 2 + 1]
    spectrum[:, -1] = 0.0
    return np.fft.irfft(spectrum, LENGTH) / FINER
