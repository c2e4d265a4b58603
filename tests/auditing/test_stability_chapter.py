"""Audits of five kinds of networks: the chapter on stability is filled, or says why it does not apply."""

from __future__ import annotations

import pytest
import torch
from audited import audit
from sklearn.datasets import load_digits
from torch import Tensor, nn

from theodolite.models import EncoderDecoder
from theodolite.theorems import ALL

CODES = sorted(theorem.code for theorem in ALL if theorem.chapter == "stability")
Pair = tuple[Tensor, Tensor]


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int = 30) -> nn.Module:
    loss = nn.functional.cross_entropy if y.dtype == torch.int64 else nn.functional.mse_loss
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


def digits() -> Pair:
    data = load_digits()
    return torch.tensor(data.images[:200, None] / 16.0, dtype=torch.float32), torch.tensor(data.target[:200])


def convolutional() -> tuple[nn.Module, Pair]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return trained(model, *digits()), digits()


def encoder_decoder() -> tuple[nn.Module, Pair]:
    torch.manual_seed(0)
    x = digits()[0][:40]
    y = (x > 0.5).float().flatten(1)
    model = nn.Sequential(EncoderDecoder(1, 1, width=4), nn.Flatten())
    return trained(model, x, y), (x, y)


def sequential() -> tuple[nn.Module, Pair]:
    torch.manual_seed(0)
    x = torch.randn(80, 2, 32)
    y = (x[:, 0].abs().mean(1) > x[:, 1].abs().mean(1)).long()
    model = nn.Sequential(
        nn.Conv1d(2, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    return trained(model, x, y), (x, y)


class GraphNetwork(nn.Module):
    """Features of the nodes of one ring, mixed along its edges."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", 0.5 * (torch.eye(7).roll(1, 0) + torch.eye(7).roll(-1, 0)))
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.A @ self.first(x)).mean(1))


def graph() -> tuple[nn.Module, Pair]:
    torch.manual_seed(0)
    x = torch.randn(60, 7, 3)
    y = (x.sum((1, 2)) > 0).long()
    return trained(GraphNetwork(), x, y), (x, y)


def tabular() -> tuple[nn.Module, Pair]:
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    y = (x[:, 0] > 0).long()
    return trained(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), x, y), (x, y)


NO_GRID, NO_POSITIONS = "no translation is known to act", "no positions are known"
ABSENT = {
    "STA001": NO_GRID,
    "STA002": NO_POSITIONS,
    "STA004": NO_GRID,
    "STA005": NO_POSITIONS,
    "STA006": "no layer of the model drops positions",
}
CASES = {  # what does not apply, by code, and a part of the reason
    convolutional: {},
    encoder_decoder: {},
    sequential: {},
    graph: ABSENT | {"STA007": "their rows are no set"},
    tabular: ABSENT | {"STA007": NO_GRID},
}


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_the_chapter_is_filled_or_says_why_not(build):
    model, data = build()
    report = audit(model, data, only=CODES, remedies=False)
    found = {finding.code: finding for finding in report.findings}
    assert sorted(found) == CODES
    absent = {code: f.reason for code, f in found.items() if f.status == "not applicable"}
    assert sorted(absent) == sorted(CASES[build])
    for code, part in CASES[build].items():
        assert part in absent[code]
    for code in set(CODES) - set(absent):
        assert found[code].status in {"certified", "conditional", "estimated"}, (code, found[code].status)
        assert any(value.low > float("-inf") for value in found[code].values.values())
