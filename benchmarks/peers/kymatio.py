"""Kymatio's transforms, made to import on a current SciPy."""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec
from typing import Any

import scipy.special


def missing() -> str | None:
    """Return what to install, if Kymatio is not there."""
    return None if find_spec("kymatio") else "kymatio is not installed; run: pip install kymatio==0.3.0"


def scattering1d(**options: Any) -> Any:
    """Return its transform of signals."""
    return imported("kymatio.torch").Scattering1D(**options)


def scattering2d(**options: Any) -> Any:
    """Return its transform of images."""
    return imported("kymatio.torch").Scattering2D(**options)


def scattering3d(**options: Any) -> Any:
    """Return its transform of volumes."""
    return imported("kymatio.torch").HarmonicScattering3D(**options)


def imported(name: str) -> Any:
    """Return one of its modules."""
    if not hasattr(scipy.special, "sph_harm"):  # its successor swaps degree and order, and the angles
        scipy.special.sph_harm = lambda m, n, azimuth, polar: scipy.special.sph_harm_y(n, m, polar, azimuth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
