"""The network that is trained when none is given."""

import pytest
import torch

from theodolite.auditing import bundled, data


def objective(model, x, y, weight_decay):
    squares = sum(p.double().square().sum() for p in model.parameters())
    return torch.nn.functional.cross_entropy(model.double()(x.double()), y) + weight_decay / 2 * squares


@pytest.fixture(scope="module")
def trained():
    x, y = data.digits().train
    told = []
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    model = bundled.train(x, y, seed=1, progress=lambda done, total: told.append((done, total)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    return model, told


def test_it_ends_near_a_minimum(trained):
    model, _ = trained
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad is None for p in model.parameters())
    (x, y), test = data.digits().train, data.digits().test
    weights = [p.detach().double().requires_grad_() for p in model.parameters()]
    named = dict(zip(dict(model.named_parameters()), weights, strict=True))
    outputs = torch.func.functional_call(model, named, (x.double(),))
    value = torch.nn.functional.cross_entropy(outputs, y) + bundled.WEIGHT_DECAY / 2 * sum(
        w.square().sum() for w in weights
    )
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)]).norm()
    size = torch.cat([w.flatten() for w in weights]).norm()
    assert slope < 0.5 * bundled.WEIGHT_DECAY * size  # the pulls of loss and decay nearly cancel
    with torch.no_grad():
        assert (model(test[0]).argmax(1) == test[1]).float().mean() > 0.94


def test_progress_reaches_its_total_and_no_further(trained):
    _, told = trained
    dones = [done for done, _ in told]
    assert dones == sorted(dones)
    assert {total for _, total in told} == {700}
    assert dones[0] == 1
    assert dones[-1] <= 700


def test_same_seed_same_weights(monkeypatch):
    monkeypatch.setattr(bundled, "_ADAM_STEPS", 5)
    monkeypatch.setattr(bundled, "_LBFGS_STEPS", 5)
    x, y = data.digits().train
    torch.manual_seed(0)
    first = bundled.train(x, y, seed=3)
    torch.manual_seed(1)
    again, other = bundled.train(x, y, seed=3), bundled.train(x, y, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
