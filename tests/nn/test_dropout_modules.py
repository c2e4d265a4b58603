"""Dropout modules: what they drop, together with what, how often, and rates that follow the width."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from theodolite.nn import BernoulliDropout, DropBlock, DropConnect
from theodolite.nn.dropout import kappa, theta_for_width


def test_known_answers_of_the_adapted_retention():
    assert [theta_for_width(0.8, d) for d in (1, 4, 16)] == pytest.approx([0.8, 0.5, 0.2], abs=1e-12)


@pytest.mark.parametrize(
    ("theta_bar", "width"), [*itertools.product((0.05, 0.5, 0.99, 1.0), (1, 2, 7, 1000))]
)
def test_kappa_grows_in_proportion_to_the_width(theta_bar, width):
    assert kappa(1.0 - theta_for_width(theta_bar, width)) == pytest.approx(
        width * (1.0 - theta_bar) / theta_bar, rel=1e-9
    )


def test_kappa_is_the_variance_of_a_mask():
    for p in (0.0, 0.2, 0.9):
        assert kappa(p) == pytest.approx((1.0 - p) * (1.0 / (1.0 - p)) ** 2 - 1.0)


@pytest.mark.parametrize(
    "module", [BernoulliDropout(0.4), BernoulliDropout(0.4, shared=True), DropBlock(3, 0.4)]
)
def test_evaluation_is_the_identity(module):
    x = torch.randn(5, 6)
    assert torch.equal(module.eval()(x), x)


def test_without_masks_drop_connect_is_a_linear_layer():
    layer, x = DropConnect(4, 3, p=0.5).eval(), torch.randn(2, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    plain = nn.Linear(4, 3)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain(x), layer(x))


@pytest.mark.parametrize(
    "module", [BernoulliDropout(0.3), DropBlock(2, 0.3), BernoulliDropout(0.3, shared=True)]
)
def test_masks_have_mean_one_and_variance_kappa(module):
    torch.manual_seed(0)
    draws = torch.stack([module(torch.ones(1, 4, dtype=torch.float64)) for _ in range(4000)]).flatten(1)
    assert draws.unique().tolist() == pytest.approx([0.0, 1.0 / 0.7])
    assert float((draws.mean(0) - 1.0).abs().max()) < 5.0 * math.sqrt(kappa(0.3) / 4000)
    assert float((draws.var(0) / kappa(0.3) - 1.0).abs().max()) < 0.1


def test_units_are_masked_together_as_said():
    torch.manual_seed(0)
    ones = torch.ones(64, 12)
    own = BernoulliDropout(0.5)(ones)
    assert len(own.unique(dim=0)) > 32
    assert len(BernoulliDropout(0.5, shared=True)(ones).unique(dim=0)) == 1
    blocks = DropBlock(3, 0.5)(ones).reshape(64, 4, 3)
    assert torch.equal(blocks, blocks[..., :1].expand_as(blocks))
    assert len(blocks.unique(dim=0)) > 8
    assert len(DropBlock(3, 0.5, shared=True)(ones).unique(dim=0)) == 1
    assert len(DropConnect(12, 7, bias=False, p=0.5)(ones).unique(dim=0)) == 1


def test_rates_follow_the_number_of_units_or_blocks():
    assert BernoulliDropout(theta_bar=0.8).rate(16) == pytest.approx(0.8)
    assert BernoulliDropout(0.8).rate(16) == 0.8
    assert DropBlock(4, theta_bar=0.8).rate(4) == pytest.approx(0.5)
    assert DropConnect(16, 4, theta_bar=0.8).drop_rate == pytest.approx(0.8)
    assert DropConnect(16, 4, theta_bar=0.8, side="in").drop_rate == pytest.approx(0.5)
    torch.manual_seed(0)
    kept = (DropBlock(4, theta_bar=0.8)(torch.ones(5000, 64)) != 0).float().mean()
    assert float(kept) == pytest.approx(0.2, abs=0.02)


def test_a_rate_of_zero_drops_nothing():
    x = torch.randn(3, 4)
    for module in (BernoulliDropout(0.0), DropBlock(2, theta_bar=1.0)):
        assert torch.equal(module(x), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BernoulliDropout(), "p, theta_bar: expected exactly one"),
        (lambda: BernoulliDropout(0.5, theta_bar=0.5), "p, theta_bar: expected exactly one"),
        (lambda: BernoulliDropout(1.0), "p: expected a probability"),
        (lambda: BernoulliDropout(-0.1), "p: expected a probability"),
        (lambda: BernoulliDropout(theta_bar=0.0), "theta_bar: expected a probability"),
        (lambda: DropBlock(0, 0.5), "block: expected at least one"),
        (lambda: DropBlock(4, 0.5)(torch.ones(2, 6)), "x: expected a multiple of 4 units, got 6"),
        (lambda: DropConnect(2, 2, p=0.5, side="both"), "side: expected 'in' or 'out'"),
        (lambda: theta_for_width(0.5, 0), "width: expected at least one"),
        (lambda: kappa(float("nan")), "p: expected a probability"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_they_say_what_they_are():
    assert repr(DropBlock(2, theta_bar=0.9)) == "DropBlock(block=2, theta_bar=0.9)"
    assert repr(DropConnect(3, 2, p=0.1)) == "DropConnect(in_features=3, out_features=2, side='out', p=0.1)"
