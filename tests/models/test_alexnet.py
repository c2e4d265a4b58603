"""The small AlexNet: eight weight layers, degree 8, images of any size from 8 x 8 on."""

import pytest
import torch

from theodolite.analysis.homogeneity import degree
from theodolite.models import AlexNet
from theodolite.nn.regularizers import ProductOfNorms


@pytest.mark.parametrize("size", [8, 14, 28])
def test_it_is_homogeneous_of_degree_eight(size):
    torch.manual_seed(0)
    net = AlexNet(3, size, 5, width=2)
    x = torch.randn(4, 3, size, size)
    assert net(x).shape == (4, 5)
    assert ProductOfNorms().degree(net) == 8
    found = degree(net, x)
    assert (found.kind, found.value) == ("exact", 8.0)


def test_the_signal_keeps_its_size():
    torch.manual_seed(0)
    outputs = AlexNet(1, 28, 10, width=8)(torch.rand(16, 1, 28, 28))
    assert 1e-3 < float(outputs.detach().std()) < 1e2


def test_what_it_refuses():
    for numbers in ((0, 8, 10), (1, 7, 10), (1, 8, 0)):
        with pytest.raises(ValueError, match="expected numbers >= 1 and a size >= 8"):
            AlexNet(*numbers)
