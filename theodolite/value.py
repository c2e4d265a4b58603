"""The one number type: a number, what kind of claim it is, and its proof or doubt.

Every quantity that theodolite prints is a :class:`Value`.  Its ``kind`` says how
much was shown:

``exact``
    closed form on the given tensors, up to float64 rounding;
``bound``
    a proved inequality with all its constants, one- or two-sided;
``estimate``
    obtained by sampling, always with a confidence interval;
``score``
    a heuristic, or an O(.) without constants: a number to rank by, never a promise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context
from typing import Any, Literal

Kind = Literal["exact", "bound", "estimate", "score"]
KINDS: tuple[Kind, ...] = ("exact", "bound", "estimate", "score")


@dataclass(frozen=True, slots=True)
class Value:
    """A number together with the kind of claim that it makes.

    Use the constructors :meth:`exact`, :meth:`bound`, :meth:`estimate`,
    :meth:`score` and :meth:`absent`; they take only what the kind allows.

    Attributes
    ----------
    value : float or None
        The number itself; None for a bound (its ends carry the information) and
        for a quantity that does not exist (then ``witness`` says why).
    lower, upper : float or None
        Ends of a bound (at least one), or of an estimate's confidence interval (both).
    kind : {"exact", "bound", "estimate", "score"}
        What was shown, see the module's text.
    unit : str
        Unit in words, "" for a pure number; information is in nats.
    confidence : float
        Probability with which a randomized bound or an interval holds; 1 when it
        is not random.
    witness : object
        What attains or refutes the number (JSON-able: a layer, an index, a list).
    note : str
        One sentence that a reader needs in order not to over-read the number.

    Raises
    ------
    ValueError
        If the parts contradict the kind (a bound without an end, an estimate
        without an interval, crossed ends, a NaN).
    """

    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    kind: Kind = "exact"
    unit: str = ""
    confidence: float = 1.0
    witness: Any = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("value", "lower", "upper", "confidence"):
            number = getattr(self, name)
            if number is None:
                continue
            number = float(number)
            if math.isnan(number):
                raise ValueError(f"{name}: expected a number, got NaN")
            object.__setattr__(self, name, number)
        if not 0.0 < self.confidence <= 1.0:
            raise ValueError(f"confidence: expected a number in (0, 1], got {self.confidence}")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"lower, upper: expected lower <= upper, got {self.lower} > {self.upper}")
        self._check_kind()

    def _check_kind(self) -> None:
        ends = (self.lower is not None) + (self.upper is not None)
        if self.kind == "bound" and (self.value is not None or ends == 0):
            raise ValueError("bound: expected value=None and at least one of lower, upper")
        if self.kind == "estimate" and (self.value is None or ends != 2 or self.confidence == 1.0):
            raise ValueError("estimate: expected a value with lower, upper and confidence < 1")
        if self.kind in ("exact", "score"):
            if ends or self.confidence != 1.0:
                raise ValueError(f"{self.kind}: expected no lower, upper or confidence")
            if self.value is None and self.witness is None:
                raise ValueError(f"{self.kind}: expected a value, or a witness that says why none exists")

    @classmethod
    def exact(cls, value: float, *, unit: str = "", witness: Any = None, note: str = "") -> Value:
        """Return a closed-form number."""
        return cls(value=value, kind="exact", unit=unit, witness=witness, note=note)

    @classmethod
    def bound(
        cls,
        lower: float | None = None,
        upper: float | None = None,
        *,
        unit: str = "",
        confidence: float = 1.0,
        witness: Any = None,
        note: str = "",
    ) -> Value:
        """Return a proved inequality; give the end or the ends that were proved."""
        return cls(None, lower, upper, "bound", unit, confidence, witness, note)

    @classmethod
    def estimate(
        cls,
        value: float,
        lower: float,
        upper: float,
        *,
        confidence: float = 0.95,
        unit: str = "",
        witness: Any = None,
        note: str = "",
    ) -> Value:
        """Return a sampled number with its confidence interval."""
        return cls(value, lower, upper, "estimate", unit, confidence, witness, note)

    @classmethod
    def score(cls, value: float, *, unit: str = "", witness: Any = None, note: str = "") -> Value:
        """Return a number to rank by, which promises nothing."""
        return cls(value=value, kind="score", unit=unit, witness=witness, note=note)

    @classmethod
    def absent(cls, witness: Any, *, unit: str = "", note: str = "") -> Value:
        """Return the statement that no such number exists; the witness shows why."""
        return cls(kind="exact", unit=unit, witness=witness, note=note)

    @property
    def low(self) -> float:
        """Largest number that the value is known to reach (-inf when unknown)."""
        if self.lower is not None:
            return self.lower
        return -math.inf if self.value is None else self.value

    @property
    def high(self) -> float:
        """Smallest number that the value is known not to exceed (inf when unknown)."""
        if self.upper is not None:
            return self.upper
        return math.inf if self.value is None else self.value

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        sure = "" if self.confidence == 1.0 else f" ({format_confidence(self.confidence)})"
        low, high = format_number(self.lower, "down"), format_number(self.upper, "up")
        if self.kind == "bound":
            if self.lower is None:
                return f"<= {high}{unit}{sure}"
            return f">= {low}{unit}{sure}" if self.upper is None else f"in [{low}, {high}]{unit}{sure}"
        if self.value is None:
            return "none"
        if self.kind == "estimate":
            return f"~ {format_number(self.value)} [{low}, {high}]{unit}{sure}"
        return f"{'=' if self.kind == 'exact' else 'score'} {format_number(self.value)}{unit}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; infinities become the strings "inf" and "-inf"."""
        return {
            "value": _encode(self.value),
            "lower": _encode(self.lower),
            "upper": _encode(self.upper),
            "kind": self.kind,
            "unit": self.unit,
            "confidence": self.confidence,
            "witness": self.witness,
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Value:
        """Return the value that :meth:`to_dict` wrote."""
        value, lower, upper = (
            None if data[k] is None else float(data[k]) for k in ("value", "lower", "upper")
        )
        rest = (data[k] for k in ("kind", "unit", "confidence", "witness", "note"))
        return cls(value, lower, upper, *rest)


def _encode(number: float | None) -> float | str | None:
    if number is None or math.isfinite(number):
        return number
    return "inf" if number > 0 else "-inf"


def format_number(number: float | None, toward: Literal["nearest", "up", "down"] = "nearest") -> str:
    """Return a number in four significant digits, integers in full.

    Ends of bounds and intervals are rounded outward (``toward``), so that what is
    printed never claims more than what was computed.
    """
    if number is None:
        return "?"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    if number == int(number) and abs(number) < 1e7:
        return f"{int(number):,}"
    rounding = {"nearest": ROUND_HALF_EVEN, "up": ROUND_CEILING, "down": ROUND_FLOOR}[toward]
    size = abs(number)
    digits = 3 if size < 1e-3 or size >= 1e5 else 4
    rounded = Context(prec=digits, rounding=rounding).create_decimal(repr(number))
    return f"{float(rounded):.{digits}g}"


def format_confidence(confidence: float) -> str:
    """Return "95 %" or, close to certainty, "1 - 1e-09"."""
    if confidence > 0.9999:
        return f"1 - {1 - confidence:.0e}"
    return f"{100 * confidence:.4g} %"


def relative_gap(objective: float, dual_bound: float) -> float:
    """Return (objective - dual_bound) / |objective|, 0 for 0/0, never negative."""
    difference = max(objective - dual_bound, 0.0)
    return difference / abs(objective) if objective else (math.inf if difference else 0.0)
