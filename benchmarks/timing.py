"""What the benchmarks share: their options, and alternating measurements, which meet the machine's drift alike."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits


def read_options(
    description: str | None, cases: Sequence[str], default: str, **further: int | str | None
) -> argparse.Namespace:
    """Return the case, the threads (which are set) and further options; ``--list`` prints the cases and ends."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=cases, default=default)
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    for name, value in {"threads": 1, **further}.items():
        parser.add_argument(f"--{name}", type=str if isinstance(value, str) else int, default=value)
    options = parser.parse_args()
    if options.list:
        print("\n".join(cases))
        sys.exit()
    limit_threads(options.threads)
    return options


def limit_threads(threads: int) -> None:
    """Give PyTorch and every BLAS and OpenMP pool the same number of threads."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


@dataclass(frozen=True)
class Elapsed:
    """What a contender returns that measures its own seconds: it runs in another process, or on a GPU."""

    seconds: float


def alternate(
    contenders: Mapping[str, Callable[[], Any]], runs: int = 5, *, warm_up: bool = True
) -> dict[str, float]:
    """Return each contender's median CPU seconds, all of them run in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values() if warm_up else ():
        contender()
    for _ in range(runs):
        for name, contender in contenders.items():
            start = time.process_time()
            result = contender()
            used = time.process_time() - start
            seconds[name].append(result.seconds if isinstance(result, Elapsed) else used)
    return {name: statistics.median(values) for name, values in seconds.items()}
