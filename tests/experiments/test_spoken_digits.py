"""Spoken words: recordings are read or refused, changes are those of the statement, and the claims can fail."""

import copy
import wave
from dataclasses import replace

import numpy as np
import pytest

from theodolite.experiments import _sounds, _warped_words, datasets
from theodolite.experiments import spoken_digits as ours
from theodolite.experiments.base import draw, reproduce
from theodolite.theorems.subject import InputError


def write(path, values, rate=8000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(values, "<i2").tobytes())


def word(number, length=6000):
    """Return a voiced sound whose formant and loudness move in a way of its own."""
    time = np.arange(length) / 8000
    formant = 400.0 + 300.0 * number + 150.0 * np.cos(2.0 * np.pi * (1.0 + number % 3) * time)
    sound = sum(
        np.exp(-0.5 * ((110.0 * k - formant) / 150.0) ** 2) * np.sin(2.0 * np.pi * 110.0 * k * time)
        for k in range(1, 35)
    )
    return 8000.0 * sound * np.sin(np.pi * time * 8000 / length) ** 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder that the package's sounds are read from."""
    package = replace(datasets.PACKAGES[_sounds.PACKAGE], folder=tmp_path / "voice")
    monkeypatch.setitem(datasets.PACKAGES, _sounds.PACKAGE, package)
    monkeypatch.setattr(_sounds, "WORDS", 8)
    return tmp_path / "voice"


def fill(folder):
    for number in range(6):
        write(folder / "digits" / f"{number}.wav", word(number))
    for number, name in enumerate(("a", "b", "o", "dash")):
        write(folder / "letters" / f"{name}.wav", word(6 + number))


def test_a_run_on_synthetic_words(folder, tmp_path):
    fill(folder)
    result = ours.SpokenDigits().run(fast=True)
    numbers = result.numbers
    assert numbers["words"] == 8
    assert set(numbers["accuracy"]) == set(ours.METHODS)
    assert numbers["accuracy"][ours.SECOND]["warp"][0] == 1.0
    assert numbers["accuracy"][ours.FOURIER]["shift"] == [1.0, 1.0]
    assert numbers["accuracy"][ours.WAVEFORM]["noise"] == [1.0] * 3
    assert 0.9 < ours.exponent(numbers["slopes"], numbers["drift"][ours.SECOND], 0.05) < 1.1
    assert len(result.claims) == 9
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    draw(ours.SpokenDigits(), numbers, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000

    worse = copy.deepcopy(numbers)
    for accuracy in worse["accuracy"].values():
        accuracy |= {kind: [0.5] * len(rows) for kind, rows in accuracy.items()}
    worse["accuracy"][ours.FOURIER]["warp"][3] = 0.6
    worse["above"][ours.FIRST]["resampling"] = [(0.0, 0.1)] * 2
    worse["drift"] = dict.fromkeys(worse["drift"], [0.1] * len(worse["slopes"]))
    worse["fourier_by_band"] = [[0.3] * 4] * len(worse["slopes"])
    assert [claim.holds for claim in ours.claims(worse)] == [False] * 9


def test_words_are_refused_where_they_are_not_installed(folder, tmp_path):
    with pytest.raises(InputError, match="not installed: apt install asterisk-core-sounds-en-wav"):
        reproduce(ours.SpokenDigits(), tmp_path)
    assert not datasets.is_installed(_sounds.PACKAGE)
    fill(folder)
    assert datasets.is_installed(_sounds.PACKAGE)
    words = _sounds.spoken_words()
    assert list(words) == [*(f"digits/{n}" for n in range(6)), "letters/a", "letters/b"]
    assert np.linalg.norm(words["digits/3"]) == pytest.approx(1.0)
    (folder / "digits" / "5.wav").unlink()
    with pytest.raises(InputError, match="expected 8 recordings in digits and letters, got 7: apt install"):
        _sounds.spoken_words()


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({"values": word(0), "rate": 16000}, "one channel of 16 bits at 8000 Hz"),
        ({"values": np.repeat(word(0), 2), "channels": 2}, "one channel of 16 bits"),
        ({"values": np.zeros(100)}, "expected sound"),
        ({"values": np.ones(12_001)}, "for 1.5 s at most"),
        (b"junk", "cannot be read"),
        (b"", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_files_that_hold_no_word_are_refused(form, match, tmp_path):
    path = tmp_path / "word.wav"
    if isinstance(form, bytes):
        path.write_bytes(form)
    elif form is not None:
        write(path, **form)
    with pytest.raises(InputError, match=match):
        _sounds.recording(path)


@pytest.mark.skipif(
    not datasets.is_installed(_sounds.PACKAGE),
    reason=f"needs {_sounds.PACKAGE}: {datasets.PACKAGES[_sounds.PACKAGE].command}",
)
def test_the_installed_words():
    words = _sounds.spoken_words()
    assert len(words) == _sounds.WORDS
    assert {f"digits/{n}" for n in range(10)} < set(words)
    assert all(4000 < len(values) < 10_000 for values in words.values())
    assert len({values.tobytes() for values in words.values()}) == len(words)


def tone(frequency):
    """Return a tone that begins and ends softly, in silence."""
    length = _warped_words.LENGTH
    time = (np.arange(length) - length // 2) / 8000
    return np.cos(2.0 * np.pi * frequency * time) * np.exp(-0.5 * (time / 0.15) ** 2)


def test_warps_are_compositions():
    length = _warped_words.LENGTH
    still = _warped_words.warped(tone(500.0)[None], np.zeros((1, length)))
    assert np.allclose(still[0], tone(500.0), atol=1e-6)
    time = (np.arange(length) - length // 2) / 8000
    faster = _warped_words.warped(tone(500.0)[None], np.full((1, length), -0.1))[0]
    assert np.allclose(
        faster, np.cos(2.0 * np.pi * 550.0 * time) * np.exp(-0.5 * (1.1 * time / 0.15) ** 2), atol=1e-4
    )
    # the slope is that of tau where it varies, too
    slope = 0.2 * np.cos(2.0 * np.pi * 2.0 * time)
    tau = 0.2 * np.sin(2.0 * np.pi * 2.0 * time) / (2.0 * np.pi * 2.0)
    found = _warped_words.warped(tone(500.0)[None], slope[None])[0]
    at = time - tau
    assert np.allclose(found, np.cos(2.0 * np.pi * 500.0 * at) * np.exp(-0.5 * (at / 0.15) ** 2), atol=0.05)
    # 3800 Hz, 10 % faster, are beyond what 8000 samples a second hold
    gone = _warped_words.warped(tone(3800.0)[None], np.full((1, length), -0.1))
    assert np.abs(gone).max() < 1e-3


def test_slopes_are_at_most_one():
    slopes = _warped_words.smooth_slopes(5, np.random.default_rng(0))
    assert np.allclose(np.abs(slopes).max(1), 1.0)
    assert np.abs(np.diff(slopes)).max() < 20.0 / 8000 * 2.0 * np.pi


def test_changes_have_their_strength():
    generator = np.random.default_rng(0)
    words = np.stack([_warped_words.centered(word(n)) for n in range(3)])
    noisy = _warped_words.changed(words, "noise", 10.0, generator)
    for x, y in zip(words, noisy, strict=True):
        power = np.square(x[x != 0.0]).mean()
        assert power / np.square(y - x).mean() == pytest.approx(10.0, rel=0.1)
    shifted = _warped_words.changed(words, "shift", 0.05, generator)
    for x, y in zip(words, shifted, strict=True):
        lags = [lag for lag in range(-400, 401) if np.array_equal(np.roll(x, lag), y)]
        assert len(lags) == 1
    signs = np.random.default_rng(3).choice([-1.0, 1.0], (3, 1))
    resampled = _warped_words.changed(words, "resampling", 0.05, np.random.default_rng(3))
    expected = _warped_words.warped(words, 0.05 * signs * np.ones(_warped_words.LENGTH))
    assert np.array_equal(resampled, expected)


def test_mel_bands_hold_what_sounds_there():
    signals = np.stack([tone(300.0), tone(1000.0), tone(3000.0)])
    bands = ours.mel_bands(signals)
    assert bands.shape == (3, ours.BANDS, _warped_words.LENGTH >> ours.SCALES)
    loudest = bands.mean(2).argmax(1)
    mel = 2595.0 * np.log10(1.0 + np.array([300.0, 1000.0, 3000.0]) / 700.0)
    width = 2595.0 * np.log10(1.0 + 4000.0 / 700.0) / (ours.BANDS + 1)
    assert np.abs(loudest - (mel / width - 1.0)).max() <= 1.0
    assert np.allclose(ours.mel_bands(2.0 * signals), 2.0 * bands)


def test_representations():
    signals = np.stack([_warped_words.centered(word(n)) for n in range(3)])
    rows = ours.representations(signals)
    louder = ours.representations(2.0 * signals)
    orders = ours.Scattering1D(ours.SCALES, _warped_words.LENGTH, ours.OCTAVE).meta()["order"]
    assert rows[ours.FIRST].shape == (3, 8 * (orders == 1).sum())
    assert rows[ours.SECOND].shape == (3, 8 * (orders >= 1).sum())
    for name in ours.METHODS[1:]:  # of a louder word, all logarithms are larger by as much
        assert np.allclose(louder[name] - rows[name], np.log(2.0), atol=1e-3)
        assert np.array_equal(ours.nearest(rows[name], rows[name]), np.arange(3))
    by_hand = [np.argmin([np.linalg.norm(a - b) for b in rows[ours.MEL]]) for a in rows[ours.MEL][::-1] + 0.1]
    assert np.array_equal(ours.nearest(rows[ours.MEL], rows[ours.MEL][::-1] + 0.1), by_hand)


def test_exponents_and_intervals():
    slopes = (0.01, 0.02, 0.05, 0.2)
    assert ours.exponent(slopes, [3.0 * s**0.7 for s in slopes[:3]] + [9.0], 0.05) == pytest.approx(0.7)
    second, other = np.array([1.0, 1.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.5, 0.5])
    found = dict.fromkeys(ours.METHODS, other) | {ours.SECOND: second}
    scores = ours.scores({"warp": [found]})
    assert scores["accuracy"][ours.SECOND]["warp"] == [0.875]
    low, high = scores["above"][ours.FIRST]["warp"][0]
    half = 1.96 * np.std([1.0, 0.0, 0.0, 0.5], ddof=1) / 2.0
    assert (low, high) == (pytest.approx(0.375 - half), pytest.approx(0.375 + half))
