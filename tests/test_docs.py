"""The documentation: a page for everything that owes one, names that exist, examples that run."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import theodolite as td
from theodolite.auditing import references
from theodolite.theorems import ALL

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TOOLS = (
    "sphinx",
    "pydata_sphinx_theme",
    "sphinx_gallery",
    "numpydoc",
    "myst_parser",
    "sphinxcontrib.bibtex",
    "matplotlib",
)


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(DOCS))
    try:
        import pages
    finally:
        sys.path.remove(str(DOCS))
    return pages


@pytest.fixture(scope="module")
def texts(pages):
    return pages.all_pages()


def installed(tool):
    try:
        return find_spec(tool) is not None
    except ModuleNotFoundError:  # the package that would hold it
        return False


def test_every_theorem_has_a_page(texts):
    for theorem in ALL:
        page = texts[f"theorems/{theorem.code}.md"]
        assert page.startswith(f"# {theorem.code}: {theorem.title}\n")
        for formula in re.split(r"(?<!\\)\$", theorem.statement)[1::2]:
            assert f"${formula.strip()}$" in page
        for hypothesis in theorem.hypotheses:
            assert f"- **{hypothesis.name}**: " in page
        for key in theorem.reference.split(","):
            assert key.strip() in references.bibliography()
            assert key.strip() in page
        assert f"({theorem.code}.md)" in texts["theorems/index.md"]


@pytest.mark.parametrize("package", ["atoms", "losses"])
def test_every_atom_and_loss_has_a_page(pages, texts, package):
    base = {"atoms": td.core.atom.Atom, "losses": td.losses.Loss}[package]
    module = getattr(td, package)
    public = [getattr(module, name) for name in module.__all__]
    owed = {
        c.__name__
        for c in public
        if isinstance(c, type) and issubclass(c, base) and not c.__abstractmethods__
    }
    assert owed
    assert owed <= {c.__name__ for c in pages.families(package)}
    for name in owed:
        assert f"{package}/{name}.md" in texts
        assert f"({name}.md)" in texts[f"{package}/index.md"]


def test_every_module_is_in_the_reference(pages, texts):
    listed = texts["api/index.md"]
    for name, (about, defined) in pages.modules().items():
        assert about
        assert all(f":: {name}.{public}\n" in texts[f"api/{name}.md"] for public in defined)
        assert f"[{name}]({name}.md)" in listed, "GROUPS of docs/pages.py lacks its package"


def test_pages_that_did_not_change_are_not_touched(pages, tmp_path):
    (tmp_path / "theorems").mkdir()
    (tmp_path / "theorems" / "OLD001.md").write_text("# a theorem that is gone\n")
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "index.md").write_text("# not ours\n")
    written = pages.write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in written}
    assert not (tmp_path / "theorems" / "OLD001.md").exists()
    assert (tmp_path / "gallery" / "index.md").exists()
    pages.write(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == before


def test_names_on_the_notation_page_exist():
    known = {"params", "count"}
    for path in (ROOT / "theodolite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            known |= {getattr(node, field, None) for field in ("id", "attr", "arg", "name")}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.add(node.value)
    rows = re.findall(
        r"^\| (.*?) \| (.*?) \| (.*?) \|$", (DOCS / "notation.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {
        word
        for _, code, _ in rows
        for span in re.findall(r"`([^`]+)`", code)
        for word in re.findall(r"[A-Za-z_]\w*", span)
    }
    assert len(named) > 30
    assert sorted(named - known) == []


def test_links_between_pages_lead_somewhere():
    for path in (*DOCS.glob("*.md"), ROOT / "README.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            written_at_build = target.startswith("generated/")
            assert written_at_build or "://" in target or (path.parent / target).exists(), (
                f"{path.name}: {target}"
            )


def test_the_certificate_of_the_tutorial():
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    source = re.search(r"<!-- certificate -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    generator = torch.Generator().manual_seed(0)
    space = {"Y": torch.randn(12, 8, generator=generator, dtype=torch.float64)}
    exec(compile(source, "docs/tutorial.md", "exec"), space)
    assert space["solution"].certificate.verdict == "closed"
    assert space["certificate"].gap >= space["solution"].certificate.gap


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_have_a_title_and_only_public_names(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    title, underline = ast.get_docstring(tree).splitlines()[:2]
    assert set(underline) == {"="}
    assert len(underline) >= len(title)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "td":
            assert node.attr in td.__all__


@pytest.mark.slow
def test_the_documentation_builds(tmp_path):
    missing = [tool for tool in TOOLS if not installed(tool)]
    if missing:
        pytest.skip(f"needs the extra [docs]: {', '.join(missing)} not installed")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-D",
        "sphinx_gallery_conf.filename_pattern=^$",
    ]
    done = subprocess.run([*command, str(DOCS), str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)\"", text)
        loaded += re.findall(
            r"<link\b[^>]*\brel=\"(?:stylesheet|preload|icon)\"[^>]*\bhref=\"([^\"]*)\"", text
        )
        assert [address for address in loaded if "//" in address] == [], page
