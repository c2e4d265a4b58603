"""What a theorem is, how its hypotheses are checked, and what a finding may claim.

Two axes are kept apart.  A number's *kind* (:class:`theodolite.value.Value`) says
how it was obtained; a hypothesis' *status* says how far its truth was shown on this
model.  The status of a finding follows from both in :func:`finding_status`, here and
nowhere else.
"""

from __future__ import annotations

import time
import traceback as tb
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from theodolite.value import Value

if TYPE_CHECKING:
    from torch import nn

    from theodolite.theorems.subject import Reducer, Subject

HypothesisStatus = Literal["proved", "tested", "assumed", "refuted"]
FindingStatus = Literal[
    "certified", "conditional", "estimated", "score", "refuted", "not applicable", "skipped", "failed"
]
FINDING_STATUSES: tuple[FindingStatus, ...] = FindingStatus.__args__  # type: ignore[attr-defined]
Cost = Literal["fast", "slow", "training"]


class NotApplicable(Exception):  # noqa: N818  (an outcome, not an error)
    """Raised by a check or a computation that has nothing to say here; its text says why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one check.

    Made by :func:`by_structure`, :func:`by_number` or :func:`by_word`, never spelled
    out: a status is what a check returned.
    """

    status: HypothesisStatus
    witness: Any = None
    reason: str = ""


def by_structure(holds: bool, *, witness: Any = None, reason: str = "") -> Verdict:
    """Return "proved" or "refuted" for a statement decided by structure or exact arithmetic.

    Parameters
    ----------
    holds : bool
        Whether it holds.
    witness : object
        What shows it, most of all when it does not hold: the layer, the number.
    reason : str
        One sentence, for the report.
    """
    return Verdict("proved" if holds else "refuted", witness, reason)


def by_number(violation: float, tolerance: float, *, witness: Any = None, reason: str = "") -> Verdict:
    """Return "tested" when a measured violation is within its tolerance, else "refuted"."""
    return Verdict("tested" if violation <= tolerance else "refuted", witness, reason)


def by_word(reason: str) -> Verdict:
    """Return "assumed": nothing in the model or the data can show it."""
    return Verdict("assumed", None, reason)


@dataclass(frozen=True)
class Hypothesis:
    """A condition of a theorem.

    Attributes
    ----------
    name : str
        Short name, unique among all hypotheses.
    statement : str
        What must hold, in one sentence.
    check : function(Subject) -> Verdict, or None
        None for what only the user can vouch for (i.i.d. data).
    about : bool
        True when the theorem is *about* this condition: then a false one makes the
        finding "refuted"; otherwise "not applicable".
    """

    name: str
    statement: str
    check: Callable[[Subject], Verdict] | None = None
    about: bool = False

    def __call__(self, subject: Subject) -> Verdict:
        """Run the check."""
        return by_word(self.statement) if self.check is None else self.check(subject)


@dataclass(frozen=True)
class CheckedHypothesis:
    """A hypothesis with the verdict that a subject got."""

    name: str
    statement: str
    verdict: Verdict
    about: bool

    @property
    def status(self) -> HypothesisStatus:
        """Status of the verdict."""
        return self.verdict.status

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON report."""
        return {
            "name": self.name,
            "statement": self.statement,
            "status": self.status,
            "witness": self.verdict.witness,
            "reason": self.verdict.reason,
        }


@dataclass(frozen=True)
class Chart:
    """A small picture of a finding, drawn by the report.

    Attributes
    ----------
    kind : {"histogram", "bars", "intervals", "line"}
        "intervals" takes two series, the lower and the upper ends.
    series : mapping from name to numbers
        One or two series; "bars", "intervals" and "line" pair them with ``labels``.
    labels : sequence of str
        Names along the axis (layers, say); empty for a histogram.
    x_label, y_label, title : str
        Axis texts.
    """

    kind: Literal["histogram", "bars", "intervals", "line"]
    series: Mapping[str, Sequence[float]]
    labels: Sequence[str] = ()
    x_label: str = ""
    y_label: str = ""
    title: str = ""


@dataclass(frozen=True)
class Finding:
    """What one theorem says about one subject."""

    code: str
    title: str
    chapter: str
    status: FindingStatus
    statement: str
    reference: str
    values: dict[str, Value] = field(default_factory=dict)
    hypotheses: tuple[CheckedHypothesis, ...] = ()
    reason: str = ""
    advice: str = ""
    seconds: float = 0.0
    chart: Chart | None = None
    traceback: str = ""

    @property
    def headline(self) -> Value | None:
        """The first value: the one that a table shows."""
        return next(iter(self.values.values()), None)


def finding_status(verdicts: Iterable[CheckedHypothesis], values: Iterable[Value]) -> FindingStatus:
    """Return what a finding may claim.

    The weakest number and the weakest hypothesis decide: *certified* needs every
    number exact or bounded and every hypothesis proved.
    """
    verdicts = list(verdicts)
    if any(v.status == "refuted" and v.about for v in verdicts):
        return "refuted"
    if any(v.status == "refuted" for v in verdicts):
        return "not applicable"
    kinds = {value.kind for value in values}
    if "score" in kinds:
        return "score"
    if "estimate" in kinds:
        return "estimated"
    return "certified" if all(v.status == "proved" for v in verdicts) else "conditional"


class Theorem(ABC):
    """A statement about networks, checked and computed on one subject.

    A subclass sets the class attributes and writes :meth:`compute`; documentation,
    ``theodolite explain`` and the report are made from them.

    Attributes
    ----------
    code, title, chapter : str
        "GEN003", "Path norms", "generalization".
    statement : str
        The statement in LaTeX, inline math between dollar signs.
    reference : str
        Key in ``refs.bib``.
    cost : {"fast", "slow", "training"}
        "training" runs only when asked for by code.
    hypotheses : tuple of Hypothesis
        Everything that the statement needs.
    reducers : tuple of Reducer classes
        What it needs to see of every layer; all theorems share one pass over the data.
    invariant, sensitive : frozenset of {"rescaling", "permutation", "dead units"}
        Function-preserving changes under which every value stays (to a relative 1e-6), or some value
        moves in general; neither where that depends on the network, or on a random start.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    chapter: ClassVar[str]
    statement: ClassVar[str]
    reference: ClassVar[str]
    cost: ClassVar[Cost] = "fast"
    hypotheses: ClassVar[tuple[Hypothesis, ...]] = ()
    reducers: ClassVar[tuple[type[Reducer], ...]] = ()
    invariant: ClassVar[frozenset[str]] = frozenset()
    sensitive: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def compute(self, subject: Subject) -> dict[str, Value]:
        """Return the values, the headline first; every hypothesis holds or is undecided here."""

    def chart(self, subject: Subject, values: Mapping[str, Value]) -> Chart | None:
        """Return a picture of the values, or None."""
        return None

    def advice(self, finding: Finding) -> str:
        """Return one sentence on what to do about the finding, or ""."""
        return ""

    def __call__(self, model: nn.Module, X: Any, y: Any, **options: Any) -> Finding:
        """Audit one model by this theorem alone.

        Parameters
        ----------
        model : nn.Module
            It is not changed.
        X, y : array or Tensor, shape (n, ...) and (n,) or (n, k)
            Training data.
        **options
            As for :class:`theodolite.theorems.subject.Subject`.

        Returns
        -------
        Finding
        """
        from theodolite.theorems.subject import Subject

        subject = Subject(model, X, y, **options)
        with subject.preserved():
            return evaluate(self, subject)


def evaluate(theorem: Theorem, subject: Subject) -> Finding:
    """Check the hypotheses, compute the values and derive the status.

    A theorem that raises becomes a "failed" finding with its traceback, so that one
    defect never loses a report.
    """
    start = time.perf_counter()
    checked: list[CheckedHypothesis] = []
    values: dict[str, Value] = {}
    try:
        for hypothesis in theorem.hypotheses:
            verdict = hypothesis(subject)
            checked.append(
                CheckedHypothesis(hypothesis.name, hypothesis.statement, verdict, hypothesis.about)
            )
            if verdict.status == "refuted":
                break
        if all(c.status != "refuted" for c in checked):
            values = theorem.compute(subject)
        status = finding_status(checked, values.values())
        broken = next((c for c in checked if c.status == "refuted"), None)
        reason = "" if broken is None else broken.verdict.reason or f"not so: {broken.statement}"
        chart = theorem.chart(subject, values) if values else None
        finding = make_finding(theorem, status, checked, values, reason, chart)
        advice = theorem.advice(finding)
    except NotApplicable as outcome:
        finding, advice = make_finding(theorem, "not applicable", checked, {}, str(outcome)), ""
    except Exception as error:  # the design's promise: a crash is a finding, shown as such
        reason = f"{type(error).__name__}: {error}"
        finding, advice = make_finding(theorem, "failed", checked, {}, reason, traceback=tb.format_exc()), ""
    object.__setattr__(finding, "advice", advice)
    object.__setattr__(finding, "seconds", time.perf_counter() - start)
    return finding


def make_finding(
    theorem: Theorem,
    status: FindingStatus,
    checked: Sequence[CheckedHypothesis] = (),
    values: Mapping[str, Value] | None = None,
    reason: str = "",
    chart: Chart | None = None,
    traceback: str = "",
) -> Finding:
    """Return a finding that carries the theorem's own texts."""
    return Finding(
        code=theorem.code,
        title=theorem.title,
        chapter=theorem.chapter,
        status=status,
        statement=theorem.statement,
        reference=theorem.reference,
        values=dict(values or {}),
        hypotheses=tuple(checked),
        reason=reason,
        chart=chart,
        traceback=traceback,
    )


def run(
    theorems: Sequence[Theorem],
    subject: Subject,
    *,
    budget: float | None = None,
    progress: Callable[[Theorem, int, int], None] | None = None,
) -> tuple[list[Finding], bool]:
    """Evaluate theorems one after another.

    Parameters
    ----------
    theorems : sequence of Theorem
        In the order of the report.
    subject : Subject
        Model and data.
    budget : float, optional
        Seconds; a theorem that would start later is skipped, with that reason.
    progress : function(theorem, done, total), optional
        Called before each.

    Returns
    -------
    findings : list of Finding
        One for each theorem, also after an interrupt.
    complete : bool
        False when the user interrupted.
    """
    start = time.monotonic()
    subject.deadline = None if budget is None else start + budget
    subject.expect(reducer for theorem in theorems for reducer in theorem.reducers)
    findings: list[Finding] = []
    interrupted = False
    with subject.preserved():
        for done, theorem in enumerate(theorems):
            if interrupted:
                findings.append(make_finding(theorem, "skipped", reason="interrupted before it began"))
                continue
            if budget is not None and time.monotonic() - start >= budget:
                reason = f"the budget of {budget:g} s was spent before it began"
                findings.append(make_finding(theorem, "skipped", reason=reason))
                continue
            try:
                if progress is not None:
                    progress(theorem, done, len(theorems))
                findings.append(evaluate(theorem, subject))
            except KeyboardInterrupt:
                interrupted = True
                findings.append(make_finding(theorem, "skipped", reason="interrupted while it ran"))
    return findings, not interrupted
