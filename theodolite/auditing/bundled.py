"""The network that ``theodolite audit`` trains and audits when none is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from theodolite.auditing.data import preserved_random_state
from theodolite.models import MLP

NAME = "digits-relu"
WIDTHS = (64, 128, 64, 10)
WEIGHT_DECAY = 1e-4
_ADAM_STEPS = 300
_LBFGS_STEPS = 400


def train(
    x: Tensor,
    y: Tensor,
    *,
    weight_decay: float = WEIGHT_DECAY,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Train a bias-free ReLU network on mean cross-entropy + weight_decay/2 * ||parameters||^2.

    Full-batch Adam comes near a minimum and L-BFGS in float64 goes on from there, to where the
    theorems on optimality have most to say.  The gradient does not vanish: at the minima of a
    ReLU network some units sit on their kinks.

    Parameters
    ----------
    x : Tensor, shape (n, 64)
        Images with pixels in [0, 1].
    y : Tensor, shape (n,)
        Classes.
    weight_decay : float
        Coefficient of the coupled decay on all parameters.
    seed : int
        Of the initial weights.
    device : str or torch.device
        Where to train.
    progress : function(done, total), optional
        Called once an iteration.

    Returns
    -------
    nn.Module
        Float32, in evaluation mode.
    """
    total = _ADAM_STEPS + _LBFGS_STEPS
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, total), total)

    with preserved_random_state():
        torch.manual_seed(seed)
        model = MLP(WIDTHS, bias=False).to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small gain little from more; one gives the same numbers everywhere
    try:
        _minimize(model, x.to(device), y.to(device), weight_decay, tick)
    finally:
        torch.set_num_threads(threads)
    return model.float().eval()


def _minimize(
    model: nn.Module, inputs: Tensor, classes: Tensor, weight_decay: float, tick: Callable[[], None]
) -> None:
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, _ADAM_STEPS)
    for _ in range(_ADAM_STEPS):
        adam.zero_grad()
        _objective(model, inputs, classes, weight_decay).backward()
        adam.step()
        schedule.step()
        tick()
    model.double()
    inputs = inputs.double()
    lbfgs = torch.optim.LBFGS(
        model.parameters(),
        max_iter=_LBFGS_STEPS,
        history_size=50,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        objective = _objective(model, inputs, classes, weight_decay)
        objective.backward()
        tick()
        return objective

    lbfgs.step(closure)
    lbfgs.zero_grad()


def _objective(model: nn.Module, x: Tensor, y: Tensor, weight_decay: float) -> Tensor:
    squares = sum((p.square().sum() for p in model.parameters()), start=torch.zeros((), device=x.device))
    return F.cross_entropy(model(x), y) + weight_decay / 2 * squares
