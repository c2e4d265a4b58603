"""Gates for continuous integration: ``GEN001`` and ``GEN003.path_norm.upper > 50``."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from theodolite.auditing.run import unknown_code
from theodolite.theorems.subject import InputError
from theodolite.value import Value, format_number

if TYPE_CHECKING:
    from theodolite.auditing.report import Report

_EXPRESSION = re.compile(r"\s*([A-Za-z]{3}\d{3})\.(.+?)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_OPTION = "--fail-on"


@dataclass(frozen=True)
class Gate:
    """One condition under which an audit shall fail.

    Attributes
    ----------
    text : str
        As the user wrote it.
    code : str
        The finding.
    name : str
        The value; "" for a gate on the finding's status.
    end : {"value", "lower", "upper"}
        The end that is compared.
    comparison : str
        One of ``<``, ``<=``, ``>``, ``>=``, ``==``, ``!=``.
    threshold : float
        What it is compared with.
    """

    text: str
    code: str
    name: str = ""
    end: Literal["value", "lower", "upper"] = "value"
    comparison: str = ""
    threshold: float = 0.0

    def failure(self, report: Report) -> str:
        """Return why the gate fails, or "" when it does not.

        A gate on a status fails unless the finding is certified or conditional.  A
        comparison fails when it is true, and also when there is no such number because
        the finding has none: what was not shown does not pass.  An end that is not
        known is infinite.

        Raises
        ------
        InputError
            If the finding has values but none of that name, or not that end.
        """
        finding = report[self.code]
        if not self.name:
            if finding.status in ("certified", "conditional"):
                return ""
            reason = f": {finding.reason}" if finding.reason else ""
            return f"{self.code} is {finding.status}{reason}"
        if not finding.values:
            return f"{self.text}: undecided, because {self.code} is {finding.status} ({finding.reason})"
        if self.name not in finding.values:
            raise InputError(
                f"{_OPTION}: {self.text!r}: {_unknown_value(self.name, self.code, list(finding.values))}"
            )
        value = finding.values[self.name]
        if value.kind == "bound" and self.end == "value":
            raise InputError(f"{_OPTION}: {self.text!r}: {self.name} is a bound, so compare .lower or .upper")
        if value.kind != "bound" and value.value is None:
            return f"{self.text}: undecided, because there is no such number ({value.witness})"
        number = self._end(value)
        if _COMPARISONS[self.comparison](number, self.threshold):
            return f"{self.text}: it is {format_number(number)}"
        return ""

    def _end(self, value: Value) -> float:
        if self.end == "value" and value.value is not None:
            return value.value
        return value.low if self.end == "lower" else value.high


def parse(texts: Iterable[str], known: Sequence[str], chosen: Sequence[str]) -> list[Gate]:
    """Return the gates that were written.

    Parameters
    ----------
    texts : iterable of str
        ``CODE`` or ``CODE.name.end comparison number``.
    known, chosen : sequence of str
        All codes, and those that this audit runs.

    Raises
    ------
    InputError
        One sentence, before anything is computed.
    """
    return [_parse(text, known, chosen) for text in texts]


def _parse(text: str, known: Sequence[str], chosen: Sequence[str]) -> Gate:
    whole = text.strip()
    if re.fullmatch(r"\w+", whole):
        _check_code(whole, text, known, chosen)
        return Gate(text, whole)
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise InputError(
            f"{_OPTION}: expected CODE or CODE.name.end comparison number, as in 'GEN003.path_norm.upper > 50', got {text!r}"
        )
    code, path, comparison, number = match.groups()
    _check_code(code, text, known, chosen)
    name, dot, end = path.rpartition(".")
    if not dot or end not in ("value", "lower", "upper"):
        raise InputError(f"{_OPTION}: {text!r}: say which end of {path} to compare: .value, .lower or .upper")
    try:
        threshold = float(number)
    except ValueError:
        threshold = float("nan")
    if threshold != threshold:
        raise InputError(f"{_OPTION}: {text!r}: expected a number after {comparison}, got {number!r}")
    return Gate(text, code, name, end, comparison, threshold)  # type: ignore[arg-type]  # end is one of the three


def _check_code(code: str, text: str, known: Sequence[str], chosen: Sequence[str]) -> None:
    if code not in known:
        raise InputError(f"{_OPTION}: {unknown_code(code, known)}")
    if code not in chosen:
        raise InputError(f"{_OPTION}: {text!r}: {code} is not among the findings of this audit (only, skip)")


def _unknown_value(name: str, code: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names[:8])}"
    return f"{code} has no value {name!r}; {hint}"
