"""Displacement fields: band-limited ones, affine ones and tabulated ones, with their norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.analysis.deformation_norms import (
    ROUNDING,
    Basis,
    band_limits,
    diameter,
    displacements,
    evaluate,
    operator_norm,
    supremum,
)
from theodolite.value import Value

NORMS = ("tau_inf", "grad_inf", "grad_max", "hess_inf", "delta_inf")


class Field(ABC):
    """A displacement field on the box [-1/2, n_a - 1/2] along each axis, pixels at the integers.

    Attributes
    ----------
    shape : tuple of int
        Pixels along each axis.
    on_torus : bool
        Whether the field is Lipschitz on the torus that identifies opposite faces of the box.
    """

    shape: tuple[int, ...]
    on_torus: bool

    @abstractmethod
    def displacement(self, oversampling: int = 1) -> Tensor:
        """Return the displacements in pixels at the multiples of 1/oversampling, shape (d, m_1, ..., m_d)."""

    @abstractmethod
    def norms(self) -> dict[str, Value]:
        """Return the norms that are named in ``NORMS``, in pixels and per pixel."""


@dataclass(frozen=True, eq=False)
class BandlimitedField(Field):
    r"""A finite sum of products of one-dimensional sines and cosines.

    Attributes
    ----------
    shape : tuple of int
        Pixels along each axis.
    coefficients : Tensor, shape (d, K_1, ..., K_d), float64
        In pixels.  "sine": :math:`K_a` waves :math:`\sin(k\pi(u_a+1/2)/n_a)`, k = 1, ..., which
        vanish on the faces of the box; "periodic": 1, the cosines and the sines of
        :math:`2\pi ku_a/n_a`, with :math:`K_a` odd.
    basis : {"sine", "periodic"}
        Which.
    """

    shape: tuple[int, ...]
    coefficients: Tensor
    basis: Basis = "sine"
    on_torus: bool = True

    def displacement(self, oversampling: int = 1) -> Tensor:
        """Return the displacements in pixels, shape (d, m_1, ..., m_d)."""
        return displacements(self.shape, self.coefficients, self.basis, oversampling)

    def norms(self) -> dict[str, Value]:
        """Return two-sided bounds of all norms; the lower end is attained at a point that was evaluated."""
        coefficients = self.coefficients.detach()[None]
        found = {
            name: tuple(float(end[0]) for end in supremum(self.shape, coefficients, self.basis, name))
            for name in NORMS[:-1]
        }
        found["delta_inf"] = self._oscillation(found["tau_inf"][1], found["hess_inf"][1])
        return {
            name: Value.bound(*found[name], unit=unit_of(name, len(self.shape)), note=_NOTES[name])
            for name in NORMS
        }

    def _oscillation(self, size: float, curvature: float) -> tuple[float, float]:
        r"""Return bounds of sup |tau(u) - tau(v)|.

        Where a component along a direction is largest, it is critical or the field is zero (on
        the faces), so that the nearest grid point, a distance h away, falls short by at most
        :math:`h^2/2` times the second derivative.
        """
        rates = band_limits(self.shape, self.coefficients[None], self.basis)
        steps = [
            max(8, math.ceil(_finest(len(self.shape)) * n * rate / math.pi))
            for n, rate in zip(self.shape, rates, strict=True)
        ]
        centers = [
            (torch.arange(m, dtype=torch.float64) + 0.5) * (n / m) - 0.5
            for n, m in zip(self.shape, steps, strict=True)
        ]
        values = evaluate(self.shape, self.coefficients.detach(), self.basis, centers)
        if self.basis == "sine":
            values = torch.cat([values, torch.zeros_like(values[:, :1])], 1)  # as on the faces
        lower, upper = diameter(values)
        short = sum((n / m / 2.0) ** 2 for n, m in zip(self.shape, steps, strict=True)) * curvature
        return lower, max(lower, min(upper + short, 2.0 * size)) * (1.0 + ROUNDING)


@dataclass(frozen=True, eq=False)
class AffineField(Field):
    r"""The field of an affine map: :math:`u-\tau(u)=A^{-1}(u-c-o)+c` about the center c.

    Attributes
    ----------
    shape : tuple of int
        Pixels along each axis.
    matrix : Tensor, shape (d, d), float64
        A: what stands at u is moved to A(u - c) + c + o.
    offset : Tensor, shape (d,), float64
        o, in pixels.
    """

    shape: tuple[int, ...]
    matrix: Tensor
    offset: Tensor

    @property
    def gradient(self) -> Tensor:
        """The gradient of the field, the same everywhere, shape (d, d)."""
        return torch.eye(len(self.shape), dtype=torch.float64) - torch.linalg.inv(self.matrix)

    @property
    def on_torus(self) -> bool:  # type: ignore[override]
        """Whether the field is a translation."""
        return bool((self.gradient == 0.0).all())

    def displacement(self, oversampling: int = 1) -> Tensor:
        """Return the displacements in pixels, shape (d, m_1, ..., m_d)."""
        lines = [
            torch.arange(n * oversampling, dtype=torch.float64) / oversampling - (n - 1) / 2.0
            for n in self.shape
        ]
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
        moved = torch.linalg.solve(self.matrix, self.offset)
        return torch.einsum("ab,b...->a...", self.gradient, grid) + moved.view(-1, *[1] * len(self.shape))

    def norms(self) -> dict[str, Value]:
        """Return the norms, exact: the field is affine, so that the corners of the box decide."""
        signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * len(self.shape))
        corners = signs.view(-1, len(self.shape)) * torch.tensor(self.shape, dtype=torch.float64)
        shifted = corners @ self.gradient.T
        numbers = {
            "tau_inf": float((shifted + torch.linalg.solve(self.matrix, self.offset)).norm(dim=1).max()),
            "grad_inf": float(torch.linalg.matrix_norm(self.gradient, 2)),
            "grad_max": float(self.gradient.abs().max()),
            "hess_inf": 0.0,
            "delta_inf": 2.0 * float(shifted.norm(dim=1).max()),
        }
        return {
            name: Value.exact(numbers[name], unit=unit_of(name, len(self.shape)), note=_NOTES[name])
            for name in NORMS
        }


@dataclass(frozen=True, eq=False)
class TabulatedField(Field):
    """A field of which only the values at the pixels are known.

    Attributes
    ----------
    shape : tuple of int
        Pixels along each axis.
    values : Tensor, shape (d, n_1, ..., n_d)
        Displacements in pixels.
    """

    shape: tuple[int, ...]
    values: Tensor
    on_torus: bool = False

    def displacement(self, oversampling: int = 1) -> Tensor:
        """Return the displacements in pixels, shape (d, n_1, ..., n_d)."""
        if oversampling != 1:
            raise ValueError("antialias: a tabulated field is known at the pixels alone; expected 1")
        return self.values

    def norms(self) -> dict[str, Value]:
        """Return scores: maxima over the pixels, of differences where a derivative is meant."""
        tau = self.values.detach().double()
        d = len(self.shape)
        gradient = torch.stack([_difference(tau, b + 1) for b in range(d)], 1)
        hessian = torch.stack([_difference(gradient, b + 2) for b in range(d)], 2)
        flat = tau.flatten(1)
        numbers = {
            "tau_inf": flat.norm(dim=0).max(),
            "grad_inf": operator_norm(gradient.flatten(2)).max(),
            "grad_max": gradient.abs().max(),
            "hess_inf": hessian.flatten(3).flatten(0, 2).norm(dim=0).max(),
            "delta_inf": diameter(flat)[0],
        }
        note = "from the values at the pixels by differences; the field between them is not known"
        return {name: Value.score(float(numbers[name]), unit=unit_of(name, d), note=note) for name in NORMS}


_NOTES = {
    "tau_inf": "Euclidean norm of the displacement",
    "grad_inf": "operator norm of the gradient at each point",
    "grad_max": "largest entry of the gradient",
    "hess_inf": "Euclidean norm of all second derivatives at each point",
    "delta_inf": "largest distance between two displacements",
}


def unit_of(name: str, dimensions: int) -> str:
    """Return the unit of a norm."""
    if name in ("tau_inf", "delta_inf"):
        return "samples" if dimensions == 1 else "pixels" if dimensions == 2 else "voxels"
    return (
        ""
        if name != "hess_inf"
        else "per sample"
        if dimensions == 1
        else "per pixel"
        if dimensions == 2
        else "per voxel"
    )


def _finest(d: int) -> int:
    """Return grid points per half wave for the norms that grids alone decide."""
    return {1: 256, 2: 24, 3: 8}[d]


def _difference(values: Tensor, dim: int) -> Tensor:
    """Return differences to the next entry along a dimension, of the last one with the one before."""
    if values.shape[dim] == 1:
        return torch.zeros_like(values)
    steps = values.diff(dim=dim)
    return torch.cat([steps, steps.narrow(dim, -1, 1)], dim)
