r"""Any positively homogeneous module as the subnetwork: deep perceptrons, an AlexNet without biases."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from theodolite.analysis.graph import Graph, trace
from theodolite.analysis.homogeneity_probes import scaled_parameters
from theodolite.analysis.norm_bounds import NoBound, Term, ends_linearly, output_terms
from theodolite.atoms.inputs import check_dual, moderate, row_sum, unit
from theodolite.atoms.module_reading import as_batch, copied, layers_of, proved_degree, roundings
from theodolite.core.atom import Atom
from theodolite.core.params import Params, count, join, select
from theodolite.linalg.lanczos import UP, gamma
from theodolite.linalg.spectral import sigma_max
from theodolite.losses.base import Support, moved
from theodolite.polar.ascent import ascend
from theodolite.polar.scaling import scaled_back
from theodolite.value import Value

Regularizer = Literal["product", "power"]

_STARTS, _DRAWN, _WITNESSES = 16, 4, 8
_CLIMB, _FINALISTS = 60, 4
_POLISH = 20  # steps
_NUMBERS = 1 << 25  # of the activations held at once
_SHARES = (0.0, 0.5, 1.0)  # exponents of the weights of the samples that are tried
_PROOF = 0.3  # of the time


class ModuleAtom(Atom):
    r"""A whole network as the subnetwork, of degree L in its parameters.

    :math:`\phi(W) = f(X; W)` is any module that is proved, by rules over its graph, to be positively
    homogeneous in its trained parameters.  Params are those parameters, stacked, in the order of
    ``module.named_parameters()``.  The regularizer is one of

    - ``"product"``: :math:`\theta(W) = \prod_l\|W_l\|_F`, for a chain of L weight layers;
    - ``"power"``: :math:`\theta(W) = (\|W\|^2/L)^{L/2}`, weight decay raised to the network's degree.  It is
      never less, and equal where all layers have one norm; it allows shared weights and sums of branches.

    The lower end of the polar is found by ascent from random starts and the present subnetworks.  The upper
    end is a product of norms (:mod:`theodolite.analysis.norm_bounds`): with f's bound :math:`b_i\theta` for
    sample i it is the least, over a few positive weights d of the samples, of :math:`\sum_i\|Q_i\|b_i` and

    .. math:: \sigma_{\max}(D^{-1}Q)\,\prod_lc_l\,\lambda_{\max}\Big(\sum_id_i^2P_iP_i^\top\Big)^{1/2},

    :math:`P_i` being what the first layer reads of sample i, and :math:`c_l` the factors of the operations behind
    it; without a linear last layer the Frobenius norm of :math:`D^{-1}Q` takes the place of its largest singular
    value.  Such an upper end is loose: it proves that the zero network is optimal for a large lambda, and a gap,
    but it seldom closes one.

    Parameters
    ----------
    module : nn.Module or function() -> nn.Module
        Maps (n, ...) to (n, k), sample by sample.  It is copied, in evaluation mode and float64; parameters that
        do not require gradients are constants.
    X : array-like, shape (n, ...)
        Inputs, finite; a tensor keeps its device.
    regularizer : {"product", "power"}
    starts : int
        Random starts of each ascent; with 0 nothing is searched for, and the polar has an upper end alone.
    graph : Graph, optional
        Of the module in evaluation mode and float64, where it has been traced before.

    Attributes
    ----------
    module : nn.Module
    names : tuple of str
        Of the parameters.

    Raises
    ------
    TypeError
        If ``module`` is no module and makes none.
    ValueError
        If an argument is out of range; if the module is not proved to be homogeneous: the sentence names the
        layer and why; or if no rule bounds one of its operations.

    Notes
    -----
    The zero network is a stationary point for L > 2, so that descent never leaves it by itself: witnesses of the polar
    are added at finite size.

    References
    ----------
    Haeffele and Vidal, arXiv 1506.07540 (2015); CVPR 2017.
    """

    def __init__(
        self,
        module: nn.Module | Callable[[], nn.Module],
        X: Any,
        *,
        regularizer: Regularizer = "product",
        starts: int = _STARTS,
        graph: Graph | None = None,
    ) -> None:
        if regularizer not in ("product", "power"):
            raise ValueError(f"regularizer: expected 'product' or 'power', got {regularizer!r}")
        if isinstance(starts, bool) or not isinstance(starts, int) or starts < 0:
            raise ValueError(f"starts: expected an integer >= 0, got {starts!r}")
        self.regularizer, self.starts = regularizer, starts
        self.X = as_batch(X)
        self.module = copied(module).to(self.X.device)
        trained = {id(p) for p in scaled_parameters(self.module)}
        self.names = tuple(name for name, p in self.module.named_parameters() if id(p) in trained)
        graph = trace(self.module, self.X) if graph is None else replace(graph, model=self.module)
        self.degree = proved_degree(self.module, self.X, graph)
        self._layers = layers_of(self.names)
        self.shape = self._output_shape(graph)
        self._terms = self._read_terms(graph)
        self._linear_end = ends_linearly(graph, self._layers)
        rows = torch.stack([term.rows for term in self._terms]).sum(0) * (1.0 + gamma(len(self._terms)))
        self._rows = rows.to(self.X.device)
        self._width = max(1, sum(math.prod(node.shape[1:]) for node in graph.operations if node.shape))
        self.depth = roundings(graph) + 4 * len(self.names) + 8
        self._vectorized = self._vectorizes()
        self.module.requires_grad_(False)

    def _output_shape(self, graph: Graph) -> tuple[int, int]:
        with torch.no_grad():
            one, two = self.module(self.X[:1]), self.module(self.X[:2])
        if one.ndim != 2 or len(two) != min(2, len(self.X)) or one.shape[1:] != two.shape[1:]:
            raise ValueError(f"module: expected outputs of shape (n, k), got {tuple(two.shape)} for n = 2")
        if graph.random_nodes():
            raise ValueError(
                f"module: expected the same output each time, got {graph.random_nodes()[0].where}"
            )
        if float((one - two[:1]).abs().max()) > 1e-9 * float(two.abs().max()):
            raise ValueError("module: expected a map of each sample alone, got one that mixes samples")
        return len(self.X), one.shape[1]

    def _read_terms(self, graph: Graph) -> tuple[Term, ...]:
        """Return the terms of the bound, scaled so that each is what it is worth at theta = 1."""
        try:
            terms = output_terms(graph, self._layers, self.X)
        except NoBound as outcome:
            raise ValueError(f"module: expected operations with a known bound, got {outcome}") from outcome
        found = []
        for term in terms:
            if self.regularizer == "product" and any(power != 1 for power in term.powers):
                raise ValueError(
                    "module: expected a chain of layers for regularizer='product', got branches or a weight that is "
                    "used more than once; regularizer='power' allows them"
                )
            # the largest value of prod n_l^a_l at sum n_l^2 = sum a_l is prod a_l^(a_l / 2)
            most = math.prod(a ** (a / 2) for a in term.powers if a)
            found.append(term.times(most * UP))
        return tuple(found)

    def _vectorizes(self) -> bool:
        """Whether all subnetworks can run as one call."""
        params = self.init(2)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings(
                    "error", "There is a performance drop because we have not yet implemented"
                )
                self._vmapped(params, self.X[:2], 2)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, UserWarning):
            return False
        return True

    def _vmapped(self, params: Params, X: Tensor, chunk: int) -> Tensor:
        def one(values: dict[str, Tensor]) -> Tensor:
            output: Tensor = functional_call(self.module, values, (X,))
            return output

        return vmap(one, chunk_size=chunk if chunk < count(params) else None)(
            dict(zip(self.names, params, strict=True))
        )

    def _outputs(self, params: Params, X: Tensor) -> Tensor:
        """Return the outputs of each subnetwork, shape (r, n, k)."""
        if not count(params):
            return X.new_zeros(0, len(X), self.shape[1])
        rows = max(1, _NUMBERS // self._width)
        if len(X) > rows:
            return torch.cat([self._outputs(params, part) for part in X.split(rows)], 1)
        if self._vectorized:
            return self._vmapped(params, X, max(1, rows // len(X)))
        one = (dict(zip(self.names, values, strict=True)) for values in zip(*params, strict=True))
        return torch.stack([functional_call(self.module, values, (X,)) for values in one])

    def init(self, r: int, seed: int = 0) -> Params:
        """Return r random subnetworks, each layer of norm 1: theta = 1."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [self.module.get_parameter(name).shape for name in self.names]
        drawn = (torch.randn(r, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
        return self._unit(tuple(p.to(self.X.device) for p in drawn))

    def phi(self, params: Params, X: Any = None) -> Tensor:
        """Return the sum of all outputs, shape (n, k)."""
        X = self.X if X is None else as_batch(X, self.X)
        return self._outputs(params, X).sum(0)

    def each(self, params: Params, support: Support | None = None) -> Tensor:
        """Return each subnetwork's outputs, shape (r, n k) or (r, size)."""
        Z = self._outputs(params, self.X)
        return Z.flatten(1) if support is None else Z[:, support.rows, support.cols]

    def _squares(self, params: Params) -> Tensor:
        """Return the squared norm of each layer of each subnetwork, shape (r, L)."""
        total = [params[0].new_zeros(len(params[0])) for _ in set(self._layers.values())]
        for name, p in zip(self.names, params, strict=True):
            total[self._layers[name]] = total[self._layers[name]] + p.flatten(1).square().sum(1)
        return torch.stack(total, 1)

    def theta(self, params: Params) -> Tensor:
        """Return the product of the layers' norms, or the power of the norm of all, shape (r,)."""
        if self.regularizer == "power":
            return self.penalty(params)
        groups: dict[int, list[Tensor]] = {}
        for name, p in zip(self.names, params, strict=True):
            groups.setdefault(self._layers[name], []).append(p.flatten(1))
        norms = [torch.linalg.vector_norm(torch.cat(parts, 1), dim=1) for parts in groups.values()]
        return torch.stack(norms, 1).prod(1)

    def penalty(self, params: Params) -> Tensor:
        """Return (|W|^2 / L)^(L/2): the product of the norms where they are equal, more elsewhere."""
        return (self._squares(params).sum(1) / self.degree) ** (self.degree / 2)

    def row_bounds(self, support: Support | None = None) -> Tensor:
        """Return the bounds of each sample's output over theta <= 1."""
        return self._rows if support is None else self._rows[support.rows]

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
        """Return a bound of the polar, see :meth:`Atom.polar`; with ``budget=0`` nothing ascends.

        Rounding: each factor of the upper end is a proved bound, and what a formula of them adds is below the
        margins; the lower end is evaluated, less the error that ``depth`` allows.
        """
        began = time.monotonic()
        Q, exponent = moderate(check_dual(Q, self.shape), self.shape)
        if exponent is None:
            return Value.bound(0.0, 0.0, witness=self.init(1, seed), note="upper end: Q = 0")
        rows = self._rows.cpu()
        crude = row_sum(Q, rows)
        upper, note, confidence = crude, "sum of |Q_i| times the product bound of the sample", 1.0
        if budget != 0.0 and crude > 0.0:
            for share in _SHARES:
                if budget is not None and time.monotonic() - began > _PROOF * budget:
                    break
                bound, sure = self._together(Q, rows, share, delta / len(_SHARES), seed)
                confidence += sure - 1.0  # a choice between them: all must hold
                if bound < upper:
                    upper, note = bound, "product of the layers' norms for all samples together"
        note = "upper end: " + note
        if not self.starts:
            return scaled_back(Value.bound(0.0, upper, confidence=confidence, note=note), exponent)
        left = None if budget is None else max(budget - (time.monotonic() - began), 0.0)
        witness, values = self._search(Q.to(self.X.device), starts, seed, left)
        rounding = 4.0 * gamma(self.depth + Q.numel() + 8) * crude
        if values[0] < 0.0:  # the zero subnetwork attains 0, but has no direction
            witness, rounding = None, math.inf
        low = min(max(float(values[0]) - rounding, 0.0), upper)
        found = Value.bound(low, upper, confidence=confidence, witness=witness, note=note)
        return scaled_back(found, exponent)

    def _together(
        self, Q: Tensor, rows: Tensor, share: float, delta: float, seed: int
    ) -> tuple[float, float]:
        """Return the bound with the weights d_i = (|Q_i| / b_i)^(share / 2) of the samples, and its confidence."""
        size = Q.norm(dim=1)
        used = (size > 0.0) & (rows > 0.0)
        ratio = torch.where(used, size / rows, 1.0)
        ratio = (ratio / ratio[used].max()).clamp(min=1e-12) if bool(used.any()) else ratio
        d = torch.where(used, ratio ** (share / 2), 0.0)
        quotient = torch.where(used[:, None], Q / torch.where(used, d, 1.0)[:, None], 0.0)
        error = gamma(4) * float(quotient.norm())
        norm, confidence = float(quotient.norm()) * (1.0 + gamma(Q.numel() + 8)), 1.0
        if self._linear_end:
            spectral = sigma_max(quotient, delta=delta, seed=seed)
            norm, confidence = spectral.high, spectral.confidence
        sizes = sum(term.size(d) for term in self._terms)
        return (norm + error) * sizes * (1.0 + gamma(len(self._terms) + 8)), confidence

    def _search(
        self, Q: Tensor, starts: Params | None, seed: int, budget: float | None
    ) -> tuple[Params | None, Tensor]:
        """Return witnesses with theta = 1, best first, and <Q, phi> of each."""
        params = self._aligned(
            self.init(_DRAWN * self.starts, seed), Q
        )  # many are dead where layers are narrow
        params = select(params, self._ratio(params, Q).argsort(descending=True, stable=True)[: self.starts])
        if starts is not None and count(starts):
            present = select(starts, self.theta(starts) > 0.0)
            params = join(tuple(p.to(self.X.device) for p in present), params)
        params = self._aligned(self._unit(params), Q)
        if budget != 0.0:
            deadline = math.inf if budget is None else time.monotonic() + budget
            params = self._climb(params, Q, deadline)
            order = self._ratio(params, Q).argsort(descending=True, stable=True)
            finalists, rest = select(params, order[:_FINALISTS]), select(params, order[_FINALISTS:])
            left = None if budget is None else max(deadline - time.monotonic(), 0.0)
            with torch.enable_grad():
                polished, _ = ascend(
                    lambda p: self._ratio(p, Q), finalists, budget=left, max_steps=_POLISH, tol=1e-4
                )
            params = self._aligned(join(self._unit(polished), rest), Q)
        values = self._ratio(params, Q).nan_to_num(nan=0.0)
        order = values.argsort(descending=True, stable=True)[:_WITNESSES]
        order = (
            order[values[order] >= 0.1 * values[order[0]].clamp(min=0.0)]
            if values[order[0]] > 0
            else order[:1]
        )
        return select(params, order), values[order]

    def _climb(self, params: Params, Q: Tensor, deadline: float) -> Params:
        """Return better unit subnetworks by gradient steps; each has a step size of its own and never gets worse."""

        def both(point: Params) -> tuple[Tensor, Params]:
            leaves = tuple(p.detach().requires_grad_() for p in point)
            with torch.enable_grad():
                values = self._ratio(leaves, Q)
                slopes = torch.autograd.grad(values.sum(), leaves)
            size = torch.stack([g.flatten(1).square().sum(1) for g in slopes]).sum(0).sqrt().clamp(min=1e-300)
            return values.detach().nan_to_num(nan=-math.inf), tuple(_each(1.0 / size, g) for g in slopes)

        values, slopes = both(params)
        step = torch.full_like(values, 0.5 * math.sqrt(self.degree))
        for _ in range(_CLIMB):
            if time.monotonic() > deadline or float(step.max()) < 1e-3:
                break
            trial = self._unit(tuple(p + _each(step, g) for p, g in zip(params, slopes, strict=True)))
            there, steeper = both(trial)
            better = there > values
            values = torch.where(better, there, values)
            params, slopes = (
                tuple(
                    torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b)
                    for a, b in zip(new, old, strict=True)
                )
                for new, old in ((trial, params), (steeper, slopes))
            )
            step = step * torch.where(better, 1.3, 0.4)
        return params

    def _ratio(self, params: Params, Q: Tensor) -> Tensor:
        return (self._outputs(params, self.X) * Q).sum((1, 2)) / self.theta(params)

    def _aligned(self, params: Params, Q: Tensor) -> Params:
        """Return unit subnetworks with the best last layer for the others, where the output is linear in it.

        That is the gradient of <Q, phi>; it is zero where all of a subnetwork's hidden units are off.
        """
        if not self._linear_end or not count(params):
            return params
        last = params[-1].detach().clone().requires_grad_()
        with torch.enable_grad():
            inner = (self._outputs((*params[:-1], last), self.X) * Q).sum()
            (gradient,) = torch.autograd.grad(inner, last)
        off = gradient.flatten(1).norm(dim=1) == 0.0
        gradient = torch.where(off.view(-1, *[1] * (gradient.ndim - 1)), params[-1], gradient)
        return self._unit((*params[:-1], gradient))

    def _unit(self, params: Params) -> Params:
        """Return the subnetworks with every layer of norm 1, a zero layer by a basis vector in its place."""
        if self.regularizer == "power" and count(params):
            theta = self.theta(params)
            return self.scale(params, torch.where(theta > 0.0, 1.0 / theta.clamp(min=1e-300), 1.0))
        parts: list[Tensor] = list(params)
        for layer in set(self._layers.values()):
            at = [i for i, name in enumerate(self.names) if self._layers[name] == layer]
            sizes = [params[i][0].numel() if count(params) else params[i].shape[1:].numel() for i in at]
            flat = unit(torch.cat([params[i].flatten(1) for i in at], 1)) if count(params) else None
            if flat is not None:
                for i, part in zip(at, flat.split(sizes, 1), strict=True):
                    parts[i] = part.reshape(params[i].shape)
        return tuple(parts)

    def stack(self, modules: Iterable[nn.Module]) -> Params:
        """Return the parameters of modules of this architecture, such as a `ParallelSubnetworks`, stacked.

        Raises
        ------
        ValueError
            If one has other parameters.
        """
        found = [dict(module.named_parameters()) for module in modules]
        shapes = {name: self.module.get_parameter(name).shape for name in self.names}
        for values in found:
            got = {name: values[name].shape for name in self.names if name in values}
            if got != shapes:
                raise ValueError(f"modules: expected parameters of shapes {shapes}, got {got}")
        empty = self.init(0)
        return tuple(
            torch.stack([v[name].detach().to(self.X) for v in found]) if found else none
            for name, none in zip(self.names, empty, strict=True)
        )

    def modules(self, params: Params) -> list[nn.Module]:
        """Return one module for each subnetwork, with its parameters, in float64."""
        made = []
        for values in zip(*params, strict=True):
            module = copy.deepcopy(self.module).requires_grad_(True)
            with torch.no_grad():
                for name, value in zip(self.names, values, strict=True):
                    module.get_parameter(name).copy_(value)
            made.append(module)
        return made

    def to(self, device: torch.device | str) -> ModuleAtom:
        """Return the same family with its data and a copy of its module on a device."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module)
        return moved(twin, device)


def _each(factors: Tensor, stacked: Tensor) -> Tensor:
    """Return each subnetwork's tensor times its own factor."""
    return factors.view(-1, *[1] * (stacked.ndim - 1)) * stacked
