"""``theodolite certify``: the optimality gap of one network, reported as a mixed-integer solver does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from theodolite.auditing import run
from theodolite.auditing.report import Report
from theodolite.auditing.text import WIDTH, Screen, wrap
from theodolite.theorems.optimality.network_certificate import NetworkCertificate
from theodolite.theorems.subject import InputError
from theodolite.value import Value, format_confidence, format_number

if TYPE_CHECKING:
    from torch import nn

SECONDS = 60.0
_LABEL = 16
_FAMILIES = {
    "linear": "two linear layers",
    "relu": "ReLU network",
    "leaky_relu": "leaky ReLU network",
    "gated": "gated ReLU network",
    "conv": "pooled convolutional ReLU network",
}
_LOSSES = {"cross_entropy": "cross-entropy", "mse": "mean squared error"}
_VERDICTS = {
    "closed": "closed: optimal up to the gap",
    "improvable": "improvable: a better network of this family was found",
    "undecided": "undecided: neither was shown",
}


def certify(
    model: nn.Module,
    data: Any,
    *,
    weight_decay: float,
    loss: str | None = None,
    budget: float | None = None,
    device: str | None = None,
    seed: int = 0,
    name: str = "",
    progress: run.Progress | None = None,
) -> Report:
    """Return a report with the network certificate alone.

    Parameters
    ----------
    model : nn.Module
        A two-layer network: linear, ReLU or with fixed gates; or convolution, ReLU, average pooling, linear.
    data : as for :func:`theodolite.audit`
        Its training data are what the objective is of.
    weight_decay : float
        Coefficient w > 0 of the objective mean loss + w/2 ||all trained parameters||^2.
    loss : {"cross_entropy", "mse"}, optional
    budget : float, optional
        Seconds for the polar and setting it up; 60 when None.
    device, seed, name, progress
        As for :func:`theodolite.auditing.run.conduct`.

    Returns
    -------
    Report
        With one finding, OPT006, which has values, or none when it was interrupted before there were any.

    Raises
    ------
    InputError
        If the network is not of such a family, or the data cannot be used: one sentence.
    """
    seconds = SECONDS if budget is None else budget
    theorem = NetworkCertificate(seconds, keep=True)
    report = run.conduct(
        model,
        data,
        theorems=[(theorem, "")],
        loss=loss,
        weight_decay=weight_decay,
        remedies=False,
        device=device,
        seed=seed,
        name=name,
        progress=progress,
    )
    finding = report[theorem.code]
    if finding.status == "failed":
        raise RuntimeError(finding.traceback)
    if finding.status == "not applicable":
        raise InputError(f"model: cannot be certified: {finding.reason}")
    return dataclasses.replace(report, complete=report.complete and not theorem.interrupted)


def render(report: Report) -> Screen:
    """Return the screen of a certificate, at most 80 columns wide.

    Parameters
    ----------
    report : Report
        As :func:`certify` returns it, with values.
    """
    finding = report[NetworkCertificate.code]
    gap, objective, bound = (finding.values[name] for name in ("gap", "objective", "dual_bound"))
    polar, width = finding.values["polar_ratio"], finding.values["width"]
    assert objective.value is not None
    assert width.value is not None
    model, data = report.model, report.data
    family = (
        _FAMILIES[gap.witness["family"]]
        if gap.witness["depth"] == 2
        else f"{gap.witness['depth']} linear layers"
    )
    inputs = " x ".join(f"{size:,}" for size in data["shape"])
    above = "  above 1 one more unit helps" if gap.witness["depth"] == 2 else "  lambda: a chord of the decay"
    screen = Screen()
    units = "filters" if gap.witness["family"] == "conv" else "hidden units"
    screen.paragraph(
        f"{model['name']} · {family}, {inputs} inputs, {int(width.value):,} {units}, {model['outputs']} outputs",
        style="bold",
    )
    screen.paragraph(
        f"{data['name']} · {data['n_train']:,} samples · {_LOSSES[model['loss']]} + "
        f"{model['weight_decay']:g}/2 ||parameters||^2 · seed {report.seed} · {report.seconds:.1f}\u00a0s"
    )
    screen.add()
    _row(screen, "objective", format_number(objective.value))
    _row(
        screen, "lower bound", f"{format_number(bound.low, 'down')}  no network of this family, of any width"
    )
    _row(screen, "gap", f"{_interval(gap, 100.0)} %", "bold")
    _row(screen, "polar / lambda", f"{_interval(polar)}" + above)
    _row(screen, "verdict", _VERDICTS[gap.witness["verdict"]], "bold")
    _row(screen, "confidence", "certain" if gap.confidence == 1.0 else format_confidence(gap.confidence))
    _row(screen, "holds if", "the weight decay was coupled (SGD's, not AdamW's)")
    screen.add()
    screen.paragraph(finding.advice)
    if gap.witness["verdict"] != "closed":
        screen.paragraph(_what_would_help(polar))
    return screen


def _what_would_help(polar: Value) -> str:
    if polar.high - polar.low < 0.01 * polar.high:
        return (
            "What would help: further training, with more units. The polar is known, so that the gap is the "
            "network's own distance from the optimum, or from a stationary point."
        )
    bound = polar.note.rpartition("upper end: ")[2].removesuffix(", rounding enclosed")
    return (
        "What would help a narrower gap: further training, a larger --budget or weight decay, fewer input "
        f"dimensions. The polar's upper end comes from the {bound}."
    )


def _interval(value: Value, factor: float = 1.0) -> str:
    low, high = format_number(factor * value.low, "down"), format_number(factor * value.high, "up")
    return f"in [{low}, {high}]"


def _row(screen: Screen, label: str, text: str, style: str = "") -> None:
    for i, line in enumerate(wrap(text, WIDTH - _LABEL)):
        screen.lines.append([((label if i == 0 else "").ljust(_LABEL), "dim"), (line, style)])
