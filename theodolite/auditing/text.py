"""The text screen: at most 80 columns, the most useful first."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from theodolite.theorems.base import Finding
from theodolite.value import Value

if TYPE_CHECKING:
    from rich.text import Text

    from theodolite.auditing.report import Report

WIDTH = 80
_LABEL, _CODE = 13, 6
_BODY = WIDTH - _LABEL - _CODE - 2
_STYLES = {
    "DO NEXT": "bold",
    "CERTIFIED": "bold green",
    "IF": "bold blue",
    "ESTIMATED": "bold cyan",
    "SCORES": "bold",
    "REFUTED": "bold red",
    "FAILED": "bold red",
    "PARTIAL": "bold yellow",
}
_SHORT = {"not applicable": "n/a"}
Span = tuple[str, str]


@dataclass
class Screen:
    """Lines of (text, style) pieces."""

    lines: list[list[Span]] = field(default_factory=list)

    @property
    def plain(self) -> str:
        """The text alone, without a line break at its end."""
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self.lines)

    def rich(self) -> Text:
        """Return the text with its styles, for a terminal."""
        from rich.text import Text

        joined = Text("\n").join(Text.assemble(*line) for line in self.lines)
        joined.no_wrap = True
        return joined

    def add(self, text: str = "", style: str = "") -> None:
        """Add one line."""
        self.lines.append([(text, style)])

    def paragraph(self, text: str, indent: int = 0, style: str = "") -> None:
        """Add wrapped lines."""
        for line in wrap(text, WIDTH - indent):
            self.add(" " * indent + line, style)

    def entry(self, label: str, body: str, code: str = "", hanging: int = 0) -> None:
        """Add a label, a wrapped body and, at the end of its last line, a code."""
        lines = wrap(body, _BODY, hanging)
        style = _STYLES.get(label, _STYLES.get(label.split(" ")[0], "bold"))
        for i, line in enumerate(lines):
            head = (label.ljust(_LABEL), style) if i == 0 else (" " * _LABEL, "")
            last = i == len(lines) - 1
            self.lines.append(
                [head, (line.ljust(_BODY + 2) if last and code else line, ""), (code if last else "", "dim")]
            )


def wrap(text: str, width: int, hanging: int = 0) -> list[str]:
    """Return at least one line; a line does not end within "(95 %)"."""
    text = re.sub(r"\([^()]{1,12}\)", lambda match: match[0].replace(" ", "\u00a0"), text)
    lines = textwrap.wrap(text, width, subsequent_indent=" " * hanging, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines] or [""]


def render(report: Report, *, verbose: bool = False, files: Sequence[str] = ()) -> Screen:
    """Return the screen of a report.

    Parameters
    ----------
    report : Report
    verbose : bool
        Also every value with its note, every hypothesis, and what does not apply and why.
    files : sequence of str
        Names of the files that were written, for the last line.

    Returns
    -------
    Screen
    """
    screen = Screen()
    screen.paragraph(header(report), style="bold")
    screen.add()
    if not report.complete:
        screen.entry("PARTIAL", "the audit was interrupted; what was found until then:")
        screen.add()
    _remedies(screen, report)
    _groups(screen, report.findings)
    for i, note in enumerate(report.notes):
        screen.entry("NOTE" if i == 0 else "", note)
    screen.add()
    _table(screen, report)
    if verbose:
        _details(screen, report)
    screen.add()
    screen.paragraph(summary(report, verbose))
    if files:
        screen.paragraph("  ".join(files), style="bold")
    return screen


def header(report: Report) -> str:
    """Return what was audited, in one line: model, size, data, loss, seed, time."""
    model, data = report.model, report.data
    shape = "x".join(str(size) for size in data.get("shape", []))
    sizes = f"{data['n_train']:,}" + (f" + {data['n_test']:,}" if data["n_test"] else "")
    decay = model.get("weight_decay")
    loss = model["loss"].replace("_", "-") + ("" if decay is None else f", weight decay {decay:g}")
    parts = [
        model["name"],
        f"{plural(model['layers'], 'layer')}, {plural(model['parameters'], 'parameter')}",
        f"{sizes} samples of {data['name']}, {shape}" if data["name"] else f"{sizes} samples, {shape}",
        loss,
        f"seed {report.seed}",
        f"{report.seconds:.1f} s",
    ]
    # spaces inside a part do not break, so that a line ends between two parts
    return " · ".join(part.replace(" ", "\u00a0") if len(part) < 60 else part for part in parts)


def summary(report: Report, verbose: bool = True) -> str:
    """Return how many findings there are of each status."""
    words = {"score": "scores", "estimated": "estimated"}
    counts = report.counts
    named = {status: words.get(status, status) if n > 1 else status for status, n in counts.items()}
    parts = [f"{n}\u00a0{named[status]}".replace(" ", "\u00a0") for status, n in counts.items()]
    why = " (why: --verbose)" if not verbose and ("not applicable" in counts or "skipped" in counts) else ""
    return f"{plural(len(report.findings), 'finding')}: {', '.join(parts)}{why}"


def plural(n: int, noun: str) -> str:
    """Return "1 layer" or "1,200 layers"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def readable(name: str) -> str:
    """Return a value's name in words."""
    base, bracket, rest = name.partition("[")
    return base.replace("_", " ") + bracket + rest


def headline(finding: Finding) -> tuple[str, Value] | None:
    """Return the value that stands for a finding: the first, rather one of the whole than of one layer."""
    whole = [(name, value) for name, value in finding.values.items() if "[" not in name]
    return next(iter(whole or finding.values.items()), None)


def unproved(finding: Finding) -> list[str]:
    """Return the names of the hypotheses that were only tested or assumed, each with that word."""
    return [f"{h.name} ({h.status})" for h in finding.hypotheses if h.status in ("tested", "assumed")]


def condition(finding: Finding) -> str:
    """Return the heading of a conditional finding."""
    return ", ".join(unproved(finding))


def nothing_to_do(report: Report) -> str:
    """Return why no remedy is shown."""
    if report.attempts is None:
        return "remedies were not tried"
    if not report.attempts:
        return "interrupted before a remedy was tried"
    return "none helped: " + "; ".join(attempt.sentence for attempt in report.attempts)


def _remedies(screen: Screen, report: Report) -> None:
    for i, outcome in enumerate(report.remedies):
        screen.entry("DO NEXT" if i == 0 else "", f"{i + 1} {outcome.description}", hanging=2)
    if not report.remedies:
        screen.entry("DO NEXT", nothing_to_do(report), hanging=2)


def _groups(screen: Screen, findings: Iterable[Finding]) -> None:
    findings = list(findings)
    _group(screen, "CERTIFIED", [f for f in findings if f.status == "certified"])
    conditional = [f for f in findings if f.status == "conditional"]
    for heading in dict.fromkeys(condition(f) for f in conditional):
        same = [f for f in conditional if condition(f) == heading]
        if heading.startswith("i.i.d.") and "," not in heading:
            _group(screen, "IF I.I.D.", same)
        else:
            screen.entry("IF", f"{heading}:", hanging=2)
            _group(screen, "", same)
    _group(screen, "ESTIMATED", [f for f in findings if f.status == "estimated"])
    _group(screen, "SCORES", [f for f in findings if f.status == "score"])
    _group(screen, "REFUTED", [f for f in findings if f.status == "refuted"])
    _group(screen, "FAILED", [f for f in findings if f.status == "failed"])
    skipped = [f for f in findings if f.status == "skipped"]
    for i, reason in enumerate(dict.fromkeys(f.reason for f in skipped)):
        codes = " ".join(f.code for f in skipped if f.reason == reason)
        screen.entry("SKIPPED" if i == 0 else "", f"{reason}: {codes}", hanging=2)


def _group(screen: Screen, label: str, findings: Sequence[Finding]) -> None:
    for i, finding in enumerate(findings):
        screen.entry(label if i == 0 else "", sentence(finding), finding.code, hanging=2)


def sentence(finding: Finding) -> str:
    """Return the finding in one line: what was found, or why not."""
    found = headline(finding)
    if found is None or finding.status in ("refuted", "failed", "not applicable", "skipped"):
        mark = "x " if finding.status in ("refuted", "failed") else ""
        return f"{mark}{finding.title}: {finding.reason or finding.status}"
    conditions = unproved(finding)
    suffix = f", if {' and '.join(conditions)}" if conditions and finding.status != "conditional" else ""
    return f"{finding.title}: {readable(found[0])} {found[1]}{suffix}"


def _table(screen: Screen, report: Report) -> None:
    widths = (14, _CODE, 19, 24, 8, 4)
    titles = ("chapter", "code", "finding", "value", "kind", "s")
    rows: list[tuple[Sequence[str], str]] = [(titles, "bold")]
    for chapter, findings in report.chapters.items():
        for i, finding in enumerate(findings):
            found = headline(finding)
            shown = found is not None and finding.status not in ("refuted", "not applicable")
            value = str(found[1]) if found is not None and shown else "-"
            kind = (
                found[1].kind if found is not None and shown else _SHORT.get(finding.status, finding.status)
            )
            seconds = f"{finding.seconds:.1f}" if finding.seconds < 99 else f"{finding.seconds:.0f}"
            rows.append(((chapter if i == 0 else "", finding.code, finding.title, value, kind, seconds), ""))
    for cells, style in rows:
        wrapped = [wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for k in range(max(map(len, wrapped))):
            parts = [lines[k] if k < len(lines) else "" for lines in wrapped]
            padded = [p.ljust(w) for p, w in zip(parts[:-1], widths[:-1], strict=True)] + [
                parts[-1].rjust(widths[-1])
            ]
            screen.add(" ".join(padded), style)


def _details(screen: Screen, report: Report) -> None:
    for finding in report.findings:
        screen.add()
        screen.paragraph(f"{finding.code} {finding.title}: {finding.status}", style="bold")
        for name, value in finding.values.items():
            note = f" ({value.note})" if value.note else ""
            screen.paragraph(f"{readable(name)} {value}{note}", 2)
        for hypothesis in finding.hypotheses:
            reason = hypothesis.verdict.reason
            screen.paragraph(
                f"{hypothesis.status}: {hypothesis.name}" + (f" ({reason})" if reason else ""), 2
            )
        if finding.status in ("refuted", "not applicable", "skipped", "failed"):
            screen.paragraph(f"why: {finding.reason}", 2)
        if finding.advice:
            screen.paragraph(f"advice: {finding.advice}", 2)
