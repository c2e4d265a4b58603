"""MovieLens: the claims hold on the data, and can fail; test ratings do not enter what is fitted."""

from dataclasses import replace

import numpy as np
import pytest

from theodolite.experiments import datasets
from theodolite.experiments import movielens as ours
from theodolite.experiments.base import reproduce

needs = pytest.mark.skipif(
    not datasets.is_installed("recbole"), reason=f"needs recbole: {datasets.PACKAGES['recbole'].command}"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("movielens")
    return reproduce(ours.Movielens(), folder, fast=True), folder


@needs
def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 7
    assert (folder / "movielens.json").is_file()
    assert (folder / "movielens.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs
def test_claims_fail_where_the_numbers_are_worse(written):
    numbers = written[0].numbers
    worse = numbers["u1"] | {
        "penalized biases": numbers["u1"]["penalized biases"] | {"test_rmse": 1.0, "gap": 0.1}
    }
    worse["mean removed"] = worse["penalized biases"]
    shifted = {name: error + 0.001 for name, error in numbers["means"].items()}
    assert [claim.holds for claim in ours.claims(shifted, worse, numbers["random"])] == [
        False,
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]


@needs
def test_u1_is_the_published_split():
    split = ours.Split(datasets.movielens(), np.arange(ours.U1), seed=0)
    users = split.ratings.users[split.test]
    assert len(np.unique(users)) == 459  # as in u1.test
    assert users.max() == 462


@pytest.fixture
def split():
    generator = np.random.default_rng(0)
    rows, cols = np.nonzero(generator.random((40, 30)) < 0.6)
    low_rank = generator.standard_normal((40, 2)) @ generator.standard_normal((2, 30))
    biases = generator.standard_normal((40, 1)) + generator.standard_normal(30)
    values = np.clip(3.0 + 0.7 * (low_rank + biases)[rows, cols], 1.0, 5.0)
    ratings = datasets.Ratings(rows + 1, cols + 1, values, np.zeros(len(rows), dtype=np.int64))
    return ours.Split(ratings, np.arange(0, len(rows), 5), seed=3)


def test_parts_of_a_split_are_disjoint(split):
    parts = (split.test, split.validation, split.fitted)
    assert sum(map(len, parts)) == len(np.unique(np.concatenate(parts))) == len(split.ratings.ratings)
    assert len(split.validation) == len(split.train) // 10


@pytest.mark.parametrize("kind", ours.KINDS)
def test_ratings_of_the_test_part_change_nothing_but_the_test_error(split, kind):
    changed = split.ratings.ratings.copy()
    changed[split.test] = 6.0 - changed[split.test]
    other = ours.Split(replace(split.ratings, ratings=changed), split.test, split.seed)
    found, again = (ours.fit(one, kind, (4.0, 2.0, 1.0)) for one in (split, other))
    assert found.pop("test_rmse") < again.pop("test_rmse")
    assert found == again
    assert found["alpha"] == found["alphas"][int(np.argmin(found["validation_rmse"]))]
    assert max(*found["gaps"], found["gap"]) <= ours.TOL


def test_means_by_hand(split):
    means, r = split.means(), split.ratings
    train = {k: r.ratings[k] for k in split.train}
    wrong = [
        np.mean([v for k, v in train.items() if r.users[k] == r.users[t]]) - r.ratings[t] for t in split.test
    ]
    assert means["user mean"] == pytest.approx(np.sqrt(np.mean(np.square(wrong))))
    assert means["global mean"] == pytest.approx(
        np.sqrt(np.mean((r.ratings[split.test] - np.mean(list(train.values()))) ** 2))
    )


def test_biases_alone_have_rank_zero(split):
    found = ours.biases_alone(split)
    assert (found["rank"], found["gap"]) == (0, pytest.approx(0.0, abs=1e-9))
    assert found["test_rmse"] < 0.9 * split.means()["global mean"]


def test_standard_error():
    assert ours.summary([1.0, 2.0, 3.0]) == pytest.approx({"mean": 2.0, "standard_error": 1.0 / np.sqrt(3.0)})
    assert np.isnan(ours.summary([1.0])["standard_error"])
