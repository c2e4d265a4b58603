"""A progress bar on a terminal, for what takes longer than two seconds; silence elsewhere."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from theodolite.auditing.run import Progress

_DELAY = 2.0


class Bar(Progress):
    """A bar on standard error that appears after two seconds, if that is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        console = Console(file=sys.stderr)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._timer = threading.Timer(_DELAY, self._bar.start)
        self._timer.daemon = True
        self._done = -1

    def __enter__(self) -> Bar:
        """Begin to count the two seconds."""
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Take the bar off the screen."""
        self._timer.cancel()
        self._timer.join()
        self._bar.stop()

    def plan(self, steps: int) -> None:
        """Announce the number of steps."""
        self._done = -1
        self._bar.update(self._task, total=steps, completed=0)

    def step(self, title: str) -> None:
        """Announce that a step begins."""
        self._done += 1
        self._bar.update(self._task, description=title[:44], completed=self._done)

    def within(self, done: int, total: int) -> None:
        """Tell how far the step is."""
        if total > 0:
            self._bar.update(self._task, completed=max(self._done, 0) + min(done / total, 1.0))
