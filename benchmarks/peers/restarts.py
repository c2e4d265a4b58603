"""An optimizer that shares nothing with ours: Adam on the weights of many two-layer ReLU networks at once."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.network_data import Table


def best_of(
    table: Table, lam: float, *, restarts: int, width: int, steps: int, seed: int, device: str = "cpu"
) -> np.ndarray:
    """Return the objectives 1/(2n) squared errors + lam sum |w| |u| that random restarts end at, in float64.

    Weight decay is what is minimized, whose value is at least that; the sizes of the first weights are drawn from
    0.01 to 1 times the usual ones, and the step size falls to zero.
    """
    generator = torch.Generator().manual_seed(seed)
    X, y = (torch.as_tensor(array, dtype=torch.float64, device=device) for array in (table.X, table.y))
    d = X.shape[1]
    size = 10.0 ** (-2.0 * torch.rand(restarts, 1, 1, generator=generator, dtype=torch.float64))
    W = size * torch.randn(restarts, width, d, generator=generator, dtype=torch.float64) / d**0.5
    U = size[:, :, 0] * torch.randn(restarts, width, generator=generator, dtype=torch.float64)
    W, U = (p.to(device).requires_grad_() for p in (W, U))
    optimizer = torch.optim.Adam([W, U], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def errors() -> torch.Tensor:
        hidden = torch.relu(W @ X.T)
        return 0.5 * ((U[:, None] @ hidden)[:, 0] - y).square().mean(1)

    for _ in range(steps):
        optimizer.zero_grad()
        decay = 0.5 * lam * (W.square().sum((1, 2)) + U.square().sum(1))
        (errors() + decay).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        theta = (W.norm(dim=2) * U.abs()).sum(1)
        return (errors() + lam * theta).cpu().numpy()
