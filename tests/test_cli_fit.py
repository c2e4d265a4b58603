"""``theodolite fit`` and ``predict``: tables in, certificate and model out, one sentence when they cannot be used."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from theodolite import cli
from theodolite.cli import models, ratings
from theodolite.estimators import MatrixCompletion
from theodolite.theorems.subject import InputError

ROOT = Path(__file__).resolve().parents[1]
FIT = ("--alpha", "2", "--out", "m.npz")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder that has a table of ratings."""
    monkeypatch.chdir(tmp_path)
    write("r.csv", planted())


def planted(n=30, m=20, share=0.5, seed=0):
    """Return rows (user, item, rating) of a noisy matrix of rank 2; user 100 + i, item 7 j."""
    rng = np.random.default_rng(seed)
    Y = rng.normal(size=(n, 2)) @ rng.normal(size=(2, m)) + 0.1 * rng.normal(size=(n, m)) + 3.0
    return [(100 + i, 7 * j, round(Y[i, j], 3)) for i in range(n) for j in range(m) if rng.random() < share]


def write(path, rows, header=("user", "item", "rating")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def call(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], prog_name="theodolite")


def fit(*arguments, path="r.csv", options=FIT):
    return call("fit", "completion", path, *options, *arguments)


def fitted(*arguments, **options):
    result = fit(*arguments, **options)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return result.stdout


def refusal(result):
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


def read_csv(path, delimiter=","):
    with open(path, newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


# --- fit


def test_a_fit_prints_its_rounds_and_its_certificate():
    text = fitted("--tol", "1e-6")
    lines = text.splitlines()
    assert lines[0].startswith(f"r.csv · {len(planted())} ratings from ")
    assert lines[-1] == "m.npz"
    assert max(map(len, lines)) <= 80
    assert " round  units" in text
    model, about = models.load("m.npz", "MODEL")
    flat = " ".join(text.split())
    assert (
        f"certificate (closed): alpha 2, rank {model.rank_}, objective {model.objective_:.9g}; no matrix"
        in flat
    )
    assert about["holdout"] == 0.0
    users, items, values = map(np.array, zip(*planted(), strict=True))
    ours = MatrixCompletion(alpha=2.0, tol=1e-6)
    ours.fit(ratings.Table({"user": users, "item": items, "rating": values}))
    assert ours.objective_ == pytest.approx(model.objective_, rel=2e-6)
    assert model.row_ids_.tolist() == sorted(set(users.tolist()))
    assert MatrixCompletion.load("m.npz").dual_bound_ == model.dual_bound_


def test_quiet_leaves_the_rounds_out():
    assert " round  units" not in fitted("--quiet")


def test_other_columns_losses_and_biases():
    write("o.csv", [(r > 3.0, i, u) for u, i, r in planted()], header=("liked", "film id", "who"))
    options = [
        "--user",
        "who",
        "--item",
        "film id",
        "--rating",
        "liked",
        "--loss",
        "logistic",
        "--holdout",
        "0.2",
    ]
    assert "expected a finite number in 'liked', got 'True'" in refusal(fit(*options, path="o.csv"))
    write("o.csv", [(int(r > 3.0), i, u) for u, i, r in planted()], header=("liked", "film id", "who"))
    assert "test accuracy 0." in fitted(*options, "--alpha", "0.5", path="o.csv")
    assert models.load("m.npz", "MODEL")[0].loss == "logistic"
    for bias in ("penalized", "centered", "none"):
        fitted("--bias", bias, "--bias-alpha", "2", "--loss", "huber", "--max-rank", "1")
        model, _ = models.load("m.npz", "MODEL")
        assert model.bias == (False if bias == "none" else bias)
        assert (model.rank_, model.max_rank, bool(model.mean_)) == (1, 1, bias != "none")


def test_the_test_error_is_that_of_the_ratings_held_out():
    options = ("--holdout", "0.25", "--seed", "3", "--tol", "1e-6", "--quiet")
    text = fitted(*options)
    assert text == fitted(*options)
    model, about = models.load("m.npz", "MODEL")
    assert (about["holdout"], about["seed"]) == (0.25, 3)
    table = ratings.read("r.csv", "RATINGS", ["user", "item"], "rating")
    held = cli.fit._held_out(table, {"user": "user", "item": "item", "seed": 3, "holdout": 0.25})
    assert 0.15 * len(table) < held.sum() < 0.3 * len(table)
    assert set(table["user"][held]) <= set(table["user"][~held])
    assert set(table["item"][held]) <= set(table["item"][~held])
    errors = table["rating"][held] - model.predict(table["user"][held], table["item"][held])
    assert f"test RMSE {np.sqrt(np.mean(errors**2)):.4g} on {held.sum()} held-out ratings" in " ".join(
        text.split()
    )
    assert model.certify(table.take(~held)).objective == pytest.approx(model.objective_)
    other = cli.fit._held_out(table, {"user": "user", "item": "item", "seed": 4, "holdout": 0.25})
    assert (held != other).any()


def test_without_alpha_it_is_chosen():
    text = fitted("--folds", "3", "--tol", "1e-2", options=("--out", "m.npz"))
    rows = [line.split() for line in text.splitlines()[2:12]]
    best = min(rows, key=lambda row: float(row[1]))
    assert [row for row in rows if row[-1] == "chosen"] == [best]
    assert models.load("m.npz", "MODEL")[0].alpha_ == pytest.approx(float(best[0]), rel=1e-4)


def test_duplicates():
    write("r.csv", [(1, 1, 2.0), (1, 2, 1.0), (1, 1, 4.0), (2, 1, 1.0)])
    for option in ((), ("--holdout", "0.2")):
        words = refusal(fit(*option))
        assert words.startswith("RATINGS: expected each")
        assert words.endswith("--duplicates mean or last accepts them")
    for how, value in (("mean", 3.0), ("last", 4.0)):
        fitted("--duplicates", how, "--alpha", "1e-6")
        model, _ = models.load("m.npz", "MODEL")
        assert model.predict([1], [1]) == pytest.approx(value, rel=1e-3)


def test_resuming_goes_on_with_the_same_ratings():
    fitted("--tol", "0.2", "--bias", "centered", "--holdout", "0.2", "--seed", "5")
    before, about = models.load("m.npz", "MODEL")
    text = fitted("--resume", "--tol", "1e-7", options=("--out", "m.npz"))
    after, again = models.load("m.npz", "MODEL")
    assert about == again
    first = next(line for line in text.splitlines() if line.startswith("     0 "))
    assert float(first.split()[2]) == pytest.approx(before.objective_, rel=1e-6)
    assert after.gap_ < before.gap_
    assert after.objective_ <= before.objective_
    assert (after.alpha_, after.bias) == (2.0, "centered")
    assert after.dual_bound_ <= before.objective_


def test_resuming_is_refused_where_it_would_mislead():
    assert "--resume: m.npz: there is no such file" in refusal(fit("--resume"))
    fitted("--holdout", "0.2")
    assert "--holdout: expected that of m.npz, 0.2, because other" in refusal(
        fit("--resume", "--holdout", "0.3")
    )
    assert "--seed: expected that of m.npz, 0, because" in refusal(fit("--resume", "--seed", "1"))
    write("r.csv", planted()[:-1])
    assert refusal(fit("--resume")) == "--resume: m.npz was fitted to other ratings than those in r.csv"
    MatrixCompletion().fit(np.eye(3)).save("m.npz")
    assert "does not say which ratings it was fitted to" in refusal(fit("--resume"))
    Path("m.npz").write_text("junk")
    assert "--resume: expected a saved" in refusal(fit("--resume"))


# --- what is read


TEXTS = {
    "plain": ("r.csv", "user,item,rating\n1,10,4\n2,10,3.5\n"),
    "quoted": ("r.csv", '"user","item","rating"\n"1","10","4"\n"2","10","3.5"\n'),
    "semicolons": ("r.csv", "user;item;rating\n1;10;4\n2;10;3.5\n"),
    "tabs": ("r.tsv", "user\titem\trating\n1\t10\t4\n2\t10\t3.5\n"),
    "other columns and order": ("r.csv", "t,rating,item,user\n9,4,10,1\nx,3.5,10,2\n"),
    "byte order mark, carriage returns": ("r.csv", "\ufeffuser,item,rating\r\n1,10,4\r\n2,10,3.5\r\n"),
    "blank lines and spaces": ("r.csv", "user, item, rating\n1, 10, 4\n\n2, 10, 3.5\n\n"),
    "no last line end": ("r.csv", "user,item,rating\n1,10,4\n2,10,3.5"),
    "exponents and zeros": ("r.csv", "user,item,rating\n01,10,4e0\n2,+10,.35e1\n"),
    "a comment sign": ("r.csv", "user,item,rating,note\n1,10,4,#1\n2,10,3.5,#2\n"),
}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_both_readers_read_the_same(name, slow, monkeypatch):
    path, text = TEXTS[name]
    Path(path).write_bytes(text.encode())
    if slow:
        monkeypatch.setattr(ratings, "_integers", lambda *a: None)
    table = ratings.read(path, "RATINGS", ["user", "item"], "rating")
    assert (table.columns, table["user"].dtype, table["item"].dtype) == (["user", "item", "rating"], int, int)
    assert (table["user"].tolist(), table["item"].tolist()) == ([1, 2], [10, 10])
    assert table["rating"].tolist() == [4.0, 3.5]
    Path("plain.csv").write_text(TEXTS["plain"][1])
    assert (
        table.fingerprint() == ratings.read("plain.csv", "RATINGS", ["user", "item"], "rating").fingerprint()
    )


def test_ids_that_are_no_whole_numbers_are_text():
    write("r.csv", [("ada, countess", "1.5", 1), ("bob", "007", 2), (" bob ", "7", 3), ("é", "7", 4)])
    table = ratings.read("r.csv", "RATINGS", ["user", "item"], "rating")
    assert table["user"].tolist() == ["ada, countess", "bob", "bob", "é"]
    assert table["item"].tolist() == ["1.5", "007", "7", "7"]
    large = str(2**70)
    write("r.csv", [(large, 1, 1), ("1", 1, 2)])
    assert ratings.read("r.csv", "RATINGS", ["user"])["user"].tolist() == [large, "1"]


def test_more_rows_than_a_chunk(monkeypatch):
    monkeypatch.setattr(ratings, "_CHUNK", 3)
    rows = [(f"u{i % 4}", i, i / 2) for i in range(10)]
    write("r.csv", rows)
    table = ratings.read("r.csv", "RATINGS", ["user", "item"], "rating")
    assert list(zip(*(table[c].tolist() for c in table.columns), strict=True)) == rows
    assert table.fingerprint() != table.take(np.arange(10)[::-1]).fingerprint()
    write("r.csv", [*rows, ("u1", 11, "good")])
    with pytest.raises(InputError, match="line 12: expected a finite number in 'rating', got 'good'"):
        ratings.read("r.csv", "RATINGS", ["user", "item"], "rating")


def test_parquet():
    pd, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    users, items, values = zip(*planted(), strict=True)
    pd.DataFrame({"user": [f"u{u}" for u in users], "item": items, "rating": values}).to_parquet("r.parquet")
    table = ratings.read("r.parquet", "RATINGS", ["user", "item"], "rating")
    assert table["user"].tolist() == [f"u{u}" for u in users]
    assert table["item"].tolist() == list(items)
    fitted(path="r.parquet")


def test_parquet_without_its_reader(monkeypatch):
    Path("r.parquet").write_text("PAR1")
    monkeypatch.setattr(ratings, "find_spec", lambda name: None)
    assert refusal(fit(path="r.parquet")).endswith(
        "Parquet needs pandas and pyarrow: pip install pandas pyarrow"
    )


WRONG = {
    "": "RATINGS: r.csv: expected a header line with the names of the columns, got an empty file or line",
    "user,item,rating\n": "RATINGS: r.csv: expected at least one row below the header, got none",
    "who,item,rating\n1,2,3\n": "RATINGS: r.csv: expected a column 'user', got 'who', 'item', 'rating'",
    "user,user,item,rating\n1,2,3,4\n": "expected one column 'user', got 'user', 'user', 'item', 'rating'",
    "1,2,3\n": "expected a column 'user', got '1', '2', '3'",
    "user,item,rating\n1,2,good\n": "RATINGS: r.csv, line 2: expected a finite number in 'rating', got 'good'",
    "user,item,rating\n1,2,3\n1,3,nan\n": "line 3: expected a finite number in 'rating', got 'nan'; leave a missing",
    "user,item,rating\n1,2,3\n\n1,3,inf\n": "line 4: expected a finite number in 'rating', got 'inf'",
    "user,item,rating\n1,2,3\n1,3,\n": "line 3: expected a finite number in 'rating', got none; leave a missing",
    "user,item,rating\n1,2,3\n1,3\n": "line 3: expected at least 3 columns, got 2",
    "user,item,rating\n1,2,3\n ,3,4\n": "line 3: expected an id in 'user', got none",
    'user,item,rating\n"1,2,3\n': "RATINGS: r.csv: is not a table of text (",
}


@pytest.mark.parametrize("text", WRONG)
def test_files_that_are_wrong_are_refused_by_their_line(text):
    Path("r.csv").write_text(text)
    assert WRONG[text] in refusal(fit())
    assert not Path("m.npz").exists()


def test_bytes_that_are_no_text():
    Path("r.csv").write_bytes(b"user,item,rating\n1,\xff,3\n")
    assert refusal(fit()).endswith("expected text in UTF-8, got byte 0xff")
    Path("r.csv").write_bytes(b"\x00\x01\xfe" * 100)
    assert "expected text in UTF-8" in refusal(fit())


BAD = {
    ("--alpha", "0"): "--alpha: expected a finite number > 0, got 0.0",
    ("--alpha", "nan"): "--alpha: expected a finite number > 0, got nan",
    ("--alpha", "big"): "--alpha: expected a number, got 'big'",
    ("--cv",): "--alpha, --cv: expected one of them, got both",
    ("--tol", "-1"): "--tol: expected a finite number >= 0, got -1.0",
    ("--max-rank", "0"): "--max-rank: expected an integer >= 1, got 0",
    ("--max-rank", "1.5"): "--max-rank: expected a whole number, got '1.5'",
    ("--bias", "yes"): "--bias: expected none, penalized or centered, got 'yes'",
    ("--loss", "hinge"): "--loss: expected one of 'squared', 'huber', 'logistic', 'poisson', got 'hinge'",
    ("--delta", "0"): "--delta: expected a finite number > 0",
    ("--duplicates", "sum"): "--duplicates: expected one of 'error', 'mean', 'last', got 'sum'",
    ("--holdout", "1"): "--holdout: expected a share from 0 to 0.9, got 1",
    ("--holdout", "x"): "--holdout: expected a number, got 'x'",
    ("--folds", "1"): "--folds: expected a whole number >= 2, got 1",
    ("--budget", "soon"): "--budget: expected a positive time",
    ("--seed", "-1"): "seed: expected an integer from 0",
    ("--device", "abacus"): "device: expected a device present on this machine, got 'abacus'",
    ("--out", "r.csv"): "RATINGS, --out: expected different files, got the same one twice",
    ("--out", "no/m.npz"): "--out: cannot write no/m.npz: there is no folder",
}  # fmt: skip


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_refused_before_the_file_is_read(options, monkeypatch):
    monkeypatch.setattr(ratings, "read", lambda *a, **k: pytest.fail("the work began"))
    assert BAD[options] in refusal(fit(*options))


def test_what_else_is_refused():
    assert "RATINGS: none.csv: there is no such file" in refusal(fit(path="none.csv"))
    assert "expected different columns, got 'user', 'user', 'rating'" in refusal(fit("--item", "user"))
    assert refusal(fit("--loss", "poisson")).startswith(
        "RATINGS: expected counts >= 0 for loss='poisson', got -"
    )
    write("r.csv", [(1, 1, 1.0), (2, 2, 1.0)])
    assert "--holdout: expected ratings that can be left out, got none" in refusal(fit("--holdout", "0.5"))
    assert call("fit", "completion", "r.csv").exit_code == 2
    assert call("fit", "nonsense").exit_code == 2


@pytest.mark.parametrize(
    "rows",
    [[(1, 1, 3.0)], [(1, j, 2.0) for j in range(5)], [(i, j, 2.5) for i in range(4) for j in range(3)]],
)
def test_small_tables(rows):
    write("r.csv", rows)
    fitted("--alpha", "0.01", "--tol", "1e-8")
    model, _ = models.load("m.npz", "MODEL")
    assert model.rank_ == 1
    assert model.predict([rows[-1][0]], [rows[-1][1]]) == pytest.approx(rows[-1][2], abs=0.02)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("ours"), ValueError("ours"), ValueError("X of ours: expected")]
)
def test_a_defect_of_ours_is_no_refusal(error, monkeypatch):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(MatrixCompletion, "fit", broken)
    assert fit().exception is error


def test_a_full_disk_is_told_after_the_certificate(monkeypatch):
    Path("m.npz").write_text("old")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    result = fit()
    assert result.exit_code == 2
    assert "certificate (closed)" in result.stdout
    assert result.stderr == "Error: cannot write m.npz: No space left on device\n"
    assert Path("m.npz").read_text() == "old"
    assert {path.name for path in Path.cwd().iterdir()} == {"r.csv", "m.npz"}


def test_help():
    for arguments in (("fit",), ("fit", "completion"), ("predict",)):
        result = call(*arguments, "--help")
        assert result.exit_code == 0
        assert max(map(len, result.output.splitlines())) <= 80


# --- an interrupt


def start(*arguments):
    # a process that a script put into the background ignores SIGINT, and so would its children
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from theodolite.cli import main; main()"
    command = [sys.executable, "-W", "error", "-c", program, "fit", "completion", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_ctrl_c_saves_the_best_so_far_and_a_resumed_fit_goes_on(delay):
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(300, 250))  # noise: the optimal rank is high, and a gap of 0 is never proved
    write("n.csv", [(i, j, f"{Y[i, j]:.4f}") for i in range(300) for j in range(250) if rng.random() < 0.5])
    process = start("n.csv", "--alpha", "4", "--tol", "0", "--out", "n.npz")
    while not (line := process.stdout.readline()).startswith("     0 "):
        assert line, process.communicate()
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert err == "Interrupted; the best so far was saved, and --resume goes on from it.\n"
    assert "certificate (" in out
    model, _ = models.load("n.npz", "MODEL")
    assert model.interrupted_
    table = ratings.read("n.csv", "RATINGS", ["user", "item"], "rating")
    assert model.certify(table, budget=0.0).objective == pytest.approx(model.objective_)
    assert model.dual_bound_ < model.objective_
    text = fitted("--resume", "--budget", "1s", path="n.csv", options=("--out", "n.npz"))
    after, _ = models.load("n.npz", "MODEL")
    assert not after.interrupted_
    first = next(line for line in text.splitlines() if line.startswith("     0 "))
    assert float(first.split()[2]) == pytest.approx(model.objective_, rel=1e-6)
    assert after.objective_ <= model.objective_
    # bounds of the two runs are of one problem
    assert max(after.dual_bound_, model.dual_bound_) <= min(after.objective_, model.objective_)


def test_ctrl_c_before_the_solver_saves_nothing(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ratings, "read", interrupted)
    result = fit()
    assert result.exit_code == 130
    assert result.stderr == "Interrupted before there was anything to report.\n"
    assert not Path("m.npz").exists()


# --- predict


@pytest.fixture
def model():
    fitted("--bias", "centered")
    return models.load("m.npz", "MODEL")[0]


def test_pairs_are_predicted_in_their_order(model):
    write("p.csv", [("x", 7, 105), ("y", 0, 100), ("z", 7, 105)], header=("note", "item", "user"))
    result = call("predict", "m.npz", "p.csv", "--out", "o.csv")
    assert result.exit_code == 0, result.output
    assert result.stdout == "o.csv: 3 predictions\n"
    header, *rows = read_csv("o.csv")
    assert header == ["user", "item", "rating"]
    assert [row[:2] for row in rows] == [["105", "7"], ["100", "0"], ["105", "7"]]
    assert [float(row[2]) for row in rows] == pytest.approx(
        model.predict([105, 100, 105], [7, 0, 7]), rel=1e-5
    )


def test_unknown_ids(model):
    write("p.csv", [(100, 7), (5, 7), (100, "new"), ("nobody", "new")], header=("user", "item"))
    words = refusal(call("predict", "m.npz", "p.csv", "--out", "o.csv"))
    assert words == (
        "PAIRS: expected ids that the fit has seen in 'user', got '5' (2 lines in all); --unknown mean accepts them"
    )
    assert not Path("o.csv").exists()
    assert call("predict", "m.npz", "p.csv", "--out", "o.csv", "--unknown", "mean").exit_code == 0
    values = [float(row[2]) for row in read_csv("o.csv")[1:]]
    i, j = model.row_ids_.tolist().index(100), model.col_ids_.tolist().index(7)
    mean, b, c = model.mean_, model.row_bias_[i], model.col_bias_[j]
    assert values == pytest.approx([model.predict([100], [7])[0], mean + c, mean + b, mean], rel=1e-5)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_best_items_of_each_user(loss, monkeypatch):
    if loss == "logistic":
        write("r.csv", [(u, i, int(r > 3.0)) for u, i, r in planted()])
    fitted("--loss", loss, "--alpha", "0.5")
    model = models.load("m.npz", "MODEL")[0]
    monkeypatch.setattr(cli.predict, "_CHUNK", 100)
    for exclude in ((), ("--exclude", "r.csv")):
        assert call("predict", "m.npz", "--top", "4", *exclude, "--out", "o.tsv").exit_code == 0
        _, *rows = read_csv("o.tsv", "\t")
        rated = {(u, i) for u, i, _ in planted()} if exclude else set()
        for user in model.row_ids_.tolist():
            ours = [(int(i), float(v)) for u, i, v in rows if int(u) == user]
            others = [i for i in model.col_ids_.tolist() if (user, i) not in rated]
            values = model.predict([user], others)
            best = sorted(zip(values, others, strict=True), reverse=True)[:4]
            assert [i for i, _ in ours] == [i for _, i in best]
            assert [v for _, v in ours] == pytest.approx([v for v, _ in best], rel=1e-4)


def test_the_best_items_of_some_users(model):
    write("p.csv", [(105,), (103,), (105,)], header=("user",))
    assert call("predict", "m.npz", "p.csv", "--top", "99", "--out", "o.csv").exit_code == 0
    rows = read_csv("o.csv")[1:]
    assert [row[0] for row in rows] == ["103"] * 20 + ["105"] * 20
    write("e.csv", [(105, j * 7) for j in range(20)] + [("x", "y")], header=("user", "item"))
    assert (
        call("predict", "m.npz", "p.csv", "--top", "3", "--exclude", "e.csv", "--out", "o.csv").exit_code == 0
    )
    assert [row[0] for row in read_csv("o.csv")[1:]] == ["103"] * 3


def test_string_ids_come_back_as_they_were():
    write("r.csv", [(f"0{u}", f"film {i}", r) for u, i, r in planted()] + [("x", "film 0", 3)])
    fitted()
    write("p.csv", [("0100", "film 0"), ("0101", "film 7")], header=("user", "item"))
    assert call("predict", "m.npz", "p.csv", "--out", "o.csv").exit_code == 0
    # ids that look like numbers here were not all numbers in the fit
    assert refusal(call("predict", "m.npz", "p.csv", "--out", "o.csv", "--user", "nope")).startswith(
        "PAIRS: p.csv"
    )
    assert [row[1] for row in read_csv("o.csv")[1:]] == ["film 0", "film 7"]


PREDICT = {
    ("m.npz",): "PAIRS: expected a file of pairs, or --top",
    ("m.npz", "--top", "0"): "--top: expected a whole number >= 1, got 0",
    ("m.npz", "none.csv"): "PAIRS: none.csv: there is no such file",
    ("none.npz", "r.csv"): "MODEL: none.npz: there is no such file",
    ("r.csv", "r.csv"): "MODEL: expected a saved MatrixCompletion",
    ("m.npz", "r.csv", "--unknown", "zero"): "--unknown: expected error or mean, got 'zero'",
    ("m.npz", "r.csv", "--exclude", "r.csv"): "--exclude: expected --top with it",
    ("m.npz", "r.csv", "--out", "no/o.csv"): "--out: cannot write no/o.csv",
}


def test_predictions_that_are_refused(model):
    for arguments, words in PREDICT.items():
        assert words in refusal(call("predict", "--out", "o.csv", *arguments))
    MatrixCompletion().fit(np.eye(3)).save("i.npz")
    assert "expected one that was fitted to a table" in refusal(
        call("predict", "--out", "o.csv", "i.npz", "r.csv")
    )
    assert not Path("o.csv").exists()


def test_the_file_says_what_it_was_fitted_to(model):
    with np.load("m.npz", allow_pickle=False) as file:
        about = json.loads(file["cli"].tobytes())
    assert about["fingerprint"] == ratings.read("r.csv", "RATINGS", ["user", "item"], "rating").fingerprint()


def test_what_was_not_written_by_fit_is_refused_whole():
    fitted()
    with np.load("m.npz") as file:
        parts = dict(file)
    for entry in (b"not json", b"[1]"):
        np.savez("other.npz", **parts | {"cli": np.frombuffer(entry, dtype=np.uint8)})
        message = refusal(call("predict", "other.npz", "--top", 1, "--out", "o.csv"))
        assert message == "MODEL: expected a model that theodolite fit wrote, got 'other.npz'"


def test_too_many_folds_are_refused_by_their_option():
    assert "--folds: expected at most as many folds as observed entries" in refusal(
        fit(options=("--folds", 10**6, "--out", "m.npz"))
    )
