"""The tensor of spectra: the claims hold on the data, and can fail; held-out entries do not enter what is fitted."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from theodolite.experiments import datasets
from theodolite.experiments import tensor_completion as ours
from theodolite.experiments.base import reproduce

needs = pytest.mark.skipif(
    not datasets.is_installed("tensorly"), reason=f"needs tensorly: {datasets.PACKAGES['tensorly'].command}"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("tensor")
    return reproduce(ours.TensorCompletion(), folder, fast=True), folder


@needs
def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 8
    assert (folder / "tensor-completion.json").is_file()
    assert (folder / "tensor-completion.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs
def test_claims_fail_where_the_numbers_are_worse(written):
    numbers = copy.deepcopy(written[0].numbers)
    for found in numbers["tensors"]:
        found |= {"gap": 0.1, "dual_bound": 2.0 * found["objective"], "size": 10**6}
        found |= {
            "polar_high": min(found["unfoldings"].values()),
            "polar_low": min(found["unfoldings"].values()) / 1.1,
        }
    for found in numbers["matrices"]:
        found["gaps"][-1] = 0.1
        found["held_out_rmse"] = [numbers["mean"]] * len(found["alphas"])
    assert not any(claim.holds for claim in ours.claims(numbers))


@needs
def test_parts_are_disjoint_and_missing_entries_in_none():
    data = ours.Data.draw(fast=True)
    parts = (data.held, data.validation, data.fitted)
    assert np.array_equal(sum(part.astype(int) for part in parts), data.observed.astype(int))
    assert abs(data.held.mean() / data.observed.mean() - ours.HELD_OUT) < 0.01


@pytest.fixture
def planted():
    generator = np.random.default_rng(0)
    shape = (6, 5, 4, 3)
    factors = [generator.standard_normal((n, 2)) for n in shape]
    whole = np.einsum("ar,br,cr,dr->abcd", *factors)
    held = generator.random(shape) < 0.3
    return ours.Data(whole, np.ones(shape, dtype=bool), held, np.zeros(shape, dtype=bool) ^ held, ~held, 1.0)


def test_held_out_entries_change_nothing_but_the_error(planted):
    other = replace(planted, whole=np.where(planted.held, planted.whole + 1.0, planted.whole))
    for complete in (lambda data: data.tensor(0.3, 60.0), lambda data: data.unfolding((0, 1), n_alphas=3)):
        found, again = complete(planted), complete(other)
        for part in ("held_out_rmse", "validation_rmse"):
            assert found.pop(part) != again.pop(part)
        assert found == again


def test_bounds_of_the_polar(planted):
    found = planted.tensor(0.3, 60.0)
    assert found["gap"] <= ours.TOL
    assert found["held_out_rmse"] < 0.5 * np.std(planted.whole)
    assert len(found["unfoldings"]) == 7
    assert found["polar_low"] <= found["polar_high"] <= (1.0 + 1e-9) * min(found["unfoldings"].values())
    # at the optimum the polar is alpha
    assert found["polar_low"] == pytest.approx(0.3, rel=0.01)


def test_labels():
    assert ours.label((0, 2)) == "sample x excitation"
