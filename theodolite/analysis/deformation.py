r"""Deformations of signals on grids, :math:`L_\tau x(u)=x(u-\tau(u))`, and what is proved of them.

Sequences, images and volumes live on the torus that their periodic interpolant makes, pixels at the
integers.  Fields of displacements come with certified norms (:mod:`deformation_fields`), are applied
differentiably (:mod:`warping`), and :math:`\|L_\tau x-x\|` has a bound with every constant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from theodolite.analysis.deformation_draws import draw_coefficients, max_entropy_coefficients
from theodolite.analysis.deformation_fields import AffineField, BandlimitedField, Field, TabulatedField
from theodolite.analysis.deformation_norms import Basis, scaled_to
from theodolite.analysis.warping import Boundary, Interpolation, warp
from theodolite.value import Value


class DeformationCheck(NamedTuple):
    """Whether a deformation satisfies a theorem's hypothesis.

    Attributes
    ----------
    status : {"proved", "refuted", "undecided"}
        "undecided" where a bound or a score cannot tell.
    norm : Value
        What must not exceed the limit.
    limit : float
        The limit.
    """

    status: Literal["proved", "refuted", "undecided"]
    norm: Value
    limit: float


class Deformation:
    r"""The map :math:`L_\tau x(u)=x(u-\tau(u))` of sequences, images or volumes.

    Parameters
    ----------
    field : Field
        The displacements; one of the constructors below makes it.

    Examples
    --------
    >>> import torch
    >>> from theodolite.analysis.deformation import Deformation
    >>> bend = Deformation.random((28, 28), grad_inf=0.1, seed=0)
    >>> bend.check("mallat").status
    'proved'
    >>> bend.apply(torch.rand(5, 1, 28, 28)).shape
    torch.Size([5, 1, 28, 28])
    """

    def __init__(self, field: Field) -> None:
        self.field = field

    def __repr__(self) -> str:
        return f"Deformation({type(self.field).__name__}, shape={self.shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along each axis."""
        return self.field.shape

    @property
    def tau(self) -> Tensor:
        """The displacements at the pixels, shape (d, n_1, ..., n_d), in pixels."""
        return self.field.displacement()

    @classmethod
    def random(
        cls,
        shape: Sequence[int],
        *,
        grad_inf: float | None = None,
        tau_inf: float | None = None,
        cut: int = 3,
        seed: int = 0,
        basis: Basis = "sine",
    ) -> Deformation:
        r"""Return a random band-limited deformation of a given size.

        Parameters
        ----------
        shape : sequence of int
            Pixels along each of 1, 2 or 3 axes.
        grad_inf, tau_inf : float
            Largest :math:`\|\nabla\tau\|_\infty` and :math:`\|\tau\|_\infty` (pixels).  The field is scaled so that
            neither is exceeded and one is met, to a relative 1e-6 from below.  At least one is needed.
        cut : int
            Independent normal coefficients for all frequencies k with :math:`|k|\le` cut + 1/2.
        seed : int
            Of the draw.
        basis : {"sine", "periodic"}
            "sine": products of half waves, which vanish on the faces of the box; "periodic": whole waves of
            mean zero.

        Raises
        ------
        ValueError
            If no size is given, or no frequency is below the cut.
        """
        sizes = _checked_shape(shape)
        limits = {"grad_inf": grad_inf, "tau_inf": tau_inf}
        if all(limit is None for limit in limits.values()):
            raise ValueError("grad_inf, tau_inf: expected at least one of them")
        for name, limit in limits.items():
            if limit is not None and not 0.0 < limit < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {limit}")
        generator = torch.Generator().manual_seed(seed)
        drawn = draw_coefficients(len(sizes), cut, 1, generator, basis=basis)
        return cls(BandlimitedField(sizes, scaled_to(sizes, drawn, basis, limits)[0], basis))

    @classmethod
    def max_entropy(
        cls, shape: Sequence[int], cut: int = 3, temperature: float = 1e-4, seed: int = 0
    ) -> Deformation:
        r"""Return a draw from the distribution of greatest entropy for its mean squared gradient.

        :math:`\tau=n\sum_{|k|\le c+1/2}C_k\prod_a\sin(k_a\pi(u_a+1/2)/n_a)`, independent
        :math:`C_k\sim N(0,T/|k|^2)` for each component, n the geometric mean of the sides.

        Parameters
        ----------
        shape : sequence of int
            Pixels along each of 1, 2 or 3 axes.
        cut : int
            c.
        temperature : float
            T; :func:`theodolite.analysis.deformation_draws.temperature_for` gives it for a displacement in pixels.
        seed : int
            Of the draw.

        References
        ----------
        Petrini, Favero, Geiger and Wyart, Relative stability toward diffeomorphisms indicates performance
        in deep nets, NeurIPS 2021, arXiv 2105.02468.
        """
        sizes = _checked_shape(shape)
        if not 0.0 < temperature < math.inf:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        generator = torch.Generator().manual_seed(seed)
        drawn = max_entropy_coefficients(sizes, cut, temperature, 1, generator)
        return cls(BandlimitedField(sizes, drawn[0]))

    @classmethod
    def affine(
        cls,
        shape: Sequence[int],
        matrix: Sequence[Sequence[float]] | Tensor,
        offset: Sequence[float] | Tensor | None = None,
    ) -> Deformation:
        r"""Return the deformation that moves what stands at u to A(u - c) + c + o, c the center.

        Parameters
        ----------
        shape : sequence of int
            Pixels along each of 1, 2 or 3 axes.
        matrix : array, shape (d, d)
            A, in the order of the axes.
        offset : array, shape (d,), optional
            o, in pixels.

        Raises
        ------
        ValueError
            If the matrix has another shape or no inverse.
        """
        sizes = _checked_shape(shape)
        d = len(sizes)
        A = torch.as_tensor(matrix, dtype=torch.float64)
        o = (
            torch.zeros(d, dtype=torch.float64)
            if offset is None
            else torch.as_tensor(offset, dtype=torch.float64)
        )
        if A.shape != (d, d) or o.shape != (d,):
            raise ValueError(
                f"matrix, offset: expected shapes {(d, d)} and {(d,)}, got {tuple(A.shape)} and {tuple(o.shape)}"
            )
        if not bool(torch.isfinite(A).all() and torch.isfinite(o).all()) or float(torch.linalg.det(A)) == 0.0:
            raise ValueError("matrix, offset: expected finite numbers and a matrix that has an inverse")
        return cls(AffineField(sizes, A, o))

    @classmethod
    def translation(cls, shape: Sequence[int], by: Sequence[float]) -> Deformation:
        """Return the shift by a vector of pixels, whole or not."""
        return cls.affine(shape, torch.eye(len(shape), dtype=torch.float64), by)

    @classmethod
    def scaling(cls, shape: Sequence[int], factor: float) -> Deformation:
        """Return the magnification by a factor about the center."""
        return cls.affine(shape, factor * torch.eye(len(shape), dtype=torch.float64))

    @classmethod
    def rotation(cls, shape: Sequence[int], degrees: float, axes: tuple[int, int] = (0, 1)) -> Deformation:
        """Return the rotation about the center that turns the first of two axes towards the second."""
        i, j = _plane(shape, axes)
        matrix = torch.eye(len(shape), dtype=torch.float64)
        angle = math.radians(degrees)
        matrix[i, i] = matrix[j, j] = math.cos(angle)
        matrix[j, i], matrix[i, j] = math.sin(angle), -math.sin(angle)
        return cls.affine(shape, matrix)

    @classmethod
    def shear(cls, shape: Sequence[int], amount: float, axes: tuple[int, int] = (0, 1)) -> Deformation:
        """Return the shear about the center that moves along the first axis by ``amount`` times the second."""
        i, j = _plane(shape, axes)
        matrix = torch.eye(len(shape), dtype=torch.float64)
        matrix[i, j] = amount
        return cls.affine(shape, matrix)

    @classmethod
    def tabulated(cls, tau: Tensor) -> Deformation:
        """Return the deformation by given displacements at the pixels, shape (d, n_1, ..., n_d), in pixels."""
        sizes = _checked_shape(tau.shape[1:])
        if len(tau) != len(sizes) or not tau.is_floating_point() or not bool(torch.isfinite(tau).all()):
            raise ValueError(
                f"tau: expected finite real numbers of shape (d, n_1, ..., n_d), got {tau.dtype} of shape {tuple(tau.shape)}"
            )
        return cls(TabulatedField(sizes, tau))

    def norms(self) -> dict[str, Value]:
        r"""Return the sizes of the field.

        Returns
        -------
        dict of str to Value
            ``tau_inf`` :math:`\sup|\tau|`, ``grad_inf`` :math:`\sup\|\nabla\tau\|_{op}`, ``grad_max``
            :math:`\sup\max_{ij}|\partial_j\tau_i|`, ``hess_inf`` :math:`\sup|H\tau|` (Euclidean) and ``delta_inf``
            :math:`\sup_{u,v}|\tau(u)-\tau(v)|`, over the box of all pixels.  Two-sided bounds for
            band-limited fields, exact for affine ones, scores for tabulated ones.
        """
        return self.field.norms()

    def check(self, hypothesis: Literal["mallat", "wb", "diffeomorphism"]) -> DeformationCheck:
        r"""Check what a theorem on deformations asks of the field.

        Parameters
        ----------
        hypothesis : {"mallat", "wb", "diffeomorphism"}
            :math:`\|\nabla\tau\|_\infty\le1/2` (operator norm); :math:`\|\nabla\tau\|_{\max}\le1/(2d)` (entries);
            :math:`\|\nabla\tau\|_\infty<1`, which makes :math:`u\mapsto u-\tau(u)` a diffeomorphism.

        References
        ----------
        Mallat, Group invariant scattering, CPAM 65 (2012); Wiatowski and Bölcskei, IEEE Trans. Inf. Theory
        64 (2018), arXiv 1512.06293.
        """
        limits = {"mallat": 0.5, "wb": 0.5 / len(self.shape), "diffeomorphism": 1.0}
        if hypothesis not in limits:
            raise ValueError(f"hypothesis: expected one of {', '.join(limits)}, got {hypothesis!r}")
        norm, limit = self.norms()["grad_max" if hypothesis == "wb" else "grad_inf"], limits[hypothesis]
        strict = hypothesis == "diffeomorphism"
        if norm.kind == "score":
            return DeformationCheck("undecided", norm, limit)
        if norm.high < limit or (norm.high == limit and not strict):
            return DeformationCheck("proved", norm, limit)
        refuted = norm.low > limit or (norm.low == limit and strict)
        return DeformationCheck("refuted" if refuted else "undecided", norm, limit)

    def apply(
        self,
        x: Tensor,
        interpolation: Interpolation = "fourier",
        boundary: Boundary = "periodic",
        antialias: int = 1,
    ) -> Tensor:
        r"""Return :math:`x(u-\tau(u))` at every pixel.

        Parameters
        ----------
        x : Tensor, shape (..., n_1, ..., n_d)
            Real signals, all deformed alike.
        interpolation, boundary
            See :func:`theodolite.analysis.warping.warp`.
        antialias : int
            Points a pixel along each axis at which the deformed signal is sampled before its frequencies
            above those of the grid are taken out; 1 samples at the pixels.  More than 1 needs the boundary
            "periodic" and a field that is not tabulated.

        Returns
        -------
        Tensor, shape and dtype as ``x``
            Differentiable in ``x``, and in what the field was made of.
        """
        d = len(self.shape)
        if tuple(x.shape[-d:]) != self.shape:
            raise ValueError(f"x: expected shape (..., {str(self.shape)[1:]}, got {tuple(x.shape)}")
        if antialias < 1 or (antialias > 1 and boundary != "periodic"):
            raise ValueError(
                f"antialias: expected 1, or more with boundary='periodic', got {antialias} with {boundary!r}"
            )
        tau = self.field.displacement(antialias).to(x.device)
        if antialias == 1:
            return warp(x, tau, d, interpolation, boundary)
        combs = []
        for start in itertools.product(range(antialias), repeat=d):
            steps = torch.tensor(start, dtype=tau.dtype, device=tau.device).view(-1, *[1] * d) / antialias
            comb = tau
            for a, first in enumerate(start):
                comb = comb[(slice(None),) * (a + 1) + (slice(first, None, antialias),)]
            combs.append(warp(x, comb - steps, d, interpolation, boundary))
        fine = torch.stack(combs, -1).unflatten(-1, (antialias,) * d)
        leading = x.ndim - d
        order = [i for a in range(d) for i in (leading + a, leading + d + a)]
        fine = fine.permute(*range(leading), *order).reshape(
            *x.shape[:-d], *(antialias * n for n in self.shape)
        )
        for a, n in enumerate(self.shape):
            fine = _decimated(fine, n, a - d)
        return fine

    def elementary_bound(self, x: Tensor) -> Value:
        r"""Return a proved bound of :math:`\|L_\tau x-x\|_2`.

        Parameters
        ----------
        x : Tensor, shape (..., n_1, ..., n_d)
            Real signals, whose squares are summed.

        Returns
        -------
        Value
            An upper bound of the norm in :math:`L^2` of the torus, pixels of volume 1, of the periodic
            trigonometric interpolant's change: the sum over the pixels approximates it, and may be
            larger.  Absent where the field is not one on the torus or too steep.

        Notes
        -----
        Along :math:`s\mapsto L_{s\tau}x`, :math:`\|L_\tau x-x\|\le\|\tau\|_\infty\int_0^1\|(\nabla x)(u-s\tau(u))\|ds`,
        and the change of variables has a Jacobian of at least :math:`1-sa`, :math:`a=d\|\nabla\tau\|_{\max}`, and of
        at least :math:`(1-sb)^d`, :math:`b=\|\nabla\tau\|_\infty`.  The factors of :math:`\|\tau\|_\infty\|\nabla x\|`
        are the integrals of their inverse square roots: :math:`2/(1+\sqrt{1-a})`, 1.172 at a = 1/2; and for
        d = 1, 2, 3 :math:`2/(1+\sqrt{1-b})`, :math:`-\ln(1-b)/b`, :math:`2((1-b)^{-1/2}-1)/b`.
        The smaller counts.
        """
        d = len(self.shape)
        if tuple(x.shape[-d:]) != self.shape:
            raise ValueError(f"x: expected shape (..., {str(self.shape)[1:]}, got {tuple(x.shape)}")
        if not self.field.on_torus:
            return Value.absent("the field is not known to be one on the torus of the periodic interpolant")
        norms = self.norms()
        factor = elementary_factor(norms["grad_inf"].high, norms["grad_max"].high, d)
        if math.isinf(factor):
            return Value.absent(
                {"grad_inf": norms["grad_inf"].low},
                note="the field's gradient is not below 1, so it may fold",
            )
        slope = float(gradient_norms(x.reshape(1, -1, *self.shape))[0])
        return Value.bound(
            upper=factor * norms["tau_inf"].high * slope * (1.0 + 1e-12),
            note="of the change of the periodic trigonometric interpolant in L2; sums over pixels approximate it",
        )


def elementary_factor(grad_inf: float, grad_max: float, d: int) -> float:
    """Return the factor of :meth:`Deformation.elementary_bound`, inf where the field may fold."""
    a, b = d * grad_max, grad_inf
    factors = [math.inf]
    if a < 1.0:
        factors.append(2.0 / (1.0 + math.sqrt(1.0 - a)))
    if b < 1.0:
        root = math.sqrt(1.0 - b)
        third = 2.0 / (root * (1.0 + root))
        plane = 1.0 if b == 0.0 else -math.log1p(-b) / b
        factors.append({1: 2.0 / (1.0 + root), 2: plane, 3: third}[d])
    return min(factors)


def gradient_norms(x: Tensor) -> Tensor:
    r"""Return :math:`\|\nabla x\|_2` of periodic trigonometric interpolants over the torus, pixels of volume 1.

    Parameters
    ----------
    x : Tensor, shape (batch, channels, n_1, ..., n_d)
        Real signals; squares are summed over the channels.

    Returns
    -------
    Tensor, shape (batch,), float64
    """
    d = x.ndim - 2
    sizes = x.shape[2:]
    energy = torch.fft.fftn(x.double(), dim=tuple(range(2, 2 + d))).abs().square().sum(1)
    squares = torch.zeros(sizes, dtype=torch.float64, device=x.device)
    for a, n in enumerate(sizes):
        line = (-1,) + (1,) * (d - 1 - a)
        omega = (2.0 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64, device=x.device)).view(line)
        squares = squares + omega.square()
        if n % 2 == 0:  # the highest frequency is a cosine, of half the energy that its samples have
            energy = energy * torch.where(omega.abs() > math.pi * (1.0 - 0.5 / n), 0.5, 1.0)
    return (energy * squares).flatten(1).sum(1).div(math.prod(sizes)).sqrt()


def _decimated(x: Tensor, n: int, dim: int) -> Tensor:
    """Return n samples of what is left of a periodic signal without frequencies above theirs."""
    spectrum = torch.fft.rfft(x, dim=dim).narrow(dim, 0, n // 2 + 1)
    if n % 2 == 0:
        edge = spectrum.narrow(dim, n // 2, 1).real * 2.0  # both signs of it fall on one
        spectrum = torch.cat([spectrum.narrow(dim, 0, n // 2), edge.to(spectrum.dtype)], dim)
    return torch.fft.irfft(spectrum, n=n, dim=dim) * (n / x.shape[dim])


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if len(sizes) not in (1, 2, 3) or min(sizes) < 1:
        raise ValueError(f"shape: expected 1, 2 or 3 positive sizes, got {tuple(shape)}")
    return sizes


def _plane(shape: Sequence[int], axes: tuple[int, int]) -> tuple[int, int]:
    d = len(shape)
    if len(axes) != 2 or not all(0 <= a < d for a in axes) or axes[0] == axes[1]:
        raise ValueError(f"axes: expected two different axes of {d}, got {axes}")
    return axes
