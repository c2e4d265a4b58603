"""The published table of bounds at nearly optimal 2 x 2 filters of a pooled convolutional net on digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from theodolite.polar.ascent import relu_ascent
from theodolite.polar.harmonic import harmonic_coefficients, harmonic_moments
from theodolite.polar.relaxation import _merged, relaxation_bound, shor_bound


def test_two_by_two_filters_in_nine_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ascent 1.002, harmonic 3.60 and sum |Q_i| |x_i| = 198 in units of lambda; Shor at most 14.9."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from benchmarks.relaxation import digits_polar

    X, Q, lam = digits_polar(2, 3, rounds=1)
    assert X.shape == (10800, 4)
    assert Q.shape == (10800, 90)
    ascent = float(relu_ascent(X, Q, n_starts=16, max_steps=40)[1][0])
    assert 0.99 < ascent / lam < 1.05
    S = float((X.norm(dim=1) * Q.norm(dim=1)).sum())
    assert S / lam == pytest.approx(198, rel=0.02)
    rows = _merged(X, Q)  # adding up rows with one direction changes S but no moment
    several, single, merged = harmonic_moments(rows.X, rows.Q, 30)
    scale = 2.0**rows.exponent
    table = scale * harmonic_coefficients(several, single, S / scale, 4, envelope=False)
    assert table / lam == pytest.approx(3.60, rel=0.02)
    tighter = scale * harmonic_coefficients(several, single, merged, 4)
    assert ascent <= tighter < 0.97 * table
    unmerged, shor = shor_bound(X, Q, merge=False).upper, shor_bound(X, Q).upper
    assert ascent <= shor <= unmerged <= 14.9 * 1.02 * lam
    least = relaxation_bound(X, Q, degree=2)
    assert ascent <= least.upper <= shor * (1 + 1e-9)
    assert torch.isfinite(Q).all()
