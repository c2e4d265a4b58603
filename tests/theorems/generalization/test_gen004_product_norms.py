"""GEN004: products of layer norms and stable ranks, against dense matrices."""

from __future__ import annotations

import math

import builders
import numpy as np
import pytest
import torch
from fixtures import nets
from torch import nn

from theodolite.reference import convolution
from theodolite.testing import check_theorem
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.generalization.product_norms import ProductNorms
from theodolite.theorems.subject import Subject


def finding(model: nn.Module, *shape: int) -> Finding:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *shape, generator=generator)
    with torch.no_grad():
        outputs = model.double().eval()(x.double()).shape[1]
    result = evaluate(ProductNorms(), Subject(model, x, torch.zeros(3, outputs)))
    assert result.status != "failed", result.traceback
    return result


def two_layers() -> nn.Module:
    model = builders.mlp(2, 2, 2).double()
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.diag(torch.tensor([2.0, 1.0])))
        model.layers[2].weight.copy_(torch.diag(torch.tensor([3.0, 4.0])))
    return model


def test_known_answer():
    result = finding(two_layers(), 2)
    assert result.status == "certified"
    v = result.values
    assert v["product_operator_norm"].kind == "bound"
    assert v["product_operator_norm"].lower == pytest.approx(8.0, rel=1e-9)
    assert v["product_operator_norm"].upper == pytest.approx(8.0, rel=1e-9)
    assert v["product_operator_norm"].lower <= 8.0 <= v["product_operator_norm"].upper
    assert v["product_frobenius"].value == pytest.approx(math.sqrt(5.0) * 5.0, rel=1e-12)
    assert v["product_1_inf"].value == pytest.approx(8.0, rel=1e-12)
    assert v["stable_rank[layers.0]"].lower == pytest.approx(5 / 4, rel=1e-9)
    assert v["stable_rank[layers.2]"].upper == pytest.approx(25 / 16, rel=1e-9)
    check_theorem(
        ProductNorms,
        lambda: Subject(two_layers(), torch.eye(2), torch.eye(2)),
        truth={"product_operator_norm": 8.0, "stable_rank[layers.0]": 1.25, "stable_rank[layers.2]": 1.5625},
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_chains_against_dense_matrices(seed):
    rng = np.random.default_rng(seed)
    widths = [int(w) for w in rng.integers(1, 9, size=4)]
    model = builders.mlp(*widths, bias=bool(seed % 2), seed=seed).double()
    matrices = [m.weight.detach().numpy() for m in model.modules() if isinstance(m, nn.Linear)]
    v = finding(model, widths[0]).values
    norm = math.prod(np.linalg.norm(w, 2) for w in matrices)
    assert v["product_operator_norm"].lower <= norm * (1 + 1e-12)
    assert norm <= v["product_operator_norm"].upper * (1 + 1e-12)
    assert v["product_operator_norm"].upper == pytest.approx(norm, rel=1e-7)
    assert v["product_frobenius"].value == pytest.approx(
        math.prod(np.linalg.norm(w) for w in matrices), rel=1e-12
    )
    assert v["product_1_inf"].value == pytest.approx(
        math.prod(np.abs(w).sum(1).max() for w in matrices), rel=1e-12
    )
    for name, w in zip(("layers.0", "layers.2", "layers.4"), matrices, strict=True):
        rank = v[f"stable_rank[{name}]"]
        truth = (np.linalg.norm(w) / np.linalg.norm(w, 2)) ** 2
        assert 1.0 <= rank.lower <= truth * (1 + 1e-9)
        assert truth * (1 - 1e-9) <= rank.upper


def test_convolutions_are_operators_on_their_input_size():
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[-1.0, 2.0, -1.0]]]))
    v = finding(nn.Sequential(conv, nn.Flatten()), 1, 5).values
    product = v["product_operator_norm"]
    # 2 + sqrt(3); the kernel alone has norm sqrt(6), and the symbol at size 5 is below the truth
    assert product.lower <= 2 + math.sqrt(3) <= product.upper
    assert product.upper == pytest.approx(2 + math.sqrt(3), rel=1e-8)
    assert v["product_frobenius"].value == pytest.approx(math.sqrt(6.0))
    squared = 5 * 4.0 + 8 * 1.0
    assert v["stable_rank[0]"].upper == pytest.approx(squared / (2 + math.sqrt(3)) ** 2, rel=1e-7)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 2), (1, 2, 2, 1)]
)
def test_random_convolutions_against_their_matrix(stride, padding, dilation, groups):
    torch.manual_seed(stride + padding)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    conv = nn.Conv2d(2, 4, 3, bias=False, **options).double()
    two = {key: (value, value) for key, value in options.items() if key != "groups"}
    matrix = convolution.matrix(conv.weight.detach().numpy(), (5, 6), groups=groups, **two)
    v = finding(nn.Sequential(conv, nn.Flatten()), 2, 5, 6).values
    norm = float(np.linalg.norm(matrix, 2))
    assert (
        v["product_operator_norm"].lower * (1 - 1e-12)
        <= norm
        <= v["product_operator_norm"].upper * (1 + 1e-12)
    )
    truth = (np.linalg.norm(matrix) / norm) ** 2
    assert v["stable_rank[0]"].lower * (1 - 1e-9) <= truth <= v["stable_rank[0]"].upper * (1 + 1e-9)


def test_batch_normalization_is_folded_into_the_layer_before_it():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(2, 3), norm, nn.ReLU(), nn.Linear(3, 2)).double().eval()
    with torch.no_grad():
        norm.weight.normal_()
        norm.running_var.uniform_(0.1, 4.0)
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    first = (scale[:, None] * model[0].weight).detach()
    v = finding(model, 2).values
    truth = float(torch.linalg.matrix_norm(first, 2) * torch.linalg.matrix_norm(model[3].weight.detach(), 2))
    assert v["product_operator_norm"].upper == pytest.approx(truth, rel=1e-7)
    assert v["product_frobenius"].value == pytest.approx(
        float(first.norm() * model[3].weight.detach().norm()), rel=1e-12
    )
    assert "1 batch normalization folded in" in v["product_operator_norm"].note


def test_rescaling_by_hand():
    other = two_layers()
    with torch.no_grad():
        other.layers[0].weight[1] *= 10.0
        other.layers[2].weight[:, 1] /= 10.0
    v = finding(other, 2).values  # diag(2, 10), diag(3, 0.4)
    assert v["product_operator_norm"].upper == pytest.approx(30.0, rel=1e-9)


def test_zero_weights_have_no_stable_rank():
    model = two_layers()
    nn.init.zeros_(model.layers[0].weight)
    v = finding(model, 2).values
    assert v["product_operator_norm"].upper == 0.0
    assert v["product_frobenius"].value == 0.0
    assert "stable_rank[layers.0]" not in v


def test_tied_weights_count_at_each_use_and_left_out_ones_are_named():
    v = finding(nets.Tied(), 64).values
    assert {name for name in v if "stable_rank" in name} == {
        "stable_rank[shared]",
        "stable_rank[shared#2]",
        "stable_rank[head]",
    }
    note = evaluate(ProductNorms(), builders.subject(nets.attention_net)).values["product_operator_norm"].note
    assert "weight layers" in note


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (builders.bare_subject, "the graph multiplies the data by 0 weight matrices or kernels"),
        (lambda: builders.subject(nets.branching_net), "needs the computation graph"),
    ],
)
def test_where_there_are_no_layers_to_see(build, reason):
    result = evaluate(ProductNorms(), build())
    assert result.status == "not applicable"
    assert result.reason.startswith(reason)
