"""The report: findings by chapter, remedies, and everything needed to repeat the audit."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import theodolite
from theodolite.auditing.files import write_atomically
from theodolite.auditing.remedies import SHOWN
from theodolite.theorems.base import FINDING_STATUSES, Finding

if TYPE_CHECKING:
    import pandas

    from theodolite.auditing.remedies import Attempt
    from theodolite.remedies import Outcome
    from theodolite.theorems.subject import Subject

SCHEMA = "theodolite-report-1"
SCHEMA_FILE = Path(__file__).parent / "templates" / "report.schema.json"
_LONGEST_WITNESS = 1000


@dataclass(frozen=True)
class Report:
    """What an audit found.

    Attributes
    ----------
    findings : list of Finding
        One a theorem, by chapter.
    attempts : list of Attempt or None
        Every remedy that was tried, those that helped first; None when none was to be tried.
    model, data : dict
        What was audited, in JSON-able words and numbers.
    seed : int
        Every random draw follows from it.
    complete : bool
        False when the audit was interrupted.
    notes : list of str
        What was done to the model and the data on the way.
    environment : dict
        Versions, platform, threads, device.
    seconds : float
        Wall-clock time.
    """

    findings: list[Finding]
    attempts: list[Attempt] | None
    model: dict[str, Any]
    data: dict[str, Any]
    seed: int
    complete: bool = True
    notes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __getitem__(self, code: str) -> Finding:
        """Return the finding with a code; KeyError if there is none."""
        for finding in self.findings:
            if finding.code == code:
                return finding
        codes = ", ".join(finding.code for finding in self.findings)
        raise KeyError(f"{code!r} is not in this report; it has {codes or 'no findings'}")

    @property
    def remedies(self) -> list[Outcome]:
        """Remedies that helped, best first, at most three; each has a ``save(path)``."""
        helped = [attempt.outcome for attempt in self.attempts or () if attempt.outcome and attempt.helped]
        return helped[:SHOWN]

    @property
    def certified(self) -> list[Finding]:
        """Findings whose every number is exact or bounded and whose every hypothesis is proved."""
        return [finding for finding in self.findings if finding.status == "certified"]

    @property
    def chapters(self) -> dict[str, list[Finding]]:
        """Findings by chapter, in the order of the report."""
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.chapter, []).append(finding)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings of each status that occurs."""
        tally = {status: sum(f.status == status for f in self.findings) for status in FINDING_STATUSES}
        return {status: n for status, n in tally.items() if n}

    @property
    def confidence_ledger(self) -> dict[str, Any]:
        """Every delta that a randomized bound spent: all of these bounds hold with probability 1 - total."""
        entries: list[dict[str, Any]] = [
            {"code": finding.code, "name": name, "delta": float(f"{1.0 - value.confidence:.6g}")}
            for finding in self.findings
            for name, value in finding.values.items()
            if value.kind == "bound" and value.confidence < 1.0
        ]
        return {"entries": entries, "total": min(1.0, math.fsum(e["delta"] for e in entries))}

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema that :meth:`to_json` keeps to."""
        loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able dicts and lists."""
        return {
            "schema": SCHEMA,
            "theodolite": theodolite.__version__,
            "model": self.model,
            "data": self.data,
            "seed": self.seed,
            "complete": self.complete,
            "notes": list(self.notes),
            "findings": [_finding(finding) for finding in self.findings],
            "remedies": [jsonable(attempt.to_dict()) for attempt in self.attempts or ()],
            "confidence_ledger": self.confidence_ledger,
            "environment": self.environment,
            "seconds": round(self.seconds, 3),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON and, if a path is given, write it there.

        Parameters
        ----------
        path : str or Path, optional
            Written to a temporary file first, then renamed.

        Returns
        -------
        str
            Strict JSON: infinities are the strings "inf" and "-inf".

        Raises
        ------
        InputError
            If the path cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        if path is not None:
            write_atomically(path, text)
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the report as one self-contained HTML page and, if a path is given, write it there.

        Raises
        ------
        InputError
            If the path cannot be written.
        """
        from theodolite.auditing.html import render

        page = render(self)
        if path is not None:
            write_atomically(path, page)
        return page

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a value (one a finding that has none) as a pandas data frame.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame: needs pandas, which is not installed; pip install pandas") from error
        rows = []
        for finding in self.findings:
            same = {
                "code": finding.code,
                "title": finding.title,
                "chapter": finding.chapter,
                "status": finding.status,
            }
            for name, value in finding.values.items() or [("", None)]:
                numbers = {k: getattr(value, k, None) for k in ("value", "lower", "upper")}
                words = {k: getattr(value, k, "") for k in ("kind", "unit", "note")}
                rest = {"confidence": getattr(value, "confidence", None), "seconds": finding.seconds}
                rows.append({**same, "name": name, **numbers, **words, **rest})
        frame = pd.DataFrame(rows)
        numeric = ["value", "lower", "upper", "confidence"]
        return frame.astype(dict.fromkeys(numeric, "float64")) if rows else frame

    def to_text(self, *, verbose: bool = False) -> str:
        """Return the text screen, at most 80 columns wide.

        Parameters
        ----------
        verbose : bool
            Also say what does not apply and why, and every value's note.
        """
        from theodolite.auditing.text import render

        return render(self, verbose=verbose).plain

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that its styles stay out of a notebook's."""
        from html import escape

        page = escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" title="theodolite report" style="width:100%;height:640px;border:0"></iframe>'


def describe_model(subject: Subject) -> dict[str, Any]:
    """Return the name, size and make of the audited model."""
    parameters = dict(subject.model.named_parameters())
    layers = [m for m in subject.model.modules() if next(m.parameters(recurse=False), None) is not None]
    return {
        "name": subject.name,
        "type": type(subject.model).__name__,
        "parameters": sum(p.numel() for p in parameters.values()),
        "trainable_parameters": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "layers": len(layers),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})),
        "outputs": subject.n_outputs,
        "loss": subject.loss_name,
        "weight_decay": subject.weight_decay,
        "traced": subject.graph.traced,
    }


def describe_data(subject: Subject) -> dict[str, Any]:
    """Return the name, sizes and shape of the data."""
    return {
        "name": subject.data_name,
        "n_train": subject.n,
        "n_test": len(subject.data["test"][0]) if "test" in subject.data else 0,
        "shape": list(subject.x.shape[1:]),
        "dtype": str(subject.x.dtype).removeprefix("torch."),
        "task": "classification" if subject.classification else "regression",
    }


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions and machine, without names of hosts or users."""
    import scipy

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(device)
    return found


def _finding(finding: Finding) -> dict[str, Any]:
    values = {}
    for name, value in finding.values.items():
        values[name] = {**value.to_dict(), "witness": jsonable(value.witness)}
    found = {
        "code": finding.code,
        "title": finding.title,
        "chapter": finding.chapter,
        "status": finding.status,
        "statement": finding.statement,
        "values": values,
        "hypotheses": [jsonable(hypothesis.to_dict()) for hypothesis in finding.hypotheses],
        "reason": finding.reason,
        "advice": finding.advice,
        "reference": finding.reference,
        "seconds": round(finding.seconds, 3),
    }
    return {**found, "traceback": finding.traceback} if finding.traceback else found


def jsonable(item: Any) -> Any:
    """Return an equivalent that strict JSON can hold.

    Long tensors become their shape and first entries; numbers that are not finite
    become the strings "nan", "inf" and "-inf".
    """
    if item is None or isinstance(item, (bool, str)):
        return item
    if isinstance(item, (Tensor, np.ndarray)):
        array = (
            item.detach().cpu().double().numpy()
            if isinstance(item, Tensor) and item.is_floating_point()
            else item
        )
        return _array(np.asarray(array))
    if isinstance(item, (int, np.integer)):
        return int(item)
    if isinstance(item, (float, np.floating)):
        number = float(item)
        return number if math.isfinite(number) else str(number)
    if isinstance(item, np.bool_):
        return bool(item)
    if isinstance(item, Mapping):
        return {str(key): jsonable(value) for key, value in item.items()}
    if isinstance(item, (set, frozenset)):
        return sorted((jsonable(part) for part in item), key=str)
    if isinstance(item, Sequence):
        return [jsonable(part) for part in item]
    if is_dataclass(item) and not isinstance(item, type):
        return {f.name: jsonable(getattr(item, f.name)) for f in fields(item)}
    if isinstance(item, (torch.dtype, torch.device, Path, complex)):
        return str(item)
    return type(item).__name__


def _array(array: np.ndarray[Any, Any]) -> Any:
    if array.size <= _LONGEST_WITNESS:
        return jsonable(array.tolist())
    return {"shape": list(array.shape), "first": jsonable(array.reshape(-1)[:10].tolist())}
