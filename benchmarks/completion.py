"""Matrix completion: our seconds to a proved relative gap against what the peers take to reach the same gap.

``synthetic-N-TOL``
    N x N of rank 5 with noise, 20 % observed, lambda = sqrt(N/5): the optimum is known;
``movielens-100k-TOL``
    90 % of the ratings less shrunk biases of users and items, and the error at the other 10 % (needs recbole's data);
``movielens-lambda``
    that error along the values of lambda among which the one above was chosen;
``scale-DIVISOR``, ``scale``
    138,000 x 27,000 with power-law rows and columns and 20 million entries (each over the divisor) to 1e-3: time,
    memory, rank; ``scale`` runs all three, each in a process of its own.

Every time is CPU seconds on the given threads (with ``--device cuda`` ours is wall seconds), the median of runs taken
in turn; ours begins with the arrays of entries and ends with the certificate.  Peers (``--peers`` picks; by default
those that end in minutes) are judged by their output: our objective of it, over the best dual bound that we proved.

``scs``
    cvxpy with SCS at its default tolerance, whatever gap that gives;
``full-svd``
    accelerated soft-impute with full singular value decompositions in NumPy, which stops by knowing the bound;
``softimpute``
    R's softImpute-ALS on its sparse class, the time of that call alone.  Its own stopping rule knows no gap, so it
    gets the best there is: the fewest steps (to 5 %) that reach the gap, the best rank.max out of 1, 1.5 and 2 times
    the optimal rank, plus 1, and, with the best of these, a warm start from 2 lambda if that is faster; all found
    beforehand at no charge.  R counts with the BLAS that it is installed with, which the figures name;
``surprise``
    scikit-surprise's SVD on MovieLens: another problem, compared by time and held-out error only.

The last line is one JSON object: ``error`` is our proved relative gap, ``peer`` the fastest of the ``peers`` that
reached the tolerance.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import completion_scale
from benchmarks.entries import KNOWN, Entries, movielens, synthetic
from benchmarks.peers import convex, recommenders
from benchmarks.peers.soft_impute import SoftImpute
from benchmarks.peers.soft_impute import missing as soft_impute_missing
from benchmarks.timing import Elapsed, alternate, read_options
from theodolite.core.solve import Solution

# What is completed, and the peers that take minutes there
DATA: dict[str, tuple[Callable[[], Entries], str]] = {
    "synthetic-100": (partial(synthetic, 100), "scs,full-svd,softimpute"),
    "synthetic-300": (partial(synthetic, 300), "scs,full-svd,softimpute"),
    "synthetic-1000": (partial(synthetic, 1000), "full-svd,softimpute"),
    "synthetic-3000": (partial(synthetic, 3000), "softimpute"),
    "synthetic-10000": (partial(synthetic, 10000), "softimpute"),
    "movielens-100k": (movielens, "softimpute,surprise"),
}
TOLS = ("1e-3", "1e-6")
CASES = [f"{name}-{tol}" for name in DATA for tol in TOLS]
Json = dict[str, Any]


class Comparison:
    """One matrix and one tolerance: our fit, the bound that judges the peers, and a contender for each of them."""

    def __init__(self, entries: Entries, tol: float, options: Namespace) -> None:
        self.entries, self.tol, self.options = entries, tol, options
        self.contenders: dict[str, Callable[[], Any]] = {"ours": self._ours}
        self.found: dict[str, Json] = {}
        self.solution = self._solve(tol)
        # a bound ten times as tight, so that what we left open is not held against the peers
        self.bound = max(
            c.dual_bound for c in (self.solution.certificate, self._solve(0.1 * tol).certificate)
        )
        self.target = self.bound / (1.0 - tol)

    def add(self, name: str, stack: ExitStack) -> None:
        """Prepare a peer, find what it reaches and how."""
        known = {"scs": self._scs, "full-svd": self._full_svd, "surprise": self._surprise}
        if name != "softimpute" and name not in known:
            raise SystemExit(f"--peers: expected some of softimpute, {', '.join(known)}, got {name!r}")
        lacking = {"scs": convex.missing, "softimpute": soft_impute_missing, "surprise": recommenders.missing}
        if name in lacking and (why := lacking[name]()):
            self.found[name] = {"skipped": why}
        elif name == "softimpute":
            self._soft_impute(stack.enter_context(SoftImpute(self.entries, self.options.threads)))
        else:
            known[name]()
        print(f"{name}: {self.found[name]}", flush=True)

    def _solve(self, tol: float) -> Solution:
        return self.entries.problem().solve(tol=tol, device=self.options.device)

    def _ours(self) -> Elapsed | None:
        start = time.perf_counter()
        self.solution = self._solve(self.tol)
        if self.options.device == "cpu":
            return None
        torch.cuda.synchronize()
        return Elapsed(time.perf_counter() - start)

    def _judged(self, objective: float) -> Json:
        gap = (objective - self.bound) / objective
        return {"error": gap, "reached": objective <= self.target * (1.0 + 1e-12)}

    def _scs(self) -> None:
        self.contenders["scs"] = partial(convex.scs, self.entries)
        self.found["scs"] = self._judged(convex.objective(self.entries, convex.scs(self.entries)))

    def _full_svd(self) -> None:
        self.contenders["full-svd"] = partial(convex.full_svd, self.entries, self.target)
        objective, steps = convex.full_svd(self.entries, self.target)
        self.found["full-svd"] = {**self._judged(objective), "steps": steps}

    def _surprise(self) -> None:
        if self.entries.test is None:
            raise SystemExit("--peers: surprise: expected a case with ratings held out, movielens-100k")
        self.contenders["surprise"] = partial(recommenders.surprise, self.entries)
        self.found["surprise"] = {"rmse": recommenders.surprise(self.entries)}

    def _soft_impute(self, peer: SoftImpute) -> None:
        """Search the fewest steps for three widths, then from 2 lambda; a search ends when far slower than the best."""
        rank, most = self.solution.certificate.units, min(self.entries.shape) - 1
        tried: list[Json] = []

        def best() -> Json:
            return min(tried, key=lambda attempt: (not attempt["reached"], attempt["seconds"]))

        def attempt(width: int, multiple: float) -> None:
            limit = 1.5 * best()["seconds"] if tried and best()["reached"] else float(self.options.limit)
            fit = peer.search(width, self.target, limit, multiple)
            how = {"rank_max": width, "start": multiple, "steps": fit.steps, "blas": fit.blas}
            objective = self.entries.objective(fit.U, fit.V, fit.nuclear_norm)
            tried.append({**how, "seconds": round(fit.seconds, 3), **self._judged(objective)})

        for width in sorted({min(most, rank + 1 + extra) for extra in (0, rank // 2, rank)}):
            attempt(width, 0.0)
        attempt(best()["rank_max"], 2.0)
        chosen = best()
        how = chosen["rank_max"], chosen["steps"], chosen["start"]
        self.contenders["softimpute"] = lambda: Elapsed(peer.run(*how).seconds)
        self.found["softimpute"] = {**chosen, "tried": tried}


def compare(case: str, options: Namespace) -> Json:
    """Return the comparison of a case."""
    name, tol = next((name, tol) for name in DATA for tol in TOLS if case == f"{name}-{tol}")
    make, usual = DATA[name]
    entries = make()
    comparison = Comparison(entries, float(tol), options)
    with ExitStack() as stack:
        for peer in (options.peers or usual).split(","):
            comparison.add(peer, stack)
        seconds = alternate(comparison.contenders, options.runs, warm_up=False)
    certificate, found = comparison.solution.certificate, comparison.found
    for peer in seconds.keys() - {"ours"}:
        found[peer] |= {
            "seconds": round(seconds[peer], 4),
            "ratio": round(seconds[peer] / seconds["ours"], 2),
        }
    reached = {peer: seconds[peer] for peer in found if found[peer].get("reached")}
    fastest = min(reached, key=reached.__getitem__, default=None)
    result: Json = {
        "tolerance": float(tol),
        "ours": round(seconds["ours"], 4),
        "peer": None if fastest is None else round(reached[fastest], 4),
        "ratio": None if fastest is None else round(reached[fastest] / seconds["ours"], 2),
        "error": certificate.gap,
        "fastest_peer": fastest,
        "peers": found,
        "rank": certificate.units,
        "lambda": entries.lam,
        "objective": certificate.objective,
        "clock": "process" if options.device == "cpu" else "wall",
    }
    if (known := KNOWN.get(entries.shape[0])) and name.startswith("synthetic"):
        result["known_error"] = certificate.objective / known - 1.0
    if entries.test is not None:
        U, V = (factor.cpu().numpy().T for factor in comparison.solution.params)
        result["rmse"] = entries.rmse(U, V)
    return result


def choose_lambda(options: Namespace) -> Json:
    """Return the held-out error along lambda on MovieLens, warm-started from above."""
    init, errors = None, {}
    start = time.process_time()
    for lam in range(20, 7, -1):
        entries = movielens(float(lam))
        solution = entries.problem().solve(tol=1e-4, device=options.device, init=init)
        init = solution.params
        U, V = (factor.cpu().numpy().T for factor in init)
        errors[lam] = entries.rmse(U, V)
        print(
            f"lambda {lam}: rank {solution.certificate.units}, held-out error {errors[lam]:.5f}", flush=True
        )
    best = min(errors, key=errors.__getitem__)
    nothing = np.zeros((entries.shape[0], 0)), np.zeros((entries.shape[1], 0))
    seconds = round(time.process_time() - start, 2)
    return {"ours": seconds, "lambda": best, "rmse": errors[best], "rmse_biases": entries.rmse(*nothing)}


def main() -> None:
    cases = [*CASES, "movielens-lambda", *completion_scale.CASES]
    options = read_options(__doc__, cases, "synthetic-300-1e-6", runs=3, device="cpu", peers="", limit=900)
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: expected a GPU that PyTorch sees, found none")
    if options.case == "movielens-lambda":
        result = choose_lambda(options)
    elif options.case in completion_scale.CASES:
        result = completion_scale.measure(options)
    else:
        result = compare(options.case, options)
    last = {"unit": "s", "device": options.device, "threads": options.threads}
    print(json.dumps({"benchmark": "completion", "case": options.case, **result, **last}))


if __name__ == "__main__":
    main()
