"""Models from Python files and packages: ``path.py:attr``, ``path.py:factory()``, ``pkg.mod:attr``.

Loading a Python file runs it.  While the model is in use, the file's folder (or the working
folder, for a package) stays on ``sys.path`` and the modules of that folder stay in
``sys.modules``, as they would for a script; afterwards both are as they were.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from theodolite.auditing.files import check_readable
from theodolite.theorems.subject import InputError

ACCEPTED = "path.py:attr, path.py:factory(), pkg.mod:attr or pkg.mod:factory()"
_OTHER_FORMATS = (
    ".pt2",
    ".pt",
    ".pth",
    ".ts",
    ".jit",
    ".onnx",
    ".safetensors",
    ".bin",
    ".ckpt",
    ".h5",
    ".keras",
)
_ATTRIBUTE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(\(\))?")
_PACKAGE = "theodolite_loaded_files"
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@contextmanager
def open_model(spec: str) -> Iterator[nn.Module]:
    """Load a model and keep what it was loaded from importable until the block ends.

    Parameters
    ----------
    spec : str
        ``path.py:attr``, ``path.py:factory()``, ``pkg.mod:attr`` or ``pkg.mod:factory()``;
        an attribute may have dots.

    Yields
    ------
    nn.Module

    Raises
    ------
    InputError
        One sentence that names the file, line, module or attribute.
    """
    source, attribute = _split(spec)
    path, modules = list(sys.path), dict(sys.modules)
    folders: list[Path] = []
    try:
        open_source = _run_file if source.endswith(".py") else _import_module
        module = open_source(source, folders)
        yield _model(module, source, attribute)
    finally:
        sys.path[:] = path
        for name in [n for n, m in sys.modules.items() if n not in modules and _within(m, folders)]:
            del sys.modules[name]


def _split(spec: str) -> tuple[str, str]:
    source, colon, attribute = spec.rpartition(":")
    if spec.startswith(("hf:", "timm:")) or (source or spec).lower().endswith(_OTHER_FORMATS):
        raise InputError(f"MODEL: {spec!r} is of a kind that cannot be loaded; expected {ACCEPTED}")
    if not colon or not source or not attribute:
        hint = ""
        if spec.endswith(".py"):
            hint = f"; say which of its names is the model, as in {spec}:model"
        raise InputError(f"MODEL: expected {ACCEPTED}, got {spec!r}{hint}")
    if not _ATTRIBUTE.fullmatch(attribute):
        raise InputError(
            f"MODEL: expected a name, or a factory that takes no arguments as in {source}:factory(), "
            f"after the colon, got {attribute!r}"
        )
    return source, attribute


def _run_file(name: str, folders: list[Path]) -> types.ModuleType:
    path = Path(name)
    check_readable(path, "MODEL")
    path = path.resolve()
    folder = path.parent
    folders.append(folder)
    sys.path.insert(0, str(folder))
    if (folder / "__init__.py").is_file():  # part of a package: its relative imports start at the root
        while (folder / "__init__.py").is_file():
            folder = folder.parent
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        found = importlib.util.find_spec(name.split(".")[0])
        if found is None or str(folder) in {
            str(Path(p).parent) for p in found.submodule_search_locations or ()
        }:
            folders.append(folder / name.split(".")[0])
            sys.path.insert(0, str(folder))
            return _execute(lambda: importlib.import_module(name), path)
    package = types.ModuleType(_PACKAGE)  # lets `from .sibling import x` work in a plain folder
    package.__path__ = [str(path.parent)]
    sys.modules[_PACKAGE] = package
    name = f"{_PACKAGE}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    _execute(lambda: loader.exec_module(module), path)
    return module


def _import_module(name: str, folders: list[Path]) -> types.ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"MODEL: expected {ACCEPTED}, got {name!r} before the colon")
    folders.append(Path.cwd())
    sys.path.insert(0, str(Path.cwd()))
    try:
        parent, _, _ = name.rpartition(".")
        if parent:
            _execute(lambda: importlib.import_module(parent), None)
        found = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError) as error:
        raise InputError(f"MODEL: there is no module {name!r} ({error})") from error
    if found is None:
        hint = (
            f"; for a file write {name.replace('.', '/')}.py"
            if Path(name.replace(".", "/") + ".py").is_file()
            else ""
        )
        raise InputError(
            f"MODEL: there is no module {name!r} in this environment or the working folder{hint}"
        )
    origin = Path(found.origin) if found.origin and found.origin not in ("built-in", "frozen") else None
    module: types.ModuleType = _execute(lambda: importlib.import_module(name), origin)
    return module


def _execute(run: Any, path: Path | None) -> Any:
    """Run a stranger's code; what it raises becomes one sentence with the true cause and line."""
    try:
        return run()
    except SyntaxError as error:
        where = _short(error.filename, path) + (f", line {error.lineno}:" if error.lineno else "")
        raise InputError(f"MODEL: {where} is not valid Python ({error.msg})") from error
    except SystemExit as error:
        raise InputError(
            f"MODEL: {_place(error, path)} ended the program (SystemExit) when it was loaded"
        ) from error
    except ModuleNotFoundError as error:
        if path is None:
            raise
        raise InputError(f"MODEL: {_place(error, path)} {_words(error)}") from error
    except Exception as error:  # a stranger's file; its own words are the true cause
        raise InputError(f"MODEL: {_place(error, path)} {_words(error)}") from error


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"raised {type(error).__name__}: {lines[0]}" if lines else f"raised {type(error).__name__}"


def _place(error: BaseException, path: Path | None) -> str:
    """Return "nets.py, line 3," for the deepest frame in the user's own files."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path is not None and Path(f.filename).parent == path.parent]
    if own:
        return f"{_short(own[-1].filename, path)}, line {own[-1].lineno},"
    return _short(None, path)


def _short(filename: str | None, path: Path | None) -> str:
    if filename:
        return Path(filename).name
    return "the module" if path is None else path.name


def _model(module: types.ModuleType, source: str, attribute: str) -> nn.Module:
    call = attribute.endswith("()")
    names = attribute.removesuffix("()").split(".")
    found: Any = module
    for depth, name in enumerate(names):
        if not hasattr(found, name):
            raise InputError(f"MODEL: {_missing(found, source, names[:depth], name)}")
        found = getattr(found, name)
    label = f"{source}:{attribute}"
    if call:
        if not callable(found):
            raise InputError(
                f"MODEL: {label}: {names[-1]} is {_a(type(found).__name__)}, which cannot be called"
            )
        file = getattr(module, "__file__", None)
        if isinstance(found, nn.Module):
            raise InputError(f"MODEL: {label}: {names[-1]} is the module itself; leave out the parentheses")
        found = _execute(found, Path(file) if file else None)
        if not isinstance(found, nn.Module):
            raise InputError(
                f"MODEL: {label}: expected it to return a torch.nn.Module, got {_a(type(found).__name__)}"
            )
        return found
    if isinstance(found, nn.Module):
        return found
    if isinstance(found, type) and issubclass(found, nn.Module):
        raise InputError(
            f"MODEL: {label} is a class; write {label}() to make a network, if it takes no arguments"
        )
    if callable(found):
        raise InputError(f"MODEL: {label} is a function; write {label}() to call it")
    what = _a(type(found).__name__)
    if isinstance(found, dict):
        what = "a dict, weights without a network, it seems"
    raise InputError(f"MODEL: {label}: expected a torch.nn.Module, got {what}")


def _a(noun: str) -> str:
    """Return the noun with its article; None stands alone."""
    if noun == "NoneType":
        return "None"
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"


def _missing(holder: Any, source: str, parents: list[str], name: str) -> str:
    where = ":".join([source, ".".join(parents)]) if parents else source
    public = [n for n in vars(holder) if not n.startswith("_")] if hasattr(holder, "__dict__") else []
    models = [n for n in public if isinstance(getattr(holder, n, None), nn.Module)]
    near = difflib.get_close_matches(name, public, n=3) or models[:5]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{where} has no attribute {name!r}{hint}"


def _within(module: types.ModuleType | None, folders: list[Path]) -> bool:
    """Return whether a module was loaded from one of the folders (and not from an environment inside it)."""
    name = getattr(module, "__name__", "")
    if name.split(".")[0] in (_PACKAGE, "theodolite"):
        return name.startswith(_PACKAGE)
    places = [getattr(module, "__file__", None) or "", *map(str, getattr(module, "__path__", ()) or ())]
    for place in filter(None, places):
        path = Path(place)
        if "site-packages" in path.parts or path.is_relative_to(_STANDARD_LIBRARY):
            continue
        if any(path.is_relative_to(folder) for folder in folders):
            return True
    return False
