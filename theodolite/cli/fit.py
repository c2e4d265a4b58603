"""``theodolite fit``: models with a certificate of global optimality."""

from __future__ import annotations

import os
import textwrap
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from theodolite.cli import options as given
from theodolite.cli.program import INTERRUPTED, Refusal, echo, refusals

if TYPE_CHECKING:
    import numpy as np

    from theodolite.cli.ratings import Table
    from theodolite.core.solve import Round
    from theodolite.estimators.completion_model import CompletionModel

_WIDTH = 80
_KEPT = ("user", "item", "rating", "bias", "bias_alpha", "loss", "delta", "duplicates")


@click.group("fit")
def command() -> None:
    """Fit a model, and prove how far from optimal the fit can be."""


@command.command("completion")
@click.argument("ratings")
@click.option("--user", metavar="NAME", help="Column of the rows' ids (user).")
@click.option("--item", metavar="NAME", help="Column of the columns' ids (item).")
@click.option("--rating", metavar="NAME", help="Column of the entries (rating).")
@click.option("--out", metavar="FILE", required=True, help="Write the model here, as .npz.")
@click.option("--alpha", metavar="A", help="Factor of the nuclear norm.")
@click.option("--cv", is_flag=True, help="Choose alpha by cross-validation (the default without --alpha).")
@click.option("--folds", metavar="K", default="5", help="Of the cross-validation (5).")
@click.option("--bias", metavar="B", help="none (the default), penalized or centered.")
@click.option("--bias-alpha", metavar="B", help="Penalty or shrinkage of the biases (1).")
@click.option("--loss", metavar="LOSS", help="squared (the default), huber, logistic or poisson.")
@click.option("--delta", metavar="D", help="Where the Huber loss becomes linear (1).")
@click.option("--max-rank", metavar="R", help="Most columns of the factors; the gap stays to any rank.")
@click.option("--tol", metavar="T", default="1e-4", help="Certified relative gap to stop at (1e-4).")
@click.option("--budget", metavar="TIME", help="Stop a fit after 60s, 5m, 1h; its certificate is valid.")
@click.option("--duplicates", metavar="D", help="A pair given twice: error (the default), mean or last.")
@click.option("--holdout", metavar="SHARE", help="Leave this share of the ratings out, and test on it.")
@click.option("--resume", is_flag=True, help="Go on from the model in --out, fitted to the same ratings.")
@click.option("--device", metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1, mps.")
@click.option("--seed", metavar="N", help="Of the held-out ratings, folds and starts (0).")
@click.option("--quiet", "-q", is_flag=True, help="Leave the lines of the solver out.")
@click.pass_context
def completion(ctx: click.Context, ratings: str, **options: Any) -> None:
    r"""Complete a matrix of ratings by one of low rank.

    RATINGS is a .csv, .tsv or .parquet file with a line for each rating.  What
    is minimized over matrices Z of any rank is the sum of the losses of the
    ratings, 1/2 (r - z)^2 for squared, plus A times the nuclear norm of Z.

    Ctrl-C saves the best model so far with its valid certificate; --resume goes
    on from there.

    Exit codes: 0 fitted, 2 error in usage or input, 130 interrupted.
    """
    with refusals():
        ctx.exit(_completion(ratings, options))


def _completion(path: str, options: dict[str, Any]) -> int:
    """Fit, save, report, and return the exit code; everything that can be checked first is."""
    settings = _settings(options)
    _check_files(path, options)
    from theodolite.auditing.progress import Bar
    from theodolite.cli import models, ratings

    start, about = models.load(options["out"], "--resume") if options["resume"] else (None, {})
    if start is not None:
        settings = _resumed(settings, start, about, options["out"])
    settings = {"user": "user", "item": "item", "rating": "rating", "seed": 0, "holdout": 0.0} | settings
    columns = [str(settings[name]) for name in ("user", "item", "rating")]
    with Bar() as bar:
        bar.step(f"reading {path}")
        table = ratings.read(path, "RATINGS", columns[:2], columns[2])
    fingerprint = table.fingerprint()
    if start is not None and about.get("fingerprint") != fingerprint:
        raise Refusal(f"--resume: {options['out']} was fitted to other ratings than those in {path}")
    held = _held_out(table, settings)
    echo(_described(path, table, settings, held))
    train = table if held is None else table.take(~held)
    with models.arguments_of_the_command():
        model = _fitted(train, settings, start, int(options["folds"]), options["quiet"])
    test = None if held is None else _test(model, table.take(held), settings)
    echo(_certified(model))
    if test is not None:
        echo(test)
    about = {"fingerprint": fingerprint, "holdout": settings["holdout"], "seed": settings["seed"]}
    models.save(model, options["out"], about)
    echo(options["out"])
    if model.interrupted_:
        click.echo("Interrupted; the best so far was saved, and --resume goes on from it.", err=True)
        return INTERRUPTED
    return 0


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given, as numbers; refuse those that are none."""
    from theodolite.auditing import run

    if options["cv"] and options["alpha"] is not None:
        raise Refusal("--alpha, --cv: expected one of them, got both")
    if options["cv"] and options["resume"]:
        raise Refusal("--cv, --resume: expected one of them, got both; a resumed fit keeps its alpha")
    found = {name: options[name] for name in _KEPT if options[name] is not None}
    for name in ("alpha", "bias_alpha", "delta", "tol", "holdout"):
        if options[name] is not None:
            found[name] = given.number(f"--{name.replace('_', '-')}", options[name])
    for name in ("max_rank", "seed", "folds"):
        if options[name] is not None:
            found[name] = given.whole(f"--{name.replace('_', '-')}", options[name])
    if found.pop("folds") < 2:
        raise Refusal(f"--folds: expected a whole number >= 2, got {options['folds']}")
    if not 0.0 <= found.get("holdout", 0.0) <= 0.9:
        raise Refusal(f"--holdout: expected a share from 0 to 0.9, got {options['holdout']}")
    if options["bias"] is not None:
        if options["bias"] not in ("none", "penalized", "centered"):
            raise Refusal(f"--bias: expected none, penalized or centered, got {options['bias']!r}")
        found["bias"] = False if options["bias"] == "none" else options["bias"]
    if options["budget"] is not None:
        found["budget"] = given.seconds(options["budget"], zero=True)
    if options["device"] is not None:
        found["device"] = str(run.check_device(options["device"]))
    run.check_seed(found.get("seed", 0))
    _check_parameters(found)
    return found


def _check_parameters(found: dict[str, Any]) -> None:
    """Let the estimator check its parameters before any file is read."""
    from theodolite.cli.models import arguments_of_the_command
    from theodolite.estimators import MatrixCompletion
    from theodolite.estimators.base import check_factor

    parameters = {name: value for name, value in found.items() if name not in ("seed", "holdout")}
    with arguments_of_the_command():
        MatrixCompletion(**parameters)._check()
        check_factor(parameters.get("alpha", 1.0), "alpha")


def _check_files(path: str, options: dict[str, Any]) -> None:
    from pathlib import Path

    from theodolite.auditing.files import check_readable

    check_readable(Path(path), "RATINGS")
    given.check_outputs({"--out": options["out"]})
    if os.path.realpath(path) == os.path.realpath(options["out"]):
        raise Refusal("RATINGS, --out: expected different files, got the same one twice")


def _resumed(
    settings: dict[str, Any], start: CompletionModel, about: dict[str, Any], out: str
) -> dict[str, Any]:
    """Return the settings of a saved model, changed by those that were given."""
    if "fingerprint" not in about:
        raise Refusal(
            f"--resume: {out} does not say which ratings it was fitted to; theodolite fit did not write it"
        )
    for name in ("holdout", "seed"):
        if settings.get(name, about[name]) != about[name]:
            raise Refusal(
                f"--{name}: expected that of {out}, {about[name]}, because other ratings would be held out; "
                f"got {settings[name]}"
            )
    kept = {name: getattr(start, name) for name in (*_KEPT, "max_rank")}
    return kept | {"alpha": start.alpha_, "holdout": about["holdout"], "seed": about["seed"]} | settings


def _held_out(table: Table, settings: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """Return which rows are held out: a seeded share, but no user's and no item's only ratings.

    A pair that occurs twice is held out as a whole or not at all, by a hash of the pair.
    """
    if not settings["holdout"]:
        return None
    import numpy as np

    from theodolite.estimators.completion_inputs import Ids

    users, u = Ids.of(table[settings["user"]], "user")
    items, i = Ids.of(table[settings["item"]], "item")
    pairs, place = np.unique(u * len(items) + i, return_inverse=True)
    if len(pairs) < len(place) and settings.get("duplicates", "error") == "error":
        first = np.flatnonzero(np.bincount(place) > 1)[0]
        names = (
            users.names.tolist()[pairs[first] // len(items)],
            items.names.tolist()[pairs[first] % len(items)],
        )
        raise Refusal(
            f"RATINGS: expected each pair once, got {names} {np.bincount(place)[first]} times; "
            "--duplicates mean or last accepts them"
        )
    held = (np.random.default_rng(settings["seed"]).random(len(pairs)) < settings["holdout"])[place]
    for codes in (u, i):
        held &= np.bincount(codes[~held], minlength=codes.max() + 1)[codes] > 0
    if not held.any():
        raise Refusal(
            f"--holdout: expected ratings that can be left out, got none: {len(table):,} ratings, a share of "
            f"{settings['holdout']:g}, and every user and item keeps one"
        )
    return np.asarray(held)


def _described(path: str, table: Table, settings: dict[str, Any], held: Any) -> str:
    values = table[settings["rating"]]
    text = (
        f"{path} · {len(table):,} ratings from {values.min():g} to {values.max():g}, mean {values.mean():.4g}"
    )
    return text if held is None else f"{text} · {int(held.sum()):,} held out (seed {settings['seed']})"


def _fitted(
    table: Table, settings: dict[str, Any], start: CompletionModel | None, folds: int, quiet: bool
) -> CompletionModel:
    from theodolite.auditing.progress import Bar
    from theodolite.estimators import MatrixCompletion, MatrixCompletionCV

    parameters = {name: value for name, value in settings.items() if name not in ("seed", "holdout")}
    parameters["random_state"] = settings["seed"]
    if "alpha" in parameters:
        return MatrixCompletion(**parameters, verbose=not quiet).fit(table, init=start)
    with ExitStack() as stack:
        bar = stack.enter_context(Bar())

        def told(done: Round) -> None:
            bar.step(f"choosing alpha: rank {done.units}, gap {100 * done.gap:.2g} %")

        model = MatrixCompletionCV(**parameters, cv=folds).fit(table, callback=told)
    if not quiet:
        echo(_choice(model.cv_results_, model.alpha_))
    return model


def _choice(results: dict[str, Any], chosen: float) -> str:
    """Return the table of the alphas that were tried."""
    errors, what = results["mean_test_loss"], "mean held-out loss"
    if "mean_test_rmse" in results:
        errors, what = results["mean_test_rmse"], "mean held-out RMSE"
    lines = [f"{'alpha':>12} {what:>20} {'rank':>8} {'gap, at most':>14}"]
    for alpha, error, ranks, gaps in zip(
        results["alpha"], errors, results["rank"], results["gap"], strict=True
    ):
        mark = "  chosen" if alpha == chosen else ""
        lines.append(f"{alpha:12.5g} {error:20.6g} {ranks.mean():8.1f} {100 * gaps.max():12.2g} %{mark}")
    return "\n".join(lines)


def _certified(model: CompletionModel) -> str:
    """Return the certificate in words."""
    from theodolite.value import format_confidence, format_number

    c = model.certificate_
    text = (
        f"certificate ({c.verdict}): alpha {model.alpha_:.6g}, rank {model.rank_}, objective {c.objective:.9g}; "
        f"no matrix of any rank is below {c.dual_bound:.9g}: gap <= {format_number(100 * c.gap, 'up')} %"
    )
    if c.confidence < 1.0:
        text += f" with probability {format_confidence(c.confidence)}"
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")


def _test(model: CompletionModel, test: Table, settings: dict[str, Any]) -> str:
    """Return the error on the ratings that were held out."""
    import numpy as np

    predicted = model.predict(test[settings["user"]], test[settings["item"]])
    values = test[settings["rating"]]
    if model.loss == "logistic":
        right = float(((predicted > 0.5) == (values > 0.0)).mean())
        return f"test accuracy {right:.4g} on {len(test):,} held-out ratings"
    error, spread = float(np.sqrt(np.mean((values - predicted) ** 2))), float(values.std())
    return (
        f"test RMSE {error:.4g} on {len(test):,} held-out ratings, whose standard deviation is {spread:.4g}"
    )
