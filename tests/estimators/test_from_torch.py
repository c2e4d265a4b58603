"""Networks that were trained elsewhere, certified: the user's own objective, and no network below its bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.estimators import ParallelNetClassifier, ParallelNetRegressor
from theodolite.nn import GatedLinear

G = torch.Generator().manual_seed(0)
X = torch.randn(30, 2, generator=G, dtype=torch.float64)
Y = torch.stack([X[:, 0].abs(), X[:, 0] * X[:, 1]], 1)
C = (X[:, 0] * X[:, 1] > 0).long() + (X[:, 1] > 1).long()
IMAGES = torch.randn(20, 1, 6, 6, generator=G, dtype=torch.float64)
DECAY = 0.03


def two_layer(kind: str, bias: bool, outputs: int, width: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    first: nn.Module = nn.Linear(2, width, bias=bias)
    if kind == "gated":
        first = GatedLinear(2, width, bias, gates=torch.randn(width, 2), offsets=torch.randn(width))
    between = {"relu": [nn.ReLU()], "leaky_relu": [nn.LeakyReLU(0.2)]}.get(kind, [])
    return nn.Sequential(first, *between, nn.Linear(width, outputs, bias=bias)).double()


def convolutional(
    bias: bool, outputs: int, pool: nn.Module | None = None, width: int = 3, seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    pool = nn.AvgPool2d(2) if pool is None else pool
    layers = [nn.Conv2d(1, width, 2, padding=1, bias=bias), nn.ReLU(), pool, nn.Flatten()]
    cells = nn.Sequential(*layers)(torch.zeros(1, 1, 6, 6)).shape[1]
    return nn.Sequential(*layers, nn.Linear(cells, outputs, bias=bias)).double()


def objective(model: nn.Module, x: Tensor, y: Tensor, decay: float = DECAY) -> Tensor:
    """What a user minimizes with torch.optim.SGD(..., weight_decay=decay)."""
    output = model(x)
    if y.is_floating_point():
        loss = F.mse_loss(output.reshape(y.shape), y)
    elif output.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(output[:, 0], y.to(output))
    else:
        loss = F.cross_entropy(output, y)
    return loss + 0.5 * decay * sum(p.square().sum() for p in model.parameters() if p.requires_grad)


def train(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=100, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(model, x, y)
        value.backward()
        return value

    optimizer.step(closure)
    return model


CASES = [
    ("relu", False, Y[:, 0]), ("relu", True, C), ("leaky_relu", True, Y[:, 0]), ("leaky_relu", False, C),
    ("gated", True, Y), ("gated", False, C), ("linear", True, C), ("linear", False, Y), ("gated", True, C.clamp(max=1)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "bias", "y"), CASES)
def test_the_objective_is_the_users_and_no_wider_network_is_below_the_bound(kind, bias, y):
    outputs = y.shape[1] if y.ndim == 2 else 1 if y.is_floating_point() or int(y.max()) == 1 else 3
    model, x = train(two_layer(kind, bias, outputs), X, y), X.numpy()
    estimator = ParallelNetRegressor if y.is_floating_point() else ParallelNetClassifier
    found = estimator.from_torch(model, x, y.numpy(), DECAY, budget=1.0)
    own = objective(model, X, y).item()
    assert found.objective_ == pytest.approx(own, rel=1e-12)
    assert found.subnetwork == kind
    assert (found.bias, found.fit_intercept) == (bias, bias)
    assert found.n_units_ == 5
    assert 0.0 <= found.network_gap_.lower <= found.gap_
    assert (found.objective_ - found.dual_bound_) / found.objective_ == pytest.approx(found.gap_, rel=1e-9)
    with torch.no_grad():
        expected = model(X)
    if y.is_floating_point():
        assert found.predict(x) == pytest.approx(expected.reshape(y.shape).numpy(), abs=1e-12)
    else:
        expected = torch.cat([-expected / 2, expected / 2], 1) if outputs == 1 else expected
        assert found.predict_proba(x) == pytest.approx(torch.softmax(expected, 1).numpy(), abs=1e-12)
        assert list(found.predict(x)) == expected.argmax(1).tolist()
    if kind != "gated":  # a wider gated network has other gates
        wide = train(two_layer(kind, bias, outputs, 20, seed=1), X, y)
        assert found.dual_bound_ <= objective(wide, X, y).item() * (1 + 1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pool", [None, nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.AvgPool2d(3, stride=2)])
def test_convolutions(bias, pool):
    y = torch.arange(20) % 3
    model = train(convolutional(bias, 3, pool), IMAGES, y)
    found = ParallelNetClassifier.from_torch(model, IMAGES.numpy(), y.numpy(), DECAY, budget=0.5)
    assert found.objective_ == pytest.approx(objective(model, IMAGES, y).item(), rel=1e-12)
    assert (found.subnetwork, found.bias, found.fit_intercept) == ("conv", bias, bias)
    assert found.n_units_ <= 3
    with torch.no_grad():
        assert found.predict(IMAGES.numpy()).tolist() == model(IMAGES).argmax(1).tolist()
    for seed in range(3):
        wide = train(convolutional(bias, 3, pool, 12, seed), IMAGES, y)
        assert found.dual_bound_ <= objective(wide, IMAGES, y).item() * (1 + 1e-12)


@pytest.mark.parametrize("kind", ["relu", "gated", "linear"])
def test_a_fitted_network_comes_back_with_the_gap_that_it_had(kind):
    fitted = ParallelNetRegressor(kind, alpha=0.02, tol=1e-5, fit_intercept=kind != "relu", n_gates=5).fit(
        X, Y[:, 0]
    )
    found = ParallelNetRegressor.from_torch(fitted.to_torch(), X.numpy(), Y[:, 0].numpy(), 0.04)
    assert found.objective_ == pytest.approx(2.0 * fitted.objective_, rel=1e-10)
    assert found.gap_ <= 2e-5
    assert found.certificate_.verdict == "closed"
    assert found.alpha_ == pytest.approx(0.02)
    assert found.network_gap_.balancing <= 1e-9


def test_unbalanced_layers_are_told():
    fitted = ParallelNetRegressor("linear", alpha=0.02, tol=1e-6, bias=False).fit(X, Y)
    net = fitted.to_torch()
    with torch.no_grad():
        net[0].weight.mul_(4.0)
        net[1].weight.div_(4.0)
    found = ParallelNetRegressor.from_torch(net, X, Y, 0.02)  # two outputs: alpha = w k / 2
    assert found.alpha_ == pytest.approx(0.02)
    assert found.certificate_.verdict == "improvable"
    assert found.network_gap_.balancing == pytest.approx(found.objective_ - fitted.objective_, rel=1e-6)
    assert found.gap_ == pytest.approx(1.0 - fitted.objective_ / found.objective_, rel=1e-4)


def test_a_longer_chain_of_linear_layers():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(3)]).double()
    found = ParallelNetRegressor.from_torch(train(model, X, Y), X, Y, DECAY)
    assert found.subnetwork == "linear"
    assert 0.0 < found.dual_bound_ <= found.objective_ == pytest.approx(objective(model, X, Y).item())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1)), "cannot be certified: 'sigmoid' in"),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)), "deeper than two"),
        (nn.Linear(2, 1), "is the only trained layer"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), "could not be traced on X"),
    ],
)  # fmt: skip
def test_networks_of_another_family_are_refused_with_the_reason(model, message):
    with pytest.raises(ValueError, match=f"model: .*{message}"):
        ParallelNetRegressor.from_torch(model, X, Y[:, 0], DECAY)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, Y[:, 0], 0.0), ValueError, "weight_decay: expected a finite number > 0, got 0.0"),
        ((X, Y, DECAY), ValueError, "y: expected 1 columns, as many as the model has outputs, got 2"),
        ((X[:5], Y[:, 0], DECAY), ValueError, "X, y: expected equal lengths, got 5 and 30"),
        ((X * torch.nan, Y[:, 0], DECAY), ValueError, "X: expected finite numbers"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ParallelNetRegressor.from_torch(two_layer("relu", True, 1), *arguments)


def test_what_is_no_module_and_what_are_no_classes():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        ParallelNetRegressor.from_torch(3, X, Y, DECAY)
    with pytest.raises(ValueError, match="y: expected class numbers 0 to 2, got 0 to 3"):
        ParallelNetClassifier.from_torch(two_layer("relu", True, 3), X, np.arange(30) % 4, DECAY)
    with pytest.raises(ValueError, match=r"y: expected class numbers of shape \(n,\), got float64"):
        ParallelNetClassifier.from_torch(two_layer("relu", True, 3), X, Y.numpy(), DECAY)


def test_without_any_time_there_is_a_bound_that_holds():
    model = train(two_layer("relu", True, 1), X, Y[:, 0])
    loose = ParallelNetRegressor.from_torch(model, X, Y[:, 0], DECAY, budget=0.0)
    tight = ParallelNetRegressor.from_torch(model, X, Y[:, 0], DECAY)
    assert 0.0 <= loose.dual_bound_ <= tight.dual_bound_ * (1 + 1e-12)
    assert tight.dual_bound_ <= tight.objective_
