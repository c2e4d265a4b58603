"""Numeric probes of positive homogeneity: they can refute a degree, never prove one."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from theodolite.value import format_number

# Powers of two scale floating-point numbers exactly: a homogeneous network then deviates by rounding alone.
ALPHAS = (2.0, 0.5, 4.0, 0.25)
# the given variables, then random ones of the same size and of a size at which limits are met
SIZES = (0.0, 1.0, 30.0)
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass
class Probe:
    """What evaluations at scaled variables showed.

    Attributes
    ----------
    nominal : float or None
        The degree that a reader expects; the witness shows that it does not hold.
    degree : float or None
        The one degree that fits every evaluation, when there is one.
    witness : dict or None
        The refutation: ``alpha``, ``ratio`` = f(alpha w) / f(w), ``expected`` = alpha^nominal, ``sample``, ``output``.
    sentence : str
        The refutation in words.
    error : float
        Largest deviation from ``degree`` relative to the largest output; infinite when nothing was evaluated.
    tolerance : float
        Deviation that counts as a refutation.
    trouble : str
        Why nothing could be evaluated.
    """

    nominal: float | None = None
    degree: float | None = None
    witness: dict[str, Any] | None = None
    sentence: str = ""
    error: float = math.inf
    tolerance: float = _TOLERANCE[torch.float64]
    trouble: str = "the output is zero or not finite at every probe"

    def contradicts(self, degree: float) -> bool:
        """Whether what was seen excludes a degree."""
        return self.witness is not None or (self.degree is not None and abs(self.degree - degree) > 1e-6)


def scaled_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters, or all of them when none is trainable."""
    parameters = list(model.parameters())
    return [p for p in parameters if p.requires_grad] or parameters


def cuda_devices(x: Tensor) -> list[torch.device]:
    """Return the devices whose random state an evaluation may touch beside the CPU's."""
    return [x.device] if x.device.type == "cuda" else []


def probe(model: nn.Module, x: Tensor, wrt: str, nominal: float | None) -> Probe:
    """Evaluate a copy of the model, in float64 if it can be, at scaled parameters or inputs.

    Parameters
    ----------
    model : nn.Module
        It is not changed.
    x : Tensor, shape (n, ...)
        Example batch.
    wrt : {"parameters", "input"}
        What is scaled.
    nominal : float or None
        The degree that a reader expects.

    Returns
    -------
    Probe
    """
    result = Probe(nominal)
    for dtype in (torch.float64, None):
        try:
            worker, rows = copy.deepcopy(model), x.detach()
            if dtype is not None:
                worker = worker.to(dtype)
                rows = rows.to(dtype) if rows.is_floating_point() else rows
            floats = [p.dtype for p in worker.parameters() if p.is_floating_point()]
            result.tolerance = _TOLERANCE.get((floats or [rows.dtype])[0], _TOLERANCE[torch.float32])
            _probe(result, worker, rows, wrt)
            return result
        except (
            Exception
        ) as error:  # whatever a stranger's forward raises in another precision; the reason is kept
            result.trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    return result


def _probe(result: Probe, worker: nn.Module, x: Tensor, wrt: str) -> None:
    parameters = scaled_parameters(worker) if wrt == "parameters" else []
    given = [p.detach().clone() for p in parameters] if wrt == "parameters" else [x]
    for trial, size in enumerate(SIZES):
        generator = torch.Generator().manual_seed(trial)
        base = [_drawn(t, size, generator) for t in given]
        outputs = {}
        for alpha in (1.0, *ALPHAS):
            values = [alpha * t for t in base]
            outputs[alpha] = _output(worker, x if wrt == "parameters" else values[0], parameters, values)
        _compare(result, outputs, "w" if wrt == "parameters" else "x", drawn=size > 0)
        if result.witness is not None:
            return


def _drawn(tensor: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Return normal numbers of ``size`` times the tensor's root mean square, or the tensor itself for size 0."""
    if size == 0.0 or not tensor.is_floating_point():
        return tensor
    spread = float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return noise.to(tensor) * (size * (spread or 0.1))


def _output(worker: nn.Module, x: Tensor, parameters: list[nn.Parameter], values: list[Tensor]) -> Tensor:
    """Return the output at other parameters; buffers and random draws are the same at every call."""
    buffers = {name: b.detach().clone() for name, b in worker.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices(x)):
        torch.manual_seed(0)
        for parameter, value in zip(parameters, values, strict=False):
            parameter.copy_(value)
        output = worker(x)
        for name, buffer in worker.named_buffers():
            buffer.copy_(buffers[name])
    if not isinstance(output, Tensor):
        raise TypeError(f"the output is a {type(output).__name__}, not one tensor")
    return (torch.view_as_real(output) if output.is_complex() else output).to(torch.float64).cpu()


def _compare(result: Probe, outputs: dict[float, Tensor], variable: str, *, drawn: bool) -> None:
    first = outputs[1.0].flatten()
    alphas = [a for a in ALPHAS if bool(torch.isfinite(outputs[a]).all())]
    if not alphas or not first.numel() or not bool(torch.isfinite(first).all()):
        return
    at = int(first.abs().argmax())
    scale = float(first[at].abs())
    if scale == 0.0:
        moved = next((a for a in alphas if bool((outputs[a] != 0).any())), None)
        if moved is not None:
            _refute(result, outputs, moved, int(outputs[moved].abs().argmax()), 0.0, variable, drawn)
        return
    ratio = float(outputs[alphas[0]].flatten()[at] / first[at])
    best = math.log(ratio) / math.log(alphas[0]) if ratio > 0.0 else None
    if best is not None and result.nominal is not None and abs(best - result.nominal) < 1e-6:
        best = result.nominal
    fits = result.degree if result.degree is not None else best
    error = math.inf
    if fits is not None:
        error = max(float(_deviation(outputs, a, fits).max()) / scale for a in alphas)
    if fits is not None and error <= result.tolerance:
        result.degree = fits
        result.error = error if math.isinf(result.error) else max(error, result.error)
        return
    result.error = error
    expected = result.nominal if result.nominal is not None else (fits or 0.0)
    alpha, at = _clearest(outputs, alphas, expected, scale, result.tolerance)
    _refute(result, outputs, alpha, at, expected, variable, drawn)


def _deviation(outputs: dict[float, Tensor], alpha: float, degree: float) -> Tensor:
    """Return |f(alpha w) / alpha^p - f(w)| for every entry."""
    return (outputs[alpha] / alpha**degree - outputs[1.0]).flatten().abs()


def _clearest(
    outputs: dict[float, Tensor], alphas: list[float], expected: float, scale: float, tolerance: float
) -> tuple[float, int]:
    """Return the factor (2 if it shows anything) and the entry of the clearest relative violation."""
    first = outputs[1.0].flatten().abs()
    choices = []
    for alpha in alphas:
        relative = torch.where(first >= 0.1 * scale, _deviation(outputs, alpha, expected) / first, -1.0)
        choices.append((alpha, int(relative.argmax()), float(relative.max())))
    chosen = next((c for c in choices if c[2] > tolerance), max(choices, key=lambda c: c[2]))
    return chosen[0], chosen[1]


def _refute(
    result: Probe,
    outputs: dict[float, Tensor],
    alpha: float,
    at: int,
    expected: float,
    variable: str,
    drawn: bool,
) -> None:
    before, after = float(outputs[1.0].flatten()[at]), float(outputs[alpha].flatten()[at])
    width = max(1, outputs[1.0][0].numel())
    factor = alpha**expected
    ratio = after / before if before else None
    result.degree = None
    result.witness = {
        "alpha": alpha, "ratio": ratio, "expected": factor, "sample": at // width, "output": at % width
    }  # fmt: skip
    place = f"at sample {at // width}" + (" and random values" if drawn else "")
    if ratio is None:
        result.sentence = f"f({alpha:g}{variable}) = {format_number(after)} {place}, but f({variable}) = 0"
    else:
        left, right = _distinct(ratio, factor)
        result.sentence = f"f({alpha:g}{variable}) = {left} f({variable}) {place}, not {right} f({variable})"


def _distinct(one: float, two: float) -> tuple[str, str]:
    """Return two numbers with as few digits as tell them apart."""
    for digits in range(3, 17):
        texts = f"{one:.{digits}g}", f"{two:.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return repr(one), repr(two)
