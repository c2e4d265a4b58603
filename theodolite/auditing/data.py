"""Data for an audit, from whatever the user has: arrays, data sets, loaders, files, "digits"."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from theodolite.theorems import validation
from theodolite.theorems.subject import InputError

Pair = tuple[Any, Any]
ACCEPTED = "(X, y), {'train': ..., 'test': ...}, a torch Dataset or DataLoader, 'digits', or the path of a .npz or .csv file"
BYTE_CAP = 2 << 30
DIGITS_TEST = 400


@dataclass
class Data:
    """Training data, and test data if there are any.

    Attributes
    ----------
    name : str
        For the report.
    train, test : (X, y)
        ``test`` is None when only training data were given.
    notes : list of str
        What was done to the data on the way.
    shapes : sequence of shapes
        Other shapes that a sample may take, tried in this order when the model does
        not accept the first.
    """

    name: str
    train: Pair
    test: Pair | None = None
    notes: list[str] = field(default_factory=list)
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape of the images that the samples are, when they are given flat."""
        return self.shapes[0] if self.shapes and self.train[0].ndim == 2 else None

    def shaped_for(self, model: nn.Module) -> Data:
        """Return the data in the first of its shapes that the model's forward accepts."""
        if not self.shapes or _accepts(model, self.train[0][:2]):
            return self
        for shape in self.shapes:
            if _accepts(model, self.train[0][:2].reshape(-1, *shape)):
                flat = "x".join(map(str, self.train[0].shape[1:]))
                text = "x".join(map(str, shape))
                note = f"each sample is given as {text}, because the model does not accept {flat}"
                pairs = [p and (p[0].reshape(-1, *shape), p[1]) for p in (self.train, self.test)]
                return Data(self.name, pairs[0], pairs[1], [*self.notes, note])  # type: ignore[arg-type]
        return self


def load(data: Any, *, seed: int = 0) -> Data:
    """Return training and test data from anything that an audit accepts.

    Parameters
    ----------
    data : (X, y), mapping, Dataset, DataLoader, str or Path
        A mapping has the keys "train" and, optionally, "test" (each again any of
        these), or arrays named as in a .npz file: x, y or x_train, y_train, x_test,
        y_test.  "digits" are scikit-learn's 1797 images, split into 1397 + 400.
    seed : int
        For the rows kept of a data set that exceeds 2 GiB and for shuffling loaders.

    Returns
    -------
    Data

    Raises
    ------
    InputError
        One sentence that names the argument or the file.
    """
    with preserved_random_state():
        found = _load(data, seed)
    _encode_labels(found)
    return found


def _load(data: Any, seed: int) -> Data:
    from theodolite.auditing import datasets, readers

    if isinstance(data, Data):
        return data
    if isinstance(data, (str, Path)):
        if data == "":
            raise InputError(f"data: expected {ACCEPTED}, got an empty name")
        return digits() if data == "digits" else readers.read(Path(data))
    if isinstance(data, Mapping):
        return _from_mapping(data, seed)
    if isinstance(data, (Dataset, DataLoader)):
        return datasets.materialize(data, seed=seed, byte_cap=BYTE_CAP)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return Data("arrays", (data[0], data[1]))
    what = (
        f"a {type(data).__name__} of {len(data)}"
        if isinstance(data, (tuple, list))
        else f"{type(data).__name__}"
    )
    raise InputError(f"data: expected {ACCEPTED}, got {what}")


def _from_mapping(data: Mapping[Any, Any], seed: int) -> Data:
    if "train" not in data and "test" not in data:
        arrays = pick_arrays({str(k): v for k, v in data.items()}, "data")
        return Data("arrays", *arrays)
    if "train" not in data:
        raise InputError("data: expected a 'train' part beside 'test'; an audit needs training data")
    others = [str(key) for key in data if key not in ("train", "test")]
    if others:
        raise InputError(
            f"data: expected the keys 'train' and 'test', got also {', '.join(map(repr, others))}"
        )
    parts = {}
    for split, part in data.items():
        if isinstance(part, Mapping) and "train" in part:
            raise InputError(
                f"data[{split!r}]: expected {ACCEPTED.replace(', {...}', '')}, got a nested mapping"
            )
        parts[split] = _load(part, seed)
        if parts[split].test is not None:
            raise InputError(f"data[{split!r}]: expected one part, got data that are split already")
    test = parts.get("test")
    names = list(dict.fromkeys(part.name for part in parts.values()))
    notes = [f"{split}: {note}" for split, part in parts.items() for note in part.notes]
    return Data(" + ".join(names), parts["train"].train, None if test is None else test.train, notes)


def pick_arrays(arrays: Mapping[str, Any], where: str) -> tuple[Pair, Pair | None]:
    """Return the training and the test pair among named arrays (x, y; x_train, y_train, ...)."""
    lower = {name.lower(): name for name in arrays}
    if "x_train" in lower and "y_train" in lower:
        train = arrays[lower["x_train"]], arrays[lower["y_train"]]
        tests = [name for name in ("x_test", "y_test") if name in lower]
        if len(tests) == 1:
            missing = "y_test" if tests == ["x_test"] else "x_test"
            raise InputError(f"{where}: {lower[tests[0]]} is there but {missing} is not")
        return train, (arrays[lower["x_test"]], arrays[lower["y_test"]]) if tests else None
    if "x" in lower and "y" in lower:
        return (arrays[lower["x"]], arrays[lower["y"]]), None
    names = ", ".join(arrays) or "nothing"
    raise InputError(
        f"{where}: expected arrays x and y, or x_train, y_train, x_test and y_test; found {names}"
    )


def digits() -> Data:
    """Return scikit-learn's digits, 1397 images to train and 400 to test.

    The pixels are divided by 16.  The split is stratified and always the same, so that
    a network may be trained on the first part before it is audited.

    Returns
    -------
    Data
        Float32 inputs of shape (n, 64), integer classes; models of images get (n, 1, 8, 8).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    rows = train_test_split(np.arange(len(x)), test_size=DIGITS_TEST, stratify=y, random_state=0)
    inputs, classes = torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y, dtype=torch.int64)
    train, test = (torch.from_numpy(np.sort(part)) for part in rows)
    return Data("digits", (inputs[train], classes[train]), (inputs[test], classes[test]), shapes=((1, 8, 8),))


def _accepts(model: nn.Module, x: Tensor) -> bool:
    """Return whether the model maps the samples to one output row each."""
    try:
        copied = validation.working_copy(model, "cpu", [])
        floats = [p for p in [*copied.parameters(), *copied.buffers()] if p.is_floating_point()]
        # a copy, for a forward that changes its input in place
        output = validation.run_forward(copied, x.to(floats[0].dtype if floats else x.dtype, copy=True))
    except InputError:  # said in full when the audit runs the model on the shape that was kept
        return False
    return isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(x)


def _encode_labels(data: Data) -> None:
    """Replace labels in words by class numbers, in alphabetical order."""
    pairs = [pair for pair in (data.train, data.test) if pair is not None]
    labels = [None if isinstance(y, Tensor) else _words(y) for _, y in pairs]
    if all(words is None for words in labels):
        return
    if any(words is None for words in labels):
        raise InputError(
            "y: expected labels of the same kind in both parts, got words in one and numbers in the other"
        )
    classes = sorted({str(word) for words in labels if words is not None for word in words.tolist()})
    numbers = {name: k for k, name in enumerate(classes)}
    coded = [
        np.array([numbers[str(w)] for w in words.tolist()], dtype=np.int64)
        for words in labels
        if words is not None
    ]
    data.train = data.train[0], coded[0]
    if data.test is not None:
        data.test = data.test[0], coded[1]
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    data.notes.append(f"labels in words were numbered in alphabetical order: {shown}")


def _words(y: Any) -> np.ndarray[Any, Any] | None:
    try:
        array = np.asarray(y)
    except ValueError:  # ragged; refused with its reason when it is made a tensor
        return None
    if (
        array.ndim == 1
        and array.size
        and (array.dtype.kind in "US" or (array.dtype.kind == "O" and isinstance(array[0], str)))
    ):
        return array
    return None


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Keep the global random states of torch, numpy and Python as they are."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
