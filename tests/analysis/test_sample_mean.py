"""Intervals of means and shares: coverage, and what is said where nothing varies."""

from __future__ import annotations

import math

import pytest
import torch

from theodolite.analysis.sample_mean import mean_difference, mean_of, share_change, share_of
from theodolite.testing import check_coverage


def draws(n, seed):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))


def test_coverage():
    check_coverage(lambda s: mean_of(draws(40, s)[:, 0], rounding=0.0, what="draws"), 0.5)
    check_coverage(lambda s: share_of(draws(25, s)[:, 0] < 0.1, what="draws"), 0.1)
    check_coverage(
        lambda s: mean_difference(draws(40, s)[:, 0] - draws(40, s)[:, 1] ** 2, what="draws"), 1 / 6
    )

    def change(seed):
        u = draws(30, seed)
        return share_change(u[:, 0] < 0.5, (u[:, 0] < 0.5) ^ (u[:, 1] < 0.1), what="draws")

    check_coverage(change, 0.0)


def test_what_does_not_vary_is_exact_of_the_sample_alone():
    tiny = mean_of(torch.tensor([0.0, 1e-15]), rounding=1e-12, what="2 inputs")
    assert (tiny.kind, tiny.note) == ("exact", "no more than rounding at any of 2 inputs")
    assert mean_of(torch.tensor([0.5]), rounding=0.0, what="1 input").kind == "exact"
    assert mean_of(torch.tensor([0.5, math.inf]), rounding=0.0, what="2 inputs").value == math.inf
    assert mean_difference(torch.zeros(5), what="5 inputs").kind == "exact"


def test_ends_by_hand():
    value = mean_of(torch.tensor([1.0, 2.0, 3.0]), rounding=0.0, what="3 inputs", unit="pixels")
    half = 4.302652729911275 / math.sqrt(3.0)  # the quantile of Student's t with 2 degrees of freedom
    assert (value.value, value.unit) == (2.0, "pixels")
    assert value.upper == pytest.approx(2.0 + half)
    assert value.lower == 0.0, "numbers >= 0 have no negative mean"
    none = share_change(torch.ones(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool), what="10 inputs")
    assert none.value == 0.0
    assert none.upper == pytest.approx(1.0 - 0.0125 ** (1.0 / 10.0))
    assert none.lower == -none.upper
    assert share_of(torch.tensor([True, False]), what="2 inputs").note == "1 among 2 inputs"
