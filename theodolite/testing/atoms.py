"""Public check for those who write a family of subnetworks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.core.atom import Atom
from theodolite.core.params import Params, count, join, select
from theodolite.core.problem import Problem
from theodolite.linalg.lanczos import gamma
from theodolite.losses.base import Loss, Support
from theodolite.losses.squared import SquaredLoss
from theodolite.polar.ascent import ascend
from theodolite.value import Value

_FACTORS = (0.25, 0.5, 2.0, 4.0)


def check_atom(
    atom: Atom,
    *,
    loss: Loss | None = None,
    seed: int = 0,
    trials: int = 5,
    searches: int = 200,
    reference: Callable[[Tensor], float] | None = None,
) -> None:
    """Hold a family of subnetworks to what a certificate relies on.

    Use tiny instances (n k up to some hundreds): each unit's predictions are formed one by one,
    and gradients are compared with differences.

    Parameters
    ----------
    atom : Atom
        What is checked.
    loss : Loss, optional
        For the test of weak duality; squared error of random targets by default.
    seed : int
        Of the random params and dual points.
    trials : int
        Number of random dual points at which the polar is checked.
    searches : int
        Number of random subnetworks that try to beat each upper end; the best of them ascend.
    reference : function(Q) -> float, optional
        The polar by brute force, to about 1e-6.

    Raises
    ------
    AssertionError
        With one sentence on what does not hold.
    """
    check = _Check(atom, seed)
    check.shapes()
    check.homogeneity()
    check.vanishing()
    check.predictions()
    check.gradients()
    check.rounding()
    check.merging()
    for trial in range(trials):
        check.polar(trial, searches, reference)
    check.zero_dual_point()
    check.weak_duality(loss)
    check.device()


class _Check:
    """The parts of :func:`check_atom`, on one atom."""

    def __init__(self, atom: Atom, seed: int) -> None:
        self.atom, self.name = atom, type(atom).__name__
        self.generator = torch.Generator().manual_seed(seed)

    def say(self, holds: Any, sentence: str) -> None:
        """Raise with one sentence unless something holds."""
        assert bool(holds), f"{self.name}: {sentence}"

    def random(self, *shape: int) -> Tensor:
        """Return a standard normal tensor."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def number(self) -> int:
        """Return a random seed."""
        return int(torch.randint(2**31, (), generator=self.generator))

    def params(self, r: int) -> Params:
        """Return random params of random sizes."""
        return self.atom.scale(self.atom.init(r, seed=self.number()), self.random(r).exp())

    def equal(self, a: Tensor, b: Tensor, size: float, sentence: str, tolerance: float = 1e-9) -> None:
        """Compare up to rounding of numbers of a size."""
        self.say(a.shape == b.shape, f"{sentence}, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
        error = float((a - b).abs().max()) if a.numel() else 0.0
        self.say(error <= tolerance * max(size, 1e-300), f"{sentence}, got a difference of {error:.3g}")

    def size(self, params: Params) -> float:
        """Return what errors of phi are relative to."""
        return float(self.atom.row_bounds().max() * self.atom.theta(params).sum())

    def values(self, params: Params, Q: Tensor) -> Tensor:
        """Return <Q, phi> / theta of each subnetwork, 0 where theta is 0."""
        theta = self.atom.theta(params)
        inner = self.atom.each(params) @ Q.flatten()
        return torch.where(theta > 0.0, inner / theta.clamp(min=1e-300), 0.0)

    def shapes(self) -> None:
        """Check what init, phi and theta return."""
        n, k = self.atom.shape
        for r in (0, 1, 3):
            params = self.atom.init(r, seed=self.number())
            self.say(all(len(p) == r for p in params), f"expected init({r}) of leading axis {r}")
            moving = [p.dtype for p in params if p.is_floating_point()]
            self.say(set(moving) == {torch.float64}, f"expected float64 params, got {moving}")
            phi, theta = self.atom.phi(params), self.atom.theta(params)
            self.say(phi.shape == (n, k), f"expected phi of shape {(n, k)}, got {tuple(phi.shape)}")
            self.say(phi.dtype == theta.dtype == torch.float64, "expected phi and theta in float64")
            self.say(theta.shape == (r,), f"expected theta of shape ({r},), got {tuple(theta.shape)}")
            self.equal(theta, torch.ones_like(theta), 1.0, "expected init with theta = 1 each")
        self.say(not self.atom.phi(self.atom.init(0)).any(), "expected phi = 0 for no subnetworks")
        one, two = (self.atom.init(2, seed=5) for _ in range(2))
        same = all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        self.say(same, "expected the same init for the same seed")

    def homogeneity(self) -> None:
        """Check that phi and theta scale with the declared degree, and that penalty >= theta."""
        atom, params = self.atom, self.params(4)
        phi, theta, size = atom.each(params), atom.theta(params), self.size(params)
        self.say((atom.penalty(params) >= theta * (1 - 1e-12)).all(), "expected penalty >= theta")
        for alpha in _FACTORS:
            by_hand = tuple(p * alpha ** (1 / atom.degree) if p.is_floating_point() else p for p in params)
            by_scale = atom.scale(params, torch.full_like(theta, alpha))
            for scaled, how in ((by_hand, "every parameter"), (by_scale, "atom.scale")):
                sentence = (
                    f"is not positively homogeneous of degree {atom.degree} when {how} scales by {alpha}"
                )
                self.equal(atom.each(scaled), alpha * phi, alpha * size, "phi " + sentence)
                self.equal(atom.theta(scaled), alpha * theta, alpha * float(theta.max()), "theta " + sentence)
        mixed = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
        sentence = "atom.scale does not scale each subnetwork by its own factor"
        self.equal(atom.each(atom.scale(params, mixed)), mixed[:, None] * phi, 3 * size, sentence)

    def vanishing(self) -> None:
        """Check that theta >= 0 vanishes only where phi does, and that row_bounds dominate phi."""
        atom, params = self.atom, self.params(8)
        bounds = atom.row_bounds()
        self.say(bounds.shape == atom.shape[:1], f"expected row_bounds of shape ({atom.shape[0]},)")
        finite = bool(torch.isfinite(bounds).all()) and bool((bounds >= 0).all())
        self.say(finite, "row_bounds are not finite: theta may vanish where phi does not")
        wild = tuple(self.random(*p.shape) if p.is_floating_point() else p for p in params)
        candidates = [params, wild]
        for i, p in enumerate(params):
            if p.is_floating_point():
                mask = (self.random(*p.shape) > 0).to(p)
                for changed in (0.0 * p, 1e4 * p, 1e-4 * p, mask * p):
                    candidates.append((*params[:i], changed, *params[i + 1 :]))
        for candidate in candidates:
            rows = atom.each(candidate).view(count(candidate), *atom.shape).norm(dim=2)
            theta = atom.theta(candidate)
            self.say((theta >= 0.0).all(), "expected theta >= 0")
            vanished = theta <= 1e-300
            self.say(not rows[vanished].any(), "theta is 0 at params where phi is not")
            slack = 1e-12 * float(rows.max()) + 1e-300
            holds = (rows <= (1.0 + 1e-9) * theta[:, None] * bounds + slack).all()
            self.say(holds, "phi exceeds row_bounds * theta, so that theta may vanish where phi does not")

    def predictions(self) -> None:
        """Check each, predict and row_bounds on a support against phi."""
        atom, params = self.atom, self.params(3)
        n, k = atom.shape
        size, phi = self.size(params), atom.phi(params)
        single = torch.stack([atom.phi(select(params, slice(i, i + 1))).flatten() for i in range(3)])
        self.equal(single.sum(0), phi.flatten(), size, "phi is not the sum of phi of each subnetwork")
        self.equal(atom.each(params), single, size, "each differs from phi of each subnetwork alone")
        self.say(len(atom.each(atom.init(0))) == 0, "expected each of no subnetworks to be empty")
        index = torch.randperm(n * k, generator=self.generator)[: max(1, n * k // 3)]
        rows, cols = index // k, index % k
        support = Support(rows, cols, (n, k))
        sparse = atom.predict(params, support)
        self.equal(sparse, phi[rows, cols], size, "predict on a support differs from phi there")
        self.equal(atom.predict(params), phi, size, "predict differs from phi")
        parts = atom.each(params, support)
        self.equal(parts.sum(0), sparse, size, "each on a support does not sum to predict there")
        bounds = atom.row_bounds(support)
        self.say(bounds.shape == rows.shape, f"expected row_bounds of shape ({len(rows)},) on a support")
        allowed = (1.0 + 1e-9) * atom.theta(params)[:, None] * bounds
        self.say((parts.abs() <= allowed + 1e-300).all(), "row_bounds on a support do not dominate phi there")

    def gradients(self) -> None:
        """Compare autograd's gradients of <Q, phi>, theta and penalty with differences."""
        atom, params, Q = self.atom, self.params(2), self.random(*self.atom.shape)
        moving = [i for i, p in enumerate(params) if p.is_floating_point()]
        leaves = tuple(params[i].clone().requires_grad_() for i in moving)

        def whole(parts: tuple[Tensor, ...]) -> Params:
            new = dict(zip(moving, parts, strict=True))
            return tuple(new.get(i, p) for i, p in enumerate(params))

        functions: dict[str, Callable[[Params], Tensor]] = {
            "phi": lambda p: (atom.phi(p) * Q).sum(),
            "theta": lambda p: atom.theta(p).sum(),
            "penalty": lambda p: atom.penalty(p).sum(),
        }
        for name, function in functions.items():
            try:
                torch.autograd.gradcheck(
                    lambda *parts, f=function: f(whole(parts)), leaves, atol=1e-6, rtol=1e-4
                )
            except RuntimeError as error:  # GradcheckError is one
                first = str(error).strip().splitlines()[0]
                raise AssertionError(
                    f"{self.name}: the gradient of {name} differs from differences ({first})"
                ) from error

    def rounding(self) -> None:
        """Check ``depth`` in float32, where rounding errors show: against the same numbers in float64."""
        twin = copy.copy(self.atom)
        wide = copy.copy(self.atom)
        for name, held in vars(self.atom).items():
            if isinstance(held, Tensor) and held.dtype == torch.float64:
                setattr(twin, name, held.float())
                setattr(wide, name, held.float().double())
            elif isinstance(held, nn.Module):
                setattr(twin, name, copy.deepcopy(held).float())
                setattr(wide, name, copy.deepcopy(held).float().double())
        params = tuple(p.float() if p.is_floating_point() else p for p in self.params(16))
        exact = tuple(p.double() if p.is_floating_point() else p for p in params)
        theta, bounds = wide.theta(exact), wide.row_bounds().double()
        unit = 2.0**29  # float32's unit roundoff over float64's
        for i in range(count(params)):
            one = slice(i, i + 1)
            error = (twin.phi(select(params, one)).double() - wide.phi(select(exact, one))).norm(dim=1)
            allowed = gamma(self.atom.depth * unit) * bounds * theta[i]
            sentence = (
                f"phi errs by more than gamma(depth) * row_bounds * theta with depth = {self.atom.depth}"
            )
            self.say((error <= allowed + 1e-37).all(), sentence)

    def merging(self) -> None:
        """Check that merge keeps phi and does not raise theta, for distinct, repeated and no subnetworks."""
        atom, params = self.atom, self.params(4)
        half = atom.scale(params, torch.full((4,), 0.5, dtype=torch.float64))
        for several in (params, join(params, half), atom.init(0), self.params(1)):
            merged = atom.merge(several)
            size = max(self.size(several), 1e-300)
            self.equal(atom.phi(merged), atom.phi(several), size, "merge changes phi")
            before, after = float(atom.theta(several).sum()), float(atom.theta(merged).sum())
            self.say(after <= before * (1 + 1e-9), f"merge raises theta from {before:.9g} to {after:.9g}")
            self.say(count(merged) <= count(several), "merge returns more subnetworks than it got")

    def polar(self, trial: int, searches: int, reference: Callable[[Tensor], float] | None) -> None:
        """Check the polar at one random dual point."""
        atom, Q = self.atom, self.random(*self.atom.shape)
        if trial % 3 == 1:  # few rows
            Q = Q * (self.random(len(Q), 1) > 1.0)
        elif trial % 3 == 2:  # a direction that the family can fit
            Q = atom.phi(self.params(2)) + 0.1 * Q * float(Q.norm()) ** -0.5
        crude = float((Q.norm(dim=1) * atom.row_bounds()).sum())
        value = atom.polar(Q, seed=self.number())
        self.bracket(value, Q, crude, "polar")
        wide, slack = value.high * (1.0 + 1e-9), 1e-12 * crude

        cheap = atom.polar(Q, budget=0.0, seed=self.number())
        self.bracket(cheap, Q, crude, "polar with budget=0")
        self.overlap(cheap, value, 1.0, slack, "polar with budget=0 contradicts polar without")
        starts = self.params(3)
        self.overlap(
            atom.polar(Q, starts=starts, seed=1), value, 1.0, slack, "polar with starts contradicts polar"
        )
        aimed = atom.polar(Q, target=0.5 * (value.low + value.high), seed=2)
        self.bracket(aimed, Q, crude, "polar with a target")
        self.overlap(aimed, value, 1.0, slack, "polar with a target contradicts polar")
        self.overlap(
            atom.polar(3.0 * Q, seed=3), value, 3.0, 3 * slack, "the polar of 3 Q is not 3 times that of Q"
        )
        other = self.random(*Q.shape)
        total = atom.polar(Q + other).low
        apart = value.high + atom.polar(other).high
        self.say(total <= apart * (1 + 1e-9), f"the polar is not subadditive: {total:.9g} > {apart:.9g}")
        self.search(Q, value, searches, wide, slack)
        if reference is not None:
            truth = float(reference(Q))
            inside = value.low <= truth * (1 + 1e-6) + slack and truth * (1 - 1e-6) <= wide + slack
            self.say(inside, f"the polar {value} misses the reference {truth:.9g}")

    def search(self, Q: Tensor, value: Value, searches: int, wide: float, slack: float) -> None:
        """Try to beat the upper end by random search, and by ascent from its best and the witness."""
        params = self.atom.init(searches, seed=self.number())
        found = self.values(params, Q)
        best = found.argsort(descending=True)[:8]
        starts = join(select(params, best), select(value.witness, slice(0, 4)))
        fixed = [p for p in starts if not p.is_floating_point()]

        def ratio(moving: Params) -> Tensor:
            floats, rest = iter(moving), iter(fixed)
            return self.values(tuple(next(floats if p.is_floating_point() else rest) for p in starts), Q)

        with torch.enable_grad():
            _, climbed = ascend(ratio, tuple(p for p in starts if p.is_floating_point()))
        for how, values in (("random search", found), ("ascent", climbed)):
            top = float(values.max())
            self.say(top <= wide + slack, f"{how} reaches {top:.9g}, above polar.upper = {value.high:.9g}")

    def bracket(self, value: Value, Q: Tensor, crude: float, what: str) -> None:
        """Check the form of a polar, and that its first witness attains the lower end."""
        self.say(value.kind == "bound", f"{what} is of kind {value.kind}, expected bound")
        finite = value.lower is not None and value.upper is not None and math.isfinite(value.upper)
        self.say(finite, f"{what} lacks a finite end: {value}")
        self.say(
            value.low >= 0.0, f"{what} has a negative lower end, {value.low:.9g}, but 0 is always attained"
        )
        witness = value.witness
        if witness is None and value.low == 0.0:
            return
        self.say(isinstance(witness, tuple) and count(witness) > 0, f"{what} has no witness")
        theta = self.atom.theta(witness)
        self.equal(theta, torch.ones_like(theta), 1.0, f"expected witnesses of {what} with theta = 1")
        reached = float(self.values(select(witness, slice(0, 1)), Q)[0])
        sentence = f"the witness of {what} reaches {reached:.9g}, not its lower end {value.low:.9g}"
        self.say(reached >= value.low - 1e-11 * crude, sentence)
        sentence = f"the witness of {what} reaches {reached:.9g}, above its upper end {value.high:.9g}"
        self.say(reached <= value.high * (1 + 1e-9) + 1e-12 * crude, sentence)
        self.say(
            reached <= value.low + 1e-6 * crude,
            f"the lower end of {what}, {value.low:.9g}, is below its witness",
        )

    def overlap(self, a: Value, b: Value, factor: float, slack: float, sentence: str) -> None:
        """Check that two brackets of one number, a of factor times b's, have a point in common."""
        apart = a.low > factor * b.high * (1 + 1e-9) + slack or factor * b.low > a.high * (1 + 1e-9) + slack
        self.say(not apart, f"{sentence}: {a.low:.9g} .. {a.high:.9g} and {b.low:.9g} .. {b.high:.9g}")

    def zero_dual_point(self) -> None:
        """Check that the polar of 0 is 0."""
        value = self.atom.polar(torch.zeros(self.atom.shape, dtype=torch.float64))
        self.say(value.low == 0.0 and value.high <= 1e-300, f"the polar of 0 is {value}, expected 0")

    def weak_duality(self, loss: Loss | None) -> None:
        """Check that no dual bound, at random params, exceeds any objective, of descended params too."""
        atom = self.atom
        loss = SquaredLoss(self.random(*atom.shape) + atom.phi(self.params(2))) if loss is None else loss
        start = -loss.gradient(loss.zeros())
        dense = start if loss.support is None else _scattered(start, loss.support)
        lam = 0.2 * max(atom.polar(dense).low, 1e-3)
        problem = Problem(loss, atom, lam)
        points = [atom.init(0), self.params(1), self.params(4)]
        points.append(problem.solve(tol=1e-3, max_rounds=3, seed=self.number()).params)
        certificates = [problem.certify(p, seed=self.number()) for p in points]
        certificates.append(problem.certify(points[-1], budget=0.0))
        objective = min(problem.objective(p) for p in points)
        dual = max(c.dual_bound for c in certificates)
        slack = 1e-9 * max(abs(objective), 1e-300)
        self.say(
            dual <= objective + slack,
            f"weak duality fails: dual bound {dual:.9g} > objective {objective:.9g}",
        )

    def device(self) -> None:
        """Check that the atom gives the same numbers on each device there is."""
        params = self.params(2)
        for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            moved = self.atom.to(device)
            there = tuple(p.to(device) for p in params)
            phi = moved.phi(there)
            self.say(phi.device.type == device, f"phi of atom.to({device!r}) lies on {phi.device}")
            size = self.size(params)
            self.equal(phi.cpu(), self.atom.phi(params), size, f"phi on {device} differs")
            Q = self.random(*self.atom.shape)
            value = moved.polar(Q.to(device))
            on = value.witness[0].device.type
            self.say(on == device, f"the witness of atom.to({device!r}) lies on {on}")


def _scattered(entries: Tensor, support: Support) -> Tensor:
    dense = torch.zeros(support.shape, dtype=torch.float64)
    dense[support.rows, support.cols] = entries
    return dense
