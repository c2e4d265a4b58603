"""Lie derivatives of a model: how fast it stops commuting with a flow of its input.

A field moves the points of a grid; its flow T_t moves an input along it, and T'_t the output
(or leaves it alone: invariance).  L f(x) = d/dt T'_{-t} f(T_t x) at t = 0 is one
forward-mode derivative: df applied to the velocity A x of the input, less the velocity A' f(x)
of the output.  Velocities are derivatives of interpolants (see ``analysis.grid_sampling``):
of the trigonometric one for translations, of the cubic one with mirrored borders otherwise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from theodolite.analysis.forward_mode import forward_mode
from theodolite.analysis.grid_sampling import cubic_slope, fourier_slope
from theodolite.analysis.sample_mean import mean_of
from theodolite.value import Value

Method = Literal["forward mode", "central difference"]
FAMILIES = ("translation", "rotation", "scale", "shear", "stretch")
_UNITS = {
    "translation": "pixel",
    "rotation": "radian",
    "scale": "unit of log scale",
    "stretch": "unit of log scale",
    "shear": "unit of slope",
}


@dataclass(frozen=True, eq=False)
class VectorField:
    """A velocity for every point of a grid: T_t x(u) = x(u - t tau(u)) to first order.

    Attributes
    ----------
    family : str
        "translation", "rotation", "scale", "shear", "stretch", or "displacement".
    matrix : Tensor, shape (d, d)
        Linear part M of tau(u) = M u + offset, u in pixels from the grid's center.
    offset : Tensor, shape (d,)
        Constant part, in pixels.
    tau : Tensor, shape (d, n_1, ..., n_d), or None
        A tabulated field in pixels, in place of the linear one.
    """

    family: str
    matrix: Tensor
    offset: Tensor
    tau: Tensor | None = None

    @property
    def d(self) -> int:
        """Number of axes that it moves."""
        return len(self.offset)

    @property
    def unit(self) -> str:
        """Unit of t."""
        return _UNITS.get(self.family, "unit of t")

    def reads(self, a: int) -> set[int]:
        """Return the axes on whose coordinates the movement along axis ``a`` depends."""
        if self.tau is not None:
            return set(range(self.d)) if bool(self.tau[a].any()) else set()
        return {b for b in range(self.d) if float(self.matrix[a, b])}

    def moves(self, a: int) -> bool:
        """Return whether points move along axis ``a``."""
        return bool(self.reads(a)) or bool(self.offset[a])


def fields(family: str, d: int) -> list[VectorField]:
    """Return the fields of a family on ``d`` axes.

    One translation and one stretch an axis, one rotation for every pair of axes, a shear
    for every ordered pair, and one scaling of all of them.

    Parameters
    ----------
    family : {"translation", "rotation", "scale", "shear", "stretch"}
        Which.
    d : int
        Number of axes.

    Raises
    ------
    ValueError
        If the family is unknown.
    """
    eye, zero = torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    none = torch.zeros(d, d, dtype=torch.float64)
    pairs = [(a, b) for a in range(d) for b in range(d) if a != b]

    def entry(a: int, b: int) -> Tensor:
        return torch.outer(eye[a], eye[b])

    if family == "translation":
        return [VectorField(family, none, eye[a]) for a in range(d)]
    if family == "rotation":
        return [VectorField(family, entry(b, a) - entry(a, b), zero) for a, b in pairs if a < b]
    if family == "scale":
        return [VectorField(family, eye, zero)]
    if family == "shear":
        return [VectorField(family, entry(a, b), zero) for a, b in pairs]
    if family == "stretch":
        return [VectorField(family, entry(a, a), zero) for a in range(d)]
    raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")


def displacement(tau: Tensor) -> VectorField:
    """Return the field of a tabulated displacement.

    Parameters
    ----------
    tau : Tensor, shape (d, n_1, ..., n_d)
        Displacement of every point along each axis, in pixels.

    Raises
    ------
    ValueError
        If the shape is another or a number is not finite.
    """
    if tau.ndim < 2 or len(tau) != tau.ndim - 1:
        raise ValueError(f"tau: expected shape (d, n_1, ..., n_d), got {tuple(tau.shape)}")
    if not bool(torch.isfinite(tau).all()):
        raise ValueError("tau: expected finite numbers, got NaN or infinity")
    d = len(tau)
    zero = torch.zeros(d, d, dtype=torch.float64)
    return VectorField("displacement", zero, zero[0], tau.detach().double())


def velocity(field: VectorField, x: Tensor, dims: Sequence[int | None], spacing: Sequence[float]) -> Tensor:
    """Return A x = d/dt T_t x at t = 0: minus the slopes of x along the field.

    Parameters
    ----------
    field : VectorField
        On d axes.
    x : Tensor
        Any number of dimensions.
    dims : sequence of int or None
        The dimension of each axis; None for an axis that is gone, along which nothing moves.
    spacing : sequence of float
        Pixels of the field from one sample of x to the next, along each axis.

    Returns
    -------
    Tensor
        As x.
    """
    slope = fourier_slope if field.family == "translation" else cubic_slope
    result = torch.zeros_like(x)
    for a, dim in enumerate(dims):
        if dim is not None and x.shape[dim] > 1 and field.moves(a):
            result -= _along(field, a, x, dims, spacing) / spacing[a] * slope(x, dim)
    return result


def _along(
    field: VectorField, a: int, x: Tensor, dims: Sequence[int | None], spacing: Sequence[float]
) -> Tensor:
    """Return the displacement along axis ``a``, in pixels, broadcastable against x."""
    if field.tau is not None:
        tau = field.tau[a].to(x)
        for b, dim in enumerate(dims):
            assert dim is not None, "tabulated fields need every axis"
            tau = _resampled(tau, b, x.shape[dim], spacing[b])
        order = sorted(range(len(dims)), key=lambda b: cast(int, dims[b]))
        return tau.permute(order).reshape([n if at in dims else 1 for at, n in enumerate(x.shape)])
    result = field.offset[a].to(x)
    for b in field.reads(a):
        dim = dims[b]
        assert dim is not None, "an axis that the field reads is gone"
        n = x.shape[dim]
        places = (torch.arange(n, dtype=x.dtype, device=x.device) - (n - 1) / 2.0) * spacing[b]
        shape = [n if at == dim else 1 for at in range(x.ndim)]
        result = result + float(field.matrix[a, b]) * places.view(shape)
    return result


def _resampled(tau: Tensor, dim: int, n: int, spacing: float) -> Tensor:
    """Read a field between its points, linearly, at n points around the same center."""
    m = tau.shape[dim]
    if m == n and spacing == 1.0:
        return tau
    at = (torch.arange(n, dtype=tau.dtype, device=tau.device) - (n - 1) / 2.0) * spacing + (m - 1) / 2.0
    at = at.clamp(0, m - 1)
    low = at.floor().clamp(max=max(m - 2, 0))
    weight = (at - low).view([-1 if d == dim else 1 for d in range(tau.ndim)])
    before, after = (tau.index_select(dim, (low.long() + k).clamp(max=m - 1)) for k in (0, 1))
    return before + weight * (after - before)


@dataclass(frozen=True, eq=False)
class LieDerivative:
    """The Lie derivative of a model at some inputs.

    Attributes
    ----------
    field : VectorField
        Along which.
    value : Tensor, shape (n, ...)
        L f(x), as the model's output.
    output : Tensor, shape (n, ...)
        f(x).
    method : {"forward mode", "central difference"}
        The first is exact to rounding, given the interpolation.
    error : Tensor, shape (n,)
        Size of the central difference's error for each input, estimated from two steps; 0 for
        forward mode.
    """

    field: VectorField
    value: Tensor
    output: Tensor
    method: Method
    error: Tensor

    @property
    def relative(self) -> Tensor:
        """|L f(x)| / |f(x)| for each input, shape (n,): 0 where both are 0."""
        return relative_size(self.value, self.output)

    def lee(self, confidence: float = 0.95) -> Value:
        """Return the local equivariance error, E |L f|^2 / dim, with an interval over the inputs."""
        squares = self.value.flatten(1).double().square().mean(1)
        size = float(self.output.double().square().mean())
        n, by_word = len(squares), "" if self.method == "forward mode" else ", by central differences"
        rounding = (64.0 * torch.finfo(self.value.dtype).eps) ** 2 * size
        unit = f"per {self.field.unit} squared"
        return mean_of(
            squares, rounding=rounding, what=f"{n} inputs{by_word}", confidence=confidence, unit=unit
        )


def relative_size(part: Tensor, whole: Tensor) -> Tensor:
    """Return |part| / |whole| for each sample, shape (n,), float64: 0 for 0/0, else inf where whole is 0."""
    sizes = [t.detach().flatten(1).norm(dim=1).double() for t in (part, whole)]
    return torch.where(sizes[0] == 0, 0.0, sizes[0] / sizes[1])


def lie_derivative(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    field: VectorField,
    out_action: Literal["same"] | None = None,
    *,
    method: Method | None = None,
) -> LieDerivative:
    """Return the Lie derivative of a model along a field.

    Parameters
    ----------
    model : nn.Module or function
        Maps (n, ...) to one Tensor (n, ...).
    x : Tensor, shape (n, C, n_1, ..., n_d)
        Finite floating numbers; the field moves the last d axes.
    field : VectorField
        From :func:`fields` or :func:`displacement`.
    out_action : {"same"} or None
        Whether the flow moves the last d axes of the output too; where these are m_a
        in place of n_a points, they stand n_a / m_a pixels apart.
    method : {"forward mode", "central difference"}, optional
        The second is used where an operation lacks a forward-mode derivative, if None.

    Returns
    -------
    LieDerivative

    Raises
    ------
    ValueError
        If an argument does not fit the field, or an operation lacks a forward-mode derivative
        and the model runs in no float64 for central differences either.

    References
    ----------
    Gruver, Finzi, Goldblum and Wilson, "The Lie derivative for measuring learned
    equivariance", ICLR 2023, arXiv 2210.02984.
    """
    _check(x, field, out_action)
    motion = velocity(field, x, range(x.ndim - field.d, x.ndim), [1.0] * field.d)
    slope: Tensor | None = None
    if method != "central difference":
        try:
            output, slope = _forward_mode(model, x, motion)
        except NotImplementedError as error:
            if method is not None:
                raise ValueError(f"model: {_first_line(error)}") from error
    error_size = torch.zeros(len(x), dtype=torch.float64)
    used: Method = "forward mode"
    if slope is None:
        used = "central difference"
        output, slope, error_size = _central_difference(model, x, field)
    if out_action == "same":
        if output.ndim <= field.d:
            raise ValueError(
                f"model: expected an output with {field.d} axes beside samples, got shape {tuple(output.shape)}"
            )
        spacing = [n / m for n, m in zip(x.shape[-field.d :], output.shape[-field.d :], strict=True)]
        slope = slope - velocity(field, output, range(output.ndim - field.d, output.ndim), spacing)
    return LieDerivative(field, slope, output, used, error_size)


def _check(x: Tensor, field: VectorField, out_action: str | None) -> None:
    if out_action not in (None, "same"):
        raise ValueError(f"out_action: expected 'same' or None, got {out_action!r}")
    if not x.is_floating_point() or x.ndim < field.d + 1:
        raise ValueError(
            f"x: expected floating numbers with samples and {field.d} axes, got {x.dtype} of shape {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x: expected finite numbers, got NaN or infinity")
    if field.tau is not None and field.tau.shape[1:] != x.shape[x.ndim - field.d :]:
        sizes = tuple(x.shape[x.ndim - field.d :])
        raise ValueError(f"tau: expected points {sizes} as x has, got {tuple(field.tau.shape[1:])}")


def _forward_mode(model: Callable[[Tensor], Tensor], x: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    with forward_mode():
        found = torch.func.jvp(model, (x,), (motion,))
    return found[0].detach(), found[1].detach()


def _central_difference(
    model: Callable[[Tensor], Tensor], x: Tensor, field: VectorField
) -> tuple[Tensor, Tensor, Tensor]:
    """Return f(x), its slope along the field in float64, and how far two steps disagree about it."""
    wide = copy.deepcopy(model).double() if isinstance(model, nn.Module) else model
    x = x.double()
    motion = velocity(field, x, range(x.ndim - field.d, x.ndim), [1.0] * field.d)
    # the cube root of the rounding, relative to the input's own size against the motion's
    step = 1e-5 * float(x.norm()) / max(float(motion.norm()), 1e-300)
    step = step if 0.0 < step < math.inf and bool(motion.any()) else 1.0
    with torch.no_grad():
        try:
            output = wide(x)
            slopes = [(wide(x + h * motion) - wide(x - h * motion)) / (2.0 * h) for h in (step, step / 2.0)]
        except RuntimeError as error:
            raise ValueError(
                f"model: has no forward-mode derivative and does not run in float64 ({_first_line(error)})"
            ) from error
    best = (4.0 * slopes[1] - slopes[0]) / 3.0
    return output, best, (slopes[1] - slopes[0]).flatten(1).norm(dim=1)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
