"""The HTML report: one self-contained page, readable without a network and without JavaScript."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from theodolite.auditing import references, svg, tex, text
from theodolite.auditing.report import jsonable
from theodolite.theorems.base import CheckedHypothesis, Finding
from theodolite.value import Value, format_confidence, format_number

if TYPE_CHECKING:
    from theodolite.auditing.report import Report

TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_WITNESS = 240

# a glyph and a word each, so that nothing is said by color alone
STATUSES = {
    "certified": (
        "✓",
        "certified",
        "Every number is exact or a proved bound, and every hypothesis is proved on this model.",
    ),
    "conditional": (
        "→",
        "conditional",
        "Every number is exact or a proved bound, but a hypothesis is only tested or assumed: read it with the “if”.",
    ),
    "estimated": ("~", "estimated", "A number was obtained by sampling; it has a confidence interval."),
    "score": (
        "#",
        "score",
        "A number is a heuristic, or a formula without its constants: to rank by, never a promise.",
    ),
    "refuted": ("✗", "refuted", "The theorem is about a condition that is false here; the witness shows it."),
    "not applicable": (
        "–",
        "not applicable",
        "A condition that the theorem needs is false here; the reason says which.",
    ),
    "skipped": ("»", "skipped", "Not run: budget, interrupt or choice."),
    "failed": ("!", "failed", "A defect of theodolite; the traceback is in the JSON report."),
}
HYPOTHESES = {
    "proved": ("✓", "shown by structure or by exact arithmetic"),
    "tested": ("~", "checked numerically and not refuted; no proof"),
    "assumed": ("?", "nothing in the model or the data can show it: your word"),
    "refuted": ("✗", "false here, with a witness"),
}
KINDS = {
    "exact": ("=", "a closed form on the given tensors, up to float64 rounding"),
    "bound": ("≤", "a proved inequality with all its constants, one- or two-sided"),
    "estimate": ("~", "from sampling, with its confidence interval"),
    "score": ("#", "a heuristic, or a formula without its constants: to rank by, never a promise"),
}


@dataclass(frozen=True)
class Row:
    """One value as a table shows it."""

    name: str
    glyph: str
    kind: str
    number: str
    unit: str
    confidence: str
    note: str
    witness: str


@dataclass(frozen=True)
class Layers:
    """Values of one quantity, layer by layer."""

    name: str
    rows: list[Row] = field(default_factory=list)


def render(report: Report) -> str:
    """Return the page of a report.

    Parameters
    ----------
    report : Report

    Returns
    -------
    str
        HTML without a script and without anything loaded from elsewhere.
    """
    groups = [(status, [f for f in report.findings if f.status == status]) for status in report.counts]
    return _template().render(
        report=report,
        groups=groups,
        statuses=STATUSES,
        hypotheses=HYPOTHESES,
        kinds=KINDS,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # our own file
        facts=_facts(report),
        summary=text.summary(report),
        nothing_to_do=text.nothing_to_do(report),
        sentence=text.sentence,
        condition=text.condition,
        capital=lambda words: words[:1].upper() + words[1:],
        headline=_headline,
        rows=_rows,
        layers=_layers,
        witness=_witness_of,
        statement=lambda finding: Markup(tex.to_html(finding.statement)),  # escaped by tex
        chart=_chart,
        sources=lambda finding: references.resolve(finding.reference),
        effects=lambda outcome: [_row(name, value) for name, value in outcome.effects.items()],
    )


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string((TEMPLATES / "report.html.j2").read_text(encoding="utf-8"))


def _facts(report: Report) -> list[tuple[str, str]]:
    model, data = report.model, report.data
    shape = "×".join(str(size) for size in data["shape"])
    test = f" and {data['n_test']:,} test" if data["n_test"] else ""
    decay = model["weight_decay"]
    objective = model["loss"].replace("_", "-")
    return [
        (
            "Model",
            f"{text.plural(model['layers'], 'layer')}, {text.plural(model['parameters'], 'parameter')} "
            f"({model['dtype'] or 'none'})",
        ),
        ("Data", f"{data['name'] or 'arrays'}: {data['n_train']:,} training{test} samples, each {shape}"),
        (
            "Objective",
            objective + (", weight decay unknown" if decay is None else f", weight decay {decay:g}"),
        ),
        (
            "Audit",
            f"theodolite {_version()}, seed {report.seed}, {report.seconds:.1f}\u00a0s "
            f"on {report.environment.get('device', '?')}",
        ),
    ]


def _version() -> str:
    import theodolite

    return theodolite.__version__


def _headline(finding: Finding) -> Row | None:
    found = text.headline(finding)
    return None if found is None else _row(*found)


def _rows(finding: Finding) -> list[Row]:
    """Return the values of the whole network."""
    return [_row(name, value) for name, value in finding.values.items() if "[" not in name]


def _layers(finding: Finding) -> list[Layers]:
    """Return the values that belong to one layer (or one of anything) each, by quantity."""
    found: dict[str, Layers] = {}
    for name, value in finding.values.items():
        base, bracket, rest = name.partition("[")
        if bracket:
            group = found.setdefault(base, Layers(text.readable(base)))
            group.rows.append(_row(rest.removesuffix("]"), value, plain=True))
    return list(found.values())


def _row(name: str, value: Value, *, plain: bool = False) -> Row:
    glyph = KINDS[value.kind][0]
    if value.kind == "bound":
        glyph = (
            "∈"
            if value.lower is not None and value.upper is not None
            else "≤"
            if value.lower is None
            else "≥"
        )
    return Row(
        name=name if plain else text.readable(name),
        glyph=glyph,
        kind=value.kind,
        number=number(value),
        unit=value.unit,
        confidence=""
        if value.confidence == 1.0
        else format_confidence(value.confidence).replace(" ", "\u00a0"),
        note=value.note,
        witness=_witness(value.witness),
    )


def number(value: Value) -> str:
    """Return the number or the ends, without the kind, rounded outward as text does it."""
    low, high = (format_number(value.lower, "down"), format_number(value.upper, "up"))
    if value.kind == "bound":
        return (
            f"≤ {high}" if value.lower is None else f"≥ {low}" if value.upper is None else f"[{low}, {high}]"
        )
    if value.value is None:
        return "none"
    shown = format_number(value.value)
    return f"{shown} [{low}, {high}]" if value.kind == "estimate" else shown


def _witness_of(hypothesis: CheckedHypothesis) -> str:
    return _witness(hypothesis.verdict.witness)


def _witness(witness: Any) -> str:
    if witness is None:
        return ""
    if isinstance(witness, str):
        shown = witness
    elif isinstance(witness, dict):
        shown = ", ".join(f"{key}: {_plain(item)}" for key, item in witness.items())
    else:
        shown = _plain(witness)
    return shown if len(shown) <= _LONGEST_WITNESS else f"{shown[:_LONGEST_WITNESS]} …"


def _plain(item: Any) -> str:
    made = jsonable(item)
    if isinstance(made, float):
        return format_number(made)
    return made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)


def _chart(finding: Finding) -> Markup:
    """Return the finding's chart; svg escapes every text in it."""
    return Markup("" if finding.chart is None else svg.draw(finding.chart, f"chart-{finding.code}"))
