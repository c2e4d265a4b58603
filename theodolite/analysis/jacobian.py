"""Lower bounds of a network's Lipschitz constant from its Jacobian at sample points.

The Jacobian tells where to look and in which direction; the bound itself is a difference
quotient along that direction, which holds for any function, differentiable there or not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROWS = 32  # up to so many outputs the Jacobian is formed
_POWER_STEPS = 8
_STEP_SIZES = (1e-2, 1e-3, 1e-4, 1e-5)
_TINY_STEPS = (3e-7, 3e-8, 3e-9)  # for measuring the rounding inside the network


class NoDerivative(ValueError):  # noqa: N818  (an outcome, not an error)
    """Raised when a network's output has no derivative in its input."""


def jacobian_directions(
    model: nn.Module, x: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return the spectral norm of the Jacobian at each point, and its right singular vector.

    With up to 32 outputs from the whole Jacobian, otherwise by power iteration (then the
    norms are from below).

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, with outputs (n, ...); samples do not mix.
    x : Tensor, shape (n, ...)
    generator : torch.Generator, optional
        For the start of the power iteration; seeded with 0 by default.

    Returns
    -------
    norms : Tensor, shape (n,)
    directions : Tensor, shape (n, ...)
        Of norm one, or zero where the Jacobian is zero.

    Raises
    ------
    NoDerivative
        If the output has no derivative in the input.
    """
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = _outputs(model, x)
        if not y.requires_grad:
            raise NoDerivative("the output has no derivative in the input")
        if y.shape[1] <= _ROWS:
            rows = [_gradient(y[:, k].sum(), x) for k in range(y.shape[1])]
            right = _top_right(torch.stack([row.flatten(1) for row in rows], 1))
        else:
            right = _power(model, x, y, generator)
    norms = right.norm(dim=1)
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    return norms, (right / safe[:, None]).reshape(x.shape)


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y.reshape(len(x), -1)


def _gradient(scalar: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(scalar, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.detach()


def _top_right(jacobian: Tensor) -> Tensor:
    """Return J'u for the top left singular vector u of each (K, d) matrix, shape (n, d)."""
    _, vectors = torch.linalg.eigh(jacobian @ jacobian.mT)
    return (jacobian.mT @ vectors[..., -1:]).squeeze(-1)


def _power(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return J'u after power iteration with J J'; J v by differences, as not all can be derived twice."""
    generator = generator or torch.Generator().manual_seed(0)
    u = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    right = torch.zeros_like(x).flatten(1)
    step = torch.finfo(x.dtype).eps ** 0.5 * x.detach().flatten(1).norm(dim=1).clamp_min(1.0)
    for _ in range(_POWER_STEPS):
        u = u / u.norm(dim=1, keepdim=True).clamp_min(1e-30)
        (pulled,) = torch.autograd.grad(y, x, u, retain_graph=True)
        right = pulled.flatten(1)
        shift = step[:, None] * right / right.norm(dim=1, keepdim=True).clamp_min(1e-30)
        with torch.no_grad():
            pushed = _outputs(model, x + shift.reshape(x.shape)) - y
        u = torch.where(pushed.any(1, keepdim=True) & torch.isfinite(pushed), pushed, u)
    return right


def lipschitz_lower(
    model: nn.Module,
    x: Tensor,
    *,
    search: nn.Module | None = None,
    batch: int = 64,
    generator: torch.Generator | None = None,
) -> tuple[float, int]:
    """Return a lower bound of the Lipschitz constant, and the row of x it was found at.

    Parameters
    ----------
    model : nn.Module
        In float64 and in evaluation mode.
    x : Tensor, shape (n, ...), float64
        Points at which to take the Jacobian.
    search : nn.Module, optional
        The same network in a faster precision, in which the best points are chosen.
    batch : int
        Points handled at once.
    generator : torch.Generator, optional
        For the power iteration that networks with many outputs need.

    Returns
    -------
    lower : float
    row : int

    Raises
    ------
    NoDerivative
        If the output has no derivative in the input.
    """
    search = search or model
    dtype = next((p.dtype for p in search.parameters()), x.dtype)
    norms = torch.cat([jacobian_directions(search, part.to(dtype), generator)[0] for part in x.split(batch)])
    best = norms.nan_to_num(-1.0).topk(min(4, len(x))).indices
    _, directions = jacobian_directions(model, x[best], generator)
    lower, row = 0.0, int(best[0])
    for k, index in enumerate(best.tolist()):
        quotient = _difference_quotient(model, x[index], directions[k])
        if quotient > lower:
            lower, row = quotient, index
    return lower, row


@torch.no_grad()
def _difference_quotient(model: nn.Module, x: Tensor, direction: Tensor) -> float:
    """Return the largest central difference quotient at a point, less a margin for rounding."""
    scale = max(1.0, float(x.norm()))
    steps = scale * torch.tensor(_STEP_SIZES + _TINY_STEPS, dtype=x.dtype, device=x.device)
    shift = steps.reshape(-1, *(1 for _ in x.shape)) * direction
    ahead, behind = (x + shift), (x - shift)
    up, down = _outputs(model, torch.cat([ahead, behind])).chunk(2)
    change = (up - down).norm(dim=1)
    distance = (ahead - behind).flatten(1).norm(dim=1)
    used = len(_STEP_SIZES)
    # over tiny steps the network is a line, and what departs from it is rounding on the way
    noise = (change[used:] - distance[used:] * (change[used - 1] / distance[used - 1])).abs().max()
    margin = 1e-12 * (up.norm(dim=1) + down.norm(dim=1)) + 4.0 * noise
    quotient = ((change - margin) / distance)[:used]
    quotient = quotient[torch.isfinite(quotient)]
    return max(0.0, float(quotient.max())) * (1.0 - 1e-12) if len(quotient) else 0.0
