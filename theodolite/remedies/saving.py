"""Writing a model to a file, whole or not at all."""

from __future__ import annotations

import io
import os
import warnings
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from theodolite.theorems.subject import InputError


def save_model(model: nn.Module, path: str | PathLike[str], example: Tensor | None = None) -> None:
    """Write a model's weights (".pt") or its whole program (".pt2").

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    path : path
        ".pt" takes the state_dict, which ``torch.load(path, weights_only=True)`` reads back;
        ".pt2" a program of ``torch.export``, which needs no code of the model.
    example : Tensor, shape (2, ...), optional
        An input, for ".pt2".

    Raises
    ------
    InputError
        If the suffix is another one, the file cannot be written or the model not exported.
    """
    path = Path(path)
    if path.suffix == ".pt":
        content = _weights(model)
    elif path.suffix == ".pt2":
        content = _program(model, example)
    else:
        raise InputError(f"save: expected a file name that ends in .pt or .pt2, got '{path}'")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"save: cannot write '{path}': {error.strerror or error}") from error


def _weights(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    # an entry need not be a tensor: a module may have an extra state of its own
    state = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in model.state_dict().items()}
    torch.save(state, buffer)
    return buffer.getvalue()


def _program(model: nn.Module, example: Tensor | None) -> bytes:
    if example is None:
        raise InputError("save: expected an example input for a .pt2 file; save the weights as .pt")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        try:
            batch = ({0: torch.export.Dim.AUTO},)
            program = torch.export.export(model, (example,), strict=False, dynamic_shapes=batch)
        except (
            Exception
        ) as error:  # whatever a stranger's forward raises under tracing; its words are the cause
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
            raise InputError(
                f"save: the model cannot be exported to .pt2 ({reason}); save it as .pt"
            ) from error
        torch.export.save(program, buffer)
    return buffer.getvalue()
