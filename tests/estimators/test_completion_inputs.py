"""Observed entries as users give them: a correct answer or one clear error."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from theodolite.estimators import MatrixCompletion
from theodolite.estimators.completion_inputs import Ids, read

NAN = np.nan
COLUMNS = ("user", "item", "rating")


def table(*rows):
    return pd.DataFrame(rows, columns=list(COLUMNS))


def observed(X, **options):
    entries = read(X, columns=COLUMNS, **options)
    return list(zip(entries.rows.tolist(), entries.cols.tolist(), entries.values.tolist(), strict=True))


@pytest.mark.parametrize("form", ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"])
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_every_sparse_format_is_read(form, kind):
    dense = np.array([[0.0, 2.0, 0.0], [3.0, 0.0, 5.0]])
    X = getattr(sp, f"{form}_{kind}")(dense)
    stored = [entry for entry in observed(X) if entry[2] != 0.0]  # some formats store blocks with zeros
    assert stored == [(0, 1, 2.0), (1, 0, 3.0), (1, 2, 5.0)]


@pytest.mark.parametrize("form", ["coo", "csc", "csr"])
def test_stored_zeros_are_observed(form):
    X = sp.coo_array((np.array([0.0, 3.0]), (np.array([1, 0]), np.array([2, 1]))), shape=(2, 3)).asformat(
        form
    )
    assert observed(X) == [(0, 1, 3.0), (1, 2, 0.0)]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.float32, bool])
def test_every_real_type_is_read(dtype):
    X = sp.coo_array((np.array([1, 0], dtype=dtype), ([0, 1], [1, 0])), shape=(2, 2))
    assert observed(X) == [(0, 1, 1.0), (1, 0, 0.0)]


def test_dense_arrays_lack_what_is_nan_or_masked():
    dense = np.array([[1.0, NAN], [NAN, 0.0]])
    assert observed(dense) == observed(dense.tolist()) == [(0, 0, 1.0), (1, 1, 0.0)]
    masked = np.ma.array([[1, 7], [7, 0]], mask=[[0, 1], [1, 0]])
    assert observed(masked) == [(0, 0, 1.0), (1, 1, 0.0)]
    model = MatrixCompletion(alpha=0.1).fit(masked)
    assert model.objective_ == MatrixCompletion(alpha=0.1).fit(dense).objective_


def test_tables_keep_ids_of_any_kind():
    day = datetime.date(2020, 1, 1)
    for users, names in (
        (["b", "a", "b"], ["a", "b"]),
        ([20, 10, 20], [10, 20]),
        ([2.5, 1.5, 2.5], [1.5, 2.5]),
        ([("x", 1), ("a", 2), ("x", 1)], [("a", 2), ("x", 1)]),
        (["one", 2, "one"], ["one", 2]),  # that cannot be sorted: as they come
        ([day, datetime.date(2019, 1, 1), day], [datetime.date(2019, 1, 1), day]),
    ):
        X = pd.DataFrame({"user": pd.Series(users), "item": ["p", "p", "q"], "rating": [1, 2, 3]})
        entries = read(X, columns=COLUMNS)
        assert entries.row_ids.names.tolist() == names
        found = [names[i] for i in entries.rows]
        order = sorted(range(3), key=lambda k: (names.index(users[k]), "ppq"[k]))
        assert found == [users[k] for k in order]
        assert entries.values.tolist() == [float(k + 1) for k in order]


def test_columns_have_the_names_given():
    X = table(["a", "p", 1.0], ["b", "q", 2.0]).rename(columns={"user": "u", "item": "i", "rating": "r"})
    with pytest.raises(
        ValueError, match="X: expected a table with a column 'user', got columns 'u', 'i', 'r'"
    ):
        MatrixCompletion().fit(X)
    model = MatrixCompletion(user="u", item="i", rating="r", alpha=0.1).fit(X)
    assert model.row_ids_.tolist() == ["a", "b"]
    assert model.col_ids_.tolist() == ["p", "q"]


TWICE = {
    "table": table(["a", "p", 1.0], ["b", "p", 5.0], ["a", "p", 4.0], ["b", "q", 2.0]),
    "sparse": sp.coo_array((np.array([1.0, 5.0, 4.0, 2.0]), ([0, 1, 0, 1], [0, 0, 0, 1])), shape=(2, 2)),
    "csr": sp.csr_array((np.array([1.0, 4.0, 5.0, 2.0]), [0, 0, 0, 1], [0, 2, 4]), shape=(2, 2)),
}


@pytest.mark.parametrize("form", list(TWICE))
def test_entries_given_twice(form):
    X = TWICE[form]
    place = r"\('a', 'p'\)" if form == "table" else r"\(0, 0\)"
    with pytest.raises(
        ValueError, match=rf"X: expected each entry once, got {place} twice, with 1 and 4 \(1 rep"
    ):
        MatrixCompletion().fit(X)
    assert observed(X, duplicates="mean") == [(0, 0, 2.5), (1, 0, 5.0), (1, 1, 2.0)]
    assert observed(X, duplicates="last") == [(0, 0, 4.0), (1, 0, 5.0), (1, 1, 2.0)]
    with pytest.raises(ValueError, match="duplicates: expected one of 'error', 'mean', 'last', got 'sum'"):
        MatrixCompletion(duplicates="sum").fit(X)


def test_duplicates_are_reduced_as_by_pandas():
    g = np.random.default_rng(0)
    X = pd.DataFrame(
        {"user": g.integers(0, 9, 300), "item": g.integers(0, 7, 300), "rating": g.normal(size=300)}
    )
    groups = X.groupby(["user", "item"])["rating"]
    for how in ("mean", "last"):
        expected = groups.agg(how)
        entries = read(X, columns=COLUMNS, duplicates=how)
        np.testing.assert_allclose(entries.values, expected.to_numpy(), rtol=1e-14)


BAD = {
    "no entry": (
        np.full((2, 3), NAN),
        r"X: expected at least one observed entry, got none in shape \(2, 3\)",
    ),
    "no stored entry": (
        sp.csr_array((4, 5)),
        r"expected at least one observed entry, got none in shape \(4, 5\)",
    ),
    "empty table": (table(), r"expected at least one observed entry, got none in shape \(0, 0\)"),
    "no row": (np.zeros((0, 3)), "0 sample"),
    "no column": (np.zeros((3, 0)), "0 feature"),
    "infinite": (
        np.array([[1.0, np.inf]]),
        r"X: expected finite numbers or NaN for missing ones, got inf at \(0, 1\)",
    ),
    "sparse NaN": (
        sp.coo_array((np.array([1.0, NAN]), ([0, 1], [0, 1])), shape=(2, 2)),
        "X: expected finite numbers, got NaN at 1",
    ),
    "sparse inf": (sp.csr_array(np.array([[1.0, -np.inf]])), "X: expected finite numbers, got -inf at 1"),
    "table NaN": (
        table(["a", "p", 1.0], ["a", "q", NAN]),
        r"X\['rating'\]: expected finite numbers, got NaN at 1",
    ),
    "table inf": (table(["a", "p", np.inf]), r"X\['rating'\]: expected finite numbers, got inf at 0"),
    "no id": (
        table(["a", "p", 1.0], [None, "q", 2.0]),
        "X: expected an id in every row of 'user', got none in row 1",
    ),
    "NaN id": (
        table(["a", 1.0, 1.0], ["b", NAN, 2.0]),
        "X: expected an id in every row of 'item', got none in row 1",
    ),
    "list id": (
        table([["a"], "p", 1.0]),
        r"X: expected ids that can be told apart in 'user', got \['a'\] in row 0",
    ),
    "words": (table(["a", "p", "good"]), "X: expected real numbers"),
    "complex": (np.array([[1j]]), "Complex data not supported"),
    "vector": (np.array([1.0, 2.0]), "Expected 2D array, got 1D array instead"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_cannot_be_read_is_refused_in_one_sentence(name):
    X, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        MatrixCompletion().fit(X)


def test_a_single_entry():
    model = MatrixCompletion(alpha=1.0, tol=1e-10).fit(np.array([[NAN, 3.0], [NAN, NAN]]))
    assert model.objective_ == pytest.approx(1.0 * 2.0 + 0.5, rel=1e-9)  # 1/2 alpha^2 + alpha (3 - alpha)
    assert model.rank_ == 1
    assert model.predict(0, 1)[0] == pytest.approx(2.0, rel=1e-5)
    assert model.predict([1, 0], [1, 0]).tolist() == [0.0, 0.0]


def test_one_row_and_one_column():
    X = np.array([[3.0, NAN, 4.0]])  # the norm of the row is shrunken by alpha
    for Y in (X, X.T):
        model = MatrixCompletion(alpha=1.0, tol=1e-10).fit(Y)
        np.testing.assert_allclose(np.ravel(model.complete())[[0, 2]], [2.4, 3.2], rtol=1e-5)


def test_a_constant_matrix():
    X = np.full((6, 5), 2.0)
    size = 2.0 * np.sqrt(30)
    model = MatrixCompletion(alpha=1.0, tol=1e-10).fit(X)
    np.testing.assert_allclose(model.complete(), X * (size - 1) / size, rtol=1e-6)
    for bias in ("penalized", "centered"):  # nothing is left to explain
        model = MatrixCompletion(alpha=0.1, bias=bias).fit(X)
        assert model.gap_ <= 1e-4
        assert model.rank_ == 0
        np.testing.assert_allclose(model.complete(), X)


def test_rows_and_columns_without_entries():
    X = np.full((5, 4), NAN)
    X[1], X[3, 2] = [1.0, NAN, 2.0, 3.0], 4.0
    for bias in (False, "penalized", "centered"):
        model = MatrixCompletion(alpha=0.1, tol=1e-8, bias=bias).fit(X)
        assert model.gap_ <= 1e-8
        assert np.abs(model.row_factors_[[0, 2, 4]]).max() <= 1e-12
        assert np.abs(model.col_factors_[1]).max() <= 1e-12
        assert (model.row_bias_[[0, 2, 4]] == 0.0).all()
        assert np.isfinite(model.complete()).all()


def test_ids_find_their_index():
    ids = Ids(["a", "c"])
    assert ids.encode(["c", "b", "a"]).tolist() == [1, -1, 0]
    assert ids.encode(pd.Series(["a"])).tolist() == [0]
    assert Ids(np.array([5, 7])).encode([7, 6]).tolist() == [1, -1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_numbers_are_sorted_as_by_numpy(dtype):
    g = np.random.default_rng(0)
    low = 0 if np.dtype(dtype).kind == "u" else -100
    for values in (
        g.integers(low, 120, 500).astype(dtype),
        (g.integers(low, 120, 20) // 40 * 40).astype(dtype),
    ):
        ids, codes = Ids.of(values, "user")
        names, expected = np.unique(values, return_inverse=True)
        assert ids.names.dtype == dtype
        np.testing.assert_array_equal(ids.names, names)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(ids.encode(values), expected)
    assert ids.encode([119, "a"]).tolist() == ids.encode([119, 119]).tolist() == [-1, -1]
    spread, codes = Ids.of(np.array([10**15, -3]), "user")
    assert (spread.names.tolist(), codes.tolist()) == ([-3, 10**15], [1, 0])
