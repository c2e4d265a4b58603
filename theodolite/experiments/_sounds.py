"""Spoken words for experiments: one speaker, one recording of each."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from theodolite.experiments import datasets
from theodolite.theorems.subject import InputError

PACKAGE = "asterisk-core-sounds-en-wav"
RATE = 8000  # samples a second
WORDS = 119
LONGEST = 12_000  # samples: after every change a word is still within what is transformed


def spoken_words() -> dict[str, NDArray[np.float64]]:
    """Return recordings of numbers, days, months, letters and the like by their names, each of norm one.

    Returns
    -------
    dict of array of float64, shape (samples,)
        8000 samples a second.

    Raises
    ------
    InputError
        If they are not installed, or are not the known ones.
    """
    folder = datasets.check_installed(PACKAGE)
    paths = sorted(folder.glob("digits/*.wav"))
    paths += [path for path in sorted(folder.glob("letters/?.wav")) if path.stem != "o"]  # digits/oh
    if len(paths) != WORDS:
        raise InputError(
            f"data: {folder}: expected {WORDS} recordings in digits and letters, got {len(paths)}: "
            f"{datasets.PACKAGES[PACKAGE].command}"
        )
    return {f"{path.parent.name}/{path.stem}": recording(path) for path in paths}


def recording(path: Path) -> NDArray[np.float64]:
    """Return the samples of a file, of norm one.

    Parameters
    ----------
    path : Path
        A WAV file of 16 bits, one channel, 8000 samples a second, up to 1.5 s, and not silent.

    Raises
    ------
    InputError
        If it is none.
    """
    try:
        with wave.open(str(path)) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            samples = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise InputError(f"data: {path} cannot be read: {error}") from error
    values = np.frombuffer(samples, "<i2").astype(np.float64) if form == (1, 2, RATE) else np.zeros(1)
    if not values.any() or len(values) > LONGEST:
        raise InputError(
            f"data: {path}: expected sound in one channel of 16 bits at {RATE} Hz, for {LONGEST / RATE:g} s at most"
        )
    return np.asarray(values / np.linalg.norm(values))
