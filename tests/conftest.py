"""What every test starts from: fixed seeds, a fixed number of threads, and a clean global state."""

import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

# One thread a process: the arrays are small, and the processes of a parallel run share the cores.
torch.set_num_threads(1)

# The same examples on every run, and no deadline: a slow machine is no failure.
hypothesis.settings.register_profile("theodolite", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("theodolite")


@pytest.fixture(autouse=True)
def clean_global_state() -> Iterator[None]:
    """Seed every global generator; fail a test that leaves PyTorch's global switches changed."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that scikit-learn falls back on
    torch.manual_seed(0)
    yield
    left = {"default dtype": torch.get_default_dtype(), "gradients enabled": torch.is_grad_enabled()}
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    assert left == {"default dtype": torch.float32, "gradients enabled": True}
