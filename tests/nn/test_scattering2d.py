"""Scattering of images against Kymatio, against a slow version without tricks, and against what is proved of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures import kymatio_oracle
from torch import Tensor

from theodolite.nn import Scattering2D
from theodolite.nn.padding import padded
from theodolite.nn.scattering2d import _coarse


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().square().sum().sqrt() / expected.abs().square().sum().sqrt())


def settings() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(20):
        J = int(rng.integers(1, 5))
        shape = tuple(int(n) for n in rng.integers(2**J, 2**J + 40, size=2))
        drawn.append(
            {"J": J, "shape": shape, "L": int(rng.integers(1, 9)), "max_order": int(rng.integers(1, 3))}
        )
    return drawn


@kymatio_oracle.needs
@pytest.mark.parametrize("setting", settings(), ids=str)
def test_twenty_settings_agree_with_kymatio(setting, monkeypatch):
    x = images(2, *setting["shape"])
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        theirs = kymatio_oracle.scattering2d(dtype, monkeypatch, **setting)
        expected, found = theirs(x.to(dtype)), Scattering2D(**setting)(x.to(dtype))
        assert found.shape == expected.shape
        assert found.dtype == dtype
        assert distance(found, expected) <= tol
        if dtype == torch.float32:
            for one, two in zip(found.unbind(-3), expected.unbind(-3), strict=True):
                assert distance(one, two) <= 1e-5


@kymatio_oracle.needs
def test_lists_and_padded_images_are_kymatios(monkeypatch):
    x = images(3, 2, 20, 27)
    options = {"J": 2, "shape": (20, 27), "L": 3}
    theirs = kymatio_oracle.scattering2d(torch.float64, monkeypatch, out_type="list", **options)(x)
    for one, two in zip(Scattering2D(out_type="list", **options)(x), theirs, strict=True):
        assert (one["j"], one["n"], one["theta"]) == (two["j"], two["n"], two["theta"])
        assert distance(one["coef"], two["coef"]) <= 1e-10
    ours = Scattering2D(pre_pad=True, **options)
    y = images(2, *ours.padded_shape)
    theirs = kymatio_oracle.scattering2d(torch.float64, monkeypatch, pre_pad=True, **options)
    assert distance(ours(y), theirs(y)) <= 1e-10


def slowly(S: Scattering2D, x: Tensor) -> Tensor:
    """Every path by itself, on whole spectra."""
    x = padded(x, S.padded_shape, S.pad)
    found = []
    for path in S.paths():
        U, level = x, 0
        for n in path["n"]:
            j = n // S.L
            spectrum = torch.fft.fft2(U) * _coarse(S.bank.high[n], level)
            U, level = torch.fft.ifft2(spectrum).abs()[..., :: 2 ** (j - level), :: 2 ** (j - level)], j
        low = torch.fft.ifft2(torch.fft.fft2(U) * _coarse(S.bank.low, level))
        low = (low if x.is_complex() else low.real)[..., :: 2 ** (S.J - level), :: 2 ** (S.J - level)]
        found.append(low if S.output_shape == low.shape[-2:] else low[..., 1:-1, 1:-1])
    return torch.stack([f.to(x.dtype) for f in found], -3)


@pytest.mark.parametrize("pad", ["reflect", "symmetric", "replicate", "zero", "periodic"])
@pytest.mark.parametrize("norm", ["reference", "B1", "tight"])
def test_it_is_what_the_slow_version_computes(pad, norm):
    x = images(2, 16, 24)
    S = Scattering2D(3, (16, 24), L=3, max_order=3, pad=pad, norm=norm)
    assert len(S) == 1 + 9 + 27 + 27
    assert distance(S(x), slowly(S, x)) < 1e-13
    z = torch.complex(x, images(2, 16, 24, seed=1))
    assert distance(S(z), slowly(S, z)) < 1e-13


def test_chunks_batches_and_layouts_change_nothing(monkeypatch):
    S = Scattering2D(2, (17, 20), L=4)
    x = images(5, 3, 17, 20)
    whole = S(x)
    assert whole.shape == (5, 3, len(S), *S.output_shape)
    for limit in ("_IMAGES", "_CHUNK", "_TRANSFORMED"):
        monkeypatch.setattr(f"theodolite.nn.scattering2d.{limit}", 1)
    assert torch.allclose(S(x), whole, rtol=1e-13, atol=1e-15)
    assert torch.allclose(
        S(x.transpose(-1, -2).contiguous().transpose(-1, -2)), whole, rtol=1e-13, atol=1e-15
    )
    assert torch.allclose(S(x[2, 1]), whole[2, 1], rtol=1e-13, atol=1e-15)
    assert S(x[:0]).shape == (0, 3, len(S), *S.output_shape)


def test_known_answers():
    S = Scattering2D(3, (32, 32))
    assert (len(S), len(Scattering2D(4, (64, 64)))) == (217, 417)
    constant = S(torch.ones(32, 32, dtype=torch.float64))
    assert float(constant[0].mean()) == pytest.approx(1.0000294, abs=1e-7)
    assert float(constant[1:].abs().max()) < 1e-7
    impulse = torch.zeros(32, 32, dtype=torch.float64)
    impulse[16, 16] = 1.0
    found, order = S(impulse), S.meta()["order"]
    assert float(found[0].max()) == pytest.approx(0.015543, abs=1e-5)
    assert float(found[0].sum()) == pytest.approx(0.018395, abs=1e-5)
    first = [float(found[1 + 8 * j : 9 + 8 * j].sum()) for j in range(3)]
    assert first == pytest.approx([0.135258, 0.125649, 0.117659], abs=1e-5)
    assert float(found[torch.from_numpy(order == 2)].sum()) == pytest.approx(1.63721, abs=1e-5)
    small = Scattering2D(2, (40, 56), L=4)
    assert (len(small), small.output_shape) == (25, (10, 14))
    x = images(32, 32)
    assert torch.equal(S(-x)[1:], S(x)[1:])
    assert torch.equal(S(-x)[0], -S(x)[0])


def test_shifts_by_the_scale_shift_the_output_exactly():
    S = Scattering2D(3, (32, 40), pad="periodic")
    assert S.padded_shape == (32, 40)
    x = images(32, 40)
    moved = S(x.roll((8, -16), (0, 1)))
    assert torch.allclose(moved, S(x).roll((1, -2), (-2, -1)), rtol=0.0, atol=1e-14)
    reflected = Scattering2D(3, (32, 40))
    assert distance(reflected(x.roll(8, 0)), reflected(x).roll(1, -2)) > 0.05


@pytest.mark.parametrize(
    ("J", "L", "bounds"), [(3, 8, (0.12299, 1.01363)), (3, 6, (0.05389, 1.00006)), (4, 8, (0.123, 1.0353))]
)
def test_frame_bounds_of_the_reference_bank(J, L, bounds):
    bank = Scattering2D(J, (64, 64), L=L, pad="periodic").bank
    found = bank.frame_bounds()
    assert (found.lower.value, found.upper.value) == pytest.approx(bounds, abs=1e-4)
    if (J, L) == (3, 8):
        assert bank.frame_bounds(real=False).upper.value == pytest.approx(1.9757, abs=1e-4)
    tight = bank.normalized("tight").frame_bounds()
    assert (tight.lower.value, tight.upper.value) == pytest.approx((1.0, 1.0), abs=1e-14)


@pytest.mark.parametrize("pad", ["reflect", "periodic", "zero", "replicate"])
def test_nothing_found_by_ascent_exceeds_the_lipschitz_constant(pad):
    S = Scattering2D(2, (10, 13), L=4, pad=pad)
    bound = S.lipschitz().high
    assert 1.0 < bound < 6.0
    best = 0.0
    for seed in range(3):
        x = images(10, 13, seed=seed).requires_grad_()
        y = (x.detach() + (1e-3 if seed else 1.0) * images(10, 13, seed=9 + seed)).requires_grad_()
        optimizer = torch.optim.Adam([x, y], lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            ratio = 4.0 * (S(x) - S(y)).norm() / (x - y).norm()
            best = max(best, float(ratio.detach()))
            (-ratio).backward()
            optimizer.step()
    assert 0.2 * bound < best <= bound


def test_the_contraction_holds_where_the_bank_allows_it():
    assert Scattering2D(2, (16, 16), pad="periodic").lipschitz().high > 1.0  # subsampling folds
    with pytest.raises(ValueError, match="pre_pad: expected False"):
        Scattering2D(2, (16, 16), pre_pad=True).lipschitz()


class TestGradients:
    def test_first_and_second_derivatives(self):
        S = Scattering2D(1, (4, 5), L=2)
        x = images(4, 5).requires_grad_()
        assert torch.autograd.gradcheck(S, x)
        assert torch.autograd.gradgradcheck(S, x)

    def test_they_are_finite_where_the_modulus_vanishes(self):
        S = Scattering2D(2, (8, 8), max_order=3)
        for value in (0.0, 1.0):
            x = torch.full((8, 8), value, dtype=torch.float64, requires_grad=True)
            S(x).sum().backward()
            assert bool(x.grad.isfinite().all())

    def test_with_and_without_them_the_values_are_the_same(self):
        S, x = Scattering2D(2, (12, 12)), images(3, 12, 12)
        assert torch.allclose(S(x.clone().requires_grad_()), S(x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_of_numbers(dtype):
    S, x = Scattering2D(2, (9, 11), L=2), images(9, 11, dtype=dtype)
    info = torch.finfo(dtype)
    for scale in (info.max / 64.0, info.tiny * 2.0**30, 1e20, 1e-20):
        power = 2.0 ** math.floor(math.log2(scale))
        assert distance(S(x * power) / power, S(x)) < 1e-5
    assert float(S(torch.zeros(9, 11, dtype=dtype)).abs().max()) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"J": 0}, "J: expected an integer >= 1, got 0"),
        ({"J": 4}, r"J: expected 2\^J of at most 9, the smaller side of the images, got 2\^4"),
        ({"shape": (9,)}, "shape: expected two positive integers"),
        ({"L": 1.5}, "L: expected an integer"),
        ({"max_order": 4}, "max_order: expected at most 3, got 4"),
        ({"backend": "skcuda"}, "backend: expected 'torch'"),
        ({"out_type": "dict"}, "out_type: expected 'array' or 'list'"),
        ({"pad": "wrap"}, "pad: expected one of 'reflect'"),
        ({"norm": "unit"}, "norm: expected one of 'reference'"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Scattering2D(**({"J": 2, "shape": (9, 11)} | change))


def test_inputs_that_are_refused():
    S = Scattering2D(2, (9, 11))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 9, 11\), got \(11, 9\)"):
        S(images(11, 9))
    with pytest.raises(ValueError, match="x: expected finite entries"):
        S(torch.full((9, 11), math.nan))
    with pytest.raises(TypeError, match="expected a tensor of single or double precision, got torch"):
        S(torch.ones(9, 11, dtype=torch.int64))
