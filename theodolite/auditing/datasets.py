"""Tensors out of torch data sets and loaders, up to a byte cap."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from theodolite.auditing.data import Data
from theodolite.theorems.subject import InputError

_INPUT_KEYS = "x X input inputs image images pixel_values img data features input_ids".split()
_TARGET_KEYS = "y Y label labels target targets class".split()


def materialize(data: Dataset[Any] | DataLoader[Any], *, seed: int, byte_cap: int) -> Data:
    """Read a data set or a loader into one pair of tensors.

    Parameters
    ----------
    data : Dataset, IterableDataset or DataLoader
        Yields (x, y) or a mapping with an input and a target; a loader's collation is used.
    seed : int
        Seeds the global generators while it is read, and chooses the rows of a
        data set that exceeds the cap.
    byte_cap : int
        Of inputs read at most this many bytes; the notes say when that left rows out.

    Returns
    -------
    Data

    Raises
    ------
    InputError
        If it is empty, raises, or its items are not pairs of equal shapes.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (what a user's transforms draw from)
    if isinstance(data, DataLoader):
        return _from_loader(data, byte_cap)
    name = type(data).__name__
    if isinstance(data, IterableDataset):
        pairs, complete = _until_cap(
            (_pair(item, f"{name}: item {i}") for i, item in enumerate(_items(data, name))), byte_cap
        )
        notes = (
            []
            if complete
            else [f"{name}: only its first {len(pairs):,} items were read, a {_size(byte_cap)} cap"]
        )
        return Data(name, _stack(pairs, name), None, notes)
    return _from_items(data, name, seed, byte_cap)


def _from_items(data: Any, name: str, seed: int, byte_cap: int) -> Data:
    n = _length(data, name)
    if n == 0:
        raise InputError(f"data: {name}: expected at least one item, got none")
    if isinstance(data, TensorDataset) and len(data.tensors) == 2 and _bytes(data.tensors[0]) <= byte_cap:
        return Data(name, (data.tensors[0], data.tensors[1]))
    first = _pair(_item(data, 0, name), f"{name}: item 0")
    room = max(1, byte_cap // max(1, _bytes(first[0])))
    notes: list[str] = []
    rows: Iterable[int] = range(n)
    if n > room:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(n, generator=generator)[:room].sort().values.tolist()
        notes.append(
            f"{name}: {room:,} of its {n:,} items, drawn with the seed, were used, a {_size(byte_cap)} cap"
        )
    pairs = [_pair(_item(data, i, name), f"{name}: item {i}") for i in rows]
    return Data(name, _stack(pairs, name), None, notes)


def _from_loader(loader: DataLoader[Any], byte_cap: int) -> Data:
    name = f"DataLoader of {type(loader.dataset).__name__}"
    state = None if loader.generator is None else loader.generator.get_state()
    try:
        batches, complete = _until_cap(
            (_pair(batch, f"{name}: batch {i}") for i, batch in enumerate(_items(loader, name))), byte_cap
        )
    finally:
        if loader.generator is not None and state is not None:
            loader.generator.set_state(state)
    if not batches:
        raise InputError(f"data: {name}: expected at least one batch, got none")
    for i, (x, y) in enumerate(batches):
        if x.ndim == 0 or y.ndim == 0 or x.shape[1:] != batches[0][0].shape[1:] or len(x) != len(y):
            raise InputError(
                f"data: {name}: batch {i}: expected inputs of shape (n, {_shape(batches[0][0].shape[1:])}) and n targets, "
                f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
            )
    pair = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    notes = (
        []
        if complete
        else [f"{name}: only its first {len(pair[0]):,} samples were read, a {_size(byte_cap)} cap"]
    )
    if loader.drop_last:
        notes.append(f"{name}: drop_last=True leaves an incomplete last batch out")
    return Data(name, pair, None, notes)


def _until_cap(
    pairs: Iterator[tuple[Tensor, Tensor]], byte_cap: int
) -> tuple[list[tuple[Tensor, Tensor]], bool]:
    kept: list[tuple[Tensor, Tensor]] = []
    size = 0
    for pair in pairs:
        size += _bytes(pair[0])
        if kept and size > byte_cap:
            return kept, False
        kept.append(pair)
    return kept, True


def _length(data: Any, name: str) -> int:
    try:
        return len(data)
    except TypeError as error:
        raise InputError(f"data: {name}: expected a data set with a length, or an IterableDataset") from error


def _item(data: Any, index: int, name: str) -> Any:
    return _guarded(lambda: data[index], f"{name}: item {index}")


def _items(data: Any, name: str) -> Iterator[Any]:
    iterator = _guarded(lambda: iter(data), name)
    end = object()
    for i in itertools.count():
        item = _guarded(lambda: next(iterator, end), f"{name}: item {i}")
        if item is end:
            return
        yield item


def _guarded(read: Callable[[], Any], where: str) -> Any:
    """Run a stranger's data set; what it raises becomes one sentence with the true cause."""
    try:
        return read()
    except Exception as error:  # a stranger's code; its own words are the true cause
        words = (str(error).strip().splitlines() or ["(no message)"])[-1]
        raise InputError(f"data: {where} raised {type(error).__name__}: {words}") from error


def _pair(item: Any, where: str) -> tuple[Tensor, Tensor]:
    if isinstance(item, Mapping):
        x = next((item[k] for k in _INPUT_KEYS if k in item), None)
        y = next((item[k] for k in _TARGET_KEYS if k in item), None)
        if x is None or y is None:
            keys = ", ".join(repr(k) for k in item) or "none"
            raise InputError(
                f"data: {where}: expected an input and a target, for instance 'x' and 'y', got the keys {keys}"
            )
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        x, y = item
    else:
        what = (
            f"{type(item).__name__} of {len(item)}"
            if isinstance(item, (tuple, list))
            else type(item).__name__
        )
        raise InputError(f"data: {where}: expected a pair (x, y), got {what}")
    return _tensor(x, f"{where}: input"), _tensor(y, f"{where}: target")


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        hint = " (convert images to tensors)" if "Image" in type(value).__name__ else ""
        raise InputError(f"data: {where}: expected a tensor or numbers, got {type(value).__name__}{hint}")
    return torch.from_numpy(np.array(array))


def _stack(pairs: list[tuple[Tensor, Tensor]], name: str) -> tuple[Tensor, Tensor]:
    if not pairs:
        raise InputError(f"data: {name}: expected at least one item, got none")
    for part, word in ((0, "inputs"), (1, "targets")):
        for i, pair in enumerate(pairs):
            if pair[part].shape != pairs[0][part].shape:
                raise InputError(
                    f"data: {name}: expected {word} of equal shape, "
                    f"got {_shape(pairs[0][part].shape)} in item 0 and {_shape(pair[part].shape)} in item {i}"
                )
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "()"


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _size(byte_cap: int) -> str:
    return f"{byte_cap / 2**30:.3g} GiB" if byte_cap >= 1 << 28 else f"{byte_cap:,}-byte"
