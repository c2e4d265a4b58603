"""Long tables of ratings out of CSV, TSV and Parquet files, tens of millions of rows; refusals name the line.

A file in which every id is a whole number is read by numpy's parser, five seconds for twenty million
rows; anything else by the csv module, which also finds what is wrong with a file that numpy refuses.
"""

from __future__ import annotations

import csv
import gc
import hashlib
import itertools
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from theodolite.auditing.files import check_readable
from theodolite.theorems.subject import InputError

_CHUNK = 1 << 16
_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass
class Table:
    """Columns of a file: what estimators take for a data frame.

    Attributes
    ----------
    data : dict
        Arrays by their names: ids are int64, or objects that are strings; ratings are float64.
    """

    data: dict[str, NDArray[Any]]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.data)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column."""
        return self.data[name]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.data.values())))

    def take(self, rows: NDArray[Any]) -> Table:
        """Return some of the rows, by a mask or indices."""
        return Table({name: column[rows] for name, column in self.data.items()})

    def fingerprint(self) -> str:
        """Return a hash of names and contents, the same for the same file."""
        digest = hashlib.sha256()
        for name, column in self.data.items():
            digest.update(f"{name} {column.dtype} {len(column)}\n".encode())
            if column.dtype == object:
                for first in range(0, len(column), _CHUNK):
                    digest.update("\n".join(column[first : first + _CHUNK]).encode())
            else:
                digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


def read(
    path: str | Path, argument: str, ids: list[str], rating: str | None = None, *, text: Sequence[str] = ()
) -> Table:
    """Read columns of ids and, if wanted, one of finite numbers.

    Parameters
    ----------
    path : str or Path
        A .parquet file, or text with a header line whose columns commas, semicolons or tabs separate.
    argument : str
        What refusals call it.
    ids : list of str
        Columns of ids.  Where every entry of a column is a whole number they are numbers (007 is 7),
        otherwise strings, without the spaces around them.
    rating : str, optional
        Column of numbers.
    text : sequence of str
        Columns of ids that are strings, also where all look like numbers.

    Returns
    -------
    Table

    Raises
    ------
    InputError
        One sentence with the file, the line and what is wrong.
    """
    path = Path(path)
    where = f"{argument}: {path}"
    check_readable(path, argument)
    names = [*ids, *([] if rating is None else [rating])]
    if len(set(names)) < len(names):
        raise InputError(f"{where}: expected different columns, got {', '.join(map(repr, names))}")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path, where, ids, rating, text)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter, header = _header(file.readline(), path)
        places = _places(header, names, where)
        numeric = None if len(ids) == len(names) else len(ids)
        table = None if set(text) & set(ids) else _integers(path, delimiter, names, places, numeric)
        return _strings(path, where, delimiter, names, places, numeric, text) if table is None else table
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected text in UTF-8, got byte {error.object[error.start]:#x}"
        ) from error
    except OSError as error:
        raise InputError(f"{where}: {error.strerror or error}") from error
    except csv.Error as error:
        raise InputError(f"{where}: is not a table of text ({error})") from error


def _header(line: str, path: Path) -> tuple[str, list[str]]:
    """Return the delimiter and the names of the columns."""
    tabs = path.suffix.lower() in (".tsv", ".tab") or "\t" in line
    delimiter = "\t" if tabs else ";" if ";" in line and "," not in line else ","
    return delimiter, [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]


def _places(header: list[str], names: list[str], where: str) -> list[int]:
    if not any(header):
        raise InputError(
            f"{where}: expected a header line with the names of the columns, got an empty file or line"
        )
    for name in names:
        if header.count(name) != 1:
            found = ", ".join(map(repr, header[:12])) + (", ..." if len(header) > 12 else "")
            times = "a column" if name not in header else "one column"
            raise InputError(f"{where}: expected {times} {name!r}, got {found}")
    return [header.index(name) for name in names]


def _integers(
    path: Path, delimiter: str, names: list[str], places: list[int], numeric: int | None
) -> Table | None:
    """Read ids that are whole numbers and finite ratings; None where something else is met."""
    kinds = [(f"c{i}", "f8" if i == numeric else "i8") for i in range(len(names))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of an empty file, or of an id such as 1.5
            found = np.loadtxt(
                path,
                dtype=kinds,
                comments=None,
                delimiter=delimiter,
                skiprows=1,
                usecols=places,
                ndmin=1,
                encoding="utf-8-sig",
                quotechar='"',
            )
    except (ValueError, UserWarning, DeprecationWarning):
        return None
    data = {name: np.ascontiguousarray(found[f"c{i}"]) for i, name in enumerate(names)}
    return Table(data) if numeric is None or bool(np.isfinite(data[names[numeric]]).all()) else None


def _strings(
    path: Path,
    where: str,
    delimiter: str,
    names: list[str],
    places: list[int],
    numeric: int | None,
    text: Sequence[str],
) -> Table:
    """Read any ids; find what is wrong."""
    index = [i for i in range(len(names)) if i != numeric]
    known: list[defaultdict[str, int]] = [defaultdict() for _ in index]
    for table in known:
        table.default_factory = table.__len__  # a new id gets the next number
    codes: list[list[NDArray[np.int32]]] = [[] for _ in index]
    values, pick = [np.zeros(0)], itemgetter(*places, places[0])  # twice, so that it always is a tuple
    with open(path, encoding="utf-8-sig", newline="") as file, _no_collection():
        rows = filter(None, csv.reader(file, delimiter=delimiter, strict=True))
        next(rows)
        while chunk := list(itertools.islice(rows, _CHUNK)):
            try:
                columns = list(zip(*map(pick, chunk), strict=True))
                if numeric is not None:
                    values.append(np.fromiter(map(float, columns[numeric]), np.float64, len(chunk)))
            except (IndexError, ValueError):
                break
            for table, code, i in zip(known, codes, index, strict=True):
                code.append(np.fromiter(map(table.__getitem__, columns[i]), np.int32, len(chunk)))
    numbers = np.concatenate(values)
    if chunk or not np.isfinite(numbers).all() or any(not name.strip() for table in known for name in table):
        raise _first_fault(path, where, delimiter, names, places, numeric)
    if not codes[0]:
        raise InputError(f"{where}: expected at least one row below the header, got none")
    data = {}
    for table, code, i in zip(known, codes, index, strict=True):
        data[names[i]] = _named(list(table), names[i] in text)[np.concatenate(code)]
    return Table(data if numeric is None else data | {names[numeric]: numbers})


def _named(texts: list[str], as_text: bool) -> NDArray[Any]:
    """Return ids as numbers if all are whole ones that int64 holds, otherwise as strings."""
    texts = [text.strip() for text in texts]
    if not as_text and all(map(_WHOLE.fullmatch, texts)) and all(abs(int(text)) < 2**63 for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64)
    named = np.empty(len(texts), dtype=object)
    named[:] = texts
    return named


def _first_fault(
    path: Path, where: str, delimiter: str, names: list[str], places: list[int], numeric: int | None
) -> InputError:
    """Return the refusal of the first line that is wrong."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        next(rows)
        for row in filter(None, rows):
            line = f"{where}, line {rows.line_num}"
            if len(row) <= max(places):
                return InputError(f"{line}: expected at least {max(places) + 1} columns, got {len(row)}")
            for i, place in enumerate(places):
                text = row[place].strip()
                if i == numeric and not _is_finite(text):
                    hint = "; leave a missing rating out" if text.lower() in ("", "nan", "na", "null") else ""
                    got = repr(text) if text else "none"
                    return InputError(f"{line}: expected a finite number in {names[i]!r}, got {got}{hint}")
                if i != numeric and not text:
                    return InputError(f"{line}: expected an id in {names[i]!r}, got none")
    raise AssertionError("the file changed while it was read")


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector, which would look at millions of short lists again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _parquet(path: Path, where: str, ids: list[str], rating: str | None, text: Sequence[str]) -> Table:
    if find_spec("pandas") is None or find_spec("pyarrow") is None:
        raise InputError(f"{where}: Parquet needs pandas and pyarrow: pip install pandas pyarrow")
    import pandas as pd
    import pyarrow
    from pyarrow import parquet

    try:
        _places(list(parquet.read_schema(path).names), [*ids, *([] if rating is None else [rating])], where)
        frame = pd.read_parquet(path, columns=[*ids, *([] if rating is None else [rating])])
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{where}: is not a Parquet file") from error
    if not len(frame):
        raise InputError(f"{where}: expected at least one row, got none")
    data: dict[str, NDArray[Any]] = {}
    for name in ids:
        if frame[name].isna().any():
            row = int(np.argmax(frame[name].isna().to_numpy()))
            raise InputError(f"{where}, row {row}: expected an id in {name!r}, got none")
        codes, found = pd.factorize(frame[name])
        data[name] = _named([str(one) for one in found], name in text)[codes]
    if rating is not None:
        try:
            values = frame[rating].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: expected numbers in {rating!r}, got {frame[rating].dtype}") from error
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise InputError(f"{where}, row {row}: expected a finite number in {rating!r}, got {values[row]}")
        data[rating] = values
    return Table(data)
