r"""Certified suprema of band-limited displacement fields and their derivatives.

A field is a finite sum of products of sines, whose derivatives are sums of the same kind.
Where a real function of exponential type :math:`\sigma` along every line is bounded by its
supremum M, the inequality of Bernstein and Szegő, :math:`p'^2+\sigma^2p^2\le\sigma^2M^2`,
makes :math:`\arccos(p/M)` vary by at most :math:`\sigma` times the distance, so that within a
distance h of where M is attained :math:`p\ge M\cos(\sigma h)`.  A norm is a supremum of such
functions (the field along a direction, its gradient between two).  Hence the box around a
grid point may hold the supremum only if the norm there is at least :math:`\cos(\sigma h)` of
the largest seen; all others are dropped, the rest halved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Basis = Literal["sine", "periodic"]
ROUNDING = 1e-12
_TOLERANCE = 1e-6
_MOST_BOXES = 200_000


def waves(n: int, count: int, basis: Basis, u: Tensor, order: int = 0) -> Tensor:
    """Return the derivative of some order of each one-dimensional wave, shape (len(u), count)."""
    if basis == "sine":
        rates = torch.arange(1, count + 1, dtype=torch.float64) * (math.pi / n)
        angles, starts = (u[:, None] + 0.5) * rates, torch.zeros(count, dtype=torch.float64)
    else:
        k = torch.arange(1, count // 2 + 1, dtype=torch.float64) * (2.0 * math.pi / n)
        rates = torch.cat([k.new_zeros(1), k, k])
        # a cosine is a sine a quarter turn ahead
        starts = torch.cat([k.new_full((1 + count // 2,), math.pi / 2.0), k.new_zeros(count // 2)])
        angles = u[:, None] * rates
    return rates**order * torch.sin(angles + starts + order * math.pi / 2.0)


def evaluate(
    shape: Sequence[int],
    coefficients: Tensor,
    basis: Basis,
    coordinates: Sequence[Tensor],
    orders: Sequence[int] | None = None,
    owner: Tensor | None = None,
) -> Tensor:
    """Return a derivative of band-limited fields, on a product grid or at single points.

    Parameters
    ----------
    shape : sequence of int
        Pixels along each axis.
    coefficients : Tensor, shape (..., d, K_1, ..., K_d)
        Of one field, or (B, d, K_1, ..., K_d) with ``owner``.
    basis : {"sine", "periodic"}
        Of the fields.
    coordinates : sequence of d Tensors, shape (m_a,) or (P,)
        Along each axis; those of single points with ``owner``.
    orders : sequence of int, optional
        Of the derivative along each axis; none when omitted.
    owner : Tensor, shape (P,), optional
        The field that is evaluated at each point.

    Returns
    -------
    Tensor, shape (..., d, m_1 * ... * m_d), or (d, P) with ``owner``
    """
    d = len(shape)
    orders = orders or (0,) * d
    counts = coefficients.shape[-d:]
    tables = [
        waves(n, K, basis, u.cpu(), order).to(coefficients.device)
        for n, K, u, order in zip(shape, counts, coordinates, orders, strict=True)
    ]
    if owner is None:
        result = coefficients
        for table in tables:  # each contraction takes the first wave axis and appends the grid's
            result = torch.tensordot(result, table, dims=([result.ndim - d], [1]))
        return result.flatten(-d)
    if len(coefficients) == 1:  # one field: the first contraction is a product of matrices
        result = torch.tensordot(coefficients[0], tables[0], dims=([1], [1])).movedim(-1, 1)
    else:
        result = _contracted(coefficients[owner].movedim(1, 0), tables[0])
    for table in tables[1:]:
        result = _contracted(result, table)
    return result


def _contracted(values: Tensor, table: Tensor) -> Tensor:
    """Sum the waves of one axis at each point, shapes (d, P, K, ...) and (P, K) to (d, P, ...)."""
    return (values * table.view(*table.shape, *[1] * (values.ndim - 3))).sum(2)


def displacements(shape: Sequence[int], coefficients: Tensor, basis: Basis, oversampling: int = 1) -> Tensor:
    """Return the values of band-limited fields at the multiples of 1/oversampling.

    Parameters
    ----------
    shape : sequence of int
        Pixels along each axis.
    coefficients : Tensor, shape (..., d, K_1, ..., K_d)
        Of the fields.
    basis : {"sine", "periodic"}
        Of the fields.
    oversampling : int
        Points a pixel along each axis.

    Returns
    -------
    Tensor, shape (..., d, oversampling * n_1, ..., oversampling * n_d)
    """
    sizes = [n * oversampling for n in shape]
    lines = [torch.arange(m, dtype=torch.float64) / oversampling for m in sizes]
    return evaluate(shape, coefficients, basis, lines).unflatten(-1, sizes)


def operator_norm(matrices: Tensor) -> Tensor:
    """Return the operator norms of matrices, shape (d, d, ...) to (...)."""
    d = len(matrices)
    if d == 1:
        return matrices[0, 0].abs()
    if d == 2:
        (a, b), (c, e) = matrices
        return (torch.hypot(a + e, b - c) + torch.hypot(a - e, b + c)) / 2.0
    return torch.linalg.svdvals(matrices.movedim((0, 1), (-2, -1)))[..., 0]


def norm_at(
    name: str,
    shape: Sequence[int],
    coefficients: Tensor,
    basis: Basis,
    coordinates: Sequence[Tensor],
    owner: Tensor | None = None,
) -> Tensor:
    """Return what a norm is the supremum of, shape (..., points); arguments as of :func:`evaluate`."""
    d = len(shape)

    def derivative(*axes: int) -> Tensor:
        orders = [axes.count(a) for a in range(d)]
        return evaluate(shape, coefficients, basis, coordinates, orders, owner)

    if name == "tau_inf":
        return derivative().norm(dim=-2)
    if name == "hess_inf":
        squares = [(1 + (a != b)) * derivative(a, b).square().sum(-2) for a in range(d) for b in range(a + 1)]
        return torch.stack(squares).sum(0).sqrt()
    gradient = torch.stack([derivative(b) for b in range(d)]).movedim(-2, 0)
    return operator_norm(gradient) if name == "grad_inf" else gradient.abs().amax((0, 1))


def band_limits(shape: Sequence[int], coefficients: Tensor, basis: Basis) -> list[float]:
    """Return the largest angular frequency along each axis, in radians per pixel."""
    counts = coefficients.shape[-len(shape) :]
    scale = {"sine": lambda K: math.pi * K, "periodic": lambda K: 2.0 * math.pi * (K // 2)}[basis]
    return [scale(K) / n for K, n in zip(counts, shape, strict=True)]


def supremum(
    shape: Sequence[int], coefficients: Tensor, basis: Basis, name: str, tolerance: float = _TOLERANCE
) -> tuple[Tensor, Tensor]:
    """Return certified ends of a norm of each of several band-limited fields.

    Parameters
    ----------
    shape : sequence of int
        Pixels along each axis.
    coefficients : Tensor, shape (B, d, K_1, ..., K_d), float64
        Of the fields.
    basis : {"sine", "periodic"}
        Of the fields.
    name : {"tau_inf", "grad_inf", "grad_max", "hess_inf"}
        The norm.
    tolerance : float
        Relative distance of the ends that is aimed at; missed where the norm is nearly attained on a
        curve or surface, which would take too many points.

    Returns
    -------
    lower, upper : Tensor, shape (B,)
        The lower end is the norm at a point that was evaluated.
    """
    d = len(shape)
    rates = band_limits(shape, coefficients, basis)
    counts = [max(2, math.ceil(2.0 * d * n * rate / math.pi)) for n, rate in zip(shape, rates, strict=True)]
    half = [n / m / 2.0 for n, m in zip(shape, counts, strict=True)]
    lines = [
        (2 * torch.arange(m, dtype=torch.float64) + 1) * h - 0.5 for m, h in zip(counts, half, strict=True)
    ]
    values = norm_at(name, shape, coefficients, basis, lines)
    lower = values.amax(1)
    angle = sum(h * rate for h, rate in zip(half, rates, strict=True))
    kept = values >= (lower * (math.cos(angle) * (1.0 - ROUNDING)))[:, None]
    owner, place = kept.nonzero(as_tuple=True)
    mesh = torch.stack([line.flatten() for line in torch.meshgrid(*lines, indexing="ij")])
    points = mesh[:, place]
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * d).view(-1, d)
    while 1.0 / math.cos(angle) > 1.0 + tolerance and len(owner) * 2**d <= _MOST_BOXES:
        steps = corners * torch.tensor(half, dtype=torch.float64)
        points = (points[:, :, None] + steps.T[:, None, :]).flatten(1)
        owner = owner.repeat_interleave(2**d)
        half, angle = [h / 2.0 for h in half], angle / 2.0
        values = norm_at(name, shape, coefficients, basis, list(points), owner)
        lower = lower.scatter_reduce(0, owner, values, "amax")
        keep = values >= lower[owner] * (math.cos(angle) * (1.0 - ROUNDING))
        owner, points = owner[keep], points[:, keep]
    return lower, lower * ((1.0 + ROUNDING) / math.cos(angle))


def scaled_to(
    shape: Sequence[int], coefficients: Tensor, basis: Basis, limits: dict[str, float | None]
) -> Tensor:
    """Scale each field so that the certified upper ends of its norms meet the limits, the tightest exactly.

    Parameters
    ----------
    shape : sequence of int
        Pixels along each axis.
    coefficients : Tensor, shape (B, d, K_1, ..., K_d), float64
        Of fields that are not zero.
    basis : {"sine", "periodic"}
        Of the fields.
    limits : dict of str to float or None
        By the norm's name; None is no limit.

    Returns
    -------
    Tensor, shape as ``coefficients``
    """
    factor = torch.full((len(coefficients),), math.inf, dtype=torch.float64)
    for name, limit in limits.items():
        if limit is not None:
            upper = supremum(shape, coefficients, basis, name)[1]
            factor = torch.minimum(factor, limit * (1.0 - 1e-13) / upper)
    return coefficients * factor.view(-1, *[1] * (coefficients.ndim - 1))


def diameter(points: Tensor) -> tuple[float, float]:
    """Return ends of the largest distance between two of the points, shape (d, P); the lower is attained."""
    center = ((points.amax(1) + points.amin(1)) / 2.0)[:, None]
    from_center = (points - center).norm(dim=0)
    end, seen = points[:, from_center.argmax()], 0.0
    for _ in range(4):  # from one end of a long chord to the other
        distance = (points - end[:, None]).norm(dim=0)
        end, seen = points[:, distance.argmax()], max(seen, float(distance.max()))
    # of two points at least this far apart, each is at least this less the largest distance from the center
    points = points[:, from_center >= (seen - from_center.max()) * (1.0 - ROUNDING)]
    directions, cosine = _directions(len(points))
    lower, width = seen, 0.0
    for part in directions.to(points.device).split(64):
        along = part @ points
        high, low = along.max(1), along.min(1)
        width = max(width, float((high.values - low.values).max()))
        lower = max(lower, float((points[:, high.indices] - points[:, low.indices]).norm(dim=0).max()))
    return lower, max(lower, width / cosine)


def _directions(d: int) -> tuple[Tensor, float]:
    """Return unit vectors (m, d) and the least cosine between any vector and the nearest of them or its opposite."""
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64), 1.0
    if d == 2:
        angles = torch.arange(360, dtype=torch.float64) * (math.pi / 360.0)
        return torch.stack([angles.cos(), angles.sin()], 1), math.cos(math.pi / 720.0)
    m = 14  # on three faces of the cube, a vector to the middle of each of m x m squares
    line = (torch.arange(m, dtype=torch.float64) + 0.5) * (2.0 / m) - 1.0
    square = torch.cartesian_prod(line, line)
    ones = torch.ones(len(square), 1, dtype=torch.float64)
    faces = [torch.cat([square[:, :a], ones, square[:, a:]], 1) for a in range(3)]
    # the radial projection onto the sphere shortens chords, and a chord r spans the angle 2 asin(r / 2)
    angle = 2.0 * math.asin(math.sqrt(2.0) / m / 2.0)
    return torch.nn.functional.normalize(torch.cat(faces), dim=1), math.cos(angle)
