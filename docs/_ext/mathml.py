"""Write formulas as MathML, with the same code as the HTML report: browsers show it without any script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util import logging

from theodolite.auditing.tex import UnknownTeXError, to_mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_LOG = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the writer under the name that ``html_math_renderer`` asks for."""
    app.add_html_math_renderer(
        "theodolite", inline_renderers=(_inline, None), block_renderers=(_display, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _formula(node: nodes.Element, display: bool) -> str:
    source = node.astext()
    try:
        return to_mathml(source, display)
    except UnknownTeXError as error:  # a warning, hence an error: no page shows raw TeX
        _LOG.warning("formula not covered (%s): %s", error, source, location=node)
        return f"<code>{nodes.unescape(source)}</code>"


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(f'<span class="math">{_formula(node, False)}</span>')
    raise nodes.SkipNode


def _display(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math", role="math"))
    if node["number"]:
        number = f"{node['number']}"
        writer.body.append(f'<span class="eqno">({number})</span>')
    writer.body.append(f"{_formula(node, True)}</div>")
    raise nodes.SkipNode
