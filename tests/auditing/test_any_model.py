"""Any model is audited, or refused in one sentence that says the true cause; none is changed."""

import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from audited import audit, nets
from builders import digits_pairs, mlp
from torch import nn

import theodolite as td
from theodolite.theorems.subject import InputError

CHEAP = ["GEN001", "GEN004", "SPA002"]

AUDITED = {
    "relu_net": ("certified", []),
    "bias_net": ("refuted", []),
    "sigmoid_net": ("refuted", []),
    "batch_norm_net": ("refuted", ["the model was in training mode; its evaluation mode was audited"]),
    "frozen_net": ("certified", ["1 frozen parameters (layers.0.weight, ...) count as constants, not as parameters"]),
    "double_net": ("certified", []),
    "half_net": ("certified", ["half-precision weights were converted exactly to float32, in which everything was computed"]),
    "no_parameters": ("not applicable", []),
    "residual_net": ("refuted", []),
    "tied_net": ("certified", []),
    "attention_net": ("refuted", []),
    "recurrent_net": ("refuted", []),
    "branching_net": ("score", []),
}  # fmt: skip


@pytest.mark.parametrize("name", AUDITED)
def test_awkward_networks_are_audited(name):
    report = audit(getattr(nets, name), weight_decay=1e-3)
    status, notes = AUDITED[name]
    failed = {finding.code: finding.traceback for finding in report.findings if finding.status == "failed"}
    assert failed == {}
    assert [attempt.traceback for attempt in report.attempts if attempt.traceback] == []
    assert report["OPT001"].status == status
    assert set(notes) <= set(report.notes)
    assert report["GEN001"].status == "conditional"
    assert [f.code for f in report.findings if f.status == "not applicable" and not f.reason] == []
    assert max(map(len, report.to_text(verbose=True).splitlines())) <= 80
    report.to_html()


REFUSED = {
    "nan_net": "model: 'layers.2.weight' has 1 entry that is not finite (NaN); expected finite numbers",
    "wrong_shape": "model: could not be run on data of shape (2, 64): layer '0' (Linear) raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x64 and 10x10)",
    "pair_net": "model: expected the output to be one tensor, got a tuple of 2; wrap it in a module that returns the tensor",
    "keyed_net": "model: expected the output to be one tensor, got a dict with keys 'logits', 'features'; wrap it in a module that returns the tensor",
    "noisy_net": "model: expected the same output for the same input, but the model's own forward (Noisy, randn_like) draws random numbers in evaluation mode",
    "raising_net": "model: could not be run on data of shape (2, 64): layer '1' (Raising) raised KeyError: 'temperature'",
    "not_a_module": "model: expected a torch.nn.Module, got int",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("digits", [False, True])
def test_awkward_networks_are_refused(name, digits):
    with pytest.raises(InputError) as caught:
        audit(getattr(nets, name), "digits" if digits else None)
    assert str(caught.value) == REFUSED[name]


class Custom(nn.Module):
    """A linear layer and any forward."""

    def __init__(self, run, **parts) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def in_evaluation(m, x):
    m.count += 1
    return m.inner(x)


def only_pairs(m, x):
    if len(x) != 2:
        raise ValueError(f"expected two rows, got {len(x)}")
    return m.inner(x)


def few(m, x):
    if len(x) > 2:
        raise ValueError("too many rows")
    return m.inner(x)


def exits(m, x):
    raise SystemExit(0)


class NoEvaluation(nn.Linear):
    def eval(self):
        raise RuntimeError("no evaluation here")


STRANGE = {
    "input changed": (Custom(lambda m, x: m.inner(x.mul_(2.0))), "the model's own forward changes the input of the model in place"),
    "input changed by a layer": (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(64, 10)), "layer '0' (ReLU) changes the input of the model in place"),
    "numpy noise": (Custom(lambda m, x: m.inner(x + float(np.random.rand()))), "draws random numbers in evaluation mode"),  # noqa: NPY002
    "python noise": (Custom(lambda m, x: m.inner(x * random.random())), "draws random numbers in evaluation mode"),
    "functional dropout": (Custom(lambda m, x: m.inner(F.dropout(x))), "draws random numbers in evaluation mode"),
    "not alone": (Custom(only_pairs), "runs on two samples but not on one, so its samples are not independent; could not be run on data of shape (1, 64): the model's own forward raised ValueError: expected two rows, got 1"),
    "not together": (Custom(few), "could not be run on data of shape (60, 64): the model's own forward raised ValueError: too many rows"),
    "mixes samples": (Custom(lambda m, x: m.inner(x - x.mean(0))), "its forward mixes the samples of a batch"),
    "batch statistics": (nn.Sequential(nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 10)), "layer '0' (BatchNorm1d) raised ValueError"),
    "two inputs": (nn.Bilinear(64, 64, 10), "layer Bilinear (the model itself) raised TypeError"),
    "no forward": (nn.Module(), "is missing the required \"forward\" function"),
    "exits": (Custom(exits), "the model's own forward raised SystemExit: 0"),
    "recursion": (Custom(lambda m, x: m(x)), "raised RecursionError"),
    "no evaluation mode": (NoEvaluation(64, 10), "its eval() raised RuntimeError: no evaluation here"),
    "one dimension": (Custom(lambda m, x: m.inner(x)[:, 0]), "got torch.float32 of shape (2,)"),
    "three dimensions": (Custom(lambda m, x: m.inner(x)[..., None]), "got torch.float32 of shape (2, 10, 1)"),
    "no columns": (Custom(lambda m, x: m.inner(x)[:, :0]), "got torch.float32 of shape (2, 0)"),
    "classes": (Custom(lambda m, x: m.inner(x).argmax(1)), "got torch.int64 of shape (2,)"),
    "none": (Custom(lambda m, x: None), "expected the output to be one tensor, got None"),
    "array": (Custom(lambda m, x: m.inner(x).numpy()), "expected the output to be one tensor, got an ndarray"),
    "NaN output": (Custom(lambda m, x: m.inner(x) * torch.nan), "expected finite outputs, got NaN or infinity"),
    "not initialized": (nn.LazyLinear(10), "'weight' is not initialized"),
    "no numbers": (nn.Linear(64, 10, device="meta"), "'weight' is on the meta device"),
    "cannot be copied": (Custom(lambda m, x: m.inner(x), lock=threading.Lock()), "cannot pickle '_thread.lock' object"),
    "mixed precision": (nn.Sequential(nn.Linear(64, 10), nn.Linear(10, 10).double()), "layer '1' (Linear) raised RuntimeError: mat1 and mat2 must have the same dtype"),
    "complex": (nn.Linear(64, 10, dtype=torch.complex64), "layer Linear (the model itself) raised RuntimeError"),
    "one output": (nn.Linear(64, 1), "y: the model has one output, so cross-entropy knows class 0 alone, got class 9"),
    "few outputs": (nn.Linear(64, 5), "y: expected class numbers 0 to 4 (the model has 5 outputs), got 9"),
    "a class": (nn.Linear, "expected a torch.nn.Module, got type"),
}  # fmt: skip
INFINITE = nn.Linear(64, 10)
with torch.no_grad():
    INFINITE.bias[3] = -torch.inf
STRANGE["infinite"] = INFINITE, "'bias' has 1 entry that is not finite (infinite)"


@pytest.mark.parametrize("name", STRANGE)
def test_strange_models_are_refused_with_the_true_cause(name):
    model, words = STRANGE[name]
    data = digits_pairs(60, 30)
    copies = [t.clone() for pair in data.values() for t in pair]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(InputError) as caught:
        td.audit(model, data, only=CHEAP)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(
        torch.equal(t, c) for t, c in zip((t for pair in data.values() for t in pair), copies, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


FINE = {
    "counts its calls": Custom(in_evaluation, count=torch.zeros(())),
    "no gradient": Custom(lambda m, x: torch.no_grad()(m.inner)(x)),
    "detached": Custom(lambda m, x: m.inner(x).detach()),
    "constant": Custom(lambda m, x: m.inner(x) * 0.0),
    "half output": Custom(lambda m, x: m.inner(x).half()),
    "double output": Custom(lambda m, x: m.inner(x).double()),
    "float16": nn.Linear(64, 10).half(),
    "spectral norm": nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10)),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(64, 10)),
    "all frozen": nn.Linear(64, 10).requires_grad_(False),
    "identity": nn.Identity(),
    "dropout": nn.Sequential(nn.Dropout(), nn.Linear(64, 10)),
    "data parallel": nn.DataParallel(mlp()),
    "hooked": nn.Sequential(nn.Linear(64, 10)),
    "more outputs than classes": nn.Linear(64, 13),
    "huge outputs": Custom(lambda m, x: m.inner(x) * 1e30),
}
FINE["hooked"][0].register_forward_hook(lambda module, inputs, output: 2 * output)


@pytest.mark.parametrize("name", FINE)
def test_strange_models_are_audited(name):
    report = audit(FINE[name], weight_decay=1e-3, remedies=False)
    assert {f.code: f.traceback for f in report.findings if f.status == "failed"} == {}


def test_wrappers_are_taken_off():
    inner = mlp()
    for wrapped in (
        nn.DataParallel(inner),
        torch.compile(inner, backend="eager"),
        nn.DataParallel(nn.DataParallel(inner)),
    ):
        report = td.audit(wrapped, digits_pairs(60, 30), only=["OPT001"], remedies=False)
        assert report["OPT001"].status == "certified"
        assert f"the module inside {type(wrapped).__name__} was audited" in report.notes


def test_outputs_that_are_nan_later_on_are_never_counted_as_right():
    def late(m, x):
        return torch.where((x.sum(1) > 20)[:, None], torch.nan, m.inner(x))

    data = digits_pairs(60, 30)
    assert bool((data["test"][0].sum(1) > 20).any())
    report = td.audit(Custom(late), data, remedies=False)
    assert "failed" not in report.counts
    for code in ("GEN001", "GEN002", "GEN006", "INF001"):
        assert report[code].status == "not applicable"
        assert "NaN" in report[code].reason
    assert report["GEN004"].status == "certified"
