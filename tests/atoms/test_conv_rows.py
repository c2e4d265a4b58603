"""Patches, bases of filters, and the merged rows of the polar."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.atoms import conv_rows
from theodolite.atoms.conv import ConvReLUAtom
from theodolite.atoms.conv_patches import Geometry, filter_basis
from theodolite.atoms.conv_rows import merged_rows
from theodolite.polar.ascent import relu_values, rounding_margin


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def square(image: tuple[int, int, int], k: int, pool: int, pool_stride: int | None = None) -> Geometry:
    step = pool if pool_stride is None else pool_stride
    return Geometry(image, (k, k), (1, 1), (pool, pool), (step, step))


@pytest.mark.parametrize(("kernel", "before", "after"), [(2, 56_569, 30_059), (3, 63_232, 57_696)])
def test_known_numbers_of_rows_on_digits(kernel, before, after):
    images = torch.tensor(load_digits().images)[:, None]
    for scaled in (images / 16.0, images / 3.0):  # thirds are not exact, yet parallel to ten digits
        rows = merged_rows(square((1, 8, 8), kernel, 2), scaled, None)
        assert len(rows.group) == before
        assert len(rows.X) == after
        assert bool((rows.cells.diff() >= 0).all())
        assert float(rows.slack.max()) <= 1e-11


@pytest.mark.parametrize("pool_stride", [None, 1])
@pytest.mark.parametrize("basis", [None, "pca"])
def test_the_function_of_the_rows_is_that_of_the_patches(pool_stride, basis):
    images = normal(9, 2, 5, 4)
    images[5] = 3.0 * images[3]
    images[4] = 0.0
    atom = ConvReLUAtom(images, 3, 2, pool=2, pool_stride=pool_stride, basis=basis)
    Q = normal(9, 3, seed=1)
    W = torch.nn.functional.normalize(normal(50, atom.width, seed=2))
    expected = torch.einsum("nrc,nk->rck", atom.hidden(W), Q).flatten(1).norm(dim=1)
    rows = atom.rows
    V = rows.weights(Q)
    values = relu_values(rows.X, V, W, rows.cells) * 2.0**rows.exponent
    allowed = (rows.error(Q) + rounding_margin(rows.X, V, rows.cells)) * 2.0**rows.exponent
    assert float((values - expected).abs().max()) <= 2.0 * allowed + 1e-14
    assert allowed <= 1e-10
    assert len(rows.X) < len(rows.group)


def test_patches_that_are_not_quite_parallel_cost_slack():
    images = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[2.0, 4.0], [6.0, 8.0]]]).double()[:, None]
    images[1] += 1e-13
    rows = merged_rows(square((1, 2, 2), 2, 1), images, None)
    assert len(rows.X) == 1
    Q = normal(2, 1)
    W = torch.nn.functional.normalize(normal(200, 4, seed=1))
    hidden = torch.relu(images.flatten(1) @ W.T)
    off = (hidden.T @ Q).abs()[:, 0] - relu_values(
        rows.X, rows.weights(Q), W, rows.cells
    ) * 2.0**rows.exponent
    assert 1e-15 < float(off.abs().max()) <= rows.error(Q) * 2.0**rows.exponent


def test_patches_that_a_basis_misses_are_no_rows():
    images = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]], [[2.0, 2.0]]]).double()[:, None]
    atom = ConvReLUAtom(images, 2, (1, 2), pool=1, basis=[[1.0], [0.0]])
    assert len(atom.rows.X) == len(atom.rows.group) == 2
    Q = normal(3, 2)
    expected = (Q[0] + 2.0 * Q[2]).norm()
    assert atom.polar(Q).low == pytest.approx(float(expected), rel=1e-9)


def test_opposite_patches_stay_apart():
    images = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]], [[2.0, -2.0]]]).double()[:, None]
    rows = merged_rows(Geometry((1, 1, 2), (1, 2), (1, 1), (1, 1), (1, 1)), images, None)
    assert rows.group[0] == rows.group[2] != rows.group[1]


def test_colliding_hashes_cost_slack_only(monkeypatch):
    class Constant:
        def integers(self, *_, size, dtype):
            return np.ones(size, dtype)

    images = torch.tensor([[[1.0, 2.0]], [[2.0, 1.0]]]).double()[:, None]
    apart = merged_rows(Geometry((1, 1, 2), (1, 2), (1, 1), (1, 1), (1, 1)), images, None)
    monkeypatch.setattr(conv_rows.np.random, "default_rng", lambda _: Constant())
    joined = merged_rows(Geometry((1, 1, 2), (1, 2), (1, 1), (1, 1), (1, 1)), images, None)
    assert (len(apart.X), len(joined.X)) == (2, 1)
    assert float(joined.slack.max()) > 0.1


@pytest.mark.parametrize("name", ["dct", "gaussian-derivative", "pca"])
@pytest.mark.parametrize("channels", [1, 3])
def test_bases_are_orthonormal(name, channels):
    geometry = square((channels, 6, 6), 3, 2)
    basis = filter_basis(name, geometry, normal(5, channels, 6, 6), 6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64))


def test_what_the_bases_hold():
    geometry = square((1, 6, 6), 3, 2)
    images = normal(5, 1, 6, 6)
    cosines = filter_basis("dct", geometry, images, 3)
    torch.testing.assert_close(cosines[:, 0], torch.full((9,), 1 / 3, dtype=torch.float64))
    smooth = filter_basis("gaussian-derivative", geometry, images, 3).T.view(3, 3, 3)
    torch.testing.assert_close(smooth[0], smooth[0].T)  # the Gaussian itself
    assert float(smooth[0].min()) > 0.0
    torch.testing.assert_close(smooth[1], smooth[2].T)  # its two first derivatives
    torch.testing.assert_close(smooth[1], -smooth[1].flip(1))
    patches = geometry.patches(images).reshape(-1, 9)
    pca = filter_basis("pca", geometry, images, 2)
    lost = (patches - patches @ pca @ pca.T).square().sum()
    values = torch.linalg.svdvals(patches)
    torch.testing.assert_close(lost, values[2:].square().sum())
