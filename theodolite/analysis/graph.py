"""The computation graph of any module, as a list of ATen operations.

Every structural statement about a network (its degree of homogeneity, a Lipschitz
bound, a path norm, translation equivariance) is a set of rules over this graph.
The graph comes from ``torch.export``, which sees through functional calls,
residual sums, in-place operations and tied weights alike.  Where a module cannot
be exported (control flow that depends on the data, say), :func:`trace` falls back
to the tree of modules and says so: then there are no edges, so such a graph may
serve to find an offending layer but proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind

from theodolite.analysis.export import export, fixes_the_batch

LEAVES = frozenset({"input", "parameter", "buffer", "constant"})
RANDOM_OPS = frozenset(
    [
        "rand",
        "randn",
        "rand_like",
        "randn_like",
        "randint",
        "randint_like",
        "randperm",
        "normal",
        "normal_functional",
        "bernoulli",
        "multinomial",
        "rrelu",
        "rrelu_with_noise",
        "poisson",
        "exponential",
        "uniform",
    ]
)
# operations whose first output is the result and whose others are by-products
_FIRST_OUTPUT = frozenset(
    [
        "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit_functional",
        "_native_batch_norm_legit",
        "native_batch_norm",
        "cudnn_batch_norm",
        "native_dropout",
        "native_layer_norm",
        "native_group_norm",
        "max_pool1d_with_indices",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
    ]
)


@dataclass(eq=False)
class Node:
    """One operation (or leaf) of a graph.

    Attributes
    ----------
    name : str
        Unique within the graph.
    op : str
        ATen name without overload ("linear", "conv2d", "relu", "add", ...), or one
        of "input", "parameter", "buffer", "constant".
    args, kwargs
        As ATen takes them; tensors appear as :class:`Node`.
    layer : str
        Qualified name of the innermost module that runs the operation, "" for the model itself.
    layer_type : str
        Class name of that module.
    shape : tuple of int or None
        Output shape with the traced batch size; None for a non-tensor.
    target : str
        Qualified name of a parameter or buffer, "" otherwise.
    """

    name: str
    op: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    layer: str = ""
    layer_type: str = ""
    shape: tuple[int, ...] | None = None
    target: str = ""
    function: Callable[..., Any] | None = None
    tensor: Tensor | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether the node is an input, a parameter, a buffer or a constant."""
        return self.op in LEAVES

    @property
    def inputs(self) -> list[Node]:
        """Nodes that the operation reads, in order of appearance."""
        return list(_nodes_in((self.args, self.kwargs)))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument whether it was given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def where(self) -> str:
        """Return "layer 'features.3' (Conv2d)" for messages."""
        if self.target:
            return f"parameter '{self.target}'"
        kind = self.layer_type if self.layer else f"{self.layer_type or 'model'}, {self.op}"
        return f"layer '{self.layer}' ({kind})" if self.layer else f"the model's own forward ({kind})"

    def __repr__(self) -> str:
        return f"Node({self.name}: {self.op} at {self.layer or 'model'} -> {self.shape})"


def _nodes_in(item: Any) -> Iterator[Node]:
    if isinstance(item, Node):
        yield item
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from _nodes_in(part)
    elif isinstance(item, dict):
        for part in item.values():
            yield from _nodes_in(part)


@dataclass(eq=False)
class Graph:
    """A module as operations in order of execution.

    Attributes
    ----------
    model : nn.Module
        The traced module; parameter values are read from it at run time.
    nodes : list of Node
        In order of execution, dead ones removed; empty when ``source`` is "modules".
    output : Node or None
        The node whose value the module returns.
    source : {"export", "modules"}
        "modules" when tracing failed and only the module tree is known.
    reason : str
        Why tracing failed, "" otherwise.
    training : bool
        Mode in which the module was traced.
    """

    model: nn.Module
    nodes: list[Node]
    output: Node | None
    source: Literal["export", "modules"]
    reason: str = ""
    training: bool = False

    @property
    def traced(self) -> bool:
        """Whether the graph has edges, so that rules over it can prove something."""
        return self.source == "export"

    @property
    def operations(self) -> list[Node]:
        """The nodes that are not leaves."""
        return [node for node in self.nodes if not node.is_leaf]

    def consumers(self, node: Node) -> list[Node]:
        """Return the nodes that read ``node``."""
        return [other for other in self.nodes if node in other.inputs]

    def random_nodes(self) -> list[Node]:
        """Return the nodes that draw random numbers."""
        return [n for n in self.nodes if n.op in RANDOM_OPS or (n.op == "native_dropout" and _active(n))]

    def value_of(self, node: Node) -> Tensor:
        """Return the tensor of a parameter, buffer or constant node."""
        if node.tensor is not None:
            return node.tensor
        owner, _, leaf = node.target.rpartition(".")
        tensor = getattr(self.model.get_submodule(owner), leaf)
        assert isinstance(tensor, Tensor)
        return tensor

    def run(
        self,
        x: Tensor,
        handlers: Mapping[str, Callable[..., Any]] | None = None,
        overrides: Mapping[str, Tensor] | None = None,
        observe: Callable[[Node, Any], None] | None = None,
    ) -> Tensor:
        """Execute the graph, optionally with other operations or other weights.

        Parameters
        ----------
        x : Tensor, shape (n, ...)
            The input; any batch size unless the module fixed it.
        handlers : mapping from op to function(node, ...), optional
            Replaces operations by name (a max-pool by a sum over its window, say).  Where the
            graph reads by-products too (the places of the maxima), it returns all results.
        overrides : mapping from parameter or buffer name to Tensor, optional
            Replaces leaves by value.
        observe : function(node, value), optional
            Called after each operation.

        Returns
        -------
        Tensor
            The module's output.

        Raises
        ------
        ValueError
            If the module could not be traced, or a handler leaves out by-products that are read.
        """
        if self.output is None:
            raise ValueError(f"model: expected a traceable module; tracing failed: {self.reason}")
        handlers, overrides = handlers or {}, overrides or {}
        readers: dict[Node, int] = {}
        for node in self.nodes:
            for source in node.inputs:
                readers[source] = readers.get(source, 0) + 1
        env: dict[Node, Any] = {}
        # a getitem on such an operation reads a by-product (where the maxima are, say)
        split = {n.args[0] for n in self.nodes if n.op == "getitem" and n.args[0].op in _FIRST_OUTPUT}
        by_products: dict[Node, Any] = {}
        for node in self.nodes:
            if node.op == "input":
                env[node] = x
            elif node.is_leaf:
                env[node] = overrides[node.target] if node.target in overrides else self.value_of(node)
            else:
                args, kwargs = _fill(node.args, env), _fill(node.kwargs, env)
                if node.op in handlers:
                    result = handlers[node.op](node, *args, **kwargs)
                elif node.op == "getitem" and node.args[0] in split:
                    result = by_products[node.args[0]][node.args[1]]
                else:
                    assert node.function is not None
                    result = node.function(*args, **kwargs)
                if node in split:
                    if not isinstance(result, (tuple, list)):
                        raise ValueError(
                            f"handlers: expected all results of {node.where}, got the first alone"
                        )
                    by_products[node] = result
                if node.op in _FIRST_OUTPUT and isinstance(result, (tuple, list)):
                    result = result[0]
                env[node] = result
                if observe is not None:
                    observe(node, result)
            for source in node.inputs:
                readers[source] -= 1
                if readers[source] == 0 and source is not self.output:
                    del env[source]
        result = env[self.output]
        assert isinstance(result, Tensor)
        return result


def _active(node: Node) -> bool:
    return bool(node.argument(2, "train", True)) and float(node.argument(1, "p", 0.5)) > 0.0


def _fill(item: Any, env: Mapping[Node, Any]) -> Any:
    if isinstance(item, Node):
        return env[item]
    if isinstance(item, (tuple, list)):
        return type(item)(_fill(part, env) for part in item)
    if isinstance(item, dict):
        return {key: _fill(part, env) for key, part in item.items()}
    return item


def trace(model: nn.Module, x: Tensor) -> Graph:
    """Trace a module on an example batch, in the mode that it is in.

    Parameters
    ----------
    model : nn.Module
        Any module that maps one tensor to one tensor.  It is not changed.
    x : Tensor, shape (n, ...)
        Example batch; at least two rows let the batch size stay free.

    Returns
    -------
    Graph
        With ``source="export"``, or with ``source="modules"`` and the reason when
        the module cannot be traced.

    Raises
    ------
    ValueError
        If the module's output is not one tensor.
    """
    x = x[:1].repeat_interleave(2, 0) if len(x) == 1 else x[:2]
    try:
        program = export(model, x)
    except Exception as error:  # whatever a stranger's forward raises under tracing; the reason is kept
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        return Graph(model, [], None, "modules", reason, model.training)
    graph = _convert(model, program)
    if fixes_the_batch(program):  # such a graph would silently leave out every further sample
        reason = (
            "its forward fixes the number of samples, by len(x) or a loop; x.shape[0] would leave it free"
        )
        return Graph(model, [], None, "modules", reason, model.training)
    return graph


def _convert(model: nn.Module, program: Any) -> Graph:
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    if kinds.count(OutputKind.USER_OUTPUT) != 1 or program.call_spec.out_spec.num_nodes != 1:
        raise ValueError(f"model: expected the output to be one tensor, got {describe_output(program)}")
    table: dict[str, Node] = {}
    nodes: list[Node] = []
    for raw in program.graph.nodes:
        if raw.op == "output":
            returned = raw.args[0][kinds.index(OutputKind.USER_OUTPUT)]
            continue
        node = _leaf(raw, specs[raw.name], program) if raw.op == "placeholder" else _operation(raw, table)
        if node.op == "getitem" and node.args[1] == 0 and node.args[0].op in _FIRST_OUTPUT:
            source = node.args[0]
            source.shape = node.shape
            table[raw.name] = source
            continue
        table[raw.name] = node
        nodes.append(node)
    output = table[returned.name] if isinstance(returned, torch.fx.Node) else None
    if output is None or output.shape is None:
        raise ValueError("model: expected the output to be one tensor, got a constant")
    alive: set[Node] = set()
    stack = [output]
    while stack:
        node = stack.pop()
        if node not in alive:
            alive.add(node)
            stack.extend(node.inputs)
    return Graph(model, [n for n in nodes if n in alive], output, "export", "", model.training)


def describe_output(program: Any) -> str:
    """Return "a tuple of 2" or "a dict with keys a, b" for an exported program."""
    spec = program.call_spec.out_spec
    kind = getattr(spec.type, "__name__", str(spec.type))
    keys = spec.context if isinstance(spec.context, list) else []
    extra = f" with keys {', '.join(map(repr, keys))}" if keys else f" of {spec.num_children}"
    return f"a {kind}{extra}"


def _leaf(raw: Any, spec: Any, program: Any) -> Node:
    shape = _shape(raw)
    if spec.kind == InputKind.PARAMETER:
        return Node(raw.name, "parameter", shape=shape, target=spec.target)
    if spec.kind == InputKind.BUFFER:
        return Node(raw.name, "buffer", shape=shape, target=spec.target)
    if spec.kind == InputKind.CONSTANT_TENSOR:
        return Node(raw.name, "constant", shape=shape, tensor=program.constants[spec.target])
    return Node(raw.name, "input", shape=shape)


def _operation(raw: Any, table: Mapping[str, Node]) -> Node:
    stack = [
        entry
        for key, entry in (raw.meta.get("nn_module_stack") or {}).items()
        if not key.startswith("_empty")
    ]
    layer, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    target = raw.target
    op = (
        target._opname
        if isinstance(target, torch._ops.OpOverload)
        else getattr(target, "__name__", str(target))
    )
    return Node(
        raw.name,
        op,
        args=_relink(raw.args, table),
        kwargs=_relink(dict(raw.kwargs), table),
        layer=layer,
        layer_type=kind.rpartition(".")[2],
        shape=_shape(raw),
        function=target,
    )


def _relink(item: Any, table: Mapping[str, Node]) -> Any:
    if isinstance(item, torch.fx.Node):
        return table[item.name]
    if isinstance(item, (tuple, list)):
        return (
            tuple(_relink(part, table) for part in item)
            if isinstance(item, tuple)
            else [_relink(part, table) for part in item]
        )
    if isinstance(item, dict):
        return {key: _relink(part, table) for key, part in item.items()}
    return item


def _shape(raw: Any) -> tuple[int, ...] | None:
    value = raw.meta.get("val")
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
        value = value[0]
    if not isinstance(value, Tensor):
        return None
    # the batch size is symbolic, and so is what is made from it (batch times sequence length);
    # its hint is the size in the example that was traced, where the batch was two
    return tuple(size if isinstance(size, int) else int(size.node.hint or 2) for size in value.shape)
