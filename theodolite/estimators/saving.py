"""Fitted estimators in one .npz file without pickles, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from theodolite.core.certificate import Certificate
from theodolite.core.solve import Round
from theodolite.estimators.completion_inputs import Ids
from theodolite.value import Value

FORMAT = 1


def write(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write a JSON header and arrays, replacing a file at once.

    Parameters
    ----------
    path : path
    header : mapping
        JSON-able.
    arrays : mapping from names to ndarrays
        None of objects.

    Raises
    ------
    TypeError
        If the header is not JSON-able.
    OSError
        If the file cannot be written; one that is there stays as it is.
    """
    target = Path(os.path.realpath(path))  # the file behind a link is replaced, not the link
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OSError(f"path: expected the name of a file, got {os.fspath(path)!r}, a device or a pipe")
    text = json.dumps({"format": FORMAT, **header}).encode()
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, header=np.frombuffer(text, dtype=np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the header and the arrays of a file that `write` wrote.

    Raises
    ------
    ValueError
        If it is no such file, or of another kind or format.
    """
    try:
        with open(path, "rb") as start:  # numpy would offer to unpickle anything else
            if start.read(2) != b"PK":
                raise BadZipFile("not a .npz file")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes().decode())
        found = header["kind"], header["format"]
    except (AttributeError, BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path: expected a saved {kind}, got {os.fspath(path)!r} ({error})") from error
    if found != (kind, FORMAT):
        raise ValueError(
            f"path: expected a saved {kind} of format {FORMAT}, got {found[0]} of format {found[1]} "
            f"in {os.fspath(path)!r}"
        )
    return header, arrays


def expect(
    arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], path: str | os.PathLike[str]
) -> NDArray[np.float64]:
    """Return an array of finite numbers of the shape expected, or refuse the file."""
    found = arrays.get(name)
    if found is None or found.dtype != np.float64 or found.shape != shape or not np.isfinite(found).all():
        got = "none" if found is None else f"{found.dtype} of shape {found.shape}"
        raise ValueError(
            f"path: expected finite float64 numbers of shape {shape} as {name!r} in {os.fspath(path)!r}, got {got}"
        )
    return found


def pack_ids(ids: Ids | None, name: str) -> Any:
    """Return ids as JSON, or refuse those that are neither strings nor numbers."""
    if ids is None:
        return None
    listed = ids.names.tolist()
    for one in listed:
        if type(one) not in (str, int, float, bool):
            raise TypeError(f"{name}: expected strings or numbers in order to save them, got {one!r}")
    return listed


def pack_certificate(certificate: Certificate, history: tuple[Round, ...]) -> dict[str, Any]:
    """Return a certificate and a log as JSON; the witness, parameters of another model, is left out."""
    fields = {name: value for name, value in vars(certificate).items() if name != "polar"}
    polar = replace(certificate.polar, witness=None).to_dict()
    return {"certificate": {**fields, "polar": polar}, "history": [asdict(r) for r in history]}


def unpack_certificate(header: Mapping[str, Any]) -> tuple[Certificate, tuple[Round, ...]]:
    """Return what `pack_certificate` packed."""
    fields = dict(header["certificate"])
    polar = Value.from_dict(fields.pop("polar"))
    return Certificate(**fields, polar=polar), tuple(Round(**line) for line in header["history"])
