"""Polynomials in several variables: products and halves are exact, bounds hold."""

import pytest
import torch

from theodolite.polar.polynomials import monomials

CASES = [(1, 4), (2, 3), (3, 8), (5, 2), (8, 4)]


def random(kind, count, seed=0):
    return torch.randn(count, len(kind), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def points(kind, count, seed=1):
    Z = torch.rand(count, kind.variables, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return 2.0 * Z - 1.0


@pytest.mark.parametrize(("variables", "degree"), CASES)
def test_values_and_multinomials(variables, degree):
    kind = monomials(variables, degree)
    Z = points(kind, 7)
    expected = (Z[:, None, :] ** kind.exponents).prod(-1)
    torch.testing.assert_close(kind.values(Z), expected)
    assert [len(range(*s.indices(len(kind)))) for s in kind.slices] == [
        int((kind.exponents.sum(1) == k).sum()) for k in range(degree + 1)
    ]
    whole = (kind.values(Z) * kind.multinomials)[:, kind.slices[degree]].sum(1)
    torch.testing.assert_close(whole, Z.sum(1) ** degree)


@pytest.mark.parametrize(("variables", "degree"), CASES)
def test_upper_bounds_hold_on_the_cube(variables, degree):
    kind = monomials(variables, degree)
    P = random(kind, 50)
    corners = points(kind, 3000).sign()
    Z = torch.cat([points(kind, 3000), corners, torch.zeros(1, variables, dtype=torch.float64)])
    upper = kind.upper(P)
    assert bool(((P @ kind.values(Z).T).amax(1) <= upper + 1e-12).all())


def test_bounds_of_one_variable_up_to_squares_are_exact():
    kind = monomials(1, 2)
    P = random(kind, 200)
    z = torch.linspace(-1.0, 1.0, 20001).double()[:, None]
    torch.testing.assert_close(kind.upper(P), (P @ kind.values(z).T).amax(1), atol=1e-7, rtol=0.0)


@pytest.mark.parametrize(("variables", "degree"), CASES)
def test_halves(variables, degree):
    kind = monomials(variables, degree)
    P = random(kind, 6)
    axis = torch.arange(6) % variables
    low, high = kind.halved(P, axis)
    for half, side in ((low, -1.0), (high, 1.0)):
        for i in range(6):
            Z = points(kind, 9)
            there = Z.clone()
            there[:, axis[i]] = 0.5 * (Z[:, axis[i]] + side)
            torch.testing.assert_close(kind.values(Z) @ half[i], kind.values(there) @ P[i])
        assert bool((half.abs().sum(1) <= P.abs().sum(1) * (1 + 1e-12)).all())  # rounding does not grow


@pytest.mark.parametrize(("variables", "degree"), [(1, 2), (3, 2), (4, 1), (2, 4)])
def test_squares(variables, degree):
    kind, double = monomials(variables, degree), monomials(variables, 2 * degree)
    A = random(kind, 5)
    Z = points(kind, 11)
    G = (A[:, :, None] * A[:, None, :])[None]
    torch.testing.assert_close(
        double.values(Z) @ kind.square(G.sum(1)).T, ((kind.values(Z) @ A.T) ** 2).sum(1, keepdim=True)
    )
