"""Jacobians and slopes by differences, one coordinate or one pair at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def jacobian(function: Function, x: NDArray[np.float64], step: float = 1e-6) -> NDArray[np.float64]:
    """Return the Jacobian (outputs, inputs) at x by central differences."""
    columns = []
    for i in range(x.size):
        shift = np.zeros_like(x)
        shift.flat[i] = step
        columns.append((function(x + shift) - function(x - shift)).ravel() / (2.0 * step))
    return np.stack(columns, axis=1)


def largest_slope(function: Function, points: NDArray[np.float64]) -> float:
    """Return the largest ||f(a) - f(b)|| / ||a - b|| over all pairs of distinct points."""
    values = [function(point) for point in points]
    slopes = [0.0]
    for i in range(len(points)):
        for j in range(i):
            distance = float(np.linalg.norm(points[i] - points[j]))
            if distance > 0.0:
                slopes.append(float(np.linalg.norm(values[i] - values[j])) / distance)
    return max(slopes)
