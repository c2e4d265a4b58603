"""The experiments on dropout: their claims hold, and fail where what they claim is not so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from theodolite.analysis.dropout import dropconnect_regularizer
from theodolite.experiments import _dropout_training as training
from theodolite.experiments import dropout_balance, dropout_objective, dropout_spectrum, dropout_structures
from theodolite.experiments.base import reproduce
from theodolite.experiments.dropout_balance import DropoutBalance
from theodolite.experiments.dropout_digits import DropoutDigits
from theodolite.experiments.dropout_objective import DropoutObjective
from theodolite.experiments.dropout_spectrum import DropoutSpectrum
from theodolite.experiments.dropout_structures import DropoutStructures


@pytest.mark.parametrize("experiment", [DropoutObjective, DropoutBalance, DropoutStructures, DropoutDigits])
def test_every_claim_holds(experiment, tmp_path):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    result = reproduce(experiment(), tmp_path, fast=True)
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    record = json.loads((tmp_path / f"{experiment.name}.json").read_text())
    assert all(claim["holds"] is True for claim in record["claims"])
    assert (tmp_path / f"{experiment.name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_spectrum_is_the_closed_forms(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    monkeypatch.setattr(dropout_spectrum, "WIDTHS", (10, 20, 40))
    result = reproduce(DropoutSpectrum(), tmp_path, fast=True)
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert "100,000 steps" in result.claims[0].statement
    ranks = [run["trained_rank"] for run in result.numbers["runs"]]
    assert ranks[0] < ranks[1] < ranks[2]
    assert len(set(ranks[3:])) == 1


def test_the_spectrum_of_the_wrong_rate_fails():
    """Trained at one rate and compared at another, the product is another one."""
    Y = training.graded_matrix(20, 15, 10.0 * 0.8 ** np.arange(10.0))
    run = dropout_spectrum.trained(Y, 10, 0.5, 5000)
    other = dropout_spectrum.trained(Y, 10, 0.3, 5000)
    wrong = run | {
        "distance": float(np.abs(run["trained"] - other["predicted"]).max() / 10.0),
        "rate": "fixed",
    }
    claims = dropout_spectrum.claims([wrong, wrong | {"rate": "adapted"}], wrong)
    assert not claims[0].holds
    assert not claims[1].holds


def test_descent_without_dropout_does_not_balance():
    Y = training.graded_matrix(*dropout_balance.SHAPE, 10.0 * 0.8 ** np.arange(20.0))
    run = dropout_balance.watched(Y, 0.0, 5000, 0)
    assert run["spread"][-1] > 0.3
    claims = dropout_balance.claims([run, run | {"p": 0.5, "predicted": 1.0}])
    assert sum(not claim.holds for claim in claims) >= 2


def test_expected_objective_is_the_mean_over_masks():
    generator = np.random.default_rng(0)
    U, V, Y = (generator.normal(size=shape) for shape in ((6, 4), (5, 4), (6, 5)))
    assert training.expected_objective(Y, U, V, 0.3) == pytest.approx(106.26494474991128, rel=1e-10)
    assert training.expected_objective(Y, U, V, 0.3, block=2) == pytest.approx(110.83987306325056, rel=1e-10)


def test_one_step_of_training_is_the_gradient_of_the_masked_error():
    """Its mean over many seeds is the gradient of half the expected objective."""
    generator = np.random.default_rng(0)
    U, V, Y = (generator.normal(size=shape) for shape in ((3, 4), (2, 4), (3, 2)))
    rate = 0.2 / np.linalg.norm(Y, 2)
    moved = [training.train(Y, 4, 0.3, 1, block=2, start=(U, V), seed=seed) for seed in range(4000)]
    mean = [np.mean([m[i] for m in moved], axis=0) for i in range(2)]
    spread = [np.std([m[i] for m in moved], axis=0) / np.sqrt(4000) for i in range(2)]
    leaves = [torch.from_numpy(f.copy()).requires_grad_() for f in (U, V)]
    parts = torch.stack([u @ v.T for u, v in zip(*(leaf.split(2, 1) for leaf in leaves), strict=True)])
    objective = (torch.from_numpy(Y) - parts.sum(0)).square().sum() + 0.3 / 0.7 * parts.square().sum()
    (0.5 * objective).backward()
    for start, end, error, leaf in zip((U, V), mean, spread, leaves, strict=True):
        assert np.abs((start - end) / rate - leaf.grad.numpy()).max() <= 5.0 * error.max() / rate


def test_the_network_of_the_first_experiment_is_the_factorization():
    Y = torch.from_numpy(dropout_objective.data())
    net = dropout_objective.Network(Y, 5, 0.5).eval()
    V, U = net.weights
    with torch.no_grad():
        expected = float((Y - U @ V).square().sum())
        assert float(dropout_objective.masked_loss(net, Y)) == pytest.approx(expected)
        U.mul_(0.0)
        assert float(dropout_objective.deterministic_loss(net, Y)) == pytest.approx(float(Y.square().sum()))
    assert dropout_objective.exhaustive(4) < 1e-12


def test_steps_with_dropped_weights_have_the_penalty_in_the_mean():
    """Its mean step over many seeds is the gradient of half the error and DropConnect's penalty."""
    generator = np.random.default_rng(0)
    U, V, X, Y = (generator.normal(size=shape) for shape in ((2, 3), (4, 3), (4, 5), (2, 5)))
    leaves = [torch.from_numpy(f).requires_grad_() for f in (U, V)]
    x = torch.from_numpy(X)
    error = (torch.from_numpy(Y) - leaves[0] @ leaves[1].T @ x).square().sum()
    penalty = leaves[0].square().sum(0) @ (leaves[1].square().T @ x.square().sum(1))
    (0.5 * (error + 0.3 / 0.7 * penalty)).backward()
    steps = []
    for _ in range(20_000):
        hidden = (V * (mask := (generator.random(V.shape) >= 0.3) / 0.7)).T @ X
        residual = Y - U @ hidden
        steps.append(np.concatenate([(residual @ hidden.T).ravel(), ((X @ (residual.T @ U)) * mask).ravel()]))
    mean, deviation = np.mean(steps, axis=0), np.std(steps, axis=0) / np.sqrt(len(steps))
    exact = np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves])
    assert float(np.max(np.abs(mean + exact) / deviation)) <= 5.0
    assert dropconnect_regularizer(U, V, 0.3, side="in", inputs=X).value == pytest.approx(
        0.3 / 0.7 * float(penalty.detach())
    )
    moved = dropout_structures.drop_weights(Y, X, 3, 0.0, 1)
    assert moved[0].shape == (2, 3)
