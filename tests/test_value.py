"""The number type says no more than was shown, also when it is printed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theodolite.value import Value, format_number

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Value.bound(upper=0.05204999, confidence=0.95), "<= 0.05205 (95 %)"),
        (lambda: Value.bound(0.41239, 0.62991), "in [0.4123, 0.63]"),
        (lambda: Value.bound(lower=123456.7), ">= 1.23e+05"),
        (lambda: Value.estimate(0.33, 0.3, 0.36), "~ 0.33 [0.3, 0.36] (95 %)"),
        (lambda: Value.exact(12938, unit="parameters"), "= 12,938 parameters"),
        (lambda: Value.score(1e-9), "score 1e-09"),
        (lambda: Value.absent({"layer": "4"}), "none"),
        (lambda: Value.bound(upper=math.inf), "<= inf"),
    ],
)
def test_text(make, text):
    assert str(make()) == text


@pytest.mark.parametrize(
    "arguments",
    [
        {"value": 1.0, "upper": 2.0, "kind": "bound"},
        {"kind": "bound"},
        {"lower": 2.0, "upper": 1.0, "kind": "bound"},
        {"value": 1.0, "kind": "estimate"},
        {"value": 1.0, "lower": 0.0, "upper": 2.0, "kind": "estimate"},
        {"value": 1.0, "lower": 0.0, "kind": "exact"},
        {"kind": "exact"},
        {"value": math.nan, "kind": "exact"},
        {"value": 1.0, "kind": "guess"},
        {"value": 1.0, "kind": "score", "confidence": 0.5},
        {"lower": 1.0, "kind": "bound", "confidence": 0.0},
    ],
)
def test_contradictions_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        Value(**arguments)


@given(numbers)
def test_ends_are_printed_outward(number):
    assert float(format_number(number, "up").replace(",", "")) >= number
    assert float(format_number(number, "down").replace(",", "")) <= number


@given(numbers, numbers, st.floats(0.01, 0.99))
def test_json_round_trip(a, b, confidence):
    low, high = sorted((a, b))
    for value in (
        Value.exact(a, witness=["x", 1]),
        Value.bound(low, high, confidence=confidence, note="n"),
        Value.bound(lower=-math.inf),
        Value.estimate(a, low, high, confidence=confidence),
        Value.score(b, unit="nats"),
    ):
        assert Value.from_dict(json.loads(json.dumps(value.to_dict(), allow_nan=False))) == value
    assert Value.exact(a).low == Value.exact(a).high == a
    assert Value.bound(low).high == math.inf
