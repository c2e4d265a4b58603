"""OPT005: the relative gradient, Euler's residuals and the sign of curvature, at points that are known."""

from __future__ import annotations

import builders
import pytest
import torch
import torch.nn.functional as F
from fixtures import nets
from torch import Tensor, nn

from theodolite.reference.hessian import dense_hessian, objective_of
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.optimality.stationarity import Stationarity
from theodolite.theorems.subject import Subject


@pytest.fixture(autouse=True)
def without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the batch size, which is read off the traced graph otherwise: the theorem needs no graph."""
    monkeypatch.setattr(Subject, "batch_size", 512)


def finding(subject: Subject) -> Finding:
    result = evaluate(Stationarity(), subject)
    assert result.status != "failed", result.traceback
    return result


def linear_chain(*weights: Tensor) -> nn.Module:
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.float64) for w in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("decay", [0.0, 1e-2, None])
@pytest.mark.parametrize("seed", range(3))
def test_values_against_the_dense_derivatives(decay, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(15, 3, generator=generator)
    y = torch.randint(2, (15,), generator=generator)
    subject = Subject(builders.mlp(3, 3, 2, bias=True, seed=seed).double(), x, y, weight_decay=decay)
    result = finding(subject)
    assert result.status == "certified"
    v = result.values
    value, point = objective_of(subject.model, x.double(), y, F.cross_entropy, decay or 0.0)
    point = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(point), point)
    point = point.detach()
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(value, point))
    assert v["gradient_norm"].value == pytest.approx(float(gradient.norm()), rel=1e-10)
    slope = float(gradient.norm() * point.norm() / value(point))
    assert v["relative_slope"].value == pytest.approx(slope, rel=1e-10)
    assert v["smallest_eigenvalue"].upper == pytest.approx(float(eigenvalues[0]), abs=1e-8)
    assert v["negative_directions"].lower <= int((eigenvalues < 0).sum())
    assert ("relative_gradient" in v) == bool(decay)
    if decay:
        size = float((gradient - decay * point).norm() + decay * point.norm())
        assert v["relative_gradient"].value == pytest.approx(float(gradient.norm()) / size, rel=1e-10)
        assert 0.0 <= v["relative_gradient"].value <= 1.0
    else:
        assert not any("euler" in name for name in v)
    assert ("weight decay was not given" in v["gradient_norm"].note) == (decay is None)


def test_at_the_ridge_solution_everything_is_stationary_and_convex():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    decay, scale = 0.3, 2.0 / 80.0
    solution = torch.linalg.solve(
        scale * x.T @ x + decay * torch.eye(4, dtype=torch.float64), scale * x.T @ y
    ).T
    result = finding(Subject(linear_chain(solution), x, y, weight_decay=decay))
    v = result.values
    assert v["relative_gradient"].value < 1e-13
    assert v["euler_residual"].value < 1e-13
    assert v["smallest_eigenvalue"].upper > decay
    assert v["negative_directions"].lower == 0.0
    assert result.advice == ""


def baldi_hornik(subset: list[int], width: int = 2) -> tuple[Subject, int]:
    """Return the linear net 5-2-4 at a critical point, and the number of its descent directions.

    For a subset I of r eigenvectors of Sigma the index is the number of pairs (i in I, j not in I)
    with a larger eigenvalue at j, plus (width - r) (4 - r).
    """
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(5, 50, generator=generator, dtype=torch.float64)
    Y = torch.randn(4, 50, generator=generator, dtype=torch.float64) + torch.randn(4, 5).double() @ X
    M = Y @ X.T @ torch.linalg.inv(X @ X.T)
    _, U = torch.linalg.eigh(M @ X @ Y.T)  # ascending
    r = len(subset)
    C = torch.randn(width, width, generator=generator, dtype=torch.float64) + 2.0 * torch.eye(width)
    wide = torch.zeros(4, width, dtype=torch.float64)
    wide[:, :r] = U[:, subset]
    A = wide @ C
    B = torch.linalg.solve(C, wide.T @ M)
    pairs = sum(i < j for i in subset for j in range(4) if j not in subset)
    return Subject(linear_chain(B, A), X.T, Y.T, weight_decay=0.0), pairs + (width - r) * (4 - r)


@pytest.mark.parametrize(
    ("subset", "index"),
    [
        ([0, 1], 4), ([0, 2], 3), ([0, 3], 2), ([1, 2], 2), ([1, 3], 1), ([2, 3], 0),
        ([0], 6), ([1], 5), ([2], 4), ([3], 3), ([], 8),
    ],
)  # fmt: skip
def test_critical_points_of_linear_networks(subset, index):
    subject, expected = baldi_hornik(subset)
    assert expected == index
    v = finding(subject).values
    assert v["gradient_norm"].value < 1e-11
    assert v["negative_directions"].lower <= index
    # a saddle of a network with one hidden layer has a negative eigenvalue, and it is seen
    assert (v["smallest_eigenvalue"].upper < -1e-6) == (index > 0)
    assert (v["negative_directions"].lower >= 1.0) == (index > 0)
    if subset:
        assert v["negative_directions"].lower == index  # its negative eigenvalues are distinct


def test_the_origin_of_a_deep_network_is_flat_to_second_order():
    """Three weight matrices at 0: gradient and Hessian are exactly zero, and it is no optimum."""
    zero = torch.zeros(2, 2, dtype=torch.float64)
    x, y = torch.randn(10, 2, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    v = finding(Subject(linear_chain(zero, zero, zero), x, y, weight_decay=0.0)).values
    assert v["gradient_norm"].value == 0.0
    assert v["smallest_eigenvalue"].upper == 0.0
    assert v["negative_directions"].lower == 0.0
    decayed = finding(Subject(linear_chain(zero, zero, zero), x, y, weight_decay=0.5)).values
    assert decayed["relative_gradient"].value == 0.0
    assert decayed["euler_residual"].value == 0.0
    assert decayed["smallest_eigenvalue"].upper == pytest.approx(0.5)
    two = finding(Subject(linear_chain(zero, zero), x, y, weight_decay=0.0)).values
    assert two["smallest_eigenvalue"].upper < 0.0  # with two, the origin is a strict saddle


def test_all_active_units_at_a_spurious_minimum():
    """Known answer 3 of the landscape notes: loss 1/3, no gradient, no negative curvature."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    y = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    model = builders.mlp(2, 2, 1, bias=True).double()
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
        model.layers[0].bias.fill_(1.0)
        # the best affine fit of the data is the constant 1/3 (its mean square error is 2/9)
        model.layers[2].weight.zero_()
        model.layers[2].bias.fill_(1.0 / 3.0)
    v = finding(Subject(model, x, y, weight_decay=0.0)).values
    assert v["gradient_norm"].value < 1e-14
    assert v["smallest_eigenvalue"].upper > -1e-12
    assert v["negative_directions"].lower == 0.0
    # (note's loss 1/2 sum of squares is 1/3; ours is the mean, 2/9) and 0 can be reached
    assert 1.5 * float(F.mse_loss(model(x), y).detach()) == pytest.approx(1.0 / 3.0)
    fitted = 1.0 - (x[:, 0] - x[:, 1]).relu() - (x[:, 1] - x[:, 0]).relu()
    assert torch.allclose(fitted[:, None], y)


def test_euler_residual_by_hand():
    """f(w) = v relu(u), loss (1 - uv)^2, decay w: <u, dL/du> = -2 (1 - uv) uv."""
    model = linear_chain(torch.tensor([[2.0]]), torch.tensor([[0.25]]))
    one = torch.ones(1, 1, dtype=torch.float64)
    v = finding(Subject(model, one, one, weight_decay=0.125)).values
    pull, shrink = -2.0 * 0.5 * 0.5, (0.125 * 4.0, 0.125 * 0.0625)
    for layer, part in zip("01", shrink, strict=True):
        expected = abs(pull + part) / (abs(pull) + part)
        assert v[f"euler_residual[{layer}]"].value == pytest.approx(expected)
    assert v["euler_residual"].witness == "1"
    assert v["euler_residual"].value == v["euler_residual[1]"].value


def test_advice_says_whether_to_train_on_or_to_leave_a_saddle():
    assert "train longer" in finding(builders.subject(weight_decay=1e-3)).advice
    zero = torch.zeros(2, 2, dtype=torch.float64)
    x = torch.randn(10, 2, dtype=torch.float64)
    saddle = finding(Subject(linear_chain(zero, zero), x, x, weight_decay=1e-3))
    assert "curves down" in saddle.advice


def test_edges():
    x, y = torch.randn(1, 3), torch.zeros(1, dtype=torch.int64)
    single = finding(Subject(nn.Linear(3, 1).double(), x, y, weight_decay=0.0))
    assert single.values["gradient_norm"].value == 0.0
    assert single.values["relative_slope"].value == 0.0
    one = finding(Subject(nn.Linear(3, 2).double(), x, y, weight_decay=0.1))
    assert one.status == "certified"
    regression = finding(builders.regression_subject(weight_decay=0.1))
    assert "euler_residual[layers.0]" in regression.values
    bare = finding(builders.bare_subject())
    assert (bare.status, bare.reason) == ("not applicable", "the model has 0 parameters")
    signs = finding(builders.subject(builders.constant_net()))  # its derivative is 0 almost everywhere
    assert signs.values["gradient_norm"].value == 0.0


def test_wrong_gradients_are_found_out():
    class Straight(nn.Module):
        """Rounds its weights forward and pretends backward that it did not."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.3 * torch.randn(2, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            rounded = self.weight + ((4.0 * self.weight).round() / 4.0 - self.weight).detach()
            return F.linear(x, rounded)

    x, y = torch.randn(10, 3).double(), torch.arange(10) % 2
    result = finding(Subject(Straight(), x, y))
    assert result.status == "not applicable"
    assert "autograd does not differentiate this objective" in result.reason


def test_the_gradient_is_reported_where_the_curvature_is_not():
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))
    result = finding(builders.subject(weight_norm, weight_decay=1e-3))
    assert result.status == "certified"
    assert "gradient_norm" in result.values
    assert "smallest_eigenvalue" not in result.values
    # PyTorch's second derivative of weight normalization is wrong, and the audit finds that out
    assert (
        "no curvature: needs second derivatives of the loss: autograd's are not symmetric"
        in next(iter(result.values.values())).note
    )


def test_batches_and_frozen_parameters(monkeypatch):
    first = finding(builders.subject(weight_decay=1e-3)).values
    monkeypatch.setattr(Subject, "batch_size", 11)
    again = finding(builders.subject(weight_decay=1e-3)).values
    assert again["gradient_norm"].value == pytest.approx(first["gradient_norm"].value, rel=1e-9)
    frozen = Subject(nets.frozen_net, *builders.digits_pairs(20)["train"], weight_decay=0.1)
    names = {n for n in finding(frozen).values if n.startswith("euler_residual[")}
    assert names == {"euler_residual[layers.2]", "euler_residual[layers.4]"}
