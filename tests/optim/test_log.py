"""The log of a long optimization, plain and on a terminal."""

from __future__ import annotations

import sys

from theodolite.optim.log import Log


def test_plain(capsys):
    with Log(True) as log:
        log.line("a [bold] line", "bold")
        log.status("never shown")
    assert capsys.readouterr().out == "a [bold] line\n"


def test_silent(capsys):
    with Log(False) as log:
        log.line("nothing")
        log.status("nothing")
    assert capsys.readouterr().out == ""


def test_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with Log(True) as log:
        log.line("a [bold] line", "bold")
        log.status("still going")
    assert "a [bold] line" in capsys.readouterr().out
