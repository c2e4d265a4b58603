r"""The deterministic penalties that dropout amounts to, in closed form.

For a squared loss and masks of mean one and variance :math:`\kappa=p/(1-p)`, independent across
what is masked, the expected loss is the loss without masks plus a penalty:

==========================  ==================================================================
units, :math:`UV^\top`      :math:`\kappa\sum_k\|u_k\|^2\|v_k\|^2`
blocks of units             :math:`\kappa\sum_b\|U_bV_b^\top\|_F^2`
weights of U                :math:`\kappa\sum_k\|u_k\|^2\|v_k\|^2`, as for units
weights of V                :math:`\kappa\sum_{k,j}\|u_k\|^2V_{jk}^2\|x_j\|^2`
last layer of any network   :math:`\kappa\sum_k\|u_k\|^2\sum_nh_k(x_n)^2`
==========================  ==================================================================

All are sums, never averages: a loss that is averaged over N numbers divides its penalty by N.  One
mask for all samples or one for each: the expectation is the same.  With inputs X, a column a
sample, the model is :math:`Y\approx UV^\top X` and :math:`V^\top X` takes the place of :math:`V^\top`.
Sources: Cavazza et al., arXiv 1710.05092; Pal et al., arXiv 1910.14186; Wager, Wang and Liang, arXiv
1307.1493.  Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from theodolite.linalg.dense import all_finite
from theodolite.nn.dropout import Side, kappa
from theodolite.value import Value

_CHUNK = 1 << 22  # entries of a product of blocks that are held at once


def as_matrix(given: Any, name: str) -> Tensor:
    """Return a finite matrix as a float64 tensor on the CPU, or refuse it.

    Raises
    ------
    ValueError
        If it has not two dimensions, or an entry is not finite.
    """
    matrix = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
    if matrix.ndim != 2:
        raise ValueError(f"{name}: expected a matrix, got shape {tuple(matrix.shape)}")
    if not all_finite(matrix):
        raise ValueError(f"{name}: expected finite entries, got NaN or infinity")
    return matrix


def read_factors(U: Any, V: Any, inputs: Any = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return factors U (m, r) and V (d, r), and inputs (d, n) or None, as float64 tensors, or refuse them."""
    U, V = as_matrix(U, "U"), as_matrix(V, "V")
    if U.shape[1] != V.shape[1]:
        raise ValueError(f"U, V: expected as many columns in both, got {U.shape[1]} and {V.shape[1]}")
    X = None if inputs is None else as_matrix(inputs, "inputs")
    if X is not None and len(X) != len(V):
        raise ValueError(f"inputs: expected {len(V)} rows, one for each of V, got {len(X)}")
    return U, V, X


def dropout_regularizer(U: Any, V: Any, p: float, *, inputs: Any = None, observed: Any = None) -> Value:
    r"""Return what dropout of the columns of U and V adds to the squared error of :math:`UV^\top`.

    Parameters
    ----------
    U, V : array or Tensor, shapes (m, r) and (n, r)
    p : float
        Probability of dropping a unit, in [0, 1).
    inputs : array or Tensor, shape (n, samples), optional
        X of the model :math:`UV^\top X`.
    observed : array or Tensor of bool, shape (m, n), optional
        Entries that the squared error is over; all of them by default.  With missing entries the penalty is
        :math:`\kappa\sum_k\sum_{(i,j)\text{ observed}}u_{ik}^2v_{jk}^2`, which has nothing to do with the nuclear norm.

    Returns
    -------
    Value
        `exact`.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, or p is out of range.
    """
    U, V, X = read_factors(U, V, inputs)
    hidden = V if X is None else X.T @ V
    if observed is None:
        return feature_regularizer(hidden, U, p)
    seen = torch.as_tensor(observed).cpu()
    if seen.shape != (len(U), len(hidden)):
        expected = (len(U), len(hidden))
        raise ValueError(f"observed: expected shape {expected}, got {tuple(seen.shape)}")
    total = float((U.square() * (seen.bool().double() @ hidden.square())).sum())
    return Value.exact(kappa(p) * total, note="summed over the observed entries")


def dropblock_regularizer(U: Any, V: Any, block: int, p: float, *, inputs: Any = None) -> Value:
    """Return what dropout of disjoint blocks of `block` consecutive units adds; see `dropout_regularizer`."""
    U, V, X = read_factors(U, V, inputs)
    return feature_regularizer(V if X is None else X.T @ V, U, p, block=block)


def dropconnect_regularizer(U: Any, V: Any, p: float, *, side: Side, inputs: Any = None) -> Value:
    r"""Return what dropping single weights adds to the squared error of :math:`UV^\top` or :math:`UV^\top X`.

    Parameters
    ----------
    U, V, p, inputs
        As in :func:`dropout_regularizer`.
    side : {"out", "in"}
        Whether entries of U or entries of V are dropped.
    """
    U, V, X = read_factors(U, V, inputs)
    if side not in ("in", "out"):
        raise ValueError(f"side: expected 'in' or 'out', got {side!r}")
    if side == "out" or X is None:
        return feature_regularizer(V if X is None else X.T @ V, U, p)
    total = U.square().sum(0) @ (V.square().T @ X.square().sum(1))
    return Value.exact(kappa(p) * float(total), note="equal to dropout of units if features are orthogonal")


def feature_regularizer(features: Any, outgoing: Any, p: float, *, block: int = 1) -> Value:
    r"""Return :math:`\kappa\sum_{n,b}\|U_bh_{nb}\|^2`, which dropout before a last linear layer adds.

    Exact for a squared loss and any network below, whose features :math:`h` are those without masks.
    For units one by one it is :math:`\kappa\sum_k\|u_k\|^2\sum_nh_{nk}^2`.

    Parameters
    ----------
    features : array or Tensor, shape (n, r)
        What is dropped, without masks.
    outgoing : array or Tensor, shape (k, r)
        Weights U of the linear map that reads it.
    p : float
        Probability of dropping a unit, or a block of them.
    block : int
        Consecutive units that are dropped together.
    """
    H, U = as_matrix(features, "features"), as_matrix(outgoing, "outgoing")
    _check_units(H, U, block)
    if block == 1:
        return Value.exact(kappa(p) * float(H.square().sum(0) @ U.square().sum(0)))
    return Value.exact(kappa(p) * sum(float(z.square().sum()) for z in _shares(H, U, block)))


def softmax_score(features: Any, outgoing: Any, probabilities: Any, p: float, *, block: int = 1) -> Value:
    r"""Return the second-order penalty of dropout under cross-entropy, summed over samples.

    :math:`\frac\kappa2\sum_{n,b}(U_bh_{nb})^\top(\operatorname{diag}\pi_n-\pi_n\pi_n^\top)U_bh_{nb}`: Taylor's
    second term of the expected loss.  It is close to that where each unit contributes little to the outputs;
    a small rate does not make it so, for a unit that is seldom dropped is still dropped as a whole.

    Parameters
    ----------
    features, outgoing, p, block
        As in :func:`feature_regularizer`.
    probabilities : array or Tensor, shape (n, k)
        Softmax of the outputs without masks.

    Returns
    -------
    Value
        A `score`.
    """
    H, U, P = (
        as_matrix(features, "features"),
        as_matrix(outgoing, "outgoing"),
        as_matrix(probabilities, "probabilities"),
    )
    _check_units(H, U, block)
    if P.shape != (len(H), len(U)):
        raise ValueError(f"probabilities: expected shape {(len(H), len(U))}, got {tuple(P.shape)}")
    if block == 1:
        total = float((H.square() * (P @ U.square() - (P @ U).square())).sum())
    else:
        total, start = 0.0, 0
        for shares in _shares(H, U, block):
            pi = P[start : start + len(shares), None]
            total += float(((pi * shares.square()).sum(2) - (pi * shares).sum(2).square()).sum())
            start += len(shares)
    return Value.score(0.5 * kappa(p) * total, note="Taylor's second term; not a bound")


def _check_units(H: Tensor, U: Tensor, block: int) -> None:
    if H.shape[1] != U.shape[1]:
        raise ValueError(f"features, outgoing: expected as many columns, got {H.shape[1]} and {U.shape[1]}")
    if block < 1 or H.shape[1] % block:
        raise ValueError(f"block: expected a divisor of the {H.shape[1]} units, got {block!r}")


def _shares(H: Tensor, U: Tensor, block: int) -> list[Tensor]:
    """Return what each block contributes to each output, shape (rows, blocks, k), some rows at a time."""
    per_block = U.T.reshape(-1, block, len(U))
    rows = max(1, _CHUNK // max(1, per_block.shape[0] * len(U)))
    return [torch.einsum("nbi,bik->nbk", h.reshape(len(h), -1, block), per_block) for h in H.split(rows)]


def deep_dropout_regularizer(weights: Sequence[Any], rates: Sequence[float], *, inputs: Any = None) -> Value:
    r"""Return what dropout after every hidden layer of a deep linear network adds to its squared error.

    The second moment of the units is carried through the layers: :math:`C\mapsto C+\kappa_i\operatorname{diag}C`
    by masks, :math:`C\mapsto WCW^\top` by weights; the penalty is the trace at the end less that without masks.

    Parameters
    ----------
    weights : sequence of array or Tensor
        :math:`W_1,\dots,W_{h+1}` of shapes (d_1, d_0), (d_2, d_1), ...; the network is :math:`W_{h+1}\cdots W_1`.
    rates : sequence of h floats
        Probability of dropping a unit of each hidden layer.
    inputs : array or Tensor, shape (d_0, n), optional
        The identity by default: uncorrelated inputs.
    """
    layers = read_layers(weights)
    if len(rates) != len(layers) - 1:
        raise ValueError(f"rates: expected {len(layers) - 1}, one for each hidden layer, got {len(rates)}")
    X = None if inputs is None else as_matrix(inputs, "inputs")
    if X is not None and len(X) != layers[0].shape[1]:
        raise ValueError(f"inputs: expected {layers[0].shape[1]} rows, got {len(X)}")
    first = layers[0] if X is None else layers[0] @ X
    mean, extra = first @ first.T, torch.zeros(len(first), len(first), dtype=torch.float64)
    for weight, p in zip(layers[1:], rates, strict=True):
        # the excess alone, so that nothing cancels
        extra = extra + kappa(p) * (mean + extra).diagonal().diag()
        mean, extra = weight @ mean @ weight.T, weight @ extra @ weight.T
    return Value.exact(float(extra.trace()))


def read_layers(weights: Sequence[Any]) -> list[Tensor]:
    """Return the weights of a deep linear network as float64 tensors, or refuse them."""
    layers = [as_matrix(weight, f"weights[{i}]") for i, weight in enumerate(weights)]
    if len(layers) < 2:
        raise ValueError(f"weights: expected at least two layers, got {len(layers)}")
    for i, (before, after) in enumerate(pairwise(layers)):
        if after.shape[1] != len(before):
            raise ValueError(f"weights[{i + 1}]: expected {len(before)} columns, got {after.shape[1]}")
    return layers


def monte_carlo(
    draw: Callable[[], float], draws: int = 30, *, confidence: float = 0.95, unit: str = ""
) -> Value:
    """Return the mean of independent draws with Student's interval.

    Parameters
    ----------
    draw : function() -> float
        One draw, of the loss with masks less that without on the same samples.
    draws : int
        At least two.
    confidence : float
        Of the interval, which supposes that draws are normal; each should itself average many masks.
    unit : str

    Returns
    -------
    Value
        An `estimate`.
    """
    if draws < 2:
        raise ValueError(f"draws: expected at least 2, got {draws!r}")
    drawn = torch.tensor([draw() for _ in range(draws)], dtype=torch.float64)
    mean, error = float(drawn.mean()), float(drawn.std()) / math.sqrt(draws)
    half = float(student.ppf(0.5 + 0.5 * confidence, draws - 1)) * error
    note = f"{draws} independent draws"
    return Value.estimate(mean, mean - half, mean + half, confidence=confidence, unit=unit, note=note)
