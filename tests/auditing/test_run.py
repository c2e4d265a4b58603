"""``theodolite.audit``: what runs, in which order, and what is kept."""

import json

import pytest
import torch
import torch.nn.functional as F
from audited import audit, nets
from builders import conv_net, digits_pairs, mlp, tokens_subject

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
