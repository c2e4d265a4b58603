"""The dropout layers of a network: where they act, what they drop together, and what reads it.

Evaluation removes dropout from a graph.  So a copy is traced in which every dropout module is replaced
by a mark, with everything else as in evaluation; functional dropout that looks at ``self.training``
is found by tracing the copy in training mode, batch normalization apart, if that gives the same outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from theodolite.analysis.graph import Graph, Node, trace
from theodolite.nn.dropout import BernoulliDropout, DropBlock, DropConnect

_DROPOUT = (_DropoutNd, BernoulliDropout, DropBlock)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_INTERNAL = (nn.MultiheadAttention, nn.RNNBase)
_MARK = "native_dropout"
_NORMS = frozenset({"_native_batch_norm_legit_no_training"})
_WEIGHTED = frozenset("linear conv1d conv2d conv3d".split())
_AFFINE = _WEIGHTED | frozenset(
    "alias clone contiguous detach lift_fresh_copy view reshape flatten squeeze unsqueeze _unsafe_view "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split()
)
_ENTRIES = 5e7  # of the matrix of an affine map that is held

Kind = Literal["units", "weights"]
Handler = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Site:
    """One place where a network drops something.

    Attributes
    ----------
    name : str
        The layer, "#2" at its second use.
    node : Node
        The mark (its input is what is dropped), or the linear layer whose weights are dropped.
    p : float
        Probability of dropping.
    kind : {"units", "weights"}
    block : int
        Entries of a flattened sample, consecutive, that are dropped together.
    shared : bool
        Whether all samples of a batch share a mask.
    outgoing : Tensor or None, shape (outputs, entries)
        The linear map from what is dropped to the outputs, where all that follows is affine; float64.
    reason : str
        Why nothing is said of this layer, "" otherwise.
    """

    name: str
    node: Node
    p: float
    kind: Kind = "units"
    block: int = 1
    shared: bool = False
    outgoing: Tensor | None = None
    reason: str = ""

    def features(self, x: Tensor, graph: Graph) -> Tensor:
        """Return what the closed form squares, shape (n, entries), from the layer's input, float64."""
        h = x.detach().double().cpu().flatten(1)
        if self.kind == "units":
            return h
        weight = graph.value_of(self.node.args[1]).detach().double().cpu()
        return (h.square() @ weight.square().T).sqrt()


@dataclass(frozen=True, eq=False)
class Dropped:
    """A graph with its dropout layers.

    Attributes
    ----------
    graph : Graph
        Its marks are active; `handlers` silence them.
    sites : list of Site
        In order of execution.
    """

    graph: Graph
    sites: list[Site]

    def run(self, x: Tensor, observe: Callable[[Node, Any], None] | None = None) -> Tensor:
        """Return the outputs with nothing dropped."""
        return self.graph.run(x, _silent(), observe=observe)

    def run_with(self, x: Tensor, site: Site, generator: torch.Generator) -> Masked:
        """Return the outputs with one site's masks drawn and nothing else dropped, and those without masks."""
        seen: list[Tensor] = []

        def without(plain: Tensor, masked: Tensor) -> Tensor:
            seen.extend((plain.detach().clone().requires_grad_(), masked.detach()))
            return seen[0]

        with torch.enable_grad():
            plain = self.graph.run(x, _at(site, without, generator))
        with torch.no_grad():
            masked = self.graph.run(x, _at(site, lambda *_: seen[1], generator))
        return Masked(masked, plain, seen[0], seen[1] - seen[0].detach())


@dataclass(frozen=True, eq=False)
class Masked:
    """Outputs with and without masks, and what masks changed where they act.

    Attributes
    ----------
    outputs, plain : Tensor, shape (n, outputs)
        With and without; the second is differentiable.
    leaf : Tensor
        What the layer hands on without masks, a leaf of `plain`.
    change : Tensor
        With masks, less without: its mean over masks is zero.
    """

    outputs: Tensor
    plain: Tensor
    leaf: Tensor
    change: Tensor

    def first_order(self, loss: Tensor) -> float:
        """Return the first-order effect of the masks on a loss of `plain`, of mean zero: a control variate."""
        if not loss.requires_grad:
            return 0.0
        slope = torch.autograd.grad(loss, self.leaf, allow_unused=True)[0]
        return 0.0 if slope is None else float((slope * self.change).double().sum())


def _at(
    site: Site, choose: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator
) -> dict[str, Handler]:
    """Return handlers that silence all marks, and at a site choose from the value without and with masks."""

    def units(node: Node, h: Tensor, *rest: Any) -> Tensor:
        if node is not site.node:
            return h
        if site.shared and h.ndim > 2:  # one mask along the last axis
            mask = _mask([int(h.shape[-1]) // site.block], site.p, generator).repeat_interleave(site.block)
            return choose(h, h * mask.to(h))
        entries = h.flatten(1).shape[1]
        mask = _mask([1 if site.shared else len(h), entries // site.block], site.p, generator)
        mask = mask.repeat_interleave(site.block, 1).expand(len(h), -1)
        return choose(h, h * mask.to(h).reshape(h.shape))

    def weights(node: Node, h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        plain = F.linear(h, weight, bias)
        if node is not site.node:
            return plain
        mask = _mask(list(weight.shape), site.p, generator).to(weight)
        return choose(plain, F.linear(h, weight * mask, bias))

    handlers = dict(_silent())
    handlers["linear" if site.kind == "weights" else _MARK] = weights if site.kind == "weights" else units
    return handlers


def _mask(shape: list[int], p: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) >= p).double() / (1.0 - p)


def _silent() -> Mapping[str, Handler]:
    return {_MARK: lambda node, h, *rest: h}


class _Mark(nn.Module):
    """Stands where a dropout module stood."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a dropout of the input, for the graph to show."""
        return F.dropout(x, 0.5, True)


def may_drop(model: nn.Module) -> bool:
    """Return whether a model has dropout layers, or forwards of its own that might call dropout."""
    for module in model.modules():
        known = type(module).__module__.split(".")[0] in ("torch", "theodolite")
        if not known or isinstance(module, (*_DROPOUT, DropConnect)):
            return True
    return False


def find_dropout(model: nn.Module, x: Tensor) -> Dropped | str:
    """Return the dropout layers of a model, or why they cannot be found.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.  It is not changed.
    x : Tensor, shape (n, ...)
        Example batch.
    """
    with torch.no_grad():
        wanted = model(x[:2])
    modules = dict(model.named_modules(remove_duplicate=False))
    reason = ""
    for training in (True, False):
        marked = _marked(model, training)
        try:
            graph = trace(marked, x)
        except ValueError as error:  # several outputs while training, say
            reason = str(error)
            continue
        if not graph.traced:
            reason = f"the model could not be traced ({graph.reason})"
            continue
        other = [node for node in graph.random_nodes() if node.op != _MARK]
        if other:
            reason = f"{other[0].where} draws random numbers in another way ({other[0].op})"
            continue
        with torch.no_grad():
            same = torch.allclose(graph.run(x[:2], _silent()), wanted, rtol=1e-4, atol=1e-5)
        if same:
            return Dropped(graph, _sites(graph, modules, x[:2]))
        reason = "training changes the forward in other ways than dropout"
    return reason


def _marked(model: nn.Module, training: bool) -> nn.Module:
    marked = copy.deepcopy(model).train(training)
    for module in marked.modules():
        if isinstance(module, (_NormBase, DropConnect, *_INTERNAL)):
            module.eval()
    if isinstance(marked, _DROPOUT):
        return _Mark()
    for parent in list(marked.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _DROPOUT):
                setattr(parent, name, _Mark())
    return marked


def _sites(graph: Graph, modules: Mapping[str, nn.Module], x: Tensor) -> list[Site]:
    sites: list[Site] = []
    used: dict[str, int] = {}
    for node in graph.operations:
        module = modules.get(node.layer)
        if node.op == _MARK:
            site = _site_of_units(node, module)
        elif node.op == "linear" and isinstance(module, DropConnect):
            flat = node.args[0].shape is not None and len(node.args[0].shape) == 2
            why = "" if flat else f"{node.where} applies one mask at several positions"
            site = Site("", node, module.drop_rate, "weights", shared=True, reason=why)
        else:
            continue
        if site.p == 0.0:
            continue
        base = node.layer or "forward"
        used[base] = used.get(base, 0) + 1
        name = base if used[base] == 1 else f"{base}#{used[base]}"
        reason, outgoing = site.reason, None
        norm = _norm_after(graph, node)
        if not reason and norm is not None:
            reason = f"{norm.where} follows, whose statistics while training are of units with masks"
        together = site.kind == "units" and site.shared and len(node.shape or ()) > 2
        if not reason and not together and _affine_after(graph, node):
            outgoing = _outgoing(graph, node, x)
        sites.append(Site(name, node, site.p, site.kind, site.block, site.shared, outgoing, reason))
    return sites


def _site_of_units(node: Node, module: nn.Module | None) -> Site:
    shape = node.args[0].shape or (0, 0)
    if isinstance(module, _ALPHA):
        why = f"{node.where} drops to a value other than zero, and not on average to the input"
        return Site("", node, module.p, reason=why)
    if isinstance(module, _CHANNELS):
        return Site("", node, module.p, block=math.prod(shape[2:]))
    if isinstance(module, _DropoutNd):
        return Site("", node, module.p)
    if isinstance(module, BernoulliDropout):
        return Site("", node, module.rate(shape[-1]), shared=module.shared)
    if isinstance(module, DropBlock):
        p = module.rate(shape[-1] // module.block)
        return Site("", node, p, block=module.block, shared=module.shared)
    return Site("", node, float(node.argument(1, "p", 0.5)))


def _norm_after(graph: Graph, node: Node) -> Node | None:
    """Return a batch normalization that the node reaches, None if there is none."""
    reached = {node}
    for other in graph.operations:
        if any(source in reached for source in other.inputs):
            if other.op in _NORMS:
                return other
            reached.add(other)
    return None


def _affine_after(graph: Graph, node: Node) -> bool:
    """Return whether everything from a node to the output is one chain of affine maps with constant weights."""
    while node is not graph.output:
        after = [n for n in graph.consumers(node) if not (n.op == "sym_size" and n.args[1] == 0)]
        if len(after) != 1 or after[0].op not in _AFFINE | {_MARK} or after[0].args[0] is not node:
            return False
        node = after[0]
        if node.op in _WEIGHTED and any(leaf.op != "parameter" for leaf in node.inputs[1:]):
            return False
    return True


def _outgoing(graph: Graph, node: Node, x: Tensor) -> Tensor | None:
    """Return the matrix of the affine map from a node's output to the model's, None if it is too large."""
    assert graph.output is not None
    width, outputs = math.prod((node.shape or (0,))[1:]), (graph.output.shape or (0, 0))[1]
    if width * outputs > _ENTRIES:
        return None
    leaf: list[Tensor] = []

    def start(plain: Tensor, _: Tensor) -> Tensor:
        leaf.append(plain.detach().clone().requires_grad_())
        return leaf[0]

    site = Site("", node, 0.0, "units" if node.op == _MARK else "weights")
    with torch.enable_grad():
        output = graph.run(x, _at(site, start, torch.Generator()))
        rows = [torch.autograd.grad(output[0, c], leaf[0], retain_graph=True)[0][0] for c in range(outputs)]
    return torch.stack([row.flatten() for row in rows]).double().cpu()
