"""``theodolite audit``: check the theorems' hypotheses on a model, and compute their quantities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from theodolite.cli import options as given
from theodolite.cli.program import INTERRUPTED, Refusal, refusals, show

if TYPE_CHECKING:
    from theodolite.auditing.gates import Gate
    from theodolite.auditing.progress import Bar
    from theodolite.auditing.report import Report
    from theodolite.theorems.base import Theorem


@click.command("audit")
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
def command(ctx: click.Context, model: str | None, **options: Any) -> None:
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
        "weight_decay": given.number("--weight-decay", options["weight_decay"]),
        "image_shape": given.shape("--image-shape", options["image_shape"]),
        "budget": given.seconds(options["budget"]),
        "seed": given.whole("--seed", options["seed"]),
        "device": options["device"],
        "loss": options["loss"],
        "remedies": options["remedies"],
    }
    given.check_settings(settings)
    given.check_outputs({"--html": options["html"], "--json": options["json_"], "--save": options["save"]})
    _check_save(options["save"], options["remedies"])
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


def _check_save(path: str | None, remedies: bool) -> None:
    if path is not None and not remedies:
        raise Refusal("--save: needs the remedies that --no-try leaves out")
    if path is not None and not path.endswith((".pt", ".pt2")):
        raise Refusal(f"--save: expected a file name that ends in .pt or .pt2, got {path!r}")


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
    show(text.render(report, verbose=options["verbose"], files=files))
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


def _all_codes() -> list[str]:
    from theodolite.theorems import ALL

    return [theorem.code for theorem in ALL]
