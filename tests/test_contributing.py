"""The worked examples of CONTRIBUTING.md: short, and they run."""

import re
from pathlib import Path

import builders
import pytest
import torch

from theodolite.core.atom import Atom
from theodolite.core.problem import Problem
from theodolite.losses import SquaredLoss
from theodolite.remedies import Remedy
from theodolite.testing import check_atom, check_theorem
from theodolite.theorems.base import Theorem, evaluate

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def example(name: str, base: type) -> type:
    """Run the example under a mark and return the one class it defines."""
    source = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", TEXT, re.DOTALL)[1]
    assert sum(bool(line.strip()) for line in source.splitlines()) < 30
    space: dict = {"__name__": f"example_{name}"}
    exec(compile(source, f"{name} of CONTRIBUTING.md", "exec"), space)
    found = [
        c
        for c in space.values()
        if isinstance(c, type) and issubclass(c, base) and c.__module__ == space["__name__"]
    ]
    assert len(found) == 1
    return found[0]


def test_the_theorem():
    theorem = example("theorem", Theorem)
    finding = check_theorem(theorem, builders.subject)
    assert finding.status == "certified"
    name = next(iter(finding.values)).removeprefix("stable_rank[").removesuffix("]")
    weight = builders.subject().model.get_parameter(name).detach().double()
    top = torch.linalg.matrix_norm(weight, 2)
    assert finding.headline.value == pytest.approx(float((weight.norm() / top) ** 2), rel=1e-9)
    zero = builders.mlp()
    with torch.no_grad():
        for p in zero.parameters():
            p.zero_()
    assert evaluate(theorem(), builders.subject(zero)).status == "not applicable"


def test_the_remedy():
    remedy = example("remedy", Remedy)
    subject = builders.subject()
    outcome = remedy().attempt(subject)
    for before, after in zip(subject.model.parameters(), outcome.model.parameters(), strict=True):
        assert torch.equal(after, before.bfloat16().float())
    assert outcome.effects["loss_change"].kind == "estimate"
    assert outcome.helped == (outcome.effects["loss_change"].lower <= 0.0)


def test_the_atom():
    atom = example("atom", Atom)
    check_atom(atom(4), reference=lambda Q: max(0.0, float(torch.linalg.eigvalsh((Q + Q.T) / 2)[-1])))
    generator = torch.Generator().manual_seed(0)
    Y = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    Y = Y + Y.T
    eigenvalues = torch.linalg.eigvalsh(Y)
    lam = float(eigenvalues[-3])
    certificate = Problem(SquaredLoss(Y), atom(12), lam).solve(tol=1e-6).certificate
    # the optimum thresholds the eigenvalues at lam, as with singular values, and drops the negative ones
    kept = (eigenvalues - lam).clamp(min=0.0)
    optimum = float((eigenvalues - kept).square().sum() / 2 + lam * kept.sum())
    assert certificate.verdict == "closed"
    assert certificate.units == 2
    assert certificate.dual_bound <= optimum <= certificate.objective
    assert Problem(SquaredLoss(-(Y @ Y)), atom(12), 1e-6).solve().certificate.units == 0
