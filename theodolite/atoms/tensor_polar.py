"""Upper bounds of the spectral norm of a tensor, each proved, the least of them kept."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from theodolite.atoms.inputs import unit
from theodolite.atoms.matrix_polar import prove, triplets
from theodolite.atoms.tensor_contractions import Dense, Sparse, unfold
from theodolite.atoms.tensor_relaxation import Relaxation, gram_error
from theodolite.core.params import Params
from theodolite.linalg.spectral import sigma_max

_DENSE = 2e7  # a tensor of more entries is not made dense
_LARGEST = 1500  # rows of the matrices whose eigenvalues are minimized
_CORE = 260  # the same on the subspaces where that begins
_CLOSED = 1e-8  # ends that meet
_NEAR, _FAR = (
    5e-4,
    0.02,
)  # above the target: how close a bound is good enough, and from where on to save the cost
# relative width of the first soft maximum: from zero, from the subspaces, from the answer to a similar tensor
_COLD, _WARM, _RESUMED = 0.1, 0.01, 3e-3
_SIMILAR = 1.05  # times the lower bound: an eigenvalue that makes an earlier answer a start

Memory = dict[tuple[tuple[int, ...], bool], list[Tensor]]
"""Coefficients of the last null matrices, by the modes S and sides, over the lower bound of that time."""

_EXTRA = 3  # directions of Q beyond those of the starts, in each mode of the core


def entries_of(Q: Tensor, dims: tuple[int, ...]) -> Dense | Sparse:
    """Return an unfolding, dense or sparse COO, as a tensor; a sparse one that is small enough as a dense one."""
    if not Q.is_sparse:
        return Dense(Q.reshape(dims))
    if math.prod(dims) <= _DENSE and math.prod(dims) <= 30 * len(Q.values()):
        return Dense(Q.to_dense().reshape(dims))
    rows, cols = Q.indices()
    return Sparse(torch.stack([rows, *torch.unravel_index(cols, dims[1:])]), Q.values(), dims)


def bipartitions(order: int) -> list[tuple[int, ...]]:
    """Return one side of each of the 2^(order - 1) - 1 ways to split the modes in two."""
    sides = [side for size in range(1, order // 2 + 1) for side in itertools.combinations(range(order), size)]
    return [side for side in sides if 2 * len(side) < order or 0 in side]


def upper_bound(
    tensor: Dense | Sparse,
    witness: Params,
    starts: Params | None,
    *,
    lower: float,
    target: float | None,
    seed: int,
    delta: float,
    deadline: float,
    memory: Memory,
) -> tuple[float, float, str]:
    """Return a proved upper bound of the spectral norm, its confidence and how it was proved.

    First the least norm of an unfolding, of all ways to split the modes in two: proved as in
    :class:`~theodolite.atoms.MatrixAtom`.  Then, for a dense tensor, the relaxation of
    :mod:`~theodolite.atoms.tensor_relaxation` where one of its matrices has at most 1500 rows: minimized on
    subspaces of the starts first, then on the whole.

    Parameters
    ----------
    tensor : Dense or Sparse
    witness, starts : Params
        Directions that attain much.
    lower : float
        A lower bound of the norm.
    target : float, optional
        What to stop at; nothing costly is tried when `lower` is far above.
    seed, delta : int, float
        Of randomized bounds, which only large sparse tensors need.
    deadline : float
    memory : dict
        Where large relaxations begin, updated: null matrices of one tensor give valid bounds of any other, so
        that only the time depends on it (and how close a bound is reached).
    """
    enough = -math.inf if target is None else target if target > lower else lower * (1.0 + _NEAR)
    best, confidence, note = math.inf, 1.0, ""
    sides = bipartitions(len(tensor.dims))
    share = delta / len(sides)
    hopeless = target is not None and lower > target * (1.0 + _FAR)
    for side in sorted(sides, key=lambda side: _size(tensor.dims, side)):
        if best < math.inf and (best <= enough or hopeless or time.monotonic() >= deadline):
            break
        proved, sure = _unfolding(tensor, side, lower, enough, share, seed)
        confidence += sure - 1.0  # the least is chosen after the fact: all must hold
        if proved < best:
            best, note = proved, f"unfolding with modes {', '.join(map(str, side))} as rows"
    closed = best <= max(enough, lower * (1.0 + _CLOSED))
    if isinstance(tensor, Dense) and not closed and not hopeless and time.monotonic() < deadline:
        relaxed = _relaxed(tensor.T.cpu(), witness, starts, lower, enough, deadline, memory)
        if relaxed < best:
            best, note = relaxed, "convex relaxation with null matrices"
            confidence = 1.0
    return best, confidence, "upper end: " + note


def _size(dims: Sequence[int], side: tuple[int, ...]) -> int:
    rows = math.prod(dims[k] for k in side)
    return min(rows, math.prod(dims) // rows)


def _unfolding(
    tensor: Dense | Sparse, side: tuple[int, ...], lower: float, enough: float, delta: float, seed: int
) -> tuple[float, float]:
    """Return a proved bound of the norm of one unfolding, and its confidence."""
    if isinstance(tensor, Dense):
        matrix = unfold(tensor.T, side)
        if min(matrix.shape) <= 1024:
            proved = sigma_max(matrix, method="inertia", tol=1e-10)
            return proved.high, 1.0
    else:
        rest = [k for k in range(len(tensor.dims)) if k not in side]
        places, counts = [], []
        for modes in (side, rest):
            place = torch.zeros_like(tensor.index[0])
            for k in modes:
                place = place * tensor.dims[k] + tensor.index[k]
            # only the rows and columns with an entry matter: of several modes there may be billions
            used, place = torch.unique(place, return_inverse=True)
            places.append(place)
            counts.append(len(used))
        matrix = torch.sparse_coo_tensor(
            torch.stack(places), tensor.values, counts, check_invariants=False
        ).coalesce()
    left, right, q = triplets(matrix, None, 8, seed)
    proved = prove(matrix, (left[:, :q], right[:, :q]), delta, seed, max(enough, lower))
    return proved.high, proved.confidence


def _relaxed(
    T: Tensor,
    witness: Params,
    starts: Params | None,
    lower: float,
    enough: float,
    deadline: float,
    memory: Memory,
) -> float:
    """Return the least proved bound of some relaxations, inf where their matrices are too large."""
    best = math.inf
    for size, modes, both in _choices(T.shape):
        # where one is not exact another may be, but large ones cost too much to try
        if best <= max(enough, lower * (1.0 + _CLOSED)) or (best < math.inf and size > _CORE):
            break
        whole = Relaxation.of(T, modes, both=both)
        error = 0.0 if both else gram_error(T, modes)
        enough_here, least = (x**2 if x > 0.0 and not both else x for x in (enough, lower))
        # the proof adds rounding
        goal = {"enough": enough_here * (1.0 - 1e-9), "least": least, "deadline": deadline}
        parts, softest = whole.zero(), _COLD
        if size > _CORE:
            before = [least * c for c in memory.get((modes, both), [])]
            if before and whole.largest(before) <= _SIMILAR * least:
                parts, softest = before, _RESUMED
            else:
                core, frame = whole.compressed(_bases(T, witness, starts, modes, both))
                small, _ = core.minimize(core.zero(), **goal, softest=_COLD)
                parts, softest = whole.coefficients(frame @ core.null(small) @ frame.T), _WARM
        parts, _ = whole.minimize(parts, **goal, softest=softest)
        if size > _CORE and least > 0.0:
            memory[modes, both] = [c / least for c in parts]
        best = min(best, whole.prove(parts, error))
        if time.monotonic() >= deadline:
            break
    return best


def _choices(dims: Sequence[int]) -> list[tuple[int, tuple[int, ...], bool]]:
    """Return rows of the matrix, modes S, and whether both sides get null matrices, smallest first.

    Both sides do for order 4 and more, where that is affordable.
    """
    order, choices = len(dims), []
    for side in bipartitions(order):
        rows = math.prod(dims[k] for k in side)
        if len(side) > 1:
            choices.append((rows + math.prod(dims) // rows, side, True))
    if not any(size <= _LARGEST for size, _, _ in choices):
        pairs = itertools.combinations(range(order), 2)
        choices = [(math.prod(dims[k] for k in side), side, False) for side in pairs]
    return sorted(choice for choice in choices if choice[0] <= _LARGEST)


def _bases(
    T: Tensor, witness: Params, starts: Params | None, modes: tuple[int, ...], both: bool
) -> list[list[Tensor]]:
    """Return orthonormal bases, for each mode of each side, of the starts' span and leading directions beside it."""
    rest = tuple(k for k in range(T.ndim) if k not in modes)
    sides = [modes, rest] if both else [modes]
    room = int((_CORE / len(sides)) ** (1.0 / max(map(len, sides))))
    bases = {}
    for k in itertools.chain(*sides):
        found = witness[k].cpu() if starts is None else torch.cat([starts[k].cpu(), witness[k].cpu()])
        U, s, _ = torch.linalg.svd(unit(found).T, full_matrices=False)
        U = U[:, s > 1e-3 * s[0]][:, : max(1, room - _EXTRA)]
        A = unfold(T, (k,))
        A = A - U @ (U.T @ A)
        beside = torch.linalg.eigh(A @ A.T).eigenvectors[:, -max(1, room - U.shape[1]) :]
        bases[k] = torch.linalg.qr(torch.cat([U, beside], 1))[0][:, : min(room, T.shape[k])]
    return [[bases[k] for k in side] for side in sides]
