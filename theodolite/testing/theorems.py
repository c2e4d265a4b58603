"""Checks for those who write theorems: what every theorem promises, and changes that keep a function."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.theorems.base import FINDING_STATUSES, Finding, Theorem, evaluate, finding_status
from theodolite.theorems.subject import Subject
from theodolite.value import Value

Weighted = nn.Linear | nn.Conv2d

# modules through which a positive factor on a unit passes unchanged
_HOMOGENEOUS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
)


def check_theorem(
    theorem: Theorem | type[Theorem],
    build: Callable[[], Subject],
    *,
    truth: Mapping[str, float] | None = None,
    tolerance: float = 1e-9,
) -> Finding:
    """Hold a theorem to what every theorem promises.

    Parameters
    ----------
    theorem : Theorem or its class
        What is checked.
    build : function() -> Subject
        Returns a fresh, equal subject at each call, on which the theorem applies.
    truth : mapping from value name to number, optional
        Brute-force truths: each must lie in its value's interval (or equal it).
    tolerance : float
        Relative tolerance of the comparison with ``truth``.

    Returns
    -------
    Finding
        The finding on a fresh subject.

    Raises
    ------
    AssertionError
        With one sentence on what does not hold.
    """
    theorem = theorem() if isinstance(theorem, type) else theorem
    subject = build()
    before = snapshot(subject.model)
    with subject.preserved():
        finding = evaluate(theorem, subject)
    assert finding.status != "failed", f"{theorem.code} failed:\n{finding.traceback}"
    assert finding.status in FINDING_STATUSES
    assert snapshot(subject.model) == before, f"{theorem.code} changed the model"
    if finding.status not in ("refuted", "not applicable"):
        assert finding.values, f"{theorem.code} applies but returned no value"
        derived = finding_status(finding.hypotheses, finding.values.values())
        assert finding.status == derived, f"{theorem.code}: status {finding.status}, its parts say {derived}"
    for name, value in finding.values.items():
        again = Value.from_dict(json.loads(json.dumps(value.to_dict(), default=str)))
        assert again.low == value.low
        assert again.high == value.high, f"{theorem.code}.{name} does not survive JSON"
    twin = evaluate(theorem, build())
    assert same_values(finding, twin, 0.0), f"{theorem.code}: the same seed gave other numbers"
    for name, number in (truth or {}).items():
        value = finding.values[name]
        slack = tolerance * max(1.0, abs(number))
        assert value.low - slack <= number <= value.high + slack, (
            f"{theorem.code}.{name}: {value} misses {number}"
        )
    return finding


def check_global_state(action: Callable[[], Any]) -> Any:
    """Run an action and assert that it leaves every global random state as it was."""
    before = torch.get_rng_state().clone(), random.getstate(), _numpy_state()
    result = action()
    assert torch.equal(before[0], torch.get_rng_state()), "torch's global random state changed"
    assert before[1] == random.getstate(), "Python's global random state changed"
    assert before[2] == _numpy_state(), "numpy's global random state changed"
    return result


def _numpy_state() -> tuple[bytes, ...]:
    state = np.random.get_state(legacy=True)  # noqa: NPY002
    return tuple(np.asarray(part).tobytes() for part in state)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything of a module that an audit must leave alone, comparable by ``==``."""
    return {
        "state": {
            k: v.detach().cpu().to(torch.float64).numpy().tobytes() for k, v in _tensors(model).items()
        },
        "identity": {k: id(v) for k, v in model.named_parameters()},
        "grad": {
            k: None if p.grad is None else p.grad.cpu().numpy().tobytes() for k, p in model.named_parameters()
        },
        "requires": {k: p.requires_grad for k, p in model.named_parameters()},
        "modes": {k: m.training for k, m in model.named_modules()},
        "hooks": {
            k: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for k, m in model.named_modules()
        },
        "attributes": {k: sorted(vars(m)) for k, m in model.named_modules()},
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same_values(one: Finding, two: Finding, tolerance: float) -> bool:
    """Return whether two findings have the same status and, to a relative tolerance, the same numbers."""
    if one.status != two.status or one.values.keys() != two.values.keys():
        return False
    return all(
        _close(getattr(value, end), getattr(two.values[name], end), tolerance)
        for name, value in one.values.items()
        for end in ("value", "lower", "upper")
    )


def _close(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def check_coverage(draw: Callable[[int], Value], truth: float, *, repetitions: int = 200) -> float:
    """Assert that intervals drawn independently cover a known truth at their nominal rate.

    Parameters
    ----------
    draw : function(seed) -> Value
        A bound or estimate from fresh data.
    truth : float
        The population's number.
    repetitions : int
        Independent draws.

    Returns
    -------
    float
        Share of the draws that covered the truth.

    Raises
    ------
    AssertionError
        If coverage falls short of the nominal rate by more than three standard errors.
    """
    values = [draw(seed) for seed in range(repetitions)]
    covered = sum(v.low <= truth <= v.high for v in values) / repetitions
    nominal = min(v.confidence for v in values)
    slack = 3.0 * math.sqrt(nominal * (1.0 - nominal) / repetitions)
    assert covered >= nominal - slack, f"coverage {covered:.3f} is below {nominal:.3f}"
    return covered


def hidden_layers(model: nn.Module) -> list[tuple[Weighted, Weighted]]:
    """Return consecutive weight layers joined by positively homogeneous modules, in a chain of modules."""
    chain = [m for m in model.modules() if next(m.children(), None) is None]
    pairs: list[tuple[Weighted, Weighted]] = []
    last: Weighted | None = None
    for module in chain:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if last is not None:
                pairs.append((last, module))
            last = module
        elif not isinstance(module, _HOMOGENEOUS):
            last = None
    return pairs


def rescale_units(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy in which hidden units are rescaled by c and their outgoing weights by 1/c."""
    model = copy.deepcopy(model)
    for before, after in hidden_layers(model):
        units = before.weight.shape[0]
        factor = torch.exp(torch.empty(units, dtype=torch.float64).uniform_(-1.5, 1.5, generator=generator))
        factor = factor.to(before.weight.dtype)
        with torch.no_grad():
            before.weight.mul_(factor.view(-1, *[1] * (before.weight.ndim - 1)))
            if before.bias is not None:
                before.bias.mul_(factor)
            _incoming(after, units).div_(factor.view(1, -1, 1))
    return model


def permute_units(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy in which the hidden units of every layer stand in another order."""
    model = copy.deepcopy(model)
    for before, after in hidden_layers(model):
        units = before.weight.shape[0]
        order = torch.randperm(units, generator=generator)
        with torch.no_grad():
            before.weight.copy_(before.weight[order].clone())
            if before.bias is not None:
                before.bias.copy_(before.bias[order].clone())
            incoming = _incoming(after, units)
            incoming.copy_(incoming[:, order].clone())
    return model


def insert_dead_units(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy with one more unit in every hidden layer, which feeds nothing."""
    model = copy.deepcopy(model)
    for before, after in hidden_layers(model):
        units = before.weight.shape[0]
        with torch.no_grad():
            row = torch.randn(before.weight[:1].shape, generator=generator, dtype=torch.float64)
            before.weight = nn.Parameter(torch.cat([before.weight, row.to(before.weight.dtype)]))
            if before.bias is not None:
                before.bias = nn.Parameter(torch.cat([before.bias, before.bias.new_zeros(1)]))
            incoming = _incoming(after, units)
            wider = torch.cat([incoming, torch.zeros_like(incoming[:, :1])], 1)
            after.weight = nn.Parameter(wider.reshape(after.weight.shape[0], -1, *after.weight.shape[2:]))
        _set_width(before, after, units + 1)
    return model


def _incoming(after: Weighted, units: int) -> Tensor:
    """Return a view of the weights as (outputs, units, weights of one unit)."""
    return after.weight.detach().view(after.weight.shape[0], units, -1)


def _set_width(before: Weighted, after: Weighted, units: int) -> None:
    if isinstance(before, nn.Linear):
        before.out_features = units
    else:
        before.out_channels = units
    if isinstance(after, nn.Linear):
        after.in_features = after.weight.shape[1]
    else:
        after.in_channels = units


FUNCTION_PRESERVING: dict[str, Callable[[nn.Module, torch.Generator], nn.Module]] = {
    "rescaling": rescale_units,
    "permutation": permute_units,
    "dead units": insert_dead_units,
}
