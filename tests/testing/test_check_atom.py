"""check_atom lets every family pass and catches broken ones."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from theodolite.atoms import (
    ALL,
    ConvReLUAtom,
    GatedReLUAtom,
    LeakyReLUAtom,
    LinearNetAtom,
    MatrixAtom,
    ModuleAtom,
    QuadraticAtom,
    ReLUAtom,
    SignMatrixAtom,
    StructuredAtom,
    TensorAtom,
)
from theodolite.losses import LogisticLoss
from theodolite.models import MLP
from theodolite.polar.factor_norm import FactorNorm
from theodolite.testing import check_atom


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circle(m: int = 20_000) -> Tensor:
    angle = torch.arange(m, dtype=torch.float64) * (2 * math.pi / m)
    return torch.stack([angle.cos(), angle.sin()], 1)


X = normal(7, 3)
CASES = {
    "matrix": MatrixAtom((6, 5)),
    "matrix, l2 l1": MatrixAtom((6, 5), norms=("l2", "l1")),
    "linear net": LinearNetAtom(X, 2, 3),
    "relu": ReLUAtom(X, 1),
    "relu, two outputs": ReLUAtom(X, 2),
    "relu, bias": ReLUAtom(X, 1, bias=True),
    "relu, parallel and zero rows": ReLUAtom(torch.cat([X, -2.0 * X[:3], 0.0 * X[:1]]), 1),
    "leaky relu": LeakyReLUAtom(X, 1, 0.2),
    "absolute value, two outputs": LeakyReLUAtom(X, 2, -1.0, bias=True),
    "convolution": ConvReLUAtom(normal(4, 2, 3, 4), 2, (1, 2), pool=(2, 1)),
    "convolution, overlapping cells, basis": ConvReLUAtom(
        normal(4, 1, 4, 4), 1, 2, pool_stride=1, basis="dct", n_components=3
    ),
    "gated": GatedReLUAtom(X, 2, normal(4, 3, seed=1)),
    "gated, one output": GatedReLUAtom(X, 1, normal(7, 4, seed=1) > 0),
    "structured": StructuredAtom((5, 4), FactorNorm(l1=0.3), FactorNorm(nonnegative=True)),
    "structured, one sign": StructuredAtom((5, 4), FactorNorm(nonnegative=True)),
    "quadratic": QuadraticAtom(X),
    "quadratic, two outputs": QuadraticAtom(X, 2),
    "quadratic, general": QuadraticAtom(X, 1, (1.0, 0.5, 0.2)),
    "quadratic, general, three outputs": QuadraticAtom(X, 3, (0.3, -1.0, 0.5)),
    "tensor": TensorAtom((3, 2, 3)),
    "module": ModuleAtom(MLP((3, 3, 3, 2), bias=False), X, starts=3),
    "signs": SignMatrixAtom((6, 5)),
    "signs, linf linf": SignMatrixAtom((4, 6), ("linf", "linf")),
}


def test_every_family_has_a_case():
    assert {type(atom) for atom in CASES.values()} >= set(ALL)


@pytest.mark.parametrize("name", CASES)
def test_every_family_passes(name):
    check_atom(CASES[name], trials=2)


def test_references_and_losses_of_the_caller_are_used():
    atom = ReLUAtom(normal(6, 2), 1)
    W = torch.cat([circle(), (kinks := atom.X.flip(1) * torch.tensor([1.0, -1.0])), -kinks])
    W = torch.nn.functional.normalize(W)
    y = torch.where(normal(6, 1, seed=2) > 0, 1.0, -1.0)
    loss = LogisticLoss(y)
    check_atom(atom, loss=loss, reference=lambda Q: float((Q.T @ torch.relu(atom.X @ W.T)).abs().max()))
    with pytest.raises(AssertionError, match="misses the reference"):
        check_atom(atom, reference=lambda Q: 1.01 * atom.polar(Q).high)


class WrongDegree(ReLUAtom):
    degree = 3


class TooSmallPolar(ReLUAtom):
    def polar(self, Q, **options):
        value = super().polar(Q, **options)
        return replace(value, lower=0.99 * value.low, upper=0.99 * value.high)


class TooSmallUpper(ReLUAtom):
    """One that even its own witness does not contradict."""

    def polar(self, Q, **options):
        value = super().polar(Q, **options)
        W, U = (p[:1] for p in value.witness)
        W = torch.nn.functional.normalize(W + 0.5 * torch.roll(W, 1, 1))
        U = torch.nn.functional.normalize(torch.relu(W @ self.X.T) @ Q)
        lower = float((self.phi((W, U)) * Q).sum())
        return replace(value, lower=min(lower, 0.99 * value.high), upper=0.99 * value.high, witness=(W, U))


class WitnessOff(ReLUAtom):
    def polar(self, Q, **options):
        value = super().polar(Q, **options)
        W, U = value.witness
        return replace(value, witness=(torch.nn.functional.normalize(W + 0.05 * torch.roll(W, 1, 1)), U))


class WitnessTooLong(ReLUAtom):
    def polar(self, Q, **options):
        value = super().polar(Q, **options)
        return replace(value, witness=tuple(1.01 * p for p in value.witness))


class NoWitness(ReLUAtom):
    def polar(self, Q, **options):
        return replace(super().polar(Q, **options), witness=None)


class CheapBoundTooSmall(ReLUAtom):
    def polar(self, Q, *, budget=None, **options):
        value = super().polar(Q, budget=budget, **options)
        if budget != 0.0:
            return value
        return replace(value, lower=0.0, upper=0.5 * super().polar(Q).high, witness=None)


class NotHomogeneousPolar(ReLUAtom):
    def polar(self, Q, **options):
        value = super().polar(Q, **options)
        return replace(value, upper=value.high + 0.1)


class VanishingTheta(ReLUAtom):
    def theta(self, params):
        W, U = params
        return W.norm(dim=1) * U[:, 1:].norm(dim=1)

    def init(self, r, seed=0):
        params = super().init(r, seed)
        return self.scale(params, 1.0 / self.theta(params))

    def penalty(self, params):
        return self.theta(params)


class SmallRowBounds(ReLUAtom):
    def row_bounds(self, support=None):
        return 0.5 * super().row_bounds(support)


class NegativeTheta(ReLUAtom):
    def theta(self, params):
        W, U = params
        return W.norm(dim=1) * U.sum(dim=1)

    def init(self, r, seed=0):
        W, U = super().init(r, seed)
        U = U.abs()
        return W, U / U.sum(dim=1, keepdim=True)

    def penalty(self, params):
        return self.theta(params)


class SmallPenalty(ReLUAtom):
    def penalty(self, params):
        return 0.5 * super().penalty(params)


class WrongEach(ReLUAtom):
    def each(self, params, support=None):
        return 0.999 * super().each(params, support)


class WrongSupport(ReLUAtom):
    def predict(self, params, support=None):
        found = super().predict(params, support)
        return found if support is None else found.flip(0)


class DetachedTheta(ReLUAtom):
    def theta(self, params):
        W, U = params
        return W.norm(dim=1).detach() * U.norm(dim=1)


class NoRounding(ReLUAtom):
    def __init__(self, *args):
        super().__init__(*args)
        self.depth = 0


class MergeChangesPhi(ReLUAtom):
    def merge(self, params):
        return tuple(p[:1] for p in params)


class MergeRaisesTheta(MatrixAtom):
    """A cancelling pair of matrices added leaves phi alone."""

    def merge(self, params):
        extra = tuple(p[:1] for p in params)
        if not len(extra[0]):
            return params
        half = self.scale(params, torch.full((len(params[0]),), 0.5, dtype=torch.float64))
        plus, minus = extra, (-extra[0], extra[1])
        kept = tuple(torch.cat(parts) for parts in zip(half, half, plus, minus, strict=True))
        return kept


class InitNotOne(ReLUAtom):
    def init(self, r, seed=0):
        return tuple(1.1 * p for p in super().init(r, seed))


class RandomInit(ReLUAtom):
    def init(self, r, seed=0):
        return super().init(r, seed=int(torch.randint(1000, ())))


class SinglePrecision(ReLUAtom):
    def phi(self, params, X=None):
        return super().phi(params, X).float()


class Scaled(ReLUAtom):
    def scale(self, params, alpha):
        return super().scale(params, alpha.mean() * torch.ones_like(alpha))


@pytest.mark.parametrize(
    ("broken", "outputs", "sentence"),
    [
        (WrongDegree, 1, "not positively homogeneous of degree 3"),
        (TooSmallPolar, 1, "witness of polar reaches .* above its upper end"),
        (TooSmallUpper, 1, "reaches .* above polar.upper"),
        (WitnessOff, 1, "witness of polar reaches .* not its lower end"),
        (WitnessTooLong, 1, "witnesses of polar with theta = 1"),
        (NoWitness, 1, "polar has no witness"),
        (CheapBoundTooSmall, 1, "polar with budget=0 contradicts"),
        (NotHomogeneousPolar, 1, "the polar of 0 is"),
        (VanishingTheta, 2, "theta (is 0|may vanish)|so that theta may vanish"),
        (SmallRowBounds, 1, "phi exceeds row_bounds"),
        (NegativeTheta, 2, "expected theta >= 0"),
        (SmallPenalty, 1, "expected penalty >= theta"),
        (WrongEach, 1, "each differs from phi"),
        (WrongSupport, 2, "predict on a support differs"),
        (DetachedTheta, 1, "gradient of theta differs"),
        (NoRounding, 1, r"gamma\(depth\)"),
        (MergeChangesPhi, 1, "merge changes phi"),
        (InitNotOne, 1, "expected init with theta = 1"),
        (RandomInit, 1, "same init for the same seed"),
        (SinglePrecision, 1, "expected phi and theta in float64"),
        (Scaled, 1, "atom.scale does not scale each"),
    ],
)
def test_broken_families_are_caught(broken, outputs, sentence):
    atom = broken(normal(7, 2), outputs)
    with pytest.raises(AssertionError, match=sentence) as caught:
        check_atom(atom, trials=2)
    assert str(caught.value).startswith(broken.__name__ + ": ")
    assert "\n" not in str(caught.value)


def test_a_merge_that_raises_theta_is_caught():
    with pytest.raises(AssertionError, match="merge raises theta"):
        check_atom(MergeRaisesTheta((5, 4)), trials=1)
