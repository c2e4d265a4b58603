"""``theodolite certify``: how far a two-layer network is from the best of its family."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from theodolite.cli import options as given
from theodolite.cli.program import INTERRUPTED, Refusal, refusals, show


@click.command("certify")
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
def command(ctx: click.Context, model: str, **options: Any) -> None:
    """Certify how far a two-layer network is from the best of its family.

    MODEL, as for audit, is a linear layer, no activation, ReLU or fixed gates,
    and a linear layer; or a convolution, ReLU, average pooling and a linear
    layer.  Its objective is mean loss + W/2 ||parameters||^2.

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
        "weight_decay": given.number("--weight-decay", options["weight_decay"]),
        "budget": given.seconds(options["budget"], zero=True),
        "seed": given.whole("--seed", options["seed"]),
        "device": options["device"],
        "loss": options["loss"],
    }
    given.check_settings(settings)
    given.check_outputs({"--json": options["json_"]})
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
    show(certify.render(report))
    if not report.complete:
        click.echo("Interrupted: with the cheapest bound of the polar.", err=True)
        return INTERRUPTED
    return 0
