"""Files appear whole or not at all."""

import os
import stat
import threading
from pathlib import Path

import pytest

from theodolite.auditing.files import check_readable, check_writable, write_atomically
from theodolite.theorems.subject import InputError

LONG = "a" * 300


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_text_and_replace(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "Größe")
    write_atomically(str(path), "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["a.txt"]


def test_while_it_is_written_the_old_file_is_there(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        seen.append((path.read_text(), temporary.parent, temporary.suffix))

    write_atomically(path, write)
    assert seen == [("old", tmp_path, ".pt")]
    assert path.read_text() == "half"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()]
)
def test_what_fails_in_the_middle_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_atomically(path, write)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_mode_is_kept_and_new_files_obey_the_mask(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("")
    old.chmod(0o640)
    mask = os.umask(0o027)
    try:
        write_atomically(old, "x")
        write_atomically(new, "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_the_file_behind_a_link_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    check_writable(link, "--json")
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe, "--json")
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_atomically(pipe, "text")
    reader.join()
    assert read == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_a_function_writes_goes_through_a_pipe_that_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, lambda temporary: temporary.write_bytes(b"\x00model") and None)
    reader.join()
    assert read == [b"\x00model"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_check_writable_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new.json", "--json")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "--json: {} is a folder, expected the name of a file"),
        ("missing/a.json", "--json: cannot write {}: there is no folder {parent}"),
        ("file/a.json", "--json: cannot write {}: there is no folder {parent}"),
        (LONG, "--json: cannot write {}: File name too long"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, path, sentence):
    (tmp_path / "file").write_text("")
    path = tmp_path / path
    with pytest.raises(InputError) as caught:
        check_writable(path, "--json")
    assert str(caught.value) == sentence.format(path, parent=path.parent)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "MODEL: {}: is a folder"),
        ("missing.py", "MODEL: {}: there is no such file"),
        ("file/a.py", "MODEL: {}: there is no such file"),
        (LONG, "MODEL: {}: File name too long"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, path, sentence):
    (tmp_path / "file").write_text("")
    check_readable(tmp_path / "file", "MODEL")
    with pytest.raises(InputError) as caught:
        check_readable(tmp_path / path, "MODEL")
    assert str(caught.value) == sentence.format(tmp_path / path)
