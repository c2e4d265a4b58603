"""Alternating measurements: the machine's drift meets every contender alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from threadpoolctl import threadpool_limits


def limit_threads(threads: int) -> None:
    """Give PyTorch and every BLAS and OpenMP pool the same number of threads."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def alternate(contenders: Mapping[str, Callable[[], Any]], runs: int = 5) -> dict[str, float]:
    """Return each contender's median CPU seconds, all of them run in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(runs):
        for name, contender in contenders.items():
            start = time.process_time()
            contender()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
