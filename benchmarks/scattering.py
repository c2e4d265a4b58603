"""Scattering transforms against Kymatio: CPU seconds, memory, filters, and how far the outputs are apart.

``2d-32``, ``2d-224``, ``2d-224-16``, ``2d-256``
    images of that side, J = 3 (4 for ``2d-256``), L = 8, batches of 128, 4, 16 and 4, float32.
``1d-13``, ``1d-16``
    16 signals of 2^13 and 2^16 samples, J = 8, Q = 8, float32.
``3d-32``, ``3d-32-4``
    1 and 4 volumes of that side, J = 2, L = 3, float32.

Contenders alternate in one process: ``ratio`` is the median of Kymatio's seconds over ours.  ``memory`` is the peak above
what was held before the call, in MiB, each in a process of its own; ``filters`` the median seconds of building a transform.
The last line is one JSON object; ``error`` is the relative distance of the outputs.
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import kymatio
from benchmarks.timing import alternate, read_options
from theodolite.nn import HarmonicScattering3D, Scattering1D, Scattering2D

CASES: dict[str, tuple[str, dict[str, Any], int]] = {  # transform, its options, batch
    "2d-32": ("2d", {"J": 3, "shape": (32, 32)}, 128),
    "2d-224": ("2d", {"J": 3, "shape": (224, 224)}, 4),
    "2d-224-16": ("2d", {"J": 3, "shape": (224, 224)}, 16),
    "2d-256": ("2d", {"J": 4, "shape": (256, 256)}, 4),
    "1d-13": ("1d", {"J": 8, "shape": 2**13, "Q": 8}, 16),
    "1d-16": ("1d", {"J": 8, "shape": 2**16, "Q": 8}, 16),
    "3d-32": ("3d", {"J": 2, "shape": (32, 32, 32), "L": 3}, 1),
    "3d-32-4": ("3d", {"J": 2, "shape": (32, 32, 32), "L": 3}, 4),
}
MAKERS: dict[str, dict[str, Callable[..., Any]]] = {
    "1d": {"ours": Scattering1D, "kymatio": kymatio.scattering1d},
    "2d": {"ours": Scattering2D, "kymatio": kymatio.scattering2d},
    "3d": {"ours": HarmonicScattering3D, "kymatio": kymatio.scattering3d},
}


def made(name: str, case: str) -> tuple[Any, torch.Tensor]:
    """Return a transform and an input."""
    kind, options, batch = CASES[case]
    shape = options["shape"]
    sides = (shape,) if isinstance(shape, int) else shape
    generator = torch.Generator().manual_seed(0)
    return MAKERS[kind][name](**options), torch.randn(batch, *sides, generator=generator)


def peak(name: str, case: str) -> float:
    """Return by how many MiB the first call of a transform raises the peak, measured in this process."""
    transform, x = made(name, case)
    with torch.no_grad():
        transform(x[:1])  # tables and threads
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        transform(x)
    return (_status("VmHWM") - before) / 1024.0


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(options: Namespace) -> dict[str, float]:
    """Return the peaks of both, each of a fresh process."""
    found = {}
    for name in ("ours", "kymatio"):
        command = [sys.executable, "-m", "benchmarks.scattering", "--case", options.case, "--threads"]
        command += [str(options.threads), "--memory", name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[name] = round(float(out.splitlines()[-1]), 1)
    return found


def main() -> None:
    options = read_options(__doc__, list(CASES), "2d-32", runs=7, memory="")
    if options.memory:
        print(peak(options.memory, options.case))
        return
    if why := kymatio.missing():
        raise SystemExit(f"--case {options.case}: {why}")
    names, (kind, arguments, _) = ("ours", "kymatio"), CASES[options.case]
    filters = alternate(
        {name: lambda n=name: MAKERS[kind][n](**arguments) for name in names}, 3, warm_up=False
    )
    transforms = {name: made(name, options.case)[0] for name in names}
    x = made("ours", options.case)[1]
    with torch.no_grad():
        ours, theirs = (transforms[name](x) for name in transforms)
        seconds = alternate({name: lambda t=t: t(x) for name, t in transforms.items()}, options.runs)
    result = {
        "ours": round(seconds["ours"], 4),
        "peer": round(seconds["kymatio"], 4),
        "ratio": round(seconds["kymatio"] / seconds["ours"], 2),
        "error": float((ours - theirs).norm() / theirs.norm()),
        "filters": {
            **{name: round(filters[name], 4) for name in names},
            "ratio": round(filters["kymatio"] / filters["ours"], 1),
        },
    }
    peaks = memory(options)
    result["memory"] = {**peaks, "ratio": round(peaks["ours"] / peaks["kymatio"], 3)}
    last = {"unit": "s", "device": "cpu", "threads": options.threads}
    print(json.dumps({"benchmark": "scattering", "case": options.case, **result, **last}))


if __name__ == "__main__":
    main()
