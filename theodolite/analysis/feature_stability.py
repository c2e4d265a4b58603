r"""What frame bounds prove about the features of a translated or deformed input.

*Vertical invariance.*  Let g be the network up to an average over windows, of total stride P, and
let it commute with the shifts by multiples of P, as its operations show (circular padding, strides
that divide the sizes, pointwise nonlinearities).  Such a shift leaves g(0) as it is, so the average
a of g moves by at most

.. math:: \|a * (T_c g(x) - g(x))\| \le \max_\omega |\hat a(\omega)| |e^{-i \omega c} - 1| \, \|g(x) - g(0)\|
          \le |c| \max_\omega |\omega| |\hat a(\omega)| \, \Lambda \|x\|,

c the shift in positions of g and :math:`\Lambda` a Lipschitz constant of g.  This is the statement of
Wiatowski and Boelcskei, :math:`|t| K / (S_1 \cdots S_n)`, with its constant; a trained network has
none of their output filters, so that without such an average there is nothing to state.

*Deformation sensitivity.*  For an x with frequencies in :math:`|\omega| \le R` (radians a pixel) and
a displacement :math:`\tau`, with the derivatives of the periodic interpolant,

.. math:: x(u - \tau(u)) - x(u) = \sum_{k \ge 1} \frac{(-\tau(u) \cdot \nabla)^k x(u)}{k!}, \qquad
          \sum_u |(\tau(u) \cdot \nabla)^k x(u)|^2 \le (\|\tau\|_\infty R)^{2k} \|x\|^2

by the inequality of Cauchy and Schwarz at each pixel and Parseval's identity over all of them, hence
:math:`\|L_\tau x - x\| \le (e^{R \|\tau\|_\infty} - 1) \|x\|` for the warped image on its pixels, whatever
the gradient of :math:`\tau`.  In the L2 norm of the interpolant
:math:`\|L_\tau x - x\| \le \frac{2 (1 - \sqrt{1 - a})}{a} R \|\tau\|_\infty \|x\|` where
:math:`a = d \max |\partial_i \tau_j| < 1`, a factor of 1.172 at a = 1/2.  Either times a Lipschitz
constant of the features bounds what they move.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from theodolite.analysis import pooling
from theodolite.analysis.admissibility import Admissibility
from theodolite.analysis.deformation import elementary_factor
from theodolite.analysis.graph import Node
from theodolite.analysis.spatial import Layout
from theodolite.analysis.translation_action import Action, faults
from theodolite.value import Value, format_number

_PER_SHIFT = "per pixel of the shift, per norm of the input"


def deformation_sensitivity(found: Admissibility, dimensions: int) -> Value:
    r"""Return a proved bound of what a deformation moves the features by, for band-limited inputs.

    Parameters
    ----------
    found : Admissibility
    dimensions : int
        Of the images: 1, 2 or 3.

    Returns
    -------
    Value
        :math:`1.172 \Lambda`, to be multiplied by :math:`R \|\tau\|_\infty \|x\|`; absent where the
        features have no Lipschitz constant.
    """
    constant = found.constant
    if constant.upper is None:
        return constant
    steepest = 1.0 / (2.0 * dimensions)
    factor = elementary_factor(dimensions * steepest, steepest, dimensions)
    return Value.bound(
        upper=factor * constant.high * (1.0 + 1e-12),
        unit="per R |tau| |x|",
        confidence=constant.confidence,
        note="R the largest frequency in radians a pixel, |d tau| <= 1/(2d) entrywise, in the L2 norm of the "
        "interpolant; for the warped image on its pixels, without that condition: "
        f"{format_number(constant.high, 'up')} (exp(R |tau|) - 1) |x|",
    )


def vertical_invariance(found: Admissibility, action: Action | None) -> Value:
    """Return a proved bound of what a translation moves the features by, where there is a low-pass.

    Parameters
    ----------
    found : Admissibility
    action : Action or None
        How translations act on the network.

    Returns
    -------
    Value
        To be multiplied by the length of the shift in pixels and the input's norm, for shifts by
        multiples of the total stride before the average; absent, with the reason, where the
        hypotheses fail.
    """
    if action is None:
        return _absent("no translation is known to act on the inputs")
    average, reason = _average(found, action)
    if average is None:
        return _absent(reason)
    source: Node = average.args[0]
    blamed = faults(action.steps).get(source)
    if blamed is not None:
        return _absent(f"{blamed.where} {action.steps[blamed].fault}", blamed)
    constants = found.lipschitz.constants
    if found.features not in constants:
        return Value.absent(found.lipschitz.witness, note=found.lipschitz.reason)
    layout = action.steps[source].layout
    period = " x ".join(str(layout.period[axis]) for axis in sorted(layout.period) if axis < len(action.dims))
    note = f"for shifts by multiples of {period} pixels"
    after = constants[found.features] / constants[average] if constants[average] > 0.0 else 0.0
    factor = _low_pass(average, layout)
    if factor is None:
        return _absent(f"{average.where} does not average equally over windows inside the grid", average)
    return Value.bound(
        upper=factor * constants[source] * after * (1.0 + 1e-12),
        unit=_PER_SHIFT,
        confidence=found.lipschitz.confidence,
        note=note + (": the average over all positions moves with none of them" if factor == 0.0 else ""),
    )


def _absent(reason: str, node: Node | None = None) -> Value:
    witness = reason if node is None else node.layer or node.op
    return Value.absent(witness, note=f"not stated: {reason}")


def _average(found: Admissibility, action: Action) -> tuple[Node | None, str]:
    """Return the last average over positions, which everything passes on the way to the features."""
    node = found.features
    while node in action.steps and node is not action.root:
        sources = list(dict.fromkeys(s for s in node.inputs if s in action.steps))
        if node.op in pooling.AVERAGE_POOLS or node.op == "mean":
            before, after = (action.steps[n].layout for n in (sources[0], node))
            if isinstance(before, Layout) and any(before.has(axis) for axis in before.stride):
                gone = isinstance(after, Layout) and not any(after.has(axis) for axis in after.stride)
                if gone or node.op != "mean":
                    return node, ""
        if len(sources) != 1:
            break
        node = sources[0]
    return None, "no average over positions stands between the last nonlinearity and the classifier"


def _low_pass(node: Node, layout: Layout) -> float | None:
    r"""Return :math:`\max |\omega| |\hat a(\omega)|`, in radians per pixel of the input, or None for uneven windows.

    Of the frequencies that fold onto one by the average's stride the mean of the squares counts.
    """
    if node.op == "mean":
        return 0.0
    windows = pooling.pool_windows(node)
    labels = layout.labels[-len(windows) :]
    if any(label is None or len(label) != 1 for label in labels):
        return None
    squares = torch.ones((), dtype=torch.float64)
    speed = torch.zeros((), dtype=torch.float64)
    strides = []
    for window, label in zip(windows, labels, strict=True):
        assert label is not None
        k, remainder = divmod(len(window.inputs), max(1, window.n_out))
        even = remainder == 0 and bool(
            torch.isclose(window.weights * k, torch.ones(1, dtype=torch.float64)).all()
        )
        if not even or window.n != layout.grid[label[0]]:
            return None
        omega = 2.0 * math.pi * torch.fft.fftfreq(window.n, dtype=torch.float64)
        kernel = torch.zeros(window.n, dtype=torch.float64)
        kernel[:k] = 1.0 / k
        squares = squares[..., None] * torch.fft.fft(kernel).abs().square()
        speed = speed[..., None] + (omega / float(layout.stride[label[0]])).square()
        apart = int(window.inputs[k] - window.inputs[0]) if window.n_out > 1 else window.n
        strides.append(apart if window.n % apart == 0 and window.n_out * apart <= window.n else 1)
    if all(window.n_out == 1 and len(window.inputs) == window.n for window in windows):
        return 0.0
    return _folded(squares * speed, strides)


def _folded(power: Tensor, strides: list[int]) -> float:
    for axis, stride in enumerate(strides):
        power = power.unflatten(axis, (stride, -1)).mean(axis)
    return math.sqrt(float(power.max()))
