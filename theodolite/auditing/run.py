"""``theodolite.audit``: the function behind the command."""

from __future__ import annotations

import contextlib
import difflib
import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from theodolite.auditing import data as auditing_data
from theodolite.auditing import remedies as auditing_remedies
from theodolite.auditing.report import Report, describe_data, describe_environment, describe_model
from theodolite.theorems.base import Finding, NotApplicable, Theorem, make_finding
from theodolite.theorems.base import run as run_theorems
from theodolite.theorems.subject import InputError, Subject

if TYPE_CHECKING:
    from torch import nn

    from theodolite.theorems.subject import LossFunction


class Progress:
    """What is told about an audit while it runs; this one is silent."""

    def plan(self, steps: int) -> None:
        """Announce the number of steps."""

    def step(self, title: str) -> None:
        """Announce that a step begins."""

    def within(self, done: int, total: int) -> None:
        """Tell how far the step is."""


def audit(
    model: nn.Module,
    data: Any,
    *,
    loss: str | LossFunction | None = None,
    weight_decay: float | None = None,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    extra: Sequence[Theorem | type[Theorem]] = (),
    remedies: bool = True,
    budget: float | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    image_shape: Sequence[int] | None = None,
) -> Report:
    """Check and compute every theorem on a model and its data.

    Parameters
    ----------
    model : nn.Module
        Maps a batch (n, ...) to (n, k).  It is copied, never changed; the copy is
        audited in evaluation mode.
    data : (X, y), mapping, Dataset, DataLoader, str or Path
        A bare pair counts as training data; give {"train": ..., "test": ...} for
        bounds on the error on new data.  Also "digits" and paths of .npz or .csv files.
    loss : {"cross_entropy", "mse"} or function(output, target) -> mean loss, optional
        Guessed from the targets when None: integers mean cross-entropy.
    weight_decay : float, optional
        Coefficient w of the training objective mean loss + w/2 * ||parameters||^2;
        None means unknown.
    only, skip : codes, optional
        Run these theorems alone; leave these out.  Theorems that train networks run
        only when named in ``only``.
    extra : sequence of Theorem
        Your own theorems, run after the others.
    remedies : bool
        Whether to try changes on a copy of the model.
    budget : float, optional
        Seconds after which nothing new is begun.
    device : str or torch.device, optional
        The model's own by default.
    seed : int
        Every random draw follows from it.
    image_shape : tuple of int, optional
        (channels, height, width) or (height, width), when the inputs are flattened
        images; known for "digits".

    Returns
    -------
    Report

    Raises
    ------
    InputError
        What was given cannot be audited: one sentence that names the argument, what
        was expected and what came.
    """
    return conduct(
        model,
        data,
        loss=loss,
        weight_decay=weight_decay,
        theorems=choose_theorems(only, skip, extra),
        remedies=remedies,
        budget=budget,
        device=device,
        seed=seed,
        image_shape=image_shape,
    )


def conduct(
    model: nn.Module,
    data: Any,
    *,
    theorems: Sequence[tuple[Theorem, str]],
    loss: str | LossFunction | None = None,
    weight_decay: float | None = None,
    remedies: bool = True,
    budget: float | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    image_shape: Sequence[int] | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> Report:
    """Audit with theorems that were chosen already, telling about the progress.

    Parameters are those of :func:`audit`, and:

    Parameters
    ----------
    theorems : sequence of (theorem, reason)
        As :func:`choose_theorems` returns them; those with a reason are not run.
    name : str
        Of the model, for the report.
    progress : Progress, optional
        Told about each step.
    """
    start = time.perf_counter()
    progress = progress or Progress()
    check_budget(budget)
    check_seed(seed)
    if device is not None:
        check_device(device)
    loaded = auditing_data.load(data, seed=seed)
    if isinstance(model, torch.nn.Module):
        with auditing_data.preserved_random_state():  # a forward may draw
            loaded = loaded.shaped_for(model)
    subject = Subject(
        model,
        *loaded.train,
        test=loaded.test,
        loss=loss,
        weight_decay=weight_decay,
        device=device,
        seed=seed,
        image_shape=loaded.image_shape if image_shape is None else image_shape,
        name=name,
        data_name=loaded.name,
    )
    subject.progress = progress.within
    progress.step("running the model on the data")
    with subject.preserved():
        for split in subject.data:
            with contextlib.suppress(NotApplicable):  # outputs that are not finite: the findings say so
                subject.logits(split)
    chosen = [theorem for theorem, reason in theorems if not reason]
    progress.plan(len(chosen) + remedies)
    found, complete = run_theorems(
        chosen,
        subject,
        budget=budget,
        progress=lambda theorem, done, total: progress.step(f"{theorem.code} {theorem.title}"),
    )
    findings = _in_order(theorems, found)
    attempts: list[auditing_remedies.Attempt] | None = [] if remedies else None
    if remedies and complete:
        progress.step("remedies")
        left = None if budget is None else max(0.0, budget - (time.perf_counter() - start))
        attempts, complete = auditing_remedies.try_remedies(subject, budget=left, progress=progress.step)
    return Report(
        findings=findings,
        attempts=attempts,
        model=describe_model(subject),
        data=describe_data(subject),
        seed=seed,
        complete=complete,
        notes=[*loaded.notes, *subject.notes],
        environment=describe_environment(subject.device),
        seconds=time.perf_counter() - start,
    )


def _in_order(theorems: Sequence[tuple[Theorem, str]], found: list[Finding]) -> list[Finding]:
    """Put the findings of the theorems that ran between those of the others."""
    ran = iter(found)
    return [
        make_finding(theorem, "skipped", reason=reason) if reason else next(ran)
        for theorem, reason in theorems
    ]


def choose_theorems(
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    extra: Sequence[Theorem | type[Theorem]] = (),
) -> list[tuple[Theorem, str]]:
    """Return the theorems of an audit, by chapter, each with the reason why it is not run, or "".

    Parameters
    ----------
    only, skip : codes, optional
        One string may hold several, separated by commas.
    extra : sequence of Theorem or its classes
        Beside theodolite's own.

    Raises
    ------
    InputError
        If a code is unknown, or occurs twice among the theorems.
    """
    from theodolite.theorems import ALL

    known: dict[str, Theorem] = {}
    for item in [*ALL, *extra]:
        theorem = item() if isinstance(item, type) else item
        if not isinstance(theorem, Theorem):
            raise InputError(f"extra: expected theorems, got {type(theorem).__name__}")
        if theorem.code in known:
            raise InputError(f"extra: the code {theorem.code} is taken by '{known[theorem.code].title}'")
        known[theorem.code] = theorem
    wanted = None if only is None else codes("only", only, known)
    unwanted = set() if skip is None else codes("skip", skip, known)
    if wanted is not None and not wanted - unwanted:
        raise InputError("only, skip: together they leave no theorem to run")
    chapters = list(dict.fromkeys(theorem.chapter for theorem in known.values()))
    chosen = []
    for code, theorem in sorted(known.items(), key=lambda item: chapters.index(item[1].chapter)):
        if code in unwanted or (wanted is not None and code not in wanted):
            continue
        costly = theorem.cost == "training" and wanted is None
        chosen.append(
            (theorem, f"it trains networks, so it runs only when asked for: only {code}" if costly else "")
        )
    return chosen


def codes(argument: str, given: str | Iterable[str], known: Iterable[str]) -> set[str]:
    """Return the codes in one or several strings, refusing one that no theorem has."""
    known = list(known)
    parts = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{argument}: expected codes such as 'GEN003', got {given!r}")
    found = {code for part in parts for code in part.replace(",", " ").split()}
    if not found:
        raise InputError(f"{argument}: expected at least one code, got none")
    for code in sorted(found):
        if code not in known:
            raise InputError(f"{argument}: {unknown_code(code, known)}")
    return found


def unknown_code(code: str, known: Sequence[str]) -> str:
    """Return the sentence about a code that no theorem has."""
    near = difflib.get_close_matches(code.upper(), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "theodolite list shows the codes"
    return f"there is no finding {code!r}; {hint}"


def check_budget(budget: float | None) -> None:
    """Refuse a budget that is not a positive number of seconds."""
    if budget is None:
        return
    if (
        isinstance(budget, bool)
        or not isinstance(budget, (int, float))
        or not math.isfinite(budget)
        or budget <= 0
    ):
        raise InputError(f"budget: expected a positive number of seconds, got {budget!r}")


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer in [0, 2^32)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed: expected an integer from 0 to 4294967295, got {seed!r}")


def check_device(device: str | torch.device) -> torch.device:
    """Return a device on which tensors really can be computed; refuse any other."""
    try:
        float(torch.ones(1, device=device).sum())
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise InputError(
            f"device: expected a device present on this machine, got {str(device)!r} ({reason})"
        ) from error
    return torch.device(device)
