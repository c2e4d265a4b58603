"""Write the pages that follow from the code: theorems, experiments, atoms, losses, modules, commands.

Everything comes from class attributes, docstrings and ``docs/examples``, so that no page can say
something else than the code does.  Only theodolite itself is needed; sphinx renders what is written.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import theodolite
import theodolite.core.atom
import theodolite.losses.base
from theodolite.auditing import references
from theodolite.auditing.explain import CHANGES, COSTS
from theodolite.experiments import ALL as EXPERIMENTS
from theodolite.experiments import Experiment
from theodolite.experiments.datasets import PACKAGES
from theodolite.theorems import ALL as THEOREMS
from theodolite.theorems.base import Hypothesis, Theorem
from theodolite.value import Value

PACKAGE = Path(theodolite.__file__).parent
EXAMPLE = Path(__file__).parent / "examples" / "pretrained-digits.json"

GROUPS = {
    "Numbers": ("theodolite.value",),
    "Problems and certificates": ("theodolite.core",),
    "Losses": ("theodolite.losses",),
    "Atoms and their polars": ("theodolite.atoms", "theodolite.polar"),
    "Estimators": ("theodolite.estimators",),
    "Modules and optimizers": ("theodolite.nn", "theodolite.optim", "theodolite.models"),
    "Analysis": ("theodolite.analysis",),
    "Linear algebra": ("theodolite.linalg",),
    "Theorems and remedies": ("theodolite.theorems", "theodolite.remedies"),
    "Audits": ("theodolite.auditing", "theodolite.cli"),
    "Checks and brute force": ("theodolite.testing", "theodolite.reference"),
    "Experiments": ("theodolite.experiments",),
}


def write(folder: Path) -> list[Path]:
    """Write every page into a folder, which keeps only them and the gallery.

    A page that did not change is not touched, so that sphinx need not read it again.
    """
    pages = all_pages()
    for old in folder.rglob("*.md"):
        if old.relative_to(folder).parts[0] != "gallery" and str(old.relative_to(folder)) not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def all_pages() -> dict[str, str]:
    """Return the text of every page by its path."""
    families = family_pages("atoms") | family_pages("losses")
    return theorem_pages() | experiment_pages() | families | module_pages() | command_pages()


# --- theorems


def theorem_pages() -> dict[str, str]:
    """Return a page for each theorem and one that lists them by chapter."""
    chapters: dict[str, list[type[Theorem]]] = {}
    for theorem in THEOREMS:
        chapters.setdefault(theorem.chapter, []).append(theorem)
    lines = ["# Theorems", "", "One page each, written from the class that an audit runs.", ""]
    for chapter, theorems in chapters.items():
        lines += [f"## {chapter.capitalize()}", ""]
        lines += [f"- [{t.code}: {t.title}]({t.code}.md). {summary(t)}" for t in theorems]
        lines += ["", *toctree([t.code for t in theorems])]
    pages = {"theorems/index.md": text_of(lines)}
    measured = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    findings = {finding["code"]: finding for finding in measured["findings"]}
    return pages | {f"theorems/{t.code}.md": theorem_page(t, findings.get(t.code)) for t in THEOREMS}


def theorem_page(theorem: type[Theorem], example: dict[str, Any] | None) -> str:
    """Return the page of one theorem, with what it found in the published example."""
    name = f"{theorem.__module__}.{theorem.__qualname__}"
    lines = [f"# {theorem.code}: {theorem.title}", "", summary(theorem), ""]
    lines += ["## Statement", "", prose(theorem.statement), "", "## Hypotheses", ""]
    lines += [described(h) for h in theorem.hypotheses] or ["None."]
    lines += ["", "## What is computed", ""]
    lines += [docstring(theorem.compute), ""] if theorem.compute.__doc__ else []
    lines += list(example_lines(example))
    cost = re.sub(r"(--\w+)", r"`\1`", COSTS[theorem.cost])
    lines += ["## Cost and invariance", "", f"- Cost: {cost}."]
    for kind, verb in (("invariant", "stay the same"), ("sensitive", "change in general")):
        changes = [words for change, words in CHANGES.items() if change in getattr(theorem, kind)]
        if changes:
            lines.append(f"- Its values {verb} after {', '.join(changes)}.")
    lines += ["", "## Sources", ""]
    for source in references.resolve(theorem.reference):
        lines.append(f"- {escaped(source.text)} {{cite:p}}`{source.key}`")
    lines += ["", "## Code", ""]
    lines += [f"`theodolite explain {theorem.code}` prints this page's statement in a terminal.", ""]
    lines += rst(f".. autoclass:: {name}", "   :no-members:", "   :no-inherited-members:")
    return text_of(lines)


def described(hypothesis: Hypothesis) -> str:
    """Return a hypothesis as an item of a list: what must hold, who decides, what happens if it fails."""
    if hypothesis.check is None:
        decided = "Nothing in the model or the data can show it: it is your word, and printed as an “if”"
    else:
        decided = "Checked on the model and the data"
    fails = "refuted" if hypothesis.about else "not applicable"
    end = "." if hypothesis.check is None else f"; where it is false, the finding is *{fails}*."
    return f"- **{hypothesis.name}**: {escaped(hypothesis.statement)}. {decided}{end}"


def example_lines(finding: dict[str, Any] | None) -> Iterable[str]:
    """Yield what a theorem said of the published digit network."""
    if finding is None:
        return
    yield "On the [published digit network](../../tutorial.md) that the example audits, the finding is "
    yield f"*{finding['status']}*" + (f": {escaped(finding['reason'])}." if finding["reason"] else ".")
    yield ""
    rows = [(name, Value.from_dict(value)) for name, value in finding["values"].items()]
    if rows:
        yield from ("| value | is | note |", "|---|---|---|")
        for name, value in rows[:12]:
            yield f"| `{name}` | {value} | {cell(value.note)} |"
        if len(rows) > 12:
            yield f"\n({len(rows) - 12} more values are in the example's JSON report.)"
        yield ""


# --- experiments


def experiment_pages() -> dict[str, str]:
    """Return a page for each experiment and one that lists them."""
    intro = "Figures of the field made again, every claim asserted: `theodolite reproduce NAME`."
    lines = ["# Experiments", "", intro, ""]
    lines += [f"- [{e.title}]({e.name}.md). {summary(e)}" for e in EXPERIMENTS]
    lines += ["", *toctree([e.name for e in EXPERIMENTS])]
    return {"experiments/index.md": text_of(lines)} | {
        f"experiments/{e.name}.md": experiment_page(e) for e in EXPERIMENTS
    }


def experiment_page(experiment: type[Experiment]) -> str:
    """Return the page of one experiment."""
    lines = [f"# {experiment.title}", "", summary(experiment), "", prose(experiment.statement), ""]
    lines += ["```console", f"$ theodolite reproduce {experiment.name}", "```", ""]
    if experiment.needs is not None:
        package = PACKAGES[experiment.needs]
        lines += [f"It reads {package.data} from a package: `{package.command}`.", ""]
    lines += ["## Sources", ""]
    for source in references.resolve(experiment.reference):
        lines.append(f"- {escaped(source.text)} {{cite:p}}`{source.key}`")
    lines += ["", "## Code", ""]
    name = f"{experiment.__module__}.{experiment.__qualname__}"
    lines += rst(f".. autoclass:: {name}", "   :no-members:", "   :no-inherited-members:")
    return text_of(lines)


# --- atoms and losses


def families(package: str) -> list[type]:
    """Return the concrete public classes that ``theodolite.atoms`` or ``theodolite.losses`` defines."""
    base = {"atoms": theodolite.core.atom.Atom, "losses": theodolite.losses.base.Loss}[package]
    found = []
    for path in sorted((PACKAGE / package).glob("*.py")):
        module = import_module(f"theodolite.{package}.{path.stem}")
        for name, thing in vars(module).items():
            own = isinstance(thing, type) and thing.__module__ == module.__name__
            if own and issubclass(thing, base) and not inspect.isabstract(thing) and name[0] != "_":
                found.append(thing)
    return found


def family_pages(package: str) -> dict[str, str]:
    """Return a page for each atom or loss, and one that says what each is."""
    classes = families(package)
    intro = {
        "atoms": "An atom is one family of subnetworks: a prediction, a regularizer and their polar.",
        "losses": "A loss is a convex function of the predictions, with its gradient and its dual value.",
    }[package]
    symbols = "[Notation](../../notation.md) explains the symbols."
    lines = [f"# {package.capitalize()}", "", f"{intro} {symbols}", ""]
    lines += toctree([c.__name__ for c in classes])
    pages = {}
    for family in classes:
        link = f"[{family.__name__}]({family.__name__}.md)"
        lines += [f"## {link}", "", *rst(*bars(introduction(family).splitlines()))]
        name = f"{family.__module__}.{family.__qualname__}"
        body = rst(f".. autoclass:: {name}", "   :members:", "   :show-inheritance:")
        pages[f"{package}/{family.__name__}.md"] = text_of([f"# {family.__name__}", "", *body])
    return pages | {f"{package}/index.md": text_of(lines)}


def introduction(thing: type) -> str:
    """Return the docstring of a class up to its first section."""
    return re.split(r"\n\n[A-Z][\w ]*\n-{3,}", inspect.getdoc(thing) or "")[0]


# --- modules and commands


def modules() -> dict[str, tuple[str, dict[str, str]]]:
    """Return, for each module that has no page of another sort, its first sentence and what it defines.

    What it defines is a dict from name to directive, ``autoclass`` or ``autofunction``.
    """
    paged = {c.__module__ for c in (*THEOREMS, *EXPERIMENTS, *families("atoms"), *families("losses"))}
    directives = {ast.ClassDef: "autoclass", ast.FunctionDef: "autofunction"}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("theodolite", *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__init__")
        if name in (*paged, "theodolite") or (parts[-1][0] == "_" and parts[-1] != "__init__"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {
            n.name: directives[type(n)] for n in tree.body if type(n) in directives and n.name[0] != "_"
        }
        if defined:
            found[name] = (first_sentence(ast.get_docstring(tree) or ""), defined)
    return found


def module_pages() -> dict[str, str]:
    """Return a page for each module, and the index of the reference."""
    found = modules()
    lines = ["# Modules", "", "What `import theodolite as td` offers:", ""]
    lines += [f"- `td.{public}`: {origin(public)}" for public in theodolite.__all__ if public[0] != "_"]
    lines += [
        "",
        "Theorems, experiments, atoms and losses have [pages](../theorems/index.md) of their own.",
        "",
    ]
    for title, packages in GROUPS.items():
        members = [name for name in found if any(within(name, package) for package in packages)]
        if members:
            lines += [f"## {title}", "", "| module | about |", "|---|---|"]
            lines += [f"| [{name}]({name}.md) | {cell(found[name][0])} |" for name in members]
            lines += ["", *toctree(members)]
    pages = {f"api/{name}.md": module_page(name, defined) for name, (_, defined) in found.items()}
    return pages | {"api/index.md": text_of(lines)}


def module_page(module: str, defined: dict[str, str]) -> str:
    """Return the page of a module: its docstring, a table of what it defines, and each of these in full."""
    table = [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in defined), ""]
    full = [f".. {directive}:: {module}.{name}" for name, directive in defined.items()]
    body = rst(
        f".. automodule:: {module}", "   :no-members:", "", f".. currentmodule:: {module}", "", *table, *full
    )
    return text_of([f"# {module}", "", *body])


def within(name: str, package: str) -> bool:
    """Return whether a module is a package or lies in it."""
    return name == package or name.startswith(package + ".")


def origin(public: str) -> str:
    """Return what a public name is, in its own words."""
    thing = getattr(theodolite, public)
    text = first_sentence(inspect.getdoc(thing) or "")
    if isinstance(thing, ModuleType):
        return text
    return f"{text} ([{thing.__module__}]({thing.__module__}.md))"


def command_pages() -> dict[str, str]:
    """Return the page of the command line: what ``--help`` prints."""
    import click

    from theodolite.cli import main

    # the settings of the real program, which click keeps with the command once its help was asked for
    context = click.Context(main, info_name="theodolite", **main.context_settings)
    lines = ["# Command line", "", "```text", main.get_help(context), "```", ""]
    for inner in contexts(context):
        lines += [f"## {inner.command_path}", "", "```text", inner.command.get_help(inner), "```", ""]
    return {"commands.md": text_of(lines)}


def contexts(group: Any) -> Iterator[Any]:
    """Yield a click context for each command of a group, those of inner groups after their group."""
    import click

    for name, command in sorted(group.command.commands.items()):
        inner = click.Context(command, parent=group, info_name=name)
        yield inner
        if isinstance(command, click.Group):
            yield from contexts(inner)


# --- text


def docstring(thing: Any) -> str:
    """Return the first paragraph of a docstring in one line of Markdown, "" when there is none."""
    return marked(" ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()))


def summary(thing: Any) -> str:
    """Return the first paragraph of a class's own docstring."""
    return docstring(thing) if thing.__doc__ else ""


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, in Markdown."""
    return marked(" ".join(text.split("\n\n")[0].split()))


def marked(text: str) -> str:
    """Turn the reStructuredText of a docstring's summary into Markdown."""
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def prose(statement: str) -> str:
    """Return a statement in Markdown: its formulas as they are, the words around them escaped."""
    pieces = re.split(r"(?<!\\)\$", statement)
    return "".join(f"${p.strip()}$" if i % 2 else escaped(p) for i, p in enumerate(pieces))


def escaped(text: str) -> str:
    """Return text in which Markdown sees nothing but words."""
    return re.sub(r"([*_`<>\[\]])", r"\\\1", text)


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "\\|")


def bars(lines: list[str]) -> list[str]:
    """Return the lines with |x| escaped: it is an absolute value, not a substitution.

    Literals, roles and indented blocks (``.. math::``, code) stay as they are.
    """
    result, block = [], -1
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if block >= 0 and (not line.strip() or indent > block):
            result.append(line)
            continue
        block = indent if line.rstrip().endswith("::") or line.lstrip().startswith(".. ") else -1
        pieces = re.split(r"(``.*?``|`[^`]*`)", line) if block < 0 else [line]
        if block < 0:
            pieces[::2] = [piece.replace("|", "\\|") for piece in pieces[::2]]
        result.append("".join(pieces))
    return result


def rst(*lines: str) -> list[str]:
    """Return lines of reStructuredText inside a page in Markdown."""
    return ["```{eval-rst}", *lines, "```", ""]


def toctree(names: Iterable[str]) -> list[str]:
    """Return a table of contents for the sidebar; the page itself has links in its text."""
    return ["```{toctree}", ":hidden:", "", *names, "```", ""]


def text_of(lines: Iterable[str]) -> str:
    """Return the text of a page."""
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    target = Path(__file__).parent / "generated"
    shutil.rmtree(target, ignore_errors=True)
    print(f"{len(write(target))} pages in {target}")
