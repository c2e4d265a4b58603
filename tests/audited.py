"""An audit that checks that nothing of the caller's is changed."""

import importlib.util
import random
from pathlib import Path

import numpy as np
import torch
from builders import digits_pairs
from torch import nn

import theodolite as td


def _load_nets():
    path = Path(__file__).parent / "fixtures" / "nets.py"
    spec = importlib.util.spec_from_file_location("nets_of_the_audit_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nets = _load_nets()


def fingerprint(model: nn.Module) -> dict:
    """Everything of a model, and of the process, that an audit must leave alone."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hooks = {
        (name, kind): len(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in vars(nn.Module())
        if kind.endswith("_hooks")
    }
    return {
        "tensors": {name: (t.dtype, t.data_ptr(), t._version, t.requires_grad) for name, t in tensors.items()},
        "bytes": {name: t.detach().flatten().view(torch.uint8).tolist()[:4096] for name, t in tensors.items()},
        "grads": {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": hooks,
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "switches": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cwd": Path.cwd(),
    }  # fmt: skip


def audit(model, data=None, **options):
    """Audit on few digits, checking that neither the model nor the data nor the process is changed."""
    data = digits_pairs(60, 30) if data is None else data
    tensors = [t for pair in data.values() for t in pair] if isinstance(data, dict) else []
    copies = [t.clone() for t in tensors]
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.grad = torch.full_like(parameter, 0.5)
        before = fingerprint(model)
    try:
        return td.audit(model, data, **options)
    finally:
        if isinstance(model, nn.Module):
            after = fingerprint(model)
            for key, old in before.items():
                assert after[key] == old, f"{key} changed"
            model.zero_grad()
        for tensor, copy in zip(tensors, copies, strict=True):
            assert torch.equal(tensor, copy)
