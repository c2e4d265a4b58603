r"""Regularizers of networks that are sums of subnetworks.

A sum of subnetworks of degree L can be certified when its regularizer has degree L too.  The
product of the norms of the L weights of one subnetwork has; weight decay has degree 2 whatever
the depth, so that it fits L = 2 alone.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["fro", "l1", "spectral"]
Bias = Literal["refuse", "first"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


class ProductOfNorms(nn.Module):
    r"""The sum over subnetworks of the product of their weights' norms, :math:`\sum_i\prod_l\|W_i^l\|`.

    The least such sum over all networks, of any number of subnetworks, that compute one function on the
    data is the *nuclear deep-net regularizer* of that function, a gauge and so convex; for two linear layers it is the
    nuclear norm (see :func:`theodolite.atoms.gauge.gauge_bounds`).

    Called on a module it returns a scalar to be added, times lambda, to a loss.  Every
    parameter must be the weight of a linear or convolutional layer, because the certificates
    need it to count: normalization layers are refused (weights below them can shrink without
    any change of the function), and biases by the rule below.

    A product is formed as exp(sum of logarithms), in at least float32, so that no depth
    overflows on the way.  Where a weight is zero the product is exactly 0, and so is the
    (sub)gradient.

    Parameters
    ----------
    norm : {"fro", "l1", "spectral"}
        Frobenius norm; sum of absolute values; largest singular value of the weight as a
        matrix (out, everything else).
    bias : {"refuse", "first"}
        "first" allows a bias in the first layer (in the order of registration), as the weight of
        an input that is constantly 1: it counts in that layer's norm.  A later bias would scale
        with another power; carry a channel that is constantly 1 instead.
    groups : int
        Into how many subnetworks a module is divided that computes them side by side: the
        output channels of its first layer, the groups of its grouped convolutions and
        the input features of its last layer.  With two layers and as many groups as hidden units
        every unit is a subnetwork.

    Raises
    ------
    ValueError
        If an argument is none of these.

    Notes
    -----
    Its degree is that of the function only if the layers of a subnetwork form a chain: see
    :func:`theodolite.analysis.homogeneity.degree`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    >>> float(ProductOfNorms()(net)) > 0
    True
    """

    def __init__(self, norm: Norm = "fro", *, bias: Bias = "refuse", groups: int = 1) -> None:
        super().__init__()
        if norm not in ("fro", "l1", "spectral"):
            raise ValueError(f"norm: expected 'fro', 'l1' or 'spectral', got {norm!r}")
        if bias not in ("refuse", "first"):
            raise ValueError(f"bias: expected 'refuse' or 'first', got {bias!r}")
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups: expected a whole number >= 1, got {groups!r}")
        self.norm, self.bias, self.groups = norm, bias, groups

    def forward(self, module: nn.Module) -> Tensor:
        """Return the regularizer of a module, a scalar."""
        return self.each(module).sum()

    def each(self, module: nn.Module) -> Tensor:
        """Return the product of norms of each subnetwork, shape (r,).

        Parameters
        ----------
        module : nn.Module
            A :class:`~theodolite.nn.parallel.ParallelSubnetworks`, or a module that contains one
            and no other parameter, or one subnetwork (or ``groups`` of them).

        Raises
        ------
        ValueError
            If a parameter does not count; the sentence names it.
        """
        parts = subnetworks(module)
        if not parts:
            return torch.zeros(0)
        return torch.cat([self._products(part) for part in parts])

    def degree(self, module: nn.Module) -> int:
        """Return the degree of homogeneity in the parameters: the number of weights of a subnetwork.

        Raises
        ------
        ValueError
            If there is no subnetwork, or they differ in depth.
        """
        degrees = {len(self._weights(part)) for part in subnetworks(module)}
        if len(degrees) != 1:
            counted = ", ".join(map(str, sorted(degrees))) or "no subnetwork"
            raise ValueError(f"module: expected subnetworks of one depth, got {counted}")
        return degrees.pop()

    def _products(self, part: nn.Module) -> Tensor:
        """Return the products of the groups of one module, shape (groups,)."""
        weights = self._weights(part)
        norms = torch.stack(
            [self._norms(self._blocks(weights, level)) for level in range(len(weights))]
        )  # (L, groups)
        empty = (norms == 0).any(0)
        safe = torch.where(empty, torch.ones_like(norms), norms)
        product = safe.log().sum(0).exp()
        return torch.where(empty, torch.zeros_like(product), product)

    def _norms(self, blocks: Tensor) -> Tensor:
        if self.norm == "spectral":
            return torch.linalg.matrix_norm(blocks, ord=2)
        return torch.linalg.vector_norm(blocks.flatten(1), ord=2 if self.norm == "fro" else 1, dim=1)

    def _blocks(self, weights: list[tuple[str, nn.Module]], level: int) -> Tensor:
        """Return the weight of one layer, a bias included, as (groups, rows, columns), at least float32."""
        name, layer = weights[level]
        weight = layer.weight
        assert isinstance(weight, Tensor)
        matrix = weight.flatten(1)
        if isinstance(layer.bias, Tensor):
            matrix = torch.cat([matrix, layer.bias[:, None]], 1)
        if matrix.dtype in (torch.float16, torch.bfloat16):
            matrix = matrix.float()
        if self.groups == 1:
            return matrix[None]
        inner = getattr(layer, "groups", 1)
        last = level == len(weights) - 1 and level > 0
        if isinstance(layer, _TRANSPOSED) or not (level == 0 or last or inner == self.groups):
            raise ValueError(
                f"groups: expected a convolution with {self.groups} groups between the first and the last "
                f"layer, got '{name}' ({type(layer).__name__})"
            )
        axis = 1 if last and inner == 1 else 0
        if weight.shape[axis] % self.groups:
            raise ValueError(
                f"groups: expected a divisor of the {weight.shape[axis]} channels of '{name}', got {self.groups}"
            )
        if axis == 0:
            return matrix.unflatten(0, (self.groups, -1))
        # (out, in, ...) with its inputs divided
        blocks = weight.to(matrix.dtype).unflatten(1, (self.groups, -1)).movedim(1, 0)
        return blocks.flatten(2)

    def _weights(self, part: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return the weight layers, or refuse a parameter that is none of theirs."""
        found: list[tuple[str, nn.Module]] = []
        counted: set[int] = set()
        for name, layer in part.named_modules():
            own = dict(layer.named_parameters(recurse=False))
            if not own:
                continue
            where = f"'{name}' ({type(layer).__name__})" if name else type(layer).__name__
            if not isinstance(layer, _WEIGHTED) or set(own) - {"weight", "bias"} or "weight" not in own:
                raise ValueError(
                    f"module: expected weights of linear and convolutional layers alone, got the parameter "
                    f"{next(iter(own))!r} of {where}{_why(layer)}"
                )
            if any(id(p) in counted for p in own.values()):
                raise ValueError(f"module: expected weights that are used once, got one of {where} twice")
            if "bias" in own and (self.bias == "refuse" or found or isinstance(layer, _TRANSPOSED)):
                hint = "" if found else "; bias='first' counts it as the weight of a constant input"
                raise ValueError(
                    f"module: expected no bias, got that of {where}: it scales with another power than the "
                    f"weights{hint}"
                )
            counted.update(map(id, own.values()))
            found.append((name, layer))
        if not found:
            raise ValueError(f"module: expected at least one weight, got none in {type(part).__name__}")
        return found


def _why(layer: nn.Module) -> str:
    kind = type(layer).__name__
    if "Norm" in kind:
        return ": weights below a normalization can shrink to 0 without any change of the function"
    return ""


def subnetworks(module: nn.Module) -> list[nn.Module]:
    """Return the subnetworks of a module: those of the ParallelSubnetworks that is in it, or itself."""
    from theodolite.nn.parallel import ParallelSubnetworks

    inside = [m for m in module.modules() if isinstance(m, ParallelSubnetworks)]
    if not inside:
        return [module]
    outer = inside[0]
    if len({id(p) for p in module.parameters()}) > len({id(p) for p in outer.parameters()}):
        raise ValueError(
            "module: expected no parameters beside those of its ParallelSubnetworks; "
            "they would belong to no subnetwork"
        )
    return list(outer)


class PathRegularizer(nn.Module):
    r"""The sum over subnetworks of the q-norm of all paths' products of weights, of degree L.

    A path goes from one input channel through one unit of each layer to one output, along one offset of each
    kernel, and its product of L weights enters as :math:`\big(\sum_{\rm paths}\prod_l|w_l|^q\big)^{1/q}`.  It is the
    L-fold product of the matrices of entries :math:`\sum_{\rm offsets}|w|^q`, without the products that the sizes of
    images would bring, and does not change when a unit's incoming weights are multiplied, and its outgoing ones
    divided, by a positive number.  It vanishes only where a subnetwork's output does.  Layers must form a chain
    without biases; where channels are flattened into the inputs of a linear layer, those of one channel are adjacent,
    as ``nn.Flatten`` has them.

    Parameters
    ----------
    q : {1, 2}
        For ReLU networks with linear layers q = 1 bounds the outputs' change by the largest of the inputs'.

    Raises
    ------
    ValueError
        If q is neither 1 nor 2.

    References
    ----------
    Neyshabur, Tomioka and Srebro, COLT 2015 (arXiv 1503.00036).
    """

    def __init__(self, q: int = 2) -> None:
        super().__init__()
        if q not in (1, 2):
            raise ValueError(f"q: expected 1 or 2, got {q!r}")
        self.q = q
        self._layers = ProductOfNorms()

    def forward(self, module: nn.Module) -> Tensor:
        """Return the regularizer of a module, a scalar."""
        return self.each(module).sum()

    def each(self, module: nn.Module) -> Tensor:
        """Return the path norm of each subnetwork, shape (r,).

        Raises
        ------
        ValueError
            If a parameter does not count, or the layers do not form a chain; the sentence names it.
        """
        parts = subnetworks(module)
        return torch.stack([self._paths(part) for part in parts]) if parts else torch.zeros(0)

    def degree(self, module: nn.Module) -> int:
        """Return the degree of homogeneity in the parameters, the number of weights of a subnetwork."""
        return self._layers.degree(module)

    def _paths(self, part: nn.Module) -> Tensor:
        mass: Tensor | None = None
        for name, layer in self._layers._weights(part):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            size = weight.abs() if self.q == 1 else weight.square()
            if size.dtype in (torch.float16, torch.bfloat16):
                size = size.float()
            matrix = _by_channel(layer, size)
            if mass is None:
                mass = size.new_ones(matrix.shape[1])
            if matrix.shape[1] != len(mass):
                if matrix.shape[1] % len(mass):
                    raise ValueError(
                        f"module: expected a chain of layers, got '{name}' with {matrix.shape[1]} inputs behind "
                        f"{len(mass)} outputs"
                    )
                matrix = matrix.unflatten(1, (len(mass), -1)).sum(2)
            mass = matrix @ mass
        assert mass is not None
        total = mass.sum()
        return total if self.q == 1 else torch.where(total > 0, total, 1.0).sqrt() * (total > 0)


def _by_channel(layer: nn.Module, size: Tensor) -> Tensor:
    """Return |w|^q summed over a kernel's offsets, (outputs, inputs), zero between different groups."""
    if isinstance(layer, nn.Linear):
        return size
    transposed = isinstance(layer, _TRANSPOSED)
    matrix, groups = size.flatten(2).sum(2), int(getattr(layer, "groups", 1))
    blocks = matrix.chunk(groups, 0)
    whole = torch.block_diag(*blocks)
    return whole.T if transposed else whole


class WeightDecay(nn.Module):
    r"""Half the sum of squares of all trained parameters, :math:`\tfrac12\sum_l\|W^l\|^2`.

    This is the coupled decay of ``torch.optim.SGD``.  Its degree is 2 for every depth L, that of the
    network L: at layers of equal norm it is :math:`\tfrac L2\theta^{2/L}` with
    :math:`\theta = \prod_l\|W^l\|`, and never less (inequality of the means).  For L = 2 it is the
    product of norms itself, factor 1; from L = 3 on it is concave in theta, W = 0 is a local
    minimum, and no certificate of the product's kind holds.
    """

    def forward(self, module: nn.Module) -> Tensor:
        """Return the decay of a module, a scalar; divide by nothing, multiply by the optimizer's coefficient."""
        squares = [p.square().sum() for p in module.parameters() if p.requires_grad]
        return 0.5 * torch.stack(squares).sum() if squares else torch.zeros(())

    def degree(self, module: nn.Module) -> int:
        """Return 2, whatever the module."""
        return 2

    @staticmethod
    def least(theta: float, depth: int) -> float:
        """Return the least decay of a subnetwork with a product theta of the norms of ``depth`` weights."""
        return 0.5 * depth * math.pow(theta, 2.0 / depth)

    @staticmethod
    def slope(decay: float, depth: int, objective: float) -> float:
        r"""Return the lambda of a matched problem that bounds a decay problem from below.

        With a loss that is never negative, each subnetwork of a network whose objective is at most P has
        :math:`\theta\le B = (2P/(wL))^{L/2}`, and up to there the decay :math:`\frac{wL}2\theta^{2/L}`, concave for
        L > 2, is at least its chord :math:`\lambda\theta`, :math:`\lambda = \frac{wL}2B^{2/L-1}`.

        Parameters
        ----------
        decay : float
            w > 0.
        depth : int
            L >= 2; for 2 it is the decay itself.
        objective : float
            P > 0, attained; rounding is enclosed.
        """
        if depth == 2:
            return decay
        largest = (2.0 * objective * (1.0 + 1e-9) / (decay * depth)) ** (depth / 2)
        return 0.5 * decay * depth * largest ** (2 / depth - 1) * (1.0 - 1e-9)

    @staticmethod
    def basin(decay: float, depth: int, polar: float) -> float:
        r"""Return a radius around W = 0 within which no other weights have a smaller objective.

        For a convex loss :math:`P(W)\ge P(0)-u(\|W\|^2/L)^{L/2}+\frac w2\|W\|^2`, u being an upper bound of the polar,
        at W = 0, of subnetworks with :math:`\theta = (\|W\|^2/L)^{L/2}`.  For L > 2 that is more than P(0) up to
        :math:`\|W\|^{L-2} < wL^{L/2}/(2u)`: W = 0 is a strict local minimum, whatever the data.

        Parameters
        ----------
        decay : float
            w > 0.
        depth : int
            L; 0 is returned for L <= 2, where there may be no such radius.
        polar : float
            u; infinity is returned for 0.
        """
        if depth <= 2:
            return 0.0
        room = decay * depth ** (depth / 2) / (2.0 * polar) if polar > 0.0 else math.inf
        return room ** (1.0 / (depth - 2)) * (1.0 - 1e-12)

    @staticmethod
    def attraction(decay: float, depth: int, polar: float) -> float:
        r"""Return a radius around W = 0 from within which gradient flow leads to W = 0.

        By Euler's identity and convexity :math:`\langle\nabla P(W),W\rangle\ge w\|W\|^2-Lu(\|W\|^2/L)^{L/2}`, so that
        the norm falls while it is positive: :math:`\|W\|^{L-2}` below 2/L of what :meth:`basin` allows.
        Arguments as there.
        """
        if depth <= 2:
            return 0.0
        return WeightDecay.basin(decay, depth, polar) * (2.0 / depth) ** (1.0 / (depth - 2)) * (1.0 - 1e-12)
