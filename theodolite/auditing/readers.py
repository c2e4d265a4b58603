"""Data from files: .npz archives and CSV tables."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from theodolite.auditing.data import Data, pick_arrays
from theodolite.auditing.files import check_readable
from theodolite.theorems.subject import InputError

Array = np.ndarray[Any, Any]


def read(path: Path) -> Data:
    """Read a data file.

    Parameters
    ----------
    path : Path
        ``.npz`` with arrays x, y or x_train, y_train, x_test, y_test (capitals allowed),
        or ``.csv`` (also ``.csv.gz``) whose last column is the target; a header is optional.

    Returns
    -------
    Data

    Raises
    ------
    InputError
        One sentence that names the file and what is wrong with it.
    """
    name = path.name.lower()
    if not name.endswith((".npz", ".csv", ".csv.gz")):
        raise InputError(f"data: expected 'digits', a .npz or a .csv file, got {str(path)!r}")
    check_readable(path, "data")
    try:
        found = _read_npz(path) if name.endswith(".npz") else _read_csv(path)
    except OSError as error:
        raise InputError(f"data: {path}: could not be read ({error.strerror or error})") from error
    for split, pair in (("", found.train), (" (test part)", found.test)):
        if pair is not None:
            _check(f"{path}{split}", *pair)
    return found


def _read_npz(path: Path) -> Data:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            cut = file.read(2) == b"PK"
        what = (
            "is a .npz file without its end" if cut else "is not a .npz file (a zip archive of numpy arrays)"
        )
        raise InputError(f"data: {path}: {what}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: _array(archive, name, path) for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise InputError(f"data: {path}: is a damaged .npz file ({error})") from error
    train, test = pick_arrays(arrays, f"data: {path}")
    return Data(path.name, train, test)


def _array(archive: Any, name: str, path: Path) -> Array:
    try:
        found = archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"data: {path}: array {name!r} holds Python objects, which are not loaded because unpickling runs code"
            ) from error
        raise InputError(f"data: {path}: array {name!r} is damaged ({error})") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"data: {path}: entry {name!r} is not a numpy array")
    return found


def _read_csv(path: Path) -> Data:
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
        text = raw.decode("utf-8-sig")
    except (EOFError, zlib.error) as error:
        raise InputError(f"data: {path}: is a damaged .gz file ({error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"data: {path}: is not a text file in UTF-8") from error
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError(f"data: {path}: expected rows of numbers, got an empty file")
    delimiter = next((d for d in ",;\t" if d in first), ",")
    cells = next(csv.reader([first], delimiter=delimiter))
    if len(cells) < 2:
        raise InputError(f"data: {path}: expected at least two columns (inputs, then the target), got one")
    header = lines.index(first) + 1 if not any(map(_is_number, cells[:-1])) else 0
    if not any(line.strip() for line in lines[header:]):
        raise InputError(f"data: {path}: expected at least one row below the header, got none")
    try:
        body = io.StringIO("\n".join(lines[header:]))
        table = np.loadtxt(body, delimiter=delimiter, ndmin=2, dtype=np.float64, comments=None)
        inputs, target = table[:, :-1], table[:, -1]
    except ValueError:  # words, gaps or ragged rows: read slowly, which finds the place
        inputs, target = _read_words(path, lines, header, delimiter, len(cells))
    notes = []
    if (
        target.dtype.kind == "f"
        and len(target)
        and np.isfinite(target).all()
        and (target == np.round(target)).all()
    ):
        target = target.astype(np.int64)
        notes.append(
            "whole numbers in the last column were read as classes; for regression give the loss mse"
        )
    return Data(path.name, (inputs, target), None, notes)


def _read_words(path: Path, lines: list[str], header: int, delimiter: str, width: int) -> tuple[Array, Array]:
    inputs: list[list[float]] = []
    targets: list[str] = []
    for number, line in enumerate(lines[header:], header + 1):
        if not line.strip():
            continue
        cells = next(csv.reader([line], delimiter=delimiter))
        if len(cells) != width:
            raise InputError(f"data: {path}, line {number}: expected {width} columns, got {len(cells)}")
        for column, cell in enumerate(cells, 1):
            if not cell.strip():
                raise InputError(f"data: {path}, line {number}, column {column}: is empty")
            if column < width and not _is_number(cell):
                raise InputError(
                    f"data: {path}, line {number}, column {column}: expected a number, got {cell!r}"
                )
        inputs.append([float(cell) for cell in cells[:-1]])
        targets.append(cells[-1].strip())
    if all(map(_is_number, targets)):
        return np.array(inputs), np.array([float(t) for t in targets])
    return np.array(inputs), np.array(targets)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check(where: str, x: Array, y: Array) -> None:
    """Refuse what could not be audited, naming the file."""
    if x.ndim == 0:
        raise InputError(f"data: {where}: expected one row of x a sample, got a scalar")
    if len(x) == 0:
        raise InputError(f"data: {where}: expected at least one sample, got none")
    if y.ndim == 0 or len(x) != len(y):
        rows = "a scalar y" if y.ndim == 0 else f"{len(y)} rows of y"
        raise InputError(
            f"data: {where}: expected x and y of equal length, got {len(x)} rows of x and {rows}"
        )
    for name, array in (("x", x), ("y", y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).reshape(len(array), -1).any(1).sum())
            raise InputError(f"data: {where}: {name} has NaN or infinity in {bad} of {len(array)} samples")
        if array.dtype.kind not in "fiub" and not (name == "y" and array.dtype.kind in "US"):
            raise InputError(
                f"data: {where}: expected numbers in {name}, got an array of dtype {array.dtype}"
            )
