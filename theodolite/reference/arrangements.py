"""Activation patterns by linear programs, and the ReLU polar by its pieces (d = 2) or dense sampling (d = 3)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize
from scipy.special import eval_chebyt, eval_gegenbauer
from torch import Tensor

Array = NDArray[np.float64]


def patterns_by_linear_programs(X: Tensor) -> set[tuple[bool, ...]]:
    """Return the patterns 1[Xw > 0] of all open cells, row by row, each decided by a linear program.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        A dozen rows at most, say; entries of a zero row are False.
    """
    rows = X.double().numpy()
    found: list[tuple[bool, ...]] = [()]
    for i, row in enumerate(rows):
        signs = (True, False) if row.any() else (False,)
        found = [(*p, s) for p in found for s in signs if _has_interior(rows[: i + 1], (*p, s))]
    return set(found)


def _has_interior(rows: Array, pattern: tuple[bool, ...]) -> bool:
    used = rows.any(axis=1)
    A = np.where(np.array(pattern)[:, None], rows, -rows)[used]
    if not len(A):
        return True
    A = A / np.linalg.norm(A, axis=1, keepdims=True)
    d = A.shape[1]
    # Largest t with A w >= t in the unit box.
    solved = linprog(
        np.append(np.zeros(d), -1.0),
        np.hstack([-A, np.ones((len(A), 1))]),
        np.zeros(len(A)),
        bounds=[(-1.0, 1.0)] * (d + 1),
    )
    return bool(-solved.fun > 1e-9)


def relu_polar_by_pieces(X: Tensor, Q: Tensor) -> float:
    """Return max |Q' relu(X w)| over the unit circle (d = 2), exactly up to rounding.

    Between two neighboring kinks |Q' relu(X w)|^2 is a quadratic form: its maximum is at an
    end or at an eigenvector.

    Parameters
    ----------
    X : Tensor, shape (n, 2)
    Q : Tensor, shape (n, K)
    """
    x, q = X.double().numpy(), Q.double().numpy()
    used = x[x.any(axis=1)]
    kinks = np.arctan2(used[:, 0], -used[:, 1])
    angles = np.unique(np.concatenate([kinks % math.pi, kinks % math.pi + math.pi, [0.0, math.pi]]))
    ends = np.append(angles, angles[0] + 2.0 * math.pi)
    points = [np.array([math.cos(a), math.sin(a)]) for a in ends]
    for a, b in itertools.pairwise(ends):
        middle = np.array([math.cos((a + b) / 2), math.sin((a + b) / 2)])
        M = q.T @ (x * (x @ middle > 0.0)[:, None])
        for vector in np.linalg.eigh(M.T @ M)[1].T:
            for w in (vector, -vector):
                if (math.atan2(w[1], w[0]) - a) % (2.0 * math.pi) <= b - a:
                    points.append(w)
    return max(_value(x, q, w) for w in points)


def relu_polar_by_sampling(X: Tensor, Q: Tensor, *, samples: int = 20_000, polish: int = 20) -> float:
    """Return the best |Q' relu(X w)| over many unit vectors, the best of them polished; a lower estimate.

    Parameters
    ----------
    X : Tensor, shape (n, d)
    Q : Tensor, shape (n, K)
    samples : int
        Random unit vectors.
    polish : int
        How many of the best are improved by Nelder and Mead's method.
    """
    x, q = X.double().numpy(), Q.double().numpy()
    W = np.random.default_rng(0).standard_normal((samples, x.shape[1]))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    values = np.linalg.norm(np.maximum(W @ x.T, 0.0) @ q, axis=1)
    best = float(values.max(initial=0.0))
    for i in np.argsort(-values)[:polish]:
        found = minimize(
            lambda w: -_value(x, q, w / max(1e-9, float(np.linalg.norm(w)))),
            W[i],
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 2000},
        )
        best = max(best, float(-found.fun))
    return best


def _value(x: Array, q: Array, w: Array) -> float:
    return float(np.linalg.norm(np.maximum(x @ w, 0.0) @ q))


def harmonic_kernel(X: Tensor, degree: int, d: int) -> Tensor:
    """Return the Gegenbauer polynomial of the inner products of unit rows, by NumPy's or SciPy's closed forms.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Unit rows.
    degree, d : int
        Of the polynomial, and of the space (d >= 2).
    """
    t = (X @ X.T).clamp(-1.0, 1.0).numpy()
    if d == 2:
        return torch.from_numpy(eval_chebyt(degree, t))
    at_one = float(eval_gegenbauer(degree, d / 2 - 1, 1.0))
    return torch.from_numpy(eval_gegenbauer(degree, d / 2 - 1, t) / at_one)
