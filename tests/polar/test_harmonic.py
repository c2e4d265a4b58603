"""Moments on the sphere, their proved errors, and the linear program that makes a bound of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from theodolite.polar import harmonic
from theodolite.polar.harmonic import Moment, Moments, gegenbauer, harmonic_moments, kernel_error
from theodolite.polar.harmonic_program import harmonic_program
from theodolite.polar.rows import Rows, merged
from theodolite.reference.arrangements import harmonic_kernel


def normal_rows(n: int, d: int, K: int, C: int, seed: int = 0) -> Rows:
    g = torch.Generator().manual_seed(seed)
    X, Q = torch.randn(n, d, generator=g).double(), torch.randn(n, K, generator=g).double()
    return merged(X, Q, torch.randint(C, (n,), generator=g))


def dense(rows: Rows, Q: Tensor) -> Tensor:
    """Return rows of Q, one block of columns for each cell."""
    blocks = torch.zeros(len(Q), len(rows.cells), Q.shape[1]).double()
    for c, cell in enumerate(rows.cells):
        blocks[cell, c] = Q[cell]
    return blocks.flatten(1)


@pytest.mark.parametrize("d", [2, 3, 7, 64])
def test_gegenbauer_polynomials_within_their_proved_error(d: int) -> None:
    directions = torch.randn(40, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=1)
    values = gegenbauer((directions @ directions.T).clamp(-1, 1), d, 30)
    for degree in (0, 1, 2, 5, 12, 30):
        reference = harmonic_kernel(directions, degree, d)
        allowed = kernel_error(d, degree) + 1e-11  # the reference's own error
        assert float((values[degree] - reference).abs().max()) <= allowed


@pytest.mark.parametrize(
    ("n", "d", "K", "C"), [(1100, 5, 3, 1), (900, 3, 2, 5), (700, 40, 1, 3), (60, 2, 2, 30)]
)
def test_moments_equal_the_dense_formula(n: int, d: int, K: int, C: int) -> None:
    """By features and by tiles, in every cell; more rows than one tile, many cells in one tile."""
    rows = normal_rows(n, d, K, C)
    unit = torch.nn.functional.normalize(rows.X, dim=1)
    weights = rows.Q * rows.X.norm(dim=1, keepdim=True)
    sizes = weights.norm(dim=1, keepdim=True)
    S = math.hypot(*(float(sizes[cell].sum()) for cell in rows.cells))
    for degree in (0, 1, 2, 6):
        found = harmonic_moments(rows, degree)
        assert pytest.approx(S, rel=1e-9) == found.S
        assert found.degree == degree
        seen: set[int] = set()
        for moment in found.several:
            kernel = harmonic_kernel(unit, moment.degree, d)
            M = dense(rows, weights).T @ kernel @ dense(rows, weights) / S**2
            if moment.degree not in seen:
                seen.add(moment.degree)
                assert float((moment.matrix - M).abs().max()) <= moment.error + 1e-12
            else:  # the other bound
                assert moment.degree == 2
                assert moment.shift < 1e-9
        for k, plus in found.plus.items():
            single = dense(rows, sizes) / S
            top = float(torch.linalg.eigvalsh(single.T @ harmonic_kernel(unit, k, d) @ single)[-1])
            if k > 2:
                assert plus == pytest.approx(math.sqrt(top), abs=1e-6)
        for c, cell in enumerate(rows.cells):
            C_c = weights[cell].T @ (weights[cell] / sizes[cell]) / S
            torch.testing.assert_close(found.spread[c], C_c)


def test_degree_two_needs_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they would take too much memory tiles give the same matrix, and a later deadline a higher degree."""
    rows = normal_rows(600, 5, 2, 3)
    with_features = harmonic_moments(rows, 2)
    monkeypatch.setattr(harmonic, "_NUMBERS", 0)
    tiled = harmonic_moments(rows, 2)
    assert [m.degree for m in tiled.several] == [0, 1, 2]
    torch.testing.assert_close(tiled.several[2].matrix, with_features.several[2].matrix, rtol=0.0, atol=1e-12)
    assert harmonic_moments(rows, 6, deadline=0.0).degree == 1
    assert harmonic_moments(rows, 6, deadline=math.inf, device="cpu").degree == 6
    assert 0.0 < harmonic.seconds_of_squares(normal_rows(3000, 300, 10, 1)) < 60.0


def test_bounds_of_degree_two_hold_for_all_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sums themselves at many w, by both matrices, and in float32 with its error."""
    rows = normal_rows(400, 12, 3, 2)
    unit = torch.nn.functional.normalize(rows.X, dim=1)
    weights = rows.Q * rows.X.norm(dim=1, keepdim=True)
    sizes = weights.norm(dim=1, keepdim=True)
    g = torch.Generator().manual_seed(0)
    w = torch.nn.functional.normalize(torch.randn(12, 3000, generator=g).double(), dim=0)
    P = (12.0 * (unit @ w) ** 2 - 1.0) / 11.0
    exact = harmonic_moments(rows, 2)
    monkeypatch.setattr(harmonic, "_SINGLE", 0.0)
    monkeypatch.setattr(harmonic, "_SHORT", 64)
    rough = harmonic_moments(rows, 2)
    assert rough.several[2].shift > 0.0
    for found in (exact, rough):
        sums = dense(rows, weights).T @ P / found.S
        kernel, flat = (m for m in found.several if m.degree == 2)
        u = torch.nn.functional.normalize(sums, dim=0)
        allowed = ((u * (kernel.matrix @ u)).sum(0) + kernel.error).clamp(min=0.0).sqrt() + kernel.shift
        assert bool((sums.norm(dim=0) <= allowed * (1 + 1e-12)).all())
        top = math.sqrt(float(flat.matrix[0, 0]) + flat.error) + flat.shift
        assert float(sums.norm(dim=0).max()) <= top
        assert top < float(allowed.max())  # the point of having it
        single = dense(rows, sizes).T @ P / found.S
        assert float(single.clamp(min=0.0).norm(dim=0).max()) <= found.plus[2]
        assert float((-single).clamp(min=0.0).norm(dim=0).max()) <= found.minus[2]
    size = float((exact.several[2].matrix - rough.several[2].matrix).abs().max())
    assert 0.0 < size < 1e-4  # float32 was used, and is close
    value = harmonic_program(exact)
    assert value <= harmonic_program(rough) <= value + 3.0 * rough.several[2].shift * rough.S


def uniform_error(d: int, degree: int) -> Moments:
    """Return moments for which coefficients cost nothing and an error its size."""
    several = [Moment(k, torch.zeros(1, 1).double(), 0.0) for k in range(degree + 1) if k < 2 or k % 2 == 0]
    one = torch.ones(1).double()
    return Moments(d, 1.0, several, {}, {}, one, one.view(1, 1, 1), 0.0)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_coefficients_are_proved_between_grid_points(d: int) -> None:
    """Best uniform approximation of |t| / 2 in degree 8: Bernstein's 0.2802 / n / 2 is 0.0175."""
    error = harmonic_program(uniform_error(d, 8), envelope=False)
    assert 0.0170 < error < 0.0180


def test_one_direction_for_all_degrees_is_less_than_one_for_each() -> None:
    rows = normal_rows(60, 3, 4, 2, seed=4)
    moments = harmonic_moments(rows, 8)
    together, separate = harmonic_program(moments), harmonic_program(moments, joint=False)
    assert together <= separate * (1 + 1e-3)
    # norms of rows in place of their own weights, and each degree by itself
    isotropic = replace(
        moments, spread=torch.stack([s * torch.eye(4).double() for s in moments.sizes]), several=[]
    )
    tops = [float(torch.linalg.eigvalsh(m.matrix)[-1]) for m in moments.several]
    each = [
        Moment(m.degree, top * torch.eye(8).double(), m.error)
        for m, top in zip(moments.several, tops, strict=True)
    ]
    plain = harmonic_program(replace(isotropic, several=each))
    assert separate < 0.97 * plain
