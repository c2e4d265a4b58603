"""Scattering of signals against Kymatio, against a slow version without tricks, and against what is proved of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures import kymatio_oracle
from torch import Tensor

from theodolite.nn import Scattering1D
from theodolite.nn.padding import axis_copies, padded
from theodolite.nn.wavelets import folded


def signals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().square().sum().sqrt() / expected.abs().square().sum().sqrt())


def by_path(values: Tensor) -> Tensor:
    return values.square().sum(-1).sum(0).sqrt()


def settings() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    drawn: list[dict[str, object]] = [
        {"J": 3, "shape": 512, "Q": 8},
        {"J": 4, "shape": 1025, "Q": 3, "oversampling": 2},
    ]
    for i in range(22):
        J = int(rng.integers(1, 7))
        shape = 2**J if i % 6 == 0 else int(rng.integers(2**J, 12 * 2**J))
        options: dict[str, object] = {"J": J, "shape": shape, "max_order": int(rng.integers(1, 3))}
        options["Q"] = (1, 2, 5, 8, (8, 2), (3, 3))[rng.integers(6)]
        options["T"] = (None, None, 1, int(rng.integers(1, shape + 1)))[rng.integers(4)]
        options["oversampling"] = (0, 0, 1, 10)[rng.integers(4)]
        drawn.append(options)
    return drawn


@kymatio_oracle.needs
@pytest.mark.parametrize("setting", settings(), ids=str)
def test_random_settings_agree_with_kymatio(setting, monkeypatch):
    x = signals(2, setting["shape"])
    ours = Scattering1D(**setting)
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        theirs = kymatio_oracle.scattering1d(dtype, monkeypatch, **setting)
        expected, found = theirs(x.to(dtype)), ours(x.to(dtype))
        assert found.shape == expected.shape
        assert found.dtype == dtype
        assert distance(found, expected) <= tol
        # in float32 the reference's rounding of a large input is more than 1e-5 of paths that keep nearly nothing of it
        sizes = by_path(expected)
        floor = 0.0 if dtype == torch.float64 else 2e-3 * float(sizes.max())
        assert bool((by_path(found - expected) <= tol * sizes.clamp(min=floor)).all())
    meta, peers = ours.meta(), theirs.meta()
    assert meta.keys() == peers.keys()
    assert meta["key"] == peers["key"]
    for key in ("order", "xi", "sigma", "j", "n"):
        np.testing.assert_allclose(meta[key], peers[key], rtol=1e-13)
    assert ours.output_size(detail=True) == tuple(theirs.output_size(detail=True))
    assert ours.output_size() == len(ours) == theirs.output_size()


@kymatio_oracle.needs
@pytest.mark.parametrize("options", [{"T": 0}, {"average": False}, {"T": 0, "oversampling": 2}, {}], ids=str)
def test_lists_and_dictionaries_and_moduli_are_kymatios(options, monkeypatch):
    options = {"J": 3, "shape": 77, "Q": 4, **options}
    x = signals(2, 3, 77)
    ours = Scattering1D(out_type="dict", **options)(x)
    theirs = kymatio_oracle.scattering1d(torch.float64, monkeypatch, out_type="dict", **options)(x)
    assert list(ours) == list(theirs)
    assert all(distance(ours[key], theirs[key]) <= 1e-10 for key in theirs)
    listed = Scattering1D(out_type="list", **options)(x)
    theirs = kymatio_oracle.scattering1d(torch.float64, monkeypatch, out_type="list", **options)(x)
    for one, two in zip(listed, theirs, strict=True):
        assert (one["j"], one["n"]) == (two["j"], two["n"])
        assert torch.equal(one["coef"], ours[one["n"]])


def slowly(S: Scattering1D, x: Tensor) -> Tensor:
    """Every path by itself, on whole spectra."""
    n, size = S.shape[0], S.padded_shape[0]
    x = padded(x, S.padded_shape, S.pad)
    most = max(int(math.log2(S.T)) - S.oversampling, 0)

    def filtered(U: Tensor, spectrum: Tensor, level: int) -> Tensor:
        scale = 2.0**-level if S.norm == "reference" else 1.0
        return torch.fft.ifft(torch.fft.fft(U) * folded(spectrum, 2**level) * scale)

    found = []
    for path in S.paths():
        U, level = x, 0
        for order, (number, j) in enumerate(zip(path["n"], path["j"], strict=True)):
            then = min(max(j - S.oversampling, 0), most)
            U = filtered(U, S.banks[min(order, 1)].high[number], level).abs()[..., :: 2 ** (then - level)]
            level = then
        low = filtered(U, S.banks[min(len(path["n"]), 1)].low, level)[..., :: 2 ** (most - level)]
        places = torch.arange(0, size, 2**most) - (size - n) // 2
        found.append((low if x.is_complex() else low.real)[..., (places >= 0) & (places < n)])
    return torch.stack([f.to(x.dtype) for f in found], -2)


@pytest.mark.parametrize("pad", ["reflect", "symmetric", "replicate", "zero", "periodic"])
@pytest.mark.parametrize("norm", ["reference", "B1", "tight"])
def test_it_is_what_the_slow_version_computes(pad, norm):
    x, z = signals(2, 96), torch.complex(signals(2, 96), signals(2, 96, seed=1))
    for options in ({"Q": (2, 1)}, {"Q": 1, "T": 21, "oversampling": 1}):
        S = Scattering1D(4, 96, max_order=3, pad=pad, norm=norm, **options)
        assert S.output_size(detail=True)[3] > 0
        assert distance(S(x), slowly(S, x)) < 1e-13
        assert distance(S(z), slowly(S, z)) < 1e-13


def test_filters_of_any_frequencies_fold_as_they_should():
    S = Scattering1D(2, 24, Q=1, pad="periodic", max_order=3)
    for bank in S.banks:  # all frequencies, or few; across the highest one, or zero
        bank.high.copy_(signals(*bank.high.shape))
        bank.high[0, 3:] = 0.0
        bank.high[1, :7] = 0.0
        bank.high[2, 5:20] = 0.0
    x = torch.complex(signals(24), signals(24, seed=1))
    assert distance(S(x), slowly(S, x)) < 1e-13
    assert distance(S(x.real), slowly(S, x.real)) < 1e-13


def test_chunks_batches_and_layouts_change_nothing(monkeypatch):
    S, T = Scattering1D(4, 100, Q=(4, 2)), Scattering1D(4, 100, Q=3, T=0, out_type="dict")
    x = signals(5, 3, 100)
    whole, moduli = S(x), T(x)
    assert whole.shape == (5, 3, len(S), *S.output_shape)
    monkeypatch.setattr("theodolite.nn.scattering1d._CHUNK", 1)
    assert torch.allclose(S(x), whole, rtol=1e-13, atol=1e-15)
    assert torch.allclose(S(x.mT.contiguous().mT), whole, rtol=1e-13, atol=1e-15)
    assert torch.allclose(S(x[2, 1]), whole[2, 1], rtol=1e-13, atol=1e-15)
    assert all(torch.allclose(one, moduli[key], rtol=1e-13, atol=1e-15) for key, one in T(x).items())
    assert S(x[:0]).shape == (0, 3, len(S), *S.output_shape)
    assert T(x[:0])[(0,)].shape == (0, 3, 100)
    assert torch.equal(S.scattering(x), S(x))
    assert not S.state_dict()


def test_known_answers():
    S = Scattering1D(8, 8192, Q=8)
    assert (len(S), S.output_shape) == (234, (32,))
    assert Scattering1D(6, 1024, Q=8).output_size(detail=True) == (1, 38, 87)
    assert len(Scattering1D(4, 1024)) == 13
    S = Scattering1D(6, 1024, Q=8)
    tone = torch.cos(2.0 * math.pi * 0.1 * torch.arange(1024, dtype=torch.float64))
    found, meta = S(tone), S.meta()
    strength = found.mean(-1).where(torch.from_numpy(meta["order"] == 1), torch.tensor(0.0))
    strongest = int(strength.argmax())
    assert meta["xi"][strongest, 0] == pytest.approx(0.09981, abs=1e-5)
    assert float(strength[strongest]) == pytest.approx(0.24588, abs=1e-4)
    # half of what it is where a filter is the same on all grids
    same = Scattering1D(6, 1024, Q=8, norm="B1")
    assert float(same(tone)[strongest].mean()) == pytest.approx(2.0 * 0.24588, abs=2e-4)
    constant = S(torch.full((1024,), 3.0, dtype=torch.float64))
    assert torch.allclose(constant[0], torch.tensor(3.0, dtype=torch.float64), rtol=1e-12)
    assert float(constant[1:].abs().max()) < 1e-12
    x = signals(1024)
    assert torch.equal(S(-x)[1:], S(x)[1:])
    assert torch.equal(S(-x)[0], -S(x)[0])


def test_padding_is_no_longer_than_it_need_be():
    S = Scattering1D(4, 4096, Q=4)
    assert S.padded_shape[0] < 8192
    # what lies beyond it is not seen: the same coefficients as within a longer signal
    x = signals(8192)
    longer = Scattering1D(4, 8192, Q=4, pad="periodic")(x)
    inner = S(x[2048:6144])[:, 40:-40]
    assert distance(inner, longer[:, 128 + 40 : 384 - 40]) < 1e-13


def test_shifts_by_the_scale_shift_the_output_exactly():
    x = signals(2, 96)
    for options in ({}, {"T": 12}, {"oversampling": 2}, {"max_order": 3, "norm": "tight"}):
        S = Scattering1D(4, 96, Q=2, pad="periodic", **options)
        assert S.padded_shape == (96,)
        step = 96 // S.output_shape[0]
        assert torch.allclose(S(x.roll(2 * step, -1)), S(x).roll(2, -1), rtol=0.0, atol=1e-14)
    reflected = Scattering1D(4, 96, Q=2)
    assert distance(reflected(x.roll(16, -1)), reflected(x).roll(1, -1)) > 0.05


@pytest.mark.parametrize(
    ("options", "attained"),
    [
        ({"pad": "reflect"}, 0.5),
        ({"pad": "periodic", "norm": "tight", "Q": 4}, 0.98),
        ({"pad": "zero", "max_order": 3, "norm": "B1"}, 0.6),
        ({"pad": "replicate", "T": 4, "oversampling": 1}, 0.1),
        ({"pad": "symmetric", "T": 0, "out_type": "dict", "norm": "tight"}, 0.6),
    ],
    ids=str,
)
def test_nothing_found_by_ascent_exceeds_the_lipschitz_constant(options, attained):
    S = Scattering1D(3, 40, **options)
    bound = S.lipschitz().high
    best = 0.0
    for seed in range(3):
        x = (signals(40, seed=seed) + (seed == 2)).requires_grad_()
        y = (x.detach() + (1.0, 1e-3, -2.0)[seed] * signals(40, seed=9 + seed)).requires_grad_()
        optimizer = torch.optim.Adam([x, y], lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            found = S(torch.stack([x, y]))
            if S.average:
                energy = S.banks[0].low_step * (found[0] - found[1]).square().sum()
            else:
                steps = [2 ** path["j"][-1] if path["j"] else 1 for path in S.paths()]
                pairs = zip(steps, found.values(), strict=True)
                energy = sum(step * (one[0] - one[1]).square().sum() for step, one in pairs)
            ratio = energy.sqrt() / (x - y).norm()
            best = max(best, float(ratio.detach()))
            (-ratio).backward()
            optimizer.step()
    assert attained * bound < best <= bound


def test_a_tight_bank_without_padding_contracts_where_it_does_not_fold():
    S = Scattering1D(3, 64, Q=4, pad="periodic", norm="tight", oversampling=3)
    assert S.lipschitz().high == pytest.approx(1.0, abs=1e-9)
    assert Scattering1D(3, 64, Q=1, pad="periodic", norm="tight").lipschitz().high > 1.0
    reflected = Scattering1D(3, 64, Q=4, oversampling=3)
    assert axis_copies(64, reflected.padded_shape[0], "reflect") == 3
    assert reflected.lipschitz().high == pytest.approx(math.sqrt(3.0), abs=1e-3)


class TestGradients:
    def test_first_and_second_derivatives(self):
        for options in ({"T": 2}, {"T": 0, "out_type": "list"}):
            S = Scattering1D(2, 9, Q=1, **options)

            def parts(x, S=S):
                found = S(x)
                return found if S.average else tuple(one["coef"] for one in found)

            x = signals(9).requires_grad_()
            assert torch.autograd.gradcheck(parts, x)
            assert torch.autograd.gradgradcheck(parts, x)

    def test_they_are_finite_where_the_modulus_vanishes(self):
        S = Scattering1D(3, 32, Q=2, max_order=3)
        for value in (0.0, 1.0):
            x = torch.full((32,), value, dtype=torch.float64, requires_grad=True)
            S(x).sum().backward()
            assert bool(x.grad.isfinite().all())

    def test_with_and_without_them_the_values_are_the_same(self):
        S, x = Scattering1D(3, 50, Q=4), signals(3, 50)
        assert torch.allclose(S(x.clone().requires_grad_()), S(x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size_of_numbers(dtype):
    S, x = Scattering1D(3, 61, Q=2), signals(61, dtype=dtype)
    info = torch.finfo(dtype)
    for scale in (info.max / 16.0, info.tiny * 2.0**30, 1e20, 1e-20):
        power = 2.0 ** math.floor(math.log2(scale))
        assert distance(S(x * power) / power, S(x)) < 1e-5
    assert float(S(torch.zeros(61, dtype=dtype)).abs().max()) == 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17])
def test_the_shortest_signals(n):
    for J in range(int(math.log2(n)) + 1):
        S = Scattering1D(J, n, Q=2, pad="periodic")
        assert S(signals(n)).shape == (len(S), *S.output_shape)
        assert distance(S(signals(n)), slowly(S, signals(n))) < 1e-13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"J": -1}, "J: expected an integer >= 0, got -1"),
        ({"shape": 0}, "shape: expected an integer >= 1, got 0"),
        ({"shape": (9, 9)}, r"shape: expected the number of samples, got \(9, 9\)"),
        ({"shape": 20, "J": 5}, "shape: expected a signal that holds one in 32 samples, .* got 20"),
        ({"shape": 20, "J": 7}, "shape: expected a signal that holds one in 128 samples"),
        ({"Q": 0}, "Q: expected an integer >= 1, got 0"),
        ({"Q": (1, 2, 3)}, "Q: expected one number or two"),
        ({"T": 65}, "T: expected 0, or a number from 1 to 64, the number of samples, got 65"),
        ({"T": 0.5}, "T: expected 0, or a number from 1 to 64"),
        ({"T": "global"}, "T: expected 0, or a number from 1 to 64, the number of samples, got 'global'"),
        ({"T": 0, "average": True}, "average: expected False or None as T is 0, got True"),
        ({"T": 8, "average": False}, "average: expected True or None as T is 8, got False"),
        ({"T": 0}, "out_type: expected 'dict' or 'list', as nothing is averaged, got 'array'"),
        ({"max_order": 4}, "max_order: expected at most 3, got 4"),
        ({"oversampling": 0.5}, "oversampling: expected an integer >= 0"),
        ({"backend": "skcuda"}, "backend: expected 'torch'"),
        ({"out_type": "tuple"}, "out_type: expected 'array', 'dict' or 'list', got 'tuple'"),
        ({"pad": "wrap"}, "pad: expected one of 'reflect'"),
        ({"norm": "unit"}, "norm: expected one of 'reference'"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Scattering1D(**({"J": 3, "shape": 64} | change))


def test_inputs_that_are_refused():
    S = Scattering1D(3, 64)
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 64\), got \(2, 63\)"):
        S(signals(2, 63))
    with pytest.raises(ValueError, match="x: expected finite entries"):
        S(torch.full((64,), math.nan))
    with pytest.raises(TypeError, match="expected a tensor of single or double precision, got torch"):
        S(torch.ones(64, dtype=torch.int64))
    with pytest.raises(TypeError, match="got ndarray"):
        S(np.ones(64))
