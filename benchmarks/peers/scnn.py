"""pyscnn: convex programs over sampled activation patterns, which stand for a two-layer ReLU network of that size.

It has no bound: its objective is evaluated at the network that it returns.  It is installed without its dependencies,
because one of them, which it never imports, replaces PyTorch.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from benchmarks.network_data import Floats, Table

COMMAND = "pip install --no-deps pyscnn==0.0.10 linalg_backends opt_einsum tqdm"


def missing() -> str | None:
    """Return why it cannot run, or None."""
    return None if find_spec("scnn") and find_spec("lab") else f"not installed; run: {COMMAND}"


def fit(table: Table, lam: float, gates: int) -> tuple[Floats, Floats]:
    """Return W (r, d) and U (r, 1) of its ReLU network with as many gate vectors, with its defaults."""
    from scnn.optimize import optimize
    from scnn.regularizers import NeuronGL1

    model, _ = optimize(
        "relu", 2 * gates, table.X, table.y[:, None], regularizer=NeuronGL1(lam), dtype="float32", seed=0
    )
    W, U = (np.asarray(p, dtype=np.float64) for p in model.parameters[:2])
    return W, U.T


def objective(table: Table, lam: float, W: Floats, U: Floats) -> float:
    """Return 1/(2n) of the squared errors + lam sum |w| |u|."""
    rest = np.maximum(table.X @ W.T, 0.0) @ U[:, 0] - table.y
    theta = float((np.linalg.norm(W, axis=1) * np.linalg.norm(U, axis=1)).sum())
    return 0.5 * float(np.mean(rest**2)) + lam * theta
