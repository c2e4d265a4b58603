"""An independent optimizer, 10,000 restarts a problem, tries to get below the dual bound of every family.

The families' formulas are written out again here, batched over restarts; Adam runs in float32, halves the
field three times, and the best points are evaluated in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
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


def matrix(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        U, V = p
        return torch.einsum("bri,brj->bij", U, V), (U.norm(dim=2) * V.norm(dim=2)).sum(1)

    return MatrixAtom((5, 3)), [(5,), (3,)], network


def columns(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        U, V = p
        return torch.einsum("bri,brj->bij", U, V), (U.norm(dim=2) * V.abs().sum(2)).sum(1)

    return MatrixAtom((5, 3), norms=("l2", "l1")), [(5,), (3,)], network


def linear_net(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X = normal(5, 3, seed=seed)

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        A, B, C = p
        Z = torch.einsum("ni,bria,brac,brck->bnk", X.to(A), A, B, C)
        return Z, (A.norm(dim=(2, 3)) * B.norm(dim=(2, 3)) * C.norm(dim=(2, 3))).sum(1)

    return LinearNetAtom(X, 3, depth=3), [(3, 2), (2, 2), (2, 3)], network


def relu(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X = normal(5, 2, seed=seed)

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        W, U = p
        hidden = torch.relu(torch.einsum("nd,brd->bnr", X.to(W), W))
        return torch.einsum("bnr,brk->bnk", hidden, U), (W.norm(dim=2) * U.norm(dim=2)).sum(1)

    return ReLUAtom(X, 3), [(2,), (3,)], network


def relu_one_output(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    _, _, network = relu(seed)
    return ReLUAtom(normal(5, 2, seed=seed), 1), [(2,), (1,)], network


def gated(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X, gates = normal(5, 2, seed=seed), (normal(5, GATES, seed=seed + 50) > 0).double()

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        W, U = p  # two units behind each gate
        hidden = torch.einsum("nd,brd,nr->bnr", X.to(W), W, gates.repeat(1, 2).to(W))
        return torch.einsum("bnr,brk->bnk", hidden, U), (W.norm(dim=2) * U.norm(dim=2)).sum(1)

    return GatedReLUAtom(X, 3, gates), [(2,), (3,)], network


def quadratic(seed: int) -> tuple[object, list[tuple[int, ...]], Batched]:
    X = normal(5, 2, seed=seed)

    def network(p: list[Tensor]) -> tuple[Tensor, Tensor]:
        W, V = p
        hidden = torch.einsum("nd,brd->bnr", X.to(W), W).square()
        return torch.einsum("bnr,brk->bnk", hidden, V), (W.square().sum(2) * V.norm(dim=2)).sum(1)

    return QuadraticAtom(X, 3), [(2,), (3,)], network


def loss_of(kind: int, n: int, k: int, seed: int) -> tuple[Loss, Callable[[Tensor], Tensor]]:
    """Return a loss of ours and, written out again, the same for a batch of predictions."""
    Y = 2 * normal(n, k, seed=seed + 1000)
    if kind == 0 or (kind == 3 and k == 1):
        return SquaredLoss(Y), lambda Z: 0.5 * (Z - Y.to(Z)).square().sum((1, 2))
    if kind == 1:
        return HuberLoss(Y), lambda Z: torch.nn.functional.huber_loss(
            Z, Y.to(Z).expand_as(Z), reduction="none"
        ).sum((1, 2))
    if kind == 2:
        return LogisticLoss(Y.sign()), lambda Z: torch.nn.functional.softplus(-Y.sign().to(Z) * Z).sum((1, 2))
    y = Y.argmax(1)
    return CrossEntropyLoss(
        y, k
    ), lambda Z: torch.logsumexp(Z, 2).sum(1) - Z.gather(2, y.expand(len(Z), -1)[..., None]).sum((1, 2))


def attack(
    shapes: list[tuple[int, ...]], units: int, objective: Callable[[list[Tensor]], Tensor], seed: int
) -> float:
    """Return the lowest objective that Adam reaches from all restarts."""
    scales = 10.0 ** (2.0 * torch.rand(RESTARTS, generator=torch.Generator().manual_seed(seed)) - 1.5)
    params = [
        (
            normal(RESTARTS, units, *s, seed=seed + i, dtype=torch.float32)
            * scales.view(-1, *[1] * (len(s) + 1))
        )
        for i, s in enumerate(shapes)
    ]
    for steps in STEPS:
        params = [p.detach().requires_grad_() for p in params]
        optimizer = torch.optim.Adam(params, lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            objective(params).sum().backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            best = objective(params).topk(len(params[0]) // 2, largest=False).indices
            params = [p[best] for p in params]
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
