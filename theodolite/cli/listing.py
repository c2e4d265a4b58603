"""``theodolite list``: the theorems by chapter."""

from __future__ import annotations

import click


@click.command("list")
def command() -> None:
    """List the theorems by chapter."""
    from theodolite.theorems import ALL

    for chapter in dict.fromkeys(theorem.chapter for theorem in ALL):
        click.echo(chapter)
        for theorem in (t for t in ALL if t.chapter == chapter):
            cost = "" if theorem.cost == "fast" else f" ({theorem.cost})"
            click.echo(f"  {theorem.code}  {theorem.title}{cost}")
