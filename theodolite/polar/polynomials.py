"""Batches of polynomials in several variables on the cube [-1, 1]^m: products, halves, upper bounds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement
from math import comb, factorial, prod

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from theodolite.linalg.pattern import csr_tensor


@dataclass(frozen=True, eq=False)
class Monomials:
    """All monomials of degree at most `degree` in `variables` variables, by degree, the constant first.

    Attributes
    ----------
    exponents : Tensor, shape (count, variables), int64
    """

    variables: int
    degree: int
    exponents: Tensor

    def __len__(self) -> int:
        return len(self.exponents)

    @cached_property
    def place(self) -> dict[tuple[int, ...], int]:
        """Index of each tuple of exponents."""
        return {tuple(e): i for i, e in enumerate(self.exponents.tolist())}

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where the monomials of each degree lie."""
        ends = [comb(self.variables + k, k) for k in range(self.degree + 1)]
        return tuple(slice(a, b) for a, b in zip([0, *ends], ends, strict=False))

    @cached_property
    def multinomials(self) -> Tensor:
        """Coefficients of each monomial in (z_1 + ... + z_m)^k, k its degree, float64."""
        numbers = [factorial(sum(e)) // prod(map(factorial, e)) for e in self.exponents.tolist()]
        return torch.tensor(numbers, dtype=torch.float64)

    @cached_property
    def parents(self) -> tuple[tuple[int, int], ...]:
        """For each monomial but the constant: another, and the variable that it is multiplied with."""
        out = []
        for e in self.exponents.tolist()[1:]:
            j = next(j for j, power in enumerate(e) if power)
            e[j] -= 1
            out.append((self.place[tuple(e)], j))
        return tuple(out)

    def values(self, Z: Tensor) -> Tensor:
        """Return the value of each monomial at points Z of shape (..., variables), shape (..., count)."""
        columns = [torch.ones_like(Z[..., :1])[..., 0]]
        for i, j in self.parents:
            columns.append(columns[i] * Z[..., j])
        return torch.stack(columns, -1)

    @cached_property
    def _even(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Linear and square monomials of each variable; which of the others have even exponents only, and the rest."""
        unit = np.eye(self.variables, dtype=int)
        linear = [self.place[tuple(e)] for e in unit.tolist()]
        square = [self.place[tuple(2 * e)] for e in unit] if self.degree > 1 else []
        rest = sorted(set(range(1, len(self))) - set(linear) - set(square))
        even = [i for i in rest if not bool((self.exponents[i] % 2).any())]
        odd = [i for i in rest if i not in set(even)]
        return tuple(torch.tensor(index, dtype=torch.int64) for index in (linear, square, even, odd))  # type: ignore[return-value]

    def upper(self, P: Tensor) -> Tensor:
        """Return an upper bound of each polynomial on the cube, P of shape (b, count): shape (b,).

        The linear and the square term of a variable together, every other monomial alone.  As computed:
        rounding is below 2^-45 times the sum of the absolute coefficients for any degree and number used here.
        """
        linear, square, even, odd = self._even
        a = P[:, linear].abs()
        if len(square):
            c = P[:, square]
            bent = c < -0.5 * a  # a maximum inside
            one = torch.where(bent, a * a / torch.where(bent, -4.0 * c, 1.0), a + c)
        else:
            one = a
        return P[:, 0] + one.sum(1) + P[:, even].clamp(min=0.0).sum(1) + P[:, odd].abs().sum(1)

    def weight(self, P: Tensor) -> Tensor:
        """Return for each polynomial and variable how much of the bound's slack halving it may remove, (b, m)."""
        return P.abs() @ self._shares.to(P.device)

    @cached_property
    def _shares(self) -> Tensor:
        """Of monomials with more than one variable, or of degree above two, that of each variable."""
        e = self.exponents.double()
        total = e.sum(1, keepdim=True)
        crooked = ((e > 0).sum(1, keepdim=True) > 1) | (total > 2)
        return torch.where(crooked, e, 0.25 * (e == 2.0) + 0.01 * e)

    @cached_property
    def _halves(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each variable the matrices, in compressed rows, of P(z) -> P(.., (z_j -+ 1)/2, ..)."""
        exponents = self.exponents.tolist()
        out = []
        for j in range(self.variables):
            pair = []
            for sign in (-1.0, 1.0):
                rows, cols, values = [], [], []
                for i, e in enumerate(exponents):
                    for b in range(e[j] + 1):
                        target = [*e[:j], b, *e[j + 1 :]]
                        rows.append(self.place[tuple(target)])
                        cols.append(i)
                        values.append(comb(e[j], b) * sign ** (e[j] - b) * 0.5 ** e[j])
                matrix = sp.csr_array((values, (rows, cols)), shape=(len(self), len(self)))
                starts, places, entries = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
                pair.append(csr_tensor(starts, places, entries, tuple(matrix.shape)))
            out.append((pair[0], pair[1]))
        return tuple(out)

    def halved(self, P: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
        """Return the polynomials on the lower and the upper half of the cube, each rescaled to the cube.

        Parameters
        ----------
        P : Tensor, shape (b, count)
        axis : Tensor, shape (b,), int64
            The variable whose range is halved.
        """
        low, high = torch.empty_like(P), torch.empty_like(P)
        for j in axis.unique().tolist():
            which = axis == j
            columns = P[which].T.contiguous()
            for half, matrix in zip((low, high), self._halves[j], strict=True):
                half[which] = (matrix.to(P.device) @ columns).T
        return low, high

    @cached_property
    def _products(self) -> Tensor:
        """Index of the product of each pair of monomials among those of twice the degree, (count^2,)."""
        double = monomials(self.variables, 2 * self.degree)
        sums = self.exponents[:, None, :] + self.exponents[None, :, :]
        return torch.tensor([double.place[tuple(e)] for e in sums.flatten(0, 1).tolist()])

    def square(self, G: Tensor) -> Tensor:
        """Return sum_{ij} G_ij z^i z^j as polynomials of twice the degree, G of shape (b, count, count)."""
        double = monomials(self.variables, 2 * self.degree)
        out = G.new_zeros(len(G), len(double))
        return out.index_add_(1, self._products.to(G.device), G.flatten(1))


@cache
def monomials(variables: int, degree: int) -> Monomials:
    """Return all monomials of degree at most `degree` in so many variables."""
    exponents = []
    for k in range(degree + 1):
        for chosen in combinations_with_replacement(range(variables), k):
            exponents.append([chosen.count(j) for j in range(variables)])
    return Monomials(
        variables, degree, torch.tensor(exponents, dtype=torch.int64).reshape(len(exponents), variables)
    )
