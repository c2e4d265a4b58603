"""The largest singular value with a proof, against LAPACK's and ARPACK's, which prove nothing.

``N x N``
    Gaussian matrices of sides 256, 1024 and 2048: a dense upper edge of the spectrum, the
    hardest kind for Krylov methods;
``decay-N``
    N x N with singular values 1/i, as trained weights have.
"""

from __future__ import annotations

import json

import torch
from scipy.sparse.linalg import svds

from benchmarks.timing import alternate, read_options
from theodolite.linalg.spectral import sigma_max

CASES = ["gauss-256", "gauss-1024", "gauss-2048", "decay-256", "decay-1024", "decay-2048"]


def matrix(case: str) -> torch.Tensor:
    """Return a float64 matrix."""
    kind, _, size = case.partition("-")
    n = int(size)
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(n, n, generator=generator, dtype=torch.float64)
    if kind == "gauss":
        return A
    left, _ = torch.linalg.qr(A)
    right, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return left / torch.arange(1, n + 1) @ right


def main() -> None:
    """Run one case and print one JSON line last."""
    options = read_options(__doc__, CASES, "gauss-1024")
    A = matrix(options.case)
    dense = A.numpy()
    seconds = alternate(
        {
            "ours": lambda: sigma_max(A),
            "peer": lambda: torch.linalg.svdvals(A),
            "arpack": lambda: svds(dense, k=1, tol=1e-8, return_singular_vectors=False, random_state=0),
        }
    )
    value, truth = sigma_max(A), float(torch.linalg.svdvals(A)[0])
    print(f"{value} ({value.note}); LAPACK {truth:.12g}; ARPACK {seconds['arpack']:.4f} s")
    print(
        json.dumps(
            {
                "benchmark": "spectral",
                "case": options.case,
                "ours": round(seconds["ours"], 4),
                "peer": round(seconds["peer"], 4),
                "ratio": round(seconds["peer"] / seconds["ours"], 2),
                "ratio_arpack": round(seconds["arpack"] / seconds["ours"], 2),
                "error": (value.high - value.low) / value.high,
                "unit": "s",
                "device": "cpu",
                "threads": options.threads,
            }
        )
    )


if __name__ == "__main__":
    main()
