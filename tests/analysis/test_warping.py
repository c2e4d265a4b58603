"""Warps against the direct sum of the trigonometric interpolant, and against each interpolant's own laws."""

from __future__ import annotations

import math

import pytest
import torch
from fixtures.trigonometric import direct

from theodolite.analysis.warping import trigonometric_weights, warp

SHAPES = [(9,), (8,), (1,), (7, 6), (8, 5), (1, 4), (2, 2), (5, 4, 6), (3, 1, 5)]


def draw(shape, *leading, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, *shape, generator=generator, dtype=torch.float64)
    tau = 3.0 * torch.randn(len(shape), *shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), tau


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trigonometric_interpolation_is_the_direct_sum(shape, dtype):
    x, tau = draw(shape, 3, 2, dtype=dtype)
    moved = warp(x, tau, len(shape))
    assert moved.dtype == dtype
    torch.testing.assert_close(
        moved.double(), direct(x, tau), rtol=0, atol=3e-6 if dtype == torch.float32 else 3e-14
    )


@pytest.mark.parametrize("chunk", [1, 100])
def test_chunks_change_nothing(chunk, monkeypatch):
    x, tau = draw((6, 5), 2, 2)
    whole = warp(x, tau, 2)
    monkeypatch.setattr("theodolite.analysis.warping._CHUNK", chunk)
    torch.testing.assert_close(warp(x, tau, 2), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["fourier", "bilinear", "cubic"])
@pytest.mark.parametrize("boundary", ["periodic", "reflect", "zero"])
def test_no_displacement_is_exactly_the_identity(shape, interpolation, boundary):
    if (interpolation, boundary) == ("fourier", "zero"):
        return
    x, tau = draw(shape, 2, 1, dtype=torch.float32)
    assert torch.equal(warp(x, 0.0 * tau, len(shape), interpolation, boundary), x)


@pytest.mark.parametrize("interpolation", ["fourier", "bilinear", "cubic"])
def test_whole_displacements_are_rolls(interpolation):
    x, tau = draw((6, 5), 2, 1)
    tau = torch.zeros_like(tau) + torch.tensor([2.0, -1.0], dtype=torch.float64).view(2, 1, 1)
    torch.testing.assert_close(warp(x, tau, 2, interpolation), x.roll((2, -1), (2, 3)), rtol=0, atol=0)
    far = warp(x, tau + 600.0 * torch.tensor([6.0, 5.0]).double().view(2, 1, 1), 2, interpolation)
    torch.testing.assert_close(far, x.roll((2, -1), (2, 3)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("interpolation", ["fourier", "bilinear", "cubic"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2)])
def test_one_field_a_sample(shape, interpolation):
    x, tau = draw(shape, 3, 2)
    own = torch.stack([tau, -tau, 0.3 * tau])
    each = torch.stack([warp(x[i], own[i], len(shape), interpolation, "reflect") for i in range(3)])
    torch.testing.assert_close(warp(x, own, len(shape), interpolation, "reflect"), each)


@pytest.mark.parametrize("interpolation", ["fourier", "bilinear", "cubic"])
@pytest.mark.parametrize("boundary", ["periodic", "reflect"])
def test_gradients_in_signals_and_fields(interpolation, boundary):
    for shape in [(5,), (4, 3)]:
        x, tau = draw(shape, 2)
        tau = torch.where((tau - tau.round()).abs() < 0.05, tau + 0.1, tau)  # away from the kinks
        inputs = (x.requires_grad_(), tau.requires_grad_())
        assert torch.autograd.gradcheck(lambda a, t: warp(a, t, len(t), interpolation, boundary), inputs)


def test_gradient_at_no_displacement_is_minus_the_slope():
    x, tau = draw((9,), 1)
    tau = torch.zeros_like(tau).requires_grad_()
    (slope,) = torch.autograd.grad(warp(x, tau, 1).sum(), tau)
    h = 1e-5
    expected = (direct(x, tau.detach() + h) - direct(x, tau.detach() - h)) / (2 * h)
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-8)


def test_reflection_is_interpolation_of_the_signal_and_its_mirror_image():
    x, tau = draw((6,), 1)
    doubled = torch.cat([x, x.flip(1)], 1)
    far = torch.cat([tau, torch.zeros_like(tau)], 1)
    expected = direct(doubled, far)[:, :6]
    torch.testing.assert_close(warp(x, tau, 1, "fourier", "reflect"), expected, rtol=0, atol=1e-13)


def test_boundaries_of_local_interpolants():
    x, tau = torch.tensor([[1.0, 2.0, 4.0]]).double(), torch.full((1, 3), 1.5).double()
    for boundary, expected in [
        ("zero", [0.0, 0.5, 1.5]),
        ("periodic", [3.0, 2.5, 1.5]),
        ("reflect", [1.5, 1.0, 1.5]),
    ]:
        torch.testing.assert_close(warp(x, tau, 1, "bilinear", boundary), torch.tensor([expected]).double())


def test_local_interpolants_reproduce_polynomials():
    u = torch.arange(12, dtype=torch.float64)
    tau = torch.full((1, 12), 0.3, dtype=torch.float64)
    for interpolation, power in (("bilinear", 1), ("cubic", 2)):
        moved = warp((u**power)[None], tau, 1, interpolation)
        torch.testing.assert_close(moved[0, 3:-3], (u - 0.3)[3:-3] ** power)


def test_half_a_pixel_keeps_the_norm_by_waves_for_odd_sizes_alone():
    """Trigonometric interpolation is unitary for odd sizes; linear interpolation loses high frequencies."""
    for shape in [(9,), (7, 9), (5, 5, 3)]:
        x, tau = draw(shape, 1)
        half = torch.full_like(tau, 0.5)
        assert float(warp(x, half, len(shape)).norm() / x.norm()) == pytest.approx(1.0, abs=1e-14)
        assert float(warp(x, half, len(shape), "bilinear").norm() / x.norm()) < 0.95
    alternating = torch.tensor([[1.0, -1.0] * 4]).double()
    half = torch.full((1, 8), 0.5).double()
    assert float(warp(alternating, half, 1).norm()) < 1e-14, "an even size's highest wave is a cosine"


def test_weights_sum_to_one():
    for boundary in ("periodic", "reflect"):
        for n in (1, 4, 7):
            index, tau = torch.arange(n), torch.linspace(-30.0, 30.0, n, dtype=torch.float64)
            total = trigonometric_weights(n, index, tau, boundary).sum(-1)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-13)


def test_empty_half_precision_and_refusals():
    x, tau = draw((4, 4), 2, 1)
    half = warp(x.bfloat16(), tau, 2)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, warp(x.bfloat16().float(), tau, 2).bfloat16())
    bad = x.clone()
    bad[0, 0, 1, 1] = float("nan")
    cases = [
        (lambda: warp(bad, tau, 2), "x: expected finite numbers"),
        (lambda: warp(x, tau + math.inf, 2), "tau: expected finite numbers"),
        (lambda: warp(x.long(), tau, 2), "x: expected real numbers, got dtype torch.int64"),
        (lambda: warp(x, tau[:, :3], 2), r"tau: expected shape \(2, 4, 4\).*got \(2, 3, 4\)"),
        (lambda: warp(x, tau[None].repeat(3, 1, 1, 1), 2), "tau: expected shape"),
        (lambda: warp(x, tau, 4), "dimensions: expected 1, 2 or 3, got 4"),
        (lambda: warp(x, tau, 2, "lanczos"), "interpolation: expected 'fourier'"),
        (lambda: warp(x, tau, 2, "cubic", "mirror"), "boundary: expected 'periodic'"),
        (lambda: warp(x, tau, 2, "fourier", "zero"), "with interpolation 'fourier', got 'zero'"),
        (
            lambda: warp(torch.zeros(1, 65_537), torch.zeros(1, 65_537), 1),
            "at most 65,536, got 65,537; use interpolation",
        ),
    ]
    for action, message in cases:
        with pytest.raises(ValueError, match=message):
            action()
    big = torch.zeros(1, 65_537)
    assert torch.equal(warp(big, big, 1, "cubic"), big)
