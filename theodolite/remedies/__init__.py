"""Changes that might help, each tried on a copy of the model and measured; ``ALL`` is the list."""

from __future__ import annotations

import time
from collections.abc import Iterator

from theodolite.remedies.anti_alias import AntiAlias
from theodolite.remedies.base import Change, Outcome, Remedy
from theodolite.remedies.remove_units import RemoveUnits
from theodolite.remedies.resolve_head import ResolveHead
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.subject import Subject

__all__ = [
    "ALL",
    "BY_NAME",
    "AntiAlias",
    "Change",
    "Outcome",
    "Remedy",
    "RemoveUnits",
    "ResolveHead",
    "attempts",
    "try_all",
]

ALL: list[type[Remedy]] = [ResolveHead, RemoveUnits, AntiAlias]

BY_NAME: dict[str, type[Remedy]] = {remedy.name: remedy for remedy in ALL}

SHOWN = 3


def attempts(
    subject: Subject, *, budget: float | None = None
) -> Iterator[tuple[type[Remedy], Outcome | str | Exception]]:
    """Try one remedy after another, yielding each as it is done.

    Parameters
    ----------
    subject : Subject
        Model and data; the test data are not looked at.
    budget : float, optional
        Seconds after which no other remedy is begun.

    Yields
    ------
    remedy : type of Remedy
    outcome : Outcome, str or Exception
        A sentence where there was nothing to do, or no time; what a remedy raised that
        crashed, so that those after it are tried all the same.
    """
    start = time.monotonic()
    kept = subject.deadline
    subject.deadline = None if budget is None else start + budget
    try:
        for remedy in ALL:
            if budget is not None and time.monotonic() - start >= budget:
                yield remedy, f"the budget of {budget:g} s was spent before it began"
                continue
            try:
                result: Outcome | str | Exception = remedy().attempt(subject)
            except NotApplicable as outcome:
                result = str(outcome)
            except Exception as error:
                result = error
            yield remedy, result
    finally:
        subject.deadline = kept


def try_all(subject: Subject, *, budget: float | None = None) -> list[Outcome]:
    """Return the remedies that helped, best first, at most three; an empty list when none did.

    Parameters
    ----------
    subject : Subject
        Model and data; the test data are not looked at.
    budget : float, optional
        Seconds after which no other remedy is begun.

    Raises
    ------
    Exception
        The one that a remedy raised, if one crashed.
    """
    helped = []
    for _, outcome in attempts(subject, budget=budget):
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, Outcome) and outcome.helped:
            helped.append(outcome)
    return sorted(helped, key=lambda outcome: -outcome.benefit)[:SHOWN]
