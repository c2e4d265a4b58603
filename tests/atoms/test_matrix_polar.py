"""Which proof of a spectral polar is taken, on a sparse matrix too large for a full decomposition."""

import numpy as np
import pytest
import torch

from theodolite.atoms import MatrixAtom, matrix_polar


@pytest.fixture(scope="module")
def sparse():
    rng = np.random.default_rng(0)
    n, m = 1500, 1300
    where = np.flatnonzero(rng.random(n * m) < 0.02)
    values = rng.standard_normal(len(where)) + 0.15
    dense = np.zeros((n, m))
    dense.reshape(-1)[where] = values
    _, s, Vh = np.linalg.svd(dense)
    return torch.from_numpy(dense).to_sparse(), s, torch.from_numpy(Vh)


def polar(sparse, ratio, starts=6, **kwargs):
    Q, s, Vh = sparse
    pairs = torch.zeros(starts, Q.shape[0], dtype=torch.float64), Vh[:starts].clone()
    return MatrixAtom(tuple(Q.shape)).polar(Q, target=ratio * s[0], starts=pairs, **kwargs)


@pytest.mark.parametrize(
    ("ratio", "proof", "sure"),
    [(1.003, "Chebyshev", False), (1.0 + 1e-7, "Cholesky", True), (0.999, "2 x 2", False)],
)
def test_the_cheapest_proof_of_what_is_wanted(sparse, ratio, proof, sure):
    top = sparse[1][0]
    value = polar(sparse, ratio)
    assert value.low <= top * (1 + 1e-12)
    assert top * (1 - 1e-12) <= value.high
    assert value.high <= ratio * top or ratio < 1.0
    assert proof in value.note
    assert (value.confidence == 1.0) == sure
    assert value.confidence >= 1.0 - 1e-9


def test_a_proof_that_falls_short_is_followed_by_another(sparse, monkeypatch):
    monkeypatch.setattr(matrix_polar, "steps_needed", lambda *_: 2.0)  # so that too few are made
    value = polar(sparse, 1.003)
    assert sparse[1][0] * (1 - 1e-12) <= value.high <= 1.003 * sparse[1][0]
    assert "Cholesky" in value.note
    assert value.confidence == 1.0 - 1e-9  # the choice between the two was made by one that may fail


def test_without_time_the_bound_is_free_of_charge(sparse):
    value = polar(sparse, 1.003, budget=0.0)
    assert value.note == "norms of Q"
    assert value.high >= sparse[1][0]
    assert value.confidence == 1.0
