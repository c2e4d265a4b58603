r"""Deep linear networks: phi(W) = X W_1 ... W_L, with a product of the layers' norms as regularizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theodolite.atoms.inputs import as_inputs, check_outputs
from theodolite.atoms.matrix import MatrixAtom
from theodolite.atoms.matrix_norms import Groups, balanced_factors, shrink_singular_values, spectral_norm
from theodolite.atoms.proximal import GOAL, Composite, estimated_gap, minimize
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count
from theodolite.linalg.lanczos import PAD, UP, gamma
from theodolite.linalg.pattern import Pattern
from theodolite.losses.base import Support
from theodolite.value import Value

if TYPE_CHECKING:
    from theodolite.core.problem import Problem


class LinearNetAtom(Atom):
    r"""Linear networks :math:`XW_1\cdots W_L` with :math:`\theta = \prod_l\|W_l\|`, of degree L.

    Frobenius norms: the polar is :math:`\sigma_{\max}(X^\top Q)` for any widths, and the problem is
    convex in :math:`M = \sum_i W^i_1\cdots W^i_L` with the nuclear norm of M as regularizer.  Operator
    norms: the polar is :math:`\|X^\top Q\|_*`, and the regularizer the operator norm of M.

    Parameters
    ----------
    X : array-like, shape (n, d)
        Inputs.
    n_outputs : int
        Number k of outputs.
    depth : int
        Number L >= 2 of layers: shapes (d, h), (h, h), ..., (h, k).
    widths : int, optional
        Width h of the hidden layers; min(d, k) by default, at least that for ``norm="op"``.
    norm : {"fro", "op"}
        Frobenius or operator norm of the layers.

    Raises
    ------
    ValueError
        If X is not a finite matrix with entries, or a number is out of range.

    Notes
    -----
    Params are (W_1, ..., W_L), each with a leading axis of length r.

    References
    ----------
    Haeffele and Vidal, arXiv 1506.07540.

    Examples
    --------
    >>> import torch
    >>> polar = LinearNetAtom(torch.eye(2), 2, depth=3).polar(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> round(polar.high, 6)
    3.0
    """

    def __init__(
        self, X: Tensor, n_outputs: int, depth: int, widths: int | None = None, norm: str = "fro"
    ) -> None:
        self.X, n_outputs = as_inputs(X), check_outputs(n_outputs)
        if depth < 2:
            raise ValueError(f"depth: expected at least 2 layers, got {depth}")
        if norm not in ("fro", "op"):
            raise ValueError(f"norm: expected 'fro' or 'op', got {norm!r}")
        n, d = self.X.shape
        rank = min(d, n_outputs)
        width = rank if widths is None else widths
        least = 1 if norm == "fro" else rank
        if width < least:
            raise ValueError(f"widths: expected at least {least} for norm={norm!r}, got {width}")
        self.norm, self.degree, self.width = norm, depth, width
        self.shape = (n, n_outputs)
        self.sizes = [d, *[width] * (depth - 1), n_outputs]
        # | |W| | may exceed |W| in operator norm, not in the Frobenius norm
        factor = 1.0 if norm == "fro" else max(self.sizes) ** (depth / 2)
        self.depth = math.ceil(factor * (sum(self.sizes) + 2))
        self._pattern: tuple[Support, Pattern] | None = None

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r networks with Gaussian directions of all layers, each layer of norm 1."""
        generator = torch.Generator().manual_seed(seed)
        layers = []
        for shape in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            W = torch.randn(r, *shape, dtype=torch.float64, generator=generator).to(self.X.device)
            layers.append(W / self._norms(W)[:, None, None])
        return tuple(layers)

    def _norms(self, W: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(W, "fro" if self.norm == "fro" else 2)

    def matrix(self, params: Params) -> Tensor:
        """Return M, the sum of the products of the layers, shape (d, k)."""
        return _products(params).sum(0)

    def phi(self, params: Params, X: Tensor | None = None) -> Tensor:
        """Return X M, for the inputs of the problem or others."""
        return (self.X if X is None else as_inputs(X, columns=self.X.shape[1]).to(self.X)) @ self.matrix(
            params
        )

    def predict(self, params: Params, support: Support | None = None) -> Tensor:
        """Return the predictions; on a support without forming the others."""
        M = self.matrix(params)
        return self.X @ M if support is None else self._at(support).outer(self.X, M.T)

    def _at(self, support: Support) -> Pattern:
        if self._pattern is None or self._pattern[0] is not support:
            self._pattern = support, Pattern(support.rows, support.cols, self.shape, support.sorted)
        return self._pattern[1]

    def theta(self, params: Params) -> Tensor:
        """Return the product of the layers' norms."""
        return torch.stack([self._norms(W) for W in params]).prod(0)

    def penalty(self, params: Params) -> Tensor:
        """Return the mean of the layers' norms to the power L, equal to theta for layers of equal norms."""
        return torch.stack([self._norms(W) ** self.degree for W in params]).mean(0)

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return the norms of the inputs: the layers' product of norm theta maps them."""
        bounds = self.X.norm(dim=1) * (1.0 + gamma(self.X.shape[1] + 8))
        return bounds if support is None else bounds[support.rows]

    def merge(self, params: Params) -> Params:
        """Return networks with the sum M and no larger theta, if they are not more than before.

        One network for each singular value of M; for operator norms, one for all.
        """
        if not count(params):
            return params
        merged = self.from_matrix(self.matrix(params))
        return merged if count(merged) <= count(params) else params

    def from_matrix(self, M: Tensor) -> Params:
        """Return networks with the sum M and the smallest sum of theta, layers of equal norms.

        Parameters
        ----------
        M : Tensor, shape (d, k)
        """
        if self.norm == "fro":
            U, V = balanced_factors(M)
            s = U.norm(dim=1)[:, None] ** 2
            return self._chains(U * s ** (1.0 / self.degree - 0.5), V * s ** (1.0 / self.degree - 0.5), s)
        U, s, Vh = torch.linalg.svd(M, full_matrices=False)
        if not float(s[0]) > 0.0:
            return self.init(0)
        root = s[0] ** (1.0 / self.degree)
        return self._wide(U * root, s[0] ** (1.0 / self.degree - 1.0) * s[:, None] * Vh, root)

    def _chains(self, U: Tensor, V: Tensor, s: Tensor) -> Params:
        """Return a network of rank one for each pair of rows: the hidden layers use their first unit."""
        layers = [
            torch.zeros(len(U), *shape, dtype=torch.float64, device=U.device)
            for shape in zip(self.sizes[:-1], self.sizes[1:], strict=True)
        ]
        for W in layers[1:-1]:
            W[:, 0, 0] = s[:, 0] ** (1.0 / self.degree)
        layers[0][:, :, 0], layers[-1][:, 0, :] = U, V
        return tuple(layers)

    def _wide(self, first: Tensor, last: Tensor, root: Tensor) -> Params:
        """Return one network with given outer layers, and multiples of the identity between them."""
        layers = [
            torch.zeros(1, *shape, dtype=torch.float64, device=first.device)
            for shape in zip(self.sizes[:-1], self.sizes[1:], strict=True)
        ]
        for W in layers[1:-1]:
            W[0] = root * torch.eye(self.width, dtype=torch.float64, device=first.device)
        layers[0][0, :, : first.shape[1]], layers[-1][0, : len(last)] = first, last
        return tuple(layers)

    def polar(
        self,
        Q: Tensor,
        *,
        target: float | None = None,
        budget: float | None = None,
        starts: Params | None = None,
        seed: int = 0,
        delta: float = 1e-9,
    ) -> Value:
        r"""Return both ends of the polar (see :meth:`Atom.polar`).

        The rounding of :math:`X^\top Q` is at most :math:`\gamma_n\sum_i\|x_i\|\|Q_i\|` in Frobenius norm.
        To this come, for the Frobenius norm, the ends of :class:`MatrixAtom`; for the operator norm
        those of the nuclear norm, from an SVD whose residual and lack of orthogonality are measured.
        """
        if tuple(Q.shape) != self.shape:
            raise ValueError(f"Q: expected shape {self.shape}, got {tuple(Q.shape)}")
        Q = (Q.coalesce() if Q.is_sparse else Q).detach().double()
        entries = Q.values() if Q.is_sparse else Q
        if not bool(torch.isfinite(entries).all()):
            raise ValueError(f"Q: expected finite entries, got {entries[~torch.isfinite(entries)][0].item()}")
        G = (Q.T @ self.X).T
        squares = (Q * Q).sum(1)
        lengths = (squares.to_dense() if squares.is_sparse else squares).sqrt()
        error = PAD * gamma(self.shape[0] + 2) * float(self.X.norm(dim=1) @ lengths)
        if self.norm == "op":
            low, high, witness = self._nuclear(G)
            error *= math.sqrt(min(G.shape))
            return Value.bound(
                max(0.0, low - error),
                (high + error) * UP,
                witness=witness,
                note="nuclear norm, from a measured SVD",
            )
        inner = MatrixAtom((G.shape[0], G.shape[1])).polar(
            G, target=target, budget=budget, seed=seed, delta=delta
        )
        U, V = inner.witness
        return Value.bound(
            max(0.0, inner.low - error) / UP,
            (inner.high + error) * UP,
            confidence=inner.confidence,
            witness=self._chains(U, V, torch.ones(len(U), 1, dtype=torch.float64, device=U.device)),
            note=inner.note,
        )

    def _nuclear(self, G: Tensor) -> tuple[float, float, Params]:
        """Return bounds of ||G||_*, and the network U V^T that attains the lower one.

        ||G||_* <= |U| |V| sum s + sqrt(q) |G - U S V'|_F, and <G, U V'> <= |U V'| ||G||_*, for any factors:
        |U|^2 <= 1 + |U'U - I|_F.
        """
        U, s, Vh = torch.linalg.svd(G, full_matrices=False)
        q, k = len(s), sum(G.shape)
        eye = torch.eye(q, dtype=torch.float64, device=G.device)
        skews = [
            float((B.T @ B - eye).norm()) + gamma(k + 4) * float((B.abs().T @ B.abs()).norm() + q)
            for B in (U, Vh.T)
        ]
        stretch = math.sqrt((1.0 + PAD * skews[0]) * (1.0 + PAD * skews[1]))
        sizes = float(((U.abs() * s) @ Vh.abs() + G.abs()).norm())
        residual = PAD * (float((G - (U * s) @ Vh).norm()) + gamma(k + 4) * sizes)
        high = (stretch * float(s.sum()) * (1.0 + gamma(q)) + math.sqrt(q) * residual) * UP
        value = float(((U.T @ G) * Vh).sum())
        spread = float(((U.abs().T @ G.abs()) * Vh.abs()).sum())
        low = (value - PAD * gamma(k + 2 * q + 8) * spread) / (stretch * UP)
        return max(0.0, low), high, self._wide(U, Vh, torch.ones((), dtype=torch.float64))

    def descend(
        self,
        problem: Problem,
        params: Params,
        *,
        tol: float,
        deadline: float,
        progress: Callable[[Params], None],
    ) -> Params:
        """Return networks with a lower objective: descent on the layers, then proximal steps on M.

        The steps on M are taken where the estimated gap is still open.  Operator norms, which are not
        smooth, have only these, from the M of the given networks.
        """
        fro = self.norm == "fro"
        if fro:
            params = super().descend(problem, params, tol=tol, deadline=deadline, progress=progress)
        loss, X, support = problem.loss, self.X, problem.loss.support

        def predict(M: Tensor) -> Tensor:
            return X @ M if support is None else self._at(support).outer(X, M.T)

        def adjoint(G: Tensor) -> Tensor:
            return X.T @ G if support is None else (problem.matrix(G).T @ X).T

        def nuclear(G: Tensor) -> float:
            return float(torch.linalg.svdvals(G).sum())

        prox, polar = (shrink_singular_values, spectral_norm) if fro else (_clip_singular_values, nuclear)
        stretch = torch.tensor(spectral_norm(X) ** 2, dtype=torch.float64)
        composite = Composite(loss, problem.lam, predict, adjoint, stretch, prox, polar)
        gradient = loss.gradient(problem.predictions(params))
        start = problem.objective(params)
        if estimated_gap(loss, problem.lam, start, -gradient, polar(adjoint(gradient))) <= GOAL * tol:
            return params
        M = minimize(
            composite,
            self.matrix(params),
            tol=tol,
            deadline=deadline,
            progress=lambda M: progress(self.from_matrix(M)),
        )
        found = self.from_matrix(M)
        return found if problem.objective(found) <= start else params


def _products(params: Params) -> Tensor:
    """Return W_1 ... W_L of each network, shape (r, d, k)."""
    M = params[0]
    for W in params[1:]:
        M = M @ W
    return M


def _clip_singular_values(M: Tensor, t: Tensor) -> tuple[Tensor, float]:
    """Return argmin_X 1/2 ||X - M||_F^2 + t |X|, |X| the operator norm, and that norm."""
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    s, size = Groups(torch.zeros(len(s), dtype=torch.int64, device=s.device), 1).prox(s, t, "linf")
    return (U * s) @ Vh, size
