"""The command line: exit codes, one-sentence refusals, files that are whole or absent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from builders import digits_pairs
from click.testing import CliRunner

from theodolite import cli
from theodolite.auditing import bundled
from theodolite.auditing.report import SCHEMA_FILE
from theodolite.cli import options
from theodolite.models import MLP
from theodolite.theorems import ALL
from theodolite.theorems.subject import InputError

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
NET = f"{FIXTURES / 'nets.py'}:relu_net"
CODES = [theorem.code for theorem in ALL]
CHAPTERS = list(dict.fromkeys(theorem.chapter for theorem in ALL))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder that has a little data."""
    monkeypatch.chdir(tmp_path)
    pairs = digits_pairs(60, 20)
    arrays = {
        f"{name}_{split}": t.numpy()
        for split, pair in pairs.items()
        for name, t in zip("xy", pair, strict=True)
    }
    np.savez("digits.npz", **arrays)
    np.savez("train.npz", x=arrays["x_train"], y=arrays["y_train"])


def call(*arguments: str):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], prog_name="theodolite")


def audit(*arguments: str, model: str = NET, only: str = "GEN004", data: str = "digits.npz"):
    return call("audit", model, "--data", data, "--only", only, "--no-try", *arguments)


def refusal(result) -> str:
    """Return the one sentence of a refusal."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("Error: ")


def files() -> set[str]:
    return {path.name for path in Path.cwd().iterdir()} - {"digits.npz", "train.npz"}


def test_an_audit_prints_its_screen_and_writes_its_files():
    result = call(
        "audit",
        NET,
        "--data",
        "digits.npz",
        "--weight-decay",
        "1e-3",
        "--json",
        "out.json",
        "--html",
        "out.html",
        "--seed",
        "3",
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.splitlines()[-1] == "out.html  out.json"
    assert files() == {"out.json", "out.html"}
    found = json.loads(Path("out.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA_FILE.read_text()))
    assert list(dict.fromkeys(f["chapter"] for f in found["findings"])) == CHAPTERS
    assert len(CHAPTERS) == 8
    assert [f["code"] for f in found["findings"]] == CODES
    for finding in found["findings"]:
        assert finding["reference"]
        assert finding["status"] != "failed"
        assert all(
            value["kind"] in ("exact", "bound", "estimate", "score") for value in finding["values"].values()
        )
        assert all(h["status"] in ("proved", "tested", "assumed", "refuted") for h in finding["hypotheses"])
    by_code = {f["code"]: f for f in found["findings"]}
    assert by_code["GEN001"]["status"] == "conditional"
    assert found["model"]["name"] == NET
    assert found["seed"] == 3
    page = Path("out.html").read_text()
    assert page.startswith("<!doctype html>")
    assert NET in page


def test_training_data_alone_give_no_test_set_bound():
    assert audit("--json", "a.json", data="train.npz", only="GEN001").exit_code == 0
    (finding,) = json.loads(Path("a.json").read_text())["findings"]
    assert finding["status"] == "not applicable"
    assert finding["reason"]


def test_same_seed_same_json():
    def run(name: str, seed: int) -> dict:
        assert audit("--seed", seed, "--json", name, only="GEN006,APP001,OPT001").exit_code == 0
        found = json.loads(Path(name).read_text())
        for timed in (found, *found["findings"]):
            del timed["seconds"]
        return found

    first = run("a.json", 1)
    assert first == run("b.json", 1)
    assert first["findings"] != run("c.json", 2)["findings"]


def test_verbose_says_more():
    short, long = audit(), audit("--verbose")
    assert long.output.startswith(short.output.split("·")[0])
    assert "product frobenius" in long.output
    assert "product frobenius" not in short.output
    assert "product frobenius" in audit("-v").output


@pytest.mark.parametrize(
    ("gate", "failure"),
    [
        ("GEN004", ""),
        ("OPT002", "--fail-on: OPT002 is refuted: one subnetwork"),
        ("GEN004.product_operator_norm.upper > 1e9", ""),
        (
            "GEN004.product_operator_norm.upper > 1e-9",
            "--fail-on: GEN004.product_operator_norm.upper > 1e-9: it is 0.",
        ),
        ("GEN004.product_frobenius.value<1e9", "it is 1"),
        ("OPT002.count.value > 1", "undecided, because OPT002 is refuted"),
    ],
)
def test_gates(gate, failure):
    result = audit("--fail-on", gate, only="GEN004,OPT002")
    assert result.exit_code == (1 if failure else 0)
    assert failure in result.stderr
    assert "OPT002" in result.stdout  # the report is printed either way


def test_several_gates_name_each_failure():
    result = audit(
        "--fail-on",
        "GEN004",
        "--fail-on",
        "OPT002",
        "--fail-on",
        "GEN004.product_frobenius.value > 1",
        only="GEN004,OPT002",
    )
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2


def test_a_gate_on_a_value_that_is_not_there_is_an_error_after_the_report():
    result = audit("--fail-on", "GEN004.product.upper > 1", "--json", "a.json")
    assert result.exit_code == 2
    assert "GEN004 has no value 'product'; did you mean product_" in result.stderr
    assert "GEN004" in result.stdout
    assert files() == {"a.json"}


BAD_OPTIONS = {
    ("--only", "GEN04"): "only: there is no finding 'GEN04'; did you mean GEN004",
    ("--only", "XYZ"): "only: there is no finding 'XYZ'; theodolite list shows the codes",
    ("--skip", "GEN004"): "only, skip: together they leave no theorem to run",
    ("--budget", "-1"): "--budget: expected a positive time such as 60s, 5m or 1h, got '-1'",
    ("--budget", "0s"): "--budget: expected a positive time",
    ("--budget", "1 year"): "--budget: expected a positive time",
    ("--budget", "1.2.3s"): "--budget: expected a positive time",
    ("--budget", "1e999"): "--budget: expected a positive time",
    ("--device", "cuda:77"): "device: expected a device present on this machine, got 'cuda:77' (",
    ("--device", "abacus"): "device: expected a device present on this machine, got 'abacus' (",
    ("--seed", "-1"): "seed: expected an integer from 0 to 4294967295, got -1",
    ("--seed", "one"): "--seed: expected a whole number, got 'one'",
    ("--weight-decay", "-0.1"): "weight_decay: expected a finite number >= 0, got -0.1",
    ("--weight-decay", "nan"): "weight_decay: expected a finite number >= 0, got nan",
    ("--weight-decay", "much"): "--weight-decay: expected a number, got 'much'",
    ("--loss", "hinge"): "--loss: expected cross_entropy or mse, got 'hinge'",
    ("--fail-on", "GEN99"): "--fail-on: there is no finding 'GEN99'",
    ("--fail-on", "GEN001"): "--fail-on: 'GEN001': GEN001 is not among the findings of this audit",
    ("--fail-on", "GEN004.x.upper > y"): "expected a number after >, got 'y'",
    ("--json", "missing/a.json"): "--json: cannot write missing/a.json: there is no folder",
    ("--json", "."): "--json: . is a folder, expected the name of a file",
    ("--html", ""): "--html: expected the name of a file, got an empty one",
    ("--html", "h" * 300): "File name too long",
    ("--html", "a", "--json", "./a"): "--html, --json: expected different files, got the same one twice",
    ("--save", "a.pt"): "--save: needs the remedies that --no-try leaves out",
    ("--save", "a.pt", "--json", "a.pt"): "expected different files",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options_are_refused_before_the_work(options, monkeypatch):
    from theodolite.auditing import run

    monkeypatch.setattr(run, "conduct", lambda *a, **k: pytest.fail("the work began"))
    assert BAD_OPTIONS[options] in refusal(audit(*options))
    assert files() == set()


def test_the_suffix_of_a_saved_model_is_checked_before_the_work():
    assert refusal(call("audit", NET, "--data", "digits.npz", "--save", "a.bin")) == (
        "--save: expected a file name that ends in .pt or .pt2, got 'a.bin'"
    )


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (NET, "missing.npz", "data: missing.npz: there is no such file"),
        (NET, "junk.npz", "data: junk.npz: is not a .npz file"),
        (NET, "other.npz", "data: other.npz: expected arrays x and y"),
        (NET, "range.npz", "y: expected class numbers 0 to 9 (the model has 10 outputs), got 10"),
        (NET, "nan.npz", "data: nan.npz: x has NaN or infinity in 1 of 3 samples"),
        (NET, "empty.npz", "data: empty.npz: expected at least one sample, got none"),
        (
            NET,
            "uneven.npz",
            "data: uneven.npz: expected x and y of equal length, got 3 rows of x and 2 rows of y",
        ),
        (NET, "idx:folder", "data: expected 'digits', a .npz or a .csv file, got 'idx:folder'"),
        ("missing.py:net", "digits.npz", "MODEL: missing.py: there is no such file"),
        (
            "broken.py:net",
            "digits.npz",
            "MODEL: broken.py, line 1: is not valid Python ('(' was never closed)",
        ),
        (NET[:-1], "digits.npz", "has no attribute 'relu_ne'; did you mean relu_net"),
        (f"{FIXTURES / 'nets.py'}:broken_factory()", "digits.npz", "raised RuntimeError: no weights here"),
        (
            f"{FIXTURES / 'nets.py'}:raising_net",
            "digits.npz",
            "layer '1' (Raising) raised KeyError: 'temperature'",
        ),
        (
            f"{FIXTURES / 'nets.py'}:nan_net",
            "digits",
            "model: 'layers.2.weight' has 1 entry that is not finite (NaN)",
        ),
    ],
)
def test_broken_input_is_one_sentence(model, data, words):
    x, y = np.ones((3, 64), np.float32), np.array([0, 1, 2])
    np.savez("other.npz", a=x)
    np.savez("range.npz", x=x, y=y + 8)
    np.savez("nan.npz", x=np.where(np.eye(3, 64) * [[1], [0], [0]] > 0, np.nan, x), y=y)
    np.savez("empty.npz", x=x[:0], y=y[:0])
    np.savez("uneven.npz", x=x, y=y[:2])
    Path("junk.npz").write_text("junk")
    Path("broken.py").write_text("net = (\n")
    before = files()
    assert words in refusal(audit("--json", "a.json", "--html", "a.html", model=model, data=data))
    assert files() == before


def test_what_a_model_needs():
    assert "--data: expected the data" in refusal(call("audit", NET))
    assert "MODEL: expected a model for these data" in refusal(call("audit", "--data", "digits.npz"))
    assert "--loss: the bundled network is trained with cross_entropy" in refusal(
        call("audit", "--loss", "mse")
    )


def test_a_defect_of_ours_is_no_refusal(monkeypatch):
    from theodolite.auditing import run

    def broken(*arguments, **options):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(run, "conduct", broken)
    result = audit()
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_full_disk_loses_no_screen(monkeypatch):
    def full(path, content):
        raise InputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("theodolite.auditing.report.write_atomically", full)
    result = audit("--json", "a.json", "--html", "a.html")
    assert result.exit_code == 2
    assert "GEN004" in result.stdout
    assert result.stderr == (
        "Error: --html: cannot write a.html: No space left on device; --json: cannot write a.json: No space left on device\n"
    )


def test_a_remedy_is_saved_and_read_back():
    options = ("--data", "digits", "--weight-decay", "1e-3", "--only", "SPA002")
    for name in ("head.pt", "head.pt2"):
        result = call("audit", NET, *options, "--save", name)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == name
    assert files() == {"head.pt", "head.pt2"}
    x = digits_pairs()["train"][0]
    model = MLP((64, 32, 16, 10), bias=False)
    model.load_state_dict(torch.load("head.pt", weights_only=True))
    program = torch.export.load("head.pt2").module()
    with torch.no_grad():
        assert torch.allclose(model(x), program(x), atol=1e-6)
        assert model(x).abs().max() > 1e-3


def test_nothing_is_saved_when_nothing_helped():
    result = call(
        "audit",
        f"{FIXTURES / 'nets.py'}:relu_net",
        "--data",
        "digits.npz",
        "--only",
        "SPA002",
        "--save",
        "a.pt",
    )
    assert result.exit_code == 0
    assert result.stderr == "--save: nothing was written to a.pt, because no remedy helped.\n"
    assert files() == set()


def test_the_bundled_network(monkeypatch):
    monkeypatch.setattr(bundled, "_ADAM_STEPS", 20)
    monkeypatch.setattr(bundled, "_LBFGS_STEPS", 5)
    result = call("audit", "--only", "OPT001,GEN001,SPA002", "--no-try", "--json", "a.json", "--budget", "1h")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("digits-relu · 3 layers, 17,024 parameters · ")
    found = json.loads(Path("a.json").read_text())
    assert (found["data"]["n_train"], found["data"]["n_test"]) == (1397, 400)
    assert found["model"]["weight_decay"] == bundled.WEIGHT_DECAY


def test_image_shape():
    result = audit("--image-shape", "1x8x8", only="STA001")
    assert result.exit_code == 0
    assert "CERTIFIED" in result.output
    assert "expected CxHxW or HxW" in refusal(audit("--image-shape", "8", only="STA001"))
    assert "expected flat inputs of 63 entries" in refusal(audit("--image-shape", "7x9", only="STA001"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60),
        ("60s", 60),
        ("1.5m", 90),
        ("2 min", 120),
        ("1h", 3600),
        ("1H", 3600),
        ("1e2s", 100),
        (None, None),
    ],
)
def test_times(text, seconds):
    assert options.seconds(text) == seconds


def test_list_has_every_theorem_under_its_chapter():
    result = call("list")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == CHAPTERS
    assert [line.split()[0] for line in lines if line.startswith(" ")] == CODES
    assert max(map(len, lines)) <= 80


def test_explain():
    result = call("explain", "gen003")
    assert result.exit_code == 0
    assert result.output.startswith("GEN003  Path norms  (generalization)")
    assert refusal(call("explain", "GEN03")).startswith(
        "CODE: there is no finding 'GEN03'; did you mean GEN003"
    )


def test_help():
    result = call("--help")
    assert result.exit_code == 0
    for command in ("audit", "list", "explain"):
        assert command in result.output
    result = call("audit", "-h")
    assert "RUNS the code" in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    assert call("audit", "--bogus").exit_code == 2
    assert "theodolite" in call("--version").output


def test_an_interrupt_before_the_report_is_said(monkeypatch):
    from theodolite.auditing import data

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupted)
    result = audit("--json", "a.json")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted before there was anything to report.\n"
    assert files() == set()


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    # a process that a script put into the background ignores SIGINT, and so would its children
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from theodolite.cli import main; main()"
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def start_slow(marker: Path) -> subprocess.Popen:
    """Start an audit and wait until a theorem is in the middle of its work."""
    arguments = [
        "--data",
        "digits.npz",
        "--only",
        "GEN004,GEN006,SPA002",
        "--json",
        "a.json",
        "--html",
        "a.html",
    ]
    process = start("audit", f"{FIXTURES / 'interrupt.py'}:net", *arguments, SLOW_NET_MARKER=str(marker))
    while not marker.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def test_ctrl_c_gives_a_partial_report(tmp_path):
    process = start_slow(tmp_path / "marker")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "Interrupted; the report is partial.\n"
    assert "PARTIAL" in out
    found = json.loads(Path("a.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA_FILE.read_text()))
    assert found["complete"] is False
    assert [(f["code"], f["status"], f["reason"]) for f in found["findings"]] == [
        ("GEN004", "certified", ""),
        ("GEN006", "skipped", "interrupted while it ran"),
        ("SPA002", "skipped", "interrupted before it began"),
    ]
    assert "Partial report." in Path("a.html").read_text()
    assert files() == {"marker", "a.json", "a.html"}


def test_a_killed_audit_leaves_the_old_files(tmp_path):
    Path("a.json").write_text("old")
    process = start_slow(tmp_path / "marker")
    process.kill()
    process.communicate(timeout=120)
    assert Path("a.json").read_text() == "old"
    assert files() == {"marker", "a.json"}
