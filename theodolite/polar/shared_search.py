"""A branch and bound whose open boxes are dealt to the workers of joblib, and collected, again and again.

How many there are, and where, is the caller's choice: ``joblib.parallel_config(backend="loky", n_jobs=2)`` for processes
of this machine, ``joblib.parallel_config(backend="dask")`` for a cluster; outside of such a context there is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor

from theodolite.polar.box_search import BranchAndBound, Step

__all__ = ["run_shared"]

_ALONE = 2.0  # seconds before work is shared: processes take as long to start
_ROUND = 4.0  # seconds between a deal and the next


def run_shared(
    search: BranchAndBound,
    target: float | None = None,
    budget: float | None = None,
    *,
    tol: float = 1e-6,
    callback: Callable[[Step], bool | None] | None = None,
) -> None:
    """Run a search as :meth:`BranchAndBound.run` does, on all workers of joblib's context.

    What the workers found counts when they are done, so that an interrupt loses one round and proves no less.
    """
    jobs = effective_n_jobs(None)
    if jobs == 1:
        search.run(target, budget, tol=tol, callback=callback)
        return
    deadline = math.inf if budget is None else time.monotonic() + budget

    def told() -> bool:
        return callback is not None and bool(callback(search.history[-1]))

    search.run(target, _ALONE if budget is None else min(_ALONE, budget), tol=tol)
    rows = search.plain.X.cpu(), search.plain.Q.cpu(), search.plain.labels().cpu()
    with Parallel(n_jobs=jobs) as pool:
        while not told() and not search.done(target, tol) and (now := time.monotonic()) < deadline:
            options = target, min(_ROUND, deadline - now), tol, max(search.max_open // jobs, 1)
            states = pool(delayed(_searched)(rows, part, *options) for part in search.deal(jobs))
            search.collect(states, time.monotonic() - now)


def _searched(
    rows: tuple[Tensor, Tensor, Tensor],
    state: dict[str, Any],
    target: float | None,
    seconds: float,
    tol: float,
    max_open: int,
) -> dict[str, Any]:
    """Return the state of a search after some seconds."""
    search = BranchAndBound(*rows, max_open=max_open)
    search.load_state_dict(state)
    search.run(target, seconds, tol=tol)
    return search.state_dict()
