"""``theodolite reproduce``: files, screen, exit codes, refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from theodolite import cli, experiments
from theodolite.experiments import base, datasets
from theodolite.experiments.base import Claim, Experiment, Result, strict


class Toy(Experiment):
    """An experiment of two claims."""

    name = "toy"
    title = "Two claims about a constant"
    statement = "$1 < 2$"
    reference = "haeffele2015global"
    factor = 1.0

    def run(self, *, fast=False, progress=lambda _: None):
        progress("counting")
        value = self.factor * (1.0 if fast else 1.5)
        claims = [
            Claim("a constant that has a very long name, so that the sentence must be wrapped, is < 2", value < 2.0, value),
            Claim("it is counted", True, "7 of 7"),
        ]  # fmt: skip
        return Result(
            claims, {"value": np.float64(value), "all": torch.ones(2), "none": math.inf, 3: (math.nan, True)}
        )

    def plot(self, figure, numbers):
        figure.subplots().plot([float(numbers["value"]), 0.0])


@pytest.fixture(autouse=True)
def only_toys(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="drawing needs the extra [plot]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "ALL", [Toy])
    monkeypatch.setattr(experiments, "BY_NAME", {"toy": Toy})


def call(*arguments):
    return CliRunner().invoke(cli.main, ["reproduce", *map(str, arguments)], prog_name="theodolite")


def refusal(result):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert list(Path.cwd().iterdir()) == []
    return line.removeprefix("Error: ")


def test_files_and_screen():
    result = call("toy", "--fast")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "toy: Two claims about a constant"
    assert max(map(len, lines)) <= 80
    assert " ".join(result.stdout.split()).count("wrapped, is < 2: 1 ") == 1
    assert lines[-3:] == ["holds  it is counted: 7 of 7", "2 claims, all hold", "toy.json  toy.png"]
    record = json.loads(Path("toy.json").read_text())
    assert record["claims"][1] == {"statement": "it is counted", "holds": True, "figure": "7 of 7"}
    assert record["numbers"] == {"value": 1.0, "all": [1.0, 1.0], "none": "inf", "3": [None, True]}
    assert record["fast"] is True
    assert record["experiment"] == "toy"
    assert Path("toy.png").read_bytes()[:4] == b"\x89PNG"


def test_a_claim_that_fails_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(Toy, "factor", 2.0)
    result = call("toy")
    assert result.exit_code == 1
    assert "FAILS  a constant" in result.stdout
    assert "2 claims, 1 of them FAILED" in result.stdout
    assert [claim["holds"] for claim in json.loads(Path("toy.json").read_text())["claims"]] == [False, True]


def test_the_figure_can_be_drawn_from_the_file(tmp_path):
    assert call("toy").exit_code == 0
    base.draw(Toy(), json.loads(Path("toy.json").read_text())["numbers"], tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == Path("toy.png").read_bytes()


def test_without_a_name_they_are_listed(monkeypatch):
    assert call().stdout == "toy\n  Two claims about a constant\n"
    monkeypatch.setattr(Toy, "needs", "recbole")
    monkeypatch.setattr(datasets, "find_spec", lambda module: None)
    assert call().stdout.splitlines()[-1] == "  needs pip install --no-deps recbole==1.2.1"


def test_refusals_come_before_the_work(monkeypatch):
    monkeypatch.setattr(Toy, "run", lambda *a, **k: pytest.fail("the work began"))
    assert refusal(call("tox")) == "NAME: there is no experiment 'tox'; did you mean toy?"
    assert "theodolite reproduce lists the experiments" in refusal(call("wxyz"))
    assert "--out: cannot write missing/toy.json: there is no folder" in refusal(
        call("toy", "--out", "missing")
    )
    found = base.find_spec
    monkeypatch.setattr(base, "find_spec", lambda module: None if module == "matplotlib" else found(module))
    assert refusal(call("toy")).endswith("matplotlib, which is not installed: pip install 'theodolite[plot]'")
    monkeypatch.setattr(Toy, "needs", "recbole")
    monkeypatch.setattr(datasets, "find_spec", lambda module: None)
    assert refusal(call("toy")).endswith("which is not installed: pip install --no-deps recbole==1.2.1")


def test_an_interrupt_writes_nothing(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Toy, "run", interrupted)
    assert call("toy").exit_code == 130
    assert list(Path.cwd().iterdir()) == []


def test_strict_json_has_no_numbers_that_json_lacks():
    assert strict({"a": [-math.inf, np.int64(3), torch.tensor(2.0)]}) == {"a": ["-inf", 3, 2.0]}
