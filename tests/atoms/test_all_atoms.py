"""Forgetting to announce a family fails here."""

from __future__ import annotations

import importlib
import pkgutil

from theodolite import atoms
from theodolite.core.atom import Atom


def test_every_family_is_announced():
    modules = [
        importlib.import_module(f"theodolite.atoms.{m.name}") for m in pkgutil.iter_modules(atoms.__path__)
    ]
    found = {
        thing
        for module in modules
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", "") == module.__name__
        and isinstance(thing, type)
        and issubclass(thing, Atom)
    }
    assert found == set(atoms.ALL)
    assert set(atoms.__all__) == {"ALL", *(atom.__name__ for atom in atoms.ALL)}
    assert len(atoms.ALL) == len(set(atoms.ALL))
