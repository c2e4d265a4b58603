"""Parallel networks as estimators: the stated objective, its bound, alpha, plain modules and bad input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.exceptions import NotFittedError
from torch import nn

import theodolite as td
from theodolite.atoms import ReLUAtom
from theodolite.core.problem import Problem
from theodolite.estimators import ParallelNetClassifier, ParallelNetRegressor
from theodolite.losses import SquaredLoss
from theodolite.nn import GatedLinear, ParallelSubnetworks

KINDS = ["relu", "leaky_relu", "gated", "linear"]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 2))
Y = np.abs(X[:, 0]) - X[:, 1] + 0.5
SIGNS = np.where(X[:, 0] * X[:, 1] > 0, "yes", "no")
THREE = np.digitize(X[:, 0] + X[:, 1] ** 2, [0.0, 1.0])
IMAGES = RNG.normal(size=(24, 6, 6))


def deep(inputs: int = 2, outputs: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 3, bias=False),
        nn.ReLU(),
        nn.Linear(3, 3, bias=False),
        nn.ReLU(),
        nn.Linear(3, outputs, bias=False),
    )


def decay(net: nn.Module, *without: str) -> float:
    """Half of the squared norm of all weights."""
    return 0.5 * sum(float(p.detach().square().sum()) for n, p in net.named_parameters() if n not in without)


def outputs(net: nn.Module, inputs: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return net(torch.tensor(inputs, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("intercept", [False, True])
def test_the_objective_of_a_regression_is_the_one_stated(kind, intercept):
    model = ParallelNetRegressor(kind, alpha=0.02, fit_intercept=intercept, random_state=1).fit(X, Y)
    net = model.to_torch()
    loss = 0.5 * F.mse_loss(outputs(net, X)[:, 0], torch.tensor(Y))
    assert model.objective_ == pytest.approx(float(loss) + 0.02 * decay(net), rel=1e-9)
    assert 0.0 <= model.gap_ <= 1e-2
    assert model.dual_bound_ <= model.objective_
    assert model.predict(X) == pytest.approx(outputs(net, X)[:, 0].numpy(), abs=1e-12)
    width = net[-1].in_features
    assert width == model.n_units_ == model.rank_ == model.certificate_.units
    assert (net[-1].bias is not None) == intercept


@pytest.mark.parametrize(
    ("kind", "loss", "y"),
    [
        ("relu", "log_loss", SIGNS),
        ("relu", "squared_error", THREE),
        ("leaky_relu", "squared_error", SIGNS),
        ("leaky_relu", "log_loss", THREE),
        ("gated", "log_loss", THREE),
        ("gated", "squared_error", SIGNS),
        ("linear", "log_loss", SIGNS),
        ("linear", "squared_error", THREE),
    ],
)
def test_the_objective_of_a_classification_is_the_one_stated(kind, loss, y):
    model = ParallelNetClassifier(kind, alpha=0.05, loss=loss, tol=0.3, budget=0.5).fit(X, y)
    net, found = model.to_torch(), outputs(model.to_torch(), X)
    classes, numbers = np.unique(y, return_inverse=True)
    target = torch.tensor(numbers)
    weights = decay(net, f"{len(net) - 1}.bias")
    if len(classes) == 2:
        z, sign = found[:, 1] - found[:, 0], 2.0 * target - 1.0
        value = F.softplus(-sign * z).mean() if loss == "log_loss" else 0.5 * (sign - z).square().mean()
        weights *= np.sqrt(2.0)  # the two outputs are halves of one
    elif loss == "log_loss":
        value = F.cross_entropy(found, target)
    else:
        value = 0.5 * (F.one_hot(target).double() - found).square().sum() / len(X)
    assert model.objective_ == pytest.approx(float(value) + 0.05 * weights, rel=1e-9)
    assert model.dual_bound_ <= model.objective_
    assert list(model.classes_) == list(classes)
    assert list(model.predict(X)) == list(classes[found.argmax(1).numpy()])
    if loss == "log_loss":
        assert model.predict_proba(X) == pytest.approx(torch.softmax(found, 1).numpy(), abs=1e-12)
    else:
        assert not hasattr(model, "predict_proba")


def test_it_is_the_problem_that_core_solves():
    model = ParallelNetRegressor(alpha=0.02, tol=1e-6, bias=False).fit(X, Y)
    problem = Problem(SquaredLoss(Y[:, None], 1 / len(Y)), ReLUAtom(X, 1), 0.02)
    solution = problem.solve(tol=1e-6)
    assert model.objective_ == pytest.approx(solution.certificate.objective, rel=1e-6)
    assert model.certificate_.lam == 0.02
    assert model.history_[-1].gap == model.gap_


def test_two_classes_are_cross_entropy_of_two_outputs():
    """With a decay of sqrt(2) alpha: one output z costs as much as the pair -z/2, z/2."""
    model = ParallelNetClassifier("gated", alpha=0.02, tol=1e-6, n_gates=10).fit(X, SIGNS)
    again = ParallelNetClassifier.from_torch(
        model.to_torch(), X, SIGNS == "yes", 0.02 * np.sqrt(2.0), tol=1e-4
    )
    assert again.objective_ == pytest.approx(model.objective_, rel=1e-9)
    assert again.gap_ <= 1e-5


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"basis": "pca", "n_components": 2}])
def test_filters(options):
    y = np.arange(24) % 3
    flat = ParallelNetClassifier(
        "conv",
        alpha=0.05,
        budget=1.0,
        kernel_size=2,
        pool=2,
        image_shape=(6, 6),
        loss="squared_error",
        **options,
    )
    model = flat.fit(IMAGES.reshape(24, 36), y)
    net = model.to_torch()
    assert [type(layer).__name__ for layer in net] == "Unflatten Conv2d ReLU AvgPool2d Flatten Linear".split()
    target = F.one_hot(torch.tensor(y)).double()
    value = 0.5 * (target - outputs(net, IMAGES.reshape(24, 36))).square().sum() / 24
    assert model.objective_ == pytest.approx(float(value) + 0.05 * decay(net, "5.bias"), rel=1e-9)
    assert (net[1].bias is not None) == ("bias" in options)
    for shape in ((24, 6, 6), (24, 1, 6, 6)):
        twin = flat.set_params(image_shape=None, budget=0.0).fit(IMAGES.reshape(shape), y)
        assert twin.predict(IMAGES.reshape(shape)).shape == (24,)
        assert outputs(twin.to_torch(), IMAGES.reshape(shape)).shape == (24, 3)


@pytest.mark.parametrize("intercept", [False, True])
def test_copies_of_any_homogeneous_module(intercept):
    model = ParallelNetRegressor(deep, alpha=1e-3, budget=4.0, fit_intercept=intercept).fit(X, Y)
    net = model.to_torch()
    parallel = net[0] if intercept else net
    assert isinstance(parallel, ParallelSubnetworks)
    assert len(parallel) == model.n_units_ >= 1
    assert model.certificate_.verdict != "closed"  # products of norms seldom close a gap
    product = sum(np.prod([float(p.detach().norm()) for p in one.parameters()]) for one in parallel)
    value = 0.5 * F.mse_loss(outputs(net, X)[:, 0], torch.tensor(Y))
    value = float(value) + (0.5e-3 * float(net[1].bias.detach().square()) if intercept else 0.0)
    assert model.objective_ == pytest.approx(value + 1e-3 * product, rel=1e-9)
    assert model.score(X, Y) > 0.5
    instance = ParallelNetClassifier(deep(), alpha=1e-3, budget=0.3).fit(X, SIGNS)
    assert instance.to_torch()(torch.zeros(1, 2, dtype=torch.float64)).shape == (1, 2)


@pytest.mark.parametrize("kind", [*KINDS, "conv"])
def test_the_audit_takes_the_plain_module(kind):
    inputs = IMAGES.reshape(24, 36) if kind == "conv" else X
    model = ParallelNetClassifier(kind, alpha=0.05, budget=0.5, image_shape=(6, 6)).fit(inputs, SIGNS)
    net, target = model.to_torch(), (SIGNS == "yes").astype(int)
    report = td.audit(net, (inputs, target), weight_decay=0.05, remedies=False, only=["OPT004", "OPT006"])
    assert [finding.status for finding in report.findings] == ["certified", "conditional"]
    single = model.to_torch(torch.float32)
    assert single(torch.zeros(1, inputs.shape[1])).dtype == torch.float32
    assert net(torch.zeros(1, inputs.shape[1]).double()).dtype == torch.float64  # a copy of its own


def test_gates_are_half_spaces_of_the_standardized_inputs():
    far = 100.0 + 0.01 * X
    net = ParallelNetRegressor("gated", alpha=1e-3, n_gates=30).fit(far, Y).to_torch()
    assert isinstance(net[0], GatedLinear)
    share = (F.linear(torch.tensor(far), net[0].gates, net[0].offsets) > 0).double().mean(0)
    assert float(((share > 0.05) & (share < 0.95)).double().mean()) > 0.8


@pytest.mark.parametrize("model", [ParallelNetRegressor, ParallelNetClassifier])
@pytest.mark.parametrize("kind", ["gated", "linear"])
def test_alpha_chosen_by_cross_validation(model, kind):
    y = Y if model is ParallelNetRegressor else SIGNS
    found = model(kind, alpha="cv", alphas=3, cv=2, tol=1e-2, n_gates=10, random_state=0).fit(X, y)
    results = found.cv_results_
    tried = len(results["alpha"])
    assert 1 <= tried <= 3
    assert results["test_loss"].shape == results["gap"].shape == results["units"].shape == (tried, 2)
    assert float(results["gap"].max()) <= 1e-2  # each fit is certified
    assert found.best_index_ == int(np.argmin(results["mean_test_loss"]))
    assert found.alpha_ == results["alpha"][found.best_index_]
    assert found.gap_ <= 1e-2
    assert (np.diff(results["alpha"]) < 0).all()
    own = model(kind, alpha=found.alpha_, tol=1e-2, n_gates=10, random_state=0).fit(X, y)
    assert found.objective_ == pytest.approx(own.objective_, rel=2e-2)


def test_the_mean_loss_of_held_out_samples_is_what_is_compared():
    from sklearn.model_selection import PredefinedSplit

    part = PredefinedSplit(np.where(np.arange(24) < 9, 0, -1))
    found = ParallelNetRegressor("linear", alpha="cv", alphas=[0.1], cv=part, fit_intercept=True).fit(X, Y)
    own = ParallelNetRegressor("linear", alpha=0.1, fit_intercept=True).fit(X[9:], Y[9:])
    expected = 0.5 * np.mean((own.predict(X[:9]) - Y[:9]) ** 2)
    assert found.cv_results_["test_loss"][0, 0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("cv", "message"), [(1, "cv: expected an integer >= 2, got 1"), (99, "as samples, 24")]
)
def test_folds_that_cannot_be(cv, message):
    with pytest.raises(ValueError, match=message):
        ParallelNetRegressor("linear", alpha="cv", cv=cv).fit(X, Y)


# bad input and limits --------------------------------------------------------------------------------------------


def test_labels_of_one_class_are_refused():
    with pytest.raises(ValueError, match="y: expected labels of at least two classes, got one class: 'no'"):
        ParallelNetClassifier().fit(X, np.full(24, "no"))


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample(kind):
    model = ParallelNetRegressor(kind, alpha=0.1, tol=1e-3).fit(X[:1], Y[:1])
    # one unit of norm |(x, 1)| |u|: soft-thresholding, unless its gate is closed on the sample
    size = np.linalg.norm([*X[0], 1.0])
    best = 0.1 / size * (abs(Y[0]) - 0.05 / size)
    assert model.gap_ <= 1e-3
    assert model.objective_ == pytest.approx(best if kind != "leaky_relu" else model.objective_, rel=1e-3)
    assert model.predict(X[:1]).shape == (1,)
    with pytest.raises(ValueError, match="at least two classes"):
        ParallelNetClassifier(kind).fit(X[:1], SIGNS[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_duplicated_rows_change_nothing_in_a_mean(kind):
    few, y = X[:10], Y[:10]
    twice = ParallelNetRegressor(kind, alpha=0.05, tol=1e-4).fit(np.repeat(few, 2, 0), np.repeat(y, 2))
    once = ParallelNetRegressor(kind, alpha=0.05, tol=1e-4).fit(few, y)
    assert twice.objective_ == pytest.approx(once.objective_, rel=2e-4)
    assert twice.gap_ <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_no_features_and_features_of_zeros(kind):
    with pytest.raises(ValueError, match=r"0 feature\(s\)"):
        ParallelNetRegressor(kind).fit(X[:, :0], Y)
    model = ParallelNetRegressor(kind, bias=False).fit(0.0 * X, Y)
    assert model.n_units_ == 0
    assert model.gap_ == 0.0
    assert model.objective_ == pytest.approx(0.5 * np.mean(Y**2))
    assert not model.predict(X).any()


@pytest.mark.parametrize("model", [ParallelNetRegressor, ParallelNetClassifier])
def test_alpha_zero_is_refused_with_the_reason(model):
    with pytest.raises(
        ValueError, match="alpha: expected a number > 0 or 'cv', got 0: without a regularizer"
    ):
        model(alpha=0.0).fit(X, SIGNS == "yes")


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf, "best", None, True, 1e-200])
def test_an_alpha_that_is_none_is_refused(alpha):
    with pytest.raises((ValueError, TypeError), match="alpha: expected a"):
        ParallelNetRegressor(alpha=alpha).fit(X, Y)


@pytest.mark.parametrize("kind", [*KINDS, deep])
def test_a_large_alpha_gives_the_zero_network_certified(kind):
    problem = Problem(SquaredLoss(Y[:, None], 1 / len(Y)), ReLUAtom(X, 1, bias=True), 1.0)
    top = problem.lambda_max()
    assert top.high <= 1.001 * top.low
    model = ParallelNetRegressor(kind, alpha=10.0 * top.high, tol=1e-6).fit(X, Y)
    assert (model.n_units_, model.gap_, model.certificate_.verdict) == (0, 0.0, "closed")
    assert model.objective_ == pytest.approx(0.5 * np.mean(Y**2), rel=1e-12)
    assert not model.predict(X).any()
    assert not outputs(model.to_torch(), X).any()
    if kind == "relu":
        assert ParallelNetRegressor(alpha=1.001 * top.high).fit(X, Y).n_units_ == 0
        assert ParallelNetRegressor(alpha=0.99 * top.low, tol=1e-6).fit(X, Y).n_units_ >= 1


def test_a_module_that_is_not_homogeneous_is_refused_with_the_witness():
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 1, bias=False))

    with pytest.raises(ValueError, match=r"module: expected one that is positively homogeneous.*Sigmoid"):
        ParallelNetRegressor(make).fit(X, Y)
    with pytest.raises(ValueError, match="subnetwork: expected modules with 3 outputs here, got one with 1"):
        ParallelNetClassifier(deep).fit(X, THREE)


@pytest.mark.parametrize("kind", [*KINDS, deep])
def test_no_time_at_all_still_gives_a_bound_that_holds(kind):
    model = ParallelNetRegressor(kind, alpha=0.02, budget=0.0).fit(X, Y)
    best = ParallelNetRegressor(kind, alpha=0.02, budget=0.5).fit(X, Y)
    assert 0.0 <= model.dual_bound_ <= best.objective_ <= model.objective_
    assert model.dual_bound_ <= best.dual_bound_ * (1 + 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"subnetwork": "tanh"},
            "subnetwork: expected one of 'relu', 'leaky_relu', 'gated', 'linear', 'conv' or",
        ),
        (
            {"subnetwork": "leaky_relu", "negative_slope": 2.0},
            r"negative_slope: expected a number in \[-1, 1\]",
        ),
        ({"subnetwork": "gated", "n_gates": 0}, "n_gates: expected an integer >= 1, got 0"),
        ({"bias": 1}, "bias: expected one of None, True, False, got 1"),
        ({"fit_intercept": "yes"}, "fit_intercept: expected one of True, False"),
        ({"tol": -1.0}, "tol: expected a finite number >= 0"),
        ({"budget": -1.0}, "budget: expected a finite number >= 0"),
        ({"subnetwork": "conv"}, r"image_shape: expected \(height, width\) or .* with 2 pixels, got None"),
        ({"subnetwork": "conv", "image_shape": (2, 2)}, "image_shape: expected .* with 2 pixels"),
        ({"subnetwork": "conv", "image_shape": (1, 2)}, "images: expected at least one pooling cell"),
    ],
)
def test_parameters_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ParallelNetRegressor(**options).fit(X, Y)


def test_inputs_of_another_shape_and_unfitted_models_are_refused():
    with pytest.raises(NotFittedError):
        ParallelNetRegressor().predict(X)
    with pytest.raises(NotFittedError):
        ParallelNetRegressor().to_torch()
    model = ParallelNetClassifier("conv", alpha=1.0, budget=0.0).fit(IMAGES, np.arange(24) % 2)
    with pytest.raises(ValueError, match=r"X: expected samples of shape \(6, 6\), got \(6, 5\)"):
        model.predict(IMAGES[:, :, :5])
    with pytest.raises(ValueError, match="loss: expected one of 'log_loss', 'squared_error'"):
        ParallelNetClassifier(loss="hinge").fit(X, SIGNS)


def test_fitted_models_are_pickled_and_random_states_kept():
    before = torch.random.get_rng_state()
    model = ParallelNetClassifier("gated", alpha=0.05, random_state=3).fit(X, SIGNS)
    assert torch.equal(before, torch.random.get_rng_state())
    twin = pickle.loads(pickle.dumps(model))
    assert (twin.predict_proba(X) == model.predict_proba(X)).all()
    same = ParallelNetClassifier("gated", alpha=0.05, random_state=3).fit(X, SIGNS)
    assert same.objective_ == model.objective_
    assert (
        ParallelNetClassifier("gated", alpha=0.05, random_state=4).fit(X, SIGNS).objective_
        != model.objective_
    )


def test_a_callback_stops():
    stopped = ParallelNetRegressor("relu", alpha=1e-3, tol=1e-9).fit(X, Y, callback=lambda _: True)
    assert len(stopped.history_) == 1
    assert stopped.dual_bound_ <= stopped.objective_


@pytest.mark.parametrize("model", [ParallelNetRegressor, ParallelNetClassifier])
@pytest.mark.parametrize("alpha", [1e-3, "cv"])
@pytest.mark.parametrize("calls", [1, 2])
def test_an_interrupt_leaves_the_best_so_far_with_a_bound_that_holds(model, alpha, calls):
    seen = []

    def interrupt(line) -> None:
        seen.append(line)
        if len(seen) >= calls:
            raise KeyboardInterrupt

    y = Y if model is ParallelNetRegressor else SIGNS
    found = model("gated", alpha=alpha, alphas=[0.1, 0.01], cv=2, tol=1e-9, n_gates=5).fit(
        X, y, callback=interrupt
    )
    assert found.interrupted_
    assert found.dual_bound_ <= found.objective_
    assert found.predict(X).shape == (24,)
    assert found.alpha_ in (1e-3, 0.1, 0.01)
    best = model("gated", alpha=found.alpha_, tol=1e-3, n_gates=5).fit(X, y)
    assert found.dual_bound_ <= best.objective_ * (1 + 1e-12)
    assert best.dual_bound_ <= found.objective_ * (1 + 1e-12)
