"""The maximum of a concave function of one variable, in few evaluations and with a proof."""

from __future__ import annotations

import math
from collections.abc import Callable

_GOLDEN = 0.381966
_END = 1e-7
_GROW = 4.0
_TINY = 1e-300


def maximize_concave(
    objective: Callable[[float], float], top: float, *, tolerance: float = 1e-11, limit: int = 100
) -> tuple[float, float]:
    """Maximize a concave function over [0, top].

    A bracket a < b < c with f(b) >= f(a), f(c) shrinks by parabolas, and by golden sections
    where they fail.  By concavity f stays below the secant of b and c on [a, b], and below
    that of a and b on [b, c]; the search ends when both are within the tolerance at the
    ends of the bracket, so that what is left to gain is known and not guessed.

    Parameters
    ----------
    objective : function(float) -> float
        May be -inf, but not at 0.
    top : float
        End of the interval; may be inf.  The search starts from 1 and grows.
    tolerance : float
        Relative to the size of f(0) or of the maximum, whichever is larger.
    limit : int
        Evaluations at most.

    Returns
    -------
    t, maximum : float
        The best point seen.
    """
    at_zero = objective(0.0)
    if not top > 0.0:
        return 0.0, at_zero
    a, fa, b, fb = 0.0, at_zero, 0.0, at_zero
    c = min(1.0, top)
    fc = objective(c)
    spent = 2
    while fc > fb and c < top:
        a, fa, b, fb = b, fb, c, fc
        if spent >= limit:
            return b, fb
        c = min(_GROW * c, top)
        fc = objective(c)
        spent += 1
    if fc > fb:  # the end is best so far: is it still rising there?
        near = c * (1.0 - _END)
        f_near = objective(near)
        if f_near <= fc:
            return c, fc
        a, fa, b, fb = b, fb, near, f_near
    elif b == 0.0:  # is it falling from the start?
        near = c * _END
        f_near = objective(near)
        if f_near <= at_zero:
            return 0.0, at_zero
        b, fb = near, f_near
    width = c - a
    for turn in range(limit - spent - 1):
        left, right = b - a, c - b
        rise, fall = (fb - fa) / left, (fb - fc) / right
        enough = tolerance * max(abs(fb), abs(at_zero), _TINY)
        if max(fall * left, rise * right) <= enough or max(left, right) <= 4e-16 * b:
            break
        side, wide = (1.0, right) if right >= left else (-1.0, left)
        slow = turn % 3 == 2 and c - a > 0.5 * width
        if turn % 3 == 2:
            width = c - a
        bend = rise + fall
        if slow or not (math.isfinite(bend) and bend > 0.0):
            x = b + side * _GOLDEN * wide
        else:
            step = (rise * right - fall * left) / (2.0 * bend)
            # near the vertex, step over it: that brings in the far end of the bracket
            narrow = 0.5 * math.sqrt(enough * (c - a) / bend)
            x = b + (step if abs(step) >= 0.1 * wide else side * max(2.0 * abs(step), narrow))
            if not a < x < c or x == b:
                x = b + side * _GOLDEN * wide
        fx = objective(x)
        if fx > fb:
            a, fa, c, fc = (b, fb, c, fc) if x > b else (a, fa, b, fb)
            b, fb = x, fx
        elif x > b:
            c, fc = x, fx
        else:
            a, fa = x, fx
    return b, fb
