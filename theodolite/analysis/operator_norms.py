r"""Lipschitz constants of single operations in the Euclidean norm, and norms of linear layers.

The constants are those of the whole batch as one vector; since samples do not mix they
are those of one sample.  Activations: the supremum of the derivative's absolute value,
rounded up.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.analysis import pooling
from theodolite.analysis.graph import Graph, Node, trace
from theodolite.analysis.linear_layers import (
    BATCH_NORM,
    Constants,
    LinearLayer,
    batch_norm_line,
    is_copy,
    linear_layers,
)
from theodolite.linalg.lanczos import lanczos
from theodolite.linalg.spectral import batched_sigma_max, sigma_max
from theodolite.value import Value

_DENSE = 2048  # longest side of a matrix that is formed

ACTIVATIONS: dict[str, float] = {
    **dict.fromkeys("relu relu6 hardtanh tanh abs neg sin cos atan softshrink".split(), 1.0),
    **dict.fromkeys("logsigmoid log_sigmoid".split(), 1.0),
    "sigmoid": 0.25,
    "hardsigmoid": 1.0 / 6.0,
    "erf": 1.1283792,  # 2 / sqrt(pi)
    "silu": 1.09984,
    "mish": 1.0885,
    "selu": 1.758100,
    "hardswish": 1.5,
}
# softplus jumps by about exp(-threshold) to the identity; PyTorch's default makes that 2e-9, like a rounding
_SOFTPLUS_THRESHOLD = 20.0
GELU = {"none": 1.128905, "tanh": 1.128994}  # the exact one is 1 / 2 + erf(1) / 2 + exp(-1) / sqrt(pi)

# operations that move, copy or drop entries of their one data argument
REARRANGEMENTS = frozenset(
    "view reshape flatten unflatten permute transpose t squeeze unsqueeze movedim swapaxes select slice "
    "narrow roll flip _unsafe_view view_as reshape_as tril triu diagonal pixel_shuffle pixel_unshuffle "
    "channel_shuffle rot90 atleast_1d atleast_2d".split()
)
SPLITS = frozenset("split split_with_sizes chunk unbind tensor_split unsafe_split unsafe_chunk".split())
_REPEATS = frozenset("expand repeat expand_as repeat_interleave tile broadcast_to".split())
_NORMALIZED = {"layer_norm": (2, 4), "native_layer_norm": (2, 4), "group_norm": (2, 4), "rms_norm": (2, 3)}
_UPSAMPLES = {f"upsample_nearest{d}d": "nearest" for d in (1, 2, 3)}
_UPSAMPLES |= dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), "linear")


_LINEAR = pooling.PADS | pooling.AVERAGE_POOLS.keys() | _UPSAMPLES.keys() | _REPEATS | {BATCH_NORM}


class NotLipschitz(ValueError):  # noqa: N818  (an outcome, not an error)
    """Raised when no global Lipschitz constant of an operation is known; names the operation's layer."""

    def __init__(self, reason: str, node: Node) -> None:
        super().__init__(reason)
        self.node = node


def is_rearrangement(node: Node) -> bool:
    """Return whether a node moves, copies or drops the entries of its one data argument."""
    if node.op == "getitem":  # an index 0 of several results is the values of max, sort, ...
        return node.args[0].op in SPLITS or node.args[1] == 0
    return node.op in REARRANGEMENTS or node.op in SPLITS or is_copy(node)


def size_of(node: Node) -> int:
    """Return the number of entries of a node's output."""
    return math.prod(node.shape or ())


def operation_norm(node: Node, constants: Constants) -> Value:
    """Return the Lipschitz constant of an operation in its one argument that depends on the data.

    Raises
    ------
    NotLipschitz
        If there is no such constant, or no rule for the operation.
    """
    op, source = node.op, constants.data_inputs(node)[0]
    if is_rearrangement(node):
        return Value.bound(0.0, 1.0)
    if op in _REPEATS and not _is_uneven(node):
        factor = math.sqrt(size_of(node) / size_of(source))
        return Value.bound(factor, factor)
    if op in pooling.PADS:
        factor = math.sqrt(pooling.overlap(pooling.pad_windows(node)))
        return Value.bound(factor, factor)
    if op in pooling.MAX_POOLS:
        # attained: one entry that is the largest of every window it lies in
        factor = math.sqrt(pooling.overlap(pooling.pool_windows(node)))
        return Value.bound(factor, factor)
    if op in pooling.AVERAGE_POOLS:
        return Value.bound(*pooling.norm(pooling.pool_windows(node)))
    if op in _UPSAMPLES:
        return _upsampling(node)
    if op == BATCH_NORM:
        factor = float(batch_norm_line(node, constants)[0].abs().max())
        return Value.bound(factor, factor)
    if op in _NORMALIZED:
        return Value.bound(0.0, _normalization(node, constants))
    if op in ("mean", "sum"):
        merged = size_of(source) / size_of(node)
        factor = 1.0 / math.sqrt(merged) if op == "mean" else math.sqrt(merged)
        return Value.bound(factor, factor)
    if op in ("mul", "div"):
        return _scaling(node, constants)
    if op in ("matmul", "bmm", "mm"):
        return _product(node, constants)
    if op in ("softmax", "_softmax"):
        return Value.bound(0.0, 0.5)
    if op in ("log_softmax", "_log_softmax"):
        # I - 1 p' is an oblique projection, of norm sqrt(K) |p| <= sqrt(K)
        assert source.shape is not None
        return Value.bound(0.0, math.sqrt(source.shape[int(node.args[1])]))
    if op in ("amax", "amin", "logsumexp") or (op in ("max", "min", "sort") and _along_axis(node)):
        return Value.bound(0.0, 1.0)
    if op == "linalg_vector_norm" and float(node.argument(1, "ord", 2)) == 2.0:
        return Value.bound(0.0, 1.0)
    return Value.bound(0.0, _activation(node, constants))


def _is_uneven(node: Node) -> bool:
    """Whether entries are repeated as often as a tensor says, so not all of them equally often."""
    return node.op == "repeat_interleave" and not isinstance(node.args[1], int)


def _along_axis(node: Node) -> bool:
    return len(node.args) == 1 or isinstance(node.args[1], int)


def _activation(node: Node, constants: Constants) -> float:
    op = node.op
    if op in ACTIVATIONS:
        return ACTIVATIONS[op]
    if op == "gelu":
        return GELU[str(node.argument(1, "approximate", "none"))]
    if op == "elu":
        alpha, scale, input_scale = (
            float(node.argument(i, name, 1.0)) for i, name in enumerate(("alpha", "scale", "input_scale"), 1)
        )
        if input_scale >= 0.0:
            return abs(scale) * max(1.0, abs(alpha * input_scale))
    if op == "celu" and float(node.argument(1, "alpha", 1.0)) > 0.0:
        return 1.0
    if op == "softplus" and float(node.argument(2, "threshold", 20.0)) >= _SOFTPLUS_THRESHOLD:
        return 1.0
    if op == "leaky_relu":
        return max(1.0, abs(float(node.argument(1, "negative_slope", 0.01))))
    if op == "prelu" and not constants.depends(node.args[1]):
        return max(1.0, float(constants.tensor(node.args[1]).abs().max()))
    if op in ("clamp", "clamp_min", "clamp_max", "rsub") and len(constants.data_inputs(node)) == 1:
        return 1.0
    if op in ("masked_fill", "threshold") and _fills(node, constants):
        return 1.0
    raise NotLipschitz(refusal(node), node)


def _fills(node: Node, constants: Constants) -> bool:
    """Whether the mask is fixed, or the threshold continuous."""
    if node.op == "threshold":
        return float(node.args[1]) == float(node.args[2])
    return not any(constants.depends(argument) for argument in node.args[1:])


def refusal(node: Node) -> str:
    """Return the sentence for an operation without a rule."""
    if "attention" in node.op or "transformer_encoder" in node.op:
        return f"{node.where}: dot-product attention is not globally Lipschitz"
    return _unknown(node, f"the operation '{node.op}'")


def _normalization(node: Node, constants: Constants) -> float:
    # x -> (x - mean) / sqrt(var + eps) has a Jacobian of norm at most 1 / sqrt(eps)
    weight_at, eps_at = _NORMALIZED[node.op]
    weight = node.argument(weight_at, "weight")
    eps = node.argument(eps_at, "eps", 1e-5 if eps_at == 4 else None)
    if eps is None or float(eps) <= 0.0:
        raise NotLipschitz(f"{node.where}: a normalization without a positive eps is not Lipschitz", node)
    scale = 1.0 if weight is None else float(constants.tensor(weight).abs().max())
    return scale / math.sqrt(float(eps))


def _scaling(node: Node, constants: Constants) -> Value:
    data = [argument for argument in node.args[:2] if constants.depends(argument)]
    if len(data) > 1:
        raise NotLipschitz(product_refusal(node), node)
    if node.op == "div" and not constants.depends(node.args[0]):
        raise NotLipschitz(_unknown(node, "a division by what depends on the input"), node)
    if node.op == "div" and node.kwargs.get("rounding_mode"):
        raise NotLipschitz(f"{node.where}: rounding is not continuous", node)
    other = node.args[1] if data[0] is node.args[0] else node.args[0]
    size = constants.tensor(other).abs()
    if node.op == "div" and not bool((size > 0).all()):
        raise NotLipschitz(f"{node.where}: division by zero", node)
    factor = 1.0 / float(size.min()) if node.op == "div" else float(size.max())
    spread = math.sqrt(size_of(node) / size_of(data[0]))
    return Value.bound(0.0 if size.numel() > 1 else factor * spread, factor * spread)


def product_refusal(node: Node) -> str:
    """Return the sentence for a product of two data-dependent quantities."""
    return _unknown(node, "a product of two quantities that depend on the input")


def _unknown(node: Node, what: str) -> str:
    return f"{node.where}: no global Lipschitz constant is known for {what}"


def _product(node: Node, constants: Constants) -> Value:
    """Product of the data with constant matrices that are no plain linear layer."""
    data = [argument for argument in node.args[:2] if constants.depends(argument)]
    if len(data) > 1:
        raise NotLipschitz(product_refusal(node), node)
    other = node.args[1] if data[0] is node.args[0] else node.args[0]
    matrices = constants.tensor(other)
    source = data[0]
    if matrices.ndim < 2 or source.shape is None or len(source.shape) < 2 or node.shape is None:
        raise NotLipschitz(refusal(node), node)
    # the data may be broadcast along the batch axes of the constant
    spread = math.sqrt(math.prod(node.shape[:-2]) / math.prod(source.shape[:-2]))
    _, upper = batched_sigma_max(matrices.reshape(-1, *matrices.shape[-2:]))
    return Value.bound(0.0, upper * spread)


def _upsampling(node: Node) -> Value:
    mode = _UPSAMPLES[node.op]
    source = node.args[0]
    assert source.shape is not None
    assert node.shape is not None
    axes = len(node.shape) - 2
    align = None if mode == "nearest" else bool(node.args[2])
    scales = node.argument(2 if mode == "nearest" else 3, "scale_factors")
    lower, upper = 1.0, 1.0
    for axis in range(axes):
        n, n_out = source.shape[2 + axis], node.shape[2 + axis]
        if n > _DENSE:
            raise NotLipschitz(f"{node.where}: an axis of {n} entries is too long for its matrix", node)
        how: dict[str, Any] = {"size": n_out} if not scales else {"scale_factor": float(scales[axis])}
        basis = torch.eye(n, dtype=torch.float64)[:, None]
        matrix = F.interpolate(basis, mode=mode, align_corners=align, **how)
        value = sigma_max(matrix[:, 0].T)
        lower, upper = lower * value.low, upper * value.high
    return Value.bound(lower, upper)


def operator_norm(module: nn.Module, input_shape: tuple[int, ...], tol: float | None = None) -> Value:
    """Return a two-sided bound of a layer's operator norm, for inputs of a given size.

    The Euclidean operator norm of the linear part, or the Lipschitz constant of a
    max-pool.  Linear, convolution of any kind (stride, dilation, groups, every padding
    mode), transposed convolution, batch normalization in evaluation mode, average and
    max-pooling, padding, upsampling, or a chain of these.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode; it is not changed.
    input_shape : tuple of int
        Shape of one sample, without the batch: (channels, height, width), (features,), ...
    tol : float, optional
        Relative width aimed at, 1e-8 by default; large convolutions may stay wider.

    Returns
    -------
    Value
        A bound with both ends: proved above; below from the matrix, or a Ritz value.

    Raises
    ------
    ValueError
        If the module is not of this kind, is in training mode where that matters, or does
        not take such inputs.

    References
    ----------
    Sedghi, Gupta and Long, ICLR 2019, for the circular case; the zero-padded one is proved in
    :mod:`theodolite.analysis.convolution`.
    """
    tol = 1e-8 if tol is None else tol
    if module.training and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        raise ValueError(
            "module: expected batch normalization in evaluation mode, got training mode; call .eval()"
        )
    first = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))
    dtype = first.dtype if first.is_floating_point() else torch.float32
    graph = trace(module, torch.zeros(2, *input_shape, dtype=dtype, device=first.device))
    if graph.output is None:
        raise ValueError(
            f"module, input_shape: could not be run on samples of shape {tuple(input_shape)} ({graph.reason})"
        )
    constants = Constants(graph)
    layers = {layer.node: layer for layer in linear_layers(graph, constants)}
    upper, factors = _chain(graph, constants, layers, tol)
    if len(factors) == 1:
        return factors[0]
    lower, tighter = _linear_part(graph, tuple(input_shape), tol)
    upper = min(upper, tighter)
    return Value.bound(min(lower, upper), upper, note=f"{len(factors)} linear operations in a row")


def _chain(
    graph: Graph, constants: Constants, layers: dict[Node, LinearLayer], tol: float
) -> tuple[float, list[Value]]:
    """Return the product of the norms from the output back to the input, and its factors."""
    factors: list[Value] = []
    node, upper = graph.output, 1.0
    running = [n for n in graph.operations if n in constants.data and n.op != "getitem"]
    while node is not None and node.op != "input":
        moves = is_rearrangement(node)
        if node in layers:
            factors.append(layers[node].norm(tol))
            node, upper = layers[node].origin, upper * factors[-1].high
            continue
        if not (moves or node.op in _LINEAR or (node.op in pooling.MAX_POOLS and len(running) == 1)):
            kind = type(graph.model).__name__
            raise ValueError(f"module: expected a linear layer, pooling or padding, got {kind} ({node.op})")
        if not moves:
            factors.append(operation_norm(node, constants))
            upper *= factors[-1].high
        node = constants.data_inputs(node)[0]
    return upper, factors or [Value.bound(1.0, 1.0)]


def _linear_part(graph: Graph, input_shape: tuple[int, ...], tol: float) -> tuple[float, float]:
    """Return bounds of the norm of x -> f(x) - f(0); the upper one is inf for a large operator."""
    leaves = {n.target: graph.value_of(n).detach().double().cpu() for n in graph.nodes if n.target}
    zero = torch.zeros(1, *input_shape, dtype=torch.float64)
    offset = graph.run(zero, overrides=leaves).detach()
    columns = zero.numel()
    if columns <= _DENSE // 2:
        basis = torch.eye(columns, dtype=torch.float64).reshape(columns, *input_shape)
        matrix = (graph.run(basis, overrides=leaves).detach() - offset).flatten(1).T
        return batched_sigma_max(matrix[None], tol=tol)

    def gram(v: Tensor) -> Tensor:
        with torch.enable_grad():
            x = v.reshape(zero.shape).clone().requires_grad_()
            half = 0.5 * (graph.run(x, overrides=leaves) - offset).square().sum()
            return torch.autograd.grad(half, x)[0].flatten()

    generator = torch.Generator().manual_seed(1)
    run = lanczos(gram, columns, steps=60, generator=generator, tol=1e-9, which="largest")
    vector = run.ritz_vectors([-1])[:, 0]
    image = graph.run(vector.reshape(zero.shape), overrides=leaves).detach() - offset
    return float(image.norm() / vector.norm()) * (1.0 - 1e-12), math.inf
