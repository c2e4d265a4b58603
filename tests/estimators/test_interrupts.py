"""Interrupted at any moment every estimator ends with its incumbent and a bound that holds for it."""

import time

import numpy as np
import pytest
from interrupts import interrupt_after

from theodolite.estimators import (
    LowRankFactorization,
    RobustPCA,
    StructuredFactorization,
    TensorFactorization,
)


def low_rank(*shape, rank=3):
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((k, rank)) for k in shape]
    letters = "abc"[: len(shape)]
    total = np.einsum(",".join(f"{x}r" for x in letters) + "->" + letters, *factors)
    return total + 0.3 * rng.standard_normal(shape)


CASES = [
    (LowRankFactorization(alpha=8.0, tol=1e-9), low_rank(120, 80)),
    (RobustPCA(alpha=8.0, tol=1e-7), low_rank(60, 50)),
    (StructuredFactorization(alpha=5.0, tol=1e-9, budget=3.0), low_rank(20, 15)),
    (TensorFactorization(alpha=12.0, tol=1e-9, budget=3.0), low_rank(8, 7, 6)),
]


@pytest.mark.parametrize(("model", "X"), CASES, ids=lambda case: type(case).__name__)
def test_interrupted_at_any_moment(model, X):
    start = time.process_time()
    whole = model.fit(X)
    seconds, best = time.process_time() - start, whole.objective_
    bound = whole.dual_bound_
    found = 0
    for part in np.linspace(0.02, 0.6, 10):
        try:
            with interrupt_after(max(0.004, part * seconds)):
                model.fit(X)
        except KeyboardInterrupt:
            continue  # before there was anything to keep
        found += model.interrupted_
        assert model.dual_bound_ <= model.objective_
        assert model.dual_bound_ <= best * (1 + 1e-9)  # no bound is above what another fit attained
        assert bound <= model.objective_ * (1 + 1e-9)
        assert np.isfinite(model.gap_)
        assert model.history_
    assert found >= 1
