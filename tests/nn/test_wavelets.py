"""Frame bounds against dense matrices, and paddings against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from theodolite.nn.padding import axis_copies, padded
from theodolite.nn.wavelets import Bank, folded, mirrored, morlet2d


def random_bank(shape: tuple[int, ...], steps: tuple[int, ...], low_step: int, seed: int = 0) -> Bank:
    generator = torch.Generator().manual_seed(seed)
    low, high = (
        torch.randn(*s, generator=generator, dtype=torch.float64) for s in (shape, (len(steps), *shape))
    )
    return Bank(0.5 * (low + mirrored(low)), high, steps, low_step)


def matrix(bank: Bank, real: bool, subsampled: bool) -> Tensor:
    """The bank as a matrix, a column for each real coordinate of the input."""
    d, n = bank.low.ndim, bank.low.numel()
    dims = tuple(range(-d, 0))
    basis = torch.eye(n, dtype=torch.complex128).view(n, *bank.low.shape)
    inputs = basis if real else torch.cat([basis, 1j * basis])
    rows = []
    for h, k in [(bank.low, bank.low_step), *zip(bank.high, bank.steps, strict=True)]:
        y = torch.fft.ifftn(torch.fft.fftn(inputs, dim=dims) * h, dim=dims)
        if subsampled:
            y = y[(slice(None), *[slice(None, None, k)] * d)] * k ** (d / 2)
        rows.append(torch.view_as_real(y.flatten(1)).flatten(1))
    return torch.cat(rows, 1).T


@pytest.mark.parametrize(
    ("shape", "steps", "low_step"), [((16,), (1, 2, 4), 4), ((8, 4), (1, 2, 2), 4), ((4, 4), (1,), 2)]
)
@pytest.mark.parametrize("real", [True, False])
def test_frame_bounds_against_dense_matrices(shape, steps, low_step, real):
    for seed in range(5):
        bank = random_bank(shape, steps, low_step, seed)
        sizes = torch.linalg.svdvals(matrix(bank, real, False)).square()
        found = bank.frame_bounds(real=real)
        assert (found.lower.value, found.upper.value) == pytest.approx(
            (float(sizes[-1]), float(sizes[0])), rel=1e-9
        )
        sizes = torch.linalg.svdvals(matrix(bank, real, True)).square()
        found = bank.frame_bounds(real=real, subsampled=True)
        assert found.lower.low <= float(sizes[-1]) * (1 + 1e-12)
        assert float(sizes[0]) <= found.upper.high
        if not real:  # for real inputs frequencies that are their own opposites are bounded, not computed
            assert found.upper.high == pytest.approx(float(sizes[0]), rel=1e-9)


def test_many_frequencies_that_fold_together_are_bounded_by_sums(monkeypatch):
    bank = morlet2d((16, 16), 2, 4)
    exact = bank.frame_bounds(subsampled=True).upper.high
    monkeypatch.setattr("theodolite.nn.wavelets._FIBER", 0)
    sums = bank.frame_bounds(subsampled=True)
    assert exact <= sums.upper.high <= 1.5 * exact
    assert "sums" in sums.upper.note
    top = torch.linalg.svdvals(matrix(bank, True, True))[0].square()
    assert float(top) <= exact


def test_folding_is_what_subsampling_does():
    x = torch.randn(3, 12, 8, dtype=torch.float64)
    spectrum = torch.fft.fft2(x)
    assert torch.allclose(folded(spectrum, 4, (-2, -1)) / 16, torch.fft.fft2(x[:, ::4, ::4]))


@pytest.mark.parametrize(
    ("pad", "mode"),
    [
        ("reflect", "reflect"),
        ("symmetric", "symmetric"),
        ("replicate", "edge"),
        ("zero", "constant"),
        ("periodic", "wrap"),
    ],
)
def test_paddings_are_numpys(pad, mode):
    for n, size in ((7, 12), (7, 21), (2, 9), (8, 8)):
        x = torch.randn(2, n, dtype=torch.float64)
        before = (size - n) // 2
        expected = np.pad(x.numpy(), ((0, 0), (before, size - n - before)), mode=mode)
        assert np.array_equal(padded(x, [size], pad).numpy(), expected)
        dense = padded(torch.eye(n, dtype=torch.float64), [size], pad)
        assert axis_copies(n, size, pad) == pytest.approx(float(torch.linalg.svdvals(dense)[0]) ** 2)
    one = padded(torch.ones(1, 1), [5], pad)
    assert one.shape == (1, 5)


def test_a_reflected_border_of_four_on_eight_samples_has_norm_root_three():
    assert axis_copies(8, 16, "reflect") == 3


def test_a_bank_that_loses_a_frequency_cannot_be_tight():
    bank = Bank(torch.tensor([1.0, 0.0]), torch.zeros(1, 2), (1,), 1)
    with pytest.raises(ValueError, match="keeps every frequency"):
        bank.normalized("tight")
