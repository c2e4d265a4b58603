"""Read docstrings as their authors meant them, and hold them to numpydoc's rules."""

from __future__ import annotations

from pydoc import locate
from types import GenericAlias
from typing import TYPE_CHECKING, Any

from numpydoc.validate import validate
from pages import bars
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_LOG = logging.getLogger(__name__)

# Sections that exist, in numpydoc's order; parameters that exist; types spelled as in Python; a summary.
# Where names and one sentence say it all, no parameter needs an entry.
RULES = frozenset({"GL01", "GL06", "GL07", "GL08", "PR02", "PR05", "SS01"})
KINDS = frozenset({"class", "exception", "function", "method", "property"})


def setup(app: Sphinx) -> dict[str, Any]:
    """Look at each docstring before numpydoc turns it into reStructuredText."""
    app.connect("autodoc-process-docstring", _read, priority=100)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _find)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    if (
        what in KINDS
        and lines
        and (getattr(thing, "__module__", None) or "theodolite").startswith("theodolite")
    ):
        for code, message in validate(name)["errors"]:
            if code in RULES:
                _LOG.warning("%s: %s %s", name, code, message)
    lines[:] = bars(lines)


def _skip(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out aliases such as Params, which have no signature, and scikit-learn's `set_fit_request` and its like."""
    routing = name.rpartition(".")[2]
    foreign = routing.startswith("set_") and routing.endswith("_request")
    return True if foreign or isinstance(thing, GenericAlias) else None


def _find(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Resolve a name as a reader of the code would: `Atom.polar`, or the public name of what a module defines."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not (
        "." in target or target[:1].isupper() or node["reftype"] != "obj"
    ):
        return None  # `x` alone is a parameter
    objects = env.get_domain("py").objects
    found = [name for name in objects if name.endswith(f".{target}")]
    module = node.get("py:module")
    # what a module imports, or a class inherits, is at home in another
    for name in (target, f"{module}.{target}", f"{module}.{node.get('py:class')}.{target}"):
        thing = locate(name) if name.startswith("theodolite.") else None
        if hasattr(thing, "__qualname__"):
            found = [f"{thing.__module__}.{thing.__qualname__}"]
    if len(found) != 1 or found[0] not in objects:
        return None
    entry = objects[found[0]]
    return make_refnode(app.builder, node.get("refdoc"), entry.docname, entry.node_id, content, found[0])
