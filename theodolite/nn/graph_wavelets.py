r"""Banks of wavelets on the nodes of a weighted graph, and what they do to energy.

Each filter is a function of one symmetric matrix: of :math:`T=\frac12(I+D^{-1/2}WD^{-1/2})`, one step of a lazy walk with
eigenvalues in [0, 1], or of a Laplacian.  So :math:`\|x\|^2` becomes :math:`\sum_k g_k(\lambda)^2|\hat x(\lambda)|^2` at
each eigenvalue, and the frame bounds are the extremes of :math:`\sum_kg_k^2` over the spectrum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from theodolite.nn.adjacency import Laplacian, csr_tensor, laplacian_matrix, lazy_walk, read_adjacency
from theodolite.nn.graph_kernels import GraphNorm, cubic, hann, walk_powers
from theodolite.nn.scattering_shared import check_counts
from theodolite.nn.wavelets import FrameBounds
from theodolite.value import Value

__all__ = ["BANKS", "GraphBank", "graph_bank"]

GraphBankName = Literal["diffusion", "geometric", "hann", "cubic"]
BANKS = ("diffusion", "geometric", "hann", "cubic")
_EIGENVECTORS = 1024  # nodes up to which a walk's filters are applied through eigenvectors
_EIGENVALUES = 4096  # nodes up to which the eigenvalues of a walk are computed for its frame bounds
_SPECTRAL = 10_000  # nodes beyond which a bank that needs eigenvectors is refused
_STEPS = 16  # octaves of a walk that is applied step by step
_EXTREME = "extreme of the responses' squares, summed, over the eigenvalues"


@dataclass(frozen=True, eq=False)
class GraphBank:
    r"""A low-pass and J wavelets on a graph of n nodes.

    Attributes
    ----------
    name : {"diffusion", "geometric", "hann", "cubic"}
    J : int
        Number of wavelets.
    weights : Tensor, shape (n,), float64
        Those of the norm :math:`(\sum_v|x_v|^2/w_v)^{1/2}` in which the frame bounds hold: ones, or for "geometric" the
        degrees.
    eigenvalues : Tensor, shape (n,), float64, or None
        Of the walk, ascending, or of the Laplacian; None where the walk is applied step by step.
    vectors : Tensor, shape (n, n), float64, or None
        Eigenvectors as columns.
    walk : scipy.sparse.csr_array or None
        T, for the banks that are powers of it.
    laplacian, top, norm
        As given to :func:`graph_bank`; `top` as resolved.
    """

    name: GraphBankName
    J: int
    weights: Tensor
    eigenvalues: Tensor | None
    vectors: Tensor | None
    walk: Any
    laplacian: Laplacian
    top: float
    norm: GraphNorm
    _tables: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = field(
        default_factory=dict, repr=False
    )

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.weights)

    @property
    def responses(self) -> Tensor | None:
        """Values of the filters at the eigenvalues, shape (J + 1, n), low-pass first; None without eigenvalues."""
        return None if self.eigenvalues is None else self.kernels(self.eigenvalues)

    def kernels(self, frequencies: Tensor) -> Tensor:
        """Return the functions that the filters are of their matrix, shape (J + 1, ...), low-pass first."""
        if self.walk is not None:
            return walk_powers(frequencies, self.J)
        if self.name == "hann":
            return hann(frequencies, self.J, self.top)
        return cubic(frequencies, self.J, self.top, self.norm)

    def frame_bounds(self) -> FrameBounds:
        r"""Return the frame bounds, in the norm of `weights`.

        Notes
        -----
        The responses of "diffusion" and "geometric" are non-negative and sum to 1, so that
        :math:`\frac1{J+1}\le\sum_kg_k^2\le1`; at the eigenvalue 1, which every walk has, the sum is 1.  Its minimum is exact
        where eigenvalues are computed: up to 4,096 nodes.  Those of "hann" are 1 at every frequency by construction.
        """
        upper = self.upper_frame_bound()
        if self.name == "hann":
            return FrameBounds(upper, upper)
        values = self.eigenvalues
        if values is None and self.n > _EIGENVALUES:
            note = "the responses are non-negative and sum to 1"
            return FrameBounds(Value.bound(lower=1.0 / (self.J + 1), note=note), upper)
        if values is None:
            values = torch.linalg.eigvalsh(torch.from_numpy(self.walk.toarray()))
        least = float(self.kernels(values).square().sum(0).min())
        return FrameBounds(Value.exact(min(least, upper.high), note=_EXTREME), upper)

    def upper_frame_bound(self) -> Value:
        """Return the upper of the frame bounds, which takes no eigenvalues of a walk."""
        if self.name == "hann":
            return Value.exact(1.0, note="squares of the responses sum to 1 at every frequency")
        if self.walk is not None:
            return Value.exact(1.0, note="attained at the eigenvalue 1, which every walk has")
        assert self.eigenvalues is not None
        return Value.exact(float(self.kernels(self.eigenvalues).square().sum(0).max()), note=_EXTREME)

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the filters make of signals (..., n): (..., J + 1, n), low-pass first."""
        return self._weighted(x, whole=True)

    def lowpass(self, x: Tensor) -> Tensor:
        """Return the low-pass of signals (..., n)."""
        return self._weighted(x, whole=False).squeeze(-2)

    def _weighted(self, x: Tensor, whole: bool) -> Tensor:
        if self.name != "geometric":
            return self.symmetric(x, whole)
        root = self._table(x)["root"]  # P = D^1/2 T D^-1/2, and so is each function of it
        return self.symmetric(x / root, whole) * root

    def symmetric(self, x: Tensor, whole: bool = True) -> Tensor:
        """Return the filters of signals (..., n), or the low-pass alone, without the weights of "geometric"."""
        table, rows = self._table(x), x.reshape(-1, self.n)
        if "vectors" in table:
            responses = table["responses"] if whole else table["responses"][:1]
            found = (rows @ table["vectors"]).unsqueeze(1) * responses @ table["vectors"].T
        else:
            found = torch.stack(self._walked(table["walk"], rows.T, whole)).permute(2, 0, 1)
        return found.reshape(*x.shape[:-1], found.shape[1], self.n)

    def _walked(self, T: Tensor, now: Tensor, whole: bool) -> list[Tensor]:
        """Return what powers of T make of columns (n, r), low-pass first."""
        bands = []
        for j in range(self.J):
            before = now
            now = self._octave(T, now, j)
            if whole:
                bands.append(before - now)
        return [now, *bands]

    @staticmethod
    def _octave(T: Tensor, now: Tensor, j: int) -> Tensor:
        """Return T^(2^(j - 1)) of columns; T itself for j = 0, so that all octaves below j are 2^(j - 1) products."""
        for _ in range(max(1, 2**j // 2)):
            now = T @ now
        return now

    def symmetric_adjoint(self, y: Tensor) -> Tensor:
        """Return the sum of what each filter makes of one signal, y of shape (J + 1, n), without weights."""
        table = self._table(y)
        if "vectors" in table:
            return ((y @ table["vectors"]) * table["responses"]).sum(0) @ table["vectors"].T
        total = y[0]  # Horner's rule: filters are differences of successive powers
        for j in range(self.J - 1, -1, -1):
            total = self._octave(table["walk"], total - y[j + 1], j) + y[j + 1]
        return total

    def like(self, W: Any) -> GraphBank:
        """Return the bank with the same kernels on another graph."""
        return graph_bank(W, self.J, self.name, laplacian=self.laplacian, top=self.top, norm=self.norm)

    def _table(self, x: Tensor) -> dict[str, Tensor]:
        """Return what signals of a precision on a device are multiplied by; it is kept."""
        key = (x.dtype, x.device)
        if key not in self._tables:
            table: dict[str, Tensor] = {}
            if self.vectors is not None and self.responses is not None:
                table = {"vectors": self.vectors, "responses": self.responses}
            else:
                table = {"walk": csr_tensor(self.walk)}
            if self.name == "geometric":
                table["root"] = self.weights.sqrt()
            self._tables[key] = {name: value.to(x.device, x.dtype) for name, value in table.items()}
        return self._tables[key]


def graph_bank(
    W: Any,
    J: int,
    bank: GraphBankName = "diffusion",
    *,
    laplacian: Laplacian = "normalized",
    top: float | None = None,
    norm: GraphNorm = "B1",
) -> GraphBank:
    r"""Return a bank of J wavelets and a low-pass on a graph.

    Parameters
    ----------
    W : Tensor, array or scipy sparse matrix, shape (n, n)
        Weights of the edges: non-negative, symmetric.  A node without edges counts as having a loop: a walk stays there.
    J : int
        Number of wavelets.
    bank : {"diffusion", "geometric", "hann", "cubic"}
        "diffusion": :math:`\psi_0=I-T`, :math:`\psi_j=T^{2^{j-1}}-T^{2^j}`, low-pass :math:`T^{2^{J-1}}`.  "geometric": the
        same of the walk :math:`P=\frac12(I+WD^{-1})=D^{1/2}TD^{-1/2}`.  "hann": Hann windows of three octaves, one octave
        apart on the logarithm of the Laplacian's frequency; the first wavelet takes all that is higher, the low-pass all that
        is lower, and squares sum to 1.  "cubic": powers of two either side of a cubic, at logarithmically spaced scales.
    laplacian : {"normalized", "combinatorial"}
        For "hann" and "cubic": :math:`I-D^{-1/2}WD^{-1/2}`, or :math:`D-W`.
    top : float, optional
        For "hann" and "cubic": frequency from which octaves are counted down.  By default 2, or for the combinatorial Laplacian
        its largest eigenvalue.
    norm : {"B1", "reference"}
        For "cubic": divided by one number so that the upper frame bound is at most 1 on any graph, or as published.

    Raises
    ------
    ValueError
        If W is not such a matrix, or an argument is out of range: "hann" and "cubic" need eigenvectors, hence at most 10,000
        nodes.
    TypeError
        If W is no matrix.

    Notes
    -----
    A walk's powers are applied through eigenvectors up to 1,024 nodes, else by :math:`2^{J-1}` sparse products, in memory
    proportional to the edges.

    References
    ----------
    Gama, Ribeiro and Bruna, ICLR 2019 (diffusion); Gao, Wolf and Hirn, ICML 2019 (geometric); Shuman, Wiesmeyr, Holighaus and
    Vandergheynst, IEEE Transactions on Signal Processing 63(16), 2015 (tight, warped); Hammond, Vandergheynst and Gribonval,
    Applied and Computational Harmonic Analysis 30(2), 2011 (cubic).
    """
    for key, value, known in (
        ("bank", bank, BANKS),
        ("laplacian", laplacian, ("normalized", "combinatorial")),
        ("norm", norm, ("B1", "reference")),
    ):
        if value not in known:
            raise ValueError(f"{key}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    check_counts(J=(J, 1))
    if top is not None and not 0.0 < top < math.inf:
        raise ValueError(f"top: expected a positive number, got {top!r}")
    adjacency = read_adjacency(W)
    n = adjacency.shape[0]
    if bank in ("diffusion", "geometric"):
        return _walk_bank(bank, adjacency, J, laplacian, norm)
    if n > _SPECTRAL:
        raise ValueError(
            f"bank: expected 'diffusion' or 'geometric' for more than {_SPECTRAL:,} nodes, got {bank!r}, which needs the "
            f"eigenvectors of {n:,}"
        )
    values, vectors = torch.linalg.eigh(torch.from_numpy(laplacian_matrix(adjacency, laplacian)))
    values = values.clamp(min=0.0)
    values[: _components(adjacency)] = 0.0
    if top is None:
        top = 2.0 if laplacian == "normalized" else float(values[-1]) or 1.0
    ones = torch.ones(n, dtype=torch.float64)
    return GraphBank(bank, J, ones, values, vectors, None, laplacian, float(top), norm)


def _walk_bank(
    name: GraphBankName, adjacency: sp.csr_array, J: int, laplacian: Laplacian, norm: GraphNorm
) -> GraphBank:
    n = adjacency.shape[0]
    if n > _EIGENVECTORS and J > _STEPS:
        raise ValueError(
            f"J: expected at most {_STEPS} for more than {_EIGENVECTORS:,} nodes, on which walks take 2^(J - 1) steps, got {J}"
        )
    walk, degrees = lazy_walk(adjacency)
    weights = torch.from_numpy(degrees) if name == "geometric" else torch.ones(n, dtype=torch.float64)
    values = vectors = None
    if n <= _EIGENVECTORS:
        values, vectors = torch.linalg.eigh(torch.from_numpy(walk.toarray()))
        values = values.clamp(0.0, 1.0)
        values[n - _components(adjacency) :] = 1.0
    return GraphBank(name, J, weights, values, vectors, walk, laplacian, 2.0, norm)


def _components(adjacency: sp.csr_array) -> int:
    """Return how many components a graph has: how often the extreme eigenvalue occurs, whose powers rounding would blur."""
    return int(connected_components(adjacency, directed=False, return_labels=False))
