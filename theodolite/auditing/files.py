"""Files: inputs found or refused, outputs checked before the work and never left half-written."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from theodolite.theorems.subject import InputError


def check_readable(path: Path, argument: str) -> None:
    """Refuse a path at which there is no file.

    Raises
    ------
    InputError
        One sentence that names the argument and the path.
    """
    try:
        mode = _status(path)
    except OSError as error:
        raise InputError(f"{argument}: {path}: {error.strerror or error}") from error
    if not mode or stat.S_ISDIR(mode):
        raise InputError(f"{argument}: {path}: {'is a folder' if mode else 'there is no such file'}")


def check_writable(path: str | Path, option: str) -> None:
    """Refuse a path at which no file can be written.

    Raises
    ------
    InputError
        One sentence that names the option and the path.
    """
    path = Path(path)
    try:
        if stat.S_ISDIR(_status(path)):
            raise InputError(f"{option}: {path} is a folder, expected the name of a file")
        if _is_special(path):
            return
        folder = _target(path).parent
        if not stat.S_ISDIR(_status(folder)):
            raise InputError(f"{option}: cannot write {path}: there is no folder {folder}")
        handle, name = tempfile.mkstemp(dir=folder, prefix=".theodolite-")
    except OSError as error:
        raise InputError(f"{option}: cannot write {path}: {error.strerror or error}") from error
    os.close(handle)
    os.unlink(name)


def write_atomically(path: str | Path, content: str | Callable[[Path], None]) -> None:
    """Write a file so that at every moment the old or the new one is there, never a part.

    Parameters
    ----------
    path : str or Path
        Where the file shall be.
    content : str or function(path)
        Text, or a function that writes the file at the temporary path that it is given.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    path = Path(path)
    target = _target(path)
    temporary: Path | None = None
    try:
        special = _is_special(path)  # a pipe or a device: renaming onto it would put a file in its place
        if special and isinstance(content, str):
            path.write_text(content, encoding="utf-8")
            return
        folder = None if special else target.parent
        handle, name = tempfile.mkstemp(dir=folder, prefix=".theodolite-", suffix=target.suffix)
        os.close(handle)
        temporary = Path(name)
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            content(temporary)
        if special:
            with open(temporary, "rb") as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        temporary.chmod(_mode(target))
        temporary.replace(target)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Follow links, so that the file behind a link is replaced and not the link."""
    return Path(os.path.realpath(path))


def _status(path: Path) -> int:
    """Return the mode of what is at a path, 0 if nothing is; OSError if the name itself cannot be."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _is_special(path: Path) -> bool:
    mode = _status(path)
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _mode(target: Path) -> int:
    """Return the mode of the file that is replaced, or that of a new file."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
