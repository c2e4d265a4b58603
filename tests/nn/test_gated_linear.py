"""Fixed gates in front of linear units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from theodolite.nn import GatedLinear


def test_units_are_linear_in_their_weights_and_switched_by_the_gates():
    torch.manual_seed(0)
    layer, x = GatedLinear(5, 4, bias=True), torch.randn(20, 5)
    gates = x @ layer.gates.T > 0
    assert 0 < int(gates.sum()) < gates.numel()
    torch.testing.assert_close(
        layer(x), torch.where(gates, x @ layer.linear.weight.T + layer.linear.bias, 0.0)
    )
    before = layer(x)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(-3.0)
    torch.testing.assert_close(layer(x), -3.0 * before)


def test_gates_are_saved_and_never_trained():
    layer, other = GatedLinear(5, 4, seed=1), GatedLinear(5, 4, seed=2)
    assert torch.equal(layer.gates, GatedLinear(5, 4, seed=1).gates)
    assert not torch.equal(layer.gates, other.gates)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.gates, other.gates)
    assert [name for name, _ in layer.named_parameters()] == ["linear.weight"]
    assert layer.half()(torch.ones(2, 5).half()).dtype == torch.float16


def test_gates_equal_to_the_weights_are_relu():
    layer, x = GatedLinear(5, 4), torch.randn(20, 5)
    layer = GatedLinear(5, 4, gates=torch.randn(4, 5))
    with torch.no_grad():
        layer.linear.weight.copy_(layer.gates)
    torch.testing.assert_close(layer(x), nn.functional.relu(layer.linear(x)))


@pytest.mark.parametrize("gates", [torch.zeros(5, 4), torch.full((4, 5), torch.nan)])
def test_bad_gates_are_refused(gates):
    with pytest.raises(ValueError, match=r"gates: expected finite numbers of shape \(4, 5\)"):
        GatedLinear(5, 4, gates=gates)
