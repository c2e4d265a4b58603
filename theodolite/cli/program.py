"""What all commands share: refusals, exit codes, and printing what the terminal can show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

INTERRUPTED = 130


class Refusal(click.ClickException):
    """Something that the user gave cannot be used: one sentence, exit code 2."""

    exit_code = 2


@contextmanager
def refusals() -> Iterator[None]:
    """Turn an InputError, and nothing else, into a refusal."""
    from theodolite.theorems.subject import InputError

    try:
        yield
    except InputError as error:
        raise Refusal(" ".join(str(error).split())) from error


class Program(click.Group):
    """A group of commands in which Ctrl-C means exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted before there was anything to report.", err=True)
            ctx.exit(INTERRUPTED)


def show(screen: Any) -> None:
    """Print with styles on a terminal, plainly elsewhere and in what the encoding can say."""
    if sys.stdout.isatty() and speaks_unicode():
        from rich.console import Console

        Console(width=max(80, Console().width), highlight=False, soft_wrap=True).print(screen.rich())
        return
    echo(screen.plain)


def speaks_unicode() -> bool:
    """Return whether standard output can say every character."""
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"


def echo(plain: str) -> None:
    """Print text in what the encoding of standard output can say."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        plain.encode(encoding)
    except UnicodeEncodeError:
        plain = plain.replace("·", "|").replace("±", "+-").encode(encoding, "replace").decode(encoding)
    click.echo(plain)
