"""Hessian products against dense Hessians, on models that autograd handles in different ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis.hessian import NotDifferentiable, TrainingObjective, sample_cost
from theodolite.reference.hessian import dense_hessian, difference_hessian, objective_of


def data(n: int = 9, features: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (n,), generator=generator)


def smooth_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def relu_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def dense(model: nn.Module, x: Tensor, y: Tensor, weight_decay: float = 0.0) -> Tensor:
    return dense_hessian(*objective_of(model, x, y, F.cross_entropy, weight_decay))


def test_the_oracles_agree():
    x, y = data(5, 2, 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    value, point = objective_of(model, x, y, F.cross_entropy, 0.1)
    torch.testing.assert_close(
        dense_hessian(value, point), difference_hessian(value, point), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("make", [smooth_net, relu_net])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("retained", [True, False])
def test_products_are_those_of_the_dense_hessian(make, batch_size, retained):
    x, y = data()
    objective = TrainingObjective(make(), x, y, F.cross_entropy, weight_decay=0.3, batch_size=batch_size)
    if retained:
        objective.retain()
    columns = objective.products(torch.eye(objective.size, dtype=torch.float64))
    torch.testing.assert_close(columns, dense(make(), x, y, 0.3), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective.product(columns[0]), columns @ columns[0])
    objective.release()
    torch.testing.assert_close(objective.product(columns[1]), columns @ columns[1])


def test_value_and_gradient_at_a_shift():
    x, y = data()
    objective = TrainingObjective(smooth_net(), x, y, F.cross_entropy, weight_decay=0.3, batch_size=4)
    objective.retain()
    value, point = objective_of(smooth_net(), x, y, F.cross_entropy, 0.3)
    shift = 0.1 * torch.randn(objective.size, dtype=torch.float64)
    assert objective.value() == pytest.approx(float(value(point)), rel=1e-12)
    assert objective.value(shift) == pytest.approx(float(value(point + shift)), rel=1e-12)
    for at, moved in ((point, None), (point + shift, shift)):
        at = at.clone().requires_grad_(True)
        truth = torch.autograd.grad(value(at), at)[0]
        torch.testing.assert_close(objective.gradient(moved), truth, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(objective.point, point, rtol=0, atol=0)
    torch.testing.assert_close(objective.product(shift), dense(smooth_net(), x, y, 0.3) @ shift)


def test_chosen_parameters_alone_move():
    x, y = data()
    model = smooth_net()
    objective = TrainingObjective(model, x, y, F.cross_entropy, parameters=["2.weight", "2.bias"])
    assert objective.size == 18
    assert {k: tuple(v.shape) for k, v in objective.split(objective.point).items()} == {
        "2.weight": (3, 5),
        "2.bias": (3,),
    }
    whole = dense(model, x, y)
    columns = objective.products(torch.eye(18, dtype=torch.float64))
    torch.testing.assert_close(columns, whole[-18:, -18:], rtol=1e-10, atol=1e-12)


def test_the_model_is_left_alone():
    x, y = data()
    model = smooth_net()
    model[0].weight.requires_grad_(False)
    objective = TrainingObjective(model, x, y, F.cross_entropy, dtype=torch.float32)
    objective.product(torch.ones(objective.size))
    objective.loss_gradient()
    assert not model[0].weight.requires_grad
    assert all(p.grad is None and p.dtype == torch.float64 for p in model.parameters())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.view(-1, 2, 4)).mean(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3, sparse=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).tanh().mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 2, 4))[0][:, -1])


@pytest.mark.parametrize("make", [Attention, Recurrent, Tokens])
def test_kernels_that_are_hard_to_differentiate_twice(make):
    torch.manual_seed(0)
    model = make().double().eval()
    x, y = data(6, 8)
    if make is Tokens:
        x = torch.arange(24).view(6, 4) % 6
    objective = TrainingObjective(model, x, y, F.cross_entropy, weight_decay=0.1)
    direction = torch.randn(objective.size, dtype=torch.float64)
    quotient = (objective.gradient(1e-6 * direction) - objective.gradient(-1e-6 * direction)) / 2e-6
    torch.testing.assert_close(objective.product(direction), quotient, rtol=1e-6, atol=1e-7)


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature():
    x, y = data()
    model = nn.Linear(4, 3, bias=False).double()
    objective = TrainingObjective(model, x, y, lambda output, target: output.mean())
    torch.testing.assert_close(
        objective.product(torch.ones(12, dtype=torch.float64)), torch.zeros(12).double()
    )


def test_a_loss_without_a_gradient_is_refused():
    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    x, y = data()
    objective = TrainingObjective(Silent(4, 3).double(), x, y, F.cross_entropy)
    with pytest.raises(NotDifferentiable, match="autograd can see"):
        objective.loss_gradient()
    with pytest.raises(NotDifferentiable, match="autograd can see"):
        objective.product(torch.ones(15, dtype=torch.float64))


def test_sample_cost_counts_one_sample():
    x, y = data()
    wide = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 3)).double()
    narrow, wider = (
        sample_cost(TrainingObjective(model, x, y, F.cross_entropy)) for model in (relu_net(), wide)
    )
    assert narrow.flops == 2 * (4 * 5 + 5 * 3)
    assert wider.flops == 2 * (4 * 200 + 200 * 3)
    assert 200 <= wider.elements <= 20 * 200
    assert wider.elements > 5 * narrow.elements
    assert wider.work == wider.flops + 50 * wider.elements
    alone = sample_cost(TrainingObjective(relu_net(), x[:1], y[:1], F.cross_entropy))
    assert alone == narrow


def test_progress_is_told_samples_and_an_interrupt_passes():
    x, y = data()
    objective = TrainingObjective(relu_net(), x, y, F.cross_entropy, batch_size=4)
    seen: list[tuple[int, int]] = []
    objective.loss_gradient(lambda done, total: seen.append((done, total)))
    assert seen == [(4, 9), (8, 9), (9, 9)]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objective.loss_gradient(interrupt)
