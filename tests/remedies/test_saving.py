"""Models in files: read back with weights_only=True, whole or not there at all."""

import os
from pathlib import Path

import pytest
import torch
from builders import conv_net, mlp
from torch import nn

from theodolite.remedies.saving import save_model
from theodolite.theorems.subject import InputError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


class WithState(nn.Linear):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state) -> None:
        self.version = state["version"]


@pytest.mark.parametrize(
    "make",
    [
        mlp,
        lambda: mlp().bfloat16(),
        lambda: mlp().double(),
        lambda: conv_net(),
        Tied,
        lambda: WithState(4, 4),
    ],
    ids=["mlp", "bfloat16", "double", "conv", "tied", "extra state"],
)
def test_weights_come_back(make, tmp_path):
    model, fresh = make(), make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    save_model(model, tmp_path / "a.pt")
    fresh.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    for (name, old), (_, new) in zip(model.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert old == new if not isinstance(old, torch.Tensor) else torch.equal(old, new), name


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_program_takes_any_batch_and_needs_no_code(n, tmp_path):
    model = Tied().eval()
    save_model(model, str(tmp_path / "a.pt2"), torch.randn(2, 4))
    program = torch.export.load(tmp_path / "a.pt2").module()
    x = torch.randn(n, 4)
    assert torch.allclose(program(x), model(x), atol=1e-6)


@pytest.mark.parametrize("name", ["a.pth", "a", "a.PT", ".pt"])
def test_other_suffixes_are_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"^save: expected a file name that ends in \.pt or \.pt2, got "):
        save_model(mlp(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_program_needs_an_example(tmp_path):
    with pytest.raises(InputError, match="expected an example input"):
        save_model(mlp(), tmp_path / "a.pt2")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^save: cannot write '.*': No such file or directory"):
        save_model(mlp(), tmp_path / "missing" / "a.pt")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_in_the_middle_leaves_the_old_file(error, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")
    real = Path.write_bytes

    def half(self, content):
        real(self, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        save_model(mlp(), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pt"]
