"""check_loss passes every loss and catches every planted mistake."""

from __future__ import annotations

import math

import pytest
import torch
from fixtures import loss_cases

from theodolite.losses import CrossEntropyLoss, HuberLoss, LogisticLoss, Loss, PoissonLoss, SquaredLoss
from theodolite.testing import check_loss


@pytest.mark.parametrize("sizes", [(4, 3, 1.0), (5, 1, 0.05), (1, 1, 30.0), (40, 2, 1 / 80)])
@pytest.mark.parametrize("name", loss_cases.NAMES)
def test_every_loss_passes(name, sizes):
    case = loss_cases.make_cases(*sizes)[name]
    exact = {"exact_value": case.exact_value, "exact_dual": case.exact_dual} if sizes[0] < 10 else {}
    check_loss(case.loss, trials=4, **exact)


class WrongConstant(LogisticLoss):
    def dual(self, Q):
        return super().dual(Q) + 0.01 * self.scale


class WeakDual(HuberLoss):
    def dual(self, Q):
        return super().dual(Q) - 0.01 * self.scale


class WrongConjugate(PoissonLoss):
    def dual(self, Q):
        return super().dual(0.99 * Q)


class WrongSign(SquaredLoss):
    def gradient(self, Z):
        return -super().gradient(Z)


class WrongGradient(SquaredLoss):
    def gradient(self, Z):
        return 1.01 * super().gradient(Z)


class NotConvex(SquaredLoss):
    def value(self, Z):
        return super().value(Z) + self.scale * float(torch.cos(3 * Z).sum())

    def gradient(self, Z):
        return super().gradient(Z) - 3 * self.scale * torch.sin(3 * Z)


class LongRange(LogisticLoss):
    def t_range(self, R):
        return 0.0, 1.001 * super().t_range(R)[1]


class ShortRange(HuberLoss):
    def t_range(self, R):
        return 0.0, 0.9 * super().t_range(R)[1]


class OpenDomain(HuberLoss):
    def dual(self, Q):
        return SquaredLoss(self.Y, self.scale).dual(Q)


class LazyT(CrossEntropyLoss):
    def best_t(self, R, *, upper=math.inf, linear=0.0, quadratic=0.0):
        t = min(upper, 0.9 * self.t_range(R)[1])
        return t, self.dual(t * R) - linear * t - 0.5 * quadratic * t * t


class LiarT(SquaredLoss):
    def best_t(self, R, **terms):
        t, value = super().best_t(R, **terms)
        return t, value + 0.01 * self.scale


class LowSmoothness(LogisticLoss):
    def smoothness(self, Z):
        return 0.2 * self.scale


class LocalSmoothness(PoissonLoss):
    def smoothness(self, Z):
        return self.scale * float(torch.exp(Z.min()))


class SmallMagnitudes(LogisticLoss):
    def magnitudes(self, Z, Q):
        primal, dual, rows = super().magnitudes(Z, Q)
        return 1e-6 * primal, 1e-6 * dual, rows


class SmallRows(SquaredLoss):
    def magnitudes(self, Z, Q):
        primal, dual, rows = super().magnitudes(Z, Q)
        return primal, dual, 0.5 * rows


class UnscaledDual(SquaredLoss):
    def dual(self, Q):
        return SquaredLoss(self.Y, 0.5).dual(Q)  # right at the scale 1/2 only


class StayingTargets(SquaredLoss):
    def to(self, device):
        return self


class AnyShape(SquaredLoss):
    def _check(self, tensor, name):
        return tensor.double()


class SingleZeros(SquaredLoss):
    def zeros(self):
        return super().zeros().float()


class WrongCurvature(LogisticLoss):
    def curvature(self, Z):
        product, weights = super().curvature(Z)
        return lambda V: 1.05 * product(V), 1.05 * weights


class WrongDiagonal(CrossEntropyLoss):
    def curvature(self, Z):
        product, weights = super().curvature(Z)
        return product, self.shape[1] * weights


class NoCenter(LogisticLoss):
    def center(self, Q):
        return Q


class CenterOutside(LogisticLoss):
    def center(self, Q):
        return Q - Q.mean(0)


class WrongRows(SquaredLoss):
    def rows(self, index):
        return SquaredLoss(self.Y[index], 2 * self.scale)


Y = loss_cases.normal(6, 2)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (WrongConstant(Y.sign()), "Fenchel-Young inequality fails"),
        (WeakDual(Y), "misses equality"),
        (WrongConjugate(loss_cases.counts(6, 2)), "Fenchel-Young"),
        (WrongSign(Y), "gradient is wrong"),
        (WrongGradient(Y), "gradient is wrong"),
        (NotConvex(Y), "not convex"),
        (LongRange(Y.sign()), "t_range: .* outside the dual's domain"),
        (ShortRange(Y), "t_range: ends at"),
        (OpenDomain(Y), "is in the dual's domain"),
        (LazyT(torch.arange(6) % 3, 3), "best_t"),
        (LiarT(Y), "best_t: .* is not the value"),
        (LowSmoothness(Y.sign()), "smoothness"),
        (LocalSmoothness(loss_cases.counts(6, 2)), "smoothness"),
        (SmallMagnitudes(Y.sign()), "off by|Fenchel-Young|best_t|not convex"),
        (SmallRows(Y), "rows are less"),
        (UnscaledDual(Y, 0.5), "dual: .* at scale"),
        (StayingTargets(Y), "the targets stay"),
        (AnyShape(Y), "a wrong shape"),
        (SingleZeros(Y), "expected float64"),
        (WrongCurvature(Y.sign()), "curvature"),
        (WrongDiagonal(torch.arange(6) % 3, 3), "close"),
        (NoCenter(Y.sign()), "columns sum to"),
        (CenterOutside(Y.sign()), "leaves the dual's domain"),
        (WrongRows(Y), "do not add up"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Loss) else "",
)
def test_every_mistake_is_caught(loss, message):
    right = type(loss).__bases__[0]
    case = {LogisticLoss: "logistic", SquaredLoss: "squared"}.get(right)
    exact = {}
    if case is not None and loss.scale == 1.0:
        case = loss_cases.make_cases(6, 2, 1.0)[case]
        exact = {"exact_value": case.exact_value, "exact_dual": case.exact_dual}
    with pytest.raises(AssertionError, match=message):
        check_loss(loss, **exact)
