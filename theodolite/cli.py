"""The command line: ``theodolite audit``, ``certify``, ``list`` and ``explain``.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from theodolite import __version__

if TYPE_CHECKING:
    from theodolite.auditing.gates import Gate
    from theodolite.auditing.progress import Bar
    from theodolite.auditing.report import Report
    from theodolite.theorems.base import Theorem

INTERRUPTED = 130
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Refusal(click.ClickException):
    """Something that the user gave cannot be used: one sentence, exit code 2."""

    exit_code = 2


@contextmanager
def refusals() -> Iterator[None]:
    """Turn an InputError, and nothing else, into a refusal."""
    from theodolite.theorems.subject import InputError

    try:
        yield
    except InputError as error:
        raise Refusal(" ".join(str(error).split())) from error


class Program(click.Group):
    """A group of commands in which Ctrl-C means exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted before there was anything to report.", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, message="theodolite %(version)s")
def main() -> None:
    """Audit trained PyTorch networks with the theorems of deep learning.

    Every theorem's hypotheses are checked on the given model, its quantities are
    computed, and each number is labelled exact, bound, estimate or score.
    """


@main.command()
@click.argument("model", required=False)
@click.option(
    "--data",
    metavar="SPEC",
    help="'digits', a .npz file with x and y (or x_train, y_train, x_test, y_test), "
    "or a .csv file whose last column is the target.",
)
@click.option("--loss", metavar="LOSS", help="cross_entropy or mse; guessed from the targets.")
@click.option(
    "--weight-decay",
    metavar="W",
    help="Coefficient of the coupled weight decay that the model was trained with.",
)
@click.option("--html", metavar="FILE", help="Write the report as one self-contained HTML page.")
@click.option("--json", "json_", metavar="FILE", help="Write the report as JSON.")
@click.option(
    "--fail-on",
    metavar="GATE",
    multiple=True,
    help="Exit with 1 unless the finding CODE is certified or conditional, "
    "or when a comparison such as 'GEN003.path_norm.upper > 50' is true. May be repeated.",
)
@click.option("--only", metavar="CODES", multiple=True, help="Run these theorems alone, as in OPT001,GEN003.")
@click.option("--skip", metavar="CODES", multiple=True, help="Leave these theorems out.")
@click.option(
    "--try/--no-try", "remedies", default=True, help="Whether to try remedies on a copy of the model."
)
@click.option(
    "--save",
    metavar="FILE",
    help="Write the model that the best remedy made: .pt for its weights, .pt2 for its program.",
)
@click.option("--budget", metavar="TIME", help="Begin nothing new after this time: 60s, 5m, 1h.")
@click.option(
    "--image-shape",
    metavar="CxHxW",
    help="Shape of the images that flat inputs are, as in 1x28x28; known for digits.",
)
@click.option("--device", metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1, mps.")
@click.option("--seed", metavar="N", default="0", help="Every random draw follows from it (0).")
@click.option(
    "--verbose", "-v", is_flag=True, help="Also print every value, its note, and what does not apply and why."
)
@click.pass_context
def audit(ctx: click.Context, model: str | None, **options: Any) -> None:
    """Audit a model on data, and say what to do next.

    MODEL is path.py:attribute, path.py:factory(), package.module:attribute or
    package.module:factory().  Loading a Python file RUNS the code in it: audit
    only files that you trust.  Without MODEL a small ReLU network is trained on
    scikit-learn's digits and audited.

    Exit codes: 0 all is well, 1 a gate failed, 2 error in usage or input, 130
    interrupted (what was found until then is reported).
    """
    with refusals():
        ctx.exit(_audit(model, options))


def _audit(model: str | None, options: dict[str, Any]) -> int:
    """Run an audit and return the exit code; everything that can be checked first is."""
    from theodolite.auditing import gates, run
    from theodolite.auditing.progress import Bar

    chosen = run.choose_theorems(options["only"] or None, options["skip"] or None)
    wanted = gates.parse(options["fail_on"], _all_codes(), [theorem.code for theorem, _ in chosen])
    settings = {
        "weight_decay": _number("--weight-decay", options["weight_decay"]),
        "image_shape": _shape("--image-shape", options["image_shape"]),
        "budget": _seconds(options["budget"]),
        "seed": _whole("--seed", options["seed"]),
        "device": options["device"],
        "loss": options["loss"],
        "remedies": options["remedies"],
    }
    _check_settings(settings)
    _check_outputs(options)
    if model is not None and options["data"] is None:
        raise Refusal("--data: expected the data to audit the model on, for instance --data digits")
    with ExitStack() as stack:
        bar = stack.enter_context(Bar())
        report = (
            _bundled(options, settings, chosen, bar)
            if model is None
            else _user(model, options, settings, chosen, bar)
        )
    return _deliver(report, options, wanted)


def _user(
    model: str, options: dict[str, Any], settings: dict[str, Any], chosen: list[tuple[Theorem, str]], bar: Bar
) -> Report:
    from theodolite.auditing import data, load, run

    loaded = data.load(options["data"], seed=settings["seed"])
    bar.step(f"loading {model}")
    with load.open_model(model) as network:
        return run.conduct(network, loaded, theorems=chosen, name=model, progress=bar, **settings)


def _bundled(
    options: dict[str, Any], settings: dict[str, Any], chosen: list[tuple[Theorem, str]], bar: Bar
) -> Report:
    from theodolite.auditing import bundled, data, run

    if options["data"] not in (None, "digits"):
        raise Refusal(
            "MODEL: expected a model for these data; without one the bundled network is trained on digits"
        )
    if settings["loss"] not in (None, "cross_entropy"):
        raise Refusal(f"--loss: the bundled network is trained with cross_entropy, got {settings['loss']!r}")
    if settings["weight_decay"] is None:
        settings["weight_decay"] = bundled.WEIGHT_DECAY
    digits = data.digits()
    bar.step("training the bundled network")
    network = bundled.train(
        *digits.train,
        weight_decay=settings["weight_decay"],
        seed=settings["seed"],
        device=settings["device"] or "cpu",
        progress=bar.within,
    )
    return run.conduct(network, digits, theorems=chosen, name=bundled.NAME, progress=bar, **settings)


def _deliver(report: Report, options: dict[str, Any], wanted: Sequence[Gate]) -> int:
    """Write the files, print the screen and judge the gates; a disk that is full loses no screen."""
    from theodolite.auditing import text
    from theodolite.auditing.files import write_atomically
    from theodolite.theorems.subject import InputError

    writers: dict[str, tuple[str | None, Callable[[str], Any]]] = {
        "--html": (options["html"], report.to_html),
        "--json": (options["json_"], report.to_json),
    }
    if report.remedies:
        writers["--save"] = (options["save"], lambda path: write_atomically(path, report.remedies[0].save))
    files, problems = [], []
    for option, (path, write) in writers.items():
        if path is not None:
            try:
                write(path)
                files.append(path)
            except InputError as error:
                problems.append(f"{option}: {str(error).removeprefix('save: ')}")
    _show(text.render(report, verbose=options["verbose"], files=files))
    if problems:
        raise Refusal("; ".join(problems))
    if options["save"] and not report.remedies:
        click.echo(f"--save: nothing was written to {options['save']}, because no remedy helped.", err=True)
    if not report.complete:
        click.echo("Interrupted; the report is partial.", err=True)
        return INTERRUPTED
    failures = [failure for failure in (gate.failure(report) for gate in wanted) if failure]
    for failure in failures:
        click.echo(f"--fail-on: {failure}", err=True)
    return 1 if failures else 0


def _show(screen: Any) -> None:
    """Print with styles on a terminal, plainly elsewhere and in what the encoding can say."""
    if sys.stdout.isatty() and _speaks_unicode():
        from rich.console import Console

        Console(width=max(80, Console().width), highlight=False, soft_wrap=True).print(screen.rich())
        return
    _echo(screen.plain)


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"


def _echo(plain: str) -> None:
    """Print text in what the encoding of standard output can say."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        plain.encode(encoding)
    except UnicodeEncodeError:
        plain = plain.replace("·", "|").replace("±", "+-").encode(encoding, "replace").decode(encoding)
    click.echo(plain)


def _all_codes() -> list[str]:
    from theodolite.theorems import ALL

    return [theorem.code for theorem in ALL]


def _check_settings(settings: dict[str, Any]) -> None:
    from theodolite.auditing import run
    from theodolite.theorems.validation import check_weight_decay

    check_weight_decay(settings["weight_decay"])
    run.check_seed(settings["seed"])
    if settings["loss"] not in (None, "cross_entropy", "mse"):
        raise Refusal(f"--loss: expected cross_entropy or mse, got {settings['loss']!r}")
    if settings["device"] is not None:
        run.check_device(settings["device"])


def _check_outputs(options: dict[str, Any]) -> None:
    from theodolite.auditing.files import check_writable

    targets = {"--html": options["html"], "--json": options["json_"], "--save": options["save"]}
    given = {option: path for option, path in targets.items() if path is not None}
    for option, path in given.items():
        if not path:
            raise Refusal(f"{option}: expected the name of a file, got an empty one")
        check_writable(path, option)
    if len({os.path.realpath(path) for path in given.values()}) < len(given):
        raise Refusal(f"{', '.join(given)}: expected different files, got the same one twice")
    if options["save"] is not None:
        if not options["remedies"]:
            raise Refusal("--save: needs the remedies that --no-try leaves out")
        if not options["save"].endswith((".pt", ".pt2")):
            raise Refusal(f"--save: expected a file name that ends in .pt or .pt2, got {options['save']!r}")


def _number(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise Refusal(f"{option}: expected a number, got {text!r}") from None


def _shape(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise Refusal(f"{option}: expected CxHxW or HxW, as in 1x28x28, got {text!r}")
    return tuple(int(entry) for entry in text.split("x"))


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Refusal(f"{option}: expected a whole number, got {text!r}") from None


def _seconds(text: str | None, zero: bool = False) -> float | None:
    """Return seconds from "60s", "5m", "1h" or "60"; 0 where that makes sense."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*(s|m|min|h|)\s*", text.lower())
    try:
        seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf or (zero and seconds == 0)):
        raise Refusal(f"--budget: expected a positive time such as 60s, 5m or 1h, got {text!r}")
    return seconds


@main.command()
@click.argument("model")
@click.option("--data", metavar="SPEC", help="'digits', or a .npz or .csv file, as for audit.")
@click.option("--loss", metavar="LOSS", help="cross_entropy or mse; guessed from the targets.")
@click.option(
    "--weight-decay",
    metavar="W",
    help="Coefficient of the coupled weight decay that the model was trained with, > 0.",
)
@click.option(
    "--budget", metavar="TIME", help="Time for the polar: 60s (the default), 5m, 0 for the loosest."
)
@click.option("--json", "json_", metavar="FILE", help="Write the certificate as JSON.")
@click.option("--device", metavar="DEVICE", help="Where the model runs: cpu, cuda, cuda:1, mps.")
@click.option("--seed", metavar="N", default="0", help="Every random draw follows from it (0).")
@click.pass_context
def certify(ctx: click.Context, model: str, **options: Any) -> None:
    """Certify how far a two-layer network is from the best of its family.

    MODEL, as for audit, is a linear layer, no activation, ReLU or fixed gates,
    and a linear layer.  Its objective is mean loss + W/2 ||parameters||^2.

    Exit codes: 0 certified, whatever the gap, 2 not certifiable or an error in
    usage or input, 130 interrupted.
    """
    with refusals():
        ctx.exit(_certify(model, options))


def _certify(model: str, options: dict[str, Any]) -> int:
    """Certify a network and return the exit code; everything that can be checked first is."""
    from theodolite.auditing import certify, data, load
    from theodolite.auditing.progress import Bar

    settings = {
        "weight_decay": _number("--weight-decay", options["weight_decay"]),
        "budget": _seconds(options["budget"], zero=True),
        "seed": _whole("--seed", options["seed"]),
        "device": options["device"],
        "loss": options["loss"],
    }
    _check_settings(settings)
    _check_outputs({"html": None, "save": None, **options})
    if options["data"] is None:
        raise Refusal("--data: expected the data that the model was trained on, for instance --data digits")
    if not settings["weight_decay"]:
        raise Refusal(
            "--weight-decay: expected the coefficient, > 0, that the model was trained with; without weight decay "
            "there is no certificate"
        )
    with ExitStack() as stack:
        bar = stack.enter_context(Bar())
        loaded = data.load(options["data"], seed=settings["seed"])
        bar.step(f"loading {model}")
        network = stack.enter_context(load.open_model(model))
        report = certify.certify(network, loaded, name=model, progress=bar, **settings)
    if not report.findings[0].values:
        click.echo("Interrupted before there was a certificate.", err=True)
        return INTERRUPTED
    if options["json_"] is not None:
        report.to_json(options["json_"])
    _show(certify.render(report))
    if not report.complete:
        click.echo("Interrupted: with the cheapest bound of the polar.", err=True)
        return INTERRUPTED
    return 0


@main.command("list")
def list_() -> None:
    """List the theorems by chapter."""
    from theodolite.theorems import ALL

    for chapter in dict.fromkeys(theorem.chapter for theorem in ALL):
        click.echo(chapter)
        for theorem in (t for t in ALL if t.chapter == chapter):
            cost = "" if theorem.cost == "fast" else f" ({theorem.cost})"
            click.echo(f"  {theorem.code}  {theorem.title}{cost}")


@main.command()
@click.argument("code")
def explain(code: str) -> None:
    """Explain a theorem: statement, hypotheses, cost, source.

    CODE is one of those that `theodolite list` shows, such as GEN003.
    """
    from theodolite.auditing.explain import explanation
    from theodolite.auditing.run import unknown_code
    from theodolite.theorems import BY_CODE

    theorem = BY_CODE.get(code.upper())
    if theorem is None:
        raise Refusal(f"CODE: {unknown_code(code, list(BY_CODE))}")
    _echo(explanation(theorem))
