"""``theodolite predict``: ratings that a saved completion predicts."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from theodolite.cli import options as given
from theodolite.cli.program import Refusal, echo, refusals

if TYPE_CHECKING:
    import numpy as np

    from theodolite.cli.ratings import Table
    from theodolite.estimators import MatrixCompletion

_CHUNK = 1 << 22  # predictions held at once


@click.command("predict")
@click.argument("model")
@click.argument("pairs", required=False)
@click.option("--out", metavar="FILE", required=True, help="Write the predictions here, as .csv or .tsv.")
@click.option("--top", metavar="N", help="Write the N best items of each user instead.")
@click.option("--exclude", metavar="RATINGS", help="Leave the pairs of this file out of --top.")
@click.option("--user", metavar="NAME", help="Column of the rows' ids (that of the fit).")
@click.option("--item", metavar="NAME", help="Column of the columns' ids (that of the fit).")
@click.option("--unknown", metavar="U", default="error", help="Ids that the fit has not seen: error, mean.")
@click.pass_context
def command(ctx: click.Context, model: str, pairs: str | None, **options: Any) -> None:
    """Predict ratings by a saved completion.

    MODEL is a file that `theodolite fit completion` wrote.

    PAIRS is a .csv, .tsv or .parquet file with a line for each pair of user and
    item.  With --top its users are those to predict for, all users without it.
    With --unknown mean, an id that the fit has not seen gets the mean and the
    bias that is known.

    Exit codes: 0 written, 2 error in usage or input, 130 interrupted.
    """
    with refusals():
        _predict(model, pairs, options)


def _predict(path: str, pairs: str | None, options: dict[str, Any]) -> None:
    from theodolite.auditing.files import check_readable, write_atomically

    top = None if options["top"] is None else given.whole("--top", options["top"])
    if top is not None and top < 1:
        raise Refusal(f"--top: expected a whole number >= 1, got {top}")
    if options["unknown"] not in ("error", "mean"):
        raise Refusal(f"--unknown: expected error or mean, got {options['unknown']!r}")
    if pairs is None and top is None:
        raise Refusal("PAIRS: expected a file of pairs, or --top")
    if options["exclude"] is not None and top is None:
        raise Refusal("--exclude: expected --top with it")
    for argument, name in (("MODEL", path), ("PAIRS", pairs), ("--exclude", options["exclude"])):
        if name is not None:
            check_readable(Path(name), argument)
    given.check_outputs({"--out": options["out"]})
    from theodolite.cli import models

    model, _ = models.load(path, "MODEL")
    if model.row_ids_ is None or model.col_ids_ is None:
        raise Refusal(
            f"MODEL: {path}: expected one that was fitted to a table, got one of a matrix without ids"
        )
    user, item = options["user"] or str(model.user), options["item"] or str(model.item)
    if top is None:
        rows = _of_pairs(model, str(pairs), user, item, options["unknown"])
    else:
        rows = _best(model, pairs, options["exclude"], user, item, top)
    header, tabs = (user, item, str(model.rating)), options["out"].lower().endswith((".tsv", ".tab"))
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if tabs else ",", lineterminator="\n")
            writer.writerow(header)
            for u, i, value in rows:
                writer.writerow((u, i, f"{value:.6g}"))
                count += 1

    write_atomically(options["out"], write)
    echo(f"{options['out']}: {count:,} predictions")


def _codes(ids: Any, given_ids: Any) -> np.ndarray[Any, Any]:
    """Return the indices of ids by what they look like in a file, -1 for unknown ones."""
    import numpy as np

    place = {str(name): index for index, name in enumerate(ids.tolist())}
    texts = map(str, given_ids.tolist())
    return np.fromiter((place.get(text, -1) for text in texts), np.int64, len(given_ids))


def _text(model: MatrixCompletion, user: str, item: str) -> list[str]:
    """Return the columns whose ids are strings in the model."""
    import numpy as np

    pairs = ((user, model.row_ids_), (item, model.col_ids_))
    return [name for name, ids in pairs if np.asarray(ids).dtype.kind not in "iu"]


def _known(model: MatrixCompletion, name: str, ids: Any, table: Table, unknown: str) -> np.ndarray[Any, Any]:
    codes = _codes(ids, table[name])
    if unknown == "error" and (codes < 0).any():
        first = table[name].tolist()[int((codes < 0).argmax())]
        raise Refusal(
            f"PAIRS: expected ids that the fit has seen in {name!r}, got {first!r} "
            f"({int((codes < 0).sum()):,} lines in all); --unknown mean accepts them"
        )
    return codes


def _of_pairs(
    model: MatrixCompletion, path: str, user: str, item: str, unknown: str
) -> Iterator[tuple[Any, Any, float]]:
    """Return the pairs of a file with their predictions, in its order."""
    from theodolite.cli import ratings

    table = ratings.read(path, "PAIRS", [user, item], text=_text(model, user, item))
    u = _known(model, user, model.row_ids_, table, unknown)
    i = _known(model, item, model.col_ids_, table, unknown)
    values = _values(model, u, i)
    return zip(table[user].tolist(), table[item].tolist(), values.tolist(), strict=True)


def _values(model: MatrixCompletion, u: Any, i: Any) -> np.ndarray[Any, Any]:
    """Return predictions at indices; an index of -1, an unknown id, has neither bias nor factor."""
    import numpy as np

    nobody = np.array([object()], dtype=object)  # equal to no id, and at the place -1
    known = (np.asarray(ids).astype(object) for ids in (model.row_ids_, model.col_ids_))
    rows, cols = (np.concatenate([ids, nobody]) for ids in known)
    return np.asarray(model.predict(rows[u], cols[i], unknown="mean"))


def _best(
    model: MatrixCompletion, pairs: str | None, exclude: str | None, user: str, item: str, top: int
) -> Iterator[tuple[Any, Any, float]]:
    """Yield the best items of each user, best first; a user's pairs of `exclude` are left out."""
    import numpy as np

    from theodolite.cli import ratings

    everyone = np.arange(len(model.row_factors_))
    wanted = everyone
    if pairs is not None:
        table = ratings.read(pairs, "PAIRS", [user], text=_text(model, user, item))
        wanted = np.unique(_known(model, user, model.row_ids_, table, "error"))
    taken: list[np.ndarray[Any, Any]] = [np.zeros(0, dtype=np.int64) for _ in range(2)]
    if exclude is not None:
        table = ratings.read(exclude, "--exclude", [user, item], text=_text(model, user, item))
        taken = [_codes(model.row_ids_, table[user]), _codes(model.col_ids_, table[item])]
        both = (taken[0] >= 0) & (taken[1] >= 0)
        order = np.argsort(taken[0][both], kind="stable")
        taken = [codes[both][order] for codes in taken]
    return _ranked(model, wanted, taken[0], taken[1], top)


def _ranked(
    model: MatrixCompletion, wanted: Any, rows: Any, cols: Any, top: int
) -> Iterator[tuple[Any, Any, float]]:
    import numpy as np

    m = len(model.col_factors_)
    for first in range(0, len(wanted), max(1, _CHUNK // m)):
        users = wanted[first : first + max(1, _CHUNK // m)]
        # every response grows with its natural parameter, and a user's own bias changes no order
        scores = model.row_factors_[users] @ model.col_factors_.T + model.col_bias_
        starts, ends = np.searchsorted(rows, users, "left"), np.searchsorted(rows, users, "right")
        for line, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            scores[line, cols[start:end]] = -np.inf
        least = min(top, m)
        best = np.argpartition(-scores, least - 1, axis=1)[:, :least]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        u, i = np.repeat(users, least), best.ravel()
        kept = np.isfinite(np.take_along_axis(scores, best, 1).ravel())
        u, i = u[kept], i[kept]
        values = model.predict(np.asarray(model.row_ids_)[u], np.asarray(model.col_ids_)[i])
        names = np.asarray(model.row_ids_)[u].tolist(), np.asarray(model.col_ids_)[i].tolist()
        yield from zip(*names, values.tolist(), strict=True)
