"""A network on a graph is audited: what does not apply says why, and what is proved of it is true."""

from __future__ import annotations

import pytest
import torch
from audited import audit
from torch import Tensor, nn

NODES, CHANNELS = 9, 4


class GraphConvolution(nn.Module):
    def __init__(self, A: Tensor, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.register_buffer("A", A)

    def forward(self, x: Tensor) -> Tensor:
        return self.A @ self.linear(x)


class GraphNetwork(nn.Module):
    """Two graph convolutions on a fixed graph, and the mean over its nodes."""

    def __init__(self, normalized: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        W = (torch.rand(NODES, NODES) < 0.4).float().triu(1)
        W = W + W.T + torch.eye(NODES)
        A = W / (W.sum(1)[:, None] * W.sum(0)).sqrt() if normalized else W
        self.first, self.second = GraphConvolution(A, CHANNELS, 6), GraphConvolution(A, 6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(x)).mean(1))


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(70, NODES, CHANNELS, generator=generator),
        torch.randint(0, 3, (70,), generator=generator),
    )
    return {"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}


def test_no_finding_fails_and_the_chapter_on_stability_says_why_it_does_not_apply():
    report = audit(GraphNetwork(), pairs(), weight_decay=1e-3, remedies=False)
    assert {
        finding.code: finding.traceback for finding in report.findings if finding.status == "failed"
    } == {}
    assert [f.code for f in report.findings if f.status == "not applicable" and not f.reason] == []
    finding = report["STA001"]
    assert finding.status == "not applicable"
    assert "arrays of shape (9, 4) over which no convolution or pool slides" in finding.reason
    assert report["GEN001"].status == "conditional"
    report.to_html()


@pytest.mark.parametrize("normalized", [True, False])
def test_the_lipschitz_constant_knows_the_graph(normalized):
    """Its adjacency multiplies, and is no weight of any layer."""
    model = GraphNetwork(normalized)
    bound = audit(model, pairs(), only=["GEN005"])["GEN005"].values["lipschitz"]
    slopes = [
        torch.linalg.matrix_norm(torch.autograd.functional.jacobian(model, x[None]).reshape(3, -1), 2)
        for x in 5.0 * torch.randn(20, NODES, CHANNELS)
    ]
    assert float(max(slopes)) <= bound.high < float("inf")
    assert normalized or float(torch.linalg.matrix_norm(model.first.A, 2)) > 2.0
