"""Promises about the tree itself: sizes, docstrings, lazy imports, set-up files, README."""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "theodolite"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "sklearn", "matplotlib"}


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def readme_commands(program: str) -> set[str]:
    """Return the words that follow a program's name in the code of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:console|bash|sh)$(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    lines = [line.removeprefix("$ ") for code in (*blocks, *inline) for line in code.splitlines()]
    words = [line.split() for line in lines]
    return {word[1] for word in words if word[:1] == [program] and len(word) > 1 and word[1][0] != "-"}


def test_files_are_short() -> None:
    # a bibliography is data, not something to read through
    texts = [p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in {".bib", ".pyc"}]
    lines = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in texts}
    assert {name: n for name, n in lines.items() if n > 500} == {}


def test_the_core_stays_small() -> None:
    lines = [len(p.read_text(encoding="utf-8").splitlines()) for p in (PACKAGE / "core").glob("*.py")]
    assert 0 < sum(lines) <= 800


def test_folders_are_at_most_two_deep() -> None:
    folders = {p.relative_to(PACKAGE).parent for p in PACKAGE.rglob("*") if "__pycache__" not in p.parts}
    assert [str(folder) for folder in folders if len(folder.parts) > 2] == []


def test_every_public_module_has_a_docstring() -> None:
    public = [p for p in MODULES if p.name == "__init__.py" or not p.name.startswith("_")]
    silent = [p for p in public if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert [str(p.relative_to(ROOT)) for p in silent] == []


@pytest.mark.parametrize("module", ["theodolite", "theodolite.cli"])
def test_import_is_lazy(module: str) -> None:
    loaded = run_python(f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})")
    assert HEAVY & set(loaded.split()) == set()


def test_every_public_name_resolves() -> None:
    code = (
        "import theodolite as td\n"
        "assert set(td.__all__) <= set(dir(td))\n"
        "for name in td.__all__: assert getattr(td, name) is not None, name\n"
        "assert callable(td.audit)\n"
        "try: td.no_such_name\n"
        "except AttributeError as error: print(error)\n"
    )
    assert run_python(code).strip() == "module 'theodolite' has no attribute 'no_such_name'"


def test_help_is_fast() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        text = run_python("from theodolite.cli import main; main()", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "audit" in text
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_readme_names_only_commands_that_exist() -> None:
    from theodolite.cli import main

    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = readme_commands("make")
    assert {"audit", "test"} <= named <= targets
    subcommands = set(main.list_commands(click.Context(main)))
    named = readme_commands("theodolite")
    assert {"audit"} <= named <= subcommands


def test_torch_is_the_pinned_one() -> None:
    (pin,) = re.findall(
        r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert torch.__version__.split("+")[0] == pin


def test_no_file_names_a_registry_or_a_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of the project's own files")
    # the patterns are written so that this file does not contain what they look for
    hosts = r"py[p]i\.(?:org|io)|python[h]osted|download\.py[t]orch|registry\.np[m]js"
    paths = r"(?<![\w.~])/(?:w[o]rk|r[o]ot|h[o]me|o[p]t)/"
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            found += [f"{name}: {hit}" for hit in re.findall(f"{hosts}|{paths}", text)]
    assert found == []
