"""R's softImpute-ALS in a process of its own; its output, judged by our objective and our dual bound."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from benchmarks.entries import Entries, Floats

_SCRIPT = Path(__file__).with_suffix(".R")
_CHECK = 'if (!requireNamespace("softImpute", quietly = TRUE)) quit(status = 1)'
_MAXIT = 5000


def missing() -> str | None:
    """Return why softImpute cannot run, or None."""
    if shutil.which("Rscript") is None:
        return "Rscript is missing; install R and its package softImpute (CRAN)"
    if subprocess.run(["Rscript", "-e", _CHECK], capture_output=True).returncode:
        return "R has no package softImpute; install it from CRAN"
    return None


@dataclass(frozen=True)
class Fit:
    """What R found and what it took; ``U V^T`` with V of orthonormal columns and the singular values in U."""

    seconds: float
    steps: int
    U: Floats
    V: Floats
    nuclear_norm: float
    blas: str  # the folder of R's BLAS: on Debian openblas-pthread, or blas for the slow reference


class SoftImpute:
    """The matrix in a temporary folder, on which R is run; a context manager, which deletes it."""

    def __init__(self, entries: Entries, threads: int) -> None:
        self.entries, self.threads = entries, threads
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        for name in ("rows", "cols", "values"):
            getattr(entries, name).tofile(self.folder / name)

    def __enter__(self) -> SoftImpute:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def search(self, rank: int, target: float, limit: float, multiple: float = 0.0) -> Fit:
        """Return the fit with the fewest steps, to 5 %, whose objective is at most target, or what the limit allowed."""
        return self._call("search", rank, _MAXIT, target, limit, multiple)

    def run(self, rank: int, steps: int, multiple: float = 0.0) -> Fit:
        """Return the fit of one call with a number of steps, after a rough one at a multiple of lambda if not 0."""
        return self._call("run", rank, steps, 0.0, 0.0, multiple)

    def _call(self, mode: str, rank: int, steps: int, target: float, limit: float, multiple: float) -> Fit:
        e, at = self.entries, self.folder
        numbers = (*e.shape, len(e.values), e.lam, rank, steps, target, limit, multiple)
        (at / "arguments.txt").write_text(" ".join(repr(float(number)) for number in numbers))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads))
        subprocess.run(["Rscript", str(_SCRIPT), mode, str(at)], check=True, env={**os.environ, **threads})
        seconds, made, width = (float(word) for word in (at / "result.txt").read_text().split())
        u, v = (np.fromfile(at / name).reshape(int(width), -1).T for name in ("u", "v"))
        d = np.fromfile(at / "d")
        return Fit(seconds, int(made), u * d, v, float(d.sum()), (at / "blas.txt").read_text())
