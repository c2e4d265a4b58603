"""What a remedy is, and how its effect is measured: on a copy, paired, never on the test set.

A remedy changes a private copy of the model, learning from 80 % of the training data.  The
other 20 %, drawn with the subject's seed and stratified by class, measure the change: the
same samples before and after, so that each difference is free of the luck of the draw.
The original model was trained on those samples too, which favors *it*, not the remedy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, ClassVar

import torch
from scipy.stats import norm, t
from torch import Tensor, nn

from theodolite.remedies.saving import save_model
from theodolite.theorems.base import NotApplicable
from theodolite.theorems.subject import Subject, deep_copy, margins
from theodolite.value import Value

VALIDATION_SHARE = 0.2
SMALLEST_VALIDATION = 20
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Change:
    """What a remedy made of its copy of the model.

    Attributes
    ----------
    model : nn.Module
        The changed copy, in evaluation mode.
    description : str
        What was done, beginning in lower case: "remove 37 dead units".
    effects : mapping from str to Value
        What the remedy itself knows about its effect.
    same_function : bool
        Whether the function is unchanged by structure, up to rounding.
    """

    model: nn.Module
    description: str
    effects: Mapping[str, Value] = field(default_factory=dict)
    same_function: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """A remedy that was tried, with its measured effect.

    Attributes
    ----------
    remedy, title, description : str
        Name ("resolve-head"), title, and one sentence with the effect.
    model : nn.Module
        The changed copy, in evaluation mode.
    effects : dict from str to Value
        ``loss_before``, ``loss_after``, ``loss_change`` (and ``error_...`` for classes) on the
        validation part, then the remedy's own.
    helped : bool
        Whether the evidence suffices.
    parameters_before, parameters_after : int
        Numbers of parameters.
    note : str
        What to keep in mind.
    """

    remedy: str
    title: str
    description: str
    model: nn.Module
    effects: dict[str, Value]
    helped: bool
    parameters_before: int
    parameters_after: int
    note: str = ""
    example: Tensor | None = None

    @property
    def parameters_saved(self) -> int:
        """How many parameters fewer there are."""
        return self.parameters_before - self.parameters_after

    @property
    def benefit(self) -> float:
        """How much it helped, for ranking only.

        Where label flips are what was to fall: their fall less the rise of the error rate.  Else the
        relative fall of the validation loss plus the share of parameters saved.
        """
        if "flips_change" in self.effects:
            return -sum(self.effects[name].value or 0.0 for name in ("flips_change", "error_change"))
        before, change = self.effects["loss_before"].value, self.effects["loss_change"].value
        fall = -change / abs(before) if before and change is not None else 0.0
        return fall + self.parameters_saved / max(self.parameters_before, 1)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the changed model: ".pt" its state_dict, ".pt2" a program of ``torch.export``.

        Raises
        ------
        theodolite.theorems.subject.InputError
            If the suffix is another one, the file cannot be written or the model not exported.
        """
        save_model(self.model, path, self.example)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for the JSON report."""
        return {
            "remedy": self.remedy,
            "title": self.title,
            "description": self.description,
            "helped": self.helped,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "effects": {name: value.to_dict() for name, value in self.effects.items()},
            "note": self.note,
        }


class Remedy(ABC):
    """One change of a model that might help.

    A subclass sets the class attributes and writes :meth:`change`.

    Attributes
    ----------
    name, title : str
        "resolve-head", "Re-solve the head".
    needs : str
        What must be there for it to be tried, in a few words.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[str] = "nothing in particular"

    @abstractmethod
    def change(self, model: nn.Module, subject: Subject, fit: Tensor) -> Change:
        """Change the model.

        Parameters
        ----------
        model : nn.Module
            A private copy in evaluation mode, to be changed and handed back.
        subject : Subject
            The original with its data.
        fit : Tensor of int64
            The training rows that may be learned from.

        Raises
        ------
        NotApplicable
            If there is nothing to do; its text says why.
        """

    def measure(self, subject: Subject, change: Change, rows: Tensor) -> dict[str, Value]:
        """Return effects on training rows that were not fitted to: loss and error; a subclass may add its own."""
        return measure(subject, change, rows)

    def helped(self, change: Change, effects: Mapping[str, Value]) -> bool:
        """Return whether the evidence suffices: the interval of the loss change lies below zero."""
        return effects["loss_change"].high < 0

    def sentence(self, change: Change, effects: Mapping[str, Value]) -> str:
        """Return what was done, and the error or loss before and after."""
        return _sentence(change, effects)

    def attempt(self, subject: Subject) -> Outcome:
        """Try the remedy on a copy and measure it.

        Raises
        ------
        NotApplicable
            If there is nothing to do or too little data to measure it; the text says why.
        """
        with subject.preserved():
            fit, validation = split_rows(subject)
            change = self.change(deep_copy(subject.model), subject, fit)
            change.model.eval()
            effects = {**self.measure(subject, change, validation), **change.effects}
        before, after = _size(subject.model), _size(change.model)
        return Outcome(
            remedy=self.name,
            title=self.title,
            description=self.sentence(change, effects),
            model=change.model,
            effects=effects,
            helped=self.helped(change, effects),
            parameters_before=before,
            parameters_after=after,
            note=""
            if change.same_function
            else "the original model was trained on the validation samples too, which favors the original",
            example=subject.x[:2].to(subject.device),
        )

    def propose(self, subject: Subject) -> Outcome | None:
        """Try the remedy; None when there is nothing to do."""
        try:
            return self.attempt(subject)
        except NotApplicable:
            return None


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def split_rows(subject: Subject) -> tuple[Tensor, Tensor]:
    """Return the training rows to fit on and those to measure on, in ascending order.

    The 20 % are drawn with the subject's seed, class by class where there are classes; the
    same for every remedy of a subject.

    Raises
    ------
    NotApplicable
        If fewer than 20 rows would be left to measure on.
    """

    def draw() -> tuple[Tensor, Tensor]:
        order = torch.randperm(subject.n, generator=subject.generator("remedies/validation"))
        if subject.classification and subject.y.ndim == 1:
            order = order[subject.y[order].argsort(stable=True)]
        # every fifth row of the order by class: each class gives its fifth, to within one
        stride = round(1 / VALIDATION_SHARE)
        chosen = torch.zeros(subject.n, dtype=torch.bool)
        chosen[order[stride // 2 :: stride]] = True
        return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()

    fit, validation = subject.once("remedies/split", draw)
    if len(validation) < SMALLEST_VALIDATION:
        needed = math.ceil(SMALLEST_VALIDATION / VALIDATION_SHARE)
        raise NotApplicable(
            f"{subject.n} training samples are too few to measure an effect; {needed} are needed"
        )
    return fit, validation


def outputs(subject: Subject, model: nn.Module, rows: Tensor) -> Tensor:
    """Return a model's outputs on some training rows, shape (rows, k)."""
    with torch.no_grad():
        parts = [model(subject.x[part].to(subject.device)).cpu() for part in rows.split(subject.batch_size)]
    return torch.cat(parts)


def measure(subject: Subject, change: Change, rows: Tensor) -> dict[str, Value]:
    """Return loss and error before, after and their paired change on some training rows."""
    y = subject.y[rows]
    before, after = outputs(subject, subject.model, rows), outputs(subject, change.model, rows)
    where = f"{len(rows)} validation samples out of the training data"
    with torch.no_grad():
        losses = [
            subject.per_sample_loss(z.to(subject.device), y.to(subject.device)).double().cpu()
            for z in (before, after)
        ]
    difference = losses[1] - losses[0]
    same = Value.exact(float(difference.mean()), note=f"the same function: rounding only; {where}")
    effects = {
        "loss_before": Value.exact(float(losses[0].mean()), note=f"mean over {where}"),
        "loss_after": Value.exact(float(losses[1].mean()), note=f"mean over {where}"),
        "loss_change": same if change.same_function else mean_difference(difference, where),
    }
    if subject.classification and y.ndim == 1:
        wrong = [margins(z, y) <= 0 for z in (before, after)]
        effects["error_before"] = Value.exact(float(wrong[0].double().mean()), note=f"share of {where}")
        effects["error_after"] = Value.exact(float(wrong[1].double().mean()), note=f"share of {where}")
        if change.same_function and torch.equal(*wrong):
            effects["error_change"] = Value.exact(0.0, note=f"the same function; {where} agree")
        else:
            effects["error_change"] = rate_difference(wrong[0], wrong[1], where)
    return effects


def mean_difference(differences: Tensor, where: str = "") -> Value:
    """Return the mean of paired differences with its 95 % Student interval.

    Parameters
    ----------
    differences : Tensor, shape (m,), m >= 2
        After minus before, sample by sample.
    where : str
        The samples, for the note.
    """
    m = len(differences)
    mean = float(differences.mean())
    half = float(t.ppf(0.5 + CONFIDENCE / 2, m - 1)) * float(differences.std()) / math.sqrt(m)
    note = f"paired differences, Student's t; {where}"
    return Value.estimate(mean, mean - half, mean + half, confidence=CONFIDENCE, note=note)


def rate_difference(before: Tensor, after: Tensor, where: str = "") -> Value:
    """Return the change of a rate on matched pairs with its 95 % interval by Bonett and Price (2012).

    One pair is added to each of the two discordant cells, so that the interval does not
    collapse when there is none.  Its coverage is approximate: 94 % at worst for 40 pairs.

    Parameters
    ----------
    before, after : Tensor of bool, shape (m,)
        Whether each sample is wrong.
    where : str
        The samples, for the note.
    """
    m = len(before)
    better, worse = int((before & ~after).sum()), int((after & ~before).sum())
    n, up, down = m + 2.0, worse + 1.0, better + 1.0
    center = (up - down) / n
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt(up + down - (up - down) ** 2 / n) / n
    note = f"{better} corrected, {worse} spoiled; matched pairs, Bonett-Price interval; {where}"
    low, high = max(center - half, -1.0), min(center + half, 1.0)
    return Value.estimate((worse - better) / m, low, high, confidence=CONFIDENCE, note=note)


def _sentence(change: Change, effects: Mapping[str, Value]) -> str:
    if change.same_function:
        return change.description
    name = "error" if "error_change" in effects else "loss"
    before, after, difference = (effects[f"{name}_{part}"] for part in ("before", "after", "change"))
    scale, unit = (100.0, " %") if name == "error" else (1.0, "")
    half = scale * (difference.high - difference.low) / 2
    numbers = f"{scale * before.low:.3g} -> {scale * after.low:.3g}{unit} (change ±{half:.2g})"
    return f"{change.description}, validation {name} {numbers}"
