"""``theodolite.audit``: any model is audited or refused in one sentence, and never changed."""

import importlib.util
import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import conv_net, digits_pairs, mlp, tokens_subject
from torch import nn

import theodolite as td
from theodolite.auditing import run
from theodolite.theorems import ALL
from theodolite.theorems.base import NotApplicable, Theorem
from theodolite.theorems.subject import InputError
from theodolite.value import Value

CHAPTERS = {
    "optimality",
    "dropout",
    "stability",
    "generalization",
    "information",
    "approximation",
    "sparsity",
    "landscape",
}
CHEAP = ["GEN001", "GEN004", "SPA002"]


def _load_nets():
    path = Path(__file__).parents[1] / "fixtures" / "nets.py"
    spec = importlib.util.spec_from_file_location("nets_of_the_audit_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nets = _load_nets()


def fingerprint(model: nn.Module) -> dict:
    """Everything of a model, and of the process, that an audit must leave alone."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hooks = {
        (name, kind): len(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in vars(nn.Module())
        if kind.endswith("_hooks")
    }
    return {
        "tensors": {name: (t.dtype, t.data_ptr(), t._version, t.requires_grad) for name, t in tensors.items()},
        "bytes": {name: t.detach().flatten().view(torch.uint8).tolist()[:4096] for name, t in tensors.items()},
        "grads": {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": hooks,
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "switches": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cwd": Path.cwd(),
    }  # fmt: skip


def audit(model, data=None, **options):
    """Audit on few digits, checking that neither the model nor the data nor the process is changed."""
    data = digits_pairs(60, 30) if data is None else data
    tensors = [t for pair in data.values() for t in pair] if isinstance(data, dict) else []
    copies = [t.clone() for t in tensors]
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.grad = torch.full_like(parameter, 0.5)
        before = fingerprint(model)
    try:
        return td.audit(model, data, **options)
    finally:
        if isinstance(model, nn.Module):
            after = fingerprint(model)
            for key, old in before.items():
                assert after[key] == old, f"{key} changed"
            model.zero_grad()
        for tensor, copy in zip(tensors, copies, strict=True):
            assert torch.equal(tensor, copy)


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


def test_findings_from_all_eight_chapters_with_all_that_they_need():
    report = audit(nets.relu_net, weight_decay=1e-3, seed=3)
    assert set(report.chapters) == CHAPTERS
    assert [finding.code for finding in report.findings] == [theorem.code for theorem in ALL]
    by_code = {theorem.code: theorem for theorem in ALL}
    for finding in report.findings:
        theorem = by_code[finding.code]
        assert finding.reference == theorem.reference
        assert finding.statement == theorem.statement
        if finding.status in ("certified", "conditional", "estimated"):
            assert [h.name for h in finding.hypotheses] == [h.name for h in theorem.hypotheses]
            assert finding.values
        for hypothesis in finding.hypotheses:
            assert hypothesis.status in ("proved", "tested", "assumed", "refuted")


def test_a_bare_pair_gives_no_test_set_bound():
    pair = digits_pairs(60)["train"]
    report = td.audit(mlp(), pair, only=["GEN001", "GEN002", "INF001"], remedies=False)
    assert {finding.status for finding in report.findings} == {"not applicable"}
    both = td.audit(mlp(), {"train": pair, "test": pair}, only=["GEN001"], remedies=False)
    assert both["GEN001"].status == "conditional"
    assert [h.status for h in both["GEN001"].hypotheses if h.name.startswith("i.i.d.")] == ["assumed"]


def timeless(report) -> dict:
    loaded = json.loads(report.to_json())
    del loaded["seconds"]
    for finding in loaded["findings"]:
        del finding["seconds"]
    return loaded


def test_same_seed_same_report_and_each_theorem_alone_gives_the_same():
    first = audit(nets.relu_net, weight_decay=1e-3, seed=5)
    torch.manual_seed(99)  # the process' own generators do not matter
    again = audit(nets.relu_net, weight_decay=1e-3, seed=5)
    assert timeless(first) == timeless(again)
    other = audit(nets.relu_net, weight_decay=1e-3, seed=6)
    assert timeless(first)["findings"] != timeless(other)["findings"]
    for code in ("GEN006", "APP001", "LAN001"):
        alone = audit(nets.relu_net, weight_decay=1e-3, seed=5, only=code, remedies=False)
        assert timeless(alone)["findings"] == [f for f in timeless(first)["findings"] if f["code"] == code]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"only": "GEN004"}, ["GEN004"]),
        ({"only": "GEN004,SPA002"}, ["GEN004", "SPA002"]),
        ({"only": ["SPA002 GEN001", "GEN004"]}, ["GEN001", "GEN004", "SPA002"]),
        ({"only": CHEAP, "skip": "GEN004"}, ["GEN001", "SPA002"]),
        ({"skip": ["GEN004"]}, [theorem.code for theorem in ALL if theorem.code != "GEN004"]),
    ],
)
def test_only_and_skip(options, expected):
    assert [theorem.code for theorem, _ in run.choose_theorems(**options)] == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": "GEN04"}, "only: there is no finding 'GEN04'; did you mean GEN004"),
        ({"only": ""}, "only: expected at least one code, got none"),
        ({"only": 3}, "only: expected codes such as 'GEN003', got 3"),
        ({"only": [3]}, "only: expected codes such as 'GEN003', got [3]"),
        ({"skip": "NOPE"}, "skip: there is no finding 'NOPE'; theodolite list shows the codes"),
        ({"only": "GEN004", "skip": "GEN004"}, "only, skip: together they leave no theorem to run"),
        ({"extra": [3]}, "extra: expected theorems, got int"),
        ({"extra": [ALL[0]]}, "extra: the code OPT001 is taken by 'Positive homogeneity'"),
        ({"budget": -1}, "budget: expected a positive number of seconds, got -1"),
        ({"budget": 0}, "budget: expected a positive number of seconds, got 0"),
        ({"budget": float("nan")}, "budget: expected a positive number of seconds, got nan"),
        ({"budget": "60s"}, "budget: expected a positive number of seconds, got '60s'"),
        ({"seed": -1}, "seed: expected an integer from 0 to 4294967295, got -1"),
        ({"seed": 0.5}, "seed: expected an integer from 0 to 4294967295, got 0.5"),
        ({"seed": True}, "seed: expected an integer"),
        ({"device": "cuda:77"}, "device: expected a device present on this machine, got 'cuda:77' ("),
        ({"device": "abacus"}, "device: expected a device present on this machine, got 'abacus' ("),
        ({"device": "meta"}, "device: expected a device present on this machine, got 'meta' ("),
        ({"loss": "hinge"}, "loss: expected 'cross_entropy', 'mse' or a function of (output, target), got 'hinge'"),
        ({"weight_decay": -1.0}, "weight_decay: expected a finite number >= 0, got -1.0"),
        ({"weight_decay": "1"}, "weight_decay: expected a number >= 0 or None, got '1'"),
        ({"loss": lambda output, target: 1 / 0}, "loss: <lambda> raised ZeroDivisionError: division by zero"),
        ({"loss": lambda output, target: output}, "loss: expected <lambda> to return one finite number, got tensor"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_used(options, words):
    with pytest.raises(InputError) as caught:
        td.audit(mlp(), digits_pairs(20, 10), **{"only": "GEN004", **options})
    assert words in str(caught.value)


WHOLE_FLOATS = torch.zeros(3)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(3, 64), torch.zeros(2, dtype=torch.long), "X, y: expected equal lengths, got 3 and 2"),
        (torch.zeros(0, 64), torch.zeros(0, dtype=torch.long), "X: expected at least one sample, got none"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "X: expected shape (n, ...) with at least two dimensions, got (3,)"),
        (torch.full((3, 64), torch.nan), torch.zeros(3, dtype=torch.long), "X: expected finite numbers, got NaN or infinity in 3 of 3 samples"),
        (torch.zeros(3, 64), torch.tensor([0, 1, 10]), "y: expected class numbers 0 to 9 (the model has 10 outputs), got 10"),
        (torch.zeros(3, 64), torch.tensor([0, -1, 1]), "got -1"),
        (torch.zeros(3, 64), WHOLE_FLOATS, "y: expected targets of shape (n, 10) like the outputs, got (3, 1)"),
        (torch.zeros(3, 64), torch.zeros(3, 2, dtype=torch.long), "y: expected class numbers of shape (n,), got shape (3, 2)"),
        ([[object()]], [0], "X: expected numbers, got an array of dtype object"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(x, y, words):
    with pytest.raises(InputError) as caught:
        td.audit(mlp(), (x, y), only=CHEAP)
    assert words in str(caught.value)
    if y is not WHOLE_FLOATS:  # as a test part these are classes, like the training part's
        with pytest.raises(InputError, match=r"^test [Xy]"):
            td.audit(mlp(), {"train": digits_pairs(20)["train"], "test": (x, y)}, only=CHEAP)


class Toy(Theorem):
    code, title, chapter = "TOY001", "A toy", "generalization"
    statement, reference = "$1 = 1$", "none"
    behavior = staticmethod(lambda subject: {"n": Value.exact(subject.n)})

    def compute(self, subject):
        return self.behavior(subject)


def toy(behavior, code="TOY001", cost="fast"):
    return type("MyToy", (Toy,), {"behavior": staticmethod(behavior), "code": code, "cost": cost})


def raising(error):
    def behavior(subject):
        raise error

    return behavior


def test_extra_theorems_join_their_chapter():
    report = td.audit(
        mlp(), digits_pairs(20, 10), only=["GEN004", "TOY001", "SPA002"], extra=[Toy], remedies=False
    )
    assert [finding.code for finding in report.findings] == ["GEN004", "TOY001", "SPA002"]
    assert report["TOY001"].values["n"].value == 20
    given_as_instance = td.audit(mlp(), digits_pairs(20, 10), only="TOY001", extra=[Toy()], remedies=False)
    assert given_as_instance["TOY001"].status == "certified"


def test_a_crash_is_a_finding_and_loses_nothing():
    extra = [toy(raising(ZeroDivisionError("boo"))), toy(raising(NotApplicable("it is too small")), "TOY002")]
    report = td.audit(
        mlp(), digits_pairs(20, 10), only=["TOY001", "TOY002", "SPA002"], extra=extra, remedies=False
    )
    assert (report["TOY001"].status, report["TOY001"].reason) == ("failed", "ZeroDivisionError: boo")
    assert "raise error" in report["TOY001"].traceback
    assert (report["TOY002"].status, report["TOY002"].reason) == ("not applicable", "it is too small")
    assert report["SPA002"].status == "certified"
    assert report.complete


def test_an_interrupt_keeps_what_was_computed():
    extra = [Toy, toy(raising(KeyboardInterrupt()), "TOY002"), toy(lambda s: {}, "TOY003")]
    report = td.audit(mlp(), digits_pairs(20, 10), only=["TOY001", "TOY002", "TOY003"], extra=extra)
    assert not report.complete
    assert [finding.status for finding in report.findings] == ["certified", "skipped", "skipped"]
    assert [finding.reason for finding in report.findings[1:]] == [
        "interrupted while it ran",
        "interrupted before it began",
    ]
    assert report.attempts == []
    assert json.loads(report.to_json())["complete"] is False


def test_a_budget_begins_nothing_new():
    import time

    extra = [toy(lambda s: time.sleep(0.2) or {}), toy(lambda s: {}, "TOY002")]
    report = td.audit(mlp(), digits_pairs(120, 10), only=["TOY001", "TOY002"], extra=extra, budget=0.1)
    assert report["TOY002"].status == "skipped"
    assert report["TOY002"].reason == "the budget of 0.1 s was spent before it began"
    assert report.complete
    assert all("budget" in attempt.reason for attempt in report.attempts)


def test_training_theorems_run_only_when_named():
    extra = [toy(lambda s: {}, cost="training")]
    report = td.audit(
        mlp(),
        digits_pairs(20, 10),
        skip=[t.code for t in ALL if t.code != "GEN004"],
        extra=extra,
        remedies=False,
    )
    assert report["TOY001"].status == "skipped"
    assert "only TOY001" in report["TOY001"].reason
    assert (
        td.audit(mlp(), digits_pairs(20, 10), only="TOY001", extra=extra, remedies=False)["TOY001"].status
        == "certified"
    )


def test_progress_is_told():
    told = []

    class Told(run.Progress):
        def plan(self, steps):
            told.append(steps)

        def step(self, title):
            told.append(title)

    run.conduct(mlp(), digits_pairs(20, 10), theorems=run.choose_theorems("GEN004"), progress=Told())
    assert told[:3] == ["running the model on the data", 2, "GEN004 Product norms"]
    assert "remedies" in told


def test_a_loss_of_ones_own():
    def smooth(output, target):
        return F.cross_entropy(output, target, label_smoothing=0.1)

    report = td.audit(mlp(), digits_pairs(60, 30), loss=smooth, remedies=False, only=["GEN002", "OPT005"])
    assert report.model["loss"] == "smooth"
    assert {finding.status for finding in report.findings} <= {
        "certified",
        "conditional",
        "estimated",
        "not applicable",
    }


def test_what_was_audited_is_described():
    report = td.audit(conv_net()[1:], "digits", only="SPA002", remedies=False, seed=4)
    assert report.data == {
        "name": "digits",
        "n_train": 1397,
        "n_test": 400,
        "shape": [1, 8, 8],
        "dtype": "float32",
        "task": "classification",
    }
    assert report.model["parameters"] == 6 * 9 + 6 * 8 * 9 + 80
    assert report.model["layers"] == 3
    assert report.seed == 4
    assert report.notes[0] == "each sample is given as 1x8x8, because the model does not accept 64"
    assert {"python", "torch", "threads", "device"} <= set(report.environment)


def test_tokens_and_regression():
    subject = tokens_subject()
    report = td.audit(subject.model, (subject.x, subject.y), remedies=False, only=CHEAP)
    assert report.data["dtype"] == "int64"
    x = torch.randn(40, 4)
    report = td.audit(mlp(4, 8, 1), (x, x[:, :1]), only=CHEAP)
    assert report.model["loss"] == "mse"
    assert report["GEN001"].reason == "the loss is mse with one output"
