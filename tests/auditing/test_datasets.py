"""Tensors out of data sets and loaders."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from theodolite.auditing import data, datasets
from theodolite.theorems.subject import InputError

X, Y = torch.arange(30.0).reshape(10, 3), torch.arange(10) % 3


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class NoLength(Dataset):
    def __getitem__(self, index):
        return X[index], Y[index]


PAIRS = [(x, int(y)) for x, y in zip(X, Y, strict=True)]


@pytest.mark.parametrize(
    "given",
    [
        TensorDataset(X, Y),
        Items(PAIRS),
        Items([(x.numpy(), np.int64(y)) for x, y in PAIRS]),
        Items([{"image": x, "label": y, "id": 3} for x, y in PAIRS]),
        Items([{"input_ids": x, "labels": y} for x, y in PAIRS]),
        Stream(PAIRS),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(Items(PAIRS), batch_size=10),
        DataLoader(Stream(PAIRS), batch_size=3),
    ],
)
def test_everything_reads_the_same(given):
    found = data.load(given)
    assert torch.equal(found.train[0], X)
    assert torch.equal(found.train[1], Y)
    assert found.notes == []


def test_a_shuffling_loader_follows_the_seed_and_keeps_its_generator():
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=generator)
    state = generator.get_state()
    first = data.load(loader)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(first.train[0], data.load(loader).train[0])
    plain = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    assert torch.equal(data.load(plain, seed=1).train[0], data.load(plain, seed=1).train[0])
    assert not torch.equal(data.load(plain, seed=1).train[0], data.load(plain, seed=2).train[0])
    assert sorted(data.load(plain, seed=1).train[0][:, 0].tolist()) == X[:, 0].tolist()


def test_what_is_left_out_is_said():
    found = data.load(DataLoader(TensorDataset(X, Y), batch_size=4, drop_last=True))
    assert len(found.train[0]) == 8
    assert found.notes == ["DataLoader of TensorDataset: drop_last=True leaves an incomplete last batch out"]


@pytest.mark.parametrize("given", [TensorDataset(X, Y), Items(PAIRS)])
def test_the_byte_cap_draws_rows_with_the_seed(given):
    first, again = (datasets.materialize(given, seed=1, byte_cap=48) for _ in range(2))
    other = datasets.materialize(given, seed=2, byte_cap=48)
    name = type(given).__name__
    assert first.notes == [f"{name}: 4 of its 10 items, drawn with the seed, were used, a 48-byte cap"]
    assert torch.equal(first.train[0], again.train[0])
    assert not torch.equal(first.train[0], other.train[0])
    assert torch.equal(first.train[1], (first.train[0][:, 0] / 3).long() % 3)  # rows keep their targets


@pytest.mark.parametrize("given", [Stream(PAIRS), DataLoader(TensorDataset(X, Y), batch_size=2)])
def test_the_byte_cap_reads_a_beginning(given):
    found = datasets.materialize(given, seed=0, byte_cap=50)
    assert torch.equal(found.train[0], X[:4])
    assert "only its first 4" in found.notes[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Items([]), "Items: expected at least one item, got none"),
        (Stream([]), "Stream: expected at least one item, got none"),
        (DataLoader(TensorDataset(X, Y), batch_size=20, drop_last=True), "expected at least one batch, got none"),
        (Items([PAIRS[0], (X[0, :2], 1)]), "expected inputs of equal shape, got 3 in item 0 and 2 in item 1"),
        (Items([PAIRS[0], (X[0], X[0])]), r"expected targets of equal shape, got \(\) in item 0 and 3 in item 1"),
        (Items([PAIRS[0], ValueError("bad pixel")]), "Items: item 1 raised ValueError: bad pixel"),
        (Items([X[0]]), "Items: item 0: expected a pair .x, y., got Tensor"),
        (Items([(X[0], 1, 2)]), "expected a pair .x, y., got tuple of 3"),
        (Items([{"x": X[0]}]), "expected an input and a target, for instance 'x' and 'y', got the keys 'x'"),
        (Items([("word", 1)]), "Items: item 0: input: expected a tensor or numbers, got str"),
        (Items([(X[0], None)]), "item 0: target: expected a tensor or numbers, got NoneType"),
        (NoLength(), "NoLength: expected a data set with a length, or an IterableDataset"),
        (DataLoader(Items([PAIRS[0], ValueError("bad pixel")])), "DataLoader of Items: item 1 raised ValueError: bad pixel"),
        (DataLoader(TensorDataset(X, Y, Y), batch_size=2), "batch 0: expected a pair .x, y., got list of 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(given, words):
    with pytest.raises(InputError) as caught:
        data.load(given)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupt_is_not_a_refusal():
    class Interrupting(Items):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.load(Interrupting(PAIRS))
