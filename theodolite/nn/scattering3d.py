r"""The solid harmonic scattering transform of volumes: integrals that shifts and rotations of the grid leave as they are.

.. math:: U_{j,l}x=\Big(\sum_m|x*\psi_{j,l,m}|^2\Big)^{1/2},\qquad
   S_{j,l,q}x=\sum_u U_{j,l}x(u)^q,\qquad S_{j_1,j_2,l,q}x=\sum_u U_{j_2,l}U_{j_1,l}x(u)^q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from theodolite.nn.scattering3d_stages import Stages, stages
from theodolite.nn.scattering_shared import check_counts, check_input, moderate, path_table
from theodolite.nn.solid_harmonics import SAMPLINGS, Sampling, solid_harmonic3d
from theodolite.nn.wavelets import Bank

__all__ = ["HarmonicScattering3D"]

_CHUNK = 1 << 18  # numbers of a stage that are handled together: they fit the cache


class HarmonicScattering3D(nn.Module):
    r"""Solid harmonic scattering transform of volumes, in the order and with the values of Kymatio's class of this name.

    Parameters
    ----------
    J : int
        Scales are sigma_0 2^j for j = 0, ..., J.
    shape : (int, int, int)
        Of the volumes, which continue periodically.
    L : int
        Degrees of the harmonics are 0, ..., L.
    sigma_0 : float
        Width of the finest wavelet, in grid steps.
    max_order : {1, 2, 3}
        Number of wavelets on a path, at most; all are of one degree, and scales increase.
    rotation_covariant : bool
        Whether moduli are over all harmonics of a degree, or of the one of order -l alone.
    method : {"integral"}
    points : None
    integral_powers : sequence of float
        Positive: what moduli are raised to before they are summed over the volume.
    backend : {"torch"}
    sampling : {"reference", "symmetric"}
        Where filters are sampled.  Kymatio's grid of frequencies lacks the opposites of the highest frequency of even sides,
        and is one place off for odd sides, which breaks the invariance to rotations and flips of the grid where an input has
        such frequencies; "symmetric" restores it for every input.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Filters have no place in the state: they follow from the arguments, and are computed in float64 whatever the input's
    precision.  Gradients are finite everywhere, that of a modulus at zero being zero.  The time grows as the fourth power of
    the side; up to sides of 112 it was measured to stay below that of Kymatio's Fourier transforms.  Complex
    volumes, and with the reference's sampling odd sides and moduli of single harmonics, take complex numbers and more time.

    References
    ----------
    Eickenberg, Exarchakis, Hirn and Mallat, NeurIPS 2017; Eickenberg et al., J. Chem. Phys. 148, 241732, 2018.

    Examples
    --------
    >>> import torch
    >>> HarmonicScattering3D(J=2, shape=(16, 16, 16), L=2)(torch.zeros(5, 16, 16, 16)).shape
    torch.Size([5, 6, 3, 3])
    """

    def __init__(
        self,
        J: int,
        shape: Sequence[int],
        L: int = 3,
        sigma_0: float = 1,
        max_order: int = 2,
        rotation_covariant: bool = True,
        method: str = "integral",
        points: None = None,
        integral_powers: Sequence[float] = (0.5, 1.0, 2.0),
        backend: str = "torch",
        *,
        sampling: Sampling = "reference",
    ) -> None:
        super().__init__()
        check_counts(J=(J, 0), L=(L, 0), max_order=(max_order, 1))
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape: expected three positive integers, got {tuple(shape)}")
        if not 0.0 < sigma_0 < math.inf:
            raise ValueError(f"sigma_0: expected a positive number, got {sigma_0}")
        if method != "integral":
            raise ValueError(f"method: expected 'integral', got {method!r}")
        if points is not None:
            raise ValueError("points: expected None, since integrals are over the whole volume")
        if not len(integral_powers) or not all(0.0 < q < math.inf for q in integral_powers):
            raise ValueError(f"integral_powers: expected positive numbers, got {tuple(integral_powers)}")
        if backend != "torch":
            raise ValueError(f"backend: expected 'torch', got {backend!r}")
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling: expected 'reference' or 'symmetric', got {sampling!r}")
        self.J, self.shape, self.L = J, (int(shape[0]), int(shape[1]), int(shape[2])), L
        self.sigma_0, self.max_order, self.rotation_covariant = float(sigma_0), max_order, rotation_covariant
        self.integral_powers, self.sampling = tuple(float(q) for q in integral_powers), sampling
        shifted = sampling == "reference" and any(n % 2 for n in self.shape)
        self._complex = shifted or (not rotation_covariant and sampling == "reference")
        self._tables: dict[tuple[torch.dtype, torch.device], Stages] = {}
        self._table(torch.empty(0, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return the coefficients of volumes.

        Parameters
        ----------
        x : Tensor, shape (..., n_1, n_2, n_3)
            Float32, float64 or complex, finite.

        Returns
        -------
        Tensor, shape (..., paths, L + 1, powers)
            Real, of the input's precision; infinite where that of a huge input has no room for a power.

        Raises
        ------
        TypeError
            If x is no tensor of floating or complex numbers.
        ValueError
            If its last three sizes are others, or an entry is not finite.
        """
        check_input(x, self.shape)
        volumes, exponent = moderate(x.reshape(-1, *self.shape))
        table = self._table(volumes)
        volumes = volumes.to(table.mixtures[0].dtype)
        step = max(1, _CHUNK // (math.prod(self.shape) * (self.L + 1) * (self.L + 2) // 2))
        parts = [self._chunk(part, table) for part in volumes.split(step) if len(part)]
        sizes = (len(self), self.L + 1, len(self.integral_powers))
        found = torch.cat(parts) if parts else volumes.real.new_empty(0, *sizes)
        if exponent:
            powers = [_scaled(found[..., i], exponent * q) for i, q in enumerate(self.integral_powers)]
            found = torch.stack(powers, -1)
        return found.reshape(*x.shape[:-3], *sizes)

    scattering = forward

    def __len__(self) -> int:
        """Return the number of paths."""
        return sum(math.comb(self.J + 1, m) for m in range(1, self.max_order + 1))

    def paths(self) -> list[tuple[int, ...]]:
        """Return the scales of the wavelets of each path, in order."""
        orders: list[list[tuple[int, ...]]] = [[()]]
        for _ in range(self.max_order):
            orders.append(
                [(*path, j) for path in orders[-1] for j in range(path[-1] + 1 if path else 0, self.J + 1)]
            )
        return [path for order in orders[1:] for path in order]

    def meta(self) -> dict[str, NDArray[Any]]:
        """Return the axes as arrays: "order" (p,), "j" (p, max_order), NaN where there is none, "l" (L + 1,), "q" (powers,)."""
        paths = self.paths()
        order = np.array([len(path) for path in paths])
        scales = path_table(paths, self.max_order)
        return {"order": order, "j": scales, "l": np.arange(self.L + 1), "q": np.array(self.integral_powers)}

    def bank(self) -> Bank:
        """Return the filters, all harmonics of each degree, for their frame bounds.

        It takes (J + 1) (L + 1)^2 volumes of memory, which the transform itself does not.
        """
        return solid_harmonic3d(self.shape, self.J, self.L, self.sigma_0, self.sampling)

    def _table(self, x: Tensor) -> Stages:
        """Return the stages for inputs of a precision on a device; they are kept."""
        dtype = x.dtype.to_complex() if self._complex and not x.is_complex() else x.dtype
        key = (dtype, x.device)
        if key not in self._tables:
            self._tables[key] = stages(
                self.shape, self.J, self.L, self.sigma_0, self.rotation_covariant, self.sampling, *key
            )
        return self._tables[key]

    def _chunk(self, x: Tensor, table: Stages) -> Tensor:
        """Return all coefficients (b, paths, L + 1, powers) of some volumes."""
        found: dict[tuple[tuple[int, ...], int], Tensor] = {}

        def follow(path: tuple[int, ...], degree: int, energy: Tensor) -> None:
            U, found[path, degree] = self._integrals(energy)
            for j in range(path[-1] + 1, self.J + 1 if len(path) < self.max_order else 0):
                (energy,) = table.energies(U.to(x.dtype), j, [degree])
                follow((*path, j), degree, energy)

        for j in range(self.J + 1):
            for degree, energy in enumerate(table.energies(x, j, range(self.L + 1))):
                follow((j,), degree, energy)
        every = [found[path, degree] for path in self.paths() for degree in range(self.L + 1)]
        return torch.stack(every, 1).unflatten(1, (len(self), self.L + 1))

    def _integrals(self, energy: Tensor) -> tuple[Tensor, Tensor]:
        """Return the root (b, n_1, n_2, n_3) of an energy, and the sums (b, powers) of its powers."""
        U = _power(energy, 0.5)
        known = {2.0: energy, 1.0: U}
        sums = []
        for q in self.integral_powers:
            raised = known[q] if q in known else _power(U, q)
            sums.append(raised.flatten(1).sum(1))
        return U, torch.stack(sums, 1)


def _power(values: Tensor, exponent: float) -> Tensor:
    """Return a power of values that are not negative; its derivative at zero is zero."""
    if not values.requires_grad:
        return values.sqrt() if exponent == 0.5 else values.pow(exponent)
    inside = values > 0.0
    safe = torch.where(inside, values, 1.0)
    return torch.where(inside, safe.sqrt() if exponent == 0.5 else safe.pow(exponent), 0.0)


def _scaled(values: Tensor, power: float) -> Tensor:
    """Return values times 2^power, which itself may not be a number."""
    steps = math.ceil(abs(power) / 64.0)
    for _ in range(steps):
        values = values * 2.0 ** (power / steps)
    return values
