"""Scattering of volumes against Kymatio, against a slow version by Fourier transforms, and against what is proved of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from fixtures import kymatio_oracle
from torch import Tensor

from theodolite.nn import HarmonicScattering3D
from theodolite.nn.scattering3d_stages import Stages


def volumes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def farthest(found: Tensor, expected: Tensor) -> float:
    """The largest distance of a path, a degree and a power, over the batch."""
    gap = (found.double() - expected.double()).norm(dim=0)
    return float((gap / expected.double().norm(dim=0)).max())


def settings() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    drawn = []
    for i in range(24):
        J, sides = int(rng.integers(0, 4)), rng.integers(5, 15, size=3)
        shape = ((sides[0],) * 3, 2 * (sides // 2), sides)[i % 3]
        powers = ((0.5, 1.0, 2.0), (1.0,), (0.7, 3.0))[int(rng.integers(3))]
        drawn.append(
            {
                "J": J,
                "shape": tuple(int(n) for n in shape),
                "L": int(rng.integers(0, 5)),
                "sigma_0": round(float(rng.uniform(0.2, 0.5) * sides.min() / 2**J), 2),
                "max_order": int(rng.integers(1, 3)),
                "rotation_covariant": bool(rng.integers(0, 4)),
                "integral_powers": powers,
            }
        )
    return drawn


@kymatio_oracle.needs
@pytest.mark.parametrize("setting", settings(), ids=str)
def test_settings_agree_with_kymatio(setting, monkeypatch):
    x = volumes(2, *setting["shape"]) + 0.5  # a vanishing mean is lost in Kymatio's single precision
    expected = kymatio_oracle.scattering3d(x, monkeypatch, **setting)
    S = HarmonicScattering3D(**setting)
    found = S(x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    assert distance(found, expected) <= 1e-10
    assert farthest(found, expected) <= 1e-10
    single = S(x.float())
    theirs = kymatio_oracle.scattering3d(x.float(), monkeypatch, **setting)
    assert single.dtype == torch.float32
    assert distance(single, theirs) <= 1e-5
    assert farthest(single, theirs) <= 1e-5


@kymatio_oracle.needs
def test_defaults_are_kymatios(monkeypatch):
    x = volumes(1, 32, 32, 32, dtype=torch.float32)
    theirs = kymatio_oracle.scattering3d(x, monkeypatch, J=2, shape=(32, 32, 32))
    found = HarmonicScattering3D(2, (32, 32, 32))(x)
    assert found.shape == theirs.shape == (1, 6, 4, 3)
    assert max(distance(found, theirs), farthest(found, theirs)) <= 1e-5


def slowly(S: HarmonicScattering3D, x: Tensor) -> Tensor:
    """Every path by itself, with the bank's filters and Fourier transforms of complex volumes."""
    bank, L = S.bank(), S.L

    def root(U: Tensor, j: int, degree: int) -> Tensor:
        first = j * (L + 1) ** 2 + degree**2
        filters = bank.high[first : first + 2 * degree + 1]
        if degree and not S.rotation_covariant:
            filters = torch.complex(filters[-2], -filters[-1])[None] / math.sqrt(2.0)
        maps = torch.fft.ifftn(torch.fft.fftn(U, dim=(-3, -2, -1)) * filters, dim=(-3, -2, -1))
        return maps.abs().square().sum(-4).sqrt()

    found = []
    for path in S.paths():
        row = []
        for degree in range(L + 1):
            U = x
            for j in path:
                U = root(U.unsqueeze(-4), j, degree)
            row.append(torch.stack([(U**q).sum((-3, -2, -1)) for q in S.integral_powers], -1))
        found.append(torch.stack(row, -2))
    return torch.stack(found, -3)


@pytest.mark.parametrize("sampling", ["reference", "symmetric"])
@pytest.mark.parametrize("shape", [(8, 8, 8), (6, 4, 10), (7, 7, 7), (6, 5, 1), (2, 1, 2)])
@pytest.mark.parametrize("covariant", [True, False])
def test_it_is_what_the_slow_version_computes(sampling, shape, covariant):
    S = HarmonicScattering3D(
        2, shape, L=5, sigma_0=0.8, max_order=3, rotation_covariant=covariant, sampling=sampling
    )
    assert len(S) == 3 + 3 + 1
    x = volumes(2, *shape)
    alternating = torch.ones(shape, dtype=torch.float64)
    for axis, n in enumerate(shape):
        alternating = alternating * (-1.0) ** torch.arange(n).view([-1 if i == axis else 1 for i in range(3)])
    for y in (x, torch.complex(x, volumes(2, *shape, seed=1)), x + 3.0 * alternating):
        assert distance(S(y), slowly(S, y)) < 1e-12
    # a modulus that vanishes in exact arithmetic is the root of what is left, of the order of 1e-8
    assert distance(S(1.0 + alternating), slowly(S, 1.0 + alternating)) < 1e-5


def grid_symmetries(x: Tensor) -> list[Tensor]:
    """The 24 rotations and the 24 others of a cubic grid."""
    axes, flips = itertools.permutations((0, 1, 2)), list(itertools.product((False, True), repeat=3))
    return [x.permute(order).flip([i for i in range(3) if flip[i]]) for order in axes for flip in flips]


@pytest.mark.parametrize("n", [16, 15])
def test_shifts_rotations_and_flips_of_the_grid_change_nothing(n):
    x = volumes(n, n, n)
    moved = torch.stack([x.roll((3, -5, 7), (0, 1, 2)), *grid_symmetries(x)])
    for dtype, tol in ((torch.float64, 1e-14), (torch.float32, 5e-6)):
        S = HarmonicScattering3D(2, (n, n, n), L=2, sampling="symmetric")
        expected = S(x.to(dtype)).expand(len(moved), 6, 3, 3)
        assert float(((S(moved.to(dtype)) - expected) / expected).abs().max()) < tol


def test_the_reference_breaks_it_by_its_highest_frequencies():
    x = volumes(16, 16, 16, dtype=torch.float32)
    S = HarmonicScattering3D(2, (16, 16, 16), L=2)
    found, expected = S(torch.stack(grid_symmetries(x))), S(x)
    assert max(distance(one, expected) for one in found) < 5e-6
    assert 1e-5 < float(((found - expected) / expected).abs().max()) < 1e-4
    assert distance(S(x.roll((3, -5, 7), (0, 1, 2))), expected) < 1e-6
    odd = HarmonicScattering3D(2, (15, 15, 15), L=2)
    y = x[:15, :15, :15]
    assert max(distance(odd(one), odd(y)) for one in grid_symmetries(y)[:4]) > 1e-2


def test_known_answers():
    S = HarmonicScattering3D(2, (16, 16, 16), L=2)
    assert (len(S), S(torch.zeros(4, 1, 16, 16, 16)).shape) == (6, (4, 1, 6, 3, 3))
    assert S.paths() == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    meta = S.meta()
    assert meta["order"].tolist() == [1, 1, 1, 2, 2, 2]
    assert meta["j"][3].tolist() == [0.0, 1.0]
    assert np.isnan(meta["j"][0, 1])
    assert (meta["l"].tolist(), meta["q"].tolist()) == ([0, 1, 2], [0.5, 1.0, 2.0])
    # a constant passes the Gaussians and nothing else
    found = S(torch.full((16, 16, 16), 3.0, dtype=torch.float64))
    assert torch.allclose(found[:, 0, 1], torch.full((6,), 3.0 * 16**3, dtype=torch.float64), rtol=1e-12)
    assert float(found[:, 1:, 2].max()) < 1e-20
    # an impulse through a Gaussian: the integral of (2 pi)^(-3/2) sigma^-3 exp(-r^2 / 2 sigma^2), and of its square
    impulse = torch.zeros(16, 16, 16, dtype=torch.float64)
    impulse[2, 3, 4] = 1.0
    wide = HarmonicScattering3D(0, (16, 16, 16), L=0, sigma_0=1.5)(impulse)[0, 0]
    assert float(wide[1]) == pytest.approx(1.0, abs=1e-5)
    assert float(wide[2]) == pytest.approx((4.0 * math.pi * 1.5**2) ** -1.5, rel=1e-6)
    assert torch.equal(S(-impulse), S(impulse))


@pytest.mark.parametrize("sampling", ["reference", "symmetric"])
@pytest.mark.parametrize("shape", [(8, 6, 10), (7, 8, 9)])
def test_the_frame_bounds_hold_and_are_attained(sampling, shape):
    S = HarmonicScattering3D(1, shape, L=3, max_order=1, integral_powers=(2.0,), sampling=sampling)
    bank = S.bank()
    assert len(bank.high) == 2 * 16
    bounds = bank.frame_bounds()
    assert bounds.lower.kind == bounds.upper.kind == "exact"
    x = volumes(3, *shape)
    ratios = S(x).sum((1, 2, 3)) / x.square().sum((1, 2, 3))
    assert bool(((ratios >= bounds.lower.value) & (ratios <= bounds.upper.value)).all())
    grid = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in shape])
    for value, place in zip(
        (bounds.lower.value, bounds.upper.value),
        (bank.energy().argmin(), bank.energy().argmax()),
        strict=True,
    ):
        frequency = torch.tensor(np.unravel_index(int(place), shape)).double() / torch.tensor(shape)
        wave = torch.cos(2.0 * math.pi * (grid @ frequency)).view(shape)
        assert float(S(wave).sum() / wave.square().sum()) == pytest.approx(value, rel=1e-9)


def test_chunks_batches_and_layouts_change_nothing(monkeypatch):
    S = HarmonicScattering3D(1, (6, 8, 10), L=3)
    x = volumes(3, 2, 6, 8, 10)
    whole = S(x)
    monkeypatch.setattr("theodolite.nn.scattering3d._CHUNK", 1)
    assert torch.allclose(S(x), whole, rtol=1e-13, atol=0.0)
    swapped = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.allclose(S(swapped), whole, rtol=1e-13, atol=0.0)
    assert torch.allclose(S(x[2, 1]), whole[2, 1], rtol=1e-13, atol=0.0)
    assert S(x[:0]).shape == (0, *whole.shape[1:])
    assert len(S.state_dict()) == 0


def test_a_part_below_the_precision_is_left_out():
    def extended(dtype: torch.dtype, sigma: float) -> bool:
        table: Stages = HarmonicScattering3D(0, (8, 8, 8), sigma_0=sigma)._table(torch.empty(0, dtype=dtype))
        return table.scales[0].last.shape[1] == 9

    assert extended(torch.float32, 1.0)
    assert extended(torch.float64, 2.5)
    assert not extended(torch.float32, 3.0)
    assert not extended(torch.float64, 4.0)


class TestGradients:
    @pytest.mark.parametrize("shape", [(2, 2, 2), (3, 1, 2)])
    def test_first_and_second_derivatives(self, shape):
        S = HarmonicScattering3D(1, shape, L=2)
        x = volumes(*shape).requires_grad_()
        assert torch.autograd.gradcheck(S, x)
        assert torch.autograd.gradgradcheck(S, x, fast_mode=True)

    def test_they_are_finite_where_the_modulus_vanishes(self):
        S = HarmonicScattering3D(2, (4, 4, 4), max_order=3)
        for value in (0.0, 1.0):
            x = torch.full((4, 4, 4), value, dtype=torch.float64, requires_grad=True)
            S(x).sum().backward()
            assert bool(x.grad.isfinite().all())

    @pytest.mark.parametrize("shape", [(6, 4, 8), (5, 4, 3)])
    def test_with_and_without_them_the_values_are_the_same(self, shape):
        S, x = HarmonicScattering3D(2, shape), volumes(3, *shape)
        assert torch.allclose(S(x.clone().requires_grad_()), S(x), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_of_numbers(dtype):
    S, x = HarmonicScattering3D(1, (6, 5, 4), L=2), volumes(6, 5, 4, dtype=dtype)
    info = torch.finfo(dtype)
    expected = S(x)
    for scale in (info.max / 64.0, info.tiny * 2.0**30, 1e20, 1e-20):
        power = 2.0 ** math.floor(math.log2(scale))
        found = S(x * power)
        assert distance(found[..., 0].double() / power**0.5, expected[..., 0].double()) < 1e-5
        if scale < 1e30:
            assert distance(found[..., 1].double() / power, expected[..., 1].double()) < 1e-5
        assert not bool(found.isnan().any())
    assert float(S(torch.zeros(6, 5, 4, dtype=dtype)).abs().max()) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"J": -1}, "J: expected an integer >= 0, got -1"),
        ({"L": 1.5}, "L: expected an integer >= 0, got 1.5"),
        ({"shape": (9, 9)}, "shape: expected three positive integers"),
        ({"sigma_0": 0.0}, "sigma_0: expected a positive number, got 0.0"),
        ({"max_order": 0}, "max_order: expected an integer >= 1, got 0"),
        ({"max_order": 4}, "max_order: expected at most 3, got 4"),
        ({"method": "local"}, "method: expected 'integral', got 'local'"),
        ({"points": [0]}, "points: expected None"),
        ({"integral_powers": (1.0, -2.0)}, "integral_powers: expected positive numbers"),
        ({"integral_powers": ()}, "integral_powers: expected positive numbers"),
        ({"backend": "skcuda"}, "backend: expected 'torch'"),
        ({"sampling": "even"}, "sampling: expected 'reference' or 'symmetric', got 'even'"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HarmonicScattering3D(**({"J": 1, "shape": (9, 9, 9)} | change))


def test_inputs_that_are_refused():
    S = HarmonicScattering3D(1, (6, 5, 4))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 6, 5, 4\), got \(4, 5, 6\)"):
        S(volumes(4, 5, 6))
    with pytest.raises(ValueError, match="x: expected finite entries"):
        S(torch.full((6, 5, 4), math.nan))
    with pytest.raises(TypeError, match="expected a tensor of single or double precision, got torch"):
        S(torch.ones(6, 5, 4, dtype=torch.int64))
    with pytest.raises(
        TypeError, match=r"x: expected a tensor of single or double precision, got torch\.float16"
    ):
        S(torch.ones(6, 5, 4, dtype=torch.float16))
