"""Scattering transforms as steps of scikit-learn's pipelines: rows in, rows of coefficients out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from theodolite.nn.graph_scattering import GraphScattering
from theodolite.nn.padding import Padding
from theodolite.nn.scattering1d import Scattering1D
from theodolite.nn.scattering2d import Scattering2D
from theodolite.nn.scattering3d import HarmonicScattering3D
from theodolite.nn.wavelet_families import Family
from theodolite.nn.wavelets import Norm

__all__ = [
    "GraphScatteringTransformer",
    "Scattering1DTransformer",
    "Scattering2DTransformer",
    "Scattering3DTransformer",
]

_ROWS = 64  # that are transformed together


class _Transformer(TransformerMixin, BaseEstimator):
    """What all have in common: sizes from the data or from `shape`, and coefficients laid out in rows."""

    _axes = 1

    @abstractmethod
    def _transform(self, sizes: tuple[int, ...]) -> torch.nn.Module:
        """Return the transform of arrays of some sizes."""

    def fit(self, X: Any, y: Any = None) -> Any:
        """Build the filters for the sizes of the data; nothing is learned.

        Parameters
        ----------
        X : array, shape (n, *sizes) or (n, product of sizes)
            The second if `shape` says what the sizes are, as it is for signals.
        y : None
            Ignored.

        Raises
        ------
        ValueError
            If sizes do not fit the parameters.
        """
        values = self._read(X, reset=True)
        sizes = self._sizes(values)
        self.n_features_in_ = math.prod(sizes)
        self.transform_ = self._transform(sizes)
        self.sizes_ = sizes
        row = self._coefficients(torch.zeros(1, *sizes))
        self.coefficients_shape_ = tuple(row.shape[1:])
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return coefficients, a row each.

        Parameters
        ----------
        X : array, shape (n, *sizes) or (n, n_features_in_)

        Returns
        -------
        array, shape (n, n_features_out)
            Float32 for float32, else float64.

        Raises
        ------
        ValueError
            If sizes are not those of the data that the transform was fitted to, or an entry is not finite.
        """
        check_is_fitted(self)
        values = self._read(X, reset=False)
        if tuple(values.shape[1:]) not in (self.sizes_, (self.n_features_in_,)):
            raise ValueError(
                f"X: expected shape (n, {', '.join(map(str, self.sizes_))}) or (n, {self.n_features_in_}), "
                f"got {values.shape}"
            )
        found = np.empty((len(values), math.prod(self.coefficients_shape_)), values.dtype)
        for start in range(0, len(values), _ROWS):
            rows = np.array(values[start : start + _ROWS]).reshape(
                -1, *self.sizes_
            )  # torch wants to own them
            found[start : start + _ROWS] = self._coefficients(torch.from_numpy(rows)).flatten(1).numpy()
        return found

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return names of the coefficients, "path 3 at (0, 1)" and the like, in the order of the columns.

        Parameters
        ----------
        input_features : None
            Ignored: a coefficient belongs to no single input.
        """
        check_is_fitted(self)
        names = [self._name(place) for place in np.ndindex(*self.coefficients_shape_)]
        return np.asarray(names, dtype=object)

    def _name(self, place: tuple[int, ...]) -> str:
        path, *cell = place
        where = f" at ({', '.join(map(str, cell))})" if cell else ""
        return f"path {path}{where}"

    def _read(self, X: Any, reset: bool) -> NDArray[Any]:
        if getattr(X, "ndim", 2) == 2:
            return np.asarray(validate_data(self, X, reset=reset, dtype=[np.float64, np.float32]))
        return np.asarray(check_array(X, allow_nd=True, dtype=[np.float64, np.float32]))

    def _sizes(self, values: NDArray[Any]) -> tuple[int, ...]:
        named = getattr(self, "shape", None)
        sizes = tuple(values.shape[1:]) if named is None else tuple(int(n) for n in named)
        if len(sizes) != self._axes:
            raise ValueError(
                f"shape: expected the {self._axes} sizes of what each row of X holds, got {named!r} and X of shape {values.shape}"
            )
        if tuple(values.shape[1:]) not in (sizes, (math.prod(sizes),)):
            raise ValueError(f"X: expected shape (n, {', '.join(map(str, sizes))}), got {values.shape}")
        return sizes

    def _coefficients(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.transform_(x)
        return found


class Scattering1DTransformer(_Transformer):
    """The scattering transform of signals, a row each: see :class:`theodolite.nn.Scattering1D`.

    Parameters
    ----------
    J : int
        The longest wavelets last for about 2^J samples.
    Q : int or (int, int)
        Wavelets to the octave.
    T : float, optional
        Averages are over about T samples; 2^J by default.
    max_order : {0, 1, 2, 3}
    pad : {"reflect", "symmetric", "replicate", "zero", "periodic"}
    norm : {"reference", "B1", "tight"}

    Attributes
    ----------
    transform_ : Scattering1D
    sizes_ : (int,)
        Of a signal.
    coefficients_shape_ : (int, int)
        Paths and averages of each.
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> Scattering1DTransformer(J=3).fit_transform(np.ones((2, 64))).shape
    (2, 56)
    """

    def __init__(
        self,
        J: int = 2,
        Q: int | Sequence[int] = 1,
        T: float | None = None,
        max_order: int = 2,
        pad: Padding = "reflect",
        norm: Norm = "reference",
    ) -> None:
        self.J = J
        self.Q = Q
        self.T = T
        self.max_order = max_order
        self.pad = pad
        self.norm = norm

    def _transform(self, sizes: tuple[int, ...]) -> torch.nn.Module:
        if sizes[0] < 2:
            raise ValueError(f"X: expected signals of several samples, got n_features = {sizes[0]}")
        return Scattering1D(self.J, sizes, self.Q, self.T, self.max_order, pad=self.pad, norm=self.norm)


class Scattering2DTransformer(_Transformer):
    """The scattering transform of images: see :class:`theodolite.nn.Scattering2D`.

    Parameters
    ----------
    J : int
        Averages are over about 2^J pixels.
    L : int
        Number of angles.
    max_order : {0, 1, 2, 3}
    shape : (int, int), optional
        Height and width of images that come as flat rows.
    pad : {"reflect", "symmetric", "replicate", "zero", "periodic"}
    norm : {"reference", "B1", "tight"}
    wavelets : {"morlet", "gabor", "bump", "meyer"}

    Attributes
    ----------
    transform_ : Scattering2D
    sizes_ : (int, int)
        Of an image.
    coefficients_shape_ : (int, int, int)
        Paths, and the averages of each along both axes.
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> Scattering2DTransformer(J=2, shape=(8, 8)).fit_transform(np.ones((3, 64))).shape
    (3, 324)
    """

    _axes = 2

    def __init__(
        self,
        J: int = 2,
        L: int = 8,
        max_order: int = 2,
        shape: Sequence[int] | None = None,
        pad: Padding = "reflect",
        norm: Norm = "reference",
        wavelets: Family = "morlet",
    ) -> None:
        self.J = J
        self.L = L
        self.max_order = max_order
        self.shape = shape
        self.pad = pad
        self.norm = norm
        self.wavelets = wavelets

    def _transform(self, sizes: tuple[int, ...]) -> torch.nn.Module:
        return Scattering2D(
            self.J, sizes, self.L, self.max_order, pad=self.pad, norm=self.norm, wavelets=self.wavelets
        )


class Scattering3DTransformer(_Transformer):
    """The solid harmonic scattering transform of volumes: see :class:`theodolite.nn.HarmonicScattering3D`.

    Parameters
    ----------
    J : int
        Scales, from 0 to J.
    L : int
        Largest degree of the harmonics.
    sigma_0 : float
        Width of the finest wavelets, in voxels.
    max_order : {1, 2, 3}
    integral_powers : sequence of float
        Powers of the moduli that are integrated.
    shape : (int, int, int), optional
        Of volumes that come as flat rows.

    Attributes
    ----------
    transform_ : HarmonicScattering3D
    sizes_ : (int, int, int)
        Of a volume.
    coefficients_shape_ : (int, int, int)
        Powers, paths and degrees.
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> Scattering3DTransformer(J=1, L=1).fit_transform(np.ones((2, 8, 8, 8))).shape
    (2, 18)
    """

    _axes = 3

    def __init__(
        self,
        J: int = 2,
        L: int = 3,
        sigma_0: float = 1.0,
        max_order: int = 2,
        integral_powers: Sequence[float] = (0.5, 1.0, 2.0),
        shape: Sequence[int] | None = None,
    ) -> None:
        self.J = J
        self.L = L
        self.sigma_0 = sigma_0
        self.max_order = max_order
        self.integral_powers = integral_powers
        self.shape = shape

    def _transform(self, sizes: tuple[int, ...]) -> torch.nn.Module:
        return HarmonicScattering3D(
            self.J, sizes, self.L, self.sigma_0, self.max_order, integral_powers=tuple(self.integral_powers)
        )


class GraphScatteringTransformer(_Transformer):
    """Scattering of signals on the nodes of one graph, a row each: see :class:`theodolite.nn.GraphScattering`.

    Parameters
    ----------
    W : array or sparse array, shape (n, n)
        Weights of the edges: symmetric and not negative.
    J : int
        Number of scales.
    order : {0, 1, 2, 3}
    bank : str
        As of :class:`theodolite.nn.GraphScattering`.
    out : {"mean", "moments", "nodes"}
        What is kept of every path: the first two do not change when nodes are renumbered.

    Attributes
    ----------
    transform_ : GraphScattering
    sizes_ : (int,)
        Number of nodes.
    coefficients_shape_ : tuple of int
    n_features_in_ : int
    """

    def __init__(
        self, W: Any = None, J: int = 3, order: int = 2, bank: Any = "diffusion", out: Any = "mean"
    ) -> None:
        self.W = W
        self.J = J
        self.order = order
        self.bank = bank
        self.out = out

    def _transform(self, sizes: tuple[int, ...]) -> torch.nn.Module:
        if self.W is None:
            raise ValueError("W: expected the weights of the graph's edges, got None")
        return GraphScattering(self.W, self.J, self.order, self.bank, out=self.out)
