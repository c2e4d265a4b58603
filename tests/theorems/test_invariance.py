"""Function-preserving changes leave alone what is declared invariant and move what is declared sensitive."""

from __future__ import annotations

import functools

import builders
import pytest
import torch
from torch import nn

import theodolite.theorems as theorems
from theodolite.testing import FUNCTION_PRESERVING, same_values
from theodolite.theorems.base import evaluate
from theodolite.theorems.subject import Subject

DRAWS_PER_CHANGE = 7  # 10 networks x 3 changes x 7 draws = 210


def networks() -> list[nn.Module]:
    """Ten networks: depth two to four, with and without biases, dense and convolutional."""
    dense = [
        builders.mlp(64, 12, 10),
        builders.mlp(64, 12, 10, bias=True, seed=1),
        builders.mlp(64, 10, 8, 10, seed=2),
        builders.mlp(64, 10, 8, 10, bias=True, seed=3),
        builders.mlp(64, 8, 8, 8, 10, seed=4),
        builders.mlp(64, 16, 10, seed=5),
        builders.mlp(64, 6, 12, 10, bias=True, seed=6),
    ]
    return [
        *dense,
        builders.conv_net(),
        builders.conv_net("zeros", seed=1),
        builders.conv_net("circular", seed=2),
    ]


@functools.cache
def findings(index: int, change: str, draw: int):  # type: ignore[no-untyped-def]
    model = networks()[index].double()
    if change:
        generator = torch.Generator().manual_seed(1000 * index + draw)
        changed = FUNCTION_PRESERVING[change](model, generator)
        x = builders.digits()[0][:20].double()
        torch.testing.assert_close(changed(x), model(x), rtol=1e-9, atol=1e-11)
        model = changed
    subject = Subject(
        model,
        *builders.digits_pairs(24, 12)["train"],
        test=builders.digits_pairs(24, 12)["test"],
        weight_decay=1e-3,
    )
    relevant = [t for t in theorems.ALL if not change or change in t.invariant | t.sensitive]
    return {t.code: evaluate(t(), subject) for t in relevant}


@pytest.mark.parametrize("change", sorted(FUNCTION_PRESERVING))
@pytest.mark.parametrize("index", range(10))
def test_declared_invariance_and_sensitivity(index, change):
    original = findings(index, "", 0)
    for draw in range(DRAWS_PER_CHANGE):
        changed = findings(index, change, draw)
        for theorem in theorems.ALL:
            before, after = original[theorem.code], changed.get(theorem.code)
            if change in theorem.invariant:
                assert same_values(before, after, 1e-6), (theorem.code, before.values, after.values)
            elif change in theorem.sensitive and before.values and change != "dead units":
                assert not same_values(before, after, 1e-9), f"{theorem.code} should change under {change}"


def test_every_declared_sensitivity_is_seen():
    for change in FUNCTION_PRESERVING:
        for theorem in theorems.ALL:
            if change in theorem.sensitive:
                moved = [
                    not same_values(
                        findings(i, "", 0)[theorem.code], findings(i, change, 0)[theorem.code], 1e-9
                    )
                    for i in range(10)
                ]
                assert any(moved), f"{theorem.code} is declared sensitive to {change} and never moves"
