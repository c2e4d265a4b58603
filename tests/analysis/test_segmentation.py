"""Segmentations under shifts: overlaps by hand, agreement by residue, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from theodolite.analysis.segmentation import dice, labels_of, segmentation_equivariance
from theodolite.models import EncoderDecoder
from theodolite.testing import snapshot


def test_dice_by_hand():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    b = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert dice(a, b).tolist() == [0.5, 1.0, 0.0, 1.0]
    assert torch.equal(dice(a, b), dice(b, a))
    with pytest.raises(ValueError, match="masks of bool of one shape"):
        dice(a, b.long())
    with pytest.raises(ValueError, match="of one shape"):
        dice(a, b[:2])


def test_labels():
    logits = torch.tensor([[[0.0, 2.0, 1.0], [1.0, 2.0, 0.0]]])
    assert labels_of(logits).tolist() == [[1, 0, 0]]  # the first of two that tie
    assert labels_of(logits[:, :1] - 0.5).tolist() == [[0, 1, 1]]


class Every(nn.Module):
    """Keep every p-th position and repeat it: agreement can be counted by hand."""

    def __init__(self, p: int) -> None:
        super().__init__()
        self.pool = nn.Conv1d(1, 1, 1, stride=p, bias=False)
        self.up = nn.Upsample(scale_factor=p)
        nn.init.ones_(self.pool.weight)

    def forward(self, x):
        return self.up(self.pool(x))


def test_agreement_by_hand():
    x = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).view(1, 1, 8)
    found = segmentation_equivariance(Every(2), x)
    assert found.period == (2,)
    assert found.shifts == [(1,), (2,)]
    # f(x) = + + - - + + + +, hence T_1 f(x) = + + + - - + + +, and f(T_1 x) = - - + + - - - -
    assert found.agreements.flatten().tolist() == [0.25, 1.0]
    assert found.dices[0, 0].tolist() == [2 * 1 / (2 + 6), 2 * 1 / (6 + 2)]
    assert float(found.defects[0, 0]) == pytest.approx((6 * 4 / 8) ** 0.5)
    rows = found.by_residue()
    assert list(rows) == [(0,), (1,)]
    assert rows[(0,)].defect.value == 0.0
    assert rows[(1,)].labels.value == 0.25
    assert rows[(1,)].dice.value == 0.25
    assert rows[(1,)].dice.kind == "exact"


@pytest.mark.parametrize("dims", [2, 3])
def test_a_circular_network_agrees_exactly_at_multiples_of_its_stride(dims):
    net = EncoderDecoder(1, 3, dims=dims, width=3, depth=1, batch_norm=True).double()
    x = torch.randn(3, 1, *(8, 12, 6)[:dims], dtype=torch.float64)
    found = segmentation_equivariance(net, x)
    assert found.period == (2,) * dims
    assert len(found.by_residue()) == 2**dims
    assert found.dices.shape == (len(found.shifts), 3, 3)
    assert found.on_lattice.defect.value < 1e-14
    assert found.on_lattice.labels.value == found.on_lattice.dice.value == 1.0
    assert 0.3 < found.off_lattice.labels.value < 1.0
    assert found.off_lattice.defect.value > 1e-3


def test_it_is_the_plain_comparison_and_leaves_the_model_alone():
    net = EncoderDecoder(2, 3, width=2, padding_mode="zeros", batch_norm=True)
    net.down[0].eval()
    before, modes = snapshot(net), [m.training for m in net.modules()]
    x = torch.randn(5, 2, 8, 8)
    found = segmentation_equivariance(net, x, [(1, 2), (4, 0), (-3, 9)])
    assert snapshot(net) == before
    assert [m.training for m in net.modules()] == modes
    assert found.residues == [(1, 2), (0, 0), (1, 1)]
    net.eval()
    with torch.no_grad():
        for i, by in enumerate(found.shifts):
            moved, other = net(x).roll(by, (2, 3)), net(x.roll(by, (2, 3)))
            defects = (other - moved).flatten(1).norm(dim=1) / moved.flatten(1).norm(dim=1)
            torch.testing.assert_close(found.defects[i], defects.double(), rtol=1e-4, atol=1e-6)
            same = (moved.argmax(1) == other.argmax(1)).flatten(1).double().mean(1)
            torch.testing.assert_close(found.agreements[i], same)
            a, b = moved.argmax(1) == 1, other.argmax(1) == 1
            torch.testing.assert_close(found.dices[i, :, 1], dice(a, b))


def test_many_residues_are_taken_along_one_axis_at_a_time():
    found = segmentation_equivariance(nn.Identity(), torch.randn(1, 1, 32, 48), period=16)
    assert len(found.shifts) == 2 * 15 + 2
    assert all(min(by) == 0 for by in found.shifts)


def test_an_untraceable_model_needs_its_period():
    class Branching(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    x = torch.ones(2, 1, 4, 4)
    with pytest.raises(ValueError, match="period: expected the total stride"):
        segmentation_equivariance(Branching(), x)
    found = segmentation_equivariance(Branching(), x, period=2)
    assert found.on_lattice.labels.value == 1.0
    assert segmentation_equivariance(Branching(), x, [(1, 0)], period=2).on_lattice is None
    assert segmentation_equivariance(Branching(), x, [(2, 0)], period=2).off_lattice is None
    with pytest.raises(ValueError, match="one of them true"):
        found.over([False] * len(found.shifts), "none")


X = torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("model", "x", "options", "reason"),
    [
        (nn.Identity(), torch.zeros(4, 4), {}, "x: expected finite inputs"),
        (nn.Identity(), X + torch.nan, {}, "x: expected finite inputs"),
        (nn.Identity(), X, {"shifts": []}, "at least one shift of 2 integers"),
        (nn.Identity(), X, {"shifts": [(1,)]}, "at least one shift of 2 integers"),
        (nn.Identity(), X, {"period": 0}, "period: expected an integer >= 1, got 0"),
        (nn.AvgPool2d(2), X, {}, "one for each position of the input"),
        (nn.Flatten(), X, {"period": 1}, "model: expected logits of shape"),
        (nn.Threshold(1.0, float("inf")), X, {"period": 1}, "expected finite logits"),
    ],
)
def test_refusals(model, x, options, reason):
    with pytest.raises(ValueError, match=reason):
        segmentation_equivariance(model, x, **options)
