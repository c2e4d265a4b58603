"""The landscape of three numbers against the known answers; small starts on digits end at zero."""

import pytest
import torch

from theodolite.atoms import ModuleAtom
from theodolite.experiments import decay_mismatch as ours
from theodolite.experiments.base import draw
from theodolite.losses import CrossEntropyLoss
from theodolite.models import MLP


@pytest.fixture(scope="module")
def result():
    return ours.DecayMismatch().run(fast=True)


def test_every_claim_holds(result, tmp_path):
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 12
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    draw(ours.DecayMismatch(), result.numbers, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_known_answers_of_the_landscape(result):
    numbers = result.numbers["landscape"]
    assert numbers["minimizer"] == pytest.approx(0.921699, rel=1e-5)
    assert numbers["minimum"] == pytest.approx(0.278401, rel=1e-5)
    assert numbers["slope"] == pytest.approx(0.31142, rel=1e-4)
    assert numbers["lower_bound"] == pytest.approx(0.26293, rel=1e-4)
    assert numbers["matched_minimum"] == pytest.approx(0.18, rel=1e-6)
    assert numbers["basin"] == pytest.approx(0.519615, rel=1e-5)


def test_gradient_flow_is_that_of_each_network_alone():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = CrossEntropyLoss(torch.arange(12) % 3, 3, scale=1.0 / 12)
    atom = ModuleAtom(MLP((3, 4, 4, 3), bias=False), x)
    start = atom.init(3)

    def decay(params):
        return 0.05 * ours.norms(params).square()

    together = ours.flow(atom, loss, start, decay, 20)
    alone = ours.flow(atom, loss, tuple(p[1:2] for p in start), decay, 20)
    assert all(torch.allclose(a[1:2], b) for a, b in zip(together, alone, strict=True))
    (module,) = atom.modules(tuple(p[1:2] for p in start))
    velocity = [torch.zeros_like(p) for p in module.parameters()]
    for step in range(20):
        value = torch.nn.functional.cross_entropy(module(x), torch.arange(12) % 3)
        value = value + 0.05 * sum(p.square().sum() for p in module.parameters())
        gradients = torch.autograd.grad(value, list(module.parameters()))
        with torch.no_grad():
            for p, v, g in zip(module.parameters(), velocity, gradients, strict=True):
                v.mul_(ours.MOMENTUM if step > 2 else 0.0).sub_(ours.RATE * g)
                p.add_(v)
    assert all(torch.allclose(p, a[1]) for p, a in zip(module.parameters(), together, strict=True))


def test_claims_can_fail():
    found = {
        "zero_by_decay": [0.5, 0.1],
        "learned_by_decay": [1.0],
        "learned_by_product": [0.0],
        "trained": [2.2],
        "at_zero": 2.3,
        "lower_bound": 2.25,
        "witness_ratio": 0.9,
        "matched_objective": 2.3,
    }
    assert [claim.holds for claim in ours.digits_claims(found)] == [False] * 7
