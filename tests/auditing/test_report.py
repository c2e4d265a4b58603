"""The report: access, strict JSON that keeps to its schema, data frame, notebook."""

import copy
import dataclasses
import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import reports
import torch

from theodolite.auditing.remedies import Attempt
from theodolite.auditing.report import SCHEMA, jsonable
from theodolite.theorems.subject import InputError
from theodolite.value import Value


def strict(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_findings_by_code():
    report = reports.report()
    assert report["GEN002"].status == "estimated"
    with pytest.raises(KeyError, match="'GEN999' is not in this report; it has OPT001, OPT002"):
        report["GEN999"]


def test_summaries():
    report = reports.report()
    assert [finding.code for finding in report.certified] == ["OPT001", "SPA001"]
    assert list(report.chapters) == [
        "optimality",
        "stability",
        "generalization",
        "information",
        "approximation",
        "sparsity",
    ]
    assert sum(report.counts.values()) == len(report.findings)
    assert report.counts["conditional"] == 2
    assert "estimated" not in reports.report([reports.finding()]).counts


def test_ledger_sums_what_randomized_bounds_spent():
    ledger = reports.report().confidence_ledger
    assert {entry["code"]: entry["delta"] for entry in ledger["entries"]} == {"STA001": 1e-9, "GEN001": 0.05}
    assert ledger["total"] == pytest.approx(0.05 + 1e-9)
    many = [reports.finding(values={f"v[{i}]": Value.bound(0, confidence=0.5) for i in range(9)})]
    assert reports.report(many).confidence_ledger["total"] == 1.0


def test_json_is_strict_and_keeps_to_the_schema(tmp_path):
    report = reports.report()
    path = tmp_path / "report.json"
    assert report.to_json(path) == path.read_text(encoding="utf-8")
    loaded = strict(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(report.schema)
    jsonschema.validate(loaded, report.schema)
    assert loaded["schema"] == SCHEMA
    assert loaded["findings"][8]["traceback"] == "Traceback: boo"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("seed"),
        lambda r: r.update(schema="other"),
        lambda r: r.update(more=1),
        lambda r: r["findings"][0].pop("hypotheses"),
        lambda r: r["findings"][0].update(status="true"),
        lambda r: r["findings"][0].update(code="opt1"),
        lambda r: r["findings"][0]["values"]["degree"].update(kind="guess"),
        lambda r: r["findings"][0]["values"]["degree"].update(lower=1.0),
        lambda r: r["findings"][0]["values"]["degree"].update(value=float("nan"), kind="bound"),
        lambda r: r["findings"][3]["values"]["error_upper"].update(value=1.0),
        lambda r: r["findings"][4]["values"]["gap"].update(lower=None),
        lambda r: r["findings"][0]["hypotheses"][0].update(status="certain"),
        lambda r: r["confidence_ledger"].update(total=2),
        lambda r: r["remedies"][0].pop("helped"),
        lambda r: r["environment"].pop("torch"),
    ],
)
def test_the_schema_refuses_what_no_report_says(spoil):
    report = reports.report()
    loaded = strict(report.to_json())
    jsonschema.validate(copy.deepcopy(loaded), report.schema)
    spoil(loaded)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(loaded, report.schema)


def test_values_come_back_from_json():
    report = reports.report()
    loaded = strict(report.to_json())
    for finding, found in zip(report.findings, loaded["findings"], strict=True):
        for name, value in finding.values.items():
            assert Value.from_dict(found["values"][name]) == value


def test_numbers_that_are_not_finite_are_words():
    assert strict(reports.report().to_json())["findings"][5]["values"]["rank"]["value"] == "inf"


def test_frame_has_a_row_a_value():
    report = reports.report()
    frame = report.to_frame()
    values = sum(max(1, len(finding.values)) for finding in report.findings)
    assert len(frame) == values
    assert list(frame.columns[:5]) == ["code", "title", "chapter", "status", "name"]
    assert frame.dtypes[["value", "lower", "upper", "confidence"]].eq("float64").all()
    row = frame[frame.code == "GEN001"].iloc[0]
    assert (row["name"], row.upper, row.confidence) == ("error_upper", 0.25, 0.95)
    assert np.isnan(row.value)
    assert reports.report([]).to_frame().empty


def test_frame_without_pandas_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        reports.report().to_frame()


def test_notebook_frame_keeps_the_page_apart():
    shown = reports.report()._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert shown.count('"') == 2 * shown.count('="')  # nothing inside ends the attribute early
    assert "<script" not in shown


def test_string_is_the_text_screen():
    report = reports.report()
    assert str(report) == report.to_text()
    assert len(report.to_text(verbose=True)) > len(str(report))


def test_remedies_shown_are_the_helpful_ones():
    @dataclasses.dataclass
    class Helped:
        helped: bool = True

    attempts = [Attempt("a", "A", outcome=Helped()) for _ in range(5)] + [Attempt("b", "B", reason="no")]
    assert len(reports.report(attempts=attempts).remedies) == 3
    assert reports.report(attempts=None).remedies == []


@dataclasses.dataclass
class Point:
    x: float
    name: str


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor([True, False]), [True, False]),
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (float("nan"), "nan"),
        (-np.inf, "-inf"),
        (torch.tensor([1.0, float("inf")]), [1.0, "inf"]),
        ({1: (2, 3)}, {"1": [2, 3]}),
        ({"b", "a"}, ["a", "b"]),
        (Point(1.0, "p"), {"x": 1.0, "name": "p"}),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        (Path("a"), "a"),
        (1 + 2j, "(1+2j)"),
        (np.zeros(0), []),
        (object(), "object"),
        (Point, "type"),
        (None, None),
        (torch.ones(2, requires_grad=True), [1.0, 1.0]),
    ],
)
def test_anything_can_be_a_witness(item, expected):
    assert jsonable(item) == expected
    json.dumps(jsonable(item), allow_nan=False)


def test_long_arrays_are_cut():
    cut = jsonable(torch.arange(2000.0).reshape(2, 1000))
    assert cut == {"shape": [2, 1000], "first": [float(i) for i in range(10)]}


@pytest.mark.parametrize("write", ["to_json", "to_html"])
def test_a_path_that_cannot_be_written_is_one_sentence(write, tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*: No such file or directory"):
        getattr(reports.report(), write)(tmp_path / "missing" / "file")
    assert list(tmp_path.iterdir()) == []
