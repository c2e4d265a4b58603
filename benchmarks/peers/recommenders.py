"""A recommender library, which solves another problem: only its time and its held-out error can be compared.

implicit's ALS is no peer: it predicts which entries are there, not their values.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np

from benchmarks.entries import Entries


def missing() -> str | None:
    """Return why scikit-surprise cannot run, or None."""
    needed = {"surprise": "scikit-surprise", "pandas": "pandas"}
    lacking = [package for name, package in needed.items() if find_spec(name) is None]
    return f"not installed; run: pip install {' '.join(lacking)}" if lacking else None


def surprise(entries: Entries) -> float:
    """Return the held-out error of scikit-surprise's SVD with its defaults: 100 factors, biases, 20 epochs of SGD."""
    import pandas as pd
    from surprise import SVD, Dataset, Reader

    assert entries.test is not None
    ratings = entries.values + entries.bias(entries.rows, entries.cols)
    table = pd.DataFrame({"u": entries.rows, "i": entries.cols, "r": ratings})
    model = SVD(random_state=0).fit(Dataset.load_from_df(table, Reader()).build_full_trainset())
    rows, cols, values = entries.test
    found = np.array([model.predict(u, i).est for u, i in zip(rows.tolist(), cols.tolist(), strict=True)])
    return math.sqrt(np.square(found - values).mean())
