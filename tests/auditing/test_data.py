"""Data from arrays, mappings, digits; and the shape that a model takes."""

import random
import re

import numpy as np
import pytest
import torch
from builders import conv_net, mlp
from torch import nn
from torch.utils.data import TensorDataset

from theodolite.auditing import data
from theodolite.theorems.subject import InputError

X, Y = torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("pair", [(X, Y), [X, Y], (X.numpy(), Y.tolist())])
def test_a_bare_pair_is_training_data(pair):
    found = data.load(pair)
    assert found.train[0] is pair[0]
    assert found.test is None


def test_mappings():
    both = data.load({"train": (X, Y), "test": (X[:2], Y[:2])})
    assert len(both.test[0]) == 2
    assert data.load({"train": TensorDataset(X, Y)}).test is None
    named = data.load({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y})
    assert named.test[0] is X
    assert data.load({"X": X, "y": Y}).train == (X, Y)
    mixed = data.load({"train": TensorDataset(X, Y), "test": {"x": X, "y": Y}})
    assert mixed.name == "TensorDataset + arrays"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "got NoneType"),
        (X, "got Tensor"),
        ((X,), "got a tuple of 1"),
        ((X, Y, Y), "got a tuple of 3"),
        ({}, "expected arrays x and y, .* found nothing"),
        ({"test": (X, Y)}, "expected a 'train' part beside 'test'"),
        ({"train": (X, Y), "val": (X, Y)}, "expected the keys 'train' and 'test', got also 'val'"),
        ({"train": {"train": (X, Y)}}, r"data\['train'\]: expected .*, got a nested mapping"),
        ({"train": "digits"}, r"data\['train'\]: expected one part, got data that are split already"),
        ({"x_train": X, "y_train": Y, "y_test": Y}, "y_test is there but x_test is not"),
        ({"train": (X, list("aabbcc")), "test": (X, Y)}, "got words in one and numbers in the other"),
        (3, "got int"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_one_sentence(given, words):
    with pytest.raises(InputError) as caught:
        data.load(given)
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)


def test_words_are_numbered_alike_in_both_parts():
    found = data.load({"train": (X, np.array(list("bbccbb"))), "test": (X[:2], ["a", "c"])})
    assert found.train[1].tolist() == [1, 1, 2, 2, 1, 1]
    assert found.test[1].tolist() == [0, 2]


def test_digits_are_split_once_and_for_all():
    first, second = data.digits(), data.load("digits", seed=7)
    assert torch.equal(first.train[0], second.train[0])
    assert (len(first.train[0]), len(first.test[0])) == (1397, 400)
    assert first.train[0].dtype == torch.float32
    assert 0.0 == first.train[0].min() < first.train[0].max() == 1.0
    frequencies = [torch.bincount(y) / len(y) for _, y in (first.train, first.test)]
    assert (frequencies[0] - frequencies[1]).abs().max() < 0.01
    rows = {tuple(row) for row in first.train[0].tolist()}
    assert (
        len(rows & {tuple(row) for row in first.test[0].tolist()}) < 5
    )  # no image is in both (few are twins)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(), (64,)),
        (conv_net()[1:], (1, 8, 8)),
        (nn.Sequential(nn.Flatten(), mlp()), (64,)),
        (mlp(5, 3), (64,)),  # takes neither; refused by the audit itself
        (mlp().double(), (64,)),
    ],
)
def test_digits_take_the_shape_that_the_model_takes(model, shape):
    found = data.digits().shaped_for(model)
    assert found.train[0].shape[1:] == shape
    assert found.test[0].shape[1:] == shape
    assert bool(found.notes) == (shape != (64,))


def test_reading_leaves_the_random_states():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            return torch.rand(3) + random.random() + np.random.rand(), 0  # noqa: NPY002

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    first, again = data.load(Noisy(X), seed=3), data.load(Noisy(X), seed=3)
    other = data.load(Noisy(X), seed=4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2][1])  # noqa: NPY002
    assert torch.equal(first.train[0], again.train[0])
    assert not torch.equal(first.train[0], other.train[0])
