"""``theodolite certify``: exit codes, the screen, refusals in one sentence."""

import json
from pathlib import Path

import builders
import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from theodolite import cli
from theodolite.auditing import certify as certifying
from theodolite.auditing.report import SCHEMA_FILE

NETS = Path(__file__).resolve().parent / "fixtures" / "nets.py"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder that has a little data."""
    monkeypatch.chdir(tmp_path)
    x, y = (t.numpy() for t in builders.digits_pairs(60)["train"])
    np.savez("digits.npz", x=x, y=y)
    np.savez("targets.npz", x=x, y=np.eye(10)[y])


def call(*arguments: str):
    return CliRunner().invoke(cli.main, ["certify", *arguments], prog_name="theodolite")


def certify(name: str, *options: str, data: str = "digits.npz", decay: str = "1e-2"):
    return call(f"{NETS}:{name}", "--data", data, "--weight-decay", decay, "--budget", "2s", *options)


def refusal(result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in line
    return line.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("two_layer_linear", "two linear layers, 64 inputs, 8 hidden units, 10 outputs"),
        ("two_layer_gated", "gated ReLU network, 64 inputs, 12 hidden units, 10 outputs"),
        ("two_layer_relu", "ReLU network, 64 inputs, 12 hidden units, 10 outputs"),
        ("two_layer_leaky", "leaky ReLU network, 64 inputs, 12 hidden units, 10 outputs"),
        ("pooled_conv", "pooled convolutional ReLU network, 64 inputs, 6 filters, 10 outputs"),
    ],
)
def test_the_screen(name, family):
    result = certify(name, "--json", "a.json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert max(map(len, result.output.splitlines())) <= 80
    text = " ".join(result.output.split())
    assert family in text
    assert "60 samples · cross-entropy + 0.01/2 ||parameters||^2 · seed 0" in text
    for label in ("objective", "lower bound", "gap", "polar / lambda", "verdict", "confidence", "holds if"):
        assert f"\n{label.ljust(14)}  " in result.output
    assert "verdict improvable: a better network of this family was found" in text
    assert "What would help" in text
    found = json.loads(Path("a.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA_FILE.read_text()))
    (finding,) = found["findings"]
    assert finding["code"] == "OPT006"
    gap = finding["values"]["gap"]
    assert 0.0 < gap["lower"] < gap["upper"] <= 1.0


def test_no_time_at_all_gives_the_loosest_bound():
    result = call(f"{NETS}:two_layer_relu", "--data", "digits.npz", "--weight-decay", "1", "--budget", "0")
    assert result.exit_code == 0, result.output
    assert "lower bound" in result.output


def test_a_network_that_is_optimal_is_closed():
    model = torch.nn.Sequential(torch.nn.Linear(64, 2, bias=False), torch.nn.Linear(2, 10, bias=False))
    Path("zero.py").write_text(
        "from torch import nn\n"
        "net = nn.Sequential(nn.Linear(64, 2, bias=False), nn.Linear(2, 10, bias=False))\n"
        "for p in net.parameters(): nn.init.zeros_(p)\n"
    )
    result = call("zero.py:net", "--data", "digits.npz", "--weight-decay", "100")
    assert result.exit_code == 0
    assert "closed: optimal up to the gap" in result.output
    assert "What would help" not in result.output
    assert "Leave the width" in result.output
    report = certifying.certify(model, "digits.npz", weight_decay=100.0)
    assert report["OPT006"].values["polar_ratio"].upper < 1.0


def test_regression_targets_and_the_mean_squared_error():
    result = certify("two_layer_linear", data="targets.npz")
    assert result.exit_code == 0
    assert "mean squared error" in result.output
    assert "cross-entropy" in certify("two_layer_linear", "--loss", "cross_entropy").output


def test_the_same_seed_gives_the_same_certificate():
    screens = {certify("two_layer_gated", "--seed", "3").output.split("holds if")[1] for _ in range(2)}
    assert len(screens) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("relu_net", "model: cannot be certified: it is deeper than two layers: layer 'layers.2' (Linear)"),
        ("sigmoid_net", "'sigmoid' in layer '1' (Sigmoid) is neither the identity, nor ReLU"),
        ("batch_norm_net", "layer '1' (BatchNorm1d) normalizes"),
        ("tied_net", "model: cannot be certified"),
        ("branching_net", "could not be traced"),
        ("no_parameters", "model: cannot be certified"),
        ("nan_net", "not finite"),
        ("not_a_module", "expected"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_one_sentence(name, words):
    assert words in refusal(certify(name, "--json", "a.json"))
    assert not Path("a.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "digits.npz"], "--weight-decay: expected the coefficient, > 0"),
        (["--data", "digits.npz", "--weight-decay", "0"], "--weight-decay: expected the coefficient, > 0"),
        (["--data", "digits.npz", "--weight-decay", "-1"], "weight_decay: expected a finite number >= 0"),
        (["--data", "digits.npz", "--weight-decay", "nan"], "weight_decay: expected a finite number >= 0"),
        (["--weight-decay", "1"], "--data: expected the data that the model was trained on"),
        (["--data", "digits.npz", "--weight-decay", "1", "--budget", "soon"], "--budget: expected a positive time"),
        (["--data", "digits.npz", "--weight-decay", "1", "--seed", "x"], "--seed: expected a whole number"),
        (["--data", "digits.npz", "--weight-decay", "1", "--loss", "hinge"], "--loss: expected cross_entropy or mse"),
        (["--data", "digits.npz", "--weight-decay", "1", "--device", "abacus"], "device: expected a device"),
        (["--data", "digits.npz", "--weight-decay", "1", "--json", "no/a.json"], "--json: cannot write no/a.json"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_the_work(options, words, monkeypatch):
    monkeypatch.setattr(certifying, "certify", lambda *a, **k: pytest.fail("the work began"))
    assert words in refusal(call(f"{NETS}:two_layer_linear", *options))


def test_an_interrupt_is_told(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("theodolite.theorems.optimality.network_certificate.network_problem", interrupted)
    result = certify("two_layer_linear", "--json", "a.json")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == "Interrupted before there was a certificate.\n"
    assert not Path("a.json").exists()


def test_a_defect_of_ours_is_no_refusal(monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("theodolite.theorems.optimality.network_certificate.network_problem", broken)
    result = certify("two_layer_linear")
    assert isinstance(result.exception, RuntimeError)
    assert "ZeroDivisionError: ours" in str(result.exception)


def test_help():
    result = call("--help")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "Exit codes: 0 certified" in result.output
    assert "certify" in CliRunner().invoke(cli.main, ["--help"]).output


def test_an_interrupt_in_the_polar_leaves_the_cheapest_bound(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("theodolite.atoms.relu.relu_ascent", interrupted)
    result = certify("two_layer_relu", "--json", "a.json")
    assert result.exit_code == 130
    assert "lower bound" in result.stdout
    assert result.stderr == "Interrupted: with the cheapest bound of the polar.\n"
    report = json.loads(Path("a.json").read_text())
    assert report["complete"] is False
