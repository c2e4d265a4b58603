"""The published table of bounds at nearly optimal 2 x 2 filters of a pooled convolutional net on digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from theodolite.polar.ascent import relu_ascent
from theodolite.polar.harmonic import harmonic_moments
from theodolite.polar.harmonic_program import harmonic_program
from theodolite.polar.relaxation import harmonic_bound, relaxation_bound, shor_bound
from theodolite.polar.rows import merged


def test_two_by_two_filters_in_nine_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ascent 1.002, sum |Q_i| |x_i| = 198, Shor at most 14.9, harmonic 3.60 and now under 2.2 in units of lambda."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from benchmarks.relaxation import digits_polar

    X, Q, lam = digits_polar(2, 3, rounds=1)
    assert X.shape == (10800, 4)
    assert Q.shape == (10800, 90)
    ascent = float(relu_ascent(X, Q, n_starts=16, max_steps=40)[1][0])
    assert 0.99 < ascent / lam < 1.05
    S = float((X.norm(dim=1) * Q.norm(dim=1)).sum())
    assert S / lam == pytest.approx(198, rel=0.02)
    # The published bound: the rows' norms S bound the error, and each degree has a maximum of its own.
    rows = merged(X, Q)  # adding up rows with one direction changes S but no moment
    moments = harmonic_moments(rows, 30)
    tops = [float(torch.linalg.eigvalsh(m.matrix)[-1]) * torch.eye(90).double() for m in moments.several]
    plain = dataclasses.replace(
        moments,
        spread=(S / 2.0**rows.exponent / moments.S) ** 2 * torch.eye(90).double()[None],
        several=[dataclasses.replace(m, matrix=top) for m, top in zip(moments.several, tops, strict=True)],
    )
    table = harmonic_program(plain, envelope=False, joint=False) * 2.0**rows.exponent
    assert table / lam == pytest.approx(3.60, rel=0.02)
    # With the cells known, rows' own weights and one direction for all degrees:
    cells = (Q.reshape(10800, 9, 10) != 0.0).any(2).to(torch.int8).argmax(1)
    few = Q.reshape(10800, 9, 10)[torch.arange(10800), cells]
    tighter = harmonic_bound(X, few, 30, cells=cells)
    assert ascent <= tighter.upper < 0.6 * table
    assert ascent <= harmonic_bound(X, few, 2, cells=cells).upper < 0.85 * table
    assert relaxation_bound(X, few, cells, degree=12).upper <= 1.05 * tighter.upper
    unmerged, shor = shor_bound(X, Q, merge=False).upper, shor_bound(X, Q).upper
    assert ascent <= shor <= unmerged <= 14.9 * 1.02 * lam
    least = relaxation_bound(X, Q, degree=2)
    assert ascent <= least.upper <= shor * (1 + 1e-9)
    assert torch.isfinite(Q).all()
