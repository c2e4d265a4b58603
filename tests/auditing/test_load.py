"""Models from files and packages; whatever is wrong is one sentence with its place."""

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from theodolite.auditing.load import open_model
from theodolite.theorems.subject import InputError

NETS = Path(__file__).parents[1] / "fixtures" / "nets.py"
NET = "import torch.nn as nn\n\nnet = nn.Linear(4, 2)\n\n\ndef make():\n    return nn.Linear(4, 2)\n"


@pytest.fixture(autouse=True)
def clean_imports(tmp_path, monkeypatch):
    """Work in an empty folder; fail a test that leaves a module or a path behind."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield
    assert sys.path == path
    left = {
        name
        for name in set(sys.modules) - modules
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", ""))
    }
    assert left == set()


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")


def sentence(spec: str) -> str:
    with pytest.raises(InputError) as caught, open_model(spec):
        pass
    text = str(caught.value)
    assert text.startswith("MODEL: ")
    assert "\n" not in text
    return text.removeprefix("MODEL: ")


@pytest.mark.parametrize(
    "spec",
    ["a.py:net", "./a.py:net", "a.py:make()", "a:net", "a:make()", "a.py:Holder.net", "a.py:holder.make()"],
)
def test_models_from_files_and_modules(spec):
    write(
        "a.py",
        NET + "class Holder:\n    net = net\n    def make(self):\n        return net\nholder = Holder()\n",
    )
    with open_model(spec) as model:
        assert isinstance(model, torch.nn.Linear)


def test_absolute_path():
    with open_model(f"{NETS}:relu_net") as model:
        assert model(torch.zeros(1, 64)).shape == (1, 10)


def test_packages_import_their_siblings():
    write("pkg/__init__.py", "")
    write("pkg/sub/__init__.py", "")
    write("pkg/sub/parts.py", NET)
    write("pkg/sub/whole.py", "from .parts import net\nfrom pkg.sub.parts import make\n")
    for spec in (
        "pkg/sub/whole.py:net",
        "pkg.sub.whole:net",
        "pkg.sub.whole:make()",
        "pkg/sub/whole.py:make()",
    ):
        with open_model(spec) as model:
            assert isinstance(model, torch.nn.Linear)


def test_plain_folders_import_their_siblings():
    write("folder/parts.py", NET)
    write("folder/absolute.py", "from parts import net\n")
    write("folder/relative.py", "from .parts import net\n")
    for name in ("absolute", "relative"):
        with open_model(f"folder/{name}.py:net") as model:
            assert isinstance(model, torch.nn.Linear)


def test_lazy_imports_work_while_the_model_is_open():
    write("parts.py", "scale = 2.0\n")
    write(
        "lazy.py",
        """
        import torch.nn as nn

        class Net(nn.Module):
            def forward(self, x):
                from parts import scale

                return scale * x

        net = Net()
        """,
    )
    with open_model("lazy.py:net") as model:
        assert model(torch.ones(1, 2)).tolist() == [[2.0, 2.0]]


def test_a_file_may_have_the_name_of_a_module():
    write("json.py", NET)
    import json

    with open_model("json.py:net") as model:
        assert isinstance(model, torch.nn.Linear)
    assert sys.modules["json"] is json


def test_two_files_of_one_name_are_two_files():
    write("one/net.py", "import torch.nn as nn\nfrom helper import size\nnet = nn.Linear(size, 1)\n")
    write("one/helper.py", "size = 3\n")
    write("two/net.py", "import torch.nn as nn\nfrom helper import size\nnet = nn.Linear(size, 1)\n")
    write("two/helper.py", "size = 5\n")
    sizes = []
    for folder in ("one", "two"):
        with open_model(f"{folder}/net.py:net") as model:
            sizes.append(model.in_features)
    assert sizes == [3, 5]


BROKEN = {
    "a = (\n": "a.py, line 1: is not valid Python ('(' was never closed)",
    "\nraise ValueError('bad\\nthing')\n": "a.py, line 2, raised ValueError: bad",
    "raise ValueError\n": "a.py, line 1, raised ValueError",
    "import no_such_module_x\n": "a.py, line 1, raised ModuleNotFoundError: No module named 'no_such_module_x'",
    "import sys\nsys.exit(3)\n": "a.py, line 2, ended the program (SystemExit) when it was loaded",
    "def f():\n    1 / 0\nf()\n": "a.py, line 2, raised ZeroDivisionError: division by zero",
    "import b\n": "b.py, line 1, raised KeyError: 'b'",
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_file_that_fails_names_its_line(source):
    write("a.py", source)
    write("b.py", "raise KeyError('b')\n")
    assert sentence("a.py:net") == BROKEN[source]


def test_a_binary_file_is_no_python():
    write("a.py", "\0\n")
    said = sentence("a.py:net")  # a SyntaxError or, before Python 3.11.4, a ValueError
    assert re.fullmatch(r"a\.py (is not valid Python|raised ValueError).*cannot contain null bytes\)?", said)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("missing.py:net", "missing.py: there is no such file"),
        ("folder.py:net", "folder.py: is a folder"),
        ("a.py", "expected path.py:attr, .* got 'a.py'; say which of its names is the model, as in a.py:model"),
        ("a.py:", "expected path.py:attr"),
        (":net", "expected path.py:attr"),
        ("", "expected path.py:attr"),
        ("a.py:net(3)", r"a factory that takes no arguments as in a.py:factory\(\), after the colon, got 'net\(3\)'"),
        ("a.py:ne", "a.py has no attribute 'ne'; did you mean net"),
        ("a.py:zzzz", "a.py has no attribute 'zzzz'; did you mean net"),
        ("a.py:net.weigth", "a.py:net has no attribute 'weigth'"),
        ("a.py:net()", "net is the module itself; leave out the parentheses"),
        ("a.py:make", r"a.py:make is a function; write a.py:make\(\) to call it"),
        ("a.py:Net", r"a.py:Net is a class; write a.py:Net\(\) to make a network"),
        ("a.py:number", "a.py:number: expected a torch.nn.Module, got an int"),
        ("a.py:number()", "number is an int, which cannot be called"),
        ("a.py:weights", "got a dict, weights without a network, it seems"),
        ("a.py:net.weight", "expected a torch.nn.Module, got a Parameter"),
        ("a.py:nothing()", "expected it to return a torch.nn.Module, got None"),
        ("a.py:fails()", "a.py, line 11, raised RuntimeError: no weights"),
        ("a.py:needs()", r"raised TypeError: needs\(\) missing 1 required positional argument: 'x'"),
        ("no_such_package.mod:net", "there is no module 'no_such_package.mod'"),
        ("no_such_module_x:net", "there is no module 'no_such_module_x' in this environment or the working folder"),
        ("broken:net", "broken.py, line 1, raised ModuleNotFoundError: No module named 'no_such_module_x'"),
        ("a.b c:net", "got 'a.b c' before the colon"),
        ("weights.pt", "'weights.pt' is of a kind that cannot be loaded"),
        ("net.onnx", "is of a kind that cannot be loaded"),
        ("hf:bert", "'hf:bert' is of a kind that cannot be loaded"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(spec, words):
    write(
        "a.py",
        """
        import torch.nn as nn
        net = nn.Linear(4, 2)
        def make():
            return net
        class Net(nn.Module):
            pass
        number, weights = 3, {}
        def nothing(): ...
        def fails():
            raise RuntimeError("no weights")
        def needs(x): ...
        """,
    )
    write("broken.py", "import no_such_module_x\n")
    Path("folder.py").mkdir()
    text = sentence(spec)
    import re

    assert re.search(words, text), text


def test_an_interrupt_is_not_a_refusal():
    write("a.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt), open_model("a.py:net"):
        pass


def test_errors_of_the_audit_pass_through_unchanged():
    write("a.py", NET)
    with pytest.raises(ZeroDivisionError), open_model("a.py:net"):
        raise ZeroDivisionError
