r"""A trained two-layer network with its weight decay as a convex problem over sums of units.

The training objective mean loss + w/2 ||all parameters||^2 of a network
:math:`f(x) = \sum_iu_i\,\sigma(w_i\cdot x) + c` is, by the inequality of the means,

.. math:: \ell(Z) + \tfrac w2\Big(\sum_i\|w_i\|^2 + \|u_i\|^2\Big) + \tfrac w2\|c\|^2
   \ \ge\ \ell_w\Big(\sum_i\phi_i\Big) + w\sum_i\|w_i\|\|u_i\|,

with equality where each unit's two norms are equal and c is the best bias of the outputs.  A bias
of the hidden layer is the weight of an input that is constantly 1.  So are convolutions with average
pooling, w_i being the filters and u_i all output weights of one.  The right-hand side is a
:class:`theodolite.core.problem.Problem` with lambda = w.

A chain of L > 2 linear layers has a decay of at least :math:`\frac{wL}2\theta^{2/L}`, theta the product of its
norms, which is concave in theta.  No network with an objective of at most P has a theta above
:math:`B = (2P/(wL))^{L/2}`, and up to there the decay is at least its chord, lambda theta with
:math:`\lambda = \frac{wL}2B^{2/L-1}`.  So the problem with that lambda bounds what lies below P.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.analysis.graph import Node, trace
from theodolite.analysis.two_layer import Convolution, NotTwoLayer, TwoLayer, find_two_layer
from theodolite.atoms.conv import ConvReLUAtom
from theodolite.atoms.gated import GatedReLUAtom
from theodolite.atoms.leaky_relu import LeakyReLUAtom
from theodolite.atoms.relu import ReLUAtom
from theodolite.core.atom import Atom
from theodolite.core.certificate import Certificate, judge
from theodolite.core.params import Params, select
from theodolite.core.problem import Problem
from theodolite.estimators.subnetworks import with_bias
from theodolite.linalg.dense import all_finite
from theodolite.linalg.lanczos import gamma
from theodolite.losses import SampleLoss
from theodolite.losses.biased import BiasedLoss
from theodolite.nn.regularizers import WeightDecay
from theodolite.value import relative_gap

_BATCH = 1 << 10


@dataclass(frozen=True, eq=False)
class NetworkProblem:
    """A network's training objective and the convex problem below it.

    Attributes
    ----------
    family : {"linear", "relu", "leaky_relu", "gated", "conv"}
    depth : int
        Number of weight layers; more than 2 for a chain of linear layers only.
    problem : Problem
        With lambda = the weight decay, or the slope of the chord; an output bias is minimized over in its loss.
    params : Params
        The units that are not zero; for a longer chain, units of the same function.
    width : int
        Number of hidden units (filters) of the narrowest hidden layer, zero ones included.
    objective : float
        Mean loss + decay/2 ||all trained parameters||^2, in float64.
    balanced : float
        The same with each unit's two norms made equal and the best output bias.
    rounding : float
        Bound of what summing the squares of the parameters adds to the error of ``objective``.
    """

    family: str
    depth: int
    problem: Problem
    params: Params
    width: int
    objective: float
    balanced: float
    rounding: float


@dataclass(frozen=True)
class NetworkGap:
    """What is proved about a network's training objective.

    Attributes
    ----------
    lower, upper : float
        What a network of the family, of any width, can take off the objective, relative to it: what was
        found, and what is not excluded.
    dual_bound : float
        No network of the family has a smaller objective.
    balancing, one_more_unit : float
        What making the two norms of each unit equal, and a further unit, are shown to take off.
    """

    lower: float
    upper: float
    dual_bound: float
    balancing: float
    one_more_unit: float


def network_problem(
    found: TwoLayer,
    trained: Mapping[str, Tensor],
    X: Tensor,
    gates: Tensor | None,
    loss: SampleLoss,
    decay: float,
) -> NetworkProblem:
    """Return the convex problem below a network's training objective.

    Parameters
    ----------
    found : TwoLayer
    trained : mapping of names to Tensors
        All trained parameters of the network.
    X : Tensor, shape (n, d), or (n, channels, height, width)
        What the first trained layer reads.
    gates : Tensor, shape (n, r), optional
        For a gated network.
    loss : SampleLoss
        Of the outputs.
    decay : float
        w > 0.

    Raises
    ------
    NotTwoLayer
        If the gates are none, or a number is not finite.
    """
    parameters = {name: p.detach().cpu().double() for name, p in trained.items()}
    X = X.detach().cpu().double()
    if not all(all_finite(tensor) for tensor in (X, *parameters.values())):
        raise NotTwoLayer("a weight, or an input of the first layer, is NaN or infinite")
    W, *rest = (parameters[name] for name in found.weights)
    width = min(len(weight) for weight in (W, *rest[:-1]))
    hidden_bias = parameters[found.hidden_bias] if found.hidden_bias else None
    c = parameters[found.output_bias] if found.output_bias else None
    with torch.no_grad():
        if found.convolution is not None:
            atom, params = _convolutional(found.convolution, X, W, hidden_bias, rest[0])
        else:
            if hidden_bias is not None:
                W, X = torch.cat([W, hidden_bias[:, None]], 1), torch.cat([X, X.new_ones(len(X), 1)], 1)
            W, U = (W, rest[0].T) if found.depth == 2 else _as_two_layers(W, rest)
            atom, params = _atom(found, X, W, U, gates)
        active = (params[-2].norm(dim=1) > 0) & (params[-1].norm(dim=1) > 0)
        params = select(params, active)
        Z = atom.phi(params)
        present = loss.value(Z if c is None else Z + c)
        penalty = 0.5 * decay * float(sum(p.square().sum() for p in parameters.values()))
    convex = loss if c is None else BiasedLoss(loss, decay)
    problem = Problem(convex, atom, WeightDecay.slope(decay, found.depth, max(present + penalty, 1e-12)))
    terms = sum(p.numel() for p in parameters.values()) + 8
    return NetworkProblem(
        found.activation,
        found.depth,
        problem,
        params,
        width,
        present + penalty,
        problem.objective(params),
        gamma(terms) * penalty,
    )


def network_gap(network: NetworkProblem, certificate: Certificate) -> NetworkGap:
    """Return what the certificate of the convex problem at the network's units says of the network itself."""
    objective = network.objective
    rounding = certificate.objective - network.balanced + network.rounding
    best, decrease = certificate.objective, certificate.decrease
    if network.depth > 2:
        # the convex problem lies below the network's objective everywhere, touching it nowhere
        best, decrease = objective + rounding, 0.0
    if decrease:
        best += 2.0 * rounding - decrease  # a difference of two evaluated objectives
    # what holds below every objective holds below the one that was found
    bound = min(certificate.dual_bound, best)
    upper = relative_gap(objective + rounding, bound)
    gain = max(0.0, objective - rounding - best)
    return NetworkGap(
        lower=min(gain / objective if objective else 0.0, upper),
        upper=upper,
        dual_bound=bound,
        balancing=max(0.0, objective - rounding - certificate.objective) if network.depth == 2 else 0.0,
        one_more_unit=decrease,
    )


def whole_certificate(network: NetworkProblem, certificate: Certificate) -> Certificate:
    """Return the certificate of the network itself, from that of the convex problem at its units."""
    proved = network_gap(network, certificate)
    rounding = certificate.objective - network.balanced + network.rounding
    verdict = judge(proved.upper, certificate.tol, proved.lower)
    return replace(
        certificate,
        objective=network.objective + rounding,
        dual_bound=proved.dual_bound,
        gap=proved.upper,
        verdict=verdict,
    )


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network read on its training data.

    Attributes
    ----------
    model : nn.Module
        A copy in float64 and evaluation mode.
    found : TwoLayer
    inputs, gates : Tensor, Tensor or None
        What the first trained layer reads, and the gates' values.
    n_outputs : int
    input_shape : tuple of int
        Shape of a sample.
    """

    model: nn.Module
    found: TwoLayer
    inputs: Tensor
    gates: Tensor | None
    n_outputs: int
    input_shape: tuple[int, ...]

    def problem(self, loss: SampleLoss, decay: float) -> NetworkProblem:
        """Return the convex problem below the training objective mean loss + decay/2 ||parameters||^2."""
        if len(self.inputs) != loss.shape[0]:
            raise ValueError(f"X, y: expected equal lengths, got {len(self.inputs)} and {loss.shape[0]}")
        try:
            return network_problem(self.found, _trained(self.model), self.inputs, self.gates, loss, decay)
        except NotTwoLayer as outcome:
            raise ValueError(f"model: cannot be certified: {outcome}") from outcome


def read_network(model: Any, X: Any) -> TrainedNetwork:
    """Read a two-layer network, on all its training data.

    Parameters
    ----------
    model : nn.Module
    X : array-like, shape (n, ...)

    Raises
    ------
    TypeError
        If the model is no module.
    ValueError
        If it is of another family, or X are no finite inputs of its.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    x = torch.as_tensor(X if isinstance(X, Tensor) else np.asarray(X)).detach().cpu().double()
    if x.ndim < 2 or not x.numel() or not all_finite(x):
        raise ValueError(f"X: expected finite numbers of shape (n, ...), got shape {tuple(x.shape)}")
    twin = copy.deepcopy(model).cpu().double().eval()
    graph = trace(twin, x)
    if not graph.traced:
        raise ValueError(f"model: cannot be certified: it could not be traced on X ({graph.reason})")
    try:
        found = find_two_layer(graph, {id(p) for p in _trained(twin).values()})
    except NotTwoLayer as outcome:
        raise ValueError(f"model: cannot be certified: {outcome}") from outcome
    kept: dict[Node, list[Tensor]] = {node: [] for node in (found.inputs, found.gate) if node is not None}

    def observe(node: Node, value: Any) -> None:
        if node in kept:
            kept[node].append(value)

    with torch.no_grad():
        outputs = [graph.run(part, observe=observe) for part in x.split(_BATCH)]
    seen = {node: torch.cat(parts) if parts else x for node, parts in kept.items()}
    gates = None if found.gate is None else seen[found.gate]
    return TrainedNetwork(twin, found, seen[found.inputs], gates, outputs[0].shape[1], tuple(x.shape[1:]))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name; all of them when none is trainable."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    return {name: p for name, p in named.items() if p.requires_grad} or named


def _as_two_layers(first: Tensor, rest: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return balanced units of the same linear function, (r, d) and (r, k)."""
    product = first
    for weight in rest:
        product = weight @ product
    left, sizes, right = torch.linalg.svd(product.T, full_matrices=False)
    root = sizes.sqrt()[:, None]
    return root * left.T, root * right


def _convolutional(
    geometry: Convolution, images: Tensor, weight: Tensor, bias: Tensor | None, last: Tensor
) -> tuple[Atom, Params]:
    """Return the family of the filters and the filters themselves, with their output weights."""
    (rows, columns), outputs = geometry.padding, len(last)
    kernel = (weight.shape[2], weight.shape[3])
    images = nn.functional.pad(images, (columns, columns, rows, rows))
    W, basis = weight.flatten(1), None
    if bias is not None:
        images, basis = with_bias(images, kernel, None)
        W = torch.cat([W, bias[:, None]], 1)
    atom = ConvReLUAtom(
        images,
        outputs,
        kernel,
        geometry.stride,
        geometry.pool,
        basis,
        pool_stride=geometry.pool_stride,
    )
    atom.persistent = True
    return atom, (W, last.T.reshape(len(W), -1))


def _atom(found: TwoLayer, X: Tensor, W: Tensor, U: Tensor, gates: Tensor | None) -> tuple[Atom, Params]:
    """Return the family of the hidden units and the units themselves."""
    outputs = U.shape[1]
    if found.activation in ("relu", "leaky_relu"):
        slope = found.negative_slope
        atom = LeakyReLUAtom(X, outputs, slope) if slope else ReLUAtom(X, outputs)
        atom.persistent = True
        return atom, (W, U)
    if found.gate is None or gates is None:
        # a linear unit is one behind a gate that is always open
        return GatedReLUAtom(X, outputs, X.new_ones(len(X), 1)), (W.new_zeros(len(W)).long(), W, U)
    gates = gates.detach().cpu().double()
    if not bool(((gates == 0) | (gates == 1)).all()):
        raise NotTwoLayer(f"the factor in {found.gate.where} is no gate: it has values other than 0 and 1")
    different, which = gates.unique(dim=1, return_inverse=True)
    return GatedReLUAtom(X, outputs, different), (which, W, U)
