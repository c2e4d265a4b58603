"""Signals found for given coefficients: how near they come, what an interrupt keeps, what is refused."""

from __future__ import annotations

import pytest
import torch

from theodolite.nn import Scattering1D, Scattering2D
from theodolite.nn.synthesis import synthesize


def signal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cumsum(-1)


def test_coefficients_come_close_and_the_residual_is_theirs():
    S = Scattering1D(2, 32)
    x = signal(32)
    found = synthesize(S, S(x), (32,), steps=40, tol=1e-6)
    assert found.residual.kind == "exact"
    assert found.residual.value < 5e-2 < 0.5 < found.history[0]
    recomputed = float((S(found.x) - S(x)).norm() / S(x).norm())
    assert found.residual.value == pytest.approx(recomputed, rel=1e-12) == min(found.history)
    assert not found.interrupted


def test_more_steps_never_end_worse_and_a_tolerance_ends_early():
    S = Scattering2D(1, (8, 8), L=2)
    target = S(signal(3, 8, 8))
    ends = [synthesize(S, target, (3, 8, 8), steps=steps, tol=0.0).residual.value for steps in (2, 8, 20)]
    assert ends == sorted(ends, reverse=True)
    early = synthesize(S, target, (3, 8, 8), steps=20, tol=2 * ends[1])
    assert early.residual.value <= 2 * ends[1]
    assert len(early.history) < 40


def test_a_linear_transform_is_inverted():
    x = signal(16)
    found = synthesize(torch.fft.fft, torch.fft.fft(x), (16,), steps=30, tol=1e-9)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-6)


def test_where_it_starts():
    S = Scattering1D(2, 32)
    x = signal(32)
    at = synthesize(S, S(x), (32,), start=x, steps=1)
    assert at.residual.value < 1e-15
    one, other, same = (synthesize(S, S(x), (32,), steps=1, seed=seed).x for seed in (0, 1, 0))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_interrupt_keeps_the_best():
    S = Scattering1D(2, 32)

    def stop(evaluations, distance):
        if evaluations == 12:
            raise KeyboardInterrupt

    found = synthesize(S, S(signal(32)), (32,), steps=50, tol=0.0, callback=stop)
    assert found.interrupted
    assert len(found.history) == 12
    assert found.residual.value == pytest.approx(min(found.history), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(7, 8)}, "target: expected finite coefficients that are not all zero, got norm 0.0"),
        ({"target": torch.ones(3, 8)}, r"target: expected the shape that the transform makes of \(32,\), \(4, 8\)"),
        ({"steps": 0}, "steps: expected a positive number, got 0"),
        ({"start": torch.zeros(31)}, r"start: expected shape \(32,\), got \(31,\)"),
    ],
)  # fmt: skip
def test_what_is_refused(change, message):
    S = Scattering1D(2, 32)
    options = {"target": S(signal(32)), "shape": (32,), "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        synthesize(S, **options)
