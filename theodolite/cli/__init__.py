"""The command line, one command a file.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import click

from theodolite import __version__
from theodolite.cli import audit, certify, explain, fit, listing, predict, reproduce
from theodolite.cli.program import Program

__all__ = ["main"]


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, message="theodolite %(version)s")
def main() -> None:
    """Audit trained PyTorch networks with the theorems of deep learning.

    Every theorem's hypotheses are checked on the given model, its quantities are
    computed, and each number is labelled exact, bound, estimate or score.  Fits
    come with a certificate: how far from the global optimum they can be.
    """


for _module in (audit, certify, explain, fit, listing, predict, reproduce):
    main.add_command(_module.command)
