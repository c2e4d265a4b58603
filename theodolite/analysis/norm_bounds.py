r"""Bounds of a network's outputs by products of its weights' norms, sample by sample.

For a positively homogeneous network f(x; W) whose trained parameters are the weights of linear and
convolutional layers, :math:`\|f(x_i;W)\|\le\sum_t b_{ti}\prod_l\|W_l\|_F^{a_{tl}}`: one term t for a chain,
one for each choice of branches where branches are added.  The factors, each a bound of the Euclidean norm of
an operation's output by that of its input:

- a linear layer, :math:`\|Wz\|\le\|W\|_F\|z\|`: 1;
- a convolution of kernel k and stride s: the root of the number of windows in which an entry of
  its input can lie, :math:`\lceil k/s\rceil` along each axis, because the output is W times the matrix of patches;
- a max-pool: the root of the number of windows an entry lies in; an average-pool: the largest singular value
  of the averaging; other operations: their Lipschitz constant (:mod:`theodolite.analysis.operator_norms`),
  since what is homogeneous of degree one vanishes at zero.

The layer that reads the data knows them: there the norms of the patches are taken themselves, and for all
samples with weights d_i together :math:`\sum_id_i^2\|WP_i\|_F^2\le\|W\|_F^2\lambda_{\max}(\sum_id_i^2P_iP_i^\top)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from theodolite.analysis import pooling
from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.linear_layers import Constants, is_copy, per_axis
from theodolite.analysis.operator_norms import NotLipschitz, operation_norm
from theodolite.linalg.lanczos import UP, gamma
from theodolite.linalg.spectral import sigma_max

_CONVOLUTIONS = {f"conv{d}d": d for d in (1, 2, 3)}
_LAYERS = {"linear", *_CONVOLUTIONS}
# operations on each sample alone, whatever their arguments
_ENTRYWISE = frozenset(
    "relu leaky_relu abs neg clamp clamp_min clamp_max prelu dropout native_dropout".split()
)
_POOLS = pooling.MAX_POOLS.keys() | pooling.AVERAGE_POOLS.keys()
# operations that keep samples apart where dimension 0 keeps its length
_SHAPES = frozenset("view reshape flatten unflatten squeeze unsqueeze _unsafe_view".split())
_REDUCTIONS = frozenset("sum mean amax amin".split())
_GRAM = 2048  # longest side of a matrix sum_i d_i^2 P_i P_i' that is formed
_CHUNK = 1 << 24  # numbers in a temporary tensor


class NoBound(ValueError):  # noqa: N818  (an outcome, not an error)
    """Raised when no rule bounds an operation; the sentence names its layer."""


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A weight layer that reads the data: W times the patches of each sample.

    Attributes
    ----------
    inputs : Tensor, shape (n, ...)
        Float64, on the CPU.
    window : dict or None
        Kernel size, stride, padding and dilation of a 2-D convolution; None for a linear layer.
    bias : bool
        Whether a bias counts in the norm of the layer: a patch then has one more entry, 1.
    """

    inputs: Tensor
    window: dict[str, Any] | None
    bias: bool

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches of some samples, shape (n, positions, entries)."""
        window = self.window
        P = F.unfold(x, **window).transpose(1, 2) if window else x.reshape(len(x), -1, x.shape[-1])
        return torch.cat([P, P.new_ones(*P.shape[:2], 1)], 2) if self.bias else P

    def rows(self) -> Tensor:
        """Return a bound of the norm of each sample's patches together, shape (n,)."""
        step = self._step()
        squares = [self.patches(x).square().flatten(1).sum(1) for x in self.inputs.split(step)]
        return torch.cat(squares).sqrt() * (1.0 + gamma(self.patches(self.inputs[:1]).numel() + 4))

    def size(self, d: Tensor) -> float:
        """Return an upper bound of sup over |W| <= 1 of the norm of all outputs with weights d of the samples.

        Infinite where the matrix of second moments would be too large; rounding is enclosed.
        """
        first = self.patches(self.inputs[:1])
        if first.shape[2] > _GRAM:
            return math.inf
        G = first.new_zeros(first.shape[2], first.shape[2])
        for x, weight in zip(self.inputs.split(self._step()), d.split(self._step()), strict=True):
            P = (weight[:, None, None] * self.patches(x)).flatten(0, 1)
            G += P.T @ P
        terms = len(self.inputs) * first.shape[1]
        error = 2.0 * gamma(terms + 8) * float(G.diagonal().sum())
        return math.sqrt(sigma_max(0.5 * (G + G.T)).high + error) * UP

    def _step(self) -> int:
        return max(1, _CHUNK // max(1, self.patches(self.inputs[:1]).numel()))


@dataclass(frozen=True, eq=False)
class Term:
    """One product of weights' norms, and what it is multiplied with.

    Attributes
    ----------
    powers : tuple of int
        How often each layer's weight occurs.
    rows : Tensor, shape (n,)
        For each sample; rounding is enclosed.
    factor : float
        What the operations behind ``first`` contribute.
    first : FirstLayer or None
        Where the term began; None when that is more than one place.
    """

    powers: tuple[int, ...]
    rows: Tensor
    factor: float
    first: FirstLayer | None

    def times(self, factor: float) -> Term:
        """Return the term behind an operation of a norm."""
        factor = factor * UP
        return replace(self, rows=self.rows * factor, factor=self.factor * factor)

    def size(self, d: Tensor) -> float:
        """Return a bound of the norm over all samples, with weights d >= 0 of the samples."""
        together = float((d * self.rows).norm()) * (1.0 + gamma(len(d) + 4))
        return together if self.first is None else min(together, self.factor * self.first.size(d) * UP)


Terms = dict[tuple[int, ...], Term]


def output_terms(graph: Graph, layers: Mapping[str, int], x: Tensor) -> list[Term]:
    """Return the terms that bound the output of a homogeneous network together.

    Parameters
    ----------
    graph : Graph
        Traced, in evaluation mode, in float64; proved to be positively homogeneous in the trained parameters.
    layers : mapping from parameter's name to index
        The trained parameters.  The weight and the bias of one layer share an index.
    x : Tensor, shape (n, ...)
        All data, float64.

    Raises
    ------
    NoBound
        If no rule covers an operation on what depends on the parameters.
    """
    reader = _Reader(graph, layers)
    if any(node.op != "input" for node in reader.kept):
        step = max(1, _CHUNK // max(1, x[0].numel()))
        with torch.no_grad():
            for part in x.split(step):
                graph.run(part, observe=reader.observe)
    for node in graph.nodes:
        if node in reader.moving and node.op != "parameter":
            reader.states[node] = reader.visit(node, x)
    assert graph.output is not None
    if graph.output not in reader.moving:
        raise NoBound("the output does not depend on the trained parameters")
    return list(reader.states[graph.output].values())


def ends_linearly(graph: Graph, layers: Mapping[str, int]) -> bool:
    """Whether the output is a linear layer with a trained weight of its own, without bias, on what is before it."""
    node = graph.output
    if node is None or node.op != "linear" or node.argument(2, "bias") is not None:
        return False
    weight = node.args[1]
    return isinstance(weight, Node) and weight.target in layers and len(graph.consumers(weight)) == 1


class _Reader:
    """The walk over the graph."""

    def __init__(self, graph: Graph, layers: Mapping[str, int]) -> None:
        self.graph, self.layers = graph, layers
        self.constants = Constants(graph)
        self.count = max(layers.values()) + 1
        self.moving: set[Node] = set()
        for node in graph.nodes:
            trained = node.op == "parameter" and node.target in layers
            if trained or (self._is_real(node) and any(source in self.moving for source in node.inputs)):
                self.moving.add(node)
        read = {node.args[0] for node in self.moving if node.op in _LAYERS}
        self.kept: set[Node] = read - self.moving
        self.inputs: dict[Node, list[Tensor]] = {}
        self.states: dict[Node, Terms] = {}

    def _is_real(self, node: Node) -> bool:
        """Whether a node has values of the data or the parameters, and not merely sizes."""
        return self.constants.depends(node) or all(source.op == "parameter" for source in node.inputs)

    def observe(self, node: Node, value: Any) -> None:
        """Keep what a first layer reads."""
        if node in self.kept:
            self.inputs.setdefault(node, []).append(value.detach().cpu())

    def visit(self, node: Node, x: Tensor) -> Terms:
        sources = [i for i in node.inputs if i in self.moving]
        if node.op in _LAYERS:
            return self.layer(node, x)
        if any(source.op == "parameter" for source in sources):
            raise NoBound(
                f"{node.where}: no rule bounds '{node.op}' of a parameter; use linear and convolutional layers"
            )
        if node.op in ("add", "sub") and all(node.args[k] in sources for k in (0, 1)):
            weight = abs(float(node.argument(2, "alpha", 1)))
            first, second = (self.states[node.args[k]] for k in (0, 1))
            if node.args[0].shape != node.args[1].shape:
                raise NoBound(f"{node.where}: no rule bounds a sum of values of different shapes")
            return _sum(first, {key: term.times(weight) for key, term in second.items()})
        if node.op in ("maximum", "minimum") and len(sources) == 2:
            return _sum(*(self.states[source] for source in sources))
        if (
            node.op in ("cat", "concat")
            and int(node.argument(1, "dim", 0)) != 0
            and len(sources) == len(node.inputs)
        ):
            return _sum(*(self.states[source] for source in sources))
        others = [i for i in node.inputs if i is not sources[0]]
        if any(map(self.constants.depends, others)) or not self.apart(node, sources[0]):
            raise NoBound(f"{node.where}: no rule bounds the operation '{node.op}'")
        try:
            factor = operation_norm(node, self.constants).high
        except NotLipschitz as outcome:
            raise NoBound(str(outcome)) from outcome
        return {key: term.times(factor) for key, term in self.states[sources[0]].items()}

    def apart(self, node: Node, source: Node) -> bool:
        """Whether an operation treats each sample alone, linearly or by a Lipschitz map with 0 at 0."""
        assert source.shape is not None
        if node.op in _ENTRYWISE or node.op in _POOLS or is_copy(node):
            return True
        if node.op in _SHAPES:
            return node.shape is not None and node.shape[:1] == source.shape[:1]
        if node.op in _REDUCTIONS:
            dims = node.argument(1, "dim")
            dims = [dims] if isinstance(dims, int) else dims
            return bool(dims) and all(int(dim) % len(source.shape) != 0 for dim in dims)
        if node.op in pooling.PADS:
            return len(node.args[1]) // 2 < len(source.shape)
        return node.op in ("mul", "div") and node.args[0] is source and isinstance(node.args[1], (int, float))

    def layer(self, node: Node, x: Tensor) -> Terms:
        source, weight, bias = node.args[0], node.args[1], node.argument(2, "bias")
        if weight in self.moving and weight.op != "parameter":
            raise NoBound(f"{node.where}: no rule bounds a layer whose weight is computed from parameters")
        index = self.layers.get(weight.target)
        if source not in self.moving:
            return self.first(node, x, index)
        if bias is not None:
            raise NoBound(
                f"{node.where}: no rule bounds a bias behind the first layer; use a constant input instead"
            )
        factor = _spread(node)
        if index is None:  # a weight that is not trained is a constant
            value = self.constants.tensor(weight)
            small = node.op == "linear" and max(value.shape) <= _GRAM
            norm = sigma_max(value).high if small else float(value.norm()) * (1.0 + gamma(value.numel() + 4))
            return {key: term.times(norm * factor) for key, term in self.states[source].items()}
        return {
            _raised(key, index): replace(term.times(factor), powers=_raised(key, index))
            for key, term in self.states[source].items()
        }

    def first(self, node: Node, x: Tensor, index: int | None) -> Terms:
        """Return the term of a layer that reads the data."""
        source, bias = node.args[0], node.argument(2, "bias")
        biased = isinstance(bias, Node) and self.layers.get(bias.target) == index
        if index is None or (bias is not None and not biased):
            raise NoBound(
                f"{node.where}: expected a layer whose weight and bias are both trained, or without a bias"
            )
        inputs = x.cpu() if source.op == "input" else torch.cat(self.inputs[source])
        window, powers = None, _raised((0,) * self.count, index)
        if node.op != "linear":
            window = _window(node)
            if window is None:
                positions = math.prod((node.shape or ())[2:])
                squares = inputs.square().flatten(1).sum(1) * _spread(node) ** 2 + biased * positions
                rows = squares.sqrt() * (1.0 + gamma(inputs[0].numel() + 8))
                return {powers: Term(powers, rows, 1.0, None)}
        reads = FirstLayer(inputs, window, biased)
        return {powers: Term(powers, reads.rows(), 1.0, reads)}


def _spread(node: Node) -> float:
    """Return the root of the number of windows of a convolution that an entry of its input can lie in."""
    axes = _CONVOLUTIONS.get(node.op)
    if axes is None:
        return 1.0
    kernel = node.args[1].shape[2:]
    stride, dilation = (
        per_axis(node.argument(i, name, 1), axes) for i, name in ((3, "stride"), (5, "dilation"))
    )
    # the entry i lies in the window t at the offset j where s t + d j = i: every (s / gcd(s, d))-th offset at most
    windows = [-(-k * math.gcd(s, d) // s) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    return math.sqrt(math.prod(windows))


def _window(node: Node) -> dict[str, Any] | None:
    """Return the arguments of unfold for a 2-D convolution of plain padding, None for others."""
    padding = node.argument(4, "padding", 0)
    if node.op != "conv2d" or isinstance(padding, str):
        return None
    numbers = {name: per_axis(node.argument(i, name, 1), 2) for i, name in ((3, "stride"), (5, "dilation"))}
    return {"kernel_size": tuple(node.args[1].shape[2:]), "padding": tuple(per_axis(padding, 2))} | {
        name: tuple(value) for name, value in numbers.items()
    }


def _raised(powers: tuple[int, ...], index: int) -> tuple[int, ...]:
    return tuple(power + (i == index) for i, power in enumerate(powers))


def _sum(*several: Terms) -> Terms:
    total: Terms = {}
    for terms in several:
        for key, term in terms.items():
            old = total.get(key)
            total[key] = term if old is None else Term(key, (old.rows + term.rows) * UP, 1.0, None)
    return total
