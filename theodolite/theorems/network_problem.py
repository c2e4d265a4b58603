r"""A two-layer network with its weight decay as a convex problem over sums of units.

The training objective mean loss + w/2 ||all parameters||^2 of a network
:math:`f(x) = \sum_iu_i\,\sigma(w_i\cdot x) + c` is, by the inequality of the means,

.. math:: \ell(Z) + \tfrac w2\Big(\sum_i\|w_i\|^2 + \|u_i\|^2\Big) + \tfrac w2\|c\|^2
   \ \ge\ \ell_w\Big(\sum_i\phi_i\Big) + w\sum_i\|w_i\|\|u_i\|,

with equality where each unit's two norms are equal and c is the best bias of the outputs.  A bias
of the hidden layer is the weight of an input that is constantly 1.  The right-hand side is a
:class:`theodolite.core.problem.Problem` with lambda = w.

A chain of L > 2 linear layers has a decay of at least :math:`\frac{wL}2\theta^{2/L}`, theta the product of its
norms, which is concave in theta.  No network with an objective of at most P has a theta above
:math:`B = (2P/(wL))^{L/2}`, and up to there the decay is at least its chord, lambda theta with
:math:`\lambda = \frac{wL}2B^{2/L-1}`.  So the problem with that lambda bounds what lies below P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theodolite.analysis.graph import Node
from theodolite.analysis.head import mean_loss
from theodolite.analysis.two_layer import NotTwoLayer, TwoLayer, find_two_layer
from theodolite.atoms.gated import GatedReLUAtom
from theodolite.atoms.relu import ReLUAtom
from theodolite.core.params import Params, select
from theodolite.core.problem import Problem
from theodolite.linalg.dense import all_finite
from theodolite.linalg.lanczos import gamma
from theodolite.losses.biased import BiasedLoss
from theodolite.theorems.base import NotApplicable, Verdict, by_structure
from theodolite.theorems.hypotheses import require_graph
from theodolite.theorems.subject import Reducer, Subject

INPUT_BYTES = 1 << 30


def two_layer_of(subject: Subject) -> TwoLayer:
    """Return the network's two layers, read once.

    Raises
    ------
    NotApplicable
        If the model could not be traced.
    NotTwoLayer
        If it is of another form.
    """
    require_graph(subject)
    trained = {id(p) for p in subject.parameters.values()}

    def read() -> TwoLayer | NotTwoLayer:
        try:
            found = find_two_layer(subject.graph, trained)
        except NotTwoLayer as outcome:
            return outcome
        return found

    result = subject.once("two layers", read)
    if isinstance(result, NotTwoLayer):
        raise result
    return result


def check_family(subject: Subject) -> Verdict:
    """Return whether the network is of a family that can be certified."""
    try:
        found = two_layer_of(subject)
    except NotTwoLayer as outcome:
        return by_structure(False, reason=str(outcome))
    if found.depth > 2:
        return by_structure(
            True, witness=list(found.weights), reason=f"a chain of {found.depth} trained linear layers"
        )
    names = {"linear": "no activation", "relu": "ReLU", "gated": "fixed gates"}
    return by_structure(
        True,
        witness=list(found.weights),
        reason=f"two trained layers with {names[found.activation]} between them",
    )


class NetworkInputs(Reducer):
    """What the first trained layer reads on the training data, and the gates' values.

    Nothing is kept without a weight decay, when the network is of no such family, or the inputs are larger than
    ``INPUT_BYTES`` in float64.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._wanted: dict[Node, list[Tensor]] = {}
        try:
            found = two_layer_of(subject)
        except (NotTwoLayer, NotApplicable):
            return
        if subject.weight_decay and _bytes(subject, found) <= INPUT_BYTES:
            self._wanted = {node: [] for node in (found.inputs, found.gate) if node is not None}

    def wants(self, node: Node) -> bool:
        """Return whether the node's values are kept."""
        return node in self._wanted

    def update(self, node: Node, value: Tensor) -> None:
        """Keep a batch."""
        self._wanted[node].append(value.cpu())

    def value(self, node: Node) -> Tensor:
        """Return the values of a node on all training data, shape (n, ...)."""
        return self.subject.x if node.op == "input" else torch.cat(self._wanted[node])


def _bytes(subject: Subject, found: TwoLayer) -> int:
    width, columns = subject.model.get_parameter(found.weights[0]).shape
    gates = width if found.gate is not None else 0
    return 8 * subject.n * (columns + gates)


@dataclass(frozen=True, eq=False)
class NetworkProblem:
    """A network's training objective and the convex problem below it.

    Attributes
    ----------
    family : {"linear", "relu", "gated"}
    depth : int
        Number of weight layers; more than 2 for a chain of linear layers only.
    problem : Problem
        With lambda = the weight decay, or the slope of the chord; an output bias is minimized over in its loss.
    params : Params
        The units that are not zero; for a longer chain, units of the same function.
    width : int
        Number of hidden units of the narrowest hidden layer, zero ones included.
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


def network_problem(subject: Subject) -> NetworkProblem:
    """Return the convex problem of a network that :func:`check_family` accepts.

    Raises
    ------
    NotApplicable
        If the loss has no known dual, the data are too large, or a number is not finite.
    NotTwoLayer
        If the network is of another form.
    """
    found, decay = two_layer_of(subject), subject.weight_decay
    if not decay:
        raise NotApplicable("needs a weight decay > 0")
    loss = mean_loss(subject.loss_name, subject.y.cpu(), subject.n_outputs)
    if loss is None:
        raise NotApplicable(f"the dual of the loss {subject.loss_name} is not known")
    if _bytes(subject, found) > INPUT_BYTES:
        raise NotApplicable(
            f"the inputs of {subject.n:,} samples take {_bytes(subject, found) / 2**30:.2f} GiB, more than 1 GiB"
        )
    subject.logits()  # refuses outputs that are not finite
    seen = subject.reduced(NetworkInputs)
    X = seen.value(found.inputs).double()
    W, *rest = (_weight(subject, name) for name in found.weights)
    width = min(len(weight) for weight in (W, *rest[:-1]))
    if found.hidden_bias:
        W = torch.cat([W, _weight(subject, found.hidden_bias)[:, None]], 1)
        X = torch.cat([X, X.new_ones(len(X), 1)], 1)
    c = _weight(subject, found.output_bias) if found.output_bias else None
    trained = [p.detach().cpu().double() for p in subject.parameters.values()]
    if not all(all_finite(tensor) for tensor in (X, *trained)):
        raise NotApplicable("a weight, or an input of the first layer, is NaN or infinite")
    with torch.no_grad():
        W, U = (W, rest[0].T) if found.depth == 2 else _as_two_layers(W, rest)
        active = (W.norm(dim=1) > 0) & (U.norm(dim=1) > 0)
        atom, params = _atom(found, X, W, U, seen)
        params = select(params, active)
        Z = atom.phi(params)
        present = loss.value(Z if c is None else Z + c)
        penalty = 0.5 * decay * float(sum(p.square().sum() for p in trained))
    convex = loss if c is None else BiasedLoss(loss, decay)
    problem = Problem(convex, atom, chord(decay, found.depth, present + penalty))
    terms = sum(p.numel() for p in trained) + 8
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


def chord(decay: float, depth: int, objective: float) -> float:
    """Return lambda such that networks of at most this objective have a decay of at least lambda theta.

    Parameters
    ----------
    decay : float
        w > 0.
    depth : int
        L >= 2; for 2 it is the decay itself.
    objective : float
        P, attained, of a loss that is never negative; rounding is enclosed.
    """
    if depth == 2:
        return decay
    largest = (2.0 * max(objective, 1e-12) * (1.0 + 1e-9) / (decay * depth)) ** (depth / 2)
    return 0.5 * decay * depth * largest ** (2 / depth - 1) * (1.0 - 1e-9)


def _as_two_layers(first: Tensor, rest: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return balanced units of the same linear function, (r, d) and (r, k)."""
    product = first
    for weight in rest:
        product = weight @ product
    left, sizes, right = torch.linalg.svd(product.T, full_matrices=False)
    root = sizes.sqrt()[:, None]
    return root * left.T, root * right


def _weight(subject: Subject, name: str) -> Tensor:
    return subject.model.get_parameter(name).detach().cpu().double()


def _atom(
    found: TwoLayer, X: Tensor, W: Tensor, U: Tensor, seen: NetworkInputs
) -> tuple[ReLUAtom | GatedReLUAtom, Params]:
    """Return the family of the hidden units and the units themselves."""
    outputs = U.shape[1]
    if found.activation == "relu":
        atom = ReLUAtom(X, outputs)
        atom.persistent = True
        return atom, (W, U)
    if found.gate is None:
        # a linear unit is one behind a gate that is always open
        return GatedReLUAtom(X, outputs, X.new_ones(len(X), 1)), (W.new_zeros(len(W)).long(), W, U)
    gates = seen.value(found.gate).double()
    if not bool(((gates == 0) | (gates == 1)).all()):
        raise NotApplicable(f"the factor in {found.gate.where} is no gate: it has values other than 0 and 1")
    different, which = gates.unique(dim=1, return_inverse=True)
    return GatedReLUAtom(X, outputs, different), (which, W, U)
