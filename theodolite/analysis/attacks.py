r"""Upper ends of robustness radii: perturbations that were found, and re-verified.

The radius of a point is :math:`\inf\{\|\delta\|_2 : \arg\max f(x + \delta) \ne y\}`.  Any
perturbation that misclassifies bounds it from above; finding none proves nothing.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

_OVERSHOOT = 1.02
_BISECTIONS = 40
_PULLS = 6  # attempts of the re-verification to push a point over the boundary


def radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: Literal["l2"] = "l2",
    *,
    steps: int = 20,
    refinements: int = 12,
    targets: int = 3,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return upper ends of the radii of points, by a DeepFool-type attack.

    Each of the classes nearest by linearization is approached by projections onto its
    linearized boundary; a point found is pulled back to the boundary by bisection and
    then slid along it towards the original.  Every returned number belongs to a point
    that a float64 copy of the model misclassifies strictly.

    Parameters
    ----------
    model : nn.Module
        Maps (n, ...) to scores (n, K), K at least 2; samples do not mix.  It is not changed.
    x : Tensor, shape (n, ...)
        Real inputs.
    y : Tensor, shape (n,)
        Classes.
    norm : {"l2"}
        Norm of the perturbation.
    steps : int
        Projections for each class.
    refinements : int
        Slides along the boundary.
    targets : int
        Classes that are tried, at most K - 1.
    dtype : torch.dtype
        Precision of the search (not of the verification).

    Returns
    -------
    Tensor, shape (n,), float64, on the CPU
        Zero for misclassified points (a tie counts as one), inf where no misclassified point was found.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Moosavi-Dezfooli, Fawzi and Frossard, CVPR 2016 (DeepFool); Croce and Hein, ICML 2020,
    for the projection from the original point.
    """
    if norm != "l2":
        raise ValueError(f"norm: expected 'l2', got {norm!r}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected real inputs, got dtype {x.dtype}")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"y: expected {len(x)} class numbers, got {y.dtype} of shape {tuple(y.shape)}")
    exact = _frozen(model, torch.float64)
    search = exact if dtype == torch.float64 else _frozen(model, dtype)
    return _Attack(search, exact, x, y).run(steps, refinements, targets).cpu()


def _frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    copied = copy.deepcopy(model).to(dtype)
    return copied.requires_grad_(False)


class _Attack:
    """State of an attack on a batch: the best perturbations so far."""

    def __init__(self, search: nn.Module, exact: nn.Module, x: Tensor, y: Tensor) -> None:
        self.search = search
        self.exact = exact
        self.dtype = next((p.dtype for p in search.parameters()), x.dtype)
        self.x64 = x.detach().double()
        self.x = x.detach().to(self.dtype)
        self.y = y

    def run(self, steps: int, refinements: int, targets: int) -> Tensor:
        best = torch.zeros_like(self.x)
        with torch.no_grad():
            logits = self.exact(self.x64)
        right = self.excess(logits) < 0
        norms = torch.where(right, torch.inf, 0.0).to(self.x64)
        alive = right.nonzero().flatten()
        if len(alive) and logits.shape[1] > 1:
            order = self.nearest_classes(alive, min(targets, logits.shape[1] - 1))
            for column in order.T:
                found, perturbation = self.approach(alive, column, steps)
                better = found & (self.size(perturbation) < norms[alive].to(self.dtype))
                best[alive[better]] = perturbation[better]
                norms[alive[better]] = self.size(perturbation[better]).double()
            hit = alive[torch.isfinite(norms[alive])]
            for _ in range(refinements if len(hit) else 0):
                perturbation = self.slide(hit, best[hit])
                better = self.size(perturbation) < self.size(best[hit])
                best[hit[better]] = perturbation[better]
            norms[hit] = self.verify(hit, best[hit].double())
        return norms

    def excess(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return max_{j != y} f_j - f_y, positive where strictly misclassified."""
        y = (self.y if rows is None else self.y[rows])[:, None]
        return logits.scatter(1, y, -torch.inf).amax(1) - logits.gather(1, y).squeeze(1)

    def size(self, perturbation: Tensor) -> Tensor:
        return perturbation.flatten(1).norm(dim=1)

    @torch.no_grad()
    def is_wrong(self, rows: Tensor, perturbation: Tensor) -> Tensor:
        return self.excess(self.search(self.x[rows] + perturbation), rows) > 0

    def differences(self, rows: Tensor, at: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return f_y - f_j at points, shape (n,), and its gradient, shape (n, d)."""
        at = at.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.search(at)
            gap = logits.gather(1, self.y[rows][:, None]) - logits.gather(1, classes[:, None])
            gradient = None  # stays so where a forward cuts its output off, by torch.no_grad() say
            if gap.requires_grad:
                (gradient,) = torch.autograd.grad(gap.sum(), at, allow_unused=True)
        gradient = torch.zeros_like(at) if gradient is None else gradient
        return gap.detach().squeeze(1), gradient.flatten(1)

    def nearest_classes(self, rows: Tensor, count: int) -> Tensor:
        """Return the classes whose linearized boundaries are nearest, shape (n, count)."""
        with torch.no_grad():
            logits = self.search(self.x[rows])
        K = logits.shape[1]
        # with very many classes only those with the highest scores are linearized
        candidates = logits.scatter(1, self.y[rows][:, None], -torch.inf).topk(min(K - 1, 20)).indices
        distances = []
        for column in candidates.T:
            gap, gradient = self.differences(rows, self.x[rows], column)
            distances.append(gap / gradient.norm(dim=1).clamp_min(1e-30))
        order = torch.stack(distances, 1).argsort(dim=1, stable=True)[:, :count]
        return candidates.gather(1, order)

    def approach(self, rows: Tensor, classes: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Walk to one class a row; return where it was reached, and the perturbations at the boundary."""
        perturbation = torch.zeros_like(self.x[rows])
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        walking = torch.arange(len(rows), device=rows.device)
        for _ in range(steps):
            if len(walking) == 0:
                break
            subset = rows[walking]
            step = self.towards(subset, perturbation[walking], classes[walking])
            perturbation[walking] = step
            wrong = self.is_wrong(subset, step)
            found[walking[wrong]] = True
            walking = walking[~wrong]
        hit = found.nonzero().flatten()
        if len(hit):
            perturbation[hit] = self.pull_back(rows[hit], perturbation[hit])
        return found, perturbation

    def towards(self, rows: Tensor, perturbation: Tensor, classes: Tensor) -> Tensor:
        """Return one step of DeepFool: onto the boundary of the linearization at the current point."""
        gap, gradient = self.differences(rows, self.x[rows] + perturbation, classes)
        length = gap.clamp_min(0.0) + 1e-6 * gradient.norm(dim=1)
        step = -(length / gradient.square().sum(1).clamp_min(1e-30))[:, None] * gradient
        return perturbation + _OVERSHOOT * step.reshape(perturbation.shape)

    def pull_back(self, rows: Tensor, perturbation: Tensor) -> Tensor:
        """Return the shortest misclassified multiple that bisection finds."""
        low = torch.zeros(len(rows), dtype=self.dtype, device=self.x.device)
        high = torch.ones_like(low)
        shape = (-1, *(1 for _ in perturbation.shape[1:]))
        for _ in range(_BISECTIONS if self.dtype == torch.float64 else 16):
            middle = (low + high) / 2
            wrong = self.is_wrong(rows, middle.reshape(shape) * perturbation)
            high = torch.where(wrong, middle, high)
            low = torch.where(wrong, low, middle)
        return high.reshape(shape) * perturbation

    def slide(self, rows: Tensor, perturbation: Tensor) -> Tensor:
        """Project the original point onto the boundary as linearized at the point found.

        The result is pulled back to the boundary where it misclassifies, and is as long
        as before where it does not.
        """
        at = self.x[rows] + perturbation
        with torch.no_grad():
            logits = self.search(at)
        rival = logits.scatter(1, self.y[rows][:, None], -torch.inf).argmax(1)
        gap, gradient = self.differences(rows, at, rival)
        flat = perturbation.flatten(1)
        squared = gradient.square().sum(1).clamp_min(1e-30)
        # nearest point to 0 with gap + gradient . (delta - perturbation) = 0
        target = (((gradient * flat).sum(1) - gap) / squared)[:, None] * gradient
        moved = perturbation.clone()
        # half of the way first would be safer, all of it is better: both are tried
        for share in (1.0, 0.5):
            candidate = (_OVERSHOOT * (flat + share * (target - flat))).reshape(perturbation.shape)
            shorter = self.is_wrong(rows, candidate) & (self.size(candidate) < _OVERSHOOT * self.size(moved))
            if bool(shorter.any()):
                pulled = self.pull_back(rows[shorter], candidate[shorter])
                better = self.size(pulled) < self.size(moved[shorter])
                moved[shorter.nonzero().flatten()[better]] = pulled[better]
        return moved

    @torch.no_grad()
    def verify(self, rows: Tensor, perturbation: Tensor) -> Tensor:
        """Return the norms of perturbations that the float64 copy misclassifies strictly, else inf."""
        norms = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=perturbation.device)
        pending = torch.arange(len(rows), device=perturbation.device)
        factor = 1.0
        for attempt in range(_PULLS):
            points = self.x64[rows[pending]] + factor * perturbation[pending]
            wrong = self.excess(self.exact(points), rows[pending]) > 0
            # the difference of the points themselves, so that rounding of the sum is accounted for
            moved = (points - self.x64[rows[pending]]).flatten(1).norm(dim=1)
            norms[pending[wrong]] = moved[wrong] * (1.0 + 1e-12)
            pending = pending[~wrong]
            if len(pending) == 0:
                break
            factor = 1.0 + 10.0 ** (attempt - 7)
        return norms
