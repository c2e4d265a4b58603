"""Time and peak memory of whole audits.

``digits``
    the bundled network on 1,397 + 400 digits, no remedies;
``resnet18``
    an untrained ResNet-18-like network (11 million parameters) on 256 images 3x64x64.

The peer is one training epoch's worth of work on the same data (forward and backward
over every sample), so that the ratio says what an audit costs in epochs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import theodolite as td
from theodolite.theorems.subject import Subject

MINUTES_LIMIT, GIBIBYTES_LIMIT = 5.0, 4.0


def case(name: str) -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """Return a model and its data."""
    from fixtures import nets

    if name == "digits":
        import builders

        x, y = builders.digits()
        return nets.make_net(), {"train": (x[:1397], y[:1397]), "test": (x[1397:], y[1397:])}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, 64, 64, generator=generator)
    y = torch.randint(0, 10, (256,), generator=generator)
    return nets.resnet(), {"train": (x[:192], y[:192]), "test": (x[192:], y[192:])}


def epoch_seconds(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the seconds of one pass forward and backward over the data."""
    subject = Subject(model, x, y)
    start = time.perf_counter()
    for inputs, targets in subject.batches(size=64):
        F.cross_entropy(subject.model(inputs), targets).backward()
    return time.perf_counter() - start


def main() -> None:
    """Run one case and print one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=["digits", "resnet18"], default="digits")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("digits\nresnet18")
        return
    model, data = case(options.case)
    peer = epoch_seconds(model, *data["train"])
    start = time.perf_counter()
    report = td.audit(model, data, weight_decay=1e-4, remedies=False)
    ours = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for finding in report.findings:
        print(
            f"{finding.code} {finding.status:15s} {finding.seconds:7.2f} s  {finding.headline or finding.reason}"
        )
    failed = [finding.code for finding in report.findings if finding.status == "failed"]
    print(
        json.dumps(
            {
                "benchmark": "audit",
                "case": options.case,
                "ours": round(ours, 2),
                "peer": round(peer, 3),
                "ratio": round(peer / ours, 4),
                "error": len(failed),
                "unit": "s",
                "device": "cpu",
                "threads": torch.get_num_threads(),
                "peak_gibibytes": round(memory, 2),
                "within_limits": ours <= 60 * MINUTES_LIMIT and memory <= GIBIBYTES_LIMIT,
            }
        )
    )


if __name__ == "__main__":
    main()
