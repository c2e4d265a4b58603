"""Remedies in an audit: none of them can lose the report."""

import pytest
import reports
from builders import digits_pairs, mlp

import theodolite as td
import theodolite.remedies
from theodolite.auditing import remedies


def trying(monkeypatch, steps):
    """Replace the remedies by steps: an outcome, a reason, or an error that is raised."""

    class Fake:
        name, title = "fake", "A fake"

    def attempts(subject, *, budget):
        for step in steps:
            if isinstance(step, KeyboardInterrupt):
                raise step
            yield Fake, step

    monkeypatch.setattr(theodolite.remedies, "attempts", attempts)
    told = []
    return (*remedies.try_remedies(None, budget=None, progress=told.append), told)


def test_reasons_are_kept(monkeypatch):
    done, complete, told = trying(monkeypatch, ["too small", "no unit is dead"])
    assert complete
    assert [attempt.reason for attempt in done] == ["too small", "no unit is dead"]
    assert not any(attempt.helped for attempt in done)
    assert done[0].sentence == "A fake: too small"
    assert told == ["A fake", "A fake"]


def test_an_interrupt_keeps_what_was_tried(monkeypatch):
    done, complete, _ = trying(monkeypatch, ["too small", KeyboardInterrupt()])
    assert not complete
    assert len(done) == 1


def test_a_crash_is_shown_and_loses_nothing(monkeypatch):
    done, complete, _ = trying(monkeypatch, ["too small", ZeroDivisionError("boo"), "no unit is dead"])
    assert complete
    assert done[2].reason == "no unit is dead"
    assert done[1].reason == "failed (ZeroDivisionError: boo)"
    assert "ZeroDivisionError" in done[1].traceback
    report = reports.report(attempts=done)
    assert report.to_dict()["remedies"][1]["traceback"] == done[1].traceback
    assert "failed (ZeroDivisionError: boo)" in " ".join(report.to_text().split())
    report.to_html()


@pytest.fixture(scope="module")
def report():
    return td.audit(mlp(64, 24, 10), digits_pairs(200, 30), weight_decay=1e-2, only="SPA002")


def test_what_helped_comes_first(report):
    helped = [attempt.helped for attempt in report.attempts]
    assert helped[0]
    assert helped == sorted(helped, reverse=True)
    benefits = [outcome.benefit for outcome in report.remedies]
    assert benefits == sorted(benefits, reverse=True)


def test_an_outcome_is_in_every_form_of_the_report(report):
    import json

    import jsonschema

    loaded = json.loads(report.to_json())
    jsonschema.validate(loaded, report.schema)
    outcome = report.remedies[0]
    assert loaded["remedies"][0]["helped"] is True
    assert set(loaded["remedies"][0]["effects"]) == set(outcome.effects)
    assert outcome.description in " ".join(report.to_text().split())
    assert outcome.title in report.to_html()


def test_remedies_may_be_left_out():
    report = td.audit(mlp(), digits_pairs(30, 10), only="SPA002", remedies=False)
    assert report.attempts is None
    assert report.to_dict()["remedies"] == []
