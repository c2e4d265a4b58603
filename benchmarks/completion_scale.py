"""Completion of matrices with power-law rows and columns: time and memory against the number of entries.

lambda is 0.8 times the noise times (sqrt of the entries in the fullest row + sqrt of those in the fullest column), near
the spectral edge of the noise, which leaves the planted rank of 20 and up to as many directions of noise.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from argparse import Namespace
from typing import Any

from benchmarks.entries import power_law

DIVISORS = (16, 4, 1)
CASES = [*(f"scale-{divisor}" for divisor in DIVISORS), "scale"]
TOL = 1e-3


def measure(options: Namespace) -> dict[str, Any]:
    """Return the figures of one size, or of all with the exponents at which time grows from the least to the largest.

    One is in the number of entries, the other in entries times the optimal rank, which grows too.
    """
    if options.case != "scale":
        return _one(int(options.case.removeprefix("scale-")), options)
    sizes = []
    for case in CASES[:-1]:
        command = [sys.executable, "-m", "benchmarks.completion", "--case", case]
        for name in ("threads", "device", "limit"):
            command += [f"--{name}", str(getattr(options, name))]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        sizes.append(json.loads(output.splitlines()[-1]))
        print(sizes[-1], flush=True)
    first, last = sizes[0], sizes[-1]
    seconds, entries, rank = (math.log(last[name] / first[name]) for name in ("ours", "entries", "rank"))
    return {
        "ours": last["ours"],
        "peer": None,
        "ratio": None,
        "error": last["error"],
        "growth": seconds / entries,
        "growth_with_rank": seconds / (entries + rank),
        "sizes": sizes,
    }


def _one(divisor: int, options: Namespace) -> dict[str, Any]:
    entries = power_law(divisor)
    before = _peak()
    wall, cpu = time.perf_counter(), time.process_time()
    solution = entries.problem().solve(tol=TOL, budget=options.limit, device=options.device, verbose=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    certificate = solution.certificate
    return {
        "ours": round(cpu, 2),
        "peer": None,
        "ratio": None,
        "error": certificate.gap,
        "wall_seconds": round(wall, 2),
        "peak_rss_gib": round(_peak(), 2),
        "peak_rss_before_gib": round(before, 2),
        "rank": certificate.units,
        "shape": entries.shape,
        "entries": len(entries.values),
        "lambda": entries.lam,
        "tolerance": TOL,
        "objective": certificate.objective,
    }


def _peak() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**30 if sys.platform == "darwin" else 2**20)
