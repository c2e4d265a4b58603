"""Saved models with what a resumed fit must know of their data."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from theodolite.auditing.files import check_readable, write_atomically
from theodolite.cli.program import Refusal
from theodolite.estimators import MatrixCompletion
from theodolite.estimators.completion_model import CompletionModel
from theodolite.theorems.subject import InputError

_ENTRY = "cli"
_OPTIONS = "alpha tol max_rank budget bias bias_alpha loss delta duplicates".split()
_ARGUMENTS = {"X": "RATINGS", "init": "--resume", "cv": "--folds"} | {
    name: f"--{name.replace('_', '-')}" for name in _OPTIONS
}


def save(model: CompletionModel, path: str | Path, about: dict[str, Any]) -> None:
    """Write a model, whole or not at all; ``MatrixCompletion.load`` reads it, too.

    Parameters
    ----------
    model : MatrixCompletion or MatrixCompletionCV
        Fitted.
    path : str or Path
    about : dict
        JSON-able; what `load` returns beside the model.

    Raises
    ------
    InputError
        If it cannot be written.
    """

    def write(temporary: Path) -> None:
        model.save(temporary)
        text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        with zipfile.ZipFile(temporary, "a") as archive, archive.open(f"{_ENTRY}.npy", "w") as file:
            np.lib.format.write_array(file, text)

    write_atomically(path, write)


def load(path: str | Path, argument: str) -> tuple[MatrixCompletion, dict[str, Any]]:
    """Return a saved model and what was saved with it, {} if it was not saved by `save`.

    Raises
    ------
    InputError
        If it cannot be read: one sentence that names the argument.
    """
    check_readable(Path(path), argument)
    try:
        model = MatrixCompletion.load(path)
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file[_ENTRY].tobytes()) if _ENTRY in file.files else {}
        if not isinstance(about, dict):
            raise ValueError(f"path: expected a model that theodolite fit wrote, got {str(path)!r}")
    except OSError as error:
        raise InputError(f"{argument}: {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{argument}: expected a model that theodolite fit wrote, got {str(path)!r}"
        ) from error
    except ValueError as error:
        raise InputError(f"{argument}: {str(error).removeprefix('path: ')}") from error
    return model, about


@contextmanager
def arguments_of_the_command() -> Iterator[None]:
    """Turn what the estimator says of its arguments into a refusal that names ours; nothing else."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        found = re.match(r"(\w+)(\[.*?\])?: expected", text)
        if found is None or found[1] not in _ARGUMENTS:
            raise
        text = text.replace("duplicates='mean' or 'last' accepts", "--duplicates mean or last accepts")
        raise Refusal(f"{_ARGUMENTS[found[1]]}{text[len(found[1]) :]}") from error
