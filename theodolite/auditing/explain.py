"""A theorem explained in text, from its class attributes alone."""

from __future__ import annotations

import inspect

from theodolite.auditing import references, tex
from theodolite.auditing.text import WIDTH, wrap
from theodolite.theorems.base import Theorem

COSTS = {
    "fast": "fast",
    "slow": "slow (leave it out with --skip)",
    "training": "trains networks (runs only when asked for with --only)",
}
CHANGES = {
    "rescaling": "rescaling hidden units",
    "permutation": "permuting hidden units",
    "dead units": "adding units that feed nothing",
}


def explanation(theorem: type[Theorem]) -> str:
    """Return what a theorem says, needs and costs, at most 80 columns wide.

    Parameters
    ----------
    theorem : class of a Theorem

    Returns
    -------
    str
    """
    lines = [f"{theorem.code}  {theorem.title}  ({theorem.chapter})", ""]
    doc = (inspect.getdoc(theorem) or "").split("\n\n")[0]
    lines += [*wrap(" ".join(doc.split()), WIDTH), "", "STATEMENT"]
    lines += _indented(tex.to_text(theorem.statement))
    lines += ["", "NEEDS" if theorem.hypotheses else "NEEDS nothing"]
    for hypothesis in theorem.hypotheses:
        how = "checked" if hypothesis.check is not None else "your word"
        about = "; false means refuted" if hypothesis.about else ""
        lines += _indented(f"- {hypothesis.statement} ({how}{about})", 2)
    lines += ["", f"COST   {COSTS[theorem.cost]}"]
    if theorem.invariant:
        changes = ", ".join(words for change, words in CHANGES.items() if change in theorem.invariant)
        lines += wrap(f"SAME   after {changes}", WIDTH, 7)
    lines += ["", "SOURCE"]
    for reference in references.resolve(theorem.reference):
        lines += _indented(" ".join(filter(None, (reference.text, reference.url))))
    return "\n".join(line.rstrip() for line in lines)


def _indented(text: str, hanging: int = 0) -> list[str]:
    return ["  " + line for line in wrap(text, WIDTH - 2, hanging)]
