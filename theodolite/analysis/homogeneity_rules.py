"""Rules that carry a degree of positive homogeneity through a graph of operations.

A tensor g(w) has degree d when g(a w) = a^d g(w) for every a > 0, where w stands for
the scaled variables jointly.  A rule proves the degree of an operation's output from
those of its inputs; where it cannot, the output carries a :class:`Fault` and goes on
with the degree that it would have had without it, which is what a reader expects to
see there ("not 8 f(w)").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from theodolite.analysis.graph import Graph, Node
from theodolite.analysis.scaling import (
    CONSTANT,
    FREE,
    Fault,
    Scaling,
    degree_zero,
    first_fault,
    power,
    product,
    scaling_of_constant,
)

# Operations of degree 1 in their first argument: linear maps, selections, order statistics, norms.
# Their other arguments (indices, grids, sizes) must be constant.
_CARRY = """
    abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d affine_grid_generator alias amax amin aminmax as_strided avg_pool1d avg_pool2d
    avg_pool3d channel_shuffle chunk clone col2im conj conj_physical contiguous cummax cummin cumsum detach
    diag diag_embed diagonal dropout embedding expand expand_as feature_dropout fft_fft fft_fft2 fft_fftn
    fft_fftshift fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2
    fft_rfftn flatten flip fliplr flipud gather grid_sampler grid_sampler_2d grid_sampler_3d im2col imag index
    index_select kthvalue leaky_relu lift_fresh_copy linalg_matrix_norm masked_select max_pool1d max_pool2d
    max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d
    max_unpool3d mean median mode movedim nanmean nanmedian nansum narrow native_dropout neg permute
    pixel_shuffle pixel_unshuffle positive real reflection_pad1d reflection_pad2d reflection_pad3d relu repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape resolve_conj resolve_neg
    roll rot90 rrelu select slice sort split split_with_sizes squeeze std std_mean sum swapaxes swapdims t take
    take_along_dim tile topk trace transpose tril triu unbind unflatten unfold unsafe_chunk unsafe_split
    unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d view view_as_complex view_as_real _adaptive_avg_pool2d
    _adaptive_avg_pool3d _conj _reshape_alias _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
""".split()
# the same after multiplication of any argument by a > 0
_INVARIANT = """
    all any argmax argmin argsort count_nonzero isfinite isinf isnan isneginf isposinf logical_and logical_not
    logical_or logical_xor nonzero sgn sign signbit
""".split()
# dependent on the argument's shape alone
_SHAPE = """
    new_ones ones_like rand_like randint_like randn_like sym_numel sym_size sym_storage_offset sym_stride
""".split()
_PRODUCTS = """
    bmm chain_matmul cross dot einsum ger inner kron linalg_cross linalg_multi_dot matmul mm mul multiply mv outer
    tensordot vdot
""".split()
_JOINS = "cat clamp clamp_max clamp_min concat concatenate dstack fmax fmin hstack hypot maximum minimum stack vstack"
_COMPARISONS = "arctan2 atan2 eq ge greater greater_equal gt le less less_equal lt ne not_equal"
_AFFINE = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear"
_SCATTERS = """
    diagonal_scatter index_add index_fill index_put masked_scatter scatter scatter_add select_scatter slice_scatter
""".split()
_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "var": 2.0, "var_mean": 2.0}
_WITH_INDICES = frozenset(
    """
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d cummax cummin kthvalue max median min mode nanmedian
    sort topk
    """.split()
)
_LISTS = frozenset("cat chain_matmul concat concatenate dstack hstack linalg_multi_dot stack vstack".split())
# known not to be homogeneous, so that the message need not speak of a missing rule
_INHOMOGENEOUS = frozenset(
    """
    _log_softmax _softmax alpha_dropout celu cos elu erf exp exp2 expm1 gelu glu gru hardshrink hardsigmoid hardswish
    log log10 log1p log2 log_sigmoid log_softmax logsumexp lstm mish rnn_relu rnn_tanh selu sigmoid silu sin softmax
    softplus softshrink tanh tanhshrink
    """.split()
)


class Interpreter:
    """Carries degrees through a graph.

    Parameters
    ----------
    graph : Graph
        A traced graph.
    scaled : set of int
        ``id`` of the parameters that are scaled.  All other tensors are constants,
        of which only matters whether they are zero.
    source : Scaling
        Scaling of the graph's input.
    """

    def __init__(self, graph: Graph, scaled: set[int], source: Scaling) -> None:
        self.graph = graph
        self.scaled = scaled
        self.source = source
        self.order = 0
        self.env: dict[Node, Scaling] = {}

    def run(self) -> Mapping[Node, Scaling]:
        """Return the scaling of every node."""
        for order, node in enumerate(self.graph.nodes):
            self.order = order
            found = self._leaf(node) if node.is_leaf else _RULES.get(node.op, _unknown)(self, node)
            if (
                found.fault
                and found.fault.order == self.order
                and all(self.env[n].constant for n in node.inputs)
            ):
                found = CONSTANT  # whatever it computes, its inputs do not change
            self.env[node] = found
        return self.env

    def _leaf(self, node: Node) -> Scaling:
        if node.op == "input":
            return self.source
        value = self.graph.value_of(node)
        return Scaling(1.0) if id(value) in self.scaled else scaling_of_constant(value)

    def of(self, item: Any) -> Scaling:
        """Return the scaling of an argument: a node or a number."""
        if isinstance(item, Node):
            return self.env[item]
        empty = isinstance(item, (int, float)) and (item == 0 or math.isinf(item))
        return FREE if empty else CONSTANT

    def fault(self, node: Node, why: str, nominal: float, *parts: Scaling) -> Scaling:
        """Return a scaling with the earliest fault of its parts, or else with a new one at the node."""
        new = Fault(node.layer, node.layer_type, node.where, why, self.order)
        return Scaling(nominal, fault=first_fault(parts) or new)

    def join(self, node: Node, items: Iterable[Any], verb: str = "combines") -> Scaling:
        """Return the scaling of a sum, or of anything of degree 1 in all its arguments jointly."""
        parts = [item if isinstance(item, Scaling) else self.of(item) for item in items]
        bound = [p for p in parts if not p.free]
        if not bound:
            return FREE
        low, high = min(p.degree for p in bound), max(p.degree for p in bound)
        if math.isclose(low, high, rel_tol=1e-12, abs_tol=1e-12):
            return Scaling(bound[0].degree, fault=first_fault(bound))
        return self.fault(node, f"{verb} terms of degree {low:g} and {high:g}", high, *bound)

    def steered(self, node: Node, main: Scaling, controls: Iterable[Any]) -> Scaling:
        """Return ``main``, provided that the arguments which steer the operation are constant."""
        found = [self.of(item) for item in controls]
        if all(c.constant for c in found):
            return main
        degree = max((c.degree for c in found if not c.constant), key=abs)
        return self.fault(node, f"is steered by a term of degree {degree:g}", main.degree, main, *found)


Rule = Callable[[Interpreter, Node], Scaling]


def _operands(node: Node) -> list[Any]:
    """Return the tensors and numbers that an operation combines, lists opened."""
    if node.op in _LISTS:
        return list(node.args[0])
    if node.op == "einsum":
        return list(node.args[1])
    if node.op == "clamp":
        limits = node.argument(1, "min"), node.argument(2, "max")
        return [node.args[0], *(limit for limit in limits if limit is not None)]
    return [node.args[0], node.argument(1, "other", node.kwargs.get("min", node.kwargs.get("max")))]


def _unknown(i: Interpreter, node: Node) -> Scaling:
    why = (
        "is not positively homogeneous"
        if node.op in _INHOMOGENEOUS
        else f"runs {node.op}, for which there is no rule"
    )
    parts = [i.of(item) for item in node.inputs]
    weights = [i.of(item) for item in node.inputs[1:] if item.op == "parameter"]
    nominal = (parts[0].degree if parts else 0.0) + max((p.degree for p in weights), default=0.0)
    return i.fault(node, why, nominal, *parts)


def _carry(i: Interpreter, node: Node) -> Scaling:
    if not isinstance(node.args[0], Node):
        return _unknown(i, node)
    found = i.steered(node, i.of(node.args[0]), node.inputs[1:])
    dtypes = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.dtype)]
    if any(node.op == "view" or not (d.is_floating_point or d.is_complex) for d in dtypes):
        return i.fault(node, "changes the type of its numbers", found.degree, found)
    return found


def _invariant(i: Interpreter, node: Node) -> Scaling:
    return Scaling(0.0, fault=first_fault(i.of(item) for item in node.inputs))


def _with_bias(i: Interpreter, node: Node, part: Scaling, bias: Any) -> Scaling:
    if bias is None or (part.fault and part.fault.order == i.order):
        return part
    shift, joined = i.of(bias), i.join(node, [part, bias])
    if joined.fault is None or joined.fault.order != i.order:
        return joined
    return i.fault(
        node, f"adds a bias of degree {shift.degree:g} to a term of degree {part.degree:g}", part.degree
    )


def _sum(i: Interpreter, node: Node) -> Scaling:
    absent = node.op != "rsub" and node.argument(2, "alpha", 1) == 0
    return i.join(node, [node.args[0], FREE if absent else i.of(node.args[1])], "adds")


def _division(i: Interpreter, node: Node) -> Scaling:
    ratio = product([i.of(node.args[0]), power(i.of(node.args[1]), -1.0)])
    if node.op == "floor_divide" or node.argument(2, "rounding_mode") is not None:
        return i.fault(node, "rounds a quotient", ratio.degree, ratio) if ratio != CONSTANT else ratio
    return ratio


def _power(i: Interpreter, node: Node) -> Scaling:
    base, exponent = node.args[:2]
    if isinstance(base, Node) and isinstance(exponent, (int, float)):
        return power(i.of(base), float(exponent))
    return i.fault(
        node, "has an exponent that is not a number", i.of(base).degree, i.of(base), i.of(exponent)
    )


def _extremum(i: Interpreter, node: Node) -> Scaling:
    other = node.argument(1, "other")
    return i.join(node, [node.args[0], other], "compares") if isinstance(other, Node) else i.of(node.args[0])


def _getitem(i: Interpreter, node: Node) -> Scaling:
    source, index = node.args
    if source.op in _WITH_INDICES and index == 1:
        return degree_zero(i.of(source))
    return power(i.of(source), 0.5) if source.op == "var_mean" and index == 1 else i.of(source)


def _norm(i: Interpreter, node: Node) -> Scaling:
    found = i.of(node.args[0])
    return degree_zero(found) if node.argument(1, "p" if node.op == "norm" else "ord") == 0 else found


def _distance(i: Interpreter, node: Node) -> Scaling:
    found = i.join(node, node.args[:2], "compares")
    return degree_zero(found) if node.argument(2, "p", 2) == 0 else found


def _limited(i: Interpreter, node: Node) -> Scaling:
    limits = (
        (0.0, 6.0)
        if node.op == "relu6"
        else (node.argument(1, "min_val", -1.0), node.argument(2, "max_val", 1.0))
    )
    return i.join(node, [node.args[0], *(node.args[1:3] if node.op == "threshold" else limits)], "compares")


def _prelu(i: Interpreter, node: Node) -> Scaling:
    main, slope = i.of(node.args[0]), i.of(node.args[1])
    return main if slope.constant else i.fault(node, "has trained slopes", main.degree, main, slope)


def _masked_fill(i: Interpreter, node: Node) -> Scaling:
    return i.steered(node, i.join(node, [node.args[0], node.args[2]]), node.args[1:2])


def _scatter(i: Interpreter, node: Node) -> Scaling:
    position = {
        "slice_scatter": 1,
        "select_scatter": 1,
        "diagonal_scatter": 1,
        "index_put": 2,
        "masked_scatter": 2,
    }
    source = node.argument(
        position.get(node.op, 3), "src", node.kwargs.get("value", node.kwargs.get("source"))
    )
    controls = [n for n in node.inputs[1:] if n is not source]
    found = i.steered(node, i.join(node, [node.args[0], source]), controls)
    return found if "reduce" not in node.kwargs else i.fault(node, "scatters products", found.degree, found)


def _pad(i: Interpreter, node: Node) -> Scaling:
    main, value = i.of(node.args[0]), node.argument(3, "value")
    if node.op == "constant_pad_nd":
        value = node.argument(2, "value", 0)
    elif node.argument(2, "mode", "constant") != "constant":
        return main
    if not value or all(isinstance(p, int) and p <= 0 for p in node.args[1]):
        return main
    return i.join(node, [main, value], "pads to")


def _cast(i: Interpreter, node: Node) -> Scaling:
    found = i.of(node.args[0])
    dtype = next(
        (a for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.dtype)), torch.float64
    )
    if dtype is torch.bool:
        return degree_zero(found)
    if dtype.is_floating_point or dtype.is_complex:
        return found
    return i.fault(node, "rounds to integers", found.degree, found)


def _copy(i: Interpreter, node: Node) -> Scaling:
    found = i.of(node.args[1])
    return (
        found
        if _is_floating(i, node.args[0])
        else i.fault(node, "may round to integers", found.degree, found)
    )


def _is_floating(i: Interpreter, node: Node) -> bool:
    """Whether a tensor that is overwritten surely has a floating type: looked up where it was made."""
    while not node.is_leaf:
        dtype = node.kwargs.get("dtype")
        if dtype is not None or node.op in ("zeros", "ones", "empty"):
            return dtype is None or dtype.is_floating_point
        if node.op not in _CARRY and node.op not in (
            "copy",
            "fill",
            "zeros_like",
            "new_zeros",
            "empty_like",
            "new_empty",
        ):
            return False
        node = node.args[0]
    return node.op != "input" and i.graph.value_of(node).is_floating_point()


def _add_product(i: Interpreter, node: Node) -> Scaling:
    first, second, third = (i.of(item) for item in node.args[:3])
    third = power(third, -1.0) if node.op == "addcdiv" else third
    terms = product([second, third, i.of(node.kwargs.get("value", node.kwargs.get("alpha", 1)))])
    return i.join(node, [product([first, i.of(node.kwargs.get("beta", 1))]), terms], "adds")


def _embedding_bag(i: Interpreter, node: Node) -> Scaling:
    weights = node.argument(6, "per_sample_weights")
    found = i.steered(node, i.of(node.args[0]), node.args[1:3])
    return found if weights is None else product([found, i.of(weights)])


def _attention(i: Interpreter, node: Node) -> Scaling:
    query, key, value = (i.of(item) for item in node.args[:3])
    scores = product([query, key])
    if not scores.constant:
        why = f"applies a softmax to scores of degree {scores.degree:g}"
        return i.fault(node, why, value.degree, query, key, value)
    mask = node.argument(3, "attn_mask")
    return i.steered(node, value, [] if mask is None else [mask])


def _normalized(i: Interpreter, node: Node, x: Any, weight: Any, bias: Any, eps: float | None) -> Scaling:
    """Division by the input's own deviation: of degree 0, exactly only if eps = 0."""
    found = i.of(x)
    part = found if found.free else degree_zero(found)
    if eps != 0.0 and not found.constant:
        shown = "a positive eps" if eps is None else f"eps = {eps:g}"
        part = i.fault(node, f"adds {shown} to the variance of a term of degree {found.degree:g}", 0.0, found)
    return _scaled(i, node, part, weight, bias)


def _standardized(i: Interpreter, node: Node, x: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Scaling:
    """Batch normalization by frozen statistics: affine in the input, with the mean as a shift."""
    part = i.join(node, [x, mean], "combines with a running mean")
    return _scaled(i, node, i.steered(node, part, [var]), weight, bias)


def _scaled(i: Interpreter, node: Node, part: Scaling, weight: Any, bias: Any) -> Scaling:
    return _with_bias(i, node, part if weight is None else product([part, i.of(weight)]), bias)


def _batch_norm(i: Interpreter, node: Node) -> Scaling:
    a = node.args
    if isinstance(a[3], bool):  # the variant without running statistics
        return _normalized(i, node, a[0], a[1], a[2], a[5])
    training = node.op != "_native_batch_norm_legit_no_training" and a[5]
    return _normalized(i, node, a[0], a[1], a[2], a[7]) if training else _standardized(i, node, *a[:5])


def _layer_norm(i: Interpreter, node: Node) -> Scaling:
    weight, bias, eps = node.argument(2, "weight"), node.argument(3, "bias"), node.argument(4, "eps", 1e-5)
    return _normalized(i, node, node.args[0], weight, bias, eps)


def _filled(i: Interpreter, node: Node) -> Scaling:
    position = {"scalar_tensor": 0, "new_full": 2}.get(node.op, 1)
    return i.of(node.argument(position, "value" if node.op == "fill" else "fill_value"))


def _table() -> Iterator[tuple[str | Iterable[str], Rule]]:
    yield _CARRY, _carry
    yield _INVARIANT, _invariant
    yield _SHAPE, lambda i, n: CONSTANT
    yield "zeros zeros_like new_zeros", lambda i, n: FREE
    yield "full full_like new_full fill scalar_tensor", _filled
    yield _PRODUCTS, lambda i, n: product(map(i.of, _operands(n)))
    yield _JOINS, lambda i, n: i.join(n, _operands(n), "compares" if n.op.startswith("clamp") else "combines")
    yield _COMPARISONS, lambda i, n: degree_zero(i.join(n, n.args[:2], "compares"))
    yield _POWERS, lambda i, n: power(i.of(n.args[0]), _POWERS[n.op])
    yield _AFFINE, lambda i, n: _with_bias(i, n, product(map(i.of, n.args[:2])), n.argument(2, "bias"))
    yield "bilinear", lambda i, n: _with_bias(i, n, product(map(i.of, n.args[:3])), n.argument(3, "bias"))
    yield "addmm baddbmm addmv addr addbmm addcmul addcdiv", _add_product
    yield "add sub subtract rsub", _sum
    yield "div divide true_divide floor_divide", _division
    yield "pow", _power
    yield "max min", _extremum
    yield "getitem", _getitem
    yield "norm linalg_norm linalg_vector_norm", _norm
    yield "cdist", _distance
    yield "hardtanh relu6 threshold", _limited
    yield "prelu", _prelu
    yield "where", lambda i, n: i.steered(n, i.join(n, n.args[1:3]), n.args[:1])
    yield "lerp", lambda i, n: i.steered(n, i.join(n, n.args[:2]), n.args[2:3])
    yield "masked_fill", _masked_fill
    yield _SCATTERS, _scatter
    yield "pad constant_pad_nd", _pad
    yield "_to_copy to", _cast
    yield "copy", _copy
    yield "embedding_bag", _embedding_bag
    yield "_weight_norm", lambda i, n: product([degree_zero(i.of(n.args[0])), i.of(n.args[1])])
    yield "scaled_dot_product_attention", _attention
    yield "layer_norm native_layer_norm group_norm", _layer_norm
    yield (
        "rms_norm",
        lambda i, n: _normalized(i, n, n.args[0], n.argument(2, "weight"), None, n.argument(3, "eps")),
    )
    yield (
        "instance_norm",
        lambda i, n: (
            _normalized(i, n, n.args[0], n.args[1], n.args[2], n.args[7])
            if n.args[5]
            else _standardized(i, n, *n.args[:5])
        ),
    )
    yield (
        "_native_batch_norm_legit _native_batch_norm_legit_no_training _native_batch_norm_legit_functional",
        _batch_norm,
    )
    yield "bernoulli", lambda i, n: CONSTANT if len(n.args) > 1 else _unknown(i, n)


_RULES: dict[str, Rule] = {
    op: rule for ops, rule in _table() for op in (ops.split() if isinstance(ops, str) else ops)
}
