"""What every experiment owes: a place in ALL, a name of its own, sources, a title and a statement."""

import importlib
import pkgutil
import re
import subprocess
import sys
from inspect import isabstract
from pathlib import Path

import pytest

import theodolite.experiments as experiments
from theodolite.auditing import references
from theodolite.experiments.base import Experiment
from theodolite.experiments.datasets import PACKAGES

NO_EXPERIMENT = {"base", "datasets"}


def test_every_module_is_in_all():
    found = []
    for info in pkgutil.iter_modules(experiments.__path__):
        module = importlib.import_module(f"theodolite.experiments.{info.name}")
        own = [
            thing
            for thing in vars(module).values()
            if isinstance(thing, type)
            and issubclass(thing, Experiment)
            and thing.__module__ == module.__name__
        ]
        concrete = [thing for thing in own if not isabstract(thing)]
        # a module of parts starts with an underscore
        assert bool(concrete) != (info.name in NO_EXPERIMENT or info.name.startswith("_")), info.name
        found += concrete
    assert set(found) == set(experiments.ALL)
    assert len(found) == len(experiments.ALL)


def test_names_are_unique():
    assert len(experiments.BY_NAME) == len(experiments.ALL)


@pytest.mark.parametrize("experiment", experiments.ALL, ids=lambda e: e.name)
def test_every_experiment_says_what_it_is(experiment):
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", experiment.name)
    assert experiment.title
    assert experiment.__doc__
    assert "$" in experiment.statement
    assert experiment.statement.count("$") % 2 == 0
    assert experiment.needs is None or experiment.needs in PACKAGES
    for key in experiment.reference.split(","):
        assert key.strip() in references.bibliography()


def test_importing_them_draws_nothing():
    code = "import sys, theodolite.experiments; print({'matplotlib', 'cv2'} & set(sys.modules))"
    root = Path(experiments.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
