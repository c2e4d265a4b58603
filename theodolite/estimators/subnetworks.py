"""The kinds of subnetworks of a parallel network: their atom on some inputs, and the plain module of fitted units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from theodolite.atoms.conv import ConvReLUAtom
from theodolite.atoms.conv_patches import Pair, as_pair, filter_basis
from theodolite.atoms.gated import GatedReLUAtom
from theodolite.atoms.leaky_relu import LeakyReLUAtom
from theodolite.atoms.linear_net import LinearNetAtom
from theodolite.atoms.module import ModuleAtom
from theodolite.atoms.relu import ReLUAtom
from theodolite.core.atom import Atom
from theodolite.core.params import Params
from theodolite.nn.gated import GatedLinear
from theodolite.nn.parallel import ParallelSubnetworks


@dataclass(frozen=True)
class Readout:
    """What follows the sum of the subnetworks: an affine map of their k outputs to those of the module.

    Attributes
    ----------
    mix : Tensor, shape (k, outputs), or None
        None for the identity.
    offset : Tensor, shape (outputs,), or None
    """

    mix: Tensor | None = None
    offset: Tensor | None = None


class Subnetworks(ABC):
    """One kind of subnetworks, apart from the data."""

    @abstractmethod
    def atom(self, X: Tensor, n_outputs: int) -> Atom:
        """Return the family on inputs of shape (n, ...)."""

    @abstractmethod
    def module(self, atom: Atom, params: Params, readout: Readout) -> nn.Module:
        """Return a plain module in float64 that computes the sum of an atom's subnetworks and the readout."""

    def outputs(self, atom: Atom, params: Params, X: Tensor) -> Tensor:
        """Return the sum of the subnetworks on other inputs, shape (n, k)."""
        found: Tensor = self.module(atom, params, Readout())(X)
        return found


@dataclass(frozen=True)
class ReLUUnits(Subnetworks):
    """Units relu(w . x) u, leaky with a slope; with a bias the last entry of w is that of a constant input 1."""

    bias: bool
    negative_slope: float = 0.0

    def atom(self, X: Tensor, n_outputs: int) -> Atom:
        """Return the family on inputs (n, d)."""
        if self.negative_slope:
            return LeakyReLUAtom(X, n_outputs, self.negative_slope, bias=self.bias)
        return ReLUAtom(X, n_outputs, bias=self.bias)

    def module(self, atom: Atom, params: Params, readout: Readout) -> nn.Module:
        """Return Linear, ReLU or LeakyReLU, Linear."""
        W, U = balanced(_or_zero(params[0]), _or_zero(params[1]), readout)
        active = nn.LeakyReLU(self.negative_slope) if self.negative_slope else nn.ReLU()
        return nn.Sequential(_hidden(W, self.bias), active, linear(U.T, readout.offset))


@dataclass(frozen=True, eq=False)
class GatedUnits(Subnetworks):
    """Linear units behind fixed half-spaces x . g + h > 0, the rows (g, h) of ``gates``."""

    bias: bool
    gates: Tensor

    def atom(self, X: Tensor, n_outputs: int) -> Atom:
        """Return the family on inputs (n, d)."""
        return GatedReLUAtom(_with_ones(X, self.bias), n_outputs, self._open(X))

    def _open(self, X: Tensor) -> Tensor:
        """Return which samples pass each gate, (n, G) zeros and ones."""
        return (nn.functional.linear(X, self.gates[:, :-1], self.gates[:, -1]) > 0).to(X)

    def module(self, atom: Atom, params: Params, readout: Readout) -> nn.Module:
        """Return GatedLinear, Linear."""
        gate, W, U = (_or_zero(p) for p in params)
        W, U = balanced(W, U, readout)
        normals, offsets = self.gates[gate, :-1], self.gates[gate, -1]
        with torch.random.fork_rng(devices=[]):
            layer = GatedLinear(normals.shape[1], len(W), self.bias, gates=normals, offsets=offsets).double()
        layer.gates, layer.offsets = normals.clone(), offsets.clone()  # in full precision
        layer.linear = _hidden(W, self.bias)
        return nn.Sequential(layer, linear(U.T, readout.offset))


@dataclass(frozen=True)
class LinearUnits(Subnetworks):
    """Linear networks x W_1 W_2 with the product of the Frobenius norms, whose sum is a nuclear norm."""

    bias: bool

    def atom(self, X: Tensor, n_outputs: int) -> Atom:
        """Return the family on inputs (n, d)."""
        return LinearNetAtom(_with_ones(X, self.bias), n_outputs, depth=2)

    def module(self, atom: Atom, params: Params, readout: Readout) -> nn.Module:
        """Return Linear, Linear."""
        W, U = params[0].transpose(1, 2).flatten(0, 1), params[1].flatten(0, 1)
        used = (W.norm(dim=1) > 0.0) & (U.norm(dim=1) > 0.0)
        W, U = balanced(_or_zero(W[used]), _or_zero(U[used]), readout)
        return nn.Sequential(_hidden(W, self.bias), linear(U.T, readout.offset))


@dataclass(frozen=True, eq=False)
class ConvUnits(Subnetworks):
    """Filters with ReLU, average pooling and output weights for each pooling cell.

    Attributes
    ----------
    bias : bool
    sample_shape : tuple of int
        In which an image comes: flat, or without channels, or as it is.
    image_shape : tuple of int
        (channels, height, width).
    kernel_size, stride, pool
        See :class:`theodolite.atoms.ConvReLUAtom`.
    basis : Tensor, shape (channels * kernel, d), or None
    """

    bias: bool
    sample_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    kernel_size: Pair
    stride: Pair
    pool: Pair
    basis: Tensor | None

    @classmethod
    def read(
        cls,
        X: Tensor,
        image_shape: tuple[int, ...] | None,
        sizes: tuple[Any, Any, Any],
        basis: Any,
        n_components: int,
        *,
        bias: bool,
    ) -> ConvUnits:
        """Return the filters for some images, with the basis that is named; ``sizes`` are kernel, stride and pool.

        Raises
        ------
        ValueError
            If the images are flat and their shape is not given or does not fit, or an argument is out of range.
        """
        shape = tuple(X.shape[1:]) if image_shape is None and X.ndim > 2 else tuple(image_shape or ())
        whole = all(isinstance(size, (int, np.integer)) and size >= 1 for size in shape)
        if len(shape) not in (2, 3) or not whole or math.prod(shape) != X[0].numel():
            raise ValueError(
                "image_shape: expected (height, width) or (channels, height, width) of images with "
                f"{X[0].numel()} pixels, got {image_shape!r}"
            )
        shape = (1,) * (3 - len(shape)) + tuple(int(size) for size in shape)
        kernel, stride, pool = (
            as_pair(value, name) for value, name in zip(sizes, ("kernel_size", "stride", "pool"), strict=True)
        )
        plain = ConvReLUAtom(X[:1].reshape(1, *shape), 1, kernel, stride, pool)  # refuses what does not fit
        directions = filter_basis(basis, plain.geometry, X.reshape(-1, *shape), n_components)
        return cls(bias, tuple(X.shape[1:]), (shape[0], shape[1], shape[2]), kernel, stride, pool, directions)

    def atom(self, X: Tensor, n_outputs: int) -> ConvReLUAtom:
        """Return the family on images."""
        images, basis = X.reshape(len(X), *self.image_shape), self.basis
        if self.bias:
            images, basis = with_bias(images, self.kernel_size, basis)
        return ConvReLUAtom(images, n_outputs, self.kernel_size, self.stride, self.pool, basis)

    def module(self, atom: Atom, params: Params, readout: Readout) -> nn.Module:
        """Return Conv2d, ReLU, AvgPool2d, Flatten, Linear, after an Unflatten where samples are no images."""
        assert isinstance(atom, ConvReLUAtom)
        W, U = (_or_zero(p) for p in params)
        cells = atom.geometry.cells
        W, U = balanced(W, U.view(len(U), cells, -1), readout)
        filters, channels = atom.filters(W), self.image_shape[0]
        convolution = nn.utils.skip_init(
            nn.Conv2d, channels, len(W), self.kernel_size, self.stride, bias=self.bias
        ).double()
        with torch.no_grad():
            convolution.weight.copy_(filters[:, :channels])
            if self.bias:
                convolution.bias.copy_(filters[:, -1, 0, 0])
        last = linear(U.flatten(0, 1).T, readout.offset)
        layers = [convolution, nn.ReLU(), nn.AvgPool2d(self.pool), nn.Flatten(), last]
        if len(self.sample_shape) < 3:
            missing = self.image_shape if len(self.sample_shape) == 1 else self.image_shape[:2]
            layers.insert(0, nn.Unflatten(1, missing))
        return nn.Sequential(*layers)


@dataclass(frozen=True, eq=False)
class Modules(Subnetworks):
    """Copies of any module that is positively homogeneous in its parameters."""

    make: Callable[[], nn.Module]

    def atom(self, X: Tensor, n_outputs: int) -> ModuleAtom:
        """Return the family on inputs of any shape that the module takes.

        Raises
        ------
        ValueError
            If the module is not proved to be homogeneous, or has another number of outputs.
        """
        atom = ModuleAtom(self.make, X)
        if atom.shape[1] != n_outputs:
            raise ValueError(
                f"subnetwork: expected modules with {n_outputs} outputs here, got one with {atom.shape[1]}"
            )
        return atom

    def module(self, atom: Atom, params: Params, readout: Readout) -> nn.Module:
        """Return ParallelSubnetworks, followed by a linear layer where the readout is not the identity."""
        assert isinstance(atom, ModuleAtom)
        parallel = ParallelSubnetworks(self.make, 0).double()
        for module in atom.modules(params):
            parallel.grow(module)
        if readout.mix is None and readout.offset is None:
            return parallel
        mix = torch.eye(atom.shape[1], dtype=torch.float64) if readout.mix is None else readout.mix
        return nn.Sequential(parallel, linear(mix.T, readout.offset))


def _with_ones(X: Tensor, bias: bool) -> Tensor:
    return torch.cat([X, X.new_ones(len(X), 1)], 1) if bias else X


def with_bias(images: Tensor, kernel: Pair, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return images with a further channel of ones, and the basis of filters with one entry there, their bias.

    Parameters
    ----------
    images : Tensor, shape (n, channels, height, width)
    kernel : pair of int
    basis : Tensor, shape (channels * kernel, d), or None for free filters

    Returns
    -------
    images : Tensor, shape (n, channels + 1, height, width)
    basis : Tensor, shape ((channels + 1) * kernel, d + 1)
        Orthonormal columns where those given are.
    """
    size = math.prod(kernel)
    if basis is None:
        basis = torch.eye(images.shape[1] * size, dtype=torch.float64)
    wide = basis.new_zeros(len(basis) + size, basis.shape[1] + 1)
    wide[: len(basis), :-1], wide[len(basis), -1] = basis, 1.0
    return torch.cat([images, images.new_ones(len(images), 1, *images.shape[2:])], 1), wide


def _or_zero(rows: Tensor) -> Tensor:
    """Return the rows, or a single one of zeros where there are none: no layer of PyTorch's is that narrow."""
    return rows if len(rows) else rows.new_zeros(1, *rows.shape[1:])


def balanced(W: Tensor, U: Tensor, readout: Readout) -> tuple[Tensor, Tensor]:
    """Return units with the readout's mix in their output weights, and |w| = |u|: the least weight decay."""
    U = U if readout.mix is None else U @ readout.mix.to(U)
    w, u = (p.flatten(1).norm(dim=1) for p in (W, U))
    used = (w > 0.0) & (u > 0.0)
    ratio = torch.where(used, (u / torch.where(used, w, 1.0)).sqrt(), 1.0)
    return W * ratio.view(-1, *[1] * (W.ndim - 1)), U / ratio.view(-1, *[1] * (U.ndim - 1))


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of given parameters, in float64, without a draw of random numbers."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer = layer.double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _hidden(W: Tensor, bias: bool) -> nn.Linear:
    return linear(W[:, :-1], W[:, -1]) if bias else linear(W, None)
