"""``theodolite explain``: one theorem in words."""

from __future__ import annotations

import click

from theodolite.cli.program import Refusal, echo


@click.command("explain")
@click.argument("code")
def command(code: str) -> None:
    """Explain a theorem: statement, hypotheses, cost, source.

    CODE is one of those that `theodolite list` shows, such as GEN003.
    """
    from theodolite.auditing.explain import explanation
    from theodolite.auditing.run import unknown_code
    from theodolite.theorems import BY_CODE

    theorem = BY_CODE.get(code.upper())
    if theorem is None:
        raise Refusal(f"CODE: {unknown_code(code, list(BY_CODE))}")
    echo(explanation(theorem))
