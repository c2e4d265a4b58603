"""Upper bounds of the ReLU polar: time on many rows, and tightness on digits against ascent.

``rows-N-D-K``
    Gaussian X (N x D) and Q (N x K): seconds of the Shor bound and of the harmonic bound of degree 2;
``digits-FxF-C``
    residuals of a convolutional net with F x F filters, ReLU and average pooling in a C x C grid, at nearly
    optimal filters for lambda = 0.1 lambda_max, on the first 300 digits: all bounds divided by lambda.

Ours is the time of both bounds, which prove; the peer is multi-start ascent, which does not; ``error`` is how far the
better bound lies above what ascent found, relatively.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.timing import read_options
from theodolite.polar.ascent import relu_ascent
from theodolite.polar.relaxation import harmonic_bound, relaxation_bound, shor_bound

CASES = ["rows-60000-64-10", "rows-10000-9-10", "digits-2x2-3", "digits-3x3-3", "digits-3x3-1"]


def pooled_rows(images: Tensor, residual: Tensor, filter_size: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return X, one row per (image, patch) of the top-left 6 x 6 positions, and Q, residual in the patch's cell."""
    n, outputs = len(images), residual.shape[2]
    side = 5 + filter_size
    X = images[:, :side, :side].unfold(1, filter_size, 1).unfold(2, filter_size, 1)
    X = X.reshape(n * 36, filter_size**2)
    axis = torch.arange(6) * cells // 6
    cell = (axis[:, None] * cells + axis).flatten()
    Q = torch.zeros(n, 36, cells**2, outputs, dtype=X.dtype)
    Q[:, torch.arange(36), cell] = residual[:, cell] / 36.0
    return X, Q.reshape(n * 36, -1)


def digits_polar(
    filter_size: int, cells: int, *, n: int = 300, width: int = 16, rounds: int = 4
) -> tuple[Tensor, Tensor, float]:
    """Return (X, Q, lambda) at nearly optimal filters of the pooled convolutional net on digits."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:n] / 16.0)
    labels = torch.nn.functional.one_hot(torch.from_numpy(digits.target[:n]), 10).double()
    labels = labels - labels.mean(0)

    def expand(residual: Tensor) -> Tensor:  # every cell sees the same residual
        return residual[:, None, :].expand(-1, cells**2, -1)

    X, Q = pooled_rows(images, expand(labels / n), filter_size, cells)
    W, values = relu_ascent(X, Q, n_starts=64, max_steps=200)
    lam = 0.1 * float(values[0])
    patches = X.reshape(n, 36, -1)
    axis = torch.arange(6) * cells // 6
    pool = torch.nn.functional.one_hot((axis[:, None] * cells + axis).flatten(), cells**2).double() / 36.0
    w = torch.cat([W[:1], torch.nn.functional.normalize(torch.randn(width - 1, W.shape[1]).double(), dim=1)])
    w = (0.1 * w).requires_grad_()
    U = (
        0.1 * torch.randn(width, cells**2 * 10, generator=torch.Generator().manual_seed(0)).double()
    ).requires_grad_()

    def output() -> Tensor:
        hidden = torch.einsum("npr,pc->nrc", (patches @ w.T).relu(), pool)
        return torch.einsum("nrc,rco->no", hidden, U.view(width, cells**2, 10))

    for _ in range(rounds):
        _descend([w, U], lambda: _objective(output() - labels, w, U, lam))
        with torch.no_grad():  # the weakest filter gives way to the best direction of the polar
            X, Q = pooled_rows(images, expand((labels - output()) / n), filter_size, cells)
            best = relu_ascent(X, Q, n_starts=32)[0][:1]
            i = int((w.norm(dim=1) * U.norm(dim=1)).argmin())
            answer = (X @ best[0]).relu() @ Q
            w[i], U[i] = 1e-2 * best[0], 1e-2 * answer / answer.norm()
    _descend([w, U], lambda: _objective(output() - labels, w, U, lam))
    residual = ((labels - output()) / n).detach()
    return *pooled_rows(images, expand(residual), filter_size, cells), lam


def _objective(error: Tensor, w: Tensor, U: Tensor, lam: float) -> Tensor:
    return error.square().sum() / (2 * len(error)) + 0.5 * lam * (w.square().sum() + U.square().sum())


def _descend(parameters: list[Tensor], objective: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=300, history_size=30, line_search_fn="strong_wolfe", tolerance_change=0.0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)


def main() -> None:
    """Run one case and print one JSON line last."""
    options = read_options(__doc__, CASES, "rows-60000-64-10", degree=None)
    torch.manual_seed(0)
    kind, *sizes = options.case.split("-")
    if kind == "rows":
        n, d, K = (int(s) for s in sizes)
        X, Q, lam = torch.randn(n, d).double(), torch.randn(n, K).double(), 1.0
        degree = options.degree or 2
    else:
        X, Q, lam = digits_polar(int(sizes[0][0]), int(sizes[1]))
        degree = options.degree or 30
    record = {"benchmark": "relaxation", "case": options.case, "rows": len(X), "degree": degree}
    bounds = {
        "ascent": lambda: float(relu_ascent(X, Q, n_starts=32)[1][0]),
        "shor": lambda: shor_bound(X, Q, merge=False).high,
        "shor_merged": lambda: shor_bound(X, Q).high,
        "harmonic": lambda: harmonic_bound(X, Q, degree, envelope=False, merge=False).high,
        "harmonic_merged": lambda: harmonic_bound(X, Q, degree).high,
        "crude": lambda: relaxation_bound(X, Q, budget=0.0).high,
    }
    if kind == "digits":  # the same polar with the pooling cells known, so that Q has ten columns
        some = Q.reshape(len(Q), -1, 10)
        cells = (some != 0.0).any(2).to(torch.int8).argmax(1)
        few = some[torch.arange(len(Q)), cells]
        bounds["harmonic_cells"] = lambda: harmonic_bound(X, few, degree, cells=cells).high
    for name, bound in bounds.items():
        start = time.process_time()
        record[name] = round(bound() / lam, 4)
        record[f"{name}_s"] = round(time.process_time() - start, 3)
        print(name, record[name], record[f"{name}_s"], flush=True)
    record["S_over_lambda"] = round(float((Q.norm(dim=1) * X.norm(dim=1)).sum()) / lam, 2)
    ours, peer = record["shor_merged_s"] + record["harmonic_merged_s"], record["ascent_s"]
    record |= {"ours": round(ours, 3), "peer": peer, "ratio": round(peer / ours, 2)}
    record["error"] = min(record["shor_merged"], record["harmonic_merged"]) / record["ascent"] - 1.0
    print(json.dumps(record | {"unit": "s", "device": "cpu", "threads": options.threads}))


if __name__ == "__main__":
    main()
