"""Interrupts at a chosen moment."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block after so many seconds of its CPU time.

    Python drops what is raised within a callback of its garbage collector, and test tools register
    such callbacks to time collections: in the block there are none, so no interrupt is lost.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGVTALRM, interrupt)
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        gc.callbacks.extend(callbacks)
        signal.signal(signal.SIGVTALRM, previous)
