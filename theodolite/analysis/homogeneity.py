"""Positive homogeneity of a module, in its parameters or in its input.

A function f is positively homogeneous of degree p when f(a w) = a^p f(w) for every
a > 0.  The degree is proved by rules over the traced graph
(:mod:`theodolite.analysis.homogeneity_rules`).  Numeric probes
(:mod:`theodolite.analysis.homogeneity_probes`) can refute it, by a number a and a
sample at which no degree fits; they never prove it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from theodolite.analysis.graph import Graph, trace
from theodolite.analysis.homogeneity_probes import Probe, cuda_devices, probe, scaled_parameters
from theodolite.analysis.homogeneity_rules import Interpreter
from theodolite.analysis.scaling import CONSTANT, Fault, Scaling
from theodolite.value import Value

Variables = Literal["parameters", "input"]
# modules that break homogeneity in general: named as suspects when a forward cannot be traced
_SUSPECTS = (
    nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softmax,
    nn.LogSoftmax, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.GLU, nn.PReLU, nn.RNNBase, nn.RNNCellBase,
    nn.MultiheadAttention, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.LocalResponseNorm,
)  # fmt: skip


@dataclass(frozen=True)
class Homogeneity:
    """What is known about a module's degree of positive homogeneity.

    Attributes
    ----------
    degree : float or None
        Proved when ``proved``; otherwise the one degree that agrees with all probes.
    proved, refuted : bool
        At most one is true; neither when the question is open.
    witness : dict or None
        ``layer`` and ``layer_type`` of the first layer for which no rule gives a degree, ``why``, and
        whether it is ``final`` (no parameters after it); when refuted also
        ``alpha``, ``ratio`` (f(alpha w) / f(w)), ``expected``, ``sample``, ``output``.
    reason : str
        One sentence for the report.
    probe_error : float
        Largest deviation of a probe from ``degree``, relative to the largest output; infinite without probes.
    tolerance : float
        What ``probe_error`` is held against.
    """

    degree: float | None
    proved: bool
    refuted: bool
    witness: dict[str, Any] | None
    reason: str
    probe_error: float
    tolerance: float

    def to_value(self) -> Value:
        """Return the degree as a number with its claim, see :func:`degree`."""
        if self.proved:
            return Value.exact(self.degree or 0.0, note=self.reason)
        witness = self.witness or {"undecided": self.reason}
        if self.refuted:
            return Value.absent(witness, note=self.reason)
        return Value(value=self.degree, kind="score", witness=witness, note=self.reason)


def degree(module: nn.Module, input: Tensor, wrt: Variables = "parameters", *, probes: bool = True) -> Value:
    """Return the degree of positive homogeneity of a module, in the mode that it is in.

    Parameters
    ----------
    module : nn.Module
        Maps one tensor to one tensor.  It is not changed.
    input : Tensor, shape (n, ...)
        Example batch: it is traced and probed.
    wrt : {"parameters", "input"}
        Scale the trainable parameters jointly (all of them when none is trainable;
        frozen ones and buffers are constants), or the input.
    probes : bool
        Whether to look for a numeric refutation.

    Returns
    -------
    Value
        Exact when the rules prove it.  When it is refuted no degree exists: the value
        is None and the witness names the layer, the factor and the sample.  A score
        when the question stays open: then the value, if any, is the one degree that
        agrees with the probes, which proves nothing.

    Raises
    ------
    ValueError
        If ``wrt`` is neither of the two, or the module does not return one tensor.

    References
    ----------
    Haeffele and Vidal, "Global optimality in tensor factorization, deep learning, and
    beyond", 2015.
    """
    return analyse(module, input, wrt=wrt, probes=probes).to_value()


def analyse(
    model: nn.Module, x: Tensor, *, wrt: str, graph: Graph | None = None, probes: bool = True
) -> Homogeneity:
    """Return all that is known about the degree of a module.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is analyzed.  It is not changed.
    x : Tensor, shape (n, ...)
        Example batch.
    wrt : {"parameters", "input"}
        What is scaled, as for :func:`degree`.
    graph : Graph, optional
        The model's graph, when it has been traced already.
    probes : bool
        Whether to look for a numeric refutation.

    Returns
    -------
    Homogeneity

    Raises
    ------
    ValueError
        If ``wrt`` is neither of the two, or the model does not return one tensor.
    """
    if wrt not in ("parameters", "input"):
        raise ValueError(f"wrt: expected 'parameters' or 'input', got {wrt!r}")
    if wrt == "input" and not (x.is_floating_point() or x.is_complex()):
        reason = f"the inputs have dtype {x.dtype}, and integers cannot be scaled"
        return Homogeneity(None, False, False, None, reason, math.inf, 0.0)
    graph = trace(model, x) if graph is None else graph
    variables = {id(p) for p in scaled_parameters(model)} if wrt == "parameters" else set()
    source = Scaling(1.0) if wrt == "input" else CONSTANT
    if graph.output is not None:
        found, how = Interpreter(graph, variables, source).run()[graph.output], "the rules of the graph"
    else:
        found, how = _by_modules(model, x, variables, source, graph.reason)
    nominal = found.degree if graph.traced or found.fault is None else None
    final = found.fault is not None and graph.traced and _is_final(graph, found.fault)
    return _conclude(
        found, how, final, probe(model, x, wrt, nominal) if probes else Probe(trouble="probes are off")
    )


def _is_final(graph: Graph, fault: Fault) -> bool:
    """Whether no parameter is used after the fault."""
    return not any(n.op == "parameter" for node in graph.nodes[fault.order + 1 :] for n in node.inputs)


def _conclude(found: Scaling, how: str, final: bool, probed: Probe) -> Homogeneity:
    fault, error, tolerance = found.fault, probed.error, probed.tolerance
    if fault is None:
        if probed.contradicts(found.degree):
            reason = f"{how} give degree {found.degree:g}, but a probe deviates from it by {error:.1e}"
            return Homogeneity(None, False, False, probed.witness, reason, error, tolerance)
        shown = "the output is zero" if found.free else f"degree {found.degree:g}"
        return Homogeneity(found.degree, True, False, None, f"{shown} by {how}", error, tolerance)
    layer = {"layer": fault.layer, "layer_type": fault.layer_type, "why": fault.why, "final": final}
    if probed.witness is not None:
        reason = f"{fault.where} {fault.why}: {probed.sentence}"
        return Homogeneity(None, False, True, {**layer, **probed.witness}, reason, error, tolerance)
    reason = f"no degree is proved: {fault.where} {fault.why}"
    if probed.degree is not None:
        reason += f"; the probes agree with degree {probed.degree:g}, which proves nothing"
    else:
        reason += f"; and no probe refutes it ({probed.trouble})"
    return Homogeneity(probed.degree, False, False, layer, reason, error, tolerance)


def _by_modules(
    model: nn.Module, x: Tensor, variables: set[int], source: Scaling, untraced: str
) -> tuple[Scaling, str]:
    """Carry a degree through a chain of modules, each traced on its own, when the whole cannot be traced."""
    how = f"the rules of its modules one after another (as a whole it could not be traced: {untraced})"
    worker = copy.deepcopy(model)
    pairs = zip(model.parameters(), worker.parameters(), strict=True)
    copies = {id(new) for old, new in pairs if id(old) in variables}
    found = source
    with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices(x)):
        for order, (name, module) in enumerate(_chain(worker)):
            try:
                graph = trace(module, x)
                reason = graph.reason
            except ValueError as error:
                graph, reason = None, str(error)
            if graph is None or graph.output is None:
                return Scaling(found.degree, fault=found.fault or _suspect(name, module, reason, order)), how
            step = Interpreter(graph, copies, found).run()[graph.output]
            if step.fault is not None and step.fault is not found.fault:
                kind = step.fault.layer_type or type(module).__name__
                layer = ".".join(part for part in (name, step.fault.layer) if part)
                step = Scaling(
                    step.degree, fault=Fault(layer, kind, _where(layer, kind), step.fault.why, order)
                )
            found = step
            x = module(x)
    return found, how


def _chain(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of nested plain ``nn.Sequential``, or the model itself."""
    hooked = model._forward_hooks or model._forward_pre_hooks
    if type(model).forward is nn.Sequential.forward and not hooked:
        for name, child in model.named_children():
            yield from _chain(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, model


def _suspect(name: str, module: nn.Module, reason: str, order: int) -> Fault:
    """Name a part of an untraceable module that breaks homogeneity in general, or the module itself."""
    weighted = 0
    for inner, part in module.named_modules():
        bias = getattr(part, "bias", None)
        weighted += isinstance(getattr(part, "weight", None), Tensor)
        if isinstance(part, _SUSPECTS) or (isinstance(bias, nn.Parameter) and weighted > 1):
            layer, kind = ".".join(p for p in (name, inner) if p), type(part).__name__
            why = f"may break it, and the forward that runs it cannot be traced ({reason})"
            return Fault(layer, kind, _where(layer, kind), why, order)
    kind = type(module).__name__
    return Fault(name, kind, _where(name, kind), f"cannot be traced ({reason})", order)


def _where(layer: str, kind: str) -> str:
    return f"layer '{layer}' ({kind})" if layer else f"the model's own forward ({kind})"
