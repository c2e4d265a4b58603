"""Gates for continuous integration."""

import pytest
import reports

from theodolite.auditing import gates
from theodolite.theorems.subject import InputError
from theodolite.value import Value

CODES = ["OPT001", "GEN001", "GEN003"]


def failure(text: str, status: str = "certified", reason: str = "", **values: Value) -> str:
    report = reports.report([reports.finding("GEN003", status, values=values, reason=reason)])
    (gate,) = gates.parse([text], CODES, CODES)
    return gate.failure(report)


@pytest.mark.parametrize("status", ["certified", "conditional"])
def test_a_status_that_passes(status):
    assert failure("GEN003", status) == ""
    assert failure(" GEN003 ", status) == ""


@pytest.mark.parametrize("status", ["estimated", "score", "refuted", "not applicable", "skipped", "failed"])
def test_a_status_that_fails(status):
    assert failure("GEN003", status, "because") == f"GEN003 is {status}: because"


@pytest.mark.parametrize(
    ("comparison", "threshold", "fails"),
    [
        ("<", 5, False), ("<", 5.1, True), ("<=", 5, True), ("<=", 4.9, False), (">", 5, False), (">", 4.9, True),
        (">=", 5, True), (">=", 5.1, False), ("==", 5, True), ("==", 4, False), ("!=", 5, False), ("!=", 4, True),
    ],
)  # fmt: skip
def test_comparisons(comparison, threshold, fails):
    text = f"GEN003.path_norm.value {comparison} {threshold}"
    assert failure(text, path_norm=Value.exact(5.0)) == (f"{text}: it is 5" if fails else "")
    tight = text.replace(" ", "")
    assert bool(failure(tight, path_norm=Value.exact(5.0))) == fails


def test_each_end_is_compared_for_itself():
    norm = Value.bound(2.0, 8.0)
    assert failure("GEN003.norm.upper > 7", norm=norm)
    assert not failure("GEN003.norm.lower > 7", norm=norm)
    estimate = Value.estimate(5.0, 2.0, 8.0)
    assert [bool(failure(f"GEN003.e.{end} > 4", e=estimate)) for end in ("value", "lower", "upper")] == [
        True,
        False,
        True,
    ]


def test_an_unknown_end_is_infinite():
    below, above = Value.bound(lower=2.0), Value.bound(upper=2.0)
    assert failure("GEN003.norm.upper > 1e300", norm=below)
    assert not failure("GEN003.norm.lower > 0", norm=above)
    assert failure("GEN003.norm.lower < 0", norm=above)


def test_layers_are_named_in_brackets():
    values = {"norm[layers.0.weight]": Value.exact(3.0)}
    assert failure("GEN003.norm[layers.0.weight].value > 2", **values)


def test_what_was_not_shown_does_not_pass():
    assert failure("GEN003.norm.upper > 7", "not applicable", "no layers") == (
        "GEN003.norm.upper > 7: undecided, because GEN003 is not applicable (no layers)"
    )
    assert "there is no such number (empty)" in failure("GEN003.norm.value > 7", norm=Value.absent("empty"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GEN009", "there is no finding 'GEN009'; did you mean GEN00"),
        ("OPT0", "there is no finding 'OPT0'"),
        ("GEN003 > 5", "expected CODE or CODE.name.end comparison number"),
        ("", "expected CODE or CODE.name.end comparison number"),
        ("GEN003.path_norm > 5", "say which end of path_norm to compare: .value, .lower or .upper"),
        ("GEN003.path_norm.middle > 5", "say which end of path_norm.middle"),
        ("GEN003.path_norm.upper > five", "expected a number after >, got 'five'"),
        ("GEN003.path_norm.upper > nan", "expected a number after >, got 'nan'"),
        ("GEN003.path_norm.upper => 5", "say which end"),
        ("ABC003.path_norm.upper > 5", "there is no finding 'ABC003'"),
    ],
)
def test_what_is_no_gate_is_refused_before_the_work(text, words):
    with pytest.raises(InputError) as caught:
        gates.parse([text], CODES, CODES)
    assert str(caught.value).startswith("--fail-on: ")
    assert words in str(caught.value)


def test_a_finding_that_is_not_run_cannot_be_a_gate():
    with pytest.raises(InputError, match="GEN001 is not among the findings of this audit"):
        gates.parse(["GEN001"], CODES, ["GEN003"])


def test_a_value_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="GEN003 has no value 'path_nrm'; did you mean path_norm"):
        failure("GEN003.path_nrm.value > 5", path_norm=Value.exact(5.0))
    with pytest.raises(InputError, match=r"path_norm is a bound, so compare \.lower or \.upper"):
        failure("GEN003.path_norm.value > 5", path_norm=Value.bound(5.0))
