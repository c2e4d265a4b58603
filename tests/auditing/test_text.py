"""The text screen: at most 80 columns whatever the names are, nothing left out."""

import pytest
import reports

from theodolite.auditing import text
from theodolite.theorems.base import by_structure, by_word
from theodolite.value import Value

AWKWARD = [
    {},
    {"model": {"name": reports.LONG}},
    {"model": {"name": "x" * 300, "layers": 1, "parameters": 1}},
    {"data": {"name": "a file with spaces " * 9, "n_test": 0, "shape": [3, 224, 224, 2, 2]}},
    {"model": {"weight_decay": None}, "attempts": None},
    {"attempts": [], "complete": False},
    {"notes": ["a note " * 40, "x" * 200]},
    {"found": []},
    {"seconds": 12345.6},
]


@pytest.mark.parametrize("options", AWKWARD)
@pytest.mark.parametrize("verbose", [False, True])
def test_at_most_80_columns(options, verbose):
    options = dict(options)
    report = reports.report(options.pop("found", None), **options)
    screen = text.render(report, verbose=verbose, files=["a" * 90, "b.json"]).plain
    wide = [line for line in screen.splitlines() if len(line) > 80]
    assert wide == []
    assert not any(line != line.rstrip() for line in screen.splitlines())


def test_terminal_text_is_the_plain_text():
    screen = text.render(reports.report(), verbose=True)
    rich = screen.rich().plain
    assert [line.rstrip() for line in rich.splitlines()] == screen.plain.splitlines()


def test_every_finding_and_every_reason_is_there():
    report = reports.report()
    screen = " ".join(text.render(report, verbose=True).plain.split())
    for finding in report.findings:
        assert finding.code in screen
        assert finding.reason in screen
    for words in (
        "CERTIFIED",
        "IF I.I.D.",
        "ESTIMATED",
        "SCORES",
        "REFUTED",
        "FAILED",
        "SKIPPED",
        "advice: train longer",
    ):
        assert words in screen
    assert "10 findings: 2 certified, 2 conditional, 1 estimated, 1 score, 1 refuted" in screen


def test_a_conditional_finding_stands_under_its_condition():
    lines = text.render(reports.report()).plain.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("IF           numbers (tested):"))
    assert "A title" in lines[heading + 1]
    iid = next(line for line in lines if line.startswith("IF I.I.D."))
    assert "error upper <= 0.25 (95 %)" in iid


def test_an_estimate_names_its_condition_too():
    screen = " ".join(text.render(reports.report()).plain.split())
    assert "gap ~ 0.1 [-0.2, 0.3] nats (95 %), if i.i.d. test data (assumed)" in screen


def test_sentence_of_what_does_not_hold_gives_the_reason():
    assert text.sentence(reports.finding(status="refuted", reason="no")) == "x A title: no"
    assert text.sentence(reports.finding(status="not applicable", reason="no")) == "A title: no"


def test_headline_is_rather_of_the_whole_than_of_a_layer():
    values = {"norm[a]": Value.exact(1.0), "norm": Value.exact(2.0)}
    assert text.headline(reports.finding(values=values)) == ("norm", values["norm"])
    only = {"norm[a]": Value.exact(1.0)}
    assert text.headline(reports.finding(values=only)) == ("norm[a]", only["norm[a]"])
    assert text.headline(reports.finding()) is None


def test_statuses_in_the_table_are_those_of_the_findings():
    screen = text.render(reports.report()).plain
    rows = {
        line.split()[1 if line[0] != " " else 0]: line
        for line in screen.split("chapter ", 1)[1].splitlines()[1:]
        if line.strip()
    }
    assert " n/a " in rows["GEN004"]
    assert " refuted " in rows["OPT002"]
    assert " score " in rows["GEN003"]
    assert " exact " in rows["OPT001"]


def test_partial_reports_say_so():
    assert "PARTIAL" in text.render(reports.report(complete=False)).plain
    assert "PARTIAL" not in text.render(reports.report()).plain


@pytest.mark.parametrize(
    ("attempts", "words"),
    [(None, "remedies were not tried"), ([], "interrupted before a remedy was tried")],
)
def test_why_nothing_is_to_do(attempts, words):
    assert text.nothing_to_do(reports.report(attempts=attempts)) == words


def test_no_remedy_helped_says_why():
    assert text.nothing_to_do(reports.report()) == "none helped: Re-solve the head: needs a weight decay > 0"


def test_wrap_keeps_a_confidence_together():
    for width in range(12, 40):
        for line in text.wrap("an error of at most 0.25 (95 %) or (97.5 %) so", width):
            assert line.count("(") == line.count(")")
            assert len(line) <= width
    assert text.wrap("", 10) == [""]


def test_readable_names():
    assert text.readable("error_upper") == "error upper"
    assert text.readable("norm_two[my_layer.0]") == "norm two[my_layer.0]"


def test_unproved_hypotheses_are_named():
    hypotheses = (reports.checked("a", by_structure(True)), reports.checked("b", by_word("so")))
    assert text.unproved(reports.finding(hypotheses=hypotheses)) == ["b (assumed)"]


def test_plural():
    assert (text.plural(1, "layer"), text.plural(1200, "layer")) == ("1 layer", "1,200 layers")


def test_a_count_stays_beside_its_status():
    statuses = ("certified", "conditional", "estimated", "score", "refuted", "not applicable")
    found = [reports.finding(status=status, reason="r") for status in statuses for _ in range(11)]
    for start in range(len(found)):
        summary = text.render(reports.report(found[start:])).plain.split("\n\n")[-1]
        for part in " ".join(summary.split()).partition(": ")[2].partition(" (why")[0].split(", "):
            assert any(part in line for line in summary.splitlines()), summary
