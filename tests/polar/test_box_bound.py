"""Bounds on boxes of directions: never below a value inside, however hard one tries."""

import pytest
import torch

from theodolite.polar.box_bound import Boxes, Rows, bound_boxes, fold, rounding_margin

CASES = [(2, 1, 1), (3, 1, 1), (3, 4, 1), (4, 2, 3), (6, 3, 2), (2, 1, 3)]


def problem(d, K, C, n=60, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    X, Q = (torch.randn(n, k, dtype=torch.float64, generator=generator) for k in (d, K))
    X[:3] = X[3:6]
    X[7] = 0.0
    starts = torch.linspace(0, n, C + 1).long()
    return Rows(X * scale, Q, starts), generator


def boxes(d, b, generator, size):
    axis = int(torch.randint(d, (1,), generator=generator))
    center = 2.0 * torch.rand(b, d, dtype=torch.float64, generator=generator) - 1.0
    radius = size * torch.rand(b, d, dtype=torch.float64, generator=generator)
    radius = torch.minimum(radius, 1.0 - center.abs())
    center[:, axis] = torch.where(torch.arange(b) % 2 == 0, 1.0, -1.0).double()
    radius[:, axis] = 0.0
    return Boxes(center, radius, axis)


def attacked(rows, box, generator, steps=6):
    """The largest values of F(w) / |w| on boxes that sampling and a local search find, shape (b,)."""
    b, d = box.center.shape
    Z = 2.0 * torch.rand(b, 200, d, dtype=torch.float64, generator=generator) - 1.0
    Z[:, :60] = Z[:, :60].sign()
    for _ in range(steps):
        W = box.center[:, None] + box.radius[:, None] * Z
        values = rows.values(W.flatten(0, 1)).flatten(1).norm(dim=1).view(b, -1) / W.norm(dim=2)
        best = Z.gather(1, values.topk(20).indices[..., None].expand(-1, -1, d))
        noise = 0.3 * torch.randn(b, 9, 20, d, dtype=torch.float64, generator=generator)
        Z = torch.cat([best, (best[:, None] + noise).clamp(-1.0, 1.0).flatten(1, 2)], 1)
    return values.amax(1)


@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize(("d", "K", "C"), CASES)
def test_no_value_inside_is_larger(d, K, C, degree):
    for seed, size in ((0, 1.0), (1, 0.2), (2, 0.01)):
        rows, generator = problem(d, K, C, seed=seed)
        box = boxes(d, 12, generator, size)
        found = attacked(rows, box, generator)
        margin = rounding_margin(rows, degree)
        for wanted in (0.5 * float(found.min()), 1.02 * float(found.max()), 3.0 * float(found.max())):
            for rounds in (0, 4):
                bounds = bound_boxes(
                    rows, box, wanted, degree=degree, folded=None, margin=margin, rounds=rounds
                )
                assert bool((bounds.upper >= found).all())
                values = rows.values(box.center).flatten(1).norm(dim=1) / box.center.norm(dim=1)
                assert bool(((bounds.center - values).abs() <= 0.3 * size * rows.total()).all())


@pytest.mark.parametrize(("d", "K", "C"), CASES)
def test_small_boxes_have_sharp_bounds(d, K, C):
    rows, generator = problem(d, K, C)
    box = boxes(d, 8, generator, 1e-5)
    values = rows.values(box.center).flatten(1).norm(dim=1) / box.center.norm(dim=1)
    margin = rounding_margin(rows, 2)
    for i in range(8):
        one = Boxes(box.center[i : i + 1], box.radius[i : i + 1], box.axis)
        wanted = float(values[i])
        upper = bound_boxes(rows, one, wanted, degree=2, folded=None, margin=margin, rounds=4).upper
        assert float(upper[0]) <= wanted + 2e-4 * rows.total() / len(rows.X) ** 0.5 + 1e-2 * wanted


@pytest.mark.parametrize(("d", "K", "C"), CASES)
def test_rows_decided_on_the_whole_box_are_folded(d, K, C):
    rows, generator = problem(d, K, C)
    whole = boxes(d, 1, generator, 0.3)
    folded, index = fold(rows, whole)
    assert len(index) < len(rows.X)
    inner = Boxes(whole.center, 0.5 * whole.radius, whole.axis)
    wanted = float(rows.values(inner.center).flatten(1).norm(dim=1)[0]) * 1.2
    options = {"degree": 3, "margin": rounding_margin(rows, 3), "rounds": 3}
    direct = bound_boxes(rows, inner, wanted, folded=None, **options)
    less = bound_boxes(rows.taken(index), inner, wanted, folded=folded, **options)
    torch.testing.assert_close(direct.upper, less.upper, rtol=1e-8, atol=0.0)
    torch.testing.assert_close(direct.center, less.center, rtol=1e-10, atol=1e-12)


def test_the_margin_covers_what_rounding_does():
    # values that cancel to far below the rounding of their parts
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(400, 3, dtype=torch.float64, generator=generator)
    Q = torch.randn(400, 2, dtype=torch.float64, generator=generator)
    rows = Rows(torch.cat([X, X]), torch.cat([Q, -Q]), torch.tensor([0, 800]))
    box = boxes(3, 20, generator, 0.0)
    margin = rounding_margin(rows, 3)
    bounds = bound_boxes(rows, box, 1e-13, degree=3, folded=None, margin=margin, rounds=0)
    values = rows.values(box.center).flatten(1).norm(dim=1) / box.center.norm(dim=1)
    assert bool((values <= bounds.upper).all())
    assert float(bounds.upper.max()) <= 1e-8
