"""Remedies in an audit: tried one after another, none of them able to lose the report."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theodolite.remedies import Outcome
    from theodolite.theorems.subject import Subject

SHOWN = 3


@dataclass(frozen=True)
class Attempt:
    """One remedy with what came of it.

    Attributes
    ----------
    remedy, title : str
        Its name and title.
    outcome : Outcome or None
        The change with its measured effect.
    reason : str
        Why there is no outcome, "" otherwise.
    traceback : str
        Of a remedy that crashed.
    """

    remedy: str
    title: str
    outcome: Outcome | None = None
    reason: str = ""
    traceback: str = ""

    @property
    def helped(self) -> bool:
        """Whether the measurement showed that it helps."""
        return self.outcome is not None and self.outcome.helped

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON report."""
        found = {"remedy": self.remedy, "title": self.title, "helped": self.helped, "reason": self.reason}
        if self.outcome is not None:
            found |= self.outcome.to_dict()
        return found | ({"traceback": self.traceback} if self.traceback else {})

    @property
    def sentence(self) -> str:
        """What was done and measured, or why nothing was."""
        if self.outcome is None:
            return f"{self.title}: {self.reason}"
        return self.outcome.description + ("" if self.helped else " (not shown to help)")


def try_remedies(
    subject: Subject, *, budget: float | None, progress: Callable[[str], None]
) -> tuple[list[Attempt], bool]:
    """Try every remedy on a copy of the model.

    Parameters
    ----------
    subject : Subject
        Model and data; the test data are not looked at.
    budget : float or None
        Seconds after which no other is begun.
    progress : function(title)
        Called after each.

    Returns
    -------
    attempts : list of Attempt
        Those that helped first, the best of them at the top.
    complete : bool
        False when the user interrupted.
    """
    from theodolite.remedies import Outcome, attempts

    done: list[Attempt] = []
    complete = True
    try:
        for remedy, outcome in attempts(subject, budget=budget):
            if isinstance(outcome, Outcome):
                done.append(Attempt(remedy.name, remedy.title, outcome))
            elif isinstance(outcome, str):
                done.append(Attempt(remedy.name, remedy.title, reason=outcome))
            else:  # as for theorems: a crash is reported, with its traceback, and loses nothing
                reason = f"failed ({type(outcome).__name__}: {outcome})"
                lines = "".join(traceback.format_exception(outcome))
                done.append(Attempt(remedy.name, remedy.title, reason=reason, traceback=lines))
            progress(remedy.title)
    except KeyboardInterrupt:
        complete = False
    done.sort(
        key=lambda attempt: -attempt.outcome.benefit if attempt.helped and attempt.outcome else float("inf")
    )
    return done, complete
