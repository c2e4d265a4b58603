"""An independent optimizer, 10,000 restarts a problem, tries to get below the dual bound of every family.

The families' formulas are written out again here, with the restarts along the last axis, so that each operation
runs through memory in order; Adam runs in float32, halves the field three times, and the best points are
evaluated in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.atoms import GatedReLUAtom, LinearNetAtom, MatrixAtom, QuadraticAtom, ReLUAtom
from theodolite.core.problem import Problem
from theodolite.losses import CrossEntropyLoss, HuberLoss, LogisticLoss, Loss, SquaredLoss

RESTARTS = 10_000
STEPS = (15, 15, 15, 120)  # all restarts, the better half of them, a quarter, an eighth
GATES = 3
Batched = Callable[[list[Tensor]], tuple[Tensor, Tensor]]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum over units of outer products: (r, n, restarts), (r, k, restarts) -> (n, k, restarts)."""
    return (left[:, :, None] * right[:, None]).sum(0)


def length(vectors: Tensor) -> Tensor:
    """Return the norms along axis 1; torch.norm is slow along an axis that is not the last."""
    return vectors.square().sum(1).clamp(min=1e-30).sqrt()


def matrix(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        U, V = p
        return outer(U, V), (length(U) * length(V)).sum(0)

    return MatrixAtom((5, 3)), [(5,), (3,)], network


def columns(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        U, V = p
        return outer(U, V), (length(U) * V.abs().sum(1)).sum(0)

    return MatrixAtom((5, 3), norms=("l2", "l1")), [(5,), (3,)], network


def linear_net(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X = normal(5, 3, seed=seed)

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        A, B, C = p
        XA = (X.to(A) @ A.flatten(2)).unflatten(2, A.shape[2:])
        XAB = (XA[:, :, :, None] * B[:, None]).sum(2)
        Z = (XAB[:, :, :, None] * C[:, None]).sum((0, 2))
        return Z, (length(A.flatten(1, 2)) * length(B.flatten(1, 2)) * length(C.flatten(1, 2))).sum(0)

    return LinearNetAtom(X, 3, depth=3), [(3, 2), (2, 2), (2, 3)], network


def relu(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X = normal(5, 2, seed=seed)

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        W, U = p
        return outer(torch.relu(X.to(W) @ W), U), (length(W) * length(U)).sum(0)

    return ReLUAtom(X, 3), [(2,), (3,)], network


def relu_one_output(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    _, _, network = relu(seed)
    return ReLUAtom(normal(5, 2, seed=seed), 1), [(2,), (1,)], network


def gated(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X, gates = normal(5, 2, seed=seed), (normal(5, GATES, seed=seed + 50) > 0).double()

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        W, U = p  # two units behind each gate
        hidden = X.to(W) @ W * gates.repeat(1, 2).T[:, :, None].to(W)
        return outer(hidden, U), (length(W) * length(U)).sum(0)

    return GatedReLUAtom(X, 3, gates), [(2,), (3,)], network


def quadratic(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X = normal(5, 2, seed=seed)

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        W, V = p
        return outer((X.to(W) @ W).square(), V), (W.square().sum(1) * length(V)).sum(0)

    return QuadraticAtom(X, 3), [(2,), (3,)], network


def loss_of(kind: int, n: int, k: int, seed: int) -> tuple[Loss, Callable[[Tensor], Tensor]]:
    """Return a loss of ours and, written out again, the same for a batch of predictions."""
    Y = 2 * normal(n, k, seed=seed + 1000)
    if kind == 0 or (kind == 3 and k == 1):
        return SquaredLoss(Y), lambda Z: 0.5 * (Z - Y[..., None].to(Z)).square().sum((0, 1))
    if kind == 1:
        return HuberLoss(Y), lambda Z: F.huber_loss(Z, Y[..., None].to(Z).expand_as(Z), reduction="none").sum(
            (0, 1)
        )
    if kind == 2:
        return LogisticLoss(Y.sign()), lambda Z: F.softplus(-Y[..., None].sign().to(Z) * Z).sum((0, 1))
    y = Y.argmax(1)
    return CrossEntropyLoss(y, k), lambda Z: (torch.logsumexp(Z, 1) - Z[torch.arange(n), y]).sum(0)


def attack(
    shapes: list[tuple[int, ...]], units: int, objective: Callable[[list[Tensor]], Tensor], seed: int
) -> float:
    """Return the lowest objective that Adam reaches from all restarts."""
    scales = 10.0 ** (2.0 * torch.rand(RESTARTS, generator=torch.Generator().manual_seed(seed)) - 1.5)
    params = [
        normal(units, *s, RESTARTS, seed=seed + i, dtype=torch.float32) * scales for i, s in enumerate(shapes)
    ]
    for steps in STEPS:
        params = [p.detach().requires_grad_() for p in params]
        optimizer = torch.optim.Adam(params, lr=0.1, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            objective(params).sum().backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            best = objective(params).topk(params[0].shape[-1] // 2, largest=False).indices
            params = [p[..., best] for p in params]
    with torch.no_grad():
        return float(objective([p.double() for p in params]).min())


@pytest.mark.parametrize(
    ("family", "units"),
    [(matrix, 3), (columns, 3), (linear_net, 3), (relu, 6), (relu_one_output, 6), (gated, 6), (quadratic, 3)],
)
def test_no_restart_gets_below_the_dual_bound(family, units):
    for seed in range(10):
        atom, shapes, network = family(seed)
        n, k = atom.shape
        loss, batched = loss_of(seed % 4, n, k, seed)
        lam = (0.1 + 0.05 * seed) * Problem(loss, atom, 1.0).lambda_max().high
        certificate = Problem(loss, atom, lam).solve(tol=1e-3, max_rounds=12).certificate

        def objective(p: list[Tensor], batched=batched, network=network, lam=lam) -> Tensor:
            Z, theta = network(p)
            return batched(Z) + lam * theta

        lowest = attack(shapes, units, objective, 100 * seed)
        assert lowest >= certificate.dual_bound, (family.__name__, seed)
        # an attack that does not come near could not refute a bound that is too high
        assert lowest <= certificate.objective * 1.02, (family.__name__, seed)


@pytest.mark.parametrize("family", [matrix, columns, linear_net, relu, relu_one_output, gated, quadratic])
def test_no_random_search_gets_above_the_polar(family):
    for seed in range(10):
        atom, _, _ = family(seed)
        Q = normal(*atom.shape, seed=seed + 7)
        upper, draws = atom.polar(Q).high, atom.init(1000, seed=seed)
        values = (atom.each(draws) @ Q.reshape(-1)) / atom.theta(draws)
        assert float(values.abs().max()) <= upper * (1 + 1e-14), (family.__name__, seed)
        assert float(values.abs().max()) >= 0.2 * upper  # a search that finds nothing refutes nothing
