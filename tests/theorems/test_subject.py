"""What can be audited is taken as it is; what cannot is refused in one sentence; nothing is changed."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import torch
from fixtures import nets
from torch import nn

from theodolite.testing import check_global_state, snapshot
from theodolite.theorems.subject import InputError, Reducer, Subject, margins

AUDITABLE = (
    "relu_net bias_net sigmoid_net batch_norm_net frozen_net double_net half_net residual_net tied_net "
    "attention_net recurrent_net branching_net"
)
REFUSED = {
    "nan_net": r"'layers\.2\.weight' has 1 entry that is not finite \(NaN\)",
    "noisy_net": r"draws random numbers",
    "pair_net": r"a tuple of 2",
    "keyed_net": r"a dict with keys 'logits', 'features'",
    "raising_net": r"layer '1' \(Raising\) raised KeyError: 'temperature'",
    "wrong_shape": r"shape \(2, 64\): layer '0' \(Linear\) raised RuntimeError: mat1 and mat2",
    "not_a_module": r"expected a torch\.nn\.Module, got int",
}


@pytest.mark.parametrize("name", AUDITABLE.split())
def test_auditable_models_are_left_alone(name):
    model = getattr(nets, name)
    before = snapshot(model)
    subject = check_global_state(lambda: Subject(model, *builders.digits_pairs(40)["train"]))
    assert subject.logits().shape == (40, 10)
    assert subject.model is not model
    assert not subject.model.training
    assert snapshot(model) == before


@pytest.mark.parametrize(("name", "sentence"), REFUSED.items())
def test_refusals_name_the_cause(name, sentence):
    model = getattr(nets, name)
    before = snapshot(model) if isinstance(model, nn.Module) else None
    with pytest.raises(InputError, match=sentence) as error:
        Subject(model, *builders.digits_pairs(40)["train"])
    assert "\n" not in str(error.value)
    if before is not None:
        assert snapshot(model) == before


def test_batch_dependence_is_refused():
    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 10)

        def forward(self, x):
            return self.inner(x - x.mean(0, keepdim=True))

    with pytest.raises(InputError, match="mixes the samples of a batch"):
        builders.subject(Centered())
    norm = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False))
    with pytest.raises(InputError, match=r"not independent; .*layer .1. \(BatchNorm1d\)"):
        builders.subject(norm)


X, Y = np.random.default_rng(0).normal(size=(12, 64)), np.arange(12) % 10
WITH_NAN = X.copy()
WITH_NAN[3, 4] = np.nan


@pytest.mark.parametrize(
    ("x", "y", "options", "sentence"),
    [
        (X, Y[:5], {}, "equal lengths, got 12 and 5"),
        (X[:0], Y[:0], {}, "at least one sample"),
        (WITH_NAN, Y, {}, "NaN or infinity in 1 of 12"),
        (X, Y + 5, {}, "class numbers 0 to 9 .* got 14"),
        (X, Y - 1, {}, "got -1"),
        (X, Y + 0.5, {"loss": "cross_entropy"}, "got fractions"),
        (X, np.array(["a"] * 12), {"loss": "cross_entropy"}, "expected numbers"),
        (X[:, 0], Y, {}, "at least two dimensions"),
        (X, Y, {"weight_decay": -1.0}, "weight_decay: .* got -1"),
        (X, Y, {"weight_decay": float("nan")}, "weight_decay: .* got nan"),
        (X, Y, {"loss": "hinge"}, "loss: .* got 'hinge'"),
        (X, Y, {"device": "cuda:7"}, "device: .* got 'cuda:7'"),
        (X, Y, {"device": "abacus"}, "device: .* got 'abacus'"),
        (X, np.ones((12, 3)), {}, r"targets of shape \(n, 10\) like the outputs, got \(12, 3\)"),
        (
            X,
            Y,
            {"test": (X[:, :7], Y)},
            r"test X: expected samples of shape \(64,\) as in training, got \(7,\)",
        ),
        (X, Y, {"loss": lambda output, target: output}, "return one finite number"),
    ],
)
def test_broken_input(x, y, options, sentence):
    with pytest.raises(InputError, match=sentence):
        Subject(nets.make_net(), x, y, **options)


def test_half_precision_is_computed_in_float32():
    subject = Subject(nets.half_net, *builders.digits_pairs(10)["train"])
    assert subject.logits().dtype == torch.float32
    assert any("half-precision" in note for note in subject.notes)
    reference = Subject(nets.half_net.float(), *builders.digits_pairs(10)["train"])
    nets.half_net.to(torch.bfloat16)
    assert torch.equal(subject.logits(), reference.logits())


def test_frozen_parameters_are_constants():
    subject = Subject(nets.frozen_net, *builders.digits_pairs(10)["train"])
    assert set(subject.parameters) == {"layers.2.weight", "layers.4.weight"}


def test_batches_and_logits_are_the_model():
    subject = builders.subject(n=37)
    direct = subject.model(subject.x).detach()
    torch.testing.assert_close(subject.logits(), direct)
    together = torch.cat([x for x, _ in subject.batches(size=5)])
    assert torch.equal(together, subject.x)


def test_draws_depend_on_the_purpose_alone():
    subject = builders.subject()
    first = subject.sample(5, "a")[0]
    torch.rand(3)
    assert torch.equal(first, subject.sample(5, "a")[0])
    assert not torch.equal(first, subject.sample(5, "b")[0])
    assert not torch.equal(first, builders.subject(seed=1).sample(5, "a")[0])


def test_margins():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, -1.0]])
    assert margins(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.0]
    assert margins(logits[:, :1], torch.tensor([0, 0])).tolist() == [float("inf")] * 2


class CountRows(Reducer):
    """Counts the rows that every layer put out."""

    def __init__(self, subject):
        super().__init__(subject)
        self.rows = {}

    def wants(self, node):
        return node.op in ("relu", "linear")

    def update(self, node, value):
        self.rows[node.layer] = self.rows.get(node.layer, 0) + len(value)


class CountPasses(CountRows):
    """A second reducer, served by the same pass."""


def test_reducers_share_one_pass(monkeypatch):
    subject = builders.subject(n=50)
    passes = []
    stream = Subject._stream
    monkeypatch.setattr(Subject, "_stream", lambda self, r: passes.append(len(r)) or stream(self, r))
    subject.expect([CountRows, CountPasses])
    assert subject.reduced(CountRows).rows == subject.reduced(CountPasses).rows
    assert passes == [2]
    assert set(subject.reduced(CountRows).rows.values()) == {50}


def test_untraceable_models_stream_their_modules():
    subject = Subject(nets.branching_net, *builders.digits_pairs(30)["train"])
    rows = subject.reduced(CountRows).rows
    assert sum(rows.values()) > 0
    assert set(rows) <= {"a", "b"}
