r"""Two-layer networks with a quadratic activation, :math:`v(\alpha t^2+\beta t+\gamma)`."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from theodolite.atoms.inputs import (
    as_inputs,
    check_dual,
    check_outputs,
    random_directions,
    row_sum,
    same_directions,
    unit,
)
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count
from theodolite.linalg.lanczos import gamma
from theodolite.linalg.spectral import sigma_max
from theodolite.losses.base import Support
from theodolite.polar.scaling import power, scaled_back
from theodolite.value import Value

_RANDOM_STARTS = 16
_ASCENT_STEPS = 300
_NEGLIGIBLE = 1e-13


class QuadraticAtom(Atom):
    r"""One hidden unit :math:`\sigma(t) = \alpha t^2+\beta t+\gamma` with its output weights.

    .. math:: \phi(w, v)_i = \big(\alpha(x_i^\top w)^2+\beta\|w\|x_i^\top w+\gamma\|w\|^2\big)v^\top,
              \qquad \theta = \|w\|_2^2\|v\|_2,

    of degree 3: at :math:`\|w\| = 1` it is :math:`\sigma(x_i^\top w)v^\top`, with theta = |v|.
    Params are ``(W, V)`` of shapes (r, d) and (r, K).

    With one output the polar is a pair of trust-region problems on the sphere, one for each sign;
    with :math:`\beta=0`, the largest of the :math:`|\lambda|` of a symmetric matrix.  With several it
    is the norm of a 3-tensor, bounded by its unfoldings.

    Parameters
    ----------
    X : array-like, shape (n, d)
        Inputs, finite.
    n_outputs : int
    activation : tuple of three numbers
        alpha, beta, gamma, not all zero.

    Raises
    ------
    ValueError
        If X is not a finite, nonempty matrix, n_outputs not an integer >= 1, or the activation zero.
    """

    degree = 3

    def __init__(
        self, X: Any, n_outputs: int = 1, activation: tuple[float, float, float] = (1.0, 0.0, 0.0)
    ) -> None:
        self.X = as_inputs(X)
        self.shape = (len(self.X), check_outputs(n_outputs))
        numbers = [float(c) for c in activation]
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or not any(numbers):
            raise ValueError(f"activation: expected three finite numbers, not all zero, got {activation}")
        self.activation = (numbers[0], numbers[1], numbers[2])
        self.depth = 2 * self.X.shape[1] + self.shape[1] + 12

    @property
    def even(self) -> bool:
        """Whether w and -w are the same unit."""
        return self.activation[1] == 0.0

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r units of random directions, theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        parts = (random_directions(r, width, generator) for width in (self.X.shape[1], self.shape[1]))
        return tuple(p.to(self.X.device) for p in parts)

    def phi(self, params: Params, X: Any = None) -> Tensor:
        """Return the sum of the units' predictions, shape (n, K)."""
        W, V = params
        X = self.X if X is None else as_inputs(X, columns=self.X.shape[1]).to(self.X.device)
        return self._hidden(X, W) @ V

    def _hidden(self, X: Tensor, W: Tensor) -> Tensor:
        """Return the activations, shape (n, r)."""
        alpha, beta, constant = self.activation
        t = X @ W.T
        hidden = alpha * t.square()
        if beta:
            hidden = hidden + beta * W.norm(dim=1) * t
        return hidden + constant * W.square().sum(1) if constant else hidden

    def theta(self, params: Params) -> Tensor:
        """Return |w|^2 |v| of each unit."""
        W, V = params
        return W.square().sum(1) * V.norm(dim=1)

    def penalty(self, params: Params) -> Tensor:
        """Return (2 |w|^3 + |v|^3) / 3 of each unit, at least theta by the inequality of means."""
        W, V = params
        return (2.0 * W.norm(dim=1) ** 3 + V.norm(dim=1) ** 3) / 3.0

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return each unit's predictions, shape (r, n K) or (r, size)."""
        W, V = params
        hidden = self._hidden(self.X, W).T
        if support is not None:
            return hidden[:, support.rows] * V[:, support.cols]
        return (hidden[:, :, None] * V[:, None, :]).flatten(1)

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return max |sigma(t)| over |t| <= |x_i|, at most |alpha| |x|^2 + |beta| |x| + |gamma|."""
        alpha, beta, constant = map(abs, self.activation)
        norms = self.X.norm(dim=1)
        bounds = alpha * norms.square() + beta * norms + constant
        return bounds if support is None else bounds[support.rows]

    def merge(self, params: Params) -> Params:
        """Join units of one direction; with one output and an even activation, keep eigenvectors only.

        There phi depends on the symmetric matrix sum_j v_j w_j w_j' only, and its nuclear norm is the
        least that theta can be.
        """
        W, V = params
        if not count(params):
            return params
        if self.even and self.shape[1] == 1:
            values, vectors = torch.linalg.eigh((W.T * V[:, 0]) @ W)
            kept = values.abs() > _NEGLIGIBLE * values.abs().max()
            return _balance(vectors.T[kept], values[kept, None])
        directions = unit(W)
        if self.even:
            top = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
            directions = directions * torch.where(top < 0.0, -1.0, 1.0).to(W)
        first = same_directions(directions)
        V = torch.zeros_like(V).index_add_(0, first, W.square().sum(1, keepdim=True) * V)
        kept = first == torch.arange(len(first), device=first.device)
        return _balance(directions[kept], V[kept])

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
        r"""Return a bound of max over |w| = 1 of :math:`\|Q^\top\sigma(Xw)\|_2`, see :meth:`Atom.polar`.

        With :math:`z = (w, s)`, s > 0 any number, the k-th entry is the quadratic form of
        :math:`T_k = \begin{pmatrix}S_k&b_k/2s\\\cdot&c_k/s^2\end{pmatrix}` at z, where
        :math:`S_k=\alpha\sum_iQ_{ik}x_ix_i^\top`, :math:`b_k=\beta\sum_iQ_{ik}x_i`,
        :math:`c_k=\gamma\sum_iQ_{ik}`, and :math:`\|z\|^2 = 1+s^2`.  So the polar is at most
        :math:`(1+s^2)\,\sigma_{\max}` of either unfolding of T.  With one output the entry
        :math:`c/s^2` may be any rho instead, if :math:`c-\rho s^2` is added: at the best rho this
        is exact (the S-lemma), for each sign of Q.  The rounding error of forming T is added.
        """
        Q, X = check_dual(Q, self.shape), self.X.cpu()
        exponent = math.frexp(float(Q.abs().max()))[1]
        Q = power(Q, -exponent)  # exact: no square overflows, or underflows where it matters
        crude = row_sum(Q, self.row_bounds())
        T = self._tensor(X, Q)
        starting = [] if starts is None else [unit(starts[0].detach().cpu())]
        upper, note = crude, "upper end: sum of |Q_i| b_i"
        if crude > 0.0 and budget != 0.0:
            if len(T) == 1:
                proved, way = self._one_output(X, Q, T[0], starting), "eigenvalues (S-lemma)"
            else:
                proved, way = self._unfolded(X, Q, T), "unfoldings of a symmetric tensor"
            if proved < upper:
                upper, note = proved, "upper end: " + way
        W = self._search(X, Q, T, starting, seed)
        value = float((Q.T @ self._hidden(X, W[:1].contiguous()).double())[:, 0].norm())
        value -= 4.0 * gamma(len(X) + 2 * X.shape[1] + Q.shape[1] + 12) * crude
        V = unit(self._hidden(X, W).T @ Q)
        witness = tuple(p.contiguous().to(self.X.device) for p in (W, V))
        found = Value.bound(min(max(value, 0.0), upper), upper, witness=witness, note=note)
        return scaled_back(found, exponent)

    def _tensor(self, X: Tensor, Q: Tensor) -> Tensor:
        """Return T at s = 1, shape (K, d + 1, d + 1); without its last row and column if beta = gamma = 0."""
        alpha, beta, constant = self.activation
        T = torch.stack([(X.T * q) @ X for q in Q.T]) * alpha
        if not (beta or constant):
            return 0.5 * (T + T.mT)
        b, c = 0.5 * beta * (Q.T @ X), constant * Q.sum(0)
        T = torch.cat([torch.cat([T, b[:, :, None]], 2), torch.cat([b, c[:, None]], 1)[:, None, :]], 1)
        return 0.5 * (T + T.mT)

    def _forming_error(self, X: Tensor, Q: Tensor, s: float, spread: bool = False) -> float:
        """Return a bound of the Frobenius norm of the error of T at s, with c on the diagonal of S if `spread`.

        Each entry is a sum of n products of at most six factors, so it errs by gamma(n + 12) times
        the sum of the products' sizes; those add up to at most |Q_i| times the norms below.
        """
        alpha, beta, constant = map(abs, self.activation)
        norms, d = X.norm(dim=1), X.shape[1]
        sizes = alpha * norms.square() + 1.5 * beta * norms / s
        sizes = sizes + constant * (math.sqrt(d) if spread else s**-2)
        return gamma(len(X) + 12) * row_sum(Q, 2.0 * sizes)

    def _one_output(self, X: Tensor, Q: Tensor, T: Tensor, starting: list[Tensor]) -> float:
        """Return the proved bound for one output, both signs, and add its maximizers to `starting`."""
        error, d = self._forming_error(X, Q, 1.0), X.shape[1]
        if len(T) == d:  # beta = gamma = 0
            return (sigma_max(T).high + error) * (1.0 + gamma(4))
        c = float(T[d, d])
        bounds = []
        for sign in (1.0, -1.0):
            M = sign * T
            scale = max(float(torch.linalg.matrix_norm(M, 2)), 1e-300)

            def dual(rho: float, M: Tensor = M) -> float:
                M = M.clone()
                M[d, d] = rho
                return 2.0 * float(torch.linalg.eigvalsh(M)[-1]) - rho

            found = minimize_scalar(
                dual, bounds=(-4.0 * scale, 2.0 * scale), method="bounded", options={"xatol": 1e-12 * scale}
            )
            rho = float(found.x)
            M[d, d] = rho
            top = torch.linalg.eigh(M)[1][:, -1]
            starting.append(unit(top[None, :d] * (1.0 if float(top[d]) >= 0.0 else -1.0)))
            # the largest eigenvalue is sigma_max of the matrix shifted until it is positive semidefinite
            shift = 2.0 * float(M.norm())
            M += shift * torch.eye(d + 1, dtype=M.dtype)
            largest = sigma_max(M, tol=1e-12).high - shift
            rounding = 8.0 * gamma(8) * (shift + abs(rho) + abs(c))
            bounds.append(2.0 * largest - rho + sign * c + 2.0 * error + rounding)
        return max(*bounds, 0.0)

    def _unfolded(self, X: Tensor, Q: Tensor, T: Tensor) -> float:
        """Return the smallest of the bounds by unfoldings, over a few s and both places for c."""
        d = X.shape[1]
        if T.shape[1] == d:
            error = self._forming_error(X, Q, 1.0)
            return _unfolding_bound(T, error)
        candidates = []
        for spread in (False, True):
            A = T.clone()
            if spread:  # |w| = 1, so that c may as well be c |w|^2
                A[:, d, d] = 0.0
                A[:, :d, :d] += T[:, d, d, None, None] * torch.eye(d, dtype=T.dtype)
            for s in 2.0 ** torch.arange(-6.0, 4.5, 0.5, dtype=torch.float64):
                B = A.clone()
                B[:, d, :] /= s
                B[:, :, d] /= s
                norm = min(float(torch.linalg.matrix_norm(u, 2)) for u in (B.flatten(1), B.flatten(0, 1)))
                candidates.append(((1.0 + float(s) ** 2) * norm, float(s), spread, B))
        _, s, spread, B = min(candidates, key=lambda candidate: candidate[0])
        return (1.0 + s * s) * _unfolding_bound(B, self._forming_error(X, Q, s, spread)) * (1.0 + gamma(8))

    def _search(self, X: Tensor, Q: Tensor, T: Tensor, starting: list[Tensor], seed: int) -> Tensor:
        """Return unit directions, best first: eigenvectors, random and given starts, then power ascent."""
        d = X.shape[1]
        generator = torch.Generator().manual_seed(seed)
        eigenvectors = torch.linalg.eigh(T[:, :d, :d])[1].mT.flatten(0, 1)
        w = torch.cat([random_directions(_RANDOM_STARTS, d, generator), eigenvectors, *starting])
        w = torch.cat([w, -w]) if not self.even else w
        # a shifted power method: with the shift each form is convex in z, so that no step descends
        shift = float(T.flatten(1).norm())
        for _ in range(_ASCENT_STEPS):
            v = unit((Q.T @ self._hidden(X, w)).T)
            forms = torch.einsum("rk,kab->rab", v, T)
            z = w if T.shape[1] == d else torch.cat([w, torch.ones(len(w), 1, dtype=w.dtype)], 1)
            step = (forms @ z[:, :, None])[:, :d, 0] + shift * w
            new = unit(step)
            if float((new - w).abs().max()) < 1e-14:
                break
            w = new
        values = (Q.T @ self._hidden(X, w)).norm(dim=0)
        order = values.argsort(descending=True)
        w = w[order]
        same = (
            w
            if not self.even
            else w * torch.where(w.gather(1, w.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
        )
        first = same_directions(same, 1e-6)
        return w[first == torch.arange(len(w))][: 2 * d + 4]


def _unfolding_bound(T: Tensor, error: float) -> float:
    """Return the smaller norm of the unfoldings of T (K, m, m), each symmetric, plus the error."""
    norms = (sigma_max(unfolding, tol=1e-9).high for unfolding in (T.flatten(1), T.flatten(0, 1)))
    return (min(norms) + error) * (1.0 + gamma(4))


def _balance(W: Tensor, V: Tensor) -> Params:
    """Return the units of unit directions W with the factor |v| shared: |w|^3 = |v|^3 = theta."""
    size = V.norm(dim=1, keepdim=True)
    root = size ** (1.0 / 3.0)
    return root * W, V / root.clamp(min=torch.finfo(V.dtype).tiny) ** 2
