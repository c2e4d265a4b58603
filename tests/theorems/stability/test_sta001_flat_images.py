"""STA001 on images that are given flat: the same numbers as for the images themselves."""

import pytest
import torch
from builders import digits, mlp
from torch import nn

from theodolite.testing import same_values
from theodolite.theorems.base import Finding, evaluate
from theodolite.theorems.stability.translation import TranslationEquivariance
from theodolite.theorems.subject import InputError, Subject


def finding(model: nn.Module, x: torch.Tensor, **options) -> Finding:
    return evaluate(TranslationEquivariance(), Subject(model, x, torch.arange(len(x)) % 3, **options))


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 4, 2), (4, 6)])
def test_flat_images_give_what_images_give(shape):
    x = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    model = mlp(24, 8, 3)
    flat = finding(model, x, image_shape=shape)
    images = finding(
        nn.Sequential(nn.Flatten(), model),
        x.view(-1, *shape[-3:]) if len(shape) == 3 else x.view(-1, 1, *shape),
    )
    assert flat.status == images.status == "certified"
    for name in ("worst_layer_defect", "largest_defect", "invariance_defect", "predictions_kept"):
        assert flat.values[name].value == pytest.approx(images.values[name].value, rel=1e-9), name


def test_a_model_of_the_mean_is_proved_invariant():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(1, 3)

        def forward(self, x):
            return self.last(x.view(-1, 4, 6).mean((1, 2)).unsqueeze(1))

    x = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    found = finding(Mean(), x, image_shape=(4, 6))
    assert found.values["invariance_defect"].value < 1e-12
    assert found.values["proved_layers"].witness is None


def test_without_the_shape_there_is_no_translation():
    x, _ = digits()
    silent = finding(mlp(64, 8, 3), x[:50])
    assert silent.status == "not applicable"
    assert "image_shape" in silent.reason


def test_the_seed_decides():
    x, _ = digits()
    one, two = (finding(mlp(64, 8, 3), x[:300], image_shape=(8, 8), seed=1) for _ in range(2))
    assert same_values(one, two, 0.0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((8, 9), "expected flat inputs of 72 entries for 8x9, got inputs of shape (64,)"),
        ((64,), "expected (channels, height, width)"),
        ((1, 8, -8), "expected (channels, height, width)"),
        ("8x8", "expected (channels, height, width)"),
    ],
)
def test_a_wrong_shape_is_one_sentence(shape, words):
    x, _ = digits()
    with pytest.raises(InputError) as error:
        finding(mlp(64, 8, 3), x[:20], image_shape=shape)
    assert str(error.value).startswith("image_shape: ")
    assert words in str(error.value)
