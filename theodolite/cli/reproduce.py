"""``theodolite reproduce``: make a figure of the field again and assert what it claims."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from theodolite.cli.program import Refusal, echo, refusals

if TYPE_CHECKING:
    from theodolite.experiments import Experiment, Result

WIDTH = 80


@click.command("reproduce")
@click.argument("name", required=False)
@click.option("--fast", is_flag=True, help="Smaller sizes, a few seconds; the claims stay the same.")
@click.option("--out", metavar="DIR", default=".", help="Existing folder for NAME.json and NAME.png (here).")
@click.pass_context
def command(ctx: click.Context, name: str | None, **options: Any) -> None:
    """Reproduce a figure of the field, and assert its claims.

    Writes NAME.json and NAME.png and prints each claim with what was measured.
    Without NAME it lists the experiments.  Drawing needs the extra [plot].

    Exit codes: 0 every claim holds, 1 a claim fails, 2 error in usage or input,
    130 interrupted (nothing is written).
    """
    with refusals():
        if name is None:
            _list()
        else:
            ctx.exit(_reproduce(name, options["out"], options["fast"]))


def _list() -> None:
    from theodolite.experiments import ALL
    from theodolite.experiments.datasets import PACKAGES, is_installed

    for experiment in ALL:
        click.echo(experiment.name)
        click.echo(textwrap.indent(textwrap.fill(experiment.title, WIDTH - 2), "  "))
        if experiment.needs is not None and not is_installed(experiment.needs):
            click.echo(f"  needs {PACKAGES[experiment.needs].command}")


def _reproduce(name: str, folder: str, fast: bool) -> int:
    from theodolite.auditing.progress import Bar
    from theodolite.experiments import BY_NAME, reproduce

    if name not in BY_NAME:
        raise Refusal(f"NAME: {_unknown(name, list(BY_NAME))}")
    experiment = BY_NAME[name]()
    with Bar() as bar:
        result = reproduce(experiment, folder, fast=fast, progress=bar.step)
    files = [str(Path(folder) / f"{name}.{suffix}") for suffix in ("json", "png")]
    echo("\n".join([*screen(experiment, result), "  ".join(files)]))
    return 0 if result.holds else 1


def screen(experiment: Experiment, result: Result) -> list[str]:
    """Return the lines that tell which claims hold, 80 columns wide."""
    lines = textwrap.wrap(f"{experiment.name}: {experiment.title}", WIDTH)
    for claim in result.claims:
        said = f"{'holds' if claim.holds else 'FAILS'}  {claim.statement}: {claim.measured}"
        lines += textwrap.wrap(said, WIDTH, subsequent_indent=" " * 7)
    failed = sum(not claim.holds for claim in result.claims)
    lines.append(f"{len(result.claims)} claims, {f'{failed} of them FAILED' if failed else 'all hold'}")
    return lines


def _unknown(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "theodolite reproduce lists the experiments"
    return f"there is no experiment {name!r}; {hint}"
