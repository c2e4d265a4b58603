"""Modules exported by ``torch.export`` as programs in which no operation writes to a tensor."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

aten = torch.ops.aten


def export(model: nn.Module, x: Tensor) -> ExportedProgram:
    """Export a module on a batch of two rows; the size of the batch stays free where the module allows it.

    In-place operations become what they compute, and names stand for ATen operations as users know them
    ("linear", "conv2d"); whatever the module's forward raises is raised.
    """
    dynamic = ({0: torch.export.Dim.AUTO},)
    silenced = logging.root.manager.disable
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
        # torch's deprecations and its dumps of half-traced programs are not the user's concern
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            program = torch.export.export(model, (x,), strict=False, dynamic_shapes=dynamic)
            # functionalizes, decomposes nothing; it takes several times as long as the export
            return program if made_functional(program) else program.run_decompositions({})
        finally:
            logging.disable(silenced)


def fixes_the_batch(program: ExportedProgram) -> bool:
    """Return whether the program holds for the traced batch size alone (a loop over samples, say)."""
    return any(
        isinstance(size, int) or size.node.maybe_as_int() is not None
        for size in (node.meta["val"].shape[0] for node in _inputs(program))
    )


def made_functional(program: ExportedProgram) -> bool:
    """Bring a simple program into the form that ``run_decompositions({})`` gives it, if it is known to be simple.

    It is, when no operation writes to a tensor and all return new ones or plain views.  What reshapes contiguous
    tensors sample by sample becomes a view, an inactive dropout a copy, and a batch norm in evaluation mode the
    operation that has no other.  A program that is not simple is left as it is.
    """
    inputs = _inputs(program)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    shorthands = [node for node in calls if node.target in _SHORTHANDS]
    if len(inputs) != 1 or not all(node in shorthands or _is_functional(node.target) for node in calls):
        return False
    batch = inputs[0].meta["val"].shape[0]
    if not all(_can_be_written_out(node, batch) for node in shorthands):
        return False
    if not shorthands:
        return True
    graph = program.graph
    with graph.inserting_before(calls[0]):
        rows = _call(graph, aten.sym_size.int, inputs[0], 0)
    rows.meta["val"] = batch
    for node in shorthands:
        _write_out(node, rows)
    return True


def _inputs(program: ExportedProgram) -> list[fx.Node]:
    names = {s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


_RESHAPES = frozenset([aten.flatten.using_ints, aten.unflatten.int])
_SHORTHANDS = _RESHAPES | {aten.dropout.default, aten.batch_norm.default}
_VIEWS = frozenset(
    [
        aten.expand.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.dim,
        aten.transpose.int,
        aten.unsqueeze.default,
    ]
)


def _is_functional(target: Any) -> bool:
    """Whether an operation writes to no argument and returns a new tensor or a plain view."""
    if target is operator.getitem or target in _VIEWS:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target is aten.native_batch_norm.default:
        return False  # whose schema does not say that it updates its buffers
    if torch._C.DispatchKey.Autograd in target.py_kernels:
        return False  # it is written in Python, and decomposes below autograd whatever is asked for
    schema = target._schema
    declared = schema.is_mutable or any(a.alias_info is not None for a in schema.arguments)
    return not declared and torch.Tag.maybe_aliasing_or_mutating not in target.tags


def _can_be_written_out(node: fx.Node, batch: Any) -> bool:
    """Whether a dropout or a batch norm is in evaluation mode, or a reshaping is of contiguous samples."""
    source, result = node.args[0], node.meta["val"]
    assert isinstance(source, fx.Node)
    if node.target is aten.dropout.default:
        return node.args[2] is False
    if node.target is aten.batch_norm.default:
        _, _, _, mean, variance, training, *_ = node.args
        # other devices have operations of their own
        return training is False and None not in (mean, variance) and result.device.type == "cpu"
    rows, rest = result.shape[0], result.shape[1:]
    same = not isinstance(rows, int) and not isinstance(batch, int) and rows.node.expr == batch.node.expr
    return same and all(isinstance(size, int) for size in rest) and source.meta["val"].is_contiguous()


def _write_out(node: fx.Node, rows: fx.Node) -> None:
    graph, source, result = node.graph, node.args[0], node.meta["val"]
    assert isinstance(source, fx.Node)
    new = source
    with graph.inserting_before(node):
        if node.target is aten.dropout.default:
            new = _call(graph, aten.clone.default, source)
        elif node.target is aten.batch_norm.default:
            *arguments, _, momentum, eps, _ = node.args
            new = _call(graph, aten._native_batch_norm_legit_no_training.default, *arguments, momentum, eps)
        elif result.ndim != source.meta["val"].ndim:  # it returns one of that many dimensions as it is
            new = _call(graph, aten.view.default, source, [rows, *result.shape[1:]])
    if new is not source:
        new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _call(graph: fx.Graph, target: Any, *arguments: Any) -> fx.Node:
    return graph.create_node("call_function", target, arguments, name=target._opname)
