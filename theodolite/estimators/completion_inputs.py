"""Observed entries of a matrix as users give them: sparse, dense with NaN, or a long table with any ids."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.utils.validation import check_array

DUPLICATES = ("error", "mean", "last")


class Ids:
    """The names of rows or columns: their order is that of the indices.

    Parameters
    ----------
    names : array-like of hashables
        Each once.
    """

    def __init__(self, names: Any) -> None:
        self.names: NDArray[Any] = _as_vector(names)
        self._place: dict[Hashable, int] | None = None
        self._sorted = (
            self.names.dtype.kind in "iu" and len(self) > 0 and bool((np.diff(self.names) > 0).all())
        )

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, given: Any) -> NDArray[np.int64]:
        """Return the index of each id, -1 for one that is not there."""
        given = _as_vector(given)
        if self._sorted and given.dtype.kind in "iu":
            place = np.searchsorted(self.names, given).clip(max=len(self) - 1)
            return np.where(self.names[place] == given, place, -1)
        if self._place is None:
            self._place = {name: i for i, name in enumerate(self.names.tolist())}
        find = self._place.get
        return np.fromiter((find(name, -1) for name in given.tolist()), dtype=np.int64, count=len(given))

    @classmethod
    def of(cls, given: Any, name: str) -> tuple[Ids, NDArray[np.int64]]:
        """Return the distinct ids of a column, sorted where that is possible, and the index of each entry.

        Raises
        ------
        ValueError
            If one is missing or not hashable.
        """
        values = _as_vector(given)
        if np.can_cast(values.dtype, np.int64) and values.dtype.kind in "iu" and len(values):
            low, high = int(values.min()), int(values.max())
            if high - low <= 4 * len(values):  # sorting would take several times as long
                shift = values.astype(np.int64) - low
                seen = np.bincount(shift) > 0
                return cls((np.flatnonzero(seen) + low).astype(values.dtype)), (np.cumsum(seen) - 1)[shift]
        if values.dtype.kind in "iubU":
            names, codes = np.unique(values, return_inverse=True)
            return cls(names), codes.astype(np.int64)
        listed = values.tolist()
        place: dict[Hashable, int] = {}
        codes = np.empty(len(listed), dtype=np.int64)
        for i, one in enumerate(listed):
            try:
                missing = one is None or bool(one != one)  # NaN and NaT differ from themselves
                codes[i] = -1 if missing else place.setdefault(one, len(place))
            except TypeError as error:  # pandas.NA has no truth value, a list no hash
                if type(one).__name__ == "NAType":
                    raise ValueError(_no_id(name, i)) from error
                got = f"{one!r} in row {i}"
                raise ValueError(f"X: expected ids that can be told apart in {name!r}, got {got}") from error
            if missing:
                raise ValueError(_no_id(name, i))
        met: list[Any] = list(place)
        try:
            order = sorted(range(len(met)), key=lambda i: met[i])
        except TypeError:  # of several types: in the order met
            return cls(met), codes
        rank = np.empty(len(met), dtype=np.int64)
        rank[order] = np.arange(len(met))
        return cls([met[i] for i in order]), rank[codes]


def _no_id(name: str, row: int) -> str:
    return f"X: expected an id in every row of {name!r}, got none in row {row}"


def _as_vector(names: Any) -> NDArray[Any]:
    """Return a vector of ids; tuples stay whole."""
    if isinstance(names, np.ndarray) and names.ndim == 1:
        return names
    if hasattr(names, "to_numpy"):
        return np.asarray(names.to_numpy())
    listed = list(names)
    if listed and all(type(x) is str for x in listed):
        return np.array(listed)
    if listed and all(type(x) in (int, np.int64, np.int32) and -(2**63) <= x < 2**63 for x in listed):
        return np.array(listed, dtype=np.int64)
    vector = np.empty(len(listed), dtype=object)
    vector[:] = listed
    return vector


@dataclass
class Entries:
    """Observed entries of an (n, m) matrix, sorted by row and then column, none twice.

    Attributes
    ----------
    rows, cols : ndarray of int64, shape (size,)
    values : ndarray of float64, shape (size,)
    shape : tuple of int
    row_ids, col_ids : Ids or None
        Names of rows and columns; None where they are numbered.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    values: NDArray[np.float64]
    shape: tuple[int, int]
    row_ids: Ids | None = None
    col_ids: Ids | None = None

    def take(self, index: NDArray[Any]) -> Entries:
        """Return some of the entries, by a mask or increasing indices."""
        return Entries(
            self.rows[index], self.cols[index], self.values[index], self.shape, self.row_ids, self.col_ids
        )

    def describe(self, row: int, col: int) -> str:
        """Return a place in the words of the user."""
        i = row if self.row_ids is None else self.row_ids.names.tolist()[row]
        j = col if self.col_ids is None else self.col_ids.names.tolist()[col]
        return f"({i!r}, {j!r})"


def is_table(X: Any) -> bool:
    """Return whether X is a data frame (of pandas, or anything with named columns)."""
    return hasattr(X, "columns") and hasattr(X, "__getitem__") and not hasattr(X, "tocoo")


def column(X: Any, name: Hashable) -> Any:
    """Return a column of a table, or refuse a name that it does not have."""
    if name not in list(X.columns):
        found = ", ".join(map(repr, X.columns))
        raise ValueError(
            f"X: expected a table with a column {name!r}, got columns {found}; name them with user=, item= and "
            "rating=, and give a matrix as an array, not as a table"
        )
    if list(X.columns).count(name) > 1:
        raise ValueError(f"X: expected one column {name!r}, got {list(X.columns).count(name)}")
    return X[name]


def read(
    X: Any,
    *,
    columns: Sequence[Hashable],
    duplicates: str = "error",
    row_ids: Ids | None = None,
    col_ids: Ids | None = None,
    unknown: str = "error",
    allow_empty: bool = False,
) -> Entries:
    """Return the observed entries of an input.

    Parameters
    ----------
    X : sparse matrix or array, table or array-like
        Stored entries of a sparse matrix, zeros too, are observed; NaN in an array is missing;
        a table has a row for each entry.
    columns : sequence of three names
        Of rows' ids, columns' ids and values in a table.
    duplicates : {"error", "mean", "last"}
        What an entry given twice means.
    row_ids, col_ids : Ids, optional
        Known ids that a table is read with.
    unknown : {"error", "drop"}
        What to do with rows of a table whose ids are not known.
    allow_empty : bool
        Whether there may be no entry at all.

    Raises
    ------
    ValueError
        If a value is not finite, an entry is given twice, an id is not known, or nothing is observed.
    """
    if is_table(X):
        entries = _from_table(X, columns, row_ids, col_ids, unknown)
    elif sp.issparse(X):
        coo = X.tocoo()
        values = _finite(_real(coo.data), "X")
        row, col = (np.asarray(index, dtype=np.int64) for index in (coo.row, coo.col))
        entries = Entries(row, col, values, (coo.shape[0], coo.shape[1]))
    else:
        whole = np.ma.filled(X.astype(np.float64), np.nan) if isinstance(X, np.ma.MaskedArray) else X
        whole = check_array(whole, dtype=np.float64, ensure_all_finite=False)
        if np.isinf(whole).any():
            place = tuple(int(i) for i in np.argwhere(np.isinf(whole))[0])
            raise ValueError(f"X: expected finite numbers or NaN for missing ones, got inf at {place}")
        row, col = np.nonzero(~np.isnan(whole))
        entries = Entries(row.astype(np.int64), col.astype(np.int64), whole[row, col], whole.shape)
    if not len(entries.values) and not allow_empty:
        raise ValueError(f"X: expected at least one observed entry, got none in shape {entries.shape}")
    return _sorted(entries, duplicates)


def _from_table(
    X: Any, columns: Sequence[Hashable], row_ids: Ids | None, col_ids: Ids | None, unknown: str
) -> Entries:
    users, items, ratings = (column(X, name) for name in columns)
    values = _finite(_real(_as_vector(ratings)), f"X[{columns[2]!r}]")
    found = []
    known = np.ones(len(values), dtype=bool)
    for name, given, ids in ((columns[0], users, row_ids), (columns[1], items, col_ids)):
        if ids is None:
            ids, codes = Ids.of(given, str(name))
        else:
            codes = ids.encode(given)
        if unknown == "error":
            refuse_unknown(codes, given, str(name))
        known &= codes >= 0
        found.append((ids, codes))
    (row_ids, rows), (col_ids, cols) = found
    shape = (len(row_ids), len(col_ids))
    return Entries(rows[known], cols[known], values[known], shape, row_ids, col_ids)


def refuse_unknown(codes: NDArray[np.int64], given: Any, name: str) -> None:
    """Raise a ValueError that names the first id that was not seen in fit, if there is one."""
    if (codes < 0).any():
        place = int(np.argmax(codes < 0))
        got = _as_vector(given).tolist()[place]
        raise ValueError(f"{name}: expected ids seen in fit, got {got!r} at {place}")


def _real(values: Any) -> NDArray[np.float64]:
    values = np.asarray(values)
    if values.dtype.kind == "c":
        raise ValueError("X: expected real numbers. Complex data not supported")
    if values.dtype.kind not in "biufO":
        raise ValueError(f"X: expected real numbers, got {values.dtype}")
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"X: expected real numbers, got {error}") from error


def _finite(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    wrong = ~np.isfinite(values)
    if wrong.any():
        place = int(np.argmax(wrong))
        got = "NaN" if np.isnan(values[place]) else f"{values[place]}"
        raise ValueError(f"{name}: expected finite numbers, got {got} at {place}; leave a missing entry out")
    return values


def _sorted(entries: Entries, duplicates: str) -> Entries:
    """Return the entries in order, those given twice reduced to one."""
    key = entries.rows * entries.shape[1] + entries.cols
    step = np.diff(key)
    if (step > 0).all():
        return entries
    if not (step >= 0).all():
        order = np.argsort(key, kind="stable")
        entries, key = entries.take(order), key[order]
        step = np.diff(key)
    again = step == 0
    if not again.any():
        return entries
    if duplicates == "error":
        i = int(np.argmax(again))
        place = entries.describe(int(entries.rows[i]), int(entries.cols[i]))
        pair = f"{entries.values[i]:g} and {entries.values[i + 1]:g}"
        raise ValueError(
            f"X: expected each entry once, got {place} twice, with {pair} ({int(again.sum())} repeated in all); "
            "duplicates='mean' or 'last' accepts them"
        )
    first = np.flatnonzero(np.concatenate([[True], ~again]))
    last = np.concatenate([first[1:], [len(key)]]) - 1
    reduced = entries.take(last)
    if duplicates == "mean":
        reduced.values = np.add.reduceat(entries.values, first) / (last - first + 1)
    return reduced
