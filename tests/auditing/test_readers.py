"""Data files: .npz and .csv, and one sentence for whatever is wrong with them."""

import gzip
import re

import numpy as np
import pytest

from theodolite.auditing import data
from theodolite.theorems.subject import InputError

X = np.arange(12.0, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 0, 1])


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        data.load(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("names", [("x", "y"), ("X", "Y"), ("X", "y")])
def test_npz_pair(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)), other=X)
    found = data.load(str(tmp_path / "a.npz"))
    assert np.array_equal(found.train[0], X)
    assert np.array_equal(found.train[1], Y)
    assert found.test is None
    assert found.name == "a.npz"


def test_npz_with_a_test_part(tmp_path):
    np.savez(tmp_path / "a.npz", X_train=X, y_train=Y, X_test=X[:2], y_test=Y[:2])
    found = data.load(tmp_path / "a.npz")
    assert len(found.train[0]) == 4
    assert len(found.test[1]) == 2


def test_npz_with_words_as_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=list("baca"), x_test=X, y_test=list("cccc"))
    found = data.load(tmp_path / "a.npz")
    assert found.train[1].tolist() == [1, 0, 2, 0]
    assert found.test[1].tolist() == [2] * 4
    assert found.notes == ["labels in words were numbered in alphabetical order: a, b, c"]


def changed(**change):
    return {"x": X, "y": Y, **change}


NPZ = {
    "no such arrays": ({"a": X, "b": Y}, "expected arrays x and y, or x_train, y_train, x_test and y_test; found a, b"),
    "nothing": ({}, "found nothing"),
    "test alone": ({"x_test": X, "y_test": Y}, "found x_test, y_test"),
    "half a test part": ({"x_train": X, "y_train": Y, "x_test": X}, "x_test is there but y_test is not"),
    "empty": (changed(x=X[:0], y=Y[:0]), "expected at least one sample, got none"),
    "scalar x": (changed(x=np.float32(1)), "expected one row of x a sample, got a scalar"),
    "scalar y": (changed(y=np.int64(1)), "expected x and y of equal length, got 4 rows of x and a scalar y"),
    "unequal": (changed(y=Y[:3]), "expected x and y of equal length, got 4 rows of x and 3 rows of y"),
    "NaN": (changed(x=np.where(X == 4, np.nan, X)), "x has NaN or infinity in 1 of 4 samples"),
    "infinite target": (changed(y=np.array([1.0, np.inf, 0.0, np.inf])), "y has NaN or infinity in 2 of 4 samples"),
    "complex": (changed(x=X + 1j), "expected numbers in x, got an array of dtype complex64"),
    "words": (changed(x=np.array(list("abcd"))), "expected numbers in x, got an array of dtype <U1"),
    "dates": (changed(y=np.array(["2020-01-01"] * 4, dtype="M8[D]")), "expected numbers in y"),
    "objects": (changed(x=np.array([{}, 1, 2, 3], dtype=object)), "array 'x' holds Python objects, which are not loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", NPZ)
def test_npz_that_cannot_be_used(tmp_path, case):
    arrays, words = NPZ[case]
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    text = refusal(path)
    assert text.startswith(f"data: {path}: ")
    assert words in text


def test_the_test_part_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X * np.nan, y_test=Y)
    assert "a.npz (test part): x has NaN" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: b"junk", "is not a .npz file (a zip archive of numpy arrays)"),
        (lambda raw: b"", "is not a .npz file"),
        (lambda raw: raw[: len(raw) // 2], "is a .npz file without its end"),
        (lambda raw: raw[:160] + bytes(20) + raw[180:], "is a damaged .npz file"),
    ],
)
def test_damaged_npz(tmp_path, spoil, words):
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y)
    path.write_bytes(spoil(path.read_bytes()))
    assert words in refusal(path)


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffa,b,label\n1,2,0\n\n3,4.5,1\n", encoding="utf-8")
    found = data.load(path)
    assert found.train[0].tolist() == [[1, 2], [3, 4.5]]
    assert found.train[1].dtype.kind == "i"
    assert "for regression give the loss mse" in found.notes[0]


@pytest.mark.parametrize(
    "text", ["1;2;0.5\n3;4;1\n", "1\t2\t0.5\n3\t4\t1\n", "1,2,0.5\n3,4,1", '"1","2",0.5\n3,4,1\n']
)
def test_csv_delimiters_and_regression(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    found = data.load(tmp_path / "a.csv")
    assert np.array_equal(found.train[0], [[1, 2], [3, 4]])
    assert np.array_equal(found.train[1], [0.5, 1.0])
    assert found.notes == []


def test_csv_with_words_as_labels_and_gzip(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"1,2,dog\n3,4,cat\n"))
    found = data.load(tmp_path / "a.csv.gz")
    assert found.train[1].tolist() == [1, 0]


CSV = {
    "": "expected rows of numbers, got an empty file",
    "\n \n": "expected rows of numbers, got an empty file",
    "a,b,c\n": "expected at least one row below the header, got none",
    "1\n2\n": "expected at least two columns (inputs, then the target), got one",
    "1,2,3\n4,5\n": "line 2: expected 3 columns, got 2",
    "a,b,c\n1,2,3\n4,,6\n": "line 3, column 2: is empty",
    "1,2,0\n1,two,0\n": "line 2, column 2: expected a number, got 'two'",
    "1,2,0\n1,nan,0\n": "x has NaN or infinity in 1 of 2 samples",
}


@pytest.mark.parametrize("text", CSV)
def test_csv_that_cannot_be_used(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    said = refusal(path)
    assert said.startswith(f"data: {path}")
    assert CSV[text] in said


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "a.csv").write_bytes("1,2\n".encode("utf-16"))
    assert "is not a text file in UTF-8" in refusal(tmp_path / "a.csv")
    (tmp_path / "a.csv.gz").write_bytes(b"no gzip")
    assert "could not be read" in refusal(tmp_path / "a.csv.gz")
    packed = gzip.compress("".join(f"{i},{i * i % 97}\n" for i in range(99)).encode())
    (tmp_path / "b.csv.gz").write_bytes(packed[: len(packed) // 2])
    assert "is a damaged .gz file" in refusal(tmp_path / "b.csv.gz")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.npz", "missing.npz: there is no such file"),
        ("folder.npz", "folder.npz: is a folder"),
        ("a.h5", "expected 'digits', a .npz or a .csv file, got '.*a.h5'"),
        ("a" * 300 + ".npz", "File name too long"),
    ],
)
def test_files_that_are_not_there(tmp_path, name, words):
    (tmp_path / "folder.npz").mkdir()
    assert re.search(words, refusal(tmp_path / name))
    assert "empty name" in refusal("")
