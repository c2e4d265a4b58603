"""What every theorem owes: a case, a reference, honest statuses, no change to the model."""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABCMeta
from pathlib import Path

import builders
import cases
import pytest
from fixtures import nets

import theodolite.theorems as theorems
from theodolite.testing import check_global_state, check_theorem, snapshot
from theodolite.theorems.base import (
    CheckedHypothesis,
    Hypothesis,
    NotApplicable,
    Theorem,
    by_number,
    by_structure,
    by_word,
    evaluate,
    finding_status,
)
from theodolite.theorems.subject import Subject
from theodolite.value import Value

ROOT = Path(theorems.__file__).parent
CHAPTERS = sorted(p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__")
CHANGES = {"rescaling", "permutation", "dead units"}


def all_hypotheses() -> dict[str, Hypothesis]:
    return {h.name: h for theorem in theorems.ALL for h in theorem.hypotheses}


def test_every_file_is_in_all():
    listed = {(t.__module__, t.__name__) for t in theorems.ALL}
    found = set()
    for chapter in CHAPTERS:
        package = importlib.import_module(f"theodolite.theorems.{chapter}")
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            own = [
                (module.__name__, name)
                for name, item in vars(module).items()
                if isinstance(item, ABCMeta)
                and issubclass(item, Theorem)
                and item.__module__ == module.__name__
            ]
            assert own, f"{module.__name__} defines no theorem"
            found |= set(own)
    assert found == listed


def test_codes_chapters_and_references():
    codes = [t.code for t in theorems.ALL]
    assert len(codes) == len(set(codes))
    keys = set(re.findall(r"@\w+\{([^,]+),", (ROOT.parent / "refs.bib").read_text()))
    for theorem in theorems.ALL:
        assert re.fullmatch(r"[A-Z]{3}\d{3}", theorem.code)
        assert theorem.chapter == theorem.__module__.split(".")[2], theorem.code
        for key in theorem.reference.split(","):
            assert key.strip() in keys, f"{theorem.code} cites {key}, which refs.bib lacks"
        assert theorem.title
        assert "$" in theorem.statement
        assert theorem.__doc__
        assert theorem.cost in ("fast", "slow", "training")
        assert theorem.invariant | theorem.sensitive <= CHANGES
        assert not theorem.invariant & theorem.sensitive
    assert {t.chapter for t in theorems.ALL} == set(CHAPTERS)


def test_hypotheses_with_one_name_are_one():
    seen: dict[str, Hypothesis] = {}
    for theorem in theorems.ALL:
        for hypothesis in theorem.hypotheses:
            first = seen.setdefault(hypothesis.name, hypothesis)
            assert (first.check is None) == (hypothesis.check is None), hypothesis.name


def test_no_status_is_a_literal():
    for path in sorted(ROOT.rglob("*.py")):
        if path.name != "base.py":
            assert not re.search(r"\bVerdict\(", path.read_text()), f"{path.name} spells a verdict out"


def test_every_checked_hypothesis_has_a_case_and_nothing_else_has():
    checked = {name for name, h in all_hypotheses().items() if h.check is not None}
    assert checked == set(cases.HYPOTHESES)
    assert {t.code for t in theorems.ALL} == set(cases.THEOREMS)


@pytest.mark.parametrize("name", sorted(cases.HYPOTHESES))
def test_checks_give_opposite_answers(name):
    satisfying, refuting = cases.HYPOTHESES[name]
    hypothesis = all_hypotheses()[name]
    good, bad = hypothesis(satisfying()), hypothesis(refuting())
    assert good.status in ("proved", "tested"), good
    assert bad.status == "refuted", bad
    assert bad.reason, "a refutation says why"


@pytest.mark.parametrize("theorem", theorems.ALL, ids=lambda t: t.code)
def test_every_theorem_keeps_its_promises(theorem):
    finding = check_theorem(theorem, cases.THEOREMS[theorem.code])
    assert finding.status in ("certified", "conditional", "estimated", "score")
    assert {h.name for h in finding.hypotheses} == {h.name for h in theorem.hypotheses}


@pytest.mark.parametrize("code", sorted(t.code for t in theorems.ALL))
def test_callable_alone(code):
    model = nets.make_net(bias=True)
    before = snapshot(model)
    x, y = builders.digits_pairs(60)["train"]
    finding = check_global_state(lambda: theorems.BY_CODE[code]()(model, x, y, weight_decay=1e-3))
    assert finding.status != "failed", finding.traceback
    assert snapshot(model) == before


AWKWARD = [
    "bias_net",
    "sigmoid_net",
    "batch_norm_net",
    "frozen_net",
    "double_net",
    "half_net",
    "residual_net",
    "tied_net",
    "attention_net",
    "recurrent_net",
    "branching_net",
    "in_place_net",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_networks_get_a_finding_or_a_reason(name):
    subject = Subject(getattr(nets, name), *builders.digits_pairs(40)["train"], weight_decay=1e-3)
    before = snapshot(subject.model)
    for theorem in theorems.ALL:
        finding = evaluate(theorem(), subject)
        assert finding.status != "failed", finding.traceback
        assert finding.values or finding.reason
        assert snapshot(subject.model) == before, f"{theorem.code} changed the model"


@pytest.mark.parametrize(
    "build", [builders.tokens_subject, builders.regression_subject, builders.bare_subject]
)
def test_awkward_data_get_a_finding_or_a_reason(build):
    subject = build()
    for theorem in theorems.ALL:
        finding = evaluate(theorem(), subject)
        assert finding.status != "failed", finding.traceback


def hypotheses(*statuses: str, about: bool = False) -> list[CheckedHypothesis]:
    makers = {
        "proved": lambda: by_structure(True),
        "refuted": lambda: by_structure(False),
        "tested": lambda: by_number(0.0, 1.0),
        "assumed": lambda: by_word("trust me"),
    }
    return [CheckedHypothesis("h", "s", makers[s](), about) for s in statuses]


@pytest.mark.parametrize(
    ("checked", "values", "status"),
    [
        (hypotheses("proved"), [Value.exact(1.0), Value.bound(1.0)], "certified"),
        ([], [Value.exact(1.0)], "certified"),
        (hypotheses("proved", "tested"), [Value.exact(1.0)], "conditional"),
        (hypotheses("assumed"), [Value.bound(upper=1.0, confidence=0.95)], "conditional"),
        (hypotheses("proved"), [Value.exact(1.0), Value.estimate(1.0, 0.0, 2.0)], "estimated"),
        (hypotheses("assumed"), [Value.score(1.0), Value.estimate(1.0, 0.0, 2.0)], "score"),
        (hypotheses("proved", "refuted"), [], "not applicable"),
        (hypotheses("refuted", about=True), [], "refuted"),
    ],
)
def test_finding_status_follows_from_its_parts(checked, values, status):
    assert finding_status(checked, values) == status


class Crashing(Theorem):
    """A theorem with a defect."""

    code, title, chapter, statement, reference = "XXX001", "crash", "landscape", "$0=1$", "nowhere"

    def compute(self, subject):
        raise ZeroDivisionError("a defect")


class Silent(Crashing):
    """A theorem that does not apply."""

    def compute(self, subject):
        raise NotApplicable("there is nothing to measure")


def test_a_crash_is_a_finding():
    failed = evaluate(Crashing(), builders.subject())
    assert failed.status == "failed"
    assert "ZeroDivisionError: a defect" in failed.reason
    assert "compute" in failed.traceback
    silent = evaluate(Silent(), builders.subject())
    assert (silent.status, silent.reason) == ("not applicable", "there is nothing to measure")
