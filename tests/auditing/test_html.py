"""The HTML page: one file that loads nothing, runs nothing and says everything."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import reports

from theodolite.auditing import html
from theodolite.theorems.base import FINDING_STATUSES
from theodolite.value import KINDS, Value

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}
LOADING = {"src", "srcset", "data", "poster", "action", "background", "formaction", "xlink:href"}


class Page(HTMLParser):
    """Collects what a test asks about and checks that elements close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


CASES = {
    "everything": {},
    "evil names": {"model": {"name": reports.EVIL}, "data": {"name": reports.EVIL}, "notes": [reports.EVIL]},
    "interrupted": {"attempts": [], "complete": False},
    "no remedies": {"attempts": None},
    "nothing": {"found": []},
    "no test data": {"data": {"n_test": 0, "name": ""}, "model": {"weight_decay": None, "dtype": ""}},
}


def page(case: str) -> str:
    options = dict(CASES[case])
    return html.render(reports.report(options.pop("found", None), **options))


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_loaded_and_nothing_runs(case):
    source = page(case)
    parsed = Page(source)
    tags = {tag for tag, _ in parsed.elements}
    assert tags.isdisjoint({"script", "iframe", "object", "embed", "img", "audio", "video", "base", "form"})
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name in LOADING]
        if tag == "link":
            assert attributes["href"] == "data:,"
        elif tag != "a":
            assert "href" not in attributes
    assert re.search(r"url\(|@import|@font-face|javascript:", source, re.IGNORECASE) is None


@pytest.mark.parametrize("case", CASES)
def test_ids_are_unique_and_every_link_leads_somewhere(case):
    parsed = Page(page(case))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.elements:
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids
        elif tag == "a":
            assert attributes["href"].startswith("https://")
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(attributes.get(name, "").split()) <= set(ids)


def test_hostile_names_are_text():
    source = page("evil names")
    assert "<script" not in source
    assert reports.EVIL in Page(source).text


def test_every_number_hypothesis_and_reason_is_there():
    report = reports.report()
    text = Page(html.render(report)).text
    for finding in report.findings:
        assert finding.code in text
        assert (finding.reason[:1].upper() + finding.reason[1:]) in text
        for name, value in finding.values.items():
            assert html.number(value) in text, name
            assert value.kind in text
        for hypothesis in finding.hypotheses:
            assert hypothesis.statement in text
            assert hypothesis.status in text
    assert "Train longer" in text
    assert "Traceback" not in text  # the JSON has it


def test_a_status_is_a_word_and_a_glyph_never_color_alone():
    parsed = Page(page("everything"))
    for status in FINDING_STATUSES:
        glyph, word, explanation = html.STATUSES[status]
        assert f"{glyph} {word}" in parsed.text
        assert explanation in parsed.text
    assert set(html.KINDS) == set(KINDS)


def test_partial_reports_say_so():
    assert "Partial report." in Page(page("interrupted")).text
    assert "Partial report." not in Page(page("everything")).text


def test_why_nothing_is_to_do():
    assert "Remedies were not tried." in Page(page("no remedies")).text
    assert "No remedy helped." in Page(page("everything")).text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Value.exact(0.5), "0.5"),
        (Value.bound(1.23456, 7.00001), "[1.234, 7.001]"),
        (Value.bound(lower=0.99999), "≥ 0.9999"),
        (Value.bound(upper=0.10001), "≤ 0.1001"),
        (Value.estimate(0.5, 0.25, 0.75), "0.5 [0.25, 0.75]"),
        (Value.score(2.0), "2"),
        (Value.absent("none"), "none"),
    ],
)
def test_numbers_are_rounded_outward(value, shown):
    assert html.number(value) == shown


def test_formulas_and_charts_are_well_formed():
    source = page("everything")
    formulas = re.findall(r"<math>.*?</math>", source, re.DOTALL)
    charts = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert formulas
    assert len(charts) >= 3  # the brand and two findings
    for piece in [*formulas, *charts]:
        ET.fromstring(piece)


def test_long_witnesses_are_cut():
    shown = html._witness({"layer": "x" * 1000})
    assert len(shown) < 300
    assert shown.endswith("…")


def test_same_report_same_page():
    assert page("everything") == page("everything")


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_has_contrast_in_light_and_dark():
    style = (html.TEMPLATES / "report.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media", 2)[:2]
    )
    assert set(light) == set(dark)
    grounds = {"page", "card", "faint"}
    for colors in (light, dark):
        for name in set(colors) - grounds - {"line"}:
            for ground in grounds:
                bright, dim = sorted((luminance(colors[name]), luminance(colors[ground])), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (name, ground, colors[name], colors[ground])
