"""The bar: late, only on a terminal, and gone at the end."""

import io
import sys

import pytest

from theodolite.auditing import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use(bar: progress.Bar) -> None:
    bar.step("loading")
    bar.plan(3)
    for title in ("one", "a title that is very long " * 9, "three"):
        bar.step(title)
        bar.within(1, 2)
        bar.within(3, 2)
        bar.within(0, 0)


def test_silent_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    with progress.Bar() as bar:
        bar._timer.join()
        use(bar)
    assert stream.getvalue() == ""


def test_quick_work_shows_no_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.Bar() as bar:  # its two seconds have not passed
        use(bar)
    assert "one" not in sys.stderr.getvalue()


def test_slow_work_shows_its_steps_and_takes_them_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    with progress.Bar() as bar:
        bar._timer.join()
        use(bar)
        bar._bar.refresh()
        task = bar._bar.tasks[0]
        assert (task.total, task.completed) == (3, 3.0)
        assert len(task.description) <= 44
    shown = sys.stderr.getvalue()
    assert "three" in shown
    assert shown.endswith("\x1b[2K")  # transient: the line is erased
    assert not bar._bar.live.is_started


def test_an_error_passes_and_the_bar_stops(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    bar = progress.Bar()

    def interrupted() -> None:
        with bar:
            bar._timer.join()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not bar._timer.is_alive()
    assert not bar._bar.live.is_started
