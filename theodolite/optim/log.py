"""The log of a long optimization: rich on a terminal, plain elsewhere, nothing unless asked for."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any


class Log(ExitStack):
    """Print lines and, on a terminal, a live line below them.

    Parameters
    ----------
    verbose : bool
        Whether anything is printed at all.
    """

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self._on, self._shown = verbose, 0.0
        self._console: Any = None
        if verbose and sys.stdout.isatty():
            from rich.console import Console

            self._console = Console(highlight=False)
            self._live = self.enter_context(self._console.status("starting"))

    def line(self, text: str, style: str = "") -> None:
        """Print a line."""
        if self._console is not None:
            self._console.print(text, style=style, markup=False, soft_wrap=True)
        elif self._on:
            print(text, flush=True)

    def status(self, text: str) -> None:
        """Update the live line, at most ten times a second."""
        if self._console is not None and time.monotonic() - self._shown > 0.1:
            self._live.update(text)
            self._shown = time.monotonic()
