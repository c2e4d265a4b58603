"""What every convex loss promises, checked without knowing its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from theodolite.linalg.lanczos import gamma
from theodolite.losses.base import Loss, SampleLoss

_LARGEST_SEARCH = 64
_STEPS = (1.0, 1e-2, 1e-4)
_REACH = 1e-3

Exact = Callable[[Tensor], Any]


def check_loss(
    loss: Loss,
    *,
    seed: int = 0,
    trials: int = 10,
    exact_value: Exact | None = None,
    exact_dual: Exact | None = None,
) -> None:
    """Hold a convex loss to what every loss promises.

    At random points: gradient and convexity (the subgradient inequality, which leaves a wrong
    gradient no room), the Fenchel-Young inequality and its equality at the negative gradient,
    the dual value against a numerical minimization (up to 64 predictions), ``t_range``,
    ``best_t`` against a grid, ``smoothness`` against differences of gradients, ``magnitudes``
    against the rounding errors seen, ``scale``, ``to``; of a
    :class:`~theodolite.losses.SampleLoss` also ``curvature``, ``center`` and ``rows``.

    Parameters
    ----------
    loss : Loss
        What is checked; a small one is enough.
    seed : int
        Of the random points.
    trials : int
        Random points.
    exact_value, exact_dual : function(Tensor) -> number, optional
        The loss and its dual in higher precision (``mpmath.mpf``, say), for what
        ``magnitudes`` claims about rounding.

    Raises
    ------
    AssertionError
        With one sentence on what does not hold.
    """
    check = _Check(loss, seed)
    check.shapes()
    check.devices()
    for trial in range(trials):
        Z, other = check.point(trial), check.point(trial + 1)
        Q, R = check.dual_point(), -loss.gradient(Z)
        check.gradient(Z, other)
        check.fenchel_young(Z, Q, R)
        check.rays(R, residual=True)
        check.rays(loss.scale * check.normal(), residual=False)
        check.best_t(R)
        check.smoothness(Z if trial else loss.zeros())
        check.rounding(Z, Q, exact_value, exact_dual)
        check.scale(Z, Q, R)
        if isinstance(loss, SampleLoss):
            check.samples(loss, Z)
            for point in (Q, R):
                check.center(loss, point)
    if loss.zeros().numel() <= _LARGEST_SEARCH:
        for _ in range(min(trials, 3)):
            check.conjugate(check.dual_point())


class _Check:
    """The checks of one loss, with its random points."""

    def __init__(self, loss: Loss, seed: int) -> None:
        self.loss = loss
        self.name = type(loss).__name__
        self.generator = torch.Generator().manual_seed(seed)
        self.few = gamma(2 * loss.shape[1] + 32)

    def normal(self) -> Tensor:
        return torch.randn(self.loss.prediction_shape, generator=self.generator, dtype=torch.float64)

    def uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def point(self, trial: int) -> Tensor:
        """Return random predictions at which the loss is finite, of one size or another."""
        start = self.loss.zeros()
        step = (0.3, 3.0, 30.0)[trial % 3] * self.normal()
        for _ in range(60):
            if math.isfinite(self.loss.value(start + step)):
                return start + step
            step = 0.5 * step
        raise AssertionError(f"{self.name}: the loss is infinite at all points near zero predictions")

    def dual_point(self) -> Tensor:
        """Return a mixture of negative gradients: a point of the convex domain."""
        a, b = (-self.loss.gradient(self.point(0)) for _ in range(2))
        share = self.uniform()
        return share * a + (1.0 - share) * b

    def slack(self, Z: Tensor, Q: Tensor) -> float:
        """Return what rounding may do to value(Z) + <Q, Z> - dual(Q)."""
        primal, dual, rows = self.loss.magnitudes(Z, Q)
        length = Z.abs() if Z.ndim == 1 else Z.norm(dim=1)
        inner = 2.0 * gamma(Z.numel() + 1) * float((Z * Q).abs().sum())
        return self.few * (primal + dual + float(rows @ length)) + inner + 1e-290

    def shapes(self) -> None:
        zeros = self.loss.zeros()
        assert zeros.dtype == torch.float64, f"{self.name}.zeros: expected float64, got {zeros.dtype}"
        assert tuple(zeros.shape) == self.loss.prediction_shape, (
            f"{self.name}.zeros: shape {tuple(zeros.shape)}"
        )
        assert not zeros.any(), f"{self.name}.zeros: not zero"
        assert math.isfinite(self.loss.value(zeros)), f"{self.name}: infinite at zero predictions"
        gradient = self.loss.gradient(zeros.float())
        assert gradient.dtype == torch.float64, f"{self.name}.gradient: expected float64"
        assert gradient.shape == zeros.shape, f"{self.name}.gradient: shape {tuple(gradient.shape)}"
        wrong = torch.zeros(2, *zeros.shape, dtype=torch.float64)
        for method in (self.loss.value, self.loss.gradient, self.loss.dual, self.loss.t_range):
            try:
                method(wrong)
            except ValueError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"{self.name}.{method.__name__}: no ValueError for a wrong shape"
                ) from error
            raise AssertionError(f"{self.name}.{method.__name__}: accepts a wrong shape")

    def devices(self) -> None:
        moved = self.loss.to("meta")
        assert type(moved) is type(self.loss), f"{self.name}.to: returns a {type(moved).__name__}"
        assert moved.zeros().device.type == "meta", f"{self.name}.to: the targets stay where they are"
        if moved.support is not None:
            assert moved.support.rows.device.type == "meta", f"{self.name}.to: the support stays"
        here = self.loss.zeros()
        assert here.device.type != "meta", f"{self.name}.to: changes the loss itself"
        assert self.loss.to(here.device).value(here) == self.loss.value(here), f"{self.name}.to: another loss"

    def gradient(self, Z: Tensor, other: Tensor) -> None:
        value, gradient = self.loss.value(Z), self.loss.gradient(Z)
        steps = [other - Z] + [h * self.normal() for h in _STEPS]
        for step in (s for one in steps for s in (one, -one)):
            ahead = self.loss.value(Z + step)
            if not math.isfinite(ahead):
                continue
            lower = float((gradient * step).sum())
            noise = self.slack(Z, gradient) + self.slack(Z + step, gradient)
            noise += 4.0 * self.few * float((gradient * (Z.abs() + step.abs())).abs().sum())
            assert ahead - value >= lower - noise, (
                f"{self.name}: value - <gradient, step> falls by {lower - (ahead - value):.2e}: not convex, "
                "or the gradient is wrong"
            )
            share = self.uniform()
            between = self.loss.value(Z + share * step)
            assert between <= (1 - share) * value + share * ahead + noise, f"{self.name}: not convex"

    def fenchel_young(self, Z: Tensor, Q: Tensor, R: Tensor) -> None:
        for point in (Q, R, self.uniform() * R):
            bound = self.loss.dual(point) - float((point * Z).sum())
            assert bound > -math.inf, f"{self.name}.dual: -inf inside its domain"
            excess = bound - self.loss.value(Z)
            assert excess <= self.slack(Z, point), (
                f"{self.name}: the Fenchel-Young inequality fails by {excess:.2e}"
            )
        gap = self.loss.value(Z) + float((R * Z).sum()) - self.loss.dual(R)
        # to first order the rounding of R changes nothing here: it is the maximizer
        assert gap <= 4.0 * self.slack(Z, R), (
            f"{self.name}: Fenchel-Young misses equality at the negative gradient by {gap:.2e}"
        )

    def conjugate(self, Q: Tensor) -> None:
        """Compare with a numerical minimization of value(Z) + <Q, Z>."""
        start = self.point(0)
        ceiling = 1e3 * (1.0 + abs(self.loss.value(start)))

        def tilted(z: np.ndarray) -> tuple[float, np.ndarray]:
            Z = torch.from_numpy(z).reshape(start.shape)
            value = self.loss.value(Z)
            if not math.isfinite(value):
                return ceiling, np.zeros_like(z)
            return value + float((Q * Z).sum()), (self.loss.gradient(Z) + Q).numpy().ravel()

        options = {"gtol": 1e-9 * self.loss.scale, "ftol": 1e-15, "maxiter": 5000}
        found = minimize(tilted, start.numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
        dual, size = self.loss.dual(Q), self.loss.scale + abs(float(found.fun))
        assert abs(dual - found.fun) <= 1e-5 * size, (
            f"{self.name}.dual: {dual:.8g}, but the minimum of value(Z) + <Q, Z> is {found.fun:.8g}"
        )

    def rays(self, R: Tensor, *, residual: bool) -> None:
        low, high = self.loss.t_range(R)
        assert low == 0.0, f"{self.name}.t_range: expected to start at 0, got {low}"
        assert high >= 0.0, f"{self.name}.t_range: ends at {high}"
        if residual:
            assert high >= 1.0 - 1e-9, f"{self.name}.t_range: ends at {high}, before the negative gradient"
        for t in (0.0, 0.5 * min(high, 1e6), min(high, 1e6)):
            assert self.loss.dual(t * R) > -math.inf, (
                f"{self.name}.t_range: {t} R is outside the dual's domain"
            )
        if high not in (1.0, math.inf):  # a range may end with the negative gradient itself
            outside = high * (1.0 + 1e-4) if high else 1e-3
            assert self.loss.dual(outside * R) == -math.inf, (
                f"{self.name}.t_range: ends at {high}, but {outside} R is in the dual's domain"
            )

    def best_t(self, R: Tensor) -> None:
        end = self.loss.t_range(R)[1]
        slope, size = abs(self.loss.dual(min(end, 1.0) * R)), self.uniform()
        for upper, linear, quadratic in (
            (math.inf, 0.0, 0.0),
            (0.4 + size, 0.3 * size * slope, 0.0),
            (math.inf, -0.1 * slope, 4.0 * size * slope),
        ):
            t, value = self.loss.best_t(R, upper=upper, linear=linear, quadratic=quadratic)
            assert 0.0 <= t <= min(upper, end), f"{self.name}.best_t: {t} is not in [0, {min(upper, end)}]"
            tried = np.concatenate(
                [np.linspace(0.0, min(upper, end, 4.0 * t + 1.0), 31), t * (1 + 1e-3 * np.arange(-2, 3))]
            )
            terms = {
                float(s): self.loss.dual(float(s) * R) - linear * s - 0.5 * quadratic * s * s
                for s in (*tried[(tried >= 0.0) & (tried <= min(upper, end))], t)
            }
            noise = 1e-9 * (abs(value) + abs(terms[0.0])) + self.few * self.loss.magnitudes(R, t * R)[1]
            assert abs(value - terms[float(t)]) <= noise, (
                f"{self.name}.best_t: {value} is not the value at {t}"
            )
            best = max(terms, key=lambda s: terms[s])
            assert value >= terms[best] - noise, (
                f"{self.name}.best_t: {value} at {t}, but {terms[best]} at {best}"
            )

    def smoothness(self, Z: Tensor) -> None:
        bound = self.loss.smoothness(Z)
        assert bound >= 0.0, f"{self.name}.smoothness: {bound}"
        if math.isinf(bound):
            return
        step = self.normal()
        for _ in range(8):  # power iteration toward the largest eigenvalue
            step = step * (0.9 * _REACH / float(step.abs().max()))
            change = self.loss.gradient(Z + step) - self.loss.gradient(Z - step)
            noise = 1e-10 * float(self.loss.gradient(Z).norm() + self.loss.scale)
            steepest = (float(change.norm()) - noise) / (2.0 * float(step.norm()))
            assert steepest <= bound * (1 + 1e-7), (
                f"{self.name}.smoothness: {bound}, but the gradient changes at a rate of {steepest}"
            )
            if not float(change.abs().max()) > noise:
                return
            step = change

    def rounding(self, Z: Tensor, Q: Tensor, exact_value: Exact | None, exact_dual: Exact | None) -> None:
        primal, dual, rows = self.loss.magnitudes(Z, Q)
        assert tuple(rows.shape) == self.loss.prediction_shape[:1], (
            f"{self.name}.magnitudes: rows of shape {tuple(rows.shape)}"
        )
        length = Q.abs() if Q.ndim == 1 else Q.norm(dim=1)
        assert bool((rows >= length * (1 - 1e-9)).all()), f"{self.name}.magnitudes: rows are less than Q's"
        for name, size, got, exact, at in (
            ("value", primal, self.loss.value, exact_value, Z),
            ("dual", dual, self.loss.dual, exact_dual, Q),
        ):
            assert size >= 0.0, f"{self.name}.magnitudes: {size} for {name}"
            if exact is not None:
                error = abs(float(exact(at) - got(at)))
                assert error <= self.few * size + 1e-290, (
                    f"{self.name}.magnitudes: {name} is off by {error:.2e}, more than {self.few * size:.2e}"
                )

    def scale(self, Z: Tensor, Q: Tensor, R: Tensor) -> None:
        factor = 4.0
        other = self.loss.rescaled(factor * self.loss.scale)
        assert other.scale == factor * self.loss.scale, f"{self.name}.rescaled: {other.scale}"
        pairs = {
            "value": (self.loss.value(Z), other.value(Z)),
            "dual": (self.loss.dual(Q), other.dual(factor * Q)),
            "smoothness": (self.loss.smoothness(Z), other.smoothness(Z)),
        }
        before, after = self.loss.magnitudes(Z, Q), other.magnitudes(Z, factor * Q)
        pairs |= {f"magnitudes[{i}]": (float(before[i]), float(after[i])) for i in range(2)}
        for name, (one, four) in pairs.items():
            size = max(abs(factor * one), self.loss.scale)
            assert factor * one == four or abs(factor * one - four) <= 1e-9 * size, (
                f"{self.name}.{name}: {one} at scale {self.loss.scale}, {four} at {other.scale}"
            )
        torch.testing.assert_close(other.gradient(Z), -factor * R, rtol=1e-12, atol=0.0)
        one, four = self.loss.t_range(R)[1], other.t_range(factor * R)[1]
        assert one == four or math.isclose(one, four, rel_tol=1e-9), f"{self.name}.t_range: {one}, {four}"

    def samples(self, loss: SampleLoss, Z: Tensor) -> None:
        product, weights = loss.curvature(Z)
        step = 1e-6 * self.normal()
        change = loss.gradient(Z + step) - loss.gradient(Z - step)
        off = (change - 2.0 * product(step)).norm()
        assert off <= 1e-3 * change.norm() + 1e-12 * (loss.gradient(Z).norm() + loss.scale), (
            f"{self.name}.curvature: off by {float(off / change.norm()):.2e} of the gradient's change"
        )
        signs = torch.sign(self.normal())
        diagonal = torch.zeros_like(Z)
        for j in range(loss.shape[1]):
            column = torch.zeros_like(Z)
            column[:, j] = signs[:, j]
            diagonal[:, j] = (product(column) * column)[:, j]
        torch.testing.assert_close(weights, diagonal.mean(1), rtol=1e-9, atol=1e-12 * loss.scale)
        half = loss.shape[0] // 2
        if half:
            parts = (slice(0, half), torch.arange(half, loss.shape[0]))
            some = math.fsum(loss.rows(part).value(Z[part]) for part in parts)
            assert math.isclose(some, loss.value(Z), rel_tol=1e-12), f"{self.name}.rows: do not add up"

    def center(self, loss: SampleLoss, Q: Tensor) -> None:
        centered = loss.center(Q)
        total, size = centered.sum(0).abs(), centered.abs().sum(0)
        assert bool((total <= 1e-13 * (size + loss.scale)).all()), (
            f"{self.name}.center: columns sum to {total}"
        )
        assert loss.dual(centered) > -math.inf, f"{self.name}.center: leaves the dual's domain"
        torch.testing.assert_close(loss.center(centered), centered, rtol=1e-9, atol=1e-12 * loss.scale)
