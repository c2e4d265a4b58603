"""What a terminal shows: the same text at every width, color and encoding."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import reports
from builders import digits_pairs
from click.testing import CliRunner

from theodolite import cli
from theodolite.auditing import text
from theodolite.cli import program

NET = f"{Path(__file__).parent / 'fixtures' / 'nets.py'}:relu_net"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["30", "80", "200"])
@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_the_same_text_with_styles(columns, no_color, monkeypatch):
    for name, value in {
        "COLUMNS": columns,
        "TERM": "xterm-256color",
        "NO_COLOR": "1" if no_color else "",
    }.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    screen = text.render(reports.report(), verbose=True)
    program.show(screen)
    shown = stream.getvalue()
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert [line.rstrip() for line in plain.splitlines()] == screen.plain.splitlines()
    assert bool(re.search(r"\x1b\[(\d;)*3\dm", shown)) != no_color
    assert "\x1b[1m" in shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_any_encoding_can_be_printed(encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = digits_pairs(60)["train"]
    np.savez("digits.npz", x=x.numpy(), y=y.numpy())
    for arguments in (
        ["explain", "STA001"],
        ["list"],
        ["audit", NET, "--data", "digits.npz", "--only", "GEN004", "--no-try"],
    ):
        result = CliRunner(charset=encoding).invoke(cli.main, arguments)
        assert result.exit_code == 0, result.exception
        assert result.output.strip()
    assert "relu_net" in result.output
    assert ("·" if encoding != "ascii" else "|") in result.output
    assert "?" not in result.output
